"""JSON on a terminal: the same document, without what a terminal acts upon."""

from __future__ import annotations

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_layer.cli import render


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_it_says_the_same(text: str) -> None:
    document = json.dumps({"a": text}, ensure_ascii=False, indent=2)
    shown = render._escaped(document)
    assert json.loads(shown) == {"a": text}
    assert all(char.isprintable() or char == "\n" or render._clean(char, "") == char for char in shown)
    assert not set("\x1b\x7f\x85\x9b\u202e\u2066") & set(shown)


def test_in_a_pipe_it_is_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert not sys.stdout.isatty()
    render.data({"a": "\x9b31m"})
    assert capsys.readouterr().out == '{"a": "\x9b31m"}\n'

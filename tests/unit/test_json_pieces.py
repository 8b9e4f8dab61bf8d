"""A document that is read in pieces means what the C scanner says of the whole, and no call of that is long."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_layer import canonical, json_pieces

HOOKED = json.JSONDecoder(object_pairs_hook=canonical._object, parse_constant=canonical._constant)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=4), inner, max_size=5),
    max_leaves=30,
)


def outcome(read: Any, text: str) -> Any:
    try:
        return repr(read(text))
    except Exception as error:  # noqa: BLE001 - compared
        return type(error), str(error)


@given(VALUES, st.sampled_from([None, 1]), st.data())
def test_pieces_mean_what_the_whole_means(value: Any, indent: int | None, data: st.DataObject) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=data.draw(st.booleans()))
    if text and data.draw(st.booleans()):  # broken somewhere
        at = data.draw(st.integers(0, len(text) - 1))
        text = text[:at] + data.draw(st.sampled_from(["", ",", "]", "}", '"', "[", " ", ":", "\\"])) + text[at + 1 :]
    before = json_pieces.BATCH_SIZE
    json_pieces.BATCH_SIZE = data.draw(st.integers(1, 12))
    try:
        read = outcome(lambda text: json_pieces.decode(HOOKED, text), text)
    finally:
        json_pieces.BATCH_SIZE = before
    assert read == outcome(HOOKED.decode, text)


def filled(unit: str, around: tuple[str, str] = ("[", "]"), limit: int = 1_900_000) -> str:
    return around[0] + ",".join([unit] * (limit // (len(unit) + 1))) + around[1]


LARGE = {
    "lists": filled("[]"),
    "objects": filled('{"b": 1, "c": [2, 3]}'),
    "integers": filled("1"),
    "texts": filled('"a, b]"'),
    "keys": "{" + ", ".join(f'"k{n}": 1.5' for n in range(140_000)) + "}",
    "deep": filled("[" * 60 + "]" * 60),
    "records": filled(json.dumps({f"k{n}": [n, {"x": n}, {"y": "z"}] for n in range(50)})),
    "within": '{"a": {"b": [' + filled(filled("[1]", limit=100_000), limit=1_000_000) + "]}}",
}


@pytest.mark.parametrize("kind", LARGE)
def test_no_call_of_the_scanner_is_long(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    longest = 0

    class Counting(json.JSONDecoder):
        def __init__(self) -> None:
            super().__init__(object_pairs_hook=canonical._object)
            scan = self.scan_once  # type: ignore[has-type]

            def counted(text: str, at: int) -> Any:
                nonlocal longest
                value, end = scan(text, at)
                longest = max(longest, end - at)
                return value, end

            self.scan_once = counted

    text = LARGE[kind]
    assert json_pieces.decode(Counting(), text) == json.loads(text)
    assert longest <= json_pieces.BATCH_SIZE + 2

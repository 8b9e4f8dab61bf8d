"""The list of the files that go first names files."""

from __future__ import annotations

from pathlib import Path

from tests.support.order import LONG

ROOT = Path(__file__).resolve().parents[2]


def test_each_file_of_the_list_is_there_once() -> None:
    assert [name for name in LONG if not (ROOT / name).is_file()] == []
    assert len(set(LONG)) == len(LONG)

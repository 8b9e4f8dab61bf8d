"""Named queries of a file, and the parts that several of them share."""

from __future__ import annotations

import pytest

from memory_layer.sql import parse

TEXT = """-- what the file is about
-- part: alive
AND deleted_at IS NULL

-- part: mine
WHERE tenant = %(tenant)s
  -- include: alive

-- name: all_nodes
SELECT {{Node n - content}} FROM memory_nodes n
-- include: mine

-- name: count_nodes
SELECT count(*) FROM memory_nodes n
    -- include: mine
"""


def test_a_part_stands_in_each_query_that_includes_it() -> None:
    found = parse(TEXT, "nodes")
    assert list(found) == ["all_nodes", "count_nodes"]
    assert found["count_nodes"].split()[4:] == [
        "n",
        "WHERE",
        "tenant",
        "=",
        "%(tenant)s",
        "AND",
        "deleted_at",
        "IS",
        "NULL",
    ]
    assert found["all_nodes"].split()[-8:] == found["count_nodes"].split()[-8:]
    assert "include" not in "".join(found.values())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("-- name: one\nSELECT 1\n-- name: one\nSELECT 2", "two blocks 'name: one'"),
        ("-- part: one\n1\n-- part: one\n2", "two blocks 'part: one'"),
        ("-- name: one\n-- include: two\n-- part: two\nSELECT 1", "includes two, and no part of that name"),
    ],
)
def test_what_is_named_twice_or_not_at_all_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse(text, "nodes")  # type: ignore[arg-type]  # made up here, and never run

"""Filters on keys with odd names, on strings that spell dates, on beginnings and on what lists hold: by list and by search alike."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from tests.api.door import check_error, create_indexed, found_ids, listed_ids

METADATA: dict[str, dict[str, Any]] = {
    "dotted": {"a.b": 1, "": "blank", "x": {"y.z": "deep"}, "due": "2026-03-01", "tags": ["red", "green"]},
    "nested": {"a": {"b": 1}, "c/d": "slash", "~": "tilde", "due": "2026-03-01T01:30:00+02:00", "tags": "red"},
    "other": {"due": "soon", "dues": ["2026-01-01", "2026-06-01"], "tags": [["red"]], "2026": {"q.1": True}},
}
CASES: list[tuple[dict[str, Any], set[str]]] = [
    ({"/metadata/a.b": 1}, {"dotted"}),
    ({"metadata.a.b": 1}, {"nested"}),
    ({"/metadata/a/b": 1}, {"nested"}),
    ({"/metadata/": "blank"}, {"dotted"}),
    ({"/metadata/x/y.z": {"$startsWith": "de"}}, {"dotted"}),
    ({"/metadata/c~1d": "slash"}, {"nested"}),
    ({"/metadata/~0": "tilde"}, {"nested"}),
    ({"/metadata/2026/q.1": True}, {"other"}),
    ({"/metadata/a.b": {"$exists": False}}, {"nested", "other"}),
    ({"/metadata/a.b": {"$ne": 1}}, {"nested", "other"}),
    # 01:30 at +02:00 is still February in UTC.
    ({"metadata.due": {"$gte": "2026-03-01"}}, {"dotted"}),
    ({"metadata.due": {"$lt": "2026-03-01"}}, {"nested"}),
    ({"metadata.due": {"$gte": "2026-02-28T23:30:00Z"}}, {"dotted", "nested"}),
    ({"metadata.due": {"$gt": "2026-02-28T23:30:00Z"}}, {"dotted"}),
    ({"metadata.due": {"$not": {"$gte": "2026-03-01"}}}, {"nested", "other"}),
    ({"metadata.dues": {"$gte": "2026-05-31", "$lt": "2026-07-01"}}, {"other"}),
    ({"metadata.due": {"$gt": 1}}, set()),
    ({"createdAt": {"$gte": "2000-01-01"}}, {"dotted", "nested", "other"}),
    ({"metadata.tags": {"$contains": "red"}}, {"dotted", "nested"}),
    ({"metadata.tags": {"$contains": "re"}}, set()),
    ({"metadata.tags": {"$not": {"$contains": "green"}}}, {"nested", "other"}),
    ({"metadata.tags": {"$startsWith": "gr"}}, {"dotted"}),
    ({"content": {"$startsWith": "nest"}}, {"nested"}),
    ({"owner": {"$startsWith": "an"}}, {"dotted", "nested", "other"}),
    ({"metadata.due": {"$not": {"$startsWith": "2026"}}}, {"other"}),
]


def test_list_and_search_agree(http: httpx2.Client) -> None:
    name_of = {create_indexed(http, content=name, metadata=given): name for name, given in METADATA.items()}
    for where, expected in CASES:
        listed = {name_of[node] for node in listed_ids(http, filter=json.dumps(where))}
        assert listed == expected, where
        for query in ({"query": "dotted nested other", "mode": "semantic"}, {"query": "dotted nested other"}):
            assert {name_of[node] for node in found_ids(http, filter=where, **query)} == expected, where


@pytest.mark.parametrize(
    "where",
    [
        {'metadata."a.b"': 1},
        {"metadata:/a.b": 1},
        {"metadata['a.b']": 1},
        {"metadata.a\\.b": 1},
        {"/metadata/a~2": 1},
        {"/metadata": 1},
        {"/content/a": 1},
        {"metadata.due": {"$gte": "soon"}},
        {"metadata.due": {"$gte": "2026-02-30"}},
        {"metadata.due": {"$gte": "2026-01-01T00:00:00"}},
        {"content": {"$gt": "2026-01-01"}},
        {"content": {"$contains": "x"}},
        {"metadata.tags": {"$contains": ["red"]}},
        {"metadata.tags": {"$startsWith": 1}},
        {"version": {"$startsWith": "1"}},
    ],
    ids=json.dumps,
)
def test_what_is_ambiguous_or_has_no_order_is_refused_and_says_what_to_do(
    http: httpx2.Client, where: dict[str, Any]
) -> None:
    check_error(http.get("/v1/memory/nodes", params={"filter": json.dumps(where)}), 422, "VALIDATION_ERROR")
    check_error(http.post("/v1/memory/search", json={"query": "x", "filter": where}), 422, "VALIDATION_ERROR")


def test_a_page_goes_on_with_an_odd_key(http: httpx2.Client) -> None:
    made = [create_indexed(http, content="x", metadata={"a.b": {"~/": n}}) for n in range(4)]
    assert listed_ids(http, filter=json.dumps({"/metadata/a.b/~0~1": {"$gte": 1}}), limit=1) == made[:0:-1]

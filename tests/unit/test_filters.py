"""The filter language: what it accepts, what it means, and the laws that hold for every filter and document."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from memory_layer.errors import ValidationError
from memory_layer.filters import (
    And,
    Compare,
    Filter,
    Not,
    Or,
    Steps,
    evaluate,
    needs,
    parse,
    parse_timestamp,
    to_json,
    widen,
)

NODE: dict[str, Any] = {
    "memoryNodeId": "0190f5c0-0000-7000-8000-000000000001",
    "embeddingId": None,
    "owner": "ann",
    "namespace": "kernel-memory",
    "version": 3,
    "legalHold": False,
    "ttlSeconds": 3600,
    "content": "the text",
    "subjects": ["ann", "bob"],
    "createdAt": datetime(2026, 1, 31, 9, 30, 0, 5, tzinfo=UTC),
    "updatedAt": "2026-02-01T00:00:00+02:00",
    "metadata": {
        "n": 1,
        "f": 1.5,
        "s": "1",
        "t": True,
        "null": None,
        "empty": [],
        "nulls": [None],
        "tags": ["a", "b", 2],
        "mixed": [None, "a"],
        "object": {"x": {"y": "deep"}},
        "people": [{"name": "ann", "pets": ["rex"]}, {"name": "bob", "age": 7}, "nobody"],
        "nested": [["inner"]],
        "": "blank key",
        "0": "digit",
        "a.b": "dotted",
        "[0]": "bracketed",
        "x": {"y.z": {"deep": 1}},
        "c/d": "slashed",
        "~e": "tilde",
        "day": "2026-01-31",
        "moment": "2026-01-31T09:30:00+02:00",
        "days": ["2026-01-01", "2026-03-01", "later", 7],
    },
    "piiFlags": {"containsPii": True, "classification": ["email"], "paths": ["metadata.email"]},
}


def holds(obj: Any, document: dict[str, Any] = NODE) -> bool:
    where = parse(obj)
    assert where is not None
    return evaluate(where, document)


def refusal(obj: Any) -> tuple[str, str]:
    with pytest.raises(ValidationError) as caught:
        parse(obj)
    [problem] = caught.value.details
    return problem.path, problem.problem


CONDITIONS_ON_NOTHING: list[tuple[Any, bool]] = [
    (None, True),
    ({"$eq": []}, True),
    ({"$ne": None}, False),
    ({"$exists": False}, True),
    ({"$exists": True}, False),
    ([None], True),
    ([None, "a"], True),
    ({"$nin": [None, "a"]}, False),
    ({"$nin": ["a"]}, True),
    ({"$ne": "a"}, True),
    ({"$gt": 0}, False),
    ({"$not": {"$gt": 0}}, True),
    ({"$all": ["a"]}, False),
    ({"$contains": "a"}, False),
    ({"$startsWith": ""}, False),
    ({"$not": {"$startsWith": ""}}, True),
    ({"$gte": "0001-01-01"}, False),
]


# --- Meaning -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"owner": "ann"}, True),
        ({"owner": "Ann"}, False),
        ({"owner": ["bob", "ann"]}, True),
        ({"owner": {"$ne": "ann"}}, False),
        ({"owner": "ann", "version": 4}, False),
        ({"owner": {"$eq": "ann", "$ne": "bob"}}, True),
        ({"$or": [{"owner": "bob"}, {"version": {"$gte": 3}}]}, True),
        ({"$and": [{"owner": "ann"}, {"version": {"$lt": 3}}]}, False),
        ({"$not": {"owner": "bob"}}, True),
        ({"$not": {"owner": "ann", "version": 9}}, True),
        ({"version": {"$not": {"$gt": 1, "$lt": 3}}}, True),
        ({"version": {"$gt": 2, "$lte": 3}}, True),
        ({"legalHold": False}, True),
        ({"subjects": "bob"}, True),
        ({"subjects": {"$all": ["bob", "ann"]}}, True),
        ({"subjects": {"$all": ["bob", "eve"]}}, False),
        ({"owner": {"$all": ["ann"]}}, True),
        ({"piiFlags.containsPii": True}, True),
        ({"piiFlags.classification": {"$in": ["phone", "email"]}}, True),
        # arrays: any element; conditions side by side may be met by different ones
        ({"metadata.tags": "a"}, True),
        ({"metadata.tags": 2.0}, True),
        ({"metadata.tags": {"$nin": ["a"]}}, False),
        ({"metadata.tags": {"$gte": 2}}, True),
        ({"metadata.people.name": "bob"}, True),
        ({"metadata.people.name": {"$all": ["ann", "bob"]}}, True),
        ({"metadata.people.pets": "rex"}, True),
        ({"metadata.people.age": {"$gt": 6}}, True),
        ({"metadata.people": "nobody"}, True),
        ({"metadata.people.0.name": "ann"}, False),
        ({"metadata.nested": "inner"}, False),
        ({"metadata.nested": {"$exists": True}}, True),
        ({"metadata.object.x.y": "deep"}, True),
        ({"metadata.object": {"$exists": True}}, True),
        ({"metadata.object": "deep"}, False),
        ({"metadata.0": "digit"}, True),
        ({"embeddingId": None}, True),
        ({"expiresAt": None}, True),
        ({"expiresAt": {"$lt": "2100-01-01T00:00:00Z"}}, False),
        ({"metadata.mixed": None}, False),
        ({"metadata.mixed": [None, "b"]}, False),
        ({"metadata.mixed": [None, "a"]}, True),
        # lists of nothing
        ({"owner": []}, False),
        ({"owner": {"$nin": []}}, True),
        ({"owner": {"$all": []}}, False),
        # instants
        ({"createdAt": "2026-01-31T09:30:00.000005Z"}, True),
        ({"createdAt": "2026-01-31t10:30:00.000005999+01:00"}, True),
        ({"createdAt": {"$gt": "2026-01-31T09:30:00Z"}}, True),
        ({"createdAt": {"$lte": "2026-01-31T09:30:00.000004Z"}}, False),
        ({"updatedAt": "2026-01-31T22:00:00Z"}, True),
        ({"updatedAt": {"$lt": "2026-01-31T23:00:00Z"}}, True),
        ({"createdAt": ["2020-01-01T00:00:00Z", None]}, False),
        ({"createdAt": {"$gte": "2026-01-31"}}, True),
        ({"createdAt": {"$gte": "2026-02-01"}}, False),
        ({"createdAt": {"$lte": "2026-01-31"}}, False),
        # keys that a dotted name cannot name
        ({"/metadata/a.b": "dotted"}, True),
        ({"metadata.a.b": "dotted"}, False),
        ({"metadata.[0]": "bracketed"}, True),
        ({"/metadata/x/y.z/deep": {"$gte": 1}}, True),
        ({"/metadata/": "blank key"}, True),
        ({"/metadata/c~1d": "slashed"}, True),
        ({"metadata.c/d": "slashed"}, True),
        ({"/metadata/~0e": "tilde"}, True),
        ({"metadata.~e": "tilde"}, True),
        ({"/metadata/~01": {"$exists": True}}, False),
        ({"/metadata/people/0/name": "ann"}, False),
        ({"/metadata/people/name": "ann"}, True),
        ({"/owner": "ann"}, True),
        ({"$not": {"/metadata/a.b": "dotted"}}, False),
        # strings that spell dates
        ({"metadata.day": {"$gte": "2026-01-31"}}, True),
        ({"metadata.day": {"$gt": "2026-01-31"}}, False),
        ({"metadata.day": {"$lt": "2026-01-31T00:00:00.000001Z"}}, True),
        ({"metadata.day": {"$gte": "2026-01-31T00:30:00+01:00"}}, True),
        ({"metadata.moment": {"$gt": "2026-01-31T07:29:59Z", "$lt": "2026-01-31T07:30:01Z"}}, True),
        ({"metadata.moment": {"$gte": "2026-01-31"}}, True),
        ({"metadata.moment": {"$lte": "2026-01-31"}}, False),
        ({"metadata.moment": {"$not": {"$lte": "2026-01-31"}}}, True),
        ({"metadata.moment": "2026-01-31T07:30:00Z"}, False),
        ({"metadata.days": {"$gt": "2026-02-01", "$lt": "2026-02-01"}}, True),
        ({"metadata.days": {"$gt": "2026-03-01"}}, False),
        ({"metadata.days": {"$gt": 6}}, True),
        ({"metadata.n": {"$gt": "2026-01-01"}}, False),
        ({"metadata.s": {"$gt": "2026-01-01"}}, False),
        ({"metadata.s": {"$not": {"$gt": "2026-01-01"}}}, True),
        ({"piiFlags.classification": {"$lt": "2026-01-01"}}, False),
        # what a list holds, and what a string begins with
        ({"metadata.tags": {"$contains": "a"}}, True),
        ({"metadata.tags": {"$contains": 2.0}}, True),
        ({"metadata.tags": {"$contains": "ab"}}, False),
        ({"metadata.tags": {"$not": {"$contains": "c"}}}, True),
        ({"metadata.people.pets": {"$contains": "rex"}}, True),
        ({"metadata.empty": {"$contains": "a"}}, False),
        ({"metadata.object": {"$contains": "x"}}, False),
        ({"subjects": {"$contains": "bob"}}, True),
        ({"content": {"$startsWith": "the "}}, True),
        ({"content": {"$startsWith": "text"}}, False),
        ({"owner": {"$startsWith": "A"}}, False),
        ({"owner": {"$startsWith": ""}}, True),
        ({"embeddingId": {"$startsWith": ""}}, False),
        ({"metadata.people.name": {"$startsWith": "bo"}}, True),
        ({"metadata.n": {"$startsWith": "1"}}, False),
        ({"metadata.n": {"$not": {"$startsWith": "1"}}}, True),
        ({"metadata.tags": {"$startsWith": "b", "$contains": "a"}}, True),
    ],
)
def test_meaning(where: Any, expected: bool) -> None:
    assert holds(where) is expected


@pytest.mark.parametrize("key", ["null", "empty", "nulls", "absent", "n.below", "people.name.below"])
@pytest.mark.parametrize(("condition", "expected"), CONDITIONS_ON_NOTHING)
def test_missing_null_and_empty_are_one(key: str, condition: Any, expected: bool) -> None:
    assert holds({f"metadata.{key}": condition}) is expected


VALUES = [0, 1, 1.0, 1.5, -0.0, "", "0", "1", "1.0", "true", "null", True, False]


@pytest.mark.parametrize("stored", VALUES)
@pytest.mark.parametrize("asked", VALUES)
def test_types_never_coerce(stored: Any, asked: Any) -> None:
    def kind(value: Any) -> type:
        return float if isinstance(value, int) and not isinstance(value, bool) else type(value)

    same = kind(stored) is kind(asked) and stored == asked
    document = {"metadata": {"v": stored}}
    assert holds({"metadata.v": asked}, document) is same
    assert holds({"metadata.v": [asked]}, document) is same
    assert holds({"metadata.v": {"$all": [asked]}}, document) is same
    assert holds({"metadata.v": {"$ne": asked}}, document) is not same
    if kind(asked) is float:
        numeric = kind(stored) is float
        assert holds({"metadata.v": {"$gte": asked}}, document) is (numeric and float(stored) >= asked)
        assert holds({"metadata.v": {"$lt": asked}}, document) is (numeric and float(stored) < asked)


@pytest.mark.parametrize("root", ["owner", "version", "legalHold", "subjects"])
def test_a_value_of_another_type_is_merely_unequal(root: str) -> None:
    other: Any = "3" if root != "owner" else 3
    assert not holds({root: other})
    assert holds({root: {"$ne": other}})


def test_large_numbers_compare_exactly() -> None:
    document = {"metadata": {"v": 2**53 - 1}}
    assert holds({"metadata.v": 2**53 - 1}, document)
    assert not holds({"metadata.v": 2**53 - 2}, document)
    assert holds({"metadata.v": {"$lt": 1e300}}, document)


# --- Parsing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nothing", [None, {}])
def test_nothing_asked_is_no_filter(nothing: Any) -> None:
    assert parse(nothing) is None


def test_the_tree_is_small_and_plain() -> None:
    assert parse({"owner": "ann"}) == Compare(("owner",), "eq", "ann")
    assert parse({"metadata.a.b": [1, "x"]}) == Compare(("metadata", "a", "b"), "in", (1, "x"))
    assert parse({"owner": {"$ne": None}}) == Compare(("owner",), "exists", True)
    assert parse({"owner": {"$nin": ["a"]}}) == Not(Compare(("owner",), "in", ("a",)))
    assert parse({"owner": ["a", None]}) == Or(
        (Not(Compare(("owner",), "exists", True)), Compare(("owner",), "in", ("a",)))
    )
    assert parse({"$not": {"$not": {"version": {"$gt": 1}}}}) == Compare(("version",), "gt", 1)
    assert parse({"createdAt": {"$lt": "2026-01-01T01:00:00+01:00"}}) == Compare(
        ("createdAt",), "lt", datetime(2026, 1, 1, tzinfo=UTC)
    )
    assert parse({"$and": [{"owner": "a", "version": {"$gte": 1, "$lt": 5}}]}) == And(
        (
            Compare(("owner",), "eq", "a"),
            Compare(("version",), "gte", 1),
            Compare(("version",), "lt", 5),
        )
    )


def nest(levels: int, inner: Any) -> Any:
    for _ in range(levels):
        inner = {"$or": [inner, {"owner": "x"}]}
    return inner


@pytest.mark.parametrize(
    ("where", "path", "problem"),
    [
        ([], "filter", "object"),
        ("owner", "filter", "object"),
        (0, "filter", "object"),
        ({"color": 1}, "filter.color", "not a field"),
        ({"tenant": "x"}, "filter.tenant", "not a field"),
        ({"": 1}, "filter.", "not a field"),
        ({"metadata": {"$exists": True}}, "filter.metadata", "name a key"),
        ({"metadata.": 1}, "filter.metadata.", "name a key"),
        ({"metadata.a..b": 1}, "filter.metadata.a..b", "name a key"),
        ({"owner.name": 1}, "filter.owner.name", "no fields below"),
        ({"metadata" + ".a" * 16: 1}, "filter.metadata" + ".a" * 16, "16 keys"),
        ({"metadata." + "a" * 1000: 1}, "filter.metadata." + "a" * 184 + "...", "1000 characters"),
        ({"$nor": []}, "filter.$nor", "not an operator"),
        ({"owner": {"$regex": "a"}}, "filter.owner.$regex", "not an operator"),
        ({"owner": {}}, "filter.owner", "empty"),
        ({"metadata.a": {"b": 1}}, "filter.metadata.a.b", "objects are not compared"),
        ({"metadata.a": {"$gt": 1, "b": 1}}, "filter.metadata.a.b", "objects are not compared"),
        ({"metadata.a": [[1]]}, "filter.metadata.a.0", "must be text"),
        ({"metadata.a": [{"b": 1}]}, "filter.metadata.a.0", "must be text"),
        ({"metadata.a": {"$eq": [1]}}, "filter.metadata.a.$eq", "must be text"),
        ({"metadata.a": {"$in": "x"}}, "filter.metadata.a.$in", "list"),
        ({"metadata.a": {"$all": "x"}}, "filter.metadata.a.$all", "list"),
        ({"metadata.a": {"$all": [None]}}, "filter.metadata.a.$all.0", "null"),
        ({"metadata.a": list(range(1001))}, "filter.metadata.a", "1000 values"),
        ({"metadata.a": {"$exists": 1}}, "filter.metadata.a.$exists", "true or false"),
        ({"metadata.a": {"$gt": "b"}}, "filter.metadata.a.$gt", "number"),
        ({"metadata.a": {"$gt": ""}}, "filter.metadata.a.$gt", "number"),
        ({"metadata.a": {"$gt": "2026-1-1"}}, "filter.metadata.a.$gt", "a date"),
        ({"metadata.a": {"$gt": "2026-02-30"}}, "filter.metadata.a.$gt", "a date"),
        ({"metadata.a": {"$gt": "0000-01-01"}}, "filter.metadata.a.$gt", "a date"),
        ({"metadata.a": {"$gt": "2026-01-01T00:00:00"}}, "filter.metadata.a.$gt", "a date"),
        ({"metadata.a": {"$gt": "2026-01-01T00:00Z"}}, "filter.metadata.a.$gt", "a date"),
        ({"metadata.a": {"$gt": " 2026-01-01"}}, "filter.metadata.a.$gt", "a date"),
        ({"metadata.a": {"$gt": "2026-01-01\n"}}, "filter.metadata.a.$gt", "a date"),
        ({"metadata.a": {"$gt": "20260101"}}, "filter.metadata.a.$gt", "a date"),
        ({"metadata.a": {"$gt": "٢026-01-01"}}, "filter.metadata.a.$gt", "a date"),
        ({"owner": {"$gt": "2026-01-01"}}, "filter.owner.$gt", "no order"),
        ({"version": {"$gt": "2026-01-01"}}, "filter.version.$gt", "number"),
        ({'metadata."a.b"': 1}, 'filter.metadata."a.b"', "/metadata/a.b"),
        ({"metadata.'a.b'": 1}, "filter.metadata.'a.b'", "ambiguous"),
        ({"metadata.`a.b`": 1}, "filter.metadata.`a.b`", "ambiguous"),
        ({"metadata.[a.b]": 1}, "filter.metadata.[a.b]", "ambiguous"),
        ({"metadata.a\\.b": 1}, "filter.metadata.a\\.b", "ambiguous"),
        ({'metadata["a.b"]': 1}, 'filter.metadata["a.b"]', "/metadata/a.b"),
        ({"metadata:/a.b": 1}, "filter.metadata:/a.b", "/metadata/a.b"),
        ({"metadata/a.b": 1}, "filter.metadata/a.b", "/metadata/a.b"),
        ({"/": 1}, "filter./", "not a field"),
        ({"//metadata/a": 1}, "filter.//metadata/a", "not a field"),
        ({"/metadata": 1}, "filter./metadata", "name a key"),
        ({"/metadata/a~2b": 1}, "filter./metadata/a~2b", "JSON Pointer"),
        ({"/metadata/a~": 1}, "filter./metadata/a~", "JSON Pointer"),
        ({"/owner/name": 1}, "filter./owner/name", "no fields below"),
        ({"/metadata" + "/a" * 16: 1}, "filter./metadata" + "/a" * 16, "16 keys"),
        ({"/metadata/a.b": {"c": 1}}, "filter./metadata/a.b.c", "/metadata/a.b/key"),
        ({"metadata.a": {"$contains": ["b"]}}, "filter.metadata.a.$contains", "must be text"),
        ({"metadata.a": {"$contains": None}}, "filter.metadata.a.$contains", "null"),
        ({"owner": {"$contains": "b"}}, "filter.owner.$contains", "no list"),
        ({"createdAt": {"$contains": "b"}}, "filter.createdAt.$contains", "no list"),
        ({"metadata.a": {"$startsWith": 1}}, "filter.metadata.a.$startsWith", "must be text"),
        ({"metadata.a": {"$startsWith": ["b"]}}, "filter.metadata.a.$startsWith", "must be text"),
        ({"metadata.a": {"$startsWith": None}}, "filter.metadata.a.$startsWith", "must be text"),
        ({"metadata.a": {"$startsWith": "\ud800"}}, "filter.metadata.a.$startsWith", "surrogate"),
        ({"version": {"$startsWith": "1"}}, "filter.version.$startsWith", "no text"),
        ({"createdAt": {"$startsWith": "2026"}}, "filter.createdAt.$startsWith", "no text"),
        ({"legalHold": {"$startsWith": "t"}}, "filter.legalHold.$startsWith", "no text"),
        ({"metadata.a": {"$gt": True}}, "filter.metadata.a.$gt", "number"),
        ({"metadata.a": {"$gt": None}}, "filter.metadata.a.$gt", "number"),
        ({"metadata.a": {"$lt": [1]}}, "filter.metadata.a.$lt", "number"),
        ({"owner": {"$gt": "b"}}, "filter.owner.$gt", "no order"),
        ({"owner": {"$gt": 1}}, "filter.owner.$gt", "no order"),
        ({"legalHold": {"$gt": 0}}, "filter.legalHold.$gt", "no order"),
        ({"version": {"$gt": "1"}}, "filter.version.$gt", "number"),
        ({"metadata.a": float("nan")}, "filter.metadata.a", "finite"),
        ({"metadata.a": {"$lt": float("inf")}}, "filter.metadata.a.$lt", "finite"),
        ({"metadata.a": 2**53}, "filter.metadata.a", "2^53"),
        ({"metadata.a": -(10**400)}, "filter.metadata.a", "2^53"),
        ({"owner": "a\0"}, "filter.owner", "NUL"),
        ({"owner": "\ud800"}, "filter.owner", "surrogate"),
        ({"metadata.\udfff": 1}, "filter.metadata.\\udfff", "surrogate"),
        ({"createdAt": "yesterday"}, "filter.createdAt", "RFC 3339"),
        ({"createdAt": "2026-01-01"}, "filter.createdAt", "RFC 3339"),
        ({"createdAt": "2026-01-01T00:00:00"}, "filter.createdAt", "RFC 3339"),
        ({"createdAt": 1767225600}, "filter.createdAt", "RFC 3339"),
        ({"createdAt": {"$gt": None}}, "filter.createdAt.$gt", "RFC 3339"),
        ({"createdAt": "2026-02-30T00:00:00Z"}, "filter.createdAt", "day"),
        ({"createdAt": "0001-01-01T00:00:00+01:00"}, "filter.createdAt", "years"),
        ({"$and": []}, "filter.$and", "at least one"),
        ({"$or": {"owner": "a"}}, "filter.$or", "list"),
        ({"$or": [{}]}, "filter.$or.0", "empty"),
        ({"$or": [{"owner": "a"}, None]}, "filter.$or.1", "object"),
        ({"$not": {}}, "filter.$not", "empty"),
        ({"owner": {"$not": "a"}}, "filter.owner.$not", "operators"),
        ({"owner": {"$not": {}}}, "filter.owner.$not", "operators"),
        (nest(9, {"owner": "a"}), "filter" + ".$or.0" * 8 + ".$or", "8 levels"),
        (nest(8, {"owner": "a", "version": 1}), "filter" + ".$or.0" * 8, "8 levels"),
        (nest(8, {"version": {"$not": {"$gt": 1}}}), "filter" + ".$or.0" * 8 + ".version.$not", "8 levels"),
        (nest(8, {"version": {"$gt": 1, "$lt": 2}}), "filter" + ".$or.0" * 8, "8 levels"),
        ({"$or": [{"owner": "a"}] * 65}, "filter.$or", "64"),
        ({"$or": [{"owner": "a"}, {"$and": [{"owner": "a"}] * 64}]}, "filter.$or.1.$and.63.owner", "64"),
    ],
)
def test_refusals_say_where_and_why(where: Any, path: str, problem: str) -> None:
    found_path, found_problem = refusal(where)
    assert found_path == path
    assert problem in found_problem


def test_the_limits_themselves_are_allowed() -> None:
    assert parse(nest(8, {"owner": "a"})) is not None
    assert parse({"$or": [{"owner": "a"}] * 64}) is not None
    assert parse({"metadata.a": list(range(1000))}) is not None
    assert parse({"metadata" + ".a" * 15: 1}) is not None


def test_bottomless_json_is_refused_without_recursing() -> None:
    deep: Any = {"owner": "a"}
    for _ in range(100_000):
        deep = {"$not": deep}
    assert "8 levels" in refusal(deep)[1]
    while "$not" in deep:  # taken apart by hand: freeing it at once would recurse
        deep = deep.pop("$not")


def test_needs_names_every_path() -> None:
    where = parse({"owner": "a", "$or": [{"metadata.x.y": None}, {"content": {"$not": {"$exists": True}}}]})
    assert where is not None
    assert needs(where) == {("owner",), ("metadata", "x", "y"), ("content",)}


# --- Laws ----------------------------------------------------------------------------------------------------------

scalars = st.one_of(
    st.sampled_from(["a", "b", "", "1", "2026-01-01", "2026-01-01T01:00:00+02:00"]),
    st.integers(-2, 2),
    st.sampled_from([0.5, 1.0, -0.0]),
    st.booleans(),
)
stored = st.recursive(
    st.none() | scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "$eq", "a.b", ""]), inner, max_size=3)
    ),
    max_leaves=8,
)
instants = st.builds(
    lambda seconds, micros: datetime(2000, 1, 1, 0, 0, seconds, micros, tzinfo=UTC),
    st.integers(0, 2),
    st.sampled_from([0, 1, 500_000]),
)
documents = st.fixed_dictionaries(
    {},
    optional={
        "owner": st.sampled_from(["a", "b"]),
        "version": st.integers(-2, 2),
        "legalHold": st.booleans(),
        "subjects": st.lists(st.sampled_from(["a", "b"]), max_size=2),
        "createdAt": instants | instants.map(datetime.isoformat) | st.none(),
        "metadata": st.dictionaries(st.sampled_from(["a", "b", "a.b", "~/"]), stored, max_size=2),
        "piiFlags": st.dictionaries(st.sampled_from(["a", "b"]), stored, max_size=2),
    },
)
paths = st.sampled_from(
    [
        "metadata.a",
        "metadata.b",
        "metadata.a.b",
        "metadata.a.$eq",
        "/metadata/a.b",
        "/metadata/a/a.b",
        "/metadata/a/",
        "/metadata/~0~1",
        "piiFlags.a",
        "owner",
        "subjects",
    ]
)
numbers = st.integers(-2, 2) | st.sampled_from([0.5, -1.5, "2026-01-01", "2025-12-31T23:00:00Z"])
equalities = st.one_of(
    scalars,
    st.none(),
    st.lists(scalars | st.none(), max_size=3),
    st.builds(lambda op, v: {op: v}, st.sampled_from(["$eq", "$ne"]), scalars | st.none()),
    st.builds(lambda op, v: {op: v}, st.sampled_from(["$in", "$nin"]), st.lists(scalars | st.none(), max_size=3)),
    st.builds(lambda v: {"$all": v}, st.lists(scalars, max_size=3)),
    st.builds(lambda v: {"$exists": v}, st.booleans()),
    st.builds(lambda v: {"$startsWith": v}, st.sampled_from(["", "a", "2026"])),
)
ranges = st.dictionaries(st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), numbers, min_size=1, max_size=2)
spans = st.dictionaries(
    st.sampled_from(["$gt", "$gte", "$lt", "$lte", "$eq", "$ne"]),
    instants.map(datetime.isoformat),
    min_size=1,
    max_size=2,
)
conditions = st.one_of(
    st.dictionaries(paths, equalities, min_size=1, max_size=2),
    st.builds(lambda p, c: {p: c}, st.sampled_from(["metadata.a", "metadata.b.a", "/metadata/a.b"]), ranges),
    st.builds(lambda p, c: {p: {"$not": c}}, st.sampled_from(["metadata.a", "/metadata/a.b"]), ranges),
    st.builds(lambda v: {"metadata.a": {"$contains": v}}, scalars),
    st.builds(lambda n: {"version": {"$gte": n}}, st.integers(-2, 2)),
    st.builds(lambda c: {"createdAt": c}, spans),
)
filters = st.recursive(
    conditions,
    lambda inner: st.one_of(
        st.builds(
            lambda op, parts: {op: parts}, st.sampled_from(["$and", "$or"]), st.lists(inner, min_size=1, max_size=3)
        ),
        st.builds(lambda part: {"$not": part}, inner),
    ),
    max_leaves=6,
)


def parsed(obj: Any) -> Filter | None:
    """None where the random nesting went over a limit."""
    try:
        return parse(obj)
    except ValidationError as error:
        if "levels" not in error.message:
            raise
        return None


@given(paths, scalars | st.none(), documents)
def test_ne_is_the_complement_of_eq(path: str, value: Any, document: dict[str, Any]) -> None:
    assert holds({path: {"$ne": value}}, document) is not holds({path: {"$eq": value}}, document)
    assert holds({path: value}, document) is holds({path: {"$in": [value]}}, document)


@given(paths, st.lists(scalars | st.none(), max_size=3), documents)
def test_nin_is_the_complement_of_in_and_in_is_an_or(path: str, values: list[Any], document: dict[str, Any]) -> None:
    within = holds({path: {"$in": values}}, document)
    assert holds({path: {"$nin": values}}, document) is not within
    assert within is any(holds({path: {"$eq": value}}, document) for value in values)


@given(paths, st.lists(scalars, min_size=1, max_size=3), documents)
def test_all_is_an_and(path: str, values: list[Any], document: dict[str, Any]) -> None:
    assert holds({path: {"$all": values}}, document) is all(holds({path: value}, document) for value in values)


@given(filters, documents)
def test_not_is_the_complement(obj: Any, document: dict[str, Any]) -> None:
    if parsed({"$not": obj}) is not None:
        assert holds({"$not": obj}, document) is not holds(obj, document)


@given(filters, filters, documents)
def test_de_morgan(one: Any, two: Any, document: dict[str, Any]) -> None:
    neither = {"$not": {"$or": [one, two]}}
    both_not = {"$and": [{"$not": one}, {"$not": two}]}
    if parsed(neither) is not None and parsed(both_not) is not None:
        assert holds(neither, document) is holds(both_not, document)


def exact(where: Filter) -> str:
    """Tells 1 from True, which ``==`` does not."""
    return repr(where)


@given(filters)
@example({"metadata.a": {"$nin": [None, 1]}})
@example({"$not": {"$or": [{"owner": None}, {"owner": ["a"]}]}})
@example({"$or": [{"owner": None}, {"owner": []}]})
@example({"createdAt": "0999-12-31T23:59:59.1-00:30"})
def test_json_gives_the_same_tree_again(obj: Any) -> None:
    if (where := parsed(obj)) is not None:
        again = parse(to_json(where))
        assert again == where
        assert exact(again) == exact(where)


@given(
    filters, documents, st.sets(st.sampled_from(["owner", "subjects", "version", "createdAt", "metadata", "piiFlags"]))
)
def test_widening_never_loses_a_document(obj: Any, document: dict[str, Any], known: set[str]) -> None:
    if (where := parsed(obj)) is not None:
        wide = widen(where, lambda compare: compare.path[0] in known)
        if wide is not None:
            assert {path[0] for path in needs(wide)} <= known
            assert evaluate(wide, document) or not evaluate(where, document)
        same = widen(where, lambda _: True)
        assert same is not None
        assert evaluate(same, document) is evaluate(where, document)


words = st.sampled_from(
    [
        "$and",
        "$or",
        "$not",
        "$eq",
        "$in",
        "$nin",
        "$all",
        "$gt",
        "$exists",
        "$x",
        "owner",
        "metadata.a",
        "createdAt",
        "",
    ]
)
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters(), max_size=5), words),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words | st.text(max_size=5), inner, max_size=4),
    max_leaves=25,
)


@given(anything, stored)
@settings(max_examples=300)
def test_whatever_the_json_it_parses_or_is_a_validation_error(obj: Any, value: Any) -> None:
    try:
        where = parse(obj)
    except ValidationError as error:
        error.message.encode()
        error.details[0].path.encode()
        return
    if where is not None:
        evaluate(where, {"owner": value, "createdAt": value, "metadata": value})
        assert parse(to_json(where)) == where


@given(st.datetimes(timezones=st.timezones() | st.just(timezone(timedelta(hours=-12, minutes=-30)))))
def test_timestamps_are_read_as_python_writes_them(moment: datetime) -> None:
    text = moment.isoformat()
    try:
        expected = datetime.fromisoformat(text).astimezone(UTC)
    except OverflowError:
        expected = None
    if expected is None or len(text.rpartition("T")[2].partition("+")[2]) > 5:
        return  # beyond year 1 or 9999, or an offset with seconds, which RFC 3339 has not
    try:
        assert parse_timestamp(text) == expected
    except ValueError:
        assert text.count(":") > 3  # an offset west of Greenwich with seconds


def pairwise(where: Filter, document: dict[str, Any]) -> bool:
    """The language as it reads: every value beside every operand. What the evaluator by sets must agree with."""
    match where:
        case And(items):
            return all(pairwise(item, document) for item in items)
        case Or(items):
            return any(pairwise(item, document) for item in items)
        case Not(item):
            return not pairwise(item, document)
        case Compare(path, ("in" | "all") as op, tuple() as operands):
            one_by_one = [evaluate(Compare(path, "eq", operand), document) for operand in operands]
            return any(one_by_one) if op == "in" else all(one_by_one)
    return evaluate(where, document)


@given(filters, documents)
@settings(max_examples=500)
def test_sets_hold_where_every_pair_was_compared(obj: Any, document: dict[str, Any]) -> None:
    where = parsed(obj)
    if where is not None:
        assert evaluate(where, document) == pairwise(where, document)


@given(st.lists(st.sampled_from(VALUES), max_size=5), st.lists(st.sampled_from(VALUES), min_size=1, max_size=5))
def test_sets_keep_the_types_apart(stored_values: list[Any], asked: list[Any]) -> None:
    document = {"metadata": {"a": stored_values}}
    for op in ("$in", "$all"):
        where = parse({"metadata.a": {op: asked}})
        assert where is not None
        assert evaluate(where, document) == pairwise(where, document)


@pytest.mark.parametrize("op", ["$in", "$nin", "$all"])
def test_many_values_in_a_long_list_cost_their_sum(op: str) -> None:
    # Pair by pair this is 400 million comparisons; the rest of the suite would notice.
    node = NODE | {"metadata": {"a": list(range(400_000))}}
    assert holds({"metadata.a": {op: list(range(400_000, 401_000))}}, node) == (op == "$nin")


def test_an_evaluation_has_a_budget() -> None:
    node = NODE | {"metadata": {"a": [{f"k{n}": 1} for n in range(100_000)]}}
    where = parse({"$or": [{f"metadata.a.k{n}": 2} for n in range(64)]})
    assert where is not None
    with pytest.raises(ValidationError, match="compares more values"):
        evaluate(where, node)
    steps = Steps(1_000)
    small = parse({"metadata.tags": "z"})
    assert small is not None
    assert not evaluate(small, NODE, steps)
    assert 980 < steps.left < 1_000

"""Filters pushed down to a store against the exact evaluator: wider now and then, never narrower."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memory_layer.errors import ValidationError
from memory_layer.filters import And, Compare, Filter, Not, Or, evaluate, parse
from memory_layer.stores.protocols import VectorEntry, VectorStore
from tests.contract.conftest import REAL_STORES
from tests.support.exact_vectors import ExactVectors
from tests.support.vector_entries import SPACE, node

Opener = Callable[[str, int], Awaitable[VectorStore]]

DATES = st.sampled_from(
    [
        "2026-01-01",
        "2025-12-31",
        "2026-01-01T00:00:00Z",
        "2026-01-01t01:00:00.5+23:59",
        "2025-12-31 23:00:00-23:59",
        "0001-01-01",
        "0001-01-01T00:00:00-23:59",
        "9999-12-31T23:59:59.999999Z",
        "9999-12-31",
    ]
)
ALMOST_DATES = st.sampled_from(["2026-02-30", "2026-01-01T00:00:00", "2026-01-01x", "2026-01-01T", "2026"])
TEXTS = st.sampled_from(["a", "b", "", "1", "true", "ä", "a'%\"\\"])
SCALARS = st.one_of(
    TEXTS,
    DATES,
    ALMOST_DATES,
    st.booleans(),
    st.integers(-2, 3),
    st.sampled_from([0.5, 1.0, -0.0, 1e-7, 2.5, 123456789.123, 2**53 - 1]),
)
STORED = st.recursive(
    st.none() | SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "a.b", ""]), inner, max_size=2)
    ),
    max_leaves=6,
)
TIMES = st.sampled_from(
    [
        "2026-01-01T00:00:00.000000Z",
        "2026-01-01T00:00:00.000001Z",
        "2025-12-31T23:59:59.999999Z",
        "1970-01-01T00:00:00.000000Z",
        "0500-01-01T00:00:00.000000Z",
    ]
)
DOCUMENTS = st.fixed_dictionaries(
    {
        "owner": TEXTS,
        "version": st.integers(1, 3),
        "legalHold": st.booleans(),
        "subjects": st.lists(TEXTS, max_size=2),
        "ttlSeconds": st.none() | st.integers(3600, 3601),
        "createdAt": TIMES,
        "expiresAt": st.none() | TIMES,
        "metadata": st.dictionaries(st.sampled_from(["a", "b", "a.b", "~/"]), STORED, max_size=2),
        "piiFlags": st.dictionaries(st.sampled_from(["a", "b"]), STORED, max_size=1),
    }
)
NUMBERS = st.integers(-2, 3) | st.sampled_from([0.5, 1.0, 1e-7, 3601])
PATHS = st.sampled_from(
    [
        "metadata.a",
        "metadata.b",
        "metadata.a.b",
        "metadata.a.a",
        "/metadata/a.b",
        "/metadata/a/a.b",
        "/metadata/b/",
        "/metadata/~0~1",
        "piiFlags.a",
        "owner",
        "subjects",
        "content",
        "version",
        "legalHold",
    ]
)
CONDITIONS = st.one_of(
    st.builds(lambda p, v: {p: v}, PATHS, SCALARS | st.none() | st.lists(SCALARS | st.none(), max_size=3)),
    st.builds(lambda p, op, v: {p: {op: v}}, PATHS, st.sampled_from(["$eq", "$ne"]), SCALARS | st.none()),
    st.builds(
        lambda p, op, v: {p: {op: v}}, PATHS, st.sampled_from(["$in", "$nin", "$all"]), st.lists(SCALARS, max_size=3)
    ),
    st.builds(lambda p, v: {p: {"$exists": v}}, PATHS, st.booleans()),
    st.builds(
        lambda p, op, v: {p: {op: v}},
        st.sampled_from(["metadata.a", "metadata.a.b", "version", "ttlSeconds"]),
        st.sampled_from(["$gt", "$gte", "$lt", "$lte"]),
        NUMBERS,
    ),
    st.builds(
        lambda p, op, v: {p: {op: v}},
        st.sampled_from(["metadata.a", "metadata.a.b", "/metadata/a.b", "piiFlags.a"]),
        st.sampled_from(["$gt", "$gte", "$lt", "$lte"]),
        DATES,
    ),
    st.builds(lambda p, v: {p: {"$contains": v}}, PATHS, SCALARS),
    st.builds(lambda p, v: {p: {"$startsWith": v}}, PATHS, TEXTS | st.sampled_from(["2026", "a'", "tr"])),
    st.builds(
        lambda p, op, v: {p: {op: v}},
        st.sampled_from(["createdAt", "expiresAt"]),
        st.sampled_from(["$gt", "$gte", "$lt", "$lte", "$eq", "$ne"]),
        TIMES | st.sampled_from(["2026-01-01T01:00:00+01:00", "2026-01-01"]),
    ),
)
FILTERS = st.recursive(
    CONDITIONS,
    lambda inner: (
        st.builds(
            lambda op, parts: {op: parts}, st.sampled_from(["$and", "$or"]), st.lists(inner, min_size=1, max_size=3)
        )
        | st.builds(lambda part: {"$not": part}, inner)
    ),
    max_leaves=5,
)


def left_to_the_row(where: Filter, store: VectorStore) -> bool:
    """Long text is kept beside no vector, dates are spelled in many ways, and beginnings are no facts."""
    match where:
        case And(items) | Or(items):
            return any(left_to_the_row(item, store) for item in items)
        case Not(item):
            return left_to_the_row(item, store)
        case Compare() as compare:
            beginning = compare.op == "startsWith" and store.provider != "pgvector"
            return compare.path == ("content",) or compare.by_spelt_dates or beginning


@pytest.fixture(scope="module", params=["pgvector", "pgvector-own", "pinecone", *REAL_STORES])
def live(request: pytest.FixtureRequest, opener: Opener) -> Iterator[tuple[asyncio.Runner, VectorStore]]:
    """A store on a loop of its own, so that Hypothesis may run many examples on one pool."""
    with asyncio.Runner() as runner:
        opened = runner.run(opener(request.param, 2))
        yield runner, opened
        runner.run(opened.close())


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(documents=st.lists(DOCUMENTS, min_size=1, max_size=6), obj=FILTERS)
def test_pushed_down_filters_never_lose_a_match(
    live: tuple[asyncio.Runner, VectorStore], documents: list[dict[str, Any]], obj: Any
) -> None:
    runner, store = live
    try:
        where = parse(obj)
    except ValidationError:
        return  # a value that its field cannot be compared with
    assert where is not None
    tenant, query = uuid.uuid4().hex, np.array([1, 0], np.float32)
    # Long text stays out of the index; every node holds some, so that only the row can decide a filter on it.
    rows = [document | {"content": "a"} for document in documents]

    def entries(fields: list[dict[str, Any]]) -> list[VectorEntry]:
        return [VectorEntry(tenant, SPACE, node(n), 1, np.array([1, n], np.float32), f) for n, f in enumerate(fields)]

    async def both() -> tuple[list[int], list[int]]:
        oracle = ExactVectors()
        await oracle.upsert(entries(rows))
        await store.upsert(entries(documents))
        exact = (await oracle.search(tenant, SPACE, query, 10, where)).hits
        wide = (await store.search(tenant, SPACE, query, 10, where)).hits
        return [h.node_id.int for h in exact], [h.node_id.int for h in wide]

    exact, wide = runner.run(both())
    assert [n for n in wide if evaluate(where, rows[n])] == exact
    if not left_to_the_row(where, store):
        assert wide == exact

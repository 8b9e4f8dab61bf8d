"""Search and list with a filter, from the door down to two vector stores: the answer is what the exact evaluator says of all nodes.

Also what is at the edge of a search: a score that is the threshold itself, and external ids in any script.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from memory_layer.errors import ValidationError
from memory_layer.filters import evaluate, parse
from tests.api.door import connect, create_indexed, embedding, eventually, found_ids, listed_ids, search
from tests.contract.test_vector_filters import FILTERS
from tests.support.pinecone_server import KEY, running_pinecone
from tests.support.product import Product, running_product

NODES = "/v1/memory/nodes"
# What a path may hold: nothing in its four spellings, all types, types that look alike, lists of one and of several types, objects,
# lists of objects, a list in a list, and the numbers at the edge of float64.
VALUES: list[Any] = [
    None, [], [None], {}, "a", "b", "", "1", "true", "ä", "a'%\"\\", 1, 1.0, 0.5, -2, 0, 2.5, True, False, [1, "a"], [True], ["a", "b"],
    [1, 2, 3], {"a": 1}, {"b": "a"}, {"a": {"b": 1}}, {"b": [1, "b"]}, [{"a": 1}, {"a": "b"}], [{"b": True}, 1], [[1]], 2**53 - 1, 1e-7,
    123456789.123,
]  # fmt: skip
MOMENTS = [
    None,
    "2026-01-01T00:00:00Z",
    "2026-01-01T00:00:00.000001Z",
    "2025-12-31T23:59:59.999999Z",
    "1970-01-01T00:00:00Z",
]


def bodies() -> Iterator[dict[str, Any]]:
    """Each value at ``a`` beside a value far from it at ``b``, and nodes that lack one or both."""
    for number, value in enumerate(VALUES):
        metadata = {"a": value, "b": VALUES[(7 * number + 3) % len(VALUES)]}
        if number % 5 == 0:
            del metadata["b"]
        yield {
            "owner": ["a", "b", "", "ä"][number % 4] or "1",
            "metadata": metadata,
            "content": "a" if number % 3 else "b",
            "subjects": [["a"], ["a", "b"], ["1"]][number % 3],
            "legalHold": number % 7 == 0,
            "embedding": embedding(1, number),
        } | ({"occurredAt": moment} if (moment := MOMENTS[number % len(MOMENTS)]) else {}) | (
            {"ttlSeconds": 3600} if number % 2 else {}
        )  # fmt: skip
    yield {"owner": "b", "metadata": {}, "content": "a", "embedding": embedding(0, 1)}


Door = tuple[httpx2.Client, dict[str, dict[str, Any]]]


@pytest.fixture(scope="module", params=["pgvector", "pinecone"])
def door(request: pytest.FixtureRequest) -> Iterator[Door]:
    """A product on the vector store, and all nodes of one namespace there as the API tells them."""
    if request.param == "pgvector":
        yield from filled(request.getfixturevalue("product"), f"filters-{request.param}")
        return
    with running_pinecone(2, delay=0.01) as server:
        environment = {"VECTOR_DB_PROVIDER": "pinecone", "VECTOR_DB_ENDPOINT": server.url, "VECTOR_DB_API_KEY": KEY}
        with running_product(environment=environment) as product:
            yield from filled(product, "filters-pinecone")
        assert server.faulty_answers == []


def filled(product: Product, tenant: str) -> Iterator[Door]:
    with connect(product, tenant) as http:
        made = http.post(f"{NODES}:batch", json=list(bodies())).json()["items"]
        ids = [item["memoryNodeId"] for item in made]
        eventually(lambda: found_ids(http, queryEmbedding=[1, 0], topK=100), lambda found: len(found) == len(ids))
        yield http, {node: http.get(f"{NODES}/{node}").json() for node in ids}


MOMENT_FILTERS = st.builds(
    lambda op, value: {"occurredAt": {op: value}},
    st.sampled_from(["$gt", "$gte", "$lt", "$lte", "$eq", "$ne"]),
    st.sampled_from([moment for moment in MOMENTS if moment] + ["2026-01-01T01:00:00+01:00"]),
)
ALL_FILTERS = st.one_of(
    FILTERS,
    MOMENT_FILTERS,
    st.builds(lambda op, one, two: {op: [one, two]}, st.sampled_from(["$and", "$or"]), FILTERS, MOMENT_FILTERS),
    st.builds(lambda part: {"$not": part}, MOMENT_FILTERS),
)


@example({"metadata.a": None})
@example({"metadata.a": {"$exists": True}})
@example({"metadata.a": {"$ne": 1}})
@example({"metadata.a": {"$nin": ["a", 1, True]}})
@example({"metadata.a": {"$all": ["a", "b"]}})
@example({"$not": {"metadata.a.b": {"$gte": 1}}})
@example({"$not": {"$or": [{"metadata.a": {"$in": ["true", 0]}}, {"occurredAt": {"$lt": "2026-01-01T00:00:00Z"}}]}})
@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(ALL_FILTERS)
def test_an_answer_is_what_the_exact_evaluator_says(door: Door, obj: Any) -> None:
    http, nodes = door
    try:
        where = parse(obj)
    except ValidationError:
        refused = http.post("/v1/memory/search", json={"queryEmbedding": [1, 0], "filter": obj})
        assert refused.status_code == 422, obj
        return
    assert where is not None
    right = {node for node, told in nodes.items() if evaluate(where, told)}
    answer = search(http, queryEmbedding=[1, 0], topK=100, filter=obj)
    found = [hit["memoryNodeId"] for hit in answer["results"]]
    assert len(found) == len(set(found))
    assert set(found) == right, obj
    assert answer["dropped"] == {}
    assert set(listed_ids(http, filter=json.dumps(obj), limit=100)) == right, obj


def test_a_few_of_many_are_found_wherever_they_lie(door: Door) -> None:
    """topK matches come back whenever there are as many, near or far."""
    http, nodes = door
    where = {"metadata.b": {"$exists": True}}
    right = [node for node, told in nodes.items() if evaluate(parse(where), told)]  # type: ignore[arg-type]
    for query in ([1, 0], [0, 1], [-1, -1]):
        assert len(found_ids(http, queryEmbedding=query, topK=len(right), filter=where)) == len(right)
        assert set(found_ids(http, queryEmbedding=query, topK=5, filter=where)) <= set(right)


def test_a_score_that_is_the_threshold_counts(http: httpx2.Client) -> None:
    same, half = (create_indexed(http, embedding=embedding(*vector)) for vector in ((1, 0), (0.5, 0.75**0.5)))
    told = search(http, queryEmbedding=[1, 0])["results"][1]["score"]
    assert told == pytest.approx(0.5)
    for threshold, right in ((told, [same, half]), (told + 1e-6, [same]), (-1, [same, half])):
        assert found_ids(http, queryEmbedding=[1, 0], scoreThreshold=threshold) == right, threshold


@pytest.mark.parametrize("name", ["日本語", "ключ/1", "😀#?&=%20", "a b\tc", "q\"\\'", "é", "e\u0301"])
def test_external_ids_come_back_as_they_went_in(http: httpx2.Client, name: str) -> None:
    node = create_indexed(http, embedding=embedding(1, 0), embeddingId=name, content="text")
    assert http.get(f"{NODES}/{node}").json()["embeddingId"] == name
    assert found_ids(http, queryEmbedding=[1, 0], filter={"embeddingId": name}) == [node]
    assert listed_ids(http, filter=json.dumps({"embeddingId": name})) == [node]
    assert http.post(NODES, json={"owner": "bob", "content": "x", "embeddingId": name}).status_code == 409

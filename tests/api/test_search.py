"""Search through the door: modes, filters, thresholds, order."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator

import httpx2
import numpy as np
import pytest

from tests.api.door import check_error, connect, create, create_indexed, embedding, found_ids, indexed, search
from tests.support.product import Product

SEARCH = "/v1/memory/search"
TEXTS = {
    "cat": "The cat sleeps on the warm sofa.",
    "dog": "A dog is running through the park.",
    "bank": "The central bank raised interest rates again.",
    "lava": "Volcanoes erupt with lava and ash.",
}


@pytest.fixture(scope="module")
def words(product: Product) -> Iterator[tuple[httpx2.Client, dict[str, str]]]:
    """A tenant with a few sentences: names to ids."""
    with connect(product, "search-words") as http:
        ids = {name: create_indexed(http, content=text, metadata={"name": name}) for name, text in TEXTS.items()}
        yield http, ids


def test_by_meaning(words: tuple[httpx2.Client, dict[str, str]]) -> None:
    http, ids = words
    answer = search(http, query="a kitten napping on the couch", mode="semantic", topK=2)
    assert answer["results"][0]["memoryNodeId"] == ids["cat"]
    assert answer["mode"] == "semantic"
    assert answer["exact"] is True
    assert answer["degraded"] is False
    assert answer["dropped"] == {}
    (hit, other) = answer["results"]
    assert hit["score"] == hit["scores"]["semantic"] > other["score"]
    assert hit["content"] == TEXTS["cat"]
    assert hit["metadata"] == {"name": "cat"}
    assert hit["artifactIds"] == []
    assert hit["vectorRef"]["dimension"] == 384
    assert hit["vectorRef"]["version"] == hit["version"] == 1


def test_by_words(words: tuple[httpx2.Client, dict[str, str]]) -> None:
    http, ids = words
    assert found_ids(http, query="volcano", mode="keyword") == [ids["lava"]]
    assert found_ids(http, query="INTEREST rate", mode="keyword") == [ids["bank"]]
    assert found_ids(http, query="kitten", mode="keyword") == []
    # Any word may match; more of them rank higher.
    assert found_ids(http, query="sofa park warm cat", mode="keyword")[0] == ids["cat"]
    assert set(found_ids(http, query="sofa park", mode="keyword")) == {ids["cat"], ids["dog"]}


@pytest.mark.parametrize("query", ["the of and", "!!!", "'", "a & | ! (:* <->", "it's o'clock \\ \"x\""])
def test_words_that_mean_nothing(words: tuple[httpx2.Client, dict[str, str]], query: str) -> None:
    http, _ = words
    assert search(http, query=query, mode="keyword")["results"] == []
    assert len(search(http, query=query, mode="hybrid")["results"]) == len(TEXTS)


@pytest.mark.parametrize("query", ["🐕", "x" * 20_000])
def test_what_neither_half_can_read_finds_nothing(words: tuple[httpx2.Client, dict[str, str]], query: str) -> None:
    http, _ = words
    for mode, readable in (("keyword", True), ("semantic", False), ("hybrid", False)):
        answer = search(http, query=query, mode=mode)
        assert (answer["results"], answer["queryReadable"]) == ([], readable)


def test_hybrid_adds_up_both_scores(words: tuple[httpx2.Client, dict[str, str]]) -> None:
    http, ids = words
    answer = search(http, query="Volcanoes erupt")
    assert answer["mode"] == "hybrid"  # the default when there is text
    first, *others = answer["results"]
    assert first["memoryNodeId"] == ids["lava"]
    assert sorted(first["scores"]) == ["keyword", "semantic"]
    assert first["score"] == pytest.approx(0.45 * first["scores"]["semantic"] + 0.55 * first["scores"]["keyword"])
    assert [list(hit["scores"]) for hit in others] == [["semantic"]] * 3
    assert [hit["score"] for hit in others] == pytest.approx([0.45 * hit["scores"]["semantic"] for hit in others])


def test_text_for_the_words_and_a_vector_for_the_meaning(words: tuple[httpx2.Client, dict[str, str]]) -> None:
    http, ids = words
    vector = [1.0] + [0.0] * 383
    assert found_ids(http, query="lava", queryEmbedding=vector, mode="keyword") == [ids["lava"]]
    assert search(http, query="lava", queryEmbedding=vector, mode="hybrid")["results"][0]["memoryNodeId"] == ids["lava"]
    assert search(http, queryEmbedding=vector)["mode"] == "semantic"


def test_threshold_and_filters(words: tuple[httpx2.Client, dict[str, str]]) -> None:
    http, ids = words
    answer = search(http, query=TEXTS["dog"], mode="semantic", scoreThreshold=0.9)
    assert [hit["memoryNodeId"] for hit in answer["results"]] == [ids["dog"]]
    assert len(found_ids(http, query="x", mode="semantic", scoreThreshold=-1)) == len(TEXTS)
    for mode in ("semantic", "hybrid"):
        only = found_ids(http, query=TEXTS["dog"], mode=mode, filter={"metadata.name": {"$ne": "dog"}})
        assert set(only) == set(ids.values()) - {ids["dog"]}
    assert found_ids(http, query="sofa park", mode="keyword", filter={"metadata.name": ["dog", "bank"]}) == [ids["dog"]]
    assert found_ids(http, query="sofa", filter={"content": TEXTS["cat"]}) == [ids["cat"]]
    assert found_ids(http, query="sofa", filter={"owner": "nobody"}) == []
    assert found_ids(http, query="sofa", namespace="empty") == []


def test_a_filter_beats_the_nearest(http: httpx2.Client) -> None:
    """topK counts what passes the filter, however many nearer ones do not."""
    for n in range(30):
        create(http, embedding=embedding(1, n / 1000), metadata={"kind": "near"})
    far = [create_indexed(http, embedding=embedding(1, 5 + n), metadata={"kind": "far"}) for n in range(3)]
    found = found_ids(http, queryEmbedding=[1, 0], topK=3, filter={"metadata.kind": "far"})
    assert found == far


def test_scores_are_cosines_in_order(http: httpx2.Client) -> None:
    generator = np.random.default_rng(7)
    vectors = generator.standard_normal((40, 8)).astype(np.float32)
    ids = []
    for vector in vectors:
        data = base64.b64encode(vector.astype("<f4").tobytes()).decode()
        ids.append(create(http, embedding={"model": "m", "dimension": 8, "vector": data}))
    create_indexed(http, namespace="elsewhere", embedding=embedding(*range(1, 9)))
    query = generator.standard_normal(8)
    cosines = (
        vectors.astype(np.float64) @ query / np.linalg.norm(vectors.astype(np.float64), axis=1) / np.linalg.norm(query)
    )
    order = np.argsort(-cosines)
    for node in ids:
        indexed(http, node)
    hits = search(http, queryEmbedding=query.tolist(), topK=40)["results"]
    assert [hit["memoryNodeId"] for hit in hits] == [ids[n] for n in order]
    assert [hit["score"] for hit in hits] == pytest.approx(cosines[order].tolist(), abs=1e-5)
    assert [hit["memoryNodeId"] for hit in search(http, queryEmbedding=query.tolist(), topK=5)["results"]] == [
        ids[n] for n in order[:5]
    ]


def test_ties_are_in_the_order_of_ids(http: httpx2.Client) -> None:
    ids = [create_indexed(http, content="the same words", embedding=embedding(1, 1)) for _ in range(6)]
    assert found_ids(http, queryEmbedding=[2, 2]) == sorted(ids)
    assert found_ids(http, queryEmbedding=[2, 2], topK=2) == sorted(ids)[:2]
    assert found_ids(http, query="same words", mode="keyword", topK=3) == sorted(ids)[:3]
    assert found_ids(http, query="same words", queryEmbedding=[1, 1], mode="hybrid") == sorted(ids)


def test_namespaces_keep_apart(http: httpx2.Client) -> None:
    one = create_indexed(http, namespace="one", embedding=embedding(1, 0))
    two = create_indexed(http, namespace="two", embedding=embedding(1, 0, 0))
    assert found_ids(http, namespace="one", queryEmbedding=[1, 0]) == [one]
    assert found_ids(http, namespace="two", queryEmbedding=[1, 0, 0]) == [two]
    wrong = http.post(SEARCH, json={"namespace": "two", "queryEmbedding": [1, 0]})
    check_error(wrong, 422, "DIMENSION_MISMATCH")
    assert found_ids(http, namespace="three", queryEmbedding=[1, 0]) == []


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e-6, 1, 1e30, 3e38])
def test_only_the_direction_counts(http: httpx2.Client, size: float) -> None:
    def data(*numbers: float) -> str:
        return base64.b64encode(struct.pack("<2f", *numbers)).decode()

    ids = [
        create_indexed(http, embedding={"model": "m", "dimension": 2, "vector": data(x * size, y * size)})
        for x, y in ((1, 0), (1, 1), (-1, 0))
    ]
    for scale in (1e-38, 1, 3e38):
        hits = search(http, queryEmbedding=data(scale, 0))["results"]
        assert [hit["memoryNodeId"] for hit in hits] == ids
        assert [hit["score"] for hit in hits] == pytest.approx([1, 0.5**0.5, -1], abs=1e-6)


def test_artifacts_are_named(http: httpx2.Client) -> None:
    node = create_indexed(http, content="with files")
    names = [
        http.put("/v1/memory/artifacts", params={"memoryNodeId": node}, content=bytes([n])).json()["artifactId"]
        for n in range(2)
    ]
    (hit,) = search(http, query="files")["results"]
    assert hit["artifactIds"] == names


def test_a_search_on_nothing(http: httpx2.Client) -> None:
    for mode in ("semantic", "keyword", "hybrid"):
        assert search(http, query="anything", mode=mode)["results"] == []

"""The emulators that the Pinecone adapter is tested on, against Pinecone's own client: it takes them for Pinecone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.pinecone_control_server import running_control
from tests.support.pinecone_server import KEY, PineconeServer, running_pinecone


@pytest.fixture(scope="module")
def sdk() -> Any:
    return pytest.importorskip("pinecone", reason="the Pinecone SDK is not installed: pip install 'pinecone>=9.1,<10'")


@pytest.fixture
def server() -> Iterator[PineconeServer]:
    with running_pinecone(2) as running:
        yield running
        assert running.faulty_answers == []


def rows(count: int) -> list[dict[str, Any]]:
    return [{"id": f"{prefix}#{n:03}", "values": [1.0, float(n)]} for prefix in "ab" for n in range(count)]


def test_vectors_and_filters(sdk: Any, server: PineconeServer) -> None:
    index = sdk.Pinecone(api_key=KEY).Index(host=server.url)
    vectors = [
        {"id": "a", "values": [1.0, 0.0], "metadata": {"genre": ["drama", "comedy"], "year": 2019}},
        {"id": "b", "values": [0.6, 0.8], "metadata": {"genre": ["action"], "year": 2020}},
        {"id": "c", "values": [0.0, 1.0]},
    ]
    assert index.upsert(vectors=vectors, namespace="n").upserted_count == 3
    answer = index.query(vector=[1.0, 0.0], top_k=3, namespace="n", include_metadata=True)
    assert [(match.id, round(match.score, 4)) for match in answer.matches] == [("a", 1), ("b", 0.6), ("c", 0)]
    assert answer.matches[1].metadata == {"genre": ["action"], "year": 2020}
    for where, ids in (
        ({"genre": {"$in": ["comedy", "x"]}}, ["a"]),
        ({"genre": {"$nin": ["comedy"]}}, ["b"]),
        ({"year": {"$gt": 2019}}, ["b"]),
        ({"$or": [{"year": {"$eq": 2019}}, {"genre": "action"}]}, ["a", "b"]),
        ({"year": {"$exists": False}}, ["c"]),
    ):
        found = index.query(vector=[1.0, 0.0], top_k=3, namespace="n", filter=where)
        assert [match.id for match in found.matches] == ids, where
    index.update(id="c", set_metadata={"year": 2021}, namespace="n")
    index.delete(ids=["a"], namespace="n")
    index.delete(filter={"year": {"$eq": 2020}}, namespace="n")
    assert list(index.fetch(ids=["a", "b", "c"], namespace="n").vectors) == ["c"]
    with pytest.raises(Exception, match="dimension"):
        index.upsert(vectors=[{"id": "d", "values": [1.0, 0.0, 0.0]}], namespace="n")
    with pytest.raises(Exception, match=r"401|[Uu]nauthorized|API key"):
        sdk.Pinecone(api_key="wrong").Index(host=server.url).describe_index_stats()


def test_fetching_listing_and_counting(sdk: Any, server: PineconeServer) -> None:
    index = sdk.Pinecone(api_key=KEY).Index(host=server.url)
    assert index.upsert(vectors=rows(120), namespace="n").upserted_count == 240
    fetched = index.fetch(ids=["a#001", "nothing", "b#119"], namespace="n")
    assert sorted(fetched.vectors) == ["a#001", "b#119"]
    assert list(fetched.vectors["b#119"].values) == [1.0, 119.0]
    names = [row["id"] for row in rows(120)]
    for limit, prefix in ((None, None), (7, None), (100, "b#"), (None, "c")):
        pages = [[one.id for one in page.vectors] for page in index.list(namespace="n", limit=limit, prefix=prefix)]
        assert max(map(len, pages), default=0) <= (limit or 100)
        assert [one for page in pages for one in page] == [n for n in names if n.startswith(prefix or "")]
    first = index.list_paginated(namespace="n", limit=3)
    second = index.list_paginated(namespace="n", limit=3, pagination_token=first.pagination.next)
    assert [one.id for one in second.vectors] == names[3:6]
    for wrong in ({"limit": 101}, {"limit": 3, "pagination_token": "never given out"}):
        with pytest.raises(Exception, match=r"limit|token"):
            index.list_paginated(namespace="n", **wrong)
    stats = index.describe_index_stats()
    assert (stats.dimension, stats.metric, stats.total_vector_count) == (2, "cosine", 240)
    assert stats.namespaces["n"].vector_count == 240


def test_deleting_all_and_namespaces(sdk: Any, server: PineconeServer) -> None:
    index = sdk.Pinecone(api_key=KEY).Index(host=server.url)
    for name in ("m", "n", "o"):
        index.upsert(vectors=rows(2), namespace=name)
    assert [(one.name, one.record_count) for page in index.list_namespaces() for one in page.namespaces] == [
        ("m", 4),
        ("n", 4),
        ("o", 4),
    ]
    index.delete(delete_all=True, namespace="n")
    assert index.fetch(ids=["a#000"], namespace="n").vectors == {}
    assert (index.describe_namespace(name="n").record_count, index.describe_index_stats().total_vector_count) == (0, 8)
    index.delete_namespace(name="o")
    assert [one.name for page in index.list_namespaces() for one in page.namespaces] == ["m", "n"]
    with pytest.raises(Exception, match="not found"):
        index.describe_namespace(name="o")
    server.unknown_is_404 = True
    with pytest.raises(Exception, match="not found"):
        index.delete(delete_all=True, namespace="nowhere")


def test_the_control_plane(sdk: Any) -> None:
    with running_control() as control:
        project = sdk.Pinecone(api_key=KEY, host=control.url)
        spec = sdk.ServerlessSpec(cloud="gcp", region="us-central1")
        made = project.create_index(
            "one", spec, 3, "cosine", deletion_protection="enabled", tags={"service-env": "dev"}, timeout=60
        )  # which waits until it is ready
        told = project.describe_index("one")
        assert (told.status.ready, told.dimension, told.metric, made.name) == (True, 3, "cosine", "one")
        assert (told.spec.serverless.cloud, told.spec.serverless.region) == ("gcp", "us-central1")
        assert [index.name for index in project.list_indexes()] == ["one"]
        index = project.Index(host=told.host)
        index.upsert(vectors=[{"id": "a", "values": [1.0, 0.0, 0.0]}])
        assert index.describe_index_stats().dimension == 3
        for wrong, match in (
            ((("one"), spec, 3), "exists"),
            (("two", sdk.ServerlessSpec(cloud="aws", region="nowhere-1"), 3), "not found"),
            (("Two", spec, 3), r"[Nn]ame"),
        ):
            with pytest.raises(Exception, match=match):
                project.create_index(*wrong)
        with pytest.raises(Exception, match="protection"):
            project.delete_index("one")
        project.configure_index("one", deletion_protection="disabled", tags={"service-env": "", "more": "x"})
        assert dict(project.describe_index("one").tags) == {"more": "x"}
        project.delete_index("one")
        assert not project.has_index("one")
        with pytest.raises(Exception, match=r"401|[Uu]nauthorized|API key"):
            sdk.Pinecone(api_key="wrong", host=control.url).list_indexes()
        assert control.faulty_answers == []

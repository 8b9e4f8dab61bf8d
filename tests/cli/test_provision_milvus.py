"""`memoryctl provision plan / apply vectors` on a real Milvus 2.3.5 with authorization: collections, users and roles.

It has one query node, so that two replicas were never loaded here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from memory_layer import config
from memory_layer.cli import main
from memory_layer.stores.vectors import open_vectors
from memory_layer.stores.vectors.milvus_records import collection_name
from tests.support import milvus_server
from tests.support.milvus_server import MilvusServer, running_milvus
from tests.support.vector_entries import SPACE, entry, found

pytestmark = pytest.mark.real

Run = Callable[..., tuple[int, str, str]]
WORDS = ("root:Milvus", "service-word-1", "reader-word-2", "made-up-word")


@pytest.fixture(scope="module")
def server() -> Iterator[MilvusServer]:
    if (reason := milvus_server.missing()) is not None:
        pytest.skip(reason)
    with running_milvus(authorization=True) as running:
        yield running


@pytest.fixture
def run(server: MilvusServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    for name, value in {
        "SERVICE_ENV": "staging",
        "VECTOR_DB_PROVIDER": "milvus",
        "VECTOR_DB_ENDPOINT": server.url,
        "VECTOR_DB_ADMIN_KEY": WORDS[0],
        "VECTOR_DB_API_KEY": f"memory:{WORDS[1]}",
        "VECTOR_DB_READER_KEY": f"analyst:{WORDS[2]}",
        "EMBEDDINGS_DIMENSIONS": "2",
        "VECTOR_PROJECTED_QPS": "100",
    }.items():
        monkeypatch.setenv(name, value)

    def call(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["provision", *words])
        out, err = capsys.readouterr()
        assert not any(word in out + err for word in WORDS)
        return int(ended.value.code or 0), out, err

    return call


def statuses(out: str) -> dict[str, str]:
    findings = json.loads(out)["findings"]
    return {one["id"].removeprefix("vectors."): one["evidence"].get("state", one["status"]) for one in findings}


async def ask(server: MilvusServer, token: str, what: Callable[[Any], Any]) -> Any:
    from pymilvus import AsyncMilvusClient

    client = AsyncMilvusClient(server.url, token=token, dedicated=True)
    try:
        return await what(client)
    finally:
        await client.close()


def test_collections_users_and_roles_are_made_once(
    run: Run, server: MilvusServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = run("plan", "vectors", "--json")
    assert code == 1
    assert statuses(out) == {
        "milvus.version": "pass",
        "milvus.collection": "missing",
        "milvus.marks": "missing",
        "milvus.replicas": "drift",
        "milvus.authorization": "pass",
        "milvus.interim-index": "skip",
        "milvus.service": "missing",
        "milvus.reader": "missing",
        "sizing": "pass",
    }
    assert asyncio.run(ask(server, WORDS[0], lambda client: client.list_collections())) == []

    code, out, _ = run("apply", "vectors", "--yes", "--json")
    assert code == 0
    made = json.loads(out)["facts"]["made"]
    assert {"user memory", "user analyst"} <= set(made)
    for verb in ("plan", "apply"):
        code, out, _ = run(verb, "vectors", "--json")
        assert code == 0
        assert {name for name, status in statuses(out).items() if status != "pass"} == {
            "milvus.replicas",
            "milvus.interim-index",
        }
    assert json.loads(out)["facts"]["made"] == []
    (replicas,) = [one for one in json.loads(out)["findings"] if one["id"] == "vectors.milvus.replicas"]
    assert (replicas["level"], replicas["evidence"]["queryNodes"]) == ("warning", 1)

    asyncio.run(check_what_each_may(server))

    # With the service's own key alone there is something to see, and nothing that it may ask about users.
    monkeypatch.delenv("VECTOR_DB_ADMIN_KEY")
    code, out, _ = run("plan", "vectors", "--json")
    assert (code, statuses(out)["milvus.service"]) == (0, "skip")


async def check_what_each_may(server: MilvusServer) -> None:
    """The service does all that the adapter does; a reader reads; neither does anything beyond."""
    settings = config.load()
    store = await open_vectors(settings)
    await store.upsert([entry("acme", n, [1, n]) for n in range(1, 4)])
    await store.delete("acme", SPACE, [(entry("acme", 3, [1, 3]).node_id, 1)])
    assert await found(store, "acme", [1, 0]) == [1, 2]
    assert await store.count("acme", SPACE) == 2
    assert len((await store.scan("acme", SPACE, vectors=True)).records) == 2
    await store.optimise("acme", SPACE)
    await store.warm("acme", SPACE)
    await store.drop("acme", SPACE)
    await store.ping()
    await store.close()

    name = collection_name("staging", 2)
    service, reader = f"memory:{WORDS[1]}", f"analyst:{WORDS[2]}"
    query = {"data": [[1.0, 0.0]], "limit": 1}
    await ask(server, reader, lambda client: client.search(name, **query))
    await ask(server, reader, lambda client: client.query(name, filter="rank >= 0", output_fields=["count(*)"]))
    row = {"pk": "x", "space": "s", "node": "n", "rank": 1, "facts": {}, "embedding": [1.0, 0.0]}
    for token, what in (
        (reader, lambda client: client.insert(name, [row])),
        (reader, lambda client: client.delete(name, filter="rank >= 0")),
        (service, lambda client: client.drop_collection(name)),
        (service, lambda client: client.create_user("intruder", "long-enough-1")),
        (service, lambda client: client.create_collection("another", dimension=2)),
    ):
        with pytest.raises(Exception, match=r"(?i)permission|privilege"):
            await ask(server, token, what)

    await ask(server, WORDS[0], lambda client: client.create_collection("another", dimension=2))
    for token in (service, reader):
        with pytest.raises(Exception, match=r"(?i)permission|privilege"):
            await ask(server, token, lambda client: client.search("another", **query))


def test_a_right_too_many_and_a_collection_of_somebody_else_are_reported(
    run: Run, server: MilvusServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("apply", "vectors", "--yes")
    name = collection_name("staging", 2)
    role = "kernel_memory_staging_reader"
    asyncio.run(ask(server, WORDS[0], lambda client: client.grant_privilege(role, "Collection", "Delete", name)))
    code, out, _ = run("apply", "vectors", "--json")
    assert (code, statuses(out)["milvus.reader"]) == (1, "drift")
    asyncio.run(ask(server, WORDS[0], lambda client: client.revoke_privilege(role, "Collection", "Delete", name)))

    foreign = collection_name("staging", 3)
    asyncio.run(ask(server, WORDS[0], lambda client: client.create_collection(foreign, dimension=4)))
    monkeypatch.setenv("EMBEDDINGS_DIMENSIONS", "3")
    for verb in ("plan", "apply"):
        code, out, _ = run(verb, "vectors", "--json")
        assert (code, statuses(out)["milvus.collection"]) == (1, "drift")
    told = asyncio.run(ask(server, WORDS[0], lambda client: client.describe_collection(foreign)))
    assert any(field.get("params", {}).get("dim") == 4 for field in told["fields"])


def test_a_token_that_is_refused_and_one_that_is_no_user(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VECTOR_DB_ADMIN_KEY", "root:not-the-word")
    code, out, err = run("plan", "vectors")
    assert code == 3
    assert "not-the-word" not in out + err
    monkeypatch.setenv("VECTOR_DB_API_KEY", "justonewordwithoutcolon")
    code, out, err = run("plan", "vectors")
    assert code == 2
    assert "justoneword" not in out + err
    monkeypatch.setenv("VECTOR_DB_API_KEY", f"analyst:{WORDS[1]}")
    assert run("plan", "vectors")[0] == 2

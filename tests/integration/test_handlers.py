"""Handlers without a web server: what they are given and what they give is data, with the ids that it speaks of."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from memory_layer.api import decode, schemas
from memory_layer.api.calls import Answer, Call, Touched, touched_by
from memory_layer.api.operations import OPERATIONS
from memory_layer.api.replies import respond
from memory_layer.errors import ObjectStoreUnavailable
from memory_layer.model import SCOPES
from memory_layer.service.indexing import work_once
from memory_layer.service.installation import Installation
from tests.support.service import caller, running_memory

Database = Callable[[str], str]
EMBEDDING = {"model": "m", "dimension": 2, "vector": [1, 0]}
# Who sees everybody's entries is shown those of the tenants in the table, where a caller of a test's own making is none.
WHO = caller(scopes=frozenset(SCOPES) - {"audit:all"})


@pytest.fixture
async def memory(database: Database, tmp_path: Path) -> AsyncIterator[Installation]:
    async with running_memory(database("memory_app"), tmp_path) as opened:
        yield opened


async def call(memory: Installation, name: str, body: Any = None, path: Any = (), **more: Any) -> Answer:
    """As any door would: by the name of the operation."""
    (operation,) = (one for one in OPERATIONS if one.name == name)
    query = decode.query(more.pop("query", b""), operation.query)
    parsed = None if body is None else decode.body(msgspec.json.encode(body), operation.body)  # type: ignore[arg-type]
    return await operation.handler(Call(memory, WHO, more.pop("headers", {}), dict(path), query, parsed, **more))


async def test_answers_say_what_they_touched(memory: Installation) -> None:
    made = await call(memory, "createNode", {"owner": "ann", "content": "a kumquat", "embedding": EMBEDDING})
    node, seq = made.body["memoryNodeId"], made.body["audit"]["seq"]
    assert (made.status, made.headers["X-Audit-Seq"], made.headers["ETag"]) == (201, str(seq), '"1"')
    assert made.touched == Touched((node,), (), (seq,))
    for answer in (
        await call(memory, "getNode", path={"id": node}),
        await call(memory, "nodeHistory", path={"id": node}),
        await call(memory, "listEvents", query=f"memoryNodeId={node}".encode()),
        await call(memory, "getEvent", path={"id": made.body["auditId"]}),
    ):
        assert (answer.status, answer.touched) == (200, Touched((node,), (), (seq,)))
    await work_once(memory)
    found = await call(memory, "search", {"query": "kumquat", "mode": "keyword"})
    listed = await call(memory, "listNodes")
    assert list(found.touched.nodes) == list(listed.touched.nodes) == [node]
    gone = await call(memory, "deleteNode", path={"id": node})
    assert (gone.status, gone.body, gone.touched) == (
        204,
        None,
        Touched((node,), (), (int(gone.headers["X-Audit-Seq"]),)),
    )


async def test_a_file_is_an_answer_too(memory: Installation) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"some "
        yield b"bytes"

    stored = await call(memory, "uploadArtifact", headers={"content-type": "text/plain"}, stream=chunks())
    artifact = stored.body["artifactId"]
    assert stored.touched == Touched((), (artifact,), (stored.body["audit"]["seq"],))
    part = await call(memory, "artifactContent", path={"id": artifact}, headers={"range": "bytes=5-"})
    assert (part.status, part.headers["Content-Range"], part.touched.artifacts) == (206, "bytes 5-9/10", (artifact,))
    assert b"".join([block async for block in part.body]) == b"bytes"


async def test_many_nodes_are_all_named(memory: Installation) -> None:
    items = [msgspec.json.encode(one) for one in ({"owner": "ann"}, {"owner": 1}, {"owner": "bob"})]
    (operation,) = (one for one in OPERATIONS if one.name == "createNodes")
    answer = await operation.handler(Call(memory, WHO, {}, {}, schemas.WaitQuery(), items))
    made = [one for one in answer.body["items"] if "memoryNodeId" in one]
    assert len(made) == 2
    assert list(answer.touched.nodes) == [one["memoryNodeId"] for one in made]
    assert list(answer.touched.seqs) == [one["audit"]["seq"] for one in made]


async def test_a_stream_that_fails_at_once_is_an_error_and_no_answer() -> None:
    async def lost() -> AsyncIterator[bytes]:
        raise ObjectStoreUnavailable("gone")
        yield b""

    with pytest.raises(ObjectStoreUnavailable):
        await respond(Answer(200, lost(), {"Content-Type": "text/plain"}))
    response = await respond(Answer(200, lost(), {"Content-Type": "text/plain", "Content-Length": "7"}), head=True)
    assert (response.status_code, response.body, response.headers["content-length"]) == (200, b"", "7")


def test_what_is_within_an_answer_is_named_once() -> None:
    shape = {"memoryNodeId": "n", "audit": {"seq": 3}, "artifacts": [{"artifactId": "a", "memoryNodeId": "n", "audit": {"seq": 4}}]}  # fmt: skip
    assert touched_by([shape, shape, {"error": {}}, {"memoryNodeId": None, "audit": None}]) == Touched(
        ("n",), ("a",), (3, 4)
    )

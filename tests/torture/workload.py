"""What clients do during a storm, and what they were told: the ledger that the checks hold the service to."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import json
import random
import struct
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

import httpx2

from memory_layer.audit.checkpoint import Checkpoint, parse_checkpoint
from tests.torture.harness import READY_WITHIN, Installation

NODES: Final = "/v1/memory/nodes"
TIMEOUT = 20.0  # seconds that a client waits for an answer
Fate = Literal["acknowledged", "refused", "unknown"]


class Receipt(NamedTuple):
    """One acknowledged change: of which node or artifact, and its entry. Answers without a body tell the seq alone."""

    thing: str
    seq: int
    hash: str | None = None
    audit_id: str | None = None
    version: int | None = None


@dataclass
class Write:
    """One request and what became of it, as its client was told. Refused: nothing of it may be there."""

    kind: str  # of the entries that it makes
    tenant: str
    markers: list[str]  # one for each thing that it makes or changes; each is found in the rows
    key: str | None
    node: str | None = None
    vector: bool = False
    fate: Fate = "unknown"
    receipts: list[Receipt] = field(default_factory=list)


@dataclass
class Ledger:
    """Everything that was asked and told. ``counters``: per tenant, nodes that all its clients patch."""

    writes: list[Write] = field(default_factory=list)
    counters: dict[str, list[str]] = field(default_factory=dict)
    checkpoints: dict[int, Checkpoint] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)  # answers that should not have been given
    acknowledged: int = 0
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def marker(self) -> str:
        return f"m{next(self._numbers)}"


class Client:
    """One caller with a tenant, and nodes of its own that nobody else deletes or holds."""

    def __init__(self, install: Installation, ledger: Ledger, tenant: str, seed: int) -> None:
        self.install, self.ledger, self.tenant = install, ledger, tenant
        self.random = random.Random(seed)
        self.keyed = 0.5  # part of the writes that come under an Idempotency-Key
        self.own: list[str] = []
        self.only = ""  # the one server that it asks, where it does not take whichever answers
        self._headers = {"Authorization": f"Bearer {install.token(tenant)}"}
        self._http = httpx2.AsyncClient(headers=self._headers, timeout=TIMEOUT)

    async def close(self) -> None:
        await self._http.aclose()

    async def connect_anew(self) -> None:
        await self.close()
        self._http = httpx2.AsyncClient(headers=self._headers, timeout=TIMEOUT)

    async def ask(self, method: str, path: str, **request: Any) -> tuple[Fate, httpx2.Response | None]:
        """Ask any server that answers; (what that means for a write, the answer)."""
        deadline = time.monotonic() + READY_WITHIN
        while not (urls := [self.only] if self.only else self.install.urls):
            assert time.monotonic() < deadline, "no API process answers"
            await asyncio.sleep(0.02)
        try:
            answer = await self._http.request(method, self.random.choice(urls) + path, **request)
        except httpx2.ConnectError:
            return "refused", None  # it was never sent
        except httpx2.TransportError:
            return "unknown", None
        if answer.is_success:
            return "acknowledged", answer
        error = answer.json()["error"]
        if answer.status_code == 503:
            return "refused" if error["retryable"] else "unknown", answer
        if answer.status_code >= 500:
            self.ledger.wrong.append(f"{method} {path}: {answer.status_code} {answer.text}")
            return "unknown", answer
        return "refused", answer

    async def write(
        self, write: Write, method: str, path: str, receipts: Callable[[httpx2.Response], list[Receipt]], **request: Any
    ) -> httpx2.Response | None:
        """Send a write and note its fate. With an Idempotency-Key it is repeated until that is certain, and then some."""
        self.ledger.writes.append(write)
        headers = dict(request.pop("headers", {}))
        if write.key is not None:
            headers["Idempotency-Key"] = write.key
        deadline = time.monotonic() + READY_WITHIN
        while True:
            fate, answer = await self.ask(method, path, headers=headers, **request)
            if fate == "acknowledged" and answer is not None:
                told = receipts(answer)
                if write.receipts and told != write.receipts:
                    self.ledger.wrong.append(f"{write}: the repeated request was answered with {told}")
                if write.fate != "acknowledged":
                    self.ledger.acknowledged += 1
                write.fate, write.receipts = "acknowledged", told
            elif answer is not None and answer.status_code < 500:
                # A definite no. After an attempt that was cut off it also says that that one left nothing.
                write.fate = fate
            if write.key is None:
                write.fate = fate
                return answer
            certain = write.fate == "acknowledged" or (answer is not None and answer.status_code < 500)
            if certain and (fate == "refused" or self.random.random() < 0.8):
                return answer
            assert time.monotonic() < deadline, f"{write} was never answered"
            await asyncio.sleep(self.random.uniform(0.0, 0.1))

    def new(self, kind: str, count: int = 1, *, certain: bool = False, **facts: Any) -> Write:
        keyed = certain or self.random.random() < self.keyed
        key = f"key-{self.ledger.marker()}" if keyed else None
        return Write(kind, self.tenant, [self.ledger.marker() for _ in range(count)], key, **facts)

    def body(self, marker: str, *, vector: bool) -> dict[str, Any]:
        body: dict[str, Any] = {"owner": "ann", "metadata": {"marker": marker}, "content": f"what {marker} says"}
        if vector:
            numbers = [self.random.uniform(-1, 1) for _ in range(8)]
            packed = base64.b64encode(struct.pack("<8f", *numbers)).decode()
            body["embedding"] = {"model": "torture", "dimension": 8, "vector": packed}
        return body


def _told(answer: dict[str, Any], name: str = "memoryNodeId") -> Receipt:
    audit = answer["audit"]
    return Receipt(answer[name], audit["seq"], audit["hash"], answer["auditId"], answer.get("version"))


async def create(client: Client) -> None:
    write = client.new("memory.node.created", vector=client.random.random() < 0.6)
    body = client.body(write.markers[0], vector=write.vector)
    answer = await client.write(write, "POST", NODES, lambda a: [_told(a.json())], json=body)
    if answer is not None and answer.is_success:
        client.own.append(answer.json()["memoryNodeId"])


async def create_many(client: Client) -> None:
    write = client.new("memory.node.created", client.random.randint(2, 40), vector=client.random.random() < 0.5)
    bodies = [client.body(marker, vector=write.vector) for marker in write.markers]
    lines = client.random.random() < 0.5
    content = "\n".join(map(json.dumps, bodies)) if lines else json.dumps(bodies)
    headers = {"Content-Type": "application/x-ndjson" if lines else "application/json"}

    def receipts(answer: httpx2.Response) -> list[Receipt]:
        return [_told(item) for item in answer.json()["items"]]

    await client.write(write, "POST", f"{NODES}:batch", receipts, content=content, headers=headers)


async def count(client: Client) -> None:
    """Change a node that others change too, from the version that was read."""
    node = client.random.choice(client.ledger.counters[client.tenant])
    fate, read = await client.ask("GET", f"{NODES}/{node}")
    if fate != "acknowledged" or read is None:
        if read is not None and read.status_code != 503:
            client.ledger.wrong.append(f"GET of a node: {read.status_code} {read.text}")
        return
    write = client.new("memory.node.updated", node=node)
    body = {"metadata": {write.markers[0]: read.headers["etag"]}}
    headers = {"If-Match": read.headers["etag"]}
    await client.write(
        write,
        "PATCH",
        f"{NODES}/{node}",
        lambda a: [_told({"memoryNodeId": node} | a.json())],
        json=body,
        headers=headers,
    )


async def delete(client: Client) -> None:
    if not client.own:
        return
    node = client.own.pop(client.random.randrange(len(client.own)))
    write = client.new("memory.node.deleted", node=node)
    await client.write(write, "DELETE", f"{NODES}/{node}", lambda a: [Receipt(node, int(a.headers["x-audit-seq"]))])


async def hold_and_release(client: Client) -> None:
    if not client.own:
        return
    node = client.random.choice(client.own)
    for kind, on in (("memory.legal_hold.set", True), ("memory.legal_hold.released", False)):
        write = client.new(kind, node=node, certain=True)  # certain: a node is never left held
        body = {"legalHold": on, "reason": write.markers[0]}
        path = f"{NODES}/{node}/legal-hold"
        await client.write(write, "POST", path, lambda a: [Receipt(node, int(a.headers["x-audit-seq"]))], json=body)


async def upload(client: Client) -> None:
    write = client.new("memory.artifact.created")
    data = client.random.randbytes(client.random.choice((10, 1000, 200_000)))
    path = f"/v1/memory/artifacts?name={write.markers[0]}"
    headers = {"Content-Type": "application/octet-stream", "X-Content-SHA256": hashlib.sha256(data).hexdigest()}
    await client.write(write, "PUT", path, lambda a: [_told(a.json(), "artifactId")], content=data, headers=headers)


Operation = Callable[[Client], Awaitable[None]]
# How often each is chosen.
OPERATIONS: Final[tuple[tuple[Operation, int], ...]] = (
    (create, 40), (create_many, 6), (count, 30), (delete, 8), (hold_and_release, 6), (upload, 6),
)  # fmt: skip


async def work(
    client: Client, calm: asyncio.Event, pause: float, table: Sequence[tuple[Operation, int]] = OPERATIONS
) -> None:
    """Write until it is calm; between two operations a moment of at most ``pause`` seconds, as a caller thinks."""
    operations, shares = zip(*table, strict=True)
    while not calm.is_set():
        operation: Operation = client.random.choices(operations, shares)[0]
        await operation(client)
        await asyncio.sleep(client.random.uniform(0, pause))


async def watch_checkpoints(client: Client, calm: asyncio.Event) -> None:
    """Keep every checkpoint that is published; two of one size must be the same."""
    seen = client.ledger.checkpoints
    while not calm.is_set():
        _, answer = await client.ask("GET", "/v1/audit/checkpoint")
        if answer is not None and answer.is_success:
            found = parse_checkpoint(answer.content)
            if seen.setdefault(found.size, found).root != found.root:
                client.ledger.wrong.append(f"two checkpoints of size {found.size}")
        await asyncio.sleep(0.2)


async def make_counters(client: Client, number: int = 3) -> None:
    """The nodes that all clients of this tenant change."""
    made = client.ledger.counters.setdefault(client.tenant, [])
    while len(made) < number:
        write = client.new("memory.node.created", certain=True)
        answer = await client.write(
            write, "POST", NODES, lambda a: [_told(a.json())], json=client.body(write.markers[0], vector=False)
        )
        assert answer is not None
        made.append(answer.json()["memoryNodeId"])

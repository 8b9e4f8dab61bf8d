"""Where the bytes of a storm lie, what clients do to them, and what must hold afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import hashlib
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx2
import msgspec
import psycopg
from psycopg.rows import dict_row

from memory_layer import config
from memory_layer.config import Settings
from memory_layer.service import orphans
from memory_layer.stores.objects import open_eraser, open_objects
from memory_layer.stores.objects.s3 import S3Store
from memory_layer.stores.postgres import open_postgres
from memory_layer.stores.protocols import ObjectStore, ObjectVersion
from tests.support.s3_server import S3Server
from tests.torture.harness import Installation
from tests.torture.workload import NODES, Client, Ledger, Receipt

ARTIFACTS: Final = "/v1/memory/artifacts"
LOCKED: Final = 15.0  # seconds that an upload under a lock is locked for
LARGE: Final = 66 * 2**20  # goes to S3 in parts
SIZES: Final = (10, 1_000, 200_000, 3_000_000)


@dataclass
class Bytes:
    """``server``: None for a directory. ``sent``: SHA-256 of what each marker's artifact must hold. ``large``: that parts are tried too."""

    server: S3Server | None
    bucket: str = ""
    archive: str = ""
    large: bool = False
    sent: dict[str, str] = field(default_factory=dict)
    data: dict[str, list[bytes]] = field(default_factory=dict)  # what a tenant has sent, some of it, to send again

    @property
    def settings(self) -> Settings:
        if self.server is None:
            return config.load({})
        return self.server.settings(self.bucket, archive_bucket=self.archive)

    @property
    def environment(self) -> Mapping[str, str]:
        """The settings as variables."""
        if self.server is None:
            return {}
        return {
            of.encode_name: str(value)
            for of in msgspec.structs.fields(Settings)
            if of.name.startswith(("s3_", "archive_bucket")) and (value := getattr(self.settings, of.name)) is not None
        }


# --- What clients do


@dataclass
class Operations:
    """What clients do with bytes; each is an operation of the workload's table."""

    bytes: Bytes
    outside: ObjectStore  # in which others lay objects

    def _made(self, client: Client) -> bytes:
        """New bytes mostly; sometimes those of another upload, whose object is shared then."""
        kept = self.bytes.data.setdefault(client.tenant, [])
        if kept and client.random.random() < 0.25:
            return client.random.choice(kept)
        if self.bytes.large and client.random.random() < 0.04:
            return client.random.randbytes(1 << 20) * (LARGE >> 20)
        made = client.random.randbytes(client.random.choice(SIZES))
        kept[:] = [*kept[-4:], made]
        return made

    async def upload(self, client: Client) -> None:
        write = client.new("memory.artifact.created")
        data = self._made(client)
        sha256 = self.bytes.sent[write.markers[0]] = hashlib.sha256(data).hexdigest()
        path = f"{ARTIFACTS}?name={write.markers[0]}"
        if client.own and client.random.random() < 0.5:
            path += f"&memoryNodeId={client.random.choice(client.own)}"
        headers = {"Content-Type": "application/octet-stream"}
        if client.random.random() < 0.7:
            headers["X-Content-SHA256"] = sha256
        if client.random.random() < 0.1:
            headers["X-Retain-Until"] = _soon()
        await client.write(write, "PUT", path, _told, content=data, headers=headers)

    async def register(self, client: Client) -> None:
        write = client.new("memory.artifact.created")
        data, key = client.random.randbytes(5_000), f"{client.tenant}/incoming/{write.markers[0]}"
        sha256 = self.bytes.sent[write.markers[0]] = hashlib.sha256(data).hexdigest()
        await self.outside.put_named(key, _once(data))
        body = {
            "url": f"{self.outside.url_prefix}{key}",
            "sha256": sha256,
            "sizeBytes": len(data),
            "name": write.markers[0],
        }
        if client.random.random() < 0.2:
            body["retainUntil"] = _soon()
        await client.write(write, "POST", ARTIFACTS, _told, json=body)

    async def hold(self, client: Client) -> None:
        """Hold a node with what is attached to it, for good."""
        if len(client.own) < 5:
            return
        node = client.own.pop(client.random.randrange(len(client.own)))
        write = client.new("memory.legal_hold.set", node=node, certain=True)
        body = {"legalHold": True, "reason": write.markers[0]}
        path = f"{NODES}/{node}/legal-hold"
        await client.write(write, "POST", path, lambda a: [Receipt(node, int(a.headers["x-audit-seq"]))], json=body)


def _told(answer: httpx2.Response) -> list[Receipt]:
    told = answer.json()
    return [Receipt(told["artifactId"], told["audit"]["seq"], told["audit"]["hash"], told["auditId"])]


def _soon() -> str:
    return (dt.datetime.now(dt.UTC) + dt.timedelta(seconds=LOCKED)).strftime("%Y-%m-%dT%H:%M:%SZ")


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


# --- What must hold afterwards


async def problems(install: Installation, bytes_: Bytes, ledger: Ledger) -> list[str]:
    """After the storm, with API and worker running: what is wrong with the bytes, a line each; empty when all is well."""
    data = install.data
    objects, eraser = open_objects(bytes_.settings, data), open_eraser(bytes_.settings, data)
    postgres = await open_postgres(install.cluster.dsn("memory_app"), size=2)
    try:
        found = [p async for p in _holds(install, objects)]
        found += [p async for p in _contents(install, bytes_, ledger)]
        swept = await orphans.sweep(postgres, objects, eraser, age=dt.timedelta(0))
        if isinstance(objects, S3Store):
            await objects.sweep(dt.timedelta(seconds=-60))
            if left := await objects.sweep(dt.timedelta(seconds=-60)):
                found.append(f"{left} uploads in parts are left")
        found += [p async for p in _orphans(install, objects)]
        if swept.beside:
            found.append(f"{swept.beside} versions lie beside those that artifacts name: {swept.examples}")
        return found
    finally:
        await postgres.close()
        await objects.close()
        await eraser.close()


def rows(install: Installation) -> list[dict[str, Any]]:
    with psycopg.connect(install.cluster.dsn("postgres"), row_factory=dict_row) as connection:
        return connection.execute(
            "SELECT a.tenant, a.id::text AS id, a.name, a.object_key AS key, a.version_id AS version, a.sha256, a.legal_hold AS held,"
            " a.hold_due AS due, a.retain_until AS until, n.legal_hold AND n.deleted_at IS NULL AS node_held"
            " FROM artifacts a LEFT JOIN memory_nodes n ON n.tenant = a.tenant AND n.id = a.memory_node_id"
        ).fetchall()


async def _holds(install: Installation, objects: ObjectStore) -> AsyncIterator[str]:
    """The worker brings every hold to the store; what a node's hold covers is held, and what is locked is locked until its date."""
    deadline = asyncio.get_running_loop().time() + 60
    there = await asyncio.to_thread(rows, install)
    while any(row["due"] for row in there) and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.3)
        there = await asyncio.to_thread(rows, install)
    held = {(row["key"], row["version"]) for row in there if row["held"]}
    for row in there:
        if row["due"]:
            yield f"the hold of artifact {row['id']} never came to the store"
        if row["node_held"] and not row["held"]:
            yield f"artifact {row['id']} is not held, and its node is"
    for key, version in {(row["key"], row["version"]) for row in there}:
        state = await objects.stat(key, version)
        if state.hold != ((key, version) in held):
            yield f"{key}: the hold is {state.hold}"
        until = [row["until"] for row in there if (row["key"], row["version"]) == (key, version) and row["until"]]
        if until and (state.lock is None or state.lock.until < max(until)):
            yield f"{key}: the lock is {state.lock}, and its rows say {max(until)}"


async def _contents(install: Installation, bytes_: Bytes, ledger: Ledger) -> AsyncIterator[str]:
    """Each artifact that there is comes back with its hash, acknowledged or not; none has other bytes than were sent under its name."""
    async with httpx2.AsyncClient(timeout=60) as http:
        for row in await asyncio.to_thread(rows, install):
            headers = {"Authorization": f"Bearer {install.token(row['tenant'])}"}
            try:
                answer = await http.get(f"{install.urls[0]}{ARTIFACTS}/{row['id']}/content", headers=headers)
            except httpx2.TransportError as error:  # the service ends a body whose hash is wrong before its end
                yield f"artifact {row['id']} does not come back: {type(error).__name__}"
                continue
            if answer.status_code != 200 or hashlib.sha256(answer.content).hexdigest() != row["sha256"]:
                yield f"artifact {row['id']} does not come back: {answer.status_code}, {len(answer.content)} bytes"
            if bytes_.sent.get(row["name"]) != row["sha256"]:
                yield f"artifact {row['id']} has other bytes than were sent as {row['name']}"
    names = {row["name"] for row in await asyncio.to_thread(rows, install)}
    for write in ledger.writes:
        if write.kind == "memory.artifact.created" and write.fate == "acknowledged" and not names >= set(write.markers):
            yield f"{write} was acknowledged, and there is no such artifact"


async def _orphans(install: Installation, objects: ObjectStore) -> AsyncIterator[str]:
    """Nothing is left that no artifact names, unless lock or hold keep it, or it was laid there to be registered."""
    named = {(row["key"], row["version"]) for row in await asyncio.to_thread(rows, install)}
    async for version in everything(objects):
        if (version.key, version.version_id) in named or "/incoming/" in version.key:
            continue
        state = await objects.stat(version.key, version.version_id)
        if not state.hold and (state.lock is None or state.lock.until <= dt.datetime.now(dt.UTC)):
            yield f"{version.key} is named by no artifact, and was not swept"


async def everything(objects: ObjectStore) -> AsyncIterator[ObjectVersion]:
    cursor = None
    while True:
        page = await objects.versions("", cursor)
        for version in page.versions:
            yield version
        if (cursor := page.cursor) is None:
            return


def half_received(data: Path) -> Iterator[Path]:
    """What uploads that were cut off left on this machine; read once every process was started anew."""
    for folder in (data / "spool", data / "objects" / ".incoming", data / "archive" / ".incoming"):
        with contextlib.suppress(FileNotFoundError):
            yield from folder.iterdir()


def archived(install: Installation) -> Iterator[str]:
    """The segments in the rows follow one another from entry 0 on, each with one entry in the log."""
    with psycopg.connect(install.cluster.dsn("postgres"), row_factory=dict_row) as connection:
        segments = connection.execute(
            "SELECT number, first_seq, last_seq, manifest_sha256, audit_id FROM archive_segments ORDER BY number"
        ).fetchall()
        told = connection.execute(
            "SELECT count(*) AS n FROM audit_events WHERE event_type = 'audit.archived'"
        ).fetchone()
    following = 0
    for number, row in enumerate(segments):
        if (row["number"], row["first_seq"]) != (number, following):
            yield f"segment {row['number']} begins with entry {row['first_seq']}, where {following} comes next"
        if row["manifest_sha256"] is None or row["audit_id"] is None:
            yield f"segment {row['number']} is not finished"
        following = row["last_seq"] + 1
    if not segments:
        yield "nothing was archived"
    if told is None or told["n"] != len(segments):
        yield f"{told} entries tell of {len(segments)} segments"

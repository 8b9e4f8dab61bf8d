"""The files of one segment, made on this machine: lines of entries, seals and encrypted payloads, and the checkpoint that covers them.

The same range always gives the same bytes. Nothing is made of entries that the signed checkpoint does not cover.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

from memory_layer import canonical
from memory_layer.audit import bundle
from memory_layer.audit.bundle import File, LineWriter
from memory_layer.audit.entry import leaf_hash, parse_entry
from memory_layer.audit.seal import seal_hash
from memory_layer.audit.seal_chain import Base, SealRow
from memory_layer.audit.segment import CHECKPOINT, CLEAR, ENTRIES, PAYLOADS, SEALS, Head, encrypt_payload, folder_name
from memory_layer.audit.tree import Frontier, consistency_proof, verify_consistency
from memory_layer.errors import MemoryLayerError, ValidationError
from memory_layer.ops.archive.data_keys import DataKeys, people_of
from memory_layer.ops.manifests import ManifestKey
from memory_layer.service.installation import Installation
from memory_layer.service.tiles import load, snapshot
from memory_layer.sql import queries
from memory_layer.stores.postgres import ALL_TENANTS

ENTRIES_EACH: Final = 10_000  # in a segment; a few more, as it ends with a batch
PAYLOAD_BYTES: Final = 32 * 2**20  # of payloads, with which a segment is full before: its files go up by one PUT each
PAGE: Final = 500  # payloads held at a time

_SQL = queries("archive")


class ArchiveDiffers(MemoryLayerError):
    """The entries are not those that the signed checkpoint covers; nothing of them is archived under our signature."""

    exit_code: ClassVar[int] = 1


class ArchiveKeys(NamedTuple):
    """What an archive is sealed with: the keys of payloads, and the one that signs manifests."""

    payloads: DataKeys
    manifest: ManifestKey


class SegmentSize(NamedTuple):
    """With which a segment is full; a few entries more, as it ends with a batch."""

    entries: int = ENTRIES_EACH
    payload_bytes: int = PAYLOAD_BYTES


@dataclass(frozen=True, slots=True)
class Plan:
    """A row of ``archive_segments`` that is begun: which entries, and where it goes on from."""

    number: int
    first: int
    last: int
    checkpoint: int
    attempt: int
    tool: str
    begun: dt.datetime
    lock_until: dt.datetime
    base: Base
    previous: str | None

    @property
    def folder(self) -> str:
        return folder_name(self.first, self.last, self.attempt)


@dataclass(slots=True)
class Made:
    """A segment's files in a folder of this machine."""

    files: dict[str, File]
    counts: dict[str, int]
    head: Head
    ts: str
    tree: Frontier
    proof: tuple[bytes, ...]
    withheld: int


async def make(installation: Installation, keys: ArchiveKeys, log: int, origin: str, plan: Plan, folder: Path) -> Made:
    """Write the segment's files here, and prove that the signed checkpoint covers them. Raises ArchiveDiffers."""
    place = {"log": log, "first": plan.first, "last": plan.last, "batch": plan.base.batch}
    rows, seals, points = await installation.postgres.fetch(
        ALL_TENANTS,
        (_SQL["entries"], place),
        (_SQL["seals"], place),
        (_SQL["checkpoint_of"], place | {"size": plan.checkpoint}),
    )
    if len(rows) != plan.last - plan.first + 1 or not seals or not points:
        raise differs(plan, "entries, seals or the checkpoint of the range are missing")
    entries = [bytes(row["entry"]) for row in rows]
    tree = Frontier.loads(plan.base.tree)
    files, counts = await asyncio.to_thread(_lines, folder, entries, seals, tree)
    files[PAYLOADS], counts["payloads"], withheld = await _payloads(installation, keys, log, origin, plan, folder)
    note = points[0]["note"].encode()
    files[CHECKPOINT] = bundle.write_file(folder, CHECKPOINT, note)
    size, root = plan.last + 1, bytes(points[0]["root"])
    try:
        read = await load(snapshot(installation.postgres), log, plan.checkpoint, plan.last)
        proof = consistency_proof(size, plan.checkpoint, read)
    except ValidationError as error:
        raise differs(plan, f"the tree cannot be read ({error.message})") from error
    if not verify_consistency(size, plan.checkpoint, proof, tree.root(), root):
        raise differs(plan, f"they do not lead to the root of the checkpoint of size {plan.checkpoint}")
    last, seal = parse_entry(entries[-1]), seals[-1]
    head = Head(plan.last, leaf_hash(entries[-1]), seal["batch_no"], seal_hash(seal["seal_text"].encode()))
    return Made(files, counts, head, last.ts, tree, tuple(proof), withheld)


def _lines(
    folder: Path, entries: list[bytes], seals: list[dict[str, Any]], tree: Frontier
) -> tuple[dict[str, File], dict[str, int]]:
    files = {}
    with LineWriter(folder, ENTRIES) as file:
        for entry in entries:
            file.write(entry)
        files[ENTRIES] = file.finish()
    with LineWriter(folder, SEALS) as file:
        for row in seals:
            file.write(bundle.seal_line(SealRow(row["batch_no"], row["seal_text"].encode(), row["signature"])))
        files[SEALS] = file.finish()
    tree.extend([hashlib.sha256(b"\0" + entry).digest() for entry in entries])
    return files, {"entries": len(entries), "seals": len(seals)}


async def _payloads(
    installation: Installation, keys: ArchiveKeys, log: int, origin: str, plan: Plan, folder: Path
) -> tuple[File, int, int]:
    """Encrypted, a page at a time; how many there are, and how many were withheld as somebody whom they concern was erased."""
    withheld = 0
    with LineWriter(folder, PAYLOADS) as file:
        for first in range(plan.first, plan.last + 1, PAGE):
            where = {"log": log, "first": first, "last": min(plan.last, first + PAGE - 1)}
            rows, named = await installation.postgres.fetch(
                ALL_TENANTS, (_SQL["payloads"], where), (_SQL["subjects_named"], where)
            )
            people = [
                people_of(row["tenant"], subjects) for row, subjects in zip(rows, _concerned(rows, named), strict=True)
            ]
            shared = await keys.payloads.get(person for of in people for person in of)
            withheld += await asyncio.to_thread(_encrypt, file, origin, rows, people, shared)
        return file.finish(), file.lines, withheld


def _encrypt(
    file: LineWriter, origin: str, rows: list[dict[str, Any]], people: list[Any], keys: Mapping[Any, Any]
) -> int:
    withheld = 0
    for row, of in zip(rows, people, strict=True):
        seq, salt, payload = row["seq"], bytes(row["salt"]), bytes(row["payload"])
        if row["event_type"] in CLEAR:
            file.write(bundle.payload_line(seq, salt, payload))
            continue
        found = [keys[person] for person in of]
        if any(key is None for key in found):
            withheld += 1
            continue
        commitment = parse_entry(bytes(row["entry"])).payload or ""
        file.write(encrypt_payload(origin, seq, commitment, dict(found), salt, payload))
    return withheld


def _concerned(rows: Sequence[Mapping[str, Any]], named: Sequence[Mapping[str, Any]]) -> Iterator[set[str]]:
    """Whom each payload concerns: the subjects that its node had then, and those that it names itself. Both are in the order of the log;
    where no entry names a node's subjects, they are those that its row has."""
    since: dict[tuple[str, uuid.UUID], Any] = {}
    place = 0
    for row in rows:
        while place < len(named) and named[place]["seq"] <= row["seq"]:
            since[named[place]["tenant"], named[place]["node"]] = named[place]["subjects"]
            place += 1
        there = since.get((row["tenant"], row["node"]))
        found = set(_names(row["subjects"] if there is None else there))
        if b'"subjects"' in bytes(row["payload"]):
            found |= _names(canonical.loads(bytes(row["payload"])).get("subjects"))
        yield found


def _names(subjects: Any) -> set[str]:
    return {name for name in subjects if isinstance(name, str)} if isinstance(subjects, list) else set()


def differs(plan: Plan, what: str) -> ArchiveDiffers:
    return ArchiveDiffers(
        f"The entries {plan.first} to {plan.last} are not what was published of them: {what}. Nothing of them is archived. Somebody changed "
        "rows behind the service's back, or the database was restored to an earlier point; look with `memoryctl audit verify`."
    )

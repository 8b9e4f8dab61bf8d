"""Write segments of the log into the archive, one after another, each under its lock and read back by its version.

The row in ``archive_segments`` comes first and fixes range, names, checkpoint and lock. The same range always gives the same bytes, so a
run that was cut off is finished by the next: what it had written is found under its name and taken as it is. The manifest is the last
object, and without it the others are none of the archive's. What then remains, the row's end and the entry ``audit.archived``, is owed.
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import hashlib
import json
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from memory_layer import __version__, canonical
from memory_layer.audit import bundle
from memory_layer.audit.bundle import File, LineWriter
from memory_layer.audit.entry import format_ts, genesis_prev, leaf_hash, parse_entry
from memory_layer.audit.seal import seal_hash
from memory_layer.audit.seal_chain import Base, SealRow
from memory_layer.audit.segment import (
    CHECKPOINT,
    CLEAR,
    ENTRIES,
    MANIFEST,
    PAYLOADS,
    SEALS,
    Head,
    Locked,
    Segment,
    Stored,
    digest_of,
    encrypt_payload,
    folder_name,
    sign_segment,
)
from memory_layer.audit.tree import Frontier, consistency_proof, verify_consistency
from memory_layer.errors import Conflict, MemoryLayerError, NotYetPublished, ObjectStoreUnavailable, ValidationError
from memory_layer.model import SYSTEM_TENANT
from memory_layer.ops.archive.keys import DataKeys, people_of
from memory_layer.ops.export import ManifestKey
from memory_layer.service.changes import Change, Idempotency, Record
from memory_layer.service.commit import Committer, request_hash
from memory_layer.service.system import known_caller
from memory_layer.service.tiles import load, snapshot
from memory_layer.sql import queries
from memory_layer.stores.postgres import ALL_TENANTS, Postgres
from memory_layer.stores.protocols import Lock, ObjectStore

ENTRIES_EACH: Final = 10_000  # in a segment; a few more, as it ends with a batch
PAYLOAD_BYTES: Final = 32 * 2**20  # of payloads, with which a segment is full before: its files go up by one PUT each
PAGE: Final = 500  # payloads held at a time
ATTEMPTS: Final = 9  # to write one segment, each under another name
SKEW: Final = dt.timedelta(minutes=1)  # that the store's clock may be behind

_SQL = queries("archive")

Tell = Callable[[int], None]


class ArchiveDiffers(MemoryLayerError):
    """The entries are not those that the signed checkpoint covers; nothing of them is archived under our signature."""

    exit_code: ClassVar[int] = 1


@dataclass(frozen=True, slots=True)
class Archiver:
    """What writes the archive. ``days``: of the lock."""

    postgres: Postgres
    committer: Committer
    store: ObjectStore
    keys: DataKeys
    key: ManifestKey
    days: int
    entries: int = ENTRIES_EACH
    payload_bytes: int = PAYLOAD_BYTES


@dataclass(frozen=True, slots=True)
class Written:
    """A segment that is in the archive. ``bytes``: of its objects."""

    number: int
    first: int
    last: int
    key: str
    version: str
    sha256: str
    bytes: int
    withheld: int  # payloads of people who were erased


def prefix_of(origin: str) -> str:
    """What the keys of a log's archive begin with."""
    return f"archive/{origin}/"


async def archive(
    to: Archiver, *, until: int | None = None, rest: bool = False, tell: Tell = lambda _: None
) -> list[Written]:
    """Write what is to be written: full segments, and with ``rest`` what is left of the log up to ``until`` (None: all that a signed
    checkpoint covers). ``tell`` is told how many entries are done.

    Raises NotYetPublished without a log or a checkpoint over ``until``, ArchiveDiffers, and what the stores raise.
    """
    log = await _log(to.postgres)
    if until is not None and until >= log["covered"]:
        raise NotYetPublished(
            f"No signed checkpoint covers entry {until} yet: they cover {log['covered']} entries. A running worker signs one about a "
            "second after a write."
        )
    await _settle(to, log["log"])
    done: list[Written] = []
    count = 0
    while (plan := await _next(to, log, until, rest)) is not None:
        written = await _write(to, log["log"], log["origin"], plan)
        if written is None:
            continue
        done.append(written)
        count += written.last - written.first + 1
        tell(count)
        await _settle(to, log["log"])
    return done


async def _log(postgres: Postgres) -> dict[str, Any]:
    (rows,) = await postgres.fetch(ALL_TENANTS, (_SQL["log"], {}))
    if not rows:
        raise NotYetPublished("This database has no log yet. The first start opens it.")
    return rows[0]


@dataclass(frozen=True, slots=True)
class _Plan:
    """A row of ``archive_segments`` that is begun, and where it goes on from."""

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


async def _next(to: Archiver, log: Mapping[str, Any], until: int | None, rest: bool) -> _Plan | None:
    """The segment that is begun, else the next one, begun now; None where there is none to write."""
    number = log["log"]
    base, previous, follows = await _end(to.postgres, number, log["origin"])
    (opened,) = await to.postgres.fetch(ALL_TENANTS, (_SQL["open_segment"], {"log": number}))
    if not opened:
        facts = {
            "log": number, "first": base.seq, "batch": base.batch, "covered": log["covered"], "entries": to.entries,
            "bytes": to.payload_bytes, "until": until,
        }  # fmt: skip
        (ends,) = await to.postgres.fetch(ALL_TENANTS, (_SQL["ends"], facts))
        full, left = ends[0]["full"], ends[0]["rest"]
        last = full if full is not None and (until is None or full <= until) else left if rest else None
        if last is None:
            return None
        await _begin(to, number, follows, base.seq, last)
        (opened,) = await to.postgres.fetch(ALL_TENANTS, (_SQL["open_segment"], {"log": number}))
    row = opened[0]
    if row["first_seq"] != base.seq:
        raise ArchiveDiffers(
            f"The segment that was begun goes on from entry {row['first_seq']}, and the archive ends before {base.seq}."
        )
    return _Plan(
        row["number"], row["first_seq"], row["last_seq"], row["checkpoint_size"], row["attempt"], row["tool"], row["begun_at"],
        row["lock_until"], base, previous,
    )  # fmt: skip


async def _end(postgres: Postgres, log: int, origin: str) -> tuple[Base, str | None, int]:
    """Where the archive ends: base and previous manifest of the next segment, and its number."""
    (rows,) = await postgres.fetch(ALL_TENANTS, (_SQL["last_segment"], {"log": log}))
    if not rows:
        return Base(prev=genesis_prev(origin)), None, 0
    tail = rows[0]["tail"]
    tree = base64.b64decode(tail["tree"])
    base = Base(rows[0]["last_seq"] + 1, tail["batch"] + 1, tail["hash"], tail["seal"], tail["ts"], tree)
    return base, rows[0]["manifest_sha256"], rows[0]["number"] + 1


def _moment(days: int) -> tuple[dt.datetime, dt.datetime]:
    """Now, and until when a lock is set that is to hold for so long: whole seconds, as S3 keeps them."""
    now = dt.datetime.now(dt.UTC)
    return now, (now + dt.timedelta(days=days) + SKEW).replace(microsecond=0)


async def _begin(to: Archiver, log: int, number: int, first: int, last: int) -> None:
    (points,) = await to.postgres.fetch(ALL_TENANTS, (_SQL["covering"], {"log": log, "last": last}))
    now, until = _moment(to.days)
    facts = {
        "log": log, "number": number, "first": first, "last": last, "checkpoint": points[0]["size"],
        "tool": f"memory-layer {__version__}", "begun": now, "lock_until": until,
    }  # fmt: skip
    await to.postgres.run(SYSTEM_TENANT, (_SQL["begin_segment"], facts))


# --- One segment -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Made:
    """A segment's files in a folder of this machine."""

    files: dict[str, File]
    counts: dict[str, int]
    head: Head
    ts: str
    tree: Frontier
    proof: tuple[bytes, ...]
    withheld: int


async def _write(to: Archiver, log: int, origin: str, plan: _Plan) -> Written | None:
    """None where it must be begun again under another name."""
    with tempfile.TemporaryDirectory(prefix="memory-archive-") as name:
        folder = Path(name)
        made = await _make(to, log, origin, plan, folder)
        try:
            return await _store(to, log, origin, plan, made, folder)
        except Conflict:
            # A run that was cut off wrote other bytes: by another version of this program, or somebody was erased since. They stay, and
            # no manifest names them.
            if plan.attempt >= ATTEMPTS:
                raise
            now, until = _moment(to.days)
            facts = {
                "log": log,
                "number": plan.number,
                "tool": f"memory-layer {__version__}",
                "begun": now,
                "lock_until": until,
            }
            await to.postgres.run(SYSTEM_TENANT, (_SQL["try_again"], facts))
            return None


async def _make(to: Archiver, log: int, origin: str, plan: _Plan, folder: Path) -> _Made:
    """Write the segment's files here, and prove that the signed checkpoint covers them."""
    place = {"log": log, "first": plan.first, "last": plan.last, "batch": plan.base.batch}
    rows, seals, points = await to.postgres.fetch(
        ALL_TENANTS,
        (_SQL["entries"], place),
        (_SQL["seals"], place),
        (_SQL["checkpoint_of"], place | {"size": plan.checkpoint}),
    )
    if len(rows) != plan.last - plan.first + 1 or not seals or not points:
        raise _differs(plan, "entries, seals or the checkpoint of the range are missing")
    entries = [bytes(row["entry"]) for row in rows]
    tree = Frontier.loads(plan.base.tree)
    files, counts = await asyncio.to_thread(_lines, folder, entries, seals, tree)
    files[PAYLOADS], counts["payloads"], withheld = await _payloads(to, log, origin, plan, folder)
    note = points[0]["note"].encode()
    files[CHECKPOINT] = bundle.write_file(folder, CHECKPOINT, note)
    size, root = plan.last + 1, bytes(points[0]["root"])
    try:
        read = await load(snapshot(to.postgres), log, plan.checkpoint, plan.last)
        proof = consistency_proof(size, plan.checkpoint, read)
    except ValidationError as error:
        raise _differs(plan, f"the tree cannot be read ({error.message})") from error
    if not verify_consistency(size, plan.checkpoint, proof, tree.root(), root):
        raise _differs(plan, f"they do not lead to the root of the checkpoint of size {plan.checkpoint}")
    last, seal = parse_entry(entries[-1]), seals[-1]
    head = Head(plan.last, leaf_hash(entries[-1]), seal["batch_no"], seal_hash(seal["seal_text"].encode()))
    return _Made(files, counts, head, last.ts, tree, tuple(proof), withheld)


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


async def _payloads(to: Archiver, log: int, origin: str, plan: _Plan, folder: Path) -> tuple[File, int, int]:
    """Encrypted, a page at a time; how many there are, and how many were withheld as somebody whom they concern was erased."""
    withheld = 0
    with LineWriter(folder, PAYLOADS) as file:
        for first in range(plan.first, plan.last + 1, PAGE):
            where = {"log": log, "first": first, "last": min(plan.last, first + PAGE - 1)}
            (rows,) = await to.postgres.fetch(ALL_TENANTS, (_SQL["payloads"], where))
            people = [people_of(row["tenant"], subjects_of(row)) for row in rows]
            keys = await to.keys.get(person for of in people for person in of)
            withheld += await asyncio.to_thread(_encrypt, file, origin, rows, people, keys)
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


def subjects_of(row: Mapping[str, Any]) -> set[str]:
    """Whom a payload concerns: the subjects of its node, and those that it names itself."""
    found = set(row["subjects"] or ())
    for text in (row["created"], row["payload"]):
        if text is not None and b'"subjects"' in bytes(text):
            named = canonical.loads(bytes(text)).get("subjects")
            found |= {name for name in named if isinstance(name, str)} if isinstance(named, list) else set()
    return found


async def _store(to: Archiver, log: int, origin: str, plan: _Plan, made: _Made, folder: Path) -> Written:
    """Put the files and then the manifest, each locked by its own PUT and read back by its version."""
    place, lock = f"{prefix_of(origin)}segments/{plan.folder}", Lock("COMPLIANCE", plan.lock_until)
    stored: dict[str, Stored] = {}
    for name in (ENTRIES, PAYLOADS, SEALS, CHECKPOINT):
        told = made.files[name]
        version = await put(to.store, f"{place}/{name}", folder / name, told.sha256, lock)
        stored[name] = Stored(f"{place}/{name}", version, told.bytes, told.sha256, told.expanded)
    segment = Segment(
        number=plan.number,
        origin=origin,
        base=plan.base,
        head=made.head,
        counts=made.counts,
        files=stored,
        checkpoint=(plan.checkpoint, made.proof),
        lock=Locked("COMPLIANCE", format_ts(plan.lock_until)),
        previous=plan.previous,
        time=format_ts(plan.begun),
        tool=plan.tool,
    )
    data = await asyncio.to_thread(sign_segment, segment, to.key.key_id, to.key.algorithm, to.key.sign)
    bundle.write_file(folder, MANIFEST, data)
    sha256, key = digest_of(data), f"{place}/{MANIFEST}"
    version = await put(to.store, key, folder / MANIFEST, sha256, lock)
    size = len(data) + sum(file.bytes for file in stored.values())
    tail = {
        "batch": made.head.batch, "hash": made.head.hash, "seal": made.head.seal, "ts": made.ts,
        "tree": base64.b64encode(made.tree.dumps()).decode("ascii"),
    }  # fmt: skip
    facts = {
        "log": log, "number": plan.number, "key": key, "version": version, "sha256": sha256, "bytes": size, "tail": json.dumps(tail),
    }  # fmt: skip
    await to.postgres.run(SYSTEM_TENANT, (_SQL["finish_segment"], facts))
    return Written(plan.number, plan.first, plan.last, key, version, sha256, size, made.withheld)


async def put(store: ObjectStore, key: str, path: Path, sha256: str, lock: Lock) -> str:
    """Put a file under a name, locked, and read it back by its version. Raises Conflict where the name is taken by other bytes."""
    version = (await store.put_named(key, _chunks(path), lock=lock)).version_id
    digest = hashlib.sha256()
    async for block in store.read(key, version):
        digest.update(block)
    state = await store.stat(key, version)
    if (
        digest.hexdigest() != sha256
        or state.lock is None
        or state.lock.mode != lock.mode
        or state.lock.until < lock.until
    ):
        raise ObjectStoreUnavailable(
            f"The object {key}, version {version}, does not come back as it was put: SHA-256 {digest.hexdigest()} of {sha256}, lock "
            f"{state.lock} of {lock}. Check the bucket (`memoryctl provision plan buckets`)."
        )
    return version


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            yield data


async def _settle(to: Archiver, log: int) -> None:
    """Write the entry of each segment that is owed one; its manifest is the key, so there is one however often this is tried."""
    (owed,) = await to.postgres.fetch(ALL_TENANTS, (_SQL["owed_segments"], {"log": log}))
    for row in owed:
        payload = {
            "number": row["number"],
            "first": row["first_seq"],
            "last": row["last_seq"],
            "manifestKey": row["manifest_key"],
            "manifestVersion": row["manifest_version"],
            "manifestSha256": row["manifest_sha256"],
            "bytes": row["bytes"],
            "lockedUntil": format_ts(row["lock_until"]),
        }
        caller = await known_caller(to.postgres, "memoryctl")
        once = Idempotency(f"archive {row['manifest_sha256']}", request_hash("audit.archived", row["manifest_sha256"]))
        outcome = await to.committer.submit(Change(caller, Record("audit.archived", payload), once))
        assert outcome.receipt is not None  # noqa: S101 - a Record always has one
        facts = {"log": log, "number": row["number"], "audit": outcome.receipt.id}
        await to.postgres.run(SYSTEM_TENANT, (_SQL["audited_segment"], facts))


def _differs(plan: _Plan, what: str) -> ArchiveDiffers:
    return ArchiveDiffers(
        f"The entries {plan.first} to {plan.last} are not what was published of them: {what}. Nothing of them is archived. Somebody changed "
        "rows behind the service's back, or the database was restored to an earlier point; look with `memoryctl audit verify`."
    )

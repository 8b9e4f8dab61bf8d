"""Write segments of the log into the archive, one after another, each under its lock and read back by its version.

The row in ``archive_segments`` comes first and fixes range, names, checkpoint and lock. The same range always gives the same bytes, so a
run that was cut off is finished by the next: what it had written is found under its name and taken as it is. The manifest is the last
object, and without it the others are none of the archive's. What then remains, the row's end and the entry ``audit.archived``, is owed and written later.
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import hashlib
import json
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from memory_layer import __version__
from memory_layer.audit import bundle
from memory_layer.audit.entry import format_ts, genesis_prev
from memory_layer.audit.seal_chain import Base
from memory_layer.audit.segment import (
    CHECKPOINT,
    ENTRIES,
    MANIFEST,
    PAYLOADS,
    SEALS,
    Locked,
    Segment,
    Stored,
    digest_of,
    sign_segment,
)
from memory_layer.errors import Conflict, NotYetPublished, ObjectStoreUnavailable
from memory_layer.model import SYSTEM_TENANT
from memory_layer.ops.archive.files import ArchiveDiffers, ArchiveKeys, Made, Plan, SegmentSize, make
from memory_layer.progress import Progress, no_progress
from memory_layer.service.actions.log import Record
from memory_layer.service.commit import Change, Idempotency, request_hash
from memory_layer.service.installation import Installation
from memory_layer.service.principals import known_caller
from memory_layer.sql import queries
from memory_layer.stores.postgres import ALL_TENANTS, Postgres
from memory_layer.stores.protocols import Lock, ObjectStore
from memory_layer.telemetry.logs import get_logger

ATTEMPTS: Final = 9  # to write one segment, each under another name
FULL: Final = SegmentSize()
SKEW: Final = dt.timedelta(minutes=1)  # that the store's clock may be behind

_SQL = queries("archive")

log = get_logger("memory_layer.archive")


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
    installation: Installation,
    keys: ArchiveKeys,
    *,
    until: int | None = None,
    rest: bool = False,
    size: SegmentSize | None = None,
    progress: Progress = no_progress,
) -> list[Written]:
    """Write what is to be written: full segments, and with ``rest`` what is left of the log up to ``until`` (None: all that a signed
    checkpoint covers). ``progress`` counts entries.

    Raises NotYetPublished without a log or a checkpoint over ``until``, ArchiveDiffers, and what the stores raise.
    """
    about, size = await _log(installation.postgres), size or FULL
    if until is not None and until >= about["covered"]:
        raise NotYetPublished(
            f"No signed checkpoint covers entry {until} yet: they cover {about['covered']} entries. A running worker signs one about a "
            "second after a write."
        )
    await _write_owed_entries(installation, about["log"])
    done: list[Written] = []
    count = 0
    while (plan := await _next(installation, size, about, until, rest)) is not None:
        written = await _write(installation, keys, about["log"], about["origin"], plan)
        if written is None:
            continue
        done.append(written)
        count += written.last - written.first + 1
        await _write_owed_entries(installation, about["log"])
        progress("archiving", count, 0)
    return done


async def _log(postgres: Postgres) -> dict[str, Any]:
    (rows,) = await postgres.fetch(ALL_TENANTS, (_SQL["log"], {"origin": postgres.origin}))
    if not rows:
        raise NotYetPublished(
            f"This database does not hold the log {postgres.origin} that the trust root names, so nothing is archived."
        )
    return rows[0]


async def _next(
    installation: Installation, size: SegmentSize, log: Mapping[str, Any], until: int | None, rest: bool
) -> Plan | None:
    """The segment that is begun, else the next one, begun now; None where there is none to write."""
    number = log["log"]
    base, previous, follows = await _end(installation.postgres, number, log["origin"])
    (opened,) = await installation.postgres.fetch(ALL_TENANTS, (_SQL["open_segment"], {"log": number}))
    if not opened:
        facts = {
            "log": number, "first": base.seq, "batch": base.batch, "covered": log["covered"], "entries": size.entries,
            "bytes": size.payload_bytes, "until": until,
        }  # fmt: skip
        (ends,) = await installation.postgres.fetch(ALL_TENANTS, (_SQL["ends"], facts))
        full, left = ends[0]["full"], ends[0]["rest"]
        last = full if full is not None and (until is None or full <= until) else left if rest else None
        if last is None:
            return None
        await _begin(installation, number, follows, base.seq, last)
        (opened,) = await installation.postgres.fetch(ALL_TENANTS, (_SQL["open_segment"], {"log": number}))
    row = opened[0]
    if row["first_seq"] != base.seq:
        raise ArchiveDiffers(
            f"The segment that was begun goes on from entry {row['first_seq']}, and the archive ends before {base.seq}."
        )
    return Plan(
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


async def _begin(installation: Installation, log: int, number: int, first: int, last: int) -> None:
    (points,) = await installation.postgres.fetch(ALL_TENANTS, (_SQL["covering"], {"log": log, "last": last}))
    now, until = _moment(installation.settings.archive_lock_days)
    facts = {
        "log": log, "number": number, "first": first, "last": last, "checkpoint": points[0]["size"],
        "tool": f"memory-layer {__version__}", "begun": now, "lock_until": until,
    }  # fmt: skip
    await installation.postgres.run(SYSTEM_TENANT, (_SQL["begin_segment"], facts))


# --- One segment -------------------------------------------------------------------------------------------------------


async def _write(installation: Installation, keys: ArchiveKeys, log: int, origin: str, plan: Plan) -> Written | None:
    """None where it must be begun again under another name."""
    with tempfile.TemporaryDirectory(prefix="memory-archive-") as name:
        folder = Path(name)
        made = await make(installation, keys, log, origin, plan, folder)
        try:
            return await _store(installation, keys, log, origin, plan, made, folder)
        except Conflict:
            # A run that was cut off wrote other bytes: by another version of this program, or somebody was erased since. They stay, and
            # no manifest names them.
            if plan.attempt >= ATTEMPTS:
                raise
            now, until = _moment(installation.settings.archive_lock_days)
            facts = {
                "log": log,
                "number": plan.number,
                "tool": f"memory-layer {__version__}",
                "begun": now,
                "lock_until": until,
            }
            await installation.postgres.run(SYSTEM_TENANT, (_SQL["try_again"], facts))
            return None


async def _store(
    installation: Installation, keys: ArchiveKeys, log: int, origin: str, plan: Plan, made: Made, folder: Path
) -> Written:
    """Put the files and then the manifest, each locked by its own PUT and read back by its version."""
    place, lock = f"{prefix_of(origin)}segments/{plan.folder}", Lock("COMPLIANCE", plan.lock_until)
    stored: dict[str, Stored] = {}
    for name in (ENTRIES, PAYLOADS, SEALS, CHECKPOINT):
        file = made.files[name]
        version = await put(installation.archive, f"{place}/{name}", folder / name, file.sha256, lock)
        stored[name] = Stored(f"{place}/{name}", version, file.bytes, file.sha256, file.expanded)
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
    data = await asyncio.to_thread(
        sign_segment, segment, keys.manifest.key_id, keys.manifest.algorithm, keys.manifest.sign
    )
    bundle.write_file(folder, MANIFEST, data)
    sha256, key = digest_of(data), f"{place}/{MANIFEST}"
    version = await put(installation.archive, key, folder / MANIFEST, sha256, lock)
    size = len(data) + sum(file.bytes for file in stored.values())
    tail = {
        "batch": made.head.batch, "hash": made.head.hash, "seal": made.head.seal, "ts": made.ts,
        "tree": base64.b64encode(made.tree.dumps()).decode("ascii"),
    }  # fmt: skip
    facts = {
        "log": log, "number": plan.number, "key": key, "version": version, "sha256": sha256, "bytes": size, "tail": json.dumps(tail),
    }  # fmt: skip
    await installation.postgres.run(SYSTEM_TENANT, (_SQL["finish_segment"], facts))
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


async def _write_owed_entries(installation: Installation, number: int) -> None:
    """Write the entry of each segment that is owed one; its manifest is the key, so there is one however often this is tried."""
    (owed,) = await installation.postgres.fetch(ALL_TENANTS, (_SQL["owed_segments"], {"log": number}))
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
        caller = await known_caller(installation.postgres, "memoryctl")
        once = Idempotency(f"archive {row['manifest_sha256']}", request_hash("audit.archived", row["manifest_sha256"]))
        outcome = await installation.committer.submit(Change(caller, Record("audit.archived", payload), once))
        assert outcome.receipt is not None  # noqa: S101 - a Record always has one
        facts = {"log": number, "number": row["number"], "audit": outcome.receipt.id}
        try:
            await installation.postgres.run(SYSTEM_TENANT, (_SQL["audited_segment"], facts))
        except Exception:  # the entry is there; the next run finds it by its key and notes it
            log.exception(
                "the entry of a segment is in the log, and its row does not name it yet", segment=row["number"]
            )

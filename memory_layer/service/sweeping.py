"""Bytes that no artifact names: what an upload leaves that was cut off between the object store and Postgres.

An upload of the same bytes may count on such an object at the very moment at which it is to go. So it is marked first, under the lock
that every new artifact is decided under: an artifact that was committed before is seen, and one that comes after is refused and sends
its bytes again. Only what the service itself puts there is looked at, ``<tenant>/<sha256>``; what somebody laid below their prefix to
register it later is theirs. Nothing that is locked, held, or a version of a key that an artifact names is touched.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from dataclasses import dataclass, field
from typing import Final

from memory_layer.errors import Conflict, Forbidden, LegalHold, NotFound
from memory_layer.service import Memory, freeze
from memory_layer.sql import queries
from memory_layer.stores.postgres import ALL_TENANTS
from memory_layer.stores.protocols import ObjectVersion

AGE: Final = dt.timedelta(hours=1)  # an upload that is under way commits its row long before
PAGE: Final = 500  # versions
PAGES: Final = 200  # of one run; the next one goes on from there
EXAMPLES: Final = 10

_OURS: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,62}/[0-9a-f]{64}")
_JOB: Final = "sweep"
_SQL = queries("artifacts")


@dataclass(slots=True)
class Swept:
    """What a sweep came to. ``cursor``: where the next one goes on; None: it saw everything."""

    versions: int = 0
    orphans: int = 0
    orphan_bytes: int = 0
    deleted: int = 0
    kept: int = 0  # locked or held
    refused: int = 0  # there is nobody who may delete
    beside: int = 0  # versions that no artifact names, of keys that one does
    examples: list[str] = field(default_factory=list)
    cursor: str | None = None


async def sweep(memory: Memory, *, age: dt.timedelta = AGE, pages: int = PAGES) -> Swept:
    """Find objects that no artifact names and that are older than ``age``, and delete them where this installation may.

    Bounded and resumable. While writes are frozen nothing is deleted.
    """
    postgres, objects = memory.stores.postgres, memory.stores.objects
    done = Swept()
    may_delete = await freeze.current(postgres) is None
    if may_delete:
        may_delete = await _finish(memory, done)
    (rows,) = await postgres.fetch(ALL_TENANTS, (_SQL["progress"], {"job": _JOB}))
    done.cursor = rows[0]["state"].get("cursor") if rows else None
    for _ in range(pages):
        page = await objects.versions("", done.cursor, PAGE)
        done.versions += len(page.versions)
        oldest = dt.datetime.now(dt.UTC) - age
        candidates = [v for v in page.versions if not v.marker and v.modified < oldest and _OURS.fullmatch(v.key)]
        may_delete = await _clear(memory, candidates, done, may_delete)
        done.cursor = page.cursor
        state = {"job": _JOB, "state": json.dumps({"cursor": done.cursor})}
        await postgres.run(ALL_TENANTS, (_SQL["put_progress"], state))
        if done.cursor is None:
            break
    await postgres.run(ALL_TENANTS, (_SQL["forget_sweeps"], {}))
    return done


async def _clear(memory: Memory, candidates: list[ObjectVersion], done: Swept, may_delete: bool) -> bool:
    """Look after those of a page that no artifact names; whether this installation may still delete."""
    if not candidates:
        return may_delete
    places = {"keys": [v.key for v in candidates], "versions": [v.version_id for v in candidates]}
    (unnamed,) = await memory.stores.postgres.fetch(ALL_TENANTS, (_SQL["unnamed"], places))
    alone = {(row["key"], row["version"]) for row in unnamed if not row["beside"]}
    beside = [f"{row['key']}?versionId={row['version']}" for row in unnamed if row["beside"]]
    done.beside += len(beside)
    free: list[ObjectVersion] = []
    for version in candidates:
        if (version.key, version.version_id) not in alone:
            continue
        done.orphans += 1
        done.orphan_bytes += version.size
        try:
            state = await memory.stores.objects.stat(version.key, version.version_id)
        except NotFound:
            continue
        if state.hold or (state.lock is not None and state.lock.until > dt.datetime.now(dt.UTC)):
            done.kept += 1
            beside.append(version.key)
        else:
            free.append(version)
            beside.append(version.key)
    done.examples += beside[: EXAMPLES - len(done.examples)]
    if not free:
        return may_delete
    if not may_delete:
        done.refused += len(free)
        return False
    places = {"keys": [v.key for v in free], "versions": [v.version_id for v in free]}
    *_, marked = await memory.stores.postgres.run(
        ALL_TENANTS, (_SQL["durable"], {}), (_SQL["lock_log"], {}), (_SQL["mark"], places)
    )
    for row in marked:
        may_delete = await _delete(memory, row["key"], row["version"], done, may_delete)
    return may_delete


async def _finish(memory: Memory, done: Swept) -> bool:
    """Delete what an earlier sweep had marked when it was cut off; whether this installation may delete."""
    may_delete = True
    (rows,) = await memory.stores.postgres.fetch(ALL_TENANTS, (_SQL["marked"], {"limit": PAGE}))
    for row in rows:
        may_delete = await _delete(memory, row["key"], row["version"], done, may_delete)
    return may_delete


async def _delete(memory: Memory, key: str, version: str, done: Swept, may_delete: bool) -> bool:
    """Delete what is marked. Where that is refused the mark goes, for then the object stays and may be named."""
    place = {"key": key, "version": version}
    outcome = "swept"
    try:
        if may_delete:
            await memory.stores.objects.delete(key, version)
            done.deleted += 1
        else:
            outcome = "unmark_object"
            done.refused += 1
    except NotFound:
        pass
    except (LegalHold, Conflict):
        outcome = "unmark_object"
        done.kept += 1
    except Forbidden:
        outcome = "unmark_object"
        may_delete = False
        done.refused += 1
    await memory.stores.postgres.run(ALL_TENANTS, (_SQL["durable"], {}), (_SQL[outcome], place))
    return may_delete

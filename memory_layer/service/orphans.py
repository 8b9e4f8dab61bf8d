"""Objects that no artifact names: left by an upload that was cut off between the object store and Postgres.

An upload of the same bytes may count on such an object at the very moment at which it is to go. So it is marked first, under the lock
that every new artifact is decided under: an artifact that was committed before is seen, and one that comes after is refused and sends
its bytes again. Only what the service itself puts there is looked at, ``<tenant>/<sha256>``; what somebody laid below their prefix to
register it later is theirs. Nothing that is locked, held, or a version of a key that an artifact names is touched.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from memory_layer.errors import Conflict, Forbidden, LegalHold, NotFound
from memory_layer.service import freeze
from memory_layer.sql import queries
from memory_layer.stores.postgres import ALL_TENANTS, Postgres
from memory_layer.stores.protocols import ObjectStore, ObjectVersion

AGE: Final = dt.timedelta(hours=1)  # an upload that is under way commits its row long before
PAGE: Final = 500  # versions
PAGES: Final = 200  # of one run; the next one goes on from there
EXAMPLES: Final = 10

_OURS: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,62}/[0-9a-f]{64}")
_JOB: Final = "sweep"
_SQL = queries("artifacts")


@dataclass(slots=True)
class SweepResult:
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


async def sweep(
    postgres: Postgres,
    objects: ObjectStore,
    eraser: ObjectStore | None,
    *,
    age: dt.timedelta = AGE,
    pages: int = PAGES,
) -> SweepResult:
    """Find objects that no artifact names and that are older than ``age``; delete them with the ``eraser``, without one only tell.

    Bounded and resumable. While writes are frozen nothing is deleted.
    """
    this = _Sweep(postgres, objects, None if await freeze.current(postgres) is not None else eraser)
    await this.finish()
    (rows,) = await postgres.fetch(ALL_TENANTS, (_SQL["progress"], {"job": _JOB}))
    cursor = rows[0]["state"].get("cursor") if rows else None
    for _ in range(pages):
        page = await objects.versions("", cursor, PAGE)
        this.done.versions += len(page.versions)
        await this.look(page.versions, dt.datetime.now(dt.UTC) - age)
        cursor = page.cursor
        state = {"job": _JOB, "state": json.dumps({"cursor": cursor})}
        await postgres.run(ALL_TENANTS, (_SQL["put_progress"], state))
        if cursor is None:
            break
    await postgres.run(ALL_TENANTS, (_SQL["forget_sweeps"], {}))
    this.done.cursor = cursor
    return this.done


class _Sweep:
    """One run: what deletes, as long as that is not refused, and what it came to."""

    def __init__(self, postgres: Postgres, objects: ObjectStore, eraser: ObjectStore | None) -> None:
        self._postgres, self._objects, self._eraser = postgres, objects, eraser
        self.done = SweepResult()

    async def finish(self) -> None:
        """Delete what an earlier sweep had marked when it was cut off; without an eraser it may be named again."""
        (rows,) = await self._postgres.fetch(ALL_TENANTS, (_SQL["marked"], {"limit": PAGE}))
        for row in rows:
            await self._delete(row["key"], row["version"])

    async def look(self, versions: Sequence[ObjectVersion], oldest: dt.datetime) -> None:
        """Look after those of a page that no artifact names."""
        candidates = [v for v in versions if not v.marker and v.modified < oldest and _OURS.fullmatch(v.key)]
        if not candidates:
            return
        (unnamed,) = await self._postgres.fetch(ALL_TENANTS, (_SQL["unnamed"], _places(candidates)))
        alone = {(row["key"], row["version"]) for row in unnamed if not row["beside"]}
        self.done.beside += len(unnamed) - len(alone)
        self._name(f"{row['key']}?versionId={row['version']}" for row in unnamed)
        orphans = [v for v in candidates if (v.key, v.version_id) in alone]
        self.done.orphans += len(orphans)
        self.done.orphan_bytes += sum(v.size for v in orphans)
        free = [v for v in orphans if not await self._kept(v)]
        if free and self._eraser is None:
            self.done.refused += len(free)
        elif free:
            *_, marked = await self._postgres.run(
                ALL_TENANTS, (_SQL["durable"], {}), (_SQL["lock_log"], {}), (_SQL["mark"], _places(free))
            )
            for row in marked:
                await self._delete(row["key"], row["version"])

    async def _kept(self, version: ObjectVersion) -> bool:
        """Whether a lock or a hold keeps it; gone meanwhile counts as kept."""
        try:
            state = await self._objects.stat(version.key, version.version_id)
        except NotFound:
            return True
        kept = state.hold or (state.lock is not None and state.lock.until > dt.datetime.now(dt.UTC))
        self.done.kept += kept
        return kept

    async def _delete(self, key: str, version: str) -> None:
        """Delete what is marked. Where that is refused the mark goes: the object stays, and may be named."""
        outcome = "unmark_object"
        try:
            if self._eraser is None:
                self.done.refused += 1
            else:
                await self._eraser.delete(key, version)
                self.done.deleted += 1
                outcome = "swept"
        except NotFound:
            outcome = "swept"
        except (LegalHold, Conflict):
            self.done.kept += 1
        except Forbidden:
            self._eraser = None
            self.done.refused += 1
        place = {"key": key, "version": version}
        await self._postgres.run(ALL_TENANTS, (_SQL["durable"], {}), (_SQL[outcome], place))

    def _name(self, objects: Iterable[str]) -> None:
        self.done.examples += list(objects)[: EXAMPLES - len(self.done.examples)]


def _places(versions: Sequence[ObjectVersion]) -> dict[str, list[str]]:
    return {"keys": [v.key for v in versions], "versions": [v.version_id for v in versions]}

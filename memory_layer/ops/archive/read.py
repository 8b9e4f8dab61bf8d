"""Read segments from the archive's object store, each object by its version, with what the store reports as wrong.

Without a database the oldest version of a manifest is taken for ours: later ones came under the same name afterwards, and ours cannot
be removed while it is locked. The versions of all other objects are in the manifest.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from memory_layer import private
from memory_layer.audit.archive import Held
from memory_layer.audit.entry import format_ts
from memory_layer.audit.manifest import MAX_MANIFEST
from memory_layer.audit.segment import MANIFEST, NAME, Segment, load_segment
from memory_layer.audit.verdict import Finding
from memory_layer.config import Settings
from memory_layer.errors import DependencyUnavailable, NotFound, ValidationError
from memory_layer.ops.archive.write import prefix_of
from memory_layer.sql import queries
from memory_layer.stores.objects import open_archive
from memory_layer.stores.postgres import ALL_TENANTS, open_postgres
from memory_layer.stores.protocols import ObjectState, ObjectStore, ObjectVersion

PAGE: Final = 1000

_SQL = queries("archive")

T = TypeVar("T")


@dataclass(slots=True)
class Found:
    """A segment's folder as the store lists it: versions of each key, the newest first."""

    name: str
    versions: dict[str, list[ObjectVersion]] = field(default_factory=dict)

    @property
    def manifest(self) -> ObjectVersion | None:
        """The oldest version of its manifest that has bytes."""
        listed = next((listed for key, listed in self.versions.items() if key.endswith(f"/{MANIFEST}")), [])
        return next((version for version in reversed(listed) if not version.marker), None)


async def find_segments(store: ObjectStore, origin: str) -> list[Found]:
    """Every segment folder of a log, in order. Raises NotFound where there is none."""
    place = f"{prefix_of(origin)}segments/"
    found: dict[str, Found] = {}
    cursor = None
    while True:
        page = await store.versions(place, cursor, PAGE)
        for version in page.versions:
            name = version.key.removeprefix(place).partition("/")[0]
            if NAME.fullmatch(name):
                found.setdefault(name, Found(name)).versions.setdefault(version.key, []).append(version)
        cursor = page.cursor
        if cursor is None:
            break
    if not found:
        raise NotFound(
            f"The archive holds no segments of the log {origin}. `memoryctl audit archive` writes them; ARCHIVE_BUCKET says where."
        )
    return [found[name] for name in sorted(found)]


async def read_manifest(store: ObjectStore, found: Found) -> Segment | None:
    """What its manifest says, unverified; None where there is none that can be read."""
    version = found.manifest
    if version is None:
        return None
    with contextlib.suppress(ValidationError, NotFound):
        return load_segment(await _bytes(store, version.key, version.version_id, MAX_MANIFEST + 1))
    return None


async def _bytes(store: ObjectStore, key: str, version: str, most: int) -> bytes:
    """At most so many of an object's bytes: what is longer than it should be differs by the first byte too many."""
    data = bytearray()
    async for block in store.read(key, version, 0, most):
        data += block
    return bytes(data)


async def download(store: ObjectStore, found: Found, into: Path, now: dt.datetime) -> Held:
    """Fetch a segment into a new folder, with what is wrong with its versions and locks. Raises DependencyUnavailable where its bytes
    are in a cold class, and what the store raises."""
    folder = into / found.name
    if folder.exists():
        raise FileExistsError(folder)
    private.make_folder(folder)
    manifest = found.manifest
    if manifest is None:
        return Held(folder, tuple(_shadows(found, {})))
    wanted = {manifest.key: (manifest.version_id, MAX_MANIFEST + 1)}
    problems: list[Finding] = []
    with contextlib.suppress(NotFound):
        data = await _bytes(store, manifest.key, manifest.version_id, MAX_MANIFEST + 1)
        with private.create(folder / MANIFEST) as file:
            file.write(data)
    segment = await read_manifest(store, found)
    if segment is not None:
        wanted |= {file.key: (file.version, file.bytes + 1) for file in segment.files.values()}
    until = dt.datetime.max.replace(tzinfo=dt.UTC) if segment is None else dt.datetime.fromisoformat(segment.lock.until)
    for key, (version, most) in wanted.items():
        name = key.rpartition("/")[2]
        if not key.startswith(manifest.key.removesuffix(MANIFEST)):
            continue  # it names an object elsewhere: then the file is missing here
        with contextlib.suppress(NotFound):
            state = await store.stat(key, version)
            problems += _lock(state, f"{found.name}/{name}", now, until if segment is not None else now)
            if not state.readable:
                raise DependencyUnavailable(
                    f"{key} is in the storage class {state.storage_class} and must be restored first: `memoryctl drill audit-restore "
                    "start` asks for it."
                )
            if name != MANIFEST:
                data = await _bytes(store, key, version, most)
                with private.create(folder / name) as file:
                    file.write(data)
    problems += _shadows(found, {key: version for key, (version, _) in wanted.items()})
    return Held(folder, tuple(problems))


def _shadows(found: Found, wanted: dict[str, str]) -> Iterator[Finding]:
    """Versions and delete markers over those that are ours."""
    for key, listed in found.versions.items():
        file, ours = f"{found.name}/{key.rpartition('/')[2]}", wanted.get(key)
        if ours is None:
            if any(version.marker for version in listed):
                yield Finding("ARCHIVE_VERSION_SHADOWED", "the object", "a delete marker", file=file)
            continue
        newer = next((version for version in listed if version.latest), listed[0])
        if newer.version_id != ours:
            what = "a delete marker" if newer.marker else f"version {newer.version_id}"
            yield Finding("ARCHIVE_VERSION_SHADOWED", f"version {ours} as the newest", f"{what} over it", file=file)


def _lock(state: ObjectState, file: str, now: dt.datetime, until: dt.datetime) -> Iterator[Finding]:
    expected = f"a lock in COMPLIANCE until {format_ts(until)}"
    if state.lock is None:
        yield Finding("WORM_POLICY_VIOLATION", expected, "none", file=file)
    elif state.lock.mode != "COMPLIANCE":
        yield Finding("WORM_POLICY_VIOLATION", expected, state.lock.mode, file=file)
    elif state.lock.until <= now:
        yield Finding("WORM_POLICY_VIOLATION", expected, f"one that ended {format_ts(state.lock.until)}", file=file)
    elif state.lock.until < until:
        yield Finding("WORM_POLICY_VIOLATION", expected, f"one until {format_ts(state.lock.until)}", file=file)


class Source:
    """Segments as the verifier wants them, fetched one at a time. To be read in a thread beside the event loop of the store."""

    def __init__(
        self, store: ObjectStore, found: Iterable[Found], scratch: Path, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._store, self._found, self._scratch, self._loop = store, list(found), scratch, loop

    def __iter__(self) -> Iterator[Held]:
        for found in self._found:
            fetched = asyncio.run_coroutine_threadsafe(
                download(self._store, found, self._scratch, dt.datetime.now(dt.UTC)), self._loop
            ).result()
            yield fetched
            # The verifier has read what it needs of a folder when it asks for the next one.
            shutil.rmtree(fetched.folder, ignore_errors=True)


async def archived_end(dsn: str, origin: str) -> int | None:
    """The last entry that this database has archived of its log; None where it is another log, or nothing is."""
    postgres = await open_postgres(dsn, size=1)
    try:
        (rows,) = await postgres.fetch(ALL_TENANTS, (_SQL["log"], {"origin": origin}))
    finally:
        await postgres.close()
    return rows[0]["archived"] - 1 if rows and rows[0]["archived"] else None


async def delegations_before(dsn: str, origin: str, first: int, last: int) -> set[tuple[int, int]]:
    """First and last entry of the archived segments before entry ``first`` in which keys were let to seal that sealed a batch of
    ``first`` to ``last``, as this database knows; none where it is not the log's."""
    postgres = await open_postgres(dsn, size=1)
    try:
        about = {"origin": origin, "first": first, "last": last}
        (rows,) = await postgres.fetch(ALL_TENANTS, (_SQL["segments_with_delegations"], about))
    finally:
        await postgres.close()
    return {(row["first_seq"], row["last_seq"]) for row in rows}


async def with_store(
    settings: Settings, folder: Path, origin: str, work: Callable[[Callable[[], Iterable[Held]]], T]
) -> T:
    """Do ``work`` in a thread, on the segments of the archive that the settings name. Raises NotFound where there are none."""
    store = await asyncio.to_thread(open_archive, settings, folder)
    try:
        return await in_thread(store, await find_segments(store, origin), work)
    finally:
        await store.close()


async def in_thread(store: ObjectStore, found: Iterable[Found], work: Callable[[Callable[[], Iterable[Held]]], T]) -> T:
    """The same on the segments given."""
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory(prefix="memory-archive-") as name:

        def segments() -> Iterable[Held]:
            return Source(store, found, Path(tempfile.mkdtemp(dir=name)), loop)

        return await asyncio.to_thread(work, segments)

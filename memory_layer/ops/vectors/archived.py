"""Snapshots in the archive: each file put once under its name, locked, and the manifest last; fetched by its first version."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from memory_layer import private
from memory_layer.errors import DependencyUnavailable, NotFound
from memory_layer.ops.archive.write import SKEW, put
from memory_layer.ops.manifests import MANIFEST, SIGNATURE
from memory_layer.stores.protocols import Lock, ObjectStore, ObjectVersion

PREFIX: Final = "vectors/"


async def keep(store: ObjectStore, folder: Path, days: int) -> dict[str, Any]:
    """Put a finished snapshot into the archive under its folder's name, locked for so many days; returns its facts.

    Put again it adds nothing. Raises Conflict where another snapshot has that name, ValidationError where it can be none.
    """
    until = (dt.datetime.now(dt.UTC) + dt.timedelta(days=days) + SKEW).replace(microsecond=0)
    size, version = 0, ""
    for path in await asyncio.to_thread(_files, folder):
        key = f"{PREFIX}{folder.name}/{path.relative_to(folder).as_posix()}"
        version = await put(store, key, path, await asyncio.to_thread(_sha256, path), Lock("COMPLIANCE", until))
        size += path.stat().st_size
    return {"key": f"{PREFIX}{folder.name}/{MANIFEST}", "version": version, "bytes": size, "lockedUntil": until}


async def fetch(store: ObjectStore, name: str, into: Path) -> Path:
    """Bring a snapshot back into the new folder ``into/<name>``; its manifest is still to be checked, as of any snapshot.

    Raises NotFound where there is none of that name, DependencyUnavailable where its bytes are in a cold class.
    """
    folder, place = into / name, f"{PREFIX}{name}/"
    found = [version async for version in _first_versions(store, place)]
    if not any(version.key == f"{place}{MANIFEST}" for version in found):
        raise NotFound(
            f"The archive holds no snapshot {name}. The runs `vectors-snapshot` and `vectors-nightly` name those it was given."
        )
    for version in found:
        state = await store.stat(version.key, version.version_id)
        if not state.readable:
            raise DependencyUnavailable(
                f"{version.key} is in the storage class {state.storage_class}: restore it there first, which takes hours."
            )
        path = folder / version.key.removeprefix(place)
        private.make_folder(path.parent)
        with private.create(path) as file:
            async for block in store.read(version.key, version.version_id):
                await asyncio.to_thread(file.write, block)
    return folder


async def _first_versions(store: ObjectStore, place: str) -> AsyncIterator[ObjectVersion]:
    """Of each name the version that was put first: a name is given once, and what stands over it is not ours."""
    cursor, last = None, None
    while True:
        page = await store.versions(place, cursor)
        for version in (version for version in page.versions if not version.marker):
            if last is not None and last.key != version.key:
                yield last
            last = version  # the newest come first
        cursor = page.cursor
        if cursor is None:
            break
    if last is not None:
        yield last


def _files(folder: Path) -> list[Path]:
    """The manifest last: where one is found, all that it names is there."""
    last = {SIGNATURE: 1, MANIFEST: 2}
    return sorted(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda path: (last.get(path.name, 0), path)
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

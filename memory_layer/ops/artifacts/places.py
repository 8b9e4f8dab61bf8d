"""What the verbs about artifacts work on, without the index and the embedder, which may be down."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from memory_layer.config import Settings
from memory_layer.errors import Forbidden
from memory_layer.model import Caller
from memory_layer.ops.operate import Run
from memory_layer.service import Memory, open_committer
from memory_layer.service.commit import Committer
from memory_layer.service.principals import known_caller
from memory_layer.sql import queries
from memory_layer.stores.objects import open_archive, open_eraser, open_objects
from memory_layer.stores.postgres import Postgres
from memory_layer.stores.protocols import ObjectStore

LOCK: Final = "artifacts"  # of scans: two at once would read everything twice
SWEEP_LOCK: Final = "artifacts-sweep"
MANIFEST_LOCK: Final = "artifacts-manifest"
SQL = queries("artifacts")


@dataclass(frozen=True, slots=True)
class Places:
    """``actor``: under whose name what is found goes into the log."""

    settings: Settings
    folder: Path
    postgres: Postgres
    committer: Committer
    objects: ObjectStore
    archive: ObjectStore
    actor: Caller


async def places_of(memory: Memory, folder: Path, request_id: str) -> Places:
    """The worker's own."""
    stores = memory.stores
    actor = await known_caller(stores.postgres, "worker", request_id)
    return Places(stores.settings, folder, stores.postgres, memory.committer, stores.objects, stores.archive, actor)


@contextlib.asynccontextmanager
async def open_places(run: Run) -> AsyncIterator[Places]:
    """An operator's. Raises what opening raises."""
    settings, folder = run.place.settings, run.place.folder
    async with contextlib.AsyncExitStack() as stack:
        log = await stack.enter_async_context(open_committer(settings, folder, run.place.database))
        postgres, committer = log.postgres, log.committer
        objects = open_objects(settings, folder)
        stack.push_async_callback(objects.close)
        archive = open_archive(settings, folder)
        stack.push_async_callback(archive.close)
        actor = await known_caller(postgres, "memoryctl", str(run.id))
        yield Places(settings, folder, postgres, committer, objects, archive, actor)


@contextlib.asynccontextmanager
async def eraser_of(places: Places) -> AsyncIterator[ObjectStore | None]:
    """What may delete objects; None where this process has no credentials for it."""
    try:
        eraser = open_eraser(places.settings, places.folder)
    except Forbidden:
        yield None
        return
    try:
        yield eraser
    finally:
        await eraser.close()

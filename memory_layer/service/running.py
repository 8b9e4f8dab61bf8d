"""The background tasks of a process of the service, from its start to its end: warm-up, the check of the log, the watch for a
rollback."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any, Final

from memory_layer.config import Settings
from memory_layer.errors import MemoryLayerError
from memory_layer.service.installation import Installation, open_installation
from memory_layer.service.log_watch import watch
from memory_layer.service.rollback_watch import watch_rollback
from memory_layer.service.warming import warm
from memory_layer.service.word_writer import WordWriter
from memory_layer.stores.service_role import check_role

# In the order in which they are opened: the archive before the guard, which would else look for one that it may do without.
PARTS: Final = (
    "log",
    "vectors",
    "joined",
    "objects",
    "archive",
    "anchors",
    "embedder",
    "next_embedder",
    "keys",
    "checkpoint_signer",
    "notifier",
    "committer",
)


@contextlib.asynccontextmanager
async def open_service(settings: Settings, folder: Path, *, pool: int = 8) -> AsyncIterator[Installation]:
    """Everything open, as API and worker need it. Raises PolicyRefused where the database's role may too much or too little."""
    async with open_installation(settings, folder, "postgres", pool=pool) as installation:
        await check_role(installation.postgres, prod=settings.service_env == "prod")
        await installation.need(*PARTS)
        postgres, committer = installation.postgres, installation.committer
        rollback_watch = asyncio.create_task(
            watch_rollback(installation.guard, postgres, committer), name="rollback guard"
        )
        installation.warming = asyncio.create_task(warm(installation), name="warm-up")
        installation.words = WordWriter(postgres)
        writing = asyncio.create_task(installation.words.run(), name="word writer")
        embedding = asyncio.create_task(_load_models(installation))
        log_watch = asyncio.create_task(watch(postgres, committer.guard), name="log watch")
        try:
            yield installation
        finally:
            rollback_watch.cancel()
            await committer.close()
            await _end([rollback_watch, installation.warming, log_watch, writing], embedding)


async def _load_models(installation: Installation) -> None:
    """Load what is loaded at first use, so that the first search does not pay for it. Failures show at that search."""
    settings = installation.settings
    local = (
        (installation.embedder, settings.embeddings_provider),
        (installation.next_embedder, settings.embeddings_next_provider),
    )
    for embedder, provider in local:
        if embedder is not None and provider == "local":
            with contextlib.suppress(MemoryLayerError):
                await embedder.embed(["warm up"], query=True)


async def _end(tasks: Collection[asyncio.Task[Any]], last: asyncio.Task[Any]) -> None:
    """Cancel the tasks until they are over, and wait for the last one. Once is not enough: a cancellation that meets a timeout or a
    driver's own clean-up may be taken for that, and a loop would go on."""
    pending = {*tasks, last}
    while pending:
        for task in tasks:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=1)

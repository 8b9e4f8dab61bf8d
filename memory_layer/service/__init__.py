"""Use cases: plain async functions ``(memory, caller, request) -> answer`` that every door calls the same way."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from memory_layer.config import Settings
from memory_layer.model import Namespace
from memory_layer.service.block_hashes import Blocks
from memory_layer.service.changes import Space
from memory_layer.service.commit import Committer
from memory_layer.service.transact import SIGNER_TIMEOUT
from memory_layer.service.waiting import Waits
from memory_layer.service.warming import warm
from memory_layer.stores import Stores, open_keys, open_stores, warm_up
from memory_layer.stores.log_writer import LogWriter
from memory_layer.stores.postgres import Postgres, open_postgres
from memory_layer.stores.protocols import Doorbell


@dataclass(frozen=True, slots=True)
class Memory:
    """Everything a use case needs: the opened stores and this process's one committer.

    ``seen``: namespaces by (tenant, name) as searches last saw them; each search that trusts one checks it before it answers.
    ``folder``: of keys and files. ``blocks``: hashes of the blocks of files, as they were when they were right.
    """

    stores: Stores
    committer: Committer
    seen: dict[tuple[str, str], Namespace] = field(default_factory=dict)
    waits: Waits = field(default_factory=Waits)
    warming: asyncio.Task[int] | None = None  # until it is done the first searches are slow
    folder: Path | None = None
    blocks: Blocks = field(default_factory=Blocks)

    @property
    def space(self) -> Space:
        """Where text without a vector goes."""
        embedder, provider = self.stores.embedder, self.stores.vectors.provider
        also = tuple((other.model, other.dimension) for other in self.stores.embedders if other is not embedder)
        if embedder is None:
            return Space(provider, None, None, also)
        return Space(provider, embedder.model, embedder.dimension, also)


@contextlib.asynccontextmanager
async def open_committer(
    settings: Settings, data: Path, dsn: str, doorbell: Doorbell | None = None
) -> AsyncIterator[tuple[Postgres, Committer]]:
    """The log alone, for an operator's command: it is to be written although the index or the file store may be down.

    ``doorbell``: rung for what is due after a commit, as by the service.
    """
    ring = None if doorbell is None or doorbell.patience is None else doorbell.ring
    keys = await open_keys(settings, data)
    try:
        postgres = await open_postgres(dsn, size=2)
        try:
            committer = Committer(LogWriter(dsn, SIGNER_TIMEOUT), keys, ring)
            try:
                yield postgres, committer
            finally:
                await committer.close()
        finally:
            await postgres.close()
    finally:
        await keys.close()


@contextlib.asynccontextmanager
async def open_memory(settings: Settings, data: Path, *, pool: int = 8) -> AsyncIterator[Memory]:
    """Open the stores and start the committer; on the way out what is waiting is committed first."""
    async with open_stores(settings, data, pool=pool) as stores:
        ring = None if stores.doorbell.patience is None else stores.doorbell.ring
        committer = Committer(LogWriter(stores.postgres.dsn, SIGNER_TIMEOUT), stores.keys, ring)
        warming = asyncio.create_task(warm(stores), name="warm-up")
        embedding = asyncio.create_task(warm_up(stores))
        try:
            yield Memory(stores, committer, warming=warming, folder=data)
        finally:
            await committer.close()
            warming.cancel()
            await asyncio.wait([warming, embedding])

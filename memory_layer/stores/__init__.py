"""The opened stores, as one record. ``open_stores`` opens in order and closes in reverse."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from memory_layer.audit.trust_root import TrustRoot
from memory_layer.config import Settings
from memory_layer.errors import MemoryLayerError, UsageError
from memory_layer.stores.breakers import Breakers
from memory_layer.stores.key_ring import KeyRing
from memory_layer.stores.logs import find_log, read_trust_root
from memory_layer.stores.postgres import Postgres, open_postgres
from memory_layer.stores.protocols import (
    AnchorPlace,
    Embedder,
    JoinedVectors,
    Notifier,
    ObjectStore,
    Signer,
    VectorStore,
)
from memory_layer.stores.service_role import check_role


@dataclass(frozen=True, slots=True)
class Stores:
    """What a use case reaches the world through.

    ``trust_root``: whose seals count, as the data folder had it at the start. ``log``: the number of the log that it names.
    """

    settings: Settings
    trust_root: TrustRoot
    log: int
    postgres: Postgres
    vectors: VectorStore
    objects: ObjectStore
    archive: ObjectStore  # of the audit log; manifests and snapshots too
    embedder: Embedder | None
    keys: KeyRing
    checkpoint_signer: Signer | None  # None: this process publishes no checkpoints
    notifier: Notifier
    anchors: tuple[AnchorPlace, ...] = ()  # where checkpoints are sent to
    breakers: Breakers = field(default_factory=Breakers)
    next_embedder: Embedder | None = None  # of the model that namespaces are moved to, or from
    joined: JoinedVectors | None = None  # ``vectors``, where it lies in the canonical database

    @property
    def embedders(self) -> list[Embedder]:
        """All that this process can embed by."""
        return [embedder for embedder in (self.embedder, self.next_embedder) if embedder is not None]

    def embedder_of(self, model: str | None, dimension: int | None) -> Embedder | None:
        """The one that makes vectors of this model and dimension."""
        return next((e for e in self.embedders if (e.model, e.dimension) == (model, dimension)), None)


async def warm_up(stores: Stores) -> None:
    """Load what is loaded at first use, so that the first search does not pay for it. Failures show at that search."""
    local = (
        (stores.embedder, stores.settings.embeddings_provider),
        (stores.next_embedder, stores.settings.embeddings_next_provider),
    )
    for embedder, provider in local:
        if embedder is not None and provider == "local":
            with contextlib.suppress(MemoryLayerError):
                await embedder.embed(["warm up"])


async def open_keys(settings: Settings, data: Path) -> KeyRing:
    """The keys that this process may seal the log with."""
    from memory_layer.stores.signers import open_signers

    return KeyRing(await open_signers(settings, data), lambda: open_signers(settings, data))


@contextlib.asynccontextmanager
async def open_stores(settings: Settings, data: Path, *, pool: int = 8) -> AsyncIterator[Stores]:
    """Open every store. ``data`` holds the trust root, the local key and the file store. Errors name what is missing and what to do."""
    from memory_layer.stores.anchors import open_anchors
    from memory_layer.stores.embedders import open_embedder
    from memory_layer.stores.notifiers import open_notifier
    from memory_layer.stores.objects import open_archive, open_objects
    from memory_layer.stores.signers import open_checkpoint_signer
    from memory_layer.stores.vectors import joined_vectors, open_vectors

    if settings.database_url is None:
        raise UsageError("DATABASE_URL is not set. Set it, or run `memoryctl up`, which brings its own Postgres.")
    trust_root = await asyncio.to_thread(read_trust_root, data)
    async with contextlib.AsyncExitStack() as stack:
        postgres = await open_postgres(settings.database_url, size=pool, origin=trust_root.origin)
        stack.push_async_callback(postgres.close)
        await check_role(postgres, prod=settings.service_env == "prod")
        log = await find_log(postgres, trust_root.origin)
        vectors = await open_vectors(settings, size=pool)
        stack.push_async_callback(vectors.close)
        objects = await asyncio.to_thread(open_objects, settings, data)
        stack.push_async_callback(objects.close)
        archive = await asyncio.to_thread(open_archive, settings, data)
        stack.push_async_callback(archive.close)
        anchors = await asyncio.to_thread(open_anchors, settings, data)
        for place in anchors:
            stack.push_async_callback(place.close)
        embedder = open_embedder(
            settings.embeddings_provider,
            settings.embeddings_model,
            settings.embeddings_dimensions,
            settings.embeddings_endpoint,
            settings.embeddings_api_key,
        )
        if embedder is not None:
            stack.push_async_callback(embedder.close)
        next_embedder = _open_next(settings)
        if next_embedder is not None:
            stack.push_async_callback(next_embedder.close)
        keys = await open_keys(settings, data)
        stack.push_async_callback(keys.close)
        checkpoint_signer = await asyncio.to_thread(open_checkpoint_signer, data)
        notifier = await open_notifier(settings)
        stack.push_async_callback(notifier.close)
        yield Stores(
            settings,
            trust_root,
            log,
            postgres,
            vectors,
            objects,
            archive,
            embedder,
            keys,
            checkpoint_signer,
            notifier,
            anchors,
            next_embedder=next_embedder,
            joined=joined_vectors(vectors, settings),
        )


@contextlib.asynccontextmanager
async def open_outside(
    settings: Settings, data: Path
) -> AsyncIterator[tuple[ObjectStore | MemoryLayerError | None, tuple[AnchorPlace, ...]]]:
    """Where checkpoints lie outside the database: the archive (None: there is none yet; an error: it cannot be opened), and the places
    that they are sent to. For an operator's command, which makes no folder for them."""
    from memory_layer.stores.anchors import open_anchors
    from memory_layer.stores.objects import archive_folder, open_archive

    async with contextlib.AsyncExitStack() as stack:
        archive: ObjectStore | MemoryLayerError | None = None
        folder = archive_folder(settings, data)
        if folder is None or folder.is_dir():
            try:
                archive = await asyncio.to_thread(open_archive, settings, data)
                stack.push_async_callback(archive.close)
            except MemoryLayerError as error:
                archive = error
        anchors = await asyncio.to_thread(open_anchors, settings, data)
        for place in anchors:
            stack.push_async_callback(place.close)
        yield archive, anchors


def _open_next(settings: Settings) -> Embedder | None:
    """The embedder that the EMBEDDINGS_NEXT_ settings name. Raises UsageError, which names them."""
    from memory_layer.stores.embedders import open_embedder

    try:
        return open_embedder(
            settings.embeddings_next_provider,
            settings.embeddings_next_model,
            settings.embeddings_next_dimensions,
            settings.embeddings_next_endpoint,
            settings.embeddings_next_api_key,
        )
    except UsageError as error:
        raise UsageError(error.message.replace("EMBEDDINGS_", "EMBEDDINGS_NEXT_")) from None

"""Pinecone's part of `memoryctl provision vectors`: the index, made and looked at through the control plane."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Final
from urllib.parse import urlsplit

from memory_layer.config import Settings, reread
from memory_layer.errors import VectorStoreUnavailable
from memory_layer.ops.provision.outcome import Outcome, drift, judged, missing, note, right
from memory_layer.ops.report import Finding
from memory_layer.stores.vectors.pinecone_control import Control, Index

READY_SECONDS: Final = 300.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0  # seconds between two looks at an index that is being made


def index_name(settings: Settings) -> str:
    return f"kernel-memory-{settings.service_env}"


def tags(settings: Settings) -> dict[str, str]:
    return {"application": "memory-layer", "service-env": settings.service_env}


async def plan(settings: Settings) -> Outcome:
    """How the index stands. Raises UsageError, VectorStoreUnavailable."""
    control = open_control(settings)
    try:
        return _judge(settings, await control.describe(index_name(settings)))
    finally:
        await control.close()


async def apply(settings: Settings, say: Callable[[str], None], *, ready_within: float = READY_SECONDS) -> Outcome:
    """Make the index where there is none, and wait until it is ready; protect and tag one that is not. Nothing is deleted.

    Raises UsageError, VectorStoreUnavailable.
    """
    control, name = open_control(settings), index_name(settings)
    made: list[str] = []
    try:
        index = await control.describe(name)
        if index is None:
            dimension, cloud, region = (
                settings.embeddings_dimensions,
                settings.vector_db_cloud,
                settings.vector_db_region,
            )
            # Another run may make it at the same moment, and so may a try of ours whose answer was lost.
            await control.create(name, dimension, cloud, region, tags(settings))
            made.append(
                f"Pinecone index {name}: {dimension} dimensions, cosine, {cloud} {region}, protected from deletion"
            )
            index = await control.describe(name)
        if index is not None and _unready(index):
            say(f"waiting until {name} is ready")
            index = await _ready(control, name, ready_within)
        if index is not None and (lacking := _lacking(settings, index)):
            await control.protect(name, tags(settings))
            made.append(f"{' and '.join(lacking)} of {name}")
            index = await control.describe(name)
    finally:
        await control.close()
    outcome = _judge(settings, index)
    outcome.made = made
    return outcome


def open_control(settings: Settings) -> Control:
    """Raises UsageError."""
    return Control(
        settings.vector_db_control_endpoint, lambda: reread("VECTOR_DB_API_KEY") or settings.vector_db_api_key
    )


async def _ready(control: Control, name: str, within: float) -> Index | None:
    give_up, pause = time.monotonic() + within, _FIRST_PAUSE
    while True:
        index = await control.describe(name)
        if index is None or not _unready(index):
            return index
        if time.monotonic() > give_up:
            raise VectorStoreUnavailable(
                f"Pinecone has not made {name} ready within {within:g} s ({index.status.state}). Run this again: it goes on waiting."
            )
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE)


def _unready(index: Index) -> bool:
    return not index.status.ready and index.status.state == "Initializing"


def _lacking(settings: Settings, index: Index) -> list[str]:
    """What apply may add to an index that is there without changing what it is."""
    lacking = [] if index.deletion_protection == "enabled" else ["deletion protection"]
    if any((index.tags or {}).get(name) != value for name, value in tags(settings).items()):
        lacking.append("tags")
    return lacking


def _judge(settings: Settings, index: Index | None) -> Outcome:
    name = index_name(settings)
    if index is None:
        return Outcome(
            [
                missing(
                    "vectors.pinecone.index",
                    f"There is no index {name} ({settings.embeddings_dimensions} dimensions, cosine, {settings.vector_db_cloud} "
                    f"{settings.vector_db_region}).",
                )
            ]
        )
    return Outcome(list(_looked(settings, index)), settings={"VECTOR_DB_ENDPOINT": index.host})


def _looked(settings: Settings, index: Index) -> Iterator[Finding]:
    name = index.name
    another = "It cannot be changed: make another index under another SERVICE_ENV or project, or delete this one yourself if it is empty."
    yield right("vectors.pinecone.index", f"{name} is at {index.host}.")
    yield judged(
        "vectors.pinecone.dimension",
        index.dimension == settings.embeddings_dimensions and index.vector_type == "dense",
        f"{name} is {index.vector_type}, of {index.dimension} dimensions; EMBEDDINGS_DIMENSIONS is {settings.embeddings_dimensions}.",
        another,
    )
    yield judged("vectors.pinecone.metric", index.metric == "cosine", f"{name} compares by {index.metric}.", another)
    yield judged(
        "vectors.pinecone.state",
        index.status.ready,
        f"{name} is {index.status.state}.",
        "Run apply, which waits for it."
        if index.status.state == "Initializing"
        else "Look at it in Pinecone's console: it answers no searches.",
    )
    yield _place(settings, index)
    lacking = _lacking(settings, index)
    yield (
        missing("vectors.pinecone.protection", f"{name} lacks {' and '.join(lacking)}.", "apply adds them.")
        if lacking
        else right("vectors.pinecone.protection", f"{name} is protected from deletion, and has its tags.")
    )
    yield _replicas(index)
    yield _endpoint(settings, index)


def _place(settings: Settings, index: Index) -> Finding:
    found = index.spec.serverless
    wanted = f"{settings.vector_db_cloud} {settings.vector_db_region}"
    if found is None:
        return drift("vectors.pinecone.place", f"{index.name} is not serverless.", "The adapter lists ids, which only serverless indexes can: make another.")  # fmt: skip
    return judged(
        "vectors.pinecone.place",
        f"{found.cloud} {found.region}" == wanted,
        f"{index.name} is in {found.cloud} {found.region}; the settings say {wanted}.",
        "An index cannot be moved: correct VECTOR_DB_CLOUD and VECTOR_DB_REGION, or make another.",
    )


def _replicas(index: Index) -> Finding:
    check, found = "vectors.pinecone.replicas", index.spec.serverless
    if found is None or found.read_capacity.mode != "Dedicated":
        return note(
            check,
            "An on-demand index has no replicas that could be set: Pinecone keeps its copies. Only dedicated read nodes have, and those "
            "serve a single namespace, where the adapter has one for each tenant's.",
        )
    manual = found.read_capacity.dedicated.manual if found.read_capacity.dedicated else None
    count = manual.replicas if manual else None
    return drift(
        check,
        f"{index.name} has dedicated read nodes ({count} replicas), which serve a single namespace; the adapter has one for each tenant's.",
        "Set its read capacity to OnDemand.",
        replicas=count,
    )


def _endpoint(settings: Settings, index: Index) -> Finding:
    check, hint = "vectors.pinecone.endpoint", f"VECTOR_DB_ENDPOINT={index.host}"
    if settings.vector_db_endpoint is None:
        return drift(check, "VECTOR_DB_ENDPOINT is not set, and the service needs it.", f"Set {hint}", "warning")
    # The setting is a secret, for other providers put a password there: it is compared and not shown.
    same = _host(settings.vector_db_endpoint) == _host(index.host)
    return judged(
        check, same, f"VECTOR_DB_ENDPOINT is {'' if same else 'not '}the host of {index.name}.", f"Set {hint}"
    )


def _host(text: str) -> str:
    text = text.strip()
    return urlsplit(text if "://" in text else f"https://{text}").netloc.lower()

"""Pinecone's part of `memoryctl provision vectors`: the index, made and looked at through the control plane."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

from memory_layer.config import Settings, reread
from memory_layer.errors import VectorStoreUnavailable
from memory_layer.ops.checks import Check, Made, Survey, known, present
from memory_layer.ops.provision.guide import INDEX, REPLICAS
from memory_layer.stores.vectors.pinecone_control import Control, Index

READY_SECONDS: Final = 300.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0  # seconds between two looks at an index that is being made


def index_name(settings: Settings) -> str:
    return f"kernel-memory-{settings.service_env}"


def tags(settings: Settings) -> dict[str, str]:
    return {"application": "memory-layer", "service-env": settings.service_env}


async def examine(
    survey: Survey, settings: Settings, say: Callable[[str], None], *, ready_within: float = READY_SECONDS
) -> None:
    """The index: where it is made, it is waited for until it is ready; one that is not protected and tagged is. Nothing is deleted.

    Raises UsageError, VectorStoreUnavailable.
    """
    control = open_control(settings)
    try:
        await _examine(survey, settings, control, say, ready_within)
    finally:
        await control.close()


async def _examine(
    survey: Survey, settings: Settings, control: Control, say: Callable[[str], None], ready_within: float
) -> None:
    name = index_name(settings)
    dimension, cloud, region = settings.embeddings_dimensions, settings.vector_db_cloud, settings.vector_db_region

    async def look() -> Index | None:
        index = await control.describe(name)
        if survey.make and index is not None and _unready(index):
            say(f"waiting until {name} is ready")
            index = await _ready(control, name, ready_within)
        return index

    async def make(_: Any) -> Made[Index | None]:
        # Another run may make it at the same moment, and so may a try of ours whose answer was lost.
        await control.create(name, dimension, cloud, region, tags(settings))
        line = f"Pinecone index {name}: {dimension} dimensions, cosine, {cloud} {region}, protected from deletion"
        return Made(await look(), (line,))

    async def protect(lacking: list[str]) -> Made[list[str]]:
        await control.protect(name, tags(settings))
        after = await control.describe(name)
        left = [] if after is None else _unprotected(settings, after)
        return Made(left, (f"{' and '.join(lacking)} of {name}",))

    index = await survey.check(
        Check[Index | None](
            id="vectors.pinecone.index",
            source=INDEX,
            look=look,
            fits=present,
            says=lambda index: (
                f"{name} is at {index.host}."
                if index
                else f"There is no index {name} ({dimension} dimensions, cosine, {cloud} {region})."
            ),
            make=make,
            hint="memoryctl provision apply vectors makes it.",
        )
    )
    if index is None:
        return
    survey.settings["VECTOR_DB_ENDPOINT"] = index.host
    for check in _what_it_is(settings, index):
        await survey.check(check)
    await survey.check(
        Check(
            id="vectors.pinecone.protection",
            look=lambda: _unprotected(settings, index),
            fits=lambda lacking: not lacking,
            says=lambda lacking: (
                f"{name} lacks {' and '.join(lacking)}."
                if lacking
                else f"{name} is protected from deletion, and has its tags."
            ),
            make=protect,
            hint="apply adds them.",
        )
    )
    if (replicas := _replicas(index)) is not None:
        await survey.check(replicas)
    else:
        survey.note(
            "vectors.pinecone.replicas",
            "An on-demand index has no replicas that could be set: Pinecone keeps its copies. Only dedicated read nodes have, and those "
            "serve a single namespace, where the adapter has one for each tenant's.",
        )
    await survey.check(_endpoint(settings, index))


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


def _unprotected(settings: Settings, index: Index) -> list[str]:
    """What may be added to an index that is there without changing what it is."""
    lacking = [] if index.deletion_protection == "enabled" else ["deletion protection"]
    if any((index.tags or {}).get(name) != value for name, value in tags(settings).items()):
        lacking.append("tags")
    return lacking


def _what_it_is(settings: Settings, index: Index) -> list[Check[bool]]:
    name, found, dimension = index.name, index.spec.serverless, settings.embeddings_dimensions
    another = "It cannot be changed: make another index under another SERVICE_ENV or project, or delete this one yourself if it is empty."
    right_size = index.dimension == dimension and index.vector_type == "dense"
    size = f"{name} is {index.vector_type}, of {index.dimension} dimensions; EMBEDDINGS_DIMENSIONS is {dimension}."
    state, wait = index.status.state, "Run apply, which waits for it."
    look = "Look at it in Pinecone's console: it answers no searches."
    wanted = f"{settings.vector_db_cloud} {settings.vector_db_region}"
    place = None if found is None else f"{found.cloud} {found.region}"
    where = f"{name} is in {place}; the settings say {wanted}." if place else f"{name} is not serverless."
    move = "An index cannot be moved: correct VECTOR_DB_CLOUD and VECTOR_DB_REGION, or make another."
    no_pods = "The adapter lists ids, which only serverless indexes can: make another."
    return [
        known("vectors.pinecone.dimension", right_size, size, another, source=INDEX),
        known(
            "vectors.pinecone.metric",
            index.metric == "cosine",
            f"{name} compares by {index.metric}.",
            another,
            source=INDEX,
        ),
        known(
            "vectors.pinecone.state",
            index.status.ready,
            f"{name} is {state}.",
            wait if state == "Initializing" else look,
        ),
        known("vectors.pinecone.place", place == wanted, where, move if place else no_pods),
    ]


def _replicas(index: Index) -> Check[bool] | None:
    """None where there are none that could be set."""
    found = index.spec.serverless
    if found is None or found.read_capacity.mode != "Dedicated":
        return None
    manual = found.read_capacity.dedicated.manual if found.read_capacity.dedicated else None
    count = manual.replicas if manual else None
    return known(
        "vectors.pinecone.replicas",
        False,
        f"{index.name} has dedicated read nodes ({count} replicas), which serve a single namespace; the adapter has one for each tenant's.",
        "Set its read capacity to OnDemand.",
        source=REPLICAS,
        evidence={"replicas": count},
    )


def _endpoint(settings: Settings, index: Index) -> Check[bool]:
    check, hint = "vectors.pinecone.endpoint", f"Set VECTOR_DB_ENDPOINT={index.host}"
    if settings.vector_db_endpoint is None:
        return known(check, False, "VECTOR_DB_ENDPOINT is not set, and the service needs it.", hint, level="warning")
    # The setting is a secret, for other providers put a password there: it is compared and not shown.
    same = _host(settings.vector_db_endpoint) == _host(index.host)
    return known(check, same, f"VECTOR_DB_ENDPOINT is {'' if same else 'not '}the host of {index.name}.", hint)


def _host(text: str) -> str:
    text = text.strip()
    return urlsplit(text if "://" in text else f"https://{text}").netloc.lower()

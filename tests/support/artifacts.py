"""Artifacts without a door: uploads, and what operators' verbs work on."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from memory_layer.service import artifacts, registration
from memory_layer.service.artifacts import Upload
from memory_layer.service.installation import Installation
from memory_layer.service.registration import Registration
from memory_layer.stores.objects import open_eraser
from memory_layer.stores.protocols import ObjectStore
from tests.support.service import caller

__all__ = ["chunks", "eraser_of", "key_of", "register", "upload", "with_objects"]


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def upload(
    memory: Installation,
    content: bytes,
    tenant: str = "ann",
    node: uuid.UUID | None = None,
    retain_until: dt.datetime | None = None,
    name: str | None = None,
) -> uuid.UUID:
    """Upload and commit; the artifact's id."""
    new = Upload(node, name, "text/plain", None, {"for": "a test"}, retain_until)
    outcome = await artifacts.upload(memory, caller(tenant), new, chunks(content))
    return uuid.UUID(outcome.answer["artifactId"])


async def register(memory: Installation, key: str, content: bytes, tenant: str = "ann", **facts: Any) -> uuid.UUID:
    """Put bytes there as somebody else would, and register them; the artifact's id."""
    stored = await memory.objects.put_named(key, chunks(content))
    url = f"{memory.objects.url_prefix}{stored.key}"
    new = Registration(url, hashlib.sha256(content).hexdigest(), len(content), **facts)
    outcome = await registration.register(memory, caller(tenant), new)
    return uuid.UUID(outcome.answer["artifactId"])


def key_of(content: bytes, tenant: str = "ann") -> str:
    """Where an upload lies."""
    return f"{tenant}/{hashlib.sha256(content).hexdigest()}"


@contextlib.asynccontextmanager
async def eraser_of(memory: Installation, folder: Path) -> AsyncIterator[ObjectStore]:
    """A store of the same objects that may delete."""
    eraser = open_eraser(memory.settings, folder)
    try:
        yield eraser
    finally:
        await eraser.close()


def with_objects(memory: Installation, objects: Any) -> Installation:
    """The same with another object store."""
    return memory.with_parts(objects=objects)

"""Pinecone's control plane: describe an index, make it, protect it. Paths and shapes: OpenAPI ``db_control`` of version 2025-10."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from memory_layer.errors import UsageError, VectorStoreUnavailable
from memory_layer.stores.vectors.pinecone_http import Refusal, Wire

_SECONDS: Final = 30.0  # for one request with its tries


class Replicas(msgspec.Struct):
    replicas: int | None = None


class Dedicated(msgspec.Struct):
    manual: Replicas | None = None


class ReadCapacity(msgspec.Struct):
    mode: str = "OnDemand"
    dedicated: Dedicated | None = None


class Serverless(msgspec.Struct):
    cloud: str
    region: str
    read_capacity: ReadCapacity = msgspec.field(default_factory=ReadCapacity)


class Spec(msgspec.Struct):
    """``serverless`` is None for an index on pods or in an account of one's own."""

    serverless: Serverless | None = None


class State(msgspec.Struct):
    ready: bool
    state: str


class Index(msgspec.Struct):
    name: str
    metric: str
    host: str
    spec: Spec
    status: State
    vector_type: str = "dense"
    dimension: int | None = None
    deletion_protection: str = "disabled"
    tags: dict[str, str] | None = None


class Control:
    """The indexes of one project."""

    def __init__(self, endpoint: str, read_key: Callable[[], str | None], *, call_timeout: float = 15.0) -> None:
        """Raises UsageError."""
        self._wire = Wire(endpoint, read_key, call_timeout=call_timeout, setting="VECTOR_DB_CONTROL_ENDPOINT")

    async def close(self) -> None:
        await self._wire.close()

    async def describe(self, name: str) -> Index | None:
        """None where there is no index of this name. Raises VectorStoreUnavailable."""
        try:
            return _index((await self._wire.get(f"/indexes/{name}", {}, deadline=_SECONDS)).body)
        except Refusal as refused:
            if refused.answered == 404:
                return None
            raise

    async def create(self, name: str, dimension: int, cloud: str, region: str, tags: Mapping[str, str]) -> bool:
        """Make a protected index of metric cosine; False when there is one of this name by now. It takes a while to be ready.

        Raises UsageError for a cloud or region that Pinecone does not have, VectorStoreUnavailable.
        """
        wanted = {
            "name": name,
            "dimension": dimension,
            "metric": "cosine",
            "vector_type": "dense",
            "deletion_protection": "enabled",
            "tags": dict(tags),
            "spec": {"serverless": {"cloud": cloud, "region": region}},
        }
        try:
            await self._wire.post("/indexes", msgspec.json.encode(wanted), deadline=_SECONDS)
        except Refusal as refused:
            if refused.answered == 409:
                return False
            if refused.answered in (400, 404, 422):
                raise UsageError(
                    f"Pinecone refuses an index {name} of {dimension} dimensions in {cloud}, {region} ({refused.answered}): check "
                    "VECTOR_DB_CLOUD, VECTOR_DB_REGION and SERVICE_ENV; not all plans have all regions."
                ) from None
            raise
        return True

    async def protect(self, name: str, tags: Mapping[str, str]) -> None:
        """Put deletion protection on, and add tags; others stay. Raises VectorStoreUnavailable."""
        wanted = {"deletion_protection": "enabled", "tags": dict(tags)}
        await self._wire.patch(f"/indexes/{name}", msgspec.json.encode(wanted), deadline=_SECONDS)


def _index(body: bytes) -> Index:
    try:
        return msgspec.json.decode(body, type=Index)
    except msgspec.MsgspecError:
        raise VectorStoreUnavailable(
            "What answers at VECTOR_DB_CONTROL_ENDPOINT is not Pinecone's control plane."
        ) from None

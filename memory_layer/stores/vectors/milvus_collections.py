"""Collections of Milvus: made, checked, loaded, written, read and deleted from, as the adapter needs them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Final

from memory_layer.errors import DependencyUnavailable
from memory_layer.stores.vectors.milvus_records import (
    DEEPEST,
    MAX_BYTES,
    PARTITIONS,
    REMOVED,
    VECTOR,
    CollectionSpec,
    collection_name,
    collection_spec,
    dimension_of,
    keys_expression,
)
from memory_layer.stores.vectors.milvus_wire import TRIES, CollectionMissing, NotLoaded, Wire, rpc_code

_WRITE_SECONDS: Final = 30.0
_BUILD_SECONDS: Final = 300.0
_GROWING: Final = 2_000  # rows that are worth a segment of their own


class Collections:
    """Those of one environment, over one connection."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._ready: set[str] = set()  # found or made, and as they should be
        self._making = asyncio.Lock()

    def name(self, dimension: int | None) -> str:
        return collection_name(self._wire.environment, dimension)

    async def send(self, collection: str, rows: list[dict[str, Any]]) -> None:
        await self.loaded(collection, lambda client: client.upsert(collection, rows, retry_times=TRIES), _WRITE_SECONDS)

    async def delete(self, collection: str, where: str) -> None:
        await self.loaded(
            collection, lambda client: client.delete(collection, filter=where, retry_times=TRIES), _WRITE_SECONDS
        )

    async def page(
        self, collection: str, where: str, fields: list[str], limit: int, consistency: str
    ) -> list[dict[str, Any]]:
        """The first rows by key, in that order, which within a space is the order of the nodes."""
        rows = await self.query(collection, where, fields, consistency, limit=max(1, min(limit, DEEPEST)))
        return sorted(rows, key=lambda row: str(row["node"]))

    async def by_key(
        self,
        collection: str,
        keys: Sequence[str],
        fields: list[str],
        *,
        dimension: int = 0,
        consistency: str = "Bounded",
    ) -> list[dict[str, Any]]:
        size = rows_of(dimension) if VECTOR in fields else DEEPEST
        rows: list[dict[str, Any]] = []
        with contextlib.suppress(CollectionMissing):
            for start in range(0, len(keys), size):
                where = keys_expression(keys[start : start + size])
                rows += await self.query(collection, where, fields, consistency)
        return rows

    async def count(self, collection: str, where: str, consistency: str) -> int:
        try:
            ((row),) = await self.query(collection, where, ["count(*)"], consistency)
        except CollectionMissing:
            return 0
        return int(row["count(*)"])

    async def query(
        self, collection: str, where: str, fields: list[str], consistency: str, **more: Any
    ) -> list[dict[str, Any]]:
        return list(
            await self.loaded(
                collection,
                lambda client: client.query(
                    collection,
                    filter=where,
                    output_fields=fields,
                    consistency_level=consistency,
                    retry_times=TRIES,
                    **more,
                ),
            )
        )

    @property
    def marks(self) -> str:
        return self.name(None)

    async def dimensions(self) -> dict[str, int]:
        """The collections of vectors with their dimensions, asked each time: another process may make one."""
        names = await our_collections(self._wire)
        dimensions = {name: dimension_of(self._wire.environment, name) for name in names}
        return {name: dimension for name, dimension in dimensions.items() if dimension is not None}

    async def ensure(self, dimension: int | None) -> None:
        """The collection is there, is ours, and is loaded."""
        name = self.name(dimension)
        if name in self._ready:
            return
        async with self._making:
            if name in self._ready:
                return
            await self._wire.connect()  # which tells the version
            spec = collection_spec(self._wire.environment, dimension, version=self._wire.version)
            try:
                whole = await check_collection(self._wire, spec)
            except CollectionMissing:
                whole = False
            if not whole:
                await create_collection(self._wire, spec)
                await check_collection(self._wire, spec)
            await self.load(name)
            self._ready.add(name)

    async def reload(self, collection: str) -> None:
        """Bring one of ours into memory, with its index."""
        self._ready.discard(collection)
        await self.ensure(dimension_of(self._wire.environment, collection))

    async def load(self, collection: str) -> None:
        """Into memory, unless it is there, with however many replicas."""
        state = await self._wire.call(lambda client: client.get_load_state(collection, retry_times=TRIES))
        if getattr(state.get("state"), "name", "") != "Loaded":
            await self._wire.call(lambda client: client.load_collection(collection), seconds=_BUILD_SECONDS)

    async def loaded(self, collection: str, what: Callable[[Any], Any], seconds: float | None = None) -> Any:
        """A call that needs the collection in memory, which an operator may have released."""
        try:
            return await self._wire.call(what, seconds=seconds)
        except NotLoaded:
            await self.reload(collection)
            return await self._wire.call(what, seconds=seconds)
        except CollectionMissing:
            self._ready.discard(collection)
            raise

    async def seal(self, collection: str) -> None:
        """Seal what is growing, if it is much: a segment below 1,024 rows gets no index anyway."""
        rows = await self.count(collection, "rank >= 0", "Bounded")
        index = await self._wire.call(lambda client: client.describe_index(collection, VECTOR, retry_times=TRIES))
        if rows - int((index or {}).get("total_rows") or 0) >= _GROWING:
            await self._wire.call(lambda client: client.flush(collection), seconds=_BUILD_SECONDS)


async def create_collection(wire: Wire, spec: CollectionSpec) -> None:
    """Make the collection with its index, unless it is there, and load it. Raises VectorStoreUnavailable."""
    from pymilvus import CollectionSchema, DataType, FieldSchema
    from pymilvus.milvus_client.index import IndexParams

    fields = [
        FieldSchema("pk", DataType.VARCHAR, is_primary=True, max_length=64),
        FieldSchema("space", DataType.VARCHAR, max_length=512, is_partition_key=spec.partition_key),
        FieldSchema("node", DataType.VARCHAR, max_length=36),
        FieldSchema("rank", DataType.INT64),
    ]
    if spec.name.endswith(f"_{REMOVED}"):
        fields.append(FieldSchema("removed_at", DataType.INT64))
    else:
        fields.append(FieldSchema("facts", DataType.JSON))
    fields.append(FieldSchema(VECTOR, DataType.FLOAT_VECTOR, dim=spec.dimension))
    schema = CollectionSchema(fields, enable_dynamic_field=False)
    params = IndexParams()
    params.add_index(
        VECTOR, index_type=spec.index, index_name=VECTOR, metric_type=spec.metric, params=dict(spec.index_params)
    )

    async def make(client: Any) -> None:
        if not await client.has_collection(spec.name, retry_times=TRIES):
            more = {"num_partitions": PARTITIONS} if spec.partition_key else {}
            await client.create_collection(
                spec.name, schema=schema, consistency_level="Bounded", retry_times=TRIES, **more
            )
        try:
            await client.create_index(spec.name, params)
        except Exception as error:  # Milvus Lite makes the index but cannot be asked how far it is
            if rpc_code(error) != "UNIMPLEMENTED":
                raise
        await client.load_collection(spec.name, **({"replica_number": spec.replicas} if spec.replicas > 1 else {}))

    await wire.call(make, seconds=max(60.0, wire.call_timeout))


async def check_collection(wire: Wire, spec: CollectionSpec) -> bool:
    """Whether it has its index too. Raise DependencyUnavailable unless what bears the name is what we would have made."""

    async def look(client: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return (
            await client.describe_collection(spec.name, retry_times=TRIES),
            await client.describe_index(spec.name, VECTOR, retry_times=TRIES) or {},
        )

    description, index = await wire.call(look)
    fields = {field["name"]: field for field in description["fields"]}
    ours = {"pk", "space", "node", "rank", VECTOR, "removed_at" if spec.name.endswith(f"_{REMOVED}") else "facts"}
    dimension = int(fields.get(VECTOR, {}).get("params", {}).get("dim", 0))
    metric = str(index.get("metric_type") or spec.metric)
    if set(fields) != ours or dimension != spec.dimension or metric != spec.metric:
        raise DependencyUnavailable(
            f"Milvus has a collection {spec.name} that is not the Memory Layer's (fields {', '.join(sorted(fields))}; dimension "
            f"{dimension}; metric {metric}). Rename or drop it, or use another database: VECTOR_DB_ENDPOINT=http://host:19530/name."
        )
    return bool(index)


async def our_collections(wire: Wire) -> list[str]:
    """Names of all collections of this environment, marks included."""
    names = await wire.call(lambda client: client.list_collections(retry_times=TRIES))
    prefix = collection_name(wire.environment, 0)[:-1]
    return sorted(name for name in names if name.startswith(prefix))


def rows_of(dimension: int) -> int:
    """How many rows with their vectors fit into one answer."""
    return max(1, min(DEEPEST, MAX_BYTES // (4 * dimension + 200)))

"""Break a vector index behind the product's back: through SQL for pgvector, in the emulator's memory for Pinecone, through
Milvus's own client for Milvus."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
import psycopg

from memory_layer.stores.vectors.milvus_records import collection_name, key_of, space_name
from memory_layer.stores.vectors.pinecone import encode_namespace
from memory_layer.stores.vectors.pinecone_records import live_metadata
from tests.support.pinecone_server import PineconeServer, Record


class Breaker(Protocol):
    """``put`` writes whatever it is given, whatever stood there before."""

    def lose(self, tenant: str, namespace: str, nodes: Sequence[uuid.UUID]) -> None: ...

    def put(self, tenant: str, namespace: str, node: uuid.UUID, version: int, vector: Sequence[float]) -> None: ...


class BrokenTable:
    """``dsn``: of a role that may do anything."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn

    def _run(self, query: str, *params: Any) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(query, params)

    def lose(self, tenant: str, namespace: str, nodes: Sequence[uuid.UUID]) -> None:
        self._run(
            "DELETE FROM vector_entries WHERE tenant = %s AND namespace = %s AND node_id = ANY (%s)",
            tenant,
            namespace,
            list(nodes),
        )

    def put(self, tenant: str, namespace: str, node: uuid.UUID, version: int, vector: Sequence[float]) -> None:
        self.lose(tenant, namespace, [node])
        self._run(
            "INSERT INTO vector_entries (tenant, namespace, node_id, version, embedding, fields)"
            " VALUES (%s, %s, %s, %s, %s::real[]::vector, '{}')",
            tenant,
            namespace,
            node,
            version,
            [float(number) for number in vector],
        )


class BrokenPinecone:
    def __init__(self, server: PineconeServer) -> None:
        self.server = server

    def _records(self, tenant: str, namespace: str) -> dict[str, Record]:
        space = self.server.settle(encode_namespace(tenant, namespace))
        space.matrix = None
        return space.records

    def lose(self, tenant: str, namespace: str, nodes: Sequence[uuid.UUID]) -> None:
        with self.server.lock:
            for node in nodes:
                del self._records(tenant, namespace)[str(node)]

    def put(self, tenant: str, namespace: str, node: uuid.UUID, version: int, vector: Sequence[float]) -> None:
        metadata = msgspec.json.decode(live_metadata(version, {}))
        with self.server.lock:
            self._records(tenant, namespace)[str(node)] = Record(np.array(vector, np.float32), metadata)


class BrokenMilvus:
    """Over a client of its own. What it wrote shows to whoever asks afterwards, in whatever consistency."""

    def __init__(self, url: str, environment: str, dimension: int) -> None:
        from pymilvus import MilvusClient

        self._client = MilvusClient(url)
        self._vectors, self._marks = collection_name(environment, dimension), collection_name(environment, None)

    def lose(self, tenant: str, namespace: str, nodes: Sequence[uuid.UUID]) -> None:
        self._delete(self._vectors, [key_of(space_name(tenant, namespace), node) for node in nodes])
        self._wait()

    def put(self, tenant: str, namespace: str, node: uuid.UUID, version: int, vector: Sequence[float]) -> None:
        space = space_name(tenant, namespace)
        self._delete(self._marks, [key_of(space, node)])  # of a removal that says otherwise
        facts = {name: value for name, value in msgspec.json.decode(live_metadata(version, {})).items()
                 if name not in ("_live", "_version")}  # fmt: skip
        row = {"pk": key_of(space, node), "space": space, "node": str(node), "rank": 2 * version, "facts": facts,
               "embedding": [float(number) for number in vector]}  # fmt: skip
        self._client.upsert(self._vectors, [row])
        self._wait()

    def _delete(self, collection: str, keys: Sequence[str]) -> None:
        if self._client.has_collection(collection):
            self._client.delete(collection, filter=f"pk in {json.dumps(list(keys))}")

    def _wait(self) -> None:
        for collection in (self._vectors, self._marks):
            if self._client.has_collection(collection):
                self._client.query(
                    collection, filter="rank >= 0", output_fields=["count(*)"], consistency_level="Strong"
                )

    def close(self) -> None:
        self._client.close()

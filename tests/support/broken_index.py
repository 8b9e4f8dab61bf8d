"""Break a vector index behind the product's back: through SQL for pgvector, in the emulator's memory for Pinecone."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
import psycopg

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

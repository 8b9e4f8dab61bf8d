"""Vector stores that can be killed: each in a process of its own, started again on what it had written down."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Protocol

from memory_layer.ops import embedded, migrate
from memory_layer.stores.protocols import VectorStore
from tests.support.folders import make_data_folder
from tests.support.milvus_server import running_milvus


class IndexServer(Protocol):
    @property
    def environment(self) -> dict[str, str]:
        """The settings that make the product use it."""
        ...

    def kill(self) -> None:
        """SIGKILL, and start it again on the same port and data."""
        ...

    async def open(self) -> VectorStore: ...

    def close(self) -> None: ...


class PgvectorServer:
    """A Postgres of its own, durable, for the index alone."""

    def __init__(self) -> None:
        self._data: Path = make_data_folder(disk=True)
        self._cluster = embedded.start(self._data)
        self._restarts = threading.Lock()
        embedded.prepare_database(self._cluster)
        migrate.apply_pgvector(self._cluster.dsn("memory_owner"))

    @property
    def environment(self) -> dict[str, str]:
        return {"VECTOR_DB_PROVIDER": "pgvector", "VECTOR_DB_ENDPOINT": self._cluster.dsn("memory_app")}

    def kill(self) -> None:
        with self._restarts:
            os.kill(self._cluster.pid, signal.SIGKILL)
            self._cluster.process.wait()
            self._cluster.stop()  # only lets go of the folder
            self._cluster = embedded.start(self._data)

    async def open(self) -> VectorStore:
        from memory_layer.stores.vectors.pgvector import open_pgvector

        return await open_pgvector(self._cluster.dsn("memory_app"), size=2)

    def close(self) -> None:
        self._cluster.stop()
        shutil.rmtree(self._data.parent, ignore_errors=True)


class MilvusIndex:
    """The real server, in a session of its own: one process, with its etcd, its log and its objects in one folder."""

    def __init__(self) -> None:
        self._running = contextlib.ExitStack()
        self._server = self._running.enter_context(running_milvus())
        self._restarts = threading.Lock()

    @property
    def environment(self) -> dict[str, str]:
        return {"VECTOR_DB_PROVIDER": "milvus", "VECTOR_DB_ENDPOINT": self._server.url}

    def kill(self) -> None:
        with self._restarts:
            self._server.kill()
            self._server.start()

    async def open(self) -> VectorStore:
        from memory_layer.stores.vectors.milvus import open_milvus

        return await open_milvus(self._server.url, lambda: None)

    def close(self) -> None:
        self._running.close()

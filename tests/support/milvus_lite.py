"""Milvus Lite 3: Milvus's protocol spoken by another implementation, in Python. A second dialect of filters; no proof of the adapter.

It waits for nothing and ignores consistency levels, has no users, and cannot be asked for everything (docs/decisions/0013).
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class MilvusLite(NamedTuple):
    url: str


@contextlib.contextmanager
def running_milvus_lite() -> Iterator[MilvusLite]:
    from milvus_lite.adapter.grpc.server import start_server_in_thread

    folder = Path(tempfile.mkdtemp(prefix="memory-layer-milvus-lite-"))
    server, database, port = start_server_in_thread(data_dir=str(folder / "lite"), host="127.0.0.1", port=0)
    try:
        yield MilvusLite(f"http://127.0.0.1:{port}")
    finally:
        server.stop(grace=None).wait()
        database.close()
        shutil.rmtree(folder, ignore_errors=True)

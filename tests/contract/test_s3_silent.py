"""An S3 server that takes connections and never answers: a caller is told within seconds, while threads go on waiting."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from memory_layer.errors import ObjectStoreUnavailable
from memory_layer.stores.objects import s3_bucket, s3_client
from memory_layer.stores.objects.s3 import S3Store, open_s3
from tests.support.s3_server import S3Server


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """It listens; the system takes the connections, and nobody reads them."""
    monkeypatch.setattr(s3_bucket, "ANSWER", 0.5)
    monkeypatch.setattr(s3_client, "READ", 5.0)  # the threads are waited for at the end of the test
    monkeypatch.setattr(s3_client, "TRIES", 1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield S3Server("silent", f"http://127.0.0.1:{listener.getsockname()[1]}", "key", "silent-secret")


async def body() -> AsyncIterator[bytes]:
    yield b"text"


async def ask(store: S3Store, call: str) -> None:
    if call == "put":
        await store.put("tenant", body())
    elif call == "stat":
        await store.stat(f"tenant/{'0' * 64}", "v")
    else:
        async for _ in store.read(f"tenant/{'0' * 64}", "v"):
            pass


@pytest.mark.parametrize("call", ["put", "read", "stat"])
async def test_a_caller_does_not_wait_for_all_tries(silent: S3Server, tmp_path: Path, call: str) -> None:
    store = open_s3(silent.settings("bucket"), "bucket", tmp_path)
    try:
        began = time.monotonic()
        with pytest.raises(ObjectStoreUnavailable, match="did not answer in time") as told:
            await ask(store, call)
        assert time.monotonic() - began < s3_client.READ  # so not by the end of a try
        assert "silent-secret" not in told.value.message
    finally:
        await store.close()


async def test_what_comes_late_is_closed(moto_s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its connection would stay taken."""
    bucket = moto_s3.make_bucket()
    store = open_s3(moto_s3.settings(bucket), bucket, tmp_path)
    stored = await store.put("tenant", body())
    client = store._bucket.client
    go_on, closed = threading.Event(), asyncio.Event()
    loop, get = asyncio.get_running_loop(), client.get_object

    def late(**about: Any) -> Any:
        answer = get(**about)
        assert go_on.wait(30)
        close = answer["Body"].close

        def noted() -> None:
            close()
            loop.call_soon_threadsafe(closed.set)

        answer["Body"].close = noted
        return answer

    monkeypatch.setattr(client, "get_object", late)
    monkeypatch.setattr(s3_bucket, "ANSWER", 0.2)
    with pytest.raises(ObjectStoreUnavailable, match="did not answer in time"):
        async for _ in store.read(stored.key, stored.version_id):
            pass
    go_on.set()
    await asyncio.wait_for(closed.wait(), 30)
    await store.close()

"""One large file into an object store and out of it, beside what anybody would do by hand: cp and sha256sum, or plain boto3.

BENCH_OBJECTS_MB: its size, 1024 MB when unset. The bucket is in a Ceph on this machine; without one, that half is left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

from bench.report import Table
from memory_layer import config
from memory_layer.stores.objects import open_eraser, open_objects
from memory_layer.stores.protocols import ObjectStore
from tests.support.s3_server import S3Server, ceph_missing, running_ceph

MEGABYTES = int(os.environ.get("BENCH_OBJECTS_MB", "1024"))
BLOCK = 1024 * 1024
TIMES = 3
Work = Callable[[], Coroutine[Any, Any, None]]


def measure() -> Table:
    with tempfile.TemporaryDirectory(prefix="memory-layer-bench-") as place:
        source = Path(place) / "source"
        make_file(source)
        rows = asyncio.run(_directory(Path(place), source))
        if (reason := ceph_missing()) is None:
            with running_ceph() as server:
                rows += asyncio.run(_bucket(server, Path(place), source))
        else:
            rows.append(("S3", f"not measured: {reason}"))
    return Table("objects", rows, f"One file of {MEGABYTES} MB, random bytes, medians of {TIMES}, in turns")


def make_file(path: Path) -> None:
    chance = random.Random(5)
    with path.open("wb") as file:
        for _ in range(MEGABYTES):
            file.write(chance.randbytes(BLOCK))


async def _directory(place: Path, source: Path) -> list[tuple[str, str]]:
    store = open_objects(config.load({}), place / "ours")
    eraser = open_eraser(config.load({}), place / "ours")
    theirs, back = place / "theirs", place / "back"
    stored: list[Any] = []

    async def put() -> None:
        stored.append(await store.put("bench", chunks(source)))

    async def erase() -> None:
        one = stored.pop()
        await eraser.delete(one.key, one.version_id)

    async def by_hand(target: Path, *, sync: bool) -> None:
        await asyncio.to_thread(target.unlink, missing_ok=True)
        await asyncio.to_thread(shell, ["cp", source, target])
        if sync:
            await asyncio.to_thread(shell, ["sync", target])
        await asyncio.to_thread(shell, ["sha256sum", target])

    up = await _in_turns(put, lambda: by_hand(theirs, sync=True), lambda: by_hand(theirs, sync=False), between=erase)
    await put()
    down = await _in_turns(lambda: _download(store, stored[-1], back), lambda: by_hand(theirs, sync=False))
    await store.close()
    await eraser.close()
    return [
        ("directory: upload, hashed, synced to disk", f"{_rate(up[0])}"),
        ("cp + sync + sha256sum", f"{_rate(up[1])}; upload takes {up[0] / up[1]:.2f}x its time"),
        ("cp + sha256sum, nothing synced", f"{_rate(up[2])}; upload takes {up[0] / up[2]:.2f}x its time"),
        ("directory: download into a file, hashed", f"{_rate(down[0])}"),
        ("cp + sha256sum", f"{_rate(down[1])}; download takes {down[0] / down[1]:.2f}x its time"),
    ]


async def _bucket(server: S3Server, place: Path, source: Path) -> list[tuple[str, str]]:
    bucket = server.make_bucket()
    store = open_objects(server.settings(bucket), place)
    eraser = open_eraser(server.settings(bucket), place)
    client, back = server.client(), place / "back"
    stored: list[Any] = []
    with source.open("rb") as file:
        announced = hashlib.file_digest(file, "sha256").hexdigest()
    most = config.load({}).artifact_max_bytes  # as the service says it

    async def put() -> None:
        stored.append(await store.put("bench", chunks(source), max_bytes=most))

    async def put_announced() -> None:
        stored.append(await store.put("bench", chunks(source), expected_sha256=announced, max_bytes=most))

    async def erase() -> None:
        if stored:
            one = stored.pop()
            await eraser.delete(one.key, one.version_id)
        with contextlib.suppress(IndexError):
            one = client.list_object_versions(Bucket=bucket, Prefix="plain").get("Versions", [])[0]
            client.delete_object(Bucket=bucket, Key="plain", VersionId=one["VersionId"])

    async def plain() -> None:
        await asyncio.to_thread(client.upload_file, str(source), bucket, "plain")

    async def plain_back() -> None:
        await asyncio.to_thread(client.download_file, bucket, "plain", str(back))

    up = await _in_turns(put_announced, put, plain, between=erase)
    await put()
    await plain()
    down = await _in_turns(lambda: _download(store, stored[-1], back), plain_back)
    await store.close()
    await eraser.close()
    return [
        ("S3 (Ceph on this machine): upload, its hash announced", f"{_rate(up[0])}"),
        ("S3: upload, its hash not announced", f"{_rate(up[1])}"),
        ("boto3's upload_file", f"{_rate(up[2])}; uploads take {up[0] / up[2]:.2f}x and {up[1] / up[2]:.2f}x its time"),
        ("S3: download into a file, hashed", f"{_rate(down[0])}"),
        ("boto3's download_file, not hashed", f"{_rate(down[1])}; download takes {down[0] / down[1]:.2f}x its time"),
    ]


async def chunks(path: Path) -> AsyncIterator[bytes]:
    """A file as an upload brings it: in blocks of 1 MiB, read while the last one is handled."""
    with path.open("rb") as file:
        while block := await asyncio.to_thread(file.read, BLOCK):
            yield block


async def _download(store: ObjectStore, stored: Any, target: Path) -> None:
    digest = hashlib.sha256()
    with target.open("wb") as file:
        async for block in store.read(stored.key, stored.version_id):
            await asyncio.to_thread(lambda data=block: (digest.update(data), file.write(data)))
    assert digest.hexdigest() == stored.sha256


async def _in_turns(*work: Work, between: Work | None = None) -> list[float]:
    """Median seconds of each, measured one after the other, again and again."""
    seconds: list[list[float]] = [[] for _ in work]
    for _ in range(TIMES):
        for place, one in enumerate(work):
            began = time.monotonic()
            await one()
            seconds[place].append(time.monotonic() - began)
            if between is not None:
                with contextlib.suppress(IndexError):
                    await between()
    return [statistics.median(of_one) for of_one in seconds]


def shell(command: list[str | Path]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _rate(seconds: float) -> str:
    return f"{MEGABYTES * BLOCK / 1e6 / seconds:.0f} MB/s ({seconds:.2f} s)"

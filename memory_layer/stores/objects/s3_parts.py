"""One object that goes into S3 in parts, several at a time, from a file that may still grow."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine
from dataclasses import replace
from functools import partial
from typing import Any

from memory_layer.stores.objects import s3_upload
from memory_layer.stores.objects.s3_bucket import Bucket
from memory_layer.stores.objects.s3_upload import PARALLEL, Target
from memory_layer.stores.objects.spool import Growing


class PartUpload:
    """``living``: the uploads of this process, which no sweep takes for abandoned. Whoever calls ``send`` calls ``end``."""

    def __init__(self, bucket: Bucket, target: Target, part_size: int, living: set[str]) -> None:
        self.target = target
        self._bucket, self._size, self._living = bucket, part_size, living
        self._upload: str | None = None
        self._parts: dict[int, dict[str, Any]] = {}

    @property
    def begun(self) -> bool:
        return self._upload is not None

    async def send(self, growing: Growing) -> None:
        """Begin, and send each part once it is whole in the file. Raises Refused."""
        upload = await self._bucket.net.run(self._begin)
        numbers = itertools.count(1)

        async def one_by_one() -> None:
            while True:
                number = next(numbers)
                start = (number - 1) * self._size
                stop = min(start + self._size, await growing.reached(start + self._size))
                if start >= stop:
                    return
                put = partial(s3_upload.put_part, self._bucket.client, self.target, upload, growing.handle)
                self._parts[number] = await self._bucket.net.run(put, number, start, stop)

        await _all([one_by_one() for _ in range(PARALLEL)])

    def _begin(self) -> str:
        # Noted in the thread: a caller who is cancelled meanwhile must still drop it.
        self._upload = upload = s3_upload.begin(self._bucket.client, self.target)
        self._living.add(upload)
        return upload

    async def complete(self, *, once: bool) -> str | None:
        """The version that S3 made of all parts, None where the bucket keeps none. Raises Refused."""
        assert self._upload is not None, "send comes first"  # noqa: S101 - narrows the type
        target, parts = replace(self.target, once=once), [self._parts[number] for number in sorted(self._parts)]
        version = await self._bucket.net.run(s3_upload.complete, self._bucket.client, target, self._upload, parts)
        self._forget()
        return version

    async def end(self) -> None:
        """Drop what was begun and not completed."""
        if self._upload is not None:
            try:
                await self._bucket.abort(self.target.key, self._upload)
            finally:
                self._forget()

    def _forget(self) -> None:
        if self._upload is not None:
            self._living.discard(self._upload)
            self._upload = None


async def _all(work: list[Coroutine[Any, Any, None]]) -> None:
    """Run all; where one fails, end the others before its error passes."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

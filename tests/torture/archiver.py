"""An archiver that never rests, for a storm to kill: ``python -m tests.torture.archiver FOLDER`` does what ``memoryctl audit archive``
does, again and again, in segments of a few entries, so that there is always one under way. Ends with its standard input."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Final
from unittest import mock

from memory_layer import config
from memory_layer.errors import LockHeld, MemoryLayerError
from memory_layer.ops.archive import job, write
from memory_layer.ops.archive.files import SegmentSize
from memory_layer.ops.operate import Run
from memory_layer.service.installation import Installation
from tests.support.runs import perform

ENTRIES: Final = 40  # in a segment
PAUSE: Final = 0.1  # seconds until it looks for new entries


def once(folder: Path) -> None:
    settings = config.load()

    async def work(run: Run) -> None:
        await run.installation.need("committer", "archive")
        with mock.patch.object(write, "FULL", SegmentSize(ENTRIES)):
            await job.run_archive(run, job.open_archive_keys(run.installation), until=None, rest=True)

    perform(Installation(settings, folder, say=print), job.VERB, {"rest": True}, work, lock=job.LOCK)


def main(folder: Path) -> None:
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    while not ended.wait(PAUSE):
        try:
            once(folder)
            print("archived", flush=True)
        except LockHeld:
            continue  # the lock of one that was killed ends with its connection
        except MemoryLayerError as error:
            print(f"{type(error).__name__}: {error.message}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

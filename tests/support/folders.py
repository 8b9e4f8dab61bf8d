"""Folders for the data of installations: in memory, where the machine has room for them.

A database of a test's own is a copy of 480 files. On a disk that others write to at the same time that takes a quarter of a second of
the processor, in memory a fiftieth; a process that is killed leaves in both the same behind.
"""

from __future__ import annotations

import functools
import os
import re
import tempfile
from pathlib import Path
from typing import Final

SHARED_MEMORY: Final = Path("/dev/shm")
ROOM: Final = 8 * 2**30  # bytes; a tier of tests takes up to a quarter of that
_LIMITS: Final = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def make_data_folder(*, disk: bool = False) -> Path:
    """A path in a new folder that the database's own account can pass through under root, unlike pytest's tmp_path.

    ``disk``: not in memory, for what writes without end.
    """
    folder = Path(tempfile.mkdtemp(prefix="memory-layer-test-", dir=None if disk else _place()))
    folder.chmod(0o711)
    return folder / "data"


@functools.cache
def _place() -> Path | None:
    """None: where temporary files go."""
    try:
        found = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    # From a data folder the copy of Postgres is run that its account cannot reach where it is installed.
    usable = os.access(SHARED_MEMORY, os.W_OK | os.X_OK) and not found.f_flag & os.ST_NOEXEC
    return SHARED_MEMORY if usable and min(found.f_frsize * found.f_bavail, _memory()) >= ROOM else None


def _memory() -> int:
    """Bytes that this machine has left, or that this container may have."""
    try:
        match = re.search(r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text("ascii"), re.MULTILINE)
    except OSError:
        match = None
    left = int(match[1]) * 1024 if match else 0
    for path in _LIMITS:
        try:
            left = min(left, int(Path(path).read_text("ascii")))
        except (OSError, ValueError):
            continue
    return left

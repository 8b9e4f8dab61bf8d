"""Folders and files for their owner alone, whatever the umask is: what they hold is somebody's memory, or a key to it."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from pathlib import Path
from typing import BinaryIO, Final

FOLDER: Final = 0o700
FILE: Final = 0o600

log = logging.getLogger("memory_layer.private")


def make_folder(path: Path) -> None:
    """Make a folder, and the folders above that are missing; where it is there already, take others' rights to it away.

    Raises OSError where it cannot be made. Where its rights cannot be changed, it is somebody else's: that is logged.
    """
    if not path.is_dir():
        if not path.parent.is_dir():
            make_folder(path.parent)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=FOLDER)
            path.chmod(FOLDER)  # mkdir heeds the umask, which may take the owner's own rights
    tighten(path)


def tighten(path: Path) -> bool:
    """Take the rights of everybody but the owner to a folder away; whether there were any. A link is left as it is."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        mode = stat.S_IMODE(os.fstat(handle).st_mode)
        if not mode & 0o077:
            return False
        try:
            os.fchmod(handle, mode & FOLDER)
        except OSError as error:
            log.warning("others may read the folder %s, and that could not be changed: %s", path, error.strerror)
            return False
    finally:
        os.close(handle)
    log.warning("others could read the folder %s (mode %03o); it is its owner's alone now", path, mode)
    return True


def create(path: Path) -> BinaryIO:
    """A new file, open for writing. Raises FileExistsError."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, FILE), "wb")

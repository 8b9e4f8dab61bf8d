"""Files that are written whole and durable, or not at all: keys, the trust root, notes."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from memory_layer import private


def ensure_key(path: Path) -> None:
    """Make an Ed25519 key (PKCS8 PEM, mode 0600) unless the file exists. Two callers at once end up with one key."""
    if not path.exists():
        write_once(path, make_key(), 0o600)


def make_key() -> bytes:
    """A new Ed25519 key as PKCS8 PEM."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def write_over(path: Path, content: bytes, mode: int) -> None:
    """Replace a file; after a crash there is the old one or the new one, whole."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        _write(draft, content, mode)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    _sync(path.parent)


def write_once(path: Path, content: bytes, mode: int) -> None:
    """Write a file that appears whole and durable, or not at all; one that is there already stays as it is."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # A random name: two containers that share a volume may have the same process id.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        _write(draft, content, mode)
        # A hard link fails when the name is taken: the first process wins, and no reader ever sees half a file.
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(draft)
    finally:
        draft.unlink(missing_ok=True)
    _sync(path.parent)


def put_away(path: Path, target: Path, mode: int) -> None:
    """Move a file to a folder for its owner alone; after a crash it is at one place or the other."""
    private.make_folder(target.parent)
    path.chmod(mode)
    path.replace(target)
    _sync(target.parent)
    _sync(path.parent)


def destroy(path: Path) -> None:
    """Remove a file for good. What the disk's blocks and backups still hold is beyond this."""
    path.unlink()
    _sync(path.parent)


def _write(path: Path, content: bytes, mode: int) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:  # noqa: PTH123 - the mode
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)

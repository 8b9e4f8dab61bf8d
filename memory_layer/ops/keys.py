"""Files that are made once: keys and the trust root."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def ensure_key(path: Path) -> None:
    """Make an Ed25519 key (PKCS8 PEM, mode 0600) unless the file exists. Two callers at once end up with one key."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    if not path.exists():
        pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_once(path, pem, 0o600)


def write_once(path: Path, content: bytes, mode: int) -> None:
    """Write a file that appears whole and durable, or not at all; one that is there already stays as it is."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # A random name: two containers that share a volume may have the same process id.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:  # noqa: PTH123 - the mode
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # A hard link fails when the name is taken: whoever is first wins, and no reader ever sees half a file.
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(draft)
    finally:
        draft.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

"""An Ed25519 key in a file of this machine, made at first start, readable by its owner alone."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from memory_layer.errors import PolicyRefused, UsageError


class LocalSigner:
    """Signs in this process; 40 microseconds a signature."""

    algorithm = "ed25519"

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_key_der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.key_id = hashlib.sha256(self.public_key_der).hexdigest()

    async def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)

    async def close(self) -> None:
        return None


def open_local_signer(path: Path) -> LocalSigner:
    """The signer of an existing key file. Raises UsageError when there is none, PolicyRefused when others may read it."""
    try:
        mode = path.stat().st_mode & 0o777
        pem = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"There is no signing key at {path}. `memoryctl up` makes one at first start.") from None
    if mode & 0o077:
        raise PolicyRefused(f"The signing key {path} can be read by others (mode {mode:04o}). Run: chmod 600 {path}")
    key = load_pem_private_key(pem, password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path} holds no Ed25519 private key.")
    return LocalSigner(key)


def ensure_key(path: Path) -> None:
    """Make the key file, mode 0600, unless it is there. Two starts at once make one key."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()

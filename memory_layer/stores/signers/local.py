"""An Ed25519 key in a file of this machine, made at first start, readable by its owner alone."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from memory_layer.errors import PolicyRefused, UsageError


class LocalSigner:
    """Signs in this process; 40 microseconds a signature."""

    algorithm = "ed25519"
    local = True

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_key_der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.key_id = hashlib.sha256(self.public_key_der).hexdigest()

    async def sign(self, message: bytes) -> bytes:
        return self.sign_now(message)

    def sign_now(self, message: bytes) -> bytes:
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
    except OSError as error:
        raise UsageError(f"The signing key {path} cannot be read: {error.strerror}.") from None
    if mode & 0o077:
        raise PolicyRefused(f"The signing key {path} can be read by others (mode {mode:04o}). Run: chmod 600 {path}")
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # no PEM, a public key, a password, an unknown kind
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path} holds no Ed25519 private key that opens without a password.")
    return LocalSigner(key)

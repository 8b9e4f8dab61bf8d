"""What every signer does: signs what it is given, under the key that it names, and opens no key that others could copy."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
)

from memory_layer.audit.seal import verify_signature
from memory_layer.errors import PolicyRefused, UsageError
from memory_layer.ops.keys import ensure_key
from memory_layer.stores.protocols import Signer
from memory_layer.stores.signers.local import open_local_signer

MESSAGES = [b"", b"memory-layer/audit-seal/v1\n", bytes(range(256)), b"x" * 100_000]


@pytest.fixture(params=["local"])
async def signer(tmp_path: Path) -> AsyncIterator[Signer]:
    ensure_key(tmp_path / "seal.pem")
    opened: Signer = open_local_signer(tmp_path / "seal.pem")
    yield opened
    await opened.close()


@pytest.mark.parametrize("message", MESSAGES, ids=len)
async def test_its_signatures_verify_under_its_public_key(signer: Signer, message: bytes) -> None:
    signature = await signer.sign(message)
    assert verify_signature(signer.algorithm, signer.public_key_der, message, signature)
    assert not verify_signature(signer.algorithm, signer.public_key_der, message + b"\n", signature)
    assert not verify_signature(
        signer.algorithm, signer.public_key_der, message, bytes([signature[0] ^ 1]) + signature[1:]
    )


async def test_its_key_id_is_the_hash_of_its_public_key(signer: Signer) -> None:
    assert signer.key_id == hashlib.sha256(signer.public_key_der).hexdigest()
    key = load_der_public_key(signer.public_key_der)
    assert key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == signer.public_key_der
    assert signer.algorithm in ("ed25519", "ecdsa-p256-sha256", "rsa-pss-sha256")


async def test_another_key_does_not_verify(signer: Signer, tmp_path: Path) -> None:
    ensure_key(tmp_path / "other.pem")
    other = open_local_signer(tmp_path / "other.pem")
    assert other.key_id != signer.key_id
    assert not verify_signature(other.algorithm, other.public_key_der, b"text", await signer.sign(b"text"))


# --- local: a key in a file


def test_the_key_file_is_its_owners_alone_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "seal.pem"
    mask = os.umask(0)
    try:
        ensure_key(path)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [file.name for file in path.parent.iterdir()] == ["seal.pem"]
    before = path.read_bytes()
    ensure_key(path)
    assert path.read_bytes() == before


def test_starts_at_the_same_moment_make_one_key(tmp_path: Path) -> None:
    path = tmp_path / "seal.pem"
    seen: list[bytes] = []

    def start() -> None:
        ensure_key(path)
        seen.append(path.read_bytes())

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(seen) == 8
    assert set(seen) == {path.read_bytes()}
    assert [file.name for file in tmp_path.iterdir()] == ["seal.pem"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666, 0o620, 0o601])
def test_a_key_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "seal.pem"
    ensure_key(path)
    path.chmod(mode)
    with pytest.raises(PolicyRefused, match=f"mode {mode:04o}.*chmod 600"):
        open_local_signer(path)
    path.chmod(0o400)
    open_local_signer(path)


def test_no_key_is_a_clear_word(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no signing key at"):
        open_local_signer(tmp_path / "seal.pem")


def private_pem(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey, password: bytes | None = None) -> bytes:
    lock = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock)


@pytest.mark.parametrize(
    "content",
    [
        private_pem(ec.generate_private_key(ec.SECP256R1())),
        private_pem(ed25519.Ed25519PrivateKey.generate(), b"secret"),
        ed25519.Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        b"",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        bytes(range(256)),
    ],
    ids=["another curve", "locked by a password", "a public key", "empty", "broken", "binary"],
)
def test_a_file_that_holds_no_such_key_is_a_clear_word(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "seal.pem"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(UsageError, match="holds no Ed25519 private key"):
        open_local_signer(path)

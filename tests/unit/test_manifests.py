"""Manifests: one way to sign and read them; what the kinds differ in is data."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from typing import Final, Literal

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from memory_layer.audit import trust_root
from memory_layer.audit.trust_root import TrustRoot
from memory_layer.errors import ChecksumMismatch
from memory_layer.ops import manifests
from memory_layer.ops.artifacts import manifest as artifacts
from memory_layer.ops.manifests import Hex, Kind, ManifestKey, Position
from memory_layer.ops.vectors import manifest as vectors

ORIGIN: Final = "memory.example/audit/dev/s0/e1"


class Dump(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """What a kind that there is not yet might say."""

    format: Literal["memory-layer/dump/v1"]
    origin: str
    log: Position
    base_backup: Hex


DUMP: Final = Kind("memory-layer/dump/v1", Dump, "manifest of a dump", max_bytes=4096)
CONTENT: Final = Dump("memory-layer/dump/v1", ORIGIN, Position(7, "a" * 64), "b" * 64)


def made(purpose: Literal["manifest", "seal"] = "manifest", **more: int) -> tuple[ManifestKey, TrustRoot]:
    private = Ed25519PrivateKey.from_private_bytes(bytes(32))
    der = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    key = trust_root.trusted_key("ed25519", der, purpose=purpose, **more)
    root = trust_root.load(trust_root.dump(ORIGIN, [key]))
    return ManifestKey(key.key_id, "ed25519", private.sign), root


def signed(key: ManifestKey, content: Dump = CONTENT) -> tuple[bytes, bytes]:
    document = manifests.dump(content)
    return document, asyncio.run(manifests.sign(DUMP, document, content.origin, key))


def test_a_new_kind_takes_a_struct_and_a_line() -> None:
    key, root = made()
    document, signature = signed(key)
    found = manifests.read(DUMP, document, signature, root, place="dump/manifest.json")
    assert (found.manifest, found.key) == (CONTENT, key.key_id)
    assert found.digest == hashlib.sha256(document).hexdigest()
    assert signature.startswith(f"memory-layer/dump/v1\nlog {ORIGIN}\nsha256 {found.digest}\n".encode())
    unsigned = manifests.read(DUMP, document, None, None, place="dump/manifest.json")
    assert (unsigned.manifest, unsigned.key) == (CONTENT, None)


def test_a_signature_of_one_kind_is_none_of_another() -> None:
    key, root = made()
    _, signature = signed(key)
    document = manifests.dump(CONTENT)
    other = dataclasses.replace(DUMP, format="memory-layer/other/v1")
    with pytest.raises(ChecksumMismatch, match="none of a document of the format memory-layer/other/v1"):
        manifests.read(other, document, signature, root, place="x")
    assert len({DUMP.format, artifacts.KIND.format, vectors.KIND.format}) == 3


def test_what_is_refused() -> None:
    key, root = made()
    document, signature = signed(key)

    def refused(
        match: str, document: bytes = document, signature: bytes = signature, root: TrustRoot | None = root
    ) -> None:
        with pytest.raises(ChecksumMismatch, match=match):
            manifests.read(DUMP, document, signature, root, place="x")

    refused("was changed: its SHA-256", document=document.replace(b"7", b"8"))
    refused("none of a document", signature=signature[:-1])
    refused("none of a document", signature=signature.replace(b"\n", b"\r\n"))
    first, last = signature.rsplit(b" ", 1)
    forged = bytes([last[0] ^ 1]) if bytes([last[0] ^ 1]).isalnum() else b"A"
    refused("is not what the key", signature=first + b" " + forged + last[1:])
    refused("this installation's is unknown", root=None)
    refused("of the log", root=dataclasses.replace(root, origin="elsewhere/audit/1"))
    refused("does not name for manifests", root=made("seal")[1])
    refused("does not name for manifests", root=dataclasses.replace(root, keys=()))
    refused("whose time was over", root=made(to_seq=6)[1])
    refused("had not come", root=made(from_seq=8)[1])


def test_other_spellings_and_members_are_no_manifest() -> None:
    document, _ = signed(made()[0])
    with pytest.raises(ChecksumMismatch, match="is not in the one form that a manifest of a dump has"):
        manifests.read(DUMP, document.replace(b'":', b'": '), None, None, place="x")
    with pytest.raises(ChecksumMismatch, match="is no manifest of a dump"):
        manifests.read(DUMP, document.replace(b"baseBackup", b"baseBackdrop"), None, None, place="x")

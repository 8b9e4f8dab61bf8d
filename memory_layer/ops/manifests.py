"""Manifests of what operations store (artifacts, vectors): one canonical JSON document and its signature beside it.

A ``Kind`` holds what the kinds differ in. To add one: a ``Kind``, and a Struct of the content that
has ``format``, ``origin`` and ``log``. Evidence bundles and archive segments are signed in the same way and read by the verifier alone, which
has no msgspec: ``audit/manifest.py``, ``audit/segment.py``.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Generic, NamedTuple, Protocol, TypeVar

import msgspec

from memory_layer import canonical
from memory_layer.audit.manifest import MANIFEST, SIGNATURE
from memory_layer.audit.signed import MAX_SIGNATURE, judge, signature_file, signed_text
from memory_layer.audit.trust_root import TrustRoot
from memory_layer.errors import ChecksumMismatch, MemoryLayerError
from memory_layer.stores.logs import find_trust_root
from memory_layer.stores.signers.local import open_local_signer

__all__ = [
    "MANIFEST", "MAX_SIGNATURE", "SIGNATURE", "Count", "Hex", "Kind", "ManifestKey", "Position", "Signed", "check", "dump",
    "manifest_key", "read", "sign",
]  # fmt: skip

Hex = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]


class Position(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """The log's newest entry when a manifest was begun; ``hash``: its SHA-256."""

    seq: int
    hash: Hex


class Content(Protocol):
    """What the content of every kind has."""

    @property
    def log(self) -> Position | None: ...


M = TypeVar("M", bound=Content)


@dataclass(frozen=True, slots=True)
class Kind(Generic[M]):
    """A kind of manifest. ``format``: its member of that name, and the first line of what is signed; ``name``: for errors, "manifest of
    ..."; ``max_bytes``: of the document."""

    format: str
    content: type[M]
    name: str
    max_bytes: int


class Signed(NamedTuple, Generic[M]):
    """``digest``: SHA-256 of the document; ``key``: id of the key that signed it, None where it is not signed."""

    manifest: M
    digest: str
    key: str | None


# --- The key


@dataclass(frozen=True, slots=True)
class ManifestKey:
    """What signs manifests: ``sign`` gives the raw signature over the bytes that it is given."""

    key_id: str
    algorithm: str
    sign: Callable[[bytes], bytes]


def manifest_key(folder: Path, root: TrustRoot | None = None) -> ManifestKey | None:
    """The key of this data folder for manifests; None where it has none that the trust root (None: the folder's own) names for that."""
    path, root = folder / "keys" / "manifest.pem", root or find_trust_root(folder)
    if root is None or not path.exists():
        return None
    signer = open_local_signer(path)
    if not any(key.key_id == signer.key_id and key.purpose == "manifest" for key in root.keys):
        return None
    return ManifestKey(signer.key_id, signer.algorithm, signer.sign_now)


# --- Writing and reading


def dump(manifest: Content) -> bytes:
    """The bytes of ``manifest.json``: RFC 8785."""
    return canonical.dumps(msgspec.to_builtins(manifest))


async def sign(kind: Kind[M], document: bytes, origin: str, key: ManifestKey) -> bytes:
    """The bytes of ``manifest.sig``."""
    text = signed_text(kind.format, document, origin, key.key_id, key.algorithm)
    return signature_file(text, await asyncio.to_thread(key.sign, text))


def read(
    kind: Kind[M],
    document: bytes,
    signature: bytes | None,
    root: TrustRoot | None,
    *,
    place: str,
    names: tuple[str, str] = ("The document", "The signature"),
) -> Signed[M]:
    """What a manifest says, if a manifest key of the trust root signed it; without a ``signature`` unchecked.

    Raises ChecksumMismatch, which names the ``place``, or by ``names`` the document and its signature.
    """
    digest, key = hashlib.sha256(document).hexdigest(), None
    if signature is not None:
        check(kind.format, digest, None, signature, root, names)
    try:
        manifest = msgspec.json.decode(document, type=kind.content)
        same = dump(manifest) == document
    except (msgspec.MsgspecError, MemoryLayerError) as error:
        raise ChecksumMismatch(f"{place} is no {kind.name}: {error}.") from None
    if not same:
        raise ChecksumMismatch(f"{place} is not in the one form that a {kind.name} has.")
    if signature is not None:
        key = check(kind.format, digest, 0 if manifest.log is None else manifest.log.seq, signature, root, names)
    return Signed(manifest, digest, key)


def check(
    format: str,
    digest: str,
    seq: int | None,
    signature: bytes,
    root: TrustRoot | None,
    names: tuple[str, str] = ("The document", "The signature"),
) -> str:
    """Who signed the document of that SHA-256 when the log's newest entry was ``seq`` (None: whenever the key may sign).

    Raises ChecksumMismatch, which says what is wrong, and by ``names`` with what.
    """
    this, its = names
    problem, parsed, key = judge(format, digest, seq, signature, root)
    if parsed is None:
        raise ChecksumMismatch(f"{its} is none of a document of the format {format}.")
    if problem == "origin":
        found = root.origin if root else "unknown"
        raise ChecksumMismatch(f"{its} is of the log {parsed.origin}, and this installation's is {found}.")
    if problem == "document":
        raise ChecksumMismatch(f"{this} was changed: its SHA-256 is {digest}, and {parsed.sha256} was signed.")
    if key is None or problem == "algorithm":
        raise ChecksumMismatch(
            f"{its} is by the key {parsed.key_id}, which the trust root does not name for manifests."
        )
    if problem == "signature":
        raise ChecksumMismatch(
            f"{its} is not what the key {parsed.key_id} signed: it was changed, or {this[0].lower()}{this[1:]} was."
        )
    if problem is not None:
        raise ChecksumMismatch(
            f"{its} is by the key {parsed.key_id}, whose time was over, or had not come, at entry {seq}."
        )
    return parsed.key_id

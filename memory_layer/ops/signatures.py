"""Signatures of manifests: short texts by the installation's manifest key, whose first line says what kind of document was signed.

<format>\\nlog <origin>\\nsha256 <hex of the document>\\nkey <key id>\\nalg <name>\\nsignature <base64>\\n
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from typing import TYPE_CHECKING, Final

from memory_layer.audit.seal import decode_signature, encode_signature, verify_signature
from memory_layer.audit.trust_root import TrustRoot
from memory_layer.errors import ChecksumMismatch

if TYPE_CHECKING:  # the verifier, which an export needs, checks signatures too
    from memory_layer.ops.export import ManifestKey

MOST: Final = 4096  # bytes of a signature
_SIGNED: Final = re.compile(
    r"(([a-z0-9/-]{1,64})\nlog ([!-~]{1,255})\nsha256 ([0-9a-f]{64})\nkey ([0-9a-f]{64})\nalg ([a-z0-9-]{1,64})\n)"
    r"signature ([A-Za-z0-9+/]+={0,2})\n"
)


async def sign(format: str, document: bytes, origin: str, key: ManifestKey) -> bytes:
    """The signature of a document."""
    digest = hashlib.sha256(document).hexdigest()
    text = f"{format}\nlog {origin}\nsha256 {digest}\nkey {key.key_id}\nalg {key.algorithm}\n".encode("ascii")
    signature = encode_signature(await asyncio.to_thread(key.sign, text))  # it may run a loop of its own
    return text + f"signature {signature}\n".encode("ascii")


def check(
    format: str,
    document: bytes,
    seq: int,
    signature: bytes,
    root: TrustRoot | None,
    names: tuple[str, str] = ("The document", "The signature"),
) -> str:
    """Who signed a document when the log's newest entry was ``seq``: a manifest key of the trust root. Raises ChecksumMismatch, which
    says what is wrong, and with what: ``names`` of the document and of its signature."""
    return check_digest(format, hashlib.sha256(document).hexdigest(), seq, signature, root, names)


def check_digest(
    format: str,
    digest: str,
    seq: int | None,
    signature: bytes,
    root: TrustRoot | None,
    names: tuple[str, str] = ("The document", "The signature"),
) -> str:
    """The same where only the document's SHA-256 is at hand; ``seq`` None: whenever the key may sign."""
    this, its = names
    match = _SIGNED.fullmatch(signature.decode("latin-1"))
    raw = None if match is None else decode_signature(match[7])
    if match is None or raw is None or match[2] != format:
        raise ChecksumMismatch(f"{its} is none of a document of the format {format}.")
    text, _, origin, signed, key_id, algorithm = match.groups()[:6]
    if root is None or origin != root.origin:
        found = root.origin if root else "unknown"
        raise ChecksumMismatch(f"{its} is of the log {origin}, and this installation's is {found}.")
    if digest != signed:
        raise ChecksumMismatch(f"{this} was changed: its SHA-256 is {digest}, and {signed} was signed.")
    key = next((one for one in root.keys if one.key_id == key_id and one.purpose == "manifest"), None)
    if key is None or key.algorithm != algorithm:
        raise ChecksumMismatch(f"{its} is by the key {key_id}, which the trust root does not name for manifests.")
    if not verify_signature(algorithm, key.public_key, text.encode("ascii"), raw):
        raise ChecksumMismatch(
            f"{its} is not what the key {key_id} signed: it was changed, or {this[0].lower()}{this[1:]} was."
        )
    if seq is not None and (seq < key.from_seq or (key.to_seq is not None and seq > key.to_seq)):
        raise ChecksumMismatch(f"{its} is by the key {key_id}, whose time was over, or had not come, at entry {seq}.")
    return key_id

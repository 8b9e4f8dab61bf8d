"""Signatures of manifests: short texts by the log's manifest key, whose first line says what kind of document was signed.

<format>\\nlog <origin>\\nsha256 <hex of the document>\\nkey <key id>\\nalg <name>\\nsignature <base64>\\n
"""

from __future__ import annotations

import hashlib
import re
from typing import Final, Literal, NamedTuple

from memory_layer.audit.seal import decode_signature, encode_signature, verify_signature
from memory_layer.audit.trust_root import TrustedKey, TrustRoot

MAX_SIGNATURE: Final = 4096  # bytes of such a text
_SIGNED: Final = re.compile(
    r"(([a-z0-9/-]{1,64})\nlog ([!-~]{1,255})\nsha256 ([0-9a-f]{64})\nkey ([0-9a-f]{64})\nalg ([a-z0-9-]{1,64})\n)"
    r"signature ([A-Za-z0-9+/]+={0,2})\n"
)


class Signature(NamedTuple):
    """What such a text says. ``encoded``: the signature itself, in base64."""

    text: bytes
    format: str
    origin: str
    sha256: str
    key_id: str
    algorithm: str
    encoded: str


Problem = Literal[
    "form", "origin", "document", "unknown key", "purpose", "algorithm", "signature", "too early", "too late"
]


class Judged(NamedTuple):
    """``problem``: the first thing that is wrong with a signature, None where nothing is. ``key``: of the trust root, where it has it."""

    problem: Problem | None
    signature: Signature | None = None
    key: TrustedKey | None = None


def signed_text(format: str, document: bytes, origin: str, key_id: str, algorithm: str) -> bytes:
    """What a key signs."""
    digest = hashlib.sha256(document).hexdigest()
    return f"{format}\nlog {origin}\nsha256 {digest}\nkey {key_id}\nalg {algorithm}\n".encode("ascii")


def signature_file(text: bytes, signature: bytes) -> bytes:
    """The content of ``manifest.sig``. ``signature``: raw, over ``text``."""
    return text + f"signature {encode_signature(signature)}\n".encode("ascii")


def parse(data: bytes) -> Signature | None:
    """None where it is not in its one form."""
    match = _SIGNED.fullmatch(data.decode("latin-1"))
    if match is None or decode_signature(match[7]) is None:
        return None
    return Signature(match[1].encode("ascii"), *match.groups()[1:])


def judge(format: str, digest: str, seq: int | None, data: bytes, root: TrustRoot | None) -> Judged:
    """A signature over the document of that SHA-256, made when the log's newest entry was ``seq`` (None: whenever the key may sign)."""
    signature = parse(data)
    if signature is None or signature.format != format:
        return Judged("form")
    if root is None or signature.origin != root.origin:
        return Judged("origin", signature)
    if signature.sha256 != digest:
        return Judged("document", signature)
    keys = [key for key in root.keys if key.key_id == signature.key_id]
    key = next((key for key in keys if key.purpose == "manifest"), None)
    if key is None:
        return Judged("purpose" if keys else "unknown key", signature)
    return Judged(_misfit(signature, key, seq), signature, key)


def _misfit(signature: Signature, key: TrustedKey, seq: int | None) -> Problem | None:
    if signature.algorithm != key.algorithm:
        return "algorithm"
    if not verify_signature(
        signature.algorithm, key.public_key, signature.text, decode_signature(signature.encoded) or b""
    ):
        return "signature"
    if seq is not None and seq < key.from_seq:
        return "too early"
    return "too late" if seq is not None and key.to_seq is not None and seq > key.to_seq else None

"""A checkpoint: a signed note over the size and root of a log's tree (c2sp.org/tlog-checkpoint, c2sp.org/signed-note).

Format: ``docs/audit-format.md``, "Checkpoints".
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from memory_layer.audit.entry import INTEGER
from memory_layer.audit.seal import decode_signature, load_public_key, verify_signature
from memory_layer.audit.trust_root import TrustedKey, TrustRoot
from memory_layer.audit.verdict import Finding
from memory_layer.errors import Problem, SignerUnavailable, ValidationError

MAX_NOTE: Final = 131_072  # bytes; sixteen post-quantum signatures of witnesses fit
MAX_SIGNATURES: Final = 64
ED25519_TYPE: Final = b"\x01"

_TEXT: Final = re.compile(rf"([!-*,-~]{{1,255}})\n({INTEGER})\n([A-Za-z0-9+/]{{43}}=)\n")
_NAME: Final = re.compile(r"[^\s+\x00-\x1f\x7f]{1,255}")
_SIGNATURE: Final = re.compile(r"— ([^\s+\x00-\x1f\x7f]{1,255}) ([A-Za-z0-9+/]{8,10240}={0,2})")


class NoteSignature(NamedTuple):
    """One signature line; ``key_id`` has 4 bytes and only says which key to try."""

    name: str
    key_id: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A tree head as its log signed it. ``note`` is the whole signed note, ``text`` what is signed; ``root`` has 32 bytes."""

    origin: str
    size: int
    root: bytes
    text: bytes
    signatures: tuple[NoteSignature, ...]
    note: bytes


def checkpoint_text(origin: str, size: int, root: bytes) -> bytes:
    """The bytes that are signed: origin, size and base64 root, each on its line. Raises ValidationError on a misfit."""
    text = f"{origin}\n{size}\n{base64.b64encode(root).decode('ascii')}\n"
    if _TEXT.fullmatch(text) is None:
        raise _wrong("a checkpoint has the name of a log, a size from 0 and a root of 32 bytes")
    return text.encode("ascii")


def note_key_id(name: str, public_key_der: bytes) -> bytes:
    """The 4 bytes that name an Ed25519 key in a note: from SHA-256(name || 0x0A || 0x01 || the raw key of 32 bytes)."""
    raw = load_public_key("ed25519", public_key_der).public_bytes_raw()
    return hashlib.sha256(name.encode() + b"\n" + ED25519_TYPE + raw).digest()[:4]


def verifier_key(name: str, public_key_der: bytes) -> str:
    """An Ed25519 key as other programs take it (c2sp.org/signed-note, "Verifier keys"): ``name+<key id, hex>+<type and key, base64>``.

    Raises ValidationError for another kind of key, or a name that cannot stand in a note.
    """
    key = load_public_key("ed25519", public_key_der)
    if key is None or _NAME.fullmatch(name) is None:
        raise _wrong("its key is an Ed25519 key, and the name holds no plus sign and no white space")
    encoded = base64.b64encode(ED25519_TYPE + key.public_bytes_raw()).decode("ascii")
    return f"{name}+{note_key_id(name, public_key_der).hex()}+{encoded}"


def sign_checkpoint(
    origin: str, size: int, root: bytes, *, public_key_der: bytes, sign: Callable[[bytes], bytes]
) -> bytes:
    """The signed note, its key named as the log is.

    ``sign`` gives the 64 bytes of an Ed25519 signature over the text. Only over committed entries, and never two roots for one
    size. Raises SignerUnavailable when the signature does not verify, ValidationError when the key or a value does not fit.
    """
    if load_public_key("ed25519", public_key_der) is None:
        raise _wrong("its key is an Ed25519 key as DER SubjectPublicKeyInfo")
    text = checkpoint_text(origin, size, root)
    signature = sign(text)
    if not verify_signature("ed25519", public_key_der, text, signature):
        raise SignerUnavailable("The checkpoint's signature does not verify with its own key; nothing was published.")
    line = base64.b64encode(note_key_id(origin, public_key_der) + signature).decode("ascii")
    return text + f"\n— {origin} {line}\n".encode()


def parse_checkpoint(note: bytes) -> Checkpoint:
    """Read a signed note; says nothing of its signatures yet. Raises ValidationError unless it has exactly the one form."""
    if len(note) > MAX_NOTE:
        raise _wrong(f"a signed note has at most {MAX_NOTE:,} bytes")
    try:
        text, blank, signed = note.decode("utf-8").rpartition("\n\n")
    except UnicodeDecodeError:
        raise _wrong("a signed note is UTF-8") from None
    lines = signed.split("\n")
    match = _TEXT.fullmatch(text + "\n")
    if not blank or match is None or lines.pop() != "":
        raise _wrong("it is origin, size and base64 root, a blank line, and signature lines")
    if not 1 <= len(lines) <= MAX_SIGNATURES:
        raise _wrong(f"it has 1 to {MAX_SIGNATURES} signature lines")
    root = decode_signature(match[3])
    if root is None or len(root) != 32:
        raise _wrong("its root is 32 bytes in standard base64 with padding")
    signatures = tuple(_signature_line(line) for line in lines)
    return Checkpoint(match[1], int(match[2]), root, match[0].encode("ascii"), signatures, note)


def _signature_line(line: str) -> NoteSignature:
    match = _SIGNATURE.fullmatch(line)
    data = decode_signature(match[2]) if match is not None else None
    if match is None or data is None or len(data) < 5:
        raise _wrong("a signature line is an em dash, a name and base64 of a key id and a signature")
    return NoteSignature(match[1], data[:4], data[4:])


def check_checkpoint(checkpoint: Checkpoint, trust_root: TrustRoot, *, source: str = "checkpoint") -> Finding | None:
    """What is wrong with a checkpoint's origin or signatures, or None.

    At least one signature must be by a key that the trust root has for checkpoints of that size, and none that such a key is
    said to have made may fail. Lines by other keys (witnesses, say) are passed over. ``source`` names the note in the finding.
    """
    if checkpoint.origin != trust_root.origin:
        return Finding("ORIGIN_MISMATCH", trust_root.origin, checkpoint.origin, file=source)
    known = _known(trust_root)
    outside: Finding | None = None
    signed = False
    for line in checkpoint.signatures:
        key = known.get((line.name, line.key_id))
        if key is None:
            continue
        if not verify_signature(key.algorithm, key.public_key, checkpoint.text, line.signature):
            expected = f"a signature of key {key.key_id} over the checkpoint"
            return Finding("CHECKPOINT_INVALID", expected, line.signature.hex()[:160], file=source)
        problem = _outside(key, checkpoint.size, source)
        outside, signed = outside or problem, signed or problem is None
    if signed:
        return None
    if outside is not None:
        return outside
    names = ", ".join(f"{line.name}+{line.key_id.hex()}" for line in checkpoint.signatures)[:160]
    return Finding("KEY_UNKNOWN", "a signature by a checkpoint key of the trust root", names, file=source)


@lru_cache(maxsize=16)
def _known(trust_root: TrustRoot) -> dict[tuple[str, bytes], TrustedKey]:
    """Every Ed25519 key of the trust root by its name in a note; one for checkpoints goes before the same for another purpose."""
    keys = sorted(trust_root.keys, key=lambda key: key.purpose == "checkpoint")
    name = trust_root.origin
    return {(name, note_key_id(name, key.public_key)): key for key in keys if key.algorithm == "ed25519"}


def _outside(key: TrustedKey, size: int, source: str) -> Finding | None:
    """Whether a key may sign for the last entry that a tree of ``size`` holds."""
    if key.purpose != "checkpoint":
        expected, found = "a key for checkpoints", f"key {key.key_id} for {key.purpose}"
        return Finding("KEY_NOT_AUTHORISED_FOR_EPOCH", expected, found, file=source)
    last = max(size - 1, 0)
    if last < key.from_seq:
        expected, found = f"entries from {key.from_seq}", f"key {key.key_id} earlier"
        return Finding("KEY_NOT_AUTHORISED_FOR_EPOCH", expected, found, file=source)
    if key.to_seq is not None and last > key.to_seq:
        return Finding("KEY_EPOCH_CLOSED", f"entries up to {key.to_seq}", f"key {key.key_id} later", file=source)
    return None


def _wrong(rule: str) -> ValidationError:
    return ValidationError(f"This is not a checkpoint: {rule}.", details=[Problem("checkpoint", rule)])

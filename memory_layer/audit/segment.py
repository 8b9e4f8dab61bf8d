"""An archive segment: its files, its signed manifest and its encrypted payloads. Format: ``docs/audit-format.md``, "Archive"."""

from __future__ import annotations

import base64
import hashlib
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from memory_layer import canonical
from memory_layer.audit.bundle import parse_payload_line
from memory_layer.audit.entry import INTEGER, SALT_BYTES, leaf_hash, parse_entry
from memory_layer.audit.form import Form
from memory_layer.audit.manifest import (
    ENTRIES,
    MANIFEST,
    MAX_MANIFEST,
    PAYLOADS,
    SEALS,
    SIGNED,
    Head,
    check_manifest_signature,
    read_base,
    read_head,
)
from memory_layer.audit.seal import decode_signature, encode_signature, seal_hash
from memory_layer.audit.seal_chain import Base
from memory_layer.audit.signed import signed_text
from memory_layer.audit.tree import HASH_BYTES
from memory_layer.audit.trust_root import TrustRoot
from memory_layer.audit.verdict import Finding
from memory_layer.errors import MemoryLayerError, ValidationError

FORMAT: Final = "memory-layer/archive-segment/v1"
CHECKPOINT: Final = "checkpoint"
FILES: Final = (ENTRIES, PAYLOADS, SEALS, CHECKPOINT)
KEY_BYTES: Final = 32
CLEAR: Final = frozenset({"audit.key.activated", "audit.key.retired"})  # whose payloads stand in an archive in clear
NAME: Final = re.compile(
    r"([0-9]{15})-([0-9]{15})(?:-a([1-9][0-9]{0,3}))?"
)  # of a segment's folder: first and last entry

_FORM: Final = Form("the manifest of an archive segment")
_SEALED: Final = re.compile(
    rb'\{"ciphertext":"([A-Za-z0-9+/]+={0,2})","keys":\[((?:"[0-9a-f-]{36}",?)+)\],"seq":(' + INTEGER.encode() + rb")\}"
)
_NONCE: Final = bytes(12)  # each key encrypts one payload alone, see content_key


class Stored(NamedTuple):
    """A file of a segment: its object's key and version, its length and SHA-256, and the length of what a gzip file holds."""

    key: str
    version: str
    bytes: int
    sha256: str
    expanded: int | None = None


class Locked(NamedTuple):
    """The lock that was set with each file; ``until`` as in an entry."""

    mode: str
    until: str


@dataclass(frozen=True, slots=True)
class Segment:
    """The content of a segment's ``manifest.json`` but for its signature.

    ``checkpoint``: size of the signed checkpoint beside it, and the proof (RFC 9162) that it continues the tree that ends with ``head``.
    ``previous``: SHA-256 of the whole manifest of the segment before; None of the first.
    """

    number: int
    origin: str
    base: Base
    head: Head
    counts: dict[str, int]
    files: dict[str, Stored]
    checkpoint: tuple[int, tuple[bytes, ...]]
    lock: Locked
    previous: str | None
    time: str
    tool: str


def folder_name(first: int, last: int, attempt: int = 0) -> str:
    """The folder of a segment; ``attempt`` counts those that were begun for the range and could not be finished."""
    return f"{first:015d}-{last:015d}" + (f"-a{attempt}" if attempt else "")


# --- The manifest ------------------------------------------------------------------------------------------------------


def sign_segment(segment: Segment, key: str, alg: str, sign: Callable[[bytes], bytes]) -> bytes:
    """The bytes of ``manifest.json``: RFC 8785, signed. ``sign`` gives the raw signature. Raises ValidationError on a misfit."""
    document = _document(segment)
    text = signed_text(SIGNED, canonical.dumps(document), segment.origin, key, alg)
    signature = {"alg": alg, "key": key, "value": encode_signature(sign(text))}
    data = canonical.dumps(document | {"signature": signature})
    load_segment(data)
    return data


def load_segment(data: bytes) -> Segment:
    """Read a segment's manifest, its signature unchecked. Raises ValidationError unless it has exactly the one form."""
    if len(data) > MAX_MANIFEST:
        raise _FORM.wrong(f"it has more than {MAX_MANIFEST:,} bytes")
    try:
        document = canonical.loads(data)
        if canonical.dumps(document) != data:
            raise _FORM.wrong("it is not in its canonical form")
        return _segment(document)
    except ValidationError:
        raise
    except MemoryLayerError as error:
        raise _FORM.wrong(error.message) from None


def check_segment_signature(data: bytes, root: TrustRoot, file: str) -> Finding | None:
    """What is wrong with the signature in a manifest that ``load_segment`` takes, or None."""
    document = canonical.loads(data)
    signature = document.pop("signature")
    plain = canonical.dumps(document)
    text = signed_text(SIGNED, plain, document["origin"], signature["key"], signature["alg"])
    whole = text + b"signature " + signature["value"].encode("ascii") + b"\n"
    problem = check_manifest_signature(plain, document["head"]["seq"], whole, root)
    if problem is None:
        return None
    problem = replace(problem, file=file)
    if problem.code != "KEY_UNKNOWN":
        return problem
    # Archive and manifest swapped together, by somebody who lacks the key: the segment is not ours.
    expected = "a signature by a manifest key of the trust root"
    return Finding("MANIFEST_SIGNATURE_INVALID", expected, problem.found, file=file, consequences=(problem,))


def _document(segment: Segment) -> dict[str, Any]:
    base, (size, proof) = segment.base, segment.checkpoint
    files = {name: {k: v for k, v in file._asdict().items() if v is not None} for name, file in segment.files.items()}
    b64 = base64.b64encode
    return {
        "format": FORMAT,
        "number": segment.number,
        "origin": segment.origin,
        "base": base._asdict() | {"tree": b64(base.tree).decode("ascii"), "ts": base.ts or None},
        "head": segment.head._asdict(),
        "counts": segment.counts,
        "files": files,
        "checkpoint": {"size": size, "proof": [b64(step).decode("ascii") for step in proof]},
        "lock": segment.lock._asdict(),
        "previous": segment.previous,
        "time": segment.time,
        "tool": segment.tool,
    }


def _segment(document: Any) -> Segment:
    names = "base checkpoint counts files format head lock number origin previous signature time tool"
    top = _FORM.members(document, names, "the manifest")
    if top["format"] != FORMAT:
        raise _FORM.wrong(f"format is not {FORMAT}")
    point = _FORM.members(top["checkpoint"], "proof size", "checkpoint")
    lock = _FORM.members(top["lock"], "mode until", "lock")
    counts = _FORM.members(top["counts"], "entries payloads seals", "counts")
    files = _FORM.members(top["files"], " ".join(sorted(FILES)), "files")
    signature = _FORM.members(top["signature"], "alg key value", "signature")
    for name, value in signature.items():
        if re.fullmatch(r"[!-~]{1,8192}", _FORM.text(value, f"signature.{name}")) is None:
            raise _FORM.wrong(f"signature.{name} is not text of one line")
    proof = point["proof"]
    if not isinstance(proof, list) or len(proof) > 128:
        raise _FORM.wrong("checkpoint.proof is not a list of at most 128 hashes")
    steps = [decode_signature(_FORM.text(step, "checkpoint.proof")) for step in proof]
    if any(step is None or len(step) != HASH_BYTES for step in steps):
        raise _FORM.wrong("checkpoint.proof holds something else than hashes")
    made = Segment(
        number=_FORM.integer(top["number"], "number"),
        origin=_FORM.text(top["origin"], "origin"),
        base=read_base(_FORM, top["base"]),
        head=read_head(_FORM, top["head"]),
        counts={name: _FORM.integer(value, f"counts.{name}") for name, value in counts.items()},
        files={name: _file(name, value) for name, value in files.items()},
        checkpoint=(_FORM.integer(point["size"], "checkpoint.size"), tuple(step for step in steps if step is not None)),
        lock=Locked(_FORM.text(lock["mode"], "lock.mode"), _FORM.time(lock["until"], "lock.until")),
        previous=None if top["previous"] is None else _FORM.hash(top["previous"], "previous"),
        time=_FORM.time(top["time"], "time"),
        tool=_FORM.text(top["tool"], "tool"),
    )
    if made.head.seq - made.base.seq + 1 != made.counts["entries"] or not made.counts["entries"]:
        raise _FORM.wrong("base, head and counts.entries do not agree")
    if made.checkpoint[0] <= made.head.seq:
        raise _FORM.wrong("its checkpoint does not cover its entries")
    return made


def _file(name: str, value: Any) -> Stored:
    names = "bytes key sha256 version" + (" expanded" if name.endswith(".gz") else "")
    facts = _FORM.members(value, names, f"files.{name}")
    key = _FORM.text(facts["key"], f"files.{name}.key")
    if key.rpartition("/")[2] != name:
        raise _FORM.wrong(f"files.{name}.key names another file")
    return Stored(
        key,
        _FORM.text(facts["version"], f"files.{name}.version"),
        _FORM.integer(facts["bytes"], f"files.{name}.bytes"),
        _FORM.hash(facts["sha256"], f"files.{name}.sha256"),
        _FORM.integer(facts["expanded"], f"files.{name}.expanded") if name.endswith(".gz") else None,
    )


# --- Payloads ----------------------------------------------------------------------------------------------------------


class Sealed(NamedTuple):
    """A payload as an archive holds it. ``keys``: handles of the data keys that it takes, all of them, in order."""

    seq: int
    keys: tuple[uuid.UUID, ...]
    ciphertext: bytes


class Clear(NamedTuple):
    """The payload of an entry about keys, which is public."""

    seq: int
    salt: bytes
    payload: bytes


def encrypt_payload(
    origin: str, seq: int, commitment: str, keys: Mapping[uuid.UUID, bytes], salt: bytes, payload: bytes
) -> bytes:
    """The line of an encrypted payload. ``keys``: the data key, of 32 bytes, of each person (or the tenant) by its handle."""
    handles = sorted(keys)
    ciphertext = AESGCM(_content_key(origin, seq, commitment, [keys[handle] for handle in handles])).encrypt(
        _NONCE, salt + payload, None
    )
    names = b",".join(b'"%b"' % str(handle).encode("ascii") for handle in handles)
    return b'{"ciphertext":"%b","keys":[%b],"seq":%d}' % (base64.b64encode(ciphertext), names, seq)


def decrypt_payload(origin: str, commitment: str, sealed: Sealed, keys: Sequence[bytes]) -> tuple[bytes, bytes] | None:
    """(salt, payload), with the data keys in the order of ``sealed.keys``; None where they are not those that it was encrypted with."""
    try:
        plain = AESGCM(_content_key(origin, sealed.seq, commitment, keys)).decrypt(_NONCE, sealed.ciphertext, None)
    except InvalidTag:
        return None
    return plain[:SALT_BYTES], plain[SALT_BYTES:]


def parse_line(line: bytes) -> Sealed | Clear | None:
    """A line of ``payloads.ndjson.gz``, or None where it is not in its one form."""
    if line.startswith(b'{"payload":'):
        found = parse_payload_line(line)
        return None if found is None else Clear(*found)
    match = _SEALED.fullmatch(line)
    if match is None:
        return None
    names = match[2].decode("ascii").split(",")
    try:
        handles = tuple(uuid.UUID(name.strip('"')) for name in names)
        ciphertext = base64.b64decode(match[1], validate=True)
    except ValueError:
        return None
    if names != [f'"{handle}"' for handle in sorted(set(handles))] or base64.b64encode(ciphertext) != match[1]:
        return None
    return Sealed(int(match[3]), handles, ciphertext) if len(ciphertext) >= SALT_BYTES + 16 else None


def _content_key(origin: str, seq: int, commitment: str, keys: Sequence[bytes]) -> bytes:
    """From all data keys, so that the loss of any one ends it; of one entry's one payload, so that it encrypts nothing else."""
    info = f"memory-layer/archive-payload/v1\0{origin}\0{seq}\0{commitment}".encode("ascii")
    return HKDF(SHA256(), KEY_BYTES, None, info).derive(b"".join(keys))


# --- What a reader computes of a segment -------------------------------------------------------------------------------


def head_of(entry: bytes, batch: int, seal_text: bytes) -> Head:
    """The end of a range by its last entry and seal."""
    return Head(parse_entry(entry).seq, leaf_hash(entry), batch, seal_hash(seal_text))


def digest_of(data: bytes) -> str:
    """SHA-256 of a manifest's bytes, by which the next one names it."""
    return hashlib.sha256(data).hexdigest()


__all__ = [
    "CHECKPOINT", "CLEAR", "ENTRIES", "FILES", "FORMAT", "KEY_BYTES", "MANIFEST", "NAME", "PAYLOADS", "SEALS", "Clear", "Head", "Locked",
    "Sealed", "Segment", "Stored", "check_segment_signature", "decrypt_payload", "digest_of", "encrypt_payload", "folder_name", "head_of",
    "load_segment", "parse_line", "sign_segment",
]  # fmt: skip

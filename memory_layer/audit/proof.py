"""Proof that one entry is in a log, verifiable alone and offline (c2sp.org/tlog-proof@v1).

Format: ``docs/audit-format.md``, "Proofs".
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from memory_layer.audit.checkpoint import MAX_NOTE, Checkpoint, check_checkpoint, parse_checkpoint
from memory_layer.audit.entry import INTEGER, leaf_hash, parse_entry
from memory_layer.audit.seal import decode_signature
from memory_layer.audit.tree import HASH_BYTES, MAX_PROOF, verify_inclusion
from memory_layer.audit.trust_root import TrustRoot
from memory_layer.audit.verdict import Finding
from memory_layer.errors import Problem, ValidationError

HEADER: Final = "c2sp.org/tlog-proof@v1"
MEDIA_TYPE: Final = "text/plain; charset=utf-8"
MAX_TEXT: Final = MAX_NOTE + 92_000  # an entry of the largest size in base64, and the hashes

_PROOF: Final = re.compile(
    rf"{re.escape(HEADER)}\n"
    r"(?:extra ([A-Za-z0-9+/]+={0,2})\n)?"
    rf"index ({INTEGER})\n"
    rf"((?:[A-Za-z0-9+/]{{43}}=\n){{0,{MAX_PROOF}}})\n"
)


@dataclass(frozen=True, slots=True)
class Proof:
    """Entry ``index`` of the tree that ``checkpoint`` signs; ``path`` from its sibling up, 32 bytes each.

    ``entry`` is the entry's bytes where the proof carries them. They are not proved until the proof is verified.
    """

    index: int
    path: tuple[bytes, ...]
    checkpoint: Checkpoint
    entry: bytes | None


def build_proof(index: int, path: Sequence[bytes], note: bytes, *, entry: bytes | None = None) -> bytes:
    """The text of a proof; with ``entry`` it carries the entry itself and needs nothing beside it.

    ``note`` is a signed checkpoint, ``path`` the inclusion proof in its tree. Raises ValidationError when they do not fit.
    """
    extra = "" if entry is None else f"extra {base64.b64encode(entry).decode('ascii')}\n"
    hashes = "".join(f"{base64.b64encode(value).decode('ascii')}\n" for value in path)
    text = f"{HEADER}\n{extra}index {index}\n{hashes}\n".encode("ascii") + note
    parse_proof(text)
    return text


def parse_proof(text: bytes) -> Proof:
    """Read a proof; says nothing of its truth yet. Raises ValidationError unless it has exactly the one form."""
    if len(text) > MAX_TEXT:
        raise _wrong(f"a proof has at most {MAX_TEXT:,} bytes")
    match = _PROOF.match(text.decode("latin-1"))
    if match is None:
        raise _wrong("it has a header, the index, the hashes, a blank line and a checkpoint")
    entry = decode_signature(match[1]) if match[1] is not None else None
    path = [decode_signature(line) for line in match[3].splitlines()]
    hashes = tuple(value for value in path if value is not None and len(value) == HASH_BYTES)
    if len(hashes) != len(path) or (entry is None) != (match[1] is None):
        raise _wrong("its hashes and its entry are standard base64 with padding")
    return Proof(int(match[2]), hashes, parse_checkpoint(text[match.end() :]), entry)


def verify_proof(
    proof: Proof, trust_root: TrustRoot, *, entry: bytes | None = None, source: str = "proof"
) -> Finding | None:
    """What is wrong with a proof, or None: then the log of the trust root holds the entry at that index.

    ``entry`` is the entry's bytes as the caller has them, and needed where the proof does not carry them. The entry names its own
    log and place, so a proof for another place or log cannot be passed off. ``source`` names the proof in the finding.
    """
    problem = check_checkpoint(proof.checkpoint, trust_root, source=source)
    if problem is not None:
        return problem
    if entry is None:
        entry = proof.entry
    elif proof.entry is not None and proof.entry != entry:
        return Finding("PROOF_INVALID", "the entry that was given", "another one in the proof", file=source)
    if entry is None:
        return Finding("PROOF_INVALID", "an entry, given or in the proof", "neither", file=source)
    try:
        members = parse_entry(entry)
    except ValidationError:
        expected = "an entry of version 1 or 2 in canonical form"
        return Finding("NONCANONICAL_ENCODING", expected, repr(entry[:160]), file=source)
    if members.log != trust_root.origin:
        return Finding("ORIGIN_MISMATCH", trust_root.origin, members.log, file=source)
    if members.seq != proof.index:
        return Finding("PROOF_INVALID", f"index {members.seq} as in the entry", f"{proof.index}", file=source)
    head = proof.checkpoint
    if not verify_inclusion(bytes.fromhex(leaf_hash(entry)), proof.index, head.size, proof.path, head.root):
        expected = f"hashes that lead to the root of size {head.size}"
        return Finding("PROOF_INVALID", expected, f"{len(proof.path)} that do not", seq=members.seq, file=source)
    return None


def _wrong(rule: str) -> ValidationError:
    return ValidationError(f"This is not a proof: {rule}.", details=[Problem("proof", rule)])

"""A row of the log as the verifier reads it, and where the columns beside an entry differ from what they repeat."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from memory_layer.audit.entry import GROUP
from memory_layer.audit.seal import decode_signature
from memory_layer.audit.seal_chain import SealChain
from memory_layer.audit.verdict import Draft

# In the order of ``Row``; the names are those of the entry's members.
COLUMNS: Final = ("id", "ts", "type", "tenant", "node", "artifact", "manifest_signature_id")
_HEX64: Final = re.compile(r"[0-9a-f]{64}")


class Row(NamedTuple):
    """One entry as stored: its bytes and the columns beside them.

    The columns are compared as text: ids in lower case with dashes, ``ts`` as ``format_ts`` writes it. ``salt`` and ``payload``
    are None when the payload is not there.
    """

    seq: int
    batch_no: int
    entry: bytes
    hash: str
    prev_hash: str
    signature: str | None
    id: str
    ts: str
    type: str
    tenant: str | None
    node: str | None
    artifact: str | None
    manifest_signature_id: str | None
    salt: bytes | None = None
    payload: bytes | None = None


def bare(seq: int, entry: bytes, salt: bytes | None = None, payload: bytes | None = None) -> Row:
    """An entry without columns, for ``verify`` with ``columns`` False."""
    # Past the constructor's argument handling: half the time, once for each entry of an export.
    return tuple.__new__(Row, (seq, 0, entry, "", "", None, "", "", "", None, None, None, None, salt, payload))


def encoding(seq: int, expected: str, found: str) -> Draft:
    """Entry ``seq`` or something about it is not in its one form."""
    return Draft("NONCANONICAL_ENCODING", expected, found, seq=seq)


def differing_columns(row: Row, match: re.Match[str] | None, digest: str) -> list[Draft]:
    """Where the columns beside an entry differ from it."""
    seq, drafts = row.seq, []
    hashes = [("hash", row.hash, digest)]
    if match is not None:
        hashes.append(("prev_hash", row.prev_hash, match[GROUP["prev"]]))
    for name, stored, true in hashes:
        if _HEX64.fullmatch(stored) is None:
            drafts.append(encoding(seq, f"{name} as 64 digits of lower-case hex", repr(stored[:160])))
        elif stored != true:
            drafts.append(Draft("PROJECTION_MISMATCH", f"{name} {true}", stored, seq=seq))
    if match is not None:
        for name, stored_text in zip(COLUMNS, row[6:13], strict=True):
            if stored_text != match[GROUP[name]]:
                expected = f"{name} {match[GROUP[name]]} as in the entry"
                drafts.append(Draft("PROJECTION_MISMATCH", expected, f"{stored_text}", seq=seq))
    return drafts


def differing_seal(row: Row, chain: SealChain) -> list[Draft]:
    """Where the columns of the batch differ from its seal."""
    seq, drafts = row.seq, []
    if chain.batch is None:
        return [Draft("SEAL_MISSING", "a seal that covers the entry", "none", seq=seq)]
    if row.batch_no != chain.batch:
        drafts.append(Draft("PROJECTION_MISMATCH", f"batch_no {chain.batch} by the seals", f"{row.batch_no}", seq=seq))
    if row.signature != chain.signature:
        if not row.signature:
            drafts.append(Draft("SEAL_MISSING", "the signature of the batch", "none", seq=seq))
        elif decode_signature(row.signature) is None:
            drafts.append(encoding(seq, "standard base64 with padding", repr(row.signature[:160])))
        else:
            drafts.append(Draft("SEAL_INVALID", "the signature of the batch", row.signature[:160], seq=seq))
    return drafts

"""The end of a log as its database shows it: whether the newest seal's row is what the keys of the log signed.

What seals the next batch builds on that row, so it is judged before: its columns against the signed text, the signature under the key
whose turn it was, and that nothing stands behind it. Which key had to seal is proved from the trust root on: each later key by the entry
that activates it, under a seal of the key before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from memory_layer.audit.entry import leaf_hash, parse_entry, payload_commitment
from memory_layer.audit.seal import decode_signature, parse_seal, verify_signature
from memory_layer.audit.trust_root import TrustedKey, TrustRoot, parse_activation
from memory_layer.errors import ValidationError


class End(NamedTuple):
    """A row of ``audit_seals``; ``time`` is ``created_at`` as entries write it."""

    batch_no: int
    first_seq: int
    last_seq: int
    head: str
    seal_text: str
    signature: str
    key_id: str
    algorithm: str
    time: str


class Epoch(NamedTuple):
    """From entry ``from_seq`` on, up to the next epoch, this key seals."""

    from_seq: int
    key: TrustedKey


def first_epoch(root: TrustRoot, key_id: str) -> Epoch:
    """The key that began the log. Raises ValidationError where the trust root does not have it."""
    key = next((key for key in root.keys if key.key_id == key_id and key.purpose == "seal"), None)
    if key is None:
        raise ValidationError(f"its first key, {key_id[:16]}..., is not in the trust root")
    return Epoch(0, key)


def prove_activation(origin: str, from_seq: int, before: TrustedKey, row: Mapping[str, Any]) -> TrustedKey:
    """The key that seals from entry ``from_seq`` on, as the entry in front of it says under a seal of the key before.

    ``row``: ``entry``, ``salt`` and ``payload`` of that entry, ``seal_text`` and ``signature`` of its batch, each of which may be None.
    Raises ValidationError, which says what is missing.
    """
    if row["entry"] is None or row["payload"] is None or row["seal_text"] is None:
        raise ValidationError("there is no audit.key.activated at that place")
    text, signature = row["seal_text"].encode(), decode_signature(row["signature"])
    if signature is None or not verify_signature(before.algorithm, before.public_key, text, signature):
        raise ValidationError("it is not sealed by the key before")
    seal, entry, payload = parse_seal(text), parse_entry(bytes(row["entry"])), bytes(row["payload"])
    if (seal.log, seal.last, seal.head) != (origin, from_seq - 1, leaf_hash(bytes(row["entry"]))):
        raise ValidationError("its seal is of another entry")
    if entry.type != "audit.key.activated" or entry.payload != payload_commitment(bytes(row["salt"]), payload):
        raise ValidationError("its payload is not what the entry commits to")
    key = parse_activation(payload).key
    if key.from_seq != from_seq:
        raise ValidationError("it is of another entry")
    return key


def prove_epochs(origin: str, first: Epoch, rows: Sequence[Mapping[str, Any]]) -> list[Epoch]:
    """All epochs of a log. ``rows``: those of ``audit_keys`` in order, each with what ``prove_activation`` asks for.

    Raises ValidationError, which names the key that nothing proves.
    """
    epochs = [first]
    for row in rows:
        from_seq, key_id = row["from_seq"], row["key_id"]
        what = f"the key {key_id[:16]}... is said to seal from entry {from_seq} on, and nothing proves it"
        try:
            key = prove_activation(origin, from_seq, epochs[-1].key, row)
        except ValidationError as error:
            raise ValidationError(f"{what}: {error.message}") from None
        if (key.key_id, key.algorithm, key.public_key) != (key_id, row["algorithm"], bytes(row["public_key"])):
            raise ValidationError(f"{what}: the entry activates another key")
        epochs.append(Epoch(from_seq, key))
    return epochs


def fault_of(origin: str, root: TrustRoot, epochs: Sequence[Epoch], end: End) -> str | None:
    """What is wrong with the newest seal, in words; None where nothing is."""
    try:
        seal = parse_seal(end.seal_text.encode())
    except (ValidationError, UnicodeEncodeError):
        return f"the text of its seal {end.batch_no} is none"
    signed: dict[str, tuple[object, object]] = {
        "log": (origin, seal.log),
        "batch_no": (end.batch_no, seal.batch),
        "first_seq": (end.first_seq, seal.first),
        "last_seq": (end.last_seq, seal.last),
        "head": (end.head, seal.head),
        "key_id": (end.key_id, seal.key),
        "algorithm": (end.algorithm, seal.alg),
        "created_at": (end.time, seal.time),
    }
    for column, (stored, meant) in signed.items():
        if stored != meant:
            return f"{column} of its newest seal is {stored}, and {meant} was signed"
    epoch = next(epoch for epoch in reversed(epochs) if epoch.from_seq <= max(seal.first, 0))
    if seal.key != epoch.key.key_id:
        return (
            f"its seal {seal.batch} is by the key {seal.key[:16]}..., and it was the turn of {epoch.key.key_id[:16]}..."
        )
    if seal.alg != epoch.key.algorithm:
        return f"its seal {seal.batch} is by {seal.alg}, and its key is for {epoch.key.algorithm}"
    pinned = next((key for key in root.keys if key.key_id == seal.key and key.purpose == "seal"), None)
    if pinned is not None and pinned.to_seq is not None and seal.last > pinned.to_seq:
        return f"its seal {seal.batch} is by the key {seal.key[:16]}..., whose time the trust root ends with entry {pinned.to_seq}"
    signature = decode_signature(end.signature)
    if signature is None or not verify_signature(seal.alg, epoch.key.public_key, end.seal_text.encode(), signature):
        return f"the signature of its seal {seal.batch} does not verify"
    return None

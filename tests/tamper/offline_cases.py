"""What is done to an exported log, what the verifier must call it, and with which exit code: the table of the offline suite."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from memory_layer.audit import trust_root
from memory_layer.audit.anchors import CheckpointRow
from memory_layer.audit.checkpoint import Checkpoint, parse_checkpoint
from memory_layer.audit.trust_root import TrustRoot
from tests.support.real_log import Forgery, RealLog, note_for

Mutation = Callable[[Forgery, RealLog], None]
STRANGER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@dataclass(frozen=True)
class Case:
    """``anchors``, ``root``, ``how``: what the auditor brings; by default the newest checkpoint and the log's own trust root."""

    name: str
    mutate: Mutation
    code: str | None
    exit: int
    anchors: Callable[[RealLog], list[Checkpoint]] = lambda log: [log.anchor]
    root: Callable[[RealLog], TrustRoot] = lambda log: log.root
    how: dict[str, Any] = dataclasses.field(default_factory=dict)


def nothing(forged: Forgery, log: RealLog) -> None:
    """Only what the auditor brings differs."""


def none(log: RealLog) -> list[Checkpoint]:
    return []


def payload_edited(forged: Forgery, log: RealLog) -> None:
    seq, salt, payload = forged.payloads[forged.middle()]
    forged.payloads[forged.middle()] = seq, salt, payload.replace(b"turn", b"Turn", 1) + b" "


def payload_gone(forged: Forgery, log: RealLog) -> None:
    del forged.payloads[forged.middle()]


def entry_edited(forged: Forgery, log: RealLog) -> None:
    forged.edit(forged.middle(), b'"auth":"jwt"', b'"auth":"mtls"')


def last_of_batch_edited(forged: Forgery, log: RealLog) -> None:
    forged.edit(forged.span(forged.long_batch())[1], b'"auth":"jwt"', b'"auth":"mtls"')


def entries_swapped(forged: Forgery, log: RealLog) -> None:
    place = forged.middle()
    forged.entries[place : place + 2] = forged.entries[place : place + 2][::-1]


def distant_entries_swapped(forged: Forgery, log: RealLog) -> None:
    one, two = forged.middle(), forged.middle() + 700
    forged.entries[one], forged.entries[two] = forged.entries[two], forged.entries[one]


def entry_gone(forged: Forgery, log: RealLog) -> None:
    del forged.entries[forged.middle()]


def entry_twice(forged: Forgery, log: RealLog) -> None:
    forged.entries.insert(forged.middle(), forged.entries[forged.middle()])


def batch_gone(forged: Forgery, log: RealLog) -> None:
    batch = forged.long_batch()
    first, last = forged.span(batch)
    del forged.entries[first : last + 1], forged.seals[batch]
    forged.payloads = [payload for payload in forged.payloads if not first <= payload[0] <= last]


def seal_gone(forged: Forgery, log: RealLog) -> None:
    del forged.seals[forged.long_batch()]


def last_seal_gone(forged: Forgery, log: RealLog) -> None:
    del forged.seals[-1]


def head_of_another(forged: Forgery, log: RealLog) -> None:
    batch = forged.long_batch()
    head = forged.seals[batch].text.split(b"head ")[1][:64]
    forged.reseal(batch, log.key(), old=head, new=b"0" * 64)


def time_of_another(forged: Forgery, log: RealLog) -> None:
    forged.reseal(len(forged.seals) - 1, log.key(), old=b"\ntime 20", new=b"\ntime 21")


def range_incomplete(forged: Forgery, log: RealLog) -> None:
    del forged.entries[-1], forged.payloads[-1]


def tail_gone(forged: Forgery, log: RealLog) -> None:
    forged.truncate(30)


def all_gone(forged: Forgery, log: RealLog) -> None:
    forged.entries, forged.payloads, forged.seals, forged.checkpoints = [], [], [], []


def beginning_gone(forged: Forgery, log: RealLog) -> None:
    first = forged.span(20)[0]
    del forged.entries[:first], forged.seals[:20]
    forged.payloads = [payload for payload in forged.payloads if payload[0] >= first]


def same_parent_twice(forged: Forgery, log: RealLog) -> None:
    place = forged.middle()
    forged.edit(place + 1, forged.get(place + 1, "prev").encode(), forged.get(place, "prev").encode())


def two_seals_for_a_batch(forged: Forgery, log: RealLog) -> None:
    forged.seals.insert(60, forged.seals[60])
    forged.reseal(61, log.key(), old=b"\ntime 20", new=b"\ntime 21")


def two_heads(log: RealLog) -> list[Checkpoint]:
    return [log.anchor, parse_checkpoint(note_for(log, log.anchor.size, bytes(32)))]


def stored_head_of_another(forged: Forgery, log: RealLog) -> None:
    row = forged.checkpoints[1]
    forged.checkpoints[1] = CheckpointRow(row.size, bytes(32), note_for(log, row.size, bytes(32)))


def checkpoint_unsigned(forged: Forgery, log: RealLog) -> None:
    row = forged.checkpoints[1]
    assert row.note is not None
    line = row.note.decode().rstrip("\n").split(" ")
    raw = bytearray(base64.b64decode(line[-1]))
    raw[-1] ^= 1
    note = " ".join([*line[:-1], base64.b64encode(bytes(raw)).decode()]) + "\n"
    forged.checkpoints[1] = CheckpointRow(row.size, row.root, note.encode())


def rewritten_by_the_keeper(forged: Forgery, log: RealLog) -> None:
    """The holder of the sealing key changes history, and the stored checkpoints with it."""
    place = forged.middle()
    forged.member(place, request_id="another")
    forged.rechain(log.key(), place)
    forged.checkpoints = []


def id_used_twice(forged: Forgery, log: RealLog) -> None:
    place = forged.middle()
    forged.member(place + 1, id=forged.get(place, "id"))
    forged.rechain(log.key(), place)
    forged.checkpoints = []


def id_of_another_day(forged: Forgery, log: RealLog) -> None:
    place = forged.middle()
    id_ = forged.get(place, "id")
    forged.member(place, id=f"{int(id_[:8], 16) - 0x100:08x}{id_[8:]}")  # 2^24 milliseconds, 4.7 hours
    forged.rechain(log.key(), place)
    forged.checkpoints = []


def clock_turned_back(forged: Forgery, log: RealLog) -> None:
    batch = forged.long_batch()
    first, last = forged.span(batch)
    ts = forged.get(first, "ts")
    before = ts[:15] + ("4" if ts[15] == "5" else "5") + ts[16:] if ts[15] > "4" else ts[:14] + "00:00.000000Z"
    earlier = min(before, ts[:17] + "00.000000Z", ts[:14] + "00:00.000000Z")
    for place in range(first, last + 1):
        forged.member(place, ts=earlier)
    forged.rechain(log.key(), first)
    forged.checkpoints = []


def sealed_by_a_stranger(forged: Forgery, log: RealLog) -> None:
    forged.rechain(STRANGER, len(forged.entries) - 5)


def sealed_by_the_checkpoint_key(forged: Forgery, log: RealLog) -> None:
    forged.rechain(log.key("checkpoint"), len(forged.entries) - 5)


def sealed_without_a_signature(alg: str) -> Mutation:
    def mutate(forged: Forgery, log: RealLog) -> None:
        forged.rechain(log.key(), len(forged.entries) - 5, alg=alg)

    return mutate


def signature_of_another(forged: Forgery, log: RealLog) -> None:
    batch = forged.long_batch()
    forged.seals[batch] = forged.seals[batch]._replace(signature=forged.seals[batch + 1].signature)


def signature_absent(forged: Forgery, log: RealLog) -> None:
    batch = forged.long_batch()
    forged.seals[batch] = forged.seals[batch]._replace(signature="")


def signature_spelled(spell: Callable[[str], str]) -> Mutation:
    def mutate(forged: Forgery, log: RealLog) -> None:
        batch = forged.long_batch()
        while spell(str(forged.seals[batch].signature)) == forged.seals[batch].signature:
            batch += 1  # one that holds what is spelled otherwise
        forged.seals[batch] = forged.seals[batch]._replace(signature=spell(str(forged.seals[batch].signature)))

    return mutate


def loose_bits(signature: str) -> str:
    """The same bytes, with an unused bit set in the last digit."""
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return signature[:-3] + digits[digits.index(signature[-3]) ^ 1] + "=="


def entry_spelled(spell: Callable[[bytes], bytes]) -> Mutation:
    """The holder of the key spells an entry otherwise: no hash or signature can show that."""

    def mutate(forged: Forgery, log: RealLog) -> None:
        place = forged.middle()
        changed = spell(forged.entries[place])
        assert changed != forged.entries[place]
        forged.entries[place] = changed
        forged.rechain(log.key(), place)
        forged.checkpoints = []

    return mutate


def upper_case(entry: bytes) -> bytes:
    hash_ = json.loads(entry)["payload"].encode()
    return entry.replace(hash_, hash_.upper())


def number(spelling: bytes) -> Callable[[bytes], bytes]:
    return lambda entry: entry.replace(b'"version":%d}' % json.loads(entry)["version"], b'"version":' + spelling + b"}")


def other_name(log: RealLog) -> TrustRoot:
    return trust_root.load(log.root_bytes.replace(b"/audit/dev/", b"/audit/prod/"))


def key_range(log: RealLog, **bounds: int | None) -> TrustRoot:
    keys = [dataclasses.replace(key, **bounds) if key.purpose == "seal" else key for key in log.root.keys]
    return trust_root.load(trust_root.dump(log.root.origin, keys))


CASES: list[Case] = [
    Case("payload edited", payload_edited, "PAYLOAD_COMMITMENT_MISMATCH", 40),
    Case("payload gone", payload_gone, "PAYLOAD_MISSING_UNAUTHORISED", 40),
    Case("entry edited", entry_edited, "PREV_LINK_BROKEN", 40),
    Case("last entry of a batch edited", last_of_batch_edited, "SEAL_INVALID", 40),
    Case("neighbours swapped", entries_swapped, "ENTRY_SEQ_MISMATCH", 40),
    Case("distant entries swapped", distant_entries_swapped, "ENTRY_SEQ_MISMATCH", 40),
    Case("entry gone", entry_gone, "SEQ_GAP", 40),
    Case("entry twice", entry_twice, "ID_DUPLICATE", 40),
    Case("batch gone", batch_gone, "SEAL_CHAIN_BROKEN", 40),
    Case("seal gone", seal_gone, "SEAL_MISSING", 40),
    Case("last seal gone", last_seal_gone, "SEAL_MISSING", 40),
    Case("seal with another head", head_of_another, "SEAL_HEAD_MISMATCH", 40),
    Case("seal with another time", time_of_another, "SEAL_HEAD_MISMATCH", 40),
    Case("end of the last batch gone", range_incomplete, "SEAL_RANGE_INCOMPLETE", 40),
    Case("tail gone", tail_gone, "TAIL_TRUNCATED", 30),
    Case("tail gone, no anchor", tail_gone, None, 10, anchors=none),
    Case("everything gone", all_gone, "EMPTY_BUT_ANCHORED", 30),
    Case("everything gone, no anchor", all_gone, None, 10, anchors=none),
    Case("beginning gone", beginning_gone, "GENESIS_MISSING", 20),
    Case("two entries with one parent", same_parent_twice, "FORK_DETECTED", 40),
    Case("two seals for one batch", two_seals_for_a_batch, "FORK_DETECTED", 40),
    Case("two checkpoints of one size", nothing, "EQUIVOCATION", 30, anchors=two_heads),
    Case("stored checkpoint with another root", stored_head_of_another, "CHECKPOINT_INCONSISTENT", 30),
    Case("stored checkpoint with a bad signature", checkpoint_unsigned, "CHECKPOINT_INVALID", 40),
    Case("history rewritten with the real key", rewritten_by_the_keeper, "CHECKPOINT_INCONSISTENT", 30),
    Case("staging shown as prod", nothing, "ORIGIN_MISMATCH", 40, root=other_name),
    Case("an id twice", id_used_twice, "ID_DUPLICATE", 40, anchors=none),
    Case("an id of another day", id_of_another_day, "TIME_SKEW", 40, anchors=none),
    Case("the clock turned back", clock_turned_back, "TIME_REGRESSION", 40, anchors=none),
    Case("sealed by a stranger", sealed_by_a_stranger, "KEY_UNKNOWN", 50),
    Case("sealed by a key for checkpoints", sealed_by_the_checkpoint_key, "KEY_NOT_AUTHORISED_FOR_EPOCH", 50),
    Case("sealed before the key's time", nothing, "KEY_NOT_AUTHORISED_FOR_EPOCH", 50, root=lambda log: key_range(log, from_seq=500)),
    Case("sealed after the key's time", nothing, "KEY_EPOCH_CLOSED", 50, root=lambda log: key_range(log, to_seq=1500)),
    Case("sealed without a signature: none", sealed_without_a_signature("none"), "ALG_NOT_ALLOWED", 50),
    Case("sealed without a signature: hmac", sealed_without_a_signature("hmac-sha256"), "ALG_NOT_ALLOWED", 50),
    Case("sealed by another algorithm than the key's", sealed_without_a_signature("rsa-pss-sha256"), "ALG_NOT_ALLOWED", 50),
    Case("another seal's signature", signature_of_another, "SEAL_INVALID", 40),
    Case("no signature", signature_absent, "SEAL_MISSING", 40),
    Case("signature without padding", signature_spelled(lambda s: s.rstrip("=")), "NONCANONICAL_ENCODING", 40),
    Case("signature in the URL's alphabet", signature_spelled(lambda s: s.replace("+", "-").replace("/", "_")), "NONCANONICAL_ENCODING", 40),
    Case("signature with white space", signature_spelled(lambda s: s[:40] + "\n" + s[40:]), "NONCANONICAL_ENCODING", 40),
    Case("signature with loose bits", signature_spelled(loose_bits), "NONCANONICAL_ENCODING", 40),
    Case("upper-case hex", entry_spelled(upper_case), "NONCANONICAL_ENCODING", 40),
    Case("a key twice", entry_spelled(lambda e: e.replace(b'"auth":"jwt",', b'"auth":"jwt","auth":"jwt",')), "NONCANONICAL_ENCODING", 40),
    Case("white space", entry_spelled(lambda e: e.replace(b'"auth":', b'"auth": ')), "NONCANONICAL_ENCODING", 40),
    Case("keys in another order", entry_spelled(lambda e: b'{"v":2,' + e[1:].replace(b',"v":2', b"")), "NONCANONICAL_ENCODING", 40),
    Case("an escape", entry_spelled(lambda e: e.replace(b'"jwt"', b'"jw\\u0074"')), "NONCANONICAL_ENCODING", 40),
    Case("a number as a float", entry_spelled(number(b"1.0")), "NONCANONICAL_ENCODING", 40),
    Case("a number with an exponent", entry_spelled(number(b"1e0")), "NONCANONICAL_ENCODING", 40),
    Case("a number with a leading zero", entry_spelled(number(b"01")), "NONCANONICAL_ENCODING", 40),
    Case("a negative number", entry_spelled(number(b"-1")), "NONCANONICAL_ENCODING", 40),
    Case("a number beyond all", entry_spelled(number(b"9" * 16)), "NONCANONICAL_ENCODING", 40),
    Case("a number as text", entry_spelled(number(b'"1"')), "NONCANONICAL_ENCODING", 40),
    Case("an unknown member", entry_spelled(lambda e: e.replace(b'"v":2', b'"u":1,"v":2')), "NONCANONICAL_ENCODING", 40),
    Case("an unknown type", entry_spelled(lambda e: e.replace(b"memory.node.", b"memory.nodes.")), "NONCANONICAL_ENCODING", 40),
    Case("an anchor that is old", nothing, "ANCHOR_STALE", 10, anchors=lambda log: [parse_checkpoint(log.notes[0])], how={"seconds": 0}),
    Case("the trust root of the bundle itself", nothing, "TRUST_ROOT_UNPINNED", 50, how={"pinned": False}),
    Case("nothing", nothing, None, 0),
    Case("nothing, no anchor", nothing, None, 10, anchors=none),
]  # fmt: skip

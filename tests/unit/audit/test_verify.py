"""Every mutation of a log has its verdict."""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from memory_layer.audit import entry as entries
from memory_layer.audit import seal as seals
from memory_layer.audit import trust_root as trust_roots
from memory_layer.audit.report import render
from memory_layer.audit.verdict import Finding, Verdict
from memory_layer.audit.verify import SealRow

B64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def key(seed: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)


def trusted(seed: int, purpose: str = "seal", from_seq: int = 0, to_seq: int | None = None) -> trust_roots.TrustedKey:
    der = key(seed).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return trust_roots.trusted_key("ed25519", der, purpose, from_seq, to_seq)  # type: ignore[arg-type]


def root(*keys: trust_roots.TrustedKey) -> trust_roots.TrustRoot:
    return trust_roots.load(trust_roots.dump("memory.example/audit/prod/s0/e1", keys))


def primary(verdict: Verdict) -> list[tuple[str, int | None]]:
    return [(finding.code, finding.seq if finding.seq is not None else finding.batch) for finding in verdict.findings]


def beneath(verdict: Verdict) -> set[str]:
    return {other.code for finding in verdict.findings for other in finding.consequences}


def change_seal(log: Any, batch: int, /, **members: Any) -> None:
    """Edit the lines of a seal without signing it again."""
    old = seals.parse_seal(log.seals[batch].text)._replace(**members)
    log.seals[batch] = log.seals[batch]._replace(text=seals.seal_text(**old._asdict()))


def resign(log: Any, batch: int, /, seed: int = 1, **members: Any) -> None:
    """Edit the lines of a seal, sign it and store the signature everywhere."""
    change_seal(log, batch, **members)
    signature = seals.encode_signature(key(seed).sign(log.seals[batch].text))
    log.seals[batch] = log.seals[batch]._replace(signature=signature)
    log.rows = [row._replace(signature=signature) if row.batch_no == batch else row for row in log.rows]


def other_spelling(signature: str) -> str:
    """The same bytes in base64 that a lenient decoder takes: the unused bits of the last digit are set."""
    digits = signature.rstrip("=")
    last = B64[B64.index(digits[-1]) | 1]
    changed = digits[:-1] + last + signature[len(digits) :]
    assert base64.b64decode(changed) == base64.b64decode(signature)
    return changed


def test_a_whole_log_is_consistent_and_not_called_ok(log: Any) -> None:
    verdict = log.verify()
    assert (verdict.exit_code, verdict.name, verdict.findings) == (10, "CONSISTENT_UNANCHORED", ())
    counts = verdict.counts
    assert (counts.entries, counts.first, counts.last, counts.batches, counts.seals_valid) == (220, 0, 219, 22, 22)
    assert counts.payloads_matched == 220
    assert counts.head == log.rows[-1].hash
    assert any(line.startswith("anchor") for line in verdict.not_checked)
    assert "OK" not in render(verdict)


def test_an_empty_log_says_so(log: Any) -> None:
    log.rows, log.seals = [], []
    verdict = log.verify()
    assert verdict.exit_code == 10
    assert any("holds none" in line for line in verdict.not_checked)


def test_truncated_tail_without_an_anchor_is_only_consistent(log: Any) -> None:
    log.rows, log.seals = log.rows[:200], log.seals[:20]
    assert (log.verify().name, log.verify().exit_code) == ("CONSISTENT_UNANCHORED", 10)


def test_payload_edited(log: Any) -> None:
    log.edit(33, payload=log.rows[33].payload.replace(b"turn", b"burn"))
    verdict = log.verify()
    assert primary(verdict) == [("PAYLOAD_COMMITMENT_MISMATCH", 33)]
    assert verdict.exit_code == 40
    unread = log.verify(payloads=False)
    assert unread.findings == ()
    assert any(line.startswith("payloads") for line in unread.not_checked)


def test_salt_edited(log: Any) -> None:
    log.edit(33, salt=bytes(32))
    assert primary(log.verify()) == [("PAYLOAD_COMMITMENT_MISMATCH", 33)]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"outcome":"ok"', b'"outcome":"denied"'),
        (b"memory.node.created", b"memory.node.updated"),
        (b'"request_id":"req', b'"request_id":"xxx'),
        (b"T03:04:08", b"T03:04:07"),
    ],
)
@pytest.mark.parametrize("rehash", [True, False])
def test_entry_edited(log: Any, old: bytes, new: bytes, rehash: bool) -> None:
    log.rewrite(33, old, new, rehash=rehash)
    assert primary(log.verify()) == [("PREV_LINK_BROKEN", 34)]


@pytest.mark.parametrize("seq", [39, 219])
@pytest.mark.parametrize("rehash", [True, False])
def test_last_entry_of_a_batch_edited(log: Any, seq: int, rehash: bool) -> None:
    log.rewrite(seq, b"memory.node.deleted", b"memory.node.created", rehash=rehash)
    verdict = log.verify()
    assert primary(verdict) == [("SEAL_INVALID", seq // 10)]
    assert ("PREV_LINK_BROKEN" in beneath(verdict)) == (seq != 219)
    assert "PROJECTION_MISMATCH" in beneath(verdict)


def test_batch_rewritten_to_its_end(log: Any) -> None:
    log.rewrite(35, b'"outcome":"ok"', b'"outcome":"denied"')
    for seq in range(36, 40):
        log.rewrite(seq, log.rows[seq].prev_hash.encode(), log.rows[seq - 1].hash.encode())
        log.edit(seq, prev_hash=log.rows[seq - 1].hash)
    assert primary(log.verify()) == [("SEAL_INVALID", 3)]


@pytest.mark.parametrize(
    "columns",
    [
        {"type": "memory.node.updated"},
        {"ts": "2026-01-02T03:04:08.000000Z"},
        {"id": "019b7c9a-0000-7000-8000-000000000000"},
        {"tenant": "tenant-9"},
        {"tenant": None},
        {"node": "11111111-2222-3333-4444-555555555555"},
        {"node": None},
        {"artifact": "11111111-2222-3333-4444-555555555555"},
        {"manifest_signature_id": "manifest-x"},
        {"hash": "0" * 64},
        {"prev_hash": "0" * 64},
        {"batch_no": 7},
    ],
)
@pytest.mark.parametrize("seq", [30, 32, 39])
def test_column_edited(log: Any, columns: dict[str, Any], seq: int) -> None:
    log.edit(seq, **columns)
    assert primary(log.verify()) == [("PROJECTION_MISMATCH", seq)]


def test_nodes_of_two_deletes_swapped(log: Any) -> None:
    one, two = log.rows[24].node, log.rows[54].node
    assert log.rows[24].type == log.rows[54].type == "memory.node.deleted"
    log.edit(24, node=two)
    log.edit(54, node=one)
    assert primary(log.verify()) == [("PROJECTION_MISMATCH", 24), ("PROJECTION_MISMATCH", 54)]


@pytest.mark.parametrize(("one", "two"), [(32, 36), (32, 33), (32, 87), (30, 39), (9, 10)])
def test_rows_swapped(log: Any, one: int, two: int) -> None:
    a, b = log.rows[one], log.rows[two]
    log.rows[one], log.rows[two] = b._replace(seq=one), a._replace(seq=two)
    verdict = log.verify()
    assert {code for code, _ in primary(verdict)} == {"ENTRY_SEQ_MISMATCH"}
    assert primary(verdict)[0] == ("ENTRY_SEQ_MISMATCH", one)
    assert "PREV_LINK_BROKEN" in beneath(verdict)


@pytest.mark.parametrize("seq", [30, 33, 39])
def test_middle_row_gone(log: Any, seq: int) -> None:
    del log.rows[seq]
    assert primary(log.verify()) == [("SEQ_GAP", seq)]


def test_rows_of_a_batch_gone_but_not_its_seal(log: Any) -> None:
    del log.rows[30:50]
    verdict = log.verify()
    assert primary(verdict) == [("SEQ_GAP", 30)]
    assert verdict.findings[0].last_seq == 49


@pytest.mark.parametrize(("first", "last"), [(3, 3), (3, 6), (20, 20)])
def test_batch_gone(log: Any, first: int, last: int) -> None:
    del log.rows[first * 10 : (last + 1) * 10]
    del log.seals[first : last + 1]
    verdict = log.verify()
    assert primary(verdict) == [("SEAL_CHAIN_BROKEN", last + 1)]
    assert beneath(verdict) == {"SEQ_GAP"}


@pytest.mark.parametrize("rows", [219, 215, 211])
def test_tail_of_the_last_batch_gone(log: Any, rows: int) -> None:
    del log.rows[rows:]
    assert primary(log.verify()) == [("SEAL_RANGE_INCOMPLETE", 21)]


def test_last_batches_gone_but_not_their_seals(log: Any) -> None:
    del log.rows[195:]
    verdict = log.verify()
    assert primary(verdict) == [("SEAL_RANGE_INCOMPLETE", 19)]
    log.rows = []
    assert primary(log.verify()) == [("SEAL_RANGE_INCOMPLETE", 0)]


@pytest.mark.parametrize("batch", [0, 5, 21])
def test_seal_resigned_with_another_head(log: Any, batch: int) -> None:
    resign(log, batch, head="ab" * 32)
    # Nothing after the last batch can tell a changed entry from a changed seal.
    assert primary(log.verify()) == [("SEAL_INVALID" if batch == 21 else "SEAL_HEAD_MISMATCH", batch)]


def test_sealed_with_another_head_and_chained_on(log: Any, rebuilt: Callable[..., Any]) -> None:
    wrong = rebuilt(log.facts, seal_members=lambda n, lines: {**lines, "head": "ab" * 32} if n == 5 else lines)
    assert primary(wrong.verify()) == [("SEAL_HEAD_MISMATCH", 5)]


def test_sealed_with_another_time(log: Any, rebuilt: Callable[..., Any]) -> None:
    late = "2026-01-02T04:00:00.000000Z"
    wrong = rebuilt(log.facts, seal_members=lambda n, lines: {**lines, "time": late} if n == 5 else lines)
    assert primary(wrong.verify()) == [("SEAL_HEAD_MISMATCH", 5)]


def test_seal_names_another_predecessor(log: Any, rebuilt: Callable[..., Any]) -> None:
    wrong = rebuilt(log.facts, seal_members=lambda n, lines: {**lines, "prev_seal": "ab" * 32} if n == 5 else lines)
    assert primary(wrong.verify()) == [("SEAL_CHAIN_BROKEN", 5)]


@pytest.mark.parametrize("rows", [1, 10, 45])
def test_beginning_gone(log: Any, rows: int) -> None:
    del log.rows[:rows]
    del log.seals[: rows // 10]
    verdict = log.verify()
    assert primary(verdict) == [("GENESIS_MISSING", 0)]
    assert (verdict.findings[0].last_seq or 0) == rows - 1
    assert verdict.exit_code == 20


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("seq", [33, 39])
def test_fork(log: Any, seq: int, after: bool) -> None:
    """A second entry with the seq and the prev of another, in either order."""
    row = log.rows[seq]
    changed = row.entry.replace(b'"outcome":"ok"', b'"outcome":"denied"')
    second = row._replace(entry=changed, hash=entries.leaf_hash(changed))
    log.rows.insert(seq + after, second)
    assert primary(log.verify()) == [("FORK_DETECTED", seq)]


def test_fork_at_the_tip(log: Any) -> None:
    """An unsealed entry that continues from the last but one."""
    tip = log.rows[-1]
    changed = tip.entry.replace(b'"seq":219', b'"seq":220').replace(tip.id.encode(), tip.id[:-1].encode() + b"0")
    read = entries.parse_entry(changed)
    log.rows.append(tip._replace(seq=220, batch_no=22, id=read.id, entry=changed, hash=entries.leaf_hash(changed)))
    verdict = log.verify()
    assert verdict.findings[0].code == "FORK_DETECTED"
    assert len(verdict.findings) == 1
    assert "SEAL_MISSING" in beneath(verdict)


def test_row_twice(log: Any) -> None:
    log.rows.insert(34, log.rows[33])
    assert primary(log.verify()) == [("ID_DUPLICATE", 33)]


def test_id_used_twice(log: Any, rebuilt: Callable[..., Any]) -> None:
    log.facts[7][3].members = {**log.facts[7][3].members, "id": log.facts[2][1].members["id"]}
    assert primary(rebuilt(log.facts).verify()) == [("ID_DUPLICATE", 73)]


def test_another_log_shown_as_this_one(log: Any, rebuilt: Callable[..., Any]) -> None:
    staging = "memory.example/audit/staging/s0/e1"
    for signer in (lambda _n: key(1), lambda _n: key(9)):
        verdict = rebuilt(log.facts, origin=staging, signer=signer).verify()
        assert primary(verdict) == [("ORIGIN_MISMATCH", 0)]
        assert verdict.findings[0].expected == log.origin
        assert verdict.findings[0].found == staging


def test_one_row_or_seal_of_another_log(log: Any, rebuilt: Callable[..., Any]) -> None:
    other = rebuilt(log.facts, origin="memory.example/audit/staging/s0/e1")
    kept = log.rows[33]
    log.rows[33] = other.rows[33]
    assert primary(log.verify()) == [("ORIGIN_MISMATCH", 33)]
    log.rows[33] = kept
    log.seals[4] = other.seals[4]
    assert primary(log.verify()) == [("ORIGIN_MISMATCH", 4)]


def test_trust_root_of_another_log(log: Any) -> None:
    log.root = trust_roots.load(trust_roots.dump("memory.example/audit/prod/s0/e2", log.root.keys))
    verdict = log.verify()
    assert [(finding.code, finding.file) for finding in verdict.findings] == [("ORIGIN_MISMATCH", "trust-root.json")]


def test_unknown_key(log: Any, rebuilt: Callable[..., Any]) -> None:
    one = rebuilt(log.facts, signer=lambda n: key(9 if n == 5 else 1)).verify()
    assert primary(one) == [("KEY_UNKNOWN", 5)]
    assert one.exit_code == 50
    every = rebuilt(log.facts, signer=lambda _n: key(9)).verify()
    assert primary(every) == [("KEY_UNKNOWN", 0)]
    assert every.findings[0].last_batch == 21


def test_our_key_for_something_else(log: Any, rebuilt: Callable[..., Any]) -> None:
    verdict = rebuilt(
        log.facts, root(trusted(1), trusted(2, "checkpoint")), signer=lambda n: key(2 if n == 5 else 1)
    ).verify()
    assert primary(verdict) == [("KEY_NOT_AUTHORISED_FOR_EPOCH", 5)]


def test_resigned_with_our_key_for_something_else(log: Any) -> None:
    log.root = root(trusted(1), trusted(2, "checkpoint"))
    resign(log, 5, seed=2, key=trusted(2).key_id)
    verdict = log.verify()
    assert primary(verdict) == [("KEY_NOT_AUTHORISED_FOR_EPOCH", 5)]
    assert beneath(verdict) == {"SEAL_CHAIN_BROKEN"}


def test_rotation(log: Any, rebuilt: Callable[..., Any]) -> None:
    rotated = rebuilt(
        log.facts, root(trusted(1, to_seq=99), trusted(2, from_seq=100)), signer=lambda n: key(1 if n < 10 else 2)
    )
    assert rotated.verify().findings == ()
    rotated.root = root(trusted(1, to_seq=99), trusted(2, from_seq=110))
    assert primary(rotated.verify()) == [("KEY_NOT_AUTHORISED_FOR_EPOCH", 10)]
    rotated.root = root(trusted(1, to_seq=79), trusted(2, from_seq=100))
    verdict = rotated.verify()
    assert primary(verdict) == [("KEY_EPOCH_CLOSED", 8)]
    assert verdict.findings[0].last_batch == 9


@pytest.mark.parametrize("alg", ["none", "hmac-sha256", "ecdsa-p256-sha256"])
def test_algorithm_downgraded(log: Any, alg: str) -> None:
    change_seal(log, 5, alg=alg)
    verdict = log.verify()
    assert primary(verdict) == [("ALG_NOT_ALLOWED", 5)]
    assert verdict.exit_code == 50


@pytest.mark.parametrize("batch", [0, 5, 21])
def test_seal_gone(log: Any, batch: int) -> None:
    del log.seals[batch]
    verdict = log.verify()
    assert primary(verdict) == [("SEAL_MISSING", batch * 10)]
    assert verdict.findings[0].last_seq == batch * 10 + 9


@pytest.mark.parametrize("nothing", [None, ""])
def test_signature_stripped(log: Any, nothing: str | None) -> None:
    kept = log.rows[33]
    log.edit(33, signature=nothing)
    assert primary(log.verify()) == [("SEAL_MISSING", 33)]
    log.rows[33] = kept
    log.seals[5] = log.seals[5]._replace(signature=nothing)
    assert primary(log.verify()) == [("SEAL_MISSING", 5)]
    log.rows = [row._replace(signature=nothing) if row.batch_no == 5 else row for row in log.rows]
    assert primary(log.verify()) == [("SEAL_MISSING", 5)]


def test_signature_of_another_batch(log: Any) -> None:
    kept = log.rows[33]
    log.edit(33, signature=log.seals[4].signature)
    assert primary(log.verify()) == [("SEAL_INVALID", 33)]
    log.rows[33] = kept
    log.seals[5] = log.seals[5]._replace(signature=log.seals[4].signature)
    assert primary(log.verify()) == [("SEAL_INVALID", 5)]


def test_seal_lines_edited(log: Any) -> None:
    kept = list(log.seals)
    edits: list[dict[str, Any]] = [
        {"head": "ab" * 32},
        {"first": 51},
        {"last": 58},
        {"last": 62},
        {"prev_seal": "ab" * 32},
        {"time": "2026-01-02T03:04:06.000000Z"},
        {"batch": 6},
    ]
    for members in edits:
        for batch in (5, 21):
            log.seals = list(kept)
            old = seals.parse_seal(kept[batch].text)
            shift = {name: value + (batch - 5) * 10 for name, value in members.items() if name in ("first", "last")}
            change_seal(log, batch, **{**members, **shift})
            assert seals.parse_seal(log.seals[batch].text) != old
            assert primary(log.verify()) == [("SEAL_INVALID", batch)], members


def test_malleable_signature(log: Any) -> None:
    raw = base64.b64decode(log.seals[5].signature)
    order = 2**252 + 27742317777372353535851937790883648493
    shifted = raw[:32] + (int.from_bytes(raw[32:], "little") + order).to_bytes(32, "little")
    log.seals[5] = log.seals[5]._replace(signature=seals.encode_signature(shifted))
    assert primary(log.verify()) == [("SEAL_INVALID", 5)]


@pytest.mark.parametrize(
    "spelling",
    [
        other_spelling,
        lambda text: text.rstrip("="),
        lambda text: text + "\n",
        lambda text: " " + text,
        lambda text: text[:40] + "-_" + text[42:],
    ],
)
def test_signature_in_other_base64(log: Any, spelling: Callable[[str], str]) -> None:
    kept = log.rows[33]
    log.edit(33, signature=spelling(kept.signature))
    assert primary(log.verify()) == [("NONCANONICAL_ENCODING", 33)]
    log.rows[33] = kept
    log.seals[5] = log.seals[5]._replace(signature=spelling(log.seals[5].signature))
    assert primary(log.verify()) == [("NONCANONICAL_ENCODING", 5)]


@pytest.mark.parametrize("column", ["hash", "prev_hash"])
def test_hex_in_other_spelling(log: Any, column: str) -> None:
    for change in (str.upper, lambda text: text[:-1], lambda text: text[:-1] + "g", lambda text: text + " "):
        kept = log.rows[33]
        log.edit(33, **{column: change(getattr(kept, column))})
        assert primary(log.verify()) == [("NONCANONICAL_ENCODING", 33)]
        log.rows[33] = kept


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"v":2', b'"v": 2'),
        (b'"v":2', b'"v":2.0'),
        (b'"v":2', b'"v":2e0'),
        (b'"v":2', b'"v":3'),
        (b'"version":1', b'"version":01'),
        (b'"version":1', b'"version":-1'),
        (b'"seq":33', b'"seq":"33"'),
        (b'"seq":33', b'"seq":33.0'),
        (b'{"actor"', b'{"a":1,"actor"'),
        (b'"auth":"jwt"', b'"auth":"jwt","auth":"jwt"'),
        (b'"auth":"jwt"', b'"auth":"none"'),
        (b'"outcome":"ok"', b'"outcome":"\\u006fk"'),
        (b'"tenant":"tenant-0"', b'"tenant":"tenant-\xc3\xa9"'),
        (b"T03:04:08", b"T25:04:08"),
        (b"2026-01-02T", b"2026-02-30T"),
        (b"memory.node.created", b"memory.node.invented"),
        (b'"prev":"', b'"prev":"F'),
        (b'"log":"', b'"log" :"'),
    ],
)
@pytest.mark.parametrize("rehash", [True, False])
def test_entry_in_another_form(log: Any, old: bytes, new: bytes, rehash: bool) -> None:
    log.rewrite(33, old, new, rehash=rehash)
    assert primary(log.verify()) == [("NONCANONICAL_ENCODING", 33)]


def test_seal_in_another_form(log: Any) -> None:
    kept = log.seals[5]
    for change in (
        bytes.upper,
        lambda text: text + b"\n",
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda _text: b"",
    ):
        log.seals[5] = kept._replace(text=change(kept.text))
        assert primary(log.verify()) == [("NONCANONICAL_ENCODING", 5)]


def test_payload_with_repeated_keys(log: Any, rebuilt: Callable[..., Any]) -> None:
    one = log.facts[3][3]
    one.payload = b'{"a":1,"a":2}'
    one.members = {**one.members, "payload": entries.payload_commitment(one.salt, one.payload)}
    assert primary(rebuilt(log.facts).verify()) == [("NONCANONICAL_ENCODING", 33)]


def test_time_goes_back(log: Any, rebuilt: Callable[..., Any]) -> None:
    for one in log.facts[5]:
        one.members = {**one.members, "ts": "2026-01-02T03:04:06.000000Z"}
    assert primary(rebuilt(log.facts).verify()) == [("TIME_REGRESSION", 50)]


def test_time_far_from_the_clock_that_made_the_id(log: Any, rebuilt: Callable[..., Any]) -> None:
    moment = dt.datetime(2026, 1, 2, 3, 4, 26, tzinfo=dt.UTC)
    for minutes, found in ((4, []), (6, [("TIME_SKEW", 210)])):
        for one in log.facts[21]:
            one.members = {**one.members, "ts": entries.format_ts(moment + dt.timedelta(minutes=minutes))}
        codes = primary(rebuilt(log.facts).verify())
        assert codes[:1] == found
        assert {code for code, _ in codes} <= {"TIME_SKEW"}


def test_unpinned_trust_root(log: Any) -> None:
    verdict = log.verify(pinned=False)
    assert [(finding.code, finding.file) for finding in verdict.findings] == [
        ("TRUST_ROOT_UNPINNED", "trust-root.json")
    ]
    assert verdict.exit_code == 50


def test_payload_gone(log: Any) -> None:
    for gone in ({"payload": None}, {"salt": None}, {"payload": None, "salt": None}):
        kept = log.rows[33]
        log.edit(33, **gone)
        assert primary(log.verify()) == [("PAYLOAD_MISSING_UNAUTHORISED", 33)]
        verdict = log.verify(erased={33})
        assert (verdict.findings, verdict.counts.payloads_redacted) == ((), 1)
        log.rows[33] = kept
    assert primary(log.verify(erased={33})) == [("ERASURE_INCOMPLETE", 33)]


def test_payload_where_the_entry_has_none(log: Any, rebuilt: Callable[..., Any]) -> None:
    log.facts[3][3].members = {**log.facts[3][3].members, "payload": None}
    changed = rebuilt(log.facts)
    assert primary(changed.verify()) == [("PAYLOAD_COMMITMENT_MISMATCH", 33)]
    changed.edit(33, salt=None, payload=None)
    assert changed.verify().findings == ()


def test_independent_mutations_are_all_listed(log: Any) -> None:
    log.edit(3, node=None)
    log.rewrite(33, b'"outcome":"ok"', b'"outcome":"denied"')
    log.edit(77, payload=b"{}")
    log.edit(78, payload=b"{}")
    del log.rows[150]
    assert primary(log.verify()) == [
        ("PROJECTION_MISMATCH", 3),
        ("PREV_LINK_BROKEN", 34),
        ("PAYLOAD_COMMITMENT_MISMATCH", 77),
        ("PAYLOAD_COMMITMENT_MISMATCH", 78),
        ("SEQ_GAP", 150),
    ]


def test_findings_are_bounded_and_counted(log: Any) -> None:
    log.rows = [row._replace(node=None) for row in log.rows] * 1
    verdict = log.verify()
    assert len(verdict.findings) + verdict.unlisted == 220


def test_a_caller_adds_what_it_found(log: Any) -> None:
    verdict = log.verify()
    more = Finding("STATE_RECONCILE_MISMATCH", "version 2", "version 3", seq=12)
    state = next(line for line in verdict.not_checked if line.startswith("state"))
    extended = verdict.extended([more], checked=[state])
    assert (extended.exit_code, extended.findings) == (40, (more,))
    assert state not in extended.not_checked
    assert "STATE_RECONCILE_MISMATCH" in render(extended)


def test_report_of_a_finding(log: Any) -> None:
    log.rewrite(39, b"memory.node.deleted", b"memory.node.created")
    text = render(log.verify())
    lines = text.splitlines()
    assert lines[0].startswith("TAMPERED: something was changed")
    assert f"log            {log.origin}" in text
    assert lines[-1] == "VERDICT        TAMPERED   exit 40"
    assert "SEAL_INVALID  batch 3" in text
    assert "because of it: PREV_LINK_BROKEN  seq 40" in text
    json = log.verify().to_json()
    assert (json["verdict"], json["exit"], json["findings"][0]["code"]) == ("TAMPERED", 40, "SEAL_INVALID")
    assert "OK" not in text.split()


def test_an_anchored_verdict_is_named_in_full(log: Any) -> None:
    text = render(dataclasses.replace(log.verify(), anchored=True))
    assert text.splitlines()[-1] == "VERDICT        OK_ANCHORED   exit 0"


def test_rows_are_read_once_and_lazily(log: Any) -> None:
    held: list[int] = []

    def rows() -> Any:
        for row in log.rows:
            held.append(row.seq)
            yield row

    def seal_rows() -> Any:
        for number, seal in enumerate(log.seals):
            assert len(held) >= (number - 1) * 10 - 9  # at most one seal is read ahead
            yield SealRow(*seal)

    log.rows, log.seals = list(log.rows), list(log.seals)
    from memory_layer.audit.verify import verify

    verdict = verify(log.root, rows(), seal_rows(), expected_origin=log.origin, pinned=True)
    assert verdict.findings == ()

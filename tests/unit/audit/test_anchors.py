"""A log against checkpoints: those kept elsewhere, and those stored beside it. Each way to disagree has its verdict."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memory_layer.audit import trust_root as trust_roots
from memory_layer.audit.checkpoint import Checkpoint, parse_checkpoint, sign_checkpoint
from memory_layer.audit.report import render
from memory_layer.audit.tree import Frontier
from memory_layer.audit.verdict import Verdict
from memory_layer.audit.verify import CheckpointRow

ORIGIN = "memory.example/audit/prod/s0/e1"
CHECKPOINT_KEY = 5


def key(seed: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)


def der(seed: int) -> bytes:
    return key(seed).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


ROOT = trust_roots.load(
    trust_roots.dump(
        ORIGIN,
        [
            trust_roots.trusted_key("ed25519", der(1)),
            trust_roots.trusted_key("ed25519", der(CHECKPOINT_KEY), "checkpoint"),
        ],
    )
)


def note(size: int, root: bytes, seed: int = CHECKPOINT_KEY, origin: str = ORIGIN) -> bytes:
    return sign_checkpoint(origin, size, root, public_key_der=der(seed), sign=key(seed).sign)


def root_at(log: Any, size: int) -> bytes:
    grown = Frontier()
    grown.extend([bytes.fromhex(row.hash) for row in log.rows[:size]])
    return grown.root()


def anchor(log: Any, size: int, **how: Any) -> Checkpoint:
    return parse_checkpoint(note(size, root_at(log, size), **how))


def stored(log: Any, *sizes: int) -> list[CheckpointRow]:
    return [CheckpointRow(size, root_at(log, size), note(size, root_at(log, size))) for size in sizes]


def lying(size: int, **how: Any) -> Checkpoint:
    """A checkpoint with a true signature over a root that never was."""
    return parse_checkpoint(note(size, b"\x11" * 32, **how))


def primary(verdict: Verdict) -> list[tuple[str, int | None]]:
    return [(finding.code, finding.seq if finding.seq is not None else finding.batch) for finding in verdict.findings]


def beneath(verdict: Verdict) -> set[str]:
    return {other.code for finding in verdict.findings for other in finding.consequences}


@pytest.fixture
def kept(log: Any) -> Any:
    """The consistent log, with a trust root that has a key for checkpoints."""
    log.root = ROOT
    return log


def test_anchored(kept: Any) -> None:
    verdict = kept.verify(anchors=[anchor(kept, 220)], checkpoints=stored(kept, 10, 115, 220))
    assert (verdict.exit_code, verdict.name, verdict.anchored, verdict.findings) == (0, "OK_ANCHORED", True, ())
    assert verdict.counts.root == root_at(kept, 220).hex()
    assert (verdict.counts.checkpoints, verdict.counts.checkpoints_valid) == (3, 3)
    assert (verdict.counts.anchors, verdict.counts.anchors_valid) == (1, 1)
    assert (verdict.anchor.size, verdict.anchor.age_seconds, verdict.anchor.uncovered) == (220, 0.0, 0)
    assert not any(line.startswith(("anchor", "checkpoints")) for line in verdict.not_checked)
    text = render(verdict)
    assert text.splitlines()[-1] == "VERDICT        OK_ANCHORED   exit 0"
    assert "checkpoints    3/3 valid" in text
    assert "anchors        1/1 valid   newest covers 0..219" in text
    json = verdict.to_json()
    assert (json["anchored"], json["anchor"]["size"]) == (True, 220)


def test_anchors_at_any_size_and_in_any_order(kept: Any) -> None:
    sizes = [1, 7, 64, 100, 101, 219]
    random.Random(3).shuffle(sizes)
    verdict = kept.verify(anchors=[anchor(kept, size) for size in sizes])
    assert (verdict.name, verdict.findings) == ("OK_ANCHORED", ())
    assert (verdict.anchor.size, verdict.anchor.uncovered) == (219, 1)


def test_stored_checkpoints_alone_anchor_nothing(kept: Any) -> None:
    verdict = kept.verify(checkpoints=stored(kept, 10, 220))
    assert (verdict.name, verdict.anchored, verdict.findings) == ("CONSISTENT_UNANCHORED", False, ())
    assert any(line.startswith("anchor: none") for line in verdict.not_checked)
    assert "OK" not in render(verdict)


def test_without_stored_checkpoints_it_says_so(kept: Any) -> None:
    assert any(line.startswith("checkpoints") for line in kept.verify(anchors=[anchor(kept, 220)]).not_checked)


def test_a_checkpoint_that_is_not_signed_yet_only_has_its_root(kept: Any) -> None:
    rows = stored(kept, 10, 220)
    unsigned = rows[1]._replace(note=None)
    verdict = kept.verify(checkpoints=[rows[0], unsigned])
    assert (verdict.findings, verdict.counts.checkpoints_valid) == ((), 1)
    wrong = unsigned._replace(root=bytes(32))
    assert primary(kept.verify(checkpoints=[rows[0], wrong])) == [("CHECKPOINT_INCONSISTENT", 10)]


# --- Too old ---------------------------------------------------------------------------------------------------------


def test_an_anchor_too_far_behind_the_log(kept: Any) -> None:
    """The batches of this log are one second apart."""
    old = anchor(kept, 100)
    limit = dt.timedelta(seconds=11)
    verdict = kept.verify(anchors=[old], max_anchor_age=limit)
    assert (primary(verdict), verdict.exit_code) == ([("ANCHOR_STALE", None)], 10)
    assert (verdict.name, verdict.anchored) == ("ANCHOR_STALE", False)
    assert (verdict.anchor.age_seconds, verdict.anchor.uncovered) == (12.0, 120)
    assert "OK" not in render(verdict)
    assert kept.verify(anchors=[old, anchor(kept, 120)], max_anchor_age=limit).exit_code == 0
    assert kept.verify(anchors=[old], max_anchor_age=dt.timedelta(seconds=12)).exit_code == 0


def test_an_anchor_too_old_by_the_clock(kept: Any) -> None:
    end = dt.datetime.fromisoformat(kept.rows[-1].ts)
    for after, code in [(299, 0), (300, 0), (301, 10)]:
        verdict = kept.verify(anchors=[anchor(kept, 220)], now=end + dt.timedelta(seconds=after))
        assert verdict.exit_code == code


# --- Shorter than the anchor -----------------------------------------------------------------------------------------


def test_last_batches_and_their_checkpoints_gone(kept: Any) -> None:
    anchors, rows = [anchor(kept, 150), anchor(kept, 220)], stored(kept, 100, 200)
    kept.rows, kept.seals = kept.rows[:200], kept.seals[:20]
    verdict = kept.verify(anchors=anchors, checkpoints=rows)
    assert (primary(verdict), beneath(verdict)) == ([("TAIL_TRUNCATED", 200)], set())
    assert (verdict.exit_code, verdict.name, verdict.anchored) == (30, "DIVERGED", False)
    assert verdict.findings[0].last_seq == 219
    assert kept.verify(checkpoints=rows).name == "CONSISTENT_UNANCHORED"


def test_last_batches_gone_but_not_their_checkpoints(kept: Any) -> None:
    rows = stored(kept, 100, 200, 210, 220)
    kept.rows, kept.seals = kept.rows[:200], kept.seals[:20]
    verdict = kept.verify(checkpoints=rows)
    assert (primary(verdict), verdict.exit_code) == ([("TAIL_TRUNCATED", 200)], 30)


def test_tail_of_the_last_batch_gone_from_an_anchored_log(kept: Any) -> None:
    anchors = [anchor(kept, 220)]
    kept.rows = kept.rows[:217]
    verdict = kept.verify(anchors=anchors)
    assert (primary(verdict), beneath(verdict)) == ([("SEAL_RANGE_INCOMPLETE", 21)], {"TAIL_TRUNCATED"})
    assert verdict.exit_code == 40


@pytest.mark.parametrize("seals", [True, False])
def test_everything_gone(kept: Any, seals: bool) -> None:
    anchors = [anchor(kept, 220)]
    kept.rows, kept.seals = [], kept.seals if seals else []
    verdict = kept.verify(anchors=anchors)
    assert primary(verdict) == [("EMPTY_BUT_ANCHORED", 0)]
    assert beneath(verdict) == ({"SEAL_RANGE_INCOMPLETE"} if seals else set())
    assert verdict.exit_code == (40 if seals else 30)


def test_an_empty_log_is_not_anchored_by_an_empty_checkpoint(kept: Any) -> None:
    empty = anchor(kept, 0)
    assert kept.verify(anchors=[empty]).exit_code == 10
    kept.rows, kept.seals = [], []
    verdict = kept.verify(anchors=[empty])
    assert (verdict.name, verdict.findings) == ("CONSISTENT_UNANCHORED", ())
    assert primary(kept.verify(anchors=[lying(0)])) == [("CHECKPOINT_INCONSISTENT", 0)]


# --- Another history -------------------------------------------------------------------------------------------------


def deny(kept: Any, seq: int) -> None:
    one = kept.facts[seq // 10][seq % 10]
    one.members = {**one.members, "outcome": "denied"}


def rechained(kept: Any, rebuilt: Callable[..., Any], seq: int) -> Any:
    """The log with one entry changed, and everything from there on chained and sealed again with the real key."""
    deny(kept, seq)
    return rebuilt(kept.facts, ROOT)


@pytest.mark.parametrize("seq", [0, 105, 119, 219])
def test_rechained_with_the_real_key(kept: Any, rebuilt: Callable[..., Any], seq: int) -> None:
    anchors = [anchor(kept, size) for size in (100, 220)]
    rows = stored(kept, *range(10, 221, 10))
    forged = rechained(kept, rebuilt, seq)
    assert forged.verify().findings == ()
    verdict = forged.verify(anchors=anchors)
    low = 0 if seq == 0 else 100
    assert (primary(verdict), verdict.exit_code) == ([("CHECKPOINT_INCONSISTENT", low)], 30)
    assert verdict.findings[0].last_seq == (99 if seq == 0 else 219)
    assert not verdict.anchored
    local = forged.verify(checkpoints=rows)
    assert primary(local) == [("CHECKPOINT_INCONSISTENT", seq // 10 * 10)]
    assert local.exit_code == 30
    if seq < 210:
        assert "later ones" in local.findings[0].found


def test_rechained_and_the_stored_checkpoints_signed_again(kept: Any, rebuilt: Callable[..., Any]) -> None:
    anchors = [anchor(kept, 200)]
    forged = rechained(kept, rebuilt, 105)
    verdict = forged.verify(anchors=anchors, checkpoints=stored(forged, 100, 200, 220))
    assert primary(verdict) == [("EQUIVOCATION", None)]
    assert beneath(verdict) == {"CHECKPOINT_INCONSISTENT"}
    assert verdict.exit_code == 30


def test_two_anchors_of_one_size(kept: Any) -> None:
    verdict = kept.verify(anchors=[anchor(kept, 220), lying(220)])
    assert (primary(verdict), verdict.exit_code) == ([("EQUIVOCATION", None)], 30)
    assert beneath(verdict) == {"CHECKPOINT_INCONSISTENT"}
    found = verdict.findings[0]
    assert root_at(kept, 220).hex() in found.expected
    assert found.found == "11" * 32


def test_the_same_anchor_twice_is_one(kept: Any) -> None:
    assert kept.verify(anchors=[anchor(kept, 220)] * 2).exit_code == 0


def test_a_lie_between_checkpoints_that_agree_stands_alone(kept: Any) -> None:
    verdict = kept.verify(anchors=[anchor(kept, 100), lying(150), anchor(kept, 220)])
    assert (primary(verdict), verdict.exit_code) == ([("CHECKPOINT_INCONSISTENT", 100)], 30)


def test_the_keeper_shows_two_stored_checkpoints_of_one_size(kept: Any) -> None:
    rows = stored(kept, 100, 220)
    rows.insert(1, CheckpointRow(100, b"\x11" * 32, note(100, b"\x11" * 32)))
    assert primary(kept.verify(checkpoints=rows)) == [("EQUIVOCATION", None)]


# --- What cannot vouch -----------------------------------------------------------------------------------------------


def test_anchor_of_another_log(kept: Any) -> None:
    other = anchor(kept, 220, origin=ORIGIN.replace("prod", "staging"))
    verdict = kept.verify(anchors=[other])
    assert [(finding.code, finding.file) for finding in verdict.findings] == [("ORIGIN_MISMATCH", "anchor of size 220")]
    assert (verdict.exit_code, verdict.anchored) == (40, False)


def test_another_log_with_its_anchor_shown_as_this_one(kept: Any, rebuilt: Callable[..., Any]) -> None:
    staging = rebuilt(kept.facts, ROOT, origin=ORIGIN.replace("prod", "staging"))
    other = anchor(staging, 220, origin=ORIGIN.replace("prod", "staging"))
    verdict = staging.verify(anchors=[other])
    assert [finding.code for finding in verdict.findings] == ["ORIGIN_MISMATCH"]


@pytest.mark.parametrize(
    ("seed", "code", "exit_code"), [(9, "KEY_UNKNOWN", 50), (1, "KEY_NOT_AUTHORISED_FOR_EPOCH", 50)]
)
def test_anchor_by_another_key(kept: Any, seed: int, code: str, exit_code: int) -> None:
    verdict = kept.verify(anchors=[anchor(kept, 220, seed=seed)])
    assert ([finding.code for finding in verdict.findings], verdict.exit_code) == ([code], exit_code)
    assert not verdict.anchored


def test_anchor_with_a_signature_that_fails(kept: Any) -> None:
    honest = anchor(kept, 220)
    forged = parse_checkpoint(honest.note.replace(b"\n220\n", b"\n210\n"))
    verdict = kept.verify(anchors=[forged])
    assert (primary(verdict), verdict.exit_code) == ([("CHECKPOINT_INVALID", None)], 40)


def test_stored_checkpoint_edited(kept: Any) -> None:
    rows = stored(kept, 100, 150, 220)
    text = rows[1].note
    assert text is not None
    cases = [
        (rows[1]._replace(note=text.replace(b"\n150\n", b"\n151\n")), "CHECKPOINT_INVALID"),
        (rows[1]._replace(note=text.replace(b"\n150\n", b"\n0150\n")), "NONCANONICAL_ENCODING"),
        (rows[1]._replace(root=bytes(32)), "PROJECTION_MISMATCH"),
        (rows[1]._replace(size=151), "PROJECTION_MISMATCH"),
        (rows[1]._replace(note=note(150, rows[1].root, seed=9)), "KEY_UNKNOWN"),
        (rows[1]._replace(note=note(150, rows[1].root, origin=ORIGIN.replace("e1", "e2"))), "ORIGIN_MISMATCH"),
    ]
    for changed, code in cases:
        verdict = kept.verify(anchors=[anchor(kept, 220)], checkpoints=[rows[0], changed, rows[2]])
        assert [finding.code for finding in verdict.findings] == [code]


def test_the_trust_root_must_be_pinned(kept: Any) -> None:
    verdict = kept.verify(anchors=[anchor(kept, 220)], pinned=False)
    assert ([finding.code for finding in verdict.findings], verdict.exit_code) == (["TRUST_ROOT_UNPINNED"], 50)


# --- With something else wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [34, 40, 100, 220])
def test_what_was_changed_stays_the_primary_finding(kept: Any, size: int) -> None:
    anchors = [anchor(kept, size), anchor(kept, 220)]
    kept.rewrite(33, b'"outcome":"ok"', b'"outcome":"denied"')
    verdict = kept.verify(anchors=anchors)
    assert (primary(verdict), verdict.exit_code) == ([("PREV_LINK_BROKEN", 34)], 40)
    assert beneath(verdict) == {"CHECKPOINT_INCONSISTENT"}


@pytest.mark.parametrize("seq", [39, 219])
def test_last_entry_of_an_anchored_batch_edited(kept: Any, seq: int) -> None:
    anchors = [anchor(kept, seq + 1), anchor(kept, 220)]
    kept.rewrite(seq, b"memory.node.deleted", b"memory.node.created")
    verdict = kept.verify(anchors=anchors)
    assert primary(verdict) == [("SEAL_INVALID", seq // 10)]
    assert "CHECKPOINT_INCONSISTENT" in beneath(verdict)


def test_rechained_with_a_key_that_nobody_trusts(kept: Any, rebuilt: Callable[..., Any]) -> None:
    anchors = [anchor(kept, 100), anchor(kept, 220)]
    deny(kept, 155)
    forged = rebuilt(kept.facts, ROOT, signer=lambda n: key(9 if n >= 15 else 1))
    verdict = forged.verify(anchors=anchors)
    assert primary(verdict) == [("KEY_UNKNOWN", 15)]
    assert beneath(verdict) == {"CHECKPOINT_INCONSISTENT"}


def test_a_payload_does_not_explain_another_history(kept: Any, rebuilt: Callable[..., Any]) -> None:
    anchors = [anchor(kept, 220)]
    forged = rechained(kept, rebuilt, 105)
    forged.edit(33, payload=b"{}")
    codes = sorted(finding.code for finding in forged.verify(anchors=anchors).findings)
    assert codes == ["CHECKPOINT_INCONSISTENT", "PAYLOAD_COMMITMENT_MISMATCH"]


def test_beyond_missing_entries_nothing_is_compared(kept: Any) -> None:
    anchors = [anchor(kept, 100), anchor(kept, 220)]
    rows = stored(kept, 50, 150, 220)
    del kept.rows[105]
    verdict = kept.verify(anchors=anchors, checkpoints=rows)
    assert primary(verdict) == [("SEQ_GAP", 105)]
    assert (verdict.anchored, verdict.anchor.size) == (False, 100)
    assert any("anchor of size 220" in line for line in verdict.not_checked)
    assert any("2 stored ones" in line for line in verdict.not_checked)


def test_a_lie_before_missing_entries_is_still_seen(kept: Any) -> None:
    anchors = [lying(100)]
    del kept.rows[105]
    assert sorted(finding.code for finding in kept.verify(anchors=anchors).findings) == [
        "CHECKPOINT_INCONSISTENT",
        "SEQ_GAP",
    ]


def test_beginning_gone_from_an_anchored_log(kept: Any) -> None:
    anchors = [anchor(kept, 220)]
    kept.rows, kept.seals = kept.rows[20:], kept.seals[2:]
    verdict = kept.verify(anchors=anchors)
    assert ([finding.code for finding in verdict.findings], verdict.anchored) == (["GENESIS_MISSING"], False)
    assert verdict.counts.root is None


def test_checkpoints_are_read_as_the_log_is(kept: Any) -> None:
    rows = stored(kept, *range(10, 221, 10))
    read: list[int] = []
    ahead: list[int] = []

    def entries() -> Iterator[Any]:
        for row in kept.rows:
            ahead.append(len(read) - row.seq // 10)
            yield row

    def checkpoints() -> Iterator[CheckpointRow]:
        for row in rows:
            read.append(row.size)
            yield row

    kept_rows, kept.rows = kept.rows, kept.rows
    verdict = type(kept)(kept_rows, kept.seals, ROOT).verify(checkpoints=checkpoints())
    assert verdict.counts.checkpoints_valid == 22
    from memory_layer.audit.verify import verify

    read.clear()
    again = verify(ROOT, entries(), iter(kept.seals), expected_origin=ORIGIN, pinned=True, checkpoints=checkpoints())
    assert again.findings == ()
    assert max(ahead) <= 1


# --- Any change at all -----------------------------------------------------------------------------------------------

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUICK
@given(data=st.data())
def test_no_change_below_an_anchor_passes(kept: Any, data: st.DataObject) -> None:
    """Rows dropped, repeated, swapped or edited, seals dropped, in any combination: never anchored, never clean."""
    anchors = [anchor(kept, 220)]
    rows, seals = list(kept.rows), list(kept.seals)
    try:
        for _ in range(data.draw(st.integers(1, 3))):
            place = data.draw(st.integers(0, len(kept.rows) - 2))
            action = data.draw(st.sampled_from(["drop", "repeat", "swap", "edit", "cut", "seal"]))
            if action == "drop":
                del kept.rows[place]
            elif action == "repeat":
                kept.rows.insert(place, kept.rows[place])
            elif action == "swap":
                kept.rows[place], kept.rows[place + 1] = kept.rows[place + 1], kept.rows[place]
            elif action == "edit":
                entry = kept.rows[place].entry
                at = data.draw(st.integers(0, len(entry) - 1))
                kept.edit(place, entry=entry[:at] + bytes([entry[at] ^ 1]) + entry[at + 1 :])
            elif action == "cut":
                batch = data.draw(st.integers(1, 21))
                kept.rows = [row for row in kept.rows if row.batch_no < batch]
                kept.seals = kept.seals[:batch]
            elif len(kept.seals) > 1:
                del kept.seals[place % len(kept.seals)]
            if len(kept.rows) < 2:
                break
        verdict = kept.verify(anchors=anchors)
        if kept.rows != rows or kept.seals != seals:
            assert verdict.findings
            assert verdict.exit_code >= 20
        render(verdict)
    finally:
        kept.rows, kept.seals = rows, seals

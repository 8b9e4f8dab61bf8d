"""No change to a stored log, however small, leaves the verdict clean; and none makes the verifier fail."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memory_layer.audit.report import render

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
BYTES = ("entry", "payload", "salt")
TEXTS = ("hash", "prev_hash", "signature", "id", "ts", "type", "tenant", "node")


def changed_bytes(data: st.DataObject, before: bytes) -> bytes:
    place = data.draw(st.integers(0, len(before) - 1))
    return data.draw(
        st.one_of(
            st.integers(0, 255).map(lambda byte: before[:place] + bytes([byte]) + before[place + 1 :]),
            st.just(before[:place] + before[place + 1 :]),
            st.just(before[:place] + before[place : place + 1] + before[place:]),
            st.binary(max_size=4).map(lambda extra: before[:place] + extra + before[place:]),
        ).filter(lambda after: after != before)
    )


@QUICK
@given(data=st.data())
def test_a_changed_row_is_found(log: Any, data: st.DataObject) -> None:
    seq = data.draw(st.integers(0, 219))
    name = data.draw(st.sampled_from(BYTES + TEXTS))
    before = getattr(log.rows[seq], name)
    kept = list(log.rows)
    try:
        if isinstance(before, bytes):
            log.edit(seq, **{name: changed_bytes(data, before)})
        else:
            log.edit(seq, **{name: data.draw(st.text(max_size=100).filter(lambda after: after != before))})
        verdict = log.verify()
        assert verdict.findings
        assert verdict.exit_code >= 20
        render(verdict)
    finally:
        log.rows = kept


@QUICK
@given(data=st.data())
def test_a_changed_seal_is_found(log: Any, data: st.DataObject) -> None:
    batch = data.draw(st.integers(0, 21))
    kept = log.seals[batch]
    try:
        if data.draw(st.booleans()):
            log.seals[batch] = kept._replace(text=changed_bytes(data, kept.text))
        else:
            text = changed_bytes(data, kept.signature.encode()).decode("latin-1")
            log.seals[batch] = kept._replace(signature=text)
        verdict = log.verify()
        assert verdict.findings
        assert len(verdict.findings) <= 3
        render(verdict)
    finally:
        log.seals[batch] = kept


@QUICK
@given(data=st.data())
def test_rows_and_seals_that_come_and_go_are_found(log: Any, data: st.DataObject) -> None:
    rows, seals = list(log.rows), list(log.seals)
    try:
        for target in (log.rows, log.seals):
            for _ in range(data.draw(st.integers(0, 3))):
                place = data.draw(st.integers(0, len(target) - 2))
                action = data.draw(st.sampled_from(["drop", "repeat", "swap"]))
                if action == "drop":
                    del target[place]
                elif action == "repeat":
                    target.insert(place, target[place])
                else:
                    target[place], target[place + 1] = target[place + 1], target[place]
        verdict = log.verify()
        shortened = log.rows == rows[: len(log.rows)] and log.seals == seals[: len(log.seals)]
        assert verdict.findings or shortened
        render(verdict)
    finally:
        log.rows, log.seals = rows, seals

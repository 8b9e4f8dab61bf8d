"""What a verdict says to people: plain words first, each kind of finding in a sentence or a few, short however broken the log is."""

from __future__ import annotations

import re
from typing import Any

import pytest

from memory_layer.audit import plain
from memory_layer.audit.report import render
from memory_layer.audit.verdict import CODES, NAMES, About, Counts, Finding, Verdict

NODE = "019a7f3e-0000-7000-8000-000000000001"
ABOUT = About("2026-11-02T10:31:05.123456Z", "memory.node.updated", "acme", NODE, None)
LATER = ("FOREIGN_LOG", "SEAL_ROW_MISMATCH", "LOG_TABLE_MISMATCH", "PAYLOAD_ORPHAN", "STATE_UNEXPLAINED", "SCHEMA_DRIFT",
         "ROLLBACK_DETECTED")  # fmt: skip


def verdict(*findings: Finding, **facts: Any) -> Verdict:
    counts = Counts(entries=600, first=0, last=599, head="0" * 64, batches=90, seals_valid=90, payloads_matched=600)
    plain_facts: dict[str, Any] = {"anchored": False, "counts": counts, "not_checked": ("anchor: none was given",)}
    return Verdict("a/audit/prod/s0/e1", "0" * 64, 1, True, findings=findings, **plain_facts | facts)


def changed(number: int, about: About | None = ABOUT) -> Finding:
    node = f"node 019a7f3e-0000-7000-8000-{number:012x}"
    return Finding("STATE_RECONCILE_MISMATCH", f"{node} as entry {number} left it", "changed without an entry: content",
                   seq=number, about=about)  # fmt: skip


@pytest.mark.parametrize("code", [*CODES, *LATER])
def test_every_code_has_plain_words(code: str) -> None:
    words = plain.FINDINGS[code]
    filled = words.says.format(it="x", was="was", has="has", after="", code=code)
    for text in (filled, words.matters.format(Its="Its")):
        assert text.endswith(".")
        assert not re.search(r"\b(seq|projection|redacted|payload|outbox|RFC|gzip)\b|_", text), text


@pytest.mark.parametrize("name", [*NAMES.values(), "ANCHOR_STALE"])
def test_every_verdict_has_a_sentence(name: str) -> None:
    assert plain.VERDICTS[name]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("count", [1, 2, 50])
@pytest.mark.parametrize("about", [None, ABOUT])
def test_every_code_is_reported_in_a_sentence_whatever_is_known_of_it(
    code: str, count: int, about: About | None
) -> None:
    places: list[dict[str, Any]] = [{"seq": 5, "about": about}, {"seq": 5, "last_seq": 9, "about": about}, {"batch": 3},
                                    {"batch": 3, "last_batch": 4}, {"file": "entries.ndjson.gz"}, {}]  # fmt: skip
    for place in places:
        findings = [
            Finding(
                code,
                "this",
                "that",
                **place | ({"seq": place["seq"] + 20 * n} if "last_seq" not in place and "seq" in place else {}),
            )
            for n in range(count)
        ]
        text = render(verdict(*findings))
        found = text[text.index("Found\n") : text.index("\nChecked")]
        assert "{" not in found
        assert not re.search(r"\bNone\b| {2}|\.\.| ,", " ".join(line.strip() for line in found.splitlines())), found
        assert len(text.splitlines()) < 60


def test_the_first_lines_say_what_whose_when_and_why() -> None:
    lines = render(verdict(changed(1))).splitlines()
    assert lines[0].startswith("TAMPERED: something was changed outside the service")
    assert lines[0].endswith("(exit 40)")
    said = " ".join(" ".join(lines[2:6]).split())
    assert f"Memory node {NODE} of tenant acme was changed after 2026-11-02 10:31 UTC without a record." in said
    assert "Its content cannot be relied on." in said
    assert lines[-1] == "VERDICT        TAMPERED   exit 40"


def test_an_artifact_and_a_row_without_any_entry() -> None:
    file = Finding("STATE_RECONCILE_MISMATCH", f"artifact {NODE} as entry 7 left it", "no such row", seq=7, about=ABOUT)
    alone = Finding("STATE_RECONCILE_MISMATCH", "an entry for every row", f"node {NODE} has none")
    said = " ".join(render(verdict(file, alone)).split())
    assert (
        f"File {NODE} of tenant acme was removed from the database after 2026-11-02 10:31 UTC without a record." in said
    )
    assert f"Memory node {NODE} was put into the database without a record." in said


def test_many_findings_of_a_kind_are_one_sentence_and_few_details() -> None:
    findings = [changed(n, ABOUT._replace(tenant=f"t{n % 9}")) for n in range(900)]
    findings += [Finding("SEQ_GAP", f"entry {n}", "none", seq=n) for n in (*range(2000, 2400), 3000)]
    text = render(verdict(*findings, unlisted=7000))
    assert len(text.splitlines()) < 80
    said = " ".join(text.split())
    assert (
        "900 memory nodes (of tenants t0, t1, t2, t3 and 5 more) were changed, the first after 2026-11-02 10:31 UTC"
        in said
    )
    assert "401 entries of the log (2,000 to 2,399, 3,000) were removed from the log." in said
    assert "7,000 more findings" in said
    assert "SEQ_GAP  396 more at 2,005 to 2,399, 3,000 (--all shows each)" in text
    everything = render(verdict(*findings), everything=True)
    assert everything.count("STATE_RECONCILE_MISMATCH  seq") == 900


def test_many_consequences_are_counted() -> None:
    beneath = tuple(Finding("PREV_LINK_BROKEN", "this", "that", seq=n) for n in range(500))
    finding = Finding("SEAL_INVALID", "this", "that", batch=3, consequences=beneath)
    text = render(verdict(finding))
    assert len(text.splitlines()) < 60
    assert "500 more findings follow from these." in text
    assert "because of it: 497 more" in text
    assert render(verdict(finding), everything=True).count("PREV_LINK_BROKEN  seq") == 500


def test_json_stays_and_says_what_an_entry_is_about() -> None:
    json = verdict(changed(1)).to_json()
    (finding,) = json["findings"]
    assert finding["about"] == {
        "time": ABOUT.time,
        "type": ABOUT.type,
        "tenant": "acme",
        "node": NODE,
        "artifact": None,
    }
    assert "about" not in verdict(Finding("SEQ_GAP", "this", "that", seq=1)).to_json()["findings"][0]


def test_below_zero_the_word_stands_nowhere() -> None:
    for code in CODES:
        if code != "PREV_LINK_BROKEN":
            assert not re.search(r"\bOK\b", render(verdict(Finding(code, "this", "that", seq=1))))

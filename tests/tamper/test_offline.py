"""The tamper suite on exports: each forgery has its one name and exit code, and no combination of them passes."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from memory_layer.audit import bundle, trust_root
from memory_layer.audit.checkpoint import parse_checkpoint
from memory_layer.audit.offline import verify_bundle
from memory_layer.audit.report import render
from memory_layer.audit.verdict import Finding, Verdict
from tests.support import second_verifier
from tests.support.real_log import Forgery, RealLog, refit
from tests.tamper.offline_cases import CASES, Case

GOLDEN = Path(__file__).parents[1] / "golden"


def judge(case: Case, log: RealLog, folder: Path, **how: Any) -> Verdict:
    options = dict(case.how)
    age = dt.timedelta(seconds=options.pop("seconds", 300))
    pinned = options.pop("pinned", True)
    return verify_bundle(
        folder, case.root(log), pinned=pinned, anchors=case.anchors(log), max_anchor_age=age, **options, **how
    )


def second(case: Case, log: RealLog, folder: Path) -> str | None:
    notes = [anchor.note for anchor in case.anchors(log)]
    return second_verifier.verify(folder, trust_root_of(case, log), notes)


def trust_root_of(case: Case, log: RealLog) -> bytes:
    root = case.root(log)
    return trust_root.dump(root.origin, root.keys, root.version)


def every(findings: tuple[Finding, ...]) -> set[str]:
    return {code for f in findings for code in {f.code} | every(f.consequences)}


def test_the_log_is_as_large_as_it_must_be(log: RealLog) -> None:
    forged = log.forge()
    assert len(forged.entries) >= 2000
    assert len(forged.seals) >= 200
    assert {forged.get(place, "tenant") for place in range(500)} >= {"ann", "bob", "eve"}
    assert len({forged.get(place, "type") for place in range(len(forged.entries))}) >= 6


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_each_forgery_has_its_name(case: Case, log: RealLog, tmp_path: Path) -> None:
    forged = log.forge()
    case.mutate(forged, log)
    folder = forged.write(tmp_path / "bundle")
    verdict = judge(case, log, folder)
    render(verdict)
    assert (verdict.findings[0].code if verdict.findings else None) == case.code, verdict.findings
    assert verdict.exit_code == case.exit, every(verdict.findings)
    if case.how.get("pinned", True):
        # The second verifier knows neither the age of anchors nor who pinned what.
        problem = second(case, log, folder)
        assert (problem is None) == (verdict.exit_code in (0, 10)), (problem, verdict.findings)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_combination_passes(log: RealLog, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    mutations = [case for case in CASES if case.mutate.__name__ != "nothing" and case.name != "everything gone"]
    chosen = data.draw(st.lists(st.sampled_from(mutations), min_size=1, max_size=4))
    forged = log.forge()
    before = forged.evidence()
    for case in chosen:
        try:
            case.mutate(forged, log)
        except (AssertionError, LookupError, TypeError, ValueError):
            continue  # what it would change is changed already
    assume(forged.evidence() != before)
    folder = tmp_path_factory.mktemp("combined") / "bundle"
    try:
        forged.write(folder)
        plain = next(case for case in CASES if case.name == "nothing")
        verdict = judge(plain, log, folder)
        assert verdict.exit_code not in (0, 10), [case.name for case in chosen]
        assert second(plain, log, folder) is not None
        render(verdict)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- the files themselves

BYTES = [bundle.ENTRIES, bundle.PAYLOADS, bundle.SEALS, bundle.CHECKPOINTS, bundle.MANIFEST, bundle.SIGNATURE, bundle.TRUST_ROOT,
         bundle.FORMAT_PAGE, bundle.README]  # fmt: skip


def flip(data: bytes, place: int, bit: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def cut(data: bytes, place: int, _: int) -> bytes:
    return data[:place]


def drop(data: bytes, place: int, _: int) -> bytes:
    lines = data.split(b"\n")
    return b"\n".join(lines[: place % len(lines)] + lines[place % len(lines) + 1 :])


def swap(data: bytes, place: int, _: int) -> bytes:
    lines = data.split(b"\n")
    one = place % max(1, len(lines) - 1)
    lines[one : one + 2] = lines[one : one + 2][::-1]
    return b"\n".join(lines)


def double(data: bytes, place: int, _: int) -> bytes:
    return data + data[:place]


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(BYTES),
    change=st.sampled_from([flip, flip, cut, drop, swap, double]),
    place=st.integers(0, 1 << 20),
    bit=st.integers(0, 7),
)
def test_no_changed_byte_passes(
    tmp_path_factory: pytest.TempPathFactory, name: str, change: Callable[..., bytes], place: int, bit: int
) -> None:
    """On the golden bundle, which is small: both verifiers see every change to any file."""
    before = (GOLDEN / "bundle" / name).read_bytes()
    after = change(before, place % len(before), bit)
    assume(after != before)
    folder = tmp_path_factory.mktemp("bytes") / "bundle"
    shutil.copytree(GOLDEN / "bundle", folder)
    try:
        (folder / name).write_bytes(after)
        root, note = (GOLDEN / "bundle" / bundle.TRUST_ROOT).read_bytes(), (GOLDEN / "checkpoint.txt").read_bytes()
        verdict = verify_bundle(folder, trust_root.load(root), pinned=True, anchors=[parse_checkpoint(note)])
        assert verdict.exit_code not in (0, 10)
        assert second_verifier.verify(folder, root, [note]) is not None
        render(verdict)
    finally:
        shutil.rmtree(folder)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_both_verifiers_agree_on_rewritten_bundles(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Lines changed under a manifest that fits, as whoever lacks its key can make: what one accepts the other does."""
    forged = Forgery.read(GOLDEN / "bundle")
    for _ in range(data.draw(st.integers(1, 3))):
        lines: list[Any] = data.draw(
            st.sampled_from([forged.entries, forged.payloads, forged.seals, forged.checkpoints])
        )
        if not lines:
            continue
        place = data.draw(st.integers(0, len(lines) - 1))
        action = data.draw(st.sampled_from(["drop", "repeat", "swap", "flip", "last"]))
        if action in ("drop", "last"):
            del lines[place if action == "drop" else -1]
        elif action == "repeat":
            lines.insert(place, lines[place])
        elif action == "swap":
            lines[place - 1], lines[place] = lines[place], lines[place - 1]
        elif isinstance(lines[place], bytes):
            at = data.draw(st.integers(0, len(lines[place]) - 1))
            lines[place] = flip(lines[place], at, data.draw(st.integers(0, 7))).replace(b"\n", b"")
    folder = forged.write(tmp_path_factory.mktemp("rewritten") / "bundle")
    root, note = (GOLDEN / "bundle" / bundle.TRUST_ROOT).read_bytes(), (GOLDEN / "checkpoint.txt").read_bytes()
    try:
        for notes in ([], [note]):
            verdict = verify_bundle(
                folder, trust_root.load(root), pinned=True, anchors=[parse_checkpoint(n) for n in notes]
            )
            problem = second_verifier.verify(folder, root, notes)
            assert (problem is None) == (verdict.exit_code in (0, 10)), (problem, verdict.findings)
    finally:
        shutil.rmtree(folder)


def bomb(data: bytes) -> bytes:
    import gzip

    return gzip.compress(b"0" * (64 << 20), mtime=0)


MALFORMED: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("bomb", bomb),
    ("second member", lambda data: data + data),
    ("trailing bytes", lambda data: data + b"\0"),
    ("cut off", lambda data: data[:-3]),
    ("with a time", lambda data: data[:4] + b"\1" + data[5:]),
    ("no gzip", lambda data: b"plain" + data),
    ("empty", lambda data: b""),
]


@pytest.mark.parametrize("name", [bundle.ENTRIES, bundle.PAYLOADS])
@pytest.mark.parametrize(("what", "change"), MALFORMED, ids=[name for name, _ in MALFORMED])
def test_a_gzip_of_another_form(
    log: RealLog, tmp_path: Path, name: str, what: str, change: Callable[[bytes], bytes]
) -> None:
    """Under the manifest as it was exported it is a damaged copy, and nothing in it is looked at; under one that fits it is forged."""
    folder = tmp_path / "bundle"
    shutil.copytree(log.bundle, folder)
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    verdict = verify_bundle(folder, log.root, pinned=True, anchors=[log.anchor])
    assert [(finding.code, finding.file) for finding in verdict.findings] == [("FILE_NOT_AS_EXPORTED", name)]
    assert verdict.exit_code == 20
    assert second_verifier.verify(folder, log.root_bytes, [log.notes[-1]]) is not None
    refit(folder)
    verdict = verify_bundle(folder, log.root, pinned=True, anchors=[log.anchor])
    # That an empty file expands to what it did before is a claim that is refused unread.
    at = bundle.MANIFEST if what == "empty" else name
    assert (verdict.findings[0].code, verdict.findings[0].file) == ("ARCHIVE_MALFORMED", at)
    assert verdict.exit_code == 40
    assert second_verifier.verify(folder, log.root_bytes, [log.notes[-1]]) is not None


def test_a_manifest_that_is_made_anew_is_not_signed(log: RealLog, tmp_path: Path) -> None:
    folder = log.forge().write(tmp_path / "bundle")
    verdict = verify_bundle(folder, log.root, pinned=True, anchors=[log.anchor])
    assert verdict.exit_code == 0
    assert any(line.startswith("manifest: it is not signed") for line in verdict.not_checked)
    shutil.copy(log.bundle / bundle.SIGNATURE, folder)
    verdict = verify_bundle(folder, log.root, pinned=True, anchors=[log.anchor])
    same = (folder / bundle.MANIFEST).read_bytes() == (log.bundle / bundle.MANIFEST).read_bytes()
    assert verdict.findings == () if same else verdict.findings[0].code == "MANIFEST_SIGNATURE_INVALID"


def test_the_signature_of_a_changed_manifest(log: RealLog, tmp_path: Path) -> None:
    forged = log.forge()
    forged.truncate(2)
    folder = forged.write(tmp_path / "bundle")
    shutil.copy(log.bundle / bundle.SIGNATURE, folder)
    verdict = verify_bundle(folder, log.root, pinned=True)
    assert (verdict.findings[0].code, verdict.exit_code) == ("MANIFEST_SIGNATURE_INVALID", 40)


# --- all cores


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small logs too are cut into parts, and those are small."""
    from memory_layer.audit import offline

    monkeypatch.setattr(offline, "WORTH_IT", 0)
    monkeypatch.setattr(offline, "_ENTRIES_A_PART", 300)


PARALLEL = ("nothing", "nothing, no anchor", "entry edited", "an id twice", "batch gone", "tail gone", "an anchor that is old",
            "history rewritten with the real key", "payload gone", "sealed after the key's time", "two checkpoints of one size")  # fmt: skip


@pytest.mark.parametrize("name", PARALLEL)
def test_what_is_found_does_not_depend_on_the_processes(log: RealLog, tmp_path: Path, eager: None, name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    forged = log.forge()
    case.mutate(forged, log)
    folder = forged.write(tmp_path / "bundle")
    one, two = judge(case, log, folder, processes=1), judge(case, log, folder, processes=2)
    assert one == two
    assert one.exit_code == case.exit

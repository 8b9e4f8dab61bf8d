"""Evidence out of a live database: what a bundle holds, whole and in part, and that a part is judged as what it is."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from memory_layer.audit import bundle, trust_root
from memory_layer.audit.checkpoint import parse_checkpoint
from memory_layer.audit.offline import Range, verify_bundle
from memory_layer.audit.verdict import Verdict
from memory_layer.errors import DependencyUnavailable, NotFound, UsageError
from memory_layer.ops import embedded, export
from memory_layer.ops.export import Exported
from memory_layer.ops.manifests import manifest_key
from tests.support import second_verifier
from tests.support.real_log import Forgery, RealLog, forged_copy, note_for, real_log


@pytest.fixture(scope="module")
def log(cluster: embedded.Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealLog]:
    with real_log(cluster, tmp_path_factory.mktemp("log")) as written:
        yield written


@pytest.fixture
def take(log: RealLog, tmp_path: Path) -> Callable[..., Exported]:
    """Export into a new folder."""

    def run(name: str = "evidence", **how: object) -> Exported:
        return export.export(log.dsn, log.root, log.root_bytes, tmp_path / name, **how)  # type: ignore[arg-type]

    return run


def judge(log: RealLog, folder: Path, **how: object) -> Verdict:
    return verify_bundle(folder, log.root, pinned=True, anchors=[log.anchor], **how)  # type: ignore[arg-type]


def test_a_bundle_needs_nothing_beside_it(log: RealLog) -> None:
    names = {path.name for path in log.bundle.iterdir()}
    assert names == {*bundle.FILES, bundle.MANIFEST, bundle.SIGNATURE}
    assert (log.bundle / bundle.TRUST_ROOT).read_bytes() == log.root_bytes
    assert b"## Evidence bundle" in (log.bundle / bundle.FORMAT_PAGE).read_bytes()
    readme = (log.bundle / bundle.README).read_text()
    assert log.root.origin in readme
    # Who gets the bundle may have nothing of ours, and on an index the name is another product's.
    assert "the name memory-layer belongs to another product" in " ".join(readme.split())
    assert "pip install" not in readme
    verdict = judge(log, log.bundle)
    assert (verdict.findings, verdict.exit_code) == ((), 0)
    assert second_verifier.verify(log.bundle, log.root_bytes, [log.notes[-1]]) is None


def test_the_same_log_gives_the_same_files(log: RealLog, take: Callable[..., Exported]) -> None:
    again = take().manifest
    first = Forgery.read(log.bundle).manifest
    assert (again.files, again.head, again.counts) == (first.files, first.head, first.counts)


def test_the_manifest_is_signed_where_its_key_is(log: RealLog, take: Callable[..., Exported]) -> None:
    assert (log.bundle / bundle.SIGNATURE).exists()
    plain = take()
    assert not plain.signed
    assert not (plain.folder / bundle.SIGNATURE).exists()
    assert any(line.startswith("manifest:") for line in judge(log, plain.folder).not_checked)
    strange = trust_root.load(
        trust_root.dump(log.root.origin, [key for key in log.root.keys if key.purpose != "manifest"])
    )
    assert manifest_key(log.data, strange) is None
    verdict = verify_bundle(log.bundle, strange, pinned=True)
    assert (verdict.findings[0].code, verdict.exit_code) == ("KEY_UNKNOWN", 50)


def test_payloads_of_one_tenant_or_none(log: RealLog, take: Callable[..., Exported]) -> None:
    for name, how, mine in (
        ("ann", {"payloads": "tenant", "tenant": "ann"}, "ann"),
        ("none", {"payloads": "none"}, None),
    ):
        out = take(name, **how).folder
        forged = Forgery.read(out)
        tenants = {forged.get(seq, "tenant") for seq, _, _ in forged.payloads}
        assert tenants == ({mine} if mine else set())
        verdict = judge(log, out)
        assert (verdict.findings, verdict.exit_code) == ((), 0)
        assert any(line.startswith("payloads:") for line in verdict.not_checked)
        assert second_verifier.verify(out, log.root_bytes, [log.notes[-1]]) is None
        if mine:
            place = next(n for n, (seq, _, _) in enumerate(forged.payloads) if seq > 50)
            del forged.payloads[place]
            out = forged.write(out.with_name("robbed"))
            assert judge(log, out).findings[0].code == "PAYLOAD_MISSING_UNAUTHORISED"
            assert second_verifier.verify(out, log.root_bytes) is not None


def test_a_part_is_judged_as_a_part_only_when_asked_for(log: RealLog, take: Callable[..., Exported]) -> None:
    done = take(first=700, last=1500)
    manifest = done.manifest
    assert manifest.head is not None
    assert manifest.base.seq <= 700
    assert manifest.head.seq >= 1500
    verdict = verify_bundle(done.folder, log.root, pinned=True)
    assert [finding.code for finding in verdict.findings] == ["TAIL_TRUNCATED", "GENESIS_MISSING"]
    late = verify_bundle(take("late", first=700).folder, log.root, pinned=True)
    assert ([finding.code for finding in late.findings], late.exit_code) == (["GENESIS_MISSING"], 20)
    within = parse_checkpoint(
        next(note for note in log.notes if 700 < parse_checkpoint(note).size <= manifest.head.seq + 1)
    )
    verdict = verify_bundle(done.folder, log.root, pinned=True, anchors=[within, log.anchor], expected=Range(700, 1500),
                            max_anchor_age=dt.timedelta(days=1))  # fmt: skip
    assert verdict.findings == ()
    assert verdict.anchor is not None
    assert verdict.anchor.size == within.size
    assert any(line.startswith(f"entries: those before {manifest.base.seq}") for line in verdict.not_checked)
    assert any(line.startswith(f"anchor of size {log.anchor.size}") for line in verdict.not_checked)
    assert verdict.exit_code in (0, 10)
    larger = verify_bundle(done.folder, log.root, pinned=True, expected=Range(0, 2000))
    assert {finding.code for finding in larger.findings} == {"GENESIS_MISSING", "SEAL_RANGE_INCOMPLETE"}


def test_a_base_that_lies_is_refuted_by_an_anchor(log: RealLog, take: Callable[..., Exported], tmp_path: Path) -> None:
    forged = Forgery.read(take(first=700).folder)
    tree = forged.manifest.base.tree
    base = forged.manifest.base._replace(tree=tree[:-1] + bytes([tree[-1] ^ 1]))
    object.__setattr__(forged.manifest, "base", base)
    out = forged.write(tmp_path / "lie")
    assert judge(log, out, expected=Range(700, None)).findings[0].code == "CHECKPOINT_INCONSISTENT"


def test_bundles_go_on_from_one_another(log: RealLog, take: Callable[..., Exported]) -> None:
    october = take("october", last=900)
    assert october.manifest.head is not None
    end = october.manifest.head
    november = take("november", first=end.seq + 1, previous=october.digest)
    base = november.manifest.base
    assert (base.seq, base.batch, base.prev, base.prev_seal) == (end.seq + 1, end.batch + 1, end.hash, end.seal)
    assert november.manifest.previous == hashlib.sha256((october.folder / bundle.MANIFEST).read_bytes()).hexdigest()
    verdict = judge(log, november.folder, expected=Range(base.seq, None))
    assert (verdict.findings, verdict.exit_code) == ((), 0)
    parts = [Forgery.read(out.folder).entries for out in (october, november)]
    assert [*parts[0], *parts[1]] == log.forge().entries


def test_what_was_tampered_with_is_exported_as_it_is(log: RealLog, tmp_path: Path) -> None:
    with forged_copy(log) as connection:
        connection.execute("UPDATE audit_payloads SET payload = '\\x00ff0a' WHERE seq = 300")
        connection.execute("DELETE FROM audit_events WHERE seq = 400")
        connection.execute("UPDATE audit_seals SET seal_text = 'ein Märchen' WHERE batch_no = 90")
        dsn = psycopg.conninfo.make_conninfo(log.dsn, dbname=connection.info.dbname)
        export.export(dsn, log.root, log.root_bytes, tmp_path / "evidence")
    verdict = judge(log, tmp_path / "evidence")
    assert {finding.code for finding in verdict.findings} >= {
        "PAYLOAD_COMMITMENT_MISMATCH",
        "SEQ_GAP",
        "NONCANONICAL_ENCODING",
    }


def test_evidence_is_never_overwritten(log: RealLog, tmp_path: Path, take: Callable[..., Exported]) -> None:
    (tmp_path / "evidence").mkdir()
    (tmp_path / "evidence" / "x").touch()
    with pytest.raises(UsageError, match="not an empty folder"):
        take()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError):
        take("file")
    with pytest.raises(UsageError, match="before"):
        take("reversed", first=5, last=4)
    with pytest.raises(NotFound, match="no entries from 999999"):
        take("beyond", first=999999)


def test_a_database_of_another_log(log: RealLog, tmp_path: Path) -> None:
    other = log.root_bytes.replace(b"/audit/dev/", b"/audit/prod/")
    with pytest.raises(NotFound, match="does not hold the log"):
        export.export(log.dsn, trust_root.load(other), other, tmp_path / "other")
    with pytest.raises(DependencyUnavailable):
        export.export(f"host={tmp_path} user=memory_app dbname=memory", log.root, log.root_bytes, tmp_path / "none")


def test_what_is_no_bundle(log: RealLog, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no evidence bundle"):
        verify_bundle(tmp_path, log.root, pinned=True)


def test_two_heads_of_one_size_need_no_log(log: RealLog) -> None:
    other = parse_checkpoint(note_for(log, log.anchor.size, os.urandom(32)))
    verdict = verify_bundle(log.bundle, log.root, pinned=True, anchors=[log.anchor, other])
    assert (verdict.findings[0].code, verdict.exit_code) == ("EQUIVOCATION", 30)


def test_entries_hold_no_payload(log: RealLog) -> None:
    assert all("content" not in json.loads(entry) for entry in log.forge().entries)

"""The tamper suite on archives: each forgery has its one name and exit code."""

from __future__ import annotations

import dataclasses
import gzip
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memory_layer import config
from memory_layer.audit import bundle
from memory_layer.audit.archive import Held, local_segments, verify_archive
from memory_layer.audit.report import render
from memory_layer.audit.segment import CHECKPOINT, ENTRIES, MANIFEST, PAYLOADS, SEALS
from memory_layer.errors import UsageError
from memory_layer.ops import embedded
from memory_layer.ops.archive.data_keys import open_wrapping_key
from tests.support import second_archive
from tests.support.product import clean_environment
from tests.support.real_archive import EACH, RealArchive, real_archive
from tests.support.real_log import RealLog
from tests.support.service import rows


@pytest.fixture(scope="session")
def archive(cluster: embedded.Cluster, log: RealLog, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealArchive]:
    with real_archive(cluster, log, tmp_path_factory.mktemp("archive")) as made:
        yield made


@pytest.fixture
def forged(archive: RealArchive, tmp_path: Path) -> RealArchive:
    return archive.copy(tmp_path / "forged")


def second(archive: RealArchive, **how: Any) -> str | None:
    return second_archive.verify(archive.folder / "segments", (archive.data / "trust-root.json").read_bytes(), **how)


def test_both_verifiers_accept_it_payloads_included(archive: RealArchive) -> None:
    wrapping = open_wrapping_key(config.load({}), archive.data, make=False)
    rows_ = rows(archive.dsn, "SELECT handle, wrapped_key FROM subjects WHERE wrapped_key IS NOT NULL")
    keys = {str(handle): wrapping.unwrap(handle, bytes(wrapped)) for handle, wrapped in rows_}
    assert len(keys) > 5
    assert second(archive, data_keys=keys, last=archive.manifest(-1).head.seq) is None
    handle = next(iter(keys))
    assert "InvalidTag" in str(second(archive, data_keys=keys | {handle: bytes(32)}))
    assert second(archive) is None


def test_the_archive_is_a_chain_of_whole_segments(archive: RealArchive) -> None:
    verdict = archive.judge()
    assert (verdict.findings, verdict.exit_code) == ((), 0), render(verdict)
    manifests = [archive.manifest(number) for number in range(len(archive.segments))]
    assert len(manifests) >= 5
    assert all(segment.counts["entries"] >= EACH for segment in manifests[:-1])
    assert verdict.counts.entries == manifests[-1].head.seq + 1 == sum(s.counts["entries"] for s in manifests)
    assert verdict.counts.root is not None
    assert verdict.counts.checkpoints_valid >= 1
    assert all(segment.lock.mode == "COMPLIANCE" for segment in manifests)


def test_no_payload_is_in_clear(archive: RealArchive) -> None:
    for folder in archive.segments:
        text = gzip.decompress((folder / PAYLOADS).read_bytes())
        assert text.count(b'"ciphertext"') == text.count(b"\n")
        assert b'"payload"' not in text
        assert b"turn " not in text  # no base64 has a space


# --- what is done to an archive, what it must be called, and the exit code


def cut_mid_line(a: RealArchive) -> None:
    path = a.segments[1] / ENTRIES
    path.write_bytes(path.read_bytes()[:-200])


def cut_at_a_line(a: RealArchive) -> None:
    path = a.segments[1] / ENTRIES
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    packed = zlib.compressobj(9, zlib.DEFLATED, 31)
    path.write_bytes(packed.compress(b"".join(lines[:-3])) + packed.flush())


def cut_seals(a: RealArchive) -> None:
    path = a.segments[1] / SEALS
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def file_gone(a: RealArchive) -> None:
    (a.segments[2] / PAYLOADS).unlink()


def a_bit(name: str) -> Callable[[RealArchive], None]:
    def flip(a: RealArchive) -> None:
        path = a.segments[1] / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(bytes(data))

    return flip


def bomb(a: RealArchive) -> None:
    """Half a gigabyte of nothing in half a megabyte."""
    packed = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = bytes(1 << 20)
    data = b"".join(packed.compress(zeros) for _ in range(512)) + packed.flush()
    (a.segments[1] / ENTRIES).write_bytes(data)


def second_member(a: RealArchive) -> None:
    path = a.segments[1] / ENTRIES
    path.write_bytes(path.read_bytes() + gzip.compress(b"more\n"))


def trailing_bytes(a: RealArchive) -> None:
    path = a.segments[1] / PAYLOADS
    path.write_bytes(path.read_bytes() + bytes(100))


def manifest_edited(a: RealArchive) -> None:
    a.edit_manifest(1, lambda document: document["counts"].update(payloads=0))


def archive_and_manifest(a: RealArchive) -> None:
    """A segment made over by somebody without the manifest key: an entry changed, and everything that speaks of it."""
    folder = a.segments[1]
    lines = gzip.decompress((folder / ENTRIES).read_bytes()).replace(b'"auth":"jwt"', b'"auth":"mtls"', 1).splitlines()
    (folder / ENTRIES).unlink()
    with bundle.LineWriter(folder, ENTRIES) as file:
        for line in lines:
            file.write(line)
        made = file.finish()
    a.edit_manifest(
        1, lambda d: d["files"][ENTRIES].update(bytes=made.bytes, sha256=made.sha256, expanded=made.expanded)
    )


def another_key(a: RealArchive) -> None:
    a.edit_manifest(1, lambda document: document["signature"].update(key="0" * 64))


def segments_swapped(a: RealArchive) -> None:
    """Archive and manifest of one segment in the place of another: each is signed as it should be."""
    one, two = a.segments[1], a.segments[2]
    shutil.rmtree(one)
    shutil.copytree(two, one)


def renamed(a: RealArchive) -> None:
    one, two = a.segments[1], a.segments[2]
    shutil.rmtree(one)
    shutil.copytree(two, one.with_name(two.name + "-a1"))


def segment_gone(a: RealArchive) -> None:
    shutil.rmtree(a.segments[2])


def manifest_gone(a: RealArchive) -> None:
    (a.segments[2] / MANIFEST).unlink()


def first_gone(a: RealArchive) -> None:
    shutil.rmtree(a.segments[0])


def white_space(a: RealArchive) -> None:
    path = a.segments[1] / MANIFEST
    path.write_bytes(path.read_bytes() + b"\n")


def checkpoint_of_another(a: RealArchive) -> None:
    (a.segments[0] / CHECKPOINT).write_bytes((a.segments[-1] / CHECKPOINT).read_bytes())


CASES: list[tuple[Callable[[RealArchive], None], str, int]] = [
    (cut_mid_line, "ARCHIVE_TRUNCATED", 40),
    (cut_at_a_line, "ARCHIVE_TRUNCATED", 40),
    (cut_seals, "ARCHIVE_TRUNCATED", 40),
    (file_gone, "ARCHIVE_TRUNCATED", 40),
    (a_bit(ENTRIES), "ARCHIVE_MALFORMED", 40),
    (a_bit(PAYLOADS), "ARCHIVE_MALFORMED", 40),
    (a_bit(SEALS), "ARCHIVE_MALFORMED", 40),
    (a_bit(CHECKPOINT), "ARCHIVE_MALFORMED", 40),
    (bomb, "ARCHIVE_MALFORMED", 40),
    (second_member, "ARCHIVE_MALFORMED", 40),
    (trailing_bytes, "ARCHIVE_MALFORMED", 40),
    (white_space, "ARCHIVE_MALFORMED", 40),
    (manifest_edited, "MANIFEST_SIGNATURE_INVALID", 40),
    (archive_and_manifest, "MANIFEST_SIGNATURE_INVALID", 40),
    (another_key, "MANIFEST_SIGNATURE_INVALID", 50),
    (segments_swapped, "ARCHIVE_CHAIN_BROKEN", 40),
    (renamed, "ARCHIVE_RANGE_GAP", 40),
    (segment_gone, "ARCHIVE_RANGE_GAP", 40),
    (manifest_gone, "ARCHIVE_RANGE_GAP", 40),
    (first_gone, "ARCHIVE_RANGE_GAP", 40),
    (checkpoint_of_another, "ARCHIVE_MALFORMED", 40),
]


@pytest.mark.parametrize(
    ("mutate", "code", "exit"), CASES, ids=[f"{case[0].__name__}-{number}" for number, case in enumerate(CASES)]
)
def test_each_forgery_has_its_name(
    mutate: Callable[[RealArchive], None], code: str, exit: int, forged: RealArchive
) -> None:
    anchor = forged.anchor
    mutate(forged)
    verdict = forged.judge(anchors=[anchor])
    assert [finding.code for finding in verdict.findings] == [code], render(verdict)
    assert verdict.exit_code == exit, render(verdict)
    assert second(forged) is not None


def test_newest_segments_taken_away_show_where_the_end_is_known(forged: RealArchive) -> None:
    anchor, end = forged.anchor, forged.manifest(-1).head.seq
    shutil.rmtree(forged.segments[-1])
    assert forged.judge(anchors=[]).exit_code == 10
    assert any(line.startswith("anchor of size") for line in forged.judge(anchors=[anchor]).not_checked)
    verdict = forged.judge(anchors=[], last=end)
    assert [finding.code for finding in verdict.findings] == ["ARCHIVE_TRUNCATED"]


def test_a_checkpoint_by_an_unknown_key(archive: RealArchive) -> None:
    root = archive.root
    keys = tuple(key for key in root.keys if key.purpose != "checkpoint")
    other = dataclasses.replace(root, keys=keys)
    verdict = verify_archive(local_segments(archive.folder, root.origin), other, pinned=True)
    assert {finding.code for finding in verdict.findings} == {"KEY_UNKNOWN"}
    assert verdict.exit_code == 50


@pytest.mark.slow
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_change_of_a_file_passes(
    archive: RealArchive, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """One bit, a cut anywhere, or more bytes, in any file of any segment."""
    folder = tmp_path_factory.mktemp("changed")
    forged = archive.copy(folder / "archive")
    try:
        path = data.draw(st.sampled_from(sorted(path for path in forged.folder.rglob("segments/*/*"))))
        content = path.read_bytes()
        place = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["flip", "cut", "more", "gone"]))
        changed = {
            "flip": content[:place]
            + bytes([content[place] ^ 1 << data.draw(st.integers(0, 7))])
            + content[place + 1 :],
            "cut": content[:place],
            "more": content[:place] + content[place:] + content[place:],
        }
        if kind == "gone":
            path.unlink()
        else:
            path.write_bytes(changed[kind])
        verdict = forged.judge(anchors=[], last=archive.manifest(-1).head.seq)
        assert verdict.exit_code in (40, 50), (path, kind, place)
        assert second(forged, last=archive.manifest(-1).head.seq) is not None
        assert render(verdict)
    finally:
        shutil.rmtree(folder)


def test_an_archive_is_verified_with_neither_database_nor_network(archive: RealArchive, tmp_path: Path) -> None:
    """In a process of its own, that may open no socket and import no driver."""
    script = """
import socket, sys
def refuse(*_): raise AssertionError("a socket")
socket.socket.connect = refuse
from memory_layer.cli import main
try:
    main(sys.argv[1:])
finally:
    assert not {"psycopg", "boto3"} & set(sys.modules)
"""
    anchor, root = tmp_path / "checkpoint.txt", shutil.copy(archive.data / "trust-root.json", tmp_path)
    anchor.write_bytes(archive.anchor.note)
    words = ["audit", "verify", "--archive", str(archive.folder), "--trust-root", str(root), "--anchor", str(anchor)]
    done = subprocess.run(
        [sys.executable, "-c", script, *words], env=clean_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["VERDICT", "OK_ANCHORED", "exit", "0"]
    assert "not checked    locks" in done.stdout


def test_one_segment_alone_is_judged_by_its_own_checkpoint(archive: RealArchive) -> None:
    folder = archive.segments[2]
    first = archive.manifest(2).base.seq
    verdict = verify_archive([Held(folder)], archive.root, pinned=True, first=first)
    assert verdict.findings == (), render(verdict)
    assert verdict.counts.entries == archive.manifest(2).counts["entries"]
    with pytest.raises(UsageError):
        verify_archive([], archive.root, pinned=True)


def test_without_a_pinned_trust_root_it_is_nothing(archive: RealArchive) -> None:
    verdict = archive.judge(pinned=False)
    assert verdict.exit_code == 50

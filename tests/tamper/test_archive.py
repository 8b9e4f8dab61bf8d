"""The tamper suite on archives: each forgery has its one name and exit code."""

from __future__ import annotations

import gzip
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memory_layer.audit import bundle
from memory_layer.audit.report import render
from memory_layer.audit.segment import CHECKPOINT, ENTRIES, MANIFEST, PAYLOADS, SEALS
from memory_layer.errors import UsageError
from memory_layer.ops import embedded
from tests.support.real_archive import EACH, RealArchive, real_archive
from tests.support.real_log import RealLog


@pytest.fixture(scope="session")
def archive(cluster: embedded.Cluster, log: RealLog, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealArchive]:
    with real_archive(cluster, log, tmp_path_factory.mktemp("archive")) as made:
        yield made


@pytest.fixture
def forged(archive: RealArchive, tmp_path: Path) -> RealArchive:
    return archive.copy(tmp_path / "forged")


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
        assert b"turn" not in text


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


def test_newest_segments_taken_away_show_where_the_end_is_known(forged: RealArchive) -> None:
    anchor, end = forged.anchor, forged.manifest(-1).head.seq
    shutil.rmtree(forged.segments[-1])
    assert forged.judge(anchors=[]).exit_code == 10
    assert any(line.startswith("anchor of size") for line in forged.judge(anchors=[anchor]).not_checked)
    verdict = forged.judge(anchors=[], last=end)
    assert [finding.code for finding in verdict.findings] == ["ARCHIVE_TRUNCATED"]


def test_a_log_rewritten_with_every_key_but_the_checkpoints(forged: RealArchive, log: RealLog) -> None:
    """Who holds seal and manifest keys may write another archive: the anchor, and the checkpoint beside it, refute it."""
    anchor = forged.anchor
    verdict = forged.judge(anchors=[anchor])
    assert verdict.exit_code == 0
    other = forged.root.__class__(**{name: getattr(forged.root, name) for name in ("version", "origin", "digest")} | {"keys": tuple(
        key for key in forged.root.keys if key.purpose != "checkpoint")})  # fmt: skip
    from memory_layer.audit.archive import local_segments, verify_archive

    refused = verify_archive(local_segments(forged.folder, other.origin), other, pinned=True)
    assert "KEY_UNKNOWN" in {finding.code for finding in refused.findings}


def test_one_segment_alone_is_judged_by_its_own_checkpoint(archive: RealArchive) -> None:
    from memory_layer.audit.archive import Held, verify_archive

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

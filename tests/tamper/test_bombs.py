"""Bundles that are made to keep the verifier busy, and copies that were damaged on the way: each is judged in bounded time and memory."""

from __future__ import annotations

import functools
import gzip
import json
import os
import resource
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memory_layer.audit import bundle, trust_root
from memory_layer.audit.checkpoint import parse_checkpoint
from memory_layer.audit.offline import verify_bundle
from memory_layer.audit.report import render
from memory_layer.audit.verdict import Verdict
from tests.support.real_log import refit

GOLDEN = Path(__file__).parents[1] / "golden"
ROOT = (GOLDEN / "bundle" / bundle.TRUST_ROOT).read_bytes()
SECONDS = 20  # on a machine that does other things besides
MEMORY = 1 << 20  # KiB that a verifier may have


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "bundle", tmp_path / "bundle"))


def judge(folder: Path) -> Verdict:
    anchor = parse_checkpoint((GOLDEN / "checkpoint.txt").read_bytes())
    started = time.monotonic()
    verdict = verify_bundle(folder, trust_root.load(ROOT), pinned=True, anchors=[anchor])
    assert time.monotonic() - started < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 * MEMORY
    assert len(render(verdict).splitlines()) < 100
    return verdict


def codes(verdict: Verdict) -> set[str]:
    return {finding.code for finding in verdict.findings}


@functools.cache
def bomb(part: bytes) -> bytes:
    return squeezed(times(1024, part))


def squeezed(parts: Iterator[bytes]) -> bytes:
    """One gzip member in the one form, of text that need not fit into memory."""
    packer, crc, size, made = zlib.compressobj(9, zlib.DEFLATED, -15), 0, 0, [bundle.GZIP_HEADER]
    for part in parts:
        crc, size = zlib.crc32(part, crc), size + len(part)
        made.append(packer.compress(part))
    made.append(packer.flush() + crc.to_bytes(4, "little") + (size & 0xFFFFFFFF).to_bytes(4, "little"))
    return b"".join(made)


def times(count: int, part: bytes) -> Iterator[bytes]:
    return (part for _ in range(count))


GIGABYTE = 1 << 30
BLANK = b"\n" * (1 << 20)
ONE_LINE = b"0" * (1 << 20)
LINE = b'{"payload":"","salt":"' + b"A" * 43 + b'=","seq":1}\n'
PAYLOADS = LINE * ((1 << 20) // len(LINE))
BOMBS: list[tuple[str, bytes, int, int]] = [
    ("lines of nothing", BLANK, GIGABYTE, GIGABYTE),
    ("one line", ONE_LINE, GIGABYTE, 1),
    ("one payload again and again", PAYLOADS, 1024 * len(PAYLOADS), 1024 * PAYLOADS.count(b"\n")),
]


@pytest.mark.parametrize("name", [bundle.ENTRIES, bundle.PAYLOADS])
@pytest.mark.parametrize(("what", "part", "expanded", "lines"), BOMBS, ids=[bomb[0] for bomb in BOMBS])
@pytest.mark.parametrize("claim", ["as it is", "small", "lines few", "absurd"])
def test_a_bomb_under_a_manifest_that_fits(
    folder: Path, name: str, what: str, part: bytes, expanded: int, lines: int, claim: str
) -> None:
    (folder / name).write_bytes(bomb(part))
    counts = name.partition(".")[0]
    claims = {
        "as it is": {counts: lines, f"{counts}_expanded": expanded},
        "small": {},
        "lines few": {f"{counts}_expanded": expanded},
        "absurd": {counts: 10**15 - 1, f"{counts}_expanded": 10**15 - 1},
    }[claim]
    refit(folder, **claims)
    verdict = judge(folder)
    assert "ARCHIVE_MALFORMED" in codes(verdict)
    assert verdict.exit_code >= 40  # 50 where entries about keys lose their payloads by it


def test_a_bomb_in_place_of_a_file_is_not_expanded_at_all(folder: Path) -> None:
    (folder / bundle.ENTRIES).write_bytes(bomb(BLANK))
    verdict = judge(folder)
    assert (codes(verdict), verdict.exit_code) == ({"FILE_NOT_AS_EXPORTED"}, 20)


def test_what_lies_there_in_place_of_a_file_is_not_read(folder: Path) -> None:
    for name, make in (
        (bundle.PAYLOADS, os.mkfifo),
        (bundle.SEALS, lambda path: path.symlink_to("/dev/zero")),
        (bundle.CHECKPOINTS, Path.mkdir),
        (bundle.SIGNATURE, os.mkfifo),
    ):
        (folder / name).unlink()
        make(folder / name)  # type: ignore[operator]
    os.truncate(folder / bundle.ENTRIES, 1 << 40)  # a terabyte that takes no room
    verdict = judge(folder)
    assert {finding.file for finding in verdict.findings} >= {
        bundle.ENTRIES,
        bundle.PAYLOADS,
        bundle.SEALS,
        bundle.CHECKPOINTS,
    }
    assert verdict.exit_code == 20


MANIFESTS: list[tuple[str, bytes, int]] = [
    ("deep arrays", b"[" * 60_000, 40),
    ("deep and closed", b"[" * 30_000 + b"]" * 30_000, 40),
    ("a long number", b"[" + b"9" * 60_000 + b"]", 40),
    ("many members", json.dumps({f"m{n}": n for n in range(4000)}).encode(), 40),
    ("too long", b" " * 70_000, 20),
    ("nothing", b"", 20),
]


@pytest.mark.parametrize(("what", "data", "exit_code"), MANIFESTS, ids=[name for name, _, _ in MANIFESTS])
def test_a_manifest_that_is_none(folder: Path, what: str, data: bytes, exit_code: int) -> None:
    (folder / bundle.MANIFEST).write_bytes(data)
    verdict = judge(folder)
    assert verdict.exit_code == exit_code
    assert verdict.findings[0].file == bundle.MANIFEST


def test_a_batch_that_claims_to_hold_everything(folder: Path) -> None:
    """Seals say how many entries a batch has; a part of the log is not held in memory because one says so."""
    text = (folder / bundle.SEALS).read_text()
    (folder / bundle.SEALS).write_text(text.replace("range 0 ", "range 0 9999999999", 1))
    refit(folder)
    assert judge(folder).exit_code == 40


# --- what else is read


def cli(*words: str | Path) -> subprocess.CompletedProcess[str]:
    def bounded() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (4 * MEMORY * 1024, 4 * MEMORY * 1024))

    command = [sys.executable, "-m", "memory_layer.cli", "audit", *map(str, words)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        stdin=subprocess.DEVNULL,
        preexec_fn=bounded,
    )


HOSTILE: list[tuple[str, Callable[[Path], object]]] = [
    ("deep", lambda path: path.write_bytes(b"[" * 900_000)),
    ("large", lambda path: os.truncate(path, 1 << 40)),
    ("numbers", lambda path: path.write_bytes(b"[" + b"9," * 400_000 + b"9]")),
    ("one number", lambda path: path.write_bytes(b"9" * 1_000_000)),
    ("signatures", lambda path: path.write_bytes("— x AAAA\n".encode() * 80_000)),
]


@pytest.mark.parametrize(("what", "make"), HOSTILE, ids=[name for name, _ in HOSTILE])
def test_a_trust_root_an_anchor_or_a_proof_that_is_none(
    folder: Path, tmp_path: Path, what: str, make: Callable[[Path], object]
) -> None:
    hostile, good = tmp_path / "hostile", tmp_path / "trust-root.json"
    hostile.touch()
    good.write_bytes(ROOT)
    make(hostile)
    for words in (
        ("verify", "--export", folder, "--trust-root", hostile),
        ("verify", "--export", folder, "--trust-root", good, "--anchor", hostile),
        ("proof", "--verify", hostile, "--trust-root", good),
        ("proof", "--verify", GOLDEN / "proof.txt", "--trust-root", hostile),
        ("proof", "--verify", GOLDEN / "proof.txt", "--trust-root", good, "--entry", hostile),
    ):
        done = cli(*words)
        assert done.returncode in (2, 40), (words, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr


def test_a_trust_root_of_a_bundle_that_is_a_pipe(folder: Path) -> None:
    (folder / bundle.TRUST_ROOT).unlink()
    os.mkfifo(folder / bundle.TRUST_ROOT)
    done = cli("verify", "--export", folder)
    assert (done.returncode, "is no file" in done.stderr) == (2, True), done.stderr


# --- copies that were damaged on the way


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def anew(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())))


def unpacked(path: Path) -> None:
    path.write_bytes(gzip.decompress(path.read_bytes()))


def crlf(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def gone(path: Path) -> None:
    path.unlink()


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


GZ, TEXT = (bundle.ENTRIES, bundle.PAYLOADS), (bundle.SEALS, bundle.CHECKPOINTS, bundle.README, bundle.SIGNATURE)
EACH = (*GZ, *TEXT[:3], bundle.TRUST_ROOT, bundle.FORMAT_PAGE)
DAMAGES = [
    *((halved, name) for name in (*EACH, bundle.MANIFEST, bundle.SIGNATURE)),
    *((gone, name) for name in (*EACH, bundle.MANIFEST)),
    *((zeros, name) for name in EACH),
    *((change, name) for change in (anew, unpacked) for name in GZ),
    *((crlf, name) for name in (*TEXT, *GZ)),
]


@pytest.mark.parametrize(("change", "name"), DAMAGES, ids=[f"{change.__name__} {name}" for change, name in DAMAGES])
def test_a_damaged_copy_is_no_evidence_of_tampering(folder: Path, change: Callable[[Path], None], name: str) -> None:
    change(folder / name)
    verdict = judge(folder)
    assert [(finding.code, finding.file) for finding in verdict.findings] == [("FILE_NOT_AS_EXPORTED", name)]
    assert verdict.exit_code == 20
    first = render(verdict).splitlines()[0]
    assert "INCOMPLETE" in first
    assert "copy" in first


def test_a_copy_whose_lines_were_all_converted_names_every_file_and_how(folder: Path) -> None:
    for name in TEXT:
        crlf(folder / name)
    verdict = judge(folder)
    assert {finding.file for finding in verdict.findings} == set(TEXT)
    assert all("CRLF" in finding.found for finding in verdict.findings)
    assert verdict.exit_code == 20


def test_what_is_tampered_with_beside_a_damaged_file_that_is_no_evidence_is_still_found(folder: Path) -> None:
    entries = gzip.decompress((folder / bundle.ENTRIES).read_bytes()).replace(b'"auth":"jwt"', b'"auth":"mtl"')
    (folder / bundle.ENTRIES).write_bytes(squeezed(iter([entries])))
    refit(folder)
    halved(folder / bundle.README)
    verdict = judge(folder)
    assert "FILE_NOT_AS_EXPORTED" in codes(verdict)
    assert verdict.exit_code == 40


def test_a_manifest_that_is_signed_by_nobody_and_files_that_differ(folder: Path) -> None:
    """Who changes a manifest and breaks a file does not get away with a damaged copy."""
    manifest = bundle.load_manifest((folder / bundle.MANIFEST).read_bytes())
    (folder / bundle.MANIFEST).unlink()
    manifest.counts["entries"] += 1
    bundle.write_manifest(folder, manifest)
    halved(folder / bundle.ENTRIES)
    verdict = judge(folder)
    assert "MANIFEST_SIGNATURE_INVALID" in codes(verdict)
    assert verdict.exit_code == 40

"""`memoryctl audit export` and `audit verify --export` as a shell sees them: what is written, exit codes, and what needs no server."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from memory_layer.audit import bundle
from memory_layer.cli import main
from memory_layer.ops import embedded
from tests.support.product import clean_environment
from tests.support.real_log import Forgery, RealLog, real_log


@pytest.fixture(scope="module")
def log(cluster: embedded.Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealLog]:
    with real_log(cluster, tmp_path_factory.mktemp("log")) as written:
        yield written


@pytest.fixture
def pinned(log: RealLog, tmp_path: Path) -> Path:
    """The auditor's own copy of the trust root."""
    return Path(shutil.copy(log.data / "trust-root.json", tmp_path / "pinned.json"))


@pytest.fixture
def anchor(log: RealLog, tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.txt"
    path.write_bytes(log.notes[-1])
    return path


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def verify(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    return run(capsys, "audit", "verify", *words)


def test_a_bundle_is_verified_with_neither_database_nor_network(log: RealLog, pinned: Path, anchor: Path) -> None:
    """In a process of its own, that may open no socket and import no driver."""
    script = """
import socket, sys
def refuse(*_): raise AssertionError("a socket")
socket.socket.connect = refuse
from memory_layer.cli import main
try:
    main(sys.argv[1:])
finally:
    assert "psycopg" not in sys.modules
"""
    words = ["audit", "verify", "--export", str(log.bundle), "--trust-root", str(pinned), "--anchor", str(anchor)]
    done = subprocess.run(
        [sys.executable, "-c", script, *words], env=clean_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["VERDICT", "OK_ANCHORED", "exit", "0"]
    assert "columns: an export holds none" in done.stdout


def test_without_an_anchor_ok_is_not_reported(capsys: pytest.CaptureFixture[str], log: RealLog, pinned: Path) -> None:
    code, out, _ = verify(capsys, "--export", log.bundle, "--trust-root", pinned)
    assert code == 10
    assert "CONSISTENT_UNANCHORED" in out
    assert "not checked    anchor" in out
    assert "OK" not in out


def test_the_bundles_own_trust_root_proves_nothing(
    capsys: pytest.CaptureFixture[str], log: RealLog, anchor: Path
) -> None:
    for own in ([], ["--trust-root", log.bundle / "trust-root.json"]):
        code, out, _ = verify(capsys, "--export", log.bundle, "--anchor", anchor, *own)
        assert code == 50
        assert "TRUST_ROOT_UNPINNED" in out


def test_anchors_may_be_a_folder(
    capsys: pytest.CaptureFixture[str], log: RealLog, pinned: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "anchors"
    folder.mkdir()
    for number, note in enumerate(log.notes):
        (folder / f"{number}.txt").write_bytes(note)
    code, out, _ = verify(capsys, "--export", log.bundle, "--trust-root", pinned, "--anchor", folder, "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["verdict"], found["exit"], found["counts"]["anchors"]) == ("OK_ANCHORED", 0, len(log.notes))


def test_an_anchor_that_is_old(capsys: pytest.CaptureFixture[str], log: RealLog, pinned: Path, tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_bytes(log.notes[0])
    words = ["--export", log.bundle, "--trust-root", pinned, "--anchor", tmp_path / "old.txt"]
    assert verify(capsys, *words, "--max-anchor-age", 0)[0] == 10
    assert "ANCHOR_STALE" in verify(capsys, *words, "--max-anchor-age", 0)[1]
    assert verify(capsys, *words, "--max-anchor-age", 86400)[0] == 0


@pytest.mark.parametrize(
    ("how", "code", "word"),
    [
        (lambda f: f.truncate(5), 30, "TAIL_TRUNCATED"),
        (lambda f: f.entries.pop(900), 40, "SEQ_GAP"),
        (lambda f: f.edit(900, b'"outcome":"ok"', b'"outcome":"denied"'), 40, "PREV_LINK_BROKEN"),
    ],
)
def test_exit_codes_say_how_bad_it_is(
    capsys: pytest.CaptureFixture[str], log: RealLog, pinned: Path, anchor: Path, tmp_path: Path, how: object, code: int, word: str
) -> None:  # fmt: skip
    forged = Forgery.read(log.bundle)
    how(forged)  # type: ignore[operator]
    out = forged.write(tmp_path / "forged")
    found, text, _ = verify(capsys, "--export", out, "--trust-root", pinned, "--anchor", anchor)
    assert (found, word in text) == (code, True)


def test_export_and_verify_from_a_shell(
    capsys: pytest.CaptureFixture[str], log: RealLog, pinned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", log.dsn)
    out = tmp_path / "evidence"
    code, text, _ = run(capsys, "audit", "export", out, "--data", log.data, "--json")
    assert code == 0
    told = json.loads(text)
    assert (told["first"], told["entries"], told["signed"]) == (0, told["last"] + 1, True)
    assert out.stat().st_mode & 0o077 == 0
    monkeypatch.delenv("DATABASE_URL")
    assert verify(capsys, "--export", out, "--trust-root", pinned)[0] == 10
    monkeypatch.setenv("DATABASE_URL", log.dsn)
    code, _, err = run(capsys, "audit", "export", out, "--data", log.data)
    assert code == 2
    assert "is not an empty folder" in err
    code, text, _ = run(
        capsys, "audit", "export", tmp_path / "october", "--data", log.data, "--to", 500, "--tenant", "ann"
    )
    assert code == 0
    assert bundle.Reader(tmp_path / "october").manifest()[1].tenant == "ann"  # type: ignore[union-attr]
    code, text, _ = run(
        capsys,
        "audit",
        "export",
        tmp_path / "november",
        "--data",
        log.data,
        "--after",
        tmp_path / "october",
        "--no-payloads",
    )
    assert code == 0
    first = bundle.Reader(tmp_path / "november").manifest()[1].base.seq  # type: ignore[union-attr]
    assert first > 500
    words = ["--export", tmp_path / "november", "--trust-root", pinned]
    assert verify(capsys, *words)[0] == 20
    assert verify(capsys, *words, "--from", first)[0] == 10


def test_a_live_log_takes_anchors_too(
    capsys: pytest.CaptureFixture[str], log: RealLog, pinned: Path, anchor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", log.dsn)
    words = ["--data", log.data, "--trust-root", pinned, "--anchor", anchor]
    assert verify(capsys, *words, "--max-anchor-age", 86400)[0] == 0
    code, out, _ = verify(capsys, *words, "--max-anchor-age", 0)
    assert (code, "ANCHOR_STALE" in out) == (10, True)


def test_usage(capsys: pytest.CaptureFixture[str], log: RealLog, pinned: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "junk").write_text("no note")
    good = ["--export", log.bundle, "--trust-root", pinned]
    for words, said in (
        (["--export", tmp_path / "absent", "--trust-root", pinned], "is no folder"),
        (["--export", empty, "--trust-root", pinned], "is no evidence bundle"),
        (["--export", log.bundle, "--trust-root", tmp_path / "absent"], "cannot be read"),
        ([*good, "--anchor", tmp_path / "absent"], "cannot be read"),
        ([*good, "--anchor", empty], "holds no checkpoint"),
        ([*good, "--anchor", tmp_path / "junk"], "cannot be used"),
        ([*good, "--max-anchor-age", "-1"], "from 0"),
        (["--data", log.data, "--from", "3"], "are for --export"),
    ):
        code, _, err = verify(capsys, *words)
        assert (code, said in err) == (2, True), err
    code, _, err = run(
        capsys, "audit", "export", tmp_path / "x", "--tenant", "ann", "--no-payloads", "--data", log.data
    )
    assert (code, "name one of them" in err) == (2, True)

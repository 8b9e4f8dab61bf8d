"""The file that a run's failures are kept in, written by pytest in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.failures import END, VARIABLE, WORDS

ROOT = Path(__file__).resolve().parents[2]
TESTS = """
import pytest

@pytest.fixture
def broken():
    raise OSError("no fixture today")

def deep(n):
    assert n, "a message\\n" + "of many lines\\n" * 99
    deep(n - 1)

def test_good():
    pass

def test_bad():
    deep(40)

def test_unready(broken):
    pass

def test_dead():
    import os
    os._exit(3)
"""


def run(folder: Path, *options: str, kept: Path | None) -> int:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", VARIABLE))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "xdist", "-p", "tests.support.failures", *options, folder],
        env=environment
        | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        | ({VARIABLE: str(kept)} if kept else {}),
        cwd=folder,
        capture_output=True,
        timeout=120,
        check=False,
    )
    return done.returncode


@pytest.mark.parametrize("options", [(), ("-n", "1")], ids=["one process", "xdist"])
def test_each_failure_is_kept_with_its_words_and_the_end_of_its_traceback(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "test_unreadable.py").write_text("def test_(: pass\n")
    kept = tmp_path / "kept"
    run(tmp_path, "--continue-on-collection-errors", "-k", "not dead", *options, kept=kept)
    text = kept.read_text()
    assert [line for line in text.splitlines() if line.startswith("* ")] == [
        "* test_unreadable.py (collection)",
        "* test_it.py::test_bad",
        "* test_it.py::test_unready (setup)",
    ]
    assert "SyntaxError" in text
    assert "no fixture today" in text
    bad = text.partition("test_bad\n")[2].partition("* ")[0].splitlines()
    assert "AssertionError: a message" in bad[0]
    assert WORDS < len(bad) <= WORDS + 1 + END
    assert bad[-1].endswith("AssertionError")


def test_a_process_that_dies_is_kept_too(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    kept = tmp_path / "kept"
    run(tmp_path, "-k", "dead", "-n", "1", "--max-worker-restart", "0", kept=kept)
    assert "crashed while running" in kept.read_text()


def test_nothing_is_written_where_nothing_fails_or_nobody_asks(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    assert run(tmp_path, "-k", "good", kept=tmp_path / "kept") == 0
    assert run(tmp_path, "-k", "bad", kept=None) == 1
    assert not (tmp_path / "kept").exists()

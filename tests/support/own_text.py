"""Turns and questions with known evidence: LoCoMo's where the data lies beside the repository, else the repository's own.

Own text: each paragraph of the Markdown files and each docstring of the package is a turn. A heading asks for the
paragraphs under it, a function's or class's name for its docstring.
"""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = "{speaker}: {text}"
THREAD = "{conversation}/{session}"  # a session of a conversation, a file
_SHORTEST = 20  # characters; shorter text is a label rather than an answer
# Of each kind, taken evenly: the repository grows, and the main job embeds each text and asks each question.
_SECTIONS = 300


@dataclass(frozen=True, slots=True)
class Question:
    """``evidence`` names turns of ``conversation``."""

    conversation: str
    text: str
    evidence: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """``id`` is unique in its conversation; ``content`` is what is embedded."""

    conversation: str
    id: str
    content: str


@dataclass(frozen=True, slots=True)
class Corpus:
    """``recall`` is the evidence recall@10 that is known for exact search, where it is known."""

    name: str
    path: Path
    turns: list[Turn]
    questions: list[Question]
    recall: float | None


def find_corpus(folder: Path) -> Corpus:
    """LoCoMo from ``MEMORY_SHARED_DATA`` or ``../shared/data``, read where it lies; else own text, written to ``folder``.

    ``MEMORY_SHARED_DATA`` set but empty asks for own text.
    """
    named = os.environ.get("MEMORY_SHARED_DATA")
    shared = ROOT.parent / "shared" / "data" if named is None else Path(named)
    path = shared / "locomo" / "turns.jsonl"
    if named or (named is None and path.exists()):
        return _load("LoCoMo", path, path.with_name("questions.jsonl"), recall=0.469)
    return own_text(folder)


def own_text(folder: Path) -> Corpus:
    """Write ``turns.jsonl`` and ``questions.jsonl`` from the repository's own text."""
    turns: list[dict[str, object]] = []
    questions: list[dict[str, object]] = []
    seen: set[str] = set()
    for conversation, found in (("text", _markdown()), ("code", _docstrings())):
        sections = list(found)
        for number, (file, heading, paragraphs) in enumerate(sections[:: len(sections) // _SECTIONS or 1]):
            evidence = []
            for text in paragraphs:
                turn = f"{conversation}{number}:{len(evidence)}"
                # Of equal texts only one could be in the top ten in place of the other: not a matter of search.
                if len(text) < _SHORTEST or text in seen:
                    continue
                seen.add(text)
                evidence.append(turn)
                turns.append(
                    {"conversation": conversation, "session": file, "turn": turn, "speaker": file, "text": text}
                )
            if evidence and heading:
                questions.append({"conversation": conversation, "question": heading, "evidence": evidence})
    for name, records in (("turns", turns), ("questions", questions)):
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines, "utf-8")
    return _load("the repository's own text", folder / "turns.jsonl", folder / "questions.jsonl", recall=None)


def top_of(corpus: Corpus, turns: NDArray[np.float32], questions: NDArray[np.float32], k: int = 10) -> list[list[str]]:
    """The exact answer: for each question the ``k`` turns of its conversation with the largest dot product.

    ``turns`` has shape (turns, dimension), ``questions`` (questions, dimension), rows of unit length.
    """
    members: dict[str, list[int]] = {}
    for row, turn in enumerate(corpus.turns):
        members.setdefault(turn.conversation, []).append(row)
    found = []
    for question, vector in zip(corpus.questions, questions, strict=True):
        rows = members[question.conversation]
        best = np.argsort(-(turns[rows] @ vector), kind="stable")[:k]
        found.append([corpus.turns[rows[i]].id for i in best])
    return found


def evidence_recall(questions: Sequence[Question], found: Sequence[Sequence[str]]) -> float:
    """Mean over all questions of the share of a question's evidence among the turns found for it.

    A question that names no evidence has no share and is left out; evidence that names no turn counts as not found.
    """
    shares = [
        len(set(question.evidence) & set(top)) / len(set(question.evidence))
        for question, top in zip(questions, found, strict=True)
        if question.evidence
    ]
    return float(np.mean(shares))


def hit_share(questions: Sequence[Question], found: Sequence[Sequence[str]]) -> float:
    """Of the questions that name evidence the share for which some of it was found."""
    hits = [
        bool(set(question.evidence) & set(top))
        for question, top in zip(questions, found, strict=True)
        if question.evidence
    ]
    return float(np.mean(hits))


def _load(name: str, turns: Path, questions: Path, recall: float | None) -> Corpus:
    return Corpus(
        name,
        turns,
        [Turn(r["conversation"], r["turn"], TEMPLATE.format_map(r)) for r in _records(turns)],
        [Question(r["conversation"], r["question"], tuple(r["evidence"])) for r in _records(questions)],
        recall,
    )


def _records(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


_Section = tuple[str, str, list[str]]  # file, heading, paragraphs


def _markdown() -> Iterator[_Section]:
    """Paragraphs under each heading; code blocks are left out."""
    for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]:
        text = re.sub(r"^(```|~~~).*?^\1[^\n]*$", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
        parts = re.split(r"^#{1,6}[ \t]+(.+)$", text, flags=re.MULTILINE)
        for heading, body in zip(["", *parts[1::2]], parts[::2], strict=True):
            paragraphs = [" ".join(block.split()) for block in re.split(r"\n\s*\n", body)]
            yield path.stem, heading.strip(), paragraphs


def _docstrings() -> Iterator[_Section]:
    """The docstring of each module, class and function of the package, under the words of its name."""
    for path in sorted((ROOT / "memory_layer").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                name = path.stem if isinstance(node, ast.Module) else node.name
                words = re.sub(r"(?<=[a-z])(?=[A-Z])|_+", " ", name).strip()
                yield path.stem, words, [" ".join((ast.get_docstring(node) or "").split())]

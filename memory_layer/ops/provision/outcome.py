"""What a plan found and what an apply made: the findings of `memoryctl provision`, in one shape for every kind of thing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from memory_layer.ops.report import Finding, Level


@dataclass(slots=True)
class Outcome:
    """How things stand, what was made to get there, a line each, and settings to be set from now on.

    A finding that fails has the evidence ``state``: ``missing`` is what apply makes, ``drift`` what it leaves to a person.
    """

    findings: list[Finding] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def missing(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.evidence.get("state") == "missing"]

    @property
    def right(self) -> bool:
        """Whether nothing that matters is missing or differs."""
        return not any(f.level == "error" and f.status not in ("pass", "skip") for f in self.findings)


def right(id: str, finding: str, level: Level = "error", **evidence: Any) -> Finding:
    return Finding(id, level, "pass", finding, evidence=evidence)


def missing(id: str, finding: str, hint: str = "memoryctl provision apply vectors makes it.") -> Finding:
    return Finding(id, "error", "fail", finding, hint, {"state": "missing"})


def drift(id: str, finding: str, hint: str, level: Level = "error", **evidence: Any) -> Finding:
    return Finding(id, level, "fail", finding, hint, {"state": "drift"} | evidence)


def judged(id: str, fits: bool, finding: str, hint: str) -> Finding:
    """It is as it should be, or differs in a way that a person must settle."""
    return right(id, finding) if fits else drift(id, finding, hint)


def note(id: str, finding: str, hint: str = "", evidence: Mapping[str, Any] | None = None) -> Finding:
    """Something to know that is neither right nor wrong."""
    return Finding(id, "info", "skip", finding, hint, dict(evidence or {}))

"""What an operator's command found: a list of findings, and the verdict and exit code that follow from them.

Every verb that operates the product (migrate, backup, drill, doctor, ...) answers with one Report. Nobody sets a verdict: it is
derived, so that a report cannot say "ok" above a finding that says otherwise.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from memory_layer.errors import MemoryLayerError
from memory_layer.model import format_time

Level = Literal["error", "warning", "info"]
"""How much it matters when it is not as expected: only ``error`` decides the exit code."""

Status = Literal["pass", "skip", "fail", "invalid", "unavailable", "refused", "locked"]
"""What came of it. ``skip``: does not apply here, the finding says why. ``unavailable``: could not be found out, or not be done,
because something that it needs does not answer. The last two end a run before it begins: a policy, or another run's lock."""

_EXIT: Final[dict[Status, int]] = {
    "pass": 0, "skip": 0, "fail": 1, "invalid": 2, "unavailable": 3, "refused": 4, "locked": 5,
}  # fmt: skip
VERDICTS: Final = {0: "ok", 1: "findings", 2: "usage", 3: "unavailable", 4: "refused", 5: "locked"}
# What is known to be wrong goes before what could not be found out.
_GRAVEST_FIRST: Final = (5, 4, 2, 1, 3)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at or done, passes included.

    ``id``: stable and dotted (``schema.drift``), for alerts and exceptions. ``finding``: what is the case. ``hint``: what to do
    next. ``evidence``: figures and names as JSON; never a secret, never a node's content.
    """

    id: str
    level: Level
    status: Status
    finding: str
    hint: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.level not in get_args(Level) or self.status not in _EXIT:
            raise ValueError(f"finding {self.id}: there is no level {self.level} or no status {self.status}")

    def to_json(self) -> dict[str, Any]:
        """Its members as plain data."""
        return {
            "id": self.id,
            "level": self.level,
            "status": self.status,
            "finding": self.finding,
            "hint": self.hint,
            "evidence": dict(self.evidence),
        }


def right(id: str, finding: str, level: Level = "error", **evidence: Any) -> Finding:
    """It is as it should be."""
    return Finding(id, level, "pass", finding, evidence=evidence)


def note(id: str, finding: str, hint: str = "", evidence: Mapping[str, Any] | None = None) -> Finding:
    """Something to know that is neither right nor wrong."""
    return Finding(id, "info", "skip", finding, hint, evidence or {})


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict of a verb that has verdicts and exit codes of its own, as ``audit verify`` has."""

    verdict: str
    exit: int
    succeeded: bool


@dataclass(frozen=True, slots=True)
class Report:
    """What a run came to. ``facts``: what the verb did or measured, as JSON."""

    run_id: uuid.UUID
    verb: str
    findings: tuple[Finding, ...]
    facts: Mapping[str, Any]
    started_at: dt.datetime
    finished_at: dt.datetime
    own: Judgement | None = None

    @property
    def exit(self) -> int:
        """0 fine, 1 findings, 2 usage, 3 a dependency, 4 policy, 5 lock held."""
        if self.own is not None:
            return self.own.exit
        codes = {_EXIT[finding.status] for finding in self.findings if finding.level == "error"}
        return next((code for code in _GRAVEST_FIRST if code in codes), 0)

    @property
    def verdict(self) -> str:
        return self.own.verdict if self.own is not None else VERDICTS[self.exit]

    @property
    def succeeded(self) -> bool:
        """Whether the log says ``ops.<verb>.succeeded``."""
        return self.own.succeeded if self.own is not None else self.exit == 0

    def to_json(self) -> dict[str, Any]:
        """Plain data that Postgres can store as jsonb, and that ``cli/reports.py`` prints now and later."""
        findings = [finding.to_json() for finding in self.findings]
        made = {
            "runId": self.run_id,
            "verb": self.verb,
            "verdict": self.verdict,
            "exit": self.exit,
            "succeeded": self.succeeded,
            "findings": findings,
            "facts": dict(self.facts),
            "startedAt": self.started_at,
            "finishedAt": self.finished_at,
        }
        plain: dict[str, Any] = plain_json(made)
        return plain


def finding_of(error: Exception) -> Finding:
    """What ended a run before its time, as its finding."""
    if not isinstance(error, MemoryLayerError):
        text = f"unexpected {type(error).__name__}: {' '.join(str(error).split())}"
        return Finding("error.unexpected", "error", "unavailable", text, "This is a defect. Please report it.")
    statuses: dict[int, Status] = {code: status for status, code in _EXIT.items() if code}
    evidence = {"details": [detail._asdict() for detail in error.details]} if error.details else {}
    name = f"error.{error.code.lower().replace('_', '-')}"
    return Finding(name, "error", statuses[error.exit_code], error.message, evidence=evidence)


def plain_json(value: Any) -> Any:
    """Any value as JSON that jsonb takes: a run is not to be lost to a NUL, a lone surrogate or NaN in something that it quotes."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {plain_json(str(name)): plain_json(part) for name, part in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain_json(part) for part in value]
    if isinstance(value, dt.datetime):
        return format_time(value)
    return str(value).encode("utf-8", "replace").decode("utf-8").replace("\0", "\ufffd")


def dumps(value: Any) -> str:
    """One spelling for what is hashed: sorted keys, no blanks."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

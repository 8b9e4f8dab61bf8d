"""A check: one thing that must hold, how it is looked at, when it is right, and how it is made so.

`memoryctl provision plan` runs the checks that have a ``make``, and those of what only a person may change; `apply` makes what it can.
Checks that depend on each other are run one after another by plain code:

    queue = await survey.check(Check(id="queue.exists", look=find, fits=is_there, says=sentence, make=create))
    if queue is not None:
        await survey.check(...)
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Generic, NamedTuple, TypeVar

from memory_layer.ops.blocking import blocking
from memory_layer.ops.report import Finding, Level, note

T = TypeVar("T")

UNSUPPORTED: Final = "The server took the setting and does not show it: it may not have such a feature."


class Made(NamedTuple, Generic[T]):
    """What there is after making, and what was made, a line each."""

    found: T
    lines: tuple[str, ...] = ()


def present(found: object) -> bool:
    """For ``fits``: whether there is anything."""
    return found is not None


def _always(_found: Any) -> bool:
    return True


def _nothing(_found: Any) -> Mapping[str, Any]:
    return {}


def _raised(_error: Exception) -> Finding | None:
    return None


@dataclass(frozen=True, kw_only=True)  # no slots: with them `Check[T](...)` fails (CPython)
class Check(Generic[T]):
    """``id``: of its finding, dotted and stable. ``source``: the sentence of the deployment guide that asks for it, where one does.

    ``look`` gives what there is; ``fits`` whether that is right; ``says`` what is the case, a sentence for either; ``hint`` what to do
    about it. ``make`` makes it right out of what was found, if ``makes`` says that it can; without, it is left to a person.
    ``restores``: ``make`` puts back what somebody changed, and does not only add what lacks. ``failed``: the finding that an error of
    ``look`` or ``make`` is; None raises it.
    """

    id: str
    source: str = ""
    look: Callable[[], T | Awaitable[T]]
    fits: Callable[[T], bool]
    says: Callable[[T], str]
    hint: str | Callable[[T], str] = ""
    make: Callable[[T], Made[T] | Awaitable[Made[T]]] | None = None
    makes: Callable[[T], bool] = _always
    restores: bool = False
    level: Level = "error"
    evidence: Callable[[T], Mapping[str, Any]] = _nothing
    failed: Callable[[Exception], Finding | None] = _raised

    def can_make(self, found: T) -> bool:
        return self.make is not None and self.makes(found)


def known(
    id: str,
    fits: bool,
    says: str,
    hint: str = "",
    *,
    source: str = "",
    level: Level = "error",
    evidence: Mapping[str, Any] | None = None,
) -> Check[bool]:
    """A check of what was looked at already, which only a person may change."""
    return Check(
        id=id,
        source=source,
        look=lambda: fits,
        fits=bool,
        says=lambda _: says,
        hint=hint,
        level=level,
        evidence=lambda _: evidence or {},
    )


@dataclass(slots=True)
class Survey:
    """How things stand by the checks that were run. ``make``: what can be made is made; ``made``: what was, a line each;
    ``settings``: to be set from now on.

    A finding that fails has the evidence ``state``: ``missing`` or ``changed`` is what apply makes or puts back, ``drift`` what it leaves
    to a person, ``unsupported`` what was made and does not show.
    """

    make: bool = False
    findings: list[Finding] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)

    async def check(self, check: Check[T]) -> T | None:
        """Run one; what there is now, None where that is not known."""
        making = False
        try:
            found: T = await _result(check.look)
            if self.make and check.make is not None and check.makes(found) and not check.fits(found):
                making = True
                found, lines = await _result(partial(check.make, found))
                self.made += lines
        except Exception as error:
            finding = check.failed(error)
            if finding is None:
                raise
            self.findings.append(finding)
            return None
        self.findings.append(judge(check, found, made=making))
        return found

    def note(self, id: str, text: str, hint: str = "", evidence: Mapping[str, Any] | None = None) -> None:
        """Something to know that is neither right nor wrong."""
        self.findings.append(note(id, text, hint, evidence))

    @property
    def repairable(self) -> list[Finding]:
        """What apply would make or put back."""
        return [finding for finding in self.findings if finding.evidence.get("state") in ("missing", "changed")]

    @property
    def right(self) -> bool:
        """Whether nothing that matters is missing or differs."""
        return not any(f.level == "error" and f.status not in ("pass", "skip") for f in self.findings)


def judge(check: Check[T], found: T, *, made: bool = False) -> Finding:
    """The finding on what there is. ``made``: it was made just now."""
    text, evidence = check.says(found), check.evidence(found)
    if check.fits(found):
        return Finding(check.id, check.level, "pass", text, evidence=evidence)
    hint = check.hint if isinstance(check.hint, str) else check.hint(found)
    state = "missing"
    if not check.can_make(found):
        state = "drift"
    elif made:
        state, hint = "unsupported", UNSUPPORTED
    elif check.restores and found:
        state = "changed"
    return Finding(check.id, check.level, "fail", text, hint, {"state": state} | dict(evidence))


async def _result(ask: Callable[[], Any]) -> Any:
    with blocking():
        answer = ask()
    return await answer if inspect.isawaitable(answer) else answer

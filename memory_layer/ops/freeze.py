"""`memoryctl freeze`: stop all writes of tenants, and let them go on. ``service/freeze.py`` says what a freeze is."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from memory_layer.errors import NotFound
from memory_layer.model import Caller
from memory_layer.ops.operate import Run
from memory_layer.ops.report import Finding
from memory_layer.service.commit import Committer
from memory_layer.service.freeze import current, lift, put
from memory_layer.service.system import system_caller
from memory_layer.stores.postgres import Postgres, open_postgres

LOCK = "freeze"


async def turn_on(run: Run, reason: str, seconds: int | None) -> None:
    """Freeze. Raises what ``put`` raises."""
    facts = await _commit(run, lambda committer, caller: put(committer, caller, reason, seconds))
    end = "until it is lifted" if facts["until"] is None else f"until {facts['until']}"
    _report(run, facts, f"Every process refuses writes, {end}.", "Let them go on with `memoryctl freeze off`.")


async def turn_off(run: Run) -> None:
    """Lift the freeze; where there is none, that is what it reports."""
    try:
        facts = await _commit(run, lift)
    except NotFound:
        run.find(Finding("freeze.off", "info", "pass", "Writes were not frozen."))
        return
    _report(run, facts, f"Writes go on; they were frozen since {facts['since']}.", "")


@contextlib.asynccontextmanager
async def frozen(
    postgres: Postgres, committer: Committer, caller: Caller, run: Run, what: str, seconds: int
) -> AsyncIterator[None]:
    """Writes are frozen inside, for ``what``, and go on afterwards. At most for so many seconds, for this process may be killed.

    A freeze that somebody else has set is neither changed nor lifted. What it came to is among the run's findings.
    """
    before = await current(postgres)
    if before is not None:
        run.find(
            Finding("freeze.on", "info", "pass", f"Writes were frozen already, for: {before.reason}. They stay so.")
        )
        yield
        return
    facts = await put(committer, caller, f"{what}, run {run.id}", seconds)
    run.fact("frozenUntil", facts["until"])
    run.find(
        Finding("freeze.on", "info", "pass", f"Every process refuses writes, until {facts['until']} at the latest.")
    )
    try:
        yield
    finally:
        now = await current(postgres)
        if now is not None and now.reason == facts["reason"]:
            await lift(committer, caller)
            run.find(Finding("freeze.off", "info", "pass", "Writes go on."))
        elif now is not None:
            text = f"Somebody froze writes anew meanwhile, for: {now.reason}. They stay frozen."
            run.find(Finding("freeze.off", "warning", "fail", text, "`memoryctl freeze off` lets them go on."))
        else:
            text = "The freeze ended before the drill did: what it found from then on, it found beside writers."
            run.find(
                Finding(
                    "freeze.off", "warning", "fail", text, "That does no harm; give --timeout more for a longer one."
                )
            )


async def status(dsn: str) -> dict[str, Any]:
    """Whether writes are frozen, why, and how long, as JSON."""
    from memory_layer.service.actions.log import freeze_facts

    postgres = await open_postgres(dsn, size=1)
    try:
        found = await current(postgres)
    finally:
        await postgres.close()
    return {"frozen": found is not None} | ({} if found is None else freeze_facts(found))


async def _commit(run: Run, action: Callable[[Committer, Caller], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    installation = await run.installation.need("committer")
    return await action(installation.committer, await system_caller(installation, "memoryctl", str(run.id)))


def _report(run: Run, facts: dict[str, Any], finding: str, hint: str) -> None:
    for name in ("reason", "since", "until", "auditId"):
        run.fact(name, facts[name])
    run.find(Finding(run.verb.replace("-", "."), "info", "pass", finding, hint))

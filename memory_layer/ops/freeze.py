"""`memoryctl freeze`: stop all writes of tenants, and let them go on. What a freeze is stands in ``service/freeze.py``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from memory_layer.errors import NotFound
from memory_layer.model import Caller
from memory_layer.ops.report import Finding, Report
from memory_layer.ops.runs import Place, Run, perform
from memory_layer.service import open_committer
from memory_layer.service.commit import Committer
from memory_layer.service.freeze import current, lift, put
from memory_layer.service.system import known_caller
from memory_layer.stores.postgres import open_postgres

LOCK = "freeze"


def turn_on(place: Place, reason: str, seconds: int | None) -> Report:
    """Freeze in the operators' frame. Raises what ``put`` raises."""

    def work(run: Run) -> None:
        facts = _commit(place, run, lambda committer, caller: put(committer, caller, reason, seconds))
        end = "until it is lifted" if facts["until"] is None else f"until {facts['until']}"
        _tell(run, facts, f"Every process refuses writes, {end}.", "Let them go on with `memoryctl freeze off`.")

    return perform(place, "freeze-on", {"reason": reason, "seconds": seconds}, work, lock=LOCK)


def turn_off(place: Place) -> Report:
    """Lift the freeze in the operators' frame; where there is none, that is what it reports."""

    def work(run: Run) -> None:
        try:
            facts = _commit(place, run, lift)
        except NotFound:
            run.find(Finding("freeze.off", "info", "pass", "Writes were not frozen."))
            return
        _tell(run, facts, f"Writes go on; they were frozen since {facts['since']}.", "")

    return perform(place, "freeze-off", {}, work, lock=LOCK)


def status(dsn: str) -> dict[str, Any]:
    """Whether writes are frozen, why, and how long, as JSON."""
    from memory_layer.service.decide import freeze_facts

    async def look() -> dict[str, Any]:
        postgres = await open_postgres(dsn, size=1)
        try:
            found = await current(postgres)
        finally:
            await postgres.close()
        return {"frozen": found is not None} | ({} if found is None else freeze_facts(found))

    return asyncio.run(look())


def _commit(place: Place, run: Run, action: Callable[[Committer, Caller], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    assert place.dsn is not None  # noqa: S101 - the commands bring a database
    dsn = place.dsn

    async def go() -> dict[str, Any]:
        async with open_committer(place.settings, place.folder, dsn) as (postgres, committer):
            return await action(committer, await known_caller(postgres, "memoryctl", str(run.id)))

    return asyncio.run(go())


def _tell(run: Run, facts: dict[str, Any], finding: str, hint: str) -> None:
    for name in ("reason", "since", "until", "auditId"):
        run.fact(name, facts[name])
    run.find(Finding(run.verb.replace("-", "."), "info", "pass", finding, hint))

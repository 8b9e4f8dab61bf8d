"""Another model for a namespace, without downtime: its index gets a second generation, is cut over, and can go back at once.

    open    every write goes to both generations from here on, decided under the log lock (``outbox.py``)
    fill    rows for what was there before, in small pieces; the worker embeds them like any others
    switch  the other generation answers, in one transaction; both are still written, so ``switch`` back is as good
    retire  the standby generation is written no more, its rows are released and its index is dropped

Each step can be cut off anywhere and be taken again. See ``docs/decisions/0018-generations.md``.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from memory_layer.errors import DependencyUnavailable, NotFound, PolicyRefused
from memory_layer.model import SYSTEM_TENANT, Caller, Namespace, uuid7
from memory_layer.service.actions.generations import EndGeneration, OpenGeneration, SwitchGeneration, refusal
from memory_layer.service.commit import Action, Change
from memory_layer.service.installation import Installation
from memory_layer.sql import queries
from memory_layer.stores.batch_reads import Seen
from memory_layer.stores.postgres import ALL_TENANTS, Postgres

BATCH_SIZE = 200  # nodes; what one hold of the log lock fills, and how far filling runs ahead of the worker
MAX_LOOKED = 5_000  # nodes that a switch looks up under the log lock: a tenth of a second or two
LET_GO = 1_000  # rows in one transaction
PAUSE = 0.05  # seconds between two looks at what others do
TIMEOUT = 60.0  # seconds without any progress of the worker until it is given up

_FIRST = uuid.UUID(int=0)
_SQL = queries("generations")


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of a namespace its generations hold, in nodes.

    ``nodes``: those that the active generation finds or is about to. ``active``, ``standby``: indexed there. ``behind``: would be missed
    after a switch. ``given``: the same, and only their caller can give them a vector. ``failed``: given up on in the standby.
    ``stranded``: only in the standby. ``error``: of one that is not indexed there.
    """

    nodes: int
    active: int
    standby: int
    behind: int
    given: int
    failed: int
    stranded: int
    error: str | None

    def to_json(self) -> dict[str, Any]:
        """Under the names that reports have for them."""
        return {"beside" if name == "standby" else name: value for name, value in asdict(self).items()}

    def complete(self, *, leave_behind: bool) -> bool:
        """Whether a switch would lose nothing."""
        return not self.behind and (leave_behind or not self.given)


async def find(postgres: Postgres, tenant: str, name: str) -> Namespace:
    """A namespace as it stands. Raises NotFound."""
    (rows,) = await postgres.fetch(tenant, (_SQL["space"], {"tenant": tenant, "name": name}))
    if not rows:
        raise NotFound(f"Tenant {tenant} has no namespace {name} with vectors in it.")
    return Namespace(**rows[0])


async def spaces(postgres: Postgres, tenant: str | None, *, pairs: bool = False) -> list[Namespace]:
    """The namespaces of a tenant, or of all; ``pairs``: those with two generations."""
    (rows,) = await postgres.fetch(
        ALL_TENANTS if tenant is None else tenant, (_SQL["spaces"], {"tenant": tenant, "pairs": pairs})
    )
    return [Namespace(**row) for row in rows]


async def coverage(postgres: Postgres, space: Namespace) -> Coverage:
    """Counted now; others write meanwhile."""
    (rows,) = await postgres.fetch(ALL_TENANTS, (_SQL["coverage"], {"tenant": space.tenant, "name": space.name}))
    return Coverage(**rows[0])


async def stable_coverage(postgres: Postgres, space: Namespace, within: float) -> Coverage:
    """Coverage at a moment when no write is on its way, awaited for so many seconds: what clients wrote just now is not missing."""
    deadline = asyncio.get_running_loop().time() + within
    while True:
        found = await coverage(postgres, space)
        if not found.behind or asyncio.get_running_loop().time() > deadline:
            return found
        await asyncio.sleep(PAUSE)


async def open_generation(
    installation: Installation, caller: Caller, space: Namespace, model: str, dimension: int
) -> Namespace:
    """Open a generation for this model, or find the one that is being built for it. Raises Conflict for another's."""
    wanted = (space.standby_model, space.standby_dimension, space.standby_state)
    if wanted != (model, dimension, "building"):
        await _submit(installation, caller, space.tenant, OpenGeneration(space.name, model, dimension))
    return await find(installation.postgres, space.tenant, space.name)


async def fill(
    installation: Installation,
    space: Namespace,
    progress: Callable[[int], None] = lambda _: None,
    *,
    within: float = TIMEOUT,
) -> int:
    """Write rows for nodes that have none in the standby generation, until there are no such nodes; how many were written.

    Of low priority: it never runs further ahead of the worker than one piece, so what is written meanwhile waits behind no more than
    that. Any number may fill at once. Ends early when the generation is no longer there. Raises DependencyUnavailable when the worker
    indexes nothing for ``within`` seconds; what was filled stays.
    """
    about = {"tenant": space.tenant, "name": space.name, "standby": space.written}
    filled, passed, after = 0, 0, _FIRST
    while True:
        (found,) = await installation.postgres.fetch(
            ALL_TENANTS, (_SQL["unfilled"], {**about, "after": after, "limit": BATCH_SIZE})
        )
        if found:
            ids = [row["id"] for row in found]
            piece = {**about, "nodes": ids, "rows": [uuid7() for _ in ids]}
            _, (row,) = await installation.postgres.run(ALL_TENANTS, (_SQL["lock_log"], {}), (_SQL["fill"], piece))
            filled, passed, after = filled + row["filled"], passed + row["filled"], ids[-1]
            progress(filled)
            await _until_indexed(installation.postgres, space, within)
        if len(found) < BATCH_SIZE:
            if not passed:  # a whole pass found nothing to do
                return filled
            if (await find(installation.postgres, space.tenant, space.name)).written != space.written:
                return filled
            passed, after = 0, _FIRST


async def fill_all(installation: Installation) -> int:
    """The worker's job: go on wherever filling was cut off. One namespace that gets nowhere keeps no other waiting; raised at the end."""
    filled, failed = 0, None
    for space in await spaces(installation.postgres, None, pairs=True):
        if space.written is not None:
            try:
                filled += await fill(installation, space)
            except DependencyUnavailable as error:
                failed = error
    if failed is not None:
        raise failed
    return filled


async def switch(
    installation: Installation,
    caller: Caller,
    space: Namespace,
    *,
    within: float,
    leave_behind: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Let the other generation answer, as soon as it can find all that the active one finds. What it came to.

    Nodes come and go all the time, so a moment in which none is missing is looked for, for ``within`` seconds; that it is one is
    decided under the log lock. Raises PolicyRefused when there was none.
    """
    postgres = installation.postgres
    deadline = asyncio.get_running_loop().time() + within
    while True:
        late = asyncio.get_running_loop().time() >= deadline
        seen = await _look(postgres, space)
        if force or not (seen.behind or (seen.given and not leave_behind) or len(seen.outstanding) > MAX_LOOKED):
            action = SwitchGeneration(space.name, str(space.standby), seen, leave_behind=leave_behind, force=force)
            try:
                return await _submit(installation, caller, space.tenant, action)
            except PolicyRefused:  # something came between
                if late:
                    raise
        elif late:
            if not seen.behind and len(seen.outstanding) > MAX_LOOKED:
                raise PolicyRefused(
                    f"More than {MAX_LOOKED} nodes of namespace {space.name} wait for the worker. A switch looks each of them up while no "
                    "write can be committed: switch when the backlog is gone (`memoryctl vectors status`), or with --force, which looks at "
                    "none."
                )
            raise refusal(space, seen.behind, seen.given)
        await asyncio.sleep(PAUSE)


async def _look(postgres: Postgres, space: Namespace) -> Seen:
    """What a switch would lose, with the entry up to which that is so, from one snapshot."""
    about = {"tenant": space.tenant, "name": space.name}
    (counted,), (end,), outstanding = await postgres.fetch(
        ALL_TENANTS,
        (_SQL["coverage"], about),
        (_SQL["log_end"], {"origin": postgres.origin}),
        (_SQL["outstanding"], {**about, "most": MAX_LOOKED + 1}),
    )
    nodes = tuple(row["id"] for row in outstanding)
    return Seen(end["log"], end["seq"], counted["behind"], counted["given"], nodes, end["since"])


async def retire(
    installation: Installation,
    caller: Caller,
    space: Namespace,
    progress: Callable[[int, int], None],
    *,
    within: float = TIMEOUT,
) -> int:
    """End the standby generation and drop its index; how many entries the index holds after that, which is none.

    Takes up where an earlier call was cut off. ``progress`` is given how many rows were let go, and how many a worker has leased. Raises
    DependencyUnavailable when those stay the same for ``within`` seconds.
    """
    standby = str(space.standby)
    about = {"tenant": space.tenant, "index_namespace": standby}
    if space.standby_state != "retired":
        await _submit(installation, caller, space.tenant, EndGeneration(space.name, standby))
    gone, left = 0, 0
    wait = _Wait(within)
    while True:
        after = _FIRST
        while True:
            (rows,) = await installation.postgres.run(
                ALL_TENANTS, (_SQL["let_go"], {**about, "after": after, "limit": LET_GO})
            )
            gone += len(rows)
            progress(gone, left)
            if len(rows) < LET_GO:
                break
            after = rows[0]["id"]
        ((row,),) = await installation.postgres.fetch(ALL_TENANTS, (_SQL["left"], about))
        left = row["rows"]
        if not left:
            break
        progress(gone, left)
        if wait.over(left):
            raise DependencyUnavailable(
                f"{left} rows of {standby} are leased to a worker that has not finished them for {within:.0f} s. The index is dropped after "
                "that, for what they write would outlive it. Start a worker (`memoryctl worker`) where none runs, and run "
                "`memoryctl vectors retire` again: it goes on from here."
            )
        await asyncio.sleep(PAUSE)
    await installation.vectors.drop(space.tenant, standby)
    held = await installation.vectors.count(space.tenant, standby)
    if not held:
        await _submit(installation, caller, space.tenant, EndGeneration(space.name, standby, dropped=True))
    return held


async def sample(postgres: Postgres, space: Namespace, seed: int, limit: int) -> list[tuple[uuid.UUID, str]]:
    """(node, text) of some texts that the standby generation holds."""
    about = {"tenant": space.tenant, "name": space.name, "standby": space.standby, "seed": seed, "limit": limit}
    (rows,) = await postgres.fetch(ALL_TENANTS, (_SQL["sample"], about))
    return [(row["id"], row["content"]) for row in rows]


async def digests(postgres: Postgres, space: Namespace) -> list[tuple[int, str]]:
    """(rows, SHA-256 of their nodes and versions) of the active generation and of the standby, from one snapshot."""
    asked = [
        (_SQL["digest"], {"tenant": space.tenant, "index_namespace": name})
        for name in (space.index_namespace, space.standby)
    ]
    answers = await postgres.fetch(ALL_TENANTS, *asked)
    return [(row["rows"], row["sha256"]) for (row,) in answers]


async def waiting(postgres: Postgres, space: Namespace) -> int:
    """Rows of the standby generation that the worker has yet to index."""
    about = {"tenant": space.tenant, "index_namespace": space.standby}
    ((row,),) = await postgres.fetch(ALL_TENANTS, (_SQL["waiting"], about))
    return int(row["rows"])


class _Wait:
    """Waits for others to make progress: ``over`` when they made none for so many seconds."""

    def __init__(self, within: float) -> None:
        self._within = within
        self._last: int | None = None
        self._moved = 0.0

    def over(self, left: int) -> bool:
        """``left``: what they have yet to do, now."""
        now = asyncio.get_running_loop().time()
        if left != self._last:
            self._last, self._moved = left, now
        return now - self._moved > self._within


async def _until_indexed(postgres: Postgres, space: Namespace, within: float) -> None:
    wait = _Wait(within)
    while (rows := await waiting(postgres, space)) >= BATCH_SIZE:
        if wait.over(rows):
            raise DependencyUnavailable(
                f"{rows} rows of {space.standby} wait, and no worker has indexed one for {within:.0f} s. Start one (`memoryctl worker`) with "
                f"the settings of {space.standby_model} (EMBEDDINGS_NEXT_*); it goes on with filling by itself. `memoryctl jobs list` and "
                "/healthz say what keeps one that runs."
            )
        await asyncio.sleep(PAUSE)


async def _submit(installation: Installation, caller: Caller, tenant: str, action: Action) -> dict[str, Any]:
    """Commit it in the tenant's log, by the installation's actor."""
    assert caller.tenant == SYSTEM_TENANT  # noqa: S101 - no door passes a tenant's caller in
    outcome = await installation.committer.submit(Change(replace(caller, tenant=tenant), action))
    return outcome.answer

"""What `memoryctl drill vector-desync` runs: the drill on what is there, or on what was broken for it before."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from memory_layer.errors import UsageError
from memory_layer.ops.freeze import frozen
from memory_layer.ops.operate import Run
from memory_layer.ops.report import Finding
from memory_layer.ops.vectors import sandbox
from memory_layer.ops.vectors.desync import drill
from memory_layer.ops.vectors.manifest import read_manifest
from memory_layer.ops.vectors.reconcile import Vectors
from memory_layer.ops.vectors.restore import check
from memory_layer.ops.vectors.sandbox import refuse_in_prod
from memory_layer.ops.vectors.spaces import Scope, list_spaces, need_index
from memory_layer.progress import Progress
from memory_layer.service.installation import Installation
from memory_layer.service.principals import known_caller
from memory_layer.stores.logs import find_trust_root

VERB: Final = "drill-vector-desync"
FREEZE_SECONDS: Final = 1800  # for all steps but those that wait for the worker, twice

__all__ = ["VERB", "Asked", "refuse_in_prod", "rehearse"]


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for, as the command has it."""

    tenant: str | None
    namespace: str | None
    inflict: bool
    live: bool
    snapshot: Path | None
    vectors: Vectors
    here: bool
    freeze: bool
    within: float  # seconds
    queries: int

    def to_json(self) -> dict[str, Any]:
        """The run's arguments."""
        folder = None if self.snapshot is None else str(self.snapshot)
        return {
            "tenant": self.tenant,
            "namespace": self.namespace,
            "inflict": self.inflict,
            "live": self.live,
            "snapshot": folder,
            "vectors": self.vectors,
            "here": self.here,
            "freeze": self.freeze,
        }


async def rehearse(run: Run, asked: Asked) -> None:
    """Do the drill, and put what it came to on the run."""
    settings, folder, progress = run.installation.settings, run.installation.folder, run.installation.progress
    scope, snapshot = Scope(asked.tenant, asked.namespace), None
    if asked.snapshot is not None:  # refused before anything is broken
        snapshot = asked.snapshot, read_manifest(asked.snapshot, find_trust_root(folder)).manifest
        await check(*snapshot, progress)
    async with contextlib.AsyncExitStack() as stack:
        installation = await need_index(run.installation, here=asked.here)
        await installation.need("committer")
        postgres, committer = installation.postgres, installation.committer
        if asked.inflict and not asked.live:
            dimension = await sandbox.dimension_of(installation, settings)
            scope = await sandbox.build(installation, committer, dimension, run.id, within=asked.within)
            stack.push_async_callback(sandbox.clear, installation, committer, run.id, within=asked.within)
        if asked.inflict:
            await _inflict(installation, scope, run, progress)
        if asked.freeze:  # and lifted before the drill's own index is cleared away, which is a write
            caller = await known_caller(postgres, "memoryctl", str(run.id))
            longest = int(2 * asked.within) + FREEZE_SECONDS
            await stack.enter_async_context(frozen(postgres, committer, caller, run, "a vector desync drill", longest))
        await drill(
            installation,
            scope,
            run.find,
            run.fact,
            snapshot=snapshot,
            vectors="all" if asked.inflict else asked.vectors,
            within=asked.within,
            queries=asked.queries,
            progress=progress,
        )


async def _inflict(installation: Installation, scope: Scope, run: Run, progress: Progress) -> None:
    broken: dict[str, int] = {}
    for space in await list_spaces(installation, scope):
        for kind, count in (await sandbox.inflict(installation, space, progress)).items():
            broken[kind] = broken.get(kind, 0) + count
    if not broken:
        raise UsageError("There is nothing to break: no namespace in scope has an indexed vector.")
    what = ", ".join(f"{count} {kind}" for kind, count in broken.items())
    run.find(Finding("drill.inflict", "info", "pass", f"Broken on purpose: {what}.", evidence=broken))
    run.fact("inflicted", broken)

"""`memoryctl vectors reembed / compare / cutover / rollback / retire`: another model for a namespace, on record.

``service/generations.py`` describes the steps; here they get findings, and the two generations are compared.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from memory_layer.errors import Conflict, PolicyRefused, UsageError, ValidationError
from memory_layer.model import Caller, Namespace
from memory_layer.ops.operate import Run
from memory_layer.ops.report import Finding
from memory_layer.service import generations
from memory_layer.service.actions.generations import facts as facts_of
from memory_layer.service.generations import Coverage
from memory_layer.service.installation import Installation
from memory_layer.service.running import PARTS
from memory_layer.service.system import system_caller
from memory_layer.stores.postgres import open_postgres
from memory_layer.stores.protocols import Embedder

TIMEOUT: Final = 60.0  # seconds without progress until waiting for the worker ends
STABLE_TIMEOUT: Final = 10.0  # seconds in which a moment without anything on its way is looked for
ROLLBACK_TIMEOUT: Final = 10.0  # seconds that a way back looks for a moment in which nothing is missing
LOSS: Final = 0.05  # of texts that find themselves, which a new model may lose against the old one
BATCH: Final = 64  # queries embedded at a time


@dataclass(frozen=True, slots=True)
class Target:
    """A tenant's namespace."""

    tenant: str
    namespace: str

    @property
    def lock(self) -> str:
        return f"generations {self.tenant} {self.namespace}"

    @property
    def arguments(self) -> dict[str, Any]:
        return {"tenant": self.tenant, "namespace": self.namespace}


async def reembed(run: Run, target: Target, model: str | None, dimension: int | None, *, wait: bool) -> None:
    """Open a generation for a model (None: that of EMBEDDINGS_NEXT_*) and fill it; goes on with one that is being built."""
    installation, caller, space = await _opened(run, target)
    embedder = _embedder_for(installation, model, dimension)
    capabilities = installation.vectors.capabilities
    if not capabilities.mixed_dimensions and embedder.dimension != space.dimension:
        raise ValidationError(
            f"This vector store ({installation.vectors.provider}) holds vectors of one dimension, {space.dimension}, and "
            f"{embedder.model} makes {embedder.dimension}. Take a model of that dimension, or another store."
        )
    space = await generations.open_generation(installation, caller, space, embedder.model, embedder.dimension)
    run.fact("generation", facts_of(space)["beside"])
    if wait:
        await _fill(run, space)
    found = await generations.stable_coverage(installation.postgres, space, STABLE_TIMEOUT if wait else 0)
    _report_coverage(run, space, found, waited=wait)


async def cutover(run: Run, target: Target, *, within: float, leave_behind: bool, force: bool) -> None:
    """Let the generation that was built answer. Raises PolicyRefused while it lacks something."""
    _, caller, space = await _opened(run, target)
    if space.standby_state != "building":
        raise Conflict(_none(space, "built", "Start one with `memoryctl vectors reembed`."))
    await _switch(run, caller, space, within=within, leave_behind=leave_behind, force=force)


async def rollback(run: Run, target: Target, *, within: float = ROLLBACK_TIMEOUT) -> None:
    """Let the generation from before the last cut-over answer again. What it lacks is reported, and does not prevent it."""
    _, caller, space = await _opened(run, target)
    if space.standby_state != "kept":
        raise Conflict(_none(space, "kept", "There is no way back: it was retired, or nothing was cut over."))
    try:
        await _switch(run, caller, space, within=within, leave_behind=True, force=False)
    except PolicyRefused:
        await _switch(run, caller, space, within=within, leave_behind=True, force=True)


async def retire(run: Run, target: Target, *, abandon: bool, leave_behind: bool, within: float = TIMEOUT) -> None:
    """End the standby generation for good and drop its index. ``abandon``: also one that never answered. ``within``:
    seconds without progress until waiting for a worker that has rows in hand ends; raises DependencyUnavailable then."""
    installation, caller, space = await _opened(run, target)
    postgres = installation.postgres
    if space.standby is None:
        raise Conflict(_none(space, "there", "There is nothing to retire."))
    if space.standby_state == "building" and not abandon:
        raise PolicyRefused(
            f"{space.standby} is being built and has not taken over. --abandon gives it up; `memoryctl vectors cutover` lets it "
            "answer."
        )
    found = await generations.coverage(postgres, space)
    if found.stranded and not leave_behind:
        raise PolicyRefused(
            f"{found.stranded} nodes are found in {space.standby} alone, for they have no text and no vector of {space.model}. Their "
            "callers can give one (PATCH with an embedding), or they are left behind (--leave-behind): then search by meaning "
            "does not find them any more."
        )
    rows = max(found.standby, 1)

    def report(gone: int, left: int) -> None:
        installation.progress(f"letting go, a worker has {left} in hand" if left else "letting go", gone, rows)

    held = await generations.retire(installation, caller, space, report, within=within)
    run.fact("dropped", space.standby)
    run.fact("stranded", found.stranded)
    if held:
        text = f"The index still holds {held} entries of {space.standby}: something wrote them while it was dropped."
        run.find(Finding("generation.dropped", "error", "fail", text, "Run this again."))
    else:
        text = f"{space.standby} is gone from the index, and is written no more."
        run.find(Finding("generation.dropped", "error", "pass", text, _settings_hint(space)))


async def compare(
    run: Run,
    target: Target,
    *,
    queries: Sequence[str] | None,
    count: int,
    k: int,
    least: float,
    seed: int,
) -> None:
    """Ask both generations the same and tell how far they agree. ``queries``: None takes ``count`` stored texts; ``least``: the share
    of the old one's first ``k`` hits that the new one must have among its own."""
    installation, _, space = await _opened(run, target)
    if space.written is None:
        raise Conflict(_none(space, "there", "There is nothing to compare with."))
    asked = (
        [(None, text) for text in queries]
        if queries is not None
        else list(await generations.sample(installation.postgres, space, seed, count))
    )
    if not asked:
        raise ValidationError("There is nothing to ask: the new generation holds no text yet, or the file no query.")
    found = await generations.stable_coverage(installation.postgres, space, STABLE_TIMEOUT)
    _report_coverage(run, space, found, waited=True)
    await _report_counts(run, space, found)
    overlaps: list[float] = []
    own = np.zeros(2)
    for first in range(0, len(asked), BATCH):
        batch = asked[first : first + BATCH]
        old, new = [await _ask(installation, which, [text for _, text in batch], k) for which in _sides(space)]
        for (node, _), before, after in zip(batch, old, new, strict=True):
            overlaps.append(len(set(before) & set(after)) / len(before) if before else 1.0)
            own += (node in before, node in after)
        installation.progress("comparing", first + len(batch), len(asked))
    _report_recall(run, overlaps, k, least)
    if queries is None:
        _report_own(run, own / len(asked), k)


async def listing(dsn: str, tenant: str | None, *, pairs: bool) -> list[dict[str, Any]]:
    """The generations of each namespace with how much they hold, as JSON."""
    postgres = await open_postgres(dsn, size=1)
    try:
        found = await generations.spaces(postgres, tenant, pairs=pairs)
        return [facts_of(s) | {"coverage": (await generations.coverage(postgres, s)).to_json()} for s in found]
    finally:
        await postgres.close()


async def _opened(run: Run, target: Target) -> tuple[Installation, Caller, Namespace]:
    """Everything open that a process of the service has, who acts, and the namespace as it stands. Raises NotFound."""
    installation = await run.installation.need(*PARTS)
    space = await generations.find(installation.postgres, target.tenant, target.namespace)
    return installation, await system_caller(installation, "memoryctl", str(run.id)), space


def _embedder_for(installation: Installation, model: str | None, dimension: int | None) -> Embedder:
    following = installation.next_embedder
    if model is None and following is not None:
        model = following.model
    if dimension is None:
        dimension = next((e.dimension for e in installation.embedders if e.model == model), None)
    found = installation.embedder_of(model, dimension)
    if found is None:
        raise UsageError(
            f"No embedder of {model} ({dimension} dimensions) is set. Set EMBEDDINGS_NEXT_PROVIDER, _MODEL, _DIMENSIONS (and _ENDPOINT, "
            "_API_KEY) for every server and worker, start them again, and run this with the same settings."
        )
    return found


async def _fill(run: Run, space: Namespace) -> None:
    """Fill and wait until the worker has indexed it, or nothing moves any more."""
    installation, loop = run.installation, asyncio.get_running_loop()
    postgres = installation.postgres
    # This command has its own timeout, and reports what is missing; so filling must not end before it.
    filling = asyncio.create_task(generations.fill(installation, space, within=2 * TIMEOUT))
    last, moved = -1, loop.time()
    try:
        while loop.time() - moved < TIMEOUT:
            found = await generations.coverage(postgres, space)
            installation.progress("embedding", found.standby, found.nodes - found.given)
            if found.standby != last:
                last, moved = found.standby, loop.time()
            nothing_waits = found.complete(leave_behind=True) or not await generations.waiting(postgres, space)
            if filling.done() and nothing_waits:
                break
            await asyncio.sleep(4 * generations.PAUSE)
        if filling.done():
            run.fact("filled", filling.result())
    finally:
        filling.cancel()
        await asyncio.gather(filling, return_exceptions=True)


async def _switch(
    run: Run, caller: Caller, space: Namespace, *, within: float, leave_behind: bool, force: bool
) -> None:
    done = await generations.switch(
        run.installation, caller, space, within=within, leave_behind=leave_behind, force=force
    )
    run.facts.update(done)
    active = done["active"]
    text = f"{active['indexNamespace']} ({active['model']}, {active['dimension']} dimensions) answers in every process."
    hint = "Both are written: `memoryctl vectors rollback` goes back at once, `memoryctl vectors retire` ends the other one."
    run.find(Finding("generation.active", "info", "pass", text, hint))
    lacking = done["behind"] + done["leftBehind"]
    if lacking:
        text = f"{lacking} nodes that were found before are not: {done['behind']} not indexed yet, {done['leftBehind']} without text."
        run.find(Finding("generation.lacks", "warning", "fail", text, "`memoryctl vectors generations` counts them."))


def _report_coverage(run: Run, space: Namespace, found: Coverage, *, waited: bool) -> None:
    run.fact("coverage", found.to_json())
    evidence = found.to_json()
    if found.given:
        text = (
            f"{found.given} nodes have no text, so only their caller can give them a vector of {space.standby_model}."
        )
        hint = "Send it with PATCH (embedding), or leave them behind: `memoryctl vectors cutover --leave-behind`."
        run.find(Finding("generation.given", "warning", "fail", text, hint, {"nodes": found.given}))
    if found.failed:
        text = f"{found.failed} nodes were given up on in {space.standby}: {found.error}"
        hint = "Mend the cause and replay them; `memoryctl vectors cutover --force` goes on without."
        run.find(Finding("generation.failed", "error", "fail", text, hint, {"nodes": found.failed}))
    if found.behind and waited:
        text = f"{found.behind} of {found.nodes} nodes are not indexed in {space.standby}{_why(found)}."
        hint = "The worker goes on with them (it needs the model's settings too); look again with `memoryctl vectors generations`."
        run.find(Finding("generation.coverage", "error", "fail", text, hint, evidence))
    elif found.behind:
        text = f"{found.behind} of {found.nodes} nodes are still to be indexed in {space.standby}; the worker does it."
        run.find(Finding("generation.coverage", "info", "pass", text, "", evidence))
    else:
        text = f"{space.standby} finds all that {space.index_namespace} does: {found.standby} nodes."
        run.find(
            Finding(
                "generation.coverage", "error", "pass", text, "Then: `memoryctl vectors compare`, `cutover`.", evidence
            )
        )


def _why(found: Coverage) -> str:
    return "" if found.error is None else f" ({found.error})"


async def _report_counts(run: Run, space: Namespace, found: Coverage) -> None:
    """By the rows, and by what the index says itself. Others write meanwhile, so a small difference is no fault."""
    (old_rows, old_digest), (new_rows, new_digest) = await generations.digests(run.installation.postgres, space)
    count = run.installation.vectors.count
    held = {name: await count(space.tenant, name) for name in (space.index_namespace, str(space.standby))}
    run.fact("rows", {space.index_namespace: old_rows, space.standby: new_rows})
    run.fact("indexed", held)
    run.fact("digests", {space.index_namespace: old_digest, space.standby: new_digest})
    same = old_digest == new_digest
    text = "Both hold the same nodes at the same versions." if same else "They do not hold the same nodes and versions."
    hint = "" if same else "So it is while nodes are written, or some lack a vector; compare again."
    run.find(Finding("generation.digest", "warning", "pass" if same else "fail", text, hint))
    if held[str(space.standby)] < found.standby - found.nodes // 100:
        text = f"The index holds {held[str(space.standby)]} entries of {space.standby}, and {found.standby} rows say that they are there."
        run.find(
            Finding("generation.counts", "error", "fail", text, "`memoryctl vectors reconcile` names the missing.")
        )


def _sides(space: Namespace) -> tuple[Namespace, Namespace]:
    """The namespace as its older and as its newer generation would answer for it."""
    other = replace(
        space,
        index_namespace=str(space.standby),
        model=str(space.standby_model),
        dimension=int(space.standby_dimension or 0),
    )
    return (space, other) if space.standby_state == "building" else (other, space)


async def _ask(installation: Installation, side: Namespace, texts: list[str], k: int) -> list[list[Any]]:
    """The first ``k`` nodes for each text, by one generation alone."""
    embedder = installation.embedder_of(side.model, side.dimension)
    if embedder is None:
        raise UsageError(
            f"Comparing needs an embedder of {side.model} ({side.dimension} dimensions) too: set it as EMBEDDINGS_* or EMBEDDINGS_NEXT_*."
        )
    made = await embedder.embed(texts, query=True)
    found: list[list[Any]] = []
    for vector, read in zip(made.vectors, made.read, strict=True):
        # What a model cannot read it does not find anything by.
        hits = (
            []
            if read == "none"
            else (await installation.vectors.search(side.tenant, side.index_namespace, vector, k, None)).hits
        )
        found.append([hit.node_id for hit in hits])
    return found


def _report_recall(run: Run, overlaps: list[float], k: int, least: float) -> None:
    mean = float(np.mean(overlaps))
    recall = {
        "k": k,
        "queries": len(overlaps),
        "mean": round(mean, 4),
        "least": round(min(overlaps), 4),
        "p10": round(float(np.quantile(overlaps, 0.1)), 4),
    }
    run.fact("overlap", recall)
    text = f"Of the old model's first {k} hits the new one has {mean:.1%} among its own, over {len(overlaps)} queries."
    hint = (
        ""
        if mean >= least
        else f"Less than {least:.0%}. Another model finds other things: look at some queries before you cut over."
    )
    run.find(Finding("generation.overlap", "error", "pass" if mean >= least else "fail", text, hint, recall))


def _report_own(run: Run, own: Any, k: int) -> None:
    before, after = (float(share) for share in own)
    run.fact("ownText", {"k": k, "old": round(before, 4), "new": round(after, 4)})
    good = after >= before - LOSS
    text = f"Asked for its own text, a node is among the first {k} in {before:.1%} by the old model, in {after:.1%} by the new one."
    hint = "" if good else "The new generation is not sound: a text must find itself. Do not cut over."
    run.find(Finding("generation.own-text", "error", "pass" if good else "fail", text, hint))


def _settings_hint(space: Namespace) -> str:
    return f"Where no other namespace uses {space.standby_model}, its settings can go: make those of {space.model} EMBEDDINGS_*."


def _none(space: Namespace, what: str, hint: str) -> str:
    standby = f"; beside it is {space.standby} ({space.standby_state})" if space.standby else ""
    return f"No generation of namespace {space.name} is {what}: {space.index_namespace} answers{standby}. {hint}"

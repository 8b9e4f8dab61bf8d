"""One source: what is stored of it becomes what its file has now, whatever is cut off or written meanwhile.

The first slot says what the whole was made of. It is opened before anything else of the source is written and closed afterwards, so a run
that ends in between leaves an open source, which the next one takes up. Each write names the version that it was planned on: where another
run was faster, the source is looked at again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from memory_layer.documents import stored as lookup
from memory_layer.documents import write
from memory_layer.documents.load import load, sha256_of
from memory_layer.documents.passages import Bad, slot_id
from memory_layer.documents.plan import Stored, plan
from memory_layer.documents.run import Document, Outcome, Run
from memory_layer.documents.stored import Head, Unreadable
from memory_layer.documents.write import Overtaken

_ATTEMPTS: Final = 8


async def update_source(
    run: Run, document: Document, head: Head | None, moved: Head | None = None, *, beyond: bool = False
) -> None:
    """Write what a document lacks. ``moved``: the source whose passages it takes over, for its file was renamed. ``beyond``: look at
    slots that nothing tells of."""
    for attempt in range(_ATTEMPTS):
        refused: set[int] = set()
        try:
            await _once(run, document, head, moved, beyond, refused)
        except Overtaken:
            await asyncio.sleep(random.uniform(0.5, 1.0) * min(0.02 * 2**attempt, 1.0))  # noqa: S311  # nosec B311 - no secret
        except Unreadable:
            run.bad(Bad(document.name, 0, "its passages are stored, but hidden from this token (scope read:pii)"))
            return
        else:
            if not refused:
                return
        again = await _again(run, document.without(refused))
        if again is None:
            return
        document = again
        names = [document.name] + ([moved.name] if moved else [])
        found = await lookup.by_ids(run.memory, [slot_id(run.namespace, name, 0) for name in names])
        try:
            heads = {one.name: one for node in found.values() if (one := lookup.head(node)) is not None}
        except Unreadable:
            heads = {}
        head, moved = heads.get(document.name), heads.get(moved.name) if moved and document.name not in heads else None
        beyond = True
    run.bad(
        Bad(
            document.name,
            0,
            "not all of it could be written: another run writes it too, or its ids are taken. Try again",
        )
    )


async def _again(run: Run, document: Document) -> Document | None:
    """The document as it is by now, and what is stored of it from before; None, and reported, when it can no longer be read."""
    if document.source is not None and await asyncio.to_thread(sha256_of, document.source) != document.sha256:
        now = await asyncio.to_thread(load, run, document.source)
        if now is None:
            return None
        document = replace(now, earlier=document.earlier)
    if document.earlier:
        found = await lookup.earlier(run.memory, run.namespace, [document.name])
        document = replace(document, earlier=found.get(document.name, []))
    return document


async def _once(
    run: Run, document: Document, head: Head | None, moved: Head | None, beyond: bool, refused: set[int]
) -> None:
    known = await _known(run, document, head, moved, beyond)
    unread = next((one.where["unread"] for one in document.passages if "unread" in one.where), None)
    if unread is not None and any(one.text is not None for one in known):
        run.bad(Bad(document.name, 0, f"{unread}; what is stored of it stays"))
        return
    made = plan(document.passages, known)
    if not run.dry:
        origin = moved.name if moved else head.comes_from if head else None
        await write.apply(run, document, made, _reach(known), origin, refused)
    if refused:
        return
    for one in made.held:
        run.held(document.name, one)
    done = Outcome(
        document.name,
        created=sum(one.on is None for one in made.placed),
        changed=sum(one.changed for one in made.placed),
        kept=sum(one.on is not None and not one.changed for one in made.placed),
        removed=len(made.removed),
        held=len(made.held),
        was=moved.name if moved else None,
    )
    run.tally.skipped += done.kept
    run.tally.held += done.held
    run.tally.renamed += moved is not None
    if run.dry:
        run.tally.created += done.created
        run.tally.changed += done.changed
        run.tally.removed += done.removed
    run.outcome(done)


def _reach(known: Sequence[Stored]) -> int:
    return max((one.slot for one in known if one.slot is not None), default=-1) + 1


async def _known(run: Run, document: Document, head: Head | None, moved: Head | None, beyond: bool) -> list[Stored]:
    """All that is stored of a source, and of the one that it takes over."""
    known = list(document.earlier)
    beyond = beyond or (head is not None and head.is_touched)
    if head is not None and head.slots <= 1 and not beyond:
        known.append(replace(head.node))
    elif head is not None or beyond:
        reach = 0 if head is None else head.slots
        known += await lookup.passages_of(run.memory, run.namespace, document.name, reach, beyond=beyond)
    if moved is not None:
        known += await _taken_over(run, moved.name, moved.slots)
    elif head is not None and head.comes_from is not None:
        first = slot_id(run.namespace, head.comes_from, 0)
        if first not in await lookup.by_ids(run.memory, [first]):  # else there is a file of that name again
            known += await _taken_over(run, head.comes_from, head.slots)
    return known


async def _taken_over(run: Run, name: str, slots: int) -> list[Stored]:
    """The passages of another source; its first one keeps the first slot."""
    found = await lookup.passages_of(run.memory, run.namespace, name, slots, beyond=False)
    return [replace(one, slot=0 if one.slot == 0 and not one.held else None) for one in found]

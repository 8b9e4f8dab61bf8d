"""The writes of a plan, in an order that can be cut off anywhere.

The first slot says what the whole source was made of. It is opened before anything else is written and closed at the end, so a run that ends
in between leaves an open source, which the next one takes up. Each write names the version that it was planned on; where that is no longer
the node's, the source is looked at again.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

from memory_layer.client.errors import MemoryLayerClientError
from memory_layer.documents.folders import folders_of
from memory_layer.documents.passages import Bad, slot_id, thread_of
from memory_layer.documents.plan import Placed, Plan, Stored, difference, flags_for, loose_flags, merged, plan
from memory_layer.documents.run import Document, Run

BATCH_NODES: Final = 200  # that one request creates
BATCH_TEXT: Final = 2 * 1024 * 1024  # characters of theirs, far below the 32 MB that a request may have
_ITS_OWN_FAULT: Final = (400, 413, 422)  # statuses that concern one node; any other failure concerns the run
_OVERTAKEN: Final = ("CONFLICT", "NOT_FOUND", "PRECONDITION_FAILED", "LEGAL_HOLD")


_New: TypeAlias = tuple[Document, Placed, dict[str, Any]]  # the last one is the request's


class Overtaken(Exception):
    """Another run, or a hold, was faster."""


async def apply(run: Run, document: Document, made: Plan, reach: int, origin: str | None, refused: set[int]) -> None:
    """Write what is planned. ``reach``: slots that are in use before; ``origin``: the source that passages are taken over from. Places of
    passages that the server will not have are added to ``refused``, and leave the source open. Raises Overtaken."""
    loose = loose_flags(made)
    closed = _closed(document, made)
    first = next((one for one in made.placed if one.slot == 0 and not (one.on and one.on.held)), None)
    others = [one for one in made.placed if one is not first]
    created = [one for one in others if one.on is None]
    changed = [(one, one.on) for one in others if one.on is not None and not one.on.held]
    changed = [(one, on) for one, on in changed if _patch_of(run, document, one, on, {}, loose)]
    carrier = first.on if first is not None and first.on is not None and first.on.slot == 0 else None
    leaving = next((one for one in made.removed if one.slot == 0), None)  # carries the marker, and goes last
    if changed or created or [one for one in made.removed if one is not leaving]:
        opened = {"folders": closed["folders"], "slots": max(made.slots, reach)} | ({"from": origin} if origin else {})
        at_hand = carrier or leaving
        if at_hand is not None:
            await _open(run, document, at_hand, opened)
        elif first is not None and first.on is None:
            carrier = await _create_first(run, document, first, opened, loose, refused)
        elif first is not None and first.on is not None:
            await _open(run, document, first.on, opened)
        if refused:
            return
        await all_of(
            *(_change(run, document, one, on, {}, loose, refused) for one, on in changed),
            _create(run, document, created, loose, refused),
        )
        await all_of(*(_remove(run, document, one) for one in made.removed if one is not leaving))
        if refused:
            return
    if leaving is not None:
        await _remove(run, document, leaving)
    if first is None:
        return
    on = carrier or first.on
    if on is None:
        await _create_first(run, document, first, closed, loose, refused)
    else:
        await _change(run, document, first, on, closed, loose, refused)
        run.heads[document.name] = on.id


def _closed(document: Document, made: Plan) -> dict[str, Any]:
    """What the first slot says of a whole source; without a hash it is looked at again, as where a hold keeps an old text."""
    marker: dict[str, Any] = {"folders": folders_of(document.name), "slots": made.slots, "passages": len(made.placed)}
    if document.sha256 is not None and document.whole and not made.held:
        marker |= {"reader": document.reader, "sha256": document.sha256}
    return marker


def _metadata(document: Document, one: Placed, marker: dict[str, Any]) -> dict[str, Any]:
    source = {"path": document.name, "line": one.passage.line, **one.passage.where, **marker}
    return {**one.passage.metadata, "source": source}


def _at(marker: dict[str, Any], version: int) -> dict[str, Any]:
    """The marker as it stands in this version of its node: where the two differ, somebody else has written since."""
    return marker | {"version": version} if marker else marker


def body(
    run: Run, document: Document, one: Placed, marker: dict[str, Any], loose: dict[str, Any] | None
) -> dict[str, Any]:
    """A passage as the API takes a new node."""
    given = {
        "owner": run.owner,
        "namespace": run.namespace,
        "content": one.passage.text,
        "metadata": _metadata(document, one, _at(marker, 1)),
        "embeddingId": slot_id(run.namespace, document.name, one.slot),
        "occurredAt": one.passage.occurred_at,
        **_place(document, one),
        "piiFlags": flags_for(None, loose),
    }
    return {name: value for name, value in given.items() if value is not None}


def _place(document: Document, one: Placed) -> dict[str, Any]:
    """Its thread and its place there, by the API's names; nothing for a passage that is in none."""
    thread = thread_of(document.name, one.passage)
    if thread is None:
        return {}
    return {"thread": thread} if one.passage.by_time else {"thread": thread, "position": one.place}


def _is_same_time(one: str | None, other: str | None) -> bool:
    if one is None or other is None:
        return one == other
    return dt.datetime.fromisoformat(one) == dt.datetime.fromisoformat(other)


def fits_one_request(document: Document) -> bool:
    """Whether a new source is created at once, by a request that is one transaction."""
    return len(document.passages) <= BATCH_NODES and text_of(document) <= BATCH_TEXT


def text_of(document: Document) -> int:
    """Characters of its passages."""
    return sum(len(one.text or "") for one in document.passages)


async def create_whole(run: Run, documents: Sequence[Document]) -> list[Document]:
    """Create new sources in one request; those of which something is there already or was refused, without what was refused."""
    made = [(document, plan(document.passages, [])) for document in documents]
    refused: dict[str, set[int]] = {document.name: set() for document in documents}
    there: set[str] = set()
    new = [
        (document, one, body(run, document, one, _closed(document, planned) if one.slot == 0 else {}, None))
        for document, planned in made
        for one in planned.placed
    ]
    await _post(run, new, refused, there)
    return [
        document.without(refused[document.name])
        for document in documents
        if refused[document.name] or document.name in there
    ]


async def _create(
    run: Run,
    document: Document,
    placed: Sequence[Placed],
    loose: dict[str, Any] | None,
    refused: set[int],
) -> None:
    """Create passages, some in each request. Raises Overtaken when one is there already; the others are created all the same."""
    there: set[str] = set()
    batch: list[_New] = []
    batches, size = [batch], 0
    for one in placed:
        if batch and (len(batch) == BATCH_NODES or size > BATCH_TEXT):
            batch, size = [], 0
            batches.append(batch)
        batch.append((document, one, body(run, document, one, {}, loose)))
        size += len(one.passage.text or "")
    await all_of(*(_post(run, some, {document.name: refused}, there) for some in batches if some))
    if there:
        raise Overtaken


async def _create_first(
    run: Run, document: Document, first: Placed, opened: dict[str, Any], loose: dict[str, Any] | None, refused: set[int]
) -> Stored | None:
    """Create the first slot of an open source; None when it was refused."""
    given = body(run, document, first, opened, loose)
    there: set[str] = set()
    made = await _post(run, [(document, first, given)], {document.name: refused}, there)
    if there:
        raise Overtaken
    if refused:
        return None
    return Stored(
        id=made[0]["memoryNodeId"],
        version=made[0]["version"],
        embedding_id=given["embeddingId"],
        slot=0,
        held=False,
        text=first.passage.text,
        metadata=given["metadata"],
        occurred_at=first.passage.occurred_at,
        flags=given.get("piiFlags") or {},
        thread=given.get("thread"),
        position=given.get("position"),
    )


async def _post(run: Run, new: Sequence[_New], refused: dict[str, set[int]], there: set[str]) -> list[dict[str, Any]]:
    """One request. ``refused`` takes the places of passages that the server will not have, by the document's name; ``there`` the names of
    documents of which a passage is stored already."""
    from memory_layer.client.calls import encode

    sent: list[_New] = []
    for document, one, given in new:
        try:
            encode(given)
        except ValueError as error:  # what JSON cannot say, such as a lone surrogate in a field
            refused[document.name].add(one.place)
            run.bad(Bad(document.name, one.passage.line, f"cannot be sent: {error}"))
        else:
            sent.append((document, one, given))
    if not sent:
        return []
    async with run.gate:
        answers = await run.memory.create_many(given for _, _, given in sent)
    for (document, one, _), answer in zip(sent, answers, strict=True):
        problem = answer.get("error")
        if problem is None:
            run.tally.created += 1
            if one.slot == 0:
                run.heads[document.name] = answer["memoryNodeId"]
        elif problem["code"] == "CONFLICT":
            there.add(document.name)
        elif problem["retryable"]:
            raise MemoryLayerClientError(problem["code"], problem["message"], status=503, retryable=True)
        else:
            refused[document.name].add(one.place)
            run.bad(Bad(document.name, one.passage.line, f"{problem['code']}: {problem['message']}"))
    return list(answers)


def _patch_of(
    run: Run, document: Document, one: Placed, on: Stored, marker: dict[str, Any], loose: dict[str, Any] | None
) -> dict[str, Any]:
    """What is to be changed of a node, as ``update`` takes it; empty where nothing is."""
    given: dict[str, Any] = {}
    if one.changed:
        given["content"] = one.passage.text
        flags = flags_for(on, loose)
        if flags is not None:
            given["pii_flags"] = flags
    metadata = difference(on, _metadata(document, one, marker))
    if metadata:
        given["metadata"] = metadata
    wanted = slot_id(run.namespace, document.name, one.slot)
    if on.embedding_id != wanted:
        given["embedding_id"] = wanted
    if one.passage.occurred_at is not None and not _is_same_time(on.occurred_at, one.passage.occurred_at):
        given["occurred_at"] = one.passage.occurred_at
    there = {"thread": on.thread, "position": on.position}
    given |= {name: value for name, value in _place(document, one).items() if there[name] != value}
    return given


async def _change(
    run: Run,
    document: Document,
    one: Placed,
    on: Stored,
    marker: dict[str, Any],
    loose: dict[str, Any] | None,
    refused: set[int],
) -> None:
    """Make a stored passage what it is now."""
    if not _patch_of(run, document, one, on, _at(marker, on.version), loose):
        return
    given = _patch_of(run, document, one, on, _at(marker, on.version + 1), loose)
    try:
        await _patch(run, on, given)
    except (MemoryLayerClientError, ValueError) as error:
        if (
            isinstance(error, MemoryLayerClientError)
            and error.status not in _ITS_OWN_FAULT
            and error.code != "TAMPERED"
        ):
            raise
        refused.add(one.place)
        run.bad(Bad(document.name, one.passage.line, str(error)))
        return
    run.tally.changed += one.changed


async def _open(run: Run, document: Document, on: Stored, opened: dict[str, Any]) -> None:
    """Say that the source is being written. Also where it says so already, for then another run can no longer close it."""
    source = {"path": document.name, "sha256": None, "from": None, **_at(opened, on.version + 1)}
    wanted = slot_id(run.namespace, document.name, 0)
    given: dict[str, Any] = {"metadata": {"source": source}}
    if on.embedding_id != wanted:
        given["embedding_id"] = wanted
    await _patch(run, on, given)


async def _patch(run: Run, on: Stored, given: dict[str, Any]) -> None:
    """Change a node that still is as it was read, and what we know of it. Raises Overtaken."""
    async with run.gate:
        with _overtaken():
            answer = await run.memory.update(on.id, if_match=on.version, **given)
    on.version = answer["version"]
    on.embedding_id = given.get("embedding_id", on.embedding_id)
    on.text = given.get("content", on.text)
    on.flags = given.get("pii_flags", on.flags)
    on.occurred_at = given.get("occurred_at", on.occurred_at)
    on.thread, on.position = given.get("thread", on.thread), given.get("position", on.position)
    on.metadata = merged(on.metadata, given.get("metadata", {}))


async def _remove(run: Run, document: Document, one: Stored) -> None:
    """Delete a passage that its file no longer has. Raises Overtaken."""
    try:
        async with run.gate:
            with _overtaken():
                await run.memory.delete(one.id, if_match=one.version)
    except MemoryLayerClientError as error:
        if error.code != "TAMPERED":
            raise
        run.bad(Bad(document.name, 0, f"a passage that it no longer has was not deleted: {error}"))
        return
    run.tally.removed += 1


@contextmanager
def _overtaken() -> Iterator[None]:
    try:
        yield
    except MemoryLayerClientError as error:
        if error.code in _OVERTAKEN:
            raise Overtaken from None
        raise


async def all_of(*work: Coroutine[Any, Any, Any]) -> None:
    """Run side by side. An error ends the others and is raised alone; where one was overtaken, the others run to their ends first."""
    overtaken = False

    async def run_one(one: Coroutine[Any, Any, Any]) -> None:
        nonlocal overtaken
        try:
            await one
        except Overtaken:
            overtaken = True

    try:
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(run_one(one))
    except BaseExceptionGroup as errors:
        error: BaseException = errors
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
    if overtaken:
        raise Overtaken

"""Files and folders, and what is stored of them: what changed is written, what moved is recognised, what is gone can be deleted.

What did not change costs a look-up for every hundred files. To learn which sources are recorded below a folder, the server has to look at
all nodes: that is done where there is a file without a record, which may be one that was renamed, and to delete what is gone.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from memory_layer.documents import stored as lookup
from memory_layer.documents.folders import Root, folders_of
from memory_layer.documents.load import load
from memory_layer.documents.passages import Bad, Source, earlier_id, slot_id
from memory_layer.documents.plan import Stored
from memory_layer.documents.run import Document, Outcome, Run
from memory_layer.documents.stored import Head, Unreadable
from memory_layer.documents.update import update_source
from memory_layer.documents.write import BATCH_NODES, BATCH_TEXT, all_of, create_whole, fits_one_request, text_of

_WAVE: Final = lookup.PAGE  # files that are looked up by one request
_SAMPLE: Final = 16  # files by which a folder is recognised that is named in another way


@dataclass(frozen=True, slots=True)
class _File:
    source: Source
    sha256: str
    size: int


async def sync(run: Run, sources: Sequence[Source], folders: Sequence[Root]) -> None:
    """Make what is stored of these files what they have now. ``folders``: those of which all files are at hand."""
    fresh: list[_File] = []
    done = 0
    for start in range(0, len(sources), _WAVE):
        files = await asyncio.to_thread(_hashed, run, sources[start : start + _WAVE])
        heads = await _heads(run, files)
        changed = []
        for file in files:
            head = heads.get(file.source.name)
            if head is None and file.source.name not in heads:
                fresh.append(file)
            elif head is not None and _is_current(run, file, head):
                run.tally.skipped += head.passages
                run.heads[file.source.name] = head.node.id
                done += file.size
            elif head is not None:
                changed.append((file, head))
        await all_of(*(_update(run, file.source, head) for file, head in changed))
        done += sum(file.size for file, _ in changed)
        run.advance(done)
    gone: dict[str, Head] = {}
    if folders and (fresh or run.prune):
        gone = await _gone(run, folders, {source.name for source in sources})
    await _take_in(run, fresh, gone, done)
    if run.prune:
        await all_of(*(_forget(run, head) for head in gone.values()))


def _hashed(run: Run, sources: Iterable[Source]) -> list[_File]:
    found = []
    for source in sources:
        try:
            with source.path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                found.append(_File(source, sha256, file.tell()))
        except OSError as error:
            run.bad(Bad(source.name, 0, f"cannot be read: {error.strerror or error}"))
    return found


async def _heads(run: Run, files: Sequence[_File]) -> dict[str, Head | None]:
    """What is recorded of files, by name; None where that is hidden, which is reported."""
    names = {slot_id(run.namespace, file.source.name, 0): file.source.name for file in files}
    found: dict[str, Head | None] = {}
    for embedding_id, node in (await lookup.by_ids(run.memory, names)).items():
        try:
            head = lookup.head(node)
        except Unreadable:
            run.bad(Bad(names[embedding_id], 0, "its passages are stored, but hidden from this token (scope read:pii)"))
            found[names[embedding_id]] = None
        else:
            if head is not None:
                found[names[embedding_id]] = head
    return found


def _is_current(run: Run, file: _File, head: Head) -> bool:
    return not (run.recheck or head.is_open) and (head.sha256, head.reader) == (file.sha256, run.reading.version)


async def _update(run: Run, source: Source, head: Head | None, moved: Head | None = None) -> None:
    async with run.files:
        document = await asyncio.to_thread(load, run, source)
        if document is not None:
            await update_source(run, document, head, moved, beyond=run.recheck)


async def _gone(run: Run, folders: Sequence[Root], at_hand: set[str]) -> dict[str, Head]:
    """Sources that are recorded below these folders and whose files are no longer there, by name."""
    known = await lookup.recorded(run.memory, run.namespace, [folder.name for folder in folders])
    gone = {name: head for name, head in known.items() if name not in at_hand}
    return await asyncio.to_thread(_missing, gone, folders)


def _missing(gone: dict[str, Head], folders: Sequence[Root]) -> dict[str, Head]:
    """Those of which there is no file, also none that is left out; and below no folder that cannot be read."""

    def is_there(name: str) -> bool:
        for folder in folders:
            if folder.name in folders_of(name):
                path = folder.path / name.removeprefix(folder.name).lstrip("/")
                try:
                    path.lstat()
                except (FileNotFoundError, NotADirectoryError):
                    continue
                except OSError:
                    return True
                return True
        return False

    return {name: head for name, head in gone.items() if not is_there(name)}


async def _take_in(run: Run, fresh: Sequence[_File], gone: dict[str, Head], done: int) -> None:
    """Files without a record: those that were renamed, which leave ``gone``, and new ones, many in one request."""
    by_hash = {(head.sha256, head.reader): name for name, head in sorted(gone.items()) if not head.is_open}
    new: list[Source] = []
    renamed = []
    for file in fresh:
        was = by_hash.pop((file.sha256, run.reading.version), None)
        if was is None:
            new.append(file.source)
        else:
            renamed.append((file.source, gone.pop(was)))
    await all_of(*(_update(run, source, None, moved) for source, moved in renamed))
    sizes = {file.source.name: file.size for file in fresh}
    done += sum(sizes[source.name] for source, _ in renamed)
    documents: list[Document] = []
    for source in new:
        document = await asyncio.to_thread(load, run, source)
        if document is not None and document.passages:
            documents.append(document)
        done += sizes[source.name]
        if len(documents) == _WAVE or sum(map(text_of, documents)) > 4 * BATCH_TEXT:
            await _take_in_some(run, documents)
            documents = []
            run.advance(done)
    await _take_in_some(run, documents)
    run.advance(done)


async def _take_in_some(run: Run, documents: Sequence[Document]) -> None:
    before = await _from_before(run, documents)
    alone = [one for one in documents if one.name in before or not fits_one_request(one)]
    work = []
    for document in alone:
        document.earlier.extend(before.get(document.name, ()))
        work.append(update_source(run, document, None))
    whole = [one for one in documents if one not in alone]
    if run.dry:
        for document in whole:
            run.tally.created += len(document.passages)
            run.outcome(Outcome(document.name, created=len(document.passages)))
    else:
        work += [_create(run, some) for some in _grouped(whole)]
    await all_of(*work)


async def _create(run: Run, documents: Sequence[Document]) -> None:
    await all_of(*(update_source(run, document, None, beyond=True) for document in await create_whole(run, documents)))


def _grouped(documents: Sequence[Document]) -> Iterable[list[Document]]:
    """Documents that fit into one request together."""
    group: list[Document] = []
    nodes = text = 0
    for document in documents:
        size = text_of(document)
        if group and (nodes + len(document.passages) > BATCH_NODES or text + size > BATCH_TEXT):
            yield group
            group, nodes, text = [], 0, 0
        group.append(document)
        nodes, text = nodes + len(document.passages), text + size
    if group:
        yield group


async def _from_before(run: Run, documents: Sequence[Document]) -> dict[str, list[Stored]]:
    """What is stored of these files from the time when each passage stood alone. Their first passages tell whether anything is."""
    firsts = {}
    for document in documents:
        first = document.passages[0]
        firsts[earlier_id(run.namespace, document.name, first.line, first.text or "")] = document.name
    found = await lookup.by_ids(run.memory, firsts)
    names = [firsts[embedding_id] for embedding_id in found]
    return await lookup.earlier(run.memory, run.namespace, names) if names else {}


async def _forget(run: Run, head: Head) -> None:
    """Delete what is stored of a file that is gone; what is held stays."""
    await update_source(run, Document(head.name, [], None, None, run.reading.version), head)

"""`memoryctl ingest`: files, folders and JSON lines into nodes.

Every piece has an identity (`sources.embedding_id`) that the server keeps unique, so a run can stop anywhere and the next
one goes on: what is there already is looked up in pages beforehand, and a CONFLICT means that it is there, too.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from memory_layer.cli import connection, render, sources
from memory_layer.cli.options import AsJson
from memory_layer.cli.sources import Bad, Input, Piece
from memory_layer.errors import DependencyUnavailable, UsageError

if TYPE_CHECKING:
    from rich.progress import Progress

    from memory_layer.client import AsyncMemoryClient

_PAGE = 50  # ids per look-up: about 4 KB of query string, which every proxy lets pass
_ITS_OWN_FAULT = (400, 413, 422)  # statuses that concern one node; any other failure concerns the run
_STALLED = 120.0  # seconds without progress after which --wait gives up


@dataclass(slots=True)
class Tally:
    """What the run did so far; survives an interruption."""

    created: int = 0
    skipped: int = 0
    failed: int = 0
    artifacts: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Run:
    """What every part of a run needs."""

    memory: AsyncMemoryClient
    owner: str
    namespace: str | None
    template: list[tuple[str, str | None]]
    tally: Tally
    bad: Callable[[Bad], None]
    advance: Callable[[int], None]


def ingest(
    *paths: Annotated[Path, Parameter(help="Folders (Markdown and text below them), files, .jsonl.")],
    namespace: Annotated[str | None, Parameter(help="Default: the server's.")] = None,
    owner: Annotated[str | None, Parameter(help="Default: your user name.")] = None,
    content: Annotated[str, Parameter(help="Text of a node made from a JSON line.")] = "{text}",
    concurrency: Annotated[int, Parameter(help="Writes in flight.")] = 16,
    wait: Annotated[bool, Parameter(negative="", help="Until everything can be found by meaning.")] = False,
    as_json: AsJson = False,
) -> int:
    """Remember files, folders and JSON lines. Running it again writes only what is new.

    Markdown and text become one node per passage of up to 1,000 characters
    (front matter becomes metadata), a JSON line becomes one node with all its
    fields as metadata. A file that
    is named itself is also stored as an artifact. Lines that cannot be used
    are listed as file:line and the rest goes on (exit 1).

    For example:

      memoryctl ingest docs README.md
      memoryctl ingest turns.jsonl --content '{speaker}: {text}' --wait
      memoryctl ingest scan.pdf --owner archive --namespace contracts
    """
    if not paths:
        raise UsageError("name at least one file or folder: memoryctl ingest PATH...")
    if not 1 <= concurrency <= 256:
        raise UsageError("--concurrency is 1 to 256.")
    template = sources.parse_template(content)
    left_out = sources.LeftOut()
    inputs = list({found.name: found for found in _named_last(list(paths), left_out)}.values())
    if not inputs:
        render.say("no *.md, *.markdown or *.txt found there.")
    if str(left_out):
        render.say(f"left out: {left_out}.")
    tally = Tally()
    started = time.monotonic()
    interrupted = False
    try:
        with render.progress() as bar:
            asyncio.run(
                _ingest(inputs, owner or connection.default_owner(), namespace, template, concurrency, tally, bar, wait)
            )
    except KeyboardInterrupt:
        interrupted = True
    except BaseException:
        if tally.created:
            render.say(f"stopped after {tally.created:,} new nodes; the same command goes on from there.")
        raise
    tally.seconds = round(time.monotonic() - started, 3)
    _summary(tally, as_json)
    if interrupted:
        render.say("interrupted; the same command goes on from here.")
        return 130
    return 1 if tally.failed else 0


def _named_last(paths: list[Path], left_out: sources.LeftOut) -> Iterator[Input]:
    """A file that is both below a folder and named itself counts as named, in the folder's place in the order."""
    found = list(sources.find(paths, left_out))
    yield from found
    yield from (source for source in found if source.named)


def _summary(tally: Tally, as_json: bool) -> None:
    if as_json:
        render.data({name: getattr(tally, name) for name in Tally.__slots__})
        return
    rate = f" ({tally.created / tally.seconds:,.0f} nodes/s)" if tally.created and tally.seconds else ""
    artifacts = f"{tally.artifacts:,} artifact{'' if tally.artifacts == 1 else 's'}"
    render.line(
        f"{tally.created:,} created, {tally.skipped:,} there already, {tally.failed:,} failed, {artifacts} "
        f"in {tally.seconds:.1f} s{rate}"
    )


async def _ingest(
    inputs: list[Input],
    owner: str,
    namespace: str | None,
    template: list[tuple[str, str | None]],
    concurrency: int,
    tally: Tally,
    bar: Progress,
    wait: bool,
) -> None:
    task = bar.add_task("ingest", total=sum(source.path.stat().st_size for source in inputs) or None, note="")

    def bad(found: Bad) -> None:
        tally.failed += 1
        where = f"{found.name}:{found.line}" if found.line else found.name
        render.say_above(bar, f"{where}: {found.problem}")

    def advance(position: int) -> None:
        bar.update(task, completed=position, note=f"{tally.created:,} created, {tally.skipped:,} there already")

    async with connection.async_client(concurrency + 2) as memory:
        run = Run(memory, owner, namespace, template, tally, bad, advance)
        queue: asyncio.Queue[Piece | None] = asyncio.Queue(maxsize=2 * concurrency)
        async with _first_error_only(), asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(_write_queued(run, queue))
            await _read_inputs(run, inputs, queue, group)
            for _ in range(concurrency):
                await queue.put(None)
        bar.update(task, visible=False)
        if wait:
            await _until_indexed(memory, bar)


@asynccontextmanager
async def _first_error_only() -> AsyncIterator[None]:
    """Workers fail together when the server goes away; one of the errors tells it all."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


async def _read_inputs(
    run: Run, inputs: list[Input], queue: asyncio.Queue[Piece | None], group: asyncio.TaskGroup
) -> None:
    """Read every file, look its pieces up and queue those that are new."""
    page: list[Piece] = []
    before = 0
    for source in inputs:
        size = 0
        try:
            size = source.path.stat().st_size
            with source.path.open("rb") as file:
                first = source.named
                for piece in sources.read(source, file, run.namespace, run.template):
                    if isinstance(piece, Bad):
                        run.bad(piece)
                        continue
                    if first:
                        first = False
                        group.create_task(_write_with_artifact(run, piece, source.path))
                        continue
                    page.append(piece)
                    if len(page) == _PAGE:
                        await _queue_new(run, page, queue)
                        page.clear()
                        run.advance(before + file.tell())
        except OSError as error:
            run.bad(Bad(source.name, 0, f"cannot be read: {error.strerror or error}"))
        before += size
        run.advance(before)
    if page:
        await _queue_new(run, page, queue)


async def _queue_new(run: Run, page: list[Piece], queue: asyncio.Queue[Piece | None]) -> None:
    known = await _known(run, [piece.embedding_id for piece in page])
    run.tally.skipped += sum(piece.embedding_id in known for piece in page)
    for piece in page:
        if piece.embedding_id not in known:
            await queue.put(piece)


async def _known(run: Run, ids: list[str]) -> dict[str, str]:
    """Node ids of those embedding ids that are live already."""
    nodes = run.memory.list({"embeddingId": {"$in": ids}}, page_size=100)
    return {node["embeddingId"]: node["memoryNodeId"] async for node in nodes}


async def _write_queued(run: Run, queue: asyncio.Queue[Piece | None]) -> None:
    while (piece := await queue.get()) is not None:
        await _write(run, piece)


async def _write(run: Run, piece: Piece) -> str | None:
    """Create the piece's node: its id, or None when it is there already (or cannot be, and is reported)."""
    from memory_layer.client import MemoryLayerClientError

    try:
        made = await run.memory.remember(
            piece.content,
            owner=run.owner,
            namespace=run.namespace,
            metadata=piece.metadata,
            embedding_id=piece.embedding_id,
        )
    except MemoryLayerClientError as error:
        if error.code == "CONFLICT":
            run.tally.skipped += 1
        elif error.status in _ITS_OWN_FAULT:
            run.bad(Bad(piece.name, piece.line, str(error)))
        else:
            raise
        return None
    except ValueError as error:  # what JSON cannot say, such as a lone surrogate in a field
        run.bad(Bad(piece.name, piece.line, f"cannot be sent: {error}"))
        return None
    run.tally.created += 1
    return str(made["memoryNodeId"])


async def _write_with_artifact(run: Run, piece: Piece, path: Path) -> None:
    """The first piece of a file that was named itself, with the file attached unless it already is."""
    from memory_layer.client import MemoryLayerClientError

    node_id = (await _known(run, [piece.embedding_id])).get(piece.embedding_id)
    if node_id is not None:
        run.tally.skipped += 1
    else:
        node_id = await _write(run, piece) or (await _known(run, [piece.embedding_id])).get(piece.embedding_id)
    if node_id is None:
        return
    try:
        sha256 = await asyncio.to_thread(_sha256, path)
        attached: list[dict[str, Any]] = (await run.memory.get(node_id)).get("artifacts") or []
        if any(artifact.get("sha256") == sha256 for artifact in attached):
            return
        # The key is derived, so that two runs at once store one artifact.
        key = str(uuid.uuid5(uuid.NAMESPACE_URL, f"memory-layer:ingest:{node_id}:{sha256}"))
        await run.memory.upload(path, node=node_id, idempotency_key=key)
    except OSError as error:
        run.bad(Bad(piece.name, 0, f"cannot be read: {error.strerror or error}"))
    except MemoryLayerClientError as error:
        if error.status not in _ITS_OWN_FAULT:
            raise
        run.bad(Bad(piece.name, 0, f"not stored as an artifact: {error}"))
    else:
        run.tally.artifacts += 1


def _sha256(path: Path) -> str:
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def _until_indexed(memory: AsyncMemoryClient, bar: Progress) -> None:
    """Poll until nothing waits for the index. DependencyUnavailable when it stands still."""
    task = None
    least, since, pause = -1.0, time.monotonic(), 0.1
    while True:
        health = await memory.health()
        pending = (health.get("indexing") or {}).get("pending")
        if not isinstance(pending, (int, float)) or pending < 0:  # -1: the server cannot tell
            raise DependencyUnavailable(
                "everything is stored, but the server does not say how many nodes wait for the index "
                f"(status {health.get('status')!r}). Look at /healthz."
            )
        if pending == 0:
            return
        if least < 0 or pending < least:
            least, since = pending, time.monotonic()
        if time.monotonic() - since > _STALLED:
            raise DependencyUnavailable(
                f"everything is stored, but {pending:,.0f} nodes still wait for the index and none was added for "
                f"{_STALLED:.0f} s (status {health.get('status')!r}). Is a worker running? Look at /healthz."
            )
        if task is None:
            task = bar.add_task("index", total=pending, note="")
        bar.update(task, completed=max(0, (bar.tasks[-1].total or 0) - pending), note=f"{pending:,.0f} to go")
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 1.0)

"""`memoryctl ingest`: files, folders and JSON lines into nodes."""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from memory_layer.cli import connection, render
from memory_layer.cli.options import AsJson
from memory_layer.documents import watch
from memory_layer.documents.folders import LeftOut, Root, find, roots, some
from memory_layer.documents.json_lines import parse_template
from memory_layer.documents.load import sha256_of
from memory_layer.documents.names import as_recorded
from memory_layer.documents.passages import Bad, Source
from memory_layer.documents.plan import Stored
from memory_layer.documents.read import Reading
from memory_layer.documents.run import Outcome, Run, Tally
from memory_layer.documents.sync import sync
from memory_layer.documents.text import encoding_of, zone_of
from memory_layer.errors import DependencyUnavailable, UsageError

if TYPE_CHECKING:
    from rich.progress import Progress

    from memory_layer.client import AsyncMemoryClient

_ITS_OWN_FAULT = (400, 413, 422)  # statuses that concern one file; any other failure concerns the run
_STALLED = 120.0  # seconds without progress after which --wait gives up
_COMPARED = 8  # files that are in memory at the same time


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for."""

    paths: list[Path]
    namespace: str | None
    owner: str
    reading: Reading
    concurrency: int
    wait: bool
    prune: bool
    dry_run: bool
    recheck: bool
    watch: bool
    interval: float
    as_json: bool


def ingest(
    *paths: Annotated[Path, Parameter(help="Folders, files, .jsonl.")],
    namespace: Annotated[str | None, Parameter(help="Default: the server's.")] = None,
    owner: Annotated[str | None, Parameter(help="Of new nodes. Default: your user name.")] = None,
    content: Annotated[str, Parameter(help="Text of a node made from a JSON line.")] = "{text}",
    thread: Annotated[str | None, Parameter(help="Thread of a JSON line, as '{conversation}/{session}'.")] = None,
    encoding: Annotated[str | None, Parameter(help="Of texts that are not UTF-8, as windows-1252.")] = None,
    time_zone: Annotated[
        str | None, Parameter(help="Of times without one, as Europe/Amsterdam. Default: here.")
    ] = None,
    prune: Annotated[bool, Parameter(negative="", help="Delete what came from files that are gone.")] = False,
    dry_run: Annotated[bool, Parameter(negative="", help="Show what would be done, and do nothing.")] = False,
    recheck: Annotated[bool, Parameter(negative="", help="Compare files that did not change too.")] = False,
    watch_: Annotated[bool, Parameter(name="--watch", negative="", help="Go on, and take in what changes.")] = False,
    interval: Annotated[float, Parameter(help="Seconds between looks of --watch.")] = 2.0,
    concurrency: Annotated[int, Parameter(help="Writes in flight.")] = 16,
    wait: Annotated[bool, Parameter(negative="", help="Until everything can be found by meaning.")] = False,
    as_json: AsJson = False,
) -> int:
    """Remember files, folders and JSON lines. Running it again writes only what changed.

    Markdown, text and code become one node per passage of up to 1,000
    characters (front matter and headings become metadata), a JSON line or a
    row of a table one node with its fields as metadata, a message of an
    exported chat (ChatGPT, Claude, Slack, WhatsApp) one with its speaker and
    time; long ones are cut as text is. HTML, PDF, DOCX, PPTX and XLSX take the extra `documents`. What a
    .gitignore names and hidden files are left out. A file that changed replaces its passages: those that
    are the same stay, with their ids; a file that was renamed keeps them all.
    What is under legal hold stays as it is, and is listed. A file that is
    named itself is also stored as an artifact. Lines that cannot be used are
    listed as file:line and the rest goes on (exit 1).

    For example:

      memoryctl ingest docs README.md
      memoryctl ingest docs --prune --dry-run
      memoryctl ingest docs --prune --watch
      memoryctl ingest turns.jsonl --content '{speaker}: {text}' --wait
      memoryctl ingest scan.pdf --owner archive --namespace contracts
    """
    if not paths:
        raise UsageError("name at least one file or folder: memoryctl ingest PATH...")
    if not 1 <= concurrency <= 256:
        raise UsageError("--concurrency is 1 to 256.")
    if watch_ and dry_run:
        raise UsageError("--watch writes what changes, and --dry-run writes nothing: give one of them.")
    if not 0.1 <= interval <= 3600:
        raise UsageError("--interval is 0.1 to 3600 seconds.")
    reading = Reading(
        template=parse_template(content),
        encoding=encoding_of(encoding),
        thread=None if thread is None else parse_template(thread, "--thread"),
        zone=zone_of(time_zone),
    )
    who = owner or connection.default_owner()
    options = Options(
        list(paths),
        namespace,
        who,
        reading,
        concurrency,
        wait and not dry_run,
        prune,
        dry_run,
        recheck,
        watch_,
        interval,
        as_json,
    )
    named = roots(options.paths)
    tally = Tally()
    shown: list[Outcome] = []
    started = time.monotonic()
    interrupted = False
    try:
        asyncio.run(_ingest(options, named, tally, shown))
    except KeyboardInterrupt:
        interrupted = True
    except BaseException:
        if tally.created + tally.changed + tally.removed:
            render.say(f"stopped after {tally.created:,} new nodes; the same command goes on from there.")
        raise
    finally:
        reading.converter.close()
    if options.watch and tally.seconds:  # all was taken in once
        render.say("stopped watching.")
        return 0
    tally.seconds = round(time.monotonic() - started, 3)
    _summary(options, tally, shown)
    if interrupted:
        render.say("interrupted; the same command goes on from here.")
        return 130
    return 1 if tally.failed else 0


def _summary(options: Options, tally: Tally, shown: Sequence[Outcome]) -> None:
    if options.as_json:
        plan = {"files": [asdict(one) for one in shown]} if options.dry_run else {}
        render.data(asdict(tally) | plan)
        return
    if options.dry_run:
        for one in shown:
            render.line(_line(one))
    parts = [f"{tally.created:,} created"]
    for count, what in ((tally.changed, "changed"), (tally.removed, "removed"), (tally.held, "held")):
        if count:
            parts.append(f"{count:,} {what}")
    if tally.renamed:
        parts.append(f"{tally.renamed:,} file{'' if tally.renamed == 1 else 's'} renamed")
    parts += [f"{tally.skipped:,} there already", f"{tally.failed:,} failed"]
    parts.append(f"{tally.artifacts:,} artifact{'' if tally.artifacts == 1 else 's'}")
    rate = f" ({tally.created / tally.seconds:,.0f} nodes/s)" if tally.created and tally.seconds else ""
    said = f"{', '.join(parts)} in {tally.seconds:.1f} s{rate}"
    render.line(f"nothing was written; it would be: {said}" if options.dry_run else said)


def _line(one: Outcome) -> str:
    """A file of a dry run."""
    counts = (
        (one.created, "new"),
        (one.changed, "changed"),
        (one.removed, "removed"),
        (one.held, "held"),
        (one.kept, "stay"),
    )
    said = ", ".join(f"{count:,} {what}" for count, what in counts if count) or "nothing"
    return f"{one.name}{f' (was {one.was})' if one.was else ''}: {said}"


async def _ingest(options: Options, named: Sequence[Root], tally: Tally, shown: list[Outcome]) -> None:
    async with connection.async_client(options.concurrency + 6) as memory:
        named = await as_recorded(memory, options.namespace, named)
        seen = watch.look(named) if options.watch else None  # what changes while this run goes on is seen
        started = time.monotonic()
        with render.progress() as bar:
            left_out = LeftOut()
            sources = _named_first(list(find(named, left_out)))
            if not sources:
                render.say_above(bar, "no file of a kind that is read was found there.")
            if str(left_out):
                render.say_above(bar, f"left out: {left_out}.")
            task = bar.add_task("ingest", total=sum(_size(source) for source in sources) or None, note="")

            def advance(position: int) -> None:
                bar.update(task, completed=position, note=f"{tally.created:,} created, {tally.skipped:,} there already")

            run = _run(options, memory, tally, shown, lambda text: render.say_above(bar, text), advance)
            await _take_in(run, sources, [root for root in named if root.is_folder])
            if run.empty:
                render.say_above(bar, f"left out: {len(run.empty)} files without a text ({some(sorted(run.empty))}).")
            if noted := options.reading.noted:
                here = time.tzname[time.localtime().tm_isdst > 0]
                render.say_above(
                    bar,
                    f"times were read as those of this machine's time zone ({here}) in {some(sorted(noted))}; --time-zone names another.",
                )
            bar.update(task, visible=False)
            if options.wait:
                await _until_indexed(memory, bar)
        if seen is not None:
            tally.seconds = round(time.monotonic() - started, 3)
            _summary(options, tally, [])
            await _watch(options, memory, named, seen)


async def _take_in(run: Run, sources: Sequence[Source], folders: Sequence[Root]) -> None:
    await sync(run, sources, folders)
    for source in sources:
        if source.named and source.name in run.heads and not run.dry:
            await _attach(run, source, run.heads[source.name])


async def _watch(options: Options, memory: AsyncMemoryClient, named: Sequence[Root], seen: watch.Seen) -> None:
    """Take in what changes, until Ctrl-C. While the server cannot be reached, what changed waits."""
    from memory_layer.client import MemoryLayerClientError

    render.say("watching; Ctrl-C stops it.")
    while True:
        found = await watch.next_changes(named, seen, options.interval)
        tally, shown, started = Tally(), list[Outcome](), time.monotonic()
        run = _run(options, memory, tally, shown, render.say, lambda _: None)
        try:
            await _take_in(run, found.sources, found.folders)
        except MemoryLayerClientError as error:
            if 400 <= error.status < 500 and error.status != 429:
                raise
            render.say(f"{error}; what changed waits until it can be written.")
            continue
        seen = found.seen
        tally.seconds = round(time.monotonic() - started, 3)
        if options.as_json:
            render.data(asdict(tally) | {"files": [asdict(one) for one in shown]})
        else:
            for one in shown:
                render.line(_line(one))
        sys.stdout.flush()


def _run(
    options: Options,
    memory: AsyncMemoryClient,
    tally: Tally,
    shown: list[Outcome],
    say: Callable[[str], None],
    advance: Callable[[int], None],
) -> Run:
    def bad(found: Bad) -> None:
        tally.failed += 1
        where = f"{found.name}:{found.line}" if found.line else found.name
        say(f"{where}: {found.problem}")

    def held(name: str, node: Stored) -> None:
        line = node.source.get("line")
        where = f"{name}:{line}" if isinstance(line, int) else name
        say(f"{where}: node {node.id} is under legal hold, and stays as it is")

    return Run(
        memory=memory,
        owner=options.owner,
        namespace=options.namespace,
        reading=options.reading,
        tally=tally,
        gate=asyncio.Semaphore(options.concurrency),
        files=asyncio.Semaphore(_COMPARED),
        bad=bad,
        held=held,
        outcome=shown.append if options.dry_run or options.watch else lambda _: None,
        advance=advance,
        dry=options.dry_run,
        prune=options.prune,
        recheck=options.recheck,
    )


def _named_first(sources: Sequence[Source]) -> list[Source]:
    """Each file once; one that is both below a folder and named itself counts as named, in the folder's place in the order."""
    found: dict[str, Source] = {}
    for source in sources:
        before = found.get(source.name)
        found[source.name] = source if before is None else replace(before, named=before.named or source.named)
    return list(found.values())


def _size(source: Source) -> int:
    try:
        return source.path.stat().st_size
    except OSError:
        return 0


async def _attach(run: Run, source: Source, node_id: str) -> None:
    """Attach a file that was named itself to its first passage, unless it already is."""
    from memory_layer.client import MemoryLayerClientError

    sha256 = await asyncio.to_thread(sha256_of, source)
    try:
        attached: list[dict[str, Any]] = (await run.memory.get(node_id)).get("artifacts") or []
        if sha256 is None or any(artifact.get("sha256") == sha256 for artifact in attached):
            return
        # The key is derived, so that two runs at once store one artifact.
        key = str(uuid.uuid5(uuid.NAMESPACE_URL, f"memory-layer:ingest:{node_id}:{sha256}"))
        await run.memory.upload(source.path, node=node_id, idempotency_key=key)
    except OSError as error:
        run.bad(Bad(source.name, 0, f"cannot be read: {error.strerror or error}"))
    except MemoryLayerClientError as error:
        if error.status not in _ITS_OWN_FAULT:
            raise
        run.bad(Bad(source.name, 0, f"not stored as an artifact: {error}"))
    else:
        run.tally.artifacts += 1


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

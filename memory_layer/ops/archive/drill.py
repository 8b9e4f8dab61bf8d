"""The quarterly drill: a segment of the archive, chosen at random, is brought back, checked and replayed into a scratch database.

Bringing bytes back from a cold storage class takes hours, so the drill has a beginning and an end: ``start`` asks for them, and what it
asked for is in its run's report (``ops_runs``), which outlives the process; ``finish`` does the rest when they are there.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import secrets
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from memory_layer.audit.archive import key_entries
from memory_layer.audit.trust_root import TrustRoot
from memory_layer.errors import Conflict, NotFound, UsageError
from memory_layer.ops import embedded, migrate, runs
from memory_layer.ops.archive import read
from memory_layer.ops.archive.replay import replay
from memory_layer.ops.operate import Run
from memory_layer.ops.report import Finding
from memory_layer.stores.protocols import ObjectStore

START: Final = "drill-audit-restore-start"
FINISH: Final = "drill-audit-restore"
LOCK: Final = "drill-audit-restore"
DAYS: Final = 7  # that restored bytes stay
RUNBOOK: Final = "docs/runbooks/audit-archive-restore.md"
INCIDENT: Final = f"Treat it as an incident: keep what was downloaded, tell the auditor, and follow {RUNBOOK}."


@dataclass(frozen=True, slots=True)
class Drill:
    """A drill that was started. ``objects``: key and version of each object asked for; ``keys_from``: segments before it in which the
    keys were let to seal that sealed it; ``finished``: the run that ended it."""

    id: uuid.UUID
    started_at: dt.datetime
    folder: str
    objects: tuple[tuple[str, str], ...]
    manifest_sha256: str
    keys_from: tuple[str, ...]
    finished: str | None


async def start(run: Run, store: ObjectStore, root: TrustRoot, segment: int | None, dsn: str) -> None:
    """Choose a segment, by its first entry or at random, and ask for its bytes, and for those of earlier ones in which its keys were let
    to seal, as the database ``dsn`` knows. Raises UsageError where it is not there."""
    found = await read.find_segments(store, root.origin)
    readable_ones = [
        (each, contents) for each in found if (contents := await read.read_manifest(store, each)) is not None
    ]
    readable = readable_ones
    if segment is not None:
        readable = [
            (each, contents) for each, contents in readable if contents.base.seq <= segment <= contents.head.seq
        ]
    if not readable:
        raise UsageError(
            "The archive has no such segment whose manifest can be read. `memoryctl audit verify --from-s3` tells more."
        )
    chosen, contents = secrets.choice(readable)
    manifest = chosen.manifest
    assert manifest is not None  # noqa: S101 - it was read
    objects = [(manifest.key, manifest.version_id), *((file.key, file.version) for file in contents.files.values())]
    wanted = await read.delegations_before(dsn, root.origin, contents.base.seq, contents.head.seq)
    carriers = [(each, of) for each, of in readable_ones if (of.base.seq, of.head.seq) in wanted]
    for each, of in carriers:
        assert each.manifest is not None  # noqa: S101 - it was read
        objects.append((each.manifest.key, each.manifest.version_id))
        objects += [(file.key, file.version) for file in of.files.values()]
    asked = 0
    for key, version in objects:
        state = await store.stat(key, version)
        if not state.readable and not state.restoring:
            await store.restore(key, version, DAYS)
            asked += 1
    run.fact("segment", chosen.name)
    run.fact("first", contents.base.seq)
    run.fact("last", contents.head.seq)
    run.fact("origin", root.origin)
    run.fact("keysFrom", [each.name for each, _ in carriers])
    run.fact("objects", [list(each) for each in objects])
    run.fact("manifestSha256", (await store.stat(*objects[0])).sha256)
    run.fact("restoresAsked", asked)
    text = f"The segment {chosen.name} was chosen of {len(found)}; " + (
        f"{asked} objects are being restored." if asked else "its bytes can be read at once."
    )
    run.find(Finding("drill.started", "info", "pass", text, "`memoryctl drill audit-restore finish` goes on."))


def newest(dsn: str, drill: uuid.UUID | None = None) -> Drill:
    """The drill of that id, else the newest. Raises NotFound."""
    rows = [
        row for row in runs.recent(dsn, START, 1000) if row["exit"] == 0 and drill in (None, uuid.UUID(row["runId"]))
    ]
    if not rows:
        raise NotFound("There is no such drill. `memoryctl drill audit-restore start` begins one.")
    found = runs.find(dsn, uuid.UUID(rows[0]["runId"]))
    if found["evidence"] == "differs":
        raise Conflict(
            f"The drill {rows[0]['runId']} is not the one that the audit log names: its row was changed. Start another."
        )
    facts = found["report"]["facts"]
    ended = next(
        (r["runId"] for r in runs.recent(dsn, FINISH, 1000) if r["arguments"].get("drill") == rows[0]["runId"] and r["exit"] in (0, 1)), None
    )  # fmt: skip
    return Drill(
        uuid.UUID(rows[0]["runId"]),
        dt.datetime.fromisoformat(rows[0]["startedAt"]),
        facts["segment"],
        tuple((key, version) for key, version in facts["objects"]),
        facts["manifestSha256"] or "",
        tuple(facts.get("keysFrom", ())),
        ended,
    )


async def waiting(store: ObjectStore, drill: Drill) -> list[str]:
    """The keys of those objects that are not back yet."""
    return [key for key, version in drill.objects if not (await store.stat(key, version)).readable]


def not_yet(keys: list[str]) -> Finding:
    text = f"{len(keys)} objects are not restored yet, {keys[0]} among them."
    return Finding(
        "drill.waiting",
        "error",
        "unavailable",
        text,
        "Glacier takes hours, Deep Archive up to two days. Ask again later.",
    )


async def finish(
    run: Run, store: ObjectStore, root: TrustRoot, drill: Drill, into: str | None, source: str | None
) -> None:
    """Check hash and signature of what came back, replay it, and compare; findings where it is not what it should be."""
    run.fact("drill", str(drill.id))
    run.fact("segment", drill.folder)
    if keys := await waiting(store, drill):
        run.find(not_yet(keys))
        return
    there = await read.find_segments(store, root.origin)
    found = [each for each in there if each.name == drill.folder]
    if not found:
        run.find(
            Finding("drill.gone", "error", "fail", f"The segment {drill.folder} is gone from the archive.", INCIDENT)
        )
        return
    began = dt.datetime.now(dt.UTC)
    carriers = [each for each in there if each.name in drill.keys_from]
    earlier, problems = await read.in_thread(store, carriers, lambda segments: key_entries(segments(), root))
    with sandbox(into) as target:
        done = await read.in_thread(
            store,
            found,
            lambda segments: replay(
                segments, root, target, pinned=True, source=source, first=int(drill.folder[:15]), earlier=earlier
            ),
        )
    key, version = drill.objects[0]
    state = await store.stat(key, version)
    run.fact("objectKey", key)
    run.fact("versionId", version)
    run.fact("sha256", state.sha256)
    run.fact("lockedUntil", None if state.lock is None else state.lock.until)
    run.fact("entries", done.entries + done.skipped)
    run.fact("head", done.verdict.counts.head)
    run.fact("verdict", done.verdict.name)
    run.fact("seconds", round((dt.datetime.now(dt.UTC) - began).total_seconds(), 3))
    run.fact("secondsSinceStart", round((dt.datetime.now(dt.UTC) - drill.started_at).total_seconds(), 3))
    run.fact("keysFrom", list(drill.keys_from))
    problems += done.verdict.findings
    for problem in problems:
        text = f"{problem.file or f'entry {problem.seq}'}: expected {problem.expected}, found {problem.found}"
        run.find(Finding(f"audit.{problem.code.lower().replace('_', '-')}", "error", "fail", text, INCIDENT))
    if drill.manifest_sha256 and state.sha256 != drill.manifest_sha256:
        text = f"{key} has another SHA-256 than when the drill began."
        run.find(Finding("drill.changed", "error", "fail", text, INCIDENT))
    if not problems:
        text = f"{key} (version {version}) came back whole: {run.facts['entries']} entries, signed, replayed, the same head."
        run.find(Finding("drill.restored", "info", "pass", text))


@contextlib.contextmanager
def sandbox(into: str | None) -> Iterator[str]:
    """The scratch database: ``into``, else an embedded one that is made for the occasion and thrown away."""
    if into is not None:
        yield into
        return
    parent = Path(tempfile.mkdtemp(prefix="memory-drill-"))
    try:
        parent.chmod(0o711)  # started by root, the server runs as another account
        with embedded.start(parent / "data", durable=False) as cluster:
            embedded.prepare_database(cluster)
            migrate.apply(cluster.dsn(embedded.OWNER_ROLE))
            yield cluster.dsn(embedded.OWNER_ROLE)
    finally:
        shutil.rmtree(parent, ignore_errors=True)

"""What was archived against what entries, seals, signatures and runs say: segments of the log, and manifests of artifacts."""

from __future__ import annotations

import base64
import re
from typing import Any, Final, NamedTuple

from memory_layer.audit.seal import seal_hash
from memory_layer.errors import ChecksumMismatch
from memory_layer.ops import manifests
from memory_layer.ops.artifacts.names import FORMAT, PREFIX
from memory_layer.ops.manifests import MANIFEST
from memory_layer.ops.tables.carried import check_carried
from memory_layer.ops.tables.found import LOG_TABLE, Look, differing_columns, later, moment, plain
from memory_layer.ops.tables.statements import Statement, Statements

_KEY: Final = re.compile(rf"{PREFIX}/[0-9]{{8}}T[0-9]{{6}}Z-([0-9a-f-]{{36}})/{re.escape(MANIFEST)}")
_SEGMENT: Final = re.compile(r"archive/(.+)/segments/([0-9]{15})-([0-9]{15})(?:-a([1-9][0-9]*))?/manifest\.json")


class Segment(NamedTuple):
    """A row of ``archive_segments``, with the seal and the time of the log at its end."""

    number: int
    first: int
    last: int
    attempt: int
    begun: str | None
    lock: str | None
    finished: str | None
    key: str | None
    version: str | None
    sha256: str | None
    bytes: int | None
    tail: Any
    audit: str | None
    batch: int | None
    head: str | None
    seal: str | None
    ts: str | None
    checkpointed: bool
    tool: str


def segments_of(look: Look) -> list[Segment]:
    """All rows, in order."""
    return [Segment(*row) for row in look.rows("segments")]


def check_archive(look: Look, stated: Statements, segments: list[Segment], trees: dict[int, bytes]) -> None:
    """Each segment against its ``audit.archived``, and where it ends against entries and seals. ``trees``: by their sizes."""
    found, owed, next_first = look.found, 0, 0
    for place, row in enumerate(segments):
        statement = stated.archived.get(row.number)
        differs = [] if (row.number, row.first) == (place, next_first) else ["number or first_seq"]
        next_first = row.last + 1
        if row.finished is None:
            differs += [] if place == len(segments) - 1 and statement is None else ["finished_at"]
        elif statement is not None and statement.payload is not None:
            differs += _as_archived(row, statement, statement.payload)
        elif row.audit is not None and statement is None:
            found.add(LOG_TABLE, f"archive_segments: an audit.archived for segment {row.number}", "none that says so")
        else:
            owed += 1
        differs += _by_itself(look, row, trees)
        seq = None if statement is None else statement.seq
        found.differ(LOG_TABLE, f"archive_segments, segment {row.number}", "entries and seals say", differs, seq=seq)
    there = {row.number for row in segments}
    for number, statement in stated.archived.items():
        if number not in there:
            found.add(LOG_TABLE, f"archive_segments: segment {number}", "no such row", seq=statement.seq)
    if owed:
        found.not_checked.append(
            f"tables: {owed} rows of archive_segments, whose entry is not written yet or lost its payload"
        )


def _as_archived(row: Segment, statement: Statement, payload: dict[str, Any]) -> list[str]:
    stored = {
        "first": row.first, "last": row.last, "manifestKey": row.key, "manifestVersion": row.version, "manifestSha256": row.sha256,
        "bytes": row.bytes, "lockedUntil": moment(row.lock),
    }  # fmt: skip
    differs = [_COLUMNS[name] for name in differing_columns(stored, {name: payload.get(name) for name in stored})]
    if row.audit is not None and row.audit != statement.id:
        differs.append("audit_id")
    if later(moment(row.begun), moment(row.finished)) or later(moment(row.finished), statement.ts):
        differs.append("begun_at or finished_at")
    return differs


def _by_itself(look: Look, row: Segment, trees: dict[int, bytes]) -> list[str]:
    """What the row's own columns, the log and its checkpoints say."""
    differs = [] if row.checkpointed else ["checkpoint_size"]
    if row.key is not None:
        match = _SEGMENT.fullmatch(row.key)
        named = None if match is None else (match[1], int(match[2]), int(match[3]), int(match[4] or 0))
        differs += [] if named == (look.root.origin, row.first, row.last, row.attempt) else ["manifest_key or attempt"]
    if look.intact and row.tail is not None and not _ends(row, trees.get(row.last + 1)):
        differs.append("tail or last_seq")
    if not row.tool.startswith("memory-layer "):
        differs.append("tool")
    return differs


_COLUMNS: Final = {
    "first": "first_seq", "last": "last_seq", "manifestKey": "manifest_key", "manifestVersion": "manifest_version",
    "manifestSha256": "manifest_sha256", "bytes": "bytes", "lockedUntil": "lock_until",
}  # fmt: skip


def _ends(row: Segment, tree: bytes | None) -> bool:
    """Whether a segment's ``tail`` is where the log stood at its last entry."""
    if row.seal is None or tree is None:
        return False
    expected = {
        "batch": row.batch, "hash": row.head, "seal": seal_hash(row.seal.encode()), "ts": moment(row.ts),
        "tree": base64.b64encode(tree).decode(),
    }  # fmt: skip
    return plain(row.tail) == plain(expected)


def check_manifests(look: Look, stated: Statements) -> None:
    """Each manifest of artifacts against its signature, the one before it, and the run that wrote it."""
    found, before = look.found, None
    rows = look.rows("manifests")
    opened = None if stated.opening is None else stated.opening.ts
    check_carried(
        look, stated, "artifact_manifests", [row for row in rows if opened and not later(moment(row[8]), opened)]
    )
    for id_, key, _, sha256, artifacts, signature, key_id, previous, created in rows:
        if opened is not None and not later(moment(created), opened):  # signed for the log before
            before = sha256
            continue
        differs = []
        try:
            signer = manifests.check(FORMAT, sha256, None, signature.encode(), look.root)
            differs += [] if signer == key_id else ["key_id"]
        except ChecksumMismatch:
            differs.append("sha256 or signature")
        match = _KEY.fullmatch(key)
        if match is None or match[1] != id_:
            differs.append("id or object_key")
        if before is not None and previous != before:
            differs.append("previous, or the row before")
        if artifacts < 0:
            differs.append("artifacts")
        before = sha256
        found.differ(LOG_TABLE, f"artifact_manifests, {id_}", "its signature and the one before say", differs)
    _check_exports(look, rows)


def _check_exports(look: Look, rows: list[tuple[Any, ...]]) -> None:
    """The reports of runs that wrote manifests; that the reports are what entries commit to ``check_runs`` sees to."""
    there = {row[0]: row for row in rows}
    for id_, verb, _, _, finished, _, _, report, audit in look.rows("runs"):
        facts = (report or {}).get("facts") if isinstance(report, dict) else None
        if (
            verb != "artifacts-manifest-export"
            or not isinstance(facts, dict)
            or "manifest" not in facts
            or audit is None
        ):
            continue
        row = there.get(facts["manifest"])
        if row is None:
            look.found.add(LOG_TABLE, f"artifact_manifests: the one that run {id_} wrote", "no such row")
            continue
        stored = {"key": row[1], "versionId": row[2], "sha256": row[3], "artifacts": row[4], "previous": row[7]}
        differs = differing_columns(stored, {name: facts.get(name) for name in stored})
        if later(moment(row[8]), moment(finished)):
            differs.append("created_at")
        look.found.differ(LOG_TABLE, f"artifact_manifests, {row[0]}", f"run {id_} reports", differs)

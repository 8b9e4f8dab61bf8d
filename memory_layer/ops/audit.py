"""Verify the log in a live database, and the rows against the log."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from threading import Event
from typing import Any, Final, Literal, TypeAlias

import msgspec
import psycopg
from psycopg import Connection, sql
from psycopg.rows import args_row

from memory_layer import canonical
from memory_layer.audit import about
from memory_layer.audit.checkpoint import Checkpoint
from memory_layer.audit.entry import SALT_BYTES, payload_commitment, state_hash
from memory_layer.audit.seal_chain import SealRow
from memory_layer.audit.trust_root import TrustRoot
from memory_layer.audit.verdict import OK, UNANCHORED, Finding, Verdict
from memory_layer.audit.verify import MAX_ANCHOR_AGE, STATE_NOT_CHECKED, CheckpointRow, Row, verify
from memory_layer.errors import DependencyUnavailable, MemoryLayerError
from memory_layer.ops.report import Finding as RunFinding
from memory_layer.ops.report import Judgement
from memory_layer.ops.runs import Run
from memory_layer.sql import queries

_SQL = queries("audit")
_PAGE: Final = 1000  # rows held at a time
_MOST_FINDINGS: Final = 100  # of rows; the rest are counted

# Entries do not speak of these. The other columns of memory_nodes and artifacts are compared, all of them.
NOT_CHECKED: Final = (
    "index: the vector index, memory_terms, and of memory_vectors all but callers' vectors, their model and dimension",
    "files: the bytes in the object store; of artifacts legal_hold, hold_due, retain_until, verified_at, fault and storage_class",
    "tables: namespaces, tenants, principals, subjects, legal_holds, api_keys and idempotency_keys",
)

Progress = Callable[[int], None]


def verify_live(
    dsn: str,
    root: TrustRoot,
    *,
    pinned: bool,
    payloads: bool = True,
    anchors: Iterable[Checkpoint] = (),
    max_anchor_age: dt.timedelta = MAX_ANCHOR_AGE,
    progress: Progress | None = None,
) -> Verdict:
    """Judge the log that the trust root speaks for, as one snapshot of the database shows it, then the rows against it.

    An anchor is as old as the database's clock says of the last entry that it covers.
    Streams: memory does not grow with the log but for 16 bytes an entry. ``progress`` is told how many entries were read.
    Raises DependencyUnavailable when the database does not answer.
    """
    try:
        with connect(dsn) as connection:
            snapshot, logs = begin(connection)
            ((now,),) = connection.execute(_SQL["now"]).fetchall()
            number, origin = next(((n, o) for n, o in logs if o == root.origin), logs[0] if logs else (0, root.origin))
            stop = Event()
            # Beside each other: while one waits for Postgres, the other computes.
            with connect(dsn) as second, ThreadPoolExecutor(1) as beside:
                reconciled = beside.submit(_reconcile, second, snapshot, stop, trusted=payloads)
                try:
                    verdict = verify(
                        root,
                        _rows(connection, number, progress),
                        _seals(connection, number),
                        expected_origin=origin,
                        pinned=pinned,
                        payloads=payloads,
                        anchors=anchors,
                        checkpoints=_checkpoints(connection, number),
                        now=now,
                        max_anchor_age=max_anchor_age,
                    )
                    rows = reconciled.result()
                finally:
                    stop.set()
            others = [f"log: the entries of {other}, which this database holds too" for n, other in logs if n != number]
            verdict = verdict.extended(rows.findings, checked=[STATE_NOT_CHECKED])
            verdict = about.annotate(verdict, lambda wanted: _entries_at(connection, number, wanted))
            not_checked = (*verdict.not_checked, *NOT_CHECKED, *rows.not_checked(), *others)
            return replace(verdict, not_checked=not_checked, unlisted=verdict.unlisted + rows.unlisted)
    except psycopg.OperationalError as error:
        raise DependencyUnavailable(f"Postgres does not answer: {' '.join(str(error).split())}") from error


def judge(run: Run, verdict: Verdict) -> None:
    """Put a verdict on the operator's run that came to it: whole, with its own name and exit code, and each finding."""
    clean = verdict.exit_code in (OK, UNANCHORED) and not verdict.findings
    run.own = Judgement(verdict.name, verdict.exit_code, clean)
    run.fact("verdict", verdict.to_json())
    for finding in verdict.findings:
        place = "" if finding.seq is None else f"entry {finding.seq}: "
        text = f"{place}expected {finding.expected}, found {finding.found}"
        run.find(RunFinding(f"audit.{finding.code.lower().replace('_', '-')}", "error", "fail", text))


def _entries_at(connection: Connection[Any], log: int, wanted: list[int]) -> dict[int, bytes]:
    return dict(connection.execute(_SQL["entries_at"], {"log": log, "seqs": wanted}).fetchall())


def connect(dsn: str) -> Connection[Any]:
    """A connection that only reads, and all from one snapshot."""
    connection = psycopg.connect(dsn, connect_timeout=5, application_name="memoryctl audit verify")
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    connection.read_only = True
    return connection


def begin(connection: Connection[Any]) -> tuple[str, list[tuple[int, str]]]:
    """The name of the snapshot that is judged, and (number, origin) of the logs in it, the newest first."""
    connection.execute(_SQL["session"])
    logs = connection.execute(_SQL["logs"]).fetchall()
    ((snapshot,),) = connection.execute(_SQL["export_snapshot"]).fetchall()
    return snapshot, logs


def entries(dsn: str) -> int:
    """How many entries there are about to be read, for a progress bar."""
    try:
        with psycopg.connect(dsn, connect_timeout=5) as connection:
            row = connection.execute("SELECT coalesce(max(last_seq) + 1, 0) FROM audit_seals").fetchone()
            return int(row[0]) if row else 0
    except psycopg.OperationalError as error:
        raise DependencyUnavailable(f"Postgres does not answer: {' '.join(str(error).split())}") from error


def _rows(connection: Connection[Any], log: int, progress: Progress | None) -> Iterator[Row]:
    with connection.cursor("audit_rows", row_factory=args_row(Row)) as cursor:
        cursor.itersize = _PAGE
        cursor.execute(_SQL["rows"], {"log": log}, binary=True)
        for count, row in enumerate(cursor, start=1):
            if progress is not None and count % _PAGE == 0:
                progress(count)
            yield row


def _seals(connection: Connection[Any], log: int) -> Iterator[SealRow]:
    with connection.cursor("audit_seals") as cursor:
        cursor.itersize = _PAGE
        cursor.execute(_SQL["seals"], {"log": log})
        for batch, text, signature in cursor:
            yield SealRow(batch, text.encode(), signature)


def _checkpoints(connection: Connection[Any], log: int) -> Iterator[CheckpointRow]:
    with connection.cursor("audit_checkpoints") as cursor:
        cursor.itersize = _PAGE
        cursor.execute(_SQL["checkpoints"], {"log": log}, binary=True)
        for size, root, note in cursor:
            yield CheckpointRow(size, root, None if note is None else note.encode())


@dataclass(slots=True)
class _Told:
    """What the entries about one node or artifact, read in order, say of its row."""

    seq: int | None = None  # of the entry that the row must agree with; None: there is none
    created: str | None = None  # when, as Postgres writes it
    changed: str | None = None
    state: str | None = None
    salt: bytes | None = None
    gone: bool = False
    linked: bool = False  # the node that an artifact was attached to is there
    partial: bool = False  # a payload is missing, and what it told with it
    forged: int | None = None  # entry whose payload is not the one that it commits to
    fields: dict[str, Any] = field(default_factory=dict)


class _NodePayload(msgspec.Struct, rename="camel"):
    """The members of a payload about a node that ``state`` does not cover."""

    subjects: Any = msgspec.UNSET
    embedding_id: Any = msgspec.UNSET
    occurred_at: Any = msgspec.UNSET
    embedding: Any = msgspec.UNSET
    reason: Any = None


_Pairs: TypeAlias = Iterator[tuple[tuple[Any, ...], _Told]]
_NODE_PAYLOAD: Final = msgspec.json.Decoder(_NodePayload)
_ENCODER: Final = msgspec.json.Encoder(order="deterministic")
_STATE_COLUMNS: Final = "a column that its state commits to"


@dataclass(slots=True)
class _Reconciled:
    """What a comparison of the rows with the entries came to. Beyond ``_MOST_FINDINGS`` they are only counted."""

    findings: list[Finding] = field(default_factory=list)
    unlisted: int = 0
    partial: int = 0

    def add(self, found: Iterable[Finding]) -> None:
        for finding in found:
            if len(self.findings) < _MOST_FINDINGS:
                self.findings.append(finding)
            else:
                self.unlisted += 1

    def not_checked(self) -> list[str]:
        if not self.partial:
            return []
        return [f"rows: in {self.partial} of them what only a payload told that is not there any more"]


def _reconcile(connection: Connection[Any], snapshot: str, stop: Event, *, trusted: bool) -> _Reconciled:
    """STATE_RECONCILE_MISMATCH for each row that is not what its entries say, is not there, or has none.

    ``trusted``: the payloads are compared with what the entries commit to elsewhere. ``stop`` ends it after the page in hand.
    """
    try:
        connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(snapshot))
    except (psycopg.errors.InvalidParameterValue, psycopg.errors.UndefinedObject) as error:
        raise DependencyUnavailable(
            "Two connections by this DSN do not reach the same database server. Name one server, not a balancer."
        ) from error
    connection.execute(_SQL["session"])
    result = _Reconciled()
    for row, told in _told(connection, "nodes", "node_entries", _hear_of_node, stop, trusted):
        result.partial += told.partial
        result.add(_judge(f"node {row[1]}", told, _node_differs(row, told)))
    for row, told in _told(connection, "artifacts", "artifact_entries", _hear_of_artifact, stop, trusted):
        result.partial += told.partial
        result.add(_judge(f"artifact {row[1]}", told, _artifact_differs(row, told)))
    result.add(_lost(connection, "node"))
    result.add(_lost(connection, "artifact"))
    return result


def _told(
    connection: Connection[Any],
    rows: str,
    told: str,
    hear: Callable[[_Told, str, Any], None],
    stop: Event,
    trusted: bool,
) -> _Pairs:
    """Each row with what its entries tell; a page of rows is held at a time, and one payload of each entry about them."""
    with connection.cursor(f"reconcile_{rows}") as cursor:
        cursor.execute(_SQL[rows], binary=True)
        while not stop.is_set() and (page := cursor.fetchmany(_PAGE)):
            stories = [_Told() for _ in page]
            with connection.cursor(f"reconcile_{told}") as entries_:
                entries_.itersize = _PAGE
                keys = {"tenants": [row[0] for row in page], "ids": [row[1] for row in page]}
                entries_.execute(_SQL[told], keys, binary=True)
                for place, type_, seq, time, entry, salt, payload, linked in entries_:
                    story = stories[place - 1]
                    state = _member(entry, b',"state":"')
                    if state is not None or story.seq is None or rows == "artifacts":
                        story.seq, story.changed, story.state, story.salt = seq, time, state, salt
                    if type_.endswith(".created"):
                        story.created, story.linked = time, linked
                    elif type_ in _GONE:
                        story.gone = True
                    if payload is None and _member(entry, b',"payload":"') is not None:
                        # It may have told anything, so nothing that was told before it holds.
                        story.partial = True
                        story.fields.clear()
                    elif payload is not None and not trusted and not _is_committed(entry, salt, payload):
                        story.forged = seq
                    try:
                        hear(story, type_, payload)
                    except (ValueError, RecursionError):
                        story.forged = seq
            for story in stories:
                story.partial = story.partial or (story.seq is not None and story.created is None)
            yield from zip(page, stories, strict=True)


_GONE: Final = frozenset({"memory.node.purged", "memory.artifact.deleted"})


def _member(entry: bytes, name: bytes) -> str | None:
    """A hash in a canonical entry; None for null. No value holds a quote, so the name stands nowhere else."""
    place = entry.find(name) + len(name)
    return entry[place : place + 64].decode("ascii", "replace") if place >= len(name) else None


def _is_committed(entry: bytes, salt: bytes, payload: bytes) -> bool:
    return len(salt) == SALT_BYTES and payload_commitment(salt, payload) == _member(entry, b',"payload":"')


def _hear_of_node(story: _Told, type_: str, payload: bytes | None) -> None:
    fields = story.fields
    told = _NODE_PAYLOAD.decode(payload) if payload is not None else None
    if type_ in ("memory.node.created", "memory.legal_hold.released"):
        fields["legal_hold_reason"] = None
    if told is None:
        return
    if type_ == "memory.legal_hold.set":
        fields["legal_hold_reason"] = told.reason
    if told.subjects is not msgspec.UNSET:
        fields["subjects"] = told.subjects
    if told.embedding_id is not msgspec.UNSET:
        fields["embedding_id"] = told.embedding_id
    if told.occurred_at is not msgspec.UNSET:
        fields["occurred_at"] = told.occurred_at
    if told.embedding is not msgspec.UNSET:
        fields["embedding"] = told.embedding


def _node_differs(row: tuple[Any, ...], told: _Told) -> list[str]:
    """Names of the columns that are not what the entries say. Positions are those of the query ``nodes``."""
    fields, embedding = told.fields, told.fields.get("embedding")
    stored = {
        "legal_hold_reason": row[17],
        "subjects": row[14],
        "embedding_id": row[15],
        "occurred_at": _moment(row[16]),
    }
    differs = [name for name, value in fields.items() if name != "embedding" and stored[name] != value]
    if told.created is not None and row[12] != told.created:
        differs.append("created_at")
    if row[13] != told.changed:
        differs.append("updated_at")
    if isinstance(embedding, dict) and row[18] is not None:
        if row[19] != embedding.get("model"):
            differs.append("memory_vectors.embedding_model")
        if row[20] != embedding.get("dimension"):
            differs.append("memory_vectors.dimension")
    if (told.salt is not None or not told.partial) and not _has_state(row, told):
        differs.append(_STATE_COLUMNS)
    return differs


def _has_state(row: tuple[Any, ...], told: _Told) -> bool:
    salt = told.salt
    if salt is None or len(salt) != SALT_BYTES:
        return False
    try:
        state = {
            "id": row[1],
            "tenant": row[0],
            "owner": row[2],
            "namespace": row[3],
            "version": row[4],
            "contentSha256": row[5],
            "metadata": msgspec.json.decode(row[6]),
            "piiFlags": msgspec.json.decode(row[7]),
            "legalHold": row[8],
            "ttlSeconds": row[9],
            "expiresAt": _moment(row[10]),
            "deletedAt": _moment(row[11]),
            # convert takes base64 for bytes, four times as fast as the standard library
            "vector": None if row[18] is None else hashlib.sha256(msgspec.convert(row[18], bytes)).hexdigest(),
        }
        # Most rows hold nothing that a plain encoder spells otherwise than RFC 8785. Other bytes cannot have the same hash.
        if state_hash(salt, _ENCODER.encode(state)) == told.state:
            return True
        state |= {"metadata": json.loads(row[6]), "piiFlags": json.loads(row[7])}
        return state_hash(salt, canonical.dumps(state)) == told.state
    except (MemoryLayerError, ValueError, RecursionError):  # a row that no entry can commit to
        return False


def _hear_of_artifact(story: _Told, _type: str, payload: bytes | None) -> None:
    told = json.loads(payload) if payload is not None else None
    if isinstance(told, dict) and "artifactId" in told:  # else it does not describe the row
        story.fields = told


def _artifact_differs(row: tuple[Any, ...], told: _Told) -> list[str]:
    """The same by the query ``artifacts``."""
    tenant, _, node, name, url, key, version, sha256, size, type_, manifest, metadata, creator, created = row
    fields = told.fields
    if not fields:
        return []
    stored = (
        ("name", "name", name),
        ("url", "url", url),
        ("version_id", "versionId", version),
        ("sha256", "sha256", sha256),
        ("size_bytes", "sizeBytes", size),
        ("content_type", "contentType", type_),
        ("manifest_signature_id", "manifestSignatureId", manifest),
        ("created_by", "createdBy", creator),
        ("created_at", "createdAt", _moment(created)),
    )
    differs = [column for column, member, value in stored if fields.get(member) != value]
    # An entry from before objects could be registered does not name the key: it is made of what the entry does name.
    if key != fields.get("objectKey", f"{tenant}/{sha256}") or not url.endswith(f"/{key}"):
        differs.append("object_key")
    attached = fields.get("memoryNodeId")
    if node != attached and (node is not None or told.linked):
        differs.append("memory_node_id")
    try:
        if canonical.dumps(json.loads(metadata)) != canonical.dumps(fields.get("metadata")):
            differs.append("metadata")
    except (MemoryLayerError, ValueError, RecursionError):
        differs.append("metadata")
    return differs


@lru_cache(maxsize=256)
def _moment(text: str | None) -> str | None:
    """A time as entries spell it, of one as Postgres does in UTC; what no entry can name (infinity, 44 BC) stays as it is."""
    if text is None:
        return None
    clock, _, zone = text.partition("+")
    if zone != "00":
        return text
    whole, _, fraction = clock.partition(".")
    return f"{whole.replace(' ', 'T')}.{fraction:0<6}Z"


def _judge(what: str, told: _Told, differs: list[str]) -> Iterator[Finding]:
    """Names columns, never values: those may be personal data."""
    if told.seq is None:
        yield _mismatch(None, "an entry for every row", f"{what} has none")
    elif told.gone:
        yield _mismatch(told.seq, f"no {what}: entry {told.seq} removed it", "a row")
    elif told.forged is not None:
        expected = f"the payload that the entry about {what} commits to"
        yield Finding("PAYLOAD_COMMITMENT_MISMATCH", expected, "another", seq=told.forged)
    elif differs:
        found = f"changed without an entry: {', '.join(differs)}"
        yield _mismatch(told.seq, f"{what} as entry {told.seq} left it", found)


def _lost(connection: Connection[Any], kind: Literal["node", "artifact"]) -> Iterator[Finding]:
    with connection.cursor(f"lost_{kind}s") as cursor:
        cursor.execute(_SQL[f"lost_{kind}s"])
        for seq, id_ in cursor:
            yield _mismatch(seq, f"{kind} {id_}, created by entry {seq}", "no such row")


def _mismatch(seq: int | None, expected: str, found: str) -> Finding:
    return Finding("STATE_RECONCILE_MISMATCH", expected, found, seq=seq)

"""Compare the nodes and artifacts of a live database with what the log says of them, and the log's account with itself.

The payloads of a node's entries, folded in order, say what the row was after each of them. So each ``state`` that was sealed can be
explained, and one that cannot shows that a row had been changed behind the product's back before it was sealed (STATE_UNEXPLAINED).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any, Final, Literal, NamedTuple

import msgspec
from psycopg import Connection

from memory_layer import canonical
from memory_layer.audit.entry import is_payload
from memory_layer.audit.states import (
    ARTIFACT_TYPES,
    NODE_TYPES,
    REMOVING_TYPES,
    Gap,
    Row,
    artifact_members,
    is_acceptance,
    next_artifact,
    next_node,
    node_members,
)
from memory_layer.audit.verdict import Finding
from memory_layer.errors import MemoryLayerError
from memory_layer.model import Node
from memory_layer.ops.tables.found import moment
from memory_layer.service.evidence import is_state, json_name
from memory_layer.sql import queries
from memory_layer.sql.columns import columns

_SQL = queries("audit")
_PAGE: Final = 1000  # rows held at a time
_MAX_FINDINGS: Final = 100  # of rows; the rest are counted

# Names in the format -> columns of the database, where they differ by more than their spelling.
_COLUMNS: Final = {
    "contentSha256": "content",
    "vector": "memory_vectors.vector_data",
    "contentType": "content_type",
    "sizeBytes": "size_bytes",
}


@dataclass(slots=True)
class Reconciled:
    """What the comparison came to. Beyond a number of findings they are only counted."""

    findings: list[Finding] = field(default_factory=list)
    unlisted: int = 0
    partial: int = 0  # rows of which a payload is missing

    def add(self, found: Iterable[Finding]) -> None:
        for finding in found:
            if len(self.findings) < _MAX_FINDINGS:
                self.findings.append(finding)
            else:
                self.unlisted += 1

    def not_checked(self) -> list[str]:
        if not self.partial:
            return []
        return [f"rows: in {self.partial} of them what only a payload said that is not there any more"]


class Kind(NamedTuple):
    """How rows of one table are compared: their queries, the entries that speak of them, and how both become a ``Row``."""

    name: Literal["node", "artifact"]
    types: frozenset[str]
    next: Callable[[Row | None, dict[str, Any], dict[str, Any] | None], Row | None]
    members: Callable[[int, Row], Row]
    live: Callable[[Sequence[Any]], Row]
    uncovered: Callable[[Sequence[Any], _Story], list[str]]  # columns that no state covers and that differ


@dataclass(slots=True)
class _Story:
    """What the entries about one node or artifact, read in order, say of its row."""

    row: Row | None = None  # as the payloads say; None where they do not say it any more
    seq: int | None = None  # of the entry that the row must agree with; None: there is none
    v: int = 0
    ts: str | None = None
    state: str | None = None
    salt: bytes | None = None
    gone: bool = False
    lost_track: bool = (
        False  # a payload is missing or does not explain its entry's state: ``row`` is None from there on
    )
    partial: bool = False  # a payload is missing
    forged: int | None = None  # entry whose payload is not the one that it commits to
    unexplained: int | None = None  # entry whose state does not follow from the payloads so far
    embedding: dict[str, Any] | None = None  # model and dimension of the vector that the caller gave last
    node: str | None = None  # that an artifact's entry names
    node_exists: bool = False
    verified: set[str] = field(default_factory=set)  # times at which an entry says that an artifact was found right


def reconcile(connection: Connection[Any], log: int, stop: Event, *, trusted: bool) -> Reconciled:
    """A finding for each row that is not what the entries of this log say, is not there, or has none, and for each state that its
    payloads do not explain. Entries of other logs say nothing.

    ``trusted``: the payloads are compared elsewhere with what their entries commit to. ``stop`` ends it after the current page.
    """
    result = Reconciled()
    for kind in (NODE, ARTIFACT):
        for row, story in _stories(connection, kind, log, stop, trusted):
            result.partial += story.partial
            result.add(_judge(kind, row, story))
        result.add(_lost(connection, kind.name, log))
    return result


def _stories(
    connection: Connection[Any], kind: Kind, log: int, stop: Event, trusted: bool
) -> Iterator[tuple[Sequence[Any], _Story]]:
    """Each row with what its entries say; a page of rows is held at a time, and one payload of each entry about them."""
    with connection.cursor(f"reconcile_{kind.name}s") as cursor:
        cursor.execute(_SQL[f"{kind.name}s"], binary=True)
        while not stop.is_set() and (page := cursor.fetchmany(_PAGE)):
            stories = [_Story() for _ in page]
            keys = {"log": log, "tenants": [row[0] for row in page], "ids": [row[1] for row in page]}
            with connection.cursor(f"reconcile_{kind.name}_entries") as entries:
                entries.itersize = _PAGE
                entries.execute(_SQL[f"{kind.name}_entries"], {**keys, "types": sorted(kind.types)}, binary=True)
                for place, entry, salt, payload, node_exists in entries:
                    story = stories[place - 1]
                    _take(kind, story, entry, salt, payload, trusted=trusted)
                    story.node_exists = bool(node_exists)
            yield from zip(page, stories, strict=True)


def _take(kind: Kind, story: _Story, data: bytes, salt: bytes | None, payload: bytes | None, *, trusted: bool) -> None:
    """Go on from one entry."""
    entry = _load(data)
    if not isinstance(entry, dict) or entry.get("outcome") != "ok":
        return  # no entry at all, which is a finding of the log, or one of what was refused
    type_, seq = entry["type"], entry["seq"]
    story.seq, story.v, story.ts, story.state, story.salt = seq, entry["v"], entry["ts"], entry["state"], salt
    story.node = entry["node"]
    story.gone = story.gone or type_ in REMOVING_TYPES
    recorded = None
    if payload is None:
        story.partial = story.partial or entry["payload"] is not None
    elif is_payload(entry["payload"], salt, payload):
        recorded = _load(payload)
    else:  # it proves nothing; the half that compares payloads reports it
        story.partial = True
        story.forged = seq if not trusted else story.forged
    if isinstance(recorded, dict):
        if isinstance(recorded.get("embedding"), dict):
            story.embedding = recorded["embedding"]
        if type_ == "memory.artifact.verified" and recorded.get("fault", "") is None:
            story.verified.add(entry["ts"])
    if is_whole(kind.name, recorded):
        # The log says all of the row anew. What an operator accepted, and why, stands in that entry.
        story.row, story.lost_track, story.partial, story.unexplained = None, False, False, None
    if not story.lost_track:
        _fold(kind, story, entry, recorded)


def is_whole(kind: Literal["node", "artifact"], recorded: Any) -> bool:
    """Whether a payload is that of an operator's act after which nothing before it needs to be known."""
    if not isinstance(recorded, dict):
        return False
    return is_acceptance(recorded) if kind == "node" else "artifactId" in recorded


def _fold(kind: Kind, story: _Story, entry: Row, recorded: Row | None) -> None:
    """What the row is after an entry, and whether the entry's state says the same."""
    seq, v, state = entry["seq"], entry["v"], entry["state"]
    try:
        story.row = kind.next(story.row, entry, recorded)
    except Gap:
        story.row, story.lost_track = None, True
        if recorded is not None and story.forged is None and not story.partial:
            story.forged = seq
        return
    if story.row is None or state is None:
        return
    if story.salt is None or not is_state(kind.members(v, _without_text(story.row)), v, story.salt, state):
        story.unexplained, story.lost_track, story.row = seq, True, None


def _load(data: bytes | str) -> Any:
    """A JSON value; None for what is none."""
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:
        pass
    try:  # a number that no machine number holds
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _without_text(row: Row) -> Row:
    return {name: value for name, value in row.items() if name != "content"}


def _judge(kind: Kind, row: Sequence[Any], story: _Story) -> Iterator[Finding]:
    """Names columns, never values: those may be personal data."""
    what = f"{kind.name} {row[1]}"
    if story.seq is None:
        yield _mismatch(None, "an entry for every row", f"{what} has none")
        return
    if story.unexplained is not None:
        yield Finding(
            "STATE_UNEXPLAINED",
            f"a state of {what} that follows from the payloads of its entries",
            "another: the row was changed without an entry before this one was sealed",
            seq=story.unexplained,
        )
    if story.gone:
        yield _mismatch(story.seq, f"no {what}: entry {story.seq} removed it", "a row")
        return
    if story.forged is not None:
        expected = f"the payload that the entry about {what} commits to"
        yield Finding("PAYLOAD_COMMITMENT_MISMATCH", expected, "another", seq=story.forged)
    if differs := _differences(kind, row, story):
        found = f"changed without an entry: {', '.join(differs)}"
        yield _mismatch(story.seq, f"{what} as entry {story.seq} left it", found)


def _differences(kind: Kind, row: Sequence[Any], story: _Story) -> list[str]:
    """Names of the columns that are not what the entries say."""
    live, differs = kind.live(row), kind.uncovered(row, story)
    if story.state is not None and story.salt is not None:
        as_sealed = is_state(kind.members(story.v, live), story.v, story.salt, story.state)
    else:
        as_sealed = story.state is None or (story.salt is None and story.partial)
    if story.row is not None:
        differs += [_column(name) for name in live if not _same(live[name], story.row.get(name))]
    elif "updatedAt" in live and live["updatedAt"] != story.ts:
        differs.append("updated_at")
    if not as_sealed and not differs:
        differs.append("a column that its state commits to")
    return list(dict.fromkeys(differs))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, str) or one is None:
        return bool(one == other)
    try:  # Python takes 1 for true
        return canonical.dumps(one) == canonical.dumps(other)
    except (MemoryLayerError, ValueError, RecursionError):
        return False


def _column(name: str) -> str:
    return _COLUMNS.get(name) or "".join(f"_{c.lower()}" if c.isupper() else c for c in name)


def _live_node(row: Sequence[Any]) -> Row:
    """A row of the query ``nodes``."""
    live = {name: value if read is None else read(value) for (name, read), value in zip(_NODE, row, strict=False)}
    return live | {"contentSha256": row[_CONTENT], "vector": _vector_sha256(row[_VECTOR])}


def _vector_sha256(vector: str | None) -> str | None:
    """Of a vector's bytes, which are stored in base64; None where there is no vector. What is no base64 has no hash that fits."""
    if vector is None:
        return None
    try:  # convert takes base64 for bytes, four times as fast as the standard library
        return hashlib.sha256(msgspec.convert(vector, bytes)).hexdigest()
    except msgspec.ValidationError:
        return "no base64"


def _vector_differences(row: Sequence[Any], story: _Story) -> list[str]:
    """The columns of the vector that the caller gave, which the node's state names by its hash alone."""
    vector, model, dimension, claimed = row[_VECTOR : _VECTOR + 4]
    if vector is None:
        return []
    facts = story.embedding or {}
    checks = (
        ("memory_vectors.embedding_model", not facts or facts.get("model") == model),
        ("memory_vectors.dimension", not facts or facts.get("dimension") == dimension),
        ("memory_vectors.metadata", claimed is None or claimed == _vector_sha256(vector)),
    )
    return [name for name, right in checks if not right]


def _live_artifact(row: Sequence[Any]) -> Row:
    """Positions are those of the query ``artifacts``."""
    (
        tenant,
        id_,
        _,
        name,
        url,
        key,
        version,
        sha256,
        size,
        type_,
        manifest,
        metadata,
        creator,
        created,
        retain,
        fault,
        *_,
    ) = row
    return {
        "id": id_,
        "tenant": tenant,
        "name": name,
        "url": url,
        "objectKey": key,
        "versionId": version,
        "sha256": sha256,
        "sizeBytes": size,
        "contentType": type_,
        "manifestSignatureId": manifest,
        "metadata": _load(metadata),
        "createdBy": creator,
        "createdAt": moment(created),
        "retainUntil": moment(retain),
        "fault": fault,
    }


def _uncovered_of_artifact(row: Sequence[Any], story: _Story) -> list[str]:
    """What no state of an artifact covers: whose it is, its hold, which is its node's, and when it was last found right."""
    node, held, verified, node_held, checked = row[2], *row[16:20]
    differs = []
    if node != story.node and (node is not None or story.node_exists):
        differs.append("memory_node_id")
    if held != bool(node_held):
        differs.append("legal_hold")
    if verified is not None and not checked and moment(verified) not in story.verified:
        differs.append("verified_at")
    if not row[4].endswith(f"/{row[5]}"):
        differs.append("object_key")
    return differs


NODE: Final = Kind("node", frozenset(NODE_TYPES), next_node, node_members, _live_node, _vector_differences)
ARTIFACT: Final = Kind(
    "artifact",
    frozenset(ARTIFACT_TYPES),
    next_artifact,
    lambda _v, row: artifact_members(row),
    _live_artifact,
    _uncovered_of_artifact,
)


def _lost(connection: Connection[Any], kind: Literal["node", "artifact"], log: int) -> Iterator[Finding]:
    with connection.cursor(f"lost_{kind}s") as cursor:
        cursor.execute(_SQL[f"lost_{kind}s"], {"log": log})
        for seq, id_ in cursor:
            yield _mismatch(seq, f"{kind} {id_}, created by entry {seq}", "no such row")


def _mismatch(seq: int | None, expected: str, found: str) -> Finding:
    return Finding("STATE_RECONCILE_MISMATCH", expected, found, seq=seq)


# How the values of a column are read that the query gives as text.
_READ: Final[dict[str, Callable[[Any], Any]]] = {"timestamptz": moment}
_NODE: Final = tuple(
    (json_name(column.name), _load if column.cast == "::jsonb" else _READ.get(column.array))
    for column in columns(Node)
    if column.name != "content"
)
# Where the query ``nodes`` has what is no column of a node: the text's hash, the vector that its caller gave.
_CONTENT, _VECTOR = len(_NODE), len(_NODE) + 1

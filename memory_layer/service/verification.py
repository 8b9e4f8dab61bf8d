"""Whether a row is what its last sealed entry says: checked before a row is served, and before a write builds upon it.

Pure but for the batches that have to be read (``sealed_by``). A row that fails is neither served nor changed: TAMPERED.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import msgspec

from memory_layer.audit.states import ARTIFACT_TYPES, NODE_TYPES, REMOVING_TYPES, artifact_members, node_members
from memory_layer.errors import Tampered
from memory_layer.model import Artifact, Node
from memory_layer.service.evidence import artifact_row, is_state, node_row
from memory_layer.service.sealed import SealedBatches
from memory_layer.stores.pipeline import Call, statements
from memory_layer.telemetry import metrics
from memory_layer.telemetry.logs import get_logger

SQL: Final = statements("evidence")
ReadBatches = Callable[[Call], Awaitable[list[dict[str, Any]]]]

log = get_logger("memory_layer.evidence")


class LastEntry(NamedTuple):
    """The last entry about a row; ``salt`` None: its payload is missing."""

    seq: int
    batch: int
    entry: bytes
    salt: bytes | None


class _Members(msgspec.Struct):
    """What is read of an entry."""

    v: int
    ts: str
    type: str
    tenant: str | None
    node: str | None
    artifact: str | None
    outcome: str
    state: str | None


_DECODER: Final = msgspec.json.Decoder(_Members)


class Verdicts:
    """Nodes that this process has found to be what the log says, for a minute: until then the same version of the row need not be
    held against the log again.

    A row's version is known by its ``mark`` (xmin and ctid), which every statement that touches the row changes: a write of the
    product's, which comes with an entry, and a write of anybody else's. ``worth``: how many of the rows that were looked for lately
    were there, 0 to 1; where few are, it is cheaper to read the evidence along with every row.
    """

    def __init__(self, max_age: float = 60.0, max_rows: int = 100_000) -> None:
        self._max_age, self._max_rows = max_age, max_rows
        self._held: dict[uuid.UUID, tuple[str, str, float]] = {}
        self.worth = 0.0

    def holds(self, id: uuid.UUID, tenant: str, mark: str | None) -> bool:
        """Whether this version of a node was found right."""
        held = self._held.get(id)
        return held is not None and held[:2] == (tenant, mark) and time.monotonic() - held[2] < self._max_age

    def knows(self, id: uuid.UUID) -> bool:
        """Whether some version was."""
        held = self._held.get(id)
        return held is not None and time.monotonic() - held[2] < self._max_age

    def keep(self, id: uuid.UUID, tenant: str, mark: str) -> None:
        if len(self._held) >= self._max_rows:
            self._held.clear()
        self._held[id] = (tenant, mark, time.monotonic())

    def count(self, held: int, asked: int) -> None:
        """``held`` of ``asked`` rows were there."""
        if asked:
            self.worth += 0.1 * (held / asked - self.worth)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a row is not believed. It names no value: those may be personal data."""

    kind: Literal["node", "artifact"]
    tenant: str
    id: uuid.UUID
    seq: int | None  # of the last entry about it
    reason: str


def last_entry(row: Mapping[str, Any]) -> LastEntry:
    """Of a row of the queries ``last_node_entries`` and ``last_artifact_entries``."""
    salt = row["salt"]
    return LastEntry(row["seq"], row["batch_no"], bytes(row["entry"]), None if salt is None else bytes(salt))


async def sealed_by(sealed: SealedBatches, entries: Iterable[LastEntry], read: ReadBatches) -> None:
    """Check the batches of these entries that were not checked yet; ``read`` runs one statement."""
    missing = sealed.missing(entry.batch for entry in entries)
    if not missing:
        return
    for row in await read((SQL["batches"], {"origin": sealed.origin, "batches": missing})):
        sealed.check(row["batch_no"], [bytes(entry) for entry in row["entries"]], row["seal_text"], row["signature"])


def judge_node(
    tenant: str,
    id: uuid.UUID,
    node: Node | None,
    vector: str | None,
    last: LastEntry | None,
    sealed: SealedBatches,
    content_sha256: str | None = None,
) -> Problem | None:
    """What is wrong with a node as it was read together with its last entry; None where they agree, also that there is none.

    ``vector``: SHA-256 of the one that its caller gave last. ``content_sha256``: of its text, where it was read without.
    """

    def problem(reason: str) -> Problem:
        return Problem("node", tenant, id, None if last is None else last.seq, reason)

    if last is None:
        return None if node is None else problem("no entry of the log is about it")
    entry = _entry(last, sealed)
    if entry is None or entry.type not in NODE_TYPES or (entry.tenant, entry.node) != (tenant, str(id)):
        return problem("its last entry is not one that was sealed")
    if entry.type in REMOVING_TYPES:
        return None if node is None else problem("it is there, although its last entry removed it")
    if node is None:
        return problem("its row is gone, although no entry removed it")
    row = node_row(node, vector)
    if content_sha256 is not None:
        row["contentSha256"] = content_sha256
    if row["updatedAt"] != entry.ts or not _fits(node_members(entry.v, row), entry, last):
        return problem("its row is not what its last entry says")
    return None


def judge_artifact(
    tenant: str, id: uuid.UUID, artifact: Artifact | None, last: LastEntry | None, sealed: SealedBatches
) -> Problem | None:
    """The same for an artifact. An entry of version 1 says nothing that its row could be held against."""

    def problem(reason: str) -> Problem:
        return Problem("artifact", tenant, id, None if last is None else last.seq, reason)

    if last is None:
        return None if artifact is None else problem("no entry of the log is about it")
    entry = _entry(last, sealed)
    if entry is None or entry.type not in ARTIFACT_TYPES or (entry.tenant, entry.artifact) != (tenant, str(id)):
        return problem("its last entry is not one that was sealed")
    if entry.type in REMOVING_TYPES:
        return None if artifact is None else problem("it is there, although its last entry removed it")
    if artifact is None:
        return problem("its row is gone, although no entry removed it")
    node = None if artifact.memory_node_id is None else str(artifact.memory_node_id)
    if node is not None and node != entry.node:  # a node that is purged takes the link along
        return problem("it belongs to another node than its last entry says")
    if entry.state is not None and not _fits(artifact_members(artifact_row(artifact)), entry, last):
        return problem("its row is not what its last entry says")
    return None


def node_named(last: LastEntry) -> uuid.UUID | None:
    """The node that an entry names; None too where it is no entry, which ``judge_artifact`` finds."""
    try:
        node = _DECODER.decode(last.entry).node
        return None if node is None else uuid.UUID(node)
    except (msgspec.MsgspecError, ValueError):
        return None


def misplaced(
    artifact: Artifact,
    node: uuid.UUID | None,
    holds: Mapping[tuple[str, uuid.UUID | None], bool],
    last: LastEntry | None,
) -> Problem | None:
    """What no state of an artifact covers: its node, and its hold, which is its node's."""
    seq = None if last is None else last.seq
    held = holds.get((artifact.tenant, node))
    if held is not None and artifact.memory_node_id != node:
        return Problem("artifact", artifact.tenant, artifact.id, seq, "it was detached from its node")
    if artifact.legal_hold != bool(held):
        return Problem("artifact", artifact.tenant, artifact.id, seq, "its hold is not that of its node")
    return None


def _entry(last: LastEntry, sealed: SealedBatches) -> _Members | None:
    if not sealed.covers(last.batch, last.seq, last.entry):
        return None
    try:
        entry = _DECODER.decode(last.entry)
    except msgspec.MsgspecError:
        return None
    return entry if entry.outcome == "ok" else None


def _fits(members: dict[str, Any], entry: _Members, last: LastEntry) -> bool:
    return entry.state is not None and last.salt is not None and is_state(members, entry.v, last.salt, entry.state)


def refusal(problem: Problem) -> Tampered:
    """The error for a caller. Raises nothing; counts nothing."""
    seq = "" if problem.seq is None else f" (entry {problem.seq})"
    return Tampered(
        f"{problem.kind.capitalize()} {problem.id} was changed behind the Memory Layer's back: {problem.reason}{seq}. Nothing of it is "
        f"shown and nothing is written upon it. An operator can look at it with `memoryctl tamper show {problem.id}`."
    )


def report(problems: Sequence[Problem], door: str) -> None:
    """Count and log them; ``door``: where they were met (get, list, search, write, ...)."""
    for problem in problems:
        metrics.tampered_rows.labels(door, problem.kind).inc()
        log.error(
            "TAMPERED: a row is not what its last entry says",
            kind=problem.kind,
            id=problem.id,
            tenant=problem.tenant,
            door=door,
            reason=problem.reason,
            seq=problem.seq,
        )

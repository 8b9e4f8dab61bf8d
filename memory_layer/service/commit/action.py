"""What a write is to the commit layer: an action that says all of it itself, who asks for it, and the effect of deciding it.

The layer knows no action. Each says what it touches, what it must see, whether a freeze refuses it, and what it does to the rows it meets
(``service/actions/``). Deciding is pure: it runs under the log lock, and again when a batch is tried again.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self, TypeAlias

from memory_layer.errors import MemoryLayerError, NotFound, PreconditionFailed
from memory_layer.model import SYSTEM_TENANT, Caller, Node
from memory_layer.service.evidence import Evidence
from memory_layer.service.verification import Problem
from memory_layer.stores.batch_reads import Known, Wants
from memory_layer.stores.batch_rows import RowOp, Verb
from memory_layer.stores.log_writer import SealKey

Touched: TypeAlias = tuple[str, str, object]  # tenant, kind, id


@dataclass(frozen=True, slots=True)
class Situation:
    """What an action is decided on: the rows as the changes before it in the batch left them, and the batch's time.

    ``seq``: of the action's own entry. ``tampered``: rows that are not what the log says of them.
    """

    caller: Caller
    known: Known
    now: dt.datetime
    seq: int
    tampered: Mapping[Touched, Problem]

    @property
    def tenant(self) -> str:
        return self.caller.tenant

    def live_node(self, node_id: uuid.UUID, version: int | None = None, *, expired: bool = False) -> Node:
        """The node if it is there to be changed, and has this version; with ``expired`` also one whose time to live is over. Raises
        NotFound and PreconditionFailed."""
        node = self.known.nodes.get((self.tenant, node_id))
        if node is None or node.deleted_at is not None:
            raise NotFound(f"There is no node {node_id}.")
        over = node.expires_at is not None and node.expires_at <= self.now and not node.legal_hold
        if over and not expired:
            raise NotFound(f"There is no node {node_id}.")
        if version is not None and node.version != version:
            raise PreconditionFailed(
                f"Node {node_id} has version {node.version}, not {version}. Read it again and repeat the change on that."
            )
        return node


@dataclass(slots=True)
class Effect:
    """What a change does once decided: one entry of the log (none without ``event_type``), the rows that are written with it, and what
    its caller is answered. ``payload`` as bytes is stored as it is; ``evidence`` stands for payload and state."""

    event_type: str | None
    answer: dict[str, Any]
    payload: dict[str, Any] | bytes
    node: uuid.UUID | None = None
    version: int | None = None
    artifact: uuid.UUID | None = None
    state: dict[str, Any] | None = None
    rows: list[RowOp] = field(default_factory=list)
    also: list[Effect] = field(default_factory=list)  # what the same change does besides, each with an entry of its own
    manifest_signature_id: str | None = None  # the entry's, where it is not the caller's
    new_key: SealKey | None = None  # seals from the next batch on
    denied: bool = False
    evidence: Evidence | None = None
    entry_id: uuid.UUID | None = None  # of its entry, where a row names it

    def insert(self, *records: Any) -> None:
        self.rows += [RowOp(Verb.INSERT, record) for record in records]

    def update(self, *records: Any) -> None:
        self.rows += [RowOp(Verb.UPDATE, record) for record in records]

    def put(self, *records: Any) -> None:
        self.rows += [RowOp(Verb.PUT, record) for record in records]

    def remove(self, *records: Any) -> None:
        self.rows += [RowOp(Verb.REMOVE, record) for record in records]


class Action:
    """A kind of write. A new one is a subclass beside the others of its domain, with ``decide`` and whatever below does not fit it."""

    __slots__ = ()

    # Whether a freeze refuses it. What the installation writes of itself goes on, the end of the freeze among it.
    freezes: ClassVar[bool] = True
    # Whether it has its batch to itself: what comes after it would be sealed, or decided, otherwise.
    alone: ClassVar[bool] = False

    @property
    def weight(self) -> int:
        """How many entries it makes at the most."""
        return 1

    def touches(self, tenant: str) -> list[Touched]:
        """What at most one change of a batch may touch. A node or an artifact that is named here is held against the log first."""
        return []

    def reads(self, tenant: str, wants: Wants) -> None:
        """Add what it must see to what its batch reads."""

    def resolves(self, tenant: str) -> Touched | None:
        """The row that it may write although it is not what the log says."""
        return None

    def parts(self) -> Sequence[Action | MemoryLayerError] | None:
        """Of a bulk request: its actions, each of which fails alone, or why one is refused already. None: it is one action."""
        return None

    def by(self, actor: uuid.UUID) -> Self:
        """The same action where it names who does it: another process gave the caller's service its id meanwhile."""
        return self

    def decide(self, at: Situation) -> Effect:
        """Its effect on the rows as they are. Raises the caller's error; then nothing of it is written."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Idempotency:
    key: str
    request_hash: bytes


@dataclass(frozen=True, slots=True)
class Change:
    """One write: who, what, and under which idempotency key."""

    caller: Caller
    action: Action
    idempotency: Idempotency | None = None
    size: int = 0  # bytes of the request: what a batch and the queue are bounded by, besides their number

    def touches(self) -> list[Touched]:
        """What at most one change of a batch may touch."""
        caller = self.caller
        keys = self.action.touches(caller.tenant)
        if self.idempotency is not None:
            keys.append((caller.tenant, f"key {caller.actor}", self.idempotency.key))
        if caller.draft:  # two drafts of one service in a batch would each bring an id of its own
            keys.append((caller.home, "principal", caller.service))
        return keys

    def reads(self, wants: Wants) -> None:
        """Add what it must see to what its batch reads."""
        caller = self.caller
        wants.tenants.add(caller.tenant)
        if caller.draft:
            wants.tenants.add(SYSTEM_TENANT)  # whose entry it is that says who the caller is
            wants.principals.add((caller.home, caller.service))
        self.action.reads(caller.tenant, wants)
        if self.idempotency is not None:
            wants.idempotency.append((caller.tenant, caller.actor, self.idempotency.key))

    def resolved(self, known: Known) -> Change:
        """The same change, by the id that its service has in the log, where another process gave it one meanwhile."""
        caller = self.caller
        row = known.principals.get((caller.home, caller.service)) if caller.draft else None
        return self if row is None else self.by(row.id)

    def by(self, actor: uuid.UUID) -> Change:
        """The same change by the id that its caller's service has in the log."""
        return replace(self, caller=replace(self.caller, actor=actor, draft=False), action=self.action.by(actor))

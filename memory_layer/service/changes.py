"""What a write is, as data: the actions, what each touches and must see, and the effect that deciding makes of it.

``decide.py`` turns (action, rows as they are) into an Effect under the log lock; ``transact.py`` makes effects durable.
"""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from memory_layer.errors import MemoryLayerError
from memory_layer.model import Artifact, Caller, Embedding, Namespace, Node, VectorRow
from memory_layer.stores.log_writer import SettledJob, Wants


@dataclass(frozen=True, slots=True)
class Space:
    """The embedding space that text goes to: the embedder's model and dimension; None when there is no embedder."""

    provider: str
    model: str | None
    dimension: int | None


class Unset:
    """Marks a field that a patch leaves alone (None means: make it null)."""


UNSET = Unset()


@dataclass(frozen=True, slots=True)
class Evidence:
    """What an entry commits to, worked out: the payload's bytes with their salt, and the two commitments (64 hex digits)."""

    salt: bytes
    payload: bytes
    commitment: str
    state: str | None


@dataclass(slots=True)
class CreateNode:
    id: uuid.UUID
    owner: str
    namespace: str
    embedding_id: str | None
    content: str | None
    metadata: dict[str, Any]
    pii_flags: dict[str, Any]
    subjects: list[str]
    legal_hold: bool
    ttl_seconds: int | None
    occurred_at: dt.datetime | None
    embedding: Embedding | None
    space: Space
    evidence: Evidence | None = None  # where it can be known before the batch's time is


@dataclass(frozen=True, slots=True)
class CreateNodes:
    """A bulk request: each node, or why it is refused already, in the order of the request."""

    nodes: list[CreateNode | MemoryLayerError]


@dataclass(frozen=True, slots=True)
class PatchNode:
    id: uuid.UUID
    expected_version: int | None
    content: str | Unset | None
    metadata: dict[str, Any] | Unset  # merged: a null value removes its key (RFC 7396 at the top level and below)
    pii_flags: dict[str, Any] | Unset
    ttl_seconds: int | Unset | None
    embedding: Embedding | Unset
    space: Space


@dataclass(frozen=True, slots=True)
class DeleteNode:
    id: uuid.UUID
    expected_version: int | None


@dataclass(frozen=True, slots=True)
class ExpireNode:
    """Delete a node whose time to live is over; NotFound when by now it is held, extended or gone."""

    id: uuid.UUID


@dataclass(frozen=True, slots=True)
class SetHold:
    id: uuid.UUID
    legal_hold: bool
    reason: str
    case_id: str | None


@dataclass(frozen=True, slots=True)
class SettleJob:
    """Stop or repeat the indexing of a node's version; Conflict when the job is in no state for that."""

    node: uuid.UUID
    job: uuid.UUID
    verb: Literal["cancel", "retry"]


@dataclass(frozen=True, slots=True)
class AddArtifact:
    artifact: Artifact


@dataclass(frozen=True, slots=True)
class Record:
    """An entry that changes no row of a tenant: a heartbeat, an operator's run. ``payload`` is any JSON object."""

    event_type: str
    payload: dict[str, Any]
    denied: bool = False


@dataclass(frozen=True, slots=True)
class ActivateKey:
    """From the next batch on the log is sealed by this key; sealed itself by the key before."""

    key_id: str
    algorithm: str
    public_key: bytes  # DER SubjectPublicKeyInfo


@dataclass(frozen=True, slots=True)
class RetireKey:
    """The key before the one that seals now may seal nothing after ``to_seq``."""

    key_id: str
    to_seq: int


Action: TypeAlias = (
    CreateNode
    | CreateNodes
    | PatchNode
    | DeleteNode
    | ExpireNode
    | SetHold
    | SettleJob
    | AddArtifact
    | Record
    | ActivateKey
    | RetireKey
)


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

    @property
    def weight(self) -> int:
        """How many entries it makes at the most."""
        return len(self.action.nodes) if isinstance(self.action, CreateNodes) else 1

    @property
    def alone(self) -> bool:
        """Whether it must end its batch: what comes after it is sealed by another key."""
        return isinstance(self.action, ActivateKey)


@dataclass(slots=True)
class Effect:
    """What a change does once decided. ``payload`` as bytes is stored as it is; ``evidence`` stands for payload and state."""

    event_type: str
    answer: dict[str, Any]
    payload: dict[str, Any] | bytes
    node: uuid.UUID | None = None
    version: int | None = None
    artifact: uuid.UUID | None = None
    state: dict[str, Any] | None = None
    new_node: Node | None = None
    changed_node: Node | None = None
    vectors: list[VectorRow] = field(default_factory=list)
    job: SettledJob | None = None
    namespace: Namespace | None = None
    new_artifact: Artifact | None = None
    new_key: ActivateKey | None = None
    denied: bool = False
    evidence: Evidence | None = None


def touches(change: Change) -> list[tuple[str, str, object]]:
    """What at most one change of a batch may touch."""
    tenant, action = change.caller.tenant, change.action
    keys: list[tuple[str, str, object]] = []
    match action:
        case CreateNode():
            if action.embedding_id is not None:
                keys.append((tenant, "embedding", action.embedding_id))
        case CreateNodes():
            keys.extend((tenant, "embedding", new.embedding_id) for new in _embedded(action))
        case PatchNode() | DeleteNode() | ExpireNode() | SetHold():
            keys.append((tenant, "node", action.id))
        case SettleJob():
            keys.append((tenant, "node", action.node))
        case AddArtifact():
            if action.artifact.memory_node_id is not None:
                keys.append((tenant, "node", action.artifact.memory_node_id))
        case ActivateKey() | RetireKey():
            keys.append((tenant, "log", "keys"))
        case Record():
            pass
    if change.idempotency is not None:
        keys.append((tenant, f"key {change.caller.actor}", change.idempotency.key))
    return keys


def want(change: Change, wants: Wants) -> None:
    """Add what this change must see to what its batch reads."""
    tenant, action = change.caller.tenant, change.action
    wants.tenants.add(tenant)
    match action:
        case CreateNode():
            if action.embedding_id is not None:
                wants.embedding_ids.append((tenant, action.embedding_id))
            wants.namespaces.add((tenant, action.namespace))
        case CreateNodes():
            wants.embedding_ids.extend({(tenant, str(new.embedding_id)) for new in _embedded(action)})
            wants.namespaces.update((tenant, n.namespace) for n in action.nodes if isinstance(n, CreateNode))
        case PatchNode() | DeleteNode() | ExpireNode() | SetHold():
            wants.nodes.append((tenant, action.id))
        case SettleJob():
            wants.nodes.append((tenant, action.node))
        case AddArtifact():
            if action.artifact.memory_node_id is not None:
                wants.nodes.append((tenant, action.artifact.memory_node_id))
    if change.idempotency is not None:
        wants.idempotency.append((tenant, change.caller.actor, change.idempotency.key))


def _embedded(action: CreateNodes) -> list[CreateNode]:
    return [new for new in action.nodes if isinstance(new, CreateNode) and new.embedding_id is not None]

"""What a write is, as data: the actions, what each touches and must see, and the effect that deciding makes of it.

``decide.py`` turns (action, rows as they are) into an Effect under the log lock; ``transact.py`` makes effects durable.
"""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from memory_layer.errors import MemoryLayerError
from memory_layer.model import SYSTEM_TENANT, Artifact, Caller, Embedding, Freeze, Namespace, Node, Principal, VectorRow
from memory_layer.stores.log_writer import Seen, SettledJob, Wants


@dataclass(frozen=True, slots=True)
class Space:
    """The embedding space that the text of a new namespace goes to: the embedder's model and dimension; None when there is none.

    ``also``: what this server can embed by besides.
    """

    provider: str
    model: str | None
    dimension: int | None
    also: tuple[tuple[str, int], ...] = ()

    def embeds(self, model: str | None, dimension: int | None) -> bool:
        """Whether this server can search by this model."""
        return (self.model, self.dimension) == (model, dimension) or (model, dimension) in self.also


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
    artifacts: list[Artifact] = field(default_factory=list)  # verified already; each with an entry of its own


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
    """``put_held``: the object store was told of a hold with the bytes."""

    artifact: Artifact
    put_held: bool = False


@dataclass(frozen=True, slots=True)
class ExtendRetention:
    """Keep an artifact longer. The object store has locked it so long by now: ``lock`` is what it said. Conflict where the row has
    a later date."""

    id: uuid.UUID
    until: dt.datetime
    lock: dict[str, Any]


@dataclass(frozen=True, slots=True)
class JudgeArtifact:
    """What a check of an artifact's bytes found. ``fault`` None: they are right."""

    id: uuid.UUID
    fault: str | None
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Said:
    """What the sealed entries say of a row, and what of it is known (``service/story.py``).

    ``seq``, ``version``: of the last entry, None where there is none. ``row``: as their payloads say, None where they say it no more
    or there is to be no row. ``gone``: the last entry removed it. ``held``: whether the node is under legal hold; None: not known.
    ``embedding``: model, dimension and sha256 of the vector that the caller gave last. ``node``: that an artifact belongs to.
    ``unexplained``: an entry whose state does not follow from the payloads.
    """

    seq: int | None = None
    version: int | None = None
    row: dict[str, Any] | None = None
    gone: bool = False
    held: bool | None = False
    embedding: dict[str, Any] | None = None
    node: uuid.UUID | None = None
    unexplained: int | None = None


@dataclass(frozen=True, slots=True)
class ResolveRow:
    """An operator's act upon a row that is not what the log says: put it back as ``said``, or take it as it is found.

    ``said`` was read before the log lock, and counts only if no entry came since. Conflict where the row is what the log says.
    """

    verb: Literal["restore", "accept"]
    kind: Literal["node", "artifact"]
    id: uuid.UUID
    reason: str
    said: Said
    nodes: tuple[uuid.UUID, ...] = ()  # that an artifact belongs to, by the log and by the row
    namespaces: tuple[str, ...] = ()  # of a node: the log's and the row's


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


@dataclass(frozen=True, slots=True)
class OpenGeneration:
    """From the next batch on a namespace is written to a second index, for another model."""

    namespace: str
    model: str
    dimension: int


@dataclass(frozen=True, slots=True)
class SwitchGeneration:
    """Let the generation beside the active one answer, and keep writing both. Refused while it lacks what the other can find.

    ``seen``: what it lacked when all of it was counted; only what may have changed since then is looked at under the log lock.
    ``leave_behind``: nodes that only their caller can give a vector do not count. ``force``: nothing does.
    """

    namespace: str
    to: str  # its index namespace
    seen: Seen
    leave_behind: bool = False
    force: bool = False


@dataclass(frozen=True, slots=True)
class EndGeneration:
    """Write the generation beside the active one no more; with ``dropped``, forget that there was one: its index is gone."""

    namespace: str
    beside: str  # its index namespace
    dropped: bool = False


@dataclass(frozen=True, slots=True)
class SetFreeze:
    """Stop all writes of tenants for a ``reason``, for so many seconds or until it is lifted; ``reason`` None lifts it."""

    reason: str | None
    seconds: int | None = None


@dataclass(frozen=True, slots=True)
class Introduce:
    """The caller's service gets its id in the log, if it has none yet; else nothing happens. The answer is that id."""


@dataclass(frozen=True, slots=True)
class AdoptPrincipals:
    """An entry for the principals from before they had entries, as they stand; none where there are none."""


Action: TypeAlias = (
    CreateNode
    | CreateNodes
    | PatchNode
    | DeleteNode
    | ExpireNode
    | SetHold
    | SettleJob
    | AddArtifact
    | ExtendRetention
    | JudgeArtifact
    | ResolveRow
    | Record
    | ActivateKey
    | RetireKey
    | OpenGeneration
    | SwitchGeneration
    | EndGeneration
    | SetFreeze
    | Introduce
    | AdoptPrincipals
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
        match self.action:
            case CreateNodes(nodes):
                return sum(1 + len(new.artifacts) if isinstance(new, CreateNode) else 1 for new in nodes)
            case CreateNode():
                return 1 + len(self.action.artifacts)
        return 1

    @property
    def freezes(self) -> bool:
        """Whether a freeze refuses it. What the installation writes of itself goes on, the end of the freeze among it."""
        return not isinstance(
            self.action,
            (Record, ActivateKey, RetireKey, SetFreeze, JudgeArtifact, Introduce, AdoptPrincipals, ResolveRow),
        )

    @property
    def resolves(self) -> tuple[str, str, object] | None:
        """The row that it may write although it is not what the log says."""
        match self.action:
            case ResolveRow(kind=kind, id=id_):
                return self.caller.tenant, kind, id_
        return None

    @property
    def alone(self) -> bool:
        """Whether it has its batch to itself: what comes after a change of key is sealed by another one, and what comes before a
        switch of generations would change the rows that it was allowed on."""
        return isinstance(self.action, (ActivateKey, SwitchGeneration))


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
    namespace: Namespace | None = None  # a new one
    changed_namespace: Namespace | None = None
    new_artifact: Artifact | None = None
    changed_artifact: Artifact | None = None
    put_artifact: Artifact | None = None  # all of its columns, whether there is a row or not
    removed: tuple[Literal["node", "artifact"], str, uuid.UUID] | None = None  # a row: its tenant and id
    held: tuple[uuid.UUID, bool] | None = None  # a node whose artifacts are held from now on, or no more
    also: list[Effect] = field(default_factory=list)  # what the same change does besides, each with an entry of its own
    manifest_signature_id: str | None = None  # the entry's, where it is not the caller's
    new_key: ActivateKey | None = None
    freeze: tuple[Freeze | None] | None = None
    new_principal: Principal | None = None
    new_tenant: str | None = None
    adopted: list[uuid.UUID] = field(default_factory=list)  # principals that have their entry with this one
    denied: bool = False
    evidence: Evidence | None = None


def touches(change: Change) -> list[tuple[str, str, object]]:
    """What at most one change of a batch may touch."""
    # Two drafts of one service in a batch would each bring an id of its own.
    caller = change.caller
    return [*_touched(change), *([(caller.home, "principal", caller.service)] if caller.draft else [])]


def _touched(change: Change) -> list[tuple[str, str, object]]:
    tenant, action = change.caller.tenant, change.action
    keys: list[tuple[str, str, object]] = []
    match action:
        case CreateNode():
            if action.embedding_id is not None:
                keys.append((tenant, "embedding", action.embedding_id))
        case CreateNodes():
            keys.extend((tenant, "embedding", new.embedding_id) for new in _embedded(action))
        case PatchNode(id=node) | DeleteNode(id=node) | ExpireNode(id=node) | SetHold(id=node) | SettleJob(node=node):
            keys.append((tenant, "node", node))
        case AddArtifact():
            if action.artifact.memory_node_id is not None:
                keys.append((tenant, "node", action.artifact.memory_node_id))
        case ExtendRetention() | JudgeArtifact():
            keys.append((tenant, "artifact", action.id))
        case ResolveRow():
            keys.append((tenant, action.kind, action.id))
            keys.extend((tenant, "node", node) for node in action.nodes)
        case ActivateKey() | RetireKey():
            keys.append((tenant, "log", "keys"))
        case OpenGeneration() | SwitchGeneration() | EndGeneration():
            keys.append((tenant, "namespace", action.namespace))
        case SetFreeze():
            keys.append((tenant, "log", "freeze"))
        case AdoptPrincipals():
            keys.append((tenant, "log", "principals"))
        case Record() | Introduce():
            pass
    if change.idempotency is not None:
        keys.append((tenant, f"key {change.caller.actor}", change.idempotency.key))
    return keys


def want(change: Change, wants: Wants) -> None:
    """Add what this change must see to what its batch reads."""
    caller = change.caller
    wants.tenants.add(caller.tenant)
    if caller.draft:
        wants.tenants.add(SYSTEM_TENANT)  # whose entry it is that says who the caller is
        wants.principals.add((caller.home, caller.service))
    wants.unbound = wants.unbound or isinstance(change.action, AdoptPrincipals)
    _want_rows(change, wants)


def _want_rows(change: Change, wants: Wants) -> None:
    tenant, action = change.caller.tenant, change.action
    match action:
        case CreateNode():
            if action.embedding_id is not None:
                wants.embedding_ids.append((tenant, action.embedding_id))
            wants.namespaces.add((tenant, action.namespace))
            wants.objects.extend(_objects(action))
        case CreateNodes():
            wants.embedding_ids.extend({(tenant, str(new.embedding_id)) for new in _embedded(action)})
            wants.namespaces.update((tenant, n.namespace) for n in action.nodes if isinstance(n, CreateNode))
            for new in action.nodes:
                if isinstance(new, CreateNode):
                    wants.objects.extend(_objects(new))
        case PatchNode() | DeleteNode() | ExpireNode() | SetHold():
            wants.nodes.append((tenant, action.id))
        case SettleJob():
            wants.nodes.append((tenant, action.node))
        case AddArtifact():
            if action.artifact.memory_node_id is not None:
                wants.nodes.append((tenant, action.artifact.memory_node_id))
            wants.objects.append((tenant, action.artifact.object_key, action.artifact.version_id))
        case ExtendRetention() | JudgeArtifact():
            wants.artifacts.append((tenant, action.id))
        case ResolveRow():
            _want_row(tenant, action, wants)
        case OpenGeneration() | EndGeneration() | SwitchGeneration():
            wants.namespaces.add((tenant, action.namespace))
            if isinstance(action, SwitchGeneration) and not action.force:
                wants.switch = (tenant, action.namespace, action.seen)
    if change.idempotency is not None:
        wants.idempotency.append((tenant, change.caller.actor, change.idempotency.key))


def _want_row(tenant: str, action: ResolveRow, wants: Wants) -> None:
    (wants.nodes if action.kind == "node" else wants.artifacts).append((tenant, action.id))
    wants.nodes.extend((tenant, node) for node in action.nodes)
    wants.namespaces.update((tenant, name) for name in action.namespaces)
    if action.said.row is not None and action.said.row.get("embeddingId") is not None:
        wants.embedding_ids.append((tenant, action.said.row["embeddingId"]))


def _objects(action: CreateNode) -> list[tuple[str, str, str]]:
    return [(artifact.tenant, artifact.object_key, artifact.version_id) for artifact in action.artifacts]


def _embedded(action: CreateNodes) -> list[CreateNode]:
    return [new for new in action.nodes if isinstance(new, CreateNode) and new.embedding_id is not None]

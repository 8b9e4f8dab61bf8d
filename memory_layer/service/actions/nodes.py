"""What a write does to a node: created, changed, deleted, expired, held. Pure, decided under the log lock."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any, Final, Literal, Self

from memory_layer import aside, canonical
from memory_layer.audit.states import merge_patch
from memory_layer.errors import (
    Conflict,
    Forbidden,
    LegalHold,
    MemoryLayerError,
    NotFound,
    Problem,
    ValidationError,
)
from memory_layer.model import Artifact, Embedding, Node, format_time, format_time_or_none
from memory_layer.service.actions import outbox
from memory_layer.service.actions.artifacts import attach
from memory_layer.service.actions.outbox import EmbeddingSpace
from memory_layer.service.commit.action import Action, Effect, Situation, Touched
from memory_layer.service.evidence import NODE_NAMES, Evidence, evidence, json_name, node_columns, node_state, state_of
from memory_layer.stores.batch_reads import Wants
from memory_layer.stores.batch_rows import FileHold

MAX_METADATA: Final = 2 * 1024 * 1024  # bytes, as one request may bring

_ANY_TIME: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
# What a node is where its creation does not say it.
_EMPTY: Final[dict[str, Any]] = {
    "tenant": "",
    "embedding_id": None,
    "content": None,
    "legal_hold": False,
    "legal_hold_reason": None,
    "ttl_seconds": None,
    "expires_at": None,
    "occurred_at": None,
    "version": 1,
    "created_at": _ANY_TIME,
    "updated_at": _ANY_TIME,
}
# Members that a creation does not choose: the entry says them, or they come later.
_NOT_CHOSEN: Final = frozenset({"id", "tenant", "version", "createdAt", "updatedAt", "deletedAt", "legalHoldReason"})
_CHOSEN: Final = tuple(name for name in NODE_NAMES if name not in _NOT_CHOSEN)
_chosen: Final = itemgetter(*_CHOSEN)


def draft(**columns: Any) -> Node:
    """A node that is to be created: ``id``, ``owner``, ``namespace`` and whatever else its caller chooses."""
    return Node(**{**_EMPTY, "metadata": {}, "pii_flags": {}, "subjects": [], **columns})


@dataclass(slots=True)
class CreateNode(Action):
    """A new node. ``node`` is a draft: tenant, version and times come with the batch."""

    node: Node
    embedding: Embedding | None
    space: EmbeddingSpace
    evidence: Evidence | None = None  # where it can be known before the batch's time is
    artifacts: list[Artifact] = field(default_factory=list)  # verified already; each with an entry of its own
    bulk: bool = False  # with many others: its indexing waits behind single writes

    @property
    def id(self) -> uuid.UUID:
        return self.node.id

    @property
    def weight(self) -> int:
        return 1 + len(self.artifacts)

    def touches(self, tenant: str) -> list[Touched]:
        return [] if self.node.embedding_id is None else [(tenant, "embedding", self.node.embedding_id)]

    def reads(self, tenant: str, wants: Wants) -> None:
        if self.node.embedding_id is not None and (tenant, self.node.embedding_id) not in wants.embedding_ids:
            wants.embedding_ids.append((tenant, self.node.embedding_id))
        wants.namespaces.add((tenant, self.node.namespace))
        wants.objects += [(artifact.tenant, artifact.object_key, artifact.version_id) for artifact in self.artifacts]

    def by(self, actor: uuid.UUID) -> Self:
        return replace(self, artifacts=[replace(artifact, created_by=actor) for artifact in self.artifacts])

    def decide(self, at: Situation) -> Effect:
        known = at.known
        _require_free(self.node.embedding_id, None, at)
        node = _created(self.node, at.tenant, at.now)
        rows = outbox.created(node, self.embedding, self.space, known, bulk=self.bulk)
        effect = Effect("memory.node.created", {}, b"", node=node.id, version=1)
        effect.insert(node)
        effect.rows += rows.operations()
        effect.evidence = self.evidence or _evidence_of(node, self.embedding)
        effect.answer = node_answer(node, rows)
        effect.also = [attach(artifact, node, known, at.now) for artifact in self.artifacts]
        return effect


def precompute_evidence(action: CreateNode, tenant: str) -> None:
    """Work out the evidence of a creation before it waits for the log lock, where the batch's time is no part of it."""
    if action.node.ttl_seconds is None:
        action.evidence = _evidence_of(_created(action.node, tenant, _ANY_TIME), action.embedding)


def _created(node: Node, tenant: str, now: dt.datetime) -> Node:
    made = node.copy()
    made.tenant = tenant
    made.subjects = node.subjects or [node.owner]
    made.expires_at = expiry(node.ttl_seconds, now)
    made.created_at = made.updated_at = now
    return made


def chosen_members(members: Mapping[str, Any]) -> dict[str, Any]:
    """What the payload of a creation says of a node, its vector apart; ``members``: all of its columns."""
    return dict(zip(_CHOSEN, _chosen(members), strict=True))


def _evidence_of(node: Node, embedding: Embedding | None) -> Evidence:
    members = node_columns(node)
    payload = chosen_members(members) | {"embedding": embedding_facts(embedding)}
    return evidence(payload, state_of(members, None if embedding is None else embedding.sha256))


@dataclass(frozen=True, slots=True)
class CreateNodes(Action):
    """A bulk request: each node, or why it is refused already, in the order of the request."""

    nodes: list[CreateNode | MemoryLayerError]

    @property
    def weight(self) -> int:
        return sum(new.weight if isinstance(new, CreateNode) else 1 for new in self.nodes)

    def touches(self, tenant: str) -> list[Touched]:
        return [key for new in self.nodes if isinstance(new, CreateNode) for key in new.touches(tenant)]

    def reads(self, tenant: str, wants: Wants) -> None:
        for new in self.nodes:
            if isinstance(new, CreateNode):
                new.reads(tenant, wants)

    def parts(self) -> Sequence[Action | MemoryLayerError]:
        return self.nodes

    def by(self, actor: uuid.UUID) -> Self:
        return replace(self, nodes=[new.by(actor) if isinstance(new, CreateNode) else new for new in self.nodes])


@dataclass(frozen=True, slots=True)
class _OfNode(Action):
    """A write upon one node."""

    id: uuid.UUID

    def touches(self, tenant: str) -> list[Touched]:
        return [(tenant, "node", self.id)]

    def reads(self, tenant: str, wants: Wants) -> None:
        wants.nodes.append((tenant, self.id))


@dataclass(frozen=True, slots=True)
class PatchNode(_OfNode):
    """Change columns of a live node. ``changes``: new values by column; metadata are merged into what is there (RFC 7396: null removes a key)."""

    expected_version: int | None
    changes: dict[str, Any]
    embedding: Embedding | None
    space: EmbeddingSpace

    def touches(self, tenant: str) -> list[Touched]:
        taken = self.changes.get("embedding_id")
        return [*_OfNode.touches(self, tenant), *([] if taken is None else [(tenant, "embedding", taken)])]

    def reads(self, tenant: str, wants: Wants) -> None:
        _OfNode.reads(self, tenant, wants)
        taken = self.changes.get("embedding_id")
        if taken is not None and (tenant, taken) not in wants.embedding_ids:
            wants.embedding_ids.append((tenant, taken))

    def decide(self, at: Situation) -> Effect:
        old = at.live_node(self.id, self.expected_version)
        self._require_unheld(old, at.now)
        node = replace(old, version=old.version + 1, updated_at=at.now)
        payload: dict[str, Any] = {}
        for column, value in self.changes.items():
            payload |= _CHANGES.get(column, _replace)(node, column, value, at)
        if self.embedding is not None:
            payload["embedding"] = embedding_facts(self.embedding)
        effect = Effect("memory.node.updated", {}, payload, node=node.id, version=node.version)
        effect.update(node)
        rows = outbox.changed(node, old, self.embedding, self.space, at.known)
        effect.rows += rows.operations()
        effect.state = node_state(node, outbox.given(node, at.known, rows))
        effect.answer = node_answer(node, rows)
        return effect

    def _require_unheld(self, old: Node, now: dt.datetime) -> None:
        """A hold keeps what a node says as it is; raises LegalHold. It may still be kept longer than it was to be."""
        if not old.legal_hold:
            return
        named = [json_name(column) for column in self.changes if column != "ttl_seconds"]
        if self.embedding is not None:
            named.append("embedding")
        if "ttl_seconds" in self.changes:
            expires = expiry(self.changes["ttl_seconds"], now)
            if expires is not None and (old.expires_at is None or expires < old.expires_at):
                named.append("ttlSeconds (an earlier end)")
        if named:
            raise LegalHold(
                f"Node {old.id} is under legal hold{why_held(old)}: its {', '.join(named)} cannot be changed until the hold is released. "
                "A later end, or none (ttlSeconds null), can be set."
            )


def _replace(node: Node, column: str, value: Any, _: Situation) -> dict[str, Any]:
    setattr(node, column, value)
    return {json_name(column): value}


def _merge_metadata(node: Node, _: str, patch: dict[str, Any], __: Situation) -> dict[str, Any]:
    node.metadata = merge_patch(node.metadata, patch)
    if aside.has_too_many(node.metadata):
        raise ValidationError(
            f"The metadata of node {node.id} would hold more than {aside.MAX_VALUES} values. Remove keys, or use an artifact.",
            details=[Problem("metadata", "too many values after the merge")],
        )
    if len(canonical.dumps(node.metadata)) > MAX_METADATA:
        raise ValidationError(
            f"The metadata of node {node.id} would be larger than {MAX_METADATA} bytes. Remove keys, or use an artifact.",
            details=[Problem("metadata", "too large after the merge")],
        )
    # The patch, not its result: many small patches of large metadata stay small evidence.
    return {"metadataPatch": patch}


def _give(node: Node, column: str, owner: str, at: Situation) -> dict[str, Any]:
    """Another owner. Subjects that were the owner by default are the new one; those that were named stay."""
    by_default = node.subjects == [node.owner]
    said = _replace(node, column, owner, at)
    return said | _name_subjects(node, "subjects", [owner], at) if by_default else said


def _name_subjects(node: Node, column: str, subjects: list[str], at: Situation) -> dict[str, Any]:
    return _replace(node, column, subjects or [node.owner], at)


def _date(node: Node, column: str, moment: dt.datetime | None, at: Situation) -> dict[str, Any]:
    return _replace(node, column, moment, at) | {json_name(column): format_time_or_none(moment)}


def _replace_flags(node: Node, column: str, flags: dict[str, Any], at: Situation) -> dict[str, Any]:
    if node.pii_flags.get("containsPii") and "read:pii" not in at.caller.scopes:
        raise Forbidden(
            "The node's piiFlags hide something from this token (scope read:pii), so it may not change them."
        )
    return _replace(node, column, flags, at)


def _rename(node: Node, column: str, embedding_id: str | None, at: Situation) -> dict[str, Any]:
    _require_free(embedding_id, node.id, at)
    return _replace(node, column, embedding_id, at)


def _require_free(embedding_id: str | None, own: uuid.UUID | None, at: Situation) -> None:
    """Raises Conflict when another live node has this id."""
    holder = None if embedding_id is None else at.known.embedding_ids.get((at.tenant, embedding_id))
    if holder is not None and holder != own:
        raise Conflict(
            f"embeddingId is taken by node {holder} (which may have expired). PATCH or DELETE it, or choose another embeddingId."
        )


def _extend(node: Node, column: str, seconds: int | None, at: Situation) -> dict[str, Any]:
    node.expires_at = expiry(seconds, at.now)
    return _replace(node, column, seconds, at) | {"expiresAt": format_time_or_none(node.expires_at)}


def _move(node: Node, column: str, thread: str | None, at: Situation) -> dict[str, Any]:
    """Into another thread; out of any, it has no place either."""
    said = _replace(node, column, thread, at)
    return said | (_replace(node, "position", None, at) if thread is None and node.position is not None else {})


def _place(node: Node, column: str, position: int | None, at: Situation) -> dict[str, Any]:
    require_thread(node.thread, position)
    return _replace(node, column, position, at)


def require_thread(thread: str | None, position: int | None) -> None:
    """Raise ValidationError for a place in no thread."""
    if thread is None and position is not None:
        raise ValidationError(
            "position is a place in a thread, and the node has none. Send thread too, or no position.",
            details=[Problem("position", "without a thread")],
        )


# Columns whose change is more than a new value; each gives what the entry's payload says of it.
_CHANGES: Final[dict[str, Callable[[Node, str, Any, Situation], dict[str, Any]]]] = {
    "embedding_id": _rename,
    "metadata": _merge_metadata,
    "occurred_at": _date,
    "owner": _give,
    "pii_flags": _replace_flags,
    "subjects": _name_subjects,
    "ttl_seconds": _extend,
    "thread": _move,
    "position": _place,
}


@dataclass(frozen=True, slots=True)
class DeleteNode(_OfNode):
    """Soft-delete a node."""

    expected_version: int | None

    def decide(self, at: Situation) -> Effect:
        # Whatever its end: what has expired but is not purged can be deleted, which frees its embeddingId.
        old = at.live_node(self.id, self.expected_version, expired=True)
        if old.legal_hold:
            raise LegalHold(
                f"Node {old.id} is under legal hold{why_held(old)}: it cannot be deleted until the hold is released."
            )
        return _deleted(old, at, {})


@dataclass(frozen=True, slots=True)
class ExpireNode(_OfNode):
    """Delete a node whose time to live is over; NotFound when by now it is held, extended or gone."""

    def decide(self, at: Situation) -> Effect:
        old = at.live_node(self.id, expired=True)
        if old.legal_hold or old.expires_at is None or old.expires_at > at.now:
            raise NotFound(f"Node {old.id} is held or has not expired.")
        return _deleted(old, at, {"reason": "expired", "expiresAt": format_time(old.expires_at)})


def _deleted(old: Node, at: Situation, why: dict[str, Any]) -> Effect:
    """A node that is deleted, and its vectors on their way out of the index."""
    node = replace(old, version=old.version + 1, updated_at=at.now, deleted_at=at.now)
    payload = {**why, "deletedAt": format_time(at.now)}
    effect = Effect("memory.node.deleted", {}, payload, node=node.id, version=node.version)
    effect.update(node)
    rows = outbox.deleted(node, at.known)
    effect.rows += rows.operations()
    effect.state = node_state(node, outbox.given(node, at.known, rows))
    effect.answer = {"memoryNodeId": str(node.id), "version": node.version}
    return effect


@dataclass(frozen=True, slots=True)
class SetHold(_OfNode):
    """Put a node and its artifacts under legal hold, or release them."""

    legal_hold: bool
    reason: str
    case_id: str | None

    def decide(self, at: Situation) -> Effect:
        # What has expired, or was deleted, can still be put under hold until it is purged: a hold is often set over a deletion.
        old = at.known.nodes.get((at.tenant, self.id))
        if old is None:
            raise NotFound(f"There is no node {self.id}.")
        reason = self.reason if self.legal_hold else None
        node = replace(
            old, version=old.version + 1, updated_at=at.now, legal_hold=self.legal_hold, legal_hold_reason=reason
        )
        kind: Literal["set", "released"] = "set" if self.legal_hold else "released"
        effect = Effect(
            f"memory.legal_hold.{kind}",
            {"memoryNodeId": str(node.id), "version": node.version},
            {"legalHold": self.legal_hold, "reason": self.reason, "caseId": self.case_id},
            node=node.id,
            version=node.version,
        )
        effect.update(node, FileHold(node.tenant, node.id, node.legal_hold))
        rows = outbox.followed(node, at.known)
        effect.rows += rows.operations()
        effect.state = node_state(node, outbox.given(node, at.known, rows))
        return effect


def node_answer(node: Node, rows: outbox.IndexRows) -> dict[str, Any]:
    """What a write of a node is answered; ``rows``: what it leaves to be indexed."""
    return {
        "memoryNodeId": str(node.id),
        "version": node.version,
        "embeddingJobId": None if rows.active is None else str(rows.active.id),
    }


def why_held(held: Node) -> str:
    """The reason of a hold, to stand behind the word."""
    return f" ({held.legal_hold_reason})" if held.legal_hold_reason else ""


def embedding_facts(embedding: Embedding | None) -> dict[str, Any] | None:
    """What a payload says of a caller's vector."""
    if embedding is None:
        return None
    return {"model": embedding.model, "dimension": embedding.dimension, "sha256": embedding.sha256}


def expiry(ttl_seconds: int | None, now: dt.datetime) -> dt.datetime | None:
    """When a node's time is over that has so many seconds from now on."""
    return None if ttl_seconds is None else now + dt.timedelta(seconds=ttl_seconds)

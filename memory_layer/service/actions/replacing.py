"""What a write under the caller's own id does: a node that is new, or one that says something else from now on. Pure, decided under
the log lock."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field, replace
from typing import Final, Self

from memory_layer.errors import Conflict, Forbidden, LegalHold, PreconditionFailed, Problem, ValidationError
from memory_layer.model import Node
from memory_layer.service.actions import nodes, outbox
from memory_layer.service.actions.nodes import CreateNode, embedding_facts, node_answer, why_held
from memory_layer.service.commit.action import Action, Effect, Situation, Touched
from memory_layer.service.evidence import given_by, json_name, node_columns, node_state
from memory_layer.sql.columns import columns
from memory_layer.stores.batch_reads import Wants

# What a node keeps: who it is, where it is, whether it is held. All else is the request's.
_KEPT: Final = frozenset(
    {
        "tenant",
        "id",
        "namespace",
        "embedding_id",
        "legal_hold",
        "legal_hold_reason",
        "expires_at",
        "version",
        "created_at",
        "updated_at",
        "deleted_at",
    }
)
_CHOSEN: Final = tuple(column.name for column in columns(Node) if column.name not in _KEPT)


class Moved(Conflict):
    """Another node has the id, or none, than when it was looked up."""


class Lapsed(Conflict):
    """The time of the node that has the id is over, and it is not deleted yet."""


@dataclass(frozen=True, slots=True)
class PutNode(Action):
    """Create a node under its caller's own id, or replace the live one that has it.

    ``holder``: the node that had it when it was looked up. ``namespaced``: whether the request names the namespace. ``exists``: whether it
    demands that there is a node; ``expected_version``: and at which version.
    """

    new: CreateNode
    namespaced: bool
    exists: bool
    expected_version: int | None
    holder: uuid.UUID | None = field(default=None)

    @property
    def embedding_id(self) -> str:
        assert self.new.node.embedding_id is not None  # noqa: S101 - narrows the type
        return self.new.node.embedding_id

    def touches(self, tenant: str) -> list[Touched]:
        there: list[Touched] = [] if self.holder is None else [(tenant, "node", self.holder)]
        return self.new.touches(tenant) + there

    def reads(self, tenant: str, wants: Wants) -> None:
        self.new.reads(tenant, wants)
        if self.holder is not None:
            wants.nodes.append((tenant, self.holder))

    def by(self, actor: uuid.UUID) -> Self:
        return replace(self, new=self.new.by(actor))

    def decide(self, at: Situation) -> Effect:
        if at.known.embedding_ids.get((at.tenant, self.embedding_id)) != self.holder:
            raise Moved("Another request made, or deleted, the node with this embeddingId at the same moment.")
        if self.holder is None:
            if self.exists:
                raise PreconditionFailed("There is no node with this embeddingId, and If-Match demands one.")
            return self.new.decide(at)
        old = at.live_node(self.holder, expired=True)
        if old.expires_at is not None and old.expires_at <= at.now and not old.legal_hold:
            raise Lapsed("The node with this embeddingId has expired.")
        at.live_node(old.id, self.expected_version)
        self._require_replaceable(old, at)
        return self._replaced(old, at)

    def _require_replaceable(self, old: Node, at: Situation) -> None:
        new, embedding = self.new.node, self.new.embedding
        if old.legal_hold:
            raise LegalHold(
                f"Node {old.id} is under legal hold{why_held(old)}: it cannot be replaced until the hold is released."
            )
        if self.namespaced and new.namespace != old.namespace:
            raise Conflict(
                f"Node {old.id} is in namespace {old.namespace}, and nodes do not move. DELETE it first, or choose another embeddingId."
            )
        if old.pii_flags.get("containsPii") and old.pii_flags != new.pii_flags and "read:pii" not in at.caller.scopes:
            raise Forbidden(
                "The node's piiFlags hide something from this token (scope read:pii), so it may not change them: send the same ones."
            )
        if embedding is None and given_by(at.known.vectors.get((at.tenant, old.id), ())) is not None:
            raise ValidationError(
                f"The vector of node {old.id} is its caller's own, and would not be that of what replaces it. Send one along.",
                details=[Problem("embedding", "missing, and the node has a vector of its caller's")],
            )

    def _replaced(self, old: Node, at: Situation) -> Effect:
        new, embedding = self.new.node, self.new.embedding
        node = replace(
            old,
            **{name: getattr(new, name) for name in _CHOSEN},
            expires_at=nodes.expiry(new.ttl_seconds, at.now),
            version=old.version + 1,
            updated_at=at.now,
        )
        node.subjects = new.subjects or [node.owner]
        members = node_columns(node)
        payload = {json_name(name): members[json_name(name)] for name in (*_CHOSEN, "expires_at")}
        if embedding is not None:
            payload["embedding"] = embedding_facts(embedding)
        effect = Effect("memory.node.updated", {}, payload, node=node.id, version=node.version)
        effect.update(node)
        rows = outbox.changed(node, old, embedding, self.new.space, at.known)
        effect.rows += rows.operations()
        effect.state = node_state(node, outbox.given(node, at.known, rows))
        effect.answer = node_answer(node, rows)
        return effect

"""A new incarnation of the log: what its first entries say, and each row that is carried over from the log before. Pure, under the log lock.

Entries of another log are no evidence for a row. So each row that is what the old log says of it gets an entry of the new one that holds all of it.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

from memory_layer.errors import Conflict
from memory_layer.model import Artifact, Node
from memory_layer.service.actions.log import freeze_facts
from memory_layer.service.actions.nodes import chosen_members
from memory_layer.service.actions.principals import AdoptPrincipals
from memory_layer.service.actions.tampered import BY_ENTRY, whole_artifact
from memory_layer.service.commit.action import Action, Effect, Situation, Touched
from memory_layer.service.evidence import given_by, node_columns, node_row, node_state
from memory_layer.stores.batch_reads import Wants

OPENED: Final = "audit.incarnation.opened"
NAMESPACES: Final = "ops.namespaces-carried.succeeded"
NAMESPACES_AN_ENTRY: Final = 500


@dataclass(frozen=True, slots=True)
class OpenIncarnation(Action):
    """The first batch of a new log: where it comes from, who acts, the namespaces as they stand, and the freeze that is in force."""

    freezes: ClassVar[bool] = False
    alone: ClassVar[bool] = True

    payload: dict[str, Any]
    namespaces: list[dict[str, Any]]

    def touches(self, tenant: str) -> list[Touched]:
        return [(tenant, "log", "incarnation")]

    def reads(self, tenant: str, wants: Wants) -> None:
        wants.unbound = wants.lone_tenants = True

    def decide(self, at: Situation) -> Effect:
        effect = Effect(OPENED, {}, self.payload)
        if at.known.unbound:
            effect.also.append(AdoptPrincipals().decide(at))
        for first in range(0, len(self.namespaces), NAMESPACES_AN_ENTRY):
            page = self.namespaces[first : first + NAMESPACES_AN_ENTRY]
            effect.also.append(Effect(NAMESPACES, {}, {"namespaces": page}))
        if at.known.frozen is not None:
            effect.also.append(Effect("ops.writes-frozen.succeeded", {}, freeze_facts(at.known.frozen)))
        return effect


@dataclass(frozen=True, slots=True)
class CarryNode(Action):
    """A node as it was found right by the log before, with the hash of the vector that its caller gave. Its text, version and place in the
    index stay; Conflict where it is not the same any more, or was carried over already."""

    freezes: ClassVar[bool] = False

    node: Node
    vector: str | None
    reason: str

    def touches(self, tenant: str) -> list[Touched]:
        return [(tenant, "node", self.node.id)]

    def resolves(self, tenant: str) -> Touched:
        return tenant, "node", self.node.id

    def reads(self, tenant: str, wants: Wants) -> None:
        wants.nodes.append((tenant, self.node.id))

    def decide(self, at: Situation) -> Effect:
        key, known = (at.tenant, self.node.id), at.known
        vectors = known.vectors.get(key, [])
        if key in known.node_entries or known.nodes.get(key) != self.node or given_by(vectors) != self.vector:
            raise _changed("Node", self.node.id)
        node = replace(self.node, updated_at=at.now)
        row = node_row(node, self.vector) | {"content": node.content}
        facts = None
        if self.vector is not None:
            given = next(one for one in vectors if one.source == "caller" and one.vector is not None)
            facts = {"model": given.model, "dimension": given.dimension, "sha256": self.vector}
        payload = chosen_members(node_columns(node)) | {
            "reason": self.reason,
            "accepted": {name: value for name, value in row.items() if name not in BY_ENTRY},
            "embedding": facts,
        }
        state = node_state(node, self.vector)
        effect = Effect("memory.node.created", {}, payload, node=node.id, version=node.version, state=state)
        effect.update(node)
        return effect


@dataclass(frozen=True, slots=True)
class CarryArtifact(Action):
    """The same for an artifact. The old log says when its bytes were last found right; the next scan records it in the new one."""

    freezes: ClassVar[bool] = False

    artifact: Artifact
    reason: str

    def touches(self, tenant: str) -> list[Touched]:
        return [(tenant, "artifact", self.artifact.id)]

    def resolves(self, tenant: str) -> Touched:
        return tenant, "artifact", self.artifact.id

    def reads(self, tenant: str, wants: Wants) -> None:
        wants.artifacts.append((tenant, self.artifact.id))

    def decide(self, at: Situation) -> Effect:
        key = (at.tenant, self.artifact.id)
        if key in at.known.artifact_entries or at.known.artifacts.get(key) != self.artifact:
            raise _changed("Artifact", self.artifact.id)
        artifact = replace(self.artifact, verified_at=None)
        return whole_artifact("memory.artifact.created", artifact, self.reason, {"accepted": True}, {})


def _changed(what: str, id_: uuid.UUID) -> Conflict:
    return Conflict(f"{what} {id_} was changed while it was carried over, or is carried over already.")

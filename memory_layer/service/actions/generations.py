"""Which generation of its index answers for a namespace: opened, switched, ended. Pure, decided under the log lock.

One row of ``namespaces`` has both: the active generation, which answers, and the standby. Each reader sees the whole row, so a switch
is seen completely or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from memory_layer.errors import Conflict, NotFound, PolicyRefused, ValidationError
from memory_layer.model import Namespace
from memory_layer.service.commit.action import Action, Effect, Situation, Touched
from memory_layer.stores.batch_reads import Seen, Wants

# Cannot stand in the name of a namespace, as `@` can: no generation is ever called what a caller calls a namespace.
SEPARATOR = "#"


def facts(space: Namespace) -> dict[str, Any]:
    """A namespace's generations as the log and the commands describe them."""
    standby = None
    if space.standby is not None:
        standby = {
            "indexNamespace": space.standby,
            "model": space.standby_model,
            "dimension": space.standby_dimension,
            "state": space.standby_state,
        }
    active = {"indexNamespace": space.index_namespace, "model": space.model, "dimension": space.dimension}
    return {"tenant": space.tenant, "namespace": space.name, "active": active, "beside": standby}


@dataclass(frozen=True, slots=True)
class _OfNamespace(Action):
    """A write upon the generations of one namespace."""

    namespace: str

    def touches(self, tenant: str) -> list[Touched]:
        return [(tenant, "namespace", self.namespace)]

    def reads(self, tenant: str, wants: Wants) -> None:
        wants.namespaces.add((tenant, self.namespace))

    def _found(self, at: Situation) -> Namespace:
        space = at.known.namespaces.get((at.tenant, self.namespace))
        if space is None:
            raise NotFound(f"Tenant {at.tenant} has no namespace {self.namespace} with vectors in it.")
        return space


@dataclass(frozen=True, slots=True)
class OpenGeneration(_OfNamespace):
    """From the next batch on a namespace is written to a second index, for another model."""

    model: str
    dimension: int

    def decide(self, at: Situation) -> Effect:
        space = self._found(at)
        if space.standby is not None:
            raise Conflict(
                f"Namespace {space.name} has a generation beside the active one already: {space.standby} ({space.standby_model}, "
                f"{space.standby_dimension} dimensions, {space.standby_state}). End that first with `memoryctl vectors retire`."
            )
        if (self.model, self.dimension) == (space.model, space.dimension):
            raise ValidationError(
                f"Namespace {space.name} is embedded by {space.model} ({space.dimension} dimensions) already. Name another model; to "
                "rebuild its index from the stored vectors there is `memoryctl vectors reindex`."
            )
        number = space.generations + 1
        opened = replace(
            space,
            generations=number,
            standby=f"{space.name}{SEPARATOR}{number}",
            standby_model=self.model,
            standby_dimension=self.dimension,
            standby_state="building",
        )
        return _effect("opened", opened)


def refusal(space: Namespace, behind: int, given: int) -> PolicyRefused:
    """Why the standby generation may not answer yet."""
    return PolicyRefused(
        f"{behind + given} nodes of namespace {space.name} are found in {space.index_namespace} and would not be in {space.standby}: "
        f"{behind} are not indexed there yet, and {given} have no text, so only their caller can give their vector (PATCH with an "
        "embedding of that model), or they are left behind (--leave-behind). `memoryctl vectors generations` counts them; --force "
        "switches all the same."
    )


@dataclass(frozen=True, slots=True)
class SwitchGeneration(_OfNamespace):
    """Let the standby generation answer, and keep writing both. Refused while it lacks what the active one finds.

    ``seen``: what it lacked when all of it was counted; only what may have changed since then is looked at under the log lock.
    ``leave_behind``: nodes that only their caller can give a vector do not count. ``force``: nothing does.
    """

    # What comes before a switch in its batch would change the rows that it was allowed on.
    alone: ClassVar[bool] = True

    to: str  # its index namespace
    seen: Seen
    leave_behind: bool = False
    force: bool = False

    def reads(self, tenant: str, wants: Wants) -> None:
        wants.namespaces.add((tenant, self.namespace))
        if not self.force:
            wants.switch = (tenant, self.namespace, self.seen)

    def decide(self, at: Situation) -> Effect:
        space, lacks = self._found(at), at.known.lacks
        if space.written != self.to:
            raise Conflict(
                f"There is no generation {self.to} beside the active one of namespace {space.name}. Look again."
            )
        if lacks is not None and (lacks.behind or (lacks.given and not self.leave_behind)):
            raise refusal(space, lacks.behind, lacks.given)
        switched = replace(
            space,
            index_namespace=str(space.standby),
            model=str(space.standby_model),
            dimension=int(space.standby_dimension or 0),
            standby=space.index_namespace,
            standby_model=space.model,
            standby_dimension=space.dimension,
            standby_state="kept" if space.standby_state == "building" else "building",
        )
        return _effect("switched", switched, {"behind": self.seen.behind, "leftBehind": self.seen.given})


@dataclass(frozen=True, slots=True)
class EndGeneration(_OfNamespace):
    """Write the standby generation no more; with ``dropped``, forget that there was one: its index is gone."""

    standby: str  # its index namespace
    dropped: bool = False

    def decide(self, at: Situation) -> Effect:
        space = self._found(at)
        if space.standby != self.standby:
            raise Conflict(
                f"There is no generation {self.standby} beside the active one of namespace {space.name}. Look again."
            )
        if not self.dropped:
            return _effect("retired", replace(space, standby_state="retired"))
        if space.standby_state != "retired":
            raise Conflict(f"Generation {self.standby} of namespace {space.name} is still written.")
        gone = replace(space, standby=None, standby_model=None, standby_dimension=None, standby_state=None)
        return _effect("dropped", gone, {"dropped": self.standby})


def _effect(what: str, space: Namespace, more: dict[str, Any] | None = None) -> Effect:
    described = facts(space) | (more or {})
    effect = Effect(f"ops.generation-{what}.succeeded", described, described)
    effect.update(space)
    return effect

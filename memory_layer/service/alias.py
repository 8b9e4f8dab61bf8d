"""Which generation of its index answers for a namespace: what the changes of that do. Pure, like ``decide.py``, which calls it.

One row of ``namespaces`` says it all: the generation that answers, and the one beside it. Each read of it is a whole picture, so a
switch is seen at once or not at all.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from memory_layer.errors import Conflict, NotFound, PolicyRefused, ValidationError
from memory_layer.model import Namespace
from memory_layer.service.changes import Effect, EndGeneration, OpenGeneration, SwitchGeneration
from memory_layer.stores.log_writer import Known, Lacks

# Cannot stand in the name of a namespace, as `@` can: no generation is ever called what a caller calls a namespace.
SEPARATOR = "#"


def decide(action: OpenGeneration | SwitchGeneration | EndGeneration, tenant: str, known: Known) -> Effect:
    """The effect of opening, switching or ending a generation. Raises NotFound, Conflict, ValidationError or PolicyRefused."""
    space = known.namespaces.get((tenant, action.namespace))
    if space is None:
        raise NotFound(f"Tenant {tenant} has no namespace {action.namespace} with vectors in it.")
    match action:
        case OpenGeneration():
            return _open(action, space)
        case SwitchGeneration():
            return _switch(action, space, known.lacks)
        case EndGeneration():
            return _end(action, space)


def facts(space: Namespace) -> dict[str, Any]:
    """A namespace's generations as the log and the commands tell of them."""
    beside = None
    if space.beside is not None:
        beside = {
            "indexNamespace": space.beside,
            "model": space.beside_model,
            "dimension": space.beside_dimension,
            "state": space.beside_state,
        }
    active = {"indexNamespace": space.index_namespace, "model": space.model, "dimension": space.dimension}
    return {"tenant": space.tenant, "namespace": space.name, "active": active, "beside": beside}


def _open(action: OpenGeneration, space: Namespace) -> Effect:
    if space.beside is not None:
        raise Conflict(
            f"Namespace {space.name} has a generation beside the active one already: {space.beside} ({space.beside_model}, "
            f"{space.beside_dimension} dimensions, {space.beside_state}). End that first with `memoryctl vectors retire`."
        )
    if (action.model, action.dimension) == (space.model, space.dimension):
        raise ValidationError(
            f"Namespace {space.name} is embedded by {space.model} ({space.dimension} dimensions) already. Name another model; to "
            "rebuild its index from the stored vectors there is `memoryctl vectors reindex`."
        )
    number = space.generations + 1
    opened = replace(
        space,
        generations=number,
        beside=f"{space.name}{SEPARATOR}{number}",
        beside_model=action.model,
        beside_dimension=action.dimension,
        beside_state="building",
    )
    return _effect("opened", opened)


def refusal(space: Namespace, behind: int, given: int) -> PolicyRefused:
    """Why the generation beside the active one may not answer yet."""
    return PolicyRefused(
        f"{behind + given} nodes of namespace {space.name} are found in {space.index_namespace} and would not be in {space.beside}: "
        f"{behind} are not indexed there yet, and {given} have no text, so only their caller can give their vector (PATCH with an "
        "embedding of that model), or they are left behind (--leave-behind). `memoryctl vectors generations` counts them; --force "
        "switches all the same."
    )


def _switch(action: SwitchGeneration, space: Namespace, lacks: Lacks | None) -> Effect:
    if space.written != action.to:
        raise Conflict(
            f"There is no generation {action.to} beside the active one of namespace {space.name}. Look again."
        )
    if lacks is not None and (lacks.behind or (lacks.given and not action.leave_behind)):
        raise refusal(space, lacks.behind, lacks.given)
    switched = replace(
        space,
        index_namespace=str(space.beside),
        model=str(space.beside_model),
        dimension=int(space.beside_dimension or 0),
        beside=space.index_namespace,
        beside_model=space.model,
        beside_dimension=space.dimension,
        beside_state="kept" if space.beside_state == "building" else "building",
    )
    return _effect("switched", switched, {"behind": action.seen.behind, "leftBehind": action.seen.given})


def _end(action: EndGeneration, space: Namespace) -> Effect:
    if space.beside != action.beside:
        raise Conflict(
            f"There is no generation {action.beside} beside the active one of namespace {space.name}. Look again."
        )
    if not action.dropped:
        return _effect("retired", replace(space, beside_state="retired"))
    if space.beside_state != "retired":
        raise Conflict(f"Generation {action.beside} of namespace {space.name} is still written.")
    gone = replace(space, beside=None, beside_model=None, beside_dimension=None, beside_state=None)
    return _effect("dropped", gone, {"dropped": action.beside})


def _effect(what: str, space: Namespace, more: dict[str, Any] | None = None) -> Effect:
    told = facts(space) | (more or {})
    return Effect(f"ops.generation-{what}.succeeded", told, told, changed_namespace=space)

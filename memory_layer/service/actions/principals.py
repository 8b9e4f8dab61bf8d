"""What the log says of who acts: a service gets its id, or those from before there were such entries are adopted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from memory_layer.errors import NotFound
from memory_layer.model import format_time, format_time_or_none, uuid7
from memory_layer.service.commit.action import Action, Effect, Situation, Touched
from memory_layer.stores.batch_reads import Wants
from memory_layer.stores.batch_rows import AdoptedPrincipal

ADOPTED: Final = "ops.principals-adopted.succeeded"


@dataclass(frozen=True, slots=True)
class Introduce(Action):
    """The caller's service gets its id in the log, if it has none yet; else nothing happens. The answer is that id.

    What gives it one is the commit layer, which does so for every caller before its first entry.
    """

    freezes: ClassVar[bool] = False

    def decide(self, at: Situation) -> Effect:
        return Effect(None, {"id": str(at.caller.actor)}, {})


@dataclass(frozen=True, slots=True)
class AdoptPrincipals(Action):
    """An entry for the principals from before they had entries, as they stand. NotFound where there are none."""

    freezes: ClassVar[bool] = False

    def touches(self, tenant: str) -> list[Touched]:
        return [(tenant, "log", "principals")]

    def reads(self, tenant: str, wants: Wants) -> None:
        wants.unbound = True

    def decide(self, at: Situation) -> Effect:
        if not at.known.unbound:
            raise NotFound("Every principal has its entry in the log.")
        payload = {
            "principals": [
                {
                    "tenant": one.tenant,
                    "service": one.service,
                    "id": str(one.id),
                    "createdAt": format_time(one.created_at),
                }
                for one in at.known.unbound
            ],
            "tenants": [
                {"tenant": tenant, "createdAt": format_time(created), "disabledAt": format_time_or_none(disabled)}
                for tenant, created, disabled in at.known.unbound_tenants
            ],
        }
        effect = Effect(ADOPTED, {}, payload, entry_id=uuid7())
        effect.update(*(AdoptedPrincipal(one.id, effect.entry_id) for one in at.known.unbound if effect.entry_id))
        return effect

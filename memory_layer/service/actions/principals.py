"""What the log says of who acts: a service gets its id, is refused from now on, or those from before there were such entries are adopted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

from memory_layer.errors import Conflict, NotFound
from memory_layer.model import Principal, format_time, format_time_or_none, uuid7
from memory_layer.service.commit.action import Action, Effect, Situation, Touched
from memory_layer.stores.batch_reads import Wants
from memory_layer.stores.batch_rows import AdoptedPrincipal

ADOPTED: Final = "ops.principals-adopted.succeeded"
REVOKED: Final = "ops.principal-revoked.succeeded"
REINSTATED: Final = "ops.principal-reinstated.succeeded"


def principal_facts(who: Principal) -> dict[str, Any]:
    """A principal as its callers see it."""
    return {
        "principalId": str(who.id),
        "tenant": who.tenant,
        "service": who.service,
        "createdAt": format_time(who.created_at),
        "revokedAt": format_time_or_none(who.revoked_at),
    }


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
                | ({} if one.revoked_at is None else {"revokedAt": format_time(one.revoked_at)})
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


@dataclass(frozen=True, slots=True)
class Revoke(Action):
    """A service's credentials are refused from now on, or, with ``revoked`` False, taken again. A freeze does not keep anybody from it.

    NotFound for a service without an id, Conflict where it stands so already.
    """

    freezes: ClassVar[bool] = False

    tenant: str
    service: str
    reason: str
    revoked: bool = True

    def touches(self, tenant: str) -> list[Touched]:
        return [(self.tenant, "principal", self.service)]

    def reads(self, tenant: str, wants: Wants) -> None:
        wants.principals.add((self.tenant, self.service))

    def decide(self, at: Situation) -> Effect:
        who = at.known.principals.get((self.tenant, self.service))
        if who is None:
            raise NotFound(f"The log knows no service {self.service} of tenant {self.tenant}.")
        if (who.revoked_at is not None) == self.revoked:
            since = f"is revoked already, since {format_time(who.revoked_at)}" if who.revoked_at else "is not revoked"
            raise Conflict(f"Service {self.service} of tenant {self.tenant} {since}.")
        changed = replace(who, revoked_at=at.now if self.revoked else None)
        facts = {"id": str(who.id), "reason": self.reason, "revokedAt": format_time_or_none(changed.revoked_at)}
        effect = Effect(REVOKED if self.revoked else REINSTATED, principal_facts(changed), facts)
        effect.update(changed)
        return effect

"""Tenants and their services, as an administrator makes and ends them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from memory_layer.errors import Conflict, NotFound
from memory_layer.model import SYSTEM_TENANT, Caller, Principal, format_time, format_time_or_none, uuid7
from memory_layer.service.actions.principals import principal_facts
from memory_layer.service.commit.action import Action, Effect, Situation, Touched
from memory_layer.service.commit.introduction import introduction
from memory_layer.stores.batch_reads import Wants
from memory_layer.stores.batch_rows import Tenant, TenantEnd

TENANT_CREATED: Final = "ops.tenant-created.succeeded"
TENANT_REVOKED: Final = "ops.tenant-revoked.succeeded"
TENANT_REINSTATED: Final = "ops.tenant-reinstated.succeeded"


@dataclass(frozen=True, slots=True)
class CreateTenant(Action):
    """A tenant before its first service comes. Conflict for one that is there."""

    tenant: str

    def touches(self, tenant: str) -> list[Touched]:
        return [(self.tenant, "tenant", self.tenant)]

    def reads(self, tenant: str, wants: Wants) -> None:
        wants.tenant_rows.add(self.tenant)

    def decide(self, at: Situation) -> Effect:
        if self.tenant in at.known.tenants:
            raise Conflict(f"There is a tenant {self.tenant} already.")
        facts = {"tenant": self.tenant, "createdAt": format_time(at.now), "revokedAt": None}
        effect = Effect(TENANT_CREATED, facts, facts)
        effect.insert(Tenant(self.tenant))
        return effect


@dataclass(frozen=True, slots=True)
class RevokeTenant(Action):
    """Every credential of a tenant is refused from now on, or, with ``revoked`` False, taken again. A freeze does not keep anybody from it.

    NotFound for a tenant that is not there, Conflict where it stands so already.
    """

    freezes: ClassVar[bool] = False

    tenant: str
    reason: str
    revoked: bool = True

    def touches(self, tenant: str) -> list[Touched]:
        return [(self.tenant, "tenant", self.tenant)]

    def reads(self, tenant: str, wants: Wants) -> None:
        wants.tenant_rows.add(self.tenant)

    def decide(self, at: Situation) -> Effect:
        if self.tenant not in at.known.tenants or self.tenant == SYSTEM_TENANT:
            raise NotFound(f"There is no tenant {self.tenant}.")
        since = at.known.disabled.get(self.tenant)
        if (since is not None) == self.revoked:
            stands = "is not revoked" if since is None else f"is revoked already, since {format_time(since)}"
            raise Conflict(f"Tenant {self.tenant} {stands}.")
        now = at.now if self.revoked else None
        facts = {"tenant": self.tenant, "revokedAt": format_time_or_none(now)}
        effect = Effect(TENANT_REVOKED if self.revoked else TENANT_REINSTATED, facts, facts | {"reason": self.reason})
        effect.update(TenantEnd(self.tenant, now))
        return effect


@dataclass(frozen=True, slots=True)
class CreatePrincipal(Action):
    """A service gets its id in the log before its first write, and its tenant is made where that is new. Conflict for one that has it."""

    freezes: ClassVar[bool] = False

    tenant: str
    service: str

    def touches(self, tenant: str) -> list[Touched]:
        return [(self.tenant, "principal", self.service), (self.tenant, "tenant", self.tenant)]

    def reads(self, tenant: str, wants: Wants) -> None:
        wants.principals.add((self.tenant, self.service))

    def decide(self, at: Situation) -> Effect:
        if (self.tenant, self.service) in at.known.principals:
            raise Conflict(f"The log knows service {self.service} of tenant {self.tenant} already.")
        new = Caller(self.tenant, uuid7(), self.service, "jwt", frozenset(), at.caller.request_id)
        effect = introduction(new, at.known, at.now)
        effect.answer = principal_facts(Principal(self.tenant, self.service, new.actor, at.now))
        return effect

"""A bearer token that is refused from now on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from memory_layer.errors import Conflict
from memory_layer.model import format_time
from memory_layer.service.commit.action import Action, Effect, Situation, Touched
from memory_layer.stores.batch_reads import Wants
from memory_layer.stores.batch_rows import RevokedToken

TOKEN_REVOKED: Final = "ops.token-revoked.succeeded"  # noqa: S105 - a type of entry


@dataclass(frozen=True, slots=True)
class RevokeToken(Action):
    """The token with this ``jti`` is refused. Conflict where it is already. A freeze does not keep anybody from it."""

    freezes: ClassVar[bool] = False

    tenant: str
    jti: str
    reason: str

    def touches(self, tenant: str) -> list[Touched]:
        return [(self.tenant, "token", self.jti)]

    def reads(self, tenant: str, wants: Wants) -> None:
        wants.tenants.add(self.tenant)
        wants.revoked_tokens.add((self.tenant, self.jti))

    def decide(self, at: Situation) -> Effect:
        if (self.tenant, self.jti) in at.known.revoked_tokens:
            raise Conflict(f"The token {self.jti} of tenant {self.tenant} is revoked already.")
        facts = {"tenant": self.tenant, "jti": self.jti, "revokedAt": format_time(at.now)}
        effect = Effect(TOKEN_REVOKED, facts, facts | {"reason": self.reason})
        effect.insert(RevokedToken(self.tenant, self.jti, at.now))
        return effect

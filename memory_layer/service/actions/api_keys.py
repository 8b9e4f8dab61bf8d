"""API keys: made, replaced, refused. The key itself is in no action: only its SHA-256 is, and how it begins."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

from memory_layer.errors import Conflict, NotFound, PolicyRefused
from memory_layer.model import ApiKey, format_time, format_time_or_none
from memory_layer.service.commit.action import Action, Effect, Situation, Touched
from memory_layer.stores.batch_reads import Wants

KEY_CREATED: Final = "ops.api-key-created.succeeded"
KEY_ROTATED: Final = "ops.api-key-rotated.succeeded"
KEY_REVOKED: Final = "ops.api-key-revoked.succeeded"


def key_facts(key: ApiKey) -> dict[str, Any]:
    """A key as its callers see it; what proves it is not in it."""
    return {
        "apiKeyId": str(key.id),
        "tenant": key.tenant,
        "service": key.service,
        "principalId": str(key.principal),
        "name": key.name,
        "hint": key.hint,
        "scopes": key.scopes,
        "createdAt": format_time(key.created_at),
        "expiresAt": format_time_or_none(key.expires_at),
        "revokedAt": format_time_or_none(key.revoked_at),
        "replacedBy": None if key.replaced_by is None else str(key.replaced_by),
    }


def _evidence(key: ApiKey) -> dict[str, Any]:
    """What the entry says: with the hash, so that a row cannot be given another key unnoticed."""
    return key_facts(key) | {"keySha256": key.key_sha256.hex()}


@dataclass(frozen=True, slots=True)
class CreateApiKey(Action):
    """A key for a service that has its id. ``first``: only where its tenant never had one with the scope admin. NotFound for a service that
    the log does not know, Conflict for one that is revoked, PolicyRefused."""

    key: ApiKey
    first: bool = False

    def touches(self, tenant: str) -> list[Touched]:
        return [(self.key.tenant, "api key", "first" if self.first else self.key.id)]

    def reads(self, tenant: str, wants: Wants) -> None:
        wants.tenants.add(self.key.tenant)
        wants.principals.add((self.key.tenant, self.key.service))
        if self.first:
            wants.admin_keys = self.key.tenant

    def decide(self, at: Situation) -> Effect:
        if self.first and at.known.admin_keys:
            raise PolicyRefused(
                f"Tenant {self.key.tenant} had an API key with the scope admin before. `memoryctl api-key create` makes others."
            )
        who = at.known.principals.get((self.key.tenant, self.key.service))
        if who is None:
            raise NotFound(f"The log knows no service {self.key.service} of tenant {self.key.tenant}.")
        if who.revoked_at is not None:
            raise Conflict(f"Service {self.key.service} is revoked: no key of it would be taken. Reinstate it first.")
        made = replace(self.key, principal=who.id, created_at=at.now)
        effect = Effect(KEY_CREATED, key_facts(made), _evidence(made))
        effect.insert(made)
        return effect


@dataclass(frozen=True, slots=True)
class RotateApiKey(Action):
    """A new key for the same service, with the same scopes and time to live, in the place of one that counts for ``overlap`` more.

    NotFound, and Conflict for a key that does not count any more, or has been replaced already.
    """

    tenant: str
    id: uuid.UUID
    new_id: uuid.UUID
    key_sha256: bytes
    hint: str
    overlap: dt.timedelta

    def touches(self, tenant: str) -> list[Touched]:
        return [(self.tenant, "api key", self.id)]

    def reads(self, tenant: str, wants: Wants) -> None:
        wants.tenants.add(self.tenant)
        wants.api_keys.add((self.tenant, self.id))

    def decide(self, at: Situation) -> Effect:
        old = at.known.api_keys.get((self.tenant, self.id))
        if old is None:
            raise _unknown(self.id)
        if old.replaced_by is not None:
            raise Conflict(f"The API key {self.id} is replaced already, by {old.replaced_by}.")
        if old.revoked_at is not None or (old.expires_at is not None and old.expires_at <= at.now):
            raise Conflict(f"The API key {self.id} is revoked or has expired: make a new one in its place.")
        lives = None if old.expires_at is None else at.now + (old.expires_at - old.created_at)
        new = replace(
            old, id=self.new_id, key_sha256=self.key_sha256, hint=self.hint, created_at=at.now, expires_at=lives
        )
        until = at.now + self.overlap
        expires = until if old.expires_at is None else min(old.expires_at, until)
        ends = replace(old, expires_at=expires, replaced_by=new.id)
        replaced = {"apiKeyId": str(old.id), "expiresAt": format_time(expires), "replacedBy": str(new.id)}
        effect = Effect(KEY_ROTATED, key_facts(new) | {"replaces": replaced}, _evidence(new) | {"replaces": replaced})
        effect.insert(new)
        effect.update(ends)
        return effect


@dataclass(frozen=True, slots=True)
class RevokeApiKey(Action):
    """A key is refused for good. A freeze does not keep anybody from it. NotFound, and Conflict where it is revoked already."""

    freezes: ClassVar[bool] = False

    tenant: str
    id: uuid.UUID
    reason: str

    def touches(self, tenant: str) -> list[Touched]:
        return [(self.tenant, "api key", self.id)]

    def reads(self, tenant: str, wants: Wants) -> None:
        wants.tenants.add(self.tenant)
        wants.api_keys.add((self.tenant, self.id))

    def decide(self, at: Situation) -> Effect:
        key = at.known.api_keys.get((self.tenant, self.id))
        if key is None:
            raise _unknown(self.id)
        if key.revoked_at is not None:
            raise Conflict(f"The API key {self.id} is revoked already, since {format_time(key.revoked_at)}.")
        gone = replace(key, revoked_at=at.now)
        effect = Effect(KEY_REVOKED, key_facts(gone), key_facts(gone) | {"reason": self.reason})
        effect.update(gone)
        return effect


def _unknown(key_id: uuid.UUID) -> NotFound:
    return NotFound(f"There is no API key {key_id}.")

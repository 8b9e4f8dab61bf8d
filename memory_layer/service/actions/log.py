"""Writes about the installation itself: entries that change no row of a tenant, changes of the sealing key, a freeze of writes."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any, ClassVar

from memory_layer.audit.trust_root import activation_payload, retirement_payload, trusted_key
from memory_layer.errors import NotFound
from memory_layer.model import Freeze, format_time, format_time_or_none
from memory_layer.service.commit.action import Action, Effect, Situation, Touched


@dataclass(frozen=True, slots=True)
class Record(Action):
    """An entry that changes no row of a tenant: a heartbeat, an operator's run. ``payload`` is any JSON object."""

    freezes: ClassVar[bool] = False

    event_type: str
    payload: dict[str, Any]
    denied: bool = False

    def decide(self, at: Situation) -> Effect:
        return Effect(self.event_type, {}, self.payload, denied=self.denied)


@dataclass(frozen=True, slots=True)
class ActivateKey(Action):
    """From the next batch on the log is sealed by this key; sealed itself by the key before."""

    freezes: ClassVar[bool] = False
    alone: ClassVar[bool] = True  # what comes after it is sealed by another key

    key_id: str
    algorithm: str
    public_key: bytes  # DER SubjectPublicKeyInfo

    def touches(self, tenant: str) -> list[Touched]:
        return [(tenant, "log", "keys")]

    def decide(self, at: Situation) -> Effect:
        key = trusted_key(self.algorithm, self.public_key, "seal", at.seq + 1)
        return Effect("audit.key.activated", {}, activation_payload(key), new_key=self)


@dataclass(frozen=True, slots=True)
class RetireKey(Action):
    """The key before the one that seals now may seal nothing after ``to_seq``."""

    freezes: ClassVar[bool] = False

    key_id: str
    to_seq: int

    def touches(self, tenant: str) -> list[Touched]:
        return [(tenant, "log", "keys")]

    def decide(self, at: Situation) -> Effect:
        return Effect("audit.key.retired", {}, retirement_payload(self.key_id, self.to_seq))


@dataclass(frozen=True, slots=True)
class SetFreeze(Action):
    """Stop all writes of tenants for a ``reason``, for so many seconds or until it is lifted; ``reason`` None lifts it.

    Saying it again changes reason and end, not since when; lifting what is not there is NotFound.
    """

    freezes: ClassVar[bool] = False

    reason: str | None
    seconds: int | None = None

    def touches(self, tenant: str) -> list[Touched]:
        return [(tenant, "log", "freeze")]

    def decide(self, at: Situation) -> Effect:
        frozen = at.known.frozen
        if self.reason is None:
            if frozen is None:
                raise NotFound("Writes are not frozen.")
            facts = freeze_facts(frozen)
            effect = Effect("ops.writes-resumed.succeeded", facts, facts)
            effect.remove(frozen)
            return effect
        until = None if self.seconds is None else at.now + dt.timedelta(seconds=self.seconds)
        freeze = Freeze(self.reason, at.now if frozen is None else frozen.since, until)
        facts = freeze_facts(freeze)
        effect = Effect("ops.writes-frozen.succeeded", facts, facts)
        effect.put(freeze)
        return effect


def freeze_facts(freeze: Freeze) -> dict[str, Any]:
    """A freeze as the log and every answer describe it."""
    return {
        "reason": freeze.reason,
        "since": format_time(freeze.since),
        "until": format_time_or_none(freeze.until),
    }

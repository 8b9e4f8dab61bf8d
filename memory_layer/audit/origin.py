"""The name of a log: who keeps it, for which environment, and since which restore."""

from __future__ import annotations

import re
from typing import Final

from memory_layer.errors import Problem, ValidationError

ORIGIN: Final = (
    r"[a-z0-9](?:[a-z0-9.-]{0,126}[a-z0-9])?"
    r"/audit/(?:dev|staging|prod)/s0/e[1-9][0-9]{0,8}"
)
_ORIGIN: Final = re.compile(ORIGIN)


def origin(audit_origin: str, service_env: str, incarnation: int) -> str:
    """``<AUDIT_ORIGIN>/audit/<SERVICE_ENV>/s0/e<incarnation>``; incarnations count from 1. Raises ValidationError."""
    return check_origin(f"{audit_origin}/audit/{service_env}/s0/e{incarnation}")


def check_origin(text: str) -> str:
    """The same text, or ValidationError when it is not the name of a log."""
    if _ORIGIN.fullmatch(text) is None:
        raise ValidationError(
            f"{text!a} is not the name of a log: expected <host>/audit/<dev|staging|prod>/s0/e<1..>.",
            details=[Problem("origin", "not <host>/audit/<env>/s0/e<incarnation>")],
        )
    return text


def incarnation_of(origin: str) -> int | None:
    """Which incarnation of its log an origin names; None where it is no name of a log."""
    return int(origin.rpartition("/e")[2]) if _ORIGIN.fullmatch(origin) else None

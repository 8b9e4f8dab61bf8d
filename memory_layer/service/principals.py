"""Who acts: each service of a tenant has an opaque id, bound to it by an entry in the transaction that makes its row.

A caller whose service has no row yet carries a *draft* id. The committer makes row and entry before the first entry that names it,
under the log lock, or finds that another process was first and puts that one's id in the caller's place. So no entry names an actor
whom the log does not know, and no door but the committer's makes one (``docs/decisions/0027-principals.md``).
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

from memory_layer.errors import Problem, Unauthenticated, ValidationError
from memory_layer.model import LOG_TEXT, MAX_REASON, SYSTEM_TENANT, TENANT, Caller, Principal, is_reason, uuid7
from memory_layer.service.actions.principals import Introduce, Revoke
from memory_layer.service.actions.tokens import RevokeToken
from memory_layer.service.commit import Change
from memory_layer.sql import queries
from memory_layer.stores.postgres import Postgres

if TYPE_CHECKING:
    from memory_layer.service.installation import Installation

# The installation's own service: from the entry that makes this principal on, the log knows every other one.
MARK: Final = "installation"

# What every credential is answered that is wrong, of whichever kind and however.
REFUSED: Final = "The token or API key is not valid here, or has expired."

_SQL = queries("principals")


async def find_caller(
    postgres: Postgres,
    tenant: str,
    service: str,
    *,
    auth: Literal["jwt", "system"],
    scopes: frozenset[str] = frozenset(),
    request_id: str | None = None,
    jti: str | None = None,
) -> Caller:
    """A service of a tenant as the log knows it: by the id of its row, or by a draft id where it has none yet. Raises Unauthenticated for
    one that is revoked, or whose token (``jti``) is."""
    ((row,),) = await postgres.fetch(tenant, (_SQL["find"], {"tenant": tenant, "service": service, "jti": jti}))
    # No operator is kept out by a row that somebody changed: the installation's own services are not refused.
    if auth != "system":
        refuse_revoked(row)
        if row["token_revoked"]:
            raise Unauthenticated("This token is revoked here. Ask who runs the Memory Layer for another one.")
    return Caller(
        tenant=tenant,
        actor=row["id"] or uuid7(),
        service=service,
        auth=auth,
        scopes=scopes,
        request_id=request_id or str(uuid7()),
        draft=row["id"] is None,
    )


def refuse_revoked(row: Mapping[str, Any]) -> None:
    """Raise Unauthenticated for a service whose credentials are refused."""
    if row["revoked_at"] is not None:
        raise Unauthenticated(
            "The service that this credential is for is revoked here: none of it is taken. Ask who runs the Memory Layer."
        )


async def known_caller(postgres: Postgres, service: str, request_id: str | None = None) -> Caller:
    """The installation itself as ``service`` (worker, memoryctl, ...)."""
    return await find_caller(postgres, SYSTEM_TENANT, service, auth="system", request_id=request_id)


async def revoke(
    installation: Installation, caller: Caller, tenant: str, service: str, reason: str, *, revoked: bool = True
) -> dict[str, Any]:
    """Refuse a service's credentials from now on, those of one that only ever read too; with ``revoked`` False take them again.

    Each process learns of it within five seconds (``api/auth.py``). Raises Conflict where it stands so already, NotFound for letting in
    whom nobody knows, ValidationError, and what a write raises.
    """
    refuse_misfits(tenant=tenant, service=service, reason=reason)
    if revoked:
        await introduce(installation, tenant, service, caller.request_id)
    outcome = await installation.committer.submit(Change(caller, Revoke(tenant, service, reason.strip(), revoked)))
    return outcome.answer


async def introduce(installation: Installation, tenant: str, service: str, request_id: str) -> uuid.UUID:
    """The id of a service in the log, also of one that is revoked; where it has none it gets one, as by its first write. Raises what a
    write raises."""
    facts = {"tenant": tenant, "service": service, "jti": None}
    ((row,),) = await installation.postgres.fetch(tenant, (_SQL["find"], facts))
    if row["id"] is not None:
        found: uuid.UUID = row["id"]
        return found
    them = Caller(tenant, uuid7(), service, "jwt", frozenset(), request_id, draft=True)
    outcome = await installation.committer.submit(Change(them, Introduce()))
    return uuid.UUID(outcome.answer["id"])


async def revoke_token(
    installation: Installation, caller: Caller, tenant: str, jti: str, reason: str
) -> dict[str, Any]:
    """Refuse one token from now on, by its ``jti``; each process learns of it within five seconds. Whether there is such a token nobody
    here knows. Raises Conflict where it is revoked already, ValidationError, and what a write raises."""
    refuse_misfits(tenant=tenant, jti=jti, reason=reason)
    outcome = await installation.committer.submit(Change(caller, RevokeToken(tenant, jti, reason.strip())))
    return outcome.answer


def refuse_misfits(*, tenant: str, reason: str, service: str | None = None, jti: str | None = None) -> None:
    """Raise ValidationError for what no entry of the log could say."""
    problems = []
    if TENANT.fullmatch(tenant) is None:
        problems.append(Problem("tenant", f"must match {TENANT.pattern}"))
    for name, value in (("service", service), ("jti", jti)):
        if value is not None and LOG_TEXT.fullmatch(value) is None:
            problems.append(Problem(name, f"must match {LOG_TEXT.pattern}"))
    if not is_reason(reason):
        problems.append(Problem("reason", f"must be one line of 1 to {MAX_REASON} characters"))
    if problems:
        raise ValidationError(
            "Nothing was changed: " + "; ".join(f"{one.path} {one.problem}" for one in problems) + ".", details=problems
        )


async def principals_of(postgres: Postgres, tenant: str | None) -> list[Principal]:
    """Who the log knows, by tenant and service; ``tenant`` None: of all."""
    (rows,) = await postgres.fetch("", (_SQL["list"], {"tenant": tenant}))
    return [Principal(**row) for row in rows]

"""Who acts: each service of a tenant has an opaque id, bound to it by an entry in the transaction that makes its row.

A caller whose service has no row yet carries a *draft* id. The committer makes row and entry before the first entry that names it,
under the log lock, or finds that another process was first and puts that one's id in the caller's place. So no entry names an actor
whom the log does not know, and no door but the committer's makes one (``docs/decisions/0027-principals.md``).
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

from memory_layer.errors import Conflict, Forbidden, Problem, Unauthenticated, ValidationError
from memory_layer.model import LOG_TEXT, MAX_REASON, SYSTEM_TENANT, TENANT, Caller, Principal, is_reason, uuid7
from memory_layer.service.actions.principals import Revoke
from memory_layer.service.actions.tenants import CreatePrincipal
from memory_layer.service.actions.tokens import RevokeToken
from memory_layer.service.commit import Change, Idempotency, Outcome
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
    """Raise Unauthenticated for a service whose credentials are refused, Forbidden where those of its whole tenant are."""
    if row["disabled_at"] is not None:
        raise Forbidden(
            "The tenant that this credential is for is revoked here: nothing is done for it. Ask who runs the Memory Layer."
        )
    if row["revoked_at"] is not None:
        raise Unauthenticated(
            "The service that this credential is for is revoked here: none of it is taken. Ask who runs the Memory Layer."
        )


async def known_caller(postgres: Postgres, service: str, request_id: str | None = None) -> Caller:
    """The installation itself as ``service`` (worker, memoryctl, ...)."""
    return await find_caller(postgres, SYSTEM_TENANT, service, auth="system", request_id=request_id)


async def revoke(
    installation: Installation,
    caller: Caller,
    tenant: str,
    service: str,
    reason: str,
    *,
    revoked: bool = True,
    idempotency: Idempotency | None = None,
) -> Outcome:
    """Refuse a service's credentials from now on, those of one that only ever read too; with ``revoked`` False take them again.

    Each process learns of it within five seconds (``api/auth.py``). Raises Conflict where it stands so already, NotFound for letting in
    whom nobody knows, ValidationError, and what a write raises.
    """
    refuse_misfits(tenant=tenant, service=service, reason=reason)
    if revoked:
        await introduce(installation, caller, tenant, service)
    return await installation.committer.submit(
        Change(caller, Revoke(tenant, service, reason.strip(), revoked), idempotency)
    )


async def create(
    installation: Installation, caller: Caller, tenant: str, service: str, idempotency: Idempotency | None = None
) -> Outcome:
    """Give a service its id in the log before its first write, and make its tenant where that is new. Raises Conflict for one that has it,
    ValidationError, and what a write raises."""
    refuse_misfits(tenant=tenant, service=service)
    return await installation.committer.submit(Change(caller, CreatePrincipal(tenant, service), idempotency))


async def introduce(installation: Installation, caller: Caller, tenant: str, service: str) -> None:
    """Give a service its id where it has none yet, also one that is revoked. Raises what a write raises."""
    facts = {"tenant": tenant, "service": service, "jti": None}
    ((row,),) = await installation.postgres.fetch(tenant, (_SQL["find"], facts))
    if row["id"] is None:
        with contextlib.suppress(Conflict):  # it came by itself meanwhile
            await installation.committer.submit(Change(caller, CreatePrincipal(tenant, service)))


async def revoke_token(
    installation: Installation,
    caller: Caller,
    tenant: str,
    jti: str,
    reason: str,
    idempotency: Idempotency | None = None,
) -> Outcome:
    """Refuse one token from now on, by its ``jti``; each process learns of it within five seconds. Whether there is such a token nobody
    here knows. Raises Conflict where it is revoked already, ValidationError, and what a write raises."""
    refuse_misfits(tenant=tenant, jti=jti, reason=reason)
    return await installation.committer.submit(Change(caller, RevokeToken(tenant, jti, reason.strip()), idempotency))


def refuse_misfits(
    *, tenant: str, reason: str | None = None, service: str | None = None, jti: str | None = None
) -> None:
    """Raise ValidationError for what no entry of the log could say."""
    problems = []
    if TENANT.fullmatch(tenant) is None:
        problems.append(Problem("tenant", f"must match {TENANT.pattern}"))
    for name, value in (("service", service), ("jti", jti)):
        if value is not None and LOG_TEXT.fullmatch(value) is None:
            problems.append(Problem(name, f"must match {LOG_TEXT.pattern}"))
    if reason is not None and not is_reason(reason):
        problems.append(Problem("reason", f"must be one line of 1 to {MAX_REASON} characters"))
    if problems:
        raise ValidationError(
            "Nothing was changed: " + "; ".join(f"{one.path} {one.problem}" for one in problems) + ".", details=problems
        )


async def principals_of(postgres: Postgres, tenant: str | None) -> list[Principal]:
    """Who the log knows, by tenant and service; ``tenant`` None: of all."""
    (rows,) = await postgres.fetch("", (_SQL["list"], {"tenant": tenant}))
    return [Principal(**row) for row in rows]


async def list_page(postgres: Postgres, tenant: str, after: str, limit: int) -> list[Principal]:
    """Those of a tenant behind this name, by name."""
    (rows,) = await postgres.fetch("", (_SQL["list_page"], {"tenant": tenant, "after": after, "limit": limit}))
    return [Principal(**row) for row in rows]


async def principal_of(postgres: Postgres, principal: uuid.UUID) -> Principal | None:
    """Whom an id stands for; None where it stands for nobody, or for a part of the installation itself."""
    (rows,) = await postgres.fetch("", (_SQL["principal_of"], {"id": principal}))
    return Principal(**rows[0]) if rows else None

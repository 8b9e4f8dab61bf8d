"""API keys: `mlk_`, 32 random letters and digits, and a checksum of six, by which scanners for secrets tell one from any other word.

A key is answered once, to whoever makes it. Kept is its SHA-256: a key has 190 random bits, so that nothing slower would protect it better.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import re
import secrets
import string
import uuid
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from memory_layer.errors import NotFound, Problem, Unauthenticated, ValidationError
from memory_layer.model import (
    LOG_TEXT,
    MAX_REASON,
    SCOPES,
    TENANT,
    ApiKey,
    Caller,
    format_time_or_none,
    is_reason,
    uuid7,
)
from memory_layer.service import principals
from memory_layer.service.actions.api_keys import CreateApiKey, RevokeApiKey, RotateApiKey, key_facts
from memory_layer.service.commit import Change, Idempotency, Outcome
from memory_layer.sql import queries
from memory_layer.stores.postgres import ALL_TENANTS, Postgres

if TYPE_CHECKING:
    from memory_layer.service.installation import Installation

PREFIX: Final = "mlk_"
MAX_NAME: Final = 200  # characters
MAX_OVERLAP: Final = dt.timedelta(days=90)
_DIGITS: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
_RANDOM, _CHECKSUM = 32, 6
_KEY: Final = re.compile(f"{PREFIX}([0-9A-Za-z]{{{_RANDOM}}})([0-9A-Za-z]{{{_CHECKSUM}}})")
_HINT: Final = len(PREFIX) + 4  # characters; of the random ones they give away four

_SQL = queries("principals")


def new_key() -> str:
    """A key that nobody has."""
    text = PREFIX + "".join(secrets.choice(_DIGITS) for _ in range(_RANDOM))
    return text + _checksum(text)


def is_key(text: str) -> bool:
    """Whether a text can be a key at all: no mistyped one costs a look into the database."""
    return _KEY.fullmatch(text) is not None and hmac.compare_digest(_checksum(text[:-_CHECKSUM]), text[-_CHECKSUM:])


def _checksum(text: str) -> str:
    """CRC-32 in base 62, six digits."""
    number, digits = zlib.crc32(text.encode("ascii")), ""
    for _ in range(_CHECKSUM):
        number, digit = divmod(number, len(_DIGITS))
        digits = _DIGITS[digit] + digits
    return digits


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("ascii")).digest()


async def find_caller(postgres: Postgres, key: str, now: float) -> tuple[Caller, uuid.UUID, float | None]:
    """Whose key it is, its id, and when it expires, both in seconds since 1970. Raises Unauthenticated, in the same words whatever is wrong
    with the key; in others where it is right and its service is revoked, and Forbidden where its tenant is."""
    digest = _digest(key) if is_key(key) else None
    rows = []
    if digest is not None:
        (rows,) = await postgres.fetch(ALL_TENANTS, (_SQL["find_key"], {"digest": digest}), keyed=True)
    row = rows[0] if rows and digest is not None and hmac.compare_digest(rows[0]["key_sha256"], digest) else None
    expires = None if row is None or row["expires_at"] is None else row["expires_at"].timestamp()
    if row is None or row["key_revoked"] or (expires is not None and expires <= now):
        raise Unauthenticated(principals.REFUSED)
    principals.refuse_revoked(row)
    scopes = frozenset(row["scopes"]) & frozenset(SCOPES)
    caller = Caller(row["tenant"], row["principal"], row["service"], "api-key", scopes, str(uuid7()))
    return caller, row["id"], expires


async def create(
    installation: Installation,
    caller: Caller,
    *,
    tenant: str,
    service: str,
    scopes: Sequence[str],
    name: str | None = None,
    expires_at: dt.datetime | None = None,
    first: bool = False,
    idempotency: Idempotency | None = None,
) -> tuple[Outcome, str | None]:
    """Make a key for a service, which gets its id in the log where it has none yet. The key itself is None for a request that was
    answered before: it is shown once. ``first`` as of CreateApiKey. Raises ValidationError, and what a write raises."""
    problems = []
    if TENANT.fullmatch(tenant) is None:
        problems.append(Problem("tenant", f"must match {TENANT.pattern}"))
    if LOG_TEXT.fullmatch(service) is None:
        problems.append(Problem("service", f"must match {LOG_TEXT.pattern}"))
    if not scopes or any(scope not in SCOPES for scope in scopes):
        problems.append(Problem("scopes", f"must be some of {' '.join(SCOPES)}"))
    if name is not None and not (1 <= len(name) <= MAX_NAME and name.isprintable()):
        problems.append(Problem("name", f"must be one line of 1 to {MAX_NAME} characters"))
    if expires_at is not None and expires_at <= dt.datetime.now(dt.UTC):
        problems.append(Problem("expiresAt", "is over"))
    _refuse(problems)
    await principals.introduce(installation, caller, tenant, service)
    text = new_key()
    key = ApiKey(
        tenant=tenant,
        id=uuid7(),
        principal=uuid.UUID(int=0),  # both as the log says once it is decided
        service=service,
        key_sha256=_digest(text),
        hint=text[:_HINT],
        name=name,
        scopes=[scope for scope in SCOPES if scope in scopes],
        created_at=dt.datetime.now(dt.UTC),
        expires_at=expires_at,
    )
    outcome = await installation.committer.submit(Change(caller, CreateApiKey(key, first), idempotency))
    return outcome, None if outcome.replayed else text


async def rotate(
    installation: Installation,
    caller: Caller,
    tenant: str,
    key_id: uuid.UUID,
    overlap: dt.timedelta,
    idempotency: Idempotency | None = None,
) -> tuple[Outcome, str | None]:
    """A new key in the place of one that counts for ``overlap`` more, and the new key itself, as ``create``. Raises NotFound, Conflict,
    ValidationError, and what a write raises."""
    if not dt.timedelta() <= overlap <= MAX_OVERLAP:
        _refuse([Problem("overlapSeconds", f"must be 0 to {int(MAX_OVERLAP.total_seconds())}")])
    text = new_key()
    action = RotateApiKey(tenant, key_id, uuid7(), _digest(text), text[:_HINT], overlap)
    outcome = await installation.committer.submit(Change(caller, action, idempotency))
    return outcome, None if outcome.replayed else text


async def revoke(
    installation: Installation,
    caller: Caller,
    tenant: str,
    key_id: uuid.UUID,
    reason: str,
    idempotency: Idempotency | None = None,
) -> Outcome:
    """Refuse a key for good, in every process within five seconds. Raises NotFound, Conflict, ValidationError, and what a write
    raises."""
    if not is_reason(reason):
        _refuse([Problem("reason", f"must be one line of 1 to {MAX_REASON} characters")])
    action = RevokeApiKey(tenant, key_id, reason.strip())
    return await installation.committer.submit(Change(caller, action, idempotency))


async def list_keys(
    postgres: Postgres,
    tenant: str | None,
    *,
    service: str | None = None,
    before: uuid.UUID | None = None,
    limit: int = 100,
) -> list[dict[str, Any]]:
    """Keys, newest first, with the hour of their last use; ``tenant`` None: of all, ``before``: those older than this one."""
    given = {"tenant": tenant, "service": service, "before": before, "limit": limit}
    scope: str | object = ALL_TENANTS if tenant is None else tenant
    (rows,) = await postgres.fetch(scope, (_SQL["list_keys"], given))
    return [
        key_facts(ApiKey(**{name: value for name, value in row.items() if name != "last_used_at"}))
        | {"lastUsedAt": format_time_or_none(row["last_used_at"])}
        for row in rows
    ]


async def tenant_of(postgres: Postgres, key_id: uuid.UUID) -> str:
    """Whose key it is, for an operator. Raises NotFound."""
    (rows,) = await postgres.fetch(ALL_TENANTS, (_SQL["tenant_of_key"], {"id": key_id}))
    if not rows:
        raise NotFound(f"There is no API key {key_id}.")
    return str(rows[0]["tenant"])


async def note_uses(postgres: Postgres, used: Sequence[uuid.UUID]) -> None:
    """Write the hour of their last use. What a crash takes back is written at the next use."""
    await postgres.run(ALL_TENANTS, (_SQL["note_uses"], {"ids": list(used)}))


def _refuse(problems: Sequence[Problem]) -> None:
    if problems:
        text = "; ".join(f"{one.path} {one.problem}" for one in problems)
        raise ValidationError(f"Nothing was changed: {text}.", details=problems)

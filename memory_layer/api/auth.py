"""Who is asking: a bearer token (JWT) or an API key becomes a Caller. Every failure is the same 401, whatever was wrong."""

from __future__ import annotations

import hashlib
import math
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Literal, NamedTuple

from memory_layer.api.tokens import read_token
from memory_layer.config import Settings
from memory_layer.errors import Forbidden, Problem, Unauthenticated, ValidationError
from memory_layer.model import Caller, uuid7
from memory_layer.service import api_keys, principals
from memory_layer.stores.postgres import Postgres
from memory_layer.stores.token_keys import TokenKeys

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")  # goes into the log for good: no mail address fits
_MANIFEST_ID: Final = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")  # into the log, too
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_TRACE: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}.*")
_CACHE = 4096
# Seconds after which a token is looked at again: whether its service is revoked, or got its id. From _STALE on the first request
# does, while the others go by what is known; within the five seconds of the contract none does.
_STALE, _OVER = 3.0, 4.5
ANONYMOUS: Final = ""  # no service of a token has this name
_WIDER: Final = {"audit:read": "audit:all"}


class _Known(NamedTuple):
    """The caller that a credential stands for, without what comes with each request. Times of ``time.time()``."""

    caller: Caller
    stale: float  # to be looked at again by the next who asks
    expires: float  # and by everybody from here on


class Authenticator:
    """Checks tokens and API keys; remembers those that it has checked for some seconds."""

    def __init__(self, settings: Settings, keys: TokenKeys, postgres: Postgres) -> None:
        self._settings = settings
        self._keys = keys
        self._postgres = postgres
        self._known: dict[bytes, _Known] = {}
        self._used: set[uuid.UUID] = set()  # API keys whose use is not written yet

    async def caller(self, headers: Mapping[str, str], request_id: str) -> Caller:
        """The caller of a request. Raises Unauthenticated, Forbidden for one that says it is another service than its credential's, or
        ValidationError for a malformed context header."""
        credential, check = self._credential(headers)
        kind = b"key" if check == self._check_key else b"token"
        digest = hashlib.sha256(kind + b"\0" + credential.encode("utf-8", "surrogateescape")).digest()
        known = self._known.get(digest)
        now = time.time()
        if known is None or known.stale <= now:
            if known is not None and now < known.expires:
                self._known[digest] = known._replace(stale=known.expires)
            try:
                known = await check(credential)
            except (Unauthenticated, Forbidden):
                self._known.pop(digest, None)
                raise
            if len(self._known) >= _CACHE:
                self._known.clear()
            self._known[digest] = known
        claimed = headers.get("x-service-id")
        if claimed is not None and claimed != known.caller.service:
            raise Forbidden(
                "X-Service-Id names another service than the credential is for. Send the credential's own, or leave the header out."
            )
        parent = headers.get("traceparent")
        trace = None if parent is None else _TRACE.fullmatch(parent)
        return known.caller.asking(
            request_id,
            trace.group(1) if trace else None,
            _header(headers, "x-manifest-signature-id", _MANIFEST_ID),
            _header(headers, "x-prev-audit-hash", _HASH),
        )

    async def note_uses(self) -> None:
        """Write the last use of the API keys that were looked at since the last call; within an hour that changes nothing."""
        used, self._used = self._used, set()
        if used:
            await api_keys.note_uses(self._postgres, sorted(used))

    def _credential(self, headers: Mapping[str, str]) -> tuple[str, Callable[[str], Awaitable[_Known]]]:
        """What the request brings, and how it is checked."""
        key, authorization = headers.get("x-api-key"), headers.get("authorization")
        if key is not None and authorization is not None:
            raise Unauthenticated("Send a token (Authorization) or an API key (X-API-Key), not both.")
        if key:
            return key, self._check_key
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated(
                "Send a token: `Authorization: Bearer <token>`, which `memoryctl token issue` makes, or an API key: `X-API-Key: <key>`."
            )
        return token, self._check_token

    async def _check_token(self, token: str) -> _Known:
        claims = await read_token(token, self._keys, self._settings)
        looked = time.time()
        caller = await principals.find_caller(
            self._postgres, claims.tenant, claims.service, auth="jwt", scopes=claims.scopes, jti=claims.jti
        )
        return _known(caller, looked, claims.expires)

    async def _check_key(self, key: str) -> _Known:
        looked = time.time()
        caller, key_id, expires = await api_keys.find_caller(self._postgres, key, looked)
        self._used.add(key_id)
        return _known(caller, looked, expires)


def _known(caller: Caller, looked: float, expires: float | None) -> _Known:
    """``looked``: from before the row was read."""
    end = math.inf if expires is None else expires
    return _Known(caller, min(end, looked + _STALE), min(end, looked + _OVER))


def is_public(settings: Settings, what: Literal["checkpoint", "tiles"]) -> bool:
    """Whether the operator lets this part of the log be read without a token."""
    return settings.audit_public in (what, "tiles")


def nobody(request_id: str) -> Caller:
    """Who asks without a token for what is public: without a tenant and without scopes."""
    return Caller("", uuid.UUID(int=0), ANONYMOUS, "jwt", frozenset(), request_id)


def require_scope(caller: Caller, scope: str) -> None:
    """Raise Forbidden unless the caller has the scope, or a wider one; Unauthenticated for one without a token."""
    if caller.service == ANONYMOUS and not caller.tenant:
        raise Unauthenticated(
            "This is not public. Send a token: `Authorization: Bearer <token>`, or an API key: `X-API-Key: <key>`."
        )
    if scope not in caller.scopes and _WIDER.get(scope) not in caller.scopes:
        raise Forbidden(f"This call needs the scope {scope}, which the credential does not have.")


def request_id_of(headers: Mapping[str, str]) -> str:
    """The caller's X-Request-Id; a new one where there is none, or one that does not go into the log as it is: what a proxy puts there is no
    fault of the caller's."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else str(uuid7())


def _header(headers: Mapping[str, str], name: str, shape: re.Pattern[str]) -> str | None:
    value = headers.get(name)
    if value is None:
        return None
    if shape.fullmatch(value) is None:
        raise ValidationError(
            f"Header {name} does not fit.", details=[Problem(f"header.{name}", f"must match {shape.pattern}")]
        )
    return value

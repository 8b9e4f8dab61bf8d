"""What a bearer token says, once it is believed (RFC 7519, and RFC 8725 for what not to believe). No database."""

from __future__ import annotations

import base64
import json
import re
from typing import Any, Final, NamedTuple, NoReturn

import jwt

from memory_layer.config import Settings
from memory_layer.errors import Unauthenticated
from memory_layer.model import LOG_TEXT, SCOPES, TENANT
from memory_layer.service.principals import REFUSED
from memory_layer.stores.token_keys import TokenKeys

MAX_TOKEN: Final = 16_384  # characters
_TYPES: Final = frozenset(
    {"jwt", "at+jwt", "application/at+jwt"}
)  # in lower case; other kinds are made for other readers
_ALGORITHMS: Final = ("EdDSA", "ES256", "RS256", "PS256")  # asymmetric only: a verifier of tokens cannot make one
_PART: Final = re.compile(r"[A-Za-z0-9_-]+")
_LATEST: Final = 2**53 - 1
_KID: Final = 256  # characters


class Claims(NamedTuple):
    """``expires``: seconds since 1970. ``jti``: by what this token alone can be revoked."""

    tenant: str
    service: str
    scopes: frozenset[str]
    expires: float
    jti: str | None


async def read_token(token: str, keys: TokenKeys, settings: Settings) -> Claims:
    """Raises Unauthenticated, whatever is wrong, and IssuerUnavailable where the issuer's keys cannot be had."""
    parts = token.split(".")
    if len(token) > MAX_TOKEN or len(parts) != 3 or not all(map(_PART.fullmatch, parts)):
        raise Unauthenticated(REFUSED)
    header = _decoded(parts[0])
    algorithm, kid, kind = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
    # A token within a token (cty), or one of which parts must be understood that nobody here does (crit), is none that was issued for this.
    if (
        algorithm not in _ALGORITHMS
        or not isinstance(kind, str)
        or kind.lower() not in _TYPES
        or header.keys() & {"crit", "cty", "zip"}
    ):
        raise Unauthenticated(REFUSED)
    if kid is not None and not (isinstance(kid, str) and len(kid) <= _KID):
        raise Unauthenticated(REFUSED)
    claims = _decoded(parts[1])
    for found in await keys.find(kid, algorithm):
        try:
            jwt.decode(
                token,
                found.key,
                algorithms=[algorithm],  # one of those that the key's own type allows
                issuer=settings.jwt_issuer,
                audience=settings.jwt_audience,
                leeway=settings.jwt_clock_skew,
                options={"require": ["exp", "sub", "iss", "aud"]},
            )
            return _claims(claims)
        except jwt.InvalidSignatureError:
            continue
        # What is no time leaves the library as whatever error it makes of it.
        except (jwt.PyJWTError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
            raise Unauthenticated(REFUSED) from error
    raise Unauthenticated(REFUSED)


def _claims(claims: dict[str, Any]) -> Claims:
    if not all(_is_time(claims[name]) for name in ("exp", "nbf", "iat") if name in claims):
        raise Unauthenticated("The token's exp, nbf or iat is no time: seconds since 1970, as a number.")
    tenant, service, jti = claims.get("tenant"), claims.get("sub"), claims.get("jti")
    if not isinstance(tenant, str) or TENANT.fullmatch(tenant) is None:
        raise Unauthenticated("The token names no tenant.")
    if not isinstance(service, str) or LOG_TEXT.fullmatch(service) is None:
        raise Unauthenticated("The token names no service.")
    if jti is not None and (not isinstance(jti, str) or LOG_TEXT.fullmatch(jti) is None):
        raise Unauthenticated("The token's jti is no text of 1 to 128 printable ASCII characters.")
    return Claims(tenant, service, _scopes(claims), float(claims["exp"]), jti)


def _scopes(claims: dict[str, Any]) -> frozenset[str]:
    """``scope`` (RFC 8693), or ``scp`` where there is none; a text with blanks between them, or a list. Unknown ones grant nothing."""
    given = claims.get("scope", claims.get("scp", ""))
    listed = given.split() if isinstance(given, str) else given
    if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
        raise Unauthenticated("The token's scope is neither a text nor a list of texts.")
    return frozenset(listed) & frozenset(SCOPES)


def _is_time(value: Any) -> bool:
    """A NumericDate (RFC 7519) that a double holds exactly; NaN is none either."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _LATEST


def _decoded(part: str) -> dict[str, Any]:
    """A JSON object in which every name stands once: of two, another reader may have seen the other one."""
    try:
        text = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)).decode("utf-8")
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Unauthenticated(REFUSED) from error
    if not isinstance(value, dict):
        raise Unauthenticated(REFUSED)
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")

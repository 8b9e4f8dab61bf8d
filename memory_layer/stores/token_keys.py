"""The public keys that bearer tokens are checked with: from a setting, or from the issuer's JWK set by its URL (RFC 7517).

A key is bound to the algorithms of its type, so that no token chooses how a key is used. What a token's header points at (jku, x5u, jwk,
x5c) is never read: it would be the caller who names the key.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import httpx2
import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from memory_layer.config import Settings
from memory_layer.errors import IssuerUnavailable, UsageError
from memory_layer.stores.remote.urls import service_url
from memory_layer.telemetry.logs import get_logger

MAX_KEYS: Final = 64  # of one set
MAX_TRIED: Final = 4  # for a token that does not say which key it is signed with
MAX_BYTES: Final = 1024 * 1024  # of a JWK set
FETCH_SECONDS: Final = 5.0  # for all of a fetch
FRESH_SECONDS: Final = 300.0  # after which the set is fetched again, beside the requests
OLD_SECONDS: Final = 3600.0  # after which keys that cannot be fetched again do not count any more
PAUSE_SECONDS: Final = 10.0  # between two fetches, whatever tokens name
MIN_RSA_BITS: Final = 2048  # RFC 7518, 3.3

_PEM: Final = re.compile(
    r"(?:^kid:[ \t]*(\S{1,256})[ \t]*\n)?(-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----)",
    re.MULTILINE | re.DOTALL,
)

log = get_logger("memory_layer.tokens")

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


@dataclass(frozen=True, slots=True)
class TokenKey:
    """``kid`` None: the key of every token that names no other one."""

    kid: str | None
    key: PublicKey
    algorithms: tuple[str, ...]


class TokenKeys(Protocol):
    async def find(self, kid: str | None, algorithm: str) -> list[TokenKey]:
        """The keys that a token with this header may be signed with; few. Raises IssuerUnavailable where none are known at all."""

    async def close(self) -> None: ...


class FixedKeys:
    """Keys that are set: PEM blocks, each behind a line ``kid: NAME`` where there are several, or a JWK set."""

    def __init__(self, text: str) -> None:
        """Raises UsageError where no key can be used."""
        self._keys = _keys_of_set(text) if text.lstrip().startswith("{") else _keys_of_pem(text)
        if not self._keys:
            raise UsageError(
                "JWT_PUBLIC_KEY holds no public key that tokens can be checked with: PEM (-----BEGIN PUBLIC KEY-----, Ed25519, P-256, or "
                "RSA of 2048 bits or more; of several each behind a line `kid: NAME`) or a JWK set. Set the key of the issuer of your "
                "tokens, or unset it to use the data folder's own."
            )

    async def find(self, kid: str | None, algorithm: str) -> list[TokenKey]:
        return _fitting(self._keys, kid, algorithm)

    async def close(self) -> None:
        return None


class FetchedKeys:
    """The issuer's JWK set. It is fetched again every five minutes, and for a key id that it does not have, at most once in ten
    seconds; while the issuer does not answer the last one counts, for an hour."""

    def __init__(self, url: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._clock = clock
        self._keys: list[TokenKey] = []
        self._fetched = self._tried = -float("inf")
        self._fetching = asyncio.Lock()
        self._renewal: asyncio.Task[None] | None = None
        self._client: httpx2.AsyncClient | None = None

    async def find(self, kid: str | None, algorithm: str) -> list[TokenKey]:
        age = self._clock() - self._fetched
        if age > OLD_SECONDS:
            await self._fetch_again()
            if self._clock() - self._fetched > OLD_SECONDS:
                raise IssuerUnavailable(
                    "The keys of the issuer of tokens cannot be fetched, so that no token can be checked. Try again later.",
                    retry_after=int(PAUSE_SECONDS),
                )
        elif age > FRESH_SECONDS and (self._renewal is None or self._renewal.done()):
            self._renewal = asyncio.create_task(self._fetch_again(), name="fetch the issuer's keys")
        found = _fitting(self._keys, kid, algorithm)
        if not found and kid is not None:
            await self._fetch_again()
            found = _fitting(self._keys, kid, algorithm)
        return found

    async def close(self) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
        if self._client is not None:
            await self._client.aclose()

    async def _fetch_again(self) -> None:
        """Unless it was tried a moment ago, by whomever. What goes wrong is logged, and the keys stay as they are."""
        async with self._fetching:
            now = self._clock()
            if now - self._tried < PAUSE_SECONDS:
                return
            self._tried = now
            try:
                async with asyncio.timeout(FETCH_SECONDS):
                    body = await self._get()
                keys = _keys_of_set(body)
                if not keys:
                    raise ValueError("it holds no key that tokens can be checked with here")
            except (httpx2.HTTPError, ValueError, TimeoutError, OSError) as error:
                why = f"no answer within {FETCH_SECONDS:g} s" if isinstance(error, TimeoutError) else str(error)
                log.warning(
                    "the keys of the issuer of tokens could not be fetched",
                    host=urlsplit(self._url).netloc,
                    error=why[:200],
                )
                return
            self._keys, self._fetched = keys, now

    async def _get(self) -> str:
        """The body of a 200, of bounded size. A redirect is none: it may lead anywhere."""
        if self._client is None:
            self._client = httpx2.AsyncClient(timeout=FETCH_SECONDS, follow_redirects=False)
        body = bytearray()
        async with self._client.stream(
            "GET", self._url, headers={"Accept": "application/json", "Accept-Encoding": "identity"}
        ) as response:
            if response.status_code != 200:
                raise ValueError(f"it answers {response.status_code}")
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > MAX_BYTES:
                    raise ValueError(f"it is larger than {MAX_BYTES} bytes")
        return body.decode("utf-8")


def open_token_keys(settings: Settings, own: Callable[[], str]) -> TokenKeys:
    """Where the settings say that the keys are; ``own`` gives the data folder's, in PEM. Raises UsageError and PolicyRefused."""
    if settings.jwt_jwks_url is None:
        return FixedKeys(settings.jwt_public_key or own())
    if settings.jwt_public_key is not None:
        raise UsageError(
            "JWT_JWKS_URL and JWT_PUBLIC_KEY are both set, and one of them says which keys count. Unset the other."
        )
    url, _, query = settings.jwt_jwks_url.partition("?")  # some issuers name a tenant there
    return FetchedKeys(service_url("JWT_JWKS_URL", url, settings) + (f"?{query}" if query else ""))


def _fitting(keys: Sequence[TokenKey], kid: str | None, algorithm: str) -> list[TokenKey]:
    usable = [key for key in keys if algorithm in key.algorithms]
    named = [key for key in usable if kid is not None and key.kid == kid]
    return (named or [key for key in usable if key.kid is None or kid is None])[:MAX_TRIED]


def _keys_of_pem(text: str) -> list[TokenKey]:
    found = []
    for kid, block in _PEM.findall(text.replace("\r\n", "\n")):
        try:
            key = load_pem_public_key(block.encode())
        except ValueError:
            continue
        algorithms = _algorithms(key)
        if algorithms:
            found.append(TokenKey(kid or None, key, algorithms))  # type: ignore[arg-type] # _algorithms knows only these types
    return found[:MAX_KEYS]


def _keys_of_set(text: str) -> list[TokenKey]:
    """The keys of a JWK set that can be used; others are left out, as RFC 7517, 5 says. Raises ValueError for what is no such set."""
    try:
        document = json.loads(text)
    except RecursionError:
        document = None
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise ValueError("it is no JWK set")
    found = [_key_of(jwk) for jwk in listed[:MAX_KEYS] if isinstance(jwk, dict)]
    return [key for key in found if key is not None]


def _key_of(jwk: dict[str, Any]) -> TokenKey | None:
    """A public key for signatures, or None. A set that publishes a private key has none of it."""
    kid, named = jwk.get("kid"), jwk.get("alg")
    if jwk.get("kty") not in ("RSA", "EC", "OKP") or jwk.get("use", "sig") != "sig" or "d" in jwk:
        return None
    if not isinstance(jwk.get("key_ops", []), list) or "verify" not in jwk.get("key_ops", ["verify"]):
        return None
    try:
        key = jwt.PyJWK({name: value for name, value in jwk.items() if name != "alg"}).key
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    algorithms = tuple(one for one in _algorithms(key) if named in (None, one))
    if not algorithms or not (kid is None or isinstance(kid, str)):
        return None
    return TokenKey(kid, key, algorithms)


def _algorithms(key: object) -> tuple[str, ...]:
    """What a key may verify: its type says it, and no token does."""
    if isinstance(key, ed25519.Ed25519PublicKey):
        return ("EdDSA",)
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return ("ES256",)
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= MIN_RSA_BITS:
        return ("RS256", "PS256")
    return ()

"""Pinecone over HTTP: one request with its retries. Paths and shapes: OpenAPI ``db_data``, ``db_control`` of version 2025-10.

Nothing that the endpoint writes into an error reaches our errors or log: only the status and the name of its code do. So
neither the key nor a stored value can leak. A refused key is read again from its file, once a request, before it is an error.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import httpx2
import msgspec

from memory_layer.errors import MemoryLayerError, UsageError, VectorStoreUnavailable
from memory_layer.stores.remote.http import Tries, TryAgain, retry_after, with_tries
from memory_layer.stores.remote.urls import on_this_machine

API_VERSION: Final = "2025-10"
_FIRST_PAUSE: Final = 0.1  # seconds
_LONGEST_PAUSE: Final = 5.0
# https://grpc.io/docs/guides/status-codes/, which is what `code` in an error's body is
_CODES: Final = {3: "INVALID_ARGUMENT", 5: "NOT_FOUND", 7: "PERMISSION_DENIED", 8: "RESOURCE_EXHAUSTED", 16: "UNAUTHENTICATED"}  # fmt: skip
_OF_A_NAMESPACE: Final = ("/query", "/vectors/fetch", "/vectors/list", "/vectors/delete")
_CHECK: Final = {
    400: "it refuses this request for good; check that the index is dense, of metric cosine and of this dimension",
    401: "check VECTOR_DB_API_KEY",
    402: "check the plan and the billing of the account",
    403: "check that VECTOR_DB_API_KEY may use this index, and its quota",
    404: "check VECTOR_DB_ENDPOINT, which is the host of the index",
    413: "it takes no request of this size",
}


class Answer(NamedTuple):
    """``lsn``: of a write, the position that a reader must have reached to see it; of a query, the position it had reached."""

    body: bytes
    lsn: int | None


class NamespaceUnknown(Exception):
    """Nothing was ever written there, as far as this endpoint knows yet."""


class Refusal(VectorStoreUnavailable):
    """The endpoint answered, and will answer the same again."""

    def __init__(self, message: str, answered: int) -> None:
        super().__init__(message)
        self.answered = answered  # the HTTP status
        # A refused key is no fault of the row that was to be written: the row waits until the key is replaced.
        self.retryable = answered in (401, 402, 403, 404)


class _Status(msgspec.Struct):
    code: int | None = None


class Wire:
    """Requests to one index."""

    def __init__(
        self,
        endpoint: str,
        read_key: Callable[[], str | None],
        *,
        tries: int = 4,
        call_timeout: float = 10.0,
        setting: str = "VECTOR_DB_ENDPOINT",
    ) -> None:
        """``call_timeout``: seconds that one try may wait for bytes. ``setting``: what ``endpoint`` was set by. Raises UsageError."""
        self._url = check_endpoint(endpoint, setting)
        self._read_key = read_key
        self._key = check_key(read_key())
        self._tries = Tries(tries, _FIRST_PAUSE, _LONGEST_PAUSE)
        self._client = httpx2.AsyncClient(
            base_url=self._url,
            headers={"X-Pinecone-Api-Version": API_VERSION, "Content-Type": "application/json"},
            timeout=httpx2.Timeout(call_timeout, connect=5.0),
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def post(self, path: str, body: bytes, *, deadline: float) -> Answer:
        """``deadline``: seconds for all tries. Raises NamespaceUnknown, VectorStoreUnavailable."""
        return await self._request("POST", path, {}, body, deadline)

    async def get(self, path: str, params: dict[str, Any], *, deadline: float) -> Answer:
        return await self._request("GET", path, params, b"", deadline)

    async def patch(self, path: str, body: bytes, *, deadline: float) -> Answer:
        return await self._request("PATCH", path, {}, body, deadline)

    async def _request(self, method: str, path: str, params: dict[str, Any], body: bytes, deadline: float) -> Answer:
        attempt = partial(self._try, method, path, params, body)
        return await with_tries(attempt, self._tries, deadline, self._unavailable)

    async def _try(self, method: str, path: str, params: dict[str, Any], body: bytes) -> Answer:
        key = self._key
        response = await self._send(method, path, params, body, key)
        if response.status_code in (401, 403):
            with contextlib.suppress(MemoryLayerError):  # a file that is being replaced: the old key stays
                self._key = check_key(self._read_key())
            if self._key != key:
                response = await self._send(method, path, params, body, self._key)
        status = response.status_code
        if 200 <= status < 300:
            header = "x-pinecone-max-indexed-lsn" if path == "/query" else "x-pinecone-request-lsn"
            lsn = response.headers.get(header, "")
            return Answer(response.content, int(lsn) if re.fullmatch(r"[0-9]{1,19}", lsn) else None)
        code = _code(response.content)
        if status == 404 and code == 5 and path in _OF_A_NAMESPACE:
            raise NamespaceUnknown
        what = f"answered {status} {_CODES.get(code or 0, '')}".rstrip()
        if status in (408, 425, 429) or status >= 500:
            raise TryAgain(what, retry_after(response.headers.get("Retry-After")))
        raise Refusal(f"Pinecone at {self._url.host} {what}: {_CHECK.get(status, 'check VECTOR_DB_ENDPOINT')}.", status)

    async def _send(self, method: str, path: str, params: dict[str, Any], body: bytes, key: str) -> httpx2.Response:
        try:
            return await self._client.request(
                method, path, params=params or None, content=body or None, headers={"Api-Key": key}
            )
        except httpx2.RequestError as error:
            raise TryAgain(f"cannot be reached ({type(error).__name__})") from None

    def _unavailable(self, what: str, *, retry_after: int | None = None) -> VectorStoreUnavailable:
        return VectorStoreUnavailable(f"Pinecone at {self._url.host} {what}.", retry_after=retry_after)


def check_endpoint(endpoint: str, setting: str = "VECTOR_DB_ENDPOINT") -> httpx2.URL:
    """The URL of a host, https where no scheme is named. Raises UsageError."""
    text = endpoint.strip()
    text = text if "://" in text else f"https://{text}"
    try:
        urlsplit(text)  # refuses brackets that do not close, which httpx2 takes for a host
        url = httpx2.URL(text)
    except (httpx2.InvalidURL, ValueError):
        raise UsageError(f"{setting} is not a host of Pinecone.") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise UsageError(f"{setting} must be a host of Pinecone, with or without https://.")
    if url.userinfo:
        raise UsageError(f"{setting} must not hold a user or password; the key goes into VECTOR_DB_API_KEY.")
    if url.scheme == "http" and not on_this_machine(url.host):
        raise UsageError(f"{setting} must be https: over http the key and the vectors would be readable on the way.")
    return url.copy_with(path=url.path.rstrip("/"), query=None, fragment=None)


def check_key(key: str | None) -> str:
    """Raises UsageError, which never quotes the key."""
    if not key:
        raise UsageError("VECTOR_DB_PROVIDER=pinecone needs VECTOR_DB_API_KEY, or VECTOR_DB_API_KEY_FILE.")
    if not re.fullmatch(r"[!-~]+", key):
        raise UsageError("VECTOR_DB_API_KEY holds blanks or characters that no HTTP header can carry.")
    return key


def _code(body: bytes) -> int | None:
    try:
        return msgspec.json.decode(body, type=_Status).code
    except msgspec.MsgspecError:
        return None

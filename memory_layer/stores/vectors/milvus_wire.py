"""The connection to Milvus: deadlines, tries, errors, the token, the version and the collections.

``pymilvus`` tries 75 times by default, so each call here has a deadline and few tries. Its own log quotes what the server
answered, and its errors what was sent: both are kept out of ours, which name only the kind of error.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

from memory_layer.errors import DependencyUnavailable, MemoryLayerError, UsageError, VectorStoreUnavailable
from memory_layer.installing import install
from memory_layer.stores.vectors.milvus_records import (
    OLDEST,
    check_database,
    is_lite,
    parse_version,
)

TRIES: Final = 3  # of pymilvus, which has 75 by default
_CONNECT_SECONDS: Final = 5.0
# https://github.com/milvus-io/milvus/blob/v2.3.5/pkg/util/merr/errors.go
_NOT_SERVING: Final = 2
_NOT_FOUND: Final = 100
_NOT_LOADED: Final = (101, 103)
_THROTTLED: Final = (4, 8, 9)
_REFUSED_TOKEN: Final = (1400, 1401)
_MALFORMED: Final = range(1100, 1200)
_FOREIGN_FIELDS: Final = range(1700, 1800)

_Answer = TypeVar("_Answer")


class Endpoint(NamedTuple):
    url: str  # scheme, host and port
    database: str
    host: str


class CollectionMissing(VectorStoreUnavailable):
    """Milvus does not know the collection."""


class NotLoaded(VectorStoreUnavailable):
    """The collection is not in Milvus's memory."""


class Wire:
    """One connection, opened when it is first used and again after it broke."""

    def __init__(
        self,
        endpoint: str,
        read_token: Callable[[], str | None],
        environment: str = "dev",
        *,
        call_timeout: float = 10.0,
    ) -> None:
        """``call_timeout``: seconds that a call may take unless it asks for more. Raises UsageError."""
        self.endpoint = check_endpoint(endpoint)
        self.environment = environment
        self.call_timeout = call_timeout
        self.version: tuple[int, int, int] | None = None  # of Milvus Lite there is none
        self._read_token = read_token
        self._token = check_token(read_token())
        self._client: Any = None
        self._connecting = asyncio.Lock()
        self._retired: dict[asyncio.Task[None], Any] = {}

    async def close(self) -> None:
        clients = [self._client, *self._retired.values()]
        for task in self._retired:
            task.cancel()
        self._client, self._retired = None, {}
        for client in clients:
            await _close(client)

    async def call(self, what: Callable[[Any], Awaitable[_Answer]], *, seconds: float | None = None) -> _Answer:
        """``what`` with a connected client, within ``seconds``. Raises VectorStoreUnavailable and its kinds."""
        from pymilvus.exceptions import MilvusException  # an extra, and dear to import

        seconds = self.call_timeout if seconds is None else seconds
        client: Any = None
        try:
            async with asyncio.timeout(seconds):
                client = await self._connected()
                return await what(client)
        except TimeoutError:
            # A channel to a server that vanished may never recover.
            self._retire(client)
            raise self._unavailable(f"did not answer within {seconds:g} s") from None
        except MemoryLayerError:
            raise
        except MilvusException as error:
            raise self._translated(error, client) from None
        except Exception as error:
            if not rpc_code(error):
                raise
            raise self._translated(error, client) from None

    async def connect(self) -> None:
        """Raises VectorStoreUnavailable, and DependencyUnavailable from a server that is too old."""
        await self.call(lambda client: client.get_server_version(retry_times=TRIES))

    async def _connected(self) -> Any:
        if self._client is not None:
            return self._client
        async with self._connecting:
            if self._client is None:
                self._client = await self._connect()
            return self._client

    async def _connect(self) -> Any:
        from pymilvus import AsyncMilvusClient

        # They have handlers of their own that print the server's answers.
        for name in ("pymilvus", "pymilvus.milvus_client"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        with contextlib.suppress(MemoryLayerError):  # a file that is being replaced: the old token stays
            self._token = check_token(self._read_token())
        client = AsyncMilvusClient(
            self.endpoint.url,
            token=self._token or "",
            db_name=self.endpoint.database,
            timeout=min(_CONNECT_SECONDS, self.call_timeout),
            dedicated=True,
            # Channels to one server share how long they wait before they dial again, unless each has its own.
            grpc_options={"grpc.use_local_subchannel_pool": 1, "grpc.max_reconnect_backoff_ms": 1000},
        )
        try:
            text = str(await client.get_server_version(retry_times=TRIES))
            self.version = check_version(text)
        except BaseException:
            await _close(client)
            raise
        return client

    def _retire(self, client: Any) -> None:
        """The next call connects anew. Calls under way on the old channel may still end: to close it would cancel them."""
        if client is None:
            return
        if self._client is client:
            self._client = None
            task = asyncio.create_task(_close(client, after=self.call_timeout))
            self._retired[task] = client
            task.add_done_callback(lambda task: self._retired.pop(task, None))

    def _translated(self, error: Exception, client: Any) -> VectorStoreUnavailable:
        rpc, code = rpc_code(error), _server_code(error)
        if rpc in ("UNAUTHENTICATED", "PERMISSION_DENIED") or code in _REFUSED_TOKEN:
            # No fault of the row that was to be written: it waits until the token is replaced.
            self._retire(client)
            return self._unavailable("refuses the token: check VECTOR_DB_API_KEY (user:password) and the user's roles")
        if (
            code == _NOT_SERVING
            or rpc in ("UNAVAILABLE", "CANCELLED", "UNKNOWN")
            or type(error).__name__
            in (
                "ConnectError",
                "MilvusUnavailableException",
            )
        ):
            self._retire(client)
            return self._unavailable("cannot be reached")
        if rpc == "DEADLINE_EXCEEDED":
            return self._unavailable("did not answer in time")
        if rpc in ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED"):
            return self._unavailable(f"refuses this request for good ({rpc})", permanent=True)
        if code == _NOT_FOUND:
            return CollectionMissing(f"Milvus at {self.endpoint.host} does not know the collection.")
        if code in _NOT_LOADED:
            return NotLoaded(f"Milvus at {self.endpoint.host} has not loaded the collection.")
        if code in _THROTTLED:
            return self._unavailable(f"is at its limits (code {code})", retry_after=1)
        name = type(error).__name__
        refused = code in _MALFORMED or code in _FOREIGN_FIELDS or bool(getattr(error, "is_input_error", False))
        if refused or name not in ("MilvusException", "DescribeCollectionException"):
            return self._unavailable(
                f"or its client refuses this request for good ({name}, code {code})", permanent=True
            )
        if client is None:
            return self._unavailable("cannot be reached")
        return self._unavailable(f"failed (code {code}); its log says more")

    def _unavailable(
        self, what: str, *, retry_after: int | None = None, permanent: bool = False
    ) -> VectorStoreUnavailable:
        error = VectorStoreUnavailable(f"Milvus at {self.endpoint.host} {what}.", retry_after=retry_after)
        error.retryable = not permanent
        return error


async def _close(client: Any, *, after: float = 0) -> None:
    if client is None:
        return
    await asyncio.sleep(after)
    with contextlib.suppress(Exception):
        await client.close()


def check_installed() -> None:
    """Raise UsageError where the extra is not installed."""
    try:
        import pymilvus  # noqa: F401 (whether it can be)
    except ImportError:
        raise UsageError(
            "VECTOR_DB_PROVIDER=milvus needs pymilvus, which is not installed. Run: " + install("server", "milvus")
        ) from None


def check_version(text: str) -> tuple[int, int, int] | None:
    """The server's version, None for Milvus Lite. Raises DependencyUnavailable when it is too old to trust."""
    if is_lite(text):
        return None
    version = parse_version(text)
    if version is None or version < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise DependencyUnavailable(
            f"The vector store needs Milvus {oldest} or newer; the server says {text[:40]!r}. Upgrade it, or set "
            "VECTOR_DB_ENDPOINT to one that is."
        )
    return version


def check_endpoint(endpoint: str) -> Endpoint:
    """``http://host:19530``, with a database as its path where it is not the default one. Raises UsageError."""
    text = endpoint.strip()
    text = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise UsageError("VECTOR_DB_ENDPOINT is not the URL of a Milvus server, such as http://host:19530.") from None
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise UsageError("VECTOR_DB_ENDPOINT must be the URL of a Milvus server, such as http://host:19530.")
    if parts.username is not None or parts.password is not None:
        raise UsageError(
            "VECTOR_DB_ENDPOINT must not hold a user or password; user:password go into VECTOR_DB_API_KEY."
        )
    shown = f"[{host}]" if ":" in host else host
    port = port if port is not None else 443 if parts.scheme == "https" else 19530
    return Endpoint(
        f"{parts.scheme}://{shown}:{port}", check_database(unquote(parts.path.strip("/"))), f"{shown}:{port}"
    )


def check_token(token: str | None) -> str | None:
    """``user:password`` or an API key; None where Milvus asks for none. Raises UsageError, which never quotes it."""
    if token and not re.fullmatch(r"[!-~]+", token):
        raise UsageError("VECTOR_DB_API_KEY holds blanks or characters that no header can carry; it is user:password.")
    return token or None


def _server_code(error: Exception) -> int | None:
    code = getattr(error, "code", None)
    return int(code) if isinstance(code, int) else None


def rpc_code(error: BaseException | None) -> str | None:
    """The name of the gRPC status somewhere in the chain of causes."""
    for _ in range(8):
        if error is None:
            break
        code = getattr(error, "code", None)
        code = code() if callable(code) else code
        name = getattr(code, "name", None)
        if isinstance(name, str) and name.isupper() and not isinstance(code, int):
            return name
        error = error.__context__ if error.__cause__ in (None, error) else error.__cause__  # pymilvus: "raise e from e"
    return None

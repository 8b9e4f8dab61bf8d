"""The one exception of the SDK, and how an answer becomes one."""

from __future__ import annotations

from typing import Any

import httpx2


class MemoryLayerClientError(Exception):
    """A call failed.

    ``code`` is the API's stable code (``NOT_FOUND``, ``LEGAL_HOLD``, ...), or ``UNREACHABLE`` and ``TIMEOUT`` when no
    answer came, or ``CHECKSUM_MISMATCH`` when downloaded bytes are not the announced ones. ``status`` is the HTTP
    status, 0 without an answer. ``details`` lists ``{"path", "problem"}``. ``retryable`` says whether the same call may
    succeed later; ``retry_after`` is the server's Retry-After in seconds.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int = 0,
        details: tuple[dict[str, Any], ...] = (),
        request_id: str | None = None,
        retryable: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status
        self.details = details
        self.request_id = request_id
        self.retryable = retryable
        self.retry_after = retry_after

    def __str__(self) -> str:
        details = [(str(d.get("path", "?")), str(d.get("problem", "?"))) for d in self.details]
        unsaid = [f"{path}: {problem}" for path, problem in details if not self._says(path, problem)]
        return f"{self.code}: {self.message}" + (f" ({'; '.join(unsaid)})" if unsaid else "")

    def _says(self, path: str, problem: str) -> bool:
        """Whether the message names a detail already."""
        return path in self.message and problem in self.message


def from_response(response: httpx2.Response, retry_after: float | None) -> MemoryLayerClientError:
    """The error that an answer carries; a proxy's page instead of our JSON becomes ``HTTP_<status>``."""
    request_id = response.headers.get("X-Request-Id")
    try:
        body = response.json()["error"]
        code, message = str(body["code"]), str(body["message"])
    except (ValueError, KeyError, TypeError):
        return MemoryLayerClientError(
            f"HTTP_{response.status_code}",
            f"{response.request.url.host} answered {response.status_code} {response.reason_phrase} without an error "
            "body of the Memory Layer. Check the URL, and any proxy in between.",
            status=response.status_code,
            request_id=request_id,
            retryable=response.status_code in (429, 502, 503, 504),
            retry_after=retry_after,
        )
    details = body.get("details")
    return MemoryLayerClientError(
        code,
        message,
        status=response.status_code,
        details=tuple(d for d in details if isinstance(d, dict)) if isinstance(details, list) else (),
        request_id=body.get("requestId") or request_id,
        retryable=bool(body.get("retryable", response.status_code in (429, 503))),
        retry_after=retry_after,
    )


def from_proxy(error: ImportError | ValueError, url: str) -> MemoryLayerClientError:
    """The environment names a proxy that cannot be used."""
    return MemoryLayerClientError(
        "INVALID_PROXY",
        f"the proxy that the environment names for {url} cannot be used ({error}). Set HTTP_PROXY, HTTPS_PROXY or ALL_PROXY to an http:// "
        "proxy, unset them, or name the host in NO_PROXY.",
    )


def from_transport(error: httpx2.HTTPError | httpx2.InvalidURL, url: str) -> MemoryLayerClientError:
    """No answer came: the connection failed, broke or timed out."""
    reason = str(error) or type(error).__name__
    if isinstance(error, httpx2.TimeoutException) and not isinstance(error, httpx2.ConnectTimeout):
        return MemoryLayerClientError("TIMEOUT", f"{url} did not answer in time ({reason}).", retryable=True)
    if isinstance(error, (httpx2.InvalidURL, httpx2.UnsupportedProtocol)):
        return MemoryLayerClientError("INVALID_URL", f"{url!r} is no usable URL ({reason}); give http://host:port.")
    return MemoryLayerClientError("UNREACHABLE", f"no Memory Layer answers at {url} ({reason}).", retryable=True)

"""What both clients share: address, credentials, timeouts, and the reading of an answer."""

from __future__ import annotations

import os
from typing import Any

import httpx2

from memory_layer import __version__
from memory_layer.client.calls import Call
from memory_layer.client.errors import MemoryLayerClientError, from_response
from memory_layer.client.retry import parse_retry_after

DEFAULT_URL = "http://127.0.0.1:4300"


def address(url: str | None) -> str:
    return (url or os.environ.get("MEMORY_URL") or DEFAULT_URL).rstrip("/")


def options(url: str, token: str | None, timeout: float, max_connections: int) -> dict[str, Any]:
    """Arguments of ``httpx2.Client`` and ``httpx2.AsyncClient``."""
    headers = {"User-Agent": f"memory-layer-python/{__version__}", "Accept": "application/json"}
    token = token if token is not None else os.environ.get("MEMORY_TOKEN")
    if token:
        token = token.strip()
        headers |= {"X-API-Key": token} if token.startswith("mlk_") else {"Authorization": f"Bearer {token}"}
    own = _is_own(url)
    return {
        "base_url": url,
        "headers": headers,
        "timeout": httpx2.Timeout(timeout, connect=min(5.0, timeout)),
        "limits": httpx2.Limits(max_connections=max_connections, max_keepalive_connections=max_connections),
        "follow_redirects": True,  # content may be a time-limited link; httpx2 drops the token for another host
        # A proxy that the environment names is not used for this machine: one of a kind that httpx2 does not speak would keep every call from
        # being made. Certificates that the environment names count all the same.
        "trust_env": not own,
        "verify": httpx2.create_ssl_context() if own and url.startswith("https") else True,
    }


def _is_own(url: str) -> bool:
    """Whether this is a URL of this machine. What is no URL is refused where the client is made."""
    try:
        host = httpx2.URL(url).host
    except httpx2.InvalidURL:
        return False
    return host in ("localhost", "::1") or host.startswith("127.")


def request(client: httpx2.Client | httpx2.AsyncClient, call: Call, content: Any = None) -> httpx2.Request:
    return client.build_request(
        call.method,
        call.path,
        params=call.params or None,
        headers=call.headers,
        content=call.body if content is None else content,
    )


def problem(call: Call, response: httpx2.Response) -> MemoryLayerClientError | None:
    """The error that a response stands for, its body already read; None when it is an answer."""
    if response.is_success or response.status_code in call.accepted:
        return None
    return from_response(response, parse_retry_after(response.headers.get("Retry-After")))


def answer(response: httpx2.Response) -> dict[str, Any]:
    """The JSON object of an answer; for an empty one the sequence number of the write in the log, if any."""
    if not response.content:
        seq = response.headers.get("X-Audit-Seq")
        return {"auditSeq": int(seq)} if seq and seq.isdigit() else {}
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise MemoryLayerClientError(
            "UNEXPECTED_ANSWER",
            f"{response.request.url} answered {response.status_code}, but not with a JSON object. Is this a Memory Layer?",
            status=response.status_code,
        )
    return body


def location(response: httpx2.Response) -> str | None:
    """Where a redirect leads; None when it is none."""
    return response.headers.get("Location") if response.status_code == 302 else None

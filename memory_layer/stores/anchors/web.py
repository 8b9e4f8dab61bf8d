"""Checkpoints at an HTTPS endpoint: POST of the note to its URL, GET of the URL for the newest one where it answers that.

2xx to a POST means that the note is kept for good, 409 that another one or a larger one is. A GET is answered with the note, or with
404, 405 or 501 where the endpoint keeps none or shows none. Nothing that the endpoint writes reaches our errors.
"""

from __future__ import annotations

import base64
from functools import partial
from typing import Final
from urllib.parse import unquote, urlsplit, urlunsplit

import httpx2

from memory_layer.audit.checkpoint import MAX_NOTE
from memory_layer.errors import AnchorUnavailable, Conflict, UsageError
from memory_layer.stores.remote.http import Tries, TryAgain, retry_after, with_tries
from memory_layer.stores.remote.urls import on_this_machine

TRIES: Final = Tries(3, first_pause=0.3, longest_pause=5.0)
CONNECT, ANSWER = 3.0, 5.0  # seconds
WITHIN: Final = 30.0  # seconds, with all tries
_SILENT: Final = (404, 405, 410, 501)


class WebPlace:
    """An ``AnchorPlace`` over HTTP. http:// is for this machine alone."""

    def __init__(self, url: str) -> None:
        """Raises UsageError."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme == "http" and not on_this_machine(host):
            raise UsageError(
                f"A checkpoint is sent to {host} over http://, where anybody on the way can change what comes back (AUDIT_ANCHORS). Use https://."
            )
        shown = f"[{host}]" if ":" in host else host
        address = shown if parts.port is None else f"{shown}:{parts.port}"
        self._url = urlunsplit((parts.scheme, address, parts.path or "/", parts.query, ""))
        self.name = urlunsplit((parts.scheme, address, parts.path or "/", "", ""))
        # Nothing that has to be expanded: what comes back is bounded as it comes.
        headers = {"User-Agent": "memory-layer", "Accept-Encoding": "identity"}
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode('ascii')}"
        try:
            self._client = httpx2.AsyncClient(
                headers=headers, timeout=httpx2.Timeout(ANSWER, connect=CONNECT), follow_redirects=False
            )
        except (ImportError, ValueError) as error:
            raise UsageError(
                f"{self.name} cannot be reached through the proxy that the environment names (HTTPS_PROXY, ALL_PROXY): {error}. Unset it, or "
                "put the host into NO_PROXY."
            ) from None

    async def newest(self, origin: str) -> bytes | None:
        status, body = await self._ask("GET", origin, None)
        if status in _SILENT:
            return None
        if status != 200:
            raise AnchorUnavailable(f"{self.name} answers {status} to a GET. 200 with the note, or 404, is expected.")
        return body

    async def keep(self, origin: str, size: int, note: bytes) -> None:
        status, _ = await self._ask("POST", origin, note)
        if status == 409:
            raise Conflict(
                f"{self.name} keeps another checkpoint than that of {size} entries, or a larger one (409). Nothing was changed there."
            )
        if not 200 <= status < 300:
            raise AnchorUnavailable(f"{self.name} answers {status} to a POST. Check its address and credentials.")

    async def close(self) -> None:
        await self._client.aclose()

    async def _ask(self, method: str, origin: str, note: bytes | None) -> tuple[int, bytes]:
        """Status and body, of which no more than a note is read. What may pass is tried again."""
        about = {"Content-Type": "text/plain; charset=utf-8"} if note is not None else {"Accept": "text/plain"}
        about["X-Log-Origin"] = origin
        return await with_tries(partial(self._try, method, note, about), TRIES, WITHIN, self._unavailable)

    async def _try(self, method: str, note: bytes | None, about: dict[str, str]) -> tuple[int, bytes]:
        try:
            async with self._client.stream(method, self._url, content=note, headers=about) as answer:
                body = bytearray()
                async for block in answer.aiter_raw():
                    body += block
                    if len(body) > MAX_NOTE:
                        if method == "GET":
                            raise AnchorUnavailable(f"{self.name} answers with more than a checkpoint may have.")
                        break
        except httpx2.HTTPError as error:
            raise TryAgain(f"cannot be reached ({type(error).__name__})") from None
        if answer.status_code >= 500 and answer.status_code != 501:
            raise TryAgain(f"answers {answer.status_code}", retry_after(answer.headers.get("Retry-After")))
        return answer.status_code, bytes(body)

    def _unavailable(self, what: str, *, retry_after: int | None = None) -> AnchorUnavailable:
        return AnchorUnavailable(f"{self.name}: it {what}.", retry_after=retry_after)

"""Vectors from any endpoint that speaks OpenAI's ``POST /embeddings``: OpenAI, Azure, vLLM, Ollama, TEI and others.

Request and answer: https://platform.openai.com/docs/api-reference/embeddings. Nothing that the endpoint writes into an
error, and no text sent to it, reaches our errors or log: only its short error code does. So the key cannot leak either.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from typing import Final
from urllib.parse import urlsplit

import httpx2
import msgspec
import numpy as np
from numpy.typing import NDArray

from memory_layer.errors import DimensionMismatch, EmbedderUnavailable, UsageError
from memory_layer.stores.protocols import Embedded
from memory_layer.stores.remote.http import Tries, TryAgain, retry_after, with_tries

_OPENAI: Final = "https://api.openai.com/v1"
_MAX_INPUTS: Final = 256  # texts in one request; OpenAI takes 2,048, others 256 or fewer
_MAX_CHARACTERS: Final = 300_000  # in one request; OpenAI takes 300,000 tokens
_FIRST_PAUSE: Final = 0.5  # seconds
_LONGEST_PAUSE: Final = 10.0
_CODE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_CHECK: Final = {
    400: "check that EMBEDDINGS_MODEL exists there, and that no text is longer than it accepts",
    401: "check EMBEDDINGS_API_KEY",
    403: "check that EMBEDDINGS_API_KEY may use EMBEDDINGS_MODEL",
    404: "check EMBEDDINGS_ENDPOINT (it ends before /embeddings) and EMBEDDINGS_MODEL",
    413: "its limit on the size of a request is lower than 300,000 characters; raise it there",
    422: "check that EMBEDDINGS_MODEL exists there, and that no text is longer than it accepts",
}


class _Item(msgspec.Struct):
    index: int
    embedding: list[float]


class _Answer(msgspec.Struct):
    data: list[_Item]


class _Error(msgspec.Struct):
    code: str | int | None = None
    type: str | None = None
    message: str | None = None


class _Refusal(msgspec.Struct):
    error: _Error | None = None


class OpenAIEmbedder:
    """An ``Embedder`` over HTTP. Retries what may pass (429, 5xx, broken connections) and nothing else."""

    def __init__(
        self,
        model: str,
        dimension: int,
        endpoint: str | None = None,
        api_key: str | None = None,
        *,
        tries: int = 5,
        deadline: float = 60.0,
    ) -> None:
        """``deadline``: seconds that one request may take with all its tries. Raises UsageError."""
        self._url = _check_endpoint(endpoint or _OPENAI)
        if endpoint is None and not api_key:
            raise UsageError(
                "EMBEDDINGS_PROVIDER=openai needs EMBEDDINGS_API_KEY, or EMBEDDINGS_ENDPOINT of a server without."
            )
        if api_key is not None and not re.fullmatch(r"[!-~]*", api_key):
            raise UsageError("EMBEDDINGS_API_KEY holds blanks or characters that no HTTP header can carry.")
        if not model:
            raise UsageError("EMBEDDINGS_PROVIDER=openai needs EMBEDDINGS_MODEL.")
        if dimension < 1:
            raise UsageError(f"EMBEDDINGS_DIMENSIONS is {dimension}; it must be at least 1.")
        self.model = model
        self.dimension = dimension
        self._tries = Tries(tries, _FIRST_PAUSE, _LONGEST_PAUSE)
        self._deadline = deadline
        self._names_dimension = True
        self._client = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx2.Timeout(30.0, connect=5.0),
        )

    async def embed(self, texts: Sequence[str], *, query: bool = False) -> Embedded:  # noqa: ARG002 - the API knows one kind
        """A blank text is not sent, for there is nothing to read in it; how much the endpoint reads of the others it does not say.

        Raises EmbedderUnavailable, and DimensionMismatch when the model makes vectors of another length.
        """
        full = [place for place, text in enumerate(texts) if text.strip()]
        vectors = np.zeros((len(texts), self.dimension), np.float32)
        done = 0
        for batch in _batches([texts[place] for place in full]):
            vectors[full[done : done + len(batch)]] = await self._request(batch)
            done += len(batch)
        return Embedded(vectors, [None if text.strip() else "none" for text in texts])

    async def close(self) -> None:
        await self._client.aclose()

    async def _request(self, texts: list[str]) -> NDArray[np.float32]:
        async def attempt() -> NDArray[np.float32]:
            body = await self._post(texts)
            return await asyncio.to_thread(self._read, body, len(texts))

        return await with_tries(attempt, self._tries, self._deadline, self._unavailable)

    async def _post(self, texts: list[str]) -> bytes:
        """The body of a 200. Raises TryAgain or EmbedderUnavailable."""
        request: dict[str, str | int | list[str]] = {
            "model": self.model,
            "input": texts,
            "encoding_format": "float",
        }
        if self._names_dimension:
            request["dimensions"] = self.dimension
        try:
            response = await self._client.post(
                self._url, content=msgspec.json.encode(request), headers={"Content-Type": "application/json"}
            )
        except httpx2.RequestError as error:
            raise TryAgain(f"cannot be reached ({type(error).__name__})") from None
        if response.status_code == 200:
            return response.content
        status, refusal = response.status_code, _refusal(response.content)
        if status in (400, 422) and self._names_dimension and "dimension" in (refusal.message or "").lower():
            # Models of one length refuse the parameter even with that length. The answer is checked anyway.
            self._names_dimension = False
            return await self._post(texts)
        code = next((c for c in (refusal.code, refusal.type) if isinstance(c, str) and _CODE.fullmatch(c)), "")
        what = f"answered {status} {code}".rstrip()
        if code == "insufficient_quota":
            raise self._unavailable(f"{what}: check the plan and the billing of the account")
        if status in (408, 425, 429) or status >= 500:
            raise TryAgain(what, retry_after(response.headers.get("Retry-After")))
        raise self._unavailable(f"{what}: {_CHECK.get(status, 'check EMBEDDINGS_ENDPOINT')}")

    def _read(self, body: bytes, count: int) -> NDArray[np.float32]:
        try:
            items = msgspec.json.decode(body, type=_Answer).data
        except msgspec.MsgspecError:
            raise TryAgain("answered something that is no list of vectors") from None
        if sorted(item.index for item in items) != list(range(count)):
            raise self._unavailable(f"answered {count} texts with {len(items)} vectors that do not match them")
        items.sort(key=lambda item: item.index)
        for item in items:
            if len(item.embedding) != self.dimension:
                raise DimensionMismatch(
                    f"{self.model} at {self._url.host} makes vectors of {len(item.embedding)} numbers, but "
                    f"EMBEDDINGS_DIMENSIONS is {self.dimension}: correct the setting, or name another model."
                )
        vectors = np.array([item.embedding for item in items], np.float64)
        with np.errstate(over="ignore"):
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not (np.isfinite(lengths).all() and lengths.min() > 0):
            raise self._unavailable("answered a vector that is zero or not finite: check EMBEDDINGS_MODEL")
        unit: NDArray[np.float32] = (vectors / lengths).astype(np.float32)
        return unit

    def _unavailable(self, what: str, *, retry_after: int | None = None) -> EmbedderUnavailable:
        return EmbedderUnavailable(f"The embedding endpoint at {self._url.host} {what}.", retry_after=retry_after)


def _check_endpoint(endpoint: str) -> httpx2.URL:
    try:
        urlsplit(endpoint)  # refuses brackets that do not close, which httpx2 takes for a host
        url = httpx2.URL(endpoint.strip())
    except (httpx2.InvalidURL, ValueError):
        raise UsageError("EMBEDDINGS_ENDPOINT is not a URL such as https://api.openai.com/v1.") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise UsageError("EMBEDDINGS_ENDPOINT must start with https:// or http:// and a host.")
    if url.userinfo:
        raise UsageError("EMBEDDINGS_ENDPOINT must not hold a user or password; the key goes into EMBEDDINGS_API_KEY.")
    return url.copy_with(path=url.path.rstrip("/") + "/embeddings")


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        if batch and (len(batch) == _MAX_INPUTS or characters + len(text) > _MAX_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(text)
        characters += len(text)
    if batch:
        yield batch


def _refusal(body: bytes) -> _Error:
    try:
        return msgspec.json.decode(body, type=_Refusal).error or _Error()
    except msgspec.MsgspecError:
        return _Error()

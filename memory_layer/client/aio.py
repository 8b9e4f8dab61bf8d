"""The asynchronous client."""

from __future__ import annotations

import asyncio
import builtins
import datetime as dt
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from types import TracebackType
from typing import IO, Any, Literal, Self, TypeVar

import httpx2

from memory_layer.client import calls, connect, errors
from memory_layer.client.calls import UNSET, Call, Json, Unset
from memory_layer.client.files import Source, Target
from memory_layer.client.record import Record
from memory_layer.client.results import (
    ArtifactAnswer,
    AuditEventAnswer,
    CreatedItem,
    CreatedNode,
    DownloadedArtifact,
    EventAnswer,
    HealthAnswer,
    JobAnswer,
    NodeAnswer,
    SearchAnswer,
    StoredArtifact,
    Written,
)
from memory_layer.client.retry import RetryPolicy

R = TypeVar("R", bound=Record)
_LOG = logging.getLogger("memory_layer.client")


class AsyncMemoryClient:
    """Talks to one Memory Layer from asyncio. Disk work runs in threads.

    ``url`` and ``token`` default to ``MEMORY_URL`` and ``MEMORY_TOKEN``, then to ``http://127.0.0.1:4300`` and none.
    ``timeout`` in seconds bounds each wait for the server (connecting: 5 at most), not a whole transfer. Calls that are
    safe to repeat are retried ``retries`` times on 429, 502, 503, 504 and broken connections; every write carries an
    ``Idempotency-Key`` (yours or a fresh one), so writes are safe too. All methods raise ``MemoryLayerClientError``
    when the call fails, and ``ValueError`` or ``TypeError`` for arguments that cannot be sent.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        timeout: float = 30.0,
        retries: int = 4,
        max_connections: int = 100,
    ) -> None:
        self.url = connect.address(url)
        self._policy = RetryPolicy(retries=retries)
        try:
            self._http = httpx2.AsyncClient(**connect.options(self.url, token, timeout, max_connections))
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
            raise errors.from_transport(error, self.url) from error
        except (ImportError, ValueError) as error:
            raise errors.from_proxy(error, self.url) from error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def remember(
        self,
        content: str | None = None,
        *,
        owner: str,
        namespace: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        embedding: object = None,
        embedding_model: str | None = None,
        embedding_id: str | None = None,
        ttl_seconds: int | None = None,
        pii_flags: Mapping[str, Any] | None = None,
        legal_hold: bool | None = None,
        subjects: Iterable[str] | None = None,
        occurred_at: dt.datetime | str | None = None,
        thread: str | None = None,
        position: int | None = None,
        artifacts: Iterable[Mapping[str, Any]] | None = None,
        wait_indexed: bool = False,
        idempotency_key: str | None = None,
    ) -> CreatedNode:
        """Create a node.

        ``embedding`` is ``{model, vector}`` or a bare vector plus ``embedding_model``; a vector is any flat sequence of
        numbers, raw float32 bytes or base64 of them. Without one the server embeds ``content``. ``embedding_id`` is
        your own id, unique among live nodes (CONFLICT otherwise). ``thread`` is what the node is a part of, ``position`` its place
        there: a search counts its neighbours. ``artifacts`` are objects that are in the object store
        already, ``{artifactUrl, sha256, sizeBytes, ...}``: the server reads and hashes them first. ``wait_indexed``
        waits, at most 10 s, until the node can be found by meaning; ``indexed`` of the answer says whether it can.
        """
        call = calls.create(
            content,
            owner=owner,
            namespace=namespace,
            metadata=metadata,
            embedding=embedding,
            embedding_model=embedding_model,
            embedding_id=embedding_id,
            ttl_seconds=ttl_seconds,
            pii_flags=pii_flags,
            legal_hold=legal_hold,
            subjects=subjects,
            occurred_at=occurred_at,
            thread=thread,
            position=position,
            artifacts=artifacts,
            wait_indexed=wait_indexed,
            idempotency_key=idempotency_key,
        )
        return CreatedNode(await self._json(call))

    async def put(
        self,
        embedding_id: str,
        node: Mapping[str, Any],
        *,
        if_match: int | str | None = None,
        wait_indexed: bool = False,
        idempotency_key: str | None = None,
    ) -> CreatedNode:
        """Create the node with this id of yours, or replace the live one that has it; ``version`` 1 is a new one.

        ``node`` is a request body, such as ``{"owner": "ann", "content": "..."}``: what it leaves out the node does not say any more.
        ``if_match``: the version that must be there, ``"*"``: any.
        """
        call = calls.put(
            embedding_id, node, if_match=if_match, wait_indexed=wait_indexed, idempotency_key=idempotency_key
        )
        return CreatedNode(await self._json(call))

    async def create_many(
        self, nodes: Iterable[Mapping[str, Any]], *, idempotency_key: str | None = None
    ) -> list[CreatedItem]:
        """Create up to 1,000 nodes in one transaction; each is a request body, such as ``{"owner": "ann", "content": "..."}``.

        The answers are in the order of the nodes; one for a refused node has nothing but ``error``.
        """
        call = calls.create_many(nodes, idempotency_key)
        answer = await self._json(call)
        return [CreatedItem(item) for item in answer["items"]]

    async def get(self, node_id: str) -> NodeAnswer:
        """A node with its artifacts, vector status and latest audit entry."""
        return NodeAnswer(await self._json(calls.get(node_id)))

    async def update(
        self,
        node_id: str,
        *,
        content: str | Unset | None = UNSET,
        metadata: Mapping[str, Any] | Unset = UNSET,
        embedding: object = UNSET,
        embedding_model: str | None = None,
        embedding_id: str | Unset | None = UNSET,
        ttl_seconds: int | Unset | None = UNSET,
        pii_flags: Mapping[str, Any] | Unset = UNSET,
        owner: str | Unset = UNSET,
        subjects: Iterable[str] | Unset = UNSET,
        occurred_at: dt.datetime | str | Unset | None = UNSET,
        thread: str | Unset | None = UNSET,
        position: int | Unset | None = UNSET,
        if_match: int | str | None = None,
        wait_indexed: bool = False,
        idempotency_key: str | None = None,
    ) -> CreatedNode:
        """Merge ``metadata``, replace the rest of what is given; ``None`` clears. ``if_match`` is the version that you
        read: PRECONDITION_FAILED when another writer was faster. ``wait_indexed`` as in ``remember``."""
        if embedding is not UNSET and embedding is not None:
            embedding = calls.encode_embedding(embedding, embedding_model)
        changes = {
            "content": content,
            "metadata": metadata,
            "embedding": embedding,
            "embeddingId": embedding_id,
            "ttlSeconds": ttl_seconds,
            "piiFlags": pii_flags,
            "owner": owner,
            "subjects": subjects,
            "occurredAt": occurred_at,
            "thread": thread,
            "position": position,
        }
        call = calls.update(
            node_id, changes, if_match=if_match, wait_indexed=wait_indexed, idempotency_key=idempotency_key
        )
        return CreatedNode(await self._json(call))

    async def delete(
        self, node_id: str, *, if_match: int | str | None = None, idempotency_key: str | None = None
    ) -> Written:
        """Delete a node. LEGAL_HOLD while it is held."""
        return Written(await self._json(calls.delete(node_id, if_match=if_match, idempotency_key=idempotency_key)))

    async def hold(
        self, node_id: str, reason: str, *, case_id: str | None = None, idempotency_key: str | None = None
    ) -> Written:
        """Put a node under legal hold."""
        return Written(await self._json(calls.legal_hold(node_id, True, reason, case_id, idempotency_key)))

    async def release(
        self, node_id: str, reason: str, *, case_id: str | None = None, idempotency_key: str | None = None
    ) -> Written:
        """Lift the legal hold of a node."""
        return Written(await self._json(calls.legal_hold(node_id, False, reason, case_id, idempotency_key)))

    async def history(self, node_id: str) -> builtins.list[EventAnswer]:
        """The audit entries of a node, oldest first."""
        return [entry async for entry in self._items(EventAnswer, lambda cursor: calls.history(node_id, cursor))]

    def list(
        self,
        filter: Mapping[str, Any] | None = None,
        *,
        page_size: int = 100,
    ) -> AsyncIterator[NodeAnswer]:
        """Every node that matches, page by page as you iterate."""
        return self._items(NodeAnswer, lambda cursor: calls.list_page(filter, cursor, page_size))

    async def search(
        self,
        query: str | None = None,
        query_embedding: object = None,
        top_k: int = 10,
        filter: Mapping[str, Any] | None = None,
        namespace: str | None = None,
        score_threshold: float | None = None,
        mode: Literal["semantic", "keyword", "hybrid"] | None = None,
        before: int = 0,
        after: int = 0,
        explain: bool = False,
        recency: Mapping[str, float] | None = None,
    ) -> SearchAnswer:
        """Find nodes by meaning, words or both, best first. ``score_threshold``: least cosine similarity, -1 to 1. ``before`` and
        ``after``: how many neighbours of each hit in its thread come along, as ``context``, up to 10. ``explain``: why each
        was found, and what was left out. ``recency``: ``{"halfLifeDays": 30, "weight": 0.1}``, or one of them, adds to the score of
        what is recent."""
        call = calls.search(
            query,
            query_embedding=query_embedding,
            top_k=top_k,
            where=filter,
            namespace=namespace,
            score_threshold=score_threshold,
            mode=mode,
            before=before,
            after=after,
            explain=explain,
            recency=recency,
        )
        return SearchAnswer(await self._json(call))

    async def upload(
        self,
        path_or_file: str | os.PathLike[str] | IO[bytes],
        *,
        node: str | None = None,
        content_type: str | None = None,
        name: str | None = None,
        manifest_signature_id: str | None = None,
        retain_until: dt.datetime | str | None = None,
        idempotency_key: str | None = None,
    ) -> StoredArtifact:
        """Stream a file to the object store, locked until ``retain_until``.

        The SHA-256 is sent first and the server enforces it. A pipe cannot be read twice: its SHA-256 is compared
        afterwards, and the upload is not retried. ``manifest_signature_id``: the signed manifest that the file came with.
        """
        source = await asyncio.to_thread(Source, path_or_file, name, content_type)
        try:
            call = calls.upload(
                node=node,
                name=source.name,
                content_type=source.content_type,
                sha256=await asyncio.to_thread(source.hash),
                manifest_signature_id=manifest_signature_id,
                retain_until=retain_until,
                idempotency_key=idempotency_key,
            )
            stored = connect.answer(await self._send(call, source))
            source.check(stored)
            return StoredArtifact(stored)
        finally:
            source.close()

    async def register(
        self,
        url: str,
        *,
        sha256: str,
        size: int,
        node: str | None = None,
        name: str | None = None,
        content_type: str | None = None,
        manifest_signature_id: str | None = None,
        retain_until: dt.datetime | str | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> StoredArtifact:
        """Register an object that is in the object store already.

        The server reads all of it first: CHECKSUM_MISMATCH, with both hashes, when it differs from what you say.
        """
        call = calls.register(
            url,
            sha256=sha256,
            size=size,
            node=node,
            name=name,
            content_type=content_type,
            manifest_signature_id=manifest_signature_id,
            retain_until=retain_until,
            metadata=metadata,
            idempotency_key=idempotency_key,
        )
        return StoredArtifact(await self._json(call))

    async def retain(
        self, artifact_id: str, until: dt.datetime | str, *, idempotency_key: str | None = None
    ) -> StoredArtifact:
        """Lock an artifact for longer. CONFLICT when it is locked for longer already."""
        return StoredArtifact(await self._json(calls.retain(artifact_id, until, idempotency_key)))

    async def artifact(self, artifact_id: str) -> ArtifactAnswer:
        """An artifact's metadata."""
        return ArtifactAnswer(await self._json(calls.artifact(artifact_id)))

    def artifacts(self, node: str | None = None, *, page_size: int = 100) -> AsyncIterator[ArtifactAnswer]:
        """Every artifact, or every one of a node, newest first, page by page as you iterate."""
        return self._items(ArtifactAnswer, lambda cursor: calls.artifacts_page(node, cursor, page_size))

    async def delete_artifact(self, artifact_id: str, *, idempotency_key: str | None = None) -> Written:
        """Delete an artifact. LEGAL_HOLD while its node is held, CONFLICT while it is locked."""
        return Written(await self._json(calls.delete_artifact(artifact_id, idempotency_key)))

    async def download(self, artifact_id: str, to: str | os.PathLike[str] | IO[bytes]) -> DownloadedArtifact:
        """Fetch an artifact's bytes and check their SHA-256; ``path`` of the answer is the file that was written.

        ``to`` is a file, a folder (the artifact's own name is used) or a binary file object. A file appears only when
        all of it is there and its hash is right: CHECKSUM_MISMATCH leaves none. An existing file is never overwritten
        (CONFLICT). A file object has received the bytes before they are checked.
        """
        about = await self.artifact(artifact_id)
        target = Target(about, to)
        try:
            await self._receive(calls.artifact_content(artifact_id), target)
            target.finish()
        finally:
            target.close()
        return DownloadedArtifact(about | {"path": str(target.path)} if target.path else about)

    async def link(self, artifact_id: str) -> str | None:
        """A URL from which anybody can download an artifact's bytes for some minutes without a token.

        None when the service keeps files in a directory, which has no such links: use ``download``. You check the
        bytes yourself; their SHA-256 is in ``artifact``.
        """
        return connect.location(await self._send(calls.artifact_link(artifact_id)))

    def events(
        self,
        *,
        type: str | None = None,
        node: str | None = None,
        artifact: str | None = None,
        since: dt.datetime | str | None = None,
        until: dt.datetime | str | None = None,
        page_size: int = 100,
    ) -> AsyncIterator[EventAnswer]:
        """Audit entries of your tenant (with the scope ``audit:all`` of every tenant), newest first, page by page as you iterate.

        Only those of ``type``, about ``node`` or ``artifact``, made at ``since`` or later and before ``until``.
        """

        def page(cursor: str | None) -> Call:
            return calls.events_page(
                type=type, node=node, artifact=artifact, since=since, until=until, cursor=cursor, limit=page_size
            )

        return self._items(EventAnswer, page)

    async def job(self, job_id: str) -> JobAnswer:
        """An indexing job; its id is ``embedding_job_id`` of a write."""
        return JobAnswer(await self._json(calls.job(job_id)))

    async def cancel_job(self, job_id: str, *, idempotency_key: str | None = None) -> JobAnswer:
        """Stop the indexing of this version. CONFLICT when it is done, in progress, or a removal."""
        return JobAnswer(await self._json(calls.job_change(job_id, "cancel", idempotency_key)))

    async def retry_job(self, job_id: str, *, idempotency_key: str | None = None) -> JobAnswer:
        """Make a job due now, with no attempts counted. CONFLICT when it is done or in progress."""
        return JobAnswer(await self._json(calls.job_change(job_id, "retry", idempotency_key)))

    async def event(self, event_id: str) -> AuditEventAnswer:
        """An audit entry with its exact bytes, its seal, and its payload where you may see it."""
        return AuditEventAnswer(await self._json(calls.event(event_id)))

    async def proof(self, event_id: str) -> bytes:
        """A proof that an entry is in the log, to be checked without any server: ``memoryctl audit proof --verify``.

        Waits a few seconds for the checkpoint that covers it: NOT_YET_PUBLISHED when none comes.
        """
        answer = await self._send(calls.proof(event_id))
        return answer.content

    async def checkpoint(self) -> bytes:
        """The newest checkpoint of the log, a signed note. Keep it: the log can then never be cut shorter unnoticed."""
        answer = await self._send(calls.checkpoint())
        return answer.content

    async def health(self) -> HealthAnswer:
        """What ``/healthz`` answers, with status 503 too."""
        return HealthAnswer(await self._json(calls.health()))

    async def _items(self, kind: type[R], page: Callable[[str | None], Call]) -> AsyncIterator[R]:
        """The items of all pages; ``page`` is the call for the one at a cursor."""
        cursor: str | None = None
        while True:
            answer = await self._json(page(cursor))
            for item in answer["items"]:
                yield kind(item)
            cursor = answer.get("nextCursor")
            if not cursor:
                return

    async def _json(self, call: Call) -> Json:
        return connect.answer(await self._send(call))

    async def _send(self, call: Call, source: Source | None = None) -> httpx2.Response:
        repeatable = call.repeatable and (source is None or source.seekable)
        attempt = 0
        while True:
            if source is not None:
                await asyncio.to_thread(source.rewind)
            failure: errors.MemoryLayerClientError | None
            try:
                request = connect.request(self._http, call, source and _chunks(source))
                response = await self._http.send(request, follow_redirects=call.follow)
                failure = connect.problem(call, response)
                if failure is None:
                    return response
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                failure = errors.from_transport(error, self.url)
                failure.__cause__ = error
            await self._pause(failure, attempt, repeatable)
            attempt += 1

    async def _receive(self, call: Call, target: Target) -> None:
        attempt = 0
        while True:
            await asyncio.to_thread(target.restart)
            failure: errors.MemoryLayerClientError | None
            repeatable = True
            try:
                response = await self._http.send(connect.request(self._http, call), stream=True)
                try:
                    if not response.is_success:
                        await response.aread()
                    failure = connect.problem(call, response)
                    if failure is None:
                        repeatable = target.restartable  # a file object cannot take back what it was given
                        async for chunk in response.aiter_bytes():
                            await asyncio.to_thread(target.write, chunk)
                        return
                finally:
                    await response.aclose()
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                failure = errors.from_transport(error, self.url)
                failure.__cause__ = error
            await self._pause(failure, attempt, repeatable)
            attempt += 1

    async def _pause(self, failure: errors.MemoryLayerClientError, attempt: int, repeatable: bool) -> None:
        wait = self._policy.wait(failure, attempt, repeatable=repeatable)
        if wait is None:
            raise failure
        if wait >= 1:
            _LOG.warning("trying again in %.0f s: %s", wait, failure)
        await asyncio.sleep(wait)


async def _chunks(source: Source) -> AsyncIterator[bytes]:
    while chunk := await asyncio.to_thread(source.read):
        yield chunk

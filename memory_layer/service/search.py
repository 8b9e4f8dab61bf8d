"""Search: index hits and keyword hits, fused, then verified row by row against Postgres. No unverified hit is answered."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from memory_layer.errors import (
    DimensionMismatch,
    EmbedderUnavailable,
    PayloadTooLarge,
    ValidationError,
    VectorStoreUnavailable,
)
from memory_layer.filters import Filter, needs
from memory_layer.model import Caller, Namespace, Node
from memory_layer.service import Memory
from memory_layer.service.fusion import Hit, fuse, most
from memory_layer.service.keywords import Candidate, Ranking, rank
from memory_layer.service.nodes import document, hidden_paths, may_push_down, redact, visible_match
from memory_layer.sql import queries
from memory_layer.telemetry import metrics

Mode = Literal["semantic", "keyword", "hybrid"]
FUSE_DEPTH = 50  # hits by meaning that a hybrid search weighs
_PAGE = 64  # candidates that are verified at a time, at least
MAX_ANSWER = 16 * 2**20  # bytes of text in one answer
MAX_SCAN = 20_000  # hits that one search may look at before it settles for fewer than topK

_SQL = queries("search")
_NODES = queries("nodes")


@dataclass(frozen=True, slots=True)
class SearchRequest:
    query: str | None
    vector: NDArray[np.float32] | None
    top_k: int
    where: Filter | None
    namespace: str
    score_threshold: float | None
    mode: Mode


@dataclass(slots=True)
class Answer:
    """``exact``: every row that could have matched was compared, none was skipped by an approximate index or a limit."""

    hits: list[Hit]
    mode: Mode
    degraded: bool = False
    exact: bool = True
    dropped: dict[str, int] = field(default_factory=dict)


async def search(memory: Memory, caller: Caller, request: SearchRequest) -> dict[str, Any]:
    """The topK best nodes this caller may see. Raises VectorStoreUnavailable or EmbedderUnavailable only when there are no
    keywords to fall back on."""
    (spaces,) = await memory.stores.postgres.fetch(
        caller.tenant, (_SQL["namespace"], {"tenant": caller.tenant, "name": request.namespace})
    )
    space = Namespace(**spaces[0]) if spaces else None
    this = _Search(memory, caller, request, space, Answer([], request.mode))
    words = rank(memory, caller, request.namespace, request.query or "")
    match request.mode:
        case "semantic":
            this.answer.hits = await _semantic(this, request.top_k)
        case "keyword":
            this.answer.hits = await _verified(this, words.page, request.top_k, "keyword")
            this.answer.exact = this.answer.exact and words.complete
        case "hybrid":
            this.answer.hits = await _hybrid(this, words)
    answer = this.answer
    hits = answer.hits[: request.top_k]
    artifacts = await _complete(memory, caller, hits)
    return {
        "results": [_shape(hit, caller, artifacts) for hit in hits],
        "exact": answer.exact,
        "mode": answer.mode,
        "degraded": answer.degraded,
        "dropped": answer.dropped,
    }


@dataclass(frozen=True, slots=True)
class _Search:
    """One search under way.

    ``rows``: nodes and vector rows as Postgres has them, read once however often they are found. ``ahead``: nodes that are
    read along with others, because they will be looked at next.
    """

    memory: Memory
    caller: Caller
    request: SearchRequest
    space: Namespace | None
    answer: Answer
    rows: dict[uuid.UUID, tuple[Node | None, dict[str, Any] | None]] = field(default_factory=dict)
    ahead: list[uuid.UUID] = field(default_factory=list)


async def _hybrid(this: _Search, words: Ranking) -> list[Hit]:
    """The hits by meaning, and those by words as long as one of them could still come among the topK."""
    top_k, answer = this.request.top_k, this.answer

    async def first() -> None:
        this.ahead.extend(candidate.node_id for candidate in await words.page(_PAGE, 0))

    # Postgres ranks the words while the query is embedded.
    meaning, ranked = await asyncio.gather(_semantic(this, max(FUSE_DEPTH, top_k)), first(), return_exceptions=True)
    if isinstance(ranked, BaseException):
        raise ranked
    answer.degraded = isinstance(meaning, (VectorStoreUnavailable, EmbedderUnavailable))
    if isinstance(meaning, BaseException) and not answer.degraded:
        raise meaning
    semantic = [] if isinstance(meaning, BaseException) else meaning

    def fused(keyword: Sequence[Hit]) -> list[Hit]:
        return fuse(semantic, keyword, {candidate.node_id: candidate for candidate in words.found})

    def enough(keyword: Sequence[Hit], best: float) -> bool:
        hits = fused(keyword)
        return len(hits) >= top_k and hits[top_k - 1].score > most(semantic, best)

    keyword = await _verified(this, words.page, MAX_SCAN, "keyword", enough)
    answer.exact = answer.exact and words.complete
    return fused(keyword)


async def _semantic(this: _Search, depth: int) -> list[Hit]:
    memory, caller, request, space = this.memory, this.caller, this.request, this.space
    if space is None:
        return []
    vector = request.vector if request.vector is not None else await _embed(memory, request, space)
    if vector.shape[0] != space.dimension:
        raise DimensionMismatch(
            f"Namespace {space.name} holds {space.dimension}-dimensional vectors of {space.model}; the query has {vector.shape[0]}."
        )
    # Only the direction counts, and an index that squares in float32 loses it when the numbers are very large or small.
    exact = vector.astype(np.float64)
    vector = (exact / np.linalg.norm(exact)).astype(np.float32)
    where = may_push_down(request.where, caller)

    async def page(limit: int, skip: int) -> list[Candidate]:
        with metrics.search_seconds.labels("index").time():
            found = await memory.stores.vectors.search(caller.tenant, space.index_namespace, vector, limit, where, skip)
        this.answer.exact = this.answer.exact and found.exact
        floor = request.score_threshold
        return [Candidate(h.node_id, h.version, h.score) for h in found.hits if floor is None or h.score >= floor]

    return await _verified(this, page, depth, "semantic")


async def _embed(memory: Memory, request: SearchRequest, space: Namespace) -> NDArray[np.float32]:
    embedder = memory.stores.embedder_of(space.model, space.dimension)
    own = memory.stores.embedder
    if embedder is None and own is None:
        raise EmbedderUnavailable(
            "This server has no embedder (EMBEDDINGS_PROVIDER=none): send queryEmbedding, or use mode keyword."
        )
    if embedder is None:
        raise DimensionMismatch(
            f"Namespace {space.name} holds {space.dimension}-dimensional vectors of {space.model}; this server embeds text with "
            f"{own and own.model} ({own and own.dimension}). Send queryEmbedding, or use mode keyword."
        )
    with metrics.search_seconds.labels("embed").time():
        vector: NDArray[np.float32] = (await embedder.embed([request.query or ""]))[0]
        return vector


Pager = Callable[[int, int], Awaitable[list[Candidate]]]


async def _verified(
    this: _Search,
    page: Pager,
    depth: int,
    stage: Literal["semantic", "keyword"],
    enough: Callable[[Sequence[Hit], float], bool] = lambda _hits, _next: False,
) -> list[Hit]:
    """Take candidates page by page until ``depth`` of them stand in Postgres as the index says, or there are no more.

    ``enough``: whether the hits so far will do, when no further candidate has a better score than this.
    """
    answer = this.answer
    hits: list[Hit] = []
    seen: set[uuid.UUID] = set()
    skip, size = 0, depth if stage == "semantic" else _PAGE
    while len(hits) < depth and skip < MAX_SCAN:
        candidates = await page(size, skip)
        if not candidates or enough(hits, candidates[0].score):
            break
        with metrics.search_seconds.labels("verify").time():
            await _read_rows(this, [c.node_id for c in candidates])
        for node_id, version, score in candidates:
            if node_id in seen:  # the index changed between two pages
                continue
            seen.add(node_id)
            node, vector = this.rows[node_id]
            reason = _refusal(node, vector, version, this.request, this.caller)
            if reason is not None:
                # What the filter or hidden text kept out is not counted: the count would say how many there are.
                if reason not in ("filter", "hidden"):
                    answer.dropped[reason] = answer.dropped.get(reason, 0) + 1
                metrics.stale_hits.labels(reason).inc()
            elif node is not None:
                ref = vector and {
                    "provider": vector["provider"],
                    "namespace": vector["namespace"],
                    "model": vector["embedding_model"],
                    "dimension": vector["dimension"],
                    "version": version,
                }
                hits.append(Hit(node, version, {stage: score}, ref, score))
        if len(candidates) < size:
            break
        skip += size
        size = min(size * 2, 1000)
    else:
        answer.exact = answer.exact and len(hits) >= depth
    return hits[:depth]


def _refusal(
    node: Node | None,
    vector: dict[str, Any] | None,
    version: int,
    request: SearchRequest,
    caller: Caller,
) -> str | None:
    """Why Postgres does not vouch for a hit; None when it does."""
    if node is None or vector is None:
        return "orphan"
    if version < vector["since"] or version > node.version or vector["status"] in ("deleting", "deleted"):
        return "stale"
    if node.namespace != request.namespace:
        return "namespace"
    # A match with hidden text, by its words or by its meaning, would tell the caller what stands there.
    if ("content",) in hidden_paths(node, caller):
        return "hidden"
    if request.where is not None and not visible_match(request.where, node, caller):
        return "filter"
    return None


async def _read_rows(this: _Search, ids: Sequence[uuid.UUID]) -> None:
    """Nodes and their vector rows, with the text only where the filter looks at it."""
    if all(node_id in this.rows for node_id in ids):
        return
    new = list({node_id for node_id in (*ids, *this.ahead) if node_id not in this.rows})
    where = this.request.where
    query = "get_nodes" if where is not None and ("content",) in needs(where) else "get_node_heads"
    params = {"tenant": this.caller.tenant, "ids": new}
    # In the generation that this search began with, whichever answers by now.
    params["index_namespace"] = this.space.index_namespace if this.space else this.request.namespace
    nodes, vectors = await this.memory.stores.postgres.fetch(
        this.caller.tenant, (_NODES[query], params), (_NODES["node_vectors"], params)
    )
    node_of = {row["id"]: Node(**row) for row in nodes}
    vector_of = {row["memory_node_id"]: row for row in vectors}
    this.rows.update((node_id, (node_of.get(node_id), vector_of.get(node_id))) for node_id in new)


async def _complete(memory: Memory, caller: Caller, hits: Sequence[Hit]) -> dict[uuid.UUID, list[str]]:
    """Put the text into the nodes that are answered; their artifacts' ids. Raises PayloadTooLarge."""
    if not hits:
        return {}
    params = {"tenant": caller.tenant, "ids": [hit.node.id for hit in hits], "bytes": MAX_ANSWER}
    contents, artifacts = await memory.stores.postgres.fetch(
        caller.tenant, (_NODES["node_contents"], params), (_NODES["node_artifacts"], params)
    )
    if any((row["bytes"] or 0) > MAX_ANSWER for row in contents):
        raise PayloadTooLarge(
            f"These {len(hits)} nodes hold more than {MAX_ANSWER} bytes of text. Ask for a smaller topK."
        )
    content_of = {row["id"]: row["content"] for row in contents}
    for hit in hits:
        hit.node.content = content_of.get(hit.node.id)
    found: dict[uuid.UUID, list[str]] = {}
    for row in artifacts:
        found.setdefault(row["memory_node_id"], []).append(str(row["id"]))
    return found


def _shape(hit: Hit, caller: Caller, artifacts: dict[uuid.UUID, list[str]]) -> dict[str, Any]:
    shape = redact(document(hit.node), caller)
    return {
        "memoryNodeId": shape["memoryNodeId"],
        "score": hit.score,
        "scores": hit.scores,
        "owner": shape["owner"],
        "content": shape["content"],
        "metadata": shape["metadata"],
        "occurredAt": shape["occurredAt"],
        "createdAt": shape["createdAt"],
        "version": shape["version"],
        "artifactIds": artifacts.get(hit.node.id, []),
        "vectorRef": hit.vector_ref,
    }


def check_mode(mode: Mode | None, query: str | None, vector: NDArray[np.float32] | None) -> Mode:
    """The mode that was asked for or that fits; raises ValidationError when the request lacks what it needs."""
    if query is None and vector is None:
        raise ValidationError("A search needs query (text) or queryEmbedding (a vector).")
    if mode is None:
        return "hybrid" if query is not None else "semantic"
    if mode in ("keyword", "hybrid") and query is None:
        raise ValidationError(f"Mode {mode} needs query (text).")
    return mode

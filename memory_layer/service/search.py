"""Search: index hits and keyword hits, fused, then verified row by row against Postgres. No unverified hit is answered."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from memory_layer.errors import (
    DimensionMismatch,
    EmbedderUnavailable,
    Overloaded,
    PayloadTooLarge,
    ValidationError,
    VectorStoreUnavailable,
)
from memory_layer.filters import Filter, Steps
from memory_layer.model import Caller, Namespace, Node, format_time, format_time_or_none
from memory_layer.service import Memory, vouching
from memory_layer.service.answers import MAX_ANSWER, READ_BYTES, Parts
from memory_layer.service.fusion import Hit, fuse, most
from memory_layer.service.hiding import redact
from memory_layer.service.keywords import Candidate, Ranking, rank
from memory_layer.service.nodes import may_push_down
from memory_layer.service.verification import Problem, refusal, report
from memory_layer.service.verified_reads import judge_nodes, read_nodes, require_whole_log, strict
from memory_layer.service.vouching import Moved, Vouched
from memory_layer.sql import queries
from memory_layer.telemetry import metrics

Mode = Literal["semantic", "keyword", "hybrid"]
FUSE_DEPTH = 50  # hits by meaning that a hybrid search weighs
_PAGE = 64  # candidates that are verified at a time, at least
MAX_SCAN = 20_000  # hits that one search may look at before it settles for fewer than topK
MAX_READ = 64 * 2**20  # bytes of long nodes that a filter may read for one search, likewise

WORTH = 0.8  # of the hits were found right lately: from then on their evidence is not read along
MAX_TAMPERED = 100  # hits that a search goes on without, before it is refused

_TRIES = 3  # of a search whose namespace is cut over to another index meanwhile

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


@dataclass(frozen=True, slots=True)
class Answered:
    """The body of an answer, and the ids of the nodes in it."""

    body: dict[str, Any]
    nodes: Sequence[str]


@dataclass(slots=True)
class Answer:
    """``exact``: every row that could have matched was compared, none was skipped by an approximate index or a limit."""

    hits: list[Hit]
    mode: Mode
    degraded: bool = False
    exact: bool = True
    dropped: dict[str, int] = field(default_factory=dict)


async def search(memory: Memory, caller: Caller, request: SearchRequest) -> dict[str, Any]:
    """``answer``, for a caller in this process."""
    body = (await answer(memory, caller, request)).body
    return body | {"results": [msgspec.json.decode(result) for result in body["results"]]}


async def answer(memory: Memory, caller: Caller, request: SearchRequest) -> Answered:
    """The topK best nodes this caller may see, ``results`` as JSON each. Raises VectorStoreUnavailable or EmbedderUnavailable only when
    there are no keywords to fall back on, PayloadTooLarge, and ValidationError where the filter looks at too many values."""
    this, results = await _believed(memory, caller, request)
    body = {
        "results": results,
        "exact": this.answer.exact,
        "mode": this.answer.mode,
        "degraded": this.answer.degraded,
        "dropped": this.answer.dropped,
    }
    return Answered(body, [str(hit.node.id) for hit in this.answer.hits[: request.top_k]])


class NotBelieved(Exception):
    """A hit is not what the log says."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.reason)
        self.problem = problem


async def _believed(memory: Memory, caller: Caller, request: SearchRequest) -> tuple[_Search, list[Any]]:
    """The search and the hits that are answered, as JSON: each is what the log says. One that is not is dropped, and the search done
    again without it."""
    require_whole_log(memory)
    tampered: dict[uuid.UUID, Problem] = {}
    moved = 0
    while True:
        try:
            this = await _searched(memory, caller, request, tampered.keys())
            hits = this.answer.hits[: request.top_k]
            problems = await _check(this, hits)
            if not problems:
                return this, await _finished(this, hits, tampered)
            report(problems, "search")
        except NotBelieved as error:
            problems = [error.problem]
        except Moved:
            moved += 1
            if moved >= _TRIES:
                raise _moving(request) from None
            continue
        tampered |= {problem.id: problem for problem in problems}
        if len(tampered) > MAX_TAMPERED:
            raise refusal(problems[0])


async def _finished(this: _Search, hits: Sequence[Hit], tampered: dict[uuid.UUID, Problem]) -> list[Any]:
    """The hits as JSON; what was dropped as tampered is counted."""
    results = await _results(this, hits)
    await _judge_suspects(this, tampered)
    if tampered:
        this.answer.dropped["tampered"] = len(tampered)
    return results


async def _judge_suspects(this: _Search, tampered: dict[uuid.UUID, Problem]) -> None:
    """Count those of the suspects that are not what the log says as tampered, and not as what they seem to be."""
    if not this.suspects or not strict(this.memory):
        return
    ids, dropped = list(this.suspects)[:MAX_TAMPERED], this.answer.dropped
    for problem in (await read_nodes(this.memory, this.caller, ids, "search", whole=False)).problems:
        tampered[problem.id] = problem
        reason = this.suspects[problem.id]
        dropped[reason] -= 1
        if not dropped[reason]:
            del dropped[reason]


async def _check(this: _Search, hits: Sequence[Hit]) -> list[Problem]:
    """What is wrong with the hits that are about to be answered; long ones are looked at when they are read whole. Raises Moved where
    one was changed since it was found."""
    memory, caller = this.memory, this.caller
    if not strict(memory):
        return []
    verdicts, rows = memory.verdicts, this.rows
    left = [
        hit
        for hit in hits
        if (row := rows[hit.node.id]) is None or not (row.long or verdicts.holds(hit.node.id, caller.tenant, row.mark))
    ]
    verdicts.count(len(hits) - len(left), len(hits))
    bare = [hit.node.id for hit in left if (row := rows[hit.node.id]) is None or row.proof is None]
    if bare:
        found = await vouching.read(memory, caller, this.request.namespace, this.space, bare, strict=True)
        for hit in left:
            if hit.node.id not in bare:
                continue
            before, row = rows[hit.node.id], found.get(hit.node.id)
            if before is None or row is None or row.node.version != before.node.version:
                raise Moved
            rows[hit.node.id], hit.node = row, row.node
    proofs = {
        hit.node.id: row.proof for hit in left if (row := rows[hit.node.id]) is not None and row.proof is not None
    }
    return await judge_nodes(memory, caller, {hit.node.id: hit.node for hit in left}, proofs)


def _at_once(memory: Memory, request: SearchRequest) -> bool:
    """Whether candidates are read with their evidence. A hybrid search weighs many and answers few, and where most were found right a
    moment ago there is little to read: then only those that are answered are looked at, once they are known."""
    return strict(memory) and request.mode == "semantic" and memory.verdicts.worth < WORTH


def _moving(request: SearchRequest) -> Overloaded:
    return Overloaded(
        f"Namespace {request.namespace} changes its index again and again. Try again shortly.", retry_after=1
    )


async def _searched(memory: Memory, caller: Caller, request: SearchRequest, without: Collection[uuid.UUID]) -> _Search:
    """One try, ``without`` some nodes. Raises Moved when the namespace got another index meanwhile."""
    space = await vouching.find_space(memory, caller.tenant, request.namespace)
    this = _Search(memory, caller, request, space, Answer([], request.mode), without)
    words = rank(memory, caller, request.namespace, request.query or "")
    match request.mode:
        case "semantic":
            this.answer.hits = await _semantic(this, request.top_k)
        case "keyword":
            this.answer.hits = await _verified(this, words.page, request.top_k, "keyword")
            this.answer.exact = this.answer.exact and words.complete
        case "hybrid":
            this.answer.hits = await _hybrid(this, words)
    return this


@dataclass(frozen=True, slots=True)
class _Search:
    """One search under way.

    ``rows``: candidates as Postgres has them, read once however often they are found; None: there is no such node. ``ahead``:
    nodes that are read along with others, because they will be looked at next. ``suspects``: found in the index and not where it says,
    and why: a row that was deleted or moved behind the log's back looks like that.
    """

    memory: Memory
    caller: Caller
    request: SearchRequest
    space: Namespace | None
    answer: Answer
    without: Collection[uuid.UUID]
    rows: dict[uuid.UUID, Vouched | None] = field(default_factory=dict)
    ahead: list[uuid.UUID] = field(default_factory=list)
    suspects: dict[uuid.UUID, str] = field(default_factory=dict)
    matches: dict[uuid.UUID, bool] = field(default_factory=dict)  # of rows that were held against the filter
    steps: Steps = field(default_factory=Steps)
    room: vouching.Room = field(default_factory=lambda: vouching.Room(MAX_READ))


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
    """The hits by meaning. Raises Moved, and what is wrong with the index that answers."""
    if this.space is None:
        return []
    try:
        return await _by_meaning(this, this.space, depth)
    except (DimensionMismatch, EmbedderUnavailable, VectorStoreUnavailable):
        # Of an index that this process saw last, perhaps, and that another one has taken the place of: no hit would ever tell.
        await _read_rows(this, [])
        raise


async def _by_meaning(this: _Search, space: Namespace, depth: int) -> list[Hit]:
    memory, caller, request = this.memory, this.caller, this.request
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
            found, rows = await vouching.find(
                memory, caller, space, vector, limit, where, skip, strict=_at_once(memory, request)
            )
        if rows is not None:
            this.rows.update((h.node_id, rows.get(h.node_id)) for h in found.hits)
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
        if not candidates and not this.rows:
            await _read_rows(this, [])  # nothing was found: in the right index?
        if not candidates or enough(hits, candidates[0].score):
            break
        with metrics.search_seconds.labels("verify").time():
            await _read_rows(this, [c.node_id for c in candidates])
        new = [  # the index may change between pages
            candidate
            for candidate in candidates
            if candidate.node_id not in seen and candidate.node_id not in this.without
        ]
        reasons = await _reasons(this, new)
        for node_id, version, score in new:
            if node_id in seen:
                continue
            seen.add(node_id)
            row, reason = this.rows[node_id], reasons[node_id]
            if reason is not None:
                # What the filter or hidden text kept out is not counted: the count would say how many there are.
                if reason not in ("filter", "hidden"):
                    answer.dropped[reason] = answer.dropped.get(reason, 0) + 1
                if reason in ("orphan", "namespace"):
                    this.suspects[node_id] = reason
                metrics.stale_hits.labels(reason).inc()
            elif row is not None:
                hits.append(Hit(row.node, version, {stage: score}, score))
        if this.room.short:
            answer.exact = False
            break
        if len(candidates) < size:
            break
        skip += size
        size = min(size * 2, 1000)
    else:
        answer.exact = answer.exact and len(hits) >= depth
    return hits[:depth]


async def _reasons(this: _Search, candidates: Sequence[Candidate]) -> dict[uuid.UUID, str | None]:
    """Why each candidate is refused; None where it is a hit."""
    name, where = this.request.namespace, this.request.where
    reasons = {
        node_id: vouching.refusal(this.rows[node_id], version, name, this.caller) for node_id, version, _ in candidates
    }
    if where is None:
        return reasons
    new = [row for i, why in reasons.items() if why is None and i not in this.matches and (row := this.rows[i])]
    found = await vouching.matching(this.memory, this.caller, where, new, this.steps, this.room)
    this.matches.update((row.node.id, row.node.id in found) for row in new)
    return {i: "filter" if why is None and not this.matches[i] else why for i, why in reasons.items()}


async def _read_rows(this: _Search, ids: Sequence[uuid.UUID]) -> None:
    """Candidates with their rows. Raises Moved."""
    new = list({node_id for node_id in (*ids, *this.ahead) if node_id not in this.rows})
    if new or not ids:
        found = await vouching.read(
            this.memory,
            this.caller,
            this.request.namespace,
            this.space,
            new,
            strict=_at_once(this.memory, this.request),
        )
        this.rows.update((node_id, found.get(node_id)) for node_id in new)


async def _results(this: _Search, hits: Sequence[Hit]) -> list[Any]:
    """The hits as JSON, with the text and metadata that were left behind. Raises PayloadTooLarge, Moved where one was changed since it was
    found, and NotBelieved."""
    memory, caller = this.memory, this.caller
    parts = Parts()
    for hit in hits:
        row = this.rows[hit.node.id]
        assert row is not None  # noqa: S101 - a hit is a candidate that was vouched for
        node, size = hit.node, row.size + len(hit.node.content or "")
        if row.long:
            node, size = await _whole(this, node), READ_BYTES
        files = row.artifacts
        if row.more_files:
            which = {"tenant": caller.tenant, "node": node.id, "limit": MAX_ANSWER // 36}
            (rows,) = await memory.stores.postgres.fetch(caller.tenant, (_NODES["artifact_ids"], which))
            files, size = [each["id"] for each in rows], READ_BYTES
        if not await parts.add(size, _shape, hit, node, caller, row, files):
            raise PayloadTooLarge(
                f"The answer is larger than {MAX_ANSWER} bytes: these {len(hits)} nodes hold too much text and metadata, the first "
                f"{len(parts.items)} of them fit. Ask for a smaller topK."
            )
    return parts.items


async def _whole(this: _Search, node: Node) -> Node:
    """A long node with its text and metadata, held against the log. Raises NotBelieved, and Moved where it is another version now."""
    read = await read_nodes(this.memory, this.caller, [node.id], "search")
    if read.problems:
        raise NotBelieved(read.problems[0])
    whole = read.nodes.get(node.id)
    if whole is None or whole.version != node.version:
        raise Moved
    return whole


def _shape(hit: Hit, node: Node, caller: Caller, row: Vouched, files: Sequence[uuid.UUID]) -> dict[str, Any]:
    shape = {
        "memoryNodeId": str(node.id),
        "score": hit.score,
        "scores": hit.scores,
        "owner": node.owner,
        "content": node.content,
        "metadata": node.metadata,
        "occurredAt": format_time_or_none(node.occurred_at),
        "createdAt": format_time(node.created_at),
        "version": node.version,
        "artifactIds": [str(artifact) for artifact in files],
        "vectorRef": {
            "provider": row.provider,
            "namespace": row.index_namespace,
            "model": row.model,
            "dimension": row.dimension,
            "version": hit.version,
        },
        "piiFlags": node.pii_flags,
    }
    shape = redact(shape, caller)
    del shape["piiFlags"]
    return shape


def check_mode(mode: Mode | None, query: str | None, vector: NDArray[np.float32] | None) -> Mode:
    """The mode that was asked for or that fits; raises ValidationError when the request lacks what it needs."""
    if query is None and vector is None:
        raise ValidationError("A search needs query (text) or queryEmbedding (a vector).")
    if mode is None:
        return "hybrid" if query is not None else "semantic"
    if mode in ("keyword", "hybrid") and query is None:
        raise ValidationError(f"Mode {mode} needs query (text).")
    return mode

"""Search: hits by meaning and hits by words, fused; each is answered only once ``candidates.py`` has passed it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from memory_layer.errors import (
    DimensionMismatch,
    EmbedderUnavailable,
    Overloaded,
    ValidationError,
    VectorStoreUnavailable,
)
from memory_layer.filters import Filter
from memory_layer.model import Caller, Namespace
from memory_layer.service.boosts import Boosts, Recency, boosts_of
from memory_layer.service.candidates import Candidates, Disproved, IndexChanged, open_candidates, rejection
from memory_layer.service.explain import explain
from memory_layer.service.fusion import (
    CERTAIN,
    MEANING,
    NEIGHBOURS,
    NEWCOMERS,
    SEEDS,
    WORDS,
    Hit,
    above,
    floor_of,
    fuse,
    most,
)
from memory_layer.service.installation import Installation
from memory_layer.service.keywords import Ranking, rank
from memory_layer.service.neighbours import Surroundings, received
from memory_layer.service.results import neighbours_of, results_of
from memory_layer.service.verification import Problem, refusal
from memory_layer.service.verified_reads import require_whole_log
from memory_layer.stores.protocols import IndexHit
from memory_layer.telemetry import metrics

Mode = Literal["semantic", "keyword", "hybrid"]
FUSE_DEPTH = 50  # hits by meaning that a hybrid search weighs
_PAGE = 64  # hits of an index that are looked at together, at least
MAX_SCAN = 20_000  # hits that one search may look at before it answers with fewer than topK
MAX_TAMPERED = 100  # hits that a search goes on without, before it is refused
WORTH = 0.8  # of the hits were found right lately: from then on they are read without their proof
TRIES = 3  # of a search whose namespace is cut over to another index meanwhile


@dataclass(frozen=True, slots=True)
class SearchRequest:
    query: str | None
    vector: NDArray[np.float32] | None
    top_k: int
    where: Filter | None
    namespace: str
    score_threshold: float | None
    mode: Mode
    before: int = 0  # neighbours in its thread that are answered with each hit
    after: int = 0
    explain: bool = False
    recency: Recency | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The body of an answer, its ``results`` as JSON each, and the ids of the nodes in it."""

    body: dict[str, Any]
    nodes: Sequence[str]


async def search(installation: Installation, caller: Caller, request: SearchRequest) -> dict[str, Any]:
    """The body of ``answer``, decoded, for a caller in this process."""
    body = (await answer(installation, caller, request)).body
    return body | {"results": [msgspec.json.decode(result) for result in body["results"]]}


async def answer(installation: Installation, caller: Caller, request: SearchRequest) -> Found:
    """The topK best nodes that this caller may see. One that is not what the log says is left out, and the search done again without it.

    Raises VectorStoreUnavailable or EmbedderUnavailable only when there are no keywords to fall back on, PayloadTooLarge, Overloaded
    while the namespace changes its index again and again, Tampered where too much is, RollbackDetected, and ValidationError where the
    filter looks at too many values.
    """
    require_whole_log(installation)
    boosts = await boosts_of(request.query, request.recency, by_words=request.mode != "semantic")
    tampered: dict[uuid.UUID, Problem] = {}
    changed = 0
    while True:
        try:
            return await _attempt(installation, caller, request, boosts, tampered)
        except Disproved as error:
            tampered |= {problem.id: problem for problem in error.problems}
            if len(tampered) > MAX_TAMPERED:
                raise refusal(error.problems[0]) from None
        except IndexChanged:
            changed += 1
            if changed >= TRIES:
                raise Overloaded(
                    f"Namespace {request.namespace} changes its index again and again. Try again shortly.",
                    retry_after=1,
                ) from None


@dataclass(slots=True)
class _Search:
    """One try of a search. ``exact``: every row that could have matched was compared, none was skipped by an approximate index or a
    limit. ``degraded``: the words answer alone, for what finds by meaning is down. ``readable``: the model can read the query."""

    request: SearchRequest
    candidates: Candidates
    boosts: Boosts
    exact: bool = True
    degraded: bool = False
    readable: bool = True
    surroundings: Surroundings | None = None  # of a hybrid search


async def _attempt(
    installation: Installation,
    caller: Caller,
    request: SearchRequest,
    boosts: Boosts,
    tampered: Mapping[uuid.UUID, Problem],
) -> Found:
    """One try, without the nodes that are known to be tampered. Raises IndexChanged, Disproved."""
    # A hybrid search weighs many and answers few, and where most were found right a moment ago there is little to prove: then only what
    # is answered is read with its proof, once it is known.
    with_proof = request.mode == "semantic" and installation.verdicts.worth < WORTH
    candidates = await open_candidates(
        installation,
        caller,
        request.namespace,
        request.where,
        with_proof=with_proof,
        without=tampered.keys(),
    )
    this = _Search(request, candidates, boosts)
    words = rank(installation, caller, request.namespace, request.query or "")
    match request.mode:
        case "semantic":
            hits = await _semantic(this, boosts.depth(request.top_k), request.score_threshold)
        case "keyword":
            hits = await _admitted(this, words.page, boosts.depth(request.top_k), "keyword")
            this.exact = this.exact and words.complete
        case "hybrid":
            hits = await _hybrid(this, words)
    hits = boosts.rank(hits, candidates.admitted)[: request.top_k]
    around = await neighbours_of(candidates, hits, request.before, request.after)
    this.exact = this.exact and not candidates.incomplete
    shown = [id_ for hit in hits for id_ in (hit.node_id, *around[hit.node_id].before, *around[hit.node_id].after)]
    counted = () if this.surroundings is None else this.surroundings.counted(hits)
    await candidates.verify(list(dict.fromkeys([*shown, *counted])))
    why: dict[uuid.UUID, dict[str, Any]] | None = None
    explained: dict[str, Any] = {}
    if request.explain:
        why, explained = await explain(candidates, words, hits, this.surroundings, boosts, tampered)
    results = await results_of(candidates, hits, around if request.before or request.after else None, why)
    left_out = len({*tampered, *await candidates.disprove_suspects()})
    body = {
        "results": results,
        "exact": this.exact,
        "mode": request.mode,
        "degraded": this.degraded,
        "queryReadable": this.readable,
        **({"pending": candidates.pending} if candidates.pending and request.mode != "keyword" else {}),
        "dropped": candidates.dropped | ({"tampered": left_out} if left_out else {}),
        **explained,
    }
    return Found(body, [str(id_) for id_ in dict.fromkeys(shown)])


async def _hybrid(this: _Search, words: Ranking) -> list[Hit]:
    """The hits by meaning, and those by words as long as one of them could still come among the topK (the first ten at the least), ranked together with
    what stands around them.

    A threshold leaves out hits by their cosine once they are ranked, so that it moves none. It says nothing while the index is down, or
    where the model cannot read the query.
    """
    top_k, threshold = this.request.top_k, this.request.score_threshold

    async def first() -> None:
        this.candidates.ahead.extend(hit.node_id for hit in await words.page(_PAGE, 0))

    # Postgres ranks the words while the query is embedded.
    meaning, ranked = await asyncio.gather(_semantic(this, max(FUSE_DEPTH, top_k)), first(), return_exceptions=True)
    if isinstance(ranked, BaseException):
        raise ranked
    this.degraded = isinstance(meaning, (VectorStoreUnavailable, EmbedderUnavailable))
    if isinstance(meaning, BaseException) and not this.degraded:
        raise meaning
    semantic = [] if isinstance(meaning, BaseException) else meaning

    def fused(keyword: Sequence[Hit]) -> list[Hit]:
        return fuse(semantic, keyword, {hit.node_id: hit for hit in words.found})

    def enough(keyword: Sequence[Hit], best: float) -> bool:
        hits, depth = fused(keyword), max(CERTAIN, this.boosts.depth(top_k))
        return len(hits) >= depth and hits[depth - 1].score > most(semantic, best)

    keyword = await _admitted(this, words.page, MAX_SCAN, "keyword", enough)
    this.exact = this.exact and words.complete
    hits = await _with_neighbours(this, words, semantic, fused(keyword))
    return above(threshold if this.readable and not this.degraded else None, semantic, hits)


async def _with_neighbours(this: _Search, words: Ranking, semantic: Sequence[Hit], hits: list[Hit]) -> list[Hit]:
    """The hits in the order that what stands around them gives, and nodes that only stand beside good ones among them."""
    candidates, floor = this.candidates, MEANING * floor_of(semantic)
    seeds = hits[:SEEDS]
    beside = await candidates.neighbours([hit.node_id for hit in seeds], len(NEIGHBOURS))
    given = received([hit for hit in seeds if not candidates.admitted(hit.node_id).long], beside, floor)
    said = {hit.node_id: hit for hit in words.found}
    there = {hit.node_id for hit in hits}

    def gain(id_: uuid.UUID) -> float:
        return given[id_].amount + (WORDS * said[id_].score if id_ in said else 0.0)

    new = sorted((id_ for id_ in given if id_ not in there), key=lambda id_: (-gain(id_), id_))
    found = await candidates.visible(new[: max(NEWCOMERS, this.request.top_k)])
    this.exact = this.exact and not candidates.incomplete
    for id_ in found:
        row, word = candidates.admitted(id_), said.get(id_)
        hit = Hit(id_, row.since, {}, floor)
        if word is not None and rejection(row, word.version, candidates.namespace, candidates.caller) is None:
            hit.scores["keyword"] = word.score
            hit.score += WORDS * word.score
        hits.append(hit)
    this.surroundings = Surroundings(given, floor)
    return this.surroundings.rank(hits, candidates.admitted)


async def _semantic(this: _Search, depth: int, threshold: float | None = None) -> list[Hit]:
    """The hits by meaning, with a cosine of ``threshold`` at the least. Raises IndexChanged, and what is wrong with the index that answers."""
    if this.candidates.index is None:
        return []
    try:
        return await _by_meaning(this, this.candidates.index, depth, threshold)
    except (DimensionMismatch, EmbedderUnavailable, VectorStoreUnavailable):
        # Of an index that this process saw last, perhaps, and that another one has taken the place of: no hit would ever tell.
        await this.candidates.read([])
        raise


async def _by_meaning(this: _Search, space: Namespace, depth: int, threshold: float | None) -> list[Hit]:
    request, candidates = this.request, this.candidates
    vector = request.vector if request.vector is not None else await _embed(candidates.installation, request, space)
    if vector is None:
        this.readable = False
        return []
    if vector.shape[0] != space.dimension:
        raise DimensionMismatch(
            f"Namespace {space.name} holds {space.dimension}-dimensional vectors of {space.model}; the query has {vector.shape[0]}."
        )
    # Only the direction counts, and an index that squares in float32 loses it when the numbers are very large or small.
    exact = vector.astype(np.float64)
    vector = (exact / np.linalg.norm(exact)).astype(np.float32)
    floor = -np.inf if threshold is None else threshold

    async def page(limit: int, skip: int) -> list[IndexHit]:
        found = await candidates.search_index(vector, limit, skip)
        this.exact = this.exact and found.exact
        return [hit for hit in found.hits if hit.score >= floor]

    return await _admitted(this, page, depth, "semantic")


async def _embed(installation: Installation, request: SearchRequest, space: Namespace) -> NDArray[np.float32] | None:
    """The query's vector; None where the model cannot read it."""
    embedder = installation.embedder_of(space.model, space.dimension)
    own = installation.embedder
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
        made = await embedder.embed([request.query or ""], query=True)
        return None if made.read[0] == "none" else made.vectors[0]


Pager = Callable[[int, int], Awaitable[list[IndexHit]]]


async def _admitted(
    this: _Search,
    page: Pager,
    depth: int,
    stage: Literal["semantic", "keyword"],
    enough: Callable[[Sequence[Hit], float], bool] = lambda _hits, _next: False,
) -> list[Hit]:
    """Take hits of an index page by page until ``depth`` of them are admitted, or there are no more.

    ``enough``: whether those so far will do, when no further one has a better score than this.
    """
    candidates = this.candidates
    hits: list[Hit] = []
    seen: set[uuid.UUID] = set()
    skip, size = 0, depth if stage == "semantic" else _PAGE
    while len(hits) < depth and skip < MAX_SCAN:
        found = await page(size, skip)
        if not found and not candidates.rows:
            await candidates.read([])  # nothing was found: in the right index?
        if not found or enough(hits, found[0].score):
            break
        hits += [
            Hit(hit.node_id, hit.version, {stage: hit.score}, hit.score) for hit in await candidates.admit(found, seen)
        ]
        if candidates.incomplete:
            this.exact = False
            break
        if len(found) < size:
            break
        skip += size
        size = min(size * 2, 1000)
    else:
        this.exact = this.exact and len(hits) >= depth
    return hits[:depth]


def check_mode(mode: Mode | None, query: str | None, vector: NDArray[np.float32] | None) -> Mode:
    """The mode that was asked for or that fits; raises ValidationError when the request lacks what it needs."""
    if query is None and vector is None:
        raise ValidationError("A search needs query (text) or queryEmbedding (a vector).")
    if mode is None:
        return "hybrid" if query is not None else "semantic"
    if mode in ("keyword", "hybrid") and query is None:
        raise ValidationError(f"Mode {mode} needs query (text).")
    return mode

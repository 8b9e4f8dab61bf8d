"""Which way a search of pgvector takes.

entries   exact, in the table that small namespaces share
near      the approximate index, its best put in order by the exact distance
few       exact, on the rows that an index of the fields finds: when a filter leaves few
scan      exact, on the whole table of a namespace: when a filter leaves few that no index finds, or when near came out short

An approximate search that fills less than it was asked for, or ends among equals, is done again exactly: what it returns may miss a
neighbour, but never comes short while there is more.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from memory_layer.errors import DimensionMismatch
from memory_layer.stores.pipeline import over
from memory_layer.stores.protocols import IndexHit, JoinedQuery, VectorHits
from memory_layer.stores.vectors.pgvector_filters import Condition
from memory_layer.stores.vectors.pgvector_wire import SQL, Space, Wire
from memory_layer.telemetry import metrics

DEEPEST: Final = 1000  # limit + skip that the approximate index is asked for; hnsw.ef_search ends there
MAX_VISITS: Final = 20_000  # rows that an approximate search may look at
FEW: Final = 2000  # matching rows that are always compared exactly
LOOKED_AT: Final = 500  # rows of a sample
REMEMBERED: Final = 60.0  # seconds that the way of a filter is kept
_MAX_REMEMBERED: Final = 4096

# Among the filters whose ways are remembered: that one go of the index brought too few.
ONCE: Final = Condition("once", {}, None)

_ways = {way: metrics.index_searches.labels(way) for way in ("entries", "near", "few", "scan")}


@dataclass(frozen=True, slots=True)
class Look:
    """One search."""

    tenant: str
    namespace: str
    vector: NDArray[np.float32]
    limit: int
    skip: int
    condition: Condition
    query: JoinedQuery | None = None

    @property
    def wanted(self) -> int:
        return self.limit + self.skip

    @property
    def values(self) -> dict[str, Any]:
        return {"query": self.vector, "limit": self.limit, "skip": self.skip, **self.condition.params}


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found; ``rows``: those of the joined query and those of the statement after it, where they came along."""

    hits: VectorHits
    rows: tuple[list[dict[str, Any]], list[dict[str, Any]]] | None = None


class Ways:
    """What filters were found to leave, for a minute: (table, condition) -> the share of rows, 0 when near does not suit."""

    def __init__(self) -> None:
        self._known: OrderedDict[object, tuple[float, float]] = OrderedDict()

    def get(self, space: Space, condition: Condition) -> float | None:
        share, until = self._known.get(_key(space, condition), (None, 0.0))
        return share if until > time.monotonic() else None

    def put(self, space: Space, condition: Condition, share: float) -> None:
        self._known[_key(space, condition)] = (share, time.monotonic() + REMEMBERED)
        if len(self._known) > _MAX_REMEMBERED:
            self._known.popitem(last=False)


def _key(space: Space, condition: Condition) -> object:
    return space.number, condition.text, tuple(condition.params.values())


async def search(wire: Wire, ways: Ways, look: Look) -> Found:
    """Raises Moved when the namespace is not where it was presumed."""
    space = wire.place(look.tenant, look.namespace)
    if space is None:
        where = f"{SQL['in_entries']} AND {look.condition.text}"
        text = _fill(SQL["search"], "vector_entries", where)
        place = {"tenant": look.tenant, "namespace": look.namespace}
        rows, joined = await _ask(wire, None, look, (SQL["settings_entries"], {}), (text, look.values | place))
        _ways["entries"].inc()
        return Found(VectorHits(_hits(rows), exact=True, way="entries"), joined)
    if look.vector.shape[0] != space.dimension:
        await wire.ask(look.tenant, look.namespace, space)  # it may have been dropped and filled anew
        raise DimensionMismatch(
            f"Namespace {look.namespace} holds {space.dimension}-dimensional vectors; the query has {look.vector.shape[0]}."
        )
    if space.method == "none" or look.wanted > DEEPEST or look.limit == 0:
        return Found(await scan(wire, space, look))
    share = 1.0
    if look.condition.text != "true":
        known = ways.get(space, look.condition)
        if known is None:
            judged, known = await _judge(wire, space, look)
            ways.put(space, look.condition, known)
            if judged is not None:
                return Found(judged)
        share = known
    candidates = depth(space, look.wanted)
    if not _suits(space, candidates, share):
        return Found(await _exactly(wire, ways, space, look))
    # One go of the index costs a fifth less than one that may go on, and brings enough unless many rows were removed lately.
    once = share == 1 and candidates <= DEEPEST and ways.get(space, ONCE) is None
    found, reason = await near(wire, space, look, share, once=once)
    if once and reason == "short":
        ways.put(space, ONCE, 0.0)
        found, reason = await near(wire, space, look, share)
    if reason is None:
        return found
    metrics.index_fallbacks.labels(reason).inc()
    if reason == "short" and share < 1:
        ways.put(space, look.condition, 0.0)
    return Found(await scan(wire, space, look))


def depth(space: Space, wanted: int) -> int:
    """Candidates that are compared exactly. In a few steps, so that the pages of one search are cut from one list."""
    need = min(4 * wanted, 2 * wanted + 200)
    found = space.rerank
    while found < need:
        found *= 2
    return found


def _suits(space: Space, candidates: int, share: float) -> bool:
    """Whether the approximate index will find so many candidates sooner than a scan would: a visit to a row by way of the index
    costs about twice one in passing."""
    return share > 0 and 2 * candidates / share <= min(max(space.rows, 4 * candidates), MAX_VISITS)


async def _judge(wire: Wire, space: Space, look: Look) -> tuple[VectorHits | None, float]:
    """The share of rows that a filter leaves; with the answer, where finding out has brought it."""
    if look.condition.lookup is not None:
        most = few_enough(space)
        hits, complete = await _few(wire, space, look, most)
        return (VectorHits(hits, exact=True, way="few"), 0.0) if complete else (None, most / max(space.rows, most))
    percent = 100.0 * min(1.0, LOOKED_AT / max(space.rows, 1))
    text = _fill(SQL["share"], space.relation, look.condition.text)
    values = {"percent": percent, **look.condition.params}
    _, (seen,) = await wire.ask(look.tenant, look.namespace, space, (SQL["settings_scan"], {}), (text, values))
    return None, seen["matched"] / seen["looked"] if seen["looked"] else 0.0


def few_enough(space: Space) -> int:
    """Matching rows up to which they are all compared."""
    return min(max(FEW, space.rows // 50), MAX_VISITS)


async def _exactly(wire: Wire, ways: Ways, space: Space, look: Look) -> VectorHits:
    if look.condition.lookup is not None:
        hits, complete = await _few(wire, space, look, few_enough(space))
        if complete:
            return VectorHits(hits, exact=True, way="few")
        ways.put(space, look.condition, few_enough(space) / max(space.rows, 1))
    return await scan(wire, space, look)


async def _few(wire: Wire, space: Space, look: Look, most: int) -> tuple[list[IndexHit], bool]:
    """The answer and True when at most so many rows match."""
    where = f"{SQL['in_own']} AND {look.condition.lookup} AND {look.condition.text}"
    text = _fill(SQL["search_few"], space.relation, where, depth=most + 1)
    _, rows = await wire.ask(look.tenant, look.namespace, space, (SQL["settings_few"], {}), (text, look.values))
    if rows and rows[0]["candidates"] > most:
        return [], False
    # No row on this page: there may be none at all, or too many before it to know.
    if not rows and look.skip:
        return [], look.skip <= most and await _fewer(wire, space, look, most)
    _ways["few"].inc()
    return _hits(rows), True


async def _fewer(wire: Wire, space: Space, look: Look, most: int) -> bool:
    """Whether at most so many rows match."""
    first = Look(look.tenant, look.namespace, look.vector, 1, 0, look.condition)
    return (await _few(wire, space, first, most))[1]


async def scan(wire: Wire, space: Space, look: Look) -> VectorHits:
    """Exact, whatever it takes."""
    where = f"{SQL['in_own']} AND {look.condition.text}"
    if look.condition.lookup is not None:
        where = f"{SQL['in_own']} AND {look.condition.lookup} AND {look.condition.text}"
    text = _fill(SQL["search"], space.relation, where)
    _, rows = await wire.ask(look.tenant, look.namespace, space, (SQL["settings_scan"], {}), (text, look.values))
    _ways["scan"].inc()
    return VectorHits(_hits(rows), exact=True, way="scan")


async def near(
    wire: Wire, space: Space, look: Look, share: float = 1.0, *, once: bool = False
) -> tuple[Found, str | None]:
    """What the approximate index finds, and why that may be too little: ``short`` or ``ties``. ``once``: it does not go on where
    removed rows leave too few."""
    candidates = depth(space, look.wanted)
    where = f"{SQL['in_own']} AND {look.condition.text}"
    text = _fill(SQL[_NEAR[space.method]], space.relation, where, dimension=space.dimension, depth=candidates)
    # A filter's share is looked for in one go. What lies behind max_scan_tuples comes in no good order: it is only a brake.
    settings = {
        "ef": str(min(int(candidates if share == 1 else 1.25 * candidates / share), DEEPEST)),
        "visits": str(MAX_VISITS),
        "iterate": "off" if once else "relaxed_order",
    }
    values = look.values
    if space.method == "halfvec":
        values["query"] = _unit(look.vector)  # half precision ends at 65,504
    rows, joined = await _ask(
        wire, space, look, (SQL["settings_near"], settings), (text, values), more=("candidates", "worst")
    )
    _ways["near"].inc()
    found = Found(VectorHits(_hits(rows), exact=False, way="near"), joined)
    if len(rows) < look.limit or rows[0]["candidates"] < candidates:
        return found, "short"
    # The last hit is as far as the last candidate: there may be more of that distance, with smaller ids.
    if rows[-1]["score"] <= rows[-1]["worst"]:
        return found, "ties"
    return found, None


async def _ask(
    wire: Wire,
    space: Space | None,
    look: Look,
    settings: tuple[str, Mapping[str, Any]],
    search: tuple[str, Mapping[str, Any]],
    more: tuple[str, ...] = (),
) -> tuple[list[dict[str, Any]], tuple[list[dict[str, Any]], list[dict[str, Any]]] | None]:
    """The hits of a statement, nearest first; and what came along with them."""
    query = look.query
    if query is None:
        _, rows = await wire.ask(look.tenant, look.namespace, space, settings, search)
        return rows, None
    names = ("node_id", "version", "score", *more)
    text = over(query.text, f"({search[0]}) c", names) + " ORDER BY c.score DESC, c.node_id"
    values = {"tenant": look.tenant, "namespace": look.namespace, **search[1], **query.values}
    _, _, joined, after = await wire.ask(
        look.tenant, look.namespace, space, settings, query.before, (text, values), query.after
    )
    rows = [{name: row.pop(f"hit_{name}") for name in names} for row in joined]
    return rows, (joined, after)


_NEAR: Mapping[str, str] = {"bit": "search_bit", "halfvec": "search_halfvec"}


def _fill(text: str, relation: str, where: str, *, dimension: int = 0, depth: int = 0) -> str:
    """A statement on a table; what is put in are names of ours, numbers, and conditions with parameters."""
    return (
        text.replace("{relation}", relation)
        .replace("{where}", where)
        .replace("{dimension}", str(dimension))
        .replace("{depth}", str(depth))
    )


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    exact = vector.astype(np.float64)
    return (exact / (np.linalg.norm(exact) or 1.0)).astype(np.float32)


def _hits(rows: list[dict[str, Any]]) -> list[IndexHit]:
    return [IndexHit(row["node_id"], row["version"], row["score"]) for row in rows]

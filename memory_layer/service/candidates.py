"""The candidates of one search: every hit and row of a search goes through here.

An index, of vectors or of words, names nodes and their versions. Here they get their rows from Postgres (each once, however often it is
found), are admitted or rejected, and what is to be answered is verified against the log. Every read also asks whether the namespace still
has the index that the search began with. ``docs/contributing/life-of-a-search.md`` describes all of it.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memory_layer import aside
from memory_layer.filters import Filter, Steps, needs
from memory_layer.model import Caller, Namespace, Node
from memory_layer.service.answers import MAX_ANSWER, READ_BYTES
from memory_layer.service.hiding import hides_bytes
from memory_layer.service.installation import Installation
from memory_layer.service.nodes import may_push_down, visible_match
from memory_layer.service.verification import LastEntry, Problem, report
from memory_layer.service.verified_reads import Proof, judge_nodes, node_of, read_nodes, strict, vector_sha256
from memory_layer.sql import queries
from memory_layer.stores.pipeline import over, statement, statements
from memory_layer.stores.postgres import scope_of
from memory_layer.stores.protocols import IndexHit, JoinedQuery, VectorHits
from memory_layer.telemetry import metrics

SHORT: Final = 8192  # bytes of text and metadata that are read with a row; longer ones only for hits that are answered
MAX_FILES: Final = (
    64  # ids of files that are read with a row, and one more that says that there are more (candidates.sql)
)
MAX_READ: Final = 64 * 2**20  # bytes of long nodes that a filter may read for one search
MAX_SUSPECTS: Final = 100  # that are held against the log for one search
_MAX_SEEN: Final = 10_000  # namespaces that a process remembers
_LAST: Final = 2**63 - 1  # where nodes without a position stand in their thread: in the order of their times
_BATCH: Final = 100  # long nodes that are asked for in one query

_SQL = statements("candidates")
_NODES = queries("nodes")
_TEXT: Final = queries("candidates")
_BY_ID: Final = statement("memory_layer_candidates_by_id", over(_TEXT["rows"], "unnest(%(ids)b::uuid[]) c(node_id)"))
_INDEX_ROW: Final = itemgetter("provider", "index_namespace", "model", "dimension", "status", "since", "artifact_ids")


class IndexChanged(Exception):
    """The namespace has another index, or a node another version, than this search has read: it begins again."""


class Disproved(Exception):
    """Nodes that were to be answered are not what the log says: the search begins again without them."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(problems[0].reason)
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that an index named, as Postgres has it: the node, its row for the index, the ids of its first files.

    ``long``: text and metadata were left behind. ``size``: bytes of the metadata. ``proof``: None where it was read without.
    """

    node: Node
    provider: str
    index_namespace: str
    model: str | None
    dimension: int | None
    status: str
    since: int
    artifacts: list[uuid.UUID]
    long: bool
    size: int
    mark: str  # of the row's version
    proof: Proof | None

    @property
    def more_files(self) -> bool:
        return len(self.artifacts) > MAX_FILES


class Neighbours(NamedTuple):
    """What stands before and after a node in its thread, the nearest first."""

    before: list[uuid.UUID]
    after: list[uuid.UUID]


def rejection(candidate: Candidate | None, version: int, namespace: str, caller: Caller) -> str | None:
    """Why a node that an index names at this version is no hit; None where it is one, whatever the filter says."""
    if candidate is None:
        return "orphan"
    node = candidate.node
    if version < candidate.since or version > node.version or candidate.status in ("deleting", "deleted"):
        return "stale"
    if node.namespace != namespace:
        return "namespace"
    # A match with hidden text, by its words or by its meaning, would tell the caller what stands there.
    if hides_bytes([node.pii_flags], caller):
        return "hidden"
    return None


@dataclass(slots=True)
class Candidates:
    """Use ``open_candidates``.

    ``index``: the namespace as this process last saw it; None while nothing with a vector was ever written there. ``with_proof``: rows
    are read together with what the log recorded last of them. ``without``: nodes that an earlier try of this search found tampered.
    ``rows``: what Postgres has; None: there is no such node. ``ahead``: nodes that are read along with others, because they will be
    looked at next. ``incomplete``: a filter had more to read than one search may.
    """

    installation: Installation
    caller: Caller
    namespace: str
    where: Filter | None
    index: Namespace | None
    with_proof: bool
    without: Collection[uuid.UUID]
    rows: dict[uuid.UUID, Candidate | None] = field(default_factory=dict)
    ahead: list[uuid.UUID] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)  # by reason
    incomplete: bool = False
    left_out: dict[uuid.UUID, str] = field(default_factory=dict)  # nodes of the tenant, and why; the first of them
    way: str | None = None  # that the vector store took, where it has several
    index_exact: bool | None = None  # whether it passed nothing over; None: it was not asked
    pending: int = 0  # writes whose vectors the index does not have yet, 1,000 at the most
    # Found in the index and not where it says, and why: a row that was deleted or moved behind the log's back looks like that.
    _suspects: dict[uuid.UUID, str] = field(default_factory=dict)
    _matches: dict[uuid.UUID, bool] = field(default_factory=dict)  # of rows that were held against the filter
    _steps: Steps = field(default_factory=Steps)
    _bytes_left: int = MAX_READ

    # --- In: hits of an index, and their rows -------------------------------------------------------------------------------

    async def search_index(self, vector: NDArray[np.float32], limit: int, skip: int) -> VectorHits:
        """The vector store's hits; where it lies in the canonical database, their rows come in the same round trip. Raises
        IndexChanged."""
        installation, index, tenant = self.installation, self.index, self.caller.tenant
        assert index is not None  # noqa: S101 - nothing is searched by meaning without an index
        where = may_push_down(self.where, self.caller)
        with metrics.search_seconds.labels("index").time():
            if installation.joined is None:
                found = await installation.vectors.search(tenant, index.index_namespace, vector, limit, where, skip)
                return self._took(found)
            query = JoinedQuery(
                _TEXT["rows"],
                self._around(self.with_proof),
                before=(_TEXT["scope"], scope_of(tenant)),
                after=(_TEXT["namespace"], {"tenant": tenant, "name": self.namespace}),
            )
            found, rows = await installation.joined.search_joined(
                tenant, index.index_namespace, vector, limit, where, skip, query
            )
        self._took(found)
        if rows is not None:
            self._keep([hit.node_id for hit in found.hits], self._understood(*rows, with_proof=self.with_proof))
        return found

    def _took(self, found: VectorHits) -> VectorHits:
        self.way, self.index_exact = found.way, found.exact and self.index_exact is not False
        return found

    async def read(self, ids: Sequence[uuid.UUID]) -> None:
        """Read the rows that are not there yet; without ids, ask for the index alone. Raises IndexChanged."""
        new = list({node_id for node_id in (*ids, *self.ahead) if node_id not in self.rows})
        if new or not ids:
            self._keep(new, await self._by_id(new, with_proof=self.with_proof))

    async def _by_id(self, ids: Sequence[uuid.UUID], *, with_proof: bool) -> dict[uuid.UUID, Candidate]:
        tenant = self.caller.tenant
        index = self.namespace if self.index is None else self.index.index_namespace
        given = {"tenant": tenant, "ids": list(ids), "namespace": index, **self._around(with_proof)}
        rows, namespaces = await self.installation.postgres.look(
            tenant, (_BY_ID, given), (_SQL["namespace"], {"tenant": tenant, "name": self.namespace})
        )
        return self._understood(rows, namespaces, with_proof=with_proof)

    def _around(self, with_proof: bool) -> dict[str, Any]:
        return {"strict": with_proof, "log": self.installation.log, "short": SHORT}

    def _understood(
        self, rows: Sequence[dict[str, Any]], namespaces: Sequence[dict[str, Any]], *, with_proof: bool
    ) -> dict[uuid.UUID, Candidate]:
        if _remember(self.installation, self.caller.tenant, self.namespace, namespaces) != self.index:
            raise IndexChanged
        self.pending = max([self.pending, *(row["pending"] for row in namespaces)])
        return {
            row["id"]: _candidate(row, with_proof)
            for row in rows
            if row["id"] is not None and row["provider"] is not None
        }

    def _keep(self, ids: Sequence[uuid.UUID], found: dict[uuid.UUID, Candidate]) -> None:
        self.rows.update((id_, found.get(id_)) for id_ in ids)

    # --- Through: which of them may be hits ---------------------------------------------------------------------------------

    async def admit(self, hits: Sequence[IndexHit], seen: set[uuid.UUID]) -> list[IndexHit]:
        """Those that may be hits of the search; the others are counted in ``dropped``. ``seen``: nodes of earlier pages, between which
        an index may change. Raises IndexChanged, and ValidationError when the filter's steps are spent."""
        with metrics.search_seconds.labels("verify").time():
            await self.read([hit.node_id for hit in hits])
        new = []
        for hit in hits:
            if hit.node_id not in seen and hit.node_id not in self.without:
                seen.add(hit.node_id)
                new.append(hit)
        reasons = await self._rejections(new)
        admitted = []
        for hit in new:
            reason = reasons[hit.node_id]
            if reason is None:
                admitted.append(hit)
                continue
            # What the filter or hidden text kept out is not counted: the count would say how many there are.
            if reason not in ("filter", "hidden"):
                self.dropped[reason] = self.dropped.get(reason, 0) + 1
            if reason != "orphan" and len(self.left_out) < MAX_SUSPECTS:
                self.left_out[hit.node_id] = reason
            if reason in ("orphan", "namespace"):
                self._suspects[hit.node_id] = reason
            metrics.stale_hits.labels(reason).inc()
        return admitted

    async def neighbours(self, ids: Sequence[uuid.UUID], reach: int) -> dict[uuid.UUID, Neighbours]:
        """Of those of these admitted nodes that are in a thread. Nothing is asked where none is."""
        placed = [node for id_ in ids if (node := self.admitted(id_).node).thread is not None]
        if not placed or not reach:
            return {}
        given = {
            "tenant": self.caller.tenant,
            "namespace": self.namespace,
            "ids": [node.id for node in placed],
            "threads": [node.thread for node in placed],
            "positions": [_LAST if node.position is None else node.position for node in placed],
            "times": [node.occurred_at or node.created_at for node in placed],
            "reach": reach,
        }
        (rows,) = await self.installation.postgres.look(self.caller.tenant, (_SQL["neighbours"], given))
        return {row["id"]: Neighbours(row["before"], row["after"]) for row in rows}

    async def visible(self, ids: Sequence[uuid.UUID]) -> list[uuid.UUID]:
        """Those of these nodes that this caller might have found with this filter: all that a neighbour in a thread may be, for a search
        counts and answers it. Raises IndexChanged, and ValidationError when the filter's steps are spent."""
        if ids:
            await self.read(ids)
        there = [
            IndexHit(id_, row.node.version, 0.0)
            for id_ in ids
            if id_ not in self.without and (row := self.rows[id_]) is not None
        ]
        reasons = await self._rejections(there)
        return [hit.node_id for hit in there if reasons[hit.node_id] is None]

    async def _rejections(self, hits: Sequence[IndexHit]) -> dict[uuid.UUID, str | None]:
        reasons = {
            hit.node_id: rejection(self.rows[hit.node_id], hit.version, self.namespace, self.caller) for hit in hits
        }
        if self.where is None:
            return reasons
        new = [row for i, why in reasons.items() if why is None and i not in self._matches and (row := self.rows[i])]
        found = await self._matching(self.where, new)
        self._matches.update((row.node.id, row.node.id in found) for row in new)
        return {i: "filter" if why is None and not self._matches[i] else why for i, why in reasons.items()}

    async def _matching(self, where: Filter, rows: Sequence[Candidate]) -> set[uuid.UUID]:
        """Those of these nodes that the filter holds for. What is long is read for it piece by piece, and not kept; where that is more
        than one search may read, the rest counts as not matching."""
        leaves = len(needs(where))
        reads = any(path[0] in ("content", "metadata") for path in needs(where))
        short = [row.node for row in rows if not (row.long and reads)]
        size = leaves * sum(row.size for row in rows)
        found = await aside.run(size, _matching, where, short, self.caller, self._steps)
        left = [row.node for row in rows if row.long and reads]
        while left and self._bytes_left > 0:
            bodies, size, left = await _read_bodies(self.installation, self.caller, left)
            self._bytes_left -= size
            found |= await aside.run(leaves * size, _matching, where, bodies, self.caller, self._steps)
        self.incomplete = self.incomplete or bool(left)
        return found

    # --- Out: what is answered is what the log says -------------------------------------------------------------------------

    async def verify(self, ids: Sequence[uuid.UUID]) -> None:
        """Hold what is about to be answered against the log; long nodes are, when they are read whole. Raises IndexChanged where one
        was changed since it was found, and Disproved."""
        installation, tenant = self.installation, self.caller.tenant
        if not strict(installation):
            return
        left = [
            row
            for row in map(self.admitted, ids)
            if not (row.long or installation.verdicts.holds(row.node.id, tenant, row.mark))
        ]
        installation.verdicts.count(len(ids) - len(left), len(ids))
        if bare := [row.node for row in left if row.proof is None]:
            found = await self._by_id([node.id for node in bare], with_proof=True)
            for node in bare:
                again = found.get(node.id)
                if again is None or again.node.version != node.version:
                    raise IndexChanged
            self.rows.update(found)
            left = [self.admitted(row.node.id) for row in left]
        proofs = {row.node.id: row.proof for row in left if row.proof is not None}
        problems = await judge_nodes(installation, self.caller, {row.node.id: row.node for row in left}, proofs)
        if problems:
            report(problems, "search")
            raise Disproved(problems)

    async def whole(self, node: Node) -> Node:
        """A long node with its text and metadata, held against the log. Raises Disproved, and IndexChanged where it is another version
        now."""
        read = await read_nodes(self.installation, self.caller, [node.id], "search")
        if read.problems:
            raise Disproved(read.problems)
        found = read.nodes.get(node.id)
        if found is None or found.version != node.version:
            raise IndexChanged
        return found

    async def files(self, node: Node) -> list[uuid.UUID]:
        """The ids of all files of a node, as far as an answer could hold them."""
        which = {"tenant": self.caller.tenant, "node": node.id, "limit": MAX_ANSWER // 36}
        (rows,) = await self.installation.postgres.fetch(self.caller.tenant, (_NODES["artifact_ids"], which))
        return [row["id"] for row in rows]

    async def disprove_suspects(self) -> set[uuid.UUID]:
        """Suspects that are not what the log says. They are tampered, and not what they seemed to be, so they leave ``dropped``."""
        if not self._suspects or not strict(self.installation):
            return set()
        ids = list(self._suspects)[:MAX_SUSPECTS]
        read = await read_nodes(self.installation, self.caller, ids, "search", whole=False)
        for problem in read.problems:
            reason = self._suspects[problem.id]
            self.dropped[reason] -= 1
            if not self.dropped[reason]:
                del self.dropped[reason]
        return {problem.id for problem in read.problems}

    def admitted(self, id_: uuid.UUID) -> Candidate:
        """The row of a node that was admitted."""
        row = self.rows[id_]
        assert row is not None  # noqa: S101 - else it would have been rejected
        return row


async def open_candidates(
    installation: Installation,
    caller: Caller,
    namespace: str,
    where: Filter | None,
    *,
    with_proof: bool,
    without: Collection[uuid.UUID],
) -> Candidates:
    """For one try of a search."""
    tenant = caller.tenant
    index = installation.seen.get((tenant, namespace))
    if index is None:
        (rows,) = await installation.postgres.look(tenant, (_SQL["namespace"], {"tenant": tenant, "name": namespace}))
        index = _remember(installation, tenant, namespace, rows)
    return Candidates(installation, caller, namespace, where, index, with_proof and strict(installation), without)


def _remember(installation: Installation, tenant: str, name: str, rows: Sequence[dict[str, Any]]) -> Namespace | None:
    """The namespace as it is, remembered for the next search."""
    if not rows:
        installation.seen.pop((tenant, name), None)
        return None
    space = Namespace(**{name: value for name, value in rows[0].items() if name != "pending"})
    if len(installation.seen) >= _MAX_SEEN:
        installation.seen.clear()
    installation.seen[(tenant, name)] = space
    return space


def _candidate(row: dict[str, Any], with_proof: bool) -> Candidate:
    proof = None
    if with_proof:
        seq, vector = row["entry_seq"], row["vector"]
        last = None if seq is None else LastEntry(seq, row["entry_batch"], row["entry"], row["salt"])
        given = row["vector_sha256"] if vector is None else vector_sha256(vector)
        proof = Proof(last, given, None, row["mark"])
    provider, index, model, dimension, status, since, files = _INDEX_ROW(row)
    node, long, size = node_of(row), bool(row["long"]), row["size"] or 0
    return Candidate(node, provider, index, model, dimension, status, since, files, long, size, row["mark"], proof)


def _matching(where: Filter, nodes: Sequence[Node], caller: Caller, steps: Steps) -> set[uuid.UUID]:
    return {node.id for node in nodes if visible_match(where, node, caller, steps)}


async def _read_bodies(
    installation: Installation, caller: Caller, nodes: Sequence[Node]
) -> tuple[list[Node], int, list[Node]]:
    """The first of these nodes with content and metadata, as many as one query may read; their bytes; the nodes that are left to be
    read. A node that is not at its version any more is in neither."""
    some = nodes[:_BATCH]
    given = {
        "tenant": caller.tenant,
        "ids": [node.id for node in some],
        "versions": [node.version for node in some],
        "bytes": READ_BYTES,
    }
    (rows,) = await installation.postgres.fetch(caller.tenant, (_NODES["node_bodies"], given))
    whole = [
        replace(node, content=row["content"], metadata=row["metadata"])
        for node, row in zip(some, rows, strict=False)
        if row["version"] is not None
    ]
    return whole, sum(row["size"] for row in rows), list(nodes[len(rows) :])

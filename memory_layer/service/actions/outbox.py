"""Which rows of the outbox (``memory_vectors``) a write makes: one for each generation of its namespace's index that is written.

Pure, like the actions that call it. A namespace has one active generation, which answers, and at times a standby: one that is being
built with another model, or the former one, kept for the way back (``docs/decisions/0018-generations.md``). After every write the
active generation must be able to find the node. The standby gets what is possible: the text embedded by its own model, or a vector
that the caller gives for it.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from memory_layer.errors import DimensionMismatch
from memory_layer.model import Embedding, Namespace, Node, VectorRow, VectorStatus, uuid7
from memory_layer.service.evidence import given_by
from memory_layer.stores.batch_reads import Known
from memory_layer.stores.batch_rows import RowOp, Verb

# A vector on its way out of the index, or out of it: nothing but a new one brings the node back in.
_LEAVING = (VectorStatus.DELETING, VectorStatus.DELETED)
# Not made from the text: a change of the text does not change it.
_GIVEN = ("caller", "earlier")
# Characters of a text to embed that waits with the bulk loads: it takes a worker's round as long as a few dozen notes, and cannot be cut.
LONG = 8_192


@dataclass(frozen=True, slots=True)
class EmbeddingSpace:
    """The embedding space that the text of a new namespace goes to: the embedder's model and dimension; None when there is none.

    ``also``: what this server can embed by besides.
    """

    provider: str
    model: str | None
    dimension: int | None
    also: tuple[tuple[str, int], ...] = ()

    def embeds(self, model: str | None, dimension: int | None) -> bool:
        """Whether this server can search by this model."""
        return (self.model, self.dimension) == (model, dimension) or (model, dimension) in self.also


@dataclass(slots=True)
class IndexRows:
    """Rows of the outbox that a write makes or changes. ``active``: that of the generation which answers; ``opens``: the namespace whose
    first vector this is."""

    vectors: list[VectorRow] = field(default_factory=list)
    active: VectorRow | None = None
    opens: Namespace | None = None

    def add(self, row: VectorRow | None) -> VectorRow | None:
        if row is not None:
            self.vectors.append(row)
        return row

    def operations(self) -> list[RowOp]:
        opened = [] if self.opens is None else [RowOp(Verb.INSERT, self.opens)]
        # Rows of version 1 are of nodes that are new themselves.
        return opened + [RowOp(Verb.INSERT if row.version == 1 else Verb.PUT, row) for row in self.vectors]


class _Generation(NamedTuple):
    """An index that a namespace is written to; ``model`` None: words alone, there is no embedder.

    ``space``: where text goes on this server, for the generation that answers. ``opens``: the namespace that its first vector makes.
    """

    index_namespace: str
    model: str | None
    dimension: int | None
    space: EmbeddingSpace | None = None
    opens: Namespace | None = None

    def takes(self, embedding: Embedding | None) -> bool:
        return embedding is not None and (embedding.model, embedding.dimension) == (self.model, self.dimension)

    def for_text(self, node: Node) -> tuple[str | None, int | None]:
        """(model, dimension) that a text is embedded by. Raises DimensionMismatch where this server could not search by it."""
        if self.space is None or self.space.embeds(self.model, self.dimension):
            return self.model, self.dimension
        if self.space.model is None:
            return None, None
        raise _mismatch(
            node, self.model, self.dimension, "this server's embedder", self.space.model, self.space.dimension
        )


def created(
    node: Node, embedding: Embedding | None, space: EmbeddingSpace, known: Known, *, bulk: bool = False
) -> IndexRows:
    """The row that brings a new node into the active generation, with its neighbour; none where there is nothing to index."""
    rows = IndexRows()
    if embedding is None and not node.content:
        return rows
    active, standby = _generations(node, embedding, space, known)
    rows.active = rows.add(_row(node, active, embedding, space.provider, uuid7(), rows, bulk=bulk))
    if rows.active is None:
        raise _nothing_for(active, node)
    if standby is not None:
        rows.add(_row(node, standby, embedding, space.provider, uuid7(), rows, bulk=bulk))
    return rows


def changed(node: Node, old: Node, embedding: Embedding | None, space: EmbeddingSpace, known: Known) -> IndexRows:
    """The row of the active generation as a change of its node leaves it, with its neighbour."""
    made = IndexRows()
    rows = {row.namespace: row for row in known.vectors.get((node.tenant, node.id), [])}
    active, standby = _generations(node, embedding, space, known)
    made.active = _changed(node, old, active, rows.get(active.index_namespace), embedding, space, made)
    if embedding is not None and (made.active is None or made.active.status in _LEAVING):
        raise _nothing_for(active, node)
    made.add(made.active)
    if standby is not None:
        made.add(_changed(node, old, standby, rows.get(standby.index_namespace), embedding, space, made))
    if embedding is not None:
        # The log speaks of one vector of the caller's, the last one. What was given to another generation before stays, as such.
        written = {row.namespace for row in made.vectors}
        made.vectors = [row if row.vector is embedding.data else _superseded(row) for row in made.vectors]
        made.vectors += [
            _superseded(row) for name, row in rows.items() if name not in written and row.source == "caller"
        ]
    return made


def followed(node: Node, known: Known) -> IndexRows:
    """Rows whose vector stays while other fields of the node change, which filters may be evaluated on in the index."""
    written = _written_namespaces(node, known)
    return IndexRows(
        [
            replace(row, version=node.version, status=VectorStatus.PENDING, bulk=_is_long(node, row.source, row.vector))
            for row in known.vectors.get((node.tenant, node.id), [])
            if row.status not in _LEAVING and (row.namespace in written or not written)
        ]
    )


def deleted(node: Node, known: Known) -> IndexRows:
    """All rows of a deleted node on their way out; what has left a dropped generation is not looked for there again."""
    written = _written_namespaces(node, known)
    return IndexRows(
        [
            replace(row, version=node.version, status=VectorStatus.DELETING)
            for row in known.vectors.get((node.tenant, node.id), [])
            if row.status != VectorStatus.DELETED or row.namespace in written or not written
        ]
    )


def resolved(node: Node, embedding: Embedding | None, known: Known) -> IndexRows:
    """Rows of a node that an operator restored or accepted: whatever the index holds of it is made anew from the row as it is now.

    ``embedding``: the vector that its caller gave last, where it is there. Text goes to the model of its namespace, whichever this
    process embeds by.
    """
    made = IndexRows()
    before = known.vectors.get((node.tenant, node.id), [])
    there = known.namespaces.get((node.tenant, node.namespace))
    rows = {row.namespace: row for row in before}
    sha256 = None if embedding is None else embedding.sha256
    if node.deleted_at is None:
        words_only = any(row.source == "none" for row in before)
        model, dimension = (None, None) if there is None or words_only else (there.model, there.dimension)
        provider = next((row.provider for row in before), "pgvector") if there is None else there.provider
        space = EmbeddingSpace(provider, model, dimension)
        try:
            generations = _generations(node, embedding, space, known)
        except DimensionMismatch:  # it was given to a generation that is written no more
            generations, embedding = _generations(node, None, space, known), None
        for generation in generations:
            if generation is not None:
                old = rows.get(generation.index_namespace)
                made.add(_row(node, generation, embedding, provider, old.id if old else uuid7(), made))
    ids = {row.id for row in made.vectors}
    for row in before:
        if row.id not in ids:
            kept = (
                row if row.source != "caller" or given_by([row]) == sha256 else replace(row, source="none", vector=None)
            )
            made.add(replace(kept, version=node.version, status=VectorStatus.DELETING))
    return made


def given(node: Node, known: Known, made: IndexRows) -> str | None:
    """SHA-256 of the vector that the node's caller gave last, as the log commits to it (audit-format.md, ``state``)."""
    rows = {row.namespace: row for row in known.vectors.get((node.tenant, node.id), [])}
    rows |= {row.namespace: row for row in made.vectors}
    return given_by(rows.values())


def _written_namespaces(node: Node, known: Known) -> tuple[str, ...]:
    """The index namespaces that are written; none where no vector was ever there."""
    space = known.namespaces.get((node.tenant, node.namespace))
    if space is None:
        return ()
    return (space.index_namespace,) if space.written is None else (space.index_namespace, space.written)


def _generations(
    node: Node, embedding: Embedding | None, space: EmbeddingSpace, known: Known
) -> tuple[_Generation, _Generation | None]:
    """The active generation and the standby. Raises DimensionMismatch for a vector that belongs to neither."""
    there = known.namespaces.get((node.tenant, node.namespace))
    if there is None:
        model = embedding.model if embedding else space.model
        dimension = embedding.dimension if embedding else space.dimension
        opens = None
        if model is not None and dimension is not None:
            opens = Namespace(node.tenant, node.namespace, node.namespace, model, dimension, space.provider)
        return _Generation(node.namespace, model, dimension, None, opens), None
    active = _Generation(there.index_namespace, there.model, there.dimension, space)
    standby = None
    if there.written is not None:
        standby = _Generation(there.written, there.standby_model, there.standby_dimension)
    if embedding is not None and not active.takes(embedding) and not (standby is not None and standby.takes(embedding)):
        raise _mismatch(node, there.model, there.dimension, "the vector", embedding.model, embedding.dimension)
    return active, standby


def _changed(
    node: Node,
    old: Node,
    into: _Generation,
    before: VectorRow | None,
    embedding: Embedding | None,
    space: EmbeddingSpace,
    made: IndexRows,
) -> VectorRow | None:
    """A generation's row after a change of its node; None: there was none, and there is nothing for one."""
    if (
        before is None
        or before.status in _LEAVING
        or into.takes(embedding)
        or (node.content != old.content and before.source not in _GIVEN)
    ):
        vector = _row(node, into, embedding, space.provider, before.id if before else uuid7(), made)
        if vector is None and before is not None and before.status not in _LEAVING:
            vector = replace(before, version=node.version, status=VectorStatus.DELETING)
        return vector
    # The vector stays, but filters may be evaluated beside it: its fields must follow the row.
    # New words beside a vector of the caller's own: what the index says of the old ones no longer holds.
    since = before.since if node.content == old.content else node.version
    bulk = _is_long(node, before.source, before.vector)
    return replace(before, version=node.version, status=VectorStatus.PENDING, since=since, bulk=bulk)


def _row(
    node: Node,
    into: _Generation,
    embedding: Embedding | None,
    provider: str,
    row_id: uuid.UUID,
    made: IndexRows,
    *,
    bulk: bool = False,
) -> VectorRow | None:
    """The row that brings a node into a generation, by the caller's vector or else by its text; None when there is neither."""
    mine = embedding if into.takes(embedding) else None
    if mine is None and not node.content:
        return None
    model, dimension = (into.model, into.dimension) if mine else into.for_text(node)
    source: Literal["caller", "embedder", "none"] = "caller" if mine else "embedder" if model else "none"
    if into.opens is not None:
        made.opens = into.opens
    return VectorRow(
        tenant=node.tenant,
        id=row_id,
        memory_node_id=node.id,
        namespace=into.index_namespace,
        provider=provider,
        model=model,
        dimension=dimension,
        status=VectorStatus.PENDING,
        version=node.version,
        source=source,
        since=node.version,
        bulk=bulk or _is_long(node, source, None),
        vector=mine.data if mine else None,
        encoded=mine.base64 if mine else None,
        sha256=mine.sha256 if mine else None,
    )


def _is_long(node: Node, source: str, vector: bytes | None) -> bool:
    """Whether a long text has yet to be embedded."""
    return source == "embedder" and vector is None and len(node.content or "") > LONG


def _superseded(row: VectorRow) -> VectorRow:
    return replace(row, source="earlier") if row.source == "caller" else row


def _mismatch(
    node: Node, holds: str | None, size: int | None, whose: str, model: str | None, dimension: int | None
) -> DimensionMismatch:
    return DimensionMismatch(
        f"Namespace {node.namespace} holds {size}-dimensional vectors of {holds}; {whose} has {dimension} of {model}. Use that model, "
        "or another namespace."
    )


def _nothing_for(active: _Generation, node: Node) -> DimensionMismatch:
    return DimensionMismatch(
        f"Namespace {node.namespace} is searched by {active.model} ({active.dimension} dimensions), and this vector is for the model "
        "beside it. Send the text along, or a vector of that model too, so that the node is found meanwhile."
    )

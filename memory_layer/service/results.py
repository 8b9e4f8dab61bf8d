"""What a search answers: its hits as JSON, with their neighbours in the thread where they were asked for."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from memory_layer.errors import PayloadTooLarge
from memory_layer.model import Caller, Node, format_time, format_time_or_none
from memory_layer.service.answers import MAX_ANSWER, READ_BYTES, Parts
from memory_layer.service.candidates import Candidate, Candidates, Neighbours
from memory_layer.service.fusion import Hit
from memory_layer.service.hiding import redact


@dataclass(frozen=True, slots=True)
class Around:
    """Neighbours of a hit that are answered with it, in the order of their thread."""

    before: Sequence[uuid.UUID]
    after: Sequence[uuid.UUID]


async def neighbours_of(
    candidates: Candidates, hits: Sequence[Hit], before: int, after: int
) -> dict[uuid.UUID, Around]:
    """Up to so many neighbours of each hit that the search might have found. Raises IndexChanged."""
    found = await candidates.neighbours([hit.node_id for hit in hits], max(before, after))
    named = {
        hit.node_id: (one.before[:before][::-1], one.after[:after])
        for hit in hits
        for one in (found.get(hit.node_id, Neighbours([], [])),)
    }
    ids = dict.fromkeys(id_ for sides in named.values() for side in sides for id_ in side)
    seen = set(await candidates.visible(list(ids)))
    return {
        node: Around([id_ for id_ in earlier if id_ in seen], [id_ for id_ in later if id_ in seen])
        for node, (earlier, later) in named.items()
    }


async def results_of(
    candidates: Candidates,
    hits: Sequence[Hit],
    around: Mapping[uuid.UUID, Around] | None,
    why: Mapping[uuid.UUID, dict[str, Any]] | None,
) -> list[msgspec.Raw]:
    """The hits as JSON, with the text and metadata that were left behind; ``around``: with neighbours, ``why``: and why they were found. Raises PayloadTooLarge, IndexChanged, Disproved."""
    parts = Parts()
    for hit in hits:
        row = candidates.admitted(hit.node_id)
        node, files, size = row.node, row.artifacts, row.size + len(row.node.content or "")
        if row.long:
            node, size = await candidates.whole(node), READ_BYTES
        if row.more_files:
            files, size = await candidates.files(node), READ_BYTES
        more: dict[str, Any] = {} if why is None else {"explain": why[hit.node_id]}
        if around is not None:
            beside = around[hit.node_id]
            context = {
                "before": await _texts(candidates, beside.before),
                "after": await _texts(candidates, beside.after),
            }
            size += sum(len(one["content"] or "") for side in context.values() for one in side)
            more["context"] = context
        if not await parts.add(size, _shape, hit, node, candidates.caller, row, files, more):
            raise PayloadTooLarge(
                f"The answer is larger than {MAX_ANSWER} bytes: these {len(hits)} nodes hold too much text and metadata, the first "
                f"{len(parts.items)} of them fit. Ask for a smaller topK, or less context."
            )
    return parts.items


async def _texts(candidates: Candidates, ids: Sequence[uuid.UUID]) -> list[dict[str, Any]]:
    """Neighbours as they are answered. Raises IndexChanged, Disproved."""
    shapes = []
    for id_ in ids:
        row = candidates.admitted(id_)
        node = await candidates.whole(row.node) if row.long else row.node
        shape = {
            "memoryNodeId": str(node.id),
            "content": node.content,
            "metadata": node.metadata,
            "occurredAt": format_time_or_none(node.occurred_at),
            "position": node.position,
            "piiFlags": node.pii_flags,
        }
        shape = redact(shape, candidates.caller)
        del shape["piiFlags"]
        shapes.append(shape)
    return shapes


def _shape(
    hit: Hit,
    node: Node,
    caller: Caller,
    row: Candidate,
    files: Sequence[uuid.UUID],
    more: Mapping[str, Any],
) -> dict[str, Any]:
    shape = {
        "memoryNodeId": str(node.id),
        "score": hit.score,
        "scores": hit.scores,
        "owner": node.owner,
        "content": node.content,
        "metadata": node.metadata,
        "occurredAt": format_time_or_none(node.occurred_at),
        "createdAt": format_time(node.created_at),
        "thread": node.thread,
        "position": node.position,
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
    return {**shape, **more}

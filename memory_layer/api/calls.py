"""What a handler is given and what it gives, as data: no web framework, so that any door can call the same handlers.

``app.py`` makes a ``Call`` of a request and ``replies.py`` makes a response of an ``Answer``. In between stand the ids that an answer
names: an access log cannot find them in bytes that are encoded already.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from memory_layer.api import decode
from memory_layer.model import Caller
from memory_layer.service.commit import Idempotency, Outcome
from memory_layer.service.installation import Installation


@dataclass(frozen=True, slots=True)
class Call:
    """A request: authenticated, authorised, decoded. ``stream``: the body, where the operation streams it."""

    installation: Installation
    caller: Caller
    headers: Mapping[str, str]  # by lower-case name
    path: Mapping[str, str]  # the parameters in the path
    query: Any
    body: Any
    size: int = 0  # bytes of the body
    idempotency: Idempotency | None = None
    stream: AsyncIterator[bytes] | None = None

    def id(self, name: str = "id") -> uuid.UUID:
        return decode.identifier(self.path[name], name)


@dataclass(frozen=True, slots=True)
class Touched:
    """What an answer shows, or what the call changed: ids of nodes and artifacts, sequence numbers of entries of the log."""

    nodes: Sequence[str] = ()
    artifacts: Sequence[str] = ()
    seqs: Sequence[int] = ()


NOTHING: Final = Touched()


@dataclass(frozen=True, slots=True)
class Answer:
    """``body``: None for none; bytes, or an iterator of them, go out as they are and need a Content-Type; all else becomes JSON."""

    status: int
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    touched: Touched = NOTHING


def touched_by(shapes: Iterable[Mapping[str, Any]]) -> Touched:
    """What shapes of the API name, by the names that they all use: nodes, artifacts, jobs and entries; or what is within them."""
    nodes: dict[str, None] = {}
    artifacts: dict[str, None] = {}
    seqs: dict[int, None] = {}
    for shape in shapes:
        for found, value in (
            (nodes, shape.get("memoryNodeId")),
            (artifacts, shape.get("artifactId")),
            (seqs, shape.get("seq")),
            (seqs, (shape.get("audit") or {}).get("seq")),
        ):
            if value is not None:
                found[value] = None
        if within := shape.get("artifacts"):
            inner = touched_by(within)
            artifacts.update(dict.fromkeys(inner.artifacts))
            seqs.update(dict.fromkeys(inner.seqs))
    return Touched(tuple(nodes), tuple(artifacts), tuple(seqs))


def shown(shape: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Answer:
    """The answer of a read of one thing."""
    return Answer(200, shape, headers or {}, touched_by([shape]))


def written(status: int, outcome: Outcome, headers: Mapping[str, str] | None = None) -> Answer:
    """The answer of a write. One that was made before and is repeated creates nothing: 200 instead of 201."""
    headers = dict(headers or {})
    if outcome.receipt is not None:
        headers["X-Audit-Seq"] = str(outcome.receipt.seq)
    if outcome.replayed:
        headers["Idempotency-Replayed"] = "true"
        status = 200 if status == 201 else status
    touched = touched_by(outcome.answer.get("items") or [outcome.answer])
    return Answer(status, None if status == 204 else outcome.answer, headers, touched)

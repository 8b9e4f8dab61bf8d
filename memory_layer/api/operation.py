"""One row of the table of calls (``operations.py``)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from memory_layer import errors
from memory_layer.api import schemas
from memory_layer.api.calls import Answer, Call

E = type[errors.MemoryLayerError]
_WRITE: tuple[E, ...] = (
    errors.IdempotencyMismatch,
    errors.SignerUnavailable,
    errors.Frozen,
    errors.RollbackDetected,
    errors.Overloaded,
)


@dataclass(frozen=True, slots=True)
class Operation:
    """One call. ``answers`` maps a success status to its body's type (None: no body, bytes: binary)."""

    method: str
    path: str
    name: str
    summary: str
    scope: str
    handler: Callable[[Call], Awaitable[Answer]]
    answers: Mapping[int, type | None]
    body: type | None = None
    query: type[schemas.Query] = schemas.NoQuery
    headers: Mapping[str, str] = field(default_factory=dict)
    streams: bool = False
    many: bool = False  # the body is a JSON array of ``body``, or one of them a line (NDJSON)
    errors: tuple[E, ...] = ()
    writes: bool = False
    public: Literal["checkpoint", "tiles"] | None = (
        None  # what AUDIT_PUBLIC must say for it to be served without a token
    )


def write(method: str, path: str, name: str, summary: str, scope: str, handler: Any, **more: Any) -> Operation:
    """A call that writes, with what every write may be refused for."""
    raised = (*more.pop("errors", ()), *_WRITE)
    return Operation(method, path, name, summary, scope, handler, errors=raised, writes=True, **more)

"""Every error that a caller may see, with its one stable code.

The HTTP status, the exit code of ``memoryctl`` and whether a retry can help live on the class, so that each
door maps an error in one place. The list is the contract of ``docs/reference/api.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple


class Problem(NamedTuple):
    """One thing wrong with a request: where (dotted path, ``body`` for the whole) and what."""

    path: str
    problem: str


class MemoryLayerError(Exception):
    """Something went wrong inside the Memory Layer."""

    code: ClassVar[str] = "INTERNAL"
    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 3
    retryable: bool = False

    def __init__(
        self, message: str | None = None, *, details: Sequence[Problem] = (), retry_after: int | None = None
    ) -> None:
        self.message = message or (type(self).__doc__ or "").partition("\n")[0].strip()
        self.details = tuple(details)
        self.retry_after = retry_after
        super().__init__(self.message)


def error_body(error: MemoryLayerError) -> dict[str, object]:
    """An error as every API and command shows it. Names out of a request may be as long as the request: they are cut."""
    return {
        "code": error.code,
        "message": _short(error.message),
        "details": [{"path": _short(d.path), "problem": _short(d.problem)} for d in error.details],
        "retryable": error.retryable,
    }


def _short(text: str) -> str:
    return text if len(text) <= 1000 else text[:1000] + "..."


class ValidationError(MemoryLayerError):
    """The request is well-formed but not valid."""

    code, status, exit_code = "VALIDATION_ERROR", 422, 2


class MalformedJson(MemoryLayerError):
    """The body is not JSON."""

    code, status, exit_code = "MALFORMED_JSON", 400, 2


class InvalidCursor(MemoryLayerError):
    """The cursor was not made by this server for this query."""

    code, status, exit_code = "INVALID_CURSOR", 400, 2


class Unwritable(MemoryLayerError):
    """Postgres cannot store or compute this, now or later."""


class Unauthenticated(MemoryLayerError):
    """No valid credentials came with the request."""

    code, status, exit_code = "UNAUTHENTICATED", 401, 4


class Forbidden(MemoryLayerError):
    """The caller lacks the scope that this call needs."""

    code, status, exit_code = "FORBIDDEN", 403, 4


class NotFound(MemoryLayerError):
    """There is no such thing here."""

    code, status, exit_code = "NOT_FOUND", 404, 1


class MethodNotAllowed(MemoryLayerError):
    """This path does not answer that method."""

    code, status, exit_code = "METHOD_NOT_ALLOWED", 405, 2


class LegalHold(MemoryLayerError):
    """The node is under legal hold."""

    code, status, exit_code = "LEGAL_HOLD", 409, 4


class Conflict(MemoryLayerError):
    """The change conflicts with what is stored."""

    code, status, exit_code = "CONFLICT", 409, 1


class Tampered(MemoryLayerError):
    """The row is not what its last entry in the audit log says: nothing of it is shown, and nothing is written upon it."""

    code, status, exit_code = "TAMPERED", 409, 4


class NotYetPublished(MemoryLayerError):
    """No published checkpoint covers this yet; one is made about every second."""

    code, status, exit_code, retryable = "NOT_YET_PUBLISHED", 409, 1, True


class PreconditionFailed(MemoryLayerError):
    """The node has another version than If-Match names."""

    code, status, exit_code = "PRECONDITION_FAILED", 412, 1


class PayloadTooLarge(MemoryLayerError):
    """The body is larger than this call accepts."""

    code, status, exit_code = "PAYLOAD_TOO_LARGE", 413, 2


class HeadersTooLarge(MemoryLayerError):
    """The request's head is larger than 64 KB, or has more than 100 headers."""

    code, status, exit_code = "HEADERS_TOO_LARGE", 431, 2


class RequestTimeout(MemoryLayerError):
    """The request did not come in time."""

    code, status, retryable = "REQUEST_TIMEOUT", 408, True


class UnsupportedMediaType(MemoryLayerError):
    """The body has a content type that this call does not read."""

    code, status, exit_code = "UNSUPPORTED_MEDIA_TYPE", 415, 2


class RangeNotSatisfiable(MemoryLayerError):
    """The range lies outside the artifact."""

    code, status, exit_code = "RANGE_NOT_SATISFIABLE", 416, 2


class IdempotencyMismatch(MemoryLayerError):
    """This Idempotency-Key was used with another request."""

    code, status, exit_code = "IDEMPOTENCY_MISMATCH", 422, 2


class ChecksumMismatch(MemoryLayerError):
    """The bytes do not have the announced SHA-256."""

    code, status, exit_code = "CHECKSUM_MISMATCH", 422, 1


class DimensionMismatch(MemoryLayerError):
    """The vector has another dimension or model than its namespace."""

    code, status, exit_code = "DIMENSION_MISMATCH", 422, 2


class SignerUnavailable(MemoryLayerError):
    """The audit signer did not answer; nothing was written."""

    code, status, retryable = "SIGNER_UNAVAILABLE", 503, True


class DatabaseUnavailable(MemoryLayerError):
    """Postgres does not answer, or not as the service needs it.

    ``reason`` says in a word or two what is wrong (``disk full``, ``read-only``, ...), for health checks. ``server_message``: Postgres's own
    words, for operators alone; they may name tables.
    """

    code, status, retryable = "DATABASE_UNAVAILABLE", 503, True
    reason: str = "unreachable"
    server_message: str = ""


class LogNotOpen(MemoryLayerError):
    """The database does not hold the log that the trust root names."""

    code, status, retryable = "LOG_NOT_OPEN", 503, True


class LogTampered(MemoryLayerError):
    """The log does not end as its keys sealed it; nothing is written."""

    code, status, retryable = "LOG_TAMPERED", 503, True


class IssuerUnavailable(MemoryLayerError):
    """The keys of the issuer of tokens cannot be fetched."""

    code, status, retryable = "ISSUER_UNAVAILABLE", 503, True


class VectorStoreUnavailable(MemoryLayerError):
    """The vector store does not answer; writes and keyword search go on."""

    code, status, retryable = "VECTOR_STORE_UNAVAILABLE", 503, True


class EmbedderUnavailable(MemoryLayerError):
    """The embedding model does not answer, or none is configured."""

    code, status, retryable = "EMBEDDER_UNAVAILABLE", 503, True


class ObjectStoreUnavailable(MemoryLayerError):
    """The object store does not answer."""

    code, status, retryable = "OBJECT_STORE_UNAVAILABLE", 503, True


class AnchorUnavailable(MemoryLayerError):
    """A place that checkpoints are sent to does not answer."""

    code, status, exit_code, retryable = "ANCHOR_UNAVAILABLE", 503, 3, True


class Frozen(MemoryLayerError):
    """An operator has stopped all writes for a while; reads go on."""

    code, status, retryable = "FROZEN", 503, True


class RollbackDetected(MemoryLayerError):
    """The log does not contain what was signed and is kept outside the database; nothing is written to it."""

    code, status, exit_code = "ROLLBACK_DETECTED", 503, 4

    def __init__(self, message: str | None = None, *, retryable: bool = False, retry_after: int | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.retryable = retryable  # where the proof is only missing yet


class Overloaded(MemoryLayerError):
    """Too many writes are waiting."""

    code, status, retryable = "OVERLOADED", 503, True


class DependencyUnavailable(MemoryLayerError):
    """Something that the command needs is missing or does not answer."""

    code, status, exit_code, retryable = "DEPENDENCY_UNAVAILABLE", 503, 3, True


class UsageError(MemoryLayerError):
    """The command or a setting is wrong."""

    code, status, exit_code = "USAGE", 400, 2


class PolicyRefused(MemoryLayerError):
    """A policy forbids this."""

    code, status, exit_code = "POLICY_REFUSED", 403, 4


class LockHeld(MemoryLayerError):
    """Another run holds the lock."""

    code, status, exit_code, retryable = "LOCK_HELD", 409, 5, True

"""Records that every layer uses. No I/O."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import re
import struct
import threading
import time
import uuid
from base64 import b64encode
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import lru_cache
from operator import attrgetter
from typing import Any, Literal

SCOPES = (
    "memory:read",
    "memory:write",
    "memory:delete",
    "read:pii",
    "memory:legal_hold",
    "memory:erase",
    "audit:read",
    "audit:all",
    "admin",
)

REDACTED = "[redacted]"

# What may stand in an audit entry: a tenant, and any other name of a caller's making. No quote, no backslash, nothing beyond printable ASCII.
TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,62}")
# The tenant of what the installation does by itself; null in the log. No token can name it (TENANT).
SYSTEM_TENANT = "_system"
LOG_TEXT = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,128}")
MAX_REASON = 500  # characters of the reason that an operator's act gives


def is_reason(text: str) -> bool:
    """Whether a text can be such a reason: one line that says something."""
    return bool(text.strip()) and len(text) <= MAX_REASON and text.isprintable()


_SIXTY_FOUR = struct.Struct("64Q")
_MAX_AHEAD = 10_000 * 4096  # ticks (1/4096 ms) that ids may run ahead of a clock that was put back: ten seconds
_last_tick = 0
_ticking = threading.Lock()
_randoms: list[int] = []  # of 64 bits, each for one id: the system gives many at the price of one
os.register_at_fork(after_in_child=_randoms.clear)


def uuid7() -> uuid.UUID:
    """A time-ordered id (RFC 9562, version 7): 48 bits of milliseconds, 12 bits of their fraction, 62 random bits.

    Within a process each is greater than the one before, so what one request makes is listed in its order.
    """
    global _last_tick
    with _ticking:
        tick = time.time_ns() * 4096 // 1_000_000
        if 0 <= _last_tick - tick < _MAX_AHEAD:
            tick = _last_tick + 1
        _last_tick = tick
        if not _randoms:
            _randoms.extend(_SIXTY_FOUR.unpack(os.urandom(_SIXTY_FOUR.size)))
        random = _randoms.pop() >> 2
    return uuid.UUID(int=tick >> 12 << 80 | 7 << 76 | (tick & 0xFFF) << 64 | 2 << 62 | random)


class VectorStatus(StrEnum):
    """Where a vector row stands; see ``docs/concepts.md`` for the picture."""

    PENDING = "pending"
    IN_FLIGHT = "in_flight"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    DEAD = "dead"
    DELETING = "deleting"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: made once per request by the door, trusted by every use case."""

    tenant: str
    actor: uuid.UUID
    service: str
    auth: Literal["jwt", "api-key", "mtls", "system"]
    scopes: frozenset[str]
    request_id: str
    trace_id: str | None = None
    manifest_signature_id: str | None = None
    prev_audit_hash: str | None = None
    draft: bool = (
        False  # the service has no id yet: it gets this one with its first entry, unless another process is first
    )

    @property
    def home(self) -> str:
        """The tenant whose principal this is: an operator who acts in a tenant's name stays the installation's own."""
        return SYSTEM_TENANT if self.auth == "system" else self.tenant

    def asking(
        self, request_id: str, trace_id: str | None, manifest_signature_id: str | None, prev_audit_hash: str | None
    ) -> Caller:
        """The same caller with what comes with a request. ``dataclasses.replace`` takes three times as long, and each request does it."""
        return Caller(
            self.tenant,
            self.actor,
            self.service,
            self.auth,
            self.scopes,
            request_id,
            trace_id,
            manifest_signature_id,
            prev_audit_hash,
            self.draft,
        )


@dataclass(frozen=True, slots=True)
class Principal:
    """One row of ``principals``: the opaque id that stands for a service of a tenant in the log. ``audit_id``: the entry that made it."""

    tenant: str
    service: str
    id: uuid.UUID
    created_at: dt.datetime
    audit_id: uuid.UUID | None = None
    revoked_at: dt.datetime | None = None  # since when its credentials are refused


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One row of ``api_keys``, with the name of its service; without its last use, of which no entry tells."""

    tenant: str
    id: uuid.UUID
    principal: uuid.UUID
    service: str
    key_sha256: bytes
    hint: str | None  # how the key begins
    name: str | None
    scopes: list[str]
    created_at: dt.datetime
    expires_at: dt.datetime | None = None
    revoked_at: dt.datetime | None = None
    replaced_by: uuid.UUID | None = None  # what a rotation put in its place


@dataclass(frozen=True, slots=True)
class Embedding:
    """A vector as the caller gave it: little-endian float32 bytes, exactly those that are hashed and stored."""

    model: str
    dimension: int
    data: bytes
    sha256: str = field(init=False)  # lower hex, of data
    base64: str = field(init=False, repr=False)  # of data, as it is stored

    def __post_init__(self) -> None:
        # Here, and not under the log lock, where they would be needed.
        object.__setattr__(self, "sha256", hashlib.sha256(self.data).hexdigest())
        object.__setattr__(self, "base64", b64encode(self.data).decode("ascii"))


@dataclass(slots=True)
class Node:
    """One row of ``memory_nodes``."""

    tenant: str
    id: uuid.UUID
    owner: str
    namespace: str
    embedding_id: str | None
    content: str | None
    metadata: dict[str, Any]
    pii_flags: dict[str, Any]
    subjects: list[str]
    legal_hold: bool
    legal_hold_reason: str | None
    ttl_seconds: int | None
    expires_at: dt.datetime | None
    occurred_at: dt.datetime | None
    version: int
    created_at: dt.datetime
    updated_at: dt.datetime
    deleted_at: dt.datetime | None = None
    derived_from: list[str] | None = None  # ids of the nodes that it was made from, as its writer says
    language: str | None = None  # ISO 639 code of its text, as its writer says; else the text tells
    thread: str | None = None  # what it is a part of: a conversation, a document
    position: int | None = None  # its place there; without one its time is

    def copy(self) -> Node:
        return Node(*_node_fields(self))


_node_fields = attrgetter(*(field.name for field in fields(Node)))


@dataclass(slots=True)
class VectorRow:
    """One row of ``memory_vectors``, without its lease."""

    tenant: str
    id: uuid.UUID
    memory_node_id: uuid.UUID
    namespace: str
    provider: str
    model: str | None
    dimension: int | None
    status: VectorStatus
    version: int
    # earlier: the caller gave it, and then another one to another generation of the index, which the log speaks of since
    source: Literal["caller", "earlier", "embedder", "none"]
    since: int  # the node's version at which the vector itself last changed: an index entry from then on is right
    vector: bytes | None = None
    error: str | None = None
    bulk: bool = False  # written with many others at once, or long: it waits behind single writes
    encoded: str | None = None  # ``vector`` in base64, where it is at hand
    sha256: str | None = None  # of ``vector``, lower hex, where it is at hand
    read: str | None = None  # how much of its text the embedder read for it; None: not known, or no embedder made it


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace and the generation of its index that answers; ``standby``: the index namespace of the other one, if there is one."""

    tenant: str
    name: str
    index_namespace: str
    model: str
    dimension: int
    provider: str
    generations: int = 1  # how many there have been
    standby: str | None = None
    standby_model: str | None = None
    standby_dimension: int | None = None
    standby_state: Literal["building", "kept", "retired"] | None = None

    @property
    def written(self) -> str | None:
        """The index namespace of the standby, while every write goes there as well."""
        return None if self.standby_state == "retired" else self.standby


@dataclass(frozen=True, slots=True)
class Freeze:
    """An operator's freeze of all writes; ``until`` None: until it is lifted."""

    reason: str
    since: dt.datetime
    until: dt.datetime | None


@dataclass(frozen=True, slots=True)
class Artifact:
    """One row of ``artifacts``."""

    tenant: str
    id: uuid.UUID
    memory_node_id: uuid.UUID | None
    name: str | None
    url: str
    object_key: str
    version_id: str
    sha256: str
    size_bytes: int
    content_type: str
    manifest_signature_id: str | None
    created_by: uuid.UUID
    metadata: dict[str, Any]
    created_at: dt.datetime
    legal_hold: bool = False  # its node's
    hold_due: bool = False  # the object store does not have it yet
    retain_until: dt.datetime | None = None
    verified_at: dt.datetime | None = None  # its bytes were last found right
    storage_class: str = "STANDARD"
    fault: str | None = None  # what the last check found wrong: corrupt, missing, shadowed, unlocked


@dataclass(frozen=True, slots=True)
class AuditReceipt:
    """Where a write stands in the log; goes back to the writer."""

    id: uuid.UUID
    seq: int
    hash: str


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One entry with the columns that stand beside its bytes."""

    id: uuid.UUID
    seq: int
    type: str
    node: uuid.UUID | None
    artifact: uuid.UUID | None
    created_at: dt.datetime
    hash: str
    prev_hash: str
    batch_no: int
    entry: bytes = field(repr=False, default=b"")


def format_time(moment: dt.datetime) -> str:
    """RFC 3339 in UTC with six digits and ``Z``: the one spelling used in answers, entries and hashes."""
    # Not strftime: its %Y writes the year 143 as "143" on Linux.
    if moment.tzinfo is not dt.UTC:
        moment = moment.astimezone(dt.UTC)
    return _spelled(moment)


@lru_cache(maxsize=256)
def _spelled(moment: dt.datetime) -> str:
    """What one request, or one batch, says of a time it says several times."""
    return moment.isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def format_time_or_none(moment: dt.datetime | None) -> str | None:
    return None if moment is None else format_time(moment)

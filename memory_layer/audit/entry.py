"""One entry of the audit log: its exact bytes, and the hashes that bind it. Format: ``docs/audit-format.md``, "Entry"."""

from __future__ import annotations

import datetime as dt
import hashlib
import re
import uuid
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple

from memory_layer.errors import Problem, ValidationError

VERSION: Final = 2  # of new entries; those of version 1 are read for ever
MAX_ENTRY: Final = 65_535  # bytes; an entry tile gives each length in 16 bits
SALT_BYTES: Final = 32

EVENT_TYPES: Final = frozenset(
    {
        "memory.node.created",
        "memory.node.updated",
        "memory.node.deleted",
        "memory.node.purged",
        "memory.legal_hold.set",
        "memory.legal_hold.released",
        "memory.artifact.created",
        "memory.artifact.verified",
        "memory.artifact.corrupt",
        "memory.artifact.deleted",
        "memory.subject.erased",
        "memory.access.sealed",
        "auth.denied",
        "audit.key.activated",
        "audit.key.retired",
        "audit.archived",
        "audit.heartbeat",
        "audit.incarnation.opened",
    }
)
OPS_TYPE: Final = r"ops\.[a-z][a-z0-9_-]{0,47}\.(?:succeeded|failed)"

Auth = Literal["jwt", "api-key", "mtls", "system"]
Outcome = Literal["ok", "denied"]

_SAFE: Final = r"[ !#-\[\]-~]"  # printable ASCII without the quote and the backslash
_HEX64: Final = r"[0-9a-f]{64}"
INTEGER: Final = r"0|[1-9][0-9]{0,14}"  # 15 digits stay below 2^53 without arithmetic
_UUID: Final = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
TIME: Final = (
    r"[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\.[0-9]{6}Z"
)

# Every member in the order of the bytes: what its value may be, and whether null may stand instead.
_STRINGS: Final[dict[str, tuple[str, bool]]] = {
    "actor": (_SAFE + "{1,128}", False),
    "artifact": (_UUID, True),
    "auth": ("jwt|api-key|mtls|system", False),
    "caller_prev_hash": (_SAFE + "{1,128}", True),
    "id": (r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", False),
    "log": (_SAFE + "{1,255}", False),
    "manifest_signature_id": (_SAFE + "{1,255}", True),
    "node": (_UUID, True),
    "outcome": ("ok|denied", False),
    "payload": (_HEX64, True),
    "prev": (_HEX64, False),
    "request_id": (_SAFE + "{1,128}", False),
    "seq": (INTEGER, False),
    "state": (_HEX64, True),
    "subject": (_SAFE + "{1,128}", True),
    "tenant": (_SAFE + "{1,128}", True),
    "trace_id": (_SAFE + "{1,64}", True),
    "ts": (TIME, False),
    "type": ("|".join(re.escape(name) for name in sorted(EVENT_TYPES)) + "|" + OPS_TYPE, False),
    "v": ("[12]", False),
    "version": (INTEGER, True),
}
_NUMBERS: Final = frozenset({"seq", "v", "version"})


def _member(name: str, pattern: str, nullable: bool) -> str:
    quote = "" if name in _NUMBERS else '"'
    # What follows a repeat is never in its class, so it need not remember where to go back to; the verifier lives on this.
    pattern = re.sub(r"(\{[0-9,]+\})", r"\1+", pattern)
    value = f"{quote}({pattern}){quote}"
    return f'"{name}":' + (f"(?:null|{value})" if nullable else value)


# Schema and canonical form in one: whatever this matches is RFC 8785 and has exactly the members of versions 1 and 2.
ENTRY: Final = re.compile(r"\{" + ",".join(_member(name, *rule) for name, rule in _STRINGS.items()) + r"\}")
GROUP: Final = {name: position for position, name in enumerate(_STRINGS, start=1)}


class Entry(NamedTuple):
    """The members of an entry, in the order of the contract."""

    v: int
    log: str
    seq: int
    id: str
    ts: str
    type: str
    tenant: str | None
    actor: str
    auth: str
    node: str | None
    version: int | None
    artifact: str | None
    subject: str | None
    outcome: str
    state: str | None
    request_id: str
    trace_id: str | None
    manifest_signature_id: str | None
    caller_prev_hash: str | None
    payload: str | None
    prev: str


def encode_entry(
    *,
    log: str,
    seq: int,
    id: uuid.UUID | str,
    ts: str,
    type: str,
    tenant: str | None,
    actor: uuid.UUID | str,
    auth: str,
    request_id: str,
    prev: str,
    outcome: str = "ok",
    node: uuid.UUID | str | None = None,
    version: int | None = None,
    artifact: uuid.UUID | str | None = None,
    subject: uuid.UUID | str | None = None,
    state: str | None = None,
    trace_id: str | None = None,
    manifest_signature_id: str | None = None,
    caller_prev_hash: str | None = None,
    payload: str | None = None,
    v: int = VERSION,
) -> bytes:
    """The exact bytes of an entry: sorted keys, no white space.

    ``v`` says what ``state`` covers (``states.py``). ``ts`` is ``format_ts`` of the database's clock; ``state``, ``payload`` and ``prev`` are 64 hex digits. Raises
    ValidationError that names each member that does not fit (a text outside printable ASCII, too long, not in its list).
    """
    # No value can smuggle in a member: the pattern has every name exactly once and allows no quote within a value.
    text = (
        f'{{"actor":"{actor}","artifact":{_or_null(artifact)},"auth":"{auth}","caller_prev_hash":{_or_null(caller_prev_hash)},'
        f'"id":"{id}","log":"{log}","manifest_signature_id":{_or_null(manifest_signature_id)},"node":{_or_null(node)},'
        f'"outcome":"{outcome}","payload":{_or_null(payload)},"prev":"{prev}","request_id":"{request_id}","seq":{seq},'
        f'"state":{_or_null(state)},"subject":{_or_null(subject)},"tenant":{_or_null(tenant)},"trace_id":{_or_null(trace_id)},'
        f'"ts":"{ts}","type":"{type}","v":{v},"version":{"null" if version is None else version}}}'
    )
    if ENTRY.fullmatch(text) is None or not is_time(ts):
        raise _misfit(locals())
    return text.encode("ascii")


def _or_null(value: uuid.UUID | str | None) -> str:
    return "null" if value is None else f'"{value}"'


def _misfit(facts: dict[str, Any]) -> ValidationError:
    problems = []
    for name, (pattern, nullable) in _STRINGS.items():
        value = facts[name]
        if value is None:
            if not nullable:
                problems.append(Problem(name, "missing"))
        elif re.fullmatch(pattern, str(value)) is None:
            problems.append(Problem(name, _RULES.get(name, "not of the form that the audit log takes")))
        elif name == "ts" and not is_time(str(value)):
            problems.append(Problem(name, "no such moment"))
    names = ", ".join(problem.path for problem in problems) or "entry"
    return ValidationError(f"The audit entry cannot carry this: {names}.", details=problems)


_TEXT_RULE: Final = "must be 1 to {} printable ASCII characters without quote and backslash"
_RULES: Final = {
    "actor": _TEXT_RULE.format(128),
    "caller_prev_hash": _TEXT_RULE.format(128),
    "log": _TEXT_RULE.format(255),
    "manifest_signature_id": _TEXT_RULE.format(255),
    "request_id": _TEXT_RULE.format(128),
    "subject": _TEXT_RULE.format(128),
    "tenant": _TEXT_RULE.format(128),
    "trace_id": _TEXT_RULE.format(64),
    "type": "not in the closed list of event types",
    "id": "must be a UUID of version 7 in lower case",
    "ts": "must be RFC 3339 in UTC with six digits and Z",
}


def parse_entry(data: bytes) -> Entry:
    """The members of an entry. Raises ValidationError unless these are the only bytes that ``encode_entry`` can give them."""
    try:
        match = ENTRY.fullmatch(data.decode("ascii"))
    except UnicodeDecodeError:
        match = None
    if match is None or len(data) > MAX_ENTRY or not is_time(match[GROUP["ts"]]):
        raise ValidationError(
            "Not an audit entry of version 1 or 2 in canonical form.", details=[Problem("entry", "not canonical")]
        )
    facts: dict[str, Any] = dict(zip(_STRINGS, match.groups(), strict=True))
    for name in _NUMBERS:
        facts[name] = None if facts[name] is None else int(facts[name])
    return Entry(**facts)


def leaf_hash(entry: bytes) -> str:
    """SHA-256(0x00 || entry), lower hex: the chain's hash and RFC 6962's leaf hash at once."""
    return hashlib.sha256(b"\0" + entry).hexdigest()


def genesis_prev(origin: str) -> str:
    """What ``prev`` of entry 0 is: no log begins like another's."""
    return hashlib.sha256(b"memory-layer/audit/genesis/v1\n" + origin.encode("ascii") + b"\n").hexdigest()


def payload_commitment(salt: bytes, payload: bytes) -> str:
    """What binds an entry to its payload; without the salt it tells nothing about a payload that was erased."""
    return _salted(b"memory-layer/audit/payload/v1\0", salt, payload)


def is_payload(commitment: str | None, salt: bytes | None, payload: bytes) -> bool:
    """Whether this is the payload that an entry commits to; a salt that is none binds nothing."""
    return salt is not None and len(salt) == SALT_BYTES and payload_commitment(salt, payload) == commitment


def state_hash(salt: bytes, state: bytes, v: int = VERSION) -> str:
    """The same over the canonical JSON of the row as it is after the change; ``v`` is the version of the entry."""
    return _salted(b"memory-layer/audit/state/v%d\0" % v, salt, state)


def _salted(prefix: bytes, salt: bytes, data: bytes) -> str:
    if len(salt) != SALT_BYTES:
        raise ValueError(f"a salt has {SALT_BYTES} bytes, this one {len(salt)}")
    return hashlib.sha256(prefix + salt + data).hexdigest()


def format_ts(moment: dt.datetime) -> str:
    """RFC 3339 in UTC, six digits, ``Z``. The moment must know its time zone."""
    if moment.tzinfo is None:
        raise ValueError("a moment without a time zone has no place in the audit log")
    # isoformat, unlike strftime, writes years below 1000 with four digits.
    return moment.astimezone(dt.UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


@lru_cache(maxsize=1024)
def is_time(text: str) -> bool:
    """Whether text of the right shape names a moment that exists. All entries of a batch share theirs, hence the cache."""
    try:
        dt.datetime.fromisoformat(text)
    except ValueError:
        return False
    return True

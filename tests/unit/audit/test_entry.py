"""Entries: exact bytes, one spelling, and what cannot be put into one."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import uuid
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from memory_layer.audit import entry
from memory_layer.audit.origin import origin
from memory_layer.errors import ValidationError

SAFE = st.characters(min_codepoint=0x20, max_codepoint=0x7E, exclude_characters='"\\')
HEX = st.binary(min_size=32, max_size=32).map(bytes.hex)
INTEGER = st.integers(0, 10**15 - 1)
UUIDS = st.uuids()


def safe(size: int) -> st.SearchStrategy[str]:
    return st.text(SAFE, min_size=1, max_size=size)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


def version7(value: uuid.UUID) -> uuid.UUID:
    return uuid.UUID(int=value.int & ~(0xF << 76) & ~(3 << 62) | 7 << 76 | 2 << 62)


FACTS = st.fixed_dictionaries(
    {
        "log": safe(255),
        "seq": INTEGER,
        "id": UUIDS.map(version7),
        "ts": st.datetimes(timezones=st.just(dt.UTC)).map(entry.format_ts),
        "type": st.sampled_from([*sorted(entry.EVENT_TYPES), "ops.migrate.succeeded", "ops.audit-export.failed"]),
        "tenant": maybe(safe(128)),
        "actor": UUIDS | safe(128),
        "auth": st.sampled_from(["jwt", "api-key", "mtls", "system"]),
        "node": maybe(UUIDS),
        "version": maybe(INTEGER),
        "artifact": maybe(UUIDS),
        "subject": maybe(safe(128)),
        "outcome": st.sampled_from(["ok", "denied"]),
        "state": maybe(HEX),
        "request_id": safe(128),
        "trace_id": maybe(safe(64)),
        "manifest_signature_id": maybe(safe(255)),
        "caller_prev_hash": maybe(safe(128)),
        "payload": maybe(HEX),
        "prev": HEX,
        "v": st.sampled_from([1, 2]),
    }
)
PLAIN: dict[str, Any] = {
    "log": "memory.example/audit/prod/s0/e1",
    "seq": 7,
    "id": "019b7c9a-1234-7abc-8def-0123456789ab",
    "ts": "2026-01-02T03:04:05.678901Z",
    "type": "memory.node.created",
    "tenant": "acme",
    "actor": "p-1",
    "auth": "jwt",
    "request_id": "r-1",
    "prev": "0" * 64,
}


@given(FACTS)
def test_bytes_are_canonical_and_read_back(facts: dict[str, Any]) -> None:
    data = entry.encode_entry(**facts)
    members = {name: str(value) if isinstance(value, uuid.UUID) else value for name, value in facts.items()}
    assert data == rfc8785.dumps(members)
    assert entry.parse_entry(data)._asdict() == members
    assert len(data) <= entry.MAX_ENTRY


@given(FACTS, st.data())
def test_no_other_bytes_mean_the_same(facts: dict[str, Any], data: st.DataObject) -> None:
    """Whatever one changed byte gives, it parses to something else or not at all."""
    before = entry.encode_entry(**facts)
    place = data.draw(st.integers(0, len(before) - 1))
    changed = bytearray(before)
    changed[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != before[place]))
    try:
        read = entry.parse_entry(bytes(changed))
    except ValidationError:
        return
    assert read != entry.parse_entry(before)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tenant", 'a"b'),
        ("tenant", "a\\b"),
        ("tenant", "Zoë"),
        ("tenant", ""),
        ("tenant", "x" * 129),
        ("tenant", "a\nb"),
        ("tenant", 'a","v":2,"x":"'),
        ("actor", 'p","artifact":null,"auth":"system","caller_prev_hash":null,"id":"x'),
        ("request_id", "r\0"),
        ("request_id", "r" * 129),
        ("manifest_signature_id", "m" * 256),
        ("manifest_signature_id", "\u202e"),
        ("caller_prev_hash", "\x7f"),
        ("trace_id", "t" * 65),
        ("type", "memory.node.invented"),
        ("type", "ops.Migrate.succeeded"),
        ("type", "ops.migrate.done"),
        ("auth", "none"),
        ("outcome", "maybe"),
        ("id", "019b7c9a-1234-4abc-8def-0123456789ab"),
        ("id", "019B7C9A-1234-7ABC-8DEF-0123456789AB"),
        ("node", "019b7c9a12347abc8def0123456789ab"),
        ("ts", "2026-01-02T03:04:05Z"),
        ("ts", "2026-02-30T03:04:05.000000Z"),
        ("ts", "2026-01-02T03:04:60.000000Z"),
        ("ts", "2026-01-02T03:04:05.678901+00:00"),
        ("seq", -1),
        ("seq", 10**15),
        ("version", -1),
        ("version", 1.0),
        ("state", "A" * 64),
        ("payload", "0" * 63),
        ("prev", "0" * 65),
        ("prev", None),
        ("log", "x" * 256),
    ],
)
def test_what_an_entry_cannot_carry_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        entry.encode_entry(**{**PLAIN, name: value})
    assert name in {problem.path for problem in caught.value.details}
    assert name in caught.value.message


def test_oversized_and_foreign_bytes_are_no_entry() -> None:
    for data in (b"", b"{}", b"\xff", entry.encode_entry(**PLAIN) + b"\n", b" " + entry.encode_entry(**PLAIN)):
        with pytest.raises(ValidationError):
            entry.parse_entry(data)


def test_hashes_are_what_the_format_says() -> None:
    assert entry.leaf_hash(b"x") == hashlib.sha256(b"\0x").hexdigest()
    salt = bytes(range(32))
    for name, function in (("payload/v1", entry.payload_commitment), ("state/v2", entry.state_hash)):
        expected = hashlib.sha256(f"memory-layer/audit/{name}\0".encode() + salt + b"{}").hexdigest()
        assert function(salt, b"{}") == expected
        with pytest.raises(ValueError, match="32"):
            function(salt[1:], b"{}")
    before = hashlib.sha256(b"memory-layer/audit/state/v1\0" + salt + b"{}").hexdigest()
    assert entry.state_hash(salt, b"{}", 1) == before
    log = origin("memory.example", "prod", 2)
    assert log == "memory.example/audit/prod/s0/e2"
    assert entry.genesis_prev(log) == hashlib.sha256(f"memory-layer/audit/genesis/v1\n{log}\n".encode()).hexdigest()


def test_origin_is_checked() -> None:
    for parts in (
        ("Memory.example", "prod", 1),
        ("m", "live", 1),
        ("m", "prod", 0),
        ("m/x", "prod", 1),
        ("", "dev", 1),
    ):
        with pytest.raises(ValidationError):
            origin(*parts)


def test_time_is_written_in_utc() -> None:
    moment = dt.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=dt.timezone(dt.timedelta(hours=2)))
    assert entry.format_ts(moment) == "2026-01-02T01:04:05.000006Z"
    assert entry.format_ts(dt.datetime(2026, 1, 2, tzinfo=dt.UTC)) == "2026-01-02T00:00:00.000000Z"
    with pytest.raises(ValueError, match="time zone"):
        entry.format_ts(moment.replace(tzinfo=None))


def test_golden_vectors() -> None:
    vectors = json.loads((Path(__file__).parent / "golden" / "log.json").read_text())
    assert entry.genesis_prev(vectors["origin"]) == vectors["entries"][0]["members"]["prev"]
    for vector in vectors["entries"]:
        members = vector["members"]
        data = entry.encode_entry(**members)
        assert data.decode() == vector["bytes"]
        assert entry.leaf_hash(data) == vector["hash"]
        if "payload" in vector:
            salt, payload = bytes.fromhex(vector["salt"]), vector["payload"].encode()
            assert entry.payload_commitment(salt, payload) == members["payload"]
            assert entry.state_hash(salt, vector["state"].encode(), members["v"]) == members["state"]

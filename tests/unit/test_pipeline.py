"""Arrays as Postgres receives them: each element with its length, nulls among them."""

from __future__ import annotations

import datetime as dt
import struct
import uuid
from typing import Any

import pytest

from memory_layer.stores.pipeline import statement

VALUES: dict[str, tuple[list[Any], int, list[bytes]]] = {
    "text": (["", "a", "\u00e9"], 25, [b"", b"a", b"\xc3\xa9"]),
    "uuid": ([uuid.UUID(int=1), uuid.UUID(int=2**127)], 2950, [bytes(15) + b"\1", b"\x80" + bytes(15)]),
    "bool": ([True, False], 16, [b"\1", b"\0"]),
    "bigint": ([-1, 2**40], 20, [struct.pack("!q", -1), struct.pack("!q", 2**40)]),
    "timestamptz": ([dt.datetime(2000, 1, 1, 0, 0, 1, tzinfo=dt.UTC)], 1184, [struct.pack("!q", 1_000_000)]),
}


@pytest.mark.parametrize("type_", VALUES)
def test_an_array_is_its_elements_with_their_lengths(type_: str) -> None:
    values, oid, expected = VALUES[type_]
    ((_, encode),) = statement("x", f"SELECT %(x)s::{type_}[]").parameters
    null = b"\xff\xff\xff\xff"
    elements = [struct.pack("!i", len(one)) + one for one in expected]
    for given, packed in (
        (values, elements),
        ([None, *values], [null, *elements]),
        ([*values, None], [*elements, null]),
        ([None, None], [null, null]),
        (tuple(values), elements),
    ):
        head = struct.pack("!iiIii", 1, 1, oid, len(given), 1)
        assert encode(given) == head + b"".join(packed)
    assert encode([]) == struct.pack("!iiI", 0, 0, oid)

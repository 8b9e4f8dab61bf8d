"""What stands in the place of an entry and is none breaks nobody who asks which node it names."""

from __future__ import annotations

import uuid

import pytest

from memory_layer.service.verification import LastEntry, node_named

NODE = uuid.UUID(int=7)


@pytest.mark.parametrize("entry", [b"", b"x", b"[]", b"{}", b'{"node":"x"}', b'{"node":7}', b"\xff"])
def test_what_is_no_entry_names_no_node(entry: bytes) -> None:
    assert node_named(LastEntry(1, 1, entry, None)) is None

"""Ids in the order of their making, and copies that leave nothing out."""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import fields, replace

import pytest

from memory_layer import model
from memory_layer.model import Caller, Node, uuid7


def test_ids_of_one_process_are_in_the_order_of_their_making() -> None:
    began = time.time_ns() // 1_000_000
    made = [model.uuid7() for _ in range(20_000)]
    assert made == sorted(set(made))
    assert {(one.version, one.variant) for one in made} == {(7, "specified in RFC 4122")}
    times = [one.int >> 80 for one in made]
    assert began <= times[0]
    assert times[-1] <= time.time_ns() // 1_000_000 + 10


def test_a_clock_that_was_put_back_holds_ids_up_for_seconds_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time_ns()
    first = model.uuid7()
    monkeypatch.setattr(time, "time_ns", lambda: now - 2 * 10**9)
    assert model.uuid7() > first
    monkeypatch.setattr(time, "time_ns", lambda: now - 3600 * 10**9)
    assert model.uuid7().int >> 80 == (now - 3600 * 10**9) // 1_000_000


def test_a_caller_who_asks_is_the_same_but_for_the_request() -> None:
    known = Caller("a", uuid.uuid4(), "shell", "jwt", frozenset({"admin"}), "r-1", "t-1", "m-1", "h-1", draft=True)
    assert [getattr(known, column.name) == column.default for column in fields(Caller)] == [False] * len(fields(Caller))
    asking = replace(known, request_id="r-2", trace_id=None, manifest_signature_id="m-2", prev_audit_hash=None)
    assert known.asking("r-2", None, "m-2", None) == asking


def test_a_copied_node_has_every_column() -> None:
    node = Node(*range(len(fields(Node))))
    assert node.copy() == node
    assert node.copy() is not node


def test_a_fork_makes_ids_of_its_own() -> None:
    uuid7()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, b"".join(uuid7().bytes for _ in range(4)))
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(reader, 64)
    random = [uuid7().bytes[8:] for _ in range(4)]
    assert not {theirs[start + 8 : start + 16] for start in range(0, 64, 16)} & set(random)

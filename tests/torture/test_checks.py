"""The checks themselves: on a calm installation they find nothing, and each finds what it is there for."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable

import pytest

from tests.torture.checks import CHECKS, Seen, look, problems
from tests.torture.harness import Say, happened, installed
from tests.torture.workload import (
    Client,
    Ledger,
    Write,
    count,
    create,
    create_many,
    delete,
    hold_and_release,
    make_counters,
    upload,
    watch_checkpoints,
)

pytestmark = pytest.mark.torture

Harm = Callable[[Ledger, Seen], None]


def _of(ledger: Ledger, kind: str, size: int = 1) -> Write:
    """The first acknowledged write of a kind, with at least so many markers."""
    return next(
        w for w in ledger.writes if w.kind == kind and w.fate == "acknowledged" and len(w.markers) >= size and w.key
    )


def _lose(ledger: Ledger, seen: Seen) -> None:
    seen.markers[_of(ledger, "memory.node.created").markers[0]] = 0


def _double(ledger: Ledger, seen: Seen) -> None:
    seen.markers[_of(ledger, "memory.artifact.created").markers[0]] = 2


def _half_a_bulk(ledger: Ledger, seen: Seen) -> None:
    write = _of(ledger, "memory.node.created", 2)
    write.fate = "unknown"
    seen.markers[write.markers[1]] = 0


def _keep_what_was_refused(ledger: Ledger, _: Seen) -> None:
    _of(ledger, "memory.node.updated").fate = "refused"


def _delete_without_order(ledger: Ledger, _: Seen) -> None:
    _of(ledger, "memory.node.deleted").fate = "refused"


def _another_hash(ledger: Ledger, _: Seen) -> None:
    write = _of(ledger, "memory.node.created")
    write.receipts = [write.receipts[0]._replace(hash="0" * 64)]


def _one_entry_for_two(ledger: Ledger, _: Seen) -> None:
    one, two = [w for w in ledger.writes if w.kind == "memory.node.created" and len(w.markers) == 1][:2]
    two.receipts = one.receipts


def _never_answered(ledger: Ledger, _: Seen) -> None:
    _of(ledger, "memory.node.created").fate = "unknown"


def _lost_update(ledger: Ledger, seen: Seen) -> None:
    write = _of(ledger, "memory.node.updated")
    assert write.node is not None
    del seen.nodes[write.node].metadata[write.markers[0]]


def _fork(_: Ledger, seen: Seen) -> None:
    seen.events[3] = seen.events[3]._replace(prev_hash="0" * 64)


def _gap(_: Ledger, seen: Seen) -> None:
    del seen.seals[1]


def _no_key(_: Ledger, seen: Seen) -> None:
    seen.unique.discard(("audit_events", "log,seq"))


def _node_without_entry(_: Ledger, seen: Seen) -> None:
    seen.events[0] = seen.events[0]._replace(type="memory.node.updated")


def _no_payload(_: Ledger, seen: Seen) -> None:
    seen.payloads.discard(2)


def _no_index_row(_: Ledger, seen: Seen) -> None:
    seen.vectors.clear()


def _kept_answer_of_nothing(_: Ledger, seen: Seen) -> None:
    next(answer for answer in seen.keys.values() if "auditId" in answer)["auditId"] = "none"


def _other_root(ledger: Ledger, seen: Seen) -> None:
    size = max(ledger.checkpoints)
    seen.checkpoints = [row._replace(root=bytes(32)) if row.size == size else row for row in seen.checkpoints]


HARMS: tuple[tuple[str, Harm], ...] = (
    ("every write is there once or not at all", _lose),
    ("every write is there once or not at all", _double),
    ("every write is there once or not at all", _half_a_bulk),
    ("every write is there once or not at all", _keep_what_was_refused),
    ("every write is there once or not at all", _delete_without_order),
    ("acknowledged changes have their entries", _another_hash),
    ("acknowledged changes have their entries", _one_entry_for_two),
    ("writes under a key are certain", _never_answered),
    ("no lost update", _lost_update),
    ("no fork", _fork),
    ("no fork", _gap),
    ("no fork", _no_key),
    ("nothing half", _node_without_entry),
    ("nothing half", _no_payload),
    ("nothing half", _no_index_row),
    ("nothing half", _kept_answer_of_nothing),
    ("checkpoints never contradict", _other_root),
)


async def test_each_check_finds_what_it_is_there_for(say: Say) -> None:
    ledger = Ledger()
    async with installed(kms=False, say=say) as install:
        await asyncio.to_thread(install.add, "api", "serve")
        await asyncio.to_thread(install.add, "worker", "worker")
        client = Client(install, ledger, "t0", 1)
        await make_counters(client)
        for operation in (create, create_many, count, hold_and_release, upload, delete):
            for _ in range(8):
                await operation(client)
        calm = asyncio.Event()
        watch = asyncio.create_task(watch_checkpoints(client, calm))
        assert await happened(lambda: bool(ledger.checkpoints), 30)
        calm.set()
        await watch
        await client.close()
        assert await asyncio.to_thread(problems, install, ledger) == []
        seen = await asyncio.to_thread(look, install)
    looks = {check.name: check.look for check in CHECKS}
    for name, harm in HARMS:
        told, there = copy.deepcopy((ledger, seen))
        harm(told, there)
        assert list(looks[name](told, there)), harm.__name__

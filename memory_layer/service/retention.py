"""What expires: nodes whose time to live is over, and answers kept for repeated requests.

A sweep works in small pieces between the writes of clients: each piece is committed before the next is read, the next begins only when
no write waits for the committer, and after each the log is free for as long as the piece took.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import time
import uuid
from dataclasses import replace
from typing import Any

from memory_layer.errors import Frozen, NotFound, Tampered
from memory_layer.service.actions.nodes import ExpireNode
from memory_layer.service.commit import Change, Committer
from memory_layer.service.installation import Installation
from memory_layer.service.system import system_caller
from memory_layer.sql import queries
from memory_layer.stores.postgres import ALL_TENANTS

BATCH_SIZE = 100  # nodes
TIMEOUT = (
    60.0  # seconds that other writes go first; a committer that is never idle must not keep what has expired for ever
)
REFUSED_FOR = 86_400.0  # seconds that a node which is not what the log says is not tried again
MAX_REFUSED = 10_000  # such nodes that are remembered
REQUEST_ROWS = 10_000  # deleted in one transaction

_SQL = queries("operations")


async def expire(installation: Installation) -> int:
    """Delete every node whose time to live is over, of all tenants, with an entry each; how many there were.

    What is held stays, and so does a node that was extended, held or deleted since it was read: that is decided under the log
    lock. A node that is not what the log says is passed over for a day. Raises what a write raises; what was deleted by then stays so, and the next sweep goes on. While writes are frozen
    nothing is deleted.
    """
    actor = await system_caller(installation, "worker")
    deleted = 0
    last: dict[str, Any] = {
        "after_time": dt.datetime.min.replace(tzinfo=dt.UTC),
        "after_tenant": "",
        "after_id": uuid.UUID(int=0),
    }
    while True:
        (rows,) = await installation.postgres.fetch(ALL_TENANTS, (_SQL["expired"], {**last, "limit": BATCH_SIZE}))
        if not rows:
            return deleted
        await _until_idle(installation.committer)
        started = time.monotonic()
        due = [row for row in rows if not _refused_lately(installation, row["id"])]
        changes = [Change(replace(actor, tenant=row["tenant"]), ExpireNode(row["id"])) for row in due]
        outcomes = await asyncio.gather(*map(installation.committer.submit, changes), return_exceptions=True)
        for row, outcome in zip(due, outcomes, strict=True):
            if isinstance(outcome, Tampered):
                _note_refused(installation, row["id"])
        failed = [o for o in outcomes if isinstance(o, BaseException) and not isinstance(o, (NotFound, Tampered))]
        if failed and isinstance(failed[0], Frozen):
            return deleted + sum(not isinstance(outcome, BaseException) for outcome in outcomes)
        if failed:
            raise failed[0]
        deleted += sum(not isinstance(outcome, BaseException) for outcome in outcomes)
        if len(rows) < BATCH_SIZE:
            return deleted
        newest = rows[-1]
        last = {"after_time": newest["expires_at"], "after_tenant": newest["tenant"], "after_id": newest["id"]}
        await asyncio.sleep(time.monotonic() - started)


def _refused_lately(installation: Installation, node: uuid.UUID) -> bool:
    """Whether the expiry of this node was refused as TAMPERED within a day: each refusal is an entry of the log."""
    since = installation.refused.get(node)
    return since is not None and time.monotonic() - since < REFUSED_FOR


def _note_refused(installation: Installation, node: uuid.UUID) -> None:
    if len(installation.refused) >= MAX_REFUSED:
        installation.refused.clear()
    installation.refused[node] = time.monotonic()


async def _until_idle(committer: Committer) -> None:
    deadline = time.monotonic() + TIMEOUT
    while committer.waiting and time.monotonic() < deadline:  # noqa: ASYNC110 - an event would be set and cleared with every write
        await asyncio.sleep(0.02)


async def forget_requests(installation: Installation) -> int:
    """Delete the answers that were kept for repeated requests and are older than 24 hours; how many there were."""
    forgotten: int = 0
    while True:
        ((row,),) = await installation.postgres.run(ALL_TENANTS, (_SQL["forget_requests"], {"limit": REQUEST_ROWS}))
        forgotten += row["forgotten"]
        if row["forgotten"] < REQUEST_ROWS:
            return forgotten

"""Artifacts end with their nodes. The row goes with its entry; the object goes when nothing names it any more (``orphans.py``).

An artifact ends with its node: from the node's deletion, or the end of its time, on nobody reads it, and the worker deletes it. What is
kept outlives its node: under a hold, or until ``retainUntil``.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from memory_layer.errors import Conflict, Frozen, LegalHold, NotFound, Tampered
from memory_layer.model import Artifact, Node
from memory_layer.service.actions.artifacts import DeleteArtifact
from memory_layer.service.commit import Change, Outcome
from memory_layer.service.installation import Installation
from memory_layer.service.system import system_caller
from memory_layer.sql import queries
from memory_layer.stores.postgres import ALL_TENANTS

PAGE: Final = 100  # artifacts that are deleted together

_SQL = queries("artifacts")


def has_ended(artifact: Artifact, rows: Mapping[uuid.UUID, Node], live: Mapping[uuid.UUID, Node]) -> bool:
    """Whether the node that it belongs to is over, and nothing keeps it. ``rows``: nodes as they were read, ``live`` those of them that
    are not over."""
    node = artifact.memory_node_id
    if node is None or node not in rows or node in live or artifact.legal_hold:
        return False
    return artifact.retain_until is None or artifact.retain_until <= dt.datetime.now(dt.UTC)


async def end_with_nodes(installation: Installation) -> int:
    """Delete what ended with its node, of all tenants, with an entry each; how many there were.

    What is held or locked stays until that is over, and what is not what the log says until an operator has looked. While writes
    are frozen nothing is deleted.
    """
    actor = await system_caller(installation, "worker")
    deleted = 0
    after: dict[str, Any] = {"after_tenant": "", "after_id": uuid.UUID(int=0)}
    while True:
        (rows,) = await installation.postgres.fetch(ALL_TENANTS, (_SQL["ended"], {**after, "limit": PAGE}))
        changes = [
            Change(
                replace(actor, tenant=row["tenant"]),
                DeleteArtifact(row["id"], row["memory_node_id"], with_node=True),
            )
            for row in rows
        ]
        outcomes = await asyncio.gather(*map(installation.committer.submit, changes), return_exceptions=True)
        deleted += sum(isinstance(outcome, Outcome) for outcome in outcomes)
        failed = [
            one
            for one in outcomes
            if isinstance(one, BaseException) and not isinstance(one, NotFound | Tampered | LegalHold | Conflict)
        ]
        if failed and isinstance(failed[0], Frozen):
            return deleted
        if failed:
            raise failed[0]
        if len(rows) < PAGE:
            return deleted
        after = {"after_tenant": rows[-1]["tenant"], "after_id": rows[-1]["id"]}

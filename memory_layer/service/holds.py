"""Legal holds on their way to the object store. A node and its artifacts are held in one transaction; the object store, which no
transaction reaches, gets the hold afterwards, and the worker tries until it has it."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import replace
from typing import Any

from memory_layer.errors import MemoryLayerError, NotFound, ObjectStoreUnavailable, Tampered
from memory_layer.service.installation import Installation
from memory_layer.service.system import system_caller
from memory_layer.service.verified_reads import artifact_problems, read_nodes
from memory_layer.sql import queries
from memory_layer.stores.postgres import ALL_TENANTS
from memory_layer.telemetry.logs import get_logger

BATCH_SIZE = 100  # artifacts, read at a time
NODES = 1000  # looked at in one round
MAX_ATTEMPTS = 5  # times that an object's holds may change while they are being sent; then it waits for the next round

_SQL = queries("artifacts")
log = get_logger("memory_layer.artifacts")


async def converge(installation: Installation) -> int:
    """Send each hold that was set or released since to the object store; how many artifacts the store has right now.

    The rows say what is due, so a crash anywhere leaves them due. Objects that the store has lost or refuses are skipped, and raise at
    the end: they stay due, the schedule reports the failure, and the next scan names them.
    """
    confirmed, failed = 0, list[str]()
    after: dict[str, Any] = {"after_time": dt.datetime.min.replace(tzinfo=dt.UTC), "after_id": uuid.UUID(int=0)}
    while True:
        (rows,) = await installation.postgres.fetch(ALL_TENANTS, (_SQL["holds_due"], {**after, "limit": BATCH_SIZE}))
        objects: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in rows:
            objects.setdefault((row["object_key"], row["version_id"]), []).append(row)
        for (key, version), due in objects.items():
            try:
                confirmed += await _send_hold(installation, key, version, due)
            except NotFound:
                failed.append(str(due[0]["id"]))
            except ObjectStoreUnavailable:
                raise
            except MemoryLayerError as error:
                log.warning("the hold of an artifact was not applied", artifact=due[0]["id"], error=error.message)
                failed.append(str(due[0]["id"]))
        if len(rows) < BATCH_SIZE:
            break
        after = {"after_time": rows[-1]["created_at"], "after_id": rows[-1]["id"]}
    if failed:
        raise ObjectStoreUnavailable(
            f"The legal hold of {len(failed)} artifacts, {failed[0]} among them, could not be set in the object store: their objects "
            "are gone, or it refuses. `memoryctl artifacts verify` says which."
        )
    return confirmed


async def _send_hold(installation: Installation, key: str, version: str, due: list[dict[str, Any]]) -> int:
    """Send the hold of one object. Meanwhile somebody may have changed the hold of another artifact of the same bytes, so the statement
    that marks the rows as sent checks them again."""
    held = bool(due[0]["held"])
    for _ in range(MAX_ATTEMPTS):
        if not held and not await _may_release(installation, key, version):
            raise Tampered(
                f"The hold of the object {key} is not released: an artifact of it, or its node, is not what the log says. See "
                "`memoryctl audit verify`."
            )
        await installation.objects.set_hold(key, version, held)
        seen = {
            "tenants": [row["tenant"] for row in due],
            "ids": [row["id"] for row in due],
            "holds": [row["legal_hold"] for row in due],
        }
        place = {"key": key, "version": version}
        (confirmed,) = await installation.postgres.run(
            ALL_TENANTS, (_SQL["confirm_holds"], {**seen, **place, "held": held})
        )
        if confirmed:
            return len(confirmed)
        (rows,) = await installation.postgres.fetch(ALL_TENANTS, (_SQL["holds_of"], place))
        due = [row for row in rows if row["hold_due"]]
        if not due:
            return 0
        held = any(row["legal_hold"] for row in rows)
    return 0


async def follow_nodes(installation: Installation) -> int:
    """Hold the artifacts of held nodes, and no others, where that is not so; how many were changed. A node that differs from the log
    changes nothing."""
    (rows,) = await installation.postgres.fetch(ALL_TENANTS, (_SQL["nodes_held_differently"], {"limit": NODES}))
    nodes_of: dict[str, list[uuid.UUID]] = {}
    for row in rows:
        nodes_of.setdefault(row["tenant"], []).append(row["id"])
    actor = await system_caller(installation, "worker") if rows else None
    good: list[tuple[str, uuid.UUID]] = []
    for tenant, ids in nodes_of.items():
        assert actor is not None  # noqa: S101 - narrows the type
        read = await read_nodes(installation, replace(actor, tenant=tenant), ids, "holds", whole=False, always=True)
        failed = {problem.id for problem in read.problems}
        good += [(tenant, id_) for id_ in read.rows if id_ not in failed]
    if not good:
        return 0
    tenants, found = zip(*good, strict=True)
    about = {"tenants": list(tenants), "ids": list(found)}
    ((row,),) = await installation.postgres.run(ALL_TENANTS, (_SQL["follow_nodes"], about))
    return int(row["followed"])


async def _may_release(installation: Installation, key: str, version: str) -> bool:
    """Whether the log confirms the rows of an object that is to be released: its artifacts and their nodes."""
    (rows,) = await installation.postgres.fetch(
        ALL_TENANTS, (_SQL["artifacts_of_object"], {"key": key, "version": version})
    )
    actor = await system_caller(installation, "worker")
    for tenant in {row["tenant"] for row in rows}:
        who = replace(actor, tenant=tenant)
        mine = [row["id"] for row in rows if row["tenant"] == tenant]
        if await artifact_problems(installation, who, mine, "holds"):
            return False
    return True

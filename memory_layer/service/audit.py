"""The log as auditors read it: entries, checkpoints, tiles, proofs. The scope ``audit:all`` sees every tenant's entries."""

from __future__ import annotations

import base64
import datetime as dt
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from memory_layer.audit.proof import build_proof
from memory_layer.audit.tree import (
    TILE_WIDTH,
    consistency_proof,
    encode_bundle,
    inclusion_proof,
    tile_width,
)
from memory_layer.errors import NotFound, NotYetPublished, Problem, ValidationError
from memory_layer.model import REDACTED, SYSTEM_TENANT, Caller
from memory_layer.service.installation import Installation
from memory_layer.service.nodes import Page, decode_sequence, event_shape, seal_cursor
from memory_layer.service.tiles import load, read_tiles, snapshot
from memory_layer.sql import queries

_SQL = queries("log")
# What a node's flags hide of a payload. All of it whatever the paths are: a payload may be of a version with other flags.
_HIDDEN: Final = ("content", "metadata", "metadataPatch", "name", "embedding")


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which entries: about a node or an artifact, of one type, ``since <= createdAt < until``."""

    type: str | None = None
    node: uuid.UUID | None = None
    artifact: uuid.UUID | None = None
    since: dt.datetime | None = None
    until: dt.datetime | None = None

    @property
    def fingerprint(self) -> str:
        return f"events {self}"


async def events(
    installation: Installation, caller: Caller, where: EventFilter, cursor: str | None, limit: int
) -> Page:
    """The caller's tenant's entries, newest first; with audit:all everybody's, the installation's own among them.

    Raises InvalidCursor, and Overloaded where a rare type is looked for in too many entries.
    """
    everybody = sees_all(caller)
    bound = f"{caller.tenant if not everybody else '*'} {where.fingerprint}"
    fetch = snapshot(installation.postgres)
    (span,) = await fetch((_SQL["seq_range"], {"log": installation.log, "since": where.since, "until": where.until}))
    last = span["last"] if cursor is None else min(span["last"], decode_sequence(cursor, bound))
    if where.node is not None or where.artifact is not None:
        query = _SQL["events_of_subject"]
    else:
        query = _SQL["events_of_all" if everybody else "events_of_tenant"]
    given = {
        "all": everybody,
        "tenant": caller.tenant,
        "log": span["log"],
        "first": span["first"],
        "last": last,
        "type": where.type,
        "node": where.node,
        "artifact": where.artifact,
        "limit": limit + 1,
    }
    rows = await fetch((query, given))
    items = [event_shape(row) for row in rows[:limit]]
    return Page(items, seal_cursor({"b": bound, "s": rows[limit - 1]["seq"]}) if len(rows) > limit else None)


async def event(installation: Installation, caller: Caller, event_id: uuid.UUID) -> dict[str, Any]:
    """One entry with its seal, and its payload where this caller may see it. Raises NotFound, also for another tenant's."""
    rows = await snapshot(installation.postgres)((_SQL["event"], _whose(installation, caller, event_id)))
    if not rows:
        raise NotFound(f"There is no audit entry {event_id}.")
    row = dict(rows[0])
    number, tenant = row.pop("log"), row.pop("tenant")
    seal = {"text": row.pop("seal_text"), "keyId": row.pop("key_id"), "algorithm": row.pop("algorithm")}
    shape = event_shape(row)
    entry = json.loads(shape["entry"])
    shape["entry"] = entry
    shape["entryBytes"] = base64.b64encode(bytes(row["entry"])).decode("ascii")
    shape["seal"] = seal | {"signature": shape.pop("signature")}
    shape["payload"] = await _payload(installation, caller, number, tenant, entry)
    return shape


async def _payload(
    installation: Installation, caller: Caller, number: int, tenant: str | None, entry: dict[str, Any]
) -> Any:
    """What the entry commits to. With the salt and the exact bytes anybody can check it, so these go only with the whole."""
    if entry["payload"] is None:
        return {"status": "none"}
    if tenant is not None and tenant != caller.tenant:
        return {"status": "withheld"}
    owner = tenant if tenant is not None else SYSTEM_TENANT
    given = {
        "tenant": owner,
        "log": number,
        "seq": entry["seq"],
        "node": entry["node"],
        "artifact": entry["artifact"],
    }
    (rows,) = await installation.postgres.fetch(owner, (_SQL["payload"], given))
    if not rows:
        return {"status": "erased"}
    data, salt = bytes(rows[0]["payload"]), bytes(rows[0]["salt"])
    value = json.loads(data)
    if rows[0]["flagged"] and "read:pii" not in caller.scopes:
        return {"status": "redacted", "value": _redacted(value)}
    encoded = {"bytes": base64.b64encode(data).decode("ascii"), "salt": base64.b64encode(salt).decode("ascii")}
    return {"status": "shown", "value": value} | encoded


def _redacted(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: REDACTED if key in _HIDDEN and part is not None else part for key, part in value.items()}


async def proof(installation: Installation, caller: Caller, event_id: uuid.UUID) -> tuple[int, bytes]:
    """The number of an entry, and its tlog-proof, which includes it. Raises NotFound, also for another tenant's, and NotYetPublished."""
    fetch = snapshot(installation.postgres)
    rows = await fetch((_SQL["checkpoint_of"], _whose(installation, caller, event_id)))
    if not rows:
        raise NotFound(f"There is no audit entry {event_id}.")
    row = rows[0]
    seq, size = row["seq"], row["size"]
    if size is None or size <= seq:
        raise _not_yet(f"No checkpoint covers entry {seq} yet: one is published about every second. Ask again.")
    path = inclusion_proof(seq, size, await load(fetch, row["log"], size, seq))
    return seq, build_proof(seq, path, row["note"].encode(), entry=bytes(row["entry"]))


async def checkpoint(installation: Installation) -> bytes:
    """The newest published checkpoint, a signed note. Raises NotYetPublished."""
    return bytes((await _published(installation))["note"].encode())


async def consistency(installation: Installation, first: int, second: int | None) -> dict[str, Any]:
    """What proves that the first ``first`` entries begin the log of ``second`` (None: of the newest checkpoint).

    Raises ValidationError when ``first`` is the larger, NotYetPublished beyond the newest checkpoint.
    """
    newest = await _published(installation)
    number, size = newest["log"], newest["size"]
    second = size if second is None else second
    if max(first, second) > size:
        raise _not_yet(f"The newest checkpoint covers {size} entries, not {max(first, second)} yet.")
    if first > second:
        raise ValidationError("from is larger than to.", details=[Problem("query.from", f"larger than {second}")])
    fetch = snapshot(installation.postgres)
    hashes = consistency_proof(first, second, await load(fetch, number, second, max(first - 1, 0)))
    notes = await fetch((_SQL["checkpoint_at"], {"log": number, "size": second}))
    return {
        "origin": newest["origin"],
        "from": first,
        "to": second,
        "hashes": [base64.b64encode(value).decode("ascii") for value in hashes],
        "checkpoint": notes[0]["note"] if notes else None,
    }


async def tile(installation: Installation, level: int | Literal["entries"], index: int, width: int) -> bytes:
    """A tile of the published tree: hashes, or of level "entries" a bundle of entries. Raises NotFound beyond it."""
    newest = await _published(installation)
    number, size = newest["log"], newest["size"]
    if width > tile_width(0 if level == "entries" else level, index, size):
        raise NotFound(f"The published tree of {size} entries has no such tile.")
    fetch = snapshot(installation.postgres)
    if level == "entries":
        first = index * TILE_WIDTH
        rows = await fetch((_SQL["entries"], {"log": number, "first": first, "last": first + width}))
        return encode_bundle(bytes(row["entry"]) for row in rows)
    found = await read_tiles(fetch, number, [(level, index, width)])
    return found[level, index]


def sees_all(caller: Caller) -> bool:
    return "audit:all" in caller.scopes


def _whose(installation: Installation, caller: Caller, event_id: uuid.UUID) -> dict[str, Any]:
    return {"id": event_id, "log": installation.log, "tenant": caller.tenant, "all": sees_all(caller)}


async def _published(installation: Installation) -> Mapping[str, Any]:
    rows = await snapshot(installation.postgres)((_SQL["checkpoint"], {"origin": installation.trust_root.origin}))
    if not rows:
        raise _not_yet("No checkpoint is published yet: the first one follows the first entry within about a second.")
    return rows[0]


def _not_yet(message: str) -> NotYetPublished:
    return NotYetPublished(message, retry_after=1)

"""What ``state`` of an entry commits to, and how the entries of a node or an artifact lead from one state to the next.

A *row* here is a node or an artifact as plain JSON values, under the names of the format: what the database holds and what the
payloads of the entries say are both brought into this form, so that they can be compared. Format: ``docs/audit-format.md``, "State"
and "Rows".
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from itertools import compress
from operator import is_not
from typing import Any, Final, TypeAlias

Row: TypeAlias = dict[str, Any]
_is_there: Final = partial(is_not, None)

# Entries whose ``state`` is that of a node, or (memory.artifact.*) of an artifact. Other entries may name either, and say nothing of it.
NODE_TYPES: Final = (
    "memory.node.created",
    "memory.node.updated",
    "memory.node.deleted",
    "memory.node.purged",
    "memory.legal_hold.set",
    "memory.legal_hold.released",
)
ARTIFACT_TYPES: Final = (
    "memory.artifact.created",
    "memory.artifact.verified",
    "memory.artifact.corrupt",
    "memory.artifact.deleted",
)
# After these there is no row.
REMOVING_TYPES: Final = frozenset({"memory.node.purged", "memory.artifact.deleted"})

_NODE_V1: Final = (
    "id",
    "tenant",
    "owner",
    "namespace",
    "version",
    "contentSha256",
    "metadata",
    "piiFlags",
    "legalHold",
    "ttlSeconds",
    "expiresAt",
    "deletedAt",
    "vector",
)


def node_members(v: int, row: Mapping[str, Any]) -> Row:
    """The members of a node's state in entries of version ``v``.

    Version 1 has a fixed list, nulls included, and leaves out some columns. From version 2 on a state holds every column that is
    not null: a column that is added to the table later changes no state that was sealed before. ``updatedAt`` is no member, for it
    is the ``ts`` of the entry, and ``createdAt`` is none where it is the same moment.
    """
    if v == 1:
        return {name: row[name] for name in _NODE_V1}
    state = _there(row)
    updated = state.pop("updatedAt")
    if state["createdAt"] == updated:
        del state["createdAt"]
    return state


def artifact_members(row: Mapping[str, Any]) -> Row:
    """The members of an artifact's state, in entries of version 2 and later; those of version 1 have none."""
    return _there(row)


def _there(row: Mapping[str, Any]) -> Row:
    """What is not null; every write and every read of a node does this."""
    return dict(compress(row.items(), map(_is_there, row.values())))


def content_sha256(content: str | None) -> str | None:
    return None if content is None else hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7396: objects merge key by key, null removes, everything else replaces."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


class Gap(ValueError):
    """The entries so far do not say what the row is: the payload of one is missing, or does not have the form that its type has."""


def next_node(row: Row | None, entry: Mapping[str, Any], payload: Mapping[str, Any] | None) -> Row | None:
    """The node after an entry about it; None after its purge.

    ``row`` is the node before, None before its first entry; ``entry`` has ``type``, ``tenant``, ``node``, ``version`` and ``ts``;
    ``payload`` is its payload, None where that is missing. A key ``content`` holds the text itself, which is no member of a state.
    Raises Gap.
    """
    kind = entry["type"]
    if kind == "memory.node.purged":
        return None
    if payload is None:
        raise Gap(f"the payload of a {kind} is missing")
    try:
        if kind == "memory.node.created":
            return _created(entry, payload) | _accepted(payload)
        if row is None and is_acceptance(payload):
            # All of the row stands in it, so what came before need not be known.
            row = {"id": entry["node"], "tenant": entry["tenant"]}
        if row is None:
            raise Gap(f"a {kind} before the node's creation")
        after = {**row, "version": entry["version"], "updatedAt": entry["ts"]}
        if kind == "memory.node.updated":
            _update(after, payload)
        elif kind == "memory.node.deleted":
            after["deletedAt"] = payload["deletedAt"]
        elif kind == "memory.legal_hold.set":
            after |= {"legalHold": True, "legalHoldReason": payload["reason"]}
        elif kind == "memory.legal_hold.released":
            after |= {"legalHold": False, "legalHoldReason": None}
        else:
            raise Gap(f"{kind} is no entry about a node")
    except (KeyError, TypeError, AttributeError) as error:
        raise Gap(f"the payload of a {kind} is not of its form") from error
    return after


# Members of a creation's payload that a row has in any case. What else is in it is a column that came later.
_CHOSEN: Final = (
    "owner",
    "namespace",
    "embeddingId",
    "content",
    "metadata",
    "piiFlags",
    "subjects",
    "legalHold",
    "ttlSeconds",
    "expiresAt",
    "occurredAt",
)
# Members of a payload that are no column of the row.
_ABOUT: Final = frozenset({"embedding", "metadataPatch", "reason", "accepted", "restored"})
# Members that an entry says by itself, or that are worked out.
_BY_ENTRY: Final = frozenset(
    {"id", "tenant", "version", "createdAt", "updatedAt", "deletedAt", "contentSha256", "vector"}
)


def _created(entry: Mapping[str, Any], payload: Mapping[str, Any]) -> Row:
    embedding = payload["embedding"]
    chosen = {name: payload[name] for name in _CHOSEN}
    return {
        **_columns(payload),
        **chosen,
        "id": entry["node"],
        "tenant": entry["tenant"],
        "version": entry["version"],
        "contentSha256": content_sha256(payload["content"]),
        "legalHoldReason": None,
        "createdAt": entry["ts"],
        "updatedAt": entry["ts"],
        "deletedAt": None,
        "vector": None if embedding is None else embedding["sha256"],
    }


def _columns(payload: Mapping[str, Any]) -> Row:
    """The columns whose values stand in a payload under their own names."""
    return {name: value for name, value in payload.items() if name not in _ABOUT and name not in _BY_ENTRY}


def _update(row: Row, payload: Mapping[str, Any]) -> None:
    if "metadataPatch" in payload:
        row["metadata"] = merge_patch(row["metadata"], payload["metadataPatch"])
    row |= _columns(payload)
    if "content" in payload:
        row["contentSha256"] = content_sha256(payload["content"])
    if "ttlSeconds" in payload and "expiresAt" not in payload:
        raise KeyError("expiresAt")
    if payload.get("embedding") is not None:
        row["vector"] = payload["embedding"]["sha256"]
    row |= _accepted(payload)
    if "restored" in payload and "vector" in payload["restored"].get("lost", ()):
        row["vector"] = None


def is_acceptance(payload: Mapping[str, Any] | None) -> bool:
    """Whether an operator took a node as it was found: the payload holds all of the row that follows from it."""
    return payload is not None and "accepted" in payload


def _accepted(payload: Mapping[str, Any]) -> Row:
    """The members of a row that an operator took as it was found, under the names of a state, with its text."""
    if "accepted" not in payload:
        return {}
    members = dict(payload["accepted"])
    return members | {"contentSha256": content_sha256(members["content"])}


def next_artifact(row: Row | None, entry: Mapping[str, Any], payload: Mapping[str, Any] | None) -> Row | None:
    """The artifact after an entry about it; None after its deletion. As ``next_node``; ``entry`` has ``type``, ``tenant`` and
    ``artifact``. Raises Gap."""
    kind = entry["type"]
    if kind == "memory.artifact.deleted":
        return None
    if payload is None:
        raise Gap(f"the payload of a {kind} is missing")
    try:
        if "artifactId" in payload:  # then it describes the whole artifact
            return _described(entry, payload)
        if row is None:
            raise Gap(f"a {kind} before the artifact's creation")
        after = dict(row)
        if "fault" in payload:
            after["fault"] = payload["fault"]
        elif "retainUntil" in payload:
            after["retainUntil"] = payload["retainUntil"]
    except (KeyError, TypeError, AttributeError) as error:
        raise Gap(f"the payload of a {kind} is not of its form") from error
    return after


def _described(entry: Mapping[str, Any], payload: Mapping[str, Any]) -> Row:
    names = ("name", "url", "versionId", "sha256", "sizeBytes", "contentType", "manifestSignatureId", "metadata")
    return {name: payload[name] for name in names} | {
        "id": payload["artifactId"],
        "tenant": entry["tenant"],
        # An entry from before objects could be registered does not name the key: it is made of what the entry does name.
        "objectKey": payload.get("objectKey", f"{entry['tenant']}/{payload['sha256']}"),
        "createdBy": payload["createdBy"],
        "createdAt": payload["createdAt"],
        "retainUntil": payload.get("retainUntil"),
        "fault": payload.get("fault"),
    }

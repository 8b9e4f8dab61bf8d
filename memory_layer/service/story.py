"""What the sealed entries of a node or an artifact record of its row, in order. Pure.

Each payload is checked against the entry that commits to it, and each entry must be sealed: nothing else counts as evidence for a row.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from memory_layer import canonical
from memory_layer.audit.entry import is_payload
from memory_layer.audit.states import (
    REMOVING_TYPES,
    Gap,
    Row,
    artifact_members,
    content_sha256,
    is_acceptance,
    next_artifact,
    next_node,
    node_members,
)
from memory_layer.errors import MemoryLayerError
from memory_layer.service.actions.tampered import Recorded
from memory_layer.service.evidence import is_state
from memory_layer.service.sealed import SealedBatches

Kind = Literal["node", "artifact"]
_HOLDS: Final = {"memory.legal_hold.set": True, "memory.legal_hold.released": False}


@dataclass(slots=True)
class Story:
    """What a row's entries say, in order. ``unsealed``, ``missing``, ``forged``: entries that no seal covers, whose payload is not
    there, and whose payload is not the one that they commit to."""

    recorded: Recorded
    entry: dict[str, Any] | None = None  # the last one
    entries: int = 0
    unsealed: list[int] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    forged: list[int] = field(default_factory=list)


def read_story(kind: Kind, rows: Iterable[Mapping[str, Any]], sealed: SealedBatches) -> Story:
    """Of rows of the query ``story_of_node`` or ``story_of_artifact``; their batches were checked (``verification.sealed_by``)."""
    story = Story(Recorded())
    row: Row | None = None
    lost, embedding, node, unexplained = False, None, None, None
    held: bool | None = False
    for found in rows:
        data, seq = bytes(found["entry"]), found["seq"]
        if not sealed.covers(found["batch_no"], seq, data):
            story.unsealed.append(seq)
            continue
        entry = canonical.loads(data)
        if entry["outcome"] != "ok":
            continue
        payload = _payload(found, entry, story)
        story.entry, story.entries = entry, story.entries + 1
        if kind == "node":
            held = _HOLDS.get(entry["type"], held)
            if isinstance(payload, dict):
                if isinstance(payload.get("embedding"), dict):
                    embedding = payload["embedding"]
                members = payload.get("accepted", payload)
                held = members.get("legalHold", held)
            elif entry["type"] == "memory.node.created":
                held = None
        else:
            node = entry["node"] or node
        if payload is not None and (is_acceptance(payload) if kind == "node" else "artifactId" in payload):
            row, lost, unexplained = None, False, None
        if lost:
            continue
        try:
            row = (next_node if kind == "node" else next_artifact)(row, entry, payload)
        except Gap:
            row, lost = None, True
            continue
        if row is not None and entry["state"] is not None and not _explained(kind, row, entry, found["salt"]):
            row, lost, unexplained = None, True, seq
    last = story.entry
    if last is not None:
        gone = last["type"] in REMOVING_TYPES
        story.recorded = Recorded(
            seq=last["seq"],
            version=last["version"],
            row=None if gone else row,
            gone=gone,
            held=held,
            embedding=embedding,
            node=None if node is None else uuid.UUID(node),
            unexplained=unexplained,
        )
    return story


def _payload(found: Mapping[str, Any], entry: Mapping[str, Any], story: Story) -> dict[str, Any] | None:
    salt, data = found["salt"], found["payload"]
    if entry["payload"] is None:
        return None
    if data is None or salt is None:
        story.missing.append(entry["seq"])
        return None
    data = bytes(data)
    if not is_payload(entry["payload"], bytes(salt), data):
        story.forged.append(entry["seq"])
        return None
    try:
        payload = canonical.loads(data)
    except (MemoryLayerError, ValueError):
        payload = None
    if not isinstance(payload, dict):
        story.forged.append(entry["seq"])
        return None
    return payload


def _explained(kind: Kind, row: Row, entry: Mapping[str, Any], salt: bytes | None) -> bool:
    """Whether the row that follows from the payloads is the one whose state was sealed."""
    if kind == "artifact":
        members = artifact_members(row)
    elif row["contentSha256"] != content_sha256(row["content"]):
        return False
    else:
        members = node_members(entry["v"], {name: value for name, value in row.items() if name != "content"})
    return salt is not None and is_state(members, entry["v"], bytes(salt), entry["state"])

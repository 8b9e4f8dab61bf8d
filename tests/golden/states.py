"""Makes ``states.json`` beside this file: ``python -m tests.golden.states``. Rows, what a state holds of them, and its hash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from memory_layer import canonical
from memory_layer.audit.entry import state_hash
from memory_layer.audit.states import artifact_members, node_members

FILE = Path(__file__).with_name("states.json")
SALT = bytes(range(32))
TS = "2026-01-02T03:04:05.678901Z"
NODE: dict[str, Any] = {
    "id": "019b7c9a-1234-7abc-8def-0123456789ab", "tenant": "acme", "owner": "ann", "namespace": "kernel-memory",
    "embeddingId": None, "version": 1, "contentSha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    "metadata": {"score": 0.25, "Zoë": [1, None, True]}, "piiFlags": {}, "subjects": ["ann"], "legalHold": False,
    "legalHoldReason": None, "ttlSeconds": None, "expiresAt": None, "occurredAt": None, "createdAt": TS, "updatedAt": TS,
    "deletedAt": None, "vector": None,
}  # fmt: skip
CHANGED = NODE | {
    "version": 3, "embeddingId": "e-1", "subjects": ["ann", "bob"], "legalHold": True, "legalHoldReason": "case 7",
    "ttlSeconds": 3600, "expiresAt": "2026-01-02T04:04:06.000000Z", "occurredAt": "2025-12-31T00:00:00.000000Z",
    "createdAt": "2026-01-01T00:00:00.000000Z", "vector": "00" * 32, "piiFlags": {"containsPii": True, "paths": ["content"]},
}  # fmt: skip
ARTIFACT: dict[str, Any] = {
    "id": "019b7c9a-1234-7abc-8def-0123456789ac", "tenant": "acme", "name": "a.txt", "url": "object://local/acme/ff",
    "objectKey": "acme/ff", "versionId": "1", "sha256": "ff" * 32, "sizeBytes": 3, "contentType": "text/plain",
    "manifestSignatureId": None, "metadata": {}, "createdBy": "00000000-0000-0000-0000-000000000007", "createdAt": TS,
    "retainUntil": None, "fault": None,
}  # fmt: skip


def vectors() -> list[dict[str, Any]]:
    cases = [(v, "node", row, node_members(v, row)) for row in (NODE, CHANGED) for v in (1, 2)]
    cases += [(2, "artifact", row, artifact_members(row)) for row in (ARTIFACT, ARTIFACT | {"fault": "corrupt"})]
    return [
        {
            "v": v,
            "kind": kind,
            "salt": SALT.hex(),
            "row": row,
            "state": canonical.dumps(members).decode(),
            "hash": state_hash(SALT, canonical.dumps(members), v),
        }
        for v, kind, row, members in cases
    ]


if __name__ == "__main__":
    FILE.write_text(json.dumps(vectors(), indent=1, ensure_ascii=False) + "\n", "utf-8")

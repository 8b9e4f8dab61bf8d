"""What the commands about artifacts work on, and the locks that keep them from running at once."""

from __future__ import annotations

from typing import Final

from memory_layer.errors import Forbidden
from memory_layer.ops.operate import Run
from memory_layer.service.installation import Installation
from memory_layer.sql import queries
from memory_layer.stores.protocols import ObjectStore

LOCK: Final = "artifacts"  # of scans: two at once would read everything twice
SWEEP_LOCK: Final = "artifacts-sweep"
MANIFEST_LOCK: Final = "artifacts-manifest"
SQL = queries("artifacts")


async def need_files(run: Run) -> Installation:
    """What the operator's commands need; the index and the embedder may be down. Raises what opening raises."""
    return await run.installation.need("committer", "objects", "archive")


async def find_eraser(installation: Installation) -> ObjectStore | None:
    """What may delete objects; None where this process has no credentials for it."""
    try:
        await installation.need("eraser")
    except Forbidden:
        return None
    return installation.eraser

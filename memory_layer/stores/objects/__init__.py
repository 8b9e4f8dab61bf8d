"""Object stores: write-once bytes, addressed by their SHA-256."""

from __future__ import annotations

from pathlib import Path

from memory_layer.stores.objects.files import open_file_store
from memory_layer.stores.protocols import ObjectStore


def open_files(root: Path) -> ObjectStore:
    """A store in a directory, created when missing. Raises ObjectStoreUnavailable."""
    return open_file_store(root)

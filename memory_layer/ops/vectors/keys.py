"""What signs a snapshot, and who may have signed one: the installation's manifest key and its trust root."""

from __future__ import annotations

from pathlib import Path

from memory_layer.audit import trust_root as roots
from memory_layer.audit.trust_root import TrustRoot
from memory_layer.ops.export import ManifestKey, manifest_key


def trust_root(folder: Path) -> TrustRoot | None:
    """The data folder's own; None where there is none yet. Raises what a malformed one raises."""
    path = folder / "trust-root.json"
    return roots.load(path.read_bytes()) if path.exists() else None


def signing_key(folder: Path) -> ManifestKey | None:
    """The manifest key of this data folder; None where it has none that its trust root names."""
    root = trust_root(folder)
    return None if root is None else manifest_key(folder, root)

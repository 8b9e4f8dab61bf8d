"""What every vector store checks of an entry before it is sent, and how stores without names of their own name a namespace."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence

import numpy as np

from memory_layer.errors import ValidationError
from memory_layer.stores.protocols import VectorEntry


def refuse_invalid(entries: Iterable[VectorEntry]) -> None:
    """Raise ValidationError for the first vector without a direction: empty, not finite, or all zeros."""
    for position, entry in enumerate(entries):
        vector = entry.vector
        if vector.ndim != 1 or vector.shape[0] == 0:
            problem = "has no numbers"
        elif not np.isfinite(vector).all():
            problem = "holds NaN or infinity"
        elif not vector.any():
            problem = "is all zeros, so it has no cosine"
        else:
            continue
        raise ValidationError(f"The vector of node {entry.node_id} (entry {position}) {problem}. Nothing was written.")


def joint_name(tenant: str, namespace: str) -> str:
    """One name for both, for people and to be given back."""
    return json.dumps([tenant, namespace], ensure_ascii=False)


def split_name(name: str) -> tuple[str, str] | None:
    """(tenant, namespace) of such a name; None for any other text."""
    try:
        tenant, namespace = json.loads(name)
    except ValueError:
        return None
    return (tenant, namespace) if isinstance(tenant, str) and isinstance(namespace, str) else None


def newest(entries: Sequence[VectorEntry]) -> dict[tuple[str, str], dict[uuid.UUID, VectorEntry]]:
    """Entries by (tenant, namespace) and node; of one node twice the newest counts, of equal versions the last."""
    spaces: dict[tuple[str, str], dict[uuid.UUID, VectorEntry]] = {}
    for entry in entries:
        space = spaces.setdefault((entry.tenant, entry.namespace), {})
        old = space.get(entry.node_id)
        if old is None or entry.version >= old.version:
            space[entry.node_id] = entry
    return spaces

"""What flags hide from whom: of a node, and of the files that belong to it. Every door asks here.

``piiFlags`` of a node hide its ``content`` and paths of its ``metadata`` from callers without ``read:pii``. What they hide of the
node they hide of its files: content means the name and the bytes, metadata paths the file's own metadata. Bytes may be known by
several artifacts (uploaded twice, registered again, attached to another node), so an artifact has the flags of all of them
together: hidden in one place is hidden in all.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from memory_layer.filters import Path
from memory_layer.model import REDACTED, Caller, Node
from memory_layer.sql import queries
from memory_layer.stores.postgres import Query

Flags: TypeAlias = Mapping[str, Any]
FlagsOf: TypeAlias = dict[uuid.UUID, list[Flags]]

_SQL = queries("nodes")
_BOTH: Final[tuple[Path, ...]] = (("content",), ("metadata",))
_Tree: TypeAlias = dict[str, Any]  # of paths: key -> tree below it; an empty one ends a path


def sees_all(caller: Caller) -> bool:
    """Whether no flag hides anything from this caller."""
    return "read:pii" in caller.scopes


def hidden_paths(node: Node, caller: Caller) -> list[Path]:
    """What this caller must not see of a node."""
    return [] if sees_all(caller) else _flagged([node.pii_flags], node.metadata)


def redact(shape: dict[str, Any], caller: Caller) -> dict[str, Any]:
    """A node's shape with what this caller must not see replaced; the input's containers are not changed."""
    if sees_all(caller) or not shape["piiFlags"].get("containsPii"):
        return shape
    return replaced(shape, _flagged([shape["piiFlags"]], shape["metadata"]))


def flags_of_artifacts(caller: Caller, ids: Iterable[uuid.UUID] = (), nodes: Iterable[uuid.UUID] = ()) -> Query:
    """The query for what hides these artifacts, and those of these nodes; ``read_flags`` understands its rows. It belongs in the
    transaction that reads the artifacts."""
    given = {"tenant": caller.tenant, "ids": list(ids), "nodes": list(nodes), "seen": sees_all(caller)}
    return _SQL["flags_of_artifacts"], given


def read_flags(rows: Iterable[Mapping[str, Any]]) -> FlagsOf:
    """Artifact -> the flags of all nodes that know its bytes, where they hide something."""
    found: FlagsOf = {}
    for row in rows:
        found.setdefault(row["artifact"], []).append(row["pii_flags"])
    return found


def hides_bytes(flags: Sequence[Flags], caller: Caller) -> bool:
    """Whether a file with these flags is hidden from this caller: its bytes, and its name."""
    return not sees_all(caller) and ("content",) in _flagged(flags, {})


def redact_artifact(shape: dict[str, Any], flags: Sequence[Flags], caller: Caller) -> dict[str, Any]:
    """An artifact's shape with what this caller must not see replaced."""
    if sees_all(caller) or not flags:
        return shape
    paths = _flagged(flags, shape["metadata"])
    shape = replaced(shape, [path for path in paths if path[0] == "metadata"])
    # Also where there is no name: that, too, is something about the file.
    return shape | {"name": REDACTED} if ("content",) in paths else shape


def hidden_in(shape: dict[str, Any] | None, flags: Sequence[Flags]) -> dict[str, Any] | None:
    """A shape with what these flags hide replaced, for every caller; it may be one that nothing is known to be right about."""
    if shape is None:
        return None
    return replaced(shape, _flagged([one for one in flags if isinstance(one, dict)], shape.get("metadata")))


def _flagged(flags: Iterable[Flags], metadata: Any) -> list[Path]:
    """The paths that flags hide together. A key with a dot in it cannot be named by a path, so where there is one, nothing says
    that the flags reach what they mean: then all of metadata is hidden."""
    paths: set[Path] = set()
    for one in flags:
        if one.get("containsPii"):
            named = one.get("paths")
            paths.update([tuple(path.split(".")) for path in named] if named else _BOTH)
    below = any(path[0] == "metadata" for path in paths)
    if below and ("metadata",) not in paths and _has_dotted_key(metadata):
        paths.add(("metadata",))
    return sorted(paths)


def _has_dotted_key(value: Any) -> bool:
    if isinstance(value, dict):
        return any("." in key or _has_dotted_key(item) for key, item in value.items())
    return isinstance(value, list) and any(_has_dotted_key(item) for item in value)


def replaced(shape: dict[str, Any], paths: Iterable[Path], *, drop: bool = False) -> dict[str, Any]:
    """The shape with the values at these paths replaced, or dropped; in one walk, however many paths there are."""
    tree: _Tree = {}
    for path in sorted(paths):  # a shorter path comes first and covers what it begins
        here = tree
        for key in path[:-1]:
            if (below := here.get(key)) == {}:
                break
            here = here.setdefault(key, {}) if below is None else below
        else:
            here[path[-1]] = {}
    result: dict[str, Any] = _walked(shape, tree, drop) if tree else shape
    return result


def _walked(value: Any, tree: _Tree, drop: bool) -> Any:
    if isinstance(value, list):
        return [_walked(item, tree, drop) for item in value]
    if not isinstance(value, dict):
        return value
    result = dict(value)
    for key, below in tree.items():
        if result.get(key) is None:
            continue
        if below:
            result[key] = _walked(result[key], below, drop)
        elif drop:
            del result[key]
        else:
            result[key] = REDACTED
    return result

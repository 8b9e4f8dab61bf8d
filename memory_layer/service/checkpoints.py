"""Publishes the log's tree: tiles, and about once a second a signed checkpoint over what is committed. Run by the worker.

The row (log, size, root) is committed first, and its primary key excludes other publishers; then it is signed. A crash between
the two leaves a row without a note, which the next run signs. Nothing here takes the log lock, so writers never wait for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from memory_layer.audit.checkpoint import checkpoint_text, sign_checkpoint
from memory_layer.audit.tree import (
    HASH_BYTES,
    TileWriter,
    consistency_proof,
    root_from_tiles,
    verify_consistency,
)
from memory_layer.errors import MemoryLayerError, PolicyRefused, UsageError, ValidationError
from memory_layer.model import SYSTEM_TENANT, format_time
from memory_layer.service.installation import Installation
from memory_layer.service.system import record, system_caller
from memory_layer.service.tiles import load, snapshot
from memory_layer.sql import queries
from memory_layer.stores.postgres import Fetch
from memory_layer.stores.protocols import Signer

LEADER: Final = 2  # the advisory lock (5062476, 2), beside the log's own (5062476, 0)
CHUNK = 32_768  # entries taken into the tree in one transaction
HEARTBEAT_AFTER = 60.0  # seconds of silence

_SQL = queries("log")


class TreeDiffers(MemoryLayerError):
    """The entries do not continue what was published of them; nothing more is signed."""


class _Tree(NamedTuple):
    """The row of query ``tree``: the log, and how far it is built and published."""

    log: int
    origin: str
    entries: int
    last_entry_at: Any
    now: Any
    size: int
    edge: list[bytes]
    key_id: str | None
    published: int | None  # size of the newest checkpoint, signed or not
    root: bytes | None  # its root
    unsigned: bool

    @property
    def whole(self) -> bool:
        return self.entries == self.size == (self.published or 0)


async def publish_once(installation: Installation) -> int:
    """Bring tree and checkpoints up to the log's end. How many checkpoints were signed; 0 also where another process publishes.

    Its work is in proportion to the new entries. Raises UsageError without a key for checkpoints, PolicyRefused when the log's
    checkpoints are signed by another key, RollbackDetected where the log lacks what was signed before, and TreeDiffers, before anything is signed, when the entries contradict the tree.
    """
    postgres, signer = installation.postgres, installation.checkpoint_signer
    if installation.committer.rollback_guard is not None:
        installation.committer.rollback_guard.require_proof()  # else two roots could be signed for one size
    tree = await _tree(snapshot(postgres), installation.log)
    if tree is None or (tree.whole and not tree.unsigned):
        return 0
    if signer is None:
        raise UsageError(
            "There is no key for checkpoints (keys/checkpoint.pem in the data folder), so none are published. `memoryctl up` and "
            "`memoryctl serve` make it at first start; other workers need a copy of it."
        )
    _require_key(tree, signer)
    more = True
    while more:
        async with postgres.leading(LEADER) as fetch:
            if fetch is None:
                return 0
            more = await _extend(fetch, installation.log, signer)
    return await _sign(installation, tree.log, tree.origin, signer)


async def heartbeat_once(installation: Installation) -> bool:
    """Commit an ``audit.heartbeat`` when the log has been silent for HEARTBEAT_AFTER seconds; whether it did.

    The log's own head decides, so however many workers there are, silence is broken once.
    """
    tree = await _tree(snapshot(installation.postgres), installation.log)
    if tree is None or not _silent(tree):
        return False
    caller = await system_caller(installation, "worker")
    async with installation.postgres.leading(LEADER) as fetch:
        tree = None if fetch is None else await _tree(fetch, installation.log)
        if tree is None or not _silent(tree):
            return False
        payload = {"silentSince": format_time(tree.last_entry_at), "entries": tree.entries}
        await record(installation, caller, "audit.heartbeat", payload)
    return True


def _silent(tree: _Tree) -> bool:
    return bool((tree.now - tree.last_entry_at).total_seconds() > HEARTBEAT_AFTER)


async def _tree(fetch: Fetch, log: int) -> _Tree | None:
    rows = await fetch((_SQL["tree"], {"log": log}))
    return _Tree(**rows[0]) if rows else None


def _require_key(tree: _Tree, signer: Signer) -> None:
    if tree.key_id not in (None, signer.key_id):
        raise PolicyRefused(
            f"The checkpoints of {tree.origin} are signed by the key {str(tree.key_id)[:16]}..., and this worker has another "
            f"({signer.key_id[:16]}...): nobody's trust root would know it. Give it the keys/checkpoint.pem that the log began with. "
        )


async def _extend(fetch: Fetch, number: int, signer: Signer) -> bool:
    """Take a chunk of entries into the tree, and at the log's end its root among the checkpoints; whether there is more."""
    tree = await _tree(fetch, number)
    if tree is None or tree.whole:
        return False
    _require_key(tree, signer)
    known = max(tree.size, tree.published or 0)
    if tree.entries < known:
        raise _differs(tree.origin, f"it has {tree.entries} entries, and {known} were taken into its tree before")
    last = min(tree.entries, tree.size + CHUNK)
    await _grow(fetch, tree, last, signer.key_id)
    if last < tree.entries:
        return True
    await _put_root(fetch, tree)
    return False


async def _grow(fetch: Fetch, tree: _Tree, last: int, key_id: str) -> None:
    """The leaves up to ``last`` (excluded): full tiles are stored, the rest is the new edge."""
    (leaves,) = await fetch((_SQL["leaf_hashes"], {"log": tree.log, "first": tree.size, "last": last}))
    if leaves["count"] != last - tree.size:
        raise _differs(tree.origin, f"of the entries {tree.size} to {last - 1} only {leaves['count']} are there")
    try:
        writer = TileWriter(tree.size, tree.edge)
    except ValidationError as error:
        raise _differs(tree.origin, f"its stored edge is damaged ({error.message})") from error
    hashes = bytes(leaves["hashes"] or b"")
    tiles = writer.extend(hashes[place : place + HASH_BYTES] for place in range(0, len(hashes), HASH_BYTES))
    if tiles:
        given = {"level": [t.level for t in tiles], "tile": [t.number for t in tiles], "data": [t.data for t in tiles]}
        for other in await fetch((_SQL["put_tiles"], {"log": tree.log} | given)):
            raise _differs(
                tree.origin, f"its tile {other['tile']} of level {other['level']} is stored with other hashes"
            )
    await fetch((_SQL["put_tree"], {"log": tree.log, "size": last, "edge": writer.edge, "key_id": key_id}))


async def _put_root(fetch: Fetch, tree: _Tree) -> None:
    """The root over all entries, once it is proven to continue the newest checkpoint."""
    size, before = tree.entries, tree.published or 0
    with _undamaged(tree.origin):
        read = await load(fetch, tree.log, size, max(before - 1, 0))
        root, path = root_from_tiles(size, read), consistency_proof(before, size, read)
    if tree.root is not None and not verify_consistency(before, size, path, bytes(tree.root), root):
        raise _differs(tree.origin, f"its {size} entries do not continue the checkpoint of size {before}")
    await fetch((_SQL["put_checkpoint"], {"log": tree.log, "size": size, "root": root}))


async def _sign(installation: Installation, number: int, origin: str, signer: Signer) -> int:
    """Sign what is committed and has no note yet, each root computed again from the tiles first."""
    rows = await snapshot(installation.postgres)((_SQL["unsigned"], {"log": number}))
    for row in rows:
        await _sign_one(installation, number, origin, signer, row["size"], bytes(row["root"]))
    return len(rows)


async def _sign_one(
    installation: Installation, number: int, origin: str, signer: Signer, size: int, stored: bytes
) -> None:
    fetch = snapshot(installation.postgres)
    with _undamaged(origin):
        root = root_from_tiles(size, await load(fetch, number, size))
    if root != stored:
        raise _differs(
            origin, f"the root of its first {size} entries is {root.hex()}, and {stored.hex()} is stored for that size"
        )
    signature = await signer.sign(checkpoint_text(origin, size, root))
    note = sign_checkpoint(origin, size, root, public_key_der=signer.public_key_der, sign=lambda _: signature)
    # Under a tenant's name it commits synchronously: what is published is not taken back by a crash.
    given = {"log": number, "size": size, "root": root, "note": note.decode()}
    await installation.postgres.run(SYSTEM_TENANT, (_SQL["sign"], given))


@contextlib.contextmanager
def _undamaged(origin: str) -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        raise _differs(origin, f"tiles of its tree are missing or damaged ({error.message})") from error


def _differs(origin: str, what: str) -> TreeDiffers:
    return TreeDiffers(
        f"The log {origin} contradicts its own tree: {what}. No checkpoint is signed until this is understood. Somebody changed rows "
        "behind the service's back, or the database was restored to an earlier point; look with `memoryctl audit verify`."
    )

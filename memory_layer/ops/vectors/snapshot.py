"""Write what the index holds into a folder of its own, beside a list of what it should not have held. Format: ``manifest.py``.

The source is the index itself, so that reading a snapshot back is also a trial of the index; what Postgres says is looked up for every
row. The folder appears whole or not at all: it is written under another name, synced, and renamed. What a run that was killed
left under such a name is removed by the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import fcntl
import hashlib
import os
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from memory_layer import __version__, private
from memory_layer.errors import DependencyUnavailable, UsageError
from memory_layer.model import format_time
from memory_layer.ops import manifests
from memory_layer.ops.manifests import MANIFEST, SIGNATURE, ManifestKey, Position, Signed
from memory_layer.ops.report import Finding
from memory_layer.ops.vectors.digest import Digest
from memory_layer.ops.vectors.manifest import KIND, File, Manifest, Shard, SpaceRecord, paths
from memory_layer.ops.vectors.reconcile import compare, judge_suspects, same
from memory_layer.ops.vectors.spaces import SQL, Scope, Space, held, named_spaces, row_states
from memory_layer.progress import Progress, no_progress
from memory_layer.service.installation import Installation
from memory_layer.stores.postgres import ALL_TENANTS

SHARD_BYTES: Final = 60 * 2**20  # of vectors held in memory; a file of them goes into an archive by one PUT
_NIGHTLY: Final = re.compile(r"vectors-\d{8}T\d{6}Z")
_PARTIAL: Final = ".partial"
_OURS: Final = re.compile(r"\..+\.[0-9a-f]{12}\.partial", re.DOTALL)  # as _make and prune name them
_NAMED: Final = 20  # namespaces in a finding


@dataclass(slots=True)
class _Open:
    """The shard that is being filled."""

    dimension: int = 0
    rows: list[tuple[uuid.UUID, int]] = field(default_factory=list)
    vectors: list[NDArray[np.float32]] = field(default_factory=list)

    @property
    def full(self) -> bool:
        return len(self.rows) * self.dimension * 4 >= SHARD_BYTES


async def snapshot(
    installation: Installation, scope: Scope, out: Path, key: ManifestKey | None, *, progress: Progress = no_progress
) -> Signed[Manifest]:
    """Write a snapshot of the namespaces in scope into the new folder ``out``. Raises UsageError when it is there already,
    NotFound where the scope names what is not there."""
    (found,) = await installation.postgres.fetch(
        ALL_TENANTS, (SQL["log_position"], {"origin": installation.postgres.origin})
    )
    place = found[0] if found else {}
    now = format_time(dt.datetime.now(dt.UTC))
    spaces = await named_spaces(installation, scope)
    with _partial(out) as folder:
        records = [await _space(installation, space, folder, number, progress) for number, space in enumerate(spaces)]
        manifest = Manifest(
            format="memory-layer/vector-snapshot/v1",
            origin=place.get("origin"),
            log=None if place.get("seq") is None else Position(place["seq"], place["hash"]),
            provider=installation.vectors.provider,
            created_at=now,
            tool=f"memory-layer {__version__}",
            dirty=any(record.differences for record in records),
            spaces=records,
        )
        data, signer = manifests.dump(manifest), None
        _write(folder, MANIFEST, lambda file: file.write(data))
        if key is not None and manifest.origin is not None:
            signature, signer = await manifests.sign(KIND, data, manifest.origin, key), key.key_id
            _write(folder, SIGNATURE, lambda file: file.write(signature))
    return Signed(manifest, hashlib.sha256(data).hexdigest(), signer)


async def _space(
    installation: Installation, space: Space, folder: Path, number: int, progress: Progress
) -> SpaceRecord:
    """One namespace: compared by ids, then read with its vectors, each of which is compared with its row."""
    compared = await compare(installation, space, vectors="none", progress=progress)
    digest, shards, current = Digest(), list[Shard](), _Open()
    wrong: list[bytes] = []
    private.make_folder(folder / f"{number:05d}")

    async def flush() -> None:
        nonlocal current
        if current.rows:
            shards.append(await asyncio.to_thread(_write_shard, folder, number, len(shards), current))
        current = _Open()

    async for records in held(installation, space, vectors=True):
        states = await row_states(installation, space, [record.node_id for record in records], vectors=True)
        for record in records:
            if record.vector is None:
                continue
            row = states.get(record.node_id)
            indexed = row is not None and row["status"] == "succeeded" and row["version"] == record.version
            if row is not None and indexed and row["stored"] and not same(row["stored"], record.vector):
                wrong.append(record.node_id.bytes)
            if current.full or (current.rows and current.dimension != record.vector.shape[0]):
                await flush()
            current.dimension = record.vector.shape[0]
            current.rows.append((record.node_id, record.version))
            current.vectors.append(record.vector)
            digest.add(record.node_id.bytes, record.version)
        progress(f"reading {space.tenant}/{space.namespace}", digest.count, compared.index)
    await flush()
    _sync(folder / f"{number:05d}")
    await judge_suspects(installation, compared, wrong, repair=False, progress=progress)
    summary = compared.to_json()
    return SpaceRecord(
        tenant=space.tenant,
        namespace=space.namespace,
        model=space.model,
        dimension=space.dimension,
        metric="cosine",
        count=digest.count,
        digest=digest.text(),
        buckets=digest.buckets(),
        differences=summary["differences"],
        examples=summary["examples"],
        shards=shards,
    )


def _write_shard(folder: Path, number: int, place: int, shard: _Open) -> Shard:
    vectors, ids = paths(number, place)
    matrix = np.stack(shard.vectors).astype(np.float32, copy=False)
    lines = b"".join(b'{"id":"%b","version":%d}\n' % (str(node).encode(), version) for node, version in shard.rows)
    return Shard(
        rows=len(shard.rows),
        dimension=shard.dimension,
        vectors=_write(folder, vectors, lambda file: np.lib.format.write_array(file, matrix, allow_pickle=False)),
        ids=_write(folder, ids, lambda file: file.write(lines)),
    )


class _Hashing:
    """Counts and hashes what goes into a file."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha256, self.size = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.size += len(data)
        return self.file.write(data)


def _write(folder: Path, path: str, fill: Callable[[BinaryIO], object]) -> File:
    """The one place where a snapshot's files come from."""
    with private.create(folder / path) as file:
        hashing = _Hashing(file)
        fill(cast("BinaryIO", hashing))
        file.flush()
        os.fsync(file.fileno())
    return File(path, hashing.size, hashing.sha256.hexdigest())


@contextlib.contextmanager
def _partial(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that becomes it when all went well, and is gone otherwise."""
    if out.exists():
        raise UsageError(f"{out} is there already. Name a new folder: a snapshot is never overwritten.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _clear(out.parent)
        folder, lock = _make(out)
    except OSError as error:
        raise DependencyUnavailable(f"{out.parent} cannot be written to: {error.strerror}.") from None
    try:
        yield folder
        _sync(folder)
        folder.rename(out)
        _sync(out.parent)
    except OSError as error:
        raise DependencyUnavailable(f"{folder} cannot be written: {error.strerror}. Nothing is left of it.") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _make(out: Path) -> tuple[Path, int]:
    """A new folder and the lock on it, which ends with the process."""
    while True:
        folder = out.parent / f".{out.name}.{uuid.uuid4().hex[:12]}{_PARTIAL}"
        folder.mkdir(mode=0o700)
        lock = _lock(folder)
        if lock is not None and folder.exists():
            return folder, lock
        if lock is not None:  # another run took it for a dead one's, in between
            os.close(lock)


def _clear(parent: Path) -> None:
    """Remove what dead runs left. The folder may be anybody's: other programs have .partial folders too."""
    for folder in parent.iterdir():
        lock = _lock(folder) if _OURS.fullmatch(folder.name) else None
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _lock(folder: Path) -> int | None:
    try:
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(number)
        return None
    return number


def _sync(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


# --- snapshots by the night


def nightly_name(now: dt.datetime) -> str:
    """The name of a snapshot that the worker makes."""
    return f"vectors-{now.astimezone(dt.UTC):%Y%m%dT%H%M%SZ}"


def prune(parent: Path, keep: int) -> list[str]:
    """Remove the worker's own snapshots but the newest ``keep``, and the newest clean one wherever it stands; their names."""
    found = sorted(
        (f for f in parent.iterdir() if _NIGHTLY.fullmatch(f.name) and (f / MANIFEST).is_file()), reverse=True
    )
    clean = next((folder for folder in found if not _dirty(folder)), None)
    gone = [folder for folder in found[keep:] if folder != clean]
    for folder in gone:
        # Renamed first: half a snapshot must not look like one.
        dead = folder.rename(parent / f".{folder.name}.{uuid.uuid4().hex[:12]}{_PARTIAL}")
        shutil.rmtree(dead, ignore_errors=True)
    return [folder.name for folder in gone]


def _dirty(folder: Path) -> bool:
    try:
        return bool(msgspec.json.decode((folder / MANIFEST).read_bytes())["dirty"])
    except (OSError, msgspec.MsgspecError, KeyError, TypeError):
        return True


def facts_of(done: Signed[Manifest], out: Path) -> dict[str, Any]:
    """The facts about a snapshot."""
    manifest = done.manifest
    return {
        "folder": str(out),
        "provider": manifest.provider,
        "namespaces": len(manifest.spaces),
        "vectors": manifest.rows,
        "bytes": _bytes(manifest.spaces),
        "dirty": manifest.dirty,
        "createdAt": manifest.created_at,
        "logSeq": None if manifest.log is None else manifest.log.seq,
        "sha256": done.digest,
        "signedBy": done.key,
    }


def findings_of(done: Signed[Manifest]) -> list[Finding]:
    """What is not as it should be with a snapshot."""
    found = []
    if done.manifest.dirty:
        dirty = [space for space in done.manifest.spaces if space.differences]
        counts: Counter[str] = Counter()
        for space in dirty:
            counts.update(space.differences)
        what = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        evidence = {f"{space.tenant}/{space.namespace}": space.differences for space in dirty[:_NAMED]}
        text = f"The snapshot is dirty: the index differed from Postgres ({what})."
        hint = "Repair the index (`memoryctl vectors reconcile --repair`) and make another; a restore leaves out what differs."
        found.append(Finding("vectors.dirty", "error", "fail", text, hint, evidence))
    if done.key is None:
        text = "The snapshot is not signed: this data folder has no manifest key that its trust root names."
        hint = (
            "Run it with --data of the installation; else `memoryctl vectors restore` takes it with --unsigned alone."
        )
        found.append(Finding("vectors.unsigned", "warning", "fail", text, hint))
    return found


def _bytes(spaces: Sequence[SpaceRecord]) -> int:
    return sum(shard.vectors.bytes + shard.ids.bytes for space in spaces for shard in space.shards)

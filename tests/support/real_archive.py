"""An archive that the service made of a log that it wrote, and copies of it in forgers' hands."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict

from memory_layer.audit.archive import local_segments, verify_archive
from memory_layer.audit.checkpoint import Checkpoint, parse_checkpoint
from memory_layer.audit.segment import CHECKPOINT, MANIFEST, Segment, load_segment
from memory_layer.audit.trust_root import TrustRoot, load
from memory_layer.audit.verdict import Verdict
from memory_layer.ops import embedded
from memory_layer.ops.archive import job, write
from memory_layer.ops.archive.data_keys import DataKeys
from memory_layer.ops.archive.files import SegmentSize
from memory_layer.ops.archive.write import Written
from memory_layer.service.checkpoints import publish_once
from memory_layer.service.installation import Installation
from memory_layer.stores.protocols import ObjectStore
from tests.support.databases import new_database
from tests.support.real_log import RealLog
from tests.support.service import running_memory

EACH = 500  # entries in a segment


@dataclass
class RealArchive:
    """``folder``: what lies below the log's name in the archive. ``dsn`` is the superuser's, ``data`` the installation's."""

    dsn: str
    data: Path
    folder: Path
    written: list[Written]

    @property
    def root(self) -> TrustRoot:
        return load((self.data / "trust-root.json").read_bytes())

    @property
    def anchor(self) -> Checkpoint:
        """The checkpoint beside the newest segment, as an auditor kept it."""
        return parse_checkpoint((self.segments[-1] / CHECKPOINT).read_bytes())

    @property
    def segments(self) -> list[Path]:
        return [held.folder for held in local_segments(self.folder, self.root.origin)]

    def copy(self, folder: Path) -> RealArchive:
        """One to forge."""
        shutil.copytree(self.folder, folder)
        for path in folder.rglob("*"):
            path.chmod(0o700)
        return RealArchive(self.dsn, self.data, folder, self.written)

    def manifest(self, number: int) -> Segment:
        return load_segment((self.segments[number] / MANIFEST).read_bytes())

    def edit_manifest(self, number: int, change: Callable[[dict[str, Any]], None]) -> None:
        path = self.segments[number] / MANIFEST
        document = json.loads(path.read_bytes())
        change(document)
        path.write_bytes(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())

    def judge(self, **how: Any) -> Verdict:
        options = {"pinned": True} | how
        if "anchors" not in options:
            options["anchors"] = [self.anchor]
        return verify_archive(local_segments(self.folder, self.root.origin), self.root, **options)


async def archive_small(
    memory: Installation,
    *,
    entries: int = EACH,
    store: ObjectStore | None = None,
    payload_keys: DataKeys | None = None,
    **options: Any,
) -> list[Written]:
    """Archive in small segments, perhaps to another store or by other keys."""
    keys = job.open_archive_keys(memory)
    if payload_keys is not None:
        keys = keys._replace(payloads=payload_keys)
    if store is not None:
        memory = memory.with_parts(archive=store)
    return await write.archive(memory, keys, size=SegmentSize(entries), **options)


async def archive_all(memory: Installation, *, entries: int = EACH) -> list[Written]:
    await publish_once(memory)
    return await archive_small(memory, entries=entries, rest=True)


@contextmanager
def real_archive(cluster: embedded.Cluster, log: RealLog, folder: Path) -> Iterator[RealArchive]:
    """Of a copy of ``log``: five segments or so, the last one not full."""
    data = folder / "installation"
    shutil.copytree(log.data, data)
    with new_database(cluster, str(conninfo_to_dict(log.dsn)["dbname"])) as database:

        async def run() -> list[Written]:
            async with running_memory(database("memory_app"), data) as memory:
                return await archive_all(memory)

        written = asyncio.run(run())
        made = RealArchive(database("postgres"), data, folder / "archive", written)
        shutil.copytree(data / "archive" / write.prefix_of(made.root.origin), made.folder)
        yield made

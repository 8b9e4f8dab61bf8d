"""Take evidence out of a live database: a range of the log as a bundle that needs no server."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal

import psycopg
from psycopg import Connection

from memory_layer import __version__, private
from memory_layer.audit import bundle
from memory_layer.audit.anchors import CheckpointRow
from memory_layer.audit.bundle import File, Head, LineWriter, Manifest
from memory_layer.audit.entry import format_ts, genesis_prev, leaf_hash
from memory_layer.audit.seal import NO_PREVIOUS, seal_hash
from memory_layer.audit.seal_chain import Base, SealRow
from memory_layer.audit.tree import HASH_BYTES, Frontier
from memory_layer.audit.trust_root import TrustRoot
from memory_layer.errors import Conflict, DependencyUnavailable, NotFound, UsageError
from memory_layer.installing import where_the_verifier_is_from
from memory_layer.ops import audit
from memory_layer.ops.audit import begin, connect
from memory_layer.ops.manifests import ManifestKey
from memory_layer.progress import Progress, no_progress
from memory_layer.sql import queries

_SQL = queries("audit")
_PAGE: Final = 1000  # rows held at a time


README: Final = """\
This folder is evidence: entries {first} to {last} of the audit log

  {origin}

with their seals, payloads ({payloads}) and checkpoints. To verify it:

  memoryctl audit verify --export . --trust-root YOURS [--anchor CHECKPOINT]{range}

YOURS is the copy of trust-root.json that you keep, and that you compared by its SHA-256 with what the log's
keeper told you at the start. The copy in this folder is for reading only: whoever made the folder chose it.
CHECKPOINT is a signed checkpoint of this log that you have from elsewhere; without one, nobody can tell a
log that was cut off or wholly rewritten from a whole one.

{where_from}

audit-format.md describes every file here, and is enough to write a verifier of your own.
"""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written; ``digest`` is the SHA-256 of the manifest."""

    folder: Path
    manifest: Manifest
    digest: str
    signed: bool


def export(
    dsn: str,
    root: TrustRoot,
    trust_root: bytes,
    out: Path,
    *,
    first: int = 0,
    last: int | None = None,
    payloads: Literal["all", "tenant", "none"] = "all",
    tenant: str | None = None,
    previous: str | None = None,
    key: ManifestKey | None = None,
    progress: Progress = no_progress,
) -> Exported:
    """Write the batches that hold entries ``first`` to ``last`` (None: the end) of the log that the trust root names.

    One snapshot of the database, in bounded memory. ``trust_root`` are the bytes that go along, for reading only; ``previous`` is the
    SHA-256 of the manifest of the export that this one goes on from. Raises UsageError when ``out`` is there and not empty or the
    range is none, NotFound when the database has no such log or entries, DependencyUnavailable when it does not answer.
    """
    if last is not None and last < first:
        raise UsageError(f"There are no entries from {first} to {last}: --to lies before --from.")
    _make(out)
    try:
        with connect(dsn) as connection:
            _, logs = begin(connection)
            log = next((number for number, origin in logs if origin == root.origin), None)
            if log is None:
                held = ", ".join(origin for _, origin in logs) or "none"
                raise NotFound(
                    f"This database does not hold the log {root.origin} of the trust root; it holds: {held}."
                )
            total = _total(dsn, first, last)
            return _Export(connection, log, root.origin, out, total, progress).run(
                trust_root, first, last, payloads, tenant, previous, key
            )
    except psycopg.OperationalError as error:
        raise DependencyUnavailable(f"Postgres does not answer: {' '.join(str(error).split())}") from error


def _total(dsn: str, first: int, last: int | None) -> int:
    """How many entries are about to be written, for a progress bar."""
    end = audit.entries(dsn) - 1
    return max(0, min(end, end if last is None else last) + 1 - first)


def format_page() -> bytes:
    """The public text of the format, as it goes along with each bundle."""
    installed = resources.files("memory_layer.audit") / "audit-format.md"
    if installed.is_file():
        return installed.read_bytes()
    return (Path(__file__).parents[2] / "docs" / "audit-format.md").read_bytes()  # in a clone


def _make(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(
            f"{out} is there already and is not an empty folder. Name a new one: evidence is never overwritten."
        )
    private.make_folder(out)


class _Export:
    """The state of one export."""

    def __init__(
        self, connection: Connection[Any], log: int, origin: str, out: Path, total: int, progress: Progress
    ) -> None:
        self.connection, self.log, self.origin, self.out = connection, log, origin, out
        self.total, self.progress = total, progress
        self.files: dict[str, File] = {}
        self.counts: dict[str, int] = {}
        self.last: tuple[int, bytes] | None = None
        self.seal: tuple[int, str] | None = None

    def run(
        self,
        trust_root: bytes,
        first: int,
        last: int | None,
        payloads: Literal["all", "tenant", "none"],
        tenant: str | None,
        previous: str | None,
        key: ManifestKey | None,
    ) -> Exported:
        base, end = self._range(first, last)
        facts = {
            "log": self.log, "first": base.seq, "last": end, "batch": base.batch, "all": payloads == "all", "tenant": tenant,
        }  # fmt: skip
        self._write(bundle.ENTRIES, "entries", "range_entries", facts, self._entry)
        self._write(bundle.PAYLOADS, "payloads", "range_payloads", facts, lambda row: bundle.payload_line(*row))
        self._write(bundle.SEALS, "seals", "range_seals", facts, self._seal)
        self._write(bundle.CHECKPOINTS, "checkpoints", "checkpoints", facts, _checkpoint)
        head = None
        if self.last is not None and self.seal is not None:
            head = Head(self.last[0], leaf_hash(self.last[1]), self.seal[0], seal_hash(self.seal[1].encode()))
        shown = {"all": "all of them", "none": "none", "tenant": f"those of {tenant} alone"}[payloads]
        part = f" --from {base.seq}" if base.seq else ""
        part += f" --to {end}" if end is not None else ""
        readme = README.format(
            first=base.seq, last=head.seq if head else "none", origin=self.origin, payloads=shown, range=part,
            where_from=where_the_verifier_is_from(),
        )  # fmt: skip
        for name, data in (
            (bundle.TRUST_ROOT, trust_root),
            (bundle.FORMAT_PAGE, format_page()),
            (bundle.README, readme.encode()),
        ):
            self.files[name] = bundle.write_file(self.out, name, data)
        ((now,),) = self.connection.execute(_SQL["now"]).fetchall()
        manifest = Manifest(
            origin=self.origin,
            base=base,
            head=head,
            payloads=payloads,
            tenant=tenant,
            counts=self.counts,
            files=self.files,
            previous=previous,
            time=format_ts(now),
            tool=f"memory-layer {__version__}",
        )
        if key is None:
            digest = bundle.write_manifest(self.out, manifest)
        else:
            digest = bundle.write_manifest(self.out, manifest, key=key.key_id, alg=key.algorithm, sign=key.sign)
        return Exported(self.out, manifest, digest, key is not None)

    def _range(self, first: int, last: int | None) -> tuple[Base, int | None]:
        """Where the first of the batches begins, and the last entry of the last one; None where that is the log's end."""
        if first == 0 and last is None:
            return Base(prev=genesis_prev(self.origin)), None
        ((batch, begin, end),) = self.connection.execute(
            _SQL["range"], {"log": self.log, "first": first, "last": last}
        ).fetchall()
        if batch is None:
            raise NotFound(
                f"The log {self.origin} holds no entries from {first}" + ("." if last is None else f" to {last}.")
            )
        if begin == 0:
            return Base(prev=genesis_prev(self.origin)), None if last is None else end
        place = {"log": self.log, "first": begin, "batch": batch}
        entry = self.connection.execute(_SQL["entry_before"], place).fetchone()
        seal = self.connection.execute(_SQL["seal_before"], place).fetchone()
        if entry is None or seal is None:
            raise Conflict(
                f"What comes before entry {begin} is missing: run `memoryctl audit verify`, and export it all."
            )
        tree, leaves = Frontier(), []
        with self.connection.cursor("export_hashes") as cursor:
            cursor.execute(_SQL["hashes_before"], place)
            while page := cursor.fetchmany(4096):
                leaves = [bytes.fromhex(hash_)[:HASH_BYTES].ljust(HASH_BYTES, b"\0") for (hash_,) in page]
                tree.extend(leaves)
        if tree.size != begin:
            raise Conflict(f"Entries before {begin} are missing: run `memoryctl audit verify`, and export it all.")
        prev, text = bytes(entry[0]), seal[0].encode()
        ts = bundle.time_of(prev)
        before = seal_hash(text) if seal else NO_PREVIOUS
        return Base(begin, batch, leaf_hash(prev), before, ts, tree.dumps()), None if last is None else end

    def _write(
        self, name: str, what: str, query: str, facts: dict[str, Any], line: Callable[[tuple[Any, ...]], bytes]
    ) -> None:
        with LineWriter(self.out, name) as file, self.connection.cursor(f"export_{query}") as cursor:
            cursor.itersize = _PAGE
            cursor.execute(_SQL[query], facts, binary=True)
            rows: Iterable[tuple[Any, ...]] = cursor
            for count, row in enumerate(rows, start=1):
                file.write(line(row))
                if what == "entries" and count % _PAGE == 0:
                    self.progress("exporting", count, self.total)
            self.files[name] = file.finish()
            self.counts[what] = file.lines

    def _entry(self, row: tuple[Any, ...]) -> bytes:
        seq, entry = row
        self.last = seq, entry
        return bytes(entry)

    def _seal(self, row: tuple[Any, ...]) -> bytes:
        batch, text, signature = row
        self.seal = batch, text
        return bundle.seal_line(SealRow(batch, text.encode(), signature))


def _checkpoint(row: tuple[Any, ...]) -> bytes:
    size, root, note = row
    return bundle.checkpoint_line(CheckpointRow(size, root, None if note is None else note.encode()))

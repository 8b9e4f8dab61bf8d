"""Restore a log from its archive into another database: entries and seals byte for byte, payloads where their keys are available.

All of it is verified before a row is written, and again as it is written, a segment in a transaction. The log gets a number below 0 and
``imported_at``; nothing signs it again or appends to it (trigger ``audit_seals_not_imported``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import psycopg
from psycopg import Connection

from memory_layer.audit.archive import Held, Open, verify_archive
from memory_layer.audit.checkpoint import Checkpoint
from memory_layer.audit.entry import leaf_hash, parse_entry
from memory_layer.audit.seal import parse_seal
from memory_layer.audit.seal_chain import SealRow
from memory_layer.audit.segment import Segment
from memory_layer.audit.tree import Frontier
from memory_layer.audit.trust_root import KeyEntry, TrustRoot
from memory_layer.audit.verdict import Finding, Verdict
from memory_layer.errors import Conflict, DependencyUnavailable, PolicyRefused, UsageError
from memory_layer.progress import Progress, no_progress
from memory_layer.sql import queries
from memory_layer.stores.postgres import refuse_malformed

_SQL = queries("archive")
_INCARNATION: Final = re.compile(r"/e([0-9]+)$")
_PAGE: Final = 500  # payloads
_PROD: Final = "/audit/prod/"


@dataclass(frozen=True, slots=True)
class Replayed:
    """``log``: its number there, None of a dry run. ``skipped``: entries that were there from an earlier run."""

    verdict: Verdict
    log: int | None
    entries: int
    payloads: int
    skipped: int
    root: str | None


def replay(
    segments: Callable[[], Iterable[Held]],
    root: TrustRoot,
    into: str | None,
    *,
    pinned: bool,
    source: str | None = None,
    anchors: Iterable[Checkpoint] = (),
    first: int | None = None,
    opened: Open | None = None,
    earlier: Iterable[KeyEntry] = (),
    dry_run: bool = False,
    progress: Progress = no_progress,
) -> Replayed:
    """Verify the segments, and write them into the database ``into`` unless ``dry_run``. ``segments`` gives them anew each time.

    ``earlier``: what segments before these say of keys (``audit.archive.key_entries``).
    ``source``: the database that the archive was made from, where it is known. Where the verdict has findings nothing is written.
    Raises PolicyRefused where the target is that database, keeps the log itself, or serves production; UsageError where it is not ready
    for it; Conflict where it holds something else of this log; DependencyUnavailable when it does not answer.
    """
    anchors, earlier = tuple(anchors), tuple(earlier)
    target = None
    try:
        if into is not None:
            refuse_malformed(into)
            target = psycopg.connect(into, connect_timeout=5, application_name="memoryctl audit replay")
            _refuse(target, root.origin, source)
        judge = partial(
            verify_archive,
            root=root,
            pinned=pinned,
            anchors=anchors,
            first=first,
            opened=opened,
            progress=progress,
            earlier=earlier,
        )
        verdict = judge(segments())
        if dry_run or verdict.findings or target is None:
            return Replayed(verdict, None, 0, 0, 0, verdict.counts.root)
        work = _Import(target, root.origin)
        again = judge(segments(), take=work.take)
        problems = again.findings or work.compare(verdict)
        return Replayed(again.extended(problems if problems is not again.findings else ()), work.log, work.entries, work.payloads,
                        work.skipped, verdict.counts.root)  # fmt: skip
    except psycopg.OperationalError as error:
        raise DependencyUnavailable(f"The target database does not answer: {' '.join(str(error).split())}") from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise PolicyRefused(f"The target database refuses: {' '.join(str(error).split())}") from error
    finally:
        if target is not None:
            target.close()


def _refuse(target: Connection[Any], origin: str, source: str | None) -> None:
    """Raise unless this database may take an imported copy of the log."""
    ((system, database, ready),) = target.execute(_SQL["target"]).fetchall()
    if not ready:
        raise UsageError(
            "The target database has no tables for it, or those of an older version. "
            "Run `MIGRATION_DATABASE_URL=<its DSN> memoryctl migrate apply` first."
        )
    logs = target.execute(_SQL["target_logs"]).fetchall()
    for _, name, imported in logs:
        if not imported and name == origin:
            raise PolicyRefused(
                f"The target database keeps the log {origin} itself: an archive is never replayed into its own source."
            )
        if not imported and _PROD in name:
            raise PolicyRefused(
                f"The target database keeps the log {name} of production: nothing is replayed into that."
            )
    if source is not None:
        with psycopg.connect(source, connect_timeout=5) as own:
            ((other, oid, _),) = own.execute(_SQL["target"]).fetchall()
        if (other, oid) == (system, database):
            raise PolicyRefused(
                "The target is the database that the archive was made from: an archive is never replayed into its own source."
            )
    target.rollback()


class _Import:
    """The copy of one log in the target database."""

    def __init__(self, target: Connection[Any], origin: str) -> None:
        self._target, self._origin = target, origin
        self.log: int | None = None
        self.entries = self.payloads = self.skipped = 0
        target.execute(_SQL["importing"])
        target.commit()
        for log, name, imported in target.execute(_SQL["target_logs"]).fetchall():
            if imported and name == origin:
                self.log = log
        target.commit()

    def take(
        self, segment: Segment, entries: list[bytes], seals: list[SealRow], payloads: list[tuple[int, bytes, bytes]]
    ) -> None:
        """Write a segment, whole or not at all. One that is there from an earlier run must be the same."""
        there, head = self._there(segment)
        if there and (there, head) != (len(entries), segment.head.hash):
            raise Conflict(
                f"The target holds other entries of the log {self._origin}: {there} from {segment.base.seq} to {segment.head.seq}, the last "
                f"with the hash {head}. Bring it back into a database that holds none."
            )
        if there:
            self.skipped += len(entries)
            return
        with self._target.transaction():
            if self.log is None:
                incarnation = _INCARNATION.search(self._origin)
                facts = {
                    "origin": self._origin,
                    "incarnation": int(incarnation[1]) if incarnation else 1,
                    "key_id": parse_seal(seals[0].text).key,
                }
                ((self.log,),) = self._target.execute(_SQL["open_import"], facts).fetchall()
            self._copy(segment, entries, seals, payloads)
        self._target.commit()
        self.entries += len(entries)
        self.payloads += len(payloads)

    def _there(self, segment: Segment) -> tuple[int, str | None]:
        """How many entries of its range the target holds, and the hash of its last one."""
        if self.log is None:
            return 0, None
        facts = {"log": self.log, "first": segment.base.seq, "last": segment.head.seq}
        ((first, _, count, head),) = self._target.execute(_SQL["imported_range"], facts).fetchall()
        self._target.commit()
        return count, head if first is not None else None

    def _copy(
        self, segment: Segment, entries: list[bytes], seals: list[SealRow], payloads: list[tuple[int, bytes, bytes]]
    ) -> None:
        parsed = [parse_seal(row.text) for row in seals]
        tenants: list[str | None] = []
        with self._target.cursor() as cursor:
            with cursor.copy(_SQL["copy_seals"]) as copy:
                for row, seal in zip(seals, parsed, strict=True):
                    copy.write_row(
                        (self.log, seal.batch, seal.first, seal.last, seal.head, row.text.decode(), row.signature, seal.key, seal.alg,
                         "imported", 0, seal.time)
                    )  # fmt: skip
            with cursor.copy(_SQL["copy_events"]) as copy:
                for row, seal in zip(seals, parsed, strict=True):
                    for seq in range(seal.first, seal.last + 1):
                        data = entries[seq - segment.base.seq]
                        entry = parse_entry(data)
                        tenants.append(entry.tenant)
                        copy.write_row(
                            (self.log, seq, entry.id, seal.batch, entry.tenant, entry.node, entry.artifact, entry.type,
                             entry.manifest_signature_id, entry.ts, data, leaf_hash(data), entry.prev, row.signature)
                        )  # fmt: skip
            for place in range(0, len(payloads), _PAGE):
                seqs, salts, contents = (list(column) for column in zip(*payloads[place : place + _PAGE], strict=True))
                facts = {
                    "log": self.log, "seqs": seqs, "tenants": [tenants[seq - segment.base.seq] for seq in seqs], "salts": salts,
                    "payloads": contents,
                }  # fmt: skip
                cursor.execute(_SQL["import_payloads"], facts, binary=True)

    def compare(self, verdict: Verdict) -> list[Finding]:
        """What stands there now against what was verified: head, and the root over all of it."""
        counts = verdict.counts
        facts = {"log": self.log, "first": counts.first, "last": counts.last}
        ((first, last, _, _),) = self._target.execute(_SQL["imported_range"], facts).fetchall()
        tree, head = Frontier(), None
        with self._target.cursor("imported_hashes") as cursor:
            cursor.execute(_SQL["imported_hashes"], facts)
            while page := cursor.fetchmany(4096):
                tree.extend([bytes.fromhex(hash_) for (hash_,) in page])
                head = page[-1][0]
        expected = (counts.first, counts.last, counts.head)
        if (first, last, head) != expected or tree.size != counts.entries:
            found = f"{tree.size} of them, {(first, last, head)}"
            return [
                Finding(
                    "PROJECTION_MISMATCH", f"{counts.entries} entries, {expected}", found, file="the target database"
                )
            ]
        if first == 0 and tree.root().hex() != counts.root:
            return [
                Finding("PROJECTION_MISMATCH", f"root {counts.root}", tree.root().hex(), file="the target database")
            ]
        return []

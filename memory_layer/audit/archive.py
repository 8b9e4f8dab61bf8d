"""Judge an archive: its segments one after another, from files alone. Rules: ``docs/audit-format.md``, "Archive".

A file is first held to what its signed manifest says of it, byte for byte, and expanded only where that agrees, and never beyond
what the manifest says. A segment of which that fails is named and passed over; what lies between such segments is verified as one log.
"""

from __future__ import annotations

import datetime as dt
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from memory_layer.audit.anchors import CheckpointRow
from memory_layer.audit.archive_chain import Chain, Held, Link, local_segments
from memory_layer.audit.bundle import Reader
from memory_layer.audit.checkpoint import Checkpoint
from memory_layer.audit.entry import ENTRY, GROUP, payload_commitment
from memory_layer.audit.rows import Row, bare
from memory_layer.audit.seal_chain import SealRow
from memory_layer.audit.segment import (
    CHECKPOINT,
    CLEAR,
    ENTRIES,
    MANIFEST,
    PAYLOADS,
    SEALS,
    Clear,
    Sealed,
    Segment,
    parse_line,
)
from memory_layer.audit.transfer import Limit
from memory_layer.audit.tree import verify_consistency
from memory_layer.audit.trust_root import KeyEntry, TrustRoot
from memory_layer.audit.verdict import Counts, Finding, Verdict, gravest_first
from memory_layer.audit.verify import MAX_ANCHOR_AGE, PAYLOADS_NOT_CHECKED, verify
from memory_layer.errors import UsageError
from memory_layer.progress import Progress, no_progress

LOCKS_NOT_CHECKED: Final = "locks: files say nothing of the object store's locks, versions and delete markers"
_ANYWHERE: Final = 10**15  # a segment may begin at any entry before
END_NOT_CHECKED: Final = "end: entries after {last}, if there are any, are not in the archive"
T = TypeVar("T")

Take = Callable[[Segment, list[bytes], list[SealRow], list[tuple[int, bytes, bytes]]], None]
"""Given what stands in a segment: entries, seals, and (seq, salt, payload) of the payloads that could be read."""

Open = Callable[[str, Sealed], "tuple[bytes, bytes] | None"]
"""(commitment, sealed) -> (salt, payload), None where a key is not at hand."""


def verify_archive(
    held: Iterable[Held],
    root: TrustRoot,
    *,
    pinned: bool,
    anchors: Iterable[Checkpoint] = (),
    first: int | None = None,
    last: int | None = None,
    opened: Open | None = None,
    max_anchor_age: dt.timedelta = MAX_ANCHOR_AGE,
    progress: Progress = no_progress,
    take: Take | None = None,
    earlier: Iterable[KeyEntry] = (),
) -> Verdict:
    """The verdict on segments that come in the order of their names; one or two of them are open at a time.

    ``first``: the archive is a part of the log from (at the latest) this entry on, and what its first manifest says of the entries
    before is believed. ``last``: it must reach this entry. ``opened`` decrypts payloads; without it they are not compared. ``take`` is
    given what stands in each segment once its files are what its manifest says: entries, seals and the payloads that could be read.
    ``earlier``: what segments that are not judged here say of keys (``key_entries``).
    """
    state = _Archive(root, first, opened, progress, take, earlier)
    anchors = tuple(anchors)
    verdicts = []
    source = iter(held)
    walk: _Walk | None = _Walk(state, source, None)
    while walk is not None:
        if walk.begin():
            verdicts.append(walk.judge(root, pinned, anchors, max_anchor_age))
        walk = walk.following
    if not state.chain.seen:
        raise UsageError("There is no segment to judge.")
    return state.conclude(verdicts, pinned, last)


def key_entries(held: Iterable[Held], root: TrustRoot) -> tuple[list[KeyEntry], list[Finding]]:
    """What entries of these segments say of keys, for a part of the log that lies behind them, and what is wrong with the segments.

    Each is held to its signed manifest, and each payload to its entry; links between the segments and seals are not looked at.
    """
    found: list[KeyEntry] = []
    problems: list[Finding] = []
    for one in held:
        chain = Chain(root, first=_ANYWHERE)
        link = chain.link(one)
        problems += chain.findings
        if link is not None:
            reader, base = Reader(one.folder, _limits(link.segment)), link.segment.base.seq
            entries = [line for block in reader.blocks(ENTRIES) for line in block]
            for line in (line for block in reader.blocks(PAYLOADS) for line in block):
                payload = parse_line(line)
                if isinstance(payload, Clear) and 0 <= payload.seq - base < len(entries):
                    entry = _about_key(payload.seq, entries[payload.seq - base], payload)
                    found += [] if entry is None else [entry]
            problems += [replace(finding, file=f"{one.name}/{finding.file}") for finding in reader.malformed]
    return found, problems


def _limits(segment: Segment) -> dict[str, Limit]:
    names = {ENTRIES: "entries", PAYLOADS: "payloads", SEALS: "seals"}
    return {name: Limit(segment.counts[what], segment.files[name].expanded) for name, what in names.items()}


def _about_key(seq: int, entry: bytes, payload: Clear) -> KeyEntry | None:
    """What an entry says of a key, if it does and this is its payload."""
    match = _match(entry)
    if match is None or match[GROUP["type"]] not in CLEAR:
        return None
    if payload_commitment(payload.salt, payload.payload) != match[_PAYLOAD_AT]:
        return None
    return KeyEntry(seq, match[GROUP["type"]], match[GROUP["ts"]], payload.payload)


class _Archive:
    """What is known across segments."""

    def __init__(
        self,
        root: TrustRoot,
        first: int | None,
        opened: Open | None,
        progress: Progress,
        take: Take | None,
        earlier: Iterable[KeyEntry],
    ) -> None:
        self.chain = Chain(root, first)
        self.keys = list(earlier)  # what is known of keys from entries read, and from before
        self.root, self.opened, self.progress, self.take = root, opened, progress, take
        self.read = self.sealed = self.matched = self.absent = 0

    def conclude(self, verdicts: list[Verdict], pinned: bool, last: int | None) -> Verdict:
        if last is not None and self.chain.end < last:
            found = f"entries up to {self.chain.end}"
            self.chain.findings.append(
                Finding("ARCHIVE_TRUNCATED", f"entries up to {last}", found, seq=self.chain.end + 1)
            )
        if self.chain.unreferenced and self.chain.doubtful:
            self.chain.unreferenced.clear()
        not_checked = [LOCKS_NOT_CHECKED, END_NOT_CHECKED.format(last=self.chain.end)]
        if self.sealed:
            not_checked.append(f"payloads: {self.sealed:,} are encrypted, and the keys for them were not at hand")
        if self.absent:
            not_checked.append(f"payloads: {self.absent:,} were gone before their entries were archived")
        not_checked += [
            f"{name}: a folder without a manifest, which no segment goes on from" for name in self.chain.unreferenced
        ]
        counts = Counts()
        if not verdicts:
            return Verdict(
                self.root.origin, self.root.digest, self.root.version, pinned, False, gravest_first(self.chain.findings), counts, tuple(not_checked)
            )  # fmt: skip
        *before, final = verdicts
        counts = replace(final.counts, payloads_matched=self.matched, payloads_missing=self.absent)
        for verdict in before:
            counts.entries += verdict.counts.entries
            counts.batches += verdict.counts.batches
            counts.seals_valid += verdict.counts.seals_valid
            counts.first = min(x for x in (verdict.counts.first, counts.first) if x is not None)
        whole = replace(final, counts=counts, unlisted=sum(verdict.unlisted for verdict in verdicts))
        others = [finding for verdict in before for finding in verdict.findings]
        checked = [PAYLOADS_NOT_CHECKED]
        return whole.extended(others, before=self.chain.findings, checked=checked, unchecked=not_checked)


@dataclass(slots=True)
class _Loaded:
    """A segment in memory: at most a few tens of thousands of entries."""

    link: Link
    entries: list[bytes]
    payloads: deque[Sealed | Clear]


class _Walk:
    """Segments that follow one another without a fault, as the streams that the verifier reads."""

    def __init__(self, archive: _Archive, source: Iterator[Held], first: Link | None) -> None:
        self.archive, self.source = archive, source
        self.following: _Walk | None = None
        self._first = first
        self._queue: deque[_Loaded] = deque()
        self._seals: deque[SealRow] = deque()
        self._checkpoints: deque[CheckpointRow] = deque()
        self._links: list[Link] = []
        self._covered = -1  # size of the last checkpoint queued: one may cover several segments
        self._over = False
        self._strays: list[Finding] = []

    def begin(self) -> bool:
        """Load the first segment; False where there is none."""
        return self._load()

    def judge(
        self, root: TrustRoot, pinned: bool, anchors: tuple[Checkpoint, ...], max_anchor_age: dt.timedelta
    ) -> Verdict:
        base = self._links[0].segment.base
        verdict = verify(
            root,
            self._rows(),
            self._all(self._seals),
            expected_origin=root.origin,
            pinned=pinned,
            payloads=False,
            columns=False,
            base=base,
            anchors=anchors,
            checkpoints=self._all(self._checkpoints),
            max_anchor_age=max_anchor_age,
            earlier=[entry for entry in self.archive.keys if entry.seq < base.seq],
        )
        strays = [*self._strays, *self._ends(verdict)]
        return verdict.extended(strays)

    def _load(self) -> bool:
        """Open the next segment; False at the end of this walk."""
        if self._over:
            return False
        archive = self.archive
        link = self._first
        self._first = None
        while link is None:
            held = next(self.source, None)
            if held is None:
                self._over = True
                return False
            faults = len(archive.chain.findings)
            link = archive.chain.link(held)
            if self._links and any(f.code != "WORM_POLICY_VIOLATION" for f in archive.chain.findings[faults:]):
                # What follows a fault cannot be held to what stands before it.
                self.following, self._over = _Walk(archive, self.source, link), True
                return False
        loaded, seals = self._read(link)
        self._links.append(link)
        self._queue.append(loaded)
        self._seals.extend(seals)
        point = link.checkpoint
        if point.size != self._covered:
            self._checkpoints.append(CheckpointRow(point.size, point.root, link.note))
            self._covered = point.size
        return True

    def _read(self, link: Link) -> tuple[_Loaded, list[SealRow]]:
        """The lines of a segment, whose files were found to be those that its manifest names."""
        segment = link.segment
        reader = Reader(link.held.folder, _limits(segment))
        entries = [line for block in reader.blocks(ENTRIES) for line in block]
        lines = [line for block in reader.blocks(PAYLOADS) for line in block]
        seals = list(reader.seals(segment.base.batch))
        payloads: deque[Sealed | Clear] = deque()
        last = segment.base.seq - 1
        for number, line in enumerate(lines, start=1):
            found = parse_line(line)
            if found is None or not last < found.seq <= segment.head.seq:
                self._stray(link, PAYLOADS, "payloads of its entries, in order", f"line {number}: {line[:120]!r}")
            else:
                last = found.seq
                payloads.append(found)
        for name, count, there in (
            ("entries", len(entries), ENTRIES), ("payloads", len(lines), PAYLOADS), ("seals", len(seals), SEALS),
        ):  # fmt: skip
            if count != segment.counts[name]:
                self._stray(link, there, f"{segment.counts[name]:,} {name}", f"{count:,}")
        self._strays += [replace(finding, file=f"{link.held.name}/{finding.file}") for finding in reader.malformed]
        if self.archive.take is not None:
            self.archive.take(segment, entries, seals, self._readable(link, entries, payloads))
        return _Loaded(link, entries, payloads), seals

    def _readable(
        self, link: Link, entries: list[bytes], payloads: Iterable[Sealed | Clear]
    ) -> list[tuple[int, bytes, bytes]]:
        base, made = link.segment.base.seq, []
        for payload in payloads:
            match = _match(entries[payload.seq - base]) if payload.seq - base < len(entries) else None
            found = None if match is None else self._open(payload, match[_PAYLOAD_AT])
            if found is not None:
                made.append((payload.seq, *found))
        return made

    def _open(self, payload: Sealed | Clear, commitment: str) -> tuple[bytes, bytes] | None:
        if isinstance(payload, Clear):
            return payload.salt, payload.payload
        return None if self.archive.opened is None else self.archive.opened(commitment, payload)

    def _rows(self) -> Iterator[Row]:
        archive = self.archive
        while self._queue or self._load():
            loaded = self._queue.popleft()
            payloads = loaded.payloads
            for seq, entry in enumerate(loaded.entries, start=loaded.link.segment.base.seq):
                payload = payloads.popleft() if payloads and payloads[0].seq == seq else None
                yield bare(seq, entry, *self._compared(loaded.link, seq, entry, payload))
            archive.read += len(loaded.entries)
            archive.progress("verifying", archive.read, 0)

    def _compared(
        self, link: Link, seq: int, entry: bytes, payload: Sealed | Clear | None
    ) -> tuple[bytes | None, bytes | None]:
        """Salt and payload of an entry about keys; of the others, they are compared here, where they can be read."""
        match = _match(entry)
        commitment = None if match is None else match[_PAYLOAD_AT]
        if payload is None:
            self.archive.absent += commitment is not None
            return None, None
        if isinstance(payload, Sealed) and self.archive.opened is None:
            self.archive.sealed += 1
            return None, None
        found = None if commitment is None else self._open(payload, commitment)
        if found is None:
            self.archive.sealed += 1
            return None, None
        if payload_commitment(*found) == commitment:
            self.archive.matched += 1
            if isinstance(payload, Clear) and (about := _about_key(seq, entry, payload)) is not None:
                self.archive.keys.append(about)
        else:
            file = f"{link.held.name}/{PAYLOADS}"
            self._strays.append(
                Finding("PAYLOAD_COMMITMENT_MISMATCH", f"{commitment}", payload_commitment(*found), seq=seq, file=file)
            )
        return found if isinstance(payload, Clear) else (None, None)

    def _all(self, queue: deque[T]) -> Iterator[T]:
        while queue or self._load():
            if queue:
                yield queue.popleft()

    def _ends(self, verdict: Verdict) -> Iterator[Finding]:
        """Each manifest's head, and the checkpoint that lies beyond the end: its proof leads from the root here to its own."""
        final = self._links[-1]
        segment, counts = final.segment, verdict.counts
        if verdict.findings:
            return  # which say why
        if (counts.last, counts.head) != (segment.head.seq, segment.head.hash):
            expected, found = (
                f"the end at entry {segment.head.seq}, {segment.head.hash}",
                f"{counts.last}, {counts.head}",
            )
            yield Finding("PROJECTION_MISMATCH", expected, found, file=f"{final.held.name}/{MANIFEST}")
            return
        point, size = final.checkpoint, segment.head.seq + 1
        own = bytes.fromhex(counts.root or "")
        if not own or point.size <= size:
            return  # compared with the entries
        if not verify_consistency(size, point.size, segment.checkpoint[1], own, point.root):
            expected = f"a tree that continues the root {own.hex()} of {size} entries"
            found = f"one of {point.size} entries, which does not"
            yield Finding(
                "CHECKPOINT_INCONSISTENT", expected, found, seq=size - 1, file=f"{final.held.name}/{CHECKPOINT}"
            )

    def _stray(self, link: Link, name: str, expected: str, found: str) -> None:
        if len(self._strays) < 100:
            file = f"{link.held.name}/{name}"
            self._strays.append(Finding("PROJECTION_MISMATCH", expected, found, file=file))


_PAYLOAD_AT: Final = GROUP["payload"]


def _match(entry: bytes) -> re.Match[str] | None:
    """An entry that has a payload."""
    try:
        match = ENTRY.fullmatch(entry.decode("ascii"))
    except UnicodeDecodeError:
        return None
    return None if match is None or match[_PAYLOAD_AT] is None else match


__all__ = ["LOCKS_NOT_CHECKED", "Held", "key_entries", "local_segments", "verify_archive"]

"""Judge an archive: its segments one after another, from files alone. Rules: ``docs/audit-format.md``, "Archive".

A file is first held to what its signed manifest says of it, byte for byte, and expanded only where that agrees, and never beyond
what the manifest says. A segment of which that fails is named and passed over; what lies between such segments is verified as one log.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

from memory_layer.audit import bundle
from memory_layer.audit.anchors import CheckpointRow
from memory_layer.audit.bundle import Reader
from memory_layer.audit.checkpoint import Checkpoint, check_checkpoint, parse_checkpoint
from memory_layer.audit.entry import ENTRY, GROUP, genesis_prev, payload_commitment
from memory_layer.audit.rows import Row, bare
from memory_layer.audit.seal_chain import Base, SealRow
from memory_layer.audit.segment import (
    CHECKPOINT,
    ENTRIES,
    FILES,
    MANIFEST,
    NAME,
    PAYLOADS,
    SEALS,
    Clear,
    Sealed,
    Segment,
    Stored,
    check_segment_signature,
    digest_of,
    folder_name,
    load_segment,
    parse_line,
)
from memory_layer.audit.tree import verify_consistency
from memory_layer.audit.trust_root import TrustRoot
from memory_layer.audit.verdict import Counts, Finding, Verdict, gravest_first
from memory_layer.audit.verify import MAX_ANCHOR_AGE, PAYLOADS_NOT_CHECKED, verify
from memory_layer.errors import UsageError, ValidationError

LOCKS_NOT_CHECKED: Final = "locks: files say nothing of the object store's locks, versions and delete markers"
END_NOT_CHECKED: Final = "end: entries after {last}, if there are any, are not in the archive"
_BLOCK: Final = 1 << 20

T = TypeVar("T")

Progress = Callable[[int], None]
Open = Callable[[str, Sealed], "tuple[bytes, bytes] | None"]
"""(commitment, sealed) -> (salt, payload), None where a key is not at hand."""


@dataclass(frozen=True, slots=True)
class Held:
    """A segment's folder as it was downloaded. ``problems``: what the object store says against it already."""

    folder: Path
    problems: tuple[Finding, ...] = ()

    @property
    def name(self) -> str:
        return self.folder.name


def local_segments(folder: Path, origin: str) -> list[Held]:
    """The segments in a folder that was downloaded from an archive, by their names, which are in order. Raises UsageError."""
    places = [folder, folder / "segments", folder / origin / "segments", folder / "archive" / origin / "segments"]
    for place in places:
        found = [path for path in place.iterdir() if NAME.fullmatch(path.name)] if place.is_dir() else []
        if found:
            return [Held(path) for path in sorted(found)]
    raise UsageError(
        f"{folder} holds no segments of the log {origin}: name the folder that the archive's `segments` were downloaded to."
    )


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
    progress: Progress | None = None,
    take: Callable[[Segment, list[bytes], list[SealRow], list[tuple[int, bytes, bytes]]], None] | None = None,
) -> Verdict:
    """The verdict on segments that come in the order of their names; one or two of them are open at a time.

    ``first``: the archive is a part of the log from (at the latest) this entry on, and what its first manifest says of the entries
    before is believed. ``last``: it must reach this entry. ``opened`` decrypts payloads; without it they are not compared. ``take`` is
    given what stands in each segment once its files are what its manifest says: entries, seals and the payloads that could be read.
    """
    state = _Archive(root, first, opened, progress, take)
    anchors = tuple(anchors)
    verdicts = []
    source = iter(held)
    walk: _Walk | None = _Walk(state, source, None)
    while walk is not None:
        if walk.begin():
            verdicts.append(walk.judge(root, pinned, anchors, max_anchor_age))
        walk = walk.following
    if not state.seen:
        raise UsageError("There is no segment to judge.")
    return state.conclude(verdicts, pinned, last)


@dataclass(slots=True)
class _Link:
    """A segment that may be read: its files are what its manifest says."""

    held: Held
    segment: Segment
    checkpoint: Checkpoint
    note: bytes


class _Archive:
    """What is known across segments."""

    def __init__(
        self,
        root: TrustRoot,
        first: int | None,
        opened: Open | None,
        progress: Progress | None,
        take: Callable[[Segment, list[bytes], list[SealRow], list[tuple[int, bytes, bytes]]], None] | None,
    ) -> None:
        self.root, self.first, self.opened, self.progress, self.take = root, first, opened, progress, take
        self.findings: list[Finding] = []
        self.expected = 0  # the entry that the next segment begins with
        self.previous: str | None = None  # SHA-256 of the last manifest; None where it is not known
        self.end = -1
        self.seen = 0
        self.read = 0
        self.unreferenced: list[str] = []
        self.sealed = self.matched = self.absent = 0
        self.doubtful = False  # the segment before is not what it should be, so its successor's link shows that too

    def link(self, held: Held) -> _Link | None:
        """Take the next segment; None where it cannot be read as one, which is among the findings then."""
        manifest = held.folder / MANIFEST
        if not manifest.is_file() and not held.problems:
            # A run that was cut off leaves such a folder. Where it is the manifest that was taken away, the next segment shows a gap.
            self.unreferenced.append(held.name)
            return None
        self.seen += 1
        before = len(self.findings)
        self.findings += held.problems
        segment = self._manifest(held)
        if segment is None:
            self.doubtful, self.previous = True, None
            return None
        bad = any(finding.code != "WORM_POLICY_VIOLATION" for finding in self.findings[before:])
        files = [] if bad else [p for name in FILES if (p := _differs(held, segment, name)) is not None]
        self.findings += files
        link = None if files or bad else self._checkpoint(held, segment)
        self.doubtful = link is None
        return link

    def _manifest(self, held: Held) -> Segment | None:
        """The segment by its manifest, which is of our log, signed, and follows on; else None and findings."""
        file = f"{held.name}/{MANIFEST}"
        try:
            data = bundle.Reader(held.folder).whole(MANIFEST)
            if data is None:
                raise ValidationError("there is none")
            segment = load_segment(data)
        except ValidationError as error:
            if not held.problems:
                self.findings.append(Finding("ARCHIVE_MALFORMED", "a manifest in its one form", error.message, file=file))
            self._skip(held)
            return None
        problem = None
        if segment.origin != self.root.origin:
            problem = Finding("ORIGIN_MISMATCH", self.root.origin, segment.origin, file=file)
        problem = problem or check_segment_signature(data, self.root, file)
        named = folder_name(segment.base.seq, segment.head.seq)
        if problem is None and not held.name.startswith(named):
            problem = Finding("ARCHIVE_CHAIN_BROKEN", f"the segment {held.name}", f"the segment {named}", file=file)
        if problem is not None:
            self.findings.append(problem)
            self._skip(held)
            return None
        self._follow(held, segment, data)
        return segment

    def _skip(self, held: Held) -> None:
        """Go on after a segment that cannot be believed, where its name says that it ends."""
        match = NAME.fullmatch(held.name)
        if match is not None:
            self.expected = int(match[2]) + 1

    def _follow(self, held: Held, segment: Segment, data: bytes) -> None:
        """That it goes on where the one before ended, in entries and in manifests."""
        file, base = f"{held.name}/{MANIFEST}", segment.base
        begins = self.seen == 1
        gap = base.seq > self.expected and not (begins and self.first is not None and base.seq <= self.first)
        problem: Finding | None = None
        if gap:
            expected = f"a segment from entry {self.expected} on"
            found = f"none before entry {base.seq}"
            problem = Finding(
                "ARCHIVE_RANGE_GAP", expected, found, seq=self.expected, last_seq=base.seq - 1, file=held.name
            )
        elif base.seq < self.expected:
            problem = Finding("ARCHIVE_CHAIN_BROKEN", f"entry {self.expected}", f"entry {base.seq}", file=file)
        elif not begins and self.previous is not None and segment.previous != self.previous:
            expected, found = f"the manifest before, sha256:{self.previous}", f"sha256:{segment.previous}"
            problem = Finding("ARCHIVE_CHAIN_BROKEN", expected, found, file=file)
        elif begins and base.seq == 0 and (segment.previous, base) != (None, Base(prev=genesis_prev(segment.origin))):
            problem = Finding("ARCHIVE_CHAIN_BROKEN", "the log's beginning", "a segment after another", file=file)
        if problem is not None and self.doubtful and self.findings:
            self.findings[-1] = replace(self.findings[-1], consequences=(*self.findings[-1].consequences, problem))
        elif problem is not None:
            self.findings.append(problem)
        self.expected, self.previous = segment.head.seq + 1, digest_of(data)
        self.end = max(self.end, segment.head.seq)

    def _checkpoint(self, held: Held, segment: Segment) -> _Link | None:
        file = f"{held.name}/{CHECKPOINT}"
        note = (held.folder / CHECKPOINT).read_bytes()
        problem: Finding | None
        try:
            checkpoint = parse_checkpoint(note)
        except ValidationError as error:
            problem = Finding("NONCANONICAL_ENCODING", "a signed checkpoint", error.message, file=file)
        else:
            problem = check_checkpoint(checkpoint, self.root, source=file)
            if problem is None and checkpoint.size == segment.checkpoint[0]:
                return _Link(held, segment, checkpoint, note)
            expected = f"a checkpoint of size {segment.checkpoint[0]}"
            problem = problem or Finding("PROJECTION_MISMATCH", expected, f"of {checkpoint.size}", file=file)
        self.findings.append(problem)
        return None

    def conclude(self, verdicts: list[Verdict], pinned: bool, last: int | None) -> Verdict:
        if last is not None and self.end < last:
            found = f"entries up to {self.end}"
            self.findings.append(Finding("ARCHIVE_TRUNCATED", f"entries up to {last}", found, seq=self.end + 1))
        if self.unreferenced and self.doubtful:
            self.unreferenced.clear()
        not_checked = [LOCKS_NOT_CHECKED, END_NOT_CHECKED.format(last=self.end)]
        if self.sealed:
            not_checked.append(f"payloads: {self.sealed:,} are encrypted, and the keys for them were not at hand")
        if self.absent:
            not_checked.append(f"payloads: {self.absent:,} were gone before their entries were archived")
        not_checked += [f"{name}: a folder without a manifest, which no segment goes on from" for name in self.unreferenced]
        counts = Counts()
        if not verdicts:
            return Verdict(
                self.root.origin, self.root.digest, self.root.version, pinned, False, gravest_first(self.findings), counts, tuple(not_checked)
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
        return whole.extended(others, before=self.findings, checked=checked, unchecked=not_checked)


@dataclass(slots=True)
class _Loaded:
    """A segment in memory: at most a few tens of thousands of entries."""

    link: _Link
    entries: list[bytes]
    payloads: deque[Sealed | Clear]


class _Walk:
    """Segments that follow one another without a fault, as the streams that the verifier reads."""

    def __init__(self, archive: _Archive, source: Iterator[Held], first: _Link | None) -> None:
        self.archive, self.source = archive, source
        self.following: _Walk | None = None
        self._first = first
        self._queue: deque[_Loaded] = deque()
        self._seals: deque[SealRow] = deque()
        self._checkpoints: deque[CheckpointRow] = deque()
        self._links: list[_Link] = []
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
            faults = len(archive.findings)
            link = archive.link(held)
            if self._links and any(f.code != "WORM_POLICY_VIOLATION" for f in archive.findings[faults:]):
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

    def _read(self, link: _Link) -> tuple[_Loaded, list[SealRow]]:
        """The lines of a segment, whose files were found to be those that its manifest tells of."""
        segment, reader = link.segment, Reader(link.held.folder)
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
        self, link: _Link, entries: list[bytes], payloads: Iterable[Sealed | Clear]
    ) -> list[tuple[int, bytes, bytes]]:
        base, made = link.segment.base.seq, []
        for payload in payloads:
            match = _match(entries[payload.seq - base]) if payload.seq - base < len(entries) else None
            found = None if match is None else self._open(payload, match[1])
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
            if archive.progress is not None:
                archive.progress(archive.read)

    def _compared(
        self, link: _Link, seq: int, entry: bytes, payload: Sealed | Clear | None
    ) -> tuple[bytes | None, bytes | None]:
        """Salt and payload of an entry about keys; of the others, they are compared here, where they can be read."""
        match = _match(entry)
        commitment = None if match is None else match[1]
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
            expected, found = f"the end at entry {segment.head.seq}, {segment.head.hash}", f"{counts.last}, {counts.head}"
            yield Finding("PROJECTION_MISMATCH", expected, found, file=f"{final.held.name}/{MANIFEST}")
            return
        point, size = final.checkpoint, segment.head.seq + 1
        own = bytes.fromhex(counts.root or "")
        if not own or point.size <= size:
            return  # compared with the entries
        if not verify_consistency(size, point.size, segment.checkpoint[1], own, point.root):
            expected = f"a tree that continues the root {own.hex()} of {size} entries"
            found = f"one of {point.size} entries, which does not"
            yield Finding("CHECKPOINT_INCONSISTENT", expected, found, seq=size - 1, file=f"{final.held.name}/{CHECKPOINT}")

    def _stray(self, link: _Link, name: str, expected: str, found: str) -> None:
        if len(self._strays) < 100:
            file = f"{link.held.name}/{name}"
            self._strays.append(Finding("PROJECTION_MISMATCH", expected, found, file=file))


_PAYLOAD_AT: Final = GROUP["payload"]


def _match(entry: bytes) -> tuple[bytes, str] | None:
    """The entry, and its commitment to a payload; None where it has none."""
    try:
        match = ENTRY.fullmatch(entry.decode("ascii"))
    except UnicodeDecodeError:
        return None
    return None if match is None or match[_PAYLOAD_AT] is None else (entry, match[_PAYLOAD_AT])


# --- A file against its manifest ---------------------------------------------------------------------------------------


def _differs(held: Held, segment: Segment, name: str) -> Finding | None:
    """What is wrong with the bytes of a file, or None where it is the one that the manifest tells of."""
    told, path, file = segment.files[name], held.folder / name, f"{held.name}/{name}"
    if not path.is_file():
        return Finding("ARCHIVE_TRUNCATED", "the file", "none", file=file)
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as opened:
        while data := opened.read(_BLOCK):
            digest.update(data)
            size += len(data)
    if (size, digest.hexdigest()) == (told.bytes, told.sha256):
        return None
    expected = f"{told.bytes:,} bytes, sha256:{told.sha256}"
    found = f"{size:,} bytes, sha256:{digest.hexdigest()}"
    problem, short = _outer(path, told) if name.endswith(".gz") else ("", size < told.bytes)
    if problem:
        found = f"{found}: {problem}"
    return Finding("ARCHIVE_TRUNCATED" if short else "ARCHIVE_MALFORMED", expected, found, file=file)


def _outer(path: Path, told: Stored) -> tuple[str, bool]:
    """What is wrong with a gzip file's outer form, and whether it is one that was cut short. Expands no more than it should hold."""
    limit, expanded = told.expanded or 0, 0
    inflate = zlib.decompressobj(31)
    try:
        with path.open("rb") as file:
            while data := file.read(1 << 17):
                while data:
                    if inflate.eof:
                        return "a second member" if data.startswith(b"\x1f\x8b") else "bytes after its end", False
                    expanded += len(inflate.decompress(data, _BLOCK))
                    if expanded > limit:
                        return f"it expands beyond the {limit:,} bytes that it should hold", False
                    data = inflate.unused_data or inflate.unconsumed_tail
    except zlib.error as error:
        return str(error), False
    if not inflate.eof:
        return "its end is missing", True
    return ("", False) if expanded == limit else (f"it holds {expanded:,} bytes of {limit:,}", True)


__all__ = ["LOCKS_NOT_CHECKED", "Held", "local_segments", "verify_archive"]

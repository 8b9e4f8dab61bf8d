"""The links of an archive's chain: which segments may be read, and what is wrong with the others.

A file is held to what its signed manifest says of it, byte for byte, before anything in it is read; expanded it is only to say what
became of it, and then no further than the manifest says.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from memory_layer.audit.bundle import Reader
from memory_layer.audit.checkpoint import MAX_NOTE, Checkpoint, check_checkpoint, parse_checkpoint
from memory_layer.audit.entry import genesis_prev
from memory_layer.audit.seal_chain import Base
from memory_layer.audit.segment import (
    CHECKPOINT,
    FILES,
    MANIFEST,
    NAME,
    Segment,
    Stored,
    check_segment_signature,
    digest_of,
    folder_name,
    load_segment,
)
from memory_layer.audit.trust_root import TrustRoot
from memory_layer.audit.verdict import Finding
from memory_layer.errors import UsageError, ValidationError

_BLOCK: Final = 1 << 20


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


@dataclass(slots=True)
class Link:
    """A segment that may be read: its files are what its manifest says."""

    held: Held
    segment: Segment
    checkpoint: Checkpoint
    note: bytes


class Chain:
    """The segments in order. ``first``: the archive is a part of the log, from this entry on."""

    def __init__(self, root: TrustRoot, first: int | None) -> None:
        self.root, self.first = root, first
        self.findings: list[Finding] = []
        self.expected = 0  # the entry that the next segment begins with
        self.previous: str | None = None  # SHA-256 of the last manifest; None where it is not known
        self.end = -1
        self.seen = 0
        self.unreferenced: list[str] = []
        self.doubtful = False  # the segment before is not what it should be, so its successor's link shows that too

    def link(self, held: Held) -> Link | None:
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
            data = Reader(held.folder).whole(MANIFEST)
            if data is None:
                raise ValidationError("there is none")
            segment = load_segment(data)
        except ValidationError as error:
            if not held.problems:
                self.findings.append(
                    Finding("ARCHIVE_MALFORMED", "a manifest in its one form", error.message, file=file)
                )
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

    def _checkpoint(self, held: Held, segment: Segment) -> Link | None:
        file = f"{held.name}/{CHECKPOINT}"
        with (held.folder / CHECKPOINT).open("rb") as opened:
            note = opened.read(MAX_NOTE + 1)
        problem: Finding | None
        try:
            checkpoint = parse_checkpoint(note)
        except ValidationError as error:
            problem = Finding("NONCANONICAL_ENCODING", "a signed checkpoint", error.message, file=file)
        else:
            problem = check_checkpoint(checkpoint, self.root, source=file)
            if problem is None and checkpoint.size == segment.checkpoint[0]:
                return Link(held, segment, checkpoint, note)
            expected = f"a checkpoint of size {segment.checkpoint[0]}"
            problem = problem or Finding("PROJECTION_MISMATCH", expected, f"of {checkpoint.size}", file=file)
        self.findings.append(problem)
        return None


# --- A file against its manifest ---------------------------------------------------------------------------------------


def _differs(held: Held, segment: Segment, name: str) -> Finding | None:
    """What is wrong with the bytes of a file, or None where it is the one that the manifest names."""
    stored, path, file = segment.files[name], held.folder / name, f"{held.name}/{name}"
    if not path.is_file():
        return Finding("ARCHIVE_TRUNCATED", "the file", "none", file=file)
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as opened:
        while data := opened.read(_BLOCK):
            digest.update(data)
            size += len(data)
    if (size, digest.hexdigest()) == (stored.bytes, stored.sha256):
        return None
    expected = f"{stored.bytes:,} bytes, sha256:{stored.sha256}"
    found = f"{size:,} bytes, sha256:{digest.hexdigest()}"
    problem, short = _outer(path, stored) if name.endswith(".gz") else ("", size < stored.bytes)
    if problem:
        found = f"{found}: {problem}"
    return Finding("ARCHIVE_TRUNCATED" if short else "ARCHIVE_MALFORMED", expected, found, file=file)


def _outer(path: Path, stored: Stored) -> tuple[str, bool]:
    """What is wrong with a gzip file's outer form, and whether it is one that was cut short. Expands no more than it should hold."""
    limit, expanded = stored.expanded or 0, 0
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

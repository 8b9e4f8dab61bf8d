"""Judge an evidence bundle: no database, no server, no key service. Uses as many processes as it is given."""

from __future__ import annotations

import datetime as dt
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, NamedTuple

from memory_layer.audit import about, bundle
from memory_layer.audit.bundle import Head, Manifest, Reader
from memory_layer.audit.checkpoint import Checkpoint
from memory_layer.audit.entry import TIME, genesis_prev, leaf_hash
from memory_layer.audit.parts import Part, verify_part, verify_parts
from memory_layer.audit.rows import Row, bare
from memory_layer.audit.seal import parse_seal, seal_hash
from memory_layer.audit.seal_chain import ENDLESS, Base, SealRow
from memory_layer.audit.transfer import EVIDENCE, absurd, differing, limits
from memory_layer.audit.trust_root import TrustRoot
from memory_layer.audit.verdict import Counts, Finding, Verdict, gravest_first
from memory_layer.audit.verify import MAX_ANCHOR_AGE, unpinned, verify
from memory_layer.errors import ValidationError
from memory_layer.progress import Progress, no_progress

UNJUDGED: Final = (
    "the log: entries, seals, payloads, checkpoints and anchors are judged once the files are as they were exported"
)
UNSIGNED: Final = "manifest: it is not signed, so who exported this, and that nothing was left out, is not known"
WORTH_IT: Final = 20_000  # entries and 10 times the seals: from here on other processes help
_ENTRIES_A_PART, _SEALS_A_PART = 8192, 512
_BYTES_A_PART: Final = 128 << 20  # of entries, and of payloads: what holds more is judged as it streams
_SEQ: Final = re.compile(rb',"seq":([0-9]{1,15}),')
_TS: Final = re.compile(rf'"ts":"({TIME})"'.encode())


class Range(NamedTuple):
    """The entries that an auditor asked for, where that is not the whole log; ``last`` None: to its end."""

    first: int
    last: int | None


def verify_bundle(
    folder: Path,
    trust_root: TrustRoot,
    *,
    pinned: bool,
    anchors: Iterable[Checkpoint] = (),
    payloads: bool = True,
    expected: Range | None = None,
    max_anchor_age: dt.timedelta = MAX_ANCHOR_AGE,
    processes: int = 1,
    progress: Progress = no_progress,
) -> Verdict:
    """The verdict on a bundle. Raises UsageError when the folder holds none, OSError when it cannot be read.

    ``pinned``: the trust root is the auditor's own, not the copy in the bundle. ``expected``: with it a bundle is judged as a part
    of a log, whose beginning the manifest states; without it anything but a whole log is a finding. ``processes``: how many may
    work; what is found does not depend on it. ``progress`` counts entries.
    """
    anchors = tuple(anchors)
    reader = Reader(folder)
    data, manifest = reader.manifest()
    damaged = [] if manifest is None else list(differing(folder, manifest))
    if manifest is None or any(finding.file in EVIDENCE for finding in damaged):
        return _unjudged(reader, data, trust_root, pinned, damaged)
    if claims := list(absurd(manifest)):
        return _unjudged(reader, data, trust_root, pinned, [*claims, *damaged])
    reader.limits = limits(manifest)
    base = manifest.base if expected is not None else None
    tenant = None if manifest.payloads == "all" else manifest.tenant or ""
    how: dict[str, Any] = {
        "payloads": payloads,
        "tenant": tenant,
        "base": base,
        "anchors": anchors,
        "now": None,
        "max_anchor_age": max_anchor_age,
    }
    total = manifest.counts["entries"]

    def count(entries: int) -> None:
        progress("verifying", entries, total)

    verdict = None
    if processes > 1 and pinned and (base or Base()).seq == manifest.base.seq:
        work = manifest.counts["entries"] + 10 * manifest.counts["seals"]
        if work >= WORTH_IT:
            verdict = _in_parts(reader, trust_root, processes, count, how)
            if verdict is None:
                reader = reader.again()
    strays: list[Finding] = []
    if verdict is None:
        verdict = verify(
            trust_root,
            _rows(reader, manifest.base, strays, count),
            reader.seals(manifest.base.batch),
            expected_origin=trust_root.origin,
            pinned=pinned,
            columns=False,
            checkpoints=reader.checkpoints(),
            **how,
        )
    strays += damaged
    strays += _against(manifest, reader, verdict, trust_root, expected, {finding.file for finding in damaged})
    strays += _signed(reader, data, trust_root, verdict.counts.last)
    outer = tuple(reader.malformed)
    not_checked = [UNSIGNED] if not (folder / bundle.SIGNATURE).exists() else []
    if base is not None and base.seq:
        not_checked.append(f"entries: those before {base.seq}, which the bundle does not hold")
    if expected is not None and expected.last is not None:
        not_checked.append(f"entries: those after {verdict.counts.last}, if there are any")
    verdict = verdict.extended(strays, before=outer, unchecked=not_checked)
    return about.annotate(verdict, lambda wanted: _entries_at(reader.again(), manifest.base.seq, wanted))


def _entries_at(reader: Reader, first: int, wanted: list[int]) -> dict[int, bytes]:
    """The entries with these places, by them."""
    left, found = set(wanted), dict[int, bytes]()
    for seq, entry in _placed(_flat(reader.blocks(bundle.ENTRIES)), first):
        if seq in left:
            left.discard(seq)
            found[seq] = entry
        if not left or seq > wanted[-1]:
            break
    return found


def _unjudged(reader: Reader, data: bytes, root: TrustRoot, pinned: bool, findings: list[Finding]) -> Verdict:
    """The verdict on a bundle whose lines are not looked at: its files are not those that its manifest names, or it has none."""
    _, manifest = reader.again().manifest()
    last = None if manifest is None or manifest.head is None else manifest.head.seq
    signed = [] if manifest is None else list(_signed(reader, data, root, last))
    found = [*reader.malformed, *signed, *findings]
    if manifest is not None and manifest.origin != root.origin:
        found.insert(0, Finding("ORIGIN_MISMATCH", root.origin, manifest.origin, file=bundle.MANIFEST))
    if not pinned:
        found.append(unpinned(root))
    not_checked = [UNJUDGED]
    if not (reader.folder / bundle.SIGNATURE).exists():
        not_checked.append(UNSIGNED)
    return Verdict(
        root.origin, root.digest, root.version, pinned, False, gravest_first(found), Counts(), tuple(not_checked)
    )


def _rows(reader: Reader, base: Base, strays: list[Finding], report: Callable[[int], None]) -> Iterator[Row]:
    """The entries with their payloads. A payload without an entry, or out of order, is a stray."""
    payloads = _Payloads(reader, strays)
    placed = _placed(_flat(reader.blocks(bundle.ENTRIES)), base.seq)
    for count, (seq, entry) in enumerate(placed, start=1):
        if count % 4096 == 0:
            report(count)
        if payloads.next > seq:
            yield bare(seq, entry)
        else:
            yield bare(seq, entry, *payloads.take(seq))
    payloads.finish()


def _flat(blocks: Iterable[list[bytes]]) -> Iterator[bytes]:
    for block in blocks:
        yield from block


def _placed(lines: Iterator[bytes], expected: int) -> Iterator[tuple[int, bytes]]:
    """Each entry with its place in the log.

    That is its place in the file, unless it says another and the line after does not go on as if nothing were missing.
    """
    line = next(lines, None)
    while line is not None:
        if line.find(b',"seq":%d,' % expected) > 0:  # no value holds a quote, so no member can feign this
            yield expected, line
            expected += 1
            line = next(lines, None)
            continue
        following = next(lines, None)
        seq, place = _seq_of(line), expected
        if seq is not None and seq != expected:
            then = _seq_of(following) if following is not None else None
            swapped = then == expected + 1 or (then == expected and seq == expected + 1)
            place = expected if swapped else seq
        yield place, line
        expected = max(expected, place + 1)
        line = following


def _seq_of(line: bytes) -> int | None:
    match = _SEQ.search(line)
    return int(match[1]) if match is not None else None


class _Payloads:
    """The payloads by seq, alongside the entries."""

    def __init__(self, reader: Reader, strays: list[Finding]) -> None:
        self._lines = reader.payloads()
        self._strays = strays
        self.next = -1  # seq of the next one, ENDLESS after the last
        self._advance()

    def take(self, seq: int) -> tuple[bytes | None, bytes | None]:
        while (ahead := self._ahead) is not None and ahead[0] <= seq:
            self._advance()
            if ahead[0] == seq:
                return ahead[1], ahead[2]
            self._stray(ahead[0])
        return None, None

    def finish(self) -> None:
        while self._ahead is not None:
            self._stray(self._ahead[0])
            self._advance()

    def _advance(self) -> None:
        self._ahead = next(self._lines, None)
        self.next = ENDLESS if self._ahead is None else self._ahead[0]

    def _stray(self, seq: int) -> None:
        if len(self._strays) < 100:
            found = f"a payload for {seq} that has no entry, or out of order"
            self._strays.append(
                Finding("PROJECTION_MISMATCH", "payloads of entries, in order", found, seq=seq, file=bundle.PAYLOADS)
            )


# --- In parts ----------------------------------------------------------------------------------------------------------


class _Irregular(Exception):
    """The lines do not fall into batches as the seals say."""


class _Job(NamedTuple):
    """Whole batches: the base that was computed, and the lines."""

    base: Base
    seals: list[bytes]
    entries: list[bytes]
    payloads: list[bytes]
    stops: list[int]
    checked: bool
    tenant: str | None


def _in_parts(
    reader: Reader, root: TrustRoot, processes: int, report: Callable[[int], None], how: dict[str, Any]
) -> Verdict | None:
    """The verdict when nothing is wrong but for what anchors say, else None."""
    stops = [row.size for row in reader.checkpoints()]
    stops = sorted({*stops, *(anchor.size for anchor in how["anchors"])})
    jobs = _jobs(reader, stops, how)
    again = reader.again()
    with ProcessPoolExecutor(
        processes, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(root,)
    ) as pool:
        try:
            parts = _results(pool, jobs, 2 * processes + 1, report)
            verdict = verify_parts(root, parts, checkpoints=again.checkpoints(), **how)
        except (_Irregular, BrokenProcessPool):
            verdict = None
        finally:
            pool.shutdown(cancel_futures=True)
    return None if reader.malformed or again.malformed else verdict


def _results(
    pool: ProcessPoolExecutor, jobs: Iterator[_Job], ahead: int, report: Callable[[int], None]
) -> Iterator[Part | None]:
    """What became of the jobs, in their order; no more than ``ahead`` of them are held."""
    running: deque[Future[Part | None]] = deque()
    count = 0
    for job in jobs:
        running.append(pool.submit(_work, job))
        if len(running) >= ahead:
            part = running.popleft().result()
            count += part.counts.entries if part is not None else 0
            report(count)
            yield part
    while running:
        yield running.popleft().result()


def _jobs(reader: Reader, stops: list[int], how: dict[str, Any]) -> Iterator[_Job]:
    """Cut the bundle where batches end."""
    base: Base = how["base"] or Base()
    entries, seals = _Taker(reader.blocks(bundle.ENTRIES)), _flat(reader.blocks(bundle.SEALS))
    payloads = _flat(reader.blocks(bundle.PAYLOADS))
    payload, seal, place = next(payloads, None), next(seals, None), 0
    while seal is not None:
        sealed: list[bytes] = []
        last, text = base.seq - 1, b""
        while seal is not None and len(sealed) < _SEALS_A_PART and last - base.seq + 1 < _ENTRIES_A_PART:
            row = bundle.parse_seal_line(seal, base.batch + len(sealed))
            last, text = _end(row, base.batch + len(sealed), last + 1)
            sealed.append(seal)
            seal = next(seals, None)
        lines = entries.take(last - base.seq + 1)
        of, held = [], 0
        while payload is not None and _payload_seq(payload) <= last:
            of.append(payload)
            held += len(payload)
            if held > _BYTES_A_PART:
                raise _Irregular
            payload = next(payloads, None)
        begun = place
        while place < len(stops) and stops[place] <= last + 1:
            place += 1
        yield _Job(base, sealed, lines, of, stops[begun:place], how["payloads"], how["tenant"])
        ts = _TS.search(lines[-1])
        if ts is None:
            raise _Irregular
        reader.last_seal = SealRow(base.batch + len(sealed) - 1, text, None)
        base = Base(last + 1, base.batch + len(sealed), leaf_hash(lines[-1]), seal_hash(text), ts[1].decode())
    if payload is not None or not entries.empty():
        raise _Irregular


def _end(row: SealRow | None, batch: int, first: int) -> tuple[int, bytes]:
    """The last entry of a batch and its seal's text, when it is batch ``batch`` from ``first`` on."""
    if row is None:
        raise _Irregular
    try:
        seal = parse_seal(row.text)
    except ValidationError:
        raise _Irregular from None
    if (seal.batch, seal.first) != (batch, first) or seal.last - seal.first > 100_000:
        raise _Irregular
    return seal.last, row.text


def _payload_seq(line: bytes) -> int:
    _, _, seq = line.rpartition(b',"seq":')
    if not seq.endswith(b"}") or not seq[:-1].isdigit():
        raise _Irregular
    return int(seq[:-1])


class _Taker:
    """So many lines at a time."""

    def __init__(self, blocks: Iterator[list[bytes]]) -> None:
        self._blocks = blocks
        self._held: list[bytes] = []

    def take(self, count: int) -> list[bytes]:
        size = 0
        while len(self._held) < count:
            block = next(self._blocks, None)
            if block is None:
                raise _Irregular
            self._held += block
            size += sum(map(len, block))
            if size > _BYTES_A_PART:
                raise _Irregular
        taken, self._held = self._held[:count], self._held[count:]
        return taken

    def empty(self) -> bool:
        return not self._held and not any(self._blocks)


_ROOTS: Final[list[TrustRoot]] = []  # of this process, which checks parts


def _start_worker(root: TrustRoot) -> None:
    _ROOTS[:] = [root]


def _work(job: _Job) -> Part | None:
    """Check one job, in a process of its own."""
    payloads: dict[int, tuple[bytes, bytes]] = {}
    last = -1
    for line in job.payloads:
        found = bundle.parse_payload_line(line)
        if found is None or found[0] <= last:
            return None
        last = found[0]
        payloads[last] = found[1], found[2]
    first = job.base.seq
    if payloads and (min(payloads) < first or last >= first + len(job.entries)):
        return None
    seals = [bundle.parse_seal_line(line, job.base.batch + n) for n, line in enumerate(job.seals)]
    none = (None, None)
    rows = (bare(seq, entry, *payloads.get(seq, none)) for seq, entry in enumerate(job.entries, start=first))
    return verify_part(
        _ROOTS[0],
        rows,
        [seal for seal in seals if seal is not None],
        base=job.base,
        stops=job.stops,
        payloads=job.checked,
        tenant=job.tenant,
    )


# --- The manifest ------------------------------------------------------------------------------------------------------


def _against(
    manifest: Manifest,
    reader: Reader,
    verdict: Verdict,
    root: TrustRoot,
    expected: Range | None,
    damaged: set[str | None],
) -> Iterator[Finding]:
    """Where the manifest differs from what it describes, or from what the auditor asked for."""
    if manifest.origin != root.origin:
        yield Finding("ORIGIN_MISMATCH", root.origin, manifest.origin, file=bundle.MANIFEST)
    counts = verdict.counts
    for name in (bundle.TRUST_ROOT, bundle.FORMAT_PAGE, bundle.README):
        reader.whole(name)
    for name, file in manifest.files.items():
        seen = reader.seen.get(name)
        if seen != file and name not in damaged:
            is_ = "none" if seen is None else f"{seen.bytes:,} bytes, sha256:{seen.sha256}"
            yield _differs(f"{name} of {file.bytes:,} bytes, sha256:{file.sha256}", is_)
    files = {"entries": bundle.ENTRIES, "payloads": bundle.PAYLOADS, "seals": bundle.SEALS}
    for what, name in (files | {"checkpoints": bundle.CHECKPOINTS}).items():
        lines = reader.lines.get(name, 0)
        if manifest.counts[what] != lines:
            yield _differs(f"{manifest.counts[what]:,} {what}", f"{lines:,}")
    head = _head(verdict, reader)
    if manifest.head != head:
        yield _differs(f"the end at {_describe_head(manifest.head)}", _describe_head(head))
    begin = Base(prev=genesis_prev(root.origin))
    if manifest.base.seq == 0 and manifest.origin == root.origin and manifest.base != begin:
        yield _differs("the base of a whole log", "another")
    if expected is not None:
        if manifest.base.seq > expected.first:
            missing = f"entry {expected.first}"
            yield Finding("GENESIS_MISSING", missing, f"entry {manifest.base.seq}", seq=expected.first)
        if expected.last is not None and (counts.last is None or counts.last < expected.last):
            yield Finding("SEAL_RANGE_INCOMPLETE", f"entries up to {expected.last}", f"up to {counts.last}")


def _head(verdict: Verdict, reader: Reader) -> Head | None:
    counts, seal = verdict.counts, reader.last_seal
    if counts.last is None or counts.head is None or seal is None:
        return None
    return Head(counts.last, counts.head, seal.batch, seal_hash(seal.text))


def _describe_head(head: Head | None) -> str:
    return "no entry" if head is None else f"entry {head.seq}, {head.hash}, batch {head.batch}, seal {head.seal}"


def _signed(reader: Reader, data: bytes, root: TrustRoot, last: int | None) -> Iterator[Finding]:
    signature = reader.whole(bundle.SIGNATURE, 65_536)
    if signature is not None:
        problem = bundle.check_manifest_signature(data, last or 0, signature, root)
        if problem is None:
            return
        plain = signature.replace(b"\r\n", b"\n")
        converted = bundle.check_manifest_signature(data, last or 0, plain, root) is None
        if converted or not signature.endswith(b"\n"):
            how = "its line ends were converted to CRLF" if converted else "it was cut short"
            problem = Finding("FILE_NOT_AS_EXPORTED", "six lines", how, file=bundle.SIGNATURE)
        yield problem


def _differs(expected: str, found: str) -> Finding:
    return Finding("PROJECTION_MISMATCH", f"{expected}, as the manifest says", found, file=bundle.MANIFEST)

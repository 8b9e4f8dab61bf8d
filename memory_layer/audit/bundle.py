"""An evidence bundle: a folder with a range of the log, and all that is needed to judge it without a server.

Format: ``docs/audit-format.md``, "Evidence bundle". Streams both ways: one block of lines is held at a time.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

from memory_layer import canonical, private
from memory_layer.audit.anchors import CheckpointRow
from memory_layer.audit.entry import INTEGER, parse_entry
from memory_layer.audit.manifest import (
    CHECKPOINTS,
    ENTRIES,
    FILES,
    FORMAT_PAGE,
    MANIFEST,
    MAX_MANIFEST,
    PAYLOADS,
    README,
    SEALS,
    SIGNATURE,
    SIGNED,
    TRUST_ROOT,
    File,
    Head,
    Manifest,
    check_manifest_signature,
    dump_manifest,
    load_manifest,
    wrong,
)
from memory_layer.audit.seal import decode_signature
from memory_layer.audit.seal_chain import SealRow
from memory_layer.audit.signed import signature_file, signed_text
from memory_layer.audit.transfer import Limit
from memory_layer.audit.verdict import Finding
from memory_layer.errors import MalformedJson, MemoryLayerError, UsageError, ValidationError

__all__ = [
    "CHECKPOINTS", "ENTRIES", "FILES", "FORMAT_PAGE", "MANIFEST", "PAYLOADS", "README", "SEALS", "SIGNATURE", "TRUST_ROOT", "File",
    "Head", "LineWriter", "Manifest", "Reader", "check_manifest_signature", "checkpoint_line", "parse_payload_line",
    "parse_seal_line", "payload_line", "seal_line", "time_of", "write_file", "write_manifest",
]  # fmt: skip

GZIP_HEADER: Final = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # deflate, no name, no time, no operating system
MAX_LINE: Final = {ENTRIES: 65_535, PAYLOADS: 16 * 2**20, SEALS: 65_535, CHECKPOINTS: 262_144}  # bytes
_BLOCK: Final = 1 << 20  # bytes of text expanded at a time

_PAYLOAD: Final = re.compile(
    rb'\{"payload":"([A-Za-z0-9+/]*={0,2})","salt":"([A-Za-z0-9+/]{43}=)","seq":(' + INTEGER.encode() + rb")\}"
)
_BATCH: Final = re.compile(rf"^batch ({INTEGER})$", re.MULTILINE)
# --- Lines -------------------------------------------------------------------------------------------------------------


def payload_line(seq: int, salt: bytes, payload: bytes) -> bytes:
    b64 = base64.b64encode
    return b'{"payload":"%b","salt":"%b","seq":%d}' % (b64(payload), b64(salt), seq)


def parse_payload_line(line: bytes) -> tuple[int, bytes, bytes] | None:
    """(seq, salt, payload), or None where the line is not in its one form."""
    match = _PAYLOAD.fullmatch(line)
    if match is None:
        return None
    payload, salt = base64.b64decode(match[1]), base64.b64decode(match[2])
    return (int(match[3]), salt, payload) if payload_line(int(match[3]), salt, payload) == line else None


def seal_line(row: SealRow) -> bytes:
    return canonical.dumps({"signature": row.signature, "text": row.text.decode()})


def parse_seal_line(line: bytes, expected: int) -> SealRow | None:
    """The seal, its batch as its text says (``expected`` where that says none), or None."""
    document = _line(line, {"signature", "text"})
    if document is None or not all(isinstance(value, str) for value in document.values()):
        return None
    batch = _BATCH.search(document["text"])
    return SealRow(int(batch[1]) if batch else expected, document["text"].encode(), document["signature"])


def checkpoint_line(row: CheckpointRow) -> bytes:
    note = None if row.note is None else row.note.decode()
    return canonical.dumps({"note": note, "root": base64.b64encode(row.root).decode("ascii"), "size": row.size})


def parse_checkpoint_line(line: bytes) -> CheckpointRow | None:
    document = _line(line, {"note", "root", "size"})
    if document is None or type(document["size"]) is not int or not 0 <= document["size"] < 10**15:
        return None
    root = decode_signature(document["root"]) if isinstance(document["root"], str) else None
    note = document["note"]
    if root is None or len(root) != 32 or not (note is None or isinstance(note, str)):
        return None
    return CheckpointRow(document["size"], root, None if note is None else note.encode())


def time_of(entry: bytes) -> str:
    """``ts`` of an entry. Raises ValidationError when these bytes are none."""
    return parse_entry(entry).ts


def _is_json(data: bytes) -> bool:
    try:
        canonical.loads(data)
    except MalformedJson:
        return False
    except MemoryLayerError:
        pass
    return True


def _line(line: bytes, names: set[str]) -> dict[str, Any] | None:
    try:
        document = canonical.loads(line)
        if isinstance(document, dict) and set(document) == names and canonical.dumps(document) == line:
            return document
    except MemoryLayerError:
        pass
    return None


# --- Reading -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Reader:
    """The files of a bundle, each read once. ``malformed`` collects what is wrong with their outer form."""

    folder: Path
    limits: Mapping[str, Limit] = field(default_factory=dict)  # of each file that is bounded
    malformed: list[Finding] = field(default_factory=list)
    seen: dict[str, File] = field(default_factory=dict)  # of each file read to its end
    lines: dict[str, int] = field(default_factory=dict)
    last_seal: SealRow | None = None

    def manifest(self) -> tuple[bytes, Manifest | None]:
        """The manifest's bytes, and what they say; None where they cannot be read. Raises UsageError when this is no bundle."""
        if not (self.folder / ENTRIES).is_file() and not (self.folder / MANIFEST).is_file():
            raise UsageError(f"{self.folder} is no evidence bundle: it holds neither {MANIFEST} nor {ENTRIES}.")
        data = b""
        try:
            with self._open(MANIFEST) as file:
                data = file.read(MAX_MANIFEST + 1)
            if len(data) > MAX_MANIFEST:
                raise wrong(f"has more than {MAX_MANIFEST:,} bytes")
            return data, load_manifest(data)
        except FileNotFoundError:
            self.malformed.append(Finding("FILE_NOT_AS_EXPORTED", "a manifest", "no file", file=MANIFEST))
        except ValidationError as error:
            # What is no JSON was cut short or damaged; what is JSON of another form was written so.
            code = "ARCHIVE_MALFORMED" if _is_json(data) else "FILE_NOT_AS_EXPORTED"
            self.malformed.append(Finding(code, "a manifest in its one form", error.message, file=MANIFEST))
        return b"", None

    def _open(self, name: str) -> BinaryIO:
        """A file of the bundle; a pipe or a device in its place, on which a reader could wait for ever, is no file."""
        path = self.folder / name
        if not path.is_file():
            raise FileNotFoundError(path)
        return path.open("rb")

    def whole(self, name: str, limit: int = 1 << 22) -> bytes | None:
        """A small file; None where it is not there."""
        try:
            with self._open(name) as file:
                data = file.read(limit + 1)
        except FileNotFoundError:
            return None
        if len(data) > limit:
            self._malformed(name, f"at most {limit:,} bytes", "more")
        self.seen[name] = File(len(data), hashlib.sha256(data).hexdigest())
        return data

    def blocks(self, name: str) -> Iterator[list[bytes]]:
        """The lines of a file, without their ends, some at a time; no more of them, and of what it expands to, than it may hold."""
        digest, size, count, expanded = hashlib.sha256(), 0, 0, 0
        most = self.limits.get(name, Limit())
        tail, limit, problem = b"", MAX_LINE[name], ""
        inflate = zlib.decompressobj(31) if name.endswith(".gz") else None
        try:
            file = self._open(name)
        except FileNotFoundError:
            self._malformed(name, "the file", "none")
            return
        with file:
            while data := file.read(1 << 17):
                if inflate is not None and size == 0 and not data.startswith(GZIP_HEADER):
                    problem = "a header of another form"
                digest.update(data)
                size += len(data)
                while data and not problem:
                    text = data
                    if inflate is None:
                        data = b""
                    elif inflate.eof:
                        problem = "bytes after its end"
                        break
                    else:
                        try:
                            text = inflate.decompress(data, _BLOCK)  # no more than this at a time
                        except zlib.error as error:
                            problem = str(error)
                            break
                        data = inflate.unused_data or inflate.unconsumed_tail
                    expanded += len(text)
                    if most.expanded is not None and expanded > most.expanded:
                        problem = f"it expands beyond the {most.expanded:,} bytes that the manifest says"
                        break
                    if most.lines is not None and count + text.count(b"\n") > most.lines:
                        problem = f"more than the {most.lines:,} lines that the manifest says"
                        break
                    lines = (tail + text).split(b"\n")
                    tail = lines.pop()
                    count += len(lines)
                    if len(tail) > limit or any(len(line) > limit for line in lines):
                        problem = f"a line of more than {limit:,} bytes"
                        break
                    yield lines
        if inflate is not None and not inflate.eof and not problem:
            problem = "an end that is missing"
        if inflate is not None and most.expanded is not None and expanded < most.expanded and not problem:
            problem = f"it holds {expanded:,} bytes of the {most.expanded:,} that the manifest says"
        if tail and not problem:
            problem = "a last line without its end"
        if problem:
            self._malformed(name, "lines of text" if inflate is None else "one gzip member over lines of text", problem)
        self.seen[name] = File(size, digest.hexdigest(), expanded if inflate is not None else None)
        self.lines[name] = count

    def payloads(self) -> Iterator[tuple[int, bytes, bytes]]:
        for number, line in self._numbered(PAYLOADS):
            found = parse_payload_line(line)
            if found is None:
                self._malformed(PAYLOADS, "a payload in its one form", f"line {number}: {line[:120]!r}")
            else:
                yield found

    def seals(self, first: int) -> Iterator[SealRow]:
        """From batch ``first`` on."""
        expected = first
        for number, line in self._numbered(SEALS):
            found = parse_seal_line(line, expected)
            if found is None:
                self._malformed(SEALS, "a seal in its one form", f"line {number}: {line[:120]!r}")
            else:
                expected = found.batch + 1
                self.last_seal = found
                yield found

    def checkpoints(self) -> Iterator[CheckpointRow]:
        last = -1
        for number, line in self._numbered(CHECKPOINTS):
            found = parse_checkpoint_line(line)
            if found is None:
                self._malformed(CHECKPOINTS, "a checkpoint in its one form", f"line {number}: {line[:120]!r}")
                continue
            if found.size <= last:
                self._malformed(
                    CHECKPOINTS, f"a checkpoint of more than {last} entries", f"line {number}: of {found.size}"
                )
            last = max(last, found.size)
            yield found

    def again(self) -> Reader:
        """One that has read nothing yet."""
        return Reader(self.folder, self.limits)

    def _numbered(self, name: str) -> Iterator[tuple[int, bytes]]:
        number = 0
        for block in self.blocks(name):
            for line in block:
                number += 1
                yield number, line

    def _malformed(self, name: str, expected: str, found: str) -> None:
        if len(self.malformed) < 100:
            self.malformed.append(Finding("ARCHIVE_MALFORMED", expected, found, file=name))


# --- Writing -----------------------------------------------------------------------------------------------------------


class LineWriter:
    """A file of lines, gzip where its name ends so: one member, the same bytes for the same lines."""

    def __init__(self, folder: Path, name: str) -> None:
        self._file = private.create(folder / name)
        self._zip = zlib.compressobj(6, zlib.DEFLATED, -15) if name.endswith(".gz") else None
        self._sha256, self._bytes = hashlib.sha256(), 0
        self._crc, self._expanded = 0, 0
        self.lines = 0
        self._held: list[bytes] = []
        self._held_bytes = 0
        if self._zip is not None:
            self._put(GZIP_HEADER)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._file.close()

    def write(self, line: bytes) -> None:
        self.lines += 1
        self._held.append(line)
        self._held_bytes += len(line)
        if self._held_bytes > _BLOCK:
            self._flush()

    def finish(self) -> File:
        """Write the end; what the manifest says of the file."""
        self._flush()
        if self._zip is None:
            return File(self._bytes, self._sha256.hexdigest())
        self._put(self._zip.flush())
        self._put(self._crc.to_bytes(4, "little") + (self._expanded & 0xFFFFFFFF).to_bytes(4, "little"))
        return File(self._bytes, self._sha256.hexdigest(), self._expanded)

    def _flush(self) -> None:
        text = b"".join([line + b"\n" for line in self._held])
        self._held.clear()
        self._held_bytes = 0
        if self._zip is not None:
            self._crc = zlib.crc32(text, self._crc)
            self._expanded += len(text)
            text = self._zip.compress(text)
        self._put(text)

    def _put(self, data: bytes) -> None:
        self._sha256.update(data)
        self._bytes += len(data)
        self._file.write(data)


def write_file(folder: Path, name: str, data: bytes) -> File:
    with private.create(folder / name) as file:
        file.write(data)
    return File(len(data), hashlib.sha256(data).hexdigest())


def write_manifest(
    folder: Path,
    manifest: Manifest,
    *,
    key: str | None = None,
    alg: str = "ed25519",
    sign: Callable[[bytes], bytes] | None = None,
) -> str:
    """Write ``manifest.json``, with ``sign`` also ``manifest.sig`` by key id ``key``. Returns the manifest's SHA-256."""
    data = dump_manifest(manifest)
    write_file(folder, MANIFEST, data)
    if key is not None and sign is not None:
        text = signed_text(SIGNED, data, manifest.origin, key, alg)
        write_file(folder, SIGNATURE, signature_file(text, sign(text)))
    return hashlib.sha256(data).hexdigest()

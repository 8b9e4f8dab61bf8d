"""Whether the files of a bundle are those that its manifest names, before anything in them is expanded or parsed.

A copy that was cut short, compressed anew or converted is no evidence of tampering, and judging it line by line would call it so. And
what a manifest claims is believed only as far as the bytes on disk can bear it out: each entry holds a SHA-256 of its own and each
payload a salt of 32 random bytes, which no compression makes smaller, and deflate expands a byte to 1,032 at the most.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from memory_layer.audit.manifest import (
    CHECKPOINTS,
    ENTRIES,
    MANIFEST,
    PAYLOADS,
    SEALS,
    File,
    Manifest,
)
from memory_layer.audit.verdict import Finding

EVIDENCE: Final = (ENTRIES, PAYLOADS, SEALS, CHECKPOINTS)
DEFLATE: Final = 1_032  # bytes that one byte of deflate gives at the most
RANDOM: Final = 16  # bytes of gzip that a line with 32 random bytes takes at the least, by half
SPARE: Final = 4_096  # bytes, and lines, that a small file is not held to
LEAST: Final = {ENTRIES: 256, PAYLOADS: 64, SEALS: 256, CHECKPOINTS: 48}  # bytes of a line
_LINES: Final = {ENTRIES: "entries", PAYLOADS: "payloads", SEALS: "seals", CHECKPOINTS: "checkpoints"}
_BLOCK: Final = 1 << 20


class Limit(NamedTuple):
    """What a file may hold: lines, and bytes once expanded. None: as much as is there."""

    lines: int | None = None
    expanded: int | None = None


def differing(folder: Path, manifest: Manifest) -> Iterator[Finding]:
    """The files that are not as they were exported. Reads each to its end, if it has the length that it should have."""
    for name, claimed in manifest.files.items():
        found = _file(folder / name, claimed)
        if found is not None:
            expected = f"{claimed.bytes:,} bytes, sha256:{claimed.sha256}, as the manifest says"
            yield Finding("FILE_NOT_AS_EXPORTED", expected, found, file=name)


def _file(path: Path, claimed: File) -> str | None:
    """What is there in place of a file, or None where it is the one."""
    try:
        about = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return "no file"
    if not stat.S_ISREG(about.st_mode):  # a pipe or a device, on which a reader could wait for ever
        return "something that is no file"
    if about.st_size != claimed.bytes:
        return f"{about.st_size:,} bytes{_converted(path, about.st_size, claimed)}"
    digest, left = hashlib.sha256(), claimed.bytes
    with path.open("rb") as file:
        while left and (data := file.read(min(_BLOCK, left))):
            digest.update(data)
            left -= len(data)
    found = digest.hexdigest()
    if found == claimed.sha256 and not left:
        return None
    return f"{claimed.bytes - left:,} bytes, sha256:{found}"


def _converted(path: Path, size: int, claimed: File) -> str:
    """That the ends of lines were converted is worth a word: the next copy can be made otherwise."""
    if not claimed.bytes < size <= min(2 * claimed.bytes, 64 * _BLOCK):
        return ""
    plain = path.read_bytes().replace(b"\r\n", b"\n")
    same = len(plain) == claimed.bytes and hashlib.sha256(plain).hexdigest() == claimed.sha256
    return ": its line ends were converted to CRLF (copy it as binary)" if same else ""


def absurd(manifest: Manifest) -> Iterator[Finding]:
    """Claims of a manifest that its files, which have the lengths that it names, cannot bear out."""
    for name in EVIDENCE:
        file, lines = manifest.files[name], manifest.counts[_LINES[name]]
        holds = file.bytes if file.expanded is None else file.expanded
        if holds > DEFLATE * file.bytes + SPARE:
            yield _claim(
                name, f"at most {DEFLATE * file.bytes + SPARE:,} bytes in {file.bytes:,} of gzip", f"{holds:,}"
            )
        elif lines > holds // LEAST[name]:
            yield _claim(name, f"at most {holds // LEAST[name]:,} {_LINES[name]} in {holds:,} bytes", f"{lines:,}")
        elif file.expanded is not None and lines > file.bytes // RANDOM + SPARE:
            yield _claim(
                name, f"at most {file.bytes // RANDOM + SPARE:,} {_LINES[name]} in {file.bytes:,} of gzip", f"{lines:,}"
            )


def _claim(name: str, expected: str, found: str) -> Finding:
    return Finding("ARCHIVE_MALFORMED", f"{name}: {expected}", f"{found}, as the manifest claims", file=MANIFEST)


def limits(manifest: Manifest) -> dict[str, Limit]:
    """What a reader may take out of each file."""
    return {name: Limit(manifest.counts[_LINES[name]], manifest.files[name].expanded) for name in EVIDENCE}

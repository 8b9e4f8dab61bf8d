"""A directory store's objects in the order of their keys, page by page, with one folder in memory at a time."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

_SHA256 = re.compile(r"[0-9a-f]{64}")
_DIGITS = re.compile(r"[0-9a-f]{2}")


class Found(NamedTuple):
    """A key and the path of its file below the root."""

    key: str
    path: Path


def found_after(root: Path, prefix: str, after: str) -> Iterator[Found]:
    """Objects whose key begins with ``prefix`` and is greater than ``after``, by key. Raises OSError."""
    return _below(root, Path(), "", prefix, after)


def _below(root: Path, folder: Path, above: str, prefix: str, after: str) -> Iterator[Found]:
    """``above``: what the keys below this folder begin with, "" or ending in /."""
    # A folder "ab" holds keys "ab/...", and where it is one of hashes, keys "ab0..." beside it: both lie within the names that begin
    # with the same two characters, so that sorting a group of those is enough.
    names = sorted(_entries(root / folder), key=lambda entry: (_name(entry)[:2], entry.name))
    for start, group in groupby(names, key=lambda entry: _name(entry)[:2]):
        if not _may_hold(above + start, prefix, after):
            continue
        yield from _sorted_group(root, folder, above, list(group), prefix, after)


def _sorted_group(
    root: Path, folder: Path, above: str, group: list[os.DirEntry[str]], prefix: str, after: str
) -> Iterator[Found]:
    units: list[tuple[str, Path, bool]] = []
    for entry in group:
        path = folder / entry.name
        if entry.is_dir(follow_symlinks=False):
            units.append((f"{above}{entry.name}/", path, True))
            if _DIGITS.fullmatch(entry.name):
                hashes = (e.name for e in _entries(root / path) if _SHA256.fullmatch(e.name))
                units += [(above + name, path / name, False) for name in hashes]
        elif not _SHA256.fullmatch(entry.name):  # else a hash, which its folder's folder lists
            units.append((above + entry.name, path, False))
    for key, path, is_folder in sorted(units):
        if is_folder:
            if _may_hold(key, prefix, after):
                yield from _below(root, path, key, prefix, after)
        elif key.startswith(prefix) and key > after:
            yield Found(key, path)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        return [entry for entry in found if not entry.name.startswith(".")]


def _name(entry: os.DirEntry[str]) -> str:
    return f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name


def _may_hold(start: str, prefix: str, after: str) -> bool:
    """Whether a key that begins with ``start`` may begin with ``prefix`` and be greater than ``after``."""
    if not (start.startswith(prefix) or prefix.startswith(start)):
        return False
    return start > after or after.startswith(start)

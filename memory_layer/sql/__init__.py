"""SQL as files: named queries and migrations.

``queries/*.sql`` hold blocks that start with ``-- name: some_name``; a query is asked for by file and name, so that it can be
reviewed, searched and prepared as SQL. What several queries of a file have in common is a block that starts with ``-- part: some_name``;
a line ``-- include: some_name`` stands for it in them, and in later parts. Lists of a record's columns are made from the record
(``columns.py``). Migrations are whole files that also run with ``psql -f``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import LiteralString

from memory_layer.sql.columns import expand

_FOLDED = re.compile(r"\('([0-9]{3}_[a-z_]+)', '([0-9a-f]{64})'\)")
_BLOCK = re.compile(r"^-- (name|part): ([a-z][a-z0-9_]*)\s*$", re.MULTILINE)
_INCLUDE = re.compile(r"^[ ]*-- include: ([a-z][a-z0-9_]*)[ ]*$", re.MULTILINE)


@cache
def queries(file: str) -> dict[str, LiteralString]:
    """All named queries of ``queries/<file>.sql``."""
    # The files are part of the package, so their text is as fixed as a literal.
    return parse((resources.files(__package__) / "queries" / f"{file}.sql").read_text("utf-8"), file)


def parse(text: LiteralString, file: str) -> dict[str, LiteralString]:
    """The named queries of a file's text, with their parts. Raises ValueError for a name that comes twice and an include of no part above."""
    blocks = _BLOCK.split(text)[1:]
    found: dict[str, dict[str, LiteralString]] = {"name": {}, "part": {}}
    for kind, name, body in zip(blocks[::3], blocks[1::3], blocks[2::3], strict=True):
        if name in found[kind]:
            raise ValueError(f"{file}.sql has two blocks '{kind}: {name}'")
        found[kind][name] = _INCLUDE.sub(lambda line: _part(found["part"], line[1], file), expand(body.strip()))
    return found["name"]


def _part(parts: Mapping[str, LiteralString], name: str, file: str) -> LiteralString:
    if name not in parts:
        raise ValueError(f"{file}.sql includes {name}, and no part of that name stands above it")
    return parts[name]


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of ``migrations/`` (or of an adapter's own folder)."""

    version: str
    text: LiteralString
    checksum: str


def migrations(folder: str = "migrations") -> list[Migration]:
    """In order. The checksum is over LF-normalised text without a BOM, so a checkout with other line ends is no drift."""
    found = []
    for file in sorted((resources.files(__package__) / folder).iterdir(), key=lambda f: f.name):
        if file.name.endswith(".sql"):
            text = file.read_text("utf-8").lstrip("\ufeff").replace("\r\n", "\n")
            checksum = hashlib.sha256(text.encode()).hexdigest()
            found.append(Migration(file.name.removesuffix(".sql"), text, checksum))
    return found


@cache
def folded() -> Mapping[str, frozenset[str]]:
    """The migrations from before they were folded into these: the checksums of each, by version."""
    found: dict[str, frozenset[str]] = {}
    for version, checksum in _FOLDED.findall(adoption()):
        found[version] = found.get(version, frozenset()) | {checksum}
    return found


def adoption() -> LiteralString:
    """Records this set of migrations in a database that has the whole former one."""
    return (resources.files(__package__) / "folded.sql").read_text("utf-8")


def grants() -> LiteralString:
    """The rights of the runtime role: run after all migrations, each time."""
    return (resources.files(__package__) / "grants.sql").read_text("utf-8")

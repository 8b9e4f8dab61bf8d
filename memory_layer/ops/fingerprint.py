"""The schema as the catalogue shows it, so that a database can be compared with the one that the migrations make.

``python -m memory_layer.ops.fingerprint`` builds a database from nothing and writes ``sql/fingerprint.json`` anew; a change there
belongs into the same review as the migration that caused it.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Final, LiteralString, Protocol

from memory_layer.sql import queries

_FILE = "fingerprint.json"
_SQL = queries("catalogue")
_ROLE: Final = "memory_app"
_PARTS: Final = (
    "columns",
    "constraints",
    "indexes",
    "triggers",
    "policies",
    "rules",
    "heirs",
    "partitions",
    "grants",
)
# The large namespaces' own tables, made while the service runs: each has its number, dimension and index.
_SPACE: Final = re.compile(r"space_[0-9]+")
_SPACE_PARTS: Final = ("triggers", "policies", "rules", "heirs", "grants")


class _Connection(Protocol):
    """As much of a psycopg connection (tuple rows) as is needed here."""

    def execute(self, query: LiteralString, /) -> Any: ...


def catalogue(connection: _Connection) -> dict[str, Any]:
    """Relations (with all that stands on them) and functions of the product's schemas, and what else could come between, as plain data.

    ``tables``, ``functions``: of schema ``public``; ``pgvector``: what the adapter's files make, empty where they were not run;
    ``others``: what no migration makes and nothing but somebody else does. The same on Postgres 15 to 18. Comments and statistics are
    left out, and so are owners, as long as it is the one. It sets the session's search_path.
    """
    connection.execute("SET search_path = pg_catalog")
    ((owner, role, pgvector, extension),) = connection.execute(_SQL["facts"]).fetchall()
    relations: dict[str, dict[str, Any]] = {"public": {}, "vector_spaces": {}}
    by_oid: dict[int, dict[str, Any]] = {}
    for oid, schema, name, kind, persistence, secured, forced, options, its, view in connection.execute(
        _SQL["relations"]
    ).fetchall():
        facts = {
            "kind": kind if persistence == "p" else f"{kind} {persistence}",
            "row_security": ("forced" if forced else "on") if secured else "off",
            "options": options,
            "owner": _owner(its, owner, role),
            **{part: {} for part in _PARTS},
        }
        by_oid[oid] = relations[schema][name] = facts if view is None else facts | {"view": view}
    for part in _PARTS:
        for oid, name, *more in connection.execute(_SQL[part]).fetchall():
            if oid in by_oid:
                by_oid[oid][part][name] = more if len(more) > 1 else more[0]
    functions: dict[str, dict[str, Any]] = {"public": {}, "vector_spaces": {}}
    for schema, name, *facts, source, its, granted in connection.execute(_SQL["functions"]).fetchall():
        functions[schema][name] = [*facts, _in_public(source, extension), _owner(its, owner, role), granted]
    entries = relations["public"].pop("vector_entries", None)
    spaces = {
        name: _space(facts) if _SPACE.fullmatch(name) else facts for name, facts in relations["vector_spaces"].items()
    }
    vector_spaces = {
        "tables": spaces | ({} if entries is None else {"vector_entries": entries}),
        "functions": functions["vector_spaces"],
    }
    text = json.dumps(vector_spaces, ensure_ascii=False)
    return {
        "tables": relations["public"],
        "functions": functions["public"],
        "pgvector": json.loads(_in_public(text, extension)) if pgvector else {},
        "others": {line: "there" for (line,) in connection.execute(_SQL["others"]).fetchall()},
        "role": role is not None,
    }


def _owner(its: int, owner: int | None, role: int | None) -> str:
    """Which of the roles that matter: names differ from one server to the next."""
    return "the runtime role" if its == role else "the owner" if its == owner else "another role"


def _in_public(text: str, extension: str | None) -> str:
    """With the extension in the schema that the committed text names."""
    return text if extension in (None, "public") else re.sub(rf"\b{re.escape(str(extension))}\.", "public.", text)


def _space(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: facts[name] for name in ("kind", "row_security", "owner", *_SPACE_PARTS)}


def committed() -> dict[str, Any]:
    """The fingerprint that belongs to the migrations of this version."""
    found: dict[str, Any] = json.loads((resources.files("memory_layer.sql") / _FILE).read_text("utf-8"))
    return found


def drift(found: Mapping[str, Any]) -> list[str]:
    """Where a database differs from what this version's migrations make of it, a line each; none where it does not.

    What it may have or not is left alone: the runtime role, the pgvector adapter's tables, and of those the large namespaces' own.
    """
    wanted = committed()
    space = wanted["pgvector"].pop("space", None)
    here = {name: found[name] for name in ("tables", "functions", "pgvector", "others")}
    expected = {name: wanted[name] for name in ("tables", "functions", "pgvector")} | {"others": {}}
    if not found["pgvector"]:
        expected["pgvector"] = {}
    else:
        tables = expected["pgvector"]["tables"]
        tables |= {name: space for name in found["pgvector"].get("tables", {}) if _SPACE.fullmatch(name)}
    if not found["role"]:
        expected = _without_role(expected)
    return differences(expected, here)


def _without_role(value: Any) -> Any:
    """The same where there is no runtime role: without its rights."""
    if isinstance(value, dict):
        return {name: _without_role(part) for name, part in value.items() if name != _ROLE}
    return [_without_role(part) for part in value] if isinstance(value, list) else "" if value == _ROLE else value


def differences(expected: Any, found: Any, where: str = "") -> list[str]:
    """Where two catalogues differ, a line each."""
    if isinstance(expected, dict) and isinstance(found, dict):
        lines = []
        for name in sorted(expected.keys() | found.keys()):
            here = f"{where}.{name}" if where else name
            if name not in found:
                lines.append(f"{here}: missing")
            elif name not in expected:
                lines.append(f"{here}: not expected")
            else:
                lines += differences(expected[name], found[name], here)
        return lines
    return [] if expected == found else [f"{where}: expected {expected!r}, found {found!r}"]


def text(found: dict[str, Any]) -> str:
    """The file's text: sorted, one fact a line, so that a review shows what changed."""
    return _text(found, "") + "\n"


def _text(value: Any, indent: str) -> str:
    if not isinstance(value, dict) or not value:
        return json.dumps(value, ensure_ascii=False)
    lines = [f"{indent} {json.dumps(name)}: {_text(value[name], indent + ' ')}" for name in sorted(value)]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}"


def rewrite() -> None:
    """Build a database from the migrations in a throw-away server, and write the file."""
    from memory_layer.ops import embedded, migrate

    with tempfile.TemporaryDirectory(prefix="memory-layer-schema-") as folder:
        Path(folder).chmod(0o711)
        with embedded.start(Path(folder) / "data", durable=False) as cluster:
            embedded.prepare_database(cluster)
            dsn = cluster.dsn(embedded.OWNER_ROLE)
            migrate.apply(dsn)
            migrate.apply_pgvector(dsn)
            with migrate.connect(dsn) as connection:
                connection.execute(
                    "INSERT INTO vector_entries SELECT 't', 'n', gen_random_uuid(), 1, '[1,2]', '{}' FROM generate_series(1, 4)"
                )
                connection.execute("SELECT vector_spaces.promote('t', 'n', 2)")
                found = catalogue(connection)
    tables = found["pgvector"]["tables"]
    found["pgvector"]["space"] = tables.pop(next(name for name in tables if _SPACE.fullmatch(name)))
    del found["others"], found["role"]
    with resources.as_file(resources.files("memory_layer.sql") / _FILE) as path:
        path.write_text(text(found), "utf-8")


if __name__ == "__main__":
    rewrite()

"""The schema as the catalogue shows it, so that a database can be compared with the one that the migrations make.

``python -m memory_layer.ops.fingerprint`` builds a database from nothing and writes ``sql/fingerprint.json`` anew; a change there
belongs into the same review as the migration that caused it.
"""

from __future__ import annotations

import json
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any, LiteralString, Protocol

_FILE = "fingerprint.json"

# Objects of extensions and of other schemas are left out; so are NOT NULL constraints, which only Postgres 18 keeps in pg_constraint
# (the columns say it). Partitions are runtime data.
_TABLES: LiteralString = """
SELECT c.oid, c.relname, c.relkind::text, c.relrowsecurity, c.relforcerowsecurity,
       coalesce(array_to_string(c.reloptions, ','), '')
FROM pg_class c
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'S') AND NOT c.relispartition
  AND NOT EXISTS (SELECT FROM pg_depend d
                  WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY c.relname
"""
_COLUMNS: LiteralString = """
SELECT a.attrelid, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
       pg_get_expr(d.adbin, d.adrelid), a.attstorage::text
FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attname
"""
_CONSTRAINTS: LiteralString = """
SELECT conrelid, conname, pg_get_constraintdef(oid) || CASE WHEN convalidated THEN '' ELSE ' NOT VALID' END
FROM pg_constraint WHERE conrelid <> 0 AND contype <> 'n' ORDER BY conname
"""
_INDEXES: LiteralString = """
SELECT i.indrelid, c.relname,
       pg_get_indexdef(i.indexrelid) || CASE WHEN i.indisvalid AND i.indisready THEN '' ELSE ' INVALID' END
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid ORDER BY c.relname
"""
_TRIGGERS: LiteralString = """
SELECT tgrelid, tgname, pg_get_triggerdef(oid),
       CASE tgenabled WHEN 'A' THEN 'always' WHEN 'O' THEN 'origin' WHEN 'R' THEN 'replica' ELSE 'disabled' END
FROM pg_trigger WHERE NOT tgisinternal ORDER BY tgname
"""
_POLICIES: LiteralString = """
SELECT polrelid, polname, polcmd::text, polpermissive, polroles::regrole[]::text,
       pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid)
FROM pg_policy ORDER BY polname
"""
# Everyone's privileges but the owner's own.
_GRANTS: LiteralString = """
SELECT c.oid, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END,
       string_agg(a.privilege_type, ', ' ORDER BY a.privilege_type)
FROM pg_class c, aclexplode(c.relacl) a WHERE a.grantee <> c.relowner GROUP BY 1, 2 ORDER BY 2
"""
_FUNCTIONS: LiteralString = """
SELECT p.oid::regprocedure::text, pg_get_function_result(p.oid), l.lanname, p.prosecdef, p.provolatile::text,
       coalesce(array_to_string(p.proconfig, ','), ''), p.prosrc
FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
WHERE p.pronamespace = 'public'::regnamespace
  AND NOT EXISTS (SELECT FROM pg_depend d
                  WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
ORDER BY 1
"""


class _Connection(Protocol):
    """As much of a psycopg connection (tuple rows) as is needed here."""

    def execute(self, query: LiteralString, /) -> Any: ...


def catalogue(connection: _Connection) -> dict[str, Any]:
    """Tables (columns, constraints, indexes, triggers, policies, grants) and functions of schema ``public``, as plain data.

    The same on Postgres 15 to 18. Owners, comments and statistics are left out.
    """
    connection.execute("SET search_path = public")
    tables: dict[str, Any] = {}
    by_oid: dict[int, dict[str, Any]] = {}
    for oid, name, kind, secured, forced, options in connection.execute(_TABLES).fetchall():
        by_oid[oid] = tables[name] = {
            "kind": kind,
            "row_security": ("forced" if forced else "on") if secured else "off",
            "options": options,
            "columns": {},
            "constraints": {},
            "indexes": {},
            "triggers": {},
            "policies": {},
            "grants": {},
        }
    for part, query in (
        ("columns", _COLUMNS),
        ("constraints", _CONSTRAINTS),
        ("indexes", _INDEXES),
        ("triggers", _TRIGGERS),
        ("policies", _POLICIES),
        ("grants", _GRANTS),
    ):
        for oid, name, *facts in connection.execute(query).fetchall():
            if oid in by_oid:
                by_oid[oid][part][name] = facts if len(facts) > 1 else facts[0]
    functions = {name: facts for name, *facts in connection.execute(_FUNCTIONS).fetchall()}
    return {"tables": tables, "functions": functions}


def committed() -> dict[str, Any]:
    """The fingerprint that belongs to the migrations of this version."""
    found: dict[str, Any] = json.loads((resources.files("memory_layer.sql") / _FILE).read_text("utf-8"))
    return found


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
            with migrate.connect(dsn) as connection:
                found = catalogue(connection)
    with resources.as_file(resources.files("memory_layer.sql") / _FILE) as path:
        path.write_text(text(found), "utf-8")


if __name__ == "__main__":
    rewrite()

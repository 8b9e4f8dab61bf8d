"""pgvector's part of `memoryctl provision vectors`: the extension, the adapter's tables, the service's rights, standbys."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row

from memory_layer.config import Settings
from memory_layer.errors import DependencyUnavailable
from memory_layer.ops import migrate
from memory_layer.ops.checks import Check, Made, Survey, known
from memory_layer.ops.provision.guide import INDEX, REPLICAS, RIGHTS
from memory_layer.sql import migrations, queries

OLDEST = (0, 8, 4)  # older ones can lose rows in HNSW vacuum
ROLE = "memory_app"  # what the adapter's files grant to

MAKES: Final = "memoryctl provision apply vectors makes it."

_SQL = queries("provision")
_NAMED = 10  # of a list that may be as long as there are namespaces
_TABLE = re.compile(r"CREATE TABLE (?:IF NOT EXISTS )?([a-z_]+(?:\.[a-z_]+)?)\s*\(")
_GRANT = re.compile(rf"GRANT ([A-Z, ]+) ON (?:TABLE )?([a-z_]+(?:\.[a-z_]+)?) TO {ROLE}\b")


@dataclass(frozen=True, slots=True)
class _Facts:
    """What the database was found to have. The lists name what lacks."""

    installed: str | None
    available: str | None
    tables: list[str]
    role: bool
    grants: list[str]
    spaces: list[str]
    standbys: dict[str, Any]

    @property
    def new_enough(self) -> bool:
        return self.installed is not None and _version(self.installed) >= OLDEST

    @property
    def usable(self) -> bool:
        """Whether the extension is there, or can be created."""
        return self.new_enough or (self.installed is None and _version(self.available or "0") >= OLDEST)


async def examine(survey: Survey, settings: Settings, dsn: str) -> None:
    """The database, as its owner. All that lacks is made at once. Raises DependencyUnavailable."""
    before = _look(dsn)
    after: list[_Facts] = []

    def applied() -> _Facts:
        if not after:
            migrate.apply_pgvector(dsn)
            after.append(_look(dsn))
        return after[0]

    def create(_: _Facts) -> Made[_Facts]:
        return Made(applied(), (f"extension vector {before.available}",))

    await survey.check(
        Check(
            id="vectors.pgvector.extension",
            source=INDEX,
            look=lambda: before,
            fits=lambda facts: facts.new_enough,
            says=_extension,
            make=create,
            makes=lambda facts: facts.usable,
            hint=_extension_hint,
        )
    )

    def names(
        name: str, source: str, lack: Callable[[_Facts], list[str]], says: str, right: str, makes: str
    ) -> Check[list[str]]:
        """A check of something whose parts have names, and none of which may lack."""

        def make(_: list[str]) -> Made[list[str]]:
            left = lack(applied())
            return Made(left, () if left else (makes.format(_some(lack(before))),))

        return Check(
            id=f"vectors.pgvector.{name}",
            source=source,
            look=lambda: lack(before),
            fits=lambda lacking: not lacking,
            says=lambda lacking: says.format(_some(lacking)) if lacking else right,
            make=make,
            makes=lambda _: before.usable,
            hint=MAKES if before.usable else "First the extension.",
        )

    right = f"The adapter's tables are there: {', '.join(_TABLES)}."
    await survey.check(names("tables", INDEX, lambda facts: facts.tables, "There is no table {}.", right, "tables {}"))
    if not before.role:
        survey.note(
            "vectors.pgvector.grants",
            f"There is no role {ROLE} on this server: the service connects as whoever VECTOR_DB_ENDPOINT names, and that role "
            "must own the tables or be granted them.",
        )
    else:
        right = f"{ROLE} may read and write {', '.join(sorted({table for table, _ in _GRANTS}))}."
        await survey.check(names("grants", RIGHTS, _grants, f"{ROLE} lacks {{}}.", right, f"grants to {ROLE}: {{}}"))
        right = f"{ROLE} may read and write the tables of large namespaces."
        says = f"{ROLE} lacks {{}}: searches there fail."
        if not (after[0] if after else before).tables:
            spaces = names("spaces", RIGHTS, lambda facts: facts.spaces, says, right, f"for {ROLE}: {{}}")
            await survey.check(spaces)
    standbys = before.standbys
    if standbys["connected"] and not standbys["reported"]:
        survey.note(
            "vectors.pgvector.replicas",
            f"{standbys['connected']} connections replicate, and this role may not see how far they are.",
            "GRANT pg_read_all_stats to it, or ask whoever runs the server.",
            {"connected": standbys["connected"]},
        )
    else:
        await survey.check(_standbys(settings, standbys))


# All that the adapter's files make, and (table, privilege) of what they grant.
_TABLES: Final = [name for migration in migrations("pgvector") for name in _TABLE.findall(migration.text)]
_GRANTS: Final = [
    (table, privilege.strip())
    for migration in migrations("pgvector")
    for privileges, table in _GRANT.findall(migration.text)
    if table in _TABLES
    for privilege in privileges.split(",")
]


def _look(dsn: str) -> _Facts:
    wanted = {"role": ROLE, "tables": [t for t, _ in _GRANTS], "privileges": [p for _, p in _GRANTS]}
    try:
        with migrate.connect(dsn) as connection, connection.cursor(row_factory=dict_row) as cursor:
            extension = _one(cursor.execute(_SQL["extension"]))
            tables = [row["name"] for row in cursor.execute(_SQL["lacking_tables"], {"tables": _TABLES})]
            role = bool(_one(cursor.execute(_SQL["role"], {"role": ROLE}))["there"])
            grants: list[str] = []
            spaces: list[str] = []
            if role:
                rows = cursor.execute(_SQL["lacking_grants"], wanted)
                grants = [f"{row['privilege']} on {row['name']}" for row in rows]
            if role and not tables:
                spaces = [row["what"] for row in cursor.execute(_SQL["lacking_space_grants"], {"role": ROLE})]
            standbys = _one(cursor.execute(_SQL["standbys"]))
    except psycopg.Error as error:
        raise DependencyUnavailable(f"Postgres does not answer: {' '.join(str(error).split())}") from error
    return _Facts(extension["installed"], extension["available"], tables, role, grants, spaces, standbys)


def _one(cursor: Any) -> dict[str, Any]:
    (row,) = cursor.fetchall()
    return dict(row)


def _extension(facts: _Facts) -> str:
    oldest = ".".join(map(str, OLDEST))
    if facts.installed is not None:
        return f"The extension vector is {facts.installed}; the vector store needs {oldest} or newer."
    if facts.usable:
        return f"The extension vector ({facts.available}) is not created here."
    only = f", only {facts.available}" if facts.available else ""
    return f"This server has no extension vector of {oldest} or newer{only}."


def _extension_hint(facts: _Facts) -> str:
    if facts.installed is None:
        if facts.usable:
            return MAKES
        return "Install the server's package of pgvector, or set VECTOR_DB_ENDPOINT to a Postgres that has it."
    if _version(facts.available or "0") < OLDEST:
        return "Upgrade the server's package and run: ALTER EXTENSION vector UPDATE"
    return "Run as the owner: ALTER EXTENSION vector UPDATE"


def _grants(facts: _Facts) -> list[str]:
    return facts.grants or (["rights on the adapter's tables"] if facts.tables else [])


def _some(names: list[str]) -> str:
    """The first few: there may be one for each namespace."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])


def _standbys(settings: Settings, row: dict[str, Any]) -> Check[bool]:
    streaming = row["streaming"] or 0
    none = "No standby follows this server: pgvector has no replicas of its own, Postgres's are its."
    return known(
        "vectors.pgvector.replicas",
        bool(streaming),
        f"{streaming} standbys follow." if streaming else none,
        "Set up a streaming standby, unless the platform replicates below Postgres: then this cannot be seen here.",
        source=REPLICAS,
        level="info" if settings.service_env == "dev" else "warning",
        evidence={"standbys": streaming},
    )

"""Every column of every table, from the catalogue: changed behind the product's back, and named by who is to name it.

A column that is added later has no line in ``catalogue.py``, and that fails the suite.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import errors

from memory_layer import config
from memory_layer.audit.report import render
from memory_layer.audit.verdict import CODES, Finding
from memory_layer.errors import MemoryLayerError
from memory_layer.ops import embedded
from memory_layer.ops.vectors import reconcile, words
from memory_layer.ops.vectors.spaces import Scope, list_spaces
from memory_layer.service import artifacts, nodes
from memory_layer.service.installation import open_installation
from memory_layer.service.running import open_service
from tests.support.full_installation import FullInstallation, full_installation
from tests.support.service import caller
from tests.support.tampering import CHANGES, Bench, Column
from tests.tamper.catalogue import CHANGED, COPIED, INSERTED, LINES, READ, REMOVED, SERVING

OK = (0, 10)


@pytest.fixture(scope="module")
def installation(cluster: embedded.Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FullInstallation]:
    with full_installation(cluster, tmp_path_factory.mktemp("installation")) as made:
        yield made


@pytest.fixture(scope="module")
def bench(installation: FullInstallation) -> Iterator[Bench]:
    with psycopg.connect(installation.dsn, autocommit=True) as connection:
        yield Bench(connection)


@pytest.fixture(scope="module")
def columns(bench: Bench) -> dict[str, Column]:
    return {str(column): column for column in bench.columns()}


def test_every_column_of_the_schema_has_its_line(columns: dict[str, Column]) -> None:
    lines = {name for name in LINES if name[-1] not in "+-"}
    assert sorted(columns.keys() - lines) == [], "columns without a line in catalogue.py: who names a change of them?"
    assert sorted(lines - columns.keys()) == [], "lines without a column"


def test_every_table_has_a_line_for_a_row_put_in_and_one_taken_out(bench: Bench, columns: dict[str, Column]) -> None:
    there = {column.table for column in columns.values()}
    full = {table for table in there if bench.count(table)}
    single = {"write_freeze", "audit_logs"}  # a second row is another matter: refused, or a log that nobody knows
    assert {name[:-2] for name in LINES if name.endswith(".+")} == there - single
    assert {name[:-2] for name in LINES if name.endswith(".-")} == full


def test_what_nobody_changed_is_clean(installation: FullInstallation) -> None:
    verdict = installation.judge()
    assert (verdict.findings, verdict.exit_code) == ((), 10), render(verdict)


@pytest.mark.parametrize("name", LINES)
def test_each_change_is_named(
    installation: FullInstallation, bench: Bench, columns: dict[str, Column], name: str
) -> None:
    line, table = LINES[name], name.rpartition(".")[0]
    attempts = statements(bench, name, columns.get(name))
    for statement in attempts:
        try:
            with bench.tampered(table, statement, prepare=None if bench.count(table) else INSERTED[table]) as touched:
                if not touched:
                    continue
                assert line.by != "refused", "the table lets it in"
                judge(installation, name)
                return
        except (errors.IntegrityError, errors.DataException):
            continue  # another value may do
    assert line.by == "refused", f"none of these changed anything: {attempts}"


NAMED = [name for name, line in LINES.items() if line.by == "verify" and name.partition(".")[0] not in INSERTED]


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(chosen=st.lists(st.sampled_from(NAMED), min_size=2, max_size=4, unique_by=lambda name: name.partition(".")[0]))
def test_no_combination_passes(
    installation: FullInstallation, bench: Bench, columns: dict[str, Column], chosen: list[str]
) -> None:
    with contextlib.ExitStack() as stack:
        done = 0
        for name in chosen:
            for statement in statements(bench, name, columns.get(name)):
                try:
                    done += stack.enter_context(bench.tampered(name.rpartition(".")[0], statement))
                    break
                except (errors.IntegrityError, errors.DataException):
                    continue
        verdict = installation.judge()
    assert not done or verdict.exit_code not in OK, render(verdict)


def statements(bench: Bench, name: str, column: Column | None) -> list[str]:
    table, _, what = name.rpartition(".")
    if what == "+":
        if table in INSERTED:
            return [INSERTED[table]]
        copy = f"jsonb_populate_record(x, '{COPIED[table]}')"
        return [f"INSERT INTO {table} SELECT ({copy}).* FROM {table} x LIMIT 1"]
    middle = f"ctid = (SELECT ctid FROM {table} ORDER BY ctid OFFSET {bench.count(table) // 2} LIMIT 1)"
    if what == "-":
        return [f"DELETE FROM {table} WHERE {REMOVED.get(table, middle)}"]
    assert column is not None
    if name in CHANGED:
        value, where = CHANGED[name]
        return [f'UPDATE {table} SET "{what}" = {value} WHERE {one_of(table, where)}']
    where = middle if bench.count(table) else "true"
    values = [change.format(c=f'"{what}"') for change in CHANGES[column.type]]
    return [f'UPDATE {table} SET "{what}" = {value} WHERE {where} AND ({value}) IS NOT NULL' for value in values]


@pytest.mark.parametrize("name", [name for name in LINES if name.startswith(SERVING) and not name.endswith(".+")])
def test_what_a_read_gives_while_it_stands(
    installation: FullInstallation, bench: Bench, columns: dict[str, Column], name: str
) -> None:
    table = name.rpartition(".")[0]
    for statement in statements(bench, name, columns.get(name)):
        who = bench.connection.execute(
            f"SELECT tenant, {KEYS[table]} FROM {table} WHERE {statement.partition(' WHERE ')[2]}"
        )
        target = who.fetchone()
        if target is None:
            continue
        before = asyncio.run(read(installation, table, *target))
        try:
            with bench.tampered(table, statement) as touched:
                if touched:
                    after = asyncio.run(read(installation, table, *target))
                    assert verdict_of(after, before) == READ.get(name, "refused")
                    return
        except (errors.IntegrityError, errors.DataException):
            continue
    assert LINES[name].by == "refused"


KEYS = {"memory_nodes": "id", "artifacts": "id", "memory_vectors": "memory_node_id"}


async def read(installation: FullInstallation, table: str, tenant: str, id_: uuid.UUID) -> dict[str, Any] | str:
    """The answer of a read, or the code that it is refused with."""
    settings = config.load({}, database_url=installation.dsn, embeddings_provider="none")
    get = artifacts.get if table == "artifacts" else nodes.get
    async with open_service(settings, installation.data) as memory:
        try:
            return await get(memory, caller(tenant), id_)
        except MemoryLayerError as error:
            return error.code


def verdict_of(after: dict[str, Any] | str, before: dict[str, Any] | str) -> str:
    return (
        "unseen"
        if after == before
        else "refused"
        if after == "TAMPERED"
        else after
        if isinstance(after, str)
        else "served"
    )


def one_of(table: str, where: str) -> str:
    return f"ctid = (SELECT ctid FROM {table} WHERE {where} ORDER BY ctid LIMIT 1)"


def judge(installation: FullInstallation, name: str) -> None:
    line = LINES[name]
    verdict = installation.judge()
    if line.by == "verify":
        assert line.what in every(verdict.findings), (name, render(verdict))
        assert verdict.exit_code == CODES[line.what], render(verdict)
        return
    assert (verdict.findings, verdict.exit_code in OK) == ((), True), f"named after all: {render(verdict)}"
    if line.by == "reconcile":
        assert line.what in asyncio.run(compared(installation))


async def compared(installation: FullInstallation) -> set[str]:
    """The kinds of difference that `vectors reconcile` finds."""
    settings = config.load({}, database_url=installation.dsn, embeddings_provider="none")
    async with open_installation(settings, installation.data, "postgres", "vectors") as sides:
        found = {one.kind for one in (await words.compare(sides, Scope())).found}
        for space in await list_spaces(sides, Scope()):
            found |= set((await reconcile.compare(sides, space, vectors="all")).counts)
        return found


def every(findings: tuple[Finding, ...]) -> set[str]:
    return {code for finding in findings for code in {finding.code} | every(finding.consequences)}

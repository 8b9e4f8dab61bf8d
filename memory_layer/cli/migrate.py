"""`memoryctl migrate` and `memoryctl openapi`."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from memory_layer import config
from memory_layer.cli import command, render
from memory_layer.cli.access import data_folder, database_of
from memory_layer.cli.options import AsJson, Data
from memory_layer.errors import UsageError

if TYPE_CHECKING:
    from memory_layer.ops.operate import Run

migrate = App(name="migrate", help="Bring the database to this version's schema.")


@migrate.command
def plan(*, as_json: AsJson = False) -> int:
    """Show what has been applied and what would be. Changes nothing; exit 1 when something is pending or changed."""
    from memory_layer.ops.migrate import plan as steps

    found = steps(_owner_dsn())
    if as_json:
        render.data([{"version": step.version, "status": step.status} for step in found])
    else:
        render.table(("version", "status"), [(step.version, step.status) for step in found])
    return 0 if all(step.status == "applied" for step in found) else 1


@migrate.command
async def apply(
    *,
    open_log: Annotated[
        bool, Parameter(help="Open the log too, and make trust-root.json, as the first start of a new installation.")
    ] = False,
    data: Data = None,
    as_json: AsJson = False,
) -> int:
    """Apply what is pending, and give the service's role its rights. Repeating it changes nothing.

    The role that the service connects as may open no log, so where MIGRATION_DATABASE_URL names another role than DATABASE_URL the first
    log is opened here, once, with the signer that the service has.

    The audit log tells of it, so this needs the log's signer as the service does: its settings, or the data folder with the key.
    Without it the schema is brought up to date all the same, and the exit is 3.
    """
    from memory_layer.ops import first_start, prod_guard
    from memory_layer.ops.blocking import blocking
    from memory_layer.ops.migrate import apply as run_pending
    from memory_layer.ops.migrate import apply_pgvector
    from memory_layer.ops.operate import operate
    from memory_layer.ops.report import Finding

    dsn = _owner_dsn()
    done: list[str] = []
    warned: list[str] = []

    async def work(run: Run) -> None:
        settings = run.installation.settings
        with blocking():
            done.extend(run_pending(dsn, warned.append))
        for warning in warned:
            run.installation.say(warning)
            hint = "Put it right as the owner, then run `memoryctl migrate apply` again."
            run.find(Finding("migrate.warning", "warning", "fail", warning.removeprefix("warning: "), hint))
        run.fact("applied", done)
        if settings.vector_db_provider == "pgvector":
            apply_pgvector(settings.vector_db_endpoint or dsn)
        if open_log:
            prod_guard.refuse_copied_key(settings)
            opened = await first_start.start_log(settings, run.installation.folder, dsn)
            run.fact("log", opened.origin)
            run.fact("trustRootSha256", opened.digest)
            run.installation.say(
                f"the log is {opened.origin}; its trust root is {opened.trust_root}, sha256:{opened.digest}"
            )

    async with command.installation_of(data, config.load(database_url=dsn)) as installation:
        report = await operate(installation, "migrate-apply", {}, work)
    if as_json:
        render.data({"runId": str(report.run_id), "verdict": report.verdict, "exit": report.exit, "applied": done})
    else:
        render.say(f"applied {len(done)}: {', '.join(done)}" if done else "nothing to apply.")
    return report.exit


@migrate.command
def drift(*, data: Data = None, as_json: AsJson = False) -> int:
    """Show where the schema differs from the one that this version's migrations make. Changes nothing; exit 1 when it does.

    Tables, columns, constraints, indexes, functions, triggers, policies, rules, views, rights, and what else could come between a
    statement and its table. Without MIGRATION_DATABASE_URL and DATABASE_URL it looks at the database of the running `memoryctl up`.
    """
    from memory_layer.ops.drift import of_database

    dsn = config.load().migrate_url
    with contextlib.ExitStack() as stack:
        found = of_database(dsn or stack.enter_context(database_of(data_folder(data))))
    if as_json:
        render.data({"differences": list(found.lines), "unknown": found.unknown})
    else:
        for line in found.lines:
            render.line(line)
        if found.unknown is not None:
            render.line(f"not compared: {found.unknown}")
        elif not found.lines:
            render.say("the schema is that of this version's migrations.")
    return 1 if found.lines or found.unknown else 0


def openapi() -> int:
    """Print the OpenAPI document of this version's API."""
    from memory_layer.api.openapi import document

    render.line(json.dumps(document(), indent=2, ensure_ascii=False))
    return 0


def _owner_dsn() -> str:
    dsn = config.load().migrate_url
    if dsn is None:
        raise UsageError(
            "MIGRATION_DATABASE_URL or DATABASE_URL must name the database. `memoryctl up` migrates its own."
        )
    return dsn

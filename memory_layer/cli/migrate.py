"""`memoryctl migrate` and `memoryctl openapi`."""

from __future__ import annotations

import json
from typing import Annotated

from cyclopts import App, Parameter

from memory_layer import config
from memory_layer.cli import render
from memory_layer.errors import UsageError

migrate = App(name="migrate", help="Bring the database to this version's schema.")

AsJson = Annotated[bool, Parameter(name="--json", help="Print JSON.")]


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
def apply(*, as_json: AsJson = False) -> int:
    """Apply what is pending. Repeating it changes nothing."""
    from memory_layer.ops.migrate import apply as run
    from memory_layer.ops.migrate import apply_pgvector

    settings = config.load()
    done = run(_owner_dsn())
    apply_pgvector(settings.vector_db_endpoint or _owner_dsn())
    if as_json:
        render.data({"applied": done})
    else:
        render.say(f"applied {len(done)}: {', '.join(done)}" if done else "nothing to apply.")
    return 0


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

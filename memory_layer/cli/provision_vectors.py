"""`memoryctl provision plan / apply vectors`: what the vector store needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from memory_layer import config
from memory_layer.cli import render
from memory_layer.cli.access import data_folder
from memory_layer.cli.reports import show

if TYPE_CHECKING:
    from memory_layer.config import Settings
    from memory_layer.ops.runs import Run

Data = Annotated[Path | None, Parameter(help="Data folder of `memoryctl up`, whose log the run is entered in.")]
AsJson = Annotated[bool, Parameter(name="--json", help="Print JSON.")]
Yes = Annotated[bool, Parameter(help="Do not ask.")]


def plan_vectors(*, as_json: AsJson = False) -> int:
    """Show how the vector store of the settings stands, and how large it should be. Exit 1 when something is missing or differs.

    With VECTOR_PROJECTED_QPS it reckons what twice as many searches need.

    For example:

      memoryctl provision plan vectors
      VECTOR_DB_PROVIDER=pinecone VECTOR_DB_API_KEY_FILE=/run/secrets/pinecone memoryctl provision plan vectors
    """
    from memory_layer.ops.provision import vectors

    settings = config.load()
    found = vectors.plan(settings, _dsn(settings))
    if as_json:
        findings = [finding.to_json() for finding in found.findings]
        render.data({"made": [], "findings": findings, "settings": found.settings})
    else:
        rows = [(f.id, f.evidence.get("state", f.status), f.finding, f.hint) for f in found.findings]
        render.table(("id", "status", "finding", "hint"), rows, wide="finding")
    return 0 if found.right else 1


def apply_vectors(*, yes: Yes = False, data: Data = None, as_json: AsJson = False) -> int:
    """Make what the vector store of the settings lacks: tables, index, collection, rights. What differs is told, not changed: exit 1.

    For example:

      memoryctl provision apply vectors
      VECTOR_DB_PROVIDER=pinecone EMBEDDINGS_DIMENSIONS=1536 memoryctl provision apply vectors --yes
    """
    from memory_layer.ops.provision import vectors
    from memory_layer.ops.runs import Place, perform

    settings = config.load()
    missing = vectors.plan(settings, _dsn(settings)).missing
    for found in missing:
        render.say(found.finding)
    if missing and not render.confirm("Make it?", yes=yes):
        render.say("nothing was made.")
        return 1

    def work(run: Run) -> None:
        outcome = vectors.apply(settings, _dsn(settings), render.say)
        for line in outcome.made:
            render.say(f"made: {line}")
        for finding in outcome.findings:
            run.find(finding)
        run.fact("made", outcome.made)
        run.fact("settings", outcome.settings)

    place = Place(settings, data_folder(data), settings.database_url, render.say)
    arguments = {"provider": settings.vector_db_provider, "dimensions": settings.embeddings_dimensions}
    report = perform(place, "provision-apply-vectors", arguments, work)
    return show(report.to_json(), as_json=as_json)


def _dsn(settings: Settings) -> str | None:
    """Postgres as its owner, where pgvector's tables are or will be."""
    return settings.vector_db_endpoint or settings.migrate_url if settings.vector_db_provider == "pgvector" else None

"""`memoryctl provision plan / apply vectors`: what the vector store needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memory_layer import config
from memory_layer.cli import render
from memory_layer.cli.options import AsJson, Data, Yes
from memory_layer.cli.provision_frame import agreed, perform_apply, show_plan

if TYPE_CHECKING:
    from memory_layer.config import Settings
    from memory_layer.ops.operate import Run
    from memory_layer.ops.provision.outcome import Outcome


async def plan_vectors(*, as_json: AsJson = False) -> int:
    """Show how the vector store of the settings stands, and how large it should be. Exit 1 when something is missing or differs.

    With VECTOR_PROJECTED_QPS it reckons what twice as many searches need.

    For example:

      memoryctl provision plan vectors
      VECTOR_DB_PROVIDER=pinecone VECTOR_DB_API_KEY_FILE=/run/secrets/pinecone memoryctl provision plan vectors
    """
    from memory_layer.ops.provision import vectors

    settings = config.load()
    found = await vectors.plan(settings, _dsn(settings))
    show_plan(found.findings, {"settings": found.settings}, as_json=as_json)
    return 0 if found.right else 1


async def apply_vectors(*, yes: Yes = False, data: Data = None, as_json: AsJson = False) -> int:
    """Make what the vector store of the settings lacks: tables, index, collection, rights. What differs is told, not changed: exit 1.

    For example:

      memoryctl provision apply vectors
      VECTOR_DB_PROVIDER=pinecone EMBEDDINGS_DIMENSIONS=1536 memoryctl provision apply vectors --yes
    """
    from memory_layer.ops.provision import vectors

    settings = config.load()
    if not agreed((await vectors.plan(settings, _dsn(settings))).missing, yes=yes):
        return 1

    async def work(run: Run) -> Outcome:
        outcome = await vectors.apply(settings, _dsn(settings), render.say)
        run.fact("settings", outcome.settings)
        return outcome

    arguments = {"provider": settings.vector_db_provider, "dimensions": settings.embeddings_dimensions}
    return await perform_apply("provision-apply-vectors", arguments, settings, data, work, as_json=as_json)


def _dsn(settings: Settings) -> str | None:
    """Postgres as its owner, where pgvector's tables are or will be."""
    return settings.vector_db_endpoint or settings.migrate_url if settings.vector_db_provider == "pgvector" else None

"""`memoryctl provision plan / apply vectors`: what the vector store of the settings needs before the service can use it.

A plan reads only. What is missing is made; what is there and differs is a finding for a person: nothing is deleted, and no index is
changed into another. Each provider has a file of its own beside this one.
"""

from __future__ import annotations

from collections.abc import Callable

from memory_layer.config import Settings
from memory_layer.errors import UsageError
from memory_layer.ops.provision import sizing, vectors_milvus, vectors_pgvector, vectors_pinecone
from memory_layer.ops.provision.outcome import Outcome


async def plan(settings: Settings, dsn: str | None) -> Outcome:
    """How the vector store stands, and how large it should be. ``dsn``: Postgres as its owner, for pgvector.

    Raises UsageError, DependencyUnavailable, VectorStoreUnavailable.
    """
    if settings.vector_db_provider == "pinecone":
        outcome = await vectors_pinecone.plan(settings)
    elif settings.vector_db_provider == "milvus":
        outcome = await vectors_milvus.plan(settings)
    else:
        outcome = vectors_pgvector.plan(settings, _database(dsn))
    return _sized(settings, outcome)


async def apply(settings: Settings, dsn: str | None, say: Callable[[str], None]) -> Outcome:
    """Make what is missing. Repeating it makes nothing. Raises as ``plan`` does."""
    if settings.vector_db_provider == "pinecone":
        outcome = await vectors_pinecone.apply(settings, say)
    elif settings.vector_db_provider == "milvus":
        outcome = await vectors_milvus.apply(settings)
    else:
        outcome = vectors_pgvector.apply(settings, _database(dsn))
    return _sized(settings, outcome)


def _sized(settings: Settings, outcome: Outcome) -> Outcome:
    outcome.findings.append(sizing.size(settings, settings.vector_db_provider))
    return outcome


def _database(dsn: str | None) -> str:
    if dsn is None:
        raise UsageError(
            "VECTOR_DB_ENDPOINT, MIGRATION_DATABASE_URL or DATABASE_URL must name the Postgres that keeps the vectors. `memoryctl up` "
            "makes its own."
        )
    return dsn

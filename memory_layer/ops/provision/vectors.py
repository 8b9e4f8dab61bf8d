"""`memoryctl provision plan / apply vectors`: what the vector store of the settings needs before the service can use it.

What is missing is made; what is there and differs is a finding for a person: nothing is deleted, and no index is changed into another.
Each provider has a file of its own here.
"""

from __future__ import annotations

from collections.abc import Callable

from memory_layer.config import Settings
from memory_layer.errors import UsageError
from memory_layer.ops.checks import Survey
from memory_layer.ops.provision import sizing, vectors_milvus, vectors_pgvector, vectors_pinecone


async def examine(survey: Survey, settings: Settings, say: Callable[[str], None]) -> None:
    """The vector store, and how large it should be. Raises UsageError, DependencyUnavailable, VectorStoreUnavailable."""
    if settings.vector_db_provider == "pinecone":
        await vectors_pinecone.examine(survey, settings, say)
    elif settings.vector_db_provider == "milvus":
        await vectors_milvus.examine(survey, settings)
    else:
        await vectors_pgvector.examine(survey, settings, _owner_dsn(settings))
    survey.findings.append(sizing.size(settings, settings.vector_db_provider))


def _owner_dsn(settings: Settings) -> str:
    """Postgres as its owner, where pgvector's tables are or will be."""
    dsn = settings.vector_db_endpoint or settings.migrate_url
    if dsn is None:
        raise UsageError(
            "VECTOR_DB_ENDPOINT, MIGRATION_DATABASE_URL or DATABASE_URL must name the Postgres that keeps the vectors. `memoryctl up` "
            "makes its own."
        )
    return dsn

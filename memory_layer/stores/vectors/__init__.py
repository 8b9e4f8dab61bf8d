"""Vector stores: one Protocol (``stores/protocols.py``), one contract suite (``tests/contract/test_vectors.py``)."""

from __future__ import annotations

from memory_layer.config import Settings, reread
from memory_layer.errors import UsageError
from memory_layer.stores.protocols import JoinedVectors, VectorStore


async def open_vectors(settings: Settings, *, size: int = 8) -> VectorStore:
    """The vector store that VECTOR_DB_PROVIDER names; ``size``: connections, where it has a pool.

    One that does not answer is opened too. Raises UsageError, DependencyUnavailable.
    """

    def read_key() -> str | None:
        return reread("VECTOR_DB_API_KEY") or settings.vector_db_api_key

    if settings.vector_db_provider == "milvus":
        from memory_layer.stores.vectors.milvus import open_milvus

        if settings.vector_db_endpoint is None:
            raise UsageError("VECTOR_DB_PROVIDER=milvus needs VECTOR_DB_ENDPOINT, such as http://host:19530.")
        return await open_milvus(settings.vector_db_endpoint, read_key, settings.service_env)
    if settings.vector_db_provider == "pinecone":
        from memory_layer.stores.vectors.pinecone import open_pinecone

        if settings.vector_db_endpoint is None:
            raise UsageError("VECTOR_DB_PROVIDER=pinecone needs VECTOR_DB_ENDPOINT, the host of the index.")
        return await open_pinecone(settings.vector_db_endpoint, read_key)
    from memory_layer.stores.vectors.pgvector import open_pgvector

    dsn = settings.vector_db_endpoint or settings.database_url
    if dsn is None:
        raise UsageError("Neither VECTOR_DB_ENDPOINT nor DATABASE_URL is set, and pgvector needs one of them.")
    return await open_pgvector(dsn, size=size)


def joined_vectors(store: VectorStore, settings: Settings) -> JoinedVectors | None:
    """The store, if it lies in the canonical database and is reached there with the same rights."""
    from memory_layer.stores.vectors.pgvector import PgVector

    same = settings.vector_db_endpoint in (None, settings.database_url)
    return store if same and isinstance(store, PgVector) else None

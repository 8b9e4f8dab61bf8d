"""How much a vector store needs for twice the searches that are expected: plain arithmetic over a few figures with their sources.

Twice, so that half of the machines can fail or an hour can be twice as busy. The figures are of one data set and machine each:
they say where to begin and what to measure, not what to buy.
"""

from __future__ import annotations

import math
from typing import Any, Final

from memory_layer.config import Settings
from memory_layer.ops.report import Finding

HEADROOM: Final = 2

# Raw SQL over a binary-quantised HNSW with exact re-rank, 10,400 x 1536 floats, recall@10 0.978, 8 clients on 2 cores, load
# generator included: 1,647 a second, measured when the adapter was designed.
_PGVECTOR_A_CORE: Final = 800.0  # searches a second
_PGVECTOR_SECONDS: Final = 0.005  # that a search holds its connection: 8 clients at that rate
# Milvus was not measured under load. HNSW in memory is taken to cost a core what pgvector's costs.
_MILVUS_A_CORE: Final = _PGVECTOR_A_CORE
_MILVUS_NODE_CORES: Final = 4
_MILVUS_SEGMENT: Final = 1024**3  # bytes; its default for a sealed segment (dataCoord.segment.maxSize 1024 MB)
_HNSW_LINKS: Final = 32 * 8  # bytes a vector: 2 x M links on the lowest level, and their share of those above
# Pinecone's documentation as it stood in November 2026. "Understanding cost", section Query: 1 read unit for every 1 GB of the namespace,
# with a minimum of 0.25 for each query (https://docs.pinecone.io/guides/manage-cost/understanding-cost; so since 1 July 2025). "Database
# limits", query read units per second per index: 2,000 on every plan (https://docs.pinecone.io/reference/api/database-limits).
# The OpenAPI documents hold neither figure.
_PINECONE_LEAST: Final = 0.25
_PINECONE_MAX: Final = 2_000
_EXAMPLE: Final = 1_000_000  # vectors in one namespace


def size(settings: Settings, provider: str) -> Finding:
    """What ``provider`` needs, with every assumption in its evidence."""
    expected = settings.vector_projected_qps
    if expected is None:
        return Finding(
            "vectors.sizing",
            "info",
            "skip",
            "VECTOR_PROJECTED_QPS is not set, so nothing was reckoned.",
            "Set it to the searches a second that are expected at the busiest time.",
        )
    wanted = HEADROOM * expected
    text, needs, assumed = {"pgvector": _pgvector, "milvus": _milvus, "pinecone": _pinecone}[provider](settings, wanted)
    evidence = {"projectedQps": expected, "sizedForQps": wanted, "needs": needs, "assumed": assumed}
    return Finding(
        "vectors.sizing",
        "info",
        "pass",
        f"For {wanted:g} searches a second, twice the {expected:g} expected: {text}. Assumed: {'; '.join(assumed)}.",
        evidence=evidence,
    )


_Sized = tuple[str, dict[str, Any], list[str]]


def _pgvector(settings: Settings, wanted: float) -> _Sized:
    cores = math.ceil(wanted / _PGVECTOR_A_CORE)
    connections = max(2, math.ceil(wanted * _PGVECTOR_SECONDS))
    return (
        f"{cores} cores of Postgres for searches alone, {connections} connections",
        {"cores": cores, "connections": connections},
        [
            f"{_PGVECTOR_A_CORE:g} searches a second and core (binary-quantised HNSW with exact re-rank, 10,400 x 1536)",
            f"{_PGVECTOR_SECONDS * 1000:g} ms a search",
            "all in memory",
            f"dimension {settings.embeddings_dimensions}",
        ],
    )


def _milvus(settings: Settings, wanted: float) -> _Sized:
    cores = math.ceil(wanted / _MILVUS_A_CORE)
    nodes = max(2, math.ceil(cores / _MILVUS_NODE_CORES))  # two replicas, so that one can fail
    each = 4 * settings.embeddings_dimensions + _HNSW_LINKS
    segments = math.ceil(_EXAMPLE * 4 * settings.embeddings_dimensions / _MILVUS_SEGMENT)
    memory = round(_EXAMPLE * each / 1e9, 1)
    text = (
        f"{nodes} query nodes of {_MILVUS_NODE_CORES} cores, each with {memory:g} GB of memory and {segments} segments for every "
        "million vectors"
    )
    return (
        text,
        {
            "queryNodes": nodes,
            "coresEach": _MILVUS_NODE_CORES,
            "gigabytesAMillion": memory,
            "segmentsAMillion": segments,
        },
        [
            f"{_MILVUS_A_CORE:g} searches a second and core, which is pgvector's figure: Milvus was not measured under load",
            "HNSW with M 16 in memory",
            "segments of 1 GiB",
            "a replica whole on each node",
        ],
    )


def _pinecone(settings: Settings, wanted: float) -> _Sized:
    """Read units by the sources beside ``_PINECONE_LEAST``. A GB is 10^9 bytes: of a record, 4 for each dimension, and its metadata."""
    gigabytes = _EXAMPLE * (4 * settings.embeddings_dimensions + 1_000) / 1e9
    units = max(_PINECONE_LEAST, gigabytes)
    least, more = math.ceil(wanted * _PINECONE_LEAST), math.ceil(wanted * units)
    text = (
        f"{least} read units a second while no namespace is larger than 250 MB, {more} with a million vectors in each"
    )
    if more > _PINECONE_MAX:
        text += f"; an index answers {_PINECONE_MAX} a second unless Pinecone raises its limit"
    return (
        text,
        {"readUnitsASecond": {"smallNamespaces": least, "millionVectors": more}, "limit": _PINECONE_MAX},
        [
            "1 read unit for each GB of the namespace and query, 0.25 at least (docs.pinecone.io, Understanding cost)",
            f"{4 * settings.embeddings_dimensions} bytes a vector and 1,000 of metadata",
            "on-demand capacity",
        ],
    )

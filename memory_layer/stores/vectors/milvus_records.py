"""What the Milvus adapter keeps: names of collections, their fields, a node's row and filters over it.

One collection for each dimension, because a Milvus vector field has one, and one for the marks that removals leave:

``kernel_memory_dev_384``     ``pk``, ``space``, ``node``, ``rank``, ``facts``, ``embedding``
``kernel_memory_dev_removed``  the same without facts, with ``removed_at`` (epoch seconds) and a vector that means nothing

``space`` is the (tenant, namespace) in one injective name; ``pk`` is its digest and the node's hex, so it is unique over all
tenants and, within a space, orders by node. ``facts`` is the JSON that ``pinecone_records`` makes of a node's fields: tokens of
fixed alphabet and extremes of numbers. So an expression holds no name and no value of a caller, there is nothing to escape, and a
negation never meets a missing key, on which versions of Milvus disagree
(https://github.com/milvus-io/milvus/issues/47164).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from memory_layer.errors import UsageError
from memory_layer.filters import Filter
from memory_layer.stores.protocols import VectorEntry
from memory_layer.stores.vectors.pinecone_records import compile_filter, live_metadata
from memory_layer.stores.vectors.pinecone_shapes import encode_namespace

# https://milvus.io/docs/limitations.md
MAX_ROWS: Final = 4_000  # in one upsert; Milvus bounds the bytes alone
MAX_BYTES: Final = (
    16 * 2**20
)  # of one request or answer by our own reckoning; Milvus takes 64 MiB, a slow one not within the deadline
DEEPEST: Final = 16_384  # hits of one search, rows of one query
MAX_DIMENSIONS: Final = 32_768
OLDEST: Final = (2, 3, 5)
PARTITION_KEY_FROM: Final = (2, 4, 0)  # before it an upsert puts rows into the wrong partition
PARTITIONS: Final = 64
REMOVED: Final = "removed"
VECTOR: Final = "embedding"
_OVERHEAD: Final = 250  # bytes of a row's names and lengths on the wire
_COMPARISON: Final = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<=", "$eq": "=="}


@dataclass(frozen=True, slots=True)
class CollectionSpec:
    """All that makes a collection. ``provision`` prints it, ``milvus.create_collection`` makes it."""

    name: str
    dimension: int
    index: str  # HNSW, or FLAT where nothing is ever searched
    index_params: Mapping[str, int]
    partition_key: bool
    replicas: int = 1
    metric: str = "COSINE"


def collection_spec(
    environment: str, dimension: int | None, *, version: tuple[int, int, int] | None = None, replicas: int = 1
) -> CollectionSpec:
    """The collection for vectors of a dimension; for None the one of removal marks. ``version``: the server's; None: Milvus Lite."""
    partition_key = version is not None and version >= PARTITION_KEY_FROM
    name = collection_name(environment, dimension)
    if dimension is None:
        return CollectionSpec(name, 2, "FLAT", {}, partition_key=False, replicas=replicas)
    return CollectionSpec(name, dimension, "HNSW", {"M": 16, "efConstruction": 200}, partition_key, replicas)


def collection_name(environment: str, dimension: int | None) -> str:
    """Letters, digits and underscores are all that Milvus takes, so the guide's kernel-memory is written kernel_memory."""
    return f"kernel_memory_{re.sub('[^A-Za-z0-9_]', '_', environment)}_{REMOVED if dimension is None else dimension}"


def dimension_of(environment: str, collection: str) -> int | None:
    """The dimension of a collection of ours; None for any other one."""
    match = re.fullmatch(re.escape(collection_name(environment, 0)[:-1]) + "([1-9][0-9]{0,5})", collection)
    return int(match[1]) if match else None


def parse_version(text: str) -> tuple[int, int, int] | None:
    """``v2.3.5-lite`` is the server in one process, ``milvus_lite-3.2`` the library, which has no number of its own here."""
    match = re.fullmatch(r"v?(\d+)\.(\d+)(?:\.(\d+))?(?![.\d]).*", text.strip())
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else None


def is_lite(text: str) -> bool:
    return text.strip().lower().startswith("milvus_lite")


def check_database(name: str) -> str:
    """Raises UsageError unless it is a name that Milvus takes for a database."""
    if name and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", name):
        raise UsageError("The path of VECTOR_DB_ENDPOINT must be the name of a Milvus database, or be left out.")
    return name


def space_name(tenant: str, namespace: str) -> str:
    return encode_namespace(tenant, namespace)


def key_of(space: str, node: uuid.UUID) -> str:
    return prefix_of(space) + node.hex


def node_of(key: str) -> str:
    """The hex of the key's node."""
    return key[-32:]


def prefix_of(space: str) -> str:
    """What the keys of a space begin with: 192 bits of SHA-256, in 32 characters."""
    return base64.urlsafe_b64encode(hashlib.sha256(space.encode()).digest()[:24]).decode()


def live_row(space: str, entry: VectorEntry) -> tuple[dict[str, Any], int]:
    """A row and about how many bytes it takes on the wire. ``rank`` orders all that can happen to a node: 2 * version."""
    metadata = live_metadata(entry.version, entry.fields)
    # Every number as a float, and every operand too: no version then has to compare an integer with one.
    facts = {
        name: float(value) if isinstance(value, int) and not isinstance(value, bool) else value
        for name, value in json.loads(metadata).items()
        if name not in ("_live", "_version")
    }
    row = {
        "pk": key_of(space, entry.node_id),
        "space": space,
        "node": str(entry.node_id),
        "rank": 2 * entry.version,
        "facts": facts,
        VECTOR: entry.vector,
    }
    return row, 4 * entry.vector.shape[0] + len(metadata) + 2 * len(facts) + len(space) + _OVERHEAD


def removed_row(space: str, node: uuid.UUID, version: int, now: int) -> dict[str, Any]:
    """The mark of a removal, one higher than its version: nothing of the node."""
    return {
        "pk": key_of(space, node),
        "space": space,
        "node": str(node),
        "rank": 2 * version + 1,
        "removed_at": now,
        VECTOR: [1.0, 0.0],
    }


def portions(rows: Sequence[tuple[Any, int]], most_bytes: int = MAX_BYTES) -> Iterator[list[Any]]:
    """Rows with their sizes, in portions that one request takes, by count and by bytes."""
    portion: list[Any] = []
    size = 0
    for row, weight in rows:
        if portion and (len(portion) == MAX_ROWS or size + weight > most_bytes):
            yield portion
            portion, size = [], 0
        portion.append(row)
        size += weight
    if portion:
        yield portion


def expression(space: str, where: Filter | None = None) -> str:
    """A Milvus expression for the space's rows on which ``where`` holds (a superset)."""
    here = f"space == {_literal(space)}"
    return here if where is None else f"{here} and {_condition(compile_filter(where))}"


def beyond(where: str, after: str | None) -> str:
    """Of these rows the ones whose key is greater."""
    return where if after is None else f"{where} and pk > {_literal(after)}"


def past_space(space: str | None) -> str:
    """The rows of all spaces whose keys come after those of this one, which are a prefix and hexadecimal digits; None: of all."""
    return f"pk > {_literal('' if space is None else prefix_of(space) + 'g')}"


def other_spaces(spaces: Collection[str]) -> str:
    """The rows of all spaces but these."""
    return f"space not in {_literal(sorted(spaces))}"


def keys_expression(keys: Sequence[str], *, below: int | None = None) -> str:
    """The rows of these keys, or those of them with a rank below one."""
    here = f"pk in {_literal(list(keys))}"
    return here if below is None else f"{here} and rank < {below}"


def _condition(condition: Mapping[str, Any]) -> str:
    ((key, value),) = condition.items()
    if key in ("$and", "$or"):
        return "(" + f" {key[1:]} ".join(_condition(part) for part in value) + ")"
    ((operator, operand),) = value.items()
    if key == "_live":  # every row here is live: "all", or "none"
        return "rank >= 0" if operand else "rank < 0"
    field = f"facts[{_literal(key)}]"
    if operator in ("$in", "$nin"):
        return f"{'not ' if operator == '$nin' else ''}json_contains_any({field}, {_literal(operand)})"
    return f"{field} {_COMPARISON[operator]} {_literal(operand if isinstance(operand, bool) else float(operand))}"


def _literal(value: Any) -> str:
    return json.dumps(value)

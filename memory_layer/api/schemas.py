"""Request and response bodies: what is decoded, validated and written into the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

Owner = Annotated[str, Meta(min_length=1, max_length=256, description="whose memory it is")]
# In patterns `$` alone would let a final newline pass in Python's dialect; in JSON Schema's the lookahead changes nothing.
NamespaceName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,62}$(?!\n)",
        description="one embedding space; the server's default when absent",
    ),
]
EmbeddingId = Annotated[
    str, Meta(min_length=1, max_length=512, description="the caller's own id, unique among live nodes")
]
Ttl = Annotated[int, Meta(ge=3600, le=3_155_760_000, description="seconds until the node expires; at least an hour")]
Metadata = Annotated[dict[str, Any], Meta(description="any JSON object; filters reach into it as metadata.*")]
Timestamp = Annotated[str, Meta(max_length=64, description="RFC 3339", extra_json_schema={"format": "date-time"})]
Base64 = Annotated[
    str, Meta(description="base64 of little-endian float32", extra_json_schema={"contentEncoding": "base64"})
]
# For readers of the document: canonical.loads and decode.vector refuse the rest, and say where it is.
Number = Annotated[float, Meta(extra_json_schema={"minimum": -(2**53 - 1), "maximum": 2**53 - 1})]
Numbers = Annotated[list[Number], Meta(extra_json_schema={"minItems": 1, "maxItems": 16000})]
Hex = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Id = Annotated[str, Meta(extra_json_schema={"format": "uuid"})]


class Body(msgspec.Struct, forbid_unknown_fields=True, rename="camel", kw_only=True):
    """A request body: unknown members are refused."""


class EmbeddingBody(Body):
    """A vector of the caller's own."""

    model: Annotated[str, Meta(min_length=1, max_length=200)]
    dimension: Annotated[int, Meta(ge=1, le=16000, description="at most what a pgvector column holds")]
    vector: Numbers | Base64


class PiiFlags(Body, omit_defaults=True):
    """What readers without read:pii get redacted: the named paths, or all of content and metadata."""

    contains_pii: bool
    classification: Annotated[list[Annotated[str, Meta(max_length=128)]], Meta(max_length=64)] | UnsetType = UNSET
    paths: (
        Annotated[
            list[Annotated[str, Meta(max_length=1000, pattern=r"^(content|metadata(\.[^.]+)*)$(?!\n)")]],
            Meta(min_length=1, max_length=64),
        ]
        | UnsetType
    ) = UNSET


ManifestId = Annotated[
    str,
    Meta(
        pattern=r"^[ !#-\[\]-~]{1,128}$(?!\n)",
        description="the signed manifest that the object came with: its provenance",
    ),
]


class NodeArtifactBody(Body):
    """An object that lies in the object store already, below the tenant's own prefix; its bytes are read and hashed first."""

    artifact_url: Annotated[
        str, Meta(min_length=1, max_length=4096, description="s3://bucket/key, ?versionId=... to name one")
    ]
    sha256: Hex
    size_bytes: Annotated[int, Meta(ge=0, le=2**53 - 1)]
    manifest_signature_id: ManifestId | None = None
    retain_until: Annotated[Timestamp, Meta(description="locked until then at the least")] | None = None


class RegisterArtifactBody(Body):
    """An object that lies in the object store already, below the tenant's own prefix; its bytes are read and hashed first."""

    url: Annotated[str, Meta(min_length=1, max_length=4096, description="s3://bucket/key, ?versionId=... to name one")]
    sha256: Hex
    size_bytes: Annotated[int, Meta(ge=0, le=2**53 - 1)]
    name: Annotated[str, Meta(min_length=1, max_length=1024, description="file name")] | None = None
    content_type: Annotated[str, Meta(pattern=r"^[ -~]{1,255}$(?!\n)")] = "application/octet-stream"
    node: Annotated[Id, Meta(description="the node to attach it to")] | None = None
    manifest_signature_id: ManifestId | None = None
    retain_until: Annotated[Timestamp, Meta(description="locked until then at the least")] | None = None
    metadata: Metadata = {}


class RetentionBody(Body):
    retain_until: Annotated[Timestamp, Meta(description="later than the artifact is kept until now")]


DerivedFrom = Annotated[
    list[Annotated[str, Meta(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$(?!\n)")]],
    Meta(
        max_length=64, description="ids of the nodes that this one was made from; they are kept as given, not looked up"
    ),
]


Language = Annotated[
    str,
    Meta(
        pattern=r"^[a-z]{2,3}$(?!\n)",
        description="of the text, ISO 639 (en, de, ...): for its words; else the text tells",
    ),
]


Subjects = Annotated[
    list[Annotated[str, Meta(min_length=1, max_length=256)]],
    Meta(max_length=64, description="whom erasure finds; default, and where none is named: the owner"),
]
Thread = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=512,
        description="what it is a part of, a conversation or a document: with a search its neighbours there count",
    ),
]
Position = Annotated[
    int,
    Meta(ge=0, le=2**53 - 1, description="its place in its thread; nodes without one stand behind, by occurredAt"),
]


class CreateNodeBody(Body):
    """A new node. Text without a vector is embedded in the background."""

    owner: Owner
    namespace: NamespaceName | None = None
    embedding_id: EmbeddingId | None = None
    content: str | None = None
    metadata: Metadata = {}
    pii_flags: PiiFlags | None = None
    subjects: Subjects = []
    legal_hold: bool = False
    ttl_seconds: Ttl | None = None
    occurred_at: Timestamp | None = None
    derived_from: DerivedFrom | None = None
    language: Language | None = None
    thread: Thread | None = None
    position: Position | None = None
    embedding: EmbeddingBody | None = None
    artifacts: Annotated[
        list[NodeArtifactBody],
        Meta(max_length=100, description="verified first, then committed with the node, each with an entry of its own"),
    ] = []


class PutNodeBody(Body):
    """All that a node says; what is absent it does not say any more. A new node's namespace is the server's default when absent, a
    replaced one's stays. Holds are set, and files added, by calls of their own."""

    owner: Owner
    namespace: NamespaceName | None = None
    embedding_id: Annotated[EmbeddingId, Meta(description="where it is given: the one in the path")] | None = None
    content: str | None = None
    metadata: Metadata = {}
    pii_flags: PiiFlags | None = None
    subjects: Subjects = []
    ttl_seconds: Ttl | None = None
    occurred_at: Timestamp | None = None
    derived_from: DerivedFrom | None = None
    language: Language | None = None
    thread: Thread | None = None
    position: Position | None = None
    embedding: EmbeddingBody | None = None


class PatchNodeBody(Body):
    """What to change; absent members stay. metadata is merged (RFC 7396: null removes a key)."""

    owner: Owner | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    embedding_id: EmbeddingId | UnsetType | None = UNSET
    metadata: Metadata | UnsetType = UNSET
    pii_flags: PiiFlags | UnsetType = UNSET
    subjects: Subjects | UnsetType = UNSET
    ttl_seconds: Ttl | UnsetType | None = UNSET
    occurred_at: Timestamp | UnsetType | None = UNSET
    derived_from: DerivedFrom | UnsetType | None = UNSET
    language: Language | UnsetType | None = UNSET
    thread: Annotated[Thread | UnsetType | None, Meta(description="null takes the node out, its position too")] = UNSET
    position: Position | UnsetType | None = UNSET
    embedding: EmbeddingBody | UnsetType = UNSET


class LegalHoldBody(Body):
    legal_hold: bool
    reason: Annotated[str, Meta(min_length=1, max_length=1000)]
    case_id: Annotated[str, Meta(min_length=1, max_length=200)] | None = None


class ContextBody(Body):
    """How many neighbours of each hit in its thread are answered with it."""

    before: Annotated[int, Meta(ge=0, le=10)] = 0
    after: Annotated[int, Meta(ge=0, le=10)] = 0


class RecencyBody(Body):
    half_life_days: Annotated[float, Meta(gt=0, le=36500, description="a node this old gets half of the weight")] = 30
    weight: Annotated[float, Meta(ge=0, le=1, description="what a node of this moment gets")] = 0.1


class SearchBody(Body):
    """query (text), queryEmbedding (a vector) or both."""

    query: Annotated[str, Meta(min_length=1, max_length=20000)] | None = None
    query_embedding: Numbers | Base64 | None = None
    top_k: Annotated[int, Meta(ge=1, le=1000)] = 10
    filter: dict[str, Any] | None = None
    namespace: NamespaceName | None = None
    score_threshold: (
        Annotated[
            float,
            Meta(
                ge=-1,
                le=1,
                description="least cosine similarity of a hit: of semantic and hybrid searches; it removes hits and moves none",
            ),
        ]
        | None
    ) = None
    mode: Literal["semantic", "keyword", "hybrid"] | None = None
    context: ContextBody | None = None
    explain: Annotated[bool, Meta(description="why each hit was found, and what was left out")] = False
    recency: (
        Annotated[RecencyBody, Meta(description="the younger a node is, the more is added to its score")] | None
    ) = None


class Query(msgspec.Struct, forbid_unknown_fields=True, rename="camel", kw_only=True):
    """Query parameters."""


class NoQuery(Query):
    pass


class WaitQuery(Query):
    wait: (
        Annotated[Literal["indexed"], Meta(description="answer when the vector is searchable; after 10 s: 202")] | None
    ) = None


class ListBody(Body):
    """A filter, and where to go on: what the list takes in its URL."""

    filter: dict[str, Any] | None = None
    cursor: Annotated[str, Meta(max_length=1000)] | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 50


class ListQuery(Query):
    filter: Annotated[str, Meta(description="a filter as JSON")] | None = None
    cursor: Annotated[str, Meta(max_length=1000)] | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 50


class HistoryQuery(Query):
    cursor: Annotated[str, Meta(max_length=1000)] | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 100


class UploadQuery(Query):
    memory_node_id: Annotated[Id, Meta(description="the node to attach it to")] | None = None
    name: Annotated[str, Meta(min_length=1, max_length=1024, description="file name")] | None = None


class ArtifactsQuery(Query):
    memory_node_id: Annotated[Id, Meta(description="of this node alone")] | None = None
    cursor: Annotated[str, Meta(max_length=1000)] | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 50


class ContentQuery(Query):
    link: Annotated[
        bool,
        Meta(description="answer 302 to a link that is good for five minutes, where the object store has such a thing"),
    ] = False


class Answer(msgspec.Struct, rename="camel", kw_only=True):
    """A response body; later versions may add members."""


class Receipt(Answer):
    seq: int
    hash: Hex


class ArtifactAnswer(Answer):
    artifact_id: Id
    memory_node_id: Id | None
    name: str | None
    url: str
    version_id: str
    sha256: Hex
    size_bytes: int
    content_type: str
    manifest_signature_id: str | None
    metadata: dict[str, Any]
    legal_hold: Annotated[bool, Meta(description="its node's")]
    retain_until: Annotated[Timestamp, Meta(description="locked until then")] | None
    verified_at: Annotated[Timestamp, Meta(description="when its stored bytes were last found right")] | None
    fault: (
        Annotated[
            Literal["corrupt", "missing", "shadowed", "unlocked"], Meta(description="what the last check found wrong")
        ]
        | None
    )
    created_by: Id
    created_at: Timestamp


class StoredArtifact(ArtifactAnswer):
    audit_id: Id
    audit: Receipt


class ArtifactPage(Answer):
    items: list[ArtifactAnswer]
    next_cursor: str | None
    dropped: Annotated[dict[str, int], Meta(description="artifacts that are not shown, by reason: tampered")]


class CreatedNode(Answer):
    memory_node_id: Id
    version: int
    embedding_job_id: Id | None
    audit_id: Id
    audit: Receipt
    artifacts: Annotated[list[StoredArtifact], Meta(description="where the node came with some")] | UnsetType = UNSET
    indexed: (
        Annotated[bool, Meta(description="with wait=indexed: whether it is searchable; false when 10 s did not do")]
        | UnsetType
    ) = UNSET


class VectorAnswer(Answer):
    job_id: Id
    status: Literal["pending", "in_flight", "succeeded", "failed", "dead", "deleting", "deleted"]
    provider: str
    namespace: str
    model: str | None
    dimension: int | None
    error: str | None


class LatestAudit(Answer):
    audit_id: Id
    seq: int
    hash: Hex
    type: str


class JobAnswer(Answer):
    """An indexing job: what brings one version of a node into the index, or the node out of it (deleting, deleted)."""

    job_id: Id
    memory_node_id: Id
    version: int
    namespace: Annotated[str, Meta(description="of the index: a generation of the node's namespace")]
    provider: str
    model: str | None
    dimension: int | None
    status: Literal["pending", "in_flight", "succeeded", "failed", "dead", "deleting", "deleted"]
    text_read: Annotated[
        Literal["whole", "part", "none"] | None,
        Meta(
            description="how much of the text its vector stands for. part: of a very long one, evenly spread parts; none: the model cannot "
            "read it, so it has no vector and is found by its words; null: not embedded here, or not yet, or the model does not say"
        ),
    ]
    attempts: int
    error: str | None
    error_class: Literal["permanent", "retryable", "cancelled"] | None
    next_attempt_at: Timestamp | None
    leased_until: Annotated[Timestamp, Meta(description="while a worker has it in hand")] | None
    created_at: Timestamp
    updated_at: Timestamp


class NodeAnswer(Answer):
    memory_node_id: Id
    version: int
    owner: str
    namespace: str
    embedding_id: str | None
    content: str | None
    metadata: Annotated[Any, Meta(description="a JSON object; '[redacted]' without read:pii where it is flagged")]
    pii_flags: dict[str, Any]
    subjects: list[str]
    legal_hold: bool
    legal_hold_reason: str | None
    ttl_seconds: int | None
    expires_at: Timestamp | None
    occurred_at: Timestamp | None
    derived_from: Annotated[
        list[str] | None, Meta(description="ids of the nodes that it was made from, as its writer says")
    ]
    language: Annotated[str | None, Meta(description="of the text, as its writer says")]
    thread: Annotated[str | None, Meta(description="what it is a part of")]
    position: Annotated[int | None, Meta(description="its place there")]
    created_at: Timestamp
    updated_at: Timestamp
    artifacts: list[ArtifactAnswer]
    dropped: Annotated[dict[str, int], Meta(description="artifacts of it that are not shown, by reason: tampered")]
    vector: VectorAnswer | None
    audit: LatestAudit | None
    artifacts_left_out: (
        Annotated[int, Meta(description="how many more it has, where they are too many for one answer")] | UnsetType
    ) = UNSET


class NodePage(Answer):
    items: list[NodeAnswer]
    next_cursor: str | None
    dropped: Annotated[dict[str, int], Meta(description="nodes that are not shown, by reason: tampered")]


class EventAnswer(Answer):
    audit_id: Id
    seq: int
    type: str
    memory_node_id: Id | None
    artifact_id: Id | None
    version: int | None
    actor: str
    request_id: str
    created_at: Timestamp
    hash: Hex
    prev_hash: Hex
    batch: int
    signature: str
    entry: Annotated[str, Meta(description="the exact bytes that are hashed")]


class EventPage(Answer):
    items: list[EventAnswer]
    next_cursor: str | None


class VectorRef(Answer):
    provider: str
    namespace: str
    model: str | None
    dimension: int | None
    version: int


class Neighbour(Answer):
    """What stands beside a hit in its thread."""

    memory_node_id: Id
    content: str | None
    metadata: Any
    occurred_at: Timestamp | None
    position: int | None


class ContextAnswer(Answer):
    """Neighbours that the same search might have found, in the order of the thread."""

    before: list[Neighbour]
    after: list[Neighbour]


class WordWeight(Answer):
    word: Annotated[str, Meta(description="as it is looked up: without its ending")]
    weight: Annotated[float, Meta(description="the most that it can add to the keyword score")]


class NeighbourShare(Answer):
    memory_node_id: Id
    distance: Annotated[int, Meta(description="in the thread; 1: next to each other")]
    gave: float


class HitExplanation(Answer):
    words: Annotated[list[WordWeight], Meta(description="of the query, in its text")]
    cosine: Annotated[float | None, Meta(description="null: the index did not name it")]
    neighbour: Annotated[NeighbourShare | None, Meta(description="the one that gave it most")]
    thread_best: Annotated[list[Id], Meta(description="the best of its thread, of which each of its hits gets a share")]
    date: Annotated[str | None, Meta(description="the time of the query that it is of")]
    age_days: Annotated[float | None, Meta(description="with recency")]


class IndexUse(Answer):
    way: Annotated[str | None, Meta(description="of pgvector: entries, near, few or scan")]
    exact: Annotated[bool | None, Meta(description="whether nothing was passed over; null: it was not asked")]


class LeftOut(Answer):
    memory_node_id: Id
    reason: str


class NamedTime(Answer):
    text: str
    start: Annotated[Timestamp | None, Meta(description="null: it has none")]
    end: Annotated[Timestamp | None, Meta(description="the first moment behind it; null: it has none")]


class SearchExplanation(Answer):
    index: IndexUse
    words: Annotated[list[WordWeight], Meta(description="of the query, in some text of the namespace")]
    left_out: Annotated[list[LeftOut], Meta(description="up to 100, with read:pii alone")]
    dates: Annotated[list[NamedTime], Meta(description="times that the query names")]


class SearchResult(Answer):
    memory_node_id: Id
    score: float
    scores: Annotated[
        dict[str, float],
        Meta(
            description="semantic (cosine) and keyword (0..1) as they are; neighbours, thread, date and recency: what each added to score"
        ),
    ]
    owner: str
    content: str | None
    metadata: Any
    occurred_at: Timestamp | None
    created_at: Timestamp
    thread: str | None
    position: int | None
    version: int
    artifact_ids: list[Id]
    vector_ref: VectorRef | None
    context: Annotated[ContextAnswer, Meta(description="where it was asked for")] | UnsetType = UNSET
    explain: Annotated[HitExplanation, Meta(description="where it was asked for")] | UnsetType = UNSET


class SearchAnswer(Answer):
    results: list[SearchResult]
    exact: bool
    mode: Literal["semantic", "keyword", "hybrid"]
    degraded: bool
    query_readable: Annotated[
        bool, Meta(description="false: the model cannot read the query, so nothing was looked for by meaning")
    ]
    dropped: Annotated[dict[str, int], Meta(description="index hits that Postgres did not vouch for, by reason")]
    pending: Annotated[
        int | UnsetType,
        Meta(description="writes of the namespace that are not found by meaning yet, 1000 at the most; absent: none"),
    ] = UNSET
    explain: Annotated[SearchExplanation, Meta(description="where it was asked for")] | UnsetType = UNSET


class FreezeInfo(Answer):
    reason: str
    since: str
    until: str | None


class HealthAnswer(Answer):
    status: Literal["ok", "frozen", "degraded", "down"]
    checks: dict[str, str]
    indexing: dict[str, float]
    breakers: Annotated[dict[str, str], Meta(description="services that a worker does without: open or half_open")]
    frozen: Annotated[
        FreezeInfo | UnsetType, Meta(description="while an operator's freeze refuses all writes: why, and how long")
    ] = UNSET


class LiveAnswer(Answer):
    status: Literal["ok"]


class ReadyAnswer(Answer):
    status: Literal["ready", "not ready"]
    checks: dict[str, str]


class ErrorDetail(Answer):
    path: str
    problem: str


class ErrorInfo(Answer):
    code: str
    message: str
    details: list[ErrorDetail]
    request_id: str
    retryable: bool


class ItemError(Answer):
    code: str
    message: str
    details: list[ErrorDetail]
    retryable: bool


class CreatedItem(Answer):
    """What became of one node of a bulk request: as ``CreatedNode``, or nothing but the error."""

    memory_node_id: Id | UnsetType = UNSET
    version: int | UnsetType = UNSET
    embedding_job_id: Id | UnsetType | None = UNSET
    audit_id: Id | UnsetType = UNSET
    audit: Receipt | UnsetType = UNSET
    artifacts: list[StoredArtifact] | UnsetType = UNSET
    error: ItemError | UnsetType = UNSET


class CreatedNodes(Answer):
    """One answer for each node of the request, in its order."""

    items: list[CreatedItem]
    indexed: Annotated[bool, Meta(description="with wait=indexed: whether all are searchable")] | UnsetType = UNSET


class ErrorAnswer(Answer):
    error: ErrorInfo


class EventsQuery(Query):
    type: Annotated[str, Meta(max_length=128, description="as in memory.node.created")] | None = None
    memory_node_id: Id | None = None
    artifact_id: Id | None = None
    since: Annotated[Timestamp, Meta(description="created then or later")] | None = None
    until: Annotated[Timestamp, Meta(description="created before then")] | None = None
    cursor: Annotated[str, Meta(max_length=1000)] | None = None
    limit: Annotated[int, Meta(ge=1, le=100)] = 50


class ConsistencyQuery(Query):
    from_: Annotated[int, Meta(ge=0, le=2**53 - 1, description="size of the tree that is known")] = msgspec.field(
        name="from", default=0
    )
    to: Annotated[int, Meta(ge=0, le=2**53 - 1, description="size of the larger tree; default: the newest")] | None = (
        None
    )


class SealAnswer(Answer):
    text: Annotated[str, Meta(description="the exact bytes that are signed")]
    signature: str
    key_id: Hex
    algorithm: str


class PayloadAnswer(Answer):
    """What an entry commits to. ``bytes`` and ``salt`` let anybody recompute the commitment."""

    status: Annotated[
        Literal["shown", "redacted", "withheld", "erased", "none"],
        Meta(description="redacted: without read:pii; withheld: another tenant's"),
    ]
    value: dict[str, Any] | UnsetType = UNSET
    bytes: Annotated[str, Meta(description="base64")] | UnsetType = UNSET
    salt: Annotated[str, Meta(description="base64 of 32 bytes")] | UnsetType = UNSET


class AuditEventAnswer(Answer):
    audit_id: Id
    seq: int
    type: str
    memory_node_id: Id | None
    artifact_id: Id | None
    version: int | None
    actor: str
    request_id: str
    created_at: Timestamp
    hash: Hex
    prev_hash: Hex
    batch: int
    seal: SealAnswer
    entry: Annotated[dict[str, Any], Meta(description="the members of the entry")]
    entry_bytes: Annotated[str, Meta(description="base64 of the exact bytes that are hashed")]
    payload: PayloadAnswer


class ConsistencyAnswer(Answer):
    origin: str
    from_: int = msgspec.field(name="from")
    to: int
    hashes: Annotated[list[str], Meta(description="base64, as RFC 9162, section 2.1.4 orders them")]
    checkpoint: Annotated[str, Meta(description="the signed note of size to, where there is one")] | None

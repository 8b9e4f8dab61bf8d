"""The table of calls. Routing, authorisation, decoding and the OpenAPI document all come from here, so they cannot differ."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from memory_layer import errors
from memory_layer.api import admin_handlers, artifact_handlers, audit_handlers, handlers, job_handlers, schemas
from memory_layer.api.calls import Answer, Call

E = type[errors.MemoryLayerError]
_WRITE: tuple[E, ...] = (
    errors.IdempotencyMismatch,
    errors.SignerUnavailable,
    errors.Frozen,
    errors.RollbackDetected,
    errors.Overloaded,
)


@dataclass(frozen=True, slots=True)
class Operation:
    """One call. ``answers`` maps a success status to its body's type (None: no body, bytes: binary)."""

    method: str
    path: str
    name: str
    summary: str
    scope: str
    handler: Callable[[Call], Awaitable[Answer]]
    answers: Mapping[int, type | None]
    body: type | None = None
    query: type[schemas.Query] = schemas.NoQuery
    headers: Mapping[str, str] = field(default_factory=dict)
    streams: bool = False
    many: bool = False  # the body is a JSON array of ``body``, or one of them a line (NDJSON)
    errors: tuple[E, ...] = ()
    writes: bool = False
    public: Literal["checkpoint", "tiles"] | None = (
        None  # what AUDIT_PUBLIC must say for it to be served without a token
    )


# What an object that lies in the store already may be refused for.
_REGISTER: tuple[E, ...] = (
    errors.NotFound,
    errors.Conflict,
    errors.ChecksumMismatch,
    errors.PayloadTooLarge,
    errors.ObjectStoreUnavailable,
)
_IF_MATCH = {"If-Match": "the ETag that the node must still have"}


def _write(method: str, path: str, name: str, summary: str, scope: str, handler: Any, **more: Any) -> Operation:
    raised = (*more.pop("errors", ()), *_WRITE)
    return Operation(method, path, name, summary, scope, handler, errors=raised, writes=True, **more)


OPERATIONS: tuple[Operation, ...] = (
    _write(
        "POST",
        "/v1/memory/nodes",
        "createNode",
        "Create a node",
        "memory:write",
        handlers.create_node,
        answers={201: schemas.CreatedNode, 202: schemas.CreatedNode, 200: schemas.CreatedNode},
        body=schemas.CreateNodeBody,
        query=schemas.WaitQuery,
        errors=(errors.Conflict, errors.DimensionMismatch, *_REGISTER),
    ),
    _write(
        "POST",
        "/v1/memory/nodes:batch",
        "createNodes",
        "Create up to 1,000 nodes in one transaction; one that is refused fails alone",
        "memory:write",
        handlers.create_nodes,
        answers={200: schemas.CreatedNodes, 202: schemas.CreatedNodes},
        body=schemas.CreateNodeBody,
        query=schemas.WaitQuery,
        many=True,
        errors=(errors.PayloadTooLarge, errors.ObjectStoreUnavailable),
    ),
    Operation(
        "GET",
        "/v1/memory/nodes",
        "listNodes",
        "List live nodes, newest first",
        "memory:read",
        handlers.list_nodes,
        answers={200: schemas.NodePage},
        query=schemas.ListQuery,
        errors=(errors.InvalidCursor, errors.RollbackDetected),
    ),
    Operation(
        "POST",
        "/v1/memory/nodes:list",
        "findNodes",
        "List live nodes, newest first, by a filter that is too long for a URL",
        "memory:read",
        handlers.find_nodes,
        answers={200: schemas.NodePage},
        body=schemas.ListBody,
        errors=(errors.InvalidCursor, errors.RollbackDetected),
    ),
    Operation(
        "GET",
        "/v1/memory/nodes/{id}",
        "getNode",
        "A node with its artifacts, vector status and latest audit entry",
        "memory:read",
        handlers.get_node,
        answers={200: schemas.NodeAnswer},
        errors=(errors.NotFound, errors.Tampered, errors.RollbackDetected),
    ),
    _write(
        "PUT",
        "/v1/memory/nodes/by-external/{embeddingId:any}",
        "putNode",
        "Create a node under the caller's own id, or replace the live one that has it",
        "memory:write",
        handlers.put_node,
        answers={201: schemas.CreatedNode, 200: schemas.CreatedNode, 202: schemas.CreatedNode},
        body=schemas.PutNodeBody,
        query=schemas.WaitQuery,
        headers=_IF_MATCH,
        errors=(
            errors.Tampered,
            errors.LegalHold,
            errors.Conflict,
            errors.PreconditionFailed,
            errors.DimensionMismatch,
        ),
    ),
    _write(
        "PATCH",
        "/v1/memory/nodes/{id}",
        "patchNode",
        "Change a node: merge metadata, replace its other members",
        "memory:write",
        handlers.patch_node,
        answers={200: schemas.CreatedNode, 202: schemas.CreatedNode},
        body=schemas.PatchNodeBody,
        query=schemas.WaitQuery,
        headers=_IF_MATCH,
        errors=(
            errors.NotFound,
            errors.Tampered,
            errors.LegalHold,
            errors.PreconditionFailed,
            errors.DimensionMismatch,
        ),
    ),
    _write(
        "DELETE",
        "/v1/memory/nodes/{id}",
        "deleteNode",
        "Soft-delete a node; refused under legal hold",
        "memory:delete",
        handlers.delete_node,
        answers={204: None},
        headers=_IF_MATCH,
        errors=(errors.NotFound, errors.Tampered, errors.LegalHold, errors.PreconditionFailed),
    ),
    Operation(
        "GET",
        "/v1/memory/nodes/{id}/history",
        "nodeHistory",
        "The audit entries of a node, oldest first",
        "memory:read",
        handlers.node_history,
        answers={200: schemas.EventPage},
        query=schemas.HistoryQuery,
        errors=(errors.NotFound, errors.InvalidCursor, errors.Tampered, errors.RollbackDetected),
    ),
    _write(
        "POST",
        "/v1/memory/nodes/{id}/legal-hold",
        "setLegalHold",
        "Set or release a node's legal hold",
        "memory:legal_hold",
        handlers.set_hold,
        answers={204: None},
        body=schemas.LegalHoldBody,
        errors=(errors.NotFound, errors.Tampered),
    ),
    Operation(
        "POST",
        "/v1/memory/search",
        "search",
        "Find nodes by meaning, by words, or by both",
        "memory:read",
        handlers.search_nodes,
        answers={200: schemas.SearchAnswer},
        body=schemas.SearchBody,
        errors=(
            errors.Tampered,
            errors.RollbackDetected,
            errors.DimensionMismatch,
            errors.PayloadTooLarge,
            errors.VectorStoreUnavailable,
            errors.EmbedderUnavailable,
        ),
    ),
    _write(
        "PUT",
        "/v1/memory/artifacts",
        "uploadArtifact",
        "Upload a file; the body streams to the object store",
        "memory:write",
        artifact_handlers.upload_artifact,
        answers={201: schemas.StoredArtifact, 200: schemas.StoredArtifact},
        query=schemas.UploadQuery,
        headers={
            "X-Content-SHA256": "lower-hex SHA-256 of the body; enforced when given",
            "X-Retain-Until": "RFC 3339; the bytes are locked until then",
        },
        streams=True,
        errors=(
            errors.NotFound,
            errors.Tampered,
            errors.ChecksumMismatch,
            errors.PayloadTooLarge,
            errors.ObjectStoreUnavailable,
        ),
    ),
    _write(
        "POST",
        "/v1/memory/artifacts",
        "registerArtifact",
        "Register an object that lies in the object store already; its bytes are read and hashed first",
        "memory:write",
        artifact_handlers.register_artifact,
        answers={201: schemas.StoredArtifact, 200: schemas.StoredArtifact},
        body=schemas.RegisterArtifactBody,
        errors=_REGISTER,
    ),
    _write(
        "POST",
        "/v1/memory/artifacts/{id}/retention",
        "extendRetention",
        "Keep an artifact longer; what it is kept for already is never shortened",
        "memory:write",
        artifact_handlers.extend_retention,
        answers={200: schemas.StoredArtifact},
        body=schemas.RetentionBody,
        errors=(errors.NotFound, errors.Tampered, errors.Conflict, errors.ObjectStoreUnavailable),
    ),
    Operation(
        "GET",
        "/v1/memory/artifacts",
        "listArtifacts",
        "List artifacts, newest first: all, or those of a node",
        "memory:read",
        artifact_handlers.list_artifacts,
        answers={200: schemas.ArtifactPage},
        query=schemas.ArtifactsQuery,
        errors=(errors.InvalidCursor, errors.RollbackDetected),
    ),
    _write(
        "DELETE",
        "/v1/memory/artifacts/{id}",
        "deleteArtifact",
        "Delete an artifact; refused while it is held or locked",
        "memory:delete",
        artifact_handlers.delete_artifact,
        answers={204: None},
        errors=(errors.NotFound, errors.Tampered, errors.LegalHold, errors.Conflict),
    ),
    Operation(
        "GET",
        "/v1/memory/artifacts/{id}",
        "getArtifact",
        "An artifact's row",
        "memory:read",
        artifact_handlers.get_artifact,
        answers={200: schemas.ArtifactAnswer},
        errors=(errors.NotFound, errors.Tampered, errors.RollbackDetected),
    ),
    Operation(
        "GET",
        "/v1/memory/artifacts/{id}/content",
        "artifactContent",
        "An artifact's bytes, re-hashed on the way, of which one range may be asked for; or a time-limited link to them",
        "memory:read",
        artifact_handlers.artifact_content,
        answers={200: bytes, 206: bytes, 302: None},
        query=schemas.ContentQuery,
        headers={"Range": "bytes=first-last"},
        errors=(
            errors.NotFound,
            errors.Tampered,
            errors.RangeNotSatisfiable,
            errors.ObjectStoreUnavailable,
            errors.RollbackDetected,
        ),
    ),
    Operation(
        "GET",
        "/v1/memory/vectors/jobs/{id}",
        "getIndexingJob",
        "An indexing job: its status, attempts and last error",
        "memory:read",
        job_handlers.get_job,
        answers={200: schemas.JobAnswer},
        errors=(errors.NotFound,),
    ),
    _write(
        "POST",
        "/v1/memory/vectors/jobs/{id}/cancel",
        "cancelIndexingJob",
        "Stop the indexing of a version that is waiting, failed or dead; refused once it is done, and for a removal",
        "memory:write",
        job_handlers.cancel_job,
        answers={200: schemas.JobAnswer},
        errors=(errors.NotFound, errors.Tampered, errors.Conflict),
    ),
    _write(
        "POST",
        "/v1/memory/vectors/jobs/{id}/retry",
        "retryIndexingJob",
        "Make a job that is waiting, failed, dead or cancelled due at once, with all its attempts before it",
        "memory:write",
        job_handlers.retry_job,
        answers={200: schemas.JobAnswer},
        errors=(errors.NotFound, errors.Tampered, errors.Conflict),
    ),
    Operation(
        "GET",
        "/v1/audit/events",
        "listEvents",
        "List audit entries, newest first: the tenant's, or with audit:all everybody's",
        "audit:read",
        audit_handlers.list_events,
        answers={200: schemas.EventPage},
        query=schemas.EventsQuery,
        errors=(errors.InvalidCursor, errors.Overloaded),
    ),
    Operation(
        "GET",
        "/v1/audit/events/{id}",
        "getEvent",
        "An audit entry with its exact bytes, its seal and its payload",
        "audit:read",
        audit_handlers.get_event,
        answers={200: schemas.AuditEventAnswer},
        errors=(errors.NotFound,),
    ),
    Operation(
        "GET",
        "/v1/audit/events/{id}/proof",
        "eventProof",
        "Proof that the entry is in the log (c2sp.org/tlog-proof@v1), the entry included",
        "audit:read",
        audit_handlers.get_proof,
        answers={200: str},
        errors=(errors.NotFound, errors.NotYetPublished),
    ),
    Operation(
        "GET",
        "/v1/audit/checkpoint",
        "getCheckpoint",
        "The newest checkpoint of the log, a signed note (c2sp.org/tlog-checkpoint)",
        "audit:read",
        audit_handlers.get_checkpoint,
        answers={200: str},
        public="checkpoint",
        errors=(errors.NotYetPublished,),
    ),
    Operation(
        "GET",
        "/v1/audit/consistency",
        "getConsistency",
        "Proof that a smaller tree of the log is the beginning of a larger one (RFC 9162)",
        "audit:read",
        audit_handlers.get_consistency,
        answers={200: schemas.ConsistencyAnswer},
        public="tiles",
        query=schemas.ConsistencyQuery,
        errors=(errors.NotYetPublished,),
    ),
    Operation(
        "GET",
        "/v1/audit/tile/{path:path}",
        "getTile",
        "A tile of the log's tree, <L>/<N>[.p/<W>] (c2sp.org/tlog-tiles); entries/<N>[.p/<W>] needs audit:all",
        "audit:read",
        audit_handlers.get_tile,
        answers={200: bytes},
        public="tiles",
        errors=(errors.NotFound, errors.NotYetPublished),
    ),
    Operation(
        "GET",
        "/v1/admin/api-keys",
        "listApiKeys",
        "List API keys, newest first, revoked and expired ones too",
        "admin",
        admin_handlers.list_api_keys,
        answers={200: schemas.ApiKeyPage},
        query=schemas.ApiKeysQuery,
        errors=(errors.NotFound,),
    ),
    _write(
        "POST",
        "/v1/admin/api-keys",
        "createApiKey",
        "Make an API key for a service; the answer shows it, once",
        "admin",
        admin_handlers.create_api_key,
        answers={201: schemas.CreatedApiKey, 200: schemas.CreatedApiKey},
        body=schemas.CreateApiKeyBody,
        errors=(errors.NotFound, errors.Conflict),
    ),
    _write(
        "POST",
        "/v1/admin/api-keys/{id}/rotate",
        "rotateApiKey",
        "Put a new API key in the place of one, which goes on for a while beside it",
        "admin",
        admin_handlers.rotate_api_key,
        answers={201: schemas.CreatedApiKey, 200: schemas.CreatedApiKey},
        body=schemas.RotateApiKeyBody,
        errors=(errors.NotFound, errors.Conflict),
    ),
    _write(
        "POST",
        "/v1/admin/api-keys/{id}/revoke",
        "revokeApiKey",
        "Refuse an API key for good, within 5 s",
        "admin",
        admin_handlers.revoke_api_key,
        answers={200: schemas.RevokedApiKey},
        body=schemas.ReasonBody,
        errors=(errors.NotFound, errors.Conflict),
    ),
)

-- Reads of nodes and artifacts. All run in a transaction that names its tenant; row-level security stands behind them.

-- name: get_nodes
SELECT n.tenant, n.id, n.owner, n.namespace, n.embedding_id, n.content, n.metadata, n.pii_flags, n.subjects, n.legal_hold,
       n.legal_hold_reason, n.ttl_seconds, n.expires_at, n.occurred_at, n.version, n.created_at, n.updated_at, n.deleted_at
FROM memory_nodes n
WHERE n.tenant = %(tenant)s AND n.id = ANY (%(ids)b::uuid[]) AND n.deleted_at IS NULL
  AND (n.legal_hold OR n.expires_at IS NULL OR n.expires_at > clock_timestamp())

-- name: list_nodes
-- Newest first: ids are UUIDv7, so the primary key is in the order of creation and no other index is needed.
-- A page ends at a number of rows or of bytes (the row that crosses it included), whichever comes first; `looked` is how many
-- rows there were before the bytes were counted.
SELECT n.tenant, n.id, n.owner, n.namespace, n.embedding_id, n.content, n.metadata, n.pii_flags, n.subjects, n.legal_hold,
       n.legal_hold_reason, n.ttl_seconds, n.expires_at, n.occurred_at, n.version, n.created_at, n.updated_at, n.deleted_at,
       n.size, n.looked
FROM (
    SELECT n.*, count(*) OVER () AS looked, sum(n.size) OVER newest - n.size AS before
    FROM (
    SELECT n.*, coalesce(octet_length(n.content), 0) + pg_column_size(n.metadata) AS size
    FROM memory_nodes n
    WHERE n.tenant = %(tenant)s AND n.deleted_at IS NULL
      AND (n.legal_hold OR n.expires_at IS NULL OR n.expires_at > clock_timestamp())
      AND (%(after)s::uuid IS NULL OR n.id < %(after)s::uuid)
    ORDER BY n.id DESC LIMIT %(limit)s
    ) n
    WINDOW newest AS (ORDER BY n.id DESC)
) n
WHERE n.before < %(bytes)s
ORDER BY n.id DESC

-- name: list_nodes_by_embedding_id
SELECT n.tenant, n.id, n.owner, n.namespace, n.embedding_id, n.content, n.metadata, n.pii_flags, n.subjects, n.legal_hold,
       n.legal_hold_reason, n.ttl_seconds, n.expires_at, n.occurred_at, n.version, n.created_at, n.updated_at, n.deleted_at,
       n.size, n.looked
FROM (
    SELECT n.*, count(*) OVER () AS looked, sum(n.size) OVER newest - n.size AS before
    FROM (
    SELECT n.*, coalesce(octet_length(n.content), 0) + pg_column_size(n.metadata) AS size
    FROM memory_nodes n
    WHERE n.tenant = %(tenant)s AND n.embedding_id IS NOT NULL AND n.embedding_id = ANY (%(embedding_ids)b::text[])
      AND n.deleted_at IS NULL
      AND (n.legal_hold OR n.expires_at IS NULL OR n.expires_at > clock_timestamp())
      AND (%(after)s::uuid IS NULL OR n.id < %(after)s::uuid)
    ORDER BY n.id DESC LIMIT %(limit)s
    ) n
    WINDOW newest AS (ORDER BY n.id DESC)
) n
WHERE n.before < %(bytes)s
ORDER BY n.id DESC

-- name: node_contents
SELECT n.id, CASE WHEN sum(octet_length(n.content)) OVER () <= %(bytes)s THEN n.content END AS content,
       sum(octet_length(n.content)) OVER () AS bytes
FROM memory_nodes n WHERE n.tenant = %(tenant)s AND n.id = ANY (%(ids)b::uuid[])

-- name: active_vectors
-- Each node's row in the generation of the index that answers now, whichever namespace it is in; another one where it has none there.
SELECT DISTINCT ON (v.memory_node_id) v.id, v.memory_node_id, v.namespace, v.provider, v.embedding_model, v.dimension,
       v.status, v.error, v.version
FROM memory_vectors v
JOIN memory_nodes n ON n.tenant = v.tenant AND n.id = v.memory_node_id
LEFT JOIN namespaces s ON s.tenant = n.tenant AND s.name = n.namespace
WHERE v.tenant = %(tenant)s AND v.memory_node_id = ANY (%(ids)b::uuid[])
ORDER BY v.memory_node_id, v.namespace IS NOT DISTINCT FROM s.index_namespace DESC, v.version DESC

-- name: node_artifacts
SELECT a.tenant, a.id, a.memory_node_id, a.name, a.url, a.object_key, a.version_id, a.sha256, a.size_bytes, a.content_type,
       a.manifest_signature_id, a.created_by, a.metadata, a.created_at, a.legal_hold, a.hold_due, a.retain_until,
       a.verified_at, a.storage_class, a.fault
FROM artifacts a
WHERE a.tenant = %(tenant)s AND a.memory_node_id = ANY (%(ids)b::uuid[])
ORDER BY a.created_at, a.id

-- name: get_artifact
SELECT a.tenant, a.id, a.memory_node_id, a.name, a.url, a.object_key, a.version_id, a.sha256, a.size_bytes, a.content_type,
       a.manifest_signature_id, a.created_by, a.metadata, a.created_at, a.legal_hold, a.hold_due, a.retain_until,
       a.verified_at, a.storage_class, a.fault, n.pii_flags
FROM artifacts a LEFT JOIN memory_nodes n ON n.tenant = a.tenant AND n.id = a.memory_node_id
WHERE a.tenant = %(tenant)s AND a.id = %(id)s

-- name: latest_events
SELECT DISTINCT ON (e.memory_node_id) e.memory_node_id, e.id, e.seq, e.hash, e.event_type
FROM audit_events e
WHERE e.tenant = %(tenant)s AND e.memory_node_id = ANY (%(ids)b::uuid[]) AND e.log = %(log)s
ORDER BY e.memory_node_id, e.seq DESC

-- name: known_node
SELECT FROM memory_nodes n WHERE n.tenant = %(tenant)s AND n.id = %(id)s

-- name: history
SELECT e.id, e.seq, e.event_type AS type, e.memory_node_id AS node, e.artifact_id AS artifact, e.created_at, e.hash,
       e.prev_hash, e.batch_no, e.entry, e.signature
FROM audit_events e
WHERE e.tenant = %(tenant)s AND e.memory_node_id = %(id)s AND e.log = %(log)s AND e.seq > %(after)s
ORDER BY e.seq LIMIT %(limit)s

-- name: find_principal
SELECT id FROM principals WHERE tenant = %(tenant)s AND service = %(service)s

-- name: add_tenant
INSERT INTO tenants (tenant) VALUES (%(tenant)s) ON CONFLICT DO NOTHING

-- name: add_principal
INSERT INTO principals (tenant, service, id) VALUES (%(tenant)s, %(service)s, %(id)s) ON CONFLICT DO NOTHING

-- name: applied_migrations
SELECT version, checksum FROM schema_migrations ORDER BY version

-- What the verifier reads of the tables beside nodes and artifacts, in its one snapshot (audit.sql, session: times as text are in UTC).

-- name: seals
SELECT batch_no, first_seq, last_seq, head, seal_text, key_id, algorithm, system_identifier, timeline, created_at::text
FROM audit_seals WHERE log = %(log)s ORDER BY batch_no

-- name: server
-- Its system identifier and timeline, also of a standby.
SELECT (SELECT system_identifier::text FROM pg_control_system()),
       CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_control_checkpoint())
            ELSE ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int END

-- name: log_row
SELECT l.origin, l.incarnation, l.key_id, l.created_at::text, l.imported_at::text, s.seal_text
FROM audit_logs l LEFT JOIN audit_seals s ON s.log = l.log AND s.batch_no = 0 WHERE l.log = %(log)s

-- name: keys
SELECT from_seq, key_id, algorithm, public_key, created_at::text FROM audit_keys WHERE log = %(log)s ORDER BY from_seq

-- name: orphans
-- Payloads without an entry. Rows of other logs are a finding of their own (audit.sql, log_numbers).
SELECT p.seq FROM audit_payloads p
WHERE p.log = %(log)s AND NOT EXISTS (SELECT FROM audit_events e WHERE e.log = p.log AND e.seq = p.seq) ORDER BY p.seq

-- name: payload_tenants
-- Payloads that stand under another tenant than their entry. What the installation does by itself has none in its entry.
SELECT p.seq FROM audit_payloads p JOIN audit_events e ON e.log = p.log AND e.seq = p.seq
WHERE p.log = %(log)s AND p.tenant IS DISTINCT FROM coalesce(e.tenant, '_system') ORDER BY p.seq

-- name: tree
SELECT size, edge, key_id FROM audit_trees WHERE log = %(log)s

-- name: checkpoints
-- With when the last entry was committed that each covers.
SELECT c.size, c.note IS NULL, c.created_at >= e.created_at AND c.created_at <= clock_timestamp() + interval '5 minutes',
       max(c.size) FILTER (WHERE c.note IS NOT NULL) OVER ()
FROM audit_checkpoints c LEFT JOIN audit_events e ON e.log = c.log AND e.seq = c.size - 1
WHERE c.log = %(log)s ORDER BY c.size

-- name: tiles
SELECT level, tile, sha256(data) FROM audit_tiles WHERE log = %(log)s

-- name: leaves
SELECT sha256('\x00'::bytea || entry) FROM audit_events WHERE log = %(log)s ORDER BY seq

-- name: statements
-- What the installation's own entries say, with their payloads.
SELECT e.seq, e.id::text, e.event_type, e.tenant, e.created_at::text, e.entry, p.salt, p.payload
FROM audit_events e LEFT JOIN audit_payloads p ON p.log = e.log AND p.seq = e.seq
WHERE e.log = %(log)s AND (e.event_type LIKE 'ops.%%' OR e.event_type IN ('audit.key.activated', 'audit.archived', 'memory.subject.erased',
      'audit.incarnation.opened'))
ORDER BY e.seq

-- name: segments
SELECT g.number, g.first_seq, g.last_seq, g.attempt, g.begun_at::text, g.lock_until::text, g.finished_at::text,
       g.manifest_key, g.manifest_version, g.manifest_sha256, g.bytes, g.tail, g.audit_id::text,
       s.batch_no, s.head, s.seal_text, e.created_at::text,
       EXISTS (SELECT FROM audit_checkpoints c WHERE c.log = g.log AND c.size = g.checkpoint_size), g.tool
FROM archive_segments g
LEFT JOIN audit_seals s ON s.log = g.log AND s.last_seq = g.last_seq AND s.batch_no = (
    SELECT x.batch_no FROM audit_events x WHERE x.log = g.log AND x.seq = g.last_seq)
LEFT JOIN audit_events e ON e.log = g.log AND e.seq = g.last_seq
WHERE g.log = %(log)s ORDER BY g.number

-- name: manifests
SELECT id::text, object_key, version_id, sha256, artifacts, signature, key_id, previous, created_at::text
FROM artifact_manifests ORDER BY created_at, id

-- name: runs
SELECT id::text, verb, arguments, started_at::text, finished_at::text, verdict, exit_code, report, audit_id::text FROM ops_runs ORDER BY id

-- name: languages
SELECT tenant, name, language, set_at::text FROM namespace_languages ORDER BY tenant, name

-- name: freeze
SELECT reason, since::text, until::text FROM write_freeze

-- name: namespaces
-- With whether a write was committed at the moment at which each says that it was made.
SELECT s.tenant, s.name, s.index_namespace, s.embedding_model, s.dimension, s.state, s.generations, s.beside, s.beside_model,
       s.beside_dimension, s.beside_state, s.created_at::text, s.updated_at::text, m.at IS NOT NULL
FROM namespaces s
LEFT JOIN (SELECT DISTINCT e.tenant, e.created_at AS at FROM audit_events e
           WHERE e.log = %(log)s AND e.created_at IN (SELECT created_at FROM namespaces)) m ON m.tenant = s.tenant AND m.at = s.created_at
ORDER BY s.tenant, s.name

-- name: vectors
-- Rows of the outbox that cannot be as their node, its namespace and the way that rows go say, with the columns in question.
SELECT f.tenant, f.space, f.homeless, f.node, f.id, array_remove(f.columns, NULL)
FROM (
    SELECT v.tenant, n.namespace AS space, s.name IS NULL AND v.embedding_model IS NOT NULL AS homeless,
           v.memory_node_id::text AS node, v.id::text AS id, ARRAY[
        CASE WHEN n.id IS NULL THEN 'memory_node_id' END,
        CASE WHEN g.place IS NULL AND v.status NOT IN ('deleting', 'deleted') AND (v.embedding_model IS NOT NULL OR v.namespace <> n.namespace)
             THEN 'namespace' END,
        CASE WHEN g.place IS NOT NULL AND v.metadata ->> 'source' IS DISTINCT FROM 'none' AND v.embedding_model IS DISTINCT FROM g.model
             THEN 'embedding_model' END,
        CASE WHEN g.place IS NOT NULL AND v.metadata ->> 'source' IS DISTINCT FROM 'none' AND v.dimension IS DISTINCT FROM g.dimension
             THEN 'dimension' END,
        CASE WHEN v.metadata ->> 'source' = 'none' AND num_nonnulls(v.embedding_model, v.dimension, v.vector_data) > 0
             THEN 'embedding_model, dimension or vector_data' END,
        CASE WHEN NOT coalesce(v.metadata ->> 'source' IN ('caller', 'earlier', 'embedder', 'none')
                           AND jsonb_typeof(v.metadata -> 'since') = 'number' AND v.metadata - 'source' - 'since' - 'sha256' - 'read' = '{}'
                           AND (v.metadata -> 'since')::numeric BETWEEN 1 AND v.version, false)
               OR v.metadata ? 'read' AND NOT coalesce(v.metadata ->> 'read' IN ('whole', 'part', 'none')
                                                       AND v.metadata ->> 'source' = 'embedder', false)
               -- What is no base64 has no bytes to be hashed, and is a fault of vector_data.
               OR v.metadata ? 'sha256' AND NOT coalesce(v.metadata ->> 'sha256' = CASE
                      WHEN v.vector_data ->> 'data' ~ '^[A-Za-z0-9+/]+={0,2}$' AND length(v.vector_data ->> 'data') %% 4 = 0
                      THEN encode(sha256(decode(v.vector_data ->> 'data', 'base64')), 'hex') END, false) THEN 'metadata or vector_data' END,
        CASE WHEN v.vector_data IS NOT NULL AND NOT coalesce(
                 length(v.vector_data ->> 'data') = (4 * v.dimension + 2) / 3 * 4 AND v.vector_data - 'encoding' - 'data' = '{}', false)
               OR v.vector_data IS NULL AND (v.metadata ->> 'source' IN ('caller', 'earlier')
                                             OR v.status = 'succeeded' AND v.metadata ->> 'source' = 'embedder'
                                                AND v.metadata ->> 'read' IS DISTINCT FROM 'none')
               OR v.vector_data IS NOT NULL AND v.metadata ->> 'read' = 'none' THEN 'vector_data' END,
        CASE WHEN v.version < 1 OR v.version > n.version
               OR n.deleted_at IS NULL AND g.written AND v.status NOT IN ('deleting', 'deleted') AND v.version <> n.version
             THEN 'version' END,
        CASE WHEN n.deleted_at IS NOT NULL AND v.status NOT IN ('deleting', 'deleted')
               OR n.deleted_at IS NULL AND g.place = 'active' AND v.status IN ('deleting', 'deleted')
                  AND (n.content <> '' OR v.metadata ->> 'source' = 'caller')
               OR (v.lease_id IS NOT NULL) AND v.status NOT IN ('in_flight', 'deleting')
               OR v.lease_id IS NULL AND v.status = 'in_flight' THEN 'status' END,
        CASE WHEN v.status IN ('succeeded', 'deleted') AND num_nonnulls(v.error, v.error_class) > 0
               OR v.status IN ('failed', 'dead') AND num_nonnulls(v.error, v.error_class) < 2 THEN 'error or error_class' END,
        CASE WHEN v.external_vector_id <> v.memory_node_id::text THEN 'external_vector_id' END,
        -- Ids carry the time at which they were made, in milliseconds.
        CASE WHEN substr(v.id::text, 15, 1) <> '7' OR abs(extract(epoch FROM v.created_at)::float8
                  - ('x' || substr(replace(v.id::text, '-', ''), 1, 12))::bit(48)::bigint / 1000.0) > 900 THEN 'id or created_at' END
    ] AS columns
    FROM memory_vectors v
    LEFT JOIN memory_nodes n ON n.tenant = v.tenant AND n.id = v.memory_node_id
    LEFT JOIN namespaces s ON s.tenant = n.tenant AND s.name = n.namespace
    CROSS JOIN LATERAL (
        SELECT CASE WHEN v.namespace = s.index_namespace THEN 'active' WHEN v.namespace = s.beside THEN 'beside' END AS place,
               CASE WHEN v.namespace = s.index_namespace THEN s.embedding_model ELSE s.beside_model END AS model,
               CASE WHEN v.namespace = s.index_namespace THEN s.dimension ELSE s.beside_dimension END AS dimension,
               v.namespace = s.index_namespace OR v.namespace = s.beside AND s.beside_state <> 'retired' AS written
    ) g
) f
WHERE array_remove(f.columns, NULL) <> '{}' ORDER BY f.tenant, f.id

-- name: unindexed
-- Nodes with a text, or with a vector that their caller gave, and without the row that brings them into the index. After a switch of
-- generations that was forced some have theirs in another one only.
SELECT n.tenant, n.namespace, n.id::text FROM memory_nodes n
LEFT JOIN namespaces s ON s.tenant = n.tenant AND s.name = n.namespace
WHERE n.deleted_at IS NULL
  AND (n.content <> '' OR EXISTS (SELECT FROM memory_vectors v WHERE v.tenant = n.tenant AND v.memory_node_id = n.id
                                  AND v.metadata ->> 'source' = 'caller'))
  AND NOT EXISTS (SELECT FROM memory_vectors v WHERE v.tenant = n.tenant AND v.memory_node_id = n.id
                  AND (s.generations > 1 OR v.namespace = coalesce(s.index_namespace, n.namespace)))
ORDER BY n.tenant, n.id

-- name: answers
-- Those that are still given: older ones are forgotten.
SELECT tenant, actor::text, key, status, answer, created_at::text FROM idempotency_keys
WHERE created_at > clock_timestamp() - interval '24 hours'

-- name: events
SELECT e.id::text, e.seq, e.hash, e.tenant, e.memory_node_id::text, e.artifact_id::text, e.created_at::text, e.entry, p.salt, p.payload
FROM audit_events e LEFT JOIN audit_payloads p ON p.log = e.log AND p.seq = e.seq
WHERE e.log = %(log)s AND e.id = ANY (%(ids)s::uuid[])

-- name: jobs
SELECT v.id::text, v.memory_node_id::text FROM memory_vectors v WHERE v.id = ANY (%(ids)s::uuid[])

-- name: deleted_artifacts
-- Rows about deleted artifacts of nodes beside the entries of their deletion: those that differ, are not there, or that no entry of this
-- log made. What an entry says without a payload, which was erased, is not known.
SELECT e.seq, d.id::text, d.deleted_at::text, e.artifact_id::text,
       array_remove(ARRAY[CASE WHEN d.memory_node_id IS DISTINCT FROM e.memory_node_id THEN 'memory_node_id' END,
                          CASE WHEN e.said IS NOT NULL AND d.sha256 IS DISTINCT FROM e.said ->> 'sha256' THEN 'sha256' END,
                          CASE WHEN e.said IS NOT NULL AND d.object_key IS DISTINCT FROM e.said ->> 'objectKey' THEN 'object_key' END,
                          CASE WHEN e.said IS NOT NULL AND d.version_id IS DISTINCT FROM e.said ->> 'versionId' THEN 'version_id' END,
                          CASE WHEN d.deleted_at IS DISTINCT FROM e.created_at THEN 'deleted_at' END], NULL)
FROM (
    SELECT e.seq, e.tenant, e.artifact_id, e.memory_node_id, e.created_at, convert_from(p.payload, 'UTF8')::json AS said
    FROM audit_events e LEFT JOIN audit_payloads p ON p.log = e.log AND p.seq = e.seq
    WHERE e.log = %(log)s AND e.event_type = 'memory.artifact.deleted' AND e.memory_node_id IS NOT NULL
) e
FULL JOIN deleted_artifacts d ON d.tenant = e.tenant AND d.id = e.artifact_id
WHERE e.seq IS NULL OR d.id IS NULL OR (d.memory_node_id, d.deleted_at) IS DISTINCT FROM (e.memory_node_id, e.created_at)
   OR (e.said IS NOT NULL AND (d.sha256, d.object_key, d.version_id)
       IS DISTINCT FROM (e.said ->> 'sha256', e.said ->> 'objectKey', e.said ->> 'versionId'))
ORDER BY e.seq, d.id

-- name: sweeps
-- Objects that are marked as named by nobody, or deleted as such, and that an artifact names.
SELECT w.tenant, count(*) FROM artifact_sweeps w
WHERE EXISTS (SELECT FROM artifacts a WHERE a.object_key = w.object_key AND a.version_id = w.version_id)
   OR w.deleted_at < w.marked_at OR w.object_key NOT LIKE w.tenant || '/%%' GROUP BY 1 ORDER BY 1

-- name: unused
-- Tables that nothing writes to yet.
SELECT t.name, t.rows FROM (
    SELECT 'legal_holds' AS name, count(*) AS rows FROM legal_holds
    UNION ALL SELECT 'access_log', count(*) FROM access_log
) t WHERE t.rows > 0 ORDER BY 1

-- name: subjects
-- Data keys whose columns do not fit together.
SELECT s.handle::text FROM subjects s
WHERE (s.wrapped_key IS NULL) <> (s.key_id IS NULL) OR (s.wrapped_key IS NOT NULL AND octet_length(s.wrapped_key) <> 60)
   OR (s.erased_at IS NOT NULL AND s.wrapped_key IS NOT NULL) OR s.erased_at < s.created_at
ORDER BY 1

-- name: erased_subjects
SELECT s.handle::text FROM subjects s WHERE s.erased_at IS NOT NULL ORDER BY 1

-- name: actors
-- Each actor that an entry names, and where first: the first member of an entry.
SELECT split_part(encode(substring(e.entry FROM 1 FOR 141), 'escape'), '"', 4), min(e.seq) FROM audit_events e
WHERE e.log = %(log)s GROUP BY 1 ORDER BY 2

-- name: principals
SELECT {{Principal text}} FROM principals ORDER BY tenant, service

-- name: api_keys
SELECT id::text, tenant, principal::text, encode(key_sha256, 'hex'), hint, name, scopes, created_at::text, expires_at::text, revoked_at::text,
       replaced_by::text
FROM api_keys ORDER BY tenant, id

-- name: revoked_tokens
SELECT tenant, jti, revoked_at::text FROM revoked_tokens ORDER BY tenant, jti

-- name: tenants
SELECT tenant, created_at::text, disabled_at::text FROM tenants ORDER BY tenant

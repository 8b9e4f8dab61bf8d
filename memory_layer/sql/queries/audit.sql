-- What the verifier reads, in one REPEATABLE READ transaction with memory.all_tenants on. Times as text are in UTC.

-- name: session
-- Times are compared as text: no moment that someone wrote into a column (infinity, 44 BC) can be one that is not read.
-- Nor does the role's or the database's own setting say which tables are meant.
SELECT set_config('memory.all_tenants', 'on', false), set_config('TimeZone', 'UTC', false),
       set_config('search_path', 'public, pg_temp', false),
       set_config('DateStyle', 'ISO, YMD', false), set_config('jit', 'off', false)

-- name: export_snapshot
-- For a second connection that must see the same rows.
SELECT pg_export_snapshot()

-- name: logs
SELECT log, origin FROM audit_logs ORDER BY log DESC

-- name: held_logs
SELECT log, origin, imported_at IS NOT NULL FROM audit_logs ORDER BY log DESC

-- name: log_numbers
-- Every log number that the table holds, each found by a step of the index that leads with it, however many rows there are.
WITH RECURSIVE numbers(log) AS (
    (SELECT log FROM {table} ORDER BY log LIMIT 1)
    UNION ALL
    SELECT (SELECT n.log FROM {table} n WHERE n.log > s.log ORDER BY n.log LIMIT 1) FROM numbers s WHERE s.log IS NOT NULL
)
SELECT log FROM numbers WHERE log IS NOT NULL LIMIT %(limit)s::int

-- name: rows
SELECT e.seq, e.batch_no, e.entry, e.hash, e.prev_hash, e.signature, e.id::text,
       CASE WHEN e.created_at >= '0001-01-01 00:00:00Z' THEN to_char(e.created_at, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
            ELSE e.created_at::text END,
       e.event_type, e.tenant, e.memory_node_id::text, e.artifact_id::text, e.manifest_signature_id, p.salt, p.payload
FROM audit_events e LEFT JOIN audit_payloads p ON p.log = e.log AND p.seq = e.seq
WHERE e.log = %(log)s ORDER BY e.seq

-- name: seals
SELECT batch_no, seal_text, signature FROM audit_seals WHERE log = %(log)s ORDER BY batch_no

-- name: now
SELECT clock_timestamp()

-- name: checkpoints
SELECT size, root, note FROM audit_checkpoints WHERE log = %(log)s ORDER BY size

-- name: range
-- Whole batches that hold the entries from one to another (NULL: the end): the first and last of them, and their seqs.
SELECT min(batch_no), min(first_seq), max(last_seq) FROM audit_seals
WHERE log = %(log)s AND last_seq >= %(first)s AND (%(last)s::bigint IS NULL OR first_seq <= %(last)s)

-- name: hashes_before
SELECT hash FROM audit_events WHERE log = %(log)s AND seq < %(first)s ORDER BY seq

-- name: entry_before
SELECT entry FROM audit_events WHERE log = %(log)s AND seq = %(first)s - 1

-- name: seal_before
SELECT seal_text FROM audit_seals WHERE log = %(log)s AND batch_no = %(batch)s - 1

-- name: range_entries
SELECT seq, entry FROM audit_events
WHERE log = %(log)s AND seq >= %(first)s AND (%(last)s::bigint IS NULL OR seq <= %(last)s) ORDER BY seq

-- name: range_payloads
-- Those about keys are always included: without them no seal by a delegated key can be judged, and they are nobody's secret.
SELECT p.seq, p.salt, p.payload FROM audit_payloads p
WHERE p.log = %(log)s AND p.seq >= %(first)s AND (%(last)s::bigint IS NULL OR p.seq <= %(last)s)
  AND (%(all)s OR p.tenant = %(tenant)s OR EXISTS (
       SELECT FROM audit_events e WHERE e.log = p.log AND e.seq = p.seq
       AND e.event_type IN ('audit.key.activated', 'audit.key.retired')))
ORDER BY p.seq

-- name: range_seals
SELECT batch_no, seal_text, signature FROM audit_seals
WHERE log = %(log)s AND batch_no >= %(batch)s AND (%(last)s::bigint IS NULL OR first_seq <= %(last)s) ORDER BY batch_no

-- name: nodes
-- With the vector that the caller gave, and the SHA-256 that its row says it has (`claimed`).
SELECT {{Node n text - content}}, encode(sha256(convert_to(n.content, 'UTF8')), 'hex'), v.vector, v.embedding_model, v.dimension, v.claimed
FROM memory_nodes n
LEFT JOIN LATERAL (
    SELECT CASE WHEN v.metadata ->> 'source' = 'caller' THEN v.vector_data ->> 'data' END AS vector,
           v.metadata ->> 'sha256' AS claimed, v.embedding_model, v.dimension
    FROM memory_vectors v WHERE v.tenant = n.tenant AND v.memory_node_id = n.id
    -- Of several generations one holds the vector that its caller gave last.
    ORDER BY v.metadata ->> 'source' = 'caller' DESC, v.version DESC LIMIT 1
) v ON true

-- name: node_entries
-- The entries of the log about some nodes, each node's in order. The inner ones are look-ups: as joins they are planned as scans.
SELECT u.place, e.entry, p.salt, p.payload, NULL
FROM unnest(%(tenants)s::text[], %(ids)s::uuid[]) WITH ORDINALITY u(tenant, id, place)
CROSS JOIN LATERAL (
    SELECT e.log, e.seq, e.entry FROM audit_events e
    WHERE e.tenant = u.tenant AND e.log = %(log)s AND e.memory_node_id = u.id AND e.event_type = ANY (%(types)s::text[]) OFFSET 0
) e
LEFT JOIN LATERAL (
    SELECT p.salt, p.payload FROM audit_payloads p WHERE p.log = e.log AND p.seq = e.seq OFFSET 0
) p ON true
ORDER BY u.place, e.seq

-- name: artifacts
-- With its node's hold, and whether a run that looks at bytes was under way when it was last found right, or it was just made then.
SELECT a.tenant, a.id::text, a.memory_node_id::text, a.name, a.url, a.object_key, a.version_id, a.sha256, a.size_bytes,
       a.content_type, a.manifest_signature_id, a.metadata::text, a.created_by::text, a.created_at::text, a.retain_until::text,
       a.fault, a.legal_hold, a.verified_at::text,
       (SELECT n.legal_hold FROM memory_nodes n WHERE n.tenant = a.tenant AND n.id = a.memory_node_id),
       a.verified_at BETWEEN a.created_at - interval '1 hour' AND a.created_at
       OR EXISTS (SELECT FROM ops_runs r WHERE r.verb IN ('artifacts-scan', 'artifacts-verify', 'artifacts-manifest-rebuild')
                  AND a.verified_at BETWEEN r.started_at AND coalesce(r.finished_at, clock_timestamp()))
FROM artifacts a

-- name: artifact_entries
-- The same about artifacts, with whether the node that an entry names is there: a hard delete of it nulls the link.
SELECT u.place, e.entry, p.salt, p.payload,
       EXISTS (SELECT FROM memory_nodes n WHERE n.tenant = u.tenant AND n.id = e.memory_node_id)
FROM unnest(%(tenants)s::text[], %(ids)s::uuid[]) WITH ORDINALITY u(tenant, id, place)
CROSS JOIN LATERAL (
    SELECT e.log, e.seq, e.entry, e.memory_node_id FROM audit_events e
    WHERE e.tenant = u.tenant AND e.log = %(log)s AND e.artifact_id = u.id AND e.event_type = ANY (%(types)s::text[]) OFFSET 0
) e
LEFT JOIN LATERAL (
    SELECT p.salt, p.payload FROM audit_payloads p WHERE p.log = e.log AND p.seq = e.seq OFFSET 0
) p ON true
ORDER BY u.place, e.seq

-- name: lost_nodes
-- Nodes that the log created and never purged, and that are not there.
SELECT e.seq, e.memory_node_id::text FROM audit_events e
WHERE e.log = %(log)s AND e.event_type = 'memory.node.created'
  AND NOT EXISTS (SELECT FROM memory_nodes n WHERE n.tenant = e.tenant AND n.id = e.memory_node_id)
  AND NOT EXISTS (SELECT FROM audit_events p
                  WHERE p.tenant = e.tenant AND p.memory_node_id = e.memory_node_id AND p.log = e.log
                    AND p.event_type = 'memory.node.purged')
ORDER BY e.seq

-- name: lost_artifacts
SELECT e.seq, e.artifact_id::text FROM audit_events e
WHERE e.log = %(log)s AND e.event_type = 'memory.artifact.created'
  AND NOT EXISTS (SELECT FROM artifacts a WHERE a.tenant = e.tenant AND a.id = e.artifact_id)
  AND NOT EXISTS (SELECT FROM audit_events p
                  WHERE p.tenant = e.tenant AND p.artifact_id = e.artifact_id AND p.log = e.log
                    AND p.event_type = 'memory.artifact.deleted')
ORDER BY e.seq

-- name: opening
-- What opens an incarnation: the first entry, or the second.
SELECT e.entry, p.salt, p.payload FROM audit_events e LEFT JOIN audit_payloads p ON p.log = e.log AND p.seq = e.seq
WHERE e.log = %(log)s AND e.seq <= 1 AND e.event_type = 'audit.incarnation.opened' ORDER BY e.seq

-- name: entries_at
-- What the entries say of themselves at which something was found.
SELECT seq, entry FROM audit_events WHERE log = %(log)s AND seq = ANY (%(seqs)s)

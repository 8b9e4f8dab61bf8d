-- What the verifier reads, in one REPEATABLE READ transaction with memory.all_tenants on.

-- name: logs
SELECT log, origin FROM audit_logs ORDER BY log DESC

-- name: rows
SELECT e.seq, e.batch_no, e.entry, e.hash, e.prev_hash, e.signature, e.id::text,
       to_char(e.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), e.event_type, e.tenant,
       e.memory_node_id::text, e.artifact_id::text, e.manifest_signature_id, p.salt, p.payload
FROM audit_events e LEFT JOIN audit_payloads p ON p.log = e.log AND p.seq = e.seq
WHERE e.log = %(log)s ORDER BY e.seq

-- name: seals
SELECT batch_no, seal_text, signature FROM audit_seals WHERE log = %(log)s ORDER BY batch_no

-- name: states
-- Every node with the latest entry that committed to its state.
SELECT n.tenant, n.id, n.owner, n.namespace, n.embedding_id, n.content, n.metadata, n.pii_flags, n.subjects, n.legal_hold,
       n.legal_hold_reason, n.ttl_seconds, n.expires_at, n.occurred_at, n.version, n.created_at, n.updated_at, n.deleted_at,
       v.vector, e.seq, e.entry, p.salt
FROM memory_nodes n
LEFT JOIN LATERAL (
    SELECT e.log, e.seq, e.entry FROM audit_events e
    WHERE e.tenant = n.tenant AND e.memory_node_id = n.id AND e.event_type NOT LIKE 'memory.artifact.%%'
    ORDER BY e.log DESC, e.seq DESC LIMIT 1
) e ON true
LEFT JOIN audit_payloads p ON p.log = e.log AND p.seq = e.seq
LEFT JOIN LATERAL (
    SELECT v.vector_data ->> 'data' AS vector FROM memory_vectors v
    WHERE v.tenant = n.tenant AND v.memory_node_id = n.id AND v.metadata ->> 'source' = 'caller'
    ORDER BY v.version DESC LIMIT 1
) v ON true

-- name: lost_nodes
-- Nodes that the log created and never purged, and that are not there.
SELECT e.seq, e.memory_node_id::text AS node FROM audit_events e
WHERE e.event_type = 'memory.node.created'
  AND NOT EXISTS (SELECT FROM memory_nodes n WHERE n.tenant = e.tenant AND n.id = e.memory_node_id)
  AND NOT EXISTS (SELECT FROM audit_events p
                  WHERE p.tenant = e.tenant AND p.memory_node_id = e.memory_node_id AND p.event_type = 'memory.node.purged')
ORDER BY e.seq LIMIT 1000

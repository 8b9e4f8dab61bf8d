-- What the log says of rows: read with them, in one snapshot, by reads and by the write path (stores/pipeline.py: each parameter says
-- its type). The log is asked for by its name, the trust root's: an entry in another one says nothing.

-- name: last_node_entries
-- The last entry about each node that has its state, with the salt that binds it. An index scan from its end: LIMIT 1.
SELECT u.t AS tenant, u.i AS id, e.seq, e.batch_no, e.entry, p.salt
FROM unnest(%(tenants)b::text[], %(ids)b::uuid[]) u(t, i)
CROSS JOIN LATERAL (
    SELECT e.log, e.seq, e.batch_no, e.entry FROM audit_events e
    WHERE e.tenant = u.t AND e.memory_node_id = u.i AND e.log = (SELECT log FROM audit_logs WHERE origin = %(origin)s::text)
      AND e.event_type IN ('memory.node.created', 'memory.node.updated', 'memory.node.deleted', 'memory.node.purged',
                           'memory.legal_hold.set', 'memory.legal_hold.released')
    ORDER BY e.seq DESC LIMIT 1
) e
LEFT JOIN LATERAL (SELECT p.salt FROM audit_payloads p WHERE p.log = e.log AND p.seq = e.seq LIMIT 1) p ON true

-- name: last_artifact_entries
SELECT u.t AS tenant, u.i AS id, e.seq, e.batch_no, e.entry, p.salt
FROM unnest(%(tenants)b::text[], %(ids)b::uuid[]) u(t, i)
CROSS JOIN LATERAL (
    SELECT e.log, e.seq, e.batch_no, e.entry FROM audit_events e
    WHERE e.tenant = u.t AND e.artifact_id = u.i AND e.log = (SELECT log FROM audit_logs WHERE origin = %(origin)s::text)
      AND e.event_type IN ('memory.artifact.created', 'memory.artifact.verified', 'memory.artifact.corrupt', 'memory.artifact.deleted')
    ORDER BY e.seq DESC LIMIT 1
) e
LEFT JOIN LATERAL (SELECT p.salt FROM audit_payloads p WHERE p.log = e.log AND p.seq = e.seq LIMIT 1) p ON true

-- name: node_evidence
-- For reads of one tenant's nodes: the same, and the SHA-256 that stands beside the vector that the caller gave, or the vector itself
-- where none does yet.
SELECT u.i AS id, e.seq, e.batch_no, e.entry, e.salt, g.sha256, g.vector
FROM unnest(%(ids)b::uuid[]) u(i)
LEFT JOIN LATERAL (
    SELECT e.seq, e.batch_no, e.entry,
           (SELECT p.salt FROM audit_payloads p WHERE p.log = e.log AND p.seq = e.seq LIMIT 1) AS salt
    FROM audit_events e
    WHERE e.tenant = %(tenant)s::text AND e.memory_node_id = u.i
      AND e.log = (SELECT log FROM audit_logs WHERE origin = %(origin)s::text)
      AND e.event_type IN ('memory.node.created', 'memory.node.updated', 'memory.node.deleted', 'memory.node.purged',
                           'memory.legal_hold.set', 'memory.legal_hold.released')
    ORDER BY e.seq DESC LIMIT 1
) e ON true
LEFT JOIN LATERAL (
    SELECT v.metadata ->> 'sha256' AS sha256,
           CASE WHEN v.metadata ->> 'sha256' IS NULL THEN v.vector_data ->> 'data' END AS vector
    FROM memory_vectors v
    WHERE v.tenant = %(tenant)s::text AND v.memory_node_id = u.i AND v.metadata ->> 'source' = 'caller' AND v.vector_data IS NOT NULL
    LIMIT 1
) g ON true

-- name: batches
-- Whole batches with their seals: what an entry needs to be known as sealed. A batch has a few thousand entries at the most.
SELECT s.batch_no, s.seal_text, s.signature, ARRAY(
           SELECT e.entry FROM audit_events e
           WHERE e.log = s.log AND e.seq BETWEEN s.first_seq AND s.last_seq ORDER BY e.seq LIMIT 20000
       ) AS entries
FROM audit_seals s WHERE s.log = (SELECT log FROM audit_logs WHERE origin = %(origin)s::text) AND s.batch_no = ANY (%(batches)b::bigint[])

-- name: holds_of_files
-- Of nodes that files belong to, those that are there.
SELECT f.* FROM unnest(%(tenants)b::text[], %(ids)b::uuid[]) u(t, i)
CROSS JOIN LATERAL (SELECT n.tenant, n.id, n.legal_hold FROM memory_nodes n WHERE n.tenant = u.t AND n.id = u.i LIMIT 1) f

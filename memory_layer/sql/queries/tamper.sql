-- What `memoryctl tamper` reads: rows with all that the log says of them. The log is asked for by its name, the trust root's.

-- name: tenants_of_row
-- Whose rows and entries have this id. Look-ups by tenant, for no index leads with an id.
SELECT t.tenant, 'node' AS kind FROM (SELECT tenant FROM tenants UNION SELECT DISTINCT tenant FROM namespaces) t
WHERE EXISTS (SELECT FROM memory_nodes n WHERE n.tenant = t.tenant AND n.id = %(id)s)
   OR EXISTS (SELECT FROM audit_events e WHERE e.tenant = t.tenant AND e.memory_node_id = %(id)s AND e.log = (SELECT log FROM audit_logs WHERE origin = %(origin)s)
              AND e.event_type = ANY (%(node_types)s))
UNION ALL
SELECT t.tenant, 'artifact' FROM (SELECT tenant FROM tenants UNION SELECT DISTINCT tenant FROM namespaces) t
WHERE EXISTS (SELECT FROM artifacts a WHERE a.tenant = t.tenant AND a.id = %(id)s)
   OR EXISTS (SELECT FROM audit_events e WHERE e.tenant = t.tenant AND e.artifact_id = %(id)s AND e.log = (SELECT log FROM audit_logs WHERE origin = %(origin)s)
              AND e.event_type = ANY (%(artifact_types)s))
ORDER BY 1

-- name: story_of_node
SELECT e.seq, e.batch_no, e.entry, p.salt, p.payload
FROM audit_events e LEFT JOIN audit_payloads p ON p.log = e.log AND p.seq = e.seq
WHERE e.tenant = %(tenant)s AND e.memory_node_id = %(id)s AND e.log = (SELECT log FROM audit_logs WHERE origin = %(origin)s)
  AND e.event_type = ANY (%(types)s)
ORDER BY e.seq

-- name: story_of_artifact
SELECT e.seq, e.batch_no, e.entry, p.salt, p.payload
FROM audit_events e LEFT JOIN audit_payloads p ON p.log = e.log AND p.seq = e.seq
WHERE e.tenant = %(tenant)s AND e.artifact_id = %(id)s AND e.log = (SELECT log FROM audit_logs WHERE origin = %(origin)s)
  AND e.event_type = ANY (%(types)s)
ORDER BY e.seq

-- name: page_of_nodes
SELECT tenant, id FROM memory_nodes WHERE (tenant, id) > (%(tenant)s, %(id)s) ORDER BY tenant, id LIMIT %(limit)s

-- name: page_of_artifacts
SELECT tenant, id FROM artifacts WHERE (tenant, id) > (%(tenant)s, %(id)s) ORDER BY tenant, id LIMIT %(limit)s

-- name: gone_nodes
-- Nodes that the log created and never purged, and that are not there.
SELECT DISTINCT e.tenant, e.memory_node_id AS id FROM audit_events e
WHERE e.log = (SELECT log FROM audit_logs WHERE origin = %(origin)s) AND e.event_type = 'memory.node.created'
  AND NOT EXISTS (SELECT FROM memory_nodes n WHERE n.tenant = e.tenant AND n.id = e.memory_node_id)
ORDER BY 1, 2

-- name: gone_artifacts
SELECT DISTINCT e.tenant, e.artifact_id AS id FROM audit_events e
WHERE e.log = (SELECT log FROM audit_logs WHERE origin = %(origin)s) AND e.event_type = 'memory.artifact.created'
  AND NOT EXISTS (SELECT FROM artifacts a WHERE a.tenant = e.tenant AND a.id = e.artifact_id)
ORDER BY 1, 2

-- name: holds_of_nodes
SELECT n.tenant, n.id, n.legal_hold FROM unnest(%(tenants)s::text[], %(ids)s::uuid[]) u(t, i)
CROSS JOIN LATERAL (SELECT tenant, id, legal_hold FROM memory_nodes n WHERE n.tenant = u.t AND n.id = u.i OFFSET 0) n

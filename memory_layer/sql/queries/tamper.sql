-- What `memoryctl tamper` reads: rows with all that the log says of them. The log is asked for by its name, the trust root's.

-- name: tenants_of_row
-- Whose rows and entries have this id. No index leads with an id: it is looked up for each tenant that a table names, and those are
-- found by steps of the index that leads with them, for a row may stand under a tenant that nothing else knows.
WITH RECURSIVE memory_nodes_tenants(tenant) AS (
    (SELECT tenant FROM memory_nodes WHERE tenant IS NOT NULL ORDER BY tenant LIMIT 1)
    UNION ALL
    SELECT (SELECT n.tenant FROM memory_nodes n WHERE n.tenant > s.tenant ORDER BY n.tenant LIMIT 1) FROM memory_nodes_tenants s WHERE s.tenant IS NOT NULL
), artifacts_tenants(tenant) AS (
    (SELECT tenant FROM artifacts WHERE tenant IS NOT NULL ORDER BY tenant LIMIT 1)
    UNION ALL
    SELECT (SELECT n.tenant FROM artifacts n WHERE n.tenant > s.tenant ORDER BY n.tenant LIMIT 1) FROM artifacts_tenants s WHERE s.tenant IS NOT NULL
), audit_events_tenants(tenant) AS (
    (SELECT tenant FROM audit_events WHERE tenant IS NOT NULL AND memory_node_id IS NOT NULL ORDER BY tenant LIMIT 1)
    UNION ALL
    SELECT (SELECT n.tenant FROM audit_events n WHERE n.tenant > s.tenant AND memory_node_id IS NOT NULL ORDER BY n.tenant LIMIT 1) FROM audit_events_tenants s WHERE s.tenant IS NOT NULL
), artifact_entries_tenants(tenant) AS (
    (SELECT tenant FROM audit_events WHERE tenant IS NOT NULL AND artifact_id IS NOT NULL ORDER BY tenant LIMIT 1)
    UNION ALL
    SELECT (SELECT n.tenant FROM audit_events n WHERE n.tenant > s.tenant AND artifact_id IS NOT NULL ORDER BY n.tenant LIMIT 1) FROM artifact_entries_tenants s WHERE s.tenant IS NOT NULL
), log AS (SELECT log FROM audit_logs WHERE origin = %(origin)s)
SELECT t.tenant, 'node' AS kind FROM memory_nodes_tenants t
WHERE EXISTS (SELECT FROM memory_nodes n WHERE n.tenant = t.tenant AND n.id = %(id)s)
UNION
SELECT t.tenant, 'node' FROM audit_events_tenants t
WHERE EXISTS (SELECT FROM audit_events e WHERE e.tenant = t.tenant AND e.memory_node_id = %(id)s AND e.log = (SELECT log FROM log)
              AND e.event_type = ANY (%(node_types)s))
UNION
SELECT t.tenant, 'artifact' FROM artifacts_tenants t
WHERE EXISTS (SELECT FROM artifacts a WHERE a.tenant = t.tenant AND a.id = %(id)s)
UNION
SELECT t.tenant, 'artifact' FROM artifact_entries_tenants t
WHERE EXISTS (SELECT FROM audit_events e WHERE e.tenant = t.tenant AND e.artifact_id = %(id)s AND e.log = (SELECT log FROM log)
              AND e.event_type = ANY (%(artifact_types)s))
ORDER BY 1, 2

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

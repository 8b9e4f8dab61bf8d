-- What operators ask of the outbox: how it stands, what the index must hold, and rows put back so that the worker sends them.
-- The index must hold the rows that are `succeeded` and have a vector, at their version; of the others it holds what it may.

-- name: spaces
-- Every index namespace that rows or the table of namespaces speak of.
SELECT s.tenant, s.namespace, s.pending, s.in_flight, s.succeeded, s.failed, s.dead, s.deleting, s.deleted, s.expected, s.unread,
       s.partly, s.model, s.dimension
FROM (
    SELECT tenant, namespace,
           count(*) FILTER (WHERE status = 'pending') AS pending, count(*) FILTER (WHERE status = 'in_flight') AS in_flight,
           count(*) FILTER (WHERE status = 'succeeded') AS succeeded, count(*) FILTER (WHERE status = 'failed') AS failed,
           count(*) FILTER (WHERE status = 'dead') AS dead, count(*) FILTER (WHERE status = 'deleting') AS deleting,
           count(*) FILTER (WHERE status = 'deleted') AS deleted,
           count(*) FILTER (WHERE status = 'succeeded' AND vector_data IS NOT NULL) AS expected,
           count(*) FILTER (WHERE status = 'succeeded' AND metadata ->> 'read' = 'none') AS unread,
           count(*) FILTER (WHERE status = 'succeeded' AND metadata ->> 'read' = 'part') AS partly,
           max(embedding_model) AS model, max(dimension) AS dimension
    FROM memory_vectors
    WHERE (%(tenant)s::text IS NULL OR tenant = %(tenant)s) AND (%(namespace)s::text IS NULL OR namespace = %(namespace)s)
    GROUP BY tenant, namespace
    UNION ALL
    SELECT n.tenant, n.index_namespace, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n.embedding_model, n.dimension
    FROM namespaces n
    WHERE (%(tenant)s::text IS NULL OR n.tenant = %(tenant)s)
      AND (%(namespace)s::text IS NULL OR n.index_namespace = %(namespace)s)
      AND NOT EXISTS (SELECT FROM memory_vectors v WHERE v.tenant = n.tenant AND v.namespace = n.index_namespace)
) s
ORDER BY s.tenant, s.namespace

-- name: oldest
-- Since when the oldest write waits that the index does not know. A row's own times move with each attempt, its node's do not.
SELECT v.tenant, v.namespace, min(n.updated_at) AS oldest
FROM memory_vectors v JOIN memory_nodes n ON n.tenant = v.tenant AND n.id = v.memory_node_id
WHERE ((v.status IN ('pending', 'deleting') AND v.lease_id IS NULL) OR v.lease_id IS NOT NULL)
  AND (%(tenant)s::text IS NULL OR v.tenant = %(tenant)s) AND (%(namespace)s::text IS NULL OR v.namespace = %(namespace)s)
GROUP BY v.tenant, v.namespace

-- name: bucket_sums
-- ops/vectors/digest.py computes the same of what the index holds.
SELECT get_byte(uuid_send(v.memory_node_id), 15) AS bucket, count(*) AS entries,
       sum(('x' || substr(h.hex, 1, 16))::bit(64)::bigint) AS first, sum(('x' || substr(h.hex, 17, 16))::bit(64)::bigint) AS second
FROM memory_vectors v
CROSS JOIN LATERAL (
    SELECT encode(sha256(uuid_send(v.memory_node_id) || int4send(v.version)), 'hex') AS hex OFFSET 0
) h
WHERE v.tenant = %(tenant)s AND v.namespace = %(namespace)s AND v.status = 'succeeded' AND v.vector_data IS NOT NULL
GROUP BY 1

-- name: indexed_rows
-- A page of what the index must hold, by node; of some buckets alone where they are named. The first page is after the nil UUID: with
-- "or NULL" a cached plan would read every page from the first row on.
SELECT memory_node_id AS node_id, version, CASE WHEN %(vectors)s THEN vector_data ->> 'data' END AS stored
FROM memory_vectors
WHERE tenant = %(tenant)s AND namespace = %(namespace)s AND status = 'succeeded' AND vector_data IS NOT NULL
  AND memory_node_id > %(after)s::uuid
  AND (%(buckets)s::int[] IS NULL OR get_byte(uuid_send(memory_node_id), 15) = ANY (%(buckets)s::int[]))
ORDER BY memory_node_id LIMIT %(limit)s

-- name: some_indexed_rows
-- Chosen anew each time, so that night after night other vectors are looked at.
SELECT memory_node_id AS node_id FROM memory_vectors
WHERE tenant = %(tenant)s AND namespace = %(namespace)s AND status = 'succeeded' AND vector_data IS NOT NULL
ORDER BY random() LIMIT %(limit)s

-- name: probe_rows
-- The same ones as long as they are there, so that two probes can be compared.
SELECT memory_node_id AS node_id, vector_data ->> 'data' AS stored FROM memory_vectors
WHERE tenant = %(tenant)s AND namespace = %(namespace)s AND status = 'succeeded' AND vector_data IS NOT NULL
ORDER BY sha256(uuid_send(memory_node_id)) LIMIT %(limit)s

-- name: row_states
SELECT memory_node_id AS node_id, version, status, vector_data IS NOT NULL AS vectored,
       CASE WHEN %(vectors)s THEN vector_data ->> 'data' END AS stored
FROM memory_vectors
WHERE tenant = %(tenant)s AND namespace = %(namespace)s AND memory_node_id = ANY (%(nodes)b::uuid[])

-- name: indexed_nodes
-- Nodes whose entries must be in the index at the version that they have now, with all that is written beside a vector.
SELECT {{Node n - content}}, NULL::text AS content
FROM unnest(%(nodes)b::uuid[]) i
JOIN memory_vectors v ON v.tenant = %(tenant)s AND v.memory_node_id = i AND v.namespace = %(namespace)s
JOIN memory_nodes n ON n.tenant = v.tenant AND n.id = v.memory_node_id AND n.version = v.version
WHERE v.status = 'succeeded' AND v.vector_data IS NOT NULL AND n.deleted_at IS NULL

-- name: send_again
-- Only what is indexed at the version that was compared: whatever changed meanwhile is sent anyway.
UPDATE memory_vectors v
SET status = 'pending', bulk = true, attempts = 0, next_attempt_at = clock_timestamp(), error = NULL, error_class = NULL,
    provider = %(provider)s, updated_at = clock_timestamp()
FROM (
    SELECT m.tenant, m.id
    FROM unnest(%(nodes)b::uuid[], %(versions)b::int[]) u(n, ve)
    JOIN memory_vectors m ON m.tenant = %(tenant)s AND m.memory_node_id = n AND m.namespace = %(namespace)s
    WHERE m.version = ve AND m.status = 'succeeded' AND m.lease_id IS NULL
    ORDER BY m.tenant, m.id FOR UPDATE OF m SKIP LOCKED
) d
WHERE v.tenant = d.tenant AND v.id = d.id
RETURNING v.memory_node_id AS node_id, v.version

-- name: replay
-- A page of the outstanding rows, made due with all their attempts again. A lease that is running stays with its worker, and a job that
-- was cancelled stays cancelled until somebody retries it.
WITH found AS (
    SELECT tenant, id, status, lease_until FROM memory_vectors
    WHERE status IN ('pending', 'in_flight', 'failed', 'dead', 'deleting') AND error_class IS DISTINCT FROM 'cancelled'
      AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s) AND (%(namespace)s::text IS NULL OR namespace = %(namespace)s)
      AND (tenant, id) > (%(after_tenant)s::text, %(after_id)s::uuid)
    ORDER BY tenant, id LIMIT %(limit)s
), locked AS (
    SELECT m.tenant, m.id FROM memory_vectors m JOIN found f ON f.tenant = m.tenant AND f.id = m.id
    WHERE m.status IN ('pending', 'in_flight', 'failed', 'dead', 'deleting')
      AND (m.lease_until IS NULL OR m.lease_until < statement_timestamp())
    ORDER BY m.tenant, m.id FOR UPDATE OF m SKIP LOCKED
), due AS (
    UPDATE memory_vectors v
    SET status = CASE v.status WHEN 'deleting' THEN 'deleting' ELSE 'pending' END, bulk = true, attempts = 0,
        next_attempt_at = clock_timestamp(), error = NULL, error_class = NULL, lease_id = NULL, lease_until = NULL,
        updated_at = clock_timestamp()
    FROM locked l WHERE v.tenant = l.tenant AND v.id = l.id
    RETURNING v.tenant, v.id
)
SELECT f.tenant, f.id, f.status, m.namespace, m.memory_node_id AS node_id, m.version,
       EXISTS (SELECT FROM due d WHERE d.tenant = f.tenant AND d.id = f.id) AS due
FROM found f JOIN memory_vectors m ON m.tenant = f.tenant AND m.id = f.id
ORDER BY f.tenant, f.id

-- name: outstanding
-- Of these rows, those that are still outstanding at the version that they were followed at.
SELECT v.memory_node_id AS node_id, v.status, v.error
FROM unnest(%(nodes)b::uuid[], %(versions)b::int[]) u(n, ve)
JOIN memory_vectors v ON v.tenant = %(tenant)s AND v.memory_node_id = n AND v.namespace = %(namespace)s AND v.version = ve
WHERE v.status IN ('pending', 'in_flight', 'failed', 'dead', 'deleting')

-- name: nodes_to_restore
-- Which of a snapshot's rows stand as they were, with all that is written beside a vector.
SELECT v.memory_node_id AS node_id, v.version AS row_version, v.vector_data ->> 'data' AS stored, v.provider,
       {{Node n - content}}, NULL::text AS content
FROM unnest(%(nodes)b::uuid[], %(versions)b::int[]) u(i, ve)
JOIN memory_vectors v ON v.tenant = %(tenant)s AND v.memory_node_id = i AND v.namespace = %(namespace)s AND v.version = ve
JOIN memory_nodes n ON n.tenant = v.tenant AND n.id = v.memory_node_id
WHERE v.status NOT IN ('deleting', 'deleted') AND v.vector_data IS NOT NULL AND n.deleted_at IS NULL

-- name: set_provider
UPDATE memory_vectors v SET provider = %(provider)s
FROM (
    SELECT m.tenant, m.id FROM memory_vectors m
    WHERE m.tenant = %(tenant)s AND m.memory_node_id = ANY (%(nodes)b::uuid[]) AND m.namespace = %(namespace)s
      AND m.provider <> %(provider)s
    ORDER BY m.tenant, m.id FOR UPDATE OF m SKIP LOCKED
) d
WHERE v.tenant = d.tenant AND v.id = d.id

-- name: set_namespace_provider
UPDATE namespaces SET provider = %(provider)s
WHERE tenant = %(tenant)s AND index_namespace = %(namespace)s AND provider <> %(provider)s

-- name: log_position
SELECT l.origin, s.last_seq AS seq, s.head AS hash
FROM (SELECT log, origin FROM audit_logs WHERE origin = %(origin)s) l
LEFT JOIN LATERAL (
    SELECT last_seq, head FROM audit_seals a WHERE a.log = l.log ORDER BY a.batch_no DESC LIMIT 1
) s ON true

-- name: live_nodes
-- What a drill made, and nothing that somebody else keeps under the same tenant.
SELECT id FROM memory_nodes
WHERE tenant = %(tenant)s AND owner = %(owner)s AND namespace LIKE 'drill-%%' AND deleted_at IS NULL

-- name: words
-- A page of nodes with a text, and what is wrong with their words. What is on its way through the worker is not judged (NULL). Where there is
-- nothing else to say, the text comes along: its words are made again and compared (unlike_words). Words of an older version of the
-- analyser are right until they are written again.
WITH page AS MATERIALIZED (
    SELECT n.tenant, n.id, n.namespace, n.version, n.content,
           coalesce(n.language, (SELECT l.language FROM namespace_languages l WHERE l.tenant = n.tenant AND l.name = n.namespace))
               AS language, coalesce(s.index_namespace, n.namespace) AS index_namespace
    FROM memory_nodes n LEFT JOIN namespaces s ON s.tenant = n.tenant AND s.name = n.namespace
    WHERE (n.tenant, n.id) > (%(after_tenant)s::text, %(after_id)s::uuid) AND n.deleted_at IS NULL AND n.content <> ''
      AND (%(tenant)s::text IS NULL OR n.tenant = %(tenant)s)
      AND (%(namespace)s::text IS NULL OR coalesce(s.index_namespace, n.namespace) = %(namespace)s)
      AND (%(nodes)s::uuid[] IS NULL OR n.id = ANY (%(nodes)s::uuid[]))
    ORDER BY n.tenant, n.id LIMIT %(limit)s
)
SELECT p.tenant, p.id AS node_id, p.index_namespace AS namespace, v.version,
       CASE WHEN v.status = 'succeeded' THEN
           CASE WHEN t.node_id IS NULL THEN 'missing'
                WHEN t.namespace <> p.namespace OR t.version NOT BETWEEN v.since AND p.version OR t.analyser > %(analyser)s
                THEN 'wrong' END
       END AS problem,
       CASE WHEN v.status = 'succeeded' AND t.analyser = %(analyser)s THEN p.content END AS content, p.language AS declared
FROM page p
LEFT JOIN memory_terms t ON t.tenant = p.tenant AND t.node_id = p.id
LEFT JOIN LATERAL (
    SELECT v.status, v.version, (v.metadata ->> 'since')::int AS since FROM memory_vectors v
    WHERE v.tenant = p.tenant AND v.memory_node_id = p.id AND v.namespace = p.index_namespace OFFSET 0
) v ON true
ORDER BY p.tenant, p.id

-- name: unlike_words
-- Of these words those that are not what stands there, by their places.
SELECT u.place FROM unnest(%(tenants)s::text[], %(nodes)s::uuid[], %(languages)s::text[], %(terms)s::text[])
    WITH ORDINALITY u(tenant, node, language, terms, place)
JOIN memory_terms t ON t.tenant = u.tenant AND t.node_id = u.node
WHERE t.language <> u.language OR t.terms <> u.terms::tsvector

-- name: stray_words
-- Words of what is no node, or is one without a text that has left the index.
SELECT t.tenant, t.node_id, t.namespace FROM memory_terms t
LEFT JOIN memory_nodes n ON n.tenant = t.tenant AND n.id = t.node_id
WHERE (%(tenant)s::text IS NULL OR t.tenant = %(tenant)s) AND (%(namespace)s::text IS NULL OR t.namespace = %(namespace)s)
  AND (n.id IS NULL OR ((n.deleted_at IS NOT NULL OR coalesce(n.content, '') = '')
       AND NOT EXISTS (SELECT FROM memory_vectors v WHERE v.tenant = n.tenant AND v.memory_node_id = n.id
                       AND v.status NOT IN ('succeeded', 'deleted'))))
ORDER BY t.tenant, t.node_id LIMIT %(limit)s

-- name: drop_stray_words
DELETE FROM memory_terms t USING unnest(%(tenants)s::text[], %(nodes)s::uuid[]) u(t, n)
WHERE t.tenant = u.t AND t.node_id = u.n
  AND NOT EXISTS (SELECT FROM memory_nodes n WHERE n.tenant = t.tenant AND n.id = t.node_id AND n.deleted_at IS NULL AND n.content <> '')

-- name: drop_words
DELETE FROM memory_terms t USING unnest(%(tenants)s::text[], %(nodes)s::uuid[]) u(t, n) WHERE t.tenant = u.t AND t.node_id = u.n

-- Generations of a namespace's index: what is left to do, and the rows that operators and the worker write for it. Which generation
-- answers is changed by the committer alone (commit.sql).

-- name: space
SELECT s.tenant, s.name, s.index_namespace, s.embedding_model AS model, s.dimension, s.provider, s.generations,
       s.beside AS standby, s.beside_model AS standby_model, s.beside_dimension AS standby_dimension, s.beside_state AS standby_state
FROM namespaces s WHERE s.tenant = %(tenant)s AND s.name = %(name)s

-- name: spaces
-- Those of one tenant, or of all (NULL), with `pairs` only where there are two generations.
SELECT s.tenant, s.name, s.index_namespace, s.embedding_model AS model, s.dimension, s.provider, s.generations,
       s.beside AS standby, s.beside_model AS standby_model, s.beside_dimension AS standby_dimension, s.beside_state AS standby_state
FROM namespaces s
WHERE (%(tenant)s::text IS NULL OR s.tenant = %(tenant)s) AND (s.beside IS NOT NULL OR NOT %(pairs)s)
ORDER BY s.tenant, s.name

-- name: coverage
-- `behind` and `given` as in commit.sql, find_lacks, which decides. `stranded`: found in the standby alone.
SELECT count(*) FILTER (WHERE a.id IS NOT NULL) AS nodes,
       count(*) FILTER (WHERE a.status = 'succeeded') AS active,
       count(*) FILTER (WHERE b.status = 'succeeded') AS standby,
       count(*) FILTER (WHERE a.id IS NOT NULL AND lack.given) AS given,
       count(*) FILTER (WHERE a.id IS NOT NULL AND lack.behind AND NOT lack.given) AS behind,
       count(*) FILTER (WHERE b.status IN ('failed', 'dead')) AS failed,
       count(*) FILTER (WHERE a.id IS NULL AND b.id IS NOT NULL) AS stranded,
       min(b.error) FILTER (WHERE b.status <> 'succeeded') AS error
FROM namespaces s
JOIN memory_nodes n ON n.tenant = s.tenant AND n.namespace = s.name AND n.deleted_at IS NULL
LEFT JOIN memory_vectors a ON a.tenant = n.tenant AND a.memory_node_id = n.id AND a.namespace = s.index_namespace
                          AND a.status NOT IN ('deleting', 'deleted')
LEFT JOIN memory_vectors b ON b.tenant = n.tenant AND b.memory_node_id = n.id AND b.namespace = s.beside
                          AND b.status NOT IN ('deleting', 'deleted')
CROSS JOIN LATERAL (
    SELECT b.id IS NULL AND coalesce(n.content, '') = '' AS given,
           CASE WHEN b.id IS NULL THEN true WHEN b.status = 'succeeded' THEN false
                WHEN b.status IN ('failed', 'dead') AND a.status NOT IN ('failed', 'dead') THEN true
                ELSE a.status = 'succeeded' OR (a.metadata ->> 'since')::int < a.version END AS behind
) lack
WHERE s.tenant = %(tenant)s AND s.name = %(name)s

-- name: log_end
-- The last entry of the snapshot in which the nodes were counted. `since`: no transaction of a worker that was under way then, and so
-- could not be seen, had begun before (its statements take a minute at the most).
SELECT s.log, s.last_seq AS seq, statement_timestamp() - interval '2 minutes' AS since
FROM audit_seals s JOIN audit_logs l ON l.log = s.log WHERE l.origin = %(origin)s ORDER BY s.batch_no DESC LIMIT 1

-- name: outstanding
-- Nodes that the standby generation may yet index or give up on: a switch checks these again under the lock, up to `most`.
SELECT n.id FROM namespaces s
JOIN memory_nodes n ON n.tenant = s.tenant AND n.namespace = s.name AND n.deleted_at IS NULL
LEFT JOIN memory_vectors b ON b.tenant = n.tenant AND b.memory_node_id = n.id AND b.namespace = s.beside
                          AND b.status NOT IN ('deleting', 'deleted')
WHERE s.tenant = %(tenant)s AND s.name = %(name)s AND b.status IS DISTINCT FROM 'succeeded'
  AND (b.id IS NOT NULL OR coalesce(n.content, '') <> '')
LIMIT %(most)s

-- name: unfilled
-- Nodes with a text and without a row in the standby generation, in the order of their ids. Read without a lock: `fill` looks again.
SELECT n.id FROM memory_nodes n
WHERE n.tenant = %(tenant)s AND n.namespace = %(name)s AND n.deleted_at IS NULL AND n.content <> '' AND n.id > %(after)s
  AND NOT EXISTS (SELECT FROM memory_vectors b
                  WHERE b.tenant = n.tenant AND b.memory_node_id = n.id AND b.namespace = %(standby)s)
ORDER BY n.id LIMIT %(limit)s

-- name: lock_log
-- No batch is between what it read and its COMMIT while this is held, so no change of a node can pass a row of `fill` by.
SELECT pg_advisory_xact_lock(5062476, 0)

-- name: fill
WITH filled AS (
    INSERT INTO memory_vectors (tenant, id, memory_node_id, namespace, provider, embedding_model, dimension, status, version,
                                metadata, bulk, next_attempt_at, created_at, updated_at)
    SELECT n.tenant, u.r, n.id, s.beside, s.provider, s.beside_model, s.beside_dimension, 'pending', n.version,
           jsonb_build_object('source', 'embedder', 'since', coalesce((a.metadata ->> 'since')::int, n.version)),
           true, clock_timestamp(), clock_timestamp(), clock_timestamp()
    FROM unnest(%(rows)b::uuid[], %(nodes)b::uuid[]) u(r, i)
    JOIN memory_nodes n ON n.tenant = %(tenant)s AND n.id = u.i
    JOIN namespaces s ON s.tenant = n.tenant AND s.name = n.namespace
    LEFT JOIN memory_vectors a ON a.tenant = n.tenant AND a.memory_node_id = n.id AND a.namespace = s.index_namespace
    WHERE n.deleted_at IS NULL AND n.content <> '' AND s.beside = %(standby)s AND s.beside_state <> 'retired'
    ON CONFLICT (tenant, memory_node_id, namespace) DO NOTHING
    RETURNING 1
)
SELECT count(*) AS filled FROM filled

-- name: waiting
-- Rows of one generation that the worker has yet to index.
SELECT count(*) AS rows FROM memory_vectors v
WHERE v.tenant = %(tenant)s AND v.namespace = %(index_namespace)s
  AND ((v.status IN ('pending', 'deleting') AND v.lease_id IS NULL) OR v.lease_id IS NOT NULL)

-- name: let_go
-- Rows of a generation that is written no more. Not those that a worker has in hand: what it is about to write into the index must
-- be there before that is dropped. A vector that its caller gave stays with its row, for the log speaks of it.
WITH piece AS MATERIALIZED (
    SELECT v.tenant, v.id, v.status FROM memory_vectors v
    WHERE v.tenant = %(tenant)s AND v.id > %(after)s AND v.namespace = %(index_namespace)s AND v.status <> 'deleted'
      AND v.lease_id IS NULL
    ORDER BY v.id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
), gone AS (
    UPDATE memory_vectors v
    SET status = 'deleted', error = NULL, error_class = NULL, updated_at = clock_timestamp(),
        vector_data = CASE WHEN v.metadata ->> 'source' IN ('caller', 'earlier') THEN v.vector_data END
    FROM piece p WHERE v.tenant = p.tenant AND v.id = p.id
    RETURNING v.id
)
SELECT g.id FROM gone g ORDER BY g.id DESC

-- name: left
SELECT count(*) AS rows FROM memory_vectors v
WHERE v.tenant = %(tenant)s AND v.namespace = %(index_namespace)s AND v.status <> 'deleted'

-- name: sample
-- Texts of a namespace, the same ones for the same seed.
SELECT n.id, left(n.content, 2000) AS content FROM memory_nodes n
JOIN memory_vectors b ON b.tenant = n.tenant AND b.memory_node_id = n.id AND b.namespace = %(standby)s AND b.status = 'succeeded'
WHERE n.tenant = %(tenant)s AND n.namespace = %(name)s AND n.deleted_at IS NULL AND n.content <> ''
ORDER BY md5(n.id::text || %(seed)s::text), n.id LIMIT %(limit)s

-- name: digest
-- Of (node, version) of all that a generation holds, by the rows.
SELECT count(*) AS rows,
       encode(sha256(convert_to(coalesce(string_agg(v.memory_node_id || ' ' || v.version, E'\n' ORDER BY v.memory_node_id), ''),
                                'UTF8')), 'hex') AS sha256
FROM memory_vectors v
WHERE v.tenant = %(tenant)s AND v.namespace = %(index_namespace)s AND v.status = 'succeeded'

-- The worker's statements. memory_vectors is the outbox: claim, commit the lease, call out, settle by compare-and-set.
-- Rows are compared with statement_timestamp(), which an index can answer for; clock_timestamp() is read anew for every row.

-- name: bury
-- A run that ended without a result tells nothing of its rows; after so many of them no other run is risked.
UPDATE memory_vectors v
SET status = 'dead', error = %(error)s, error_class = 'retryable', lease_id = NULL, lease_until = NULL,
    updated_at = clock_timestamp()
FROM (
    SELECT tenant, id FROM memory_vectors
    WHERE lease_id IS NOT NULL AND lease_until < statement_timestamp() AND status <> 'deleting' AND attempts >= %(most)s
    ORDER BY lease_until, id LIMIT 1000 FOR UPDATE SKIP LOCKED
) d
WHERE v.tenant = d.tenant AND v.id = d.id

-- name: claim
-- Overdue rows are taken alone, half as many with each attempt that they have behind them.
WITH overdue AS (
    SELECT tenant, id FROM memory_vectors
    WHERE lease_id IS NOT NULL AND lease_until < statement_timestamp()
    ORDER BY lease_until, id
    LIMIT (SELECT greatest(1, %(limit)s >> least(attempts, 16)) FROM memory_vectors
           WHERE lease_id IS NOT NULL AND lease_until < statement_timestamp() ORDER BY lease_until, id LIMIT 1)
    FOR UPDATE SKIP LOCKED
), due AS (
    SELECT tenant, id FROM memory_vectors
    WHERE status IN ('pending', 'deleting') AND lease_id IS NULL AND next_attempt_at <= statement_timestamp()
      AND NOT EXISTS (SELECT FROM overdue)
    ORDER BY next_attempt_at, id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
UPDATE memory_vectors v
SET status = CASE v.status WHEN 'deleting' THEN 'deleting' ELSE 'in_flight' END, lease_id = %(lease)s,
    lease_until = clock_timestamp() + make_interval(secs => %(seconds)s), attempts = v.attempts + 1,
    updated_at = clock_timestamp()
FROM (SELECT * FROM overdue UNION ALL SELECT * FROM due) d
WHERE v.tenant = d.tenant AND v.id = d.id
RETURNING v.tenant, v.id, v.memory_node_id AS node_id, v.namespace, v.embedding_model AS model, v.dimension, v.status,
          v.version, v.attempts, v.vector_data ->> 'data' AS stored

-- name: extend
-- Rows that are being settled or changed right now are passed over: nobody waits for a heartbeat.
UPDATE memory_vectors v SET lease_until = clock_timestamp() + make_interval(secs => %(seconds)s)
FROM (SELECT tenant, id FROM memory_vectors WHERE lease_id = %(lease)s FOR UPDATE SKIP LOCKED) d
WHERE v.tenant = d.tenant AND v.id = d.id

-- name: release
UPDATE memory_vectors
SET status = CASE status WHEN 'deleting' THEN 'deleting' ELSE 'pending' END, lease_id = NULL, lease_until = NULL,
    attempts = attempts - 1, next_attempt_at = clock_timestamp(), updated_at = clock_timestamp()
WHERE lease_id = %(lease)s

-- name: claimed_nodes
SELECT n.tenant, n.id, n.owner, n.namespace, n.embedding_id, n.content, n.metadata, n.pii_flags, n.subjects, n.legal_hold,
       n.legal_hold_reason, n.ttl_seconds, n.expires_at, n.occurred_at, n.version, n.created_at, n.updated_at, n.deleted_at
FROM unnest(%(tenants)b::text[], %(ids)b::uuid[]) u(t, i) JOIN memory_nodes n ON n.tenant = u.t AND n.id = u.i

-- name: succeed
-- The text index is written only by the run that still holds the row, so a late one cannot bring old words back. All texts
-- are parsed before a row is locked (the sort takes them all in): a committer that wants the row holds the log meanwhile.
WITH parsed AS MATERIALIZED (
    SELECT t, i, ve, vd, ns, to_tsvector('english', c) AS terms
    FROM unnest(%(tenants)b::text[], %(ids)b::uuid[], %(versions)b::int[], %(vectors)b::text[], %(namespaces)b::text[],
                %(contents)b::text[]) u(t, i, ve, vd, ns, c)
), ready AS MATERIALIZED (
    SELECT * FROM parsed ORDER BY t, i
), won AS (
    UPDATE memory_vectors v
    SET status = 'succeeded', error = NULL, error_class = NULL, lease_id = NULL, lease_until = NULL,
        external_vector_id = v.memory_node_id::text,
        vector_data = CASE WHEN vd IS NULL THEN v.vector_data ELSE jsonb_build_object('encoding', 'f32le', 'data', vd) END,
        updated_at = clock_timestamp()
    FROM ready
    WHERE v.tenant = t AND v.id = i AND v.version = ve AND v.lease_id = %(lease)s
    RETURNING v.tenant, v.memory_node_id, ns AS namespace, v.version, terms
), worded AS (
    INSERT INTO memory_terms (tenant, node_id, namespace, version, terms)
    -- Once for a node whose rows of two generations are settled together.
    SELECT DISTINCT ON (tenant, memory_node_id) tenant, memory_node_id, namespace, version, terms
    FROM won WHERE terms IS NOT NULL ORDER BY tenant, memory_node_id, version DESC
    ON CONFLICT (tenant, node_id) DO UPDATE
    SET namespace = EXCLUDED.namespace, version = EXCLUDED.version, terms = EXCLUDED.terms
    WHERE memory_terms.version <= EXCLUDED.version
), wordless AS (
    DELETE FROM memory_terms m USING won
    WHERE won.terms IS NULL AND m.tenant = won.tenant AND m.node_id = won.memory_node_id
)
SELECT count(*) AS settled FROM won

-- name: removed
WITH won AS (
    UPDATE memory_vectors v
    SET status = 'deleted', error = NULL, error_class = NULL, lease_id = NULL, lease_until = NULL,
        updated_at = clock_timestamp()
    FROM unnest(%(tenants)b::text[], %(ids)b::uuid[], %(versions)b::int[]) u(t, i, ve)
    WHERE v.tenant = t AND v.id = i AND v.version = ve AND v.lease_id = %(lease)s
    RETURNING v.tenant, v.memory_node_id
), wordless AS (
    -- Not when the node only leaves one generation of the index: its words belong to all of them.
    DELETE FROM memory_terms m USING won
    WHERE m.tenant = won.tenant AND m.node_id = won.memory_node_id
      AND NOT EXISTS (SELECT FROM memory_vectors o
                      WHERE o.tenant = won.tenant AND o.memory_node_id = won.memory_node_id
                        AND o.status NOT IN ('deleting', 'deleted'))
)
SELECT count(*) AS settled FROM won

-- name: put_back
UPDATE memory_vectors v
SET status = CASE WHEN v.status = 'deleting' THEN 'deleting' ELSE st END, error = er, error_class = ec,
    next_attempt_at = clock_timestamp() + make_interval(secs => wait), lease_id = NULL, lease_until = NULL,
    attempts = v.attempts - spared, updated_at = clock_timestamp()
FROM unnest(%(tenants)b::text[], %(ids)b::uuid[], %(versions)b::int[], %(statuses)b::text[], %(errors)b::text[],
            %(classes)b::text[], %(waits)b::float8[], %(spared)b::int[]) u(t, i, ve, st, er, ec, wait, spared)
WHERE v.tenant = t AND v.id = i AND v.version = ve AND v.lease_id = %(lease)s

-- name: backlog
SELECT count(*) AS pending,
       coalesce(greatest(extract(epoch FROM clock_timestamp() - min(next_attempt_at)), 0), 0)::float8 AS oldest
FROM memory_vectors WHERE (status IN ('pending', 'deleting') AND lease_id IS NULL) OR lease_id IS NOT NULL

-- The pgvector adapter's statements. No table here has row-level security (it keeps Postgres from using GIN and is checked again on
-- memory_nodes): every statement names tenant and namespace itself, or is about a table that holds nothing else.
--
-- {relation}, {where}, {dimension} and {depth} are filled in by the adapter: a table's name (vector_entries, or space_<number> of the
-- registry), which rows of it (one of the two blocks below and the compiled filter), and numbers. Values are parameters.

-- name: upsert
SELECT tenant, namespace, large FROM vector_spaces.upsert(
    %(tenants)s::text[], %(namespaces)s::text[], %(nodes)s::uuid[], %(versions)s::int[], %(vectors)s::vector[], %(fields)s::jsonb[],
    %(threshold)s::int)

-- name: remove
SELECT vector_spaces.remove(%(tenant)s::text, %(namespace)s::text, %(nodes)s::uuid[], %(versions)s::int[])

-- name: forget
SELECT vector_spaces.forget(%(tenant)s::text, %(namespace)s::text)

-- name: sweep
SELECT vector_spaces.sweep(%(most)s::int) AS more

-- name: promote
SELECT vector_spaces.promote(%(tenant)s::text, %(namespace)s::text, %(threshold)s::int) AS outcome

-- name: reindex
SELECT vector_spaces.reindex(%(number)s::bigint, %(method)s::text)

-- name: note
SELECT vector_spaces.note(%(number)s::bigint, %(recall)s::real, %(rerank)s::int)

-- name: prewarm
SELECT vector_spaces.prewarm(%(number)s::bigint) AS done

-- name: due
SELECT tenant, namespace FROM vector_spaces.due(%(threshold)s::int)

-- name: ping
SELECT 1 AS there FROM vector_spaces.registry LIMIT 0

-- name: space
-- Asked behind each statement on a namespace, in the same round trip: its snapshot is younger than theirs.
SELECT number, dimension, method, rerank, rows FROM vector_spaces.registry
WHERE tenant = %(tenant)s::text AND namespace = %(namespace)s::text AND number IS NOT NULL

-- name: health
-- For the schedule: when recall was last measured, and on how many rows.
SELECT rows, checked, checked_at < clock_timestamp() - interval '1 day' AS old, recall FROM vector_spaces.registry
WHERE number = %(number)s

-- name: in_entries
tenant = %(tenant)s::text AND namespace = %(namespace)s::text AND removed_at IS NULL

-- name: in_own
removed_at IS NULL

-- name: patient
-- Before upkeep, in its transaction: what loads, clears or forgets a large namespace may take longer than a search may, whatever limit
-- the role or the database has for statements.
SELECT WHERE set_config('statement_timeout', '0', true) IS NULL

-- name: settings_entries
-- The settings of a search, for its transaction alone. A plan is made once for each statement: choosing among plans by the values
-- would take longer than a search does, and what distinguishes them is known here. Nobody waits longer than the timeout. No row comes back: it would only have to be read.
SELECT WHERE concat(set_config('statement_timeout', '15s', true), set_config('plan_cache_mode', 'force_generic_plan', true), set_config('enable_seqscan', 'off', true)) IS NULL

-- name: settings_scan
SELECT WHERE concat(set_config('statement_timeout', '15s', true), set_config('plan_cache_mode', 'force_generic_plan', true)) IS NULL

-- name: settings_few
SELECT WHERE concat(set_config('statement_timeout', '15s', true), set_config('plan_cache_mode', 'force_generic_plan', true), set_config('enable_seqscan', 'off', true),
       set_config('enable_indexscan', 'off', true)) IS NULL

-- name: settings_near
SELECT WHERE concat(set_config('statement_timeout', '15s', true), set_config('plan_cache_mode', 'force_generic_plan', true), set_config('enable_seqscan', 'off', true),
       set_config('enable_bitmapscan', 'off', true), set_config('hnsw.iterative_scan', %(iterate)s::text, true),
       set_config('hnsw.scan_mem_multiplier', '4', true), set_config('hnsw.ef_search', %(ef)s::text, true),
       set_config('hnsw.max_scan_tuples', %(visits)s::text, true)) IS NULL

-- name: search
-- Exact.
SELECT node_id, version, 1 - distance AS score FROM (
    SELECT node_id, version, embedding <=> %(query)s::vector AS distance FROM {relation} WHERE {where}
) e ORDER BY distance, node_id LIMIT %(limit)s::bigint OFFSET %(skip)s::bigint

-- name: search_few
-- Exact, when no more rows match than depth: a bounded count and the answer at once.
WITH few AS MATERIALIZED (
    SELECT node_id, version, embedding <=> %(query)s::vector AS distance FROM {relation} WHERE {where} LIMIT {depth}
)
SELECT node_id, version, 1 - distance AS score, count(*) OVER () AS candidates FROM few
ORDER BY distance, node_id LIMIT %(limit)s::bigint OFFSET %(skip)s::bigint

-- name: search_bit
-- The nearest by the Hamming distance of their signs, put in order by the exact distance. worst: whether an unseen row may tie.
SELECT node_id, version, 1 - distance AS score, count(*) OVER () AS candidates, 1 - max(distance) OVER () AS worst FROM (
    SELECT node_id, version, embedding <=> %(query)s::vector AS distance FROM {relation} WHERE {where}
    ORDER BY binary_quantize(embedding)::bit({dimension}) <~> binary_quantize(%(query)s::vector)::bit({dimension}) LIMIT {depth}
) near ORDER BY distance, node_id LIMIT %(limit)s::bigint OFFSET %(skip)s::bigint

-- name: search_halfvec
SELECT node_id, version, 1 - distance AS score, count(*) OVER () AS candidates, 1 - max(distance) OVER () AS worst FROM (
    SELECT node_id, version, embedding <=> %(query)s::vector AS distance FROM {relation} WHERE {where}
    ORDER BY embedding::halfvec({dimension}) <=> %(query)s::vector::halfvec({dimension}) LIMIT {depth}
) near ORDER BY distance, node_id LIMIT %(limit)s::bigint OFFSET %(skip)s::bigint

-- name: share
-- How many of a sample of pages' rows match.
SELECT count(*) AS looked, count(*) FILTER (WHERE {where}) AS matched FROM {relation} TABLESAMPLE SYSTEM (%(percent)s::float8)
WHERE removed_at IS NULL

-- name: some
-- Vectors to measure recall with.
SELECT node_id, version, vector_send(embedding) AS vector FROM {relation} TABLESAMPLE SYSTEM (%(percent)s::float8)
WHERE {where} ORDER BY random() LIMIT %(limit)s::bigint

-- name: fetch
SELECT node_id, version, vector_send(embedding) AS vector FROM {relation} WHERE {where} AND node_id = ANY (%(nodes)s::uuid[])

-- name: stale_fields
SELECT r.node_id FROM {relation} r
JOIN unnest(%(nodes)s::uuid[], %(versions)s::int[], %(fields)s::jsonb[]) u(n, v, f) ON r.node_id = u.n
WHERE {where} AND r.version = u.v AND r.fields IS DISTINCT FROM u.f

-- name: unknown_namespaces
-- From name to name along the primary key: as many steps as there are namespaces, however many rows they have.
WITH RECURSIVE names AS (
    (SELECT tenant, namespace FROM vector_entries ORDER BY tenant, namespace LIMIT 1)
    UNION ALL
    SELECT s.tenant, s.namespace FROM names n
    CROSS JOIN LATERAL (SELECT e.tenant, e.namespace FROM vector_entries e
                        WHERE (e.tenant, e.namespace) > (n.tenant, n.namespace) ORDER BY e.tenant, e.namespace LIMIT 1) s
), there AS (
    SELECT tenant, namespace FROM names n
    WHERE EXISTS (SELECT FROM vector_entries e WHERE e.tenant = n.tenant AND e.namespace = n.namespace AND e.removed_at IS NULL)
    UNION SELECT tenant, namespace FROM vector_spaces.registry WHERE number IS NOT NULL
)
SELECT tenant, namespace FROM there
EXCEPT SELECT * FROM unnest(%(tenants)s::text[], %(namespaces)s::text[])
ORDER BY 1, 2

-- name: count
SELECT count(*) AS count FROM {relation} WHERE {where}

-- name: count_own
-- A row fills a page, so that they are counted in the indexes.
SELECT (SELECT count(*) FROM {relation}) - (SELECT count(*) FROM {relation} WHERE removed_at IS NOT NULL) AS count

-- name: scan
SELECT node_id, version, CASE WHEN %(vectors)s::bool THEN vector_send(embedding) END AS vector FROM {relation}
WHERE {where} AND node_id >= %(start)s::uuid
ORDER BY node_id LIMIT %(limit)s::bigint

-- name: least_recall
SELECT min(recall) AS recall FROM vector_spaces.registry WHERE method <> 'none'

-- The pgvector adapter's statements. The table has no row-level security (it keeps Postgres from using GIN and is checked
-- again on memory_nodes): every statement names tenant and namespace itself.

-- name: upsert
-- Of one node twice in a call the newest counts: ON CONFLICT refuses to touch a row twice.
INSERT INTO vector_entries (tenant, namespace, node_id, version, embedding, fields, removed_at)
SELECT DISTINCT ON (t, ns, n) t, ns, n, v, e, f::jsonb, NULL::timestamptz
FROM unnest(%(tenants)b::text[], %(namespaces)b::text[], %(nodes)b::uuid[], %(versions)b::int[], %(vectors)b::vector[],
            %(fields)b::text[]) u(t, ns, n, v, e, f)
ORDER BY t, ns, n, v DESC
ON CONFLICT (tenant, namespace, node_id) DO UPDATE
SET version = EXCLUDED.version, embedding = EXCLUDED.embedding, fields = EXCLUDED.fields, removed_at = NULL
WHERE vector_entries.version < EXCLUDED.version
   OR (vector_entries.version = EXCLUDED.version AND vector_entries.removed_at IS NULL)

-- name: remove
INSERT INTO vector_entries (tenant, namespace, node_id, version, embedding, fields, removed_at)
SELECT %(tenant)s, %(namespace)s, n, max(v), NULL, '{}', clock_timestamp()
FROM unnest(%(nodes)b::uuid[], %(versions)b::int[]) u(n, v)
GROUP BY n ORDER BY n
ON CONFLICT (tenant, namespace, node_id) DO UPDATE
SET version = EXCLUDED.version, embedding = NULL, fields = '{}', removed_at = EXCLUDED.removed_at
WHERE vector_entries.version <= EXCLUDED.version

-- name: sweep
DELETE FROM vector_entries WHERE ctid = ANY (ARRAY (
    SELECT ctid FROM vector_entries WHERE removed_at < statement_timestamp() - interval '1 day' LIMIT %(limit)s
)) AND removed_at < clock_timestamp() - interval '1 day'

-- name: fetch
SELECT node_id, version, vector_send(embedding) FROM vector_entries
WHERE tenant = %(tenant)s AND namespace = %(namespace)s AND node_id = ANY (%(nodes)s) AND removed_at IS NULL

-- name: count
SELECT count(*) FROM vector_entries WHERE tenant = %(tenant)s AND namespace = %(namespace)s AND removed_at IS NULL

-- name: scan
SELECT node_id, version, CASE WHEN %(vectors)s THEN vector_send(embedding) END FROM vector_entries
WHERE tenant = %(tenant)s AND namespace = %(namespace)s AND removed_at IS NULL
  AND (%(after)s::uuid IS NULL OR node_id > %(after)s::uuid)
ORDER BY node_id LIMIT %(limit)s

-- name: drop
DELETE FROM vector_entries WHERE tenant = %(tenant)s AND namespace = %(namespace)s

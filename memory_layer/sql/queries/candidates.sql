-- What every search reads, over one pipeline (stores/pipeline.py): each parameter says its type.

-- name: scope
-- For the transaction that the statements of one pipeline are. No row comes back: it would only have to be read.
SELECT WHERE concat(set_config('memory.tenants', %(tenants)s::text, true), set_config('memory.all_tenants', 'off', true),
                    set_config('statement_timeout', %(timeout)s::text, true)) IS NULL

-- name: rows
-- What Postgres has of candidates (ids, or the hits of an index in this database), a look-up each: the node, its row for this index
-- namespace, the ids of its first files; nulls where there is none. Text and metadata come along unless they are long (`long`): they are read
-- for those hits that are answered or compared. What is stored is looked at first, for it costs no unpacking, then the text. `size`: of
-- the metadata that came along. `strict`: with what the log recorded last of the node (evidence.sql) and the SHA-256 of the vector that the
-- caller gave; `mark`: of the row's version. LIMIT keeps a plan that was made on empty tables from scanning full ones.
SELECT n.*, v.*, e.*, g.*, ARRAY (
           SELECT a.id FROM artifacts a WHERE a.tenant = %(tenant)s::text AND a.memory_node_id = n.id ORDER BY a.created_at, a.id
           LIMIT 65
       ) AS artifact_ids{more}
FROM {candidates}
LEFT JOIN LATERAL (
    SELECT {{Node n - content metadata}}, CASE WHEN NOT s.long THEN n.content END AS content,
           CASE WHEN NOT s.long THEN n.metadata END AS metadata, s.long,
           CASE WHEN NOT s.long THEN octet_length(n.metadata::text) END AS size,
           n.xmin::text || n.ctid::text AS mark
    FROM memory_nodes n
    CROSS JOIN LATERAL (
        SELECT CASE WHEN coalesce(pg_column_size(n.content), 0) > %(short)s::int OR pg_column_size(n.metadata) > %(short)s::int THEN true
                    ELSE coalesce(octet_length(n.content), 0) > %(short)s::int OR octet_length(n.metadata::text) > %(short)s::int END AS long
        OFFSET 0
    ) s
    WHERE n.tenant = %(tenant)s::text AND n.id = c.node_id AND n.deleted_at IS NULL
      AND (n.legal_hold OR n.expires_at IS NULL OR n.expires_at > clock_timestamp())
    LIMIT 1
) n ON true
LEFT JOIN LATERAL (
    SELECT v.provider, v.namespace AS index_namespace, v.embedding_model AS model, v.dimension, v.status,
           (v.metadata ->> 'since')::int AS since
    FROM memory_vectors v
    WHERE v.tenant = %(tenant)s::text AND v.memory_node_id = c.node_id AND v.namespace = %(namespace)s::text
    LIMIT 1
) v ON true
LEFT JOIN LATERAL (
    SELECT e.seq AS entry_seq, e.batch_no AS entry_batch, e.entry,
           (SELECT p.salt FROM audit_payloads p WHERE p.log = e.log AND p.seq = e.seq LIMIT 1) AS salt
    FROM audit_events e
    WHERE %(strict)s::bool AND e.tenant = %(tenant)s::text AND e.memory_node_id = c.node_id AND e.log = %(log)s::int
      AND e.event_type IN ('memory.node.created', 'memory.node.updated', 'memory.node.deleted', 'memory.node.purged',
                           'memory.legal_hold.set', 'memory.legal_hold.released')
    ORDER BY e.seq DESC LIMIT 1
) e ON true
LEFT JOIN LATERAL (
    SELECT g.metadata ->> 'sha256' AS vector_sha256,
           CASE WHEN g.metadata ->> 'sha256' IS NULL THEN g.vector_data ->> 'data' END AS vector
    FROM memory_vectors g
    WHERE %(strict)s::bool AND g.tenant = %(tenant)s::text AND g.memory_node_id = c.node_id AND g.metadata ->> 'source' = 'caller'
      AND g.vector_data IS NOT NULL
    LIMIT 1
) g ON true

-- name: neighbours
-- The ids of up to `reach` live nodes that stand nearest to each of these in its thread, the nearest first: the order of
-- memory_nodes_by_thread. Their places are given, not looked up: the plan of empty tables would take the index of threads for the one of keys.
SELECT n.id, ARRAY (
           SELECT b.id FROM memory_nodes b
           WHERE b.tenant = %(tenant)s::text AND b.namespace = %(namespace)s::text AND b.thread = n.thread AND b.deleted_at IS NULL
             AND (b.legal_hold OR b.expires_at IS NULL OR b.expires_at > clock_timestamp())
             AND (coalesce(b.position, 9223372036854775807), coalesce(b.occurred_at, b.created_at), b.id)
               < (n.position, n.time, n.id)
           ORDER BY coalesce(b.position, 9223372036854775807) DESC, coalesce(b.occurred_at, b.created_at) DESC, b.id DESC
           LIMIT %(reach)s::int
       ) AS before, ARRAY (
           SELECT a.id FROM memory_nodes a
           WHERE a.tenant = %(tenant)s::text AND a.namespace = %(namespace)s::text AND a.thread = n.thread AND a.deleted_at IS NULL
             AND (a.legal_hold OR a.expires_at IS NULL OR a.expires_at > clock_timestamp())
             AND (coalesce(a.position, 9223372036854775807), coalesce(a.occurred_at, a.created_at), a.id)
               > (n.position, n.time, n.id)
           ORDER BY coalesce(a.position, 9223372036854775807), coalesce(a.occurred_at, a.created_at), a.id
           LIMIT %(reach)s::int
       ) AS after
FROM unnest(%(ids)b::uuid[], %(threads)b::text[], %(positions)b::bigint[], %(times)b::timestamptz[]) n(id, thread, position, time)

-- name: namespace
-- `pending`: how many of its rows wait for a vector, by the first 1,000 that the tenant has waiting in
-- each lane, in the order of memory_vectors_turns, or in hand. Not by memory_vectors_due, in which all tenants' rows stand.
SELECT tenant, name, index_namespace, embedding_model AS model, dimension, provider, (
    SELECT least(count(*) FILTER (WHERE w.namespace = s.index_namespace), 1000) FROM (
        (SELECT v.namespace FROM memory_vectors v
         WHERE v.tenant = s.tenant AND NOT v.bulk AND v.status = 'pending' AND v.lease_id IS NULL
         ORDER BY v.next_attempt_at, v.id LIMIT 1000)
        UNION ALL
        (SELECT v.namespace FROM memory_vectors v
         WHERE v.tenant = s.tenant AND v.bulk AND v.status = 'pending' AND v.lease_id IS NULL
         ORDER BY v.next_attempt_at, v.id LIMIT 1000)
        UNION ALL
        (SELECT v.namespace FROM memory_vectors v
         WHERE v.tenant = s.tenant AND v.lease_id IS NOT NULL AND v.status = 'in_flight' LIMIT 1000)
    ) w
)::int AS pending
FROM namespaces s WHERE tenant = %(tenant)s::text AND name = %(name)s::text AND state = 'active'

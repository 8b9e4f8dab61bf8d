-- Reads of nodes and artifacts. All run in a transaction that names its tenant; row-level security stands behind them.

-- name: get_nodes
-- Whether they are live or not: a row that is gone although no entry says so must not pass for one that was deleted. Without `whole` of
-- their text the SHA-256 alone. `mark`: of the row's version, which every UPDATE changes.
SELECT {{Node n - content}}, CASE WHEN %(whole)s THEN n.content END AS content,
       CASE WHEN NOT %(whole)s THEN encode(sha256(convert_to(n.content, 'UTF8')), 'hex') END AS content_sha256,
       n.deleted_at IS NULL AND (n.legal_hold OR n.expires_at IS NULL OR n.expires_at > clock_timestamp()) AS live,
       n.xmin::text || n.ctid::text AS mark
FROM memory_nodes n
WHERE n.tenant = %(tenant)s AND n.id = ANY (%(ids)b::uuid[])

-- name: list_nodes
-- Newest first: ids are UUIDv7, so the primary key is in the order of creation and no other index is needed.
-- A page ends at a number of rows or of bytes (the row that crosses it included), whichever comes first; `looked` is how many
-- rows there were before the bytes were counted. Bytes are those of the text, for what is stored may be a hundredth of it; what is stored
-- is counted first, so that no row is unpacked that the page has no room for in any case.
SELECT {{Node n}},
       n.size, n.looked
FROM (
    SELECT n.*, sum(n.size) OVER newest - n.size AS before
    FROM (
        SELECT n.*, coalesce(octet_length(n.content), 0) + octet_length(n.metadata::text) AS size
        FROM (
            SELECT n.*, count(*) OVER () AS looked, sum(n.stored) OVER newest - n.stored AS stored_before
            FROM (
                SELECT n.*, coalesce(pg_column_size(n.content), 0) + pg_column_size(n.metadata) AS stored
                FROM memory_nodes n
                WHERE n.tenant = %(tenant)s AND n.deleted_at IS NULL
                  AND (n.legal_hold OR n.expires_at IS NULL OR n.expires_at > clock_timestamp())
                  AND (%(after)s::uuid IS NULL OR n.id < %(after)s::uuid)
                ORDER BY n.id DESC LIMIT %(limit)s
            ) n
            WINDOW newest AS (ORDER BY n.id DESC)
        ) n
        WHERE n.stored_before < %(bytes)s
    ) n
    WINDOW newest AS (ORDER BY n.id DESC)
) n
WHERE n.before < %(bytes)s
ORDER BY n.id DESC

-- name: list_nodes_by_embedding_id
SELECT {{Node n}},
       n.size, n.looked
FROM (
    SELECT n.*, sum(n.size) OVER newest - n.size AS before
    FROM (
        SELECT n.*, coalesce(octet_length(n.content), 0) + octet_length(n.metadata::text) AS size
        FROM (
            SELECT n.*, count(*) OVER () AS looked, sum(n.stored) OVER newest - n.stored AS stored_before
            FROM (
                SELECT n.*, coalesce(pg_column_size(n.content), 0) + pg_column_size(n.metadata) AS stored
                FROM memory_nodes n
                WHERE n.tenant = %(tenant)s AND n.embedding_id IS NOT NULL AND n.embedding_id = ANY (%(embedding_ids)b::text[])
                  AND n.deleted_at IS NULL
                  AND (n.legal_hold OR n.expires_at IS NULL OR n.expires_at > clock_timestamp())
                  AND (%(after)s::uuid IS NULL OR n.id < %(after)s::uuid)
                ORDER BY n.id DESC LIMIT %(limit)s
            ) n
            WINDOW newest AS (ORDER BY n.id DESC)
        ) n
        WHERE n.stored_before < %(bytes)s
    ) n
    WINDOW newest AS (ORDER BY n.id DESC)
) n
WHERE n.before < %(bytes)s
ORDER BY n.id DESC

-- name: holder_of_embedding_id
-- The live node that has a caller's own id, expired or not.
SELECT n.id FROM memory_nodes n
WHERE n.tenant = %(tenant)s AND n.embedding_id = %(embedding_id)s AND n.deleted_at IS NULL

-- name: node_bodies
-- Content and metadata of nodes at the version at which they were seen, in the given order, up to so many bytes (the row that crosses them
-- included): the answer ends early, and the rest is asked for anew. A node that is not so any more has no version here.
SELECT n.id, n.version, n.content, n.metadata, n.size
FROM (
    SELECT n.*, sum(n.size) OVER given - n.size AS before
    FROM (
        SELECT n.*, coalesce(octet_length(n.content), 0) + coalesce(octet_length(n.metadata::text), 0) AS size
        FROM (
            SELECT u.id, u.place, n.version, n.content, n.metadata,
                   sum(coalesce(pg_column_size(n.content), 0) + coalesce(pg_column_size(n.metadata), 0)) OVER given
                   - coalesce(pg_column_size(n.content), 0) - coalesce(pg_column_size(n.metadata), 0) AS stored_before
            FROM unnest(%(ids)b::uuid[], %(versions)b::int[]) WITH ORDINALITY u(id, version, place)
            LEFT JOIN LATERAL (
                SELECT n.version, n.content, n.metadata FROM memory_nodes n
                WHERE n.tenant = %(tenant)s AND n.id = u.id AND n.version = u.version AND n.deleted_at IS NULL LIMIT 1
            ) n ON true
            WINDOW given AS (ORDER BY u.place)
        ) n
        WHERE n.stored_before < %(bytes)s
    ) n
    WINDOW given AS (ORDER BY n.place)
) n
WHERE n.before < %(bytes)s
ORDER BY n.place

-- name: active_vectors
-- Each node's row in the generation of the index that answers now, whichever namespace it is in; another one where it has none there.
SELECT DISTINCT ON (v.memory_node_id) v.id, v.memory_node_id, v.namespace, v.provider, v.embedding_model, v.dimension,
       v.status, v.error, v.version
FROM memory_vectors v
JOIN memory_nodes n ON n.tenant = v.tenant AND n.id = v.memory_node_id
LEFT JOIN namespaces s ON s.tenant = n.tenant AND s.name = n.namespace
WHERE v.tenant = %(tenant)s AND v.memory_node_id = ANY (%(ids)b::uuid[])
ORDER BY v.memory_node_id, v.namespace IS NOT DISTINCT FROM s.index_namespace DESC, v.version DESC

-- name: node_artifacts
-- Of each node the first ones, up to a megabyte of answer (the one that crosses it included); `files` is how many it has. `strict`: with what the
-- log recorded last of each (evidence.sql).
SELECT {{Artifact a}}, a.files, e.seq, e.batch_no, e.entry, e.salt
FROM (
    SELECT a.*, count(*) OVER whole AS files, sum(a.size) OVER oldest - a.size AS before
    FROM (
        SELECT a.*, 700 + octet_length(a.metadata::text) + coalesce(octet_length(a.name), 0) + octet_length(a.url) AS size
        FROM artifacts a
        WHERE a.tenant = %(tenant)s AND a.memory_node_id = ANY (%(ids)b::uuid[])
    ) a
    WINDOW whole AS (PARTITION BY a.memory_node_id), oldest AS (PARTITION BY a.memory_node_id ORDER BY a.created_at, a.id)
) a
LEFT JOIN LATERAL (
    SELECT e.seq, e.batch_no, e.entry,
           (SELECT p.salt FROM audit_payloads p WHERE p.log = e.log AND p.seq = e.seq LIMIT 1) AS salt
    FROM audit_events e
    WHERE %(strict)s AND e.tenant = a.tenant AND e.artifact_id = a.id AND e.log = %(log)s
      AND e.event_type IN ('memory.artifact.created', 'memory.artifact.verified', 'memory.artifact.corrupt', 'memory.artifact.deleted')
    ORDER BY e.seq DESC LIMIT 1
) e ON true
WHERE a.before < 1048576
ORDER BY a.created_at, a.id

-- name: artifact_ids
SELECT a.id FROM artifacts a WHERE a.tenant = %(tenant)s AND a.memory_node_id = %(node)s::uuid ORDER BY a.created_at, a.id
LIMIT %(limit)s

-- name: get_artifacts
SELECT {{Artifact a}}
FROM artifacts a
WHERE a.tenant = %(tenant)s AND a.id = ANY (%(ids)b::uuid[])

-- name: list_artifacts
-- Newest first: ids are UUIDv7. A page ends at a number of rows or of bytes (the row that crosses it included); `looked` is how many rows
-- there were before the bytes were counted.
SELECT a.id, a.memory_node_id, a.looked
FROM (
    SELECT a.*, count(*) OVER () AS looked, sum(a.size) OVER newest - a.size AS before
    FROM (
        SELECT a.id, a.memory_node_id, 700 + octet_length(a.metadata::text) + coalesce(octet_length(a.name), 0) + octet_length(a.url) AS size
        FROM artifacts a
        WHERE a.tenant = %(tenant)s AND (%(node)s::uuid IS NULL OR a.memory_node_id = %(node)s::uuid)
          AND (%(after)s::uuid IS NULL OR a.id < %(after)s::uuid)
        ORDER BY a.id DESC LIMIT %(limit)s
    ) a
    WINDOW newest AS (ORDER BY a.id DESC)
) a
WHERE a.before < %(bytes)s
ORDER BY a.id DESC

-- name: nodes_of_artifacts
SELECT DISTINCT a.memory_node_id AS node FROM artifacts a
WHERE a.tenant = %(tenant)s AND a.id = ANY (%(ids)b::uuid[]) AND a.memory_node_id IS NOT NULL

-- name: nodes_of_bytes
-- The node that an artifact belongs to, and without `own` also those of the copies of its bytes, deleted ones too, its own first.
SELECT c.memory_node_id AS node
FROM artifacts o
CROSS JOIN LATERAL (
    SELECT o.memory_node_id
    UNION
    SELECT a.memory_node_id FROM artifacts a WHERE NOT %(own)s AND a.tenant = %(tenant)s AND a.sha256 = o.sha256
    UNION
    SELECT a.memory_node_id FROM artifacts a WHERE NOT %(own)s AND a.tenant = %(tenant)s AND a.object_key = o.object_key
    UNION
    SELECT d.memory_node_id FROM deleted_artifacts d WHERE NOT %(own)s AND d.tenant = %(tenant)s AND d.sha256 = o.sha256
    UNION
    SELECT d.memory_node_id FROM deleted_artifacts d WHERE NOT %(own)s AND d.tenant = %(tenant)s AND d.object_key = o.object_key
) c
WHERE o.tenant = %(tenant)s AND o.id = %(id)s AND c.memory_node_id IS NOT NULL
ORDER BY c.memory_node_id = o.memory_node_id DESC, c.memory_node_id LIMIT 16

-- name: flags_of_artifacts
-- What hides these artifacts, and those of these nodes: the flags of each node that any artifact of the same bytes, or of another
-- version of the same object, belongs to. Deleted nodes count, and so do deleted artifacts. A node that is gone from the table has left its link in the entry of the
-- artifact's creation, and nobody knows its flags any more: they hide all. The same bytes are looked up once, however often they are named.
WITH these AS MATERIALIZED (
    SELECT a.id, a.sha256, a.object_key FROM artifacts a WHERE NOT %(seen)s AND a.tenant = %(tenant)s AND a.id = ANY (%(ids)b::uuid[])
    UNION
    SELECT a.id, a.sha256, a.object_key FROM artifacts a
    WHERE NOT %(seen)s AND a.tenant = %(tenant)s AND a.memory_node_id = ANY (%(nodes)b::uuid[])
), objects AS MATERIALIZED (
    SELECT DISTINCT sha256, object_key FROM these
), copies AS MATERIALIZED (
    SELECT o.sha256, o.object_key, c.id, c.memory_node_id
    FROM objects o CROSS JOIN LATERAL (
        SELECT a.id, a.memory_node_id FROM artifacts a WHERE a.tenant = %(tenant)s AND a.sha256 = o.sha256
        UNION
        SELECT a.id, a.memory_node_id FROM artifacts a WHERE a.tenant = %(tenant)s AND a.object_key = o.object_key
        UNION
        SELECT d.id, d.memory_node_id FROM deleted_artifacts d WHERE d.tenant = %(tenant)s AND d.sha256 = o.sha256
        UNION
        SELECT d.id, d.memory_node_id FROM deleted_artifacts d WHERE d.tenant = %(tenant)s AND d.object_key = o.object_key
    ) c
), flags AS MATERIALIZED (
    SELECT DISTINCT l.sha256, l.object_key, coalesce(n.pii_flags, '{"containsPii": true}') AS pii_flags
    FROM (
        SELECT c.sha256, c.object_key, c.memory_node_id AS node FROM copies c WHERE c.memory_node_id IS NOT NULL
        UNION
        SELECT c.sha256, c.object_key, e.memory_node_id FROM copies c CROSS JOIN LATERAL (
            SELECT e.memory_node_id FROM audit_events e
            WHERE e.tenant = %(tenant)s AND e.artifact_id = c.id AND e.memory_node_id IS NOT NULL LIMIT 1
        ) e WHERE c.memory_node_id IS NULL
    ) l
    LEFT JOIN LATERAL (
        SELECT n.pii_flags FROM memory_nodes n WHERE n.tenant = %(tenant)s AND n.id = l.node LIMIT 1
    ) n ON true
    WHERE n.pii_flags IS NULL OR n.pii_flags @> '{"containsPii": true}'
)
SELECT t.id AS artifact, f.pii_flags FROM these t JOIN flags f USING (sha256, object_key)

-- name: latest_events
SELECT e.* FROM unnest(%(ids)b::uuid[]) u(id)
CROSS JOIN LATERAL (
    SELECT e.memory_node_id, e.id, e.seq, e.hash, e.event_type, e.batch_no, e.entry FROM audit_events e
    WHERE e.log = %(log)s AND e.tenant = %(tenant)s AND e.memory_node_id = u.id ORDER BY e.seq DESC LIMIT 1
) e

-- name: history
SELECT e.id, e.seq, e.event_type AS type, e.memory_node_id AS node, e.artifact_id AS artifact, e.created_at, e.hash,
       e.prev_hash, e.batch_no, e.entry, e.signature
FROM audit_events e
WHERE e.tenant = %(tenant)s AND e.memory_node_id = %(id)s AND e.log = %(log)s AND e.seq > %(after)s
ORDER BY e.seq LIMIT %(limit)s

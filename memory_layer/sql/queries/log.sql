-- The log as a whole: its tree, its checkpoints, its entries as auditors ask for them. Nothing here takes the log lock.

-- name: tree
-- How long the log is, how far its tree is built, and its newest checkpoint. Batches become visible in their order, for
-- the log lock outlasts each COMMIT: whatever a snapshot shows is the beginning of the log.
SELECT l.log, l.origin, coalesce(s.last_seq + 1, 0) AS entries, coalesce(s.created_at, l.created_at) AS last_entry_at,
       clock_timestamp() AS now, coalesce(t.size, 0) AS size, coalesce(t.edge, '{}') AS edge, t.key_id,
       c.size AS published, c.root,
       EXISTS (SELECT FROM audit_checkpoints u WHERE u.log = l.log AND u.note IS NULL) AS unsigned
FROM (SELECT log, origin, created_at FROM audit_logs WHERE log = %(log)s) l
LEFT JOIN LATERAL (
    SELECT s.last_seq, s.created_at FROM audit_seals s WHERE s.log = l.log ORDER BY s.batch_no DESC LIMIT 1
) s ON true
LEFT JOIN audit_trees t ON t.log = l.log
LEFT JOIN LATERAL (
    SELECT c.size, c.root FROM audit_checkpoints c WHERE c.log = l.log ORDER BY c.size DESC LIMIT 1
) c ON true

-- name: grown
-- How long a log is, the server that its newest seal was made on, and the one that answers; how much of it was archived.
SELECT coalesce(s.last_seq + 1, 0) AS entries, s.system_identifier AS sealed_system, s.timeline AS sealed_timeline,
       (SELECT system_identifier::text FROM pg_control_system()) AS system_identifier,
       ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int AS timeline,
       (SELECT count(*) FROM archive_segments a WHERE a.log = %(log)s AND a.finished_at IS NOT NULL) AS segments
FROM (SELECT 1) one
LEFT JOIN LATERAL (
    SELECT s.last_seq, s.system_identifier, s.timeline FROM audit_seals s WHERE s.log = %(log)s ORDER BY s.batch_no DESC LIMIT 1
) s ON true

-- name: entry_at
SELECT e.entry FROM audit_events e WHERE e.log = %(log)s AND e.seq = %(seq)s

-- name: leaf_hashes
SELECT count(*) AS count, string_agg(decode(e.hash, 'hex'), ''::bytea ORDER BY e.seq) AS hashes
FROM audit_events e WHERE e.log = %(log)s AND e.seq >= %(first)s AND e.seq < %(last)s

-- name: put_tiles
-- Answers with those that are stored already and differ; the statement does not see what it inserts itself.
WITH given AS (
    SELECT l, t, d FROM unnest(%(level)s::int[], %(tile)s::bigint[], %(data)s::bytea[]) u(l, t, d)
), put AS (
    INSERT INTO audit_tiles (log, level, tile, data) SELECT %(log)s, l, t, d FROM given ON CONFLICT DO NOTHING
)
SELECT g.l AS level, g.t AS tile FROM given g
CROSS JOIN LATERAL (
    SELECT a.data FROM audit_tiles a WHERE a.log = %(log)s AND a.level = g.l AND a.tile = g.t OFFSET 0
) a
WHERE a.data <> g.d ORDER BY g.l, g.t LIMIT 1

-- name: put_tree
INSERT INTO audit_trees (log, size, edge, key_id) VALUES (%(log)s, %(size)s, %(edge)s::bytea[], %(key_id)s)
ON CONFLICT (log) DO UPDATE SET size = EXCLUDED.size, edge = EXCLUDED.edge, updated_at = clock_timestamp()

-- name: put_checkpoint
INSERT INTO audit_checkpoints (log, size, root) VALUES (%(log)s, %(size)s, %(root)s) ON CONFLICT DO NOTHING

-- name: unsigned
SELECT c.size, c.root FROM audit_checkpoints c WHERE c.log = %(log)s AND c.note IS NULL ORDER BY c.size LIMIT 100

-- name: sign
UPDATE audit_checkpoints SET note = %(note)s WHERE log = %(log)s AND size = %(size)s AND root = %(root)s AND note IS NULL

-- name: checkpoint
-- The newest one that is published.
SELECT l.log, l.origin, c.size, c.root, c.note
FROM (SELECT log, origin FROM audit_logs WHERE origin = %(origin)s) l
CROSS JOIN LATERAL (
    SELECT c.size, c.root, c.note FROM audit_checkpoints c
    WHERE c.log = l.log AND c.note IS NOT NULL ORDER BY c.size DESC LIMIT 1
) c

-- name: checkpoint_of
-- An entry of the log, with the newest checkpoint that is published.
SELECT e.log, e.seq, e.entry, c.size, c.note
FROM (SELECT e.log, e.seq, e.entry FROM audit_events e
      WHERE e.id = %(id)s AND e.log = %(log)s AND (%(all)s OR e.tenant = %(tenant)s)) e
LEFT JOIN LATERAL (
    SELECT c.size, c.note FROM audit_checkpoints c
    WHERE c.log = e.log AND c.note IS NOT NULL ORDER BY c.size DESC LIMIT 1
) c ON true

-- name: checkpoint_at
SELECT c.note FROM audit_checkpoints c WHERE c.log = %(log)s AND c.size = %(size)s AND c.note IS NOT NULL

-- name: tiles
-- The first `width` hashes of each tile: as stored when it is full, of level 0 else from the entries, of the others from the edge.
SELECT u.level, u.tile, substring(coalesce(
           (SELECT a.data FROM audit_tiles a WHERE a.log = %(log)s AND a.level = u.level AND a.tile = u.tile),
           CASE WHEN u.level = 0 THEN
               (SELECT string_agg(decode(e.hash, 'hex'), ''::bytea ORDER BY e.seq) FROM audit_events e
                WHERE e.log = %(log)s AND e.seq >= u.tile * 256 AND e.seq < u.tile * 256 + u.width)
           ELSE
               (SELECT t.edge[u.level + 1] FROM audit_trees t
                WHERE t.log = %(log)s AND t.size >> (8 * (u.level + 1)) = u.tile)
           END) FROM 1 FOR u.width * 32) AS data
FROM unnest(%(level)s::int[], %(tile)s::bigint[], %(width)s::int[]) u(level, tile, width)

-- name: entries
SELECT e.entry FROM audit_events e WHERE e.log = %(log)s AND e.seq >= %(first)s AND e.seq < %(last)s ORDER BY e.seq

-- name: seq_range
-- Where the entries of a span of time begin and end (last excluded). Times never go back along the log, so each bound is found in
-- twenty steps of a binary search.
WITH RECURSIVE ends AS (
    SELECT l.log, coalesce((SELECT s.last_seq + 1 FROM audit_seals s WHERE s.log = l.log ORDER BY s.batch_no DESC LIMIT 1), 0) AS n
    FROM (SELECT %(log)s::int AS log) l
), step(bound, low, high) AS (
    SELECT b, 0::bigint, ends.n FROM ends, unnest(ARRAY['since', 'until']) b
    UNION ALL
    SELECT m.bound, CASE WHEN e.before THEN m.mid + 1 ELSE m.low END, CASE WHEN e.before THEN m.high ELSE m.mid END
    FROM (SELECT bound, low, high, (low + high) / 2 AS mid FROM step WHERE low < high) m
    CROSS JOIN LATERAL (
        SELECT CASE m.bound WHEN 'since' THEN coalesce(e.created_at < %(since)s::timestamptz, false)
                            ELSE coalesce(e.created_at < %(until)s::timestamptz, true) END AS before
        FROM audit_events e, ends WHERE e.log = ends.log AND e.seq = m.mid
    ) e
)
SELECT (SELECT log FROM ends) AS log, coalesce(min(low) FILTER (WHERE bound = 'since'), 0) AS first,
       coalesce(min(low) FILTER (WHERE bound = 'until'), 0) AS last
FROM step WHERE low >= high

-- name: events_of_tenant
SELECT e.id, e.seq, e.event_type AS type, e.memory_node_id AS node, e.artifact_id AS artifact, e.created_at, e.hash,
       e.prev_hash, e.batch_no, e.entry, e.signature
FROM audit_events e
WHERE e.tenant = %(tenant)s AND e.log = %(log)s AND e.seq >= %(first)s AND e.seq < %(last)s
  AND (%(type)s::text IS NULL OR e.event_type = %(type)s)
ORDER BY e.seq DESC LIMIT %(limit)s

-- name: events_of_all
SELECT e.id, e.seq, e.event_type AS type, e.memory_node_id AS node, e.artifact_id AS artifact, e.created_at, e.hash,
       e.prev_hash, e.batch_no, e.entry, e.signature
FROM audit_events e
WHERE e.log = %(log)s AND e.seq >= %(first)s AND e.seq < %(last)s
  AND (%(type)s::text IS NULL OR e.event_type = %(type)s)
ORDER BY e.seq DESC LIMIT %(limit)s

-- name: events_of_subject
-- Of a node or an artifact, found by the indexes that lead with the tenant.
SELECT e.id, e.seq, e.event_type AS type, e.memory_node_id AS node, e.artifact_id AS artifact, e.created_at, e.hash,
       e.prev_hash, e.batch_no, e.entry, e.signature
FROM unnest(CASE WHEN %(all)s THEN ARRAY(SELECT t.tenant FROM tenants t) ELSE ARRAY[%(tenant)s::text] END) u(tenant)
CROSS JOIN LATERAL (
    SELECT n.* FROM audit_events n WHERE n.tenant = u.tenant AND n.memory_node_id = %(node)s::uuid
    UNION ALL
    SELECT a.* FROM audit_events a WHERE %(node)s::uuid IS NULL AND a.tenant = u.tenant AND a.artifact_id = %(artifact)s::uuid
) e
WHERE e.log = %(log)s AND e.seq >= %(first)s AND e.seq < %(last)s
  AND (%(artifact)s::uuid IS NULL OR e.artifact_id = %(artifact)s::uuid)
  AND (%(type)s::text IS NULL OR e.event_type = %(type)s)
ORDER BY e.seq DESC LIMIT %(limit)s

-- name: event
SELECT e.log, e.tenant, e.id, e.seq, e.event_type AS type, e.memory_node_id AS node, e.artifact_id AS artifact, e.created_at, e.hash,
       e.prev_hash, e.batch_no, e.entry, e.signature, s.seal_text, s.key_id, s.algorithm
FROM (SELECT * FROM audit_events WHERE id = %(id)s AND log = %(log)s AND (%(all)s OR tenant = %(tenant)s)) e
LEFT JOIN audit_seals s ON s.log = e.log AND s.batch_no = e.batch_no

-- name: payload
-- What an entry commits to, for readers of its tenant; and whether its node, if any, is or was flagged (`flagged`), or is gone. Of an
-- artifact's entry that holds for the nodes of every artifact of the same bytes (nodes.sql, flags_of_artifacts), and where there is
-- no such artifact any more.
WITH copies AS MATERIALIZED (
    SELECT c.id, c.memory_node_id
    FROM (
        SELECT a.sha256, a.object_key FROM artifacts a WHERE a.tenant = %(tenant)s AND a.id = %(artifact)s::uuid
        UNION
        SELECT d.sha256, d.object_key FROM deleted_artifacts d WHERE d.tenant = %(tenant)s AND d.id = %(artifact)s::uuid
    ) o
    CROSS JOIN LATERAL (
        SELECT a.id, a.memory_node_id FROM artifacts a WHERE a.tenant = %(tenant)s AND a.sha256 = o.sha256
        UNION
        SELECT a.id, a.memory_node_id FROM artifacts a WHERE a.tenant = %(tenant)s AND a.object_key = o.object_key
        UNION
        SELECT d.id, d.memory_node_id FROM deleted_artifacts d WHERE d.tenant = %(tenant)s AND d.sha256 = o.sha256
        UNION
        SELECT d.id, d.memory_node_id FROM deleted_artifacts d WHERE d.tenant = %(tenant)s AND d.object_key = o.object_key
    ) c
), nodes AS MATERIALIZED (
    SELECT %(node)s::uuid AS id WHERE %(node)s::uuid IS NOT NULL
    UNION
    SELECT c.memory_node_id FROM copies c WHERE c.memory_node_id IS NOT NULL
    UNION
    SELECT e.memory_node_id FROM copies c CROSS JOIN LATERAL (
        SELECT e.memory_node_id FROM audit_events e
        WHERE e.log = %(log)s AND e.tenant = %(tenant)s AND e.artifact_id = c.id AND e.memory_node_id IS NOT NULL LIMIT 1
    ) e WHERE c.memory_node_id IS NULL
)
SELECT p.salt, p.payload,
       (%(artifact)s::uuid IS NOT NULL AND NOT EXISTS (SELECT FROM copies))
       OR EXISTS (
           SELECT FROM nodes u
           WHERE coalesce((SELECT n.pii_flags @> '{"containsPii": true}' FROM memory_nodes n
                           WHERE n.tenant = %(tenant)s AND n.id = u.id), true)
              OR EXISTS (SELECT FROM audit_events e JOIN audit_payloads o ON o.log = e.log AND o.seq = e.seq
                         WHERE e.tenant = %(tenant)s AND e.memory_node_id = u.id
                           AND position('"containsPii":true'::bytea IN o.payload) > 0)) AS flagged
FROM audit_payloads p WHERE p.log = %(log)s AND p.seq = %(seq)s

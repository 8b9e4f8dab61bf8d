-- The archive of the log, and logs that were brought back from one. Run with memory.all_tenants on.

-- name: log
-- The log that is written to here, how far signed checkpoints cover it, and how far it is archived.
SELECT l.log, l.origin,
       coalesce((SELECT c.size FROM audit_checkpoints c WHERE c.log = l.log AND c.note IS NOT NULL ORDER BY c.size DESC LIMIT 1), 0) AS covered,
       coalesce((SELECT s.last_seq + 1 FROM archive_segments s WHERE s.log = l.log AND s.finished_at IS NOT NULL
                 ORDER BY s.number DESC LIMIT 1), 0) AS archived
FROM audit_logs l WHERE l.imported_at IS NULL AND l.origin = %(origin)s

-- name: last_segment
SELECT number, first_seq, last_seq, manifest_sha256, tail FROM archive_segments
WHERE log = %(log)s AND finished_at IS NOT NULL ORDER BY number DESC LIMIT 1

-- name: open_segment
SELECT number, first_seq, last_seq, checkpoint_size, attempt, tool, begun_at, lock_until FROM archive_segments
WHERE log = %(log)s AND finished_at IS NULL

-- name: ends
-- Where a segment from `first` on may end: `full` at the first batch with which it holds so many entries or bytes of payloads,
-- `rest` at the last batch up to `until`. Nothing beyond what a signed checkpoint covers.
WITH batches AS (
    SELECT s.batch_no, s.last_seq FROM audit_seals s
    WHERE s.log = %(log)s AND s.batch_no >= %(batch)s AND s.last_seq < %(covered)s ORDER BY s.batch_no LIMIT %(entries)s
), sized AS (
    SELECT b.batch_no, b.last_seq, sum(coalesce(p.bytes, 0)) OVER (ORDER BY b.batch_no) AS bytes
    FROM batches b JOIN audit_seals s ON s.log = %(log)s AND s.batch_no = b.batch_no
    LEFT JOIN LATERAL (
        SELECT sum(octet_length(p.payload)) AS bytes FROM audit_payloads p
        WHERE p.log = %(log)s AND p.seq >= s.first_seq AND p.seq <= s.last_seq
    ) p ON true
)
SELECT (SELECT last_seq FROM sized WHERE last_seq - %(first)s + 1 >= %(entries)s OR bytes >= %(bytes)s
        ORDER BY batch_no LIMIT 1) AS full,
       (SELECT max(last_seq) FROM sized WHERE %(until)s::bigint IS NULL OR last_seq <= %(until)s) AS rest

-- name: covering
SELECT c.size, c.root, c.note FROM audit_checkpoints c
WHERE c.log = %(log)s AND c.size > %(last)s AND c.note IS NOT NULL ORDER BY c.size LIMIT 1

-- name: checkpoint_of
SELECT c.size, c.root, c.note FROM audit_checkpoints c WHERE c.log = %(log)s AND c.size = %(size)s AND c.note IS NOT NULL

-- name: begin_segment
INSERT INTO archive_segments (log, number, first_seq, last_seq, checkpoint_size, tool, begun_at, lock_until)
VALUES (%(log)s, %(number)s, %(first)s, %(last)s, %(checkpoint)s, %(tool)s, %(begun)s, %(lock_until)s)

-- name: try_again
UPDATE archive_segments SET attempt = attempt + 1, tool = %(tool)s, begun_at = %(begun)s, lock_until = %(lock_until)s
WHERE log = %(log)s AND number = %(number)s AND finished_at IS NULL

-- name: finish_segment
UPDATE archive_segments
SET finished_at = clock_timestamp(), manifest_key = %(key)s, manifest_version = %(version)s, manifest_sha256 = %(sha256)s,
    bytes = %(bytes)s, tail = %(tail)s::jsonb
WHERE log = %(log)s AND number = %(number)s AND finished_at IS NULL

-- name: owed_segments
SELECT number, first_seq, last_seq, lock_until, manifest_key, manifest_version, manifest_sha256, bytes FROM archive_segments
WHERE log = %(log)s AND finished_at IS NOT NULL AND audit_id IS NULL ORDER BY number

-- name: audited_segment
UPDATE archive_segments SET audit_id = %(audit)s WHERE log = %(log)s AND number = %(number)s AND audit_id IS NULL

-- name: segments
SELECT number, first_seq, last_seq, lock_until, finished_at, manifest_key, manifest_version, manifest_sha256, bytes, audit_id
FROM archive_segments WHERE log = %(log)s AND finished_at IS NOT NULL ORDER BY number

-- name: entries
SELECT e.seq, e.entry FROM audit_events e WHERE e.log = %(log)s AND e.seq >= %(first)s AND e.seq <= %(last)s ORDER BY e.seq

-- name: seals
SELECT s.batch_no, s.seal_text, s.signature FROM audit_seals s
WHERE s.log = %(log)s AND s.batch_no >= %(batch)s AND s.last_seq <= %(last)s ORDER BY s.batch_no

-- name: payloads
-- `subjects`: of the node as it is now, which is asked where no entry names them (below).
SELECT p.seq, p.salt, p.payload, p.tenant, e.event_type, e.entry, e.memory_node_id AS node, n.subjects
FROM audit_payloads p
JOIN audit_events e ON e.log = p.log AND e.seq = p.seq
LEFT JOIN memory_nodes n ON n.tenant = e.tenant AND n.id = e.memory_node_id
WHERE p.log = %(log)s AND p.seq >= %(first)s AND p.seq <= %(last)s ORDER BY p.seq

-- name: subjects_named
-- Whom the nodes of these entries concern, and since which entry: each creation names them, and each change of them.
SELECT n.tenant, n.node, x.seq, coalesce(x.payload -> 'subjects', x.payload -> 'accepted' -> 'subjects') AS subjects
FROM (
    SELECT DISTINCT e.tenant, e.memory_node_id AS node FROM audit_events e
    WHERE e.log = %(log)s AND e.seq >= %(first)s AND e.seq <= %(last)s AND e.memory_node_id IS NOT NULL
) n
CROSS JOIN LATERAL (
    SELECT x.seq, convert_from(o.payload, 'UTF8')::json AS payload
    FROM audit_events x JOIN audit_payloads o ON o.log = x.log AND o.seq = x.seq
    WHERE x.tenant = n.tenant AND x.memory_node_id = n.node AND x.log = %(log)s AND x.seq <= %(last)s
      AND x.event_type IN ('memory.node.created', 'memory.node.updated') AND position('"subjects"'::bytea IN o.payload) > 0
) x
ORDER BY x.seq

-- name: subject_keys
-- The data keys of people, by tenant and name.
SELECT s.tenant, s.subject, s.handle, s.wrapped_key, s.key_id, s.erased_at IS NOT NULL AS erased
FROM unnest(%(tenants)s::text[], %(subjects)s::text[]) u(t, n) JOIN subjects s ON s.tenant = u.t AND s.subject = u.n

-- name: add_subject_keys
-- Where there is a row without a key that nobody erased, it gets this one.
INSERT INTO subjects (tenant, subject, handle, wrapped_key, key_id)
SELECT t, n, h, w, %(key_id)s FROM unnest(%(tenants)s::text[], %(subjects)s::text[], %(handles)s::uuid[], %(wrapped)s::bytea[]) u(t, n, h, w)
ON CONFLICT (tenant, subject) DO UPDATE SET wrapped_key = EXCLUDED.wrapped_key, key_id = EXCLUDED.key_id
WHERE subjects.wrapped_key IS NULL AND subjects.erased_at IS NULL

-- name: all_keys
SELECT s.handle, s.wrapped_key FROM subjects s
WHERE s.key_id = %(key_id)s AND s.wrapped_key IS NOT NULL AND s.erased_at IS NULL

-- name: newest_checkpoint
-- The newest signed one.
SELECT l.origin, c.size, c.note FROM (SELECT log, origin FROM audit_logs WHERE imported_at IS NULL AND origin = %(origin)s) l
CROSS JOIN LATERAL (
    SELECT c.size, c.note FROM audit_checkpoints c WHERE c.log = l.log AND c.note IS NOT NULL ORDER BY c.size DESC LIMIT 1
) c

-- name: segments_with_delegations
-- The segments before entry `first` in which keys were let to seal that sealed something of `first` to `last`, or were retired.
WITH mine AS (
    SELECT l.log FROM audit_logs l WHERE l.origin = %(origin)s AND l.imported_at IS NULL
), delegated AS (
    SELECT e.log, convert_from(p.payload, 'UTF8')::jsonb ->> 'key_id' AS key_id
    FROM mine JOIN audit_events e ON e.log = mine.log JOIN audit_payloads p ON p.log = e.log AND p.seq = e.seq
    WHERE e.event_type = 'audit.key.activated' AND e.seq < %(first)s
      AND convert_from(p.payload, 'UTF8')::jsonb -> 'delegation' <> 'null'
), used AS (
    SELECT DISTINCT d.log, d.key_id FROM delegated d
    JOIN audit_seals s ON s.log = d.log AND s.key_id = d.key_id
    WHERE s.last_seq >= %(first)s AND s.first_seq <= %(last)s
)
SELECT DISTINCT g.first_seq, g.last_seq
FROM used u JOIN audit_events e ON e.log = u.log
JOIN audit_payloads p ON p.log = e.log AND p.seq = e.seq
JOIN archive_segments g ON g.log = e.log AND e.seq BETWEEN g.first_seq AND g.last_seq AND g.finished_at IS NOT NULL
WHERE e.event_type IN ('audit.key.activated', 'audit.key.retired') AND e.seq < %(first)s
  AND convert_from(p.payload, 'UTF8')::jsonb ->> 'key_id' = u.key_id
ORDER BY g.first_seq

-- name: target
-- What a database holds that an archive is to be replayed into.
SELECT (SELECT system_identifier::text FROM pg_control_system()) AS system_identifier,
       (SELECT oid::bigint FROM pg_database WHERE datname = current_database()) AS database,
       to_regclass('archive_segments') IS NOT NULL AS ready

-- name: target_logs
SELECT l.log, l.origin, l.imported_at IS NOT NULL AS imported FROM audit_logs l ORDER BY l.log

-- name: importing
SELECT set_config('memory.importing', 'on', false), set_config('memory.all_tenants', 'on', false), set_config('TimeZone', 'UTC', false)

-- name: open_import
INSERT INTO audit_logs (log, origin, incarnation, key_id, imported_at)
SELECT least(0, min(l.log)) - 1, %(origin)s::text, %(incarnation)s::int, %(key_id)s::text, clock_timestamp()
FROM (SELECT 0 AS log UNION ALL SELECT log FROM audit_logs) l
RETURNING log

-- name: import_payloads
-- Row-level security stands between COPY and this table.
INSERT INTO audit_payloads (log, seq, tenant, salt, payload)
SELECT %(log)s::int, s, t, a, p FROM unnest(%(seqs)s::bigint[], %(tenants)s::text[], %(salts)s::bytea[], %(payloads)s::bytea[]) u(s, t, a, p)

-- name: imported_range
SELECT min(e.seq), max(e.seq), count(*), (SELECT x.hash FROM audit_events x WHERE x.log = %(log)s AND x.seq = %(last)s)
FROM audit_events e WHERE e.log = %(log)s AND e.seq >= %(first)s AND e.seq <= %(last)s

-- name: imported_hashes
-- Of the entries as they are stored, whatever the column says.
SELECT encode(sha256('\x00'::bytea || entry), 'hex') FROM audit_events
WHERE log = %(log)s AND seq >= %(first)s AND seq <= %(last)s ORDER BY seq

-- name: copy_events
COPY audit_events (log, seq, id, batch_no, tenant, memory_node_id, artifact_id, event_type, manifest_signature_id, created_at, entry, hash,
                   prev_hash, signature) FROM STDIN

-- name: copy_seals
COPY audit_seals (log, batch_no, first_seq, last_seq, head, seal_text, signature, key_id, algorithm, system_identifier, timeline, created_at)
FROM STDIN

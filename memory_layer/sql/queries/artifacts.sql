-- What the worker and operators do with artifacts: holds, sweeps, checks, manifests. Whoever runs these sees all tenants.

-- name: sweep_of
SELECT deleted_at FROM artifact_sweeps WHERE tenant = %(tenant)s AND object_key = %(key)s AND version_id = %(version)s

-- name: unmark
DELETE FROM artifact_sweeps WHERE tenant = %(tenant)s AND object_key = %(key)s AND version_id = %(version)s

-- name: holds_waiting
SELECT count(*) AS waiting FROM artifacts WHERE legal_hold <> hold_applied

-- name: holds_due
-- Artifacts that are held, or held no more, in a way that the store does not know. `held`: whether their object is to be: several
-- artifacts may be of one, and it is held while any of them is.
SELECT a.tenant, a.id, a.created_at, a.object_key, a.version_id, a.legal_hold,
       (SELECT bool_or(o.legal_hold) FROM artifacts o WHERE o.object_key = a.object_key AND o.version_id = a.version_id) AS held
FROM artifacts a
WHERE a.legal_hold <> a.hold_applied AND (a.created_at, a.id) > (%(after_time)s, %(after_id)s::uuid)
ORDER BY a.created_at, a.id LIMIT %(limit)s

-- name: settle_holds
-- What the store was told, if that is still what it has to know: a row that was changed since stays due (legal_hold is looked at
-- again once its lock is free), and so do all of them where another artifact of the object was changed.
UPDATE artifacts a SET hold_applied = h
FROM unnest(%(tenants)s::text[], %(ids)s::uuid[], %(holds)s::bool[]) u(t, i, h)
WHERE a.tenant = t AND a.id = i AND a.legal_hold = h
  AND %(held)s = (SELECT bool_or(o.legal_hold) FROM artifacts o WHERE o.object_key = %(key)s AND o.version_id = %(version)s)
RETURNING a.id

-- name: holds_of
SELECT a.tenant, a.id, a.legal_hold, a.hold_applied FROM artifacts a WHERE a.object_key = %(key)s AND a.version_id = %(version)s

-- name: follow_nodes
-- Artifacts that are not held as their node is. The write path keeps them alike; this mends what came from elsewhere.
WITH mended AS (
    UPDATE artifacts a SET legal_hold = n.legal_hold FROM memory_nodes n
    WHERE n.tenant = a.tenant AND n.id = a.memory_node_id AND a.legal_hold <> n.legal_hold
    RETURNING 1
)
SELECT count(*) AS mended FROM mended

-- name: tell_again
-- The store does not hold what it was told, or holds what it was not: tell it again.
UPDATE artifacts SET hold_applied = NOT legal_hold WHERE tenant = %(tenant)s AND id = %(id)s AND legal_hold = %(held)s

-- name: durable
SELECT set_config('synchronous_commit', 'on', true)

-- name: lock_log
-- Whoever names objects does so under this lock.
SELECT pg_advisory_xact_lock(5062476, 0)

-- name: unnamed
-- Of these objects those that no artifact names; `beside`: one names another version of the key.
SELECT k AS key, v AS version, EXISTS (SELECT FROM artifacts a WHERE a.object_key = k) AS beside
FROM unnest(%(keys)s::text[], %(versions)s::text[]) u(k, v)
WHERE NOT EXISTS (SELECT FROM artifacts a WHERE a.object_key = k AND a.version_id = v)

-- name: mark
-- Under the log lock: from now on no artifact can name them.
INSERT INTO artifact_sweeps (tenant, object_key, version_id, marked_at)
SELECT split_part(k, '/', 1), k, v, clock_timestamp() FROM unnest(%(keys)s::text[], %(versions)s::text[]) u(k, v)
WHERE NOT EXISTS (SELECT FROM artifacts a WHERE a.object_key = k AND a.version_id = v)
ON CONFLICT (object_key, version_id) DO UPDATE SET marked_at = EXCLUDED.marked_at, deleted_at = NULL
RETURNING object_key AS key, version_id AS version

-- name: marked
SELECT object_key AS key, version_id AS version FROM artifact_sweeps WHERE deleted_at IS NULL ORDER BY object_key LIMIT %(limit)s

-- name: swept
UPDATE artifact_sweeps SET deleted_at = clock_timestamp() WHERE object_key = %(key)s AND version_id = %(version)s

-- name: unmark_object
DELETE FROM artifact_sweeps WHERE object_key = %(key)s AND version_id = %(version)s

-- name: forget_sweeps
-- An upload that found the object before it went has long ended.
DELETE FROM artifact_sweeps WHERE deleted_at < clock_timestamp() - interval '7 days'

-- name: progress
SELECT state FROM artifact_progress WHERE job = %(job)s

-- name: put_progress
INSERT INTO artifact_progress (job, state, updated_at) VALUES (%(job)s, %(state)s::jsonb, clock_timestamp())
ON CONFLICT (job) DO UPDATE SET state = EXCLUDED.state, updated_at = EXCLUDED.updated_at

-- name: end_progress
DELETE FROM artifact_progress WHERE job = %(job)s

-- name: totals
SELECT count(*) AS artifacts, coalesce(sum(size_bytes), 0)::bigint AS bytes FROM artifacts
WHERE (tenant, id) > (%(after_tenant)s, %(after_id)s::uuid)

-- name: page
SELECT a.tenant, a.id, a.memory_node_id, a.name, a.url, a.object_key, a.version_id, a.sha256, a.size_bytes, a.content_type,
       a.manifest_signature_id, a.created_by, a.metadata, a.created_at, a.legal_hold, a.hold_applied, a.retain_until,
       a.verified_at, a.storage_class, a.fault,
       (SELECT bool_or(o.legal_hold) FROM artifacts o WHERE o.object_key = a.object_key AND o.version_id = a.version_id) AS held
FROM artifacts a WHERE (a.tenant, a.id) > (%(after_tenant)s, %(after_id)s::uuid)
ORDER BY a.tenant, a.id LIMIT %(limit)s

-- name: sample
SELECT a.tenant, a.id, a.memory_node_id, a.name, a.url, a.object_key, a.version_id, a.sha256, a.size_bytes, a.content_type,
       a.manifest_signature_id, a.created_by, a.metadata, a.created_at, a.legal_hold, a.hold_applied, a.retain_until,
       a.verified_at, a.storage_class, a.fault,
       (SELECT bool_or(o.legal_hold) FROM artifacts o WHERE o.object_key = a.object_key AND o.version_id = a.version_id) AS held
FROM artifacts a ORDER BY random() LIMIT %(limit)s

-- name: one
SELECT a.tenant, a.id, a.memory_node_id, a.name, a.url, a.object_key, a.version_id, a.sha256, a.size_bytes, a.content_type,
       a.manifest_signature_id, a.created_by, a.metadata, a.created_at, a.legal_hold, a.hold_applied, a.retain_until,
       a.verified_at, a.storage_class, a.fault,
       (SELECT bool_or(o.legal_hold) FROM artifacts o WHERE o.object_key = a.object_key AND o.version_id = a.version_id) AS held
FROM artifacts a WHERE a.id = %(id)s

-- name: verified
UPDATE artifacts SET verified_at = clock_timestamp(), storage_class = %(storage_class)s
WHERE tenant = %(tenant)s AND id = %(id)s AND fault IS NULL

-- name: faults
SELECT fault, count(*) AS artifacts FROM artifacts WHERE fault IS NOT NULL GROUP BY fault

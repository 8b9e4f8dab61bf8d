-- What the worker and operators do with artifacts: holds, sweeps, checks, manifests. Whoever runs these sees all tenants.

-- name: request
-- As the committer looks for it (commit.sql, find_idempotency), before objects are read.
SELECT tenant, actor, key, request_hash, status, answer FROM idempotency_keys
WHERE tenant = %(tenant)s AND actor = %(actor)s AND key = %(key)s AND created_at > clock_timestamp() - interval '24 hours'

-- name: sweep_of
SELECT deleted_at FROM artifact_sweeps WHERE tenant = %(tenant)s AND object_key = %(key)s AND version_id = %(version)s

-- name: unmark
DELETE FROM artifact_sweeps WHERE tenant = %(tenant)s AND object_key = %(key)s AND version_id = %(version)s

-- name: holds_due
-- Artifacts that are held, or held no more, in a way that the store does not know. `held`: whether their object is to be: several
-- artifacts may be of one, and it is held while any of them is.
SELECT a.tenant, a.id, a.created_at, a.object_key, a.version_id, a.legal_hold,
       (SELECT bool_or(o.legal_hold) FROM artifacts o WHERE o.object_key = a.object_key AND o.version_id = a.version_id) AS held
FROM artifacts a
WHERE a.hold_due AND (a.created_at, a.id) > (%(after_time)s, %(after_id)s::uuid)
ORDER BY a.created_at, a.id LIMIT %(limit)s

-- name: confirm_holds
-- The holds that were sent, if they are still right: a row that was changed since stays due (it is checked again once it is locked), and
-- so do all of them where another artifact of the object was changed. A row that another transaction has locked stays due as well:
-- waiting for it could deadlock.
WITH sent AS MATERIALIZED (
    SELECT a.tenant, a.id FROM unnest(%(tenants)s::text[], %(ids)s::uuid[], %(holds)s::bool[]) u(t, i, h)
    JOIN artifacts a ON a.tenant = t AND a.id = i AND a.legal_hold = h
    WHERE %(held)s = (SELECT bool_or(o.legal_hold) FROM artifacts o WHERE o.object_key = %(key)s AND o.version_id = %(version)s)
    FOR UPDATE OF a SKIP LOCKED
)
UPDATE artifacts a SET hold_due = false FROM sent WHERE a.tenant = sent.tenant AND a.id = sent.id
RETURNING a.id

-- name: holds_of
SELECT a.tenant, a.id, a.legal_hold, a.hold_due FROM artifacts a WHERE a.object_key = %(key)s AND a.version_id = %(version)s

-- name: nodes_held_differently
-- Nodes that have artifacts which are not held as they are. The write path keeps them alike.
SELECT DISTINCT n.tenant, n.id FROM artifacts a JOIN memory_nodes n ON n.tenant = a.tenant AND n.id = a.memory_node_id
WHERE a.legal_hold <> n.legal_hold ORDER BY n.tenant, n.id LIMIT %(limit)s

-- name: follow_nodes
-- Hold the artifacts of these nodes as they are: nodes that were found to be what the log says.
WITH followed AS (
    UPDATE artifacts a SET legal_hold = n.legal_hold, hold_due = true
    FROM unnest(%(tenants)s::text[], %(ids)s::uuid[]) u(t, i) JOIN memory_nodes n ON n.tenant = u.t AND n.id = u.i
    WHERE a.tenant = n.tenant AND a.memory_node_id = n.id AND a.legal_hold <> n.legal_hold
    RETURNING 1
)
SELECT count(*) AS followed FROM followed

-- name: ended
-- Artifacts whose node is deleted, and that neither a hold nor a lock keeps.
SELECT a.tenant, a.id, a.memory_node_id FROM artifacts a JOIN memory_nodes n ON n.tenant = a.tenant AND n.id = a.memory_node_id
WHERE n.deleted_at IS NOT NULL AND NOT a.legal_hold AND NOT a.hold_due
  AND (a.retain_until IS NULL OR a.retain_until <= clock_timestamp()) AND (a.tenant, a.id) > (%(after_tenant)s, %(after_id)s::uuid)
ORDER BY a.tenant, a.id LIMIT %(limit)s

-- name: artifacts_of_object
SELECT {{Artifact a}}
FROM artifacts a WHERE a.object_key = %(key)s AND a.version_id = %(version)s

-- name: send_hold_again
-- The store's hold is not the one that was set: send it again.
UPDATE artifacts SET hold_due = true WHERE tenant = %(tenant)s AND id = %(id)s

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
SELECT {{Artifact a}},
       (SELECT bool_or(o.legal_hold) FROM artifacts o WHERE o.object_key = a.object_key AND o.version_id = a.version_id) AS held
FROM artifacts a WHERE (a.tenant, a.id) > (%(after_tenant)s, %(after_id)s::uuid)
ORDER BY a.tenant, a.id LIMIT %(limit)s

-- name: sample
SELECT {{Artifact a}},
       (SELECT bool_or(o.legal_hold) FROM artifacts o WHERE o.object_key = a.object_key AND o.version_id = a.version_id) AS held
FROM artifacts a ORDER BY random() LIMIT %(limit)s

-- name: one
SELECT {{Artifact a}},
       (SELECT bool_or(o.legal_hold) FROM artifacts o WHERE o.object_key = a.object_key AND o.version_id = a.version_id) AS held
FROM artifacts a WHERE a.id = %(id)s

-- name: of_object
-- The artifacts that name one version of an object.
SELECT {{Artifact a}}
FROM artifacts a WHERE a.tenant = %(tenant)s AND a.object_key = %(key)s AND a.version_id = %(version)s ORDER BY a.created_at, a.id

-- name: verified
-- Not of what somebody is changing now: the next scan will say it.
WITH free AS MATERIALIZED (
    SELECT a.tenant, a.id, c FROM unnest(%(tenants)s::text[], %(ids)s::uuid[], %(classes)s::text[]) u(t, i, c)
    JOIN artifacts a ON a.tenant = t AND a.id = i AND a.fault IS NULL
    FOR UPDATE OF a SKIP LOCKED
)
UPDATE artifacts a SET verified_at = clock_timestamp(), storage_class = free.c
FROM free WHERE a.tenant = free.tenant AND a.id = free.id

-- name: faults
SELECT fault, count(*) AS artifacts FROM artifacts WHERE fault IS NOT NULL GROUP BY fault

-- name: log_position
SELECT l.origin, s.last_seq AS seq, s.head AS hash
FROM (SELECT log, origin FROM audit_logs WHERE origin = %(origin)s) l
LEFT JOIN LATERAL (
    SELECT last_seq, head FROM audit_seals a WHERE a.log = l.log ORDER BY a.batch_no DESC LIMIT 1
) s ON true

-- name: put_manifest
INSERT INTO artifact_manifests (id, object_key, version_id, sha256, artifacts, signature, key_id, previous)
VALUES (%(id)s, %(key)s, %(version)s, %(sha256)s, %(artifacts)s, %(signature)s, %(key_id)s, %(previous)s)

-- name: manifests
SELECT id, object_key, version_id, sha256, artifacts, signature, key_id, previous, created_at
FROM artifact_manifests ORDER BY created_at DESC, id DESC LIMIT %(limit)s

-- name: manifest
SELECT id, object_key, version_id, sha256, artifacts, signature, key_id, previous, created_at
FROM artifact_manifests WHERE id = %(id)s

-- name: manifest_by_hash
SELECT id FROM artifact_manifests WHERE sha256 = %(sha256)s

-- name: compare
-- Of the artifacts of a manifest those that are not there, though they were not deleted since, or not as it says.
SELECT r.id, a.id IS NULL AS missing
FROM jsonb_to_recordset(%(rows)s::jsonb) r(tenant text, id uuid, node uuid, url text, key text, version text, sha256 text, size bigint,
     "contentType" text, "manifestSignatureId" text, "createdBy" uuid, "createdAt" timestamptz)
LEFT JOIN artifacts a ON a.tenant = r.tenant AND a.id = r.id
WHERE a.id IS NULL AND NOT EXISTS (
          SELECT FROM audit_events d WHERE d.log = (SELECT l.log FROM audit_logs l WHERE l.origin = %(origin)s) AND d.tenant = r.tenant
            AND d.artifact_id = r.id AND d.event_type = 'memory.artifact.deleted')
   OR (a.url, a.object_key, a.version_id, a.sha256, a.size_bytes, a.content_type, a.created_by, a.created_at)
      IS DISTINCT FROM (r.url, r.key, r.version, r.sha256, r.size, r."contentType", r."createdBy", r."createdAt") AND a.id IS NOT NULL
   OR a.manifest_signature_id IS DISTINCT FROM r."manifestSignatureId" AND a.id IS NOT NULL
   OR (a.memory_node_id IS NOT NULL AND a.memory_node_id IS DISTINCT FROM r.node)
ORDER BY r.id

-- name: see_all
-- For the rest of this transaction, which may take a while: nobody else writes meanwhile anyway.
SELECT set_config('memory.all_tenants', 'on', true), set_config('statement_timeout', '0', true),
       set_config('idle_in_transaction_session_timeout', '10min', true)

-- name: any_artifact
SELECT EXISTS (SELECT FROM artifacts) AS found

-- name: restore
-- Rows of a manifest, but for what was deleted since. A node that is gone is left out. A hold is the node's, and is sent to the store again.
INSERT INTO artifacts (tenant, id, memory_node_id, url, object_key, version_id, sha256, size_bytes, content_type, manifest_signature_id,
                       created_by, created_at, legal_hold, hold_due, retain_until, verified_at, storage_class)
SELECT r.tenant, r.id, n.id, r.url, r.key, r.version, r.sha256, r.size, r."contentType", r."manifestSignatureId", r."createdBy",
       r."createdAt", coalesce(n.legal_hold, false), coalesce(n.legal_hold, false), r."retainUntil", r."verifiedAt", r."storageClass"
FROM jsonb_to_recordset(%(rows)s::jsonb) r(tenant text, id uuid, node uuid, url text, key text, version text, sha256 text, size bigint,
     "contentType" text, "manifestSignatureId" text, "createdBy" uuid, "createdAt" timestamptz, "retainUntil" timestamptz,
     "verifiedAt" timestamptz, "storageClass" text)
LEFT JOIN memory_nodes n ON n.tenant = r.tenant AND n.id = r.node
WHERE NOT EXISTS (
    SELECT FROM audit_events d WHERE d.log = (SELECT l.log FROM audit_logs l WHERE l.origin = %(origin)s) AND d.tenant = r.tenant
      AND d.artifact_id = r.id AND d.event_type = 'memory.artifact.deleted')
RETURNING id

-- name: restore_from_log
-- Artifacts that came after the manifest: the entry of its creation has all of one, where its payload was not erased.
INSERT INTO artifacts (tenant, id, memory_node_id, name, url, object_key, version_id, sha256, size_bytes, content_type,
                       manifest_signature_id, created_by, metadata, created_at, legal_hold, hold_due, retain_until)
SELECT e.tenant, e.artifact_id, n.id, t.body ->> 'name', t.body ->> 'url', coalesce(t.body ->> 'objectKey', e.tenant || '/' || (t.body ->> 'sha256')),
       t.body ->> 'versionId', t.body ->> 'sha256', (t.body ->> 'sizeBytes')::bigint, t.body ->> 'contentType',
       t.body ->> 'manifestSignatureId', (t.body ->> 'createdBy')::uuid, t.body -> 'metadata', (t.body ->> 'createdAt')::timestamptz,
       coalesce(n.legal_hold, false), coalesce(n.legal_hold, false), (t.body ->> 'retainUntil')::timestamptz
FROM audit_events e
JOIN audit_payloads p ON p.log = e.log AND p.seq = e.seq
CROSS JOIN LATERAL (SELECT convert_from(p.payload, 'UTF8')::jsonb AS body) t
LEFT JOIN memory_nodes n ON n.tenant = e.tenant AND n.id = e.memory_node_id
WHERE e.log = (SELECT l.log FROM audit_logs l WHERE l.origin = %(origin)s) AND e.event_type = 'memory.artifact.created'
  AND NOT EXISTS (SELECT FROM artifacts a WHERE a.tenant = e.tenant AND a.id = e.artifact_id)
  AND NOT EXISTS (SELECT FROM audit_events d
                  WHERE d.log = e.log AND d.tenant = e.tenant AND d.artifact_id = e.artifact_id AND d.event_type = 'memory.artifact.deleted')
RETURNING id

-- name: restore_names
-- What no manifest holds because it may be personal: file names and callers' metadata, from the entries where they were not erased.
UPDATE artifacts a SET name = t.body ->> 'name', metadata = t.body -> 'metadata'
FROM audit_events e
JOIN audit_payloads p ON p.log = e.log AND p.seq = e.seq
CROSS JOIN LATERAL (SELECT convert_from(p.payload, 'UTF8')::jsonb AS body) t
WHERE e.log = (SELECT l.log FROM audit_logs l WHERE l.origin = %(origin)s)
  AND e.tenant = a.tenant AND e.artifact_id = a.id AND e.event_type = 'memory.artifact.created'
RETURNING a.id

-- name: restore_retention
UPDATE artifacts a SET retain_until = r.until
FROM (
    SELECT e.tenant, e.artifact_id, max((convert_from(p.payload, 'UTF8')::jsonb ->> 'retainUntil')::timestamptz) AS until
    FROM audit_events e JOIN audit_payloads p ON p.log = e.log AND p.seq = e.seq
    WHERE e.log = (SELECT l.log FROM audit_logs l WHERE l.origin = %(origin)s) AND e.event_type = 'memory.artifact.verified' GROUP BY 1, 2
) r
WHERE a.tenant = r.tenant AND a.id = r.artifact_id AND r.until > coalesce(a.retain_until, '-infinity')
RETURNING a.id

-- name: restore_described
-- When an operator restored or accepted a row, the entry recorded all of it: that replaces whatever came before.
UPDATE artifacts a
SET memory_node_id = n.id, name = d.body ->> 'name', url = d.body ->> 'url', object_key = d.body ->> 'objectKey',
    version_id = d.body ->> 'versionId', sha256 = d.body ->> 'sha256', size_bytes = (d.body ->> 'sizeBytes')::bigint,
    content_type = d.body ->> 'contentType', manifest_signature_id = d.body ->> 'manifestSignatureId',
    created_by = (d.body ->> 'createdBy')::uuid, metadata = d.body -> 'metadata', created_at = (d.body ->> 'createdAt')::timestamptz,
    legal_hold = coalesce(n.legal_hold, false), hold_due = coalesce(n.legal_hold, false)
FROM (
    SELECT DISTINCT ON (e.tenant, e.artifact_id) e.tenant, e.artifact_id, e.memory_node_id, convert_from(p.payload, 'UTF8')::jsonb AS body
    FROM audit_events e JOIN audit_payloads p ON p.log = e.log AND p.seq = e.seq
    WHERE e.log = (SELECT l.log FROM audit_logs l WHERE l.origin = %(origin)s) AND e.event_type = 'memory.artifact.verified'
      AND convert_from(p.payload, 'UTF8')::jsonb ? 'artifactId'
    ORDER BY e.tenant, e.artifact_id, e.seq DESC
) d
LEFT JOIN memory_nodes n ON n.tenant = d.tenant AND n.id = d.memory_node_id
WHERE a.tenant = d.tenant AND a.id = d.artifact_id
RETURNING a.id

-- name: restore_faults
-- What the last check that is in the log found; no manifest holds it.
UPDATE artifacts a SET fault = f.body ->> 'fault'
FROM (
    SELECT DISTINCT ON (e.tenant, e.artifact_id) e.tenant, e.artifact_id, convert_from(p.payload, 'UTF8')::jsonb AS body
    FROM audit_events e JOIN audit_payloads p ON p.log = e.log AND p.seq = e.seq
    WHERE e.log = (SELECT l.log FROM audit_logs l WHERE l.origin = %(origin)s)
      AND e.event_type IN ('memory.artifact.created', 'memory.artifact.verified', 'memory.artifact.corrupt')
      AND convert_from(p.payload, 'UTF8')::jsonb ? 'fault'
    ORDER BY e.tenant, e.artifact_id, e.seq DESC
) f
WHERE a.tenant = f.tenant AND a.id = f.artifact_id AND a.fault IS DISTINCT FROM f.body ->> 'fault'
RETURNING a.id

-- name: still_missing
-- Artifacts that the log created and that are still not there.
SELECT count(*) AS artifacts FROM audit_events e
WHERE e.log = (SELECT l.log FROM audit_logs l WHERE l.origin = %(origin)s) AND e.event_type = 'memory.artifact.created'
  AND NOT EXISTS (SELECT FROM artifacts a WHERE a.tenant = e.tenant AND a.id = e.artifact_id)
  AND NOT EXISTS (SELECT FROM audit_events d
                  WHERE d.log = e.log AND d.tenant = e.tenant AND d.artifact_id = e.artifact_id AND d.event_type = 'memory.artifact.deleted')

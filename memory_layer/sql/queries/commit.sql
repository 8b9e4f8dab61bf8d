-- The write path: every statement that the committer runs, in order. One transaction per batch; the log lock is taken
-- first, in its own statement, so that everything below it sees the tail that no one else can move.
--
-- BEGIN says its isolation, not left to the server's defaults: what follows the lock must see what was committed while it waited.
-- Whether it may write is left to them: who sets default_transaction_read_only means these writes too.

-- name: begin
BEGIN ISOLATION LEVEL READ COMMITTED

-- name: set_tenants
SELECT set_config('memory.tenants', %(tenants)s::text, true)

-- name: lock_log
SELECT pg_advisory_xact_lock(5062476, 0)

-- name: try_lock_log
-- The same at once or not at all; fails while anybody waits for the lock, so nobody overtakes.
SELECT pg_try_advisory_xact_lock(5062476, 0) AS locked

-- name: head
-- Of the log that the trust root names, whatever else audit_logs holds.
SELECT log.log, log.origin, seal.batch_no, seal.first_seq, seal.last_seq, seal.head, seal.seal_text, seal.signature,
       seal.key_id AS seal_key, seal.algorithm, seal.created_at AS sealed_at, clock_timestamp() AS now,
       seal.system_identifier AS sealed_system, seal.timeline AS sealed_timeline,
       epoch.from_seq AS epoch, coalesce(epoch.key_id, log.key_id) AS key_id,
       (SELECT e.seq FROM audit_events e WHERE e.log = log.log ORDER BY e.seq DESC LIMIT 1) AS newest_seq,
       (SELECT system_identifier::text FROM pg_control_system()) AS system_identifier,
       ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int AS timeline,
       frozen.reason AS frozen_reason, frozen.since AS frozen_since, frozen.until AS frozen_until,
       -- An operator ended this log with a new incarnation of it (logs.sql, open_next).
       (SELECT n.origin FROM audit_logs n WHERE n.log > log.log AND n.imported_at IS NULL
        AND regexp_replace(n.origin, '/e[0-9]+$', '') = regexp_replace(log.origin, '/e[0-9]+$', '') ORDER BY n.log LIMIT 1) AS followed_by
FROM (SELECT log, origin, key_id FROM audit_logs WHERE origin = %(origin)s::text AND imported_at IS NULL AND log >= 0) log
LEFT JOIN LATERAL (
    SELECT s.batch_no, s.first_seq, s.last_seq, s.head, s.seal_text, s.signature, s.key_id, s.algorithm, s.created_at,
           s.system_identifier, s.timeline
    FROM audit_seals s WHERE s.log = log.log ORDER BY s.batch_no DESC LIMIT 1
) seal ON true
LEFT JOIN LATERAL (
    SELECT k.from_seq, k.key_id FROM audit_keys k WHERE k.log = log.log ORDER BY k.from_seq DESC LIMIT 1
) epoch ON true
LEFT JOIN write_freeze frozen ON frozen.until IS NULL OR frozen.until > clock_timestamp()

-- name: find_idempotency
-- The installation's own keys name what they are for, a run and its report say, and hold for as long as they are kept.
SELECT f.* FROM unnest(%(tenants)b::text[], %(actors)b::uuid[], %(keys)b::text[]) u(t, a, k)
CROSS JOIN LATERAL (
    SELECT i.tenant, i.actor, i.key, i.request_hash, i.status, i.answer
    FROM idempotency_keys i WHERE i.tenant = u.t AND i.actor = u.a AND i.key = u.k
      AND (i.created_at > clock_timestamp() - interval '24 hours' OR i.tenant = '_system') LIMIT 1
) f

-- name: find_embedding_ids
SELECT f.* FROM unnest(%(tenants)b::text[], %(keys)b::text[]) u(t, k)
CROSS JOIN LATERAL (
    SELECT n.tenant, n.embedding_id, n.id FROM memory_nodes n
    WHERE n.tenant = u.t AND n.embedding_id = u.k AND n.deleted_at IS NULL LIMIT 1
) f

-- name: find_nodes
SELECT f.* FROM unnest(%(tenants)b::text[], %(ids)b::uuid[]) u(t, i)
CROSS JOIN LATERAL (
    SELECT {{Node n}}
    FROM memory_nodes n WHERE n.tenant = u.t AND n.id = u.i LIMIT 1
) f

-- name: find_vectors
-- OFFSET 0 keeps it a look-up per node: as a join it is planned as a scan of the table, under the log lock.
SELECT f.* FROM unnest(%(tenants)b::text[], %(ids)b::uuid[]) u(t, i)
CROSS JOIN LATERAL (
    SELECT v.tenant, v.id, v.memory_node_id, v.namespace, v.provider, v.embedding_model AS model, v.dimension, v.status,
           v.version, v.metadata ->> 'source' AS source, (v.metadata ->> 'since')::int AS since,
           v.vector_data ->> 'data' AS vector, v.error, v.metadata ->> 'read' AS read
    FROM memory_vectors v WHERE v.tenant = u.t AND v.memory_node_id = u.i OFFSET 0
) f

-- name: find_namespaces
SELECT f.* FROM unnest(%(tenants)b::text[], %(names)b::text[]) u(t, k)
CROSS JOIN LATERAL (
    SELECT s.tenant, s.name, s.index_namespace, s.embedding_model AS model, s.dimension, s.provider, s.generations,
           s.beside AS standby, s.beside_model AS standby_model, s.beside_dimension AS standby_dimension, s.beside_state AS standby_state
    FROM namespaces s WHERE s.tenant = u.t AND s.name = u.k LIMIT 1
) f

-- name: find_namespaces_of_nodes
-- A patch may index its node anew, and learns the node's namespace only here.
SELECT f.* FROM unnest(%(tenants)b::text[], %(ids)b::uuid[]) u(t, i)
CROSS JOIN LATERAL (
    SELECT s.tenant, s.name, s.index_namespace, s.embedding_model AS model, s.dimension, s.provider, s.generations,
           s.beside AS standby, s.beside_model AS standby_model, s.beside_dimension AS standby_dimension, s.beside_state AS standby_state
    FROM memory_nodes n JOIN namespaces s ON s.tenant = n.tenant AND s.name = n.namespace
    WHERE n.tenant = u.t AND n.id = u.i LIMIT 1
) f

-- name: find_artifacts
SELECT f.* FROM unnest(%(tenants)b::text[], %(ids)b::uuid[]) u(t, i)
CROSS JOIN LATERAL (
    SELECT {{Artifact a}}
    FROM artifacts a WHERE a.tenant = u.t AND a.id = u.i LIMIT 1
) f

-- name: find_swept
SELECT f.* FROM unnest(%(tenants)b::text[], %(keys)b::text[], %(versions)b::text[]) u(t, k, v)
CROSS JOIN LATERAL (
    SELECT s.tenant, s.object_key, s.version_id FROM artifact_sweeps s
    WHERE s.tenant = u.t AND s.object_key = u.k AND s.version_id = u.v LIMIT 1
) f

-- name: find_principals
SELECT f.* FROM unnest(%(tenants)b::text[], %(services)b::text[]) u(t, s)
CROSS JOIN LATERAL (SELECT {{Principal p}} FROM principals p WHERE p.tenant = u.t AND p.service = u.s LIMIT 1) f

-- name: find_tenants
SELECT t.tenant FROM tenants t WHERE t.tenant = ANY (%(tenants)b::text[])

-- name: find_tenant_rows
SELECT t.tenant, t.disabled_at FROM tenants t WHERE t.tenant = ANY (%(tenants)b::text[])

-- name: find_revoked_tokens
SELECT r.tenant, r.jti FROM unnest(%(tenants)b::text[], %(ids)b::text[]) u(t, i)
JOIN revoked_tokens r ON r.tenant = u.t AND r.jti = u.i

-- name: find_api_keys
SELECT k.tenant, k.id, k.principal, p.service, k.key_sha256, k.hint, k.name, k.scopes, k.created_at, k.expires_at, k.revoked_at,
       k.replaced_by
FROM unnest(%(tenants)b::text[], %(ids)b::uuid[]) u(t, i)
JOIN api_keys k ON k.tenant = u.t AND k.id = u.i
JOIN principals p ON p.tenant = k.tenant AND p.id = k.principal

-- name: find_admin_keys
-- Whether the tenant ever had an API key with the scope admin.
SELECT EXISTS (SELECT FROM api_keys k WHERE k.tenant = %(tenant)b::text AND 'admin' = ANY (k.scopes)) AS any

-- name: find_unbound_principals
-- Those from before each had an entry, or made by a process of that time.
SELECT {{Principal p}} FROM principals p WHERE p.audit_id IS NULL ORDER BY p.tenant, p.service

-- name: find_unbound_tenants
SELECT t.tenant, t.created_at, t.disabled_at FROM tenants t
WHERE EXISTS (SELECT FROM principals p WHERE p.tenant = t.tenant AND p.audit_id IS NULL) ORDER BY t.tenant

-- name: find_lone_tenants
-- Those that no service has written for yet, where they are wanted.
SELECT t.tenant, t.created_at, t.disabled_at FROM tenants t
WHERE %(wanted)b::bool AND NOT EXISTS (SELECT FROM principals p WHERE p.tenant = t.tenant) ORDER BY t.tenant

-- name: find_lacks
-- What a switch of generations would lose: nodes that are found now and would not be afterwards. `given`: those that only their
-- caller can give a vector of the other model. A node on its way into both (its vector changed with its last version) is found in
-- neither yet, and does not count. All nodes were counted before (generations.sql, coverage); under the lock only those are
-- looked up that were outstanding then, were written since, or were put back into the queue of the standby by what needs no entry
-- (a repair). Those became due since then, or a worker holds their lease: both indexes are read from there on, whatever else waits.
SELECT count(*) FILTER (WHERE lack.given) AS given, count(*) FILTER (WHERE lack.behind AND NOT lack.given) AS behind
FROM (
    SELECT unnest(%(outstanding)b::uuid[]) AS id
    UNION
    SELECT e.memory_node_id FROM audit_events e
    WHERE e.log = %(log)s::int AND e.seq > %(seq)s::bigint AND e.tenant = %(tenant)s::text AND e.memory_node_id IS NOT NULL
    UNION
    SELECT v.memory_node_id FROM memory_vectors v
    WHERE v.status IN ('pending', 'deleting') AND v.lease_id IS NULL AND v.next_attempt_at >= %(since)s::timestamptz
      AND v.tenant = %(tenant)s::text AND v.namespace = (SELECT beside FROM namespaces WHERE tenant = %(tenant)s::text AND name = %(name)s::text)
    UNION
    SELECT v.memory_node_id FROM memory_vectors v
    WHERE v.lease_id IS NOT NULL AND v.lease_until >= %(since)s::timestamptz AND v.tenant = %(tenant)s::text
      AND v.namespace = (SELECT beside FROM namespaces WHERE tenant = %(tenant)s::text AND name = %(name)s::text)
) looked
CROSS JOIN LATERAL (
    SELECT n.tenant, n.id, n.content, s.index_namespace, s.beside
    FROM memory_nodes n JOIN namespaces s ON s.tenant = n.tenant AND s.name = n.namespace
    WHERE n.tenant = %(tenant)s::text AND n.id = looked.id AND n.namespace = %(name)s::text AND n.deleted_at IS NULL OFFSET 0
) n
CROSS JOIN LATERAL (
    SELECT v.status, v.version, (v.metadata ->> 'since')::int AS since FROM memory_vectors v
    WHERE v.tenant = n.tenant AND v.memory_node_id = n.id AND v.namespace = n.index_namespace
      AND v.status NOT IN ('deleting', 'deleted') OFFSET 0
) a
LEFT JOIN LATERAL (
    SELECT v.id, v.status FROM memory_vectors v
    WHERE v.tenant = n.tenant AND v.memory_node_id = n.id AND v.namespace = n.beside
      AND v.status NOT IN ('deleting', 'deleted') OFFSET 0
) b ON true
CROSS JOIN LATERAL (
    SELECT b.id IS NULL AND coalesce(n.content, '') = '' AS given,
           CASE WHEN b.id IS NULL THEN true WHEN b.status = 'succeeded' THEN false
                WHEN b.status IN ('failed', 'dead') AND a.status NOT IN ('failed', 'dead') THEN true
                ELSE a.status = 'succeeded' OR a.since < a.version END AS behind
) lack

-- name: insert_tenants
INSERT INTO tenants (tenant, created_at) SELECT t, %(now)s::timestamptz FROM unnest(%(tenant)b::text[]) u(t)

-- name: disable_tenants
UPDATE tenants t SET disabled_at = d FROM unnest(%(tenant)b::text[], %(disabled_at)b::timestamptz[]) u(n, d) WHERE t.tenant = n

-- name: insert_principals
INSERT INTO principals (tenant, service, id, created_at, audit_id)
SELECT t, s, i, %(now)s::timestamptz, a
FROM unnest(%(tenant)b::text[], %(service)b::text[], %(id)b::uuid[], %(audit_id)b::uuid[]) u(t, s, i, a)

-- name: adopt_principals
UPDATE principals p SET audit_id = a FROM unnest(%(id)b::uuid[], %(audit_id)b::uuid[]) u(i, a) WHERE p.id = i

-- name: revoke_principals
UPDATE principals p SET revoked_at = r FROM unnest(%(id)b::uuid[], %(revoked_at)b::timestamptz[]) u(i, r) WHERE p.id = i

-- name: insert_revoked_tokens
INSERT INTO revoked_tokens (tenant, jti, revoked_at)
SELECT t, j, r FROM unnest(%(tenant)b::text[], %(jti)b::text[], %(revoked_at)b::timestamptz[]) u(t, j, r)

-- name: insert_api_keys
INSERT INTO api_keys (tenant, id, principal, key_sha256, hint, name, scopes, created_at, expires_at)
SELECT t, i, p, k, h, n, s::text[], %(now)s::timestamptz, e
FROM unnest(%(tenant)b::text[], %(id)b::uuid[], %(principal)b::uuid[], %(key_sha256)b::bytea[], %(hint)b::text[], %(name)b::text[],
            %(scopes)b::text[], %(expires_at)b::timestamptz[]) u(t, i, p, k, h, n, s, e)

-- name: end_api_keys
UPDATE api_keys k SET expires_at = e, revoked_at = r, replaced_by = b
FROM unnest(%(tenant)b::text[], %(id)b::uuid[], %(expires_at)b::timestamptz[], %(revoked_at)b::timestamptz[], %(replaced_by)b::uuid[])
    u(t, i, e, r, b)
WHERE k.tenant = t AND k.id = i

-- name: insert_nodes
INSERT INTO memory_nodes ({{Node}})
SELECT {{Node u values}} FROM unnest({{Node arrays}}) u({{Node}})

-- name: update_nodes
UPDATE memory_nodes n SET {{Node u set}}
FROM unnest({{Node arrays}}) u({{Node}})
WHERE n.tenant = u.tenant AND n.id = u.id

-- name: insert_vectors
-- Of new nodes. `sha256`: of a vector that the caller gave, so that a read can check its node without it.
INSERT INTO memory_vectors (tenant, id, memory_node_id, namespace, provider, embedding_model, dimension, status, version,
                            metadata, vector_data, bulk, next_attempt_at, created_at, updated_at)
SELECT t, i, n, ns, p, mo, d, st, v, jsonb_strip_nulls(jsonb_build_object('source', so, 'since', si, 'sha256', sh, 'read', re)),
       CASE WHEN vd IS NULL THEN NULL ELSE jsonb_build_object('encoding', 'f32le', 'data', vd) END, bu,
       %(now)s::timestamptz, %(now)s::timestamptz, %(now)s::timestamptz
FROM unnest(%(tenant)b::text[], %(id)b::uuid[], %(node)b::uuid[], %(namespace)b::text[], %(provider)b::text[],
            %(model)b::text[], %(dimension)b::int[], %(status)b::text[], %(version)b::int[], %(source)b::text[],
            %(since)b::int[], %(sha256)b::text[], %(vector)b::text[], %(bulk)b::bool[], %(read)b::text[])
     u(t, i, n, ns, p, mo, d, st, v, so, si, sh, vd, bu, re)

-- name: put_vectors
-- Of nodes that were there: rows that were read under the lock, or new ones. Not with ON CONFLICT: while a worker finishes the row it
-- may overlook it, and the insert that follows is refused by the primary key.
WITH given AS MATERIALIZED (
    SELECT t, i, n, ns, p, mo, d, st, v, jsonb_strip_nulls(jsonb_build_object('source', so, 'since', si, 'sha256', sh, 'read', re)) AS me,
           CASE WHEN vd IS NULL THEN NULL ELSE jsonb_build_object('encoding', 'f32le', 'data', vd) END AS da, bu
    FROM unnest(%(tenant)b::text[], %(id)b::uuid[], %(node)b::uuid[], %(namespace)b::text[], %(provider)b::text[],
                %(model)b::text[], %(dimension)b::int[], %(status)b::text[], %(version)b::int[], %(source)b::text[],
                %(since)b::int[], %(sha256)b::text[], %(vector)b::text[], %(bulk)b::bool[], %(read)b::text[])
         u(t, i, n, ns, p, mo, d, st, v, so, si, sh, vd, bu, re)
), put AS (
    UPDATE memory_vectors o
    SET provider = p, embedding_model = mo, dimension = d, status = st, version = v, metadata = me, vector_data = da, bulk = bu,
        next_attempt_at = %(now)s::timestamptz, attempts = 0, error = NULL, error_class = NULL, lease_id = NULL, lease_until = NULL,
        updated_at = %(now)s::timestamptz
    FROM given WHERE o.tenant = t AND o.id = i
    RETURNING o.tenant, o.id
)
INSERT INTO memory_vectors (tenant, id, memory_node_id, namespace, provider, embedding_model, dimension, status, version,
                            metadata, vector_data, bulk, next_attempt_at, created_at, updated_at)
SELECT t, i, n, ns, p, mo, d, st, v, me, da, bu, %(now)s::timestamptz, %(now)s::timestamptz, %(now)s::timestamptz
FROM given WHERE NOT EXISTS (SELECT FROM put WHERE put.tenant = t AND put.id = i)

-- name: cancel_or_retry_jobs
-- A cancelled job, or one that is due again (a removal stays one). Whoever has the row in hand loses it; what had succeeded by now
-- stays so.
UPDATE memory_vectors v
SET status = CASE WHEN er IS NOT NULL THEN 'failed' WHEN v.status = 'deleting' THEN 'deleting' ELSE 'pending' END,
    error = er, error_class = CASE WHEN er IS NOT NULL THEN 'cancelled' END, attempts = CASE WHEN er IS NULL THEN 0 ELSE attempts END,
    next_attempt_at = %(now)s::timestamptz, lease_id = NULL, lease_until = NULL, updated_at = %(now)s::timestamptz
FROM unnest(%(tenant)b::text[], %(id)b::uuid[], %(version)b::int[], %(error)b::text[]) u(t, i, ve, er)
WHERE v.tenant = t AND v.id = i AND v.version = ve AND v.status NOT IN ('succeeded', 'deleted')
  AND (er IS NULL OR v.status <> 'deleting')

-- name: insert_namespaces
INSERT INTO namespaces (tenant, name, index_namespace, embedding_model, dimension, provider, created_at, updated_at)
SELECT t, n, x, m, d, p, %(now)s::timestamptz, %(now)s::timestamptz
FROM unnest(%(tenant)b::text[], %(name)b::text[], %(index_namespace)b::text[], %(model)b::text[], %(dimension)b::int[],
            %(provider)b::text[]) u(t, n, x, m, d, p)

-- name: update_namespaces
UPDATE namespaces s
SET index_namespace = x, embedding_model = m, dimension = d, generations = g, beside = b, beside_model = bm,
    beside_dimension = bd, beside_state = bs, updated_at = %(now)s::timestamptz
FROM unnest(%(tenant)b::text[], %(name)b::text[], %(index_namespace)b::text[], %(model)b::text[], %(dimension)b::int[],
            %(generations)b::int[], %(standby)b::text[], %(standby_model)b::text[], %(standby_dimension)b::int[],
            %(standby_state)b::text[]) u(t, n, x, m, d, g, b, bm, bd, bs)
WHERE s.tenant = t AND s.name = n

-- name: put_namespace_languages
INSERT INTO namespace_languages (tenant, name, language, set_at)
SELECT t, n, l, %(now)s::timestamptz FROM unnest(%(tenant)b::text[], %(name)b::text[], %(language)b::text[]) u(t, n, l)
ON CONFLICT (tenant, name) DO UPDATE SET language = EXCLUDED.language, set_at = EXCLUDED.set_at, applied = false

-- name: put_freeze
INSERT INTO write_freeze (reason, since, until) VALUES (%(reason)s::text, %(since)s::timestamptz, %(until)s::timestamptz)
ON CONFLICT (singleton) DO UPDATE SET reason = EXCLUDED.reason, since = EXCLUDED.since, until = EXCLUDED.until

-- name: lift_freeze
DELETE FROM write_freeze

-- name: insert_artifacts
INSERT INTO artifacts ({{Artifact}})
SELECT {{Artifact u values}} FROM unnest({{Artifact arrays}}) u({{Artifact}})

-- name: update_artifacts
-- What may change of one: how long it is kept, and what a check found.
UPDATE artifacts a SET retain_until = ru, verified_at = va, fault = f
FROM unnest(%(tenant)b::text[], %(id)b::uuid[], %(retain_until)b::timestamptz[], %(verified_at)b::timestamptz[], %(fault)b::text[])
     u(t, i, ru, va, f)
WHERE a.tenant = t AND a.id = i

-- name: put_artifacts
-- All of a row that an operator restores or accepts, whether it is there or not.
INSERT INTO artifacts ({{Artifact}})
SELECT {{Artifact u values}} FROM unnest({{Artifact arrays}}) u({{Artifact}})
ON CONFLICT (tenant, id) DO UPDATE SET {{Artifact excluded set}}

-- name: put_deleted_artifacts
INSERT INTO deleted_artifacts (tenant, id, memory_node_id, sha256, object_key, version_id, deleted_at)
SELECT t, i, n, s, k, v, %(now)s::timestamptz
FROM unnest(%(tenant)b::text[], %(id)b::uuid[], %(node)b::uuid[], %(sha256)b::text[], %(object_key)b::text[], %(version_id)b::text[])
     u(t, i, n, s, k, v)
ON CONFLICT (tenant, id) DO UPDATE
SET memory_node_id = EXCLUDED.memory_node_id, sha256 = EXCLUDED.sha256, object_key = EXCLUDED.object_key,
    version_id = EXCLUDED.version_id, deleted_at = EXCLUDED.deleted_at

-- name: remove_artifacts
-- Rows that are deleted, that no entry of the log created, or that its last entry removed.
DELETE FROM artifacts a USING unnest(%(tenants)b::text[], %(ids)b::uuid[]) u(t, i) WHERE a.tenant = t AND a.id = i

-- name: end_vectors_of_rows
-- The trigger of memory_nodes lets no row go whose vectors may still be in the index. What such a row has there has no row afterwards,
-- which is what `memoryctl vectors reconcile` looks for.
UPDATE memory_vectors v SET status = 'deleted', lease_id = NULL, lease_until = NULL
FROM unnest(%(tenants)b::text[], %(ids)b::uuid[]) u(t, i) WHERE v.tenant = t AND v.memory_node_id = i

-- name: release_rows
-- Nor one that is held. This hold nobody set: no entry of the log knows the row.
UPDATE memory_nodes n SET legal_hold = false, legal_hold_reason = NULL
FROM unnest(%(tenants)b::text[], %(ids)b::uuid[]) u(t, i) WHERE n.tenant = t AND n.id = i AND n.legal_hold

-- name: remove_nodes
DELETE FROM memory_nodes n USING unnest(%(tenants)b::text[], %(ids)b::uuid[]) u(t, i) WHERE n.tenant = t AND n.id = i

-- name: hold_artifacts
-- A node's hold, set or released, is that of its files. The object store gets it afterwards (artifacts.sql, holds_due).
UPDATE artifacts a SET legal_hold = h, hold_due = true
FROM unnest(%(tenant)b::text[], %(node)b::uuid[], %(held)b::bool[]) u(t, n, h)
WHERE a.tenant = t AND a.memory_node_id = n AND a.legal_hold <> h

-- name: put_idempotency
INSERT INTO idempotency_keys (tenant, actor, key, request_hash, status, answer, created_at)
SELECT t, a, k, h, s, j::jsonb, %(now)s::timestamptz
FROM unnest(%(tenant)b::text[], %(actor)b::uuid[], %(key)b::text[], %(request_hash)b::bytea[], %(status)b::int[],
            %(answer)b::text[]) u(t, a, k, h, s, j)
ON CONFLICT (tenant, actor, key) DO UPDATE
SET request_hash = EXCLUDED.request_hash, status = EXCLUDED.status, answer = EXCLUDED.answer, created_at = EXCLUDED.created_at

-- name: insert_payloads
INSERT INTO audit_payloads (log, seq, tenant, salt, payload)
SELECT %(log)s::int, s, t, sa, p
FROM unnest(%(seq)b::bigint[], %(tenant)b::text[], %(salt)b::bytea[], %(payload)b::bytea[]) u(s, t, sa, p)

-- name: insert_events
INSERT INTO audit_events (log, seq, id, batch_no, tenant, memory_node_id, artifact_id, event_type, manifest_signature_id,
                          created_at, entry, hash, prev_hash, signature)
SELECT %(log)s::int, s, i, %(batch_no)s::bigint, t, n, a, ty, ms, %(now)s::timestamptz, en, h, p, %(signature)s::text
FROM unnest(%(seq)b::bigint[], %(id)b::uuid[], %(tenant)b::text[], %(node)b::uuid[], %(artifact)b::uuid[], %(type)b::text[],
            %(manifest_signature_id)b::text[], %(entry)b::bytea[], %(hash)b::text[], %(prev_hash)b::text[])
     u(s, i, t, n, a, ty, ms, en, h, p)

-- name: insert_seal
INSERT INTO audit_seals (log, batch_no, first_seq, last_seq, head, seal_text, signature, key_id, algorithm,
                         system_identifier, timeline, created_at)
VALUES (%(log)s::int, %(batch_no)s::bigint, %(first_seq)s::bigint, %(last_seq)s::bigint, %(head)s::text, %(seal_text)s::text, %(signature)s::text, %(key_id)s::text,
        %(algorithm)s::text, %(system_identifier)s::text, %(timeline)s::int, %(now)s::timestamptz)

-- name: insert_key
INSERT INTO audit_keys (log, from_seq, key_id, algorithm, public_key, created_at)
VALUES (%(log)s::int, %(from_seq)s::bigint, %(key_id)s::text, %(algorithm)s::text, %(public_key)s::bytea, %(now)s::timestamptz)

-- name: commit
COMMIT

-- name: rollback
ROLLBACK

-- name: find_seal
SELECT seal_text FROM audit_seals WHERE log = %(log)s::int AND batch_no = %(batch_no)s::bigint

-- name: session_limits
-- Every read here is a look-up by key, and so are the checks of foreign keys. Plans are cached, and one made while a table was
-- empty would scan it for hours as it grows: without sequential scans a plan of the first minute is right for ever. Nor is it made
-- again for each batch, which takes longer than the look-up itself.
-- An acknowledged write is on disk, whatever the server's default is.
SELECT set_config('enable_seqscan', 'off', false), set_config('plan_cache_mode', 'force_generic_plan', false),
       set_config('synchronous_commit', 'on', false),
       set_config('idle_in_transaction_session_timeout', %(idle)s::text, false), set_config('lock_timeout', '5s', false),
       set_config('application_name', 'memory-layer committer', false)

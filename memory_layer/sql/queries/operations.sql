-- Operators' runs, the worker's schedule, and what it deletes by itself. Advisory locks here are of the session and have names;
-- the log's and the migrations' are two numbers, which is a space of its own.

-- name: session
-- A verb may take hours on other things: neither its session nor what it holds may end meanwhile, nor outlive a dead host.
SELECT set_config('memory.all_tenants', 'on', false), set_config('TimeZone', 'UTC', false),
       set_config('idle_session_timeout', '0', false), set_config('tcp_keepalives_idle', '10', false),
       set_config('tcp_keepalives_interval', '5', false), set_config('tcp_keepalives_count', '3', false)

-- name: try_lock
SELECT pg_try_advisory_lock(hashtextextended(%(name)s, 0)) AS held

-- name: ledger
-- Whether there are runs to write down here, entries to link them with, and a log to write these to.
SELECT count(*) FILTER (WHERE attname = 'id') = 1 AS runs, count(*) FILTER (WHERE attname = 'audit_id') = 1 AS entries,
       to_regclass('audit_logs') IS NOT NULL AS logs
FROM pg_attribute WHERE attrelid = to_regclass('ops_runs') AND NOT attisdropped

-- name: log_is_open
SELECT EXISTS (SELECT FROM audit_logs) AS open

-- name: start_run
INSERT INTO ops_runs (id, verb, arguments, started_at) VALUES (%(id)s, %(verb)s, %(arguments)s::jsonb, %(started)s)

-- name: finish_run
-- Of a verb that began before there was this table, the whole row.
INSERT INTO ops_runs (id, verb, arguments, started_at, finished_at, verdict, exit_code, report)
VALUES (%(id)s, %(verb)s, %(arguments)s::jsonb, %(started)s, %(finished)s, %(verdict)s, %(exit)s, %(report)s::jsonb)
ON CONFLICT (id) DO UPDATE
SET finished_at = EXCLUDED.finished_at, verdict = EXCLUDED.verdict, exit_code = EXCLUDED.exit_code, report = EXCLUDED.report

-- name: owe_entry
UPDATE ops_runs SET audit_id = NULL WHERE id = %(id)s

-- name: owed_runs
-- A run without an end and without its lock has died.
SELECT r.id, r.verb, r.arguments, r.started_at, r.finished_at, r.verdict, r.exit_code, r.report
FROM ops_runs r CROSS JOIN LATERAL (SELECT hashtextextended('memory-layer run ' || r.id, 0) AS key) k
WHERE r.audit_id IS NULL AND (%(after)s::uuid IS NULL OR r.id > %(after)s::uuid)
  AND (r.finished_at IS NOT NULL OR NOT EXISTS (
      SELECT FROM pg_locks l
      WHERE l.locktype = 'advisory' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND l.classid = ((k.key >> 32) & 4294967295)::oid AND l.objid = (k.key & 4294967295)::oid AND l.objsubid = 1))
ORDER BY r.id LIMIT %(limit)s

-- name: audited_run
-- Not when the run has ended otherwise meanwhile: then another entry is owed.
UPDATE ops_runs SET audit_id = %(audit)s WHERE id = %(id)s AND verdict IS NOT DISTINCT FROM %(verdict)s::text

-- name: list_runs
SELECT r.id, r.verb, r.arguments, r.started_at, r.finished_at, r.verdict, r.exit_code, r.audit_id, e.seq,
       EXISTS (SELECT FROM pg_locks l
               WHERE l.locktype = 'advisory' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
                 AND l.classid = ((k.key >> 32) & 4294967295)::oid AND l.objid = (k.key & 4294967295)::oid
                 AND l.objsubid = 1) AS alive
FROM ops_runs r
CROSS JOIN LATERAL (SELECT hashtextextended('memory-layer run ' || r.id, 0) AS key) k
LEFT JOIN audit_events e ON e.id = r.audit_id
WHERE (%(verb)s::text IS NULL OR r.verb = %(verb)s) AND (%(id)s::uuid IS NULL OR r.id = %(id)s)
ORDER BY r.started_at DESC, r.id DESC LIMIT %(limit)s

-- name: last_lock_probe
-- `provision apply buckets --no-probe` says so in its arguments.
SELECT extract(epoch FROM clock_timestamp() - max(finished_at)) / 86400 AS days
FROM ops_runs
WHERE verb IN ('buckets-weekly', 'provision-probe-buckets', 'provision-apply-buckets') AND verdict = 'ok'
  AND arguments -> 'buckets' = %(buckets)s::jsonb AND coalesce(arguments ->> 'probe', 'true') = 'true'

-- name: run_evidence
SELECT r.report, p.payload
FROM ops_runs r LEFT JOIN audit_events e ON e.id = r.audit_id LEFT JOIN audit_payloads p ON p.log = e.log AND p.seq = e.seq
WHERE r.id = %(id)s

-- name: schedule
SELECT job, leader, last_started, last_finished, last_success, last_error, failures, next_due FROM ops_schedule ORDER BY job

-- name: scheduled_job
SELECT last_started, last_finished, last_success, last_error, failures, next_due FROM ops_schedule WHERE job = %(job)s

-- name: put_scheduled_job
INSERT INTO ops_schedule (job, leader, last_started, last_finished, last_success, last_error, failures, next_due)
VALUES (%(job)s, %(leader)s, %(last_started)s, %(last_finished)s, %(last_success)s, %(last_error)s, %(failures)s, %(next_due)s)
ON CONFLICT (job) DO UPDATE
SET leader = EXCLUDED.leader, last_started = EXCLUDED.last_started, last_finished = EXCLUDED.last_finished,
    last_success = EXCLUDED.last_success, last_error = EXCLUDED.last_error, failures = EXCLUDED.failures,
    next_due = EXCLUDED.next_due

-- name: frozen
SELECT reason, since, until FROM write_freeze WHERE until IS NULL OR until > clock_timestamp()

-- name: expired
-- Each sweep goes once over the nodes whose time is over, whatever becomes of them.
SELECT n.tenant, n.id, n.expires_at FROM memory_nodes n
WHERE n.expires_at <= statement_timestamp() AND n.expires_at >= %(after_time)s AND n.deleted_at IS NULL AND NOT n.legal_hold
  AND (n.expires_at, n.tenant, n.id) > (%(after_time)s, %(after_tenant)s, %(after_id)s)
ORDER BY n.expires_at, n.tenant, n.id LIMIT %(limit)s

-- name: forget_requests
-- Not the key of an entry that was written while its run or segment is still owed it: the next try would write it a second time.
WITH gone AS (
    DELETE FROM idempotency_keys WHERE ctid = ANY (ARRAY (
        SELECT k.ctid FROM idempotency_keys k
        WHERE k.created_at < statement_timestamp() - interval '24 hours'
          AND NOT (k.tenant = '_system' AND (
              EXISTS (SELECT FROM ops_runs r WHERE r.audit_id IS NULL AND starts_with(k.key, 'run ' || r.id || ' '))
              OR EXISTS (SELECT FROM archive_segments s WHERE s.audit_id IS NULL AND k.key = 'archive ' || s.manifest_sha256)))
        LIMIT %(limit)s
    )) AND created_at < clock_timestamp() - interval '24 hours'
    RETURNING 1
)
SELECT count(*) AS forgotten FROM gone

-- name: sample_retained_artifacts
-- Artifacts that are to be kept until a date to come, taken at random, of every tenant.
SELECT object_key, version_id, retain_until
FROM artifacts
WHERE retain_until > now()
ORDER BY random()
LIMIT %(limit)s

-- name: probe_write
-- Rolled back by who runs it. The table is one whose rows come and go anyway, so that vacuum cleans it.
INSERT INTO idempotency_keys (tenant, actor, key, request_hash, status, answer, created_at)
VALUES (%(tenant)s, %(actor)s, %(key)s, sha256(convert_to(%(key)s::text, 'UTF8')), 503, to_jsonb(%(filler)s::text), clock_timestamp())

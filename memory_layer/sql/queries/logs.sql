-- Which logs a database holds, and the opening of one: an operator's act, by the role that owns the tables.

-- name: find
-- Not a copy that was brought back from an archive: to that nobody writes.
SELECT log FROM audit_logs WHERE origin = %(origin)s AND imported_at IS NULL AND log >= 0

-- name: held
-- The logs that are written to here, the oldest first, with the key that is to seal each now.
SELECT l.log, l.origin,
       coalesce((SELECT k.key_id FROM audit_keys k WHERE k.log = l.log ORDER BY k.from_seq DESC LIMIT 1), l.key_id) AS key_id
FROM audit_logs l WHERE l.imported_at IS NULL AND l.log >= 0 ORDER BY l.log

-- name: lock
-- The log lock (commit.sql): of two operators that meet on an empty database one opens the log, and the other sees whose it is.
SELECT pg_advisory_xact_lock(5062476, 0)

-- name: open
INSERT INTO audit_logs (log, origin, incarnation, key_id)
SELECT 0, %(origin)s::text, 1, %(key_id)s::text WHERE NOT EXISTS (SELECT FROM audit_logs WHERE log >= 0)

-- name: open_next
-- A new incarnation of a log, with the number after all others. What the installation's own rows name in the log before is no entry of
-- this one: its first entries adopt them.
INSERT INTO audit_logs (log, origin, incarnation, key_id)
SELECT max(l.log) + 1, %(origin)s::text, %(incarnation)s::int, %(key_id)s::text FROM audit_logs l WHERE l.log >= 0

-- name: unbind_principals
UPDATE principals SET audit_id = NULL WHERE audit_id IS NOT NULL

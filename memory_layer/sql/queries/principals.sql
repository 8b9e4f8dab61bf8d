-- Reads of principals. What the committer asks and writes of them is in commit.sql.

-- name: find
SELECT id, revoked_at FROM principals WHERE tenant = %(tenant)s AND service = %(service)s

-- name: list
SELECT {{Principal}} FROM principals WHERE tenant = coalesce(%(tenant)s::text, tenant) ORDER BY tenant, service

-- name: unbound
-- Whether there are any without an entry in the log.
SELECT EXISTS (SELECT FROM principals WHERE audit_id IS NULL) AS any

-- Reads of principals. What the committer asks and writes of them is in commit.sql.

-- name: find
-- One row; without an id where the log does not know the service yet.
SELECT p.id, p.revoked_at,
    EXISTS (SELECT FROM revoked_tokens r WHERE r.tenant = %(tenant)s AND r.jti = %(jti)s::text) AS token_revoked
FROM (VALUES (1)) one LEFT JOIN principals p ON p.tenant = %(tenant)s AND p.service = %(service)s

-- name: list
SELECT {{Principal}} FROM principals WHERE tenant = coalesce(%(tenant)s::text, tenant) ORDER BY tenant, service

-- name: unbound
-- Whether there are any without an entry in the log.
SELECT EXISTS (SELECT FROM principals WHERE audit_id IS NULL) AS any

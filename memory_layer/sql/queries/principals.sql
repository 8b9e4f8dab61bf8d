-- Reads of principals. What the committer asks and writes of them is in commit.sql.

-- name: find
-- One row; without an id where the log does not know the service yet.
SELECT p.id, p.revoked_at, t.disabled_at,
    EXISTS (SELECT FROM revoked_tokens r WHERE r.tenant = %(tenant)s AND r.jti = %(jti)s::text) AS token_revoked
FROM (VALUES (1)) one LEFT JOIN tenants t ON t.tenant = %(tenant)s
LEFT JOIN principals p ON p.tenant = %(tenant)s AND p.service = %(service)s

-- part: key_columns
k.tenant, k.id, k.principal, p.service, k.key_sha256, k.hint, k.name, k.scopes, k.created_at, k.expires_at, k.revoked_at,
k.replaced_by

-- name: find_key
-- Whose API key this is, and whether it is refused.
SELECT k.tenant, k.id, k.principal, p.service, k.key_sha256, k.scopes, k.expires_at, k.revoked_at IS NOT NULL AS key_revoked, p.revoked_at,
       t.disabled_at
FROM api_keys k JOIN principals p ON p.tenant = k.tenant AND p.id = k.principal JOIN tenants t ON t.tenant = k.tenant
WHERE k.key_sha256 = %(digest)s

-- name: list_keys
SELECT
-- include: key_columns
, k.last_used_at
FROM api_keys k JOIN principals p ON p.tenant = k.tenant AND p.id = k.principal
WHERE k.tenant = coalesce(%(tenant)s::text, k.tenant) AND p.service = coalesce(%(service)s::text, p.service)
  AND (%(before)s::uuid IS NULL OR k.id < %(before)s::uuid)
ORDER BY k.id DESC LIMIT %(limit)s

-- name: tenant_of_key
SELECT tenant FROM api_keys WHERE id = %(id)s

-- name: note_uses
-- Once an hour for each key. Another process that does the same is not waited for.
UPDATE api_keys k SET last_used_at = date_trunc('hour', now())
WHERE (k.tenant, k.id) IN (
    SELECT u.tenant, u.id FROM api_keys u
    WHERE u.id = ANY (%(ids)s::uuid[]) AND (u.last_used_at IS NULL OR u.last_used_at < date_trunc('hour', now()))
    FOR NO KEY UPDATE SKIP LOCKED)

-- name: list
SELECT {{Principal}} FROM principals WHERE tenant = coalesce(%(tenant)s::text, tenant) ORDER BY tenant, service

-- name: list_page
SELECT {{Principal}} FROM principals
WHERE tenant = %(tenant)s AND service COLLATE "C" > %(after)s ORDER BY service COLLATE "C" LIMIT %(limit)s

-- name: principal_of
SELECT {{Principal}} FROM principals WHERE id = %(id)s AND tenant <> '_system'

-- name: list_tenants
-- The installation's own is no tenant.
SELECT tenant, created_at, disabled_at FROM tenants
WHERE tenant <> '_system' AND tenant = coalesce(%(tenant)s::text, tenant) AND tenant COLLATE "C" > %(after)s
ORDER BY tenant COLLATE "C" LIMIT %(limit)s

-- name: unbound
-- Whether there are any without an entry in the log.
SELECT EXISTS (SELECT FROM principals WHERE audit_id IS NULL) AS any

-- What `memoryctl provision` looks at in Postgres. It reads the catalogue alone, so that any role may plan.

-- name: extension
SELECT (SELECT extversion FROM pg_extension WHERE extname = 'vector') AS installed,
       (SELECT default_version FROM pg_available_extensions WHERE name = 'vector') AS available

-- name: lacking_tables
SELECT name FROM unnest(%(tables)s::text[]) AS name WHERE to_regclass(name) IS NULL

-- name: lacking_grants
-- Nothing where there is no such role, or no such table yet.
SELECT wanted.name, wanted.privilege
FROM unnest(%(tables)s::text[], %(privileges)s::text[]) AS wanted(name, privilege)
JOIN pg_roles ON rolname = %(role)s
WHERE to_regclass(wanted.name) IS NOT NULL
  AND NOT has_table_privilege(pg_roles.oid, to_regclass(wanted.name), wanted.privilege)

-- name: role
SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = %(role)s) AS there

-- name: standbys
-- Who may not see the statistics of others sees that they are connected, and no state.
SELECT count(*) AS connected, count(state) AS told, count(*) FILTER (WHERE state = 'streaming') AS streaming
FROM pg_stat_replication

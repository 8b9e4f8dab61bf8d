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

-- name: lacking_space_grants
-- What the role needs for the large namespaces: their schema, the tables that were made in it, the functions that write them. By the
-- catalogue, so that a table which was restored, or made by another owner, is seen whatever the registry says.
SELECT what FROM (
    SELECT 1 AS rank, 'USAGE on schema vector_spaces' AS what FROM pg_roles r
    WHERE r.rolname = %(role)s AND NOT has_schema_privilege(r.oid, to_regnamespace('vector_spaces'), 'USAGE')
    UNION ALL
    SELECT 2, format('SELECT on vector_spaces.%%I', c.relname) FROM pg_roles r, pg_class c
    WHERE r.rolname = %(role)s AND c.relnamespace = to_regnamespace('vector_spaces') AND c.relkind = 'r'
      AND c.relname ~ '^space_[0-9]+$' AND NOT has_table_privilege(r.oid, c.oid, 'SELECT')
    UNION ALL
    SELECT 3, format('EXECUTE on vector_spaces.%%I', p.proname) FROM pg_roles r, pg_proc p
    WHERE r.rolname = %(role)s AND p.pronamespace = to_regnamespace('vector_spaces') AND p.prosecdef
      AND NOT has_function_privilege(r.oid, p.oid, 'EXECUTE')
) lacking ORDER BY rank, what

-- name: role
SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = %(role)s) AS there

-- name: standbys
-- Who may not see the statistics of others sees that they are connected, and no state.
SELECT count(*) AS connected, count(state) AS reported, count(*) FILTER (WHERE state = 'streaming') AS streaming
FROM pg_stat_replication

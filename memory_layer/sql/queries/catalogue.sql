-- The schema as the catalogue shows it, for ops/fingerprint.py. Run with search_path = pg_catalog, so that names say their schema. The same on
-- Postgres 15 to 18. What belongs to extensions is left out.

-- name: relations
-- Every table, view and sequence of the two schemas; partitions are runtime data (`partitions`).
SELECT c.oid, n.nspname, c.relname, c.relkind::text, c.relpersistence::text, c.relrowsecurity, c.relforcerowsecurity,
       coalesce(array_to_string(c.reloptions, ','), ''), c.relowner,
       CASE WHEN c.relkind IN ('v', 'm') THEN pg_get_viewdef(c.oid) END
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname IN ('public', 'vector_spaces') AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND NOT c.relispartition
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY 2, 3

-- name: columns
SELECT a.attrelid, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid), a.attstorage::text,
       nullif(a.attidentity::text || a.attgenerated::text, '')
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE n.nspname IN ('public', 'vector_spaces') AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attname

-- name: constraints
-- Not NOT NULL, which only Postgres 18 keeps here (the columns say it).
SELECT conrelid, conname, pg_get_constraintdef(oid) || CASE WHEN convalidated THEN '' ELSE ' NOT VALID' END
FROM pg_constraint WHERE conrelid <> 0 AND contype <> 'n' ORDER BY conname

-- name: indexes
SELECT i.indrelid, c.relname,
       pg_get_indexdef(i.indexrelid) || CASE WHEN i.indisvalid AND i.indisready THEN '' ELSE ' INVALID' END
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid ORDER BY c.relname

-- name: triggers
-- Of those behind foreign keys the ones that were switched off.
SELECT tgrelid, CASE WHEN tgisinternal THEN 'of a foreign key' ELSE tgname END,
       CASE WHEN tgisinternal THEN '' ELSE pg_get_triggerdef(oid) END,
       CASE tgenabled WHEN 'A' THEN 'always' WHEN 'O' THEN 'origin' WHEN 'R' THEN 'replica' ELSE 'disabled' END
FROM pg_trigger WHERE NOT tgisinternal OR tgenabled <> 'O' ORDER BY tgname

-- name: policies
SELECT polrelid, polname, polcmd::text, polpermissive, (SELECT string_agg(CASE r WHEN 0 THEN 'PUBLIC' ELSE r::regrole::text END, ', ' ORDER BY r)
       FROM unnest(polroles) r), pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid)
FROM pg_policy ORDER BY polname

-- name: rules
-- A view's own is its definition.
SELECT ev_class, rulename, pg_get_ruledef(oid), ev_enabled::text FROM pg_rewrite WHERE rulename <> '_RETURN' ORDER BY rulename

-- name: heirs
-- Tables that are read and written along with another one, and are no partitions of it.
SELECT i.inhparent, c.oid::regclass::text, 'inherits' FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE NOT c.relispartition AND c.relkind IN ('r', 'f', 'p') ORDER BY 2

-- name: partitions
-- What stands on a partition by itself: nothing should.
SELECT i.inhparent, c.oid::regclass::text || ': ' || x.what, 'a partition' FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
CROSS JOIN LATERAL (
    SELECT 'trigger ' || t.tgname AS what FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgparentid = 0
    UNION ALL SELECT 'rule ' || r.rulename FROM pg_rewrite r WHERE r.ev_class = c.oid
    UNION ALL SELECT 'policy ' || p.polname FROM pg_policy p WHERE p.polrelid = c.oid
    UNION ALL SELECT 'kind ' || c.relkind::text WHERE c.relkind NOT IN ('r', 'p')
) x WHERE c.relispartition ORDER BY 2

-- name: grants
-- Everyone's privileges but the owner's own, on tables and on columns. To read is no more than a right to look where row security lets
-- one: of other roles than the product's it is theirs to give.
SELECT oid, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END, string_agg(privilege, ', ' ORDER BY privilege)
FROM (
    SELECT c.oid, a.grantee, a.privilege_type || CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END AS privilege
    FROM pg_class c, aclexplode(c.relacl) a WHERE a.grantee <> c.relowner
    UNION ALL
    SELECT c.oid, a.grantee, format('%s (%s)', a.privilege_type, t.attname)
    FROM pg_class c JOIN pg_attribute t ON t.attrelid = c.oid AND NOT t.attisdropped, aclexplode(t.attacl) a WHERE a.grantee <> c.relowner
) g
WHERE grantee = 0 OR grantee = to_regrole('memory_app') OR privilege !~ '^SELECT( \(.*\))?$'
GROUP BY 1, 2 ORDER BY 2

-- name: functions
-- Owners as in `relations`; rights as in `grants`.
SELECT n.nspname, p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')', pg_get_function_result(p.oid), l.lanname, p.prosecdef,
       p.provolatile::text, coalesce(array_to_string(p.proconfig, ','), ''), p.prosrc, p.proowner,
       coalesce((SELECT string_agg(CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END, ', ' ORDER BY a.grantee)
                 FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a WHERE a.grantee <> p.proowner), '')
FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname IN ('public', 'vector_spaces')
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
ORDER BY 1, 2

-- name: others
-- What else can come between a statement and its table: operators, casts, triggers on commands, rights that new objects would get, rights
-- to create things, schemas and settings that are looked into first, powers of the runtime role.
SELECT 'operator ' || o.oid::regoperator::text FROM pg_operator o JOIN pg_namespace n ON n.oid = o.oprnamespace
WHERE n.nspname IN ('public', 'vector_spaces')
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_operator'::regclass AND d.objid = o.oid AND d.deptype = 'e')
UNION ALL
SELECT format('cast from %s to %s', format_type(c.castsource, NULL), format_type(c.casttarget, NULL)) FROM pg_cast c
WHERE c.oid >= 16384
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_cast'::regclass AND d.objid = c.oid AND d.deptype = 'e')
UNION ALL
SELECT format('event trigger %s on %s', e.evtname, e.evtevent) FROM pg_event_trigger e
WHERE NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_event_trigger'::regclass AND d.objid = e.oid AND d.deptype = 'e')
UNION ALL
SELECT format('default privilege %s for %s', a.privilege_type, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END)
FROM pg_default_acl d, aclexplode(d.defaclacl) a
WHERE d.defaclobjtype IN ('r', 'S') AND a.grantee <> d.defaclrole AND (a.grantee = 0 OR a.grantee = to_regrole('memory_app'))
  AND (d.defaclnamespace = 0 OR d.defaclnamespace IN (to_regnamespace('public'), to_regnamespace('vector_spaces')))
UNION ALL
SELECT format('CREATE on schema %s for %s', n.nspname, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END)
FROM pg_namespace n, aclexplode(n.nspacl) a
WHERE n.nspname IN ('public', 'vector_spaces') AND a.privilege_type = 'CREATE' AND a.grantee <> n.nspowner
  AND (a.grantee = 0 OR a.grantee = to_regrole('memory_app'))
UNION ALL
SELECT 'schema ' || n.nspname || ', which its role looks into before public' FROM pg_namespace n
WHERE n.nspname = 'memory_app' AND EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = n.oid)
UNION ALL
SELECT format('setting %s of %s', s, CASE d.setrole WHEN 0 THEN 'everybody' ELSE d.setrole::regrole::text END)
FROM pg_db_role_setting d, unnest(d.setconfig) s
WHERE d.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
  AND s ~ '^(search_path|session_replication_role|row_security|role|memory\.)'
UNION ALL
SELECT format('%s of memory_app', x.power) FROM pg_roles r
CROSS JOIN LATERAL (
    SELECT 'SUPERUSER' AS power WHERE r.rolsuper UNION ALL SELECT 'BYPASSRLS' WHERE r.rolbypassrls
    UNION ALL SELECT 'CREATEROLE' WHERE r.rolcreaterole UNION ALL SELECT 'REPLICATION' WHERE r.rolreplication
    UNION ALL SELECT 'membership in ' || m.roleid::regrole::text FROM pg_auth_members m WHERE m.member = r.oid
) x
WHERE r.rolname = 'memory_app'
ORDER BY 1

-- name: facts
-- Who owns the tables (those of schema_migrations), whether there is the runtime role, where pgvector lives.
SELECT (SELECT relowner FROM pg_class WHERE oid = to_regclass('public.schema_migrations')),
       to_regrole('memory_app'),
       to_regclass('public.vector_entries') IS NOT NULL OR to_regnamespace('vector_spaces') IS NOT NULL,
       (SELECT n.nspname FROM pg_extension x JOIN pg_namespace n ON n.oid = x.extnamespace WHERE x.extname = 'vector')

-- What the role that the service connects as may do, judged before anything is read by it.

-- name: powers
-- By SET ROLE too: a member counts as what it may become.
SELECT current_user AS name,
       EXISTS (SELECT FROM pg_roles r WHERE r.rolsuper AND pg_has_role(current_user, r.oid, 'MEMBER')) AS superuser,
       EXISTS (SELECT FROM pg_roles r WHERE r.rolbypassrls AND pg_has_role(current_user, r.oid, 'MEMBER')) AS bypasses,
       coalesce(pg_has_role(current_user, (SELECT relowner FROM pg_class WHERE oid = to_regclass('public.audit_events')), 'MEMBER'), false)
           AS owns

-- name: missing
-- A table that is not there yet is the migrations' matter.
SELECT w.name, string_agg(w.wanted, ', ' ORDER BY w.wanted) AS rights
FROM unnest(%(tables)s::text[], %(rights)s::text[]) w (name, wanted)
WHERE to_regclass('public.' || w.name) IS NOT NULL AND NOT has_table_privilege(to_regclass('public.' || w.name), w.wanted)
GROUP BY w.name ORDER BY w.name

-- What the runtime role may do, all of it; the migrations grant nothing. Idempotent: `memoryctl migrate apply` runs it each time, behind
-- everything else, and `psql -f` may at any time. What was granted on these tables otherwise is taken back.
--
-- The role writes entries, payloads and seals and changes none; it opens no log, and neither names nor ends one. Rights that no
-- statement of the product uses are not here: each is one more thing that somebody with the service's password could do.
BEGIN;
SET LOCAL lock_timeout = '5s';

DO $$
DECLARE
    given record;
    held record;
    function regprocedure;
BEGIN
    -- Whoever may create things in this schema may put a better match before a name. Only its owner can take that away.
    IF pg_has_role(current_user, (SELECT nspowner FROM pg_namespace WHERE nspname = 'public'), 'USAGE') THEN
        REVOKE CREATE ON SCHEMA public FROM PUBLIC;
    ELSIF has_schema_privilege('public', 'public', 'CREATE') THEN
        RAISE WARNING 'everybody may create things in schema public: as its owner run REVOKE CREATE ON SCHEMA public FROM PUBLIC';
    END IF;
    FOR function IN
        SELECT DISTINCT t.tgfoid FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
        WHERE NOT t.tgisinternal AND p.pronamespace = 'public'::regnamespace AND pg_has_role(current_user, p.proowner, 'USAGE')
    LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', function);
    END LOOP;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'memory_app') THEN
        RAISE WARNING 'there is no role memory_app on this server, so no rights were granted: create it and run this again';
        RETURN;
    END IF;
    GRANT USAGE ON SCHEMA public TO memory_app;
    FOR given IN
        SELECT * FROM (VALUES
            ('memory_nodes', 'SELECT, INSERT, UPDATE, DELETE'),
            ('memory_vectors', 'SELECT, INSERT, UPDATE, DELETE'),
            ('memory_terms', 'SELECT, INSERT, UPDATE, DELETE'),
            ('namespaces', 'SELECT, INSERT, UPDATE'),
            ('namespace_languages', 'SELECT, INSERT, UPDATE'),
            ('artifacts', 'SELECT, INSERT, UPDATE, DELETE'),
            ('deleted_artifacts', 'SELECT, INSERT, UPDATE'),
            ('artifact_manifests', 'SELECT, INSERT'),
            ('artifact_sweeps', 'SELECT, INSERT, UPDATE, DELETE'),
            ('artifact_progress', 'SELECT, INSERT, UPDATE, DELETE'),
            ('legal_holds', 'SELECT, INSERT, UPDATE'),
            ('tenants', 'SELECT, INSERT, UPDATE (disabled_at)'),
            ('principals', 'SELECT, INSERT, UPDATE (audit_id, revoked_at)'),
            ('revoked_tokens', 'SELECT, INSERT'),
            ('subjects', 'SELECT, INSERT, UPDATE'),
            ('api_keys', 'SELECT, INSERT, UPDATE (expires_at, revoked_at, replaced_by, last_used_at)'),
            ('idempotency_keys', 'SELECT, INSERT, UPDATE, DELETE'),
            ('audit_logs', 'SELECT'),
            ('audit_events', 'SELECT, INSERT'),
            ('audit_payloads', 'SELECT, INSERT'),
            ('audit_seals', 'SELECT, INSERT'),
            ('audit_keys', 'SELECT, INSERT'),
            ('audit_checkpoints', 'SELECT, INSERT, UPDATE (note)'),
            ('audit_tiles', 'SELECT, INSERT'),
            ('audit_trees', 'SELECT, INSERT, UPDATE (size, edge, updated_at)'),
            ('archive_segments', 'SELECT, INSERT, UPDATE (attempt, tool, begun_at, lock_until, finished_at, manifest_key,'
                                 ' manifest_version, manifest_sha256, bytes, tail, audit_id)'),
            ('access_log', 'SELECT, INSERT'),
            ('ops_runs', 'SELECT, INSERT, UPDATE'),
            ('ops_schedule', 'SELECT, INSERT, UPDATE'),
            ('write_freeze', 'SELECT, INSERT, UPDATE, DELETE'),
            ('worker_breakers', 'SELECT, INSERT, UPDATE, DELETE'),
            ('index_rounds', 'SELECT, INSERT, UPDATE, DELETE'),
            ('schema_migrations', 'SELECT')
        ) g(relation, rights)
    LOOP
        CONTINUE WHEN to_regclass('public.' || given.relation) IS NULL;  -- of a migration that is still to come
        -- On all columns too; a right on a column outlives the one on its table otherwise.
        EXECUTE format('REVOKE ALL ON public.%I FROM PUBLIC, memory_app', given.relation);
        FOR held IN
            SELECT a.attname, x.grantee FROM pg_attribute a, aclexplode(a.attacl) x
            WHERE a.attrelid = to_regclass('public.' || given.relation) AND NOT a.attisdropped
              AND x.grantee IN (0, 'memory_app'::regrole)
        LOOP
            EXECUTE format('REVOKE ALL (%I) ON public.%I FROM PUBLIC, memory_app', held.attname, given.relation);
        END LOOP;
        EXECUTE format('GRANT %s ON public.%I TO memory_app', given.rights, given.relation);
    END LOOP;
END $$;
COMMIT;

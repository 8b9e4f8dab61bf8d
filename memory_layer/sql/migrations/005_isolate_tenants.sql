-- Row-level security: a transaction sees the rows of the tenants that it names.
--
-- `memory.tenants` is set per transaction: one tenant for a reader, the batch's tenants for the committer. Unset means no rows.
-- `memory.all_tenants` is for the worker and the verifier, which serve every tenant. Both are walls against mistakes in our own SQL; who
-- may connect is decided by roles, and what they may do by ../grants.sql.
BEGIN;
SET LOCAL lock_timeout = '5s';

DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['memory_nodes', 'memory_vectors', 'namespaces', 'artifacts', 'artifact_sweeps', 'audit_payloads', 'legal_holds',
                             'subjects', 'api_keys', 'idempotency_keys'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', t);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', t);
        EXECUTE format('DROP POLICY IF EXISTS tenant_rows ON %I', t);
        -- The sub-selects are evaluated once per statement, not once per row. Once a transaction has set it, a session shows the setting
        -- as '' and no longer as NULL.
        EXECUTE format($p$CREATE POLICY tenant_rows ON %I
            USING (tenant = ANY ((SELECT nullif(current_setting('memory.tenants', true), '')::text[])::text[])
                   OR (SELECT current_setting('memory.all_tenants', true)) = 'on')
            WITH CHECK (tenant = ANY ((SELECT nullif(current_setting('memory.tenants', true), '')::text[])::text[])
                   OR (SELECT current_setting('memory.all_tenants', true)) = 'on')$p$, t);
    END LOOP;
END $$;

-- Whatever default privileges somebody set up on this server.
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM PUBLIC;

INSERT INTO schema_migrations (version) VALUES ('005_isolate_tenants') ON CONFLICT DO NOTHING;
COMMIT;

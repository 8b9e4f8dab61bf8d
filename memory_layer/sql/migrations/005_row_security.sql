-- Row-level security and grants. Idempotent.
--
-- `memory.tenants` is set per transaction: one tenant for a reader, the batch's tenants for the committer. Unset means no
-- rows. `memory.all_tenants` is for the worker and the verifier, which serve every tenant. Both are walls against mistakes
-- in our own SQL; who may connect is decided by roles.
-- Rights of the runtime role: ../grants.sql. Formerly fb4b403e015c367331b6ac80d60aa068f430edeb3b1b7f7a7bc7874027d37a02, which granted them here.
BEGIN;
SET LOCAL lock_timeout = '5s';

DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['memory_nodes', 'memory_vectors', 'artifacts', 'namespaces', 'audit_payloads', 'legal_holds',
                             'subjects', 'idempotency_keys', 'api_keys'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', t);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', t);
        EXECUTE format('DROP POLICY IF EXISTS tenant_rows ON %I', t);
        -- The sub-selects are evaluated once per statement, not once per row. Once a transaction has set it, a session shows
        -- the setting as '' and no longer as NULL.
        EXECUTE format($p$CREATE POLICY tenant_rows ON %I
            USING (tenant = ANY ((SELECT nullif(current_setting('memory.tenants', true), '')::text[])::text[])
                   OR (SELECT current_setting('memory.all_tenants', true)) = 'on')
            WITH CHECK (tenant = ANY ((SELECT nullif(current_setting('memory.tenants', true), '')::text[])::text[])
                   OR (SELECT current_setting('memory.all_tenants', true)) = 'on')$p$, t);
    END LOOP;
END $$;

-- The runtime role owns nothing and can rewrite no evidence. It is made by whoever provisions the server.
DO $$
BEGIN
    REVOKE ALL ON ALL TABLES IN SCHEMA public FROM PUBLIC;
END $$;

INSERT INTO schema_migrations (version) VALUES ('005_row_security') ON CONFLICT DO NOTHING;
COMMIT;

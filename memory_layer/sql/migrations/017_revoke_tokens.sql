-- Tokens that are refused, each by its jti, until they expire. A row stays: when its token expires is not known here. Each row is said by an
-- entry of the log (ops.token-revoked.succeeded).
BEGIN;
SET LOCAL lock_timeout = '5s';

CREATE TABLE IF NOT EXISTS revoked_tokens (
    tenant     text        NOT NULL,
    jti        text        NOT NULL CHECK (length(jti) <= 128),
    revoked_at timestamptz NOT NULL,
    PRIMARY KEY (tenant, jti)
);
COMMENT ON COLUMN revoked_tokens.jti IS 'the claim of that name (RFC 7519, 4.1.7)';

-- As in 005.
DO $$
BEGIN
    ALTER TABLE revoked_tokens ENABLE ROW LEVEL SECURITY;
    ALTER TABLE revoked_tokens FORCE ROW LEVEL SECURITY;
    DROP POLICY IF EXISTS tenant_rows ON revoked_tokens;
    CREATE POLICY tenant_rows ON revoked_tokens
        USING (tenant = ANY ((SELECT nullif(current_setting('memory.tenants', true), '')::text[])::text[])
               OR (SELECT current_setting('memory.all_tenants', true)) = 'on')
        WITH CHECK (tenant = ANY ((SELECT nullif(current_setting('memory.tenants', true), '')::text[])::text[])
               OR (SELECT current_setting('memory.all_tenants', true)) = 'on');
END $$;

INSERT INTO schema_migrations (version) VALUES ('017_revoke_tokens') ON CONFLICT DO NOTHING;
COMMIT;

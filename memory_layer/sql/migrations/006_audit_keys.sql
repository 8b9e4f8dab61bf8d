-- Which key seals from where on, and whom the installation itself acts as. Idempotent.
-- Rights of the runtime role: ../grants.sql. Formerly 510b812343a932c583aa8554e61c21e7982b8d6284d0e1b634035c9d2f9207c0, which granted them here.
BEGIN;
SET LOCAL lock_timeout = '5s';

-- One row per activation, written in the transaction of its `audit.key.activated` entry. The committer reads the newest under
-- the log lock, so that no server goes on sealing with a key whose time is over. A log without rows is sealed by the key that
-- began it (audit_logs.key_id). Verifiers never read this table: they go by their trust root.
CREATE TABLE IF NOT EXISTS audit_keys (
    log        integer     NOT NULL,
    from_seq   bigint      NOT NULL CHECK (from_seq >= 0),
    key_id     text        NOT NULL CHECK (key_id ~ '^[0-9a-f]{64}$'),
    algorithm  text        NOT NULL,
    public_key bytea       NOT NULL,     -- DER SubjectPublicKeyInfo
    created_at timestamptz NOT NULL,
    PRIMARY KEY (log, from_seq)
);

DO $$
BEGIN
    CREATE OR REPLACE TRIGGER audit_keys_no_change BEFORE UPDATE OR DELETE ON audit_keys
        FOR EACH ROW EXECUTE FUNCTION audit_append_only();
    CREATE OR REPLACE TRIGGER audit_keys_no_truncate BEFORE TRUNCATE ON audit_keys
        FOR EACH STATEMENT EXECUTE FUNCTION audit_append_only();
    ALTER TABLE audit_keys ENABLE ALWAYS TRIGGER audit_keys_no_change;
    ALTER TABLE audit_keys ENABLE ALWAYS TRIGGER audit_keys_no_truncate;
    REVOKE ALL ON audit_keys FROM PUBLIC;
END $$;

-- What the installation does by itself (heartbeats, sweeps, operators' runs) belongs to a tenant of its own, whose name no token
-- can carry: callers' tenants begin with a letter or a digit.
ALTER TABLE tenants DROP CONSTRAINT IF EXISTS tenants_tenant_check;
ALTER TABLE tenants ADD CONSTRAINT tenants_tenant_check CHECK (tenant ~ '^[A-Za-z0-9][A-Za-z0-9._:@-]{0,62}$' OR tenant = '_system');

INSERT INTO schema_migrations (version) VALUES ('006_audit_keys') ON CONFLICT DO NOTHING;
COMMIT;

-- Which bytes deleted artifacts named, and the nodes that they belonged to: what a node hides of bytes stays hidden wherever else they are
-- known, also after the artifact that tied them to the node is gone (docs/decisions/0044). No name and no metadata of a file is kept.
BEGIN;
SET LOCAL lock_timeout = '5s';

CREATE TABLE IF NOT EXISTS deleted_artifacts (
    tenant         text        NOT NULL,
    id             uuid        NOT NULL,
    memory_node_id uuid        NOT NULL,  -- no foreign key: of a node that is purged nobody knows the flags any more, so it hides all
    sha256         text        NOT NULL,
    object_key     text        NOT NULL,
    version_id     text        NOT NULL,
    deleted_at     timestamptz NOT NULL,
    PRIMARY KEY (tenant, id)
);
CREATE INDEX IF NOT EXISTS deleted_artifacts_bytes ON deleted_artifacts (sha256, tenant);
CREATE INDEX IF NOT EXISTS deleted_artifacts_object ON deleted_artifacts (object_key, tenant);

-- As in 005.
DO $$
BEGIN
    ALTER TABLE deleted_artifacts ENABLE ROW LEVEL SECURITY;
    ALTER TABLE deleted_artifacts FORCE ROW LEVEL SECURITY;
    DROP POLICY IF EXISTS tenant_rows ON deleted_artifacts;
    CREATE POLICY tenant_rows ON deleted_artifacts
        USING (tenant = ANY ((SELECT nullif(current_setting('memory.tenants', true), '')::text[])::text[])
               OR (SELECT current_setting('memory.all_tenants', true)) = 'on')
        WITH CHECK (tenant = ANY ((SELECT nullif(current_setting('memory.tenants', true), '')::text[])::text[])
               OR (SELECT current_setting('memory.all_tenants', true)) = 'on');
END $$;

INSERT INTO schema_migrations (version) VALUES ('011_delete_artifacts') ON CONFLICT DO NOTHING;
COMMIT;

-- Artifacts: holds that reach the object store, what the last check of the bytes found, objects that are being swept, the chain of
-- manifests. Idempotent.
-- Rights of the runtime role: ../grants.sql. Formerly 84c2c17d0f258a0b8c571410da1adf6e8833279563455a9cb50de0c6e5de6599, which granted them here.
BEGIN;
SET LOCAL lock_timeout = '5s';

ALTER TABLE artifacts
    -- The object store has to be told of legal_hold. Set with each change, for what a worker told it before it died is unknown.
    ADD COLUMN IF NOT EXISTS hold_due boolean NOT NULL DEFAULT false,
    -- What the last check found wrong; NULL: nothing, or never checked (verified_at says when it was found right).
    ADD COLUMN IF NOT EXISTS fault    text;
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_constraint WHERE conname = 'artifacts_fault' AND conrelid = 'artifacts'::regclass) THEN
        ALTER TABLE artifacts ADD CONSTRAINT artifacts_fault CHECK (fault IN ('corrupt', 'missing', 'shadowed', 'unlocked'));
    END IF;
END $$;
CREATE INDEX IF NOT EXISTS artifacts_hold_due ON artifacts (created_at, id) WHERE hold_due;
-- Without the tenant, with which every key begins: see 016.
CREATE INDEX IF NOT EXISTS artifacts_object ON artifacts (object_key, version_id);

-- What the node's hold covers it covers from now on: files of nodes that are under hold already.
SET LOCAL memory.all_tenants = 'on';
UPDATE artifacts a SET legal_hold = true, hold_due = true FROM memory_nodes n
WHERE n.tenant = a.tenant AND n.id = a.memory_node_id AND n.legal_hold AND NOT a.legal_hold;

-- Objects that no row names and that are about to be deleted, or were. A row that would name one is refused under the log lock: an
-- upload of the same bytes may have found the object just before it went.
CREATE TABLE IF NOT EXISTS artifact_sweeps (
    tenant     text        NOT NULL,
    object_key text        NOT NULL,
    version_id text        NOT NULL,
    marked_at  timestamptz NOT NULL,
    deleted_at timestamptz,
    PRIMARY KEY (object_key, version_id)
);

-- How far a scan or a sweep is, so that the next one goes on there. Of tenants it holds an id and a key at the most, and it is the
-- worker's alone: no row-level security.
CREATE TABLE IF NOT EXISTS artifact_progress (
    job        text        PRIMARY KEY,
    state      jsonb       NOT NULL,
    updated_at timestamptz NOT NULL
);

ALTER TABLE artifact_manifests
    ADD COLUMN IF NOT EXISTS previous text CHECK (previous ~ '^[0-9a-f]{64}$');  -- SHA-256 of the manifest before
CREATE INDEX IF NOT EXISTS artifact_manifests_newest ON artifact_manifests (created_at, id);

DO $$
BEGIN
    ALTER TABLE artifact_sweeps ENABLE ROW LEVEL SECURITY;
    ALTER TABLE artifact_sweeps FORCE ROW LEVEL SECURITY;
    DROP POLICY IF EXISTS tenant_rows ON artifact_sweeps;
    CREATE POLICY tenant_rows ON artifact_sweeps
        USING (tenant = ANY ((SELECT nullif(current_setting('memory.tenants', true), '')::text[])::text[])
               OR (SELECT current_setting('memory.all_tenants', true)) = 'on')
        WITH CHECK (tenant = ANY ((SELECT nullif(current_setting('memory.tenants', true), '')::text[])::text[])
               OR (SELECT current_setting('memory.all_tenants', true)) = 'on');
    REVOKE ALL ON artifact_sweeps, artifact_progress FROM PUBLIC;
END $$;

INSERT INTO schema_migrations (version) VALUES ('017_artifacts') ON CONFLICT DO NOTHING;
COMMIT;

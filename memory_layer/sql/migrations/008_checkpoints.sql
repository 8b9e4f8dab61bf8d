-- What the publisher of checkpoints keeps, and what a listing of a tenant's entries reads. Idempotent.
-- Rights of the runtime role: ../grants.sql. Formerly 152b48bd02730fe70cf3d506b3238668361e91c42adcb5346ac5dbce611be76d, which granted them here.
BEGIN;
SET LOCAL lock_timeout = '5s';

-- Where a log's tree ends: its size, and for each level the hashes of the tile that is not full yet (level 0 first). With it the
-- next run reads new entries only. It is derived: without its row the tree is built again from the entries.
CREATE TABLE IF NOT EXISTS audit_trees (
    log        integer     PRIMARY KEY,
    size       bigint      NOT NULL CHECK (size >= 0),
    edge       bytea[]     NOT NULL,
    key_id     text        NOT NULL CHECK (key_id ~ '^[0-9a-f]{64}$'),     -- whose checkpoints: no second key signs beside it
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- The few rows that wait for their signature, however many checkpoints there are.
CREATE INDEX IF NOT EXISTS audit_checkpoints_unsigned ON audit_checkpoints (log, size) WHERE note IS NULL;

CREATE INDEX IF NOT EXISTS audit_events_tenant ON audit_events (tenant, log, seq);

-- One root for one size, for good: a checkpoint's row changes once, when it is signed.
CREATE OR REPLACE FUNCTION audit_checkpoints_guard() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF OLD.note IS NULL AND (NEW.log, NEW.size, NEW.root, NEW.created_at) = (OLD.log, OLD.size, OLD.root, OLD.created_at) THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'audit_checkpoints takes nothing back: % refused', TG_OP USING ERRCODE = 'insufficient_privilege';
END $$;

DO $$
BEGIN
    CREATE OR REPLACE TRIGGER audit_checkpoints_no_change BEFORE UPDATE ON audit_checkpoints
        FOR EACH ROW EXECUTE FUNCTION audit_checkpoints_guard();
    ALTER TABLE audit_checkpoints ENABLE ALWAYS TRIGGER audit_checkpoints_no_change;
    CREATE OR REPLACE TRIGGER audit_tiles_no_change BEFORE UPDATE ON audit_tiles
        FOR EACH ROW EXECUTE FUNCTION audit_append_only();
    ALTER TABLE audit_tiles ENABLE ALWAYS TRIGGER audit_tiles_no_change;
    REVOKE ALL ON audit_trees FROM PUBLIC;
END $$;

INSERT INTO schema_migrations (version) VALUES ('008_checkpoints') ON CONFLICT DO NOTHING;
COMMIT;

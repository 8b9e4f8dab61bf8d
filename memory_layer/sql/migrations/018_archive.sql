-- What was archived of each log, and logs that were brought back from an archive. Idempotent.
-- Rights of the runtime role: ../grants.sql. Formerly dc7ce4fd34aab040cb521e3b3ff542057cf4e58e543a87bafc0cd0a39540cd33, which granted them here.
BEGIN;
SET LOCAL lock_timeout = '5s';

-- One row per segment, written before its first object: a run that is cut off is finished with the same range, names and lock.
-- Without row-level security: it names no tenant's data.
CREATE TABLE IF NOT EXISTS archive_segments (
    log              integer     NOT NULL,
    number           bigint      NOT NULL CHECK (number >= 0),
    first_seq        bigint      NOT NULL CHECK (first_seq >= 0),
    last_seq         bigint      NOT NULL CHECK (last_seq >= first_seq),
    checkpoint_size  bigint      NOT NULL CHECK (checkpoint_size > last_seq),
    attempt          integer     NOT NULL DEFAULT 0,
    tool             text        NOT NULL,
    begun_at         timestamptz NOT NULL,
    lock_until       timestamptz NOT NULL,
    finished_at      timestamptz,
    manifest_key     text,
    manifest_version text,
    manifest_sha256  text        CHECK (manifest_sha256 ~ '^[0-9a-f]{64}$'),
    bytes            bigint,                       -- of all its objects
    tail             jsonb,                        -- where the next one begins: batch, hash, seal, time and tree
    audit_id         uuid,                         -- its entry in the log; NULL: owed
    PRIMARY KEY (log, number),
    UNIQUE (log, first_seq),
    CHECK ((finished_at IS NULL) = (manifest_sha256 IS NULL))
);

-- Set: a copy that was brought back from an archive, under a number below 0. It is for reading: nothing is ever appended to it.
ALTER TABLE audit_logs ADD COLUMN IF NOT EXISTS imported_at timestamptz;

-- On seals alone, of which each batch has one: an entry without its seal proves nothing.
CREATE OR REPLACE FUNCTION audit_imported_guard() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NEW.log < 0 AND NOT (current_setting('memory.importing', true) IS NOT DISTINCT FROM 'on'
                            AND has_table_privilege('public.audit_logs', 'INSERT')) THEN
        RAISE EXCEPTION 'log % was imported: nothing is appended to it', NEW.log USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;

DO $$
BEGIN
    CREATE OR REPLACE TRIGGER audit_seals_not_imported BEFORE INSERT ON audit_seals
        FOR EACH ROW EXECUTE FUNCTION audit_imported_guard();
    ALTER TABLE audit_seals ENABLE ALWAYS TRIGGER audit_seals_not_imported;
    REVOKE ALL ON archive_segments FROM PUBLIC;
END $$;

INSERT INTO schema_migrations (version) VALUES ('018_archive') ON CONFLICT DO NOTHING;
COMMIT;

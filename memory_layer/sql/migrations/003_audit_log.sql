-- What stands beside the log's entries: origins, payloads, seals, checkpoints, tiles; and its append-only rule. Idempotent.
-- Formerly eb34c3b83f0252341eda8591b3d5ee71fa511794d609065b0ee500f8e04c140a, whose trigger function had no search path of its own.
BEGIN;
SET LOCAL lock_timeout = '5s';

-- One row per incarnation; the newest is written to. The origin is fixed here and never derived again.
CREATE TABLE IF NOT EXISTS audit_logs (
    log         integer PRIMARY KEY,
    origin      text        NOT NULL UNIQUE,
    incarnation integer     NOT NULL,
    key_id      text        NOT NULL,     -- whose seals begin it: no second server starts the same log with a key of its own
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- What an entry commits to. Erasure removes rows here; entries never change.
CREATE TABLE IF NOT EXISTS audit_payloads (
    log     integer NOT NULL,
    seq     bigint  NOT NULL,
    tenant  text,
    salt    bytea   NOT NULL CHECK (octet_length(salt) = 32),
    payload bytea   NOT NULL,
    PRIMARY KEY (log, seq)
);

CREATE TABLE IF NOT EXISTS audit_seals (
    log               integer     NOT NULL,
    batch_no          bigint      NOT NULL CHECK (batch_no >= 0),
    first_seq         bigint      NOT NULL,
    last_seq          bigint      NOT NULL CHECK (last_seq >= first_seq),
    head              text        NOT NULL,
    seal_text         text        NOT NULL,
    signature         text        NOT NULL,
    key_id            text        NOT NULL,
    algorithm         text        NOT NULL,
    system_identifier text        NOT NULL,
    timeline          integer     NOT NULL,
    created_at        timestamptz NOT NULL,
    PRIMARY KEY (log, batch_no)
);

CREATE TABLE IF NOT EXISTS audit_checkpoints (
    log        integer     NOT NULL,
    size       bigint      NOT NULL,
    root       bytea       NOT NULL CHECK (octet_length(root) = 32),
    note       text,                      -- the signed note; NULL until it is signed and published
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (log, size)
);

CREATE TABLE IF NOT EXISTS audit_tiles (
    log   integer NOT NULL,
    level integer NOT NULL,
    tile  bigint  NOT NULL,
    data  bytea   NOT NULL,
    PRIMARY KEY (log, level, tile)
);

CREATE OR REPLACE FUNCTION audit_append_only() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'insufficient_privilege';
END $$;

DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['audit_events', 'audit_seals', 'audit_logs'] LOOP
        EXECUTE format('CREATE OR REPLACE TRIGGER %1$s_no_change BEFORE UPDATE OR DELETE ON %1$I
                        FOR EACH ROW EXECUTE FUNCTION audit_append_only()', t);
        EXECUTE format('CREATE OR REPLACE TRIGGER %1$s_no_truncate BEFORE TRUNCATE ON %1$I
                        FOR EACH STATEMENT EXECUTE FUNCTION audit_append_only()', t);
        -- ALWAYS: session_replication_role must not switch them off.
        EXECUTE format('ALTER TABLE %1$I ENABLE ALWAYS TRIGGER %1$s_no_change', t);
        EXECUTE format('ALTER TABLE %1$I ENABLE ALWAYS TRIGGER %1$s_no_truncate', t);
    END LOOP;
    CREATE OR REPLACE TRIGGER audit_payloads_no_update BEFORE UPDATE ON audit_payloads
        FOR EACH ROW EXECUTE FUNCTION audit_append_only();
    ALTER TABLE audit_payloads ENABLE ALWAYS TRIGGER audit_payloads_no_update;
END $$;

INSERT INTO schema_migrations (version) VALUES ('003_audit_log') ON CONFLICT DO NOTHING;
COMMIT;

-- What makes the log evidence: its names, payloads, seals, keys, checkpoints and archive; and the rules that keep it append-only.
--
-- The runtime role opens no log: a row in audit_logs is an operator's act (../grants.sql withholds the right). Everything else that names
-- a log must name one that is there. Of entries and payloads there are many, and a foreign key would look each of them up under the
-- log lock; there a trigger looks once a statement (docs/decisions/0024 has the figures).
BEGIN;
SET LOCAL lock_timeout = '5s';

-- One row for each incarnation of the log; the newest is written to. Its origin, the log's name, is fixed here and never derived again.
CREATE TABLE IF NOT EXISTS audit_logs (
    log         integer     PRIMARY KEY,                   -- below 0: brought back from an archive, for reading
    origin      text        NOT NULL UNIQUE,
    incarnation integer     NOT NULL CONSTRAINT audit_logs_incarnation CHECK (incarnation >= 1),
    -- The key whose seals begin it: no second server starts the same log with a key of its own.
    key_id      text        NOT NULL CONSTRAINT audit_logs_key CHECK (key_id ~ '^[0-9a-f]{64}$'),
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    imported_at timestamptz,
    CONSTRAINT audit_logs_imported CHECK ((log < 0) = (imported_at IS NOT NULL))
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

-- One row for each batch of entries: its signature, by which everything up to its last entry is fixed.
CREATE TABLE IF NOT EXISTS audit_seals (
    log               integer     NOT NULL CONSTRAINT audit_seals_log REFERENCES audit_logs (log),
    batch_no          bigint      NOT NULL CHECK (batch_no >= 0),
    first_seq         bigint      NOT NULL,
    last_seq          bigint      NOT NULL CHECK (last_seq >= first_seq),
    head              text        NOT NULL CONSTRAINT audit_seals_head CHECK (head ~ '^[0-9a-f]{64}$'),
    seal_text         text        NOT NULL,                -- what is signed
    signature         text        NOT NULL,
    key_id            text        NOT NULL CONSTRAINT audit_seals_key CHECK (key_id ~ '^[0-9a-f]{64}$'),
    algorithm         text        NOT NULL,
    system_identifier text        NOT NULL,                -- of the Postgres cluster, with the timeline: a restored copy shows itself
    timeline          integer     NOT NULL,
    created_at        timestamptz NOT NULL,
    PRIMARY KEY (log, batch_no),
    CONSTRAINT audit_seals_range CHECK (first_seq >= 0 AND (first_seq = 0) = (batch_no = 0))
);

-- Which key seals from which entry on: one row for each activation, written in the transaction of its `audit.key.activated` entry. The
-- committer reads the newest under the log lock, so that no server goes on sealing with a key whose time is over. A log without rows is
-- sealed by the key that began it (audit_logs.key_id). Verifiers never read this table: they go by their trust root.
CREATE TABLE IF NOT EXISTS audit_keys (
    log        integer     NOT NULL CONSTRAINT audit_keys_log REFERENCES audit_logs (log),
    from_seq   bigint      NOT NULL CHECK (from_seq >= 0),
    key_id     text        NOT NULL CHECK (key_id ~ '^[0-9a-f]{64}$'),
    algorithm  text        NOT NULL,
    public_key bytea       NOT NULL,                       -- DER SubjectPublicKeyInfo
    created_at timestamptz NOT NULL,
    PRIMARY KEY (log, from_seq)
);

-- Roots of the log's Merkle tree that were, or are about to be, signed and published. One root for one size, for good: a row changes
-- once, when it is signed.
CREATE TABLE IF NOT EXISTS audit_checkpoints (
    log        integer     NOT NULL CONSTRAINT audit_checkpoints_log REFERENCES audit_logs (log),
    size       bigint      NOT NULL CONSTRAINT audit_checkpoints_size CHECK (size > 0),
    root       bytea       NOT NULL CHECK (octet_length(root) = 32),
    note       text,                                       -- the signed note; NULL until it is signed
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (log, size)
);
-- The few rows that wait for their signature, however many checkpoints there are.
CREATE INDEX IF NOT EXISTS audit_checkpoints_unsigned ON audit_checkpoints (log, size) WHERE note IS NULL;

-- Full tiles of the tree: 256 hashes of 32 bytes each.
CREATE TABLE IF NOT EXISTS audit_tiles (
    log   integer NOT NULL CONSTRAINT audit_tiles_log REFERENCES audit_logs (log),
    level integer NOT NULL,
    tile  bigint  NOT NULL,
    data  bytea   NOT NULL CONSTRAINT audit_tiles_full CHECK (octet_length(data) = 8192),
    PRIMARY KEY (log, level, tile),
    CONSTRAINT audit_tiles_place CHECK (level >= 0 AND level <= 7 AND tile >= 0)  -- not BETWEEN: pg_dump would write it otherwise
);

-- Where the tree ends: its size, and for each level the hashes of the tile that is not full yet (level 0 first), so that the next run
-- reads new entries only. It is derived: without its row the tree is built again from the entries.
CREATE TABLE IF NOT EXISTS audit_trees (
    log        integer     PRIMARY KEY CONSTRAINT audit_trees_log REFERENCES audit_logs (log),
    size       bigint      NOT NULL CHECK (size >= 0),
    edge       bytea[]     NOT NULL,
    key_id     text        NOT NULL CHECK (key_id ~ '^[0-9a-f]{64}$'),  -- of its checkpoints: no second key signs them too
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- What was archived: one row for each segment, written before its first object, so that a run that is cut off is finished with the same
-- range, names and lock. It names no tenant's data, so no row-level security.
CREATE TABLE IF NOT EXISTS archive_segments (
    log              integer     NOT NULL CONSTRAINT archive_segments_log REFERENCES audit_logs (log),
    number           bigint      NOT NULL CHECK (number >= 0),
    first_seq        bigint      NOT NULL CHECK (first_seq >= 0),
    last_seq         bigint      NOT NULL CHECK (last_seq >= first_seq),
    checkpoint_size  bigint      NOT NULL CHECK (checkpoint_size > last_seq),
    attempt          integer     NOT NULL DEFAULT 0,
    tool             text        NOT NULL,                 -- what wrote it, with its version
    begun_at         timestamptz NOT NULL,
    lock_until       timestamptz NOT NULL,
    finished_at      timestamptz,
    manifest_key     text,
    manifest_version text,
    manifest_sha256  text        CHECK (manifest_sha256 ~ '^[0-9a-f]{64}$'),
    bytes            bigint,                               -- of all its objects
    tail             jsonb,                                -- where the next one begins: batch, hash, seal, time and tree
    audit_id         uuid,                                 -- its entry in the log; NULL: owed
    PRIMARY KEY (log, number),
    UNIQUE (log, first_seq),
    CHECK ((finished_at IS NULL) = (manifest_sha256 IS NULL))
);

CREATE OR REPLACE FUNCTION audit_append_only() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'insufficient_privilege';
END $$;

CREATE OR REPLACE FUNCTION audit_checkpoints_guard() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF OLD.note IS NULL AND (NEW.log, NEW.size, NEW.root, NEW.created_at) = (OLD.log, OLD.size, OLD.root, OLD.created_at) THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'audit_checkpoints takes nothing back: % refused', TG_OP USING ERRCODE = 'insufficient_privilege';
END $$;

-- A log that was brought back from an archive is appended to by its import alone: by a role that may open logs, in a transaction that says
-- that it imports. Checked at seals, of which each batch has one: an entry without its seal proves nothing.
CREATE OR REPLACE FUNCTION audit_imported_guard() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NEW.log < 0 AND NOT (current_setting('memory.importing', true) IS NOT DISTINCT FROM 'on'
                            AND has_table_privilege('public.audit_logs', 'INSERT')) THEN
        RAISE EXCEPTION 'log % was imported: nothing is appended to it', NEW.log USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;

-- Entries and payloads name a log that is there.
CREATE OR REPLACE FUNCTION audit_log_known() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    importing boolean := current_setting('memory.importing', true) IS NOT DISTINCT FROM 'on'
                         AND has_table_privilege('public.audit_logs', 'INSERT');
    other integer;
BEGIN
    SELECT n.log INTO other FROM new_rows n
    WHERE NOT EXISTS (SELECT FROM public.audit_logs l WHERE l.log = n.log AND (l.imported_at IS NULL OR importing)) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'there is no log % to append to', other USING ERRCODE = 'foreign_key_violation',
              HINT = 'A log is opened by an operator: memoryctl migrate apply.';
    END IF;
    RETURN NULL;
END $$;

-- A key takes over with the entry that activates it, and with nothing else.
CREATE OR REPLACE FUNCTION audit_keys_guard() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM public.audit_events e
                   WHERE e.log = NEW.log AND e.seq = NEW.from_seq - 1 AND e.event_type = 'audit.key.activated') THEN
        RAISE EXCEPTION 'no entry of log % activates a key before entry %', NEW.log, NEW.from_seq
            USING ERRCODE = 'foreign_key_violation';
    END IF;
    RETURN NEW;
END $$;

-- Every trigger fires ALWAYS: session_replication_role must not switch it off.
DO $$
DECLARE t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['audit_events', 'audit_seals', 'audit_logs', 'audit_keys'] LOOP
        EXECUTE format('CREATE OR REPLACE TRIGGER %1$s_no_change BEFORE UPDATE OR DELETE ON %1$I
                        FOR EACH ROW EXECUTE FUNCTION audit_append_only()', t);
        EXECUTE format('CREATE OR REPLACE TRIGGER %1$s_no_truncate BEFORE TRUNCATE ON %1$I
                        FOR EACH STATEMENT EXECUTE FUNCTION audit_append_only()', t);
        EXECUTE format('ALTER TABLE %1$I ENABLE ALWAYS TRIGGER %1$s_no_change', t);
        EXECUTE format('ALTER TABLE %1$I ENABLE ALWAYS TRIGGER %1$s_no_truncate', t);
    END LOOP;
    FOREACH t IN ARRAY ARRAY['audit_events', 'audit_payloads'] LOOP
        EXECUTE format('CREATE OR REPLACE TRIGGER %1$s_log AFTER INSERT ON %1$I REFERENCING NEW TABLE AS new_rows
                        FOR EACH STATEMENT EXECUTE FUNCTION audit_log_known()', t);
        EXECUTE format('ALTER TABLE %1$I ENABLE ALWAYS TRIGGER %1$s_log', t);
    END LOOP;
END $$;
CREATE OR REPLACE TRIGGER audit_payloads_no_update BEFORE UPDATE ON audit_payloads
    FOR EACH ROW EXECUTE FUNCTION audit_append_only();
ALTER TABLE audit_payloads ENABLE ALWAYS TRIGGER audit_payloads_no_update;
CREATE OR REPLACE TRIGGER audit_seals_not_imported BEFORE INSERT ON audit_seals
    FOR EACH ROW EXECUTE FUNCTION audit_imported_guard();
ALTER TABLE audit_seals ENABLE ALWAYS TRIGGER audit_seals_not_imported;
CREATE OR REPLACE TRIGGER audit_keys_activated BEFORE INSERT ON audit_keys
    FOR EACH ROW EXECUTE FUNCTION audit_keys_guard();
ALTER TABLE audit_keys ENABLE ALWAYS TRIGGER audit_keys_activated;
CREATE OR REPLACE TRIGGER audit_checkpoints_no_change BEFORE UPDATE ON audit_checkpoints
    FOR EACH ROW EXECUTE FUNCTION audit_checkpoints_guard();
ALTER TABLE audit_checkpoints ENABLE ALWAYS TRIGGER audit_checkpoints_no_change;
CREATE OR REPLACE TRIGGER audit_tiles_no_change BEFORE UPDATE ON audit_tiles
    FOR EACH ROW EXECUTE FUNCTION audit_append_only();
ALTER TABLE audit_tiles ENABLE ALWAYS TRIGGER audit_tiles_no_change;

INSERT INTO schema_migrations (version) VALUES ('003_seal_audit_log') ON CONFLICT DO NOTHING;
COMMIT;

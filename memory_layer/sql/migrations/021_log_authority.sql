-- Which log a row may belong to, and who may open one. Idempotent.
--
-- The runtime role opens no log: a row in audit_logs is an operator's act (grants.sql takes the right away). Everything else that names
-- a log must name one that is there. Rows of entries and payloads are many, and a foreign key would look each of them up under the
-- log lock; there a trigger looks once a statement (docs/decisions/0024 has the figures).
BEGIN;
SET LOCAL lock_timeout = '5s';

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

-- Names with their schema: a session's temporary table of the same name must not stand in for the one that is asked.
CREATE OR REPLACE FUNCTION memory_nodes_guard() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF OLD.legal_hold THEN
        RAISE EXCEPTION 'node % is under legal hold', OLD.id USING ERRCODE = 'restrict_violation';
    END IF;
    IF EXISTS (SELECT FROM public.memory_vectors v
               WHERE v.tenant = OLD.tenant AND v.memory_node_id = OLD.id AND v.status <> 'deleted') THEN
        RAISE EXCEPTION 'node % still has vectors in the index', OLD.id
            USING ERRCODE = 'restrict_violation', HINT = 'Soft-delete it and let the worker remove its vectors first.';
    END IF;
    UPDATE public.artifacts SET memory_node_id = NULL WHERE tenant = OLD.tenant AND memory_node_id = OLD.id;
    RETURN OLD;
END $$;

-- A log that was brought back from an archive grows by nobody but whoever may open logs, and only while he says that he imports.
CREATE OR REPLACE FUNCTION audit_imported_guard() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NEW.log < 0 AND NOT (current_setting('memory.importing', true) IS NOT DISTINCT FROM 'on'
                            AND has_table_privilege('public.audit_logs', 'INSERT')) THEN
        RAISE EXCEPTION 'log % was imported: nothing is appended to it', NEW.log USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;

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

DO $$
DECLARE
    t text;
    wanted record;
BEGIN
    FOREACH t IN ARRAY ARRAY['audit_events', 'audit_payloads'] LOOP
        IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = t::regclass AND tgname = t || '_log') THEN
            EXECUTE format('CREATE TRIGGER %1$s_log AFTER INSERT ON %1$I REFERENCING NEW TABLE AS new_rows
                            FOR EACH STATEMENT EXECUTE FUNCTION audit_log_known()', t);
        END IF;
        EXECUTE format('ALTER TABLE %1$I ENABLE ALWAYS TRIGGER %1$s_log', t);
    END LOOP;
    CREATE OR REPLACE TRIGGER audit_keys_activated BEFORE INSERT ON audit_keys
        FOR EACH ROW EXECUTE FUNCTION audit_keys_guard();
    ALTER TABLE audit_keys ENABLE ALWAYS TRIGGER audit_keys_activated;
    ALTER TABLE memory_nodes ENABLE ALWAYS TRIGGER memory_nodes_guard;

    -- Where rows are there that do not fit, the constraint holds for new ones, `memoryctl migrate drift` names it (NOT VALID), and
    -- `memoryctl audit verify` names the rows. An upgrade does not stop for it.
    FOR wanted IN
        SELECT * FROM (VALUES
            ('audit_seals', 'audit_seals_log', 'FOREIGN KEY (log) REFERENCES audit_logs (log)'),
            ('audit_keys', 'audit_keys_log', 'FOREIGN KEY (log) REFERENCES audit_logs (log)'),
            ('audit_checkpoints', 'audit_checkpoints_log', 'FOREIGN KEY (log) REFERENCES audit_logs (log)'),
            ('audit_trees', 'audit_trees_log', 'FOREIGN KEY (log) REFERENCES audit_logs (log)'),
            ('audit_tiles', 'audit_tiles_log', 'FOREIGN KEY (log) REFERENCES audit_logs (log)'),
            ('archive_segments', 'archive_segments_log', 'FOREIGN KEY (log) REFERENCES audit_logs (log)'),
            ('audit_logs', 'audit_logs_imported', 'CHECK ((log < 0) = (imported_at IS NOT NULL))'),
            ('audit_logs', 'audit_logs_incarnation', 'CHECK (incarnation >= 1)'),
            ('audit_logs', 'audit_logs_key', $c$CHECK (key_id ~ '^[0-9a-f]{64}$')$c$),
            ('audit_seals', 'audit_seals_range', 'CHECK (first_seq >= 0 AND (first_seq = 0) = (batch_no = 0))'),
            ('audit_seals', 'audit_seals_head', $c$CHECK (head ~ '^[0-9a-f]{64}$')$c$),
            ('audit_seals', 'audit_seals_key', $c$CHECK (key_id ~ '^[0-9a-f]{64}$')$c$),
            ('audit_checkpoints', 'audit_checkpoints_size', 'CHECK (size > 0)'),
            ('audit_tiles', 'audit_tiles_place', 'CHECK (level BETWEEN 0 AND 7 AND tile >= 0)'),
            ('audit_tiles', 'audit_tiles_full', 'CHECK (octet_length(data) = 8192)')
        ) w(relation, name, definition)
    LOOP
        IF NOT EXISTS (SELECT FROM pg_constraint WHERE conrelid = wanted.relation::regclass AND conname = wanted.name) THEN
            EXECUTE format('ALTER TABLE %I ADD CONSTRAINT %I %s NOT VALID', wanted.relation, wanted.name, wanted.definition);
            BEGIN
                EXECUTE format('ALTER TABLE %I VALIDATE CONSTRAINT %I', wanted.relation, wanted.name);
            EXCEPTION WHEN foreign_key_violation OR check_violation THEN
                RAISE WARNING 'rows of % do not fit %: run memoryctl audit verify', wanted.relation, wanted.name;
            END;
        END IF;
    END LOOP;
END $$;

INSERT INTO schema_migrations (version) VALUES ('021_log_authority') ON CONFLICT DO NOTHING;
COMMIT;

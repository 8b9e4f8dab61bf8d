-- A namespace's index has generations: the one that answers, and at most one beside it, which is written with every change too:
-- it is being built with another model, or was cut over from and is kept for the way back. Idempotent.
--
-- Columns and not a table: the committer reads the row for every write, and a second look-up would be paid by all namespaces.
BEGIN;
SET LOCAL lock_timeout = '5s';

ALTER TABLE namespaces
    ADD COLUMN IF NOT EXISTS generations      integer NOT NULL DEFAULT 1,  -- how many there have been: no name is used twice
    ADD COLUMN IF NOT EXISTS beside           text,                        -- its index namespace
    ADD COLUMN IF NOT EXISTS beside_model     text,
    ADD COLUMN IF NOT EXISTS beside_dimension integer,
    ADD COLUMN IF NOT EXISTS beside_state     text;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_constraint WHERE conname = 'namespaces_beside' AND conrelid = 'namespaces'::regclass) THEN
        ALTER TABLE namespaces ADD CONSTRAINT namespaces_generations CHECK (generations >= 1);
        -- building: never answered, or gave way again. kept: answered before. retired: written no more, about to be dropped.
        ALTER TABLE namespaces ADD CONSTRAINT namespaces_beside_state CHECK (beside_state IN ('building', 'kept', 'retired'));
        ALTER TABLE namespaces ADD CONSTRAINT namespaces_beside_dimension CHECK (beside_dimension BETWEEN 1 AND 20000);
        ALTER TABLE namespaces ADD CONSTRAINT namespaces_beside CHECK (
            num_nonnulls(beside, beside_model, beside_dimension, beside_state) IN (0, 4) AND beside <> index_namespace);
    END IF;
END $$;

-- Words do not depend on the model: memory_terms names the namespace itself and no generation of it. Until now the two were the same.
COMMENT ON COLUMN memory_terms.namespace IS 'the name of the namespace, whichever generation of its index answers';

INSERT INTO schema_migrations (version) VALUES ('011_generations') ON CONFLICT DO NOTHING;
COMMIT;

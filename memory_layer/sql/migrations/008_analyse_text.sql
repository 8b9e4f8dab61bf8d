-- Words are made by the service's own analyser (memory_layer/analyser), the same whatever the database's locale is. Its version stands
-- beside each text's words; those of an older version are written again in the background (docs/decisions/0040).
BEGIN;
SET LOCAL lock_timeout = '5s';

ALTER TABLE memory_terms
    ADD COLUMN IF NOT EXISTS language text NOT NULL DEFAULT 'en',
    ADD COLUMN IF NOT EXISTS analyser smallint NOT NULL DEFAULT 0;
COMMENT ON COLUMN memory_terms.language IS 'of the text: its stems are of this language';
COMMENT ON COLUMN memory_terms.analyser IS 'version of the analyser that made the words; 0 is Postgres''s own english configuration';

ALTER TABLE memory_nodes ADD COLUMN IF NOT EXISTS language text CHECK (language ~ '^[a-z]{2,3}$');
COMMENT ON COLUMN memory_nodes.language IS 'ISO 639 code of the text, as its writer says; null: the text tells';

-- A search asks which languages a namespace holds, and how many texts.
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_index i, pg_catalog.pg_class c WHERE c.oid = i.indexrelid
                   AND c.relname = 'memory_terms_namespace' AND i.indnatts = 3) THEN
        DROP INDEX IF EXISTS memory_terms_namespace;
    END IF;
END $$;
CREATE INDEX IF NOT EXISTS memory_terms_namespace ON memory_terms (tenant, namespace, language);
CREATE INDEX IF NOT EXISTS memory_terms_older ON memory_terms (tenant, node_id) WHERE analyser < 1;

INSERT INTO schema_migrations (version) VALUES ('008_analyse_text') ON CONFLICT DO NOTHING;
COMMIT;

-- The keyword ranking asks how many texts a namespace holds: counted in an index, so that no counter has to be kept right under
-- updates, deletes and repairs, and no two workers wait for each other at one row. Idempotent.
BEGIN;
SET LOCAL lock_timeout = '5s';

CREATE INDEX IF NOT EXISTS memory_terms_namespace ON memory_terms (tenant, namespace);

INSERT INTO schema_migrations (version) VALUES ('010_keyword_statistics') ON CONFLICT DO NOTHING;
COMMIT;

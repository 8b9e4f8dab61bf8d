-- The worker takes rows in turn from the tenants whose rows wait, and single writes before those of bulk requests (docs/decisions/0046).
BEGIN;
SET LOCAL lock_timeout = '5s';

ALTER TABLE memory_vectors ADD COLUMN IF NOT EXISTS bulk boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN memory_vectors.bulk IS 'written with many others at once: single writes are indexed first';
CREATE INDEX IF NOT EXISTS memory_vectors_turns ON memory_vectors (bulk, tenant, next_attempt_at, id)
    WHERE status IN ('pending', 'deleting') AND lease_id IS NULL;

INSERT INTO schema_migrations (version) VALUES ('012_share_the_queue') ON CONFLICT DO NOTHING;
COMMIT;

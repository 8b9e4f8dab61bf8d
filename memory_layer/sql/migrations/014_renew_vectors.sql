-- Vectors of the local model that do not say how much of their text they stand for: an earlier version made them of the beginning alone. The
-- worker makes them anew (docs/decisions/0052); then this index is empty.
BEGIN;
SET LOCAL lock_timeout = '5s';

CREATE INDEX IF NOT EXISTS memory_vectors_earlier ON memory_vectors (tenant, id)
    WHERE status = 'succeeded' AND embedding_model = 'all-MiniLM-L6-v2' AND metadata ->> 'source' = 'embedder' AND NOT metadata ? 'read';

INSERT INTO schema_migrations (version) VALUES ('014_renew_vectors') ON CONFLICT DO NOTHING;
COMMIT;

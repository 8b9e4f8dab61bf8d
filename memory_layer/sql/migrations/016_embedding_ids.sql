-- A node is looked up by (tenant, id) with the primary key and nothing else. Idempotent.
--
-- The index on (tenant, embedding_id) was the trap that 009 took away once: to a planner whose statistics are those of an empty table,
-- any index that has the tenant in it is as good as the primary key, and then each look-up reads all of a tenant's entries. A query
-- that does not ask for an embedding id cannot use this one.
BEGIN;
SET LOCAL lock_timeout = '5s';

CREATE UNIQUE INDEX IF NOT EXISTS memory_nodes_by_embedding_id ON memory_nodes (tenant, embedding_id)
    WHERE deleted_at IS NULL AND embedding_id IS NOT NULL;
DROP INDEX IF EXISTS memory_nodes_embedding_id;

INSERT INTO schema_migrations (version) VALUES ('016_embedding_ids') ON CONFLICT DO NOTHING;
COMMIT;

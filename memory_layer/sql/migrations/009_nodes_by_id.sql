-- Nodes are listed by their primary key: ids are UUIDv7, so it is in the order of creation. Idempotent.
--
-- The index on (tenant, created_at, id) was one more to write for each node, and a trap: a planner without statistics took it for
-- look-ups by (tenant, id), foreign keys' among them, and read all of a tenant's entries for each row, under the log lock.
BEGIN;
SET LOCAL lock_timeout = '5s';

DROP INDEX IF EXISTS memory_nodes_newest;

INSERT INTO schema_migrations (version) VALUES ('009_nodes_by_id') ON CONFLICT DO NOTHING;
COMMIT;

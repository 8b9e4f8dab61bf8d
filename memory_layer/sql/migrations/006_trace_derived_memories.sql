-- From which nodes a node was made, as its writer says: a summary of a conversation names the turns, a merged fact those that it replaces.
-- The ids are kept as they were given. A node that is named may be deleted later; the trace stays.
BEGIN;
SET LOCAL lock_timeout = '5s';

ALTER TABLE memory_nodes ADD COLUMN IF NOT EXISTS derived_from text[];
COMMENT ON COLUMN memory_nodes.derived_from IS 'ids of the nodes that this one was made from; null: nothing is said of it';

INSERT INTO schema_migrations (version) VALUES ('006_trace_derived_memories') ON CONFLICT DO NOTHING;
COMMIT;

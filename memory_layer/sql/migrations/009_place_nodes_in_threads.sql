-- A node may be a part of something that is read in order: a turn of a conversation, a passage of a document. A search counts what stands
-- before and after it (docs/decisions/0042).
BEGIN;
SET LOCAL lock_timeout = '5s';

ALTER TABLE memory_nodes
    ADD COLUMN IF NOT EXISTS thread text,
    ADD COLUMN IF NOT EXISTS position bigint;
COMMENT ON COLUMN memory_nodes.thread IS 'what the node is a part of, as its writer says; null: it stands alone';
COMMENT ON COLUMN memory_nodes.position IS 'its place in the thread; null: its time is, behind those that have one';

DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_constraint
                   WHERE conrelid = 'memory_nodes'::regclass AND conname = 'memory_nodes_position_in_thread') THEN
        ALTER TABLE memory_nodes ADD CONSTRAINT memory_nodes_position_in_thread CHECK (position IS NULL OR thread IS NOT NULL);
    END IF;
END $$;

-- A thread in its order: by position, nodes without one behind the others, by their time. No function stands in it: row-level security lets an
-- index answer only what cannot leak (queries/candidates.sql says the same expressions). A query that asks for no thread cannot use the
-- index (see memory_nodes_by_embedding_id in 001).
CREATE INDEX IF NOT EXISTS memory_nodes_by_thread ON memory_nodes (
    tenant, namespace, thread, coalesce(position, 9223372036854775807), coalesce(occurred_at, created_at), id
) WHERE thread IS NOT NULL AND deleted_at IS NULL;

INSERT INTO schema_migrations (version) VALUES ('009_place_nodes_in_threads') ON CONFLICT DO NOTHING;
COMMIT;

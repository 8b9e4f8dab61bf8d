-- The pgvector index: its own narrow table, so that leases, holds and timestamps never touch an indexed row. Belongs to the
-- pgvector adapter alone, because with another provider the server may have no such extension. Idempotent.
BEGIN;
SET LOCAL lock_timeout = '5s';
CREATE EXTENSION IF NOT EXISTS vector;

CREATE TABLE IF NOT EXISTS vector_entries (
    tenant     text    NOT NULL,
    namespace  text    NOT NULL,
    node_id    uuid    NOT NULL,
    version    integer NOT NULL,
    embedding  vector,               -- NULL: removed at this version, kept so that a late writer cannot bring it back
    fields     jsonb   NOT NULL,     -- what filters may be pushed down on; the answer is decided on memory_nodes
    removed_at timestamptz,
    PRIMARY KEY (tenant, namespace, node_id),
    CHECK ((embedding IS NULL) = (removed_at IS NOT NULL))
) WITH (toast_tuple_target = 8160);
-- Inline up to about 2,000 dimensions: an exact scan that follows a TOAST pointer per row costs several times more.
ALTER TABLE vector_entries ALTER COLUMN embedding SET STORAGE EXTERNAL;
CREATE INDEX IF NOT EXISTS vector_entries_removed ON vector_entries (removed_at) WHERE removed_at IS NOT NULL;

DO $$
BEGIN
    REVOKE ALL ON vector_entries FROM PUBLIC;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'memory_app') THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON vector_entries TO memory_app;
    END IF;
END $$;
COMMIT;

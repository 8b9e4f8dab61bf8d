-- The pgvector index. It belongs to the pgvector adapter alone, because with another provider the server may have no such extension: these
-- two files are applied where the adapter is used, in its database, at each start. The functions and the rights follow in 002.
BEGIN;
SET LOCAL lock_timeout = '5s';
CREATE EXTENSION IF NOT EXISTS vector;

-- One row for each vector of the small namespaces. A narrow table of its own, so that leases, holds and timestamps never touch an indexed
-- row.
CREATE TABLE IF NOT EXISTS vector_entries (
    tenant     text    NOT NULL,
    namespace  text    NOT NULL,
    node_id    uuid    NOT NULL,
    version    integer NOT NULL,            -- of the node
    embedding  vector,                      -- NULL: removed at this version, kept so that a late writer cannot bring it back
    fields     jsonb   NOT NULL,            -- what filters may be pushed down on; the answer is decided on memory_nodes
    removed_at timestamptz,
    PRIMARY KEY (tenant, namespace, node_id),
    CHECK ((embedding IS NULL) = (removed_at IS NOT NULL))
) WITH (toast_tuple_target = 8160);
-- Inline up to about 2,000 dimensions: an exact scan that follows a TOAST pointer per row costs several times more.
ALTER TABLE vector_entries ALTER COLUMN embedding SET STORAGE EXTERNAL;
CREATE INDEX IF NOT EXISTS vector_entries_removed ON vector_entries (removed_at) WHERE removed_at IS NOT NULL;

-- Large namespaces have a table and an approximate index of their own in this schema, space_<number>, made while the service runs.
CREATE SCHEMA IF NOT EXISTS vector_spaces;
CREATE SEQUENCE IF NOT EXISTS vector_spaces.numbers;  -- a number is never used again, nor is a table's name

-- One row for each namespace that has a table of its own or may come to need one.
CREATE TABLE IF NOT EXISTS vector_spaces.registry (
    tenant     text    NOT NULL,
    namespace  text    NOT NULL,
    number     bigint  UNIQUE,              -- rows are in space_<number>; NULL: in vector_entries
    dimension  integer,
    method     text    CHECK (method IN ('bit', 'halfvec', 'none')),  -- what is indexed; none: searched exactly
    rerank     integer NOT NULL DEFAULT 100,  -- candidates that are compared exactly, for up to 25 hits
    written    bigint  NOT NULL DEFAULT 0,  -- entries in vector_entries, at most and roughly
    rows       bigint  NOT NULL DEFAULT 0,  -- in the table of its own, roughly
    recall     real,                        -- recall@10 when it was last measured
    checked    bigint  NOT NULL DEFAULT 0,  -- rows at that time
    checked_at timestamptz,
    refused    text,                        -- why it cannot have a table of its own
    PRIMARY KEY (tenant, namespace),
    CHECK ((number IS NULL) = (dimension IS NULL) AND (number IS NULL) = (method IS NULL))
);
COMMIT;

-- memory_vectors becomes the outbox of the index: the vector itself, leases, attempts. Idempotent.
BEGIN;
SET LOCAL lock_timeout = '5s';

-- {"encoding": "f32le", "data": base64 of little-endian float32}: a third of the cost of a JSON array to write, and
-- enough to rebuild any index without embedding again. NULL while the embedder has yet to make it.
ALTER TABLE memory_vectors
    ADD COLUMN IF NOT EXISTS vector_data     jsonb,
    ADD COLUMN IF NOT EXISTS error_class     text,
    ADD COLUMN IF NOT EXISTS attempts        integer NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS next_attempt_at timestamptz,
    ADD COLUMN IF NOT EXISTS lease_id        uuid,
    ADD COLUMN IF NOT EXISTS lease_until     timestamptz;
ALTER TABLE memory_vectors ALTER COLUMN vector_data SET STORAGE EXTERNAL;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_constraint WHERE conname = 'memory_vectors_status' AND conrelid = 'memory_vectors'::regclass) THEN
        ALTER TABLE memory_vectors ADD CONSTRAINT memory_vectors_status CHECK (
            status IN ('pending', 'in_flight', 'succeeded', 'failed', 'dead', 'deleting', 'deleted'));
        ALTER TABLE memory_vectors ADD CONSTRAINT memory_vectors_vector_data CHECK (
            vector_data IS NULL OR (vector_data ->> 'encoding' IS NOT DISTINCT FROM 'f32le' AND vector_data ? 'data'));
        ALTER TABLE memory_vectors ADD CONSTRAINT memory_vectors_lease CHECK ((lease_id IS NULL) = (lease_until IS NULL));
        ALTER TABLE memory_vectors ADD CONSTRAINT memory_vectors_error_class CHECK (
            error_class IN ('permanent', 'retryable'));
    END IF;
END $$;

-- Due work is found without touching the settled millions.
CREATE INDEX IF NOT EXISTS memory_vectors_due ON memory_vectors (next_attempt_at)
    WHERE status IN ('pending', 'deleting') AND lease_id IS NULL;
CREATE INDEX IF NOT EXISTS memory_vectors_leased ON memory_vectors (lease_until) WHERE lease_id IS NOT NULL;

-- (tenant, name) is what callers see; index_namespace is the generation that answers for it now.
CREATE TABLE IF NOT EXISTS namespaces (
    tenant          text        NOT NULL,
    name            text        NOT NULL,
    index_namespace text        NOT NULL,
    embedding_model text        NOT NULL,
    dimension       integer     NOT NULL CHECK (dimension BETWEEN 1 AND 20000),
    metric          text        NOT NULL DEFAULT 'cosine' CHECK (metric = 'cosine'),
    provider        text        NOT NULL,
    state           text        NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'building', 'retired')),
    created_at      timestamptz NOT NULL,
    updated_at      timestamptz NOT NULL,
    PRIMARY KEY (tenant, name)
);

-- Text index, written by the worker. No row-level security here: it keeps Postgres from using GIN for @@. Every query
-- names the tenant itself and reads each hit back through memory_nodes, where the policy is forced.
CREATE TABLE IF NOT EXISTS memory_terms (
    tenant    text     NOT NULL,
    node_id   uuid     NOT NULL,
    namespace text     NOT NULL,
    version   integer  NOT NULL,
    terms     tsvector NOT NULL,
    PRIMARY KEY (tenant, node_id)
);
CREATE INDEX IF NOT EXISTS memory_terms_terms ON memory_terms USING gin (terms);

INSERT INTO schema_migrations (version) VALUES ('002_enhance_memory_vectors') ON CONFLICT DO NOTHING;
COMMIT;

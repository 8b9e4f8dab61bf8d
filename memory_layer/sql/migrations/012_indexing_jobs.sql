-- Indexing jobs can be cancelled and listed, and workers say which services they do without. Idempotent.
-- Rights of the runtime role: ../grants.sql. Formerly 2336b6717282c63430db3d47eacf59c38319c16b235d16471ef53f2548bfcd82, which granted them here.
BEGIN;
SET LOCAL lock_timeout = '5s';

-- A cancelled job is a failed one whose reason is somebody's decision. NOT VALID: the old rule was narrower, so what stands in the
-- table fits, and nobody waits for it to be read.
ALTER TABLE memory_vectors DROP CONSTRAINT IF EXISTS memory_vectors_error_class;
ALTER TABLE memory_vectors ADD CONSTRAINT memory_vectors_error_class CHECK (
    error_class IN ('permanent', 'retryable', 'cancelled')) NOT VALID;

-- What an operator looks for among the settled millions. A row that never fails costs nothing here.
CREATE INDEX IF NOT EXISTS memory_vectors_given_up ON memory_vectors (status, updated_at, id) WHERE status IN ('failed', 'dead');

-- One row for each service that a worker does without, while it does: /healthz reads it, for the API is another process.
-- No tenant's data, so no row-level security.
CREATE TABLE IF NOT EXISTS worker_breakers (
    worker  text        NOT NULL,     -- host:process id
    service text        NOT NULL,     -- vectors, embedder
    state   text        NOT NULL CHECK (state IN ('open', 'half_open')),
    reason  text        NOT NULL,
    since   timestamptz NOT NULL,
    seen_at timestamptz NOT NULL,     -- a worker that was killed says nothing any more
    PRIMARY KEY (worker, service)
);

DO $$
BEGIN
    REVOKE ALL ON worker_breakers FROM PUBLIC;
END $$;

INSERT INTO schema_migrations (version) VALUES ('012_indexing_jobs') ON CONFLICT DO NOTHING;
COMMIT;

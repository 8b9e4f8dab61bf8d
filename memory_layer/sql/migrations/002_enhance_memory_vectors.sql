-- memory_vectors becomes the outbox of the index: the vector itself, leases and attempts. With it what the index is made of: namespaces
-- and their generations, keywords, and what workers say of themselves.
BEGIN;
SET LOCAL lock_timeout = '5s';

ALTER TABLE memory_vectors
    -- {"encoding": "f32le", "data": base64 of little-endian float32}: a third of the cost of a JSON array to write, and enough to rebuild
    -- any index without embedding again. NULL until the embedder has made it.
    ADD COLUMN IF NOT EXISTS vector_data     jsonb CONSTRAINT memory_vectors_vector_data CHECK (
        vector_data IS NULL OR (vector_data ->> 'encoding' IS NOT DISTINCT FROM 'f32le' AND vector_data ? 'data')),
    ADD COLUMN IF NOT EXISTS error_class     text CONSTRAINT memory_vectors_error_class CHECK (
        error_class IN ('permanent', 'retryable', 'cancelled')),  -- cancelled: failed by somebody's decision
    ADD COLUMN IF NOT EXISTS attempts        integer NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS next_attempt_at timestamptz,
    -- Which worker has the row, and until when.
    ADD COLUMN IF NOT EXISTS lease_id        uuid,
    ADD COLUMN IF NOT EXISTS lease_until     timestamptz CONSTRAINT memory_vectors_lease CHECK ((lease_id IS NULL) = (lease_until IS NULL));
ALTER TABLE memory_vectors ALTER COLUMN vector_data SET STORAGE EXTERNAL;

-- Due work is found without touching the millions of rows that are done.
CREATE INDEX IF NOT EXISTS memory_vectors_due ON memory_vectors (next_attempt_at)
    WHERE status IN ('pending', 'deleting') AND lease_id IS NULL;
CREATE INDEX IF NOT EXISTS memory_vectors_leased ON memory_vectors (lease_until) WHERE lease_id IS NOT NULL;
-- What an operator looks for. A row that never fails costs nothing here.
CREATE INDEX IF NOT EXISTS memory_vectors_given_up ON memory_vectors (status, updated_at, id) WHERE status IN ('failed', 'dead');

-- (tenant, name) is what callers see; index_namespace is the generation of its index that answers now. At most one other generation stands
-- beside it, and every change is written to both: it is being built with another model, or it answered before and is kept for the way
-- back. Columns and not a table: the committer reads the row for every write, and a second look-up would be paid by all namespaces.
CREATE TABLE IF NOT EXISTS namespaces (
    tenant           text        NOT NULL,
    name             text        NOT NULL,
    index_namespace  text        NOT NULL,
    embedding_model  text        NOT NULL,
    dimension        integer     NOT NULL CHECK (dimension BETWEEN 1 AND 20000),
    metric           text        NOT NULL DEFAULT 'cosine' CHECK (metric = 'cosine'),
    provider         text        NOT NULL,
    state            text        NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'building', 'retired')),
    -- How many generations there have been: no name is used twice.
    generations      integer     NOT NULL DEFAULT 1 CONSTRAINT namespaces_generations CHECK (generations >= 1),
    beside           text,                                 -- the other generation's index namespace
    beside_model     text,
    beside_dimension integer     CONSTRAINT namespaces_beside_dimension CHECK (beside_dimension BETWEEN 1 AND 20000),
    -- building: it never answered, or gave way again. kept: it answered before. retired: it is written no more, about to be dropped.
    beside_state     text        CONSTRAINT namespaces_beside_state CHECK (beside_state IN ('building', 'kept', 'retired')),
    created_at       timestamptz NOT NULL,
    updated_at       timestamptz NOT NULL,
    PRIMARY KEY (tenant, name),
    CONSTRAINT namespaces_beside CHECK (
        num_nonnulls(beside, beside_model, beside_dimension, beside_state) IN (0, 4) AND beside <> index_namespace)
);

-- Keywords, written by the worker. No row-level security: it keeps Postgres from using GIN for @@. Every query names the tenant itself and
-- reads each hit back through memory_nodes, where the policy is forced.
CREATE TABLE IF NOT EXISTS memory_terms (
    tenant    text     NOT NULL,
    node_id   uuid     NOT NULL,
    namespace text     NOT NULL,
    version   integer  NOT NULL,                           -- of the node
    terms     tsvector NOT NULL,
    PRIMARY KEY (tenant, node_id)
);
COMMENT ON COLUMN memory_terms.namespace IS 'the name of the namespace, whichever generation of its index answers';
CREATE INDEX IF NOT EXISTS memory_terms_terms ON memory_terms USING gin (terms);
-- The ranking asks how many texts a namespace holds. Counted in an index, so that no counter has to be kept right under updates, deletes
-- and repairs, and no two workers wait for each other at one row.
CREATE INDEX IF NOT EXISTS memory_terms_namespace ON memory_terms (tenant, namespace);

-- One row for each claim of a worker that writes into a vector store which does not order writes, from the claim until its end: what it
-- wrote late, when its rows had changed, is written again though the worker was killed before it could look (docs/decisions/0023). Ids
-- and versions only, so no row-level security.
CREATE TABLE IF NOT EXISTS index_rounds (
    lease    uuid        PRIMARY KEY,
    worker   text,                                         -- the lock that its process holds while it lives; NULL: only time shows its end
    tenants  text[]      NOT NULL,                         -- of memory_vectors: tenant, id and version of each row that was claimed
    ids      uuid[]      NOT NULL,
    versions int[]       NOT NULL,
    begun_at timestamptz NOT NULL,
    ended_at timestamptz,                                  -- from when on it can only be late: overdue, or its worker is gone
    gone_at  timestamptz                                   -- from when on its worker is known to be gone
);

-- One row for each service that a worker does without, while it does: /healthz reads it, for the API is another process. It holds no
-- tenant's data, so no row-level security.
CREATE TABLE IF NOT EXISTS worker_breakers (
    worker  text        NOT NULL,                          -- host:process id
    service text        NOT NULL,                          -- vectors, embedder
    state   text        NOT NULL CHECK (state IN ('open', 'half_open')),
    reason  text        NOT NULL,
    since   timestamptz NOT NULL,
    seen_at timestamptz NOT NULL,                          -- a worker that was killed stops renewing it
    PRIMARY KEY (worker, service)
);

INSERT INTO schema_migrations (version) VALUES ('002_enhance_memory_vectors') ON CONFLICT DO NOTHING;
COMMIT;

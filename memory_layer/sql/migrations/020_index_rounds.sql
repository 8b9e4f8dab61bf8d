-- What workers are about to write into a vector store that does not order writes. Idempotent.
-- Rights of the runtime role: ../grants.sql. Formerly adef60fb08c3c4ac693566ee27f96b71fc1ee0a9e8c27945c020622a09550377, which granted them here.
BEGIN;
SET LOCAL lock_timeout = '5s';

-- One row for each round of a worker, from its claim until it has settled: what it wrote late, when its rows had changed, is done again
-- though the worker was killed before it could look (docs/decisions/0023). Ids and versions only, so no row-level security.
CREATE TABLE IF NOT EXISTS index_rounds (
    lease    uuid        PRIMARY KEY,
    worker   text,                      -- the lock that its process holds as long as it lives; NULL: time alone tells
    tenants  text[]      NOT NULL,      -- of memory_vectors: tenant, id and version of each row that was claimed
    ids      uuid[]      NOT NULL,
    versions int[]       NOT NULL,
    begun_at timestamptz NOT NULL,
    ended_at timestamptz,               -- since when it can be no more than late: overdue, or its worker is gone
    gone_at  timestamptz                -- since when its worker is known to be gone
);

DO $$
BEGIN
    REVOKE ALL ON index_rounds FROM PUBLIC;
END $$;

INSERT INTO schema_migrations (version) VALUES ('020_index_rounds') ON CONFLICT DO NOTHING;
COMMIT;

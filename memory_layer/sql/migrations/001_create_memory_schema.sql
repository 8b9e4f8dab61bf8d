-- Nodes, their vectors and artifacts, the log's entries, and who writes them.
--
-- Each file of this folder runs with `psql -f` or `memoryctl migrate apply`, and may run again: what is there stays as it is. Rights are
-- granted by ../grants.sql, after all of them; row-level security is switched on by 005.
--
-- Primary keys are (tenant, id) and foreign keys are composite: foreign-key checks bypass row-level security, so a plain key would let
-- one tenant point at another tenant's node.
BEGIN;
SET LOCAL lock_timeout = '5s';

-- Which files were applied.
CREATE TABLE IF NOT EXISTS schema_migrations (
    version    text PRIMARY KEY,
    checksum   text,                      -- SHA-256 of the normalised file; NULL when psql applied it
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- gen_random_uuid() is core since Postgres 13; the extension is created where the server has it, for tools that expect it.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_available_extensions WHERE name = 'pgcrypto')
       AND NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'pgcrypto') THEN
        CREATE EXTENSION IF NOT EXISTS pgcrypto;
    END IF;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE NOTICE 'pgcrypto is available but this role may not create it; nothing here needs it';
END $$;

-- One row for each customer. `_system` is the installation itself (heartbeats, sweeps, operators' runs): no token can carry that name,
-- because a caller's tenant begins with a letter or a digit.
CREATE TABLE IF NOT EXISTS tenants (
    tenant      text        PRIMARY KEY CHECK (tenant ~ '^[A-Za-z0-9][A-Za-z0-9._:@-]{0,62}$' OR tenant = '_system'),
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    disabled_at timestamptz
);

-- One row for each service that ever wrote. The log names actors by these opaque ids alone.
CREATE TABLE IF NOT EXISTS principals (
    tenant     text        NOT NULL REFERENCES tenants,
    service    text        NOT NULL,
    id         uuid        NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    audit_id   uuid,                      -- the entry that created or adopted the row; NULL: none yet, the next start adopts it
    PRIMARY KEY (tenant, service)
);

-- What is remembered. A deleted node keeps its row, marked, until it is purged.
CREATE TABLE IF NOT EXISTS memory_nodes (
    tenant            text        NOT NULL,
    id                uuid        NOT NULL,                -- UUIDv7: the primary key lists nodes in order of creation
    owner             text        NOT NULL,
    namespace         text        NOT NULL,
    embedding_id      text,
    content           text,
    metadata          jsonb       NOT NULL DEFAULT '{}',
    pii_flags         jsonb       NOT NULL DEFAULT '{}',
    subjects          text[]      NOT NULL DEFAULT '{}',
    legal_hold        boolean     NOT NULL DEFAULT false,
    legal_hold_reason text,
    ttl_seconds       bigint      CHECK (ttl_seconds >= 3600),
    expires_at        timestamptz,
    occurred_at       timestamptz,
    version           integer     NOT NULL DEFAULT 1 CHECK (version >= 1),
    created_at        timestamptz NOT NULL,
    updated_at        timestamptz NOT NULL,
    deleted_at        timestamptz,
    PRIMARY KEY (tenant, id),
    CHECK (jsonb_typeof(metadata) = 'object'),
    CHECK (jsonb_typeof(pii_flags) = 'object'),
    CHECK (legal_hold OR legal_hold_reason IS NULL),
    CHECK ((ttl_seconds IS NULL) = (expires_at IS NULL))
);
-- No other index begins with the tenant and could serve a look-up by (tenant, id): a planner whose statistics are those of an empty table
-- takes any such index for as good as the primary key, and then each look-up reads all of a tenant's entries, under the log lock. A query
-- that does not ask for an embedding id cannot use this one.
CREATE UNIQUE INDEX IF NOT EXISTS memory_nodes_by_embedding_id ON memory_nodes (tenant, embedding_id)
    WHERE deleted_at IS NULL AND embedding_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS memory_nodes_expiring ON memory_nodes (expires_at) WHERE deleted_at IS NULL AND NOT legal_hold;

-- What the vector index holds, or is to hold, of each node. 002 makes it the index's outbox.
CREATE TABLE IF NOT EXISTS memory_vectors (
    tenant             text        NOT NULL,
    id                 uuid        NOT NULL,
    memory_node_id     uuid        NOT NULL,
    namespace          text        NOT NULL,
    provider           text        NOT NULL,
    embedding_model    text,
    dimension          integer     CHECK (dimension BETWEEN 1 AND 20000),
    external_vector_id text,
    status             text        NOT NULL DEFAULT 'pending' CONSTRAINT memory_vectors_status CHECK (
                                       status IN ('pending', 'in_flight', 'succeeded', 'failed', 'dead', 'deleting', 'deleted')),
    error              text,
    version            integer     NOT NULL,               -- of the node
    metadata           jsonb       NOT NULL DEFAULT '{}',
    created_at         timestamptz NOT NULL,
    updated_at         timestamptz NOT NULL,
    PRIMARY KEY (tenant, id),
    CONSTRAINT memory_vectors_node_namespace UNIQUE (tenant, memory_node_id, namespace),
    FOREIGN KEY (tenant, memory_node_id) REFERENCES memory_nodes (tenant, id) ON DELETE CASCADE
);

-- Files. The bytes lie in the object store under object_key and version_id.
CREATE TABLE IF NOT EXISTS artifacts (
    tenant                text        NOT NULL,
    id                    uuid        NOT NULL,
    memory_node_id        uuid,
    name                  text,
    url                   text        NOT NULL,
    object_key            text        NOT NULL,
    version_id            text        NOT NULL,
    sha256                text        NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    size_bytes            bigint      NOT NULL CHECK (size_bytes >= 0),
    content_type          text        NOT NULL,
    manifest_signature_id text,
    created_by            uuid        NOT NULL,            -- a principal
    metadata              jsonb       NOT NULL DEFAULT '{}',
    legal_hold            boolean     NOT NULL DEFAULT false,
    hold_due              boolean     NOT NULL DEFAULT false,  -- the object store has yet to learn of legal_hold; set with each change
    retain_until          timestamptz,
    verified_at           timestamptz,                     -- when the bytes were last found right
    fault                 text        CONSTRAINT artifacts_fault CHECK (  -- what the last check found wrong; NULL: nothing, or no check yet
                                          fault IN ('corrupt', 'missing', 'shadowed', 'unlocked')),
    storage_class         text        NOT NULL DEFAULT 'STANDARD',
    created_at            timestamptz NOT NULL,
    PRIMARY KEY (tenant, id),
    -- Set to NULL by memory_nodes_guard below: ON DELETE SET NULL would null the tenant too before Postgres 15.
    FOREIGN KEY (tenant, memory_node_id) REFERENCES memory_nodes (tenant, id)
);
CREATE INDEX IF NOT EXISTS artifacts_node ON artifacts (tenant, memory_node_id, created_at) WHERE memory_node_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS artifacts_hold_due ON artifacts (created_at, id) WHERE hold_due;
-- The tenant is left out here and second there, for the reason given at memory_nodes.
CREATE INDEX IF NOT EXISTS artifacts_object ON artifacts (object_key, version_id);
CREATE INDEX IF NOT EXISTS artifacts_bytes ON artifacts (sha256, tenant);

-- The log: one row for each entry. `entry` holds the signed bytes, the other columns repeat parts of them for queries. 003 makes it
-- append-only. No foreign key leads out of the log and nothing cascades into it: a hard delete must not erase its own evidence.
CREATE TABLE IF NOT EXISTS audit_events (
    log                   integer     NOT NULL,            -- audit_logs.log
    seq                   bigint      NOT NULL CHECK (seq >= 0),
    id                    uuid        NOT NULL UNIQUE,
    batch_no              bigint      NOT NULL,            -- audit_seals.batch_no
    tenant                text,
    memory_node_id        uuid,
    artifact_id           uuid,
    event_type            text        NOT NULL,
    manifest_signature_id text,
    created_at            timestamptz NOT NULL,
    entry                 bytea       NOT NULL CHECK (octet_length(entry) <= 65535),
    hash                  text        NOT NULL CHECK (hash ~ '^[0-9a-f]{64}$'),
    prev_hash             text        NOT NULL CHECK (prev_hash ~ '^[0-9a-f]{64}$'),
    signature             text        NOT NULL,
    PRIMARY KEY (log, seq)
);
CREATE INDEX IF NOT EXISTS audit_events_node ON audit_events (tenant, memory_node_id, seq) WHERE memory_node_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS audit_events_artifact ON audit_events (tenant, artifact_id, seq) WHERE artifact_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS audit_events_tenant ON audit_events (tenant, log, seq);

-- A hard delete is the last step of a purge: never of a held node, never before its vectors left the index (the cascade would drop the
-- rows that say what is still to be removed there). Names carry their schema, so that a session's temporary table of the same name
-- cannot stand in for the real one.
CREATE OR REPLACE FUNCTION memory_nodes_guard() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF OLD.legal_hold THEN
        RAISE EXCEPTION 'node % is under legal hold', OLD.id USING ERRCODE = 'restrict_violation';
    END IF;
    IF EXISTS (SELECT FROM public.memory_vectors v
               WHERE v.tenant = OLD.tenant AND v.memory_node_id = OLD.id AND v.status <> 'deleted') THEN
        RAISE EXCEPTION 'node % still has vectors in the index', OLD.id
            USING ERRCODE = 'restrict_violation', HINT = 'Soft-delete it and let the worker remove its vectors first.';
    END IF;
    UPDATE public.artifacts SET memory_node_id = NULL WHERE tenant = OLD.tenant AND memory_node_id = OLD.id;
    RETURN OLD;
END $$;
CREATE OR REPLACE TRIGGER memory_nodes_guard BEFORE DELETE ON memory_nodes
    FOR EACH ROW EXECUTE FUNCTION memory_nodes_guard();
ALTER TABLE memory_nodes ENABLE ALWAYS TRIGGER memory_nodes_guard;

INSERT INTO schema_migrations (version) VALUES ('001_create_memory_schema') ON CONFLICT DO NOTHING;
COMMIT;

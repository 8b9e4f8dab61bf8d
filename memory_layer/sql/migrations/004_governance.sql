-- Holds, subjects, keys, idempotency, runs, access log. Idempotent.
BEGIN;
SET LOCAL lock_timeout = '5s';

CREATE TABLE IF NOT EXISTS legal_holds (
    tenant      text        NOT NULL,
    id          uuid        NOT NULL,
    scope       text        NOT NULL CHECK (scope IN ('node', 'owner', 'namespace')),
    target      text        NOT NULL,
    reason      text        NOT NULL,
    case_id     text,
    set_by      uuid        NOT NULL,
    set_at      timestamptz NOT NULL,
    released_by uuid,
    released_at timestamptz,
    approvals   jsonb       NOT NULL DEFAULT '[]',
    PRIMARY KEY (tenant, id),
    CHECK ((released_by IS NULL) = (released_at IS NULL))
);
CREATE UNIQUE INDEX IF NOT EXISTS legal_holds_active_node ON legal_holds (tenant, target)
    WHERE scope = 'node' AND released_at IS NULL;
CREATE INDEX IF NOT EXISTS legal_holds_active ON legal_holds (tenant, scope, target) WHERE released_at IS NULL;

CREATE TABLE IF NOT EXISTS subjects (
    tenant      text        NOT NULL,
    subject     text        NOT NULL,
    handle      uuid        NOT NULL UNIQUE,
    wrapped_key bytea,
    key_id      text,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    erased_at   timestamptz,
    PRIMARY KEY (tenant, subject)
);

CREATE TABLE IF NOT EXISTS api_keys (
    tenant     text        NOT NULL,
    id         uuid        NOT NULL,
    principal  uuid        NOT NULL,
    key_sha256 bytea       NOT NULL UNIQUE CHECK (octet_length(key_sha256) = 32),
    scopes     text[]      NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz,
    revoked_at timestamptz,
    PRIMARY KEY (tenant, id)
);

CREATE TABLE IF NOT EXISTS idempotency_keys (
    tenant       text        NOT NULL,
    actor        uuid        NOT NULL,
    key          text        NOT NULL,
    request_hash bytea       NOT NULL CHECK (octet_length(request_hash) = 32),
    status       smallint    NOT NULL,
    answer       jsonb       NOT NULL,
    created_at   timestamptz NOT NULL,
    PRIMARY KEY (tenant, actor, key)
);
CREATE INDEX IF NOT EXISTS idempotency_keys_age ON idempotency_keys USING brin (created_at);

CREATE TABLE IF NOT EXISTS artifact_manifests (
    id         uuid        PRIMARY KEY,
    object_key text        NOT NULL,
    version_id text        NOT NULL,
    sha256     text        NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    artifacts  bigint      NOT NULL,
    signature  text        NOT NULL,
    key_id     text        NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE IF NOT EXISTS ops_runs (
    id          uuid        PRIMARY KEY,
    verb        text        NOT NULL,
    arguments   jsonb       NOT NULL DEFAULT '{}',
    started_at  timestamptz NOT NULL,
    finished_at timestamptz,
    verdict     text,
    exit_code   integer,
    report      jsonb
);
CREATE INDEX IF NOT EXISTS ops_runs_verb ON ops_runs (verb, started_at DESC);

CREATE TABLE IF NOT EXISTS access_log (
    at         timestamptz NOT NULL,
    request_id text        NOT NULL,
    tenant     text,
    actor      uuid,
    method     text        NOT NULL,
    route      text        NOT NULL,
    status     smallint    NOT NULL,
    node_ids   uuid[]      NOT NULL DEFAULT '{}',
    audit_seqs bigint[]    NOT NULL DEFAULT '{}'
) PARTITION BY RANGE (at);
CREATE INDEX IF NOT EXISTS access_log_at ON access_log USING brin (at);

INSERT INTO schema_migrations (version) VALUES ('004_governance') ON CONFLICT DO NOTHING;
COMMIT;

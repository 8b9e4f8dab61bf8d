-- Who may do what and what must be kept (holds, subjects, keys), and what operators and the worker did: runs, jobs, freezes, manifests.
BEGIN;
SET LOCAL lock_timeout = '5s';

-- Legal holds, released ones too. A node's own columns say whether one covers it.
CREATE TABLE IF NOT EXISTS legal_holds (
    tenant      text        NOT NULL,
    id          uuid        NOT NULL,
    scope       text        NOT NULL CHECK (scope IN ('node', 'owner', 'namespace')),
    target      text        NOT NULL,
    reason      text        NOT NULL,
    case_id     text,
    set_by      uuid        NOT NULL,                      -- a principal, as is released_by
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

-- People whom data concerns. The log and the archive know them by the handle; archived payloads are encrypted with their data key, so that
-- forgetting the key erases them there.
CREATE TABLE IF NOT EXISTS subjects (
    tenant      text        NOT NULL,
    subject     text        NOT NULL,
    handle      uuid        NOT NULL UNIQUE,
    wrapped_key bytea,
    key_id      text,                                      -- of the key that wraps it
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    erased_at   timestamptz,
    PRIMARY KEY (tenant, subject)
);

-- Keys by which services may call, known by their hash alone.
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

-- What a request with an Idempotency-Key was answered: a repeat of the same request gets the same answer.
CREATE TABLE IF NOT EXISTS idempotency_keys (
    tenant       text        NOT NULL,
    actor        uuid        NOT NULL,                     -- a principal
    key          text        NOT NULL,
    request_hash bytea       NOT NULL CHECK (octet_length(request_hash) = 32),
    status       smallint    NOT NULL,
    answer       jsonb       NOT NULL,
    created_at   timestamptz NOT NULL,
    PRIMARY KEY (tenant, actor, key)
);
CREATE INDEX IF NOT EXISTS idempotency_keys_age ON idempotency_keys USING brin (created_at);

-- Signed lists of all artifacts, each naming the one before it.
CREATE TABLE IF NOT EXISTS artifact_manifests (
    id         uuid        PRIMARY KEY,
    object_key text        NOT NULL,
    version_id text        NOT NULL,
    sha256     text        NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    previous   text        CHECK (previous ~ '^[0-9a-f]{64}$'),  -- SHA-256 of the manifest before
    artifacts  bigint      NOT NULL,                       -- how many it lists
    signature  text        NOT NULL,
    key_id     text        NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX IF NOT EXISTS artifact_manifests_newest ON artifact_manifests (created_at, id);

-- Objects that no row names and that are about to be deleted, or were. A row that would name one is refused under the log lock: an upload
-- of the same bytes may have found the object just before it went.
CREATE TABLE IF NOT EXISTS artifact_sweeps (
    tenant     text        NOT NULL,
    object_key text        NOT NULL,
    version_id text        NOT NULL,
    marked_at  timestamptz NOT NULL,
    deleted_at timestamptz,
    PRIMARY KEY (object_key, version_id)
);

-- How far a scan or a sweep of artifacts is, so that the next one goes on there. Of tenants it holds an id and a key at the most, and it
-- is the worker's alone: no row-level security.
CREATE TABLE IF NOT EXISTS artifact_progress (
    job        text        PRIMARY KEY,
    state      jsonb       NOT NULL,
    updated_at timestamptz NOT NULL
);

-- One row for each run of an operator's command or of a periodic job.
CREATE TABLE IF NOT EXISTS ops_runs (
    id          uuid        PRIMARY KEY,
    verb        text        NOT NULL,
    arguments   jsonb       NOT NULL DEFAULT '{}',
    started_at  timestamptz NOT NULL,
    finished_at timestamptz,
    verdict     text,
    exit_code   integer,
    report      jsonb,
    audit_id    uuid                                       -- its entry in the log; NULL: owed, whoever next opens the log writes it
);
CREATE INDEX IF NOT EXISTS ops_runs_verb ON ops_runs (verb, started_at DESC);
CREATE INDEX IF NOT EXISTS ops_runs_newest ON ops_runs (started_at DESC, id DESC);
CREATE INDEX IF NOT EXISTS ops_runs_owed ON ops_runs (id) WHERE audit_id IS NULL;

-- One row for each periodic job of the worker. `failures` counts attempts since the last success, one that is under way among them, so that
-- a job whose worker was killed is tried again like one that failed.
CREATE TABLE IF NOT EXISTS ops_schedule (
    job           text        PRIMARY KEY,
    leader        text        NOT NULL,                    -- host:process id of the worker that ran it last
    last_started  timestamptz NOT NULL,
    last_finished timestamptz,
    last_success  timestamptz,
    last_error    text,
    failures      integer     NOT NULL DEFAULT 0,
    next_due      timestamptz NOT NULL
);

-- An operator's freeze of all writes: one row while there is one, read with the head of the log in every batch. It holds no tenant's data
-- and stops every tenant: no row-level security.
CREATE TABLE IF NOT EXISTS write_freeze (
    singleton boolean     PRIMARY KEY DEFAULT true CHECK (singleton),
    reason    text        NOT NULL CHECK (reason <> ''),
    since     timestamptz NOT NULL,
    until     timestamptz CHECK (until > since)            -- NULL: until it is lifted
);

-- Who read or wrote what: one row for each request.
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

INSERT INTO schema_migrations (version) VALUES ('004_govern_and_operate') ON CONFLICT DO NOTHING;
COMMIT;

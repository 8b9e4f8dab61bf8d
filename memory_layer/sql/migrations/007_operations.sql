-- Operators' runs and the worker's schedule. Idempotent.
-- Rights of the runtime role: ../grants.sql. Formerly 61a9acfcff5376f77b433267603816a93fc87d53c1244d30c275381fc520987d, which granted them here.
BEGIN;
SET LOCAL lock_timeout = '5s';

-- The run's entry in the log. While it is NULL the entry is owed: whoever next opens the log writes it.
ALTER TABLE ops_runs ADD COLUMN IF NOT EXISTS audit_id uuid;
CREATE INDEX IF NOT EXISTS ops_runs_newest ON ops_runs (started_at DESC, id DESC);
CREATE INDEX IF NOT EXISTS ops_runs_owed ON ops_runs (id) WHERE audit_id IS NULL;

-- One row per periodic job of the worker. `failures` counts attempts since the last success, one that is under way among them,
-- so that a job whose worker was killed is tried again like one that failed.
CREATE TABLE IF NOT EXISTS ops_schedule (
    job           text        PRIMARY KEY,
    leader        text        NOT NULL,     -- host:process id of the worker that ran it last
    last_started  timestamptz NOT NULL,
    last_finished timestamptz,
    last_success  timestamptz,
    last_error    text,
    failures      integer     NOT NULL DEFAULT 0,
    next_due      timestamptz NOT NULL
);

DO $$
BEGIN
    REVOKE ALL ON ops_schedule FROM PUBLIC;
END $$;

INSERT INTO schema_migrations (version) VALUES ('007_operations') ON CONFLICT DO NOTHING;
COMMIT;

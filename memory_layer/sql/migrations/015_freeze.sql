-- An operator's freeze of all writes: one row while there is one. Read with the head of the log in every batch. Idempotent.
-- Without row-level security: it holds no tenant's data, and stops every tenant.
-- Rights of the runtime role: ../grants.sql. Formerly 66ff3b3009917e2f4985a32deea6c26eea6775116780f3f2b29b26998125a769, which granted them here.
BEGIN;
SET LOCAL lock_timeout = '5s';

CREATE TABLE IF NOT EXISTS write_freeze (
    singleton boolean     PRIMARY KEY DEFAULT true CHECK (singleton),
    reason    text        NOT NULL CHECK (reason <> ''),
    since     timestamptz NOT NULL,
    until     timestamptz CHECK (until > since)   -- NULL: until it is lifted
);

DO $$
BEGIN
    REVOKE ALL ON write_freeze FROM PUBLIC;
END $$;

INSERT INTO schema_migrations (version) VALUES ('015_freeze') ON CONFLICT DO NOTHING;
COMMIT;

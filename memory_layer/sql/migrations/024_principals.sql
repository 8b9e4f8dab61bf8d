-- Who stands behind an actor of the log is bound by an entry. Idempotent.
BEGIN;
SET LOCAL lock_timeout = '5s';

-- The entry that created the row, or adopted one that was there before. NULL: none yet. The service adopts it at its next start.
ALTER TABLE principals ADD COLUMN IF NOT EXISTS audit_id uuid;

INSERT INTO schema_migrations (version) VALUES ('024_principals') ON CONFLICT DO NOTHING;
COMMIT;

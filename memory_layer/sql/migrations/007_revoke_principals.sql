-- Since when a service is refused at the door. The row stays, for the log's entries name it.
BEGIN;
SET LOCAL lock_timeout = '5s';

ALTER TABLE principals ADD COLUMN IF NOT EXISTS revoked_at timestamptz;
COMMENT ON COLUMN principals.revoked_at IS 'since when its credentials are refused; null: they are not';

INSERT INTO schema_migrations (version) VALUES ('007_revoke_principals') ON CONFLICT DO NOTHING;
COMMIT;

-- What an API key needs to be told apart from others and replaced. Rows of api_keys are said by entries of the log (ops.api-key-*), all but the last use.
BEGIN;
SET LOCAL lock_timeout = '5s';

ALTER TABLE api_keys ADD COLUMN IF NOT EXISTS name text;
ALTER TABLE api_keys ADD COLUMN IF NOT EXISTS hint text;
ALTER TABLE api_keys ADD COLUMN IF NOT EXISTS replaced_by uuid;
ALTER TABLE api_keys ADD COLUMN IF NOT EXISTS last_used_at timestamptz;
COMMENT ON COLUMN api_keys.name IS 'what its maker calls it';
COMMENT ON COLUMN api_keys.hint IS 'how the key begins, by which its owner recognises it';
COMMENT ON COLUMN api_keys.replaced_by IS 'the key that a rotation put in its place';
COMMENT ON COLUMN api_keys.last_used_at IS 'the hour of its last use, some minutes late';

INSERT INTO schema_migrations (version) VALUES ('018_issue_api_keys') ON CONFLICT DO NOTHING;
COMMIT;

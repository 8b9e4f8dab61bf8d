-- Artifacts by their bytes: whoever may not see a file may not see it under another artifact either (docs/decisions/0028). Idempotent.
BEGIN;
SET LOCAL lock_timeout = '5s';

-- The tenant second: see 016.
CREATE INDEX IF NOT EXISTS artifacts_bytes ON artifacts (sha256, tenant);

INSERT INTO schema_migrations (version) VALUES ('025_copies_of_bytes') ON CONFLICT DO NOTHING;
COMMIT;

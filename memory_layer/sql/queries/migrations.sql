-- Reads of schema_migrations.

-- name: applied
SELECT version, checksum FROM schema_migrations ORDER BY version

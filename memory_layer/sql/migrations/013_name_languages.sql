-- The language of a namespace's texts, for those whose nodes declare none. A namespace needs no vector for it, so this is no column of
-- namespaces, whose row comes with the first one. Each row is said by an entry of the log (ops.namespace-language.succeeded).
BEGIN;
SET LOCAL lock_timeout = '5s';

CREATE TABLE IF NOT EXISTS namespace_languages (
    tenant   text        NOT NULL,
    name     text        NOT NULL,
    language text        CHECK (language ~ '^[a-z]{2,3}$'),
    set_at   timestamptz NOT NULL,
    applied  boolean     NOT NULL DEFAULT false,
    PRIMARY KEY (tenant, name)
);
COMMENT ON COLUMN namespace_languages.language IS 'ISO 639 code; null: the text tells again';
COMMENT ON COLUMN namespace_languages.applied IS 'whether the texts from before were marked to have their words written again';

-- As in 005.
DO $$
BEGIN
    ALTER TABLE namespace_languages ENABLE ROW LEVEL SECURITY;
    ALTER TABLE namespace_languages FORCE ROW LEVEL SECURITY;
    DROP POLICY IF EXISTS tenant_rows ON namespace_languages;
    CREATE POLICY tenant_rows ON namespace_languages
        USING (tenant = ANY ((SELECT nullif(current_setting('memory.tenants', true), '')::text[])::text[])
               OR (SELECT current_setting('memory.all_tenants', true)) = 'on')
        WITH CHECK (tenant = ANY ((SELECT nullif(current_setting('memory.tenants', true), '')::text[])::text[])
               OR (SELECT current_setting('memory.all_tenants', true)) = 'on');
END $$;

INSERT INTO schema_migrations (version) VALUES ('013_name_languages') ON CONFLICT DO NOTHING;
COMMIT;

-- How the adapter writes into the index, and the runtime role's rights on it. The role owns nothing, so the functions run as the schema's
-- owner; the table names that they put into statements come from a sequence, never from a caller. In them `entries_schema` and
-- `vector_extension` stand for the schemas of vector_entries and of the extension; the end of this file fills them in.
--
-- A writer of a namespace holds its advisory lock shared until the commit and looks the namespace up afterwards; a move of the namespace
-- holds the lock alone. So no write lands where its namespace no longer is.
BEGIN;
SET LOCAL lock_timeout = '5s';

-- The number of a namespace's advisory lock.
CREATE OR REPLACE FUNCTION vector_spaces.key(tenant text, namespace text) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT pg_catalog.hashtextextended(tenant OPERATOR(pg_catalog.||) E'\x1f' OPERATOR(pg_catalog.||) namespace, 5062476) $$;

-- Write entries. Where a call names a node twice the newest version counts: ON CONFLICT refuses to touch a row twice. It returns the
-- namespaces that may have become large enough for a table of their own, and those that have one and doubled since their recall was
-- measured (large). Not each call counts what it wrote, or all writers of a namespace would wait for one row.
CREATE OR REPLACE FUNCTION vector_spaces.upsert(
    tenants text[], namespaces text[], nodes uuid[], versions integer[], vectors vector[], documents jsonb[], threshold integer
) RETURNS TABLE (tenant text, namespace text, large boolean)
LANGUAGE plpgsql SECURITY DEFINER
AS $$
#variable_conflict use_column
DECLARE
    grain integer := greatest(1, least(256, threshold / 8));
    space record;
    put bigint;
    doubled boolean;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'vectors are written in READ COMMITTED: an older snapshot does not see where a namespace went';
    END IF;
    PERFORM pg_advisory_xact_lock_shared(key)
    FROM (SELECT DISTINCT vector_spaces.key(t, ns) AS key FROM unnest(tenants, namespaces) u(t, ns) ORDER BY 1) k;

    INSERT INTO entries_schema.vector_entries AS held (tenant, namespace, node_id, version, embedding, fields, removed_at)
    SELECT DISTINCT ON (t, ns, n) t, ns, n, v, e, f, NULL::timestamptz
    FROM unnest(tenants, namespaces, nodes, versions, vectors, documents) u(t, ns, n, v, e, f)
    WHERE NOT EXISTS (SELECT FROM vector_spaces.registry r WHERE r.tenant = t AND r.namespace = ns AND r.number IS NOT NULL)
    ORDER BY t, ns, n, v DESC
    ON CONFLICT (tenant, namespace, node_id) DO UPDATE
    SET version = EXCLUDED.version, embedding = EXCLUDED.embedding, fields = EXCLUDED.fields, removed_at = NULL
    WHERE held.version < EXCLUDED.version OR (held.version = EXCLUDED.version AND held.removed_at IS NULL);

    FOR space IN
        SELECT r.tenant AS t, r.namespace AS ns, r.number, 'space_' || r.number AS relation FROM vector_spaces.registry r
        WHERE r.number IS NOT NULL AND (r.tenant, r.namespace) IN (SELECT * FROM unnest(tenants, namespaces))
        ORDER BY r.number
    LOOP
        EXECUTE format(
            'INSERT INTO vector_spaces.%I AS held (node_id, version, embedding, fields)'
            ' SELECT DISTINCT ON (n) n, v, e, f FROM unnest($1, $2, $3, $4, $5, $6) u(t, ns, n, v, e, f)'
            ' WHERE t = $7 AND ns = $8 ORDER BY n, v DESC'
            ' ON CONFLICT (node_id) DO UPDATE'
            ' SET version = EXCLUDED.version, embedding = EXCLUDED.embedding, fields = EXCLUDED.fields, removed_at = NULL'
            ' WHERE held.version < EXCLUDED.version OR (held.version = EXCLUDED.version AND held.removed_at IS NULL)',
            space.relation)
        USING tenants, namespaces, nodes, versions, vectors, documents, space.t, space.ns;
        GET DIAGNOSTICS put = ROW_COUNT;
        IF random() * 256 < put THEN
            UPDATE vector_spaces.registry r SET rows = r.rows + greatest(put, 256) WHERE r.number = space.number
            RETURNING r.rows > 2 * r.checked INTO doubled;
            IF doubled THEN
                RETURN QUERY SELECT space.t, space.ns, true;
            END IF;
        END IF;
    END LOOP;

    RETURN QUERY
    WITH counted AS (
        INSERT INTO vector_spaces.registry AS r (tenant, namespace, written)
        SELECT t, ns, greatest(count(*), grain) FROM unnest(tenants, namespaces) u(t, ns)
        WHERE NOT EXISTS (SELECT FROM vector_spaces.registry r WHERE r.tenant = t AND r.namespace = ns AND r.number IS NOT NULL)
        GROUP BY t, ns HAVING random() * grain < count(*) ORDER BY t, ns
        ON CONFLICT (tenant, namespace) DO UPDATE SET written = r.written + EXCLUDED.written
        RETURNING r.tenant, r.namespace, r.written, r.refused
    )
    SELECT c.tenant, c.namespace, false FROM counted c WHERE c.written >= threshold AND c.refused IS NULL;
END $$;

-- Remove entries: each leaves a mark with its version.
CREATE OR REPLACE FUNCTION vector_spaces.remove(the_tenant text, the_namespace text, nodes uuid[], versions integer[])
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
AS $$
DECLARE
    own bigint;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'vectors are written in READ COMMITTED: an older snapshot does not see where a namespace went';
    END IF;
    PERFORM pg_advisory_xact_lock_shared(vector_spaces.key(the_tenant, the_namespace));
    SELECT number INTO own FROM vector_spaces.registry WHERE tenant = the_tenant AND namespace = the_namespace;
    IF own IS NULL THEN
        INSERT INTO entries_schema.vector_entries AS held (tenant, namespace, node_id, version, embedding, fields, removed_at)
        SELECT the_tenant, the_namespace, n, max(v), NULL, '{}', clock_timestamp()
        FROM unnest(nodes, versions) u(n, v) GROUP BY n ORDER BY n
        ON CONFLICT (tenant, namespace, node_id) DO UPDATE
        SET version = EXCLUDED.version, embedding = NULL, fields = '{}', removed_at = EXCLUDED.removed_at
        WHERE held.version <= EXCLUDED.version;
    ELSE
        EXECUTE format(
            'INSERT INTO vector_spaces.%I AS held (node_id, version, embedding, fields, removed_at)'
            ' SELECT n, max(v), NULL, ''{}'', clock_timestamp() FROM unnest($1, $2) u(n, v) GROUP BY n ORDER BY n'
            ' ON CONFLICT (node_id) DO UPDATE'
            ' SET version = EXCLUDED.version, embedding = NULL, fields = EXCLUDED.fields, removed_at = EXCLUDED.removed_at'
            ' WHERE held.version <= EXCLUDED.version',
            'space_' || own)
        USING nodes, versions;
    END IF;
END $$;

-- Index a table by Hamming distance of the signs (bit) or by cosine distance of half precision (halfvec).
CREATE OR REPLACE FUNCTION vector_spaces.index(number bigint, dimension integer, method text) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF method = 'bit' THEN
        EXECUTE format('CREATE INDEX %I ON vector_spaces.%I USING hnsw ((vector_extension.binary_quantize(embedding)::bit(%s)) vector_extension.bit_hamming_ops)',
                       'space_' || number || '_bit', 'space_' || number, dimension);
    ELSIF method = 'halfvec' THEN
        EXECUTE format('CREATE INDEX %I ON vector_spaces.%I USING hnsw ((embedding::vector_extension.halfvec(%s)) vector_extension.halfvec_cosine_ops)',
                       'space_' || number || '_halfvec', 'space_' || number, dimension);
    END IF;
END $$;

-- Give a namespace that has at least threshold entries a table of its own, indexed in one go. Writers go on meanwhile; they wait only
-- while the last of their writes are copied. It returns busy (another call is at it), small, mixed (dimensions), moved, or own (it has one
-- already; what an older version of the adapter wrote into vector_entries is moved too).
CREATE OR REPLACE FUNCTION vector_spaces.promote(the_tenant text, the_namespace text, threshold integer) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
AS $$
DECLARE
    space vector_spaces.registry;
    relation text;
    found_rows bigint;
    shortest integer;
    longest integer;
    app boolean := EXISTS (SELECT FROM pg_roles WHERE rolname = 'memory_app');
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'vectors are moved in READ COMMITTED: an older snapshot does not see the last writes';
    END IF;
    IF NOT pg_try_advisory_xact_lock(vector_spaces.key(the_tenant, the_namespace) # 1) THEN
        RETURN 'busy';
    END IF;
    SELECT * INTO space FROM vector_spaces.registry WHERE tenant = the_tenant AND namespace = the_namespace;
    relation := 'space_' || space.number;
    IF relation IS NULL THEN
        SELECT count(*) INTO found_rows FROM (
            SELECT FROM entries_schema.vector_entries
            WHERE tenant = the_tenant AND namespace = the_namespace AND removed_at IS NULL LIMIT threshold) e;
        IF found_rows < threshold THEN
            UPDATE vector_spaces.registry SET written = found_rows, refused = NULL
            WHERE tenant = the_tenant AND namespace = the_namespace;
            RETURN 'small';
        END IF;
        SELECT min(vector_extension.vector_dims(embedding)), max(vector_extension.vector_dims(embedding)) INTO shortest, longest FROM entries_schema.vector_entries
        WHERE tenant = the_tenant AND namespace = the_namespace AND removed_at IS NULL;
        IF shortest <> longest THEN
            UPDATE vector_spaces.registry SET refused = format('it holds vectors of %s and of %s dimensions', shortest, longest)
            WHERE tenant = the_tenant AND namespace = the_namespace;
            RETURN 'mixed';
        END IF;
        space.number := nextval('vector_spaces.numbers');
        space.dimension := shortest;
        space.method := CASE WHEN shortest >= 768 THEN 'bit' ELSE 'halfvec' END;
        relation := 'space_' || space.number;
        -- Inline: an exact comparison that follows a TOAST pointer per row costs several times more. Up to 2,000 dimensions a row
        -- fits its page and it is the fields that make room.
        EXECUTE format(
            'CREATE TABLE vector_spaces.%I ('
            ' node_id uuid PRIMARY KEY, version integer NOT NULL, embedding vector_extension.vector(%s), fields jsonb NOT NULL,'
            ' removed_at timestamptz, CHECK ((embedding IS NULL) = (removed_at IS NOT NULL))'
            ') WITH (toast_tuple_target = 8160, autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05,'
            ' autovacuum_vacuum_insert_scale_factor = 0.1, autovacuum_vacuum_cost_limit = 2000)', relation, space.dimension);
        EXECUTE format('ALTER TABLE vector_spaces.%I ALTER embedding SET STORAGE %s', relation,
                       CASE WHEN space.dimension <= 2000 THEN 'PLAIN' ELSE 'EXTERNAL' END);
        IF app THEN
            EXECUTE format('GRANT SELECT ON vector_spaces.%I TO memory_app', relation);
        END IF;
        EXECUTE format(
            'INSERT INTO vector_spaces.%I SELECT node_id, version, embedding, fields, removed_at FROM entries_schema.vector_entries'
            ' WHERE tenant = $1 AND namespace = $2', relation) USING the_tenant, the_namespace;
        PERFORM vector_spaces.index(space.number, space.dimension, space.method);
        -- Without a list of pending entries, which every search would have to read through.
        EXECUTE format('CREATE INDEX ON vector_spaces.%I USING gin (fields jsonb_path_ops) WITH (fastupdate = off)', relation);
        EXECUTE format('CREATE INDEX ON vector_spaces.%I (removed_at) WHERE removed_at IS NOT NULL', relation);
        EXECUTE format('ANALYZE vector_spaces.%I', relation);
    ELSIF NOT EXISTS (SELECT FROM entries_schema.vector_entries WHERE tenant = the_tenant AND namespace = the_namespace) THEN
        RETURN 'own';
    END IF;

    -- From here on nobody writes to the namespace. The copy gets what was written, removed or forgotten since it was made.
    PERFORM pg_advisory_xact_lock(vector_spaces.key(the_tenant, the_namespace));
    IF longest IS NOT NULL THEN
        EXECUTE format(
            'DELETE FROM vector_spaces.%I o WHERE NOT EXISTS ('
            ' SELECT FROM entries_schema.vector_entries e WHERE e.tenant = $1 AND e.namespace = $2 AND e.node_id = o.node_id)', relation)
        USING the_tenant, the_namespace;
    END IF;
    EXECUTE format(
        'INSERT INTO vector_spaces.%I AS held SELECT node_id, version, embedding, fields, removed_at FROM entries_schema.vector_entries e'
        ' WHERE e.tenant = $1 AND e.namespace = $2 AND NOT EXISTS ('
        '  SELECT FROM vector_spaces.%I o WHERE o.node_id = e.node_id AND o.version = e.version'
        '  AND o.removed_at IS NOT DISTINCT FROM e.removed_at AND (o.embedding IS NULL) = (e.embedding IS NULL)'
        '  AND (o.embedding IS NULL OR o.embedding OPERATOR(vector_extension.=) e.embedding)'
        '  AND o.fields = e.fields)'
        ' ON CONFLICT (node_id) DO UPDATE SET version = EXCLUDED.version, embedding = EXCLUDED.embedding,'
        '  fields = EXCLUDED.fields, removed_at = EXCLUDED.removed_at'
        ' WHERE $3 OR (held.version, held.removed_at IS NOT NULL) <= (EXCLUDED.version, EXCLUDED.removed_at IS NOT NULL)',
        relation, relation) USING the_tenant, the_namespace, longest IS NOT NULL;
    DELETE FROM entries_schema.vector_entries WHERE tenant = the_tenant AND namespace = the_namespace;
    IF longest IS NULL THEN
        RETURN 'own';
    END IF;
    EXECUTE format('SELECT count(*) FROM vector_spaces.%I WHERE removed_at IS NULL', relation) INTO found_rows;
    INSERT INTO vector_spaces.registry AS r (tenant, namespace, number, dimension, method, rows)
    VALUES (the_tenant, the_namespace, space.number, space.dimension, space.method, found_rows)
    ON CONFLICT (tenant, namespace) DO UPDATE
    SET number = EXCLUDED.number, dimension = EXCLUDED.dimension, method = EXCLUDED.method, rows = EXCLUDED.rows,
        written = 0, refused = NULL;
    RETURN 'moved';
END $$;

-- Another index for a namespace whose recall does not suffice. Its writers wait until it is built, its readers do not.
CREATE OR REPLACE FUNCTION vector_spaces.reindex(the_number bigint, the_method text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
AS $$
DECLARE
    space vector_spaces.registry;
BEGIN
    SELECT * INTO space FROM vector_spaces.registry WHERE number = the_number;
    IF space.number IS NULL OR space.method = the_method
       OR NOT pg_try_advisory_xact_lock(vector_spaces.key(space.tenant, space.namespace) # 1) THEN
        RETURN false;
    END IF;
    PERFORM vector_spaces.index(space.number, space.dimension, the_method);
    EXECUTE format('DROP INDEX IF EXISTS vector_spaces.%I', 'space_' || space.number || '_' || space.method);
    UPDATE vector_spaces.registry SET method = the_method, rerank = DEFAULT, recall = NULL, checked_at = NULL WHERE number = the_number;
    RETURN true;
END $$;

-- Record a measurement of recall. Readers double the depth until it suffices, so the depth is at least 1.
CREATE OR REPLACE FUNCTION vector_spaces.note(the_number bigint, the_recall real, the_rerank integer) RETURNS void
LANGUAGE sql SECURITY DEFINER
AS $$
    UPDATE vector_spaces.registry
    SET recall = the_recall, rerank = least(greatest(the_rerank, 1), 10000), checked = rows, checked_at = clock_timestamp()
    WHERE number = the_number
$$;

-- Estimate the rows of the large namespaces by the size of their tables, and return the namespaces that are due: for a table of their own,
-- for a move of what was written into vector_entries meanwhile, or for a measurement of recall (a quarter more rows, or a day).
CREATE OR REPLACE FUNCTION vector_spaces.due(threshold integer) RETURNS TABLE (tenant text, namespace text)
LANGUAGE plpgsql SECURITY DEFINER
AS $$
#variable_conflict use_column
BEGIN
    UPDATE vector_spaces.registry r SET rows = now.rows FROM (
        SELECT number, (c.reltuples / greatest(c.relpages, 1) * (pg_relation_size(c.oid) / current_setting('block_size')::int))::bigint AS rows
        FROM vector_spaces.registry JOIN pg_class c ON c.oid = to_regclass('vector_spaces.space_' || number) WHERE c.reltuples >= 0
    ) now
    WHERE now.number = r.number AND abs(now.rows - r.rows) > 0.05 * r.rows;
    RETURN QUERY
    SELECT r.tenant, r.namespace FROM vector_spaces.registry r
    WHERE CASE
        WHEN r.number IS NULL THEN r.written >= threshold AND r.refused IS NULL
        ELSE r.checked_at IS NULL OR r.rows > 1.25 * r.checked OR r.checked_at < clock_timestamp() - interval '1 day'
          OR EXISTS (SELECT FROM entries_schema.vector_entries e WHERE e.tenant = r.tenant AND e.namespace = r.namespace)
        END
    ORDER BY r.checked_at NULLS FIRST, r.tenant, r.namespace;
END $$;

-- Drop a namespace with all that it holds.
CREATE OR REPLACE FUNCTION vector_spaces.forget(the_tenant text, the_namespace text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
AS $$
DECLARE
    own bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(vector_spaces.key(the_tenant, the_namespace));
    DELETE FROM vector_spaces.registry WHERE tenant = the_tenant AND namespace = the_namespace RETURNING number INTO own;
    IF own IS NOT NULL THEN
        -- A registry that was restored without the tables must not keep the namespace from being built anew.
        EXECUTE format('DROP TABLE IF EXISTS vector_spaces.%I', 'space_' || own);
    END IF;
    DELETE FROM entries_schema.vector_entries WHERE tenant = the_tenant AND namespace = the_namespace;
END $$;

-- Delete marks of removals that no late writer can undo any more, at most `most` in each table; returns whether there may be more.
CREATE OR REPLACE FUNCTION vector_spaces.sweep(most integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
AS $$
DECLARE
    relation regclass;
    gone bigint;
    more boolean := false;
BEGIN
    FOR relation IN
        SELECT 'entries_schema.vector_entries'::regclass
        UNION ALL SELECT to_regclass('vector_spaces.space_' || number) FROM vector_spaces.registry WHERE number IS NOT NULL
    LOOP
        CONTINUE WHEN relation IS NULL;  -- dropped this moment
        BEGIN
            EXECUTE format(
                'DELETE FROM %s WHERE ctid = ANY (ARRAY (SELECT ctid FROM %s'
                ' WHERE removed_at < statement_timestamp() - interval ''1 day'' LIMIT $1 FOR UPDATE SKIP LOCKED))', relation, relation)
            USING most;
            GET DIAGNOSTICS gone = ROW_COUNT;
            more := more OR gone = most;
        EXCEPTION WHEN undefined_table THEN
            CONTINUE;
        END;
    END LOOP;
    RETURN more;
END $$;

-- Read a namespace's table and indexes into memory, where the server has pg_prewarm; returns whether it has.
CREATE OR REPLACE FUNCTION vector_spaces.prewarm(the_number bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
AS $$
DECLARE
    part regclass;
    home text;
BEGIN
    SELECT n.nspname INTO home FROM pg_extension x JOIN pg_namespace n ON n.oid = x.extnamespace WHERE x.extname = 'pg_prewarm';
    IF home IS NULL THEN
        RETURN false;
    END IF;
    FOR part IN
        SELECT i.indexrelid FROM vector_spaces.registry r
        JOIN pg_index i ON i.indrelid = to_regclass('vector_spaces.space_' || r.number)
        WHERE r.number = the_number
        UNION ALL
        SELECT to_regclass('vector_spaces.space_' || number) FROM vector_spaces.registry WHERE number = the_number
    LOOP
        EXECUTE format('SELECT %I.pg_prewarm($1)', home) USING part;
    END LOOP;
    RETURN true;
END $$;

DO $$
DECLARE
    function regprocedure;
    relation text;
    entries text;
    extension text;
BEGIN
    -- These functions run as their owner, so nothing that somebody else may create must stand for a name in them: not in the schema
    -- of the extension, where everybody may create things before Postgres 15, nor among a session's temporary ones. Their path is
    -- Postgres's own, and every other name says its schema.
    SELECT quote_ident(n.nspname) INTO entries
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = 'vector_entries'::regclass;
    SELECT quote_ident(n.nspname) INTO extension
    FROM pg_extension x JOIN pg_namespace n ON n.oid = x.extnamespace WHERE x.extname = 'vector';
    REVOKE ALL ON SCHEMA vector_spaces FROM PUBLIC;
    REVOKE ALL ON vector_entries, vector_spaces.registry FROM PUBLIC;
    FOR function IN SELECT oid FROM pg_proc WHERE pronamespace = 'vector_spaces'::regnamespace LOOP
        EXECUTE replace(replace(pg_get_functiondef(function), 'entries_schema.', entries || '.'), 'vector_extension.', extension || '.');
        EXECUTE format('ALTER FUNCTION %s SET search_path = pg_catalog, pg_temp', function);
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', function);
    END LOOP;
    ALTER FUNCTION vector_spaces.key(text, text) RESET search_path;  -- it would not be inlined
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'memory_app') THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON vector_entries TO memory_app;
        GRANT USAGE ON SCHEMA vector_spaces TO memory_app;
        GRANT SELECT ON vector_spaces.registry TO memory_app;
        -- The large namespaces' tables too: the role may be younger than they are, as after a restore on another server.
        FOR relation IN
            SELECT relname FROM pg_class JOIN vector_spaces.registry ON relname = 'space_' || number
            WHERE relnamespace = 'vector_spaces'::regnamespace
        LOOP
            EXECUTE format('GRANT SELECT ON vector_spaces.%I TO memory_app', relation);
        END LOOP;
        FOR function IN
            SELECT oid FROM pg_proc WHERE pronamespace = 'vector_spaces'::regnamespace AND prosecdef
        LOOP
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO memory_app', function);
        END LOOP;
    END IF;
    -- Building an index for one namespace is no reason to take both cores, or shared memory that a container does not have.
    ALTER FUNCTION vector_spaces.promote(text, text, integer) SET max_parallel_maintenance_workers = 0;
    ALTER FUNCTION vector_spaces.promote(text, text, integer) SET maintenance_work_mem = '256MB';
    ALTER FUNCTION vector_spaces.reindex(bigint, text) SET max_parallel_maintenance_workers = 0;
    ALTER FUNCTION vector_spaces.reindex(bigint, text) SET maintenance_work_mem = '256MB';
    ALTER FUNCTION vector_spaces.promote(text, text, integer) SET lock_timeout = '10s';
    ALTER FUNCTION vector_spaces.reindex(bigint, text) SET lock_timeout = '10s';
    ALTER FUNCTION vector_spaces.forget(text, text) SET lock_timeout = '10s';
END $$;
COMMIT;

-- The worker's statements. memory_vectors is the outbox: claim, commit the lease, call out, write the result by compare-and-set.
-- Rows are compared with statement_timestamp(), which an index can answer for; clock_timestamp() is read anew for every row.

-- name: mark_dead
-- A run that ended without a result says nothing about its rows; after so many such runs no other is risked.
UPDATE memory_vectors v
SET status = 'dead', error = %(error)s, error_class = 'retryable', lease_id = NULL, lease_until = NULL,
    updated_at = clock_timestamp()
FROM (
    SELECT tenant, id FROM memory_vectors
    WHERE lease_id IS NOT NULL AND lease_until < statement_timestamp() AND status <> 'deleting' AND attempts >= %(most)s
    ORDER BY lease_until, id LIMIT 1000 FOR UPDATE SKIP LOCKED
) d
WHERE v.tenant = d.tenant AND v.id = d.id

-- part: indexable
-- Without the vector store only texts are indexed that get no vector, without an embedder only what it need not make a vector for, or
-- what another one makes.
AND (%(vectors)s OR (embedding_model IS NULL AND status <> 'deleting'))
AND (embedding_model IS NULL OR vector_data IS NOT NULL OR status = 'deleting' OR (%(embedder)s
     AND (embedding_model, dimension) NOT IN (SELECT * FROM unnest(%(down_models)s::text[], %(down_dimensions)s::int[]))))

-- name: claim
-- Overdue rows are taken alone, half as many with each attempt that they have behind them.
-- `lanes`: whether rows of bulk requests are wanted (true) or of single writes (false), the ones that come first ahead. The rows of one
-- lane are shared out evenly to the tenants that wait, 32 at the most: that of the oldest row, and those that follow it by name.
WITH RECURSIVE overdue AS (
    SELECT tenant, id FROM memory_vectors
    WHERE lease_id IS NOT NULL AND lease_until < statement_timestamp()
      -- include: indexable
    ORDER BY lease_until, id
    LIMIT (SELECT greatest(1, %(limit)s >> least(attempts, 16)) FROM memory_vectors
           WHERE lease_id IS NOT NULL AND lease_until < statement_timestamp()
             -- include: indexable
           ORDER BY lease_until, id LIMIT 1)
    FOR UPDATE SKIP LOCKED
), ready AS NOT MATERIALIZED (
    SELECT tenant, id, bulk, next_attempt_at FROM memory_vectors
    WHERE status IN ('pending', 'deleting') AND lease_id IS NULL AND next_attempt_at <= statement_timestamp()
      -- include: indexable
), oldest AS MATERIALIZED (
    SELECT o.bulk, o.tenant
    FROM unnest(%(lanes)s::bool[]) WITH ORDINALITY l(bulk, place)
    CROSS JOIN LATERAL (SELECT r.bulk, r.tenant FROM ready r WHERE r.bulk = l.bulk ORDER BY r.next_attempt_at, r.id LIMIT 1) o
    WHERE NOT EXISTS (SELECT FROM overdue)
    ORDER BY l.place LIMIT 1
), turns AS (
    SELECT bulk, tenant, 1 AS turn FROM oldest
    UNION ALL
    SELECT t.bulk, f.tenant, t.turn + 1
    FROM turns t CROSS JOIN LATERAL (
        SELECT coalesce(
            (SELECT r.tenant FROM ready r WHERE r.bulk = t.bulk AND r.tenant > t.tenant ORDER BY r.tenant LIMIT 1),
            (SELECT r.tenant FROM ready r WHERE r.bulk = t.bulk ORDER BY r.tenant LIMIT 1)
        ) AS tenant
    ) f
    WHERE t.turn < 32 AND f.tenant <> (SELECT tenant FROM oldest)
), due AS (
    SELECT d.* FROM turns t CROSS JOIN LATERAL (
        SELECT v.tenant, v.id FROM memory_vectors v
        WHERE v.bulk = t.bulk AND v.tenant = t.tenant
          AND v.status IN ('pending', 'deleting') AND v.lease_id IS NULL AND v.next_attempt_at <= statement_timestamp()
          -- include: indexable
        ORDER BY v.next_attempt_at, v.id LIMIT (SELECT greatest(1, %(limit)s / count(*)) FROM turns) FOR UPDATE SKIP LOCKED
    ) d
    LIMIT %(limit)s
)
UPDATE memory_vectors v
SET status = CASE v.status WHEN 'deleting' THEN 'deleting' ELSE 'in_flight' END, lease_id = %(lease)s,
    lease_until = clock_timestamp() + make_interval(secs => %(seconds)s), attempts = v.attempts + 1,
    updated_at = clock_timestamp()
FROM (SELECT * FROM overdue UNION ALL SELECT * FROM due) d
WHERE v.tenant = d.tenant AND v.id = d.id
RETURNING v.tenant, v.id, v.memory_node_id AS node_id, v.namespace, v.embedding_model AS model, v.dimension, v.status,
          v.version, v.attempts, v.created_at, v.bulk, v.vector_data ->> 'data' AS stored

-- name: extend
-- Rows that another transaction is changing right now are skipped: nobody waits for a heartbeat.
UPDATE memory_vectors v SET lease_until = clock_timestamp() + make_interval(secs => %(seconds)s)
FROM (SELECT tenant, id FROM memory_vectors WHERE lease_id = %(lease)s FOR UPDATE SKIP LOCKED) d
WHERE v.tenant = d.tenant AND v.id = d.id

-- name: release
UPDATE memory_vectors
SET status = CASE status WHEN 'deleting' THEN 'deleting' ELSE 'pending' END, lease_id = NULL, lease_until = NULL,
    attempts = attempts - 1, next_attempt_at = clock_timestamp(), updated_at = clock_timestamp()
WHERE lease_id = %(lease)s

-- name: claimed_nodes
SELECT {{Node n}}
FROM unnest(%(tenants)b::text[], %(ids)b::uuid[]) u(t, i)
CROSS JOIN LATERAL (SELECT * FROM memory_nodes n WHERE n.tenant = u.t AND n.id = u.i LIMIT 1) n

-- name: worded
-- Of these nodes those whose words are there as they are to be.
SELECT t.tenant, t.node_id
FROM unnest(%(tenants)b::text[], %(ids)b::uuid[], %(versions)b::int[]) u(t, i, ve)
JOIN memory_terms t ON t.tenant = u.t AND t.node_id = u.i AND t.version = u.ve AND t.analyser = %(analyser)s

-- part: analyser
-- Words in another language than the one that the node, or its namespace, has by now are written as older ones: a worker writes them again.
CASE WHEN w.de IS NOT DISTINCT FROM (
    SELECT coalesce(n.language, l.language)
    FROM memory_nodes n LEFT JOIN namespace_languages l ON l.tenant = n.tenant AND l.name = n.namespace
    WHERE n.tenant = w.tenant AND n.id = w.node_id
) THEN %(analyser)s ELSE 0 END

-- name: write_new_words
-- Of texts that were just committed. A node that is being written again is left out: its next version brings its own words. The lock keeps a
-- deletion waiting until the words are there for the worker to remove.
WITH parsed AS MATERIALIZED (
    SELECT t, i, ve, ns, la, de, w::tsvector AS terms
    FROM unnest(%(tenants)b::text[], %(nodes)b::uuid[], %(versions)b::int[], %(namespaces)b::text[], %(languages)b::text[],
                %(declared)b::text[], %(terms)b::text[]) u(t, i, ve, ns, la, de, w)
), held AS MATERIALIZED (
    SELECT n.tenant, n.id AS node_id, p.ve, p.ns, p.la, p.de, p.terms
    FROM parsed p JOIN memory_nodes n ON n.tenant = p.t AND n.id = p.i
    WHERE n.version = p.ve AND n.deleted_at IS NULL FOR SHARE OF n SKIP LOCKED
)
INSERT INTO memory_terms (tenant, node_id, namespace, version, terms, language, analyser)
SELECT tenant, node_id, ns, ve, terms, la,
-- include: analyser
FROM held w
ON CONFLICT (tenant, node_id) DO UPDATE
SET namespace = EXCLUDED.namespace, version = EXCLUDED.version, terms = EXCLUDED.terms, language = EXCLUDED.language,
    analyser = EXCLUDED.analyser
WHERE memory_terms.version <= EXCLUDED.version

-- name: succeed
-- The text index is written only by the run that still holds the row, so a late one cannot bring old words back. All words
-- are parsed before a row is locked (the sort takes them all in): a committer that wants the row holds the log meanwhile.
-- No language: the words are there already (no terms), or there are to be none. What was embedded without a vector loses the one it had.
WITH parsed AS MATERIALIZED (
    SELECT t, i, ve, vd, em, re, ns, la, de, w::tsvector AS terms
    FROM unnest(%(tenants)b::text[], %(ids)b::uuid[], %(versions)b::int[], %(vectors)b::text[], %(embedded)b::bool[], %(reads)b::text[],
                %(namespaces)b::text[], %(languages)b::text[], %(declared)b::text[], %(terms)b::text[])
         u(t, i, ve, vd, em, re, ns, la, de, w)
), ready AS MATERIALIZED (
    SELECT * FROM parsed ORDER BY t, i
), won AS (
    UPDATE memory_vectors v
    SET status = 'succeeded', error = NULL, error_class = NULL, lease_id = NULL, lease_until = NULL,
        external_vector_id = v.memory_node_id::text,
        vector_data = CASE WHEN vd IS NOT NULL THEN jsonb_build_object('encoding', 'f32le', 'data', vd)
                           WHEN NOT em THEN v.vector_data END,
        metadata = CASE WHEN em THEN v.metadata - 'read' || jsonb_strip_nulls(jsonb_build_object('read', re)) ELSE v.metadata END,
        updated_at = clock_timestamp()
    FROM ready
    WHERE v.tenant = t AND v.id = i AND v.version = ve AND v.lease_id = %(lease)s
    RETURNING v.tenant, v.memory_node_id AS node_id, ns AS namespace, v.version, terms, la, de
), keywords AS (
    INSERT INTO memory_terms (tenant, node_id, namespace, version, terms, language, analyser)
    -- Once for a node whose rows of two generations are indexed together.
    SELECT DISTINCT ON (tenant, node_id) tenant, node_id, namespace, version, terms, la,
    -- include: analyser
    FROM won w WHERE la IS NOT NULL ORDER BY tenant, node_id, version DESC
    ON CONFLICT (tenant, node_id) DO UPDATE
    SET namespace = EXCLUDED.namespace, version = EXCLUDED.version, terms = EXCLUDED.terms,
        language = EXCLUDED.language, analyser = EXCLUDED.analyser
    WHERE memory_terms.version <= EXCLUDED.version
), without_text AS (
    DELETE FROM memory_terms m USING won
    WHERE won.la IS NULL AND won.terms IS NOT NULL AND m.tenant = won.tenant AND m.node_id = won.node_id
)
SELECT count(*) AS rows, clock_timestamp() AS now FROM won

-- name: claim_keywords
-- Rows that wait for a service that is down, and whose words are not in the text index yet. ``after``: what was looked at before.
WITH due AS (
    SELECT v.tenant, v.id, v.next_attempt_at FROM memory_vectors v
    WHERE v.status = 'pending' AND v.lease_id IS NULL AND v.next_attempt_at <= statement_timestamp()
      AND (v.next_attempt_at, v.id) > (%(after_time)s, %(after_id)s)
      AND (NOT %(vectors)s OR (v.embedding_model IS NOT NULL AND v.vector_data IS NULL))
      AND NOT EXISTS (SELECT FROM memory_terms t
                      WHERE t.tenant = v.tenant AND t.node_id = v.memory_node_id AND t.version >= v.version)
      AND EXISTS (SELECT FROM memory_nodes n
                  WHERE n.tenant = v.tenant AND n.id = v.memory_node_id AND n.content <> '')
    ORDER BY v.next_attempt_at, v.id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
UPDATE memory_vectors v
SET status = 'in_flight', lease_id = %(lease)s, lease_until = clock_timestamp() + make_interval(secs => %(seconds)s),
    attempts = v.attempts + 1, updated_at = clock_timestamp()
FROM due d WHERE v.tenant = d.tenant AND v.id = d.id
RETURNING v.tenant, v.id, v.memory_node_id AS node_id, v.namespace, v.embedding_model AS model, v.dimension, v.status,
          v.version, v.attempts, v.created_at, v.bulk, NULL AS stored, d.next_attempt_at AS due

-- name: write_keywords
-- As in succeed: words are parsed before a row is locked, and only the run that holds the row may write its words.
WITH parsed AS MATERIALIZED (
    SELECT t, i, ve, ns, la, de, w::tsvector AS terms
    FROM unnest(%(tenants)b::text[], %(ids)b::uuid[], %(versions)b::int[], %(namespaces)b::text[], %(languages)b::text[],
                %(declared)b::text[], %(terms)b::text[]) u(t, i, ve, ns, la, de, w)
    WHERE la IS NOT NULL
), ready AS MATERIALIZED (
    SELECT * FROM parsed ORDER BY t, i
), held AS MATERIALIZED (
    SELECT v.tenant, v.memory_node_id AS node_id, ready.ns, v.version, ready.terms, ready.la, ready.de
    FROM ready JOIN memory_vectors v ON v.tenant = ready.t AND v.id = ready.i
    WHERE v.version = ready.ve AND v.lease_id = %(lease)s FOR UPDATE OF v
)
INSERT INTO memory_terms (tenant, node_id, namespace, version, terms, language, analyser)
SELECT DISTINCT ON (tenant, node_id) tenant, node_id, ns, version, terms, la,
-- include: analyser
FROM held w ORDER BY tenant, node_id, version DESC
ON CONFLICT (tenant, node_id) DO UPDATE
SET namespace = EXCLUDED.namespace, version = EXCLUDED.version, terms = EXCLUDED.terms,
        language = EXCLUDED.language, analyser = EXCLUDED.analyser
WHERE memory_terms.version <= EXCLUDED.version

-- name: now
SELECT statement_timestamp() AS now

-- name: removed
WITH won AS (
    UPDATE memory_vectors v
    SET status = 'deleted', error = NULL, error_class = NULL, lease_id = NULL, lease_until = NULL,
        updated_at = clock_timestamp()
    FROM unnest(%(tenants)b::text[], %(ids)b::uuid[], %(versions)b::int[]) u(t, i, ve)
    WHERE v.tenant = t AND v.id = i AND v.version = ve AND v.lease_id = %(lease)s
    RETURNING v.tenant, v.memory_node_id
), without_text AS (
    -- Not when the node only leaves one generation of the index: its words belong to all of them.
    DELETE FROM memory_terms m USING won
    WHERE m.tenant = won.tenant AND m.node_id = won.memory_node_id
      AND NOT EXISTS (SELECT FROM memory_vectors o
                      WHERE o.tenant = won.tenant AND o.memory_node_id = won.memory_node_id
                        AND o.status NOT IN ('deleting', 'deleted'))
)
SELECT count(*) AS rows FROM won

-- name: put_back
UPDATE memory_vectors v
SET status = CASE WHEN v.status = 'deleting' THEN 'deleting' ELSE st END, error = er, error_class = ec,
    next_attempt_at = clock_timestamp() + make_interval(secs => wait), lease_id = NULL, lease_until = NULL,
    attempts = v.attempts - spared, updated_at = clock_timestamp()
FROM unnest(%(tenants)b::text[], %(ids)b::uuid[], %(versions)b::int[], %(statuses)b::text[], %(errors)b::text[],
            %(classes)b::text[], %(waits)b::float8[], %(spared)b::int[]) u(t, i, ve, st, er, ec, wait, spared)
WHERE v.tenant = t AND v.id = i AND v.version = ve AND v.lease_id = %(lease)s

-- name: repair
-- For stores that do not order writes. A writer that finds that a row changed meanwhile may have put older state over newer: rows that
-- were finished meanwhile are indexed again, and a worker that holds such a row loses its lease, for its write may have come first.
UPDATE memory_vectors v
SET status = CASE WHEN v.status IN ('deleting', 'deleted') THEN 'deleting' ELSE 'pending' END, lease_id = NULL,
    lease_until = NULL, next_attempt_at = clock_timestamp(), updated_at = clock_timestamp()
FROM unnest(%(tenants)b::text[], %(ids)b::uuid[], %(versions)b::int[]) u(t, i, ve)
WHERE v.tenant = t AND v.id = i AND v.version > ve AND (v.status IN ('succeeded', 'deleted') OR v.lease_id IS NOT NULL)

-- name: durably
-- A crash of the server may take back what the worker writes, but not this: it must be durable before the writes to the index.
SELECT set_config('synchronous_commit', 'on', true)

-- name: note_round
-- In the transaction of `claim`, so that no write is under way that is not written down.
INSERT INTO index_rounds (lease, worker, tenants, ids, versions, begun_at)
SELECT %(lease)s, %(worker)s, array_agg(tenant), array_agg(id), array_agg(version), clock_timestamp()
FROM memory_vectors WHERE lease_id = %(lease)s HAVING count(*) > 0

-- name: close_round
DELETE FROM index_rounds WHERE lease = %(lease)s

-- name: release_round
-- Its process is done with it, but a request may still be on its way: only the time that has passed shows when none is.
UPDATE index_rounds SET worker = NULL WHERE lease = %(lease)s

-- name: repair_rounds
-- Looks at a round when it is overdue, when its worker is gone (its lock is free, or a day is over), and `grace` seconds after that,
-- when it is forgotten. Looking is `repair`: what has become newer since it was claimed is done again. One statement, so that no
-- round is looked at by halves.
WITH open AS (
    SELECT lease, begun_at < statement_timestamp() - make_interval(secs => %(longest)s) AS overdue,
           CASE WHEN worker IS NULL THEN begun_at < statement_timestamp() - make_interval(secs => %(longest)s)
                WHEN begun_at < statement_timestamp() - interval '1 day' THEN true
                ELSE pg_try_advisory_xact_lock(hashtextextended('memory-layer leader ' || worker, 0)) END AS gone
    FROM index_rounds WHERE gone_at IS NULL FOR UPDATE SKIP LOCKED
), judged AS (
    UPDATE index_rounds r
    SET ended_at = coalesce(r.ended_at, statement_timestamp()), gone_at = CASE WHEN o.gone THEN statement_timestamp() END
    FROM open o WHERE o.lease = r.lease AND (o.gone OR (o.overdue AND r.ended_at IS NULL))
    RETURNING r.tenants, r.ids, r.versions
), forgotten AS (
    DELETE FROM index_rounds
    WHERE gone_at < statement_timestamp() - make_interval(secs => %(grace)s)
      AND begun_at < statement_timestamp() - make_interval(secs => %(longest)s)
    RETURNING tenants, ids, versions
), late AS MATERIALIZED (
    SELECT v.tenant, v.id
    FROM (SELECT t, i, min(ve) AS ve
          FROM (SELECT * FROM judged UNION ALL SELECT * FROM forgotten) r
          CROSS JOIN LATERAL unnest(r.tenants, r.ids, r.versions) u(t, i, ve) GROUP BY t, i) w
    JOIN memory_vectors v ON v.tenant = w.t AND v.id = w.i
    WHERE v.version > w.ve AND (v.status IN ('succeeded', 'deleted') OR v.lease_id IS NOT NULL)
    ORDER BY v.tenant, v.id FOR UPDATE OF v
), again AS (
    UPDATE memory_vectors v
    SET status = CASE WHEN v.status IN ('deleting', 'deleted') THEN 'deleting' ELSE 'pending' END, lease_id = NULL,
        lease_until = NULL, next_attempt_at = clock_timestamp(), updated_at = clock_timestamp()
    FROM late WHERE v.tenant = late.tenant AND v.id = late.id
    RETURNING 1
)
SELECT count(*) AS rows FROM again

-- name: backlog
SELECT count(*) AS pending,
       coalesce(greatest(extract(epoch FROM clock_timestamp() - min(next_attempt_at)), 0), 0)::float8 AS oldest
FROM memory_vectors WHERE (status IN ('pending', 'deleting') AND lease_id IS NULL) OR lease_id IS NOT NULL

-- name: queue
SELECT status, count(*) AS rows,
       greatest(extract(epoch FROM clock_timestamp() - min(
           CASE WHEN status IN ('failed', 'dead') THEN updated_at ELSE next_attempt_at END)), 0)::float8 AS oldest
FROM memory_vectors
WHERE (status IN ('pending', 'deleting') AND lease_id IS NULL) OR lease_id IS NOT NULL OR status IN ('failed', 'dead')
GROUP BY status

-- name: put_breaker
INSERT INTO worker_breakers (worker, service, state, reason, since, seen_at)
VALUES (%(worker)s, %(service)s, %(state)s, %(reason)s, %(since)s, clock_timestamp())
ON CONFLICT (worker, service) DO UPDATE
SET state = EXCLUDED.state, reason = EXCLUDED.reason, since = EXCLUDED.since, seen_at = EXCLUDED.seen_at

-- name: drop_breakers
-- This worker's that are closed again, and those of workers that have ended.
DELETE FROM worker_breakers
WHERE (worker = %(worker)s AND service <> ALL (%(open)s::text[])) OR seen_at < statement_timestamp() - interval '1 minute'

-- name: breakers
SELECT service, bool_or(state = 'open') AS open, min(since) AS since
FROM worker_breakers WHERE seen_at > statement_timestamp() - interval '1 minute' GROUP BY service

-- name: get_job
SELECT v.tenant, v.id, v.memory_node_id, v.version, v.namespace, v.provider, v.embedding_model, v.dimension, v.status,
       v.attempts, v.error, v.error_class, v.next_attempt_at, v.lease_until, v.created_at, v.updated_at,
       CASE WHEN v.status = 'succeeded' THEN v.metadata ->> 'read' END AS read
FROM memory_vectors v WHERE v.tenant = %(tenant)s AND v.id = %(id)s

-- name: list_jobs
SELECT v.tenant, v.id, v.memory_node_id, v.version, v.namespace, v.provider, v.embedding_model, v.dimension, v.status,
       v.attempts, v.error, v.error_class, v.next_attempt_at, v.lease_until, v.created_at, v.updated_at,
       CASE WHEN v.status = 'succeeded' THEN v.metadata ->> 'read' END AS read
FROM memory_vectors v
WHERE v.status = ANY (%(statuses)s::text[]) AND (%(tenant)s::text IS NULL OR v.tenant = %(tenant)s)
  AND (%(namespace)s::text IS NULL OR v.namespace = %(namespace)s)
ORDER BY v.updated_at DESC, v.id LIMIT %(limit)s

-- name: tenant_of_job
SELECT tenant FROM memory_vectors WHERE id = %(id)s ORDER BY tenant LIMIT 1

-- name: job_statuses
-- A look-up for each, as in find_vectors (commit.sql).
SELECT f.* FROM unnest(%(tenants)b::text[], %(ids)b::uuid[]) u(t, i)
CROSS JOIN LATERAL (
    SELECT v.tenant, v.id, v.version, v.status FROM memory_vectors v WHERE v.tenant = u.t AND v.id = u.i OFFSET 0
) f

-- part: earlier
-- Made by the local model before it was said how much of the text a vector stands for. Written out as in the index that the migration made.
status = 'succeeded' AND embedding_model = 'all-MiniLM-L6-v2' AND metadata ->> 'source' = 'embedder' AND NOT metadata ? 'read'

-- name: renew_vectors
-- A page of them. A short text of ASCII was read whole, and its vector is what it was; of others the vector is made anew, and the index
-- keeps the old one until then. No more tokens than characters: 254 of them the model reads at once.
WITH page AS MATERIALIZED (
    SELECT v.tenant, v.id,
           length(n.content) > 254 OR octet_length(n.content) > length(n.content) OR n.content !~ '[!-~]' AS again
    FROM (SELECT * FROM memory_vectors WHERE
          -- include: earlier
         ) v JOIN memory_nodes n ON n.tenant = v.tenant AND n.id = v.memory_node_id AND n.version = v.version
    WHERE (v.tenant, v.id) > (%(tenant)s::text, %(id)s::uuid) AND n.content <> ''
    ORDER BY v.tenant, v.id LIMIT %(limit)s
), locked AS MATERIALIZED (
    SELECT m.tenant, m.id, p.again FROM page p JOIN memory_vectors m ON m.tenant = p.tenant AND m.id = p.id
    WHERE m.status = 'succeeded' AND m.lease_id IS NULL FOR UPDATE OF m SKIP LOCKED
), renewed AS (
    UPDATE memory_vectors v
    SET status = CASE WHEN l.again THEN 'pending' ELSE v.status END, bulk = l.again, attempts = 0,
        vector_data = CASE WHEN l.again THEN NULL ELSE v.vector_data END,
        metadata = CASE WHEN l.again THEN v.metadata ELSE v.metadata || '{"read": "whole"}' END,
        next_attempt_at = clock_timestamp(), updated_at = clock_timestamp()
    FROM locked l WHERE v.tenant = l.tenant AND v.id = l.id
)
SELECT tenant, id, again FROM page ORDER BY tenant, id

-- name: unsettled
-- How many of these rows a worker has yet to index.
SELECT count(*) AS rows FROM unnest(%(tenants)b::text[], %(ids)b::uuid[]) u(t, i)
JOIN memory_vectors v ON v.tenant = u.t AND v.id = u.i WHERE v.status IN ('pending', 'in_flight')

-- name: count_earlier
SELECT tenant, namespace, count(*) AS vectors FROM memory_vectors WHERE
-- include: earlier
GROUP BY tenant, namespace

-- name: spaces
-- A sample of the table tells the large namespaces, and those that were written to last, at a cost that does not grow with it.
SELECT s.tenant, s.index_namespace
FROM namespaces s
LEFT JOIN (
    SELECT v.tenant, v.namespace, count(*) AS rows, max(v.updated_at) AS latest
    FROM memory_vectors v TABLESAMPLE SYSTEM (
        (SELECT least(100, 100.0 * %(pages)s / greatest(relpages, 1)) FROM pg_class WHERE oid = 'memory_vectors'::regclass))
    GROUP BY v.tenant, v.namespace
) w ON w.tenant = s.tenant AND w.namespace = s.index_namespace
WHERE s.state = 'active'
ORDER BY w.rows DESC NULLS LAST, w.latest DESC NULLS LAST, s.updated_at DESC, s.tenant, s.name LIMIT %(limit)s

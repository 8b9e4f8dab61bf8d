-- The text index in the background. The number is the version of the analyser, as in the index that the migration made for it; it is written
-- out, for a parameter would not let Postgres use that index.

-- name: older
-- A text that was changed since gets its words with that version.
SELECT t.tenant, t.node_id, t.version, n.content, n.language AS declared
FROM memory_terms t JOIN memory_nodes n ON n.tenant = t.tenant AND n.id = t.node_id AND n.version = t.version
WHERE t.analyser < 1 AND (t.tenant, t.node_id) > (%(tenant)s::text, %(node)s::uuid)
ORDER BY t.tenant, t.node_id LIMIT %(limit)s

-- name: renew
UPDATE memory_terms t SET terms = u.terms::tsvector, language = u.language, analyser = %(analyser)s
FROM unnest(%(tenants)s::text[], %(nodes)s::uuid[], %(versions)s::int[], %(languages)s::text[], %(terms)s::text[])
    u(tenant, node, version, language, terms)
WHERE t.tenant = u.tenant AND t.node_id = u.node AND t.version = u.version AND t.analyser < %(analyser)s
RETURNING t.node_id

-- name: count_older
SELECT tenant, namespace, count(*) AS texts FROM memory_terms WHERE analyser < 1 GROUP BY tenant, namespace

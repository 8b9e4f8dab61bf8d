-- The text index in the background. The number is the version of the analyser, as in the index that the migration made for it; it is written
-- out, for a parameter would not let Postgres use that index.

-- name: older
-- A text that was changed since gets its words with that version.
SELECT t.tenant, t.node_id, t.version, n.content,
       coalesce(n.language, (SELECT l.language FROM namespace_languages l WHERE l.tenant = n.tenant AND l.name = n.namespace)) AS declared
FROM memory_terms t JOIN memory_nodes n ON n.tenant = t.tenant AND n.id = t.node_id AND n.version = t.version
WHERE t.analyser < 1 AND (t.tenant, t.node_id) > (%(tenant)s::text, %(node)s::uuid)
ORDER BY t.tenant, t.node_id LIMIT %(limit)s

-- name: renew
-- Not where another language was set meanwhile: the next round has it.
UPDATE memory_terms t SET terms = u.terms::tsvector, language = u.language, analyser = %(analyser)s
FROM unnest(%(tenants)s::text[], %(nodes)s::uuid[], %(versions)s::int[], %(languages)s::text[], %(declared)s::text[], %(terms)s::text[])
    u(tenant, node, version, language, declared, terms)
JOIN memory_nodes n ON n.tenant = u.tenant AND n.id = u.node
LEFT JOIN namespace_languages l ON l.tenant = n.tenant AND l.name = n.namespace
WHERE t.tenant = u.tenant AND t.node_id = u.node AND t.version = u.version AND t.analyser < %(analyser)s
  AND u.declared IS NOT DISTINCT FROM coalesce(n.language, l.language)
RETURNING t.node_id

-- name: language
SELECT language FROM namespace_languages WHERE tenant = %(tenant)s AND name = %(name)s

-- name: languages
-- Of the namespaces of these nodes, where the node declares none.
SELECT n.tenant, n.id, l.language
FROM unnest(%(tenants)b::text[], %(ids)b::uuid[]) u(t, i)
JOIN memory_nodes n ON n.tenant = u.t AND n.id = u.i
JOIN namespace_languages l ON l.tenant = n.tenant AND l.name = n.namespace
WHERE n.language IS NULL AND l.language IS NOT NULL

-- name: respoken
-- Namespaces whose language was set since their texts were last marked.
SELECT tenant, name, set_at FROM namespace_languages WHERE NOT applied ORDER BY tenant, name LIMIT %(limit)s

-- name: age
-- Mark a page of a namespace's words as older ones, but for those of nodes that declare a language.
WITH page AS MATERIALIZED (
    SELECT t.node_id FROM memory_terms t
    WHERE t.tenant = %(tenant)s AND t.namespace = %(name)s AND t.node_id > %(after)s::uuid ORDER BY t.node_id LIMIT %(limit)s
), aged AS (
    UPDATE memory_terms t SET analyser = 0
    FROM page p JOIN memory_nodes n ON n.tenant = %(tenant)s AND n.id = p.node_id
    WHERE t.tenant = %(tenant)s AND t.node_id = p.node_id AND n.language IS NULL
)
SELECT (array_agg(node_id ORDER BY node_id DESC))[1] AS last FROM page

-- name: applied
UPDATE namespace_languages SET applied = true WHERE tenant = %(tenant)s AND name = %(name)s AND set_at = %(set_at)s

-- name: count_older
SELECT tenant, namespace, count(*) AS texts FROM memory_terms WHERE analyser < 1 GROUP BY tenant, namespace

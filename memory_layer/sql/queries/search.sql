-- Search reads. memory_terms has no row-level security: the tenant stands in every query.

-- name: namespace
SELECT tenant, name, index_namespace, embedding_model AS model, dimension, provider
FROM namespaces WHERE tenant = %(tenant)s AND name = %(name)s AND state = 'active'

-- name: keyword
-- Any word of the first thousand characters may match; the rank is normalised by length and scaled to 0..1 (1 + 32). Not
-- ts_rank_cd: with many words in long texts its search for close ones takes minutes.
WITH q AS (
    SELECT replace(plainto_tsquery('english', left(%(query)s, 1000))::text, ' & ', ' | ')::tsquery AS any_word
)
SELECT t.node_id, t.version, ts_rank(t.terms, q.any_word, 33) AS score
FROM memory_terms t, q
WHERE t.tenant = %(tenant)s AND t.namespace = %(namespace)s AND t.terms @@ q.any_word
ORDER BY score DESC, t.node_id LIMIT %(limit)s OFFSET %(skip)s

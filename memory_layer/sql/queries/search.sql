-- Search reads. memory_terms has no row-level security: the tenant stands in every query.

-- name: keyword
-- BM25 (Robertson, Spaerck Jones 1994) over the texts of one namespace, as a share of what a text full of all the query's words
-- could get: 0..1. How often a word stands in a text comes from ts_rank: for one word and weight 1 it is the sum of 1/j^2 over its
-- occurrences, divided by pi^2/6, which is tf / (tf + 0.645) within 0.01. So BM25's k1 is 0.645, and with the length of the text
-- in it the same fraction reads s / (s + (1 - s) * length). Not ts_rank over all words, which knows nothing of rarity.
--
-- What a caller may not read is left out before anything is counted: else the scores of other texts would tell its words.
-- The work is bounded: words are counted up to a limit, and the rarest words choose the texts that are scored.
WITH words AS MATERIALIZED (
    SELECT lexeme, ('''' || replace(replace(lexeme, '\', '\\'), '''', '''''') || '''')::tsquery AS word
    FROM unnest(to_tsvector('english', left(%(query)s, 1000))) ORDER BY positions[1], lexeme LIMIT %(words)s
), counted AS MATERIALIZED (
    SELECT w.lexeme, w.word, c.texts
    FROM words w, LATERAL (
        SELECT count(*) AS texts FROM (
            SELECT FROM memory_terms t
            WHERE t.tenant = %(tenant)s AND t.namespace = %(namespace)s AND t.terms @@ w.word
              AND (%(all)s OR NOT EXISTS (
                    SELECT FROM memory_nodes n
                    WHERE n.tenant = t.tenant AND n.id = t.node_id AND n.pii_flags @> '{"containsPii": true}'
                      AND (coalesce(n.pii_flags -> 'paths', '[]') IN ('[]', 'null') OR n.pii_flags -> 'paths' ? 'content')))
            LIMIT %(most)s) x
    ) c
    WHERE c.texts > 0
), weighed AS MATERIALIZED (
    SELECT c.lexeme, c.word, ln(1 + (n.texts - c.texts + 0.5) / (c.texts + 0.5))::float8 AS rarity,
           sum(c.texts) OVER rarest <= %(most)s OR row_number() OVER rarest = 1 AS chosen
    FROM counted c, (
        SELECT count(*) AS texts FROM (
            SELECT FROM memory_terms WHERE tenant = %(tenant)s AND namespace = %(namespace)s LIMIT 10 * %(most)s) x
    ) n
    WINDOW rarest AS (ORDER BY c.texts, c.lexeme)
    ORDER BY c.texts, c.lexeme
), asked AS MATERIALIZED (
    SELECT string_agg(word::text, ' | ') FILTER (WHERE chosen)::tsquery AS any_word, sum(rarity) AS best,
           bool_and(chosen) AS complete
    FROM weighed
), candidates AS MATERIALIZED (
    SELECT t.node_id, t.version, t.terms, length(t.terms)::float8 AS length
    FROM asked a, memory_terms t
    WHERE t.tenant = %(tenant)s AND t.namespace = %(namespace)s AND t.terms @@ a.any_word
      AND (%(all)s OR NOT EXISTS (
            SELECT FROM memory_nodes n
            WHERE n.tenant = t.tenant AND n.id = t.node_id AND n.pii_flags @> '{"containsPii": true}'
              AND (coalesce(n.pii_flags -> 'paths', '[]') IN ('[]', 'null') OR n.pii_flags -> 'paths' ? 'content')))
    ORDER BY t.node_id DESC LIMIT %(most)s
), found AS (
    SELECT avg(length) AS length, count(*) AS texts FROM candidates
)
SELECT c.node_id, c.version, s.score / a.best AS score, a.complete AND f.texts < %(most)s AS complete
FROM candidates c, asked a, found f, LATERAL (
    SELECT sum(w.rarity * r.s / (r.s + (1 - r.s) * (0.75 + 0.25 * c.length / f.length))) AS score
    FROM weighed w, LATERAL (SELECT ts_rank('{1,1,1,1}', c.terms, w.word)::float8 AS s OFFSET 0) r
    WHERE r.s > 0
) s
ORDER BY score DESC, c.node_id LIMIT %(limit)s

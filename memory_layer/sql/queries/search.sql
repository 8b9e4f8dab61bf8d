-- Search reads. memory_terms has no row-level security: the tenant stands in every query.

-- part: readable
-- What a caller may not read is left out before anything is counted: else the scores of other texts would tell its words.
AND (%(all)s OR NOT EXISTS (
          SELECT FROM memory_nodes n
          WHERE n.tenant = t.tenant AND n.id = t.node_id AND n.pii_flags @> '{"containsPii": true}'
            AND (coalesce(n.pii_flags -> 'paths', '[]') IN ('[]', 'null') OR n.pii_flags -> 'paths' ? 'content')))

-- part: spoken
-- The languages of a namespace's texts, each by one look-up. A query brings the stems of all.
WITH RECURSIVE spoken(language) AS (
    (SELECT language FROM memory_terms
     WHERE tenant = %(tenant)s AND namespace = %(namespace)s ORDER BY language LIMIT 1)
    UNION ALL
    SELECT (SELECT t.language FROM memory_terms t
            WHERE t.tenant = %(tenant)s AND t.namespace = %(namespace)s AND t.language > s.language ORDER BY t.language LIMIT 1)
    FROM spoken s WHERE s.language IS NOT NULL

-- part: words
-- The words of a query that some text has, and in how many texts: counted up to a limit.
-- include: spoken
), lexemes AS MATERIALIZED (
    SELECT number, word::tsquery AS word
    FROM unnest(%(numbers)s::int[], %(languages)s::text[], %(words)s::text[]) u(number, language, word)
    WHERE language IN ('', 'en') OR language IN (SELECT language FROM spoken)
), counted AS MATERIALIZED (
    SELECT l.number, l.word, c.texts
    FROM lexemes l, LATERAL (
        SELECT count(*) AS texts FROM (
            SELECT FROM memory_terms t
            WHERE t.tenant = %(tenant)s AND t.namespace = %(namespace)s AND t.terms @@ l.word
              -- include: readable
            LIMIT %(most)s) x
    ) c
    WHERE c.texts > 0
), found_words AS MATERIALIZED (
    -- A word is any of its lexemes.
    SELECT number, string_agg(word::text, ' | ')::tsquery AS word, least(sum(texts), %(most)s) AS texts FROM counted GROUP BY number

-- name: keyword
-- BM25 (Robertson, Spaerck Jones 1994) over the texts of one namespace, as a share of what a text full of all the query's words
-- could get: 0..1. How often a word stands in a text comes from ts_rank: for one word and weight 1 it is the sum of 1/j^2 over its
-- occurrences, divided by pi^2/6, which is tf / (tf + 0.645) within 0.01. So BM25's k1 is 0.645, and with the length of the text
-- in it the same fraction reads s / (s + (1 - s) * length). Not ts_rank over all words, which knows nothing of rarity.
-- The work is bounded: words are counted up to a limit, and the rarest words choose the texts that are scored.
-- include: words
), weighed AS MATERIALIZED (
    SELECT c.number, c.word, ln(1 + (n.texts - c.texts + 0.5) / (c.texts + 0.5))::float8 AS rarity,
           sum(c.texts) OVER rarest <= %(most)s OR row_number() OVER rarest = 1 AS chosen
    FROM found_words c, (
        SELECT count(*) AS texts FROM (
            SELECT FROM memory_terms WHERE tenant = %(tenant)s AND namespace = %(namespace)s LIMIT 10 * %(most)s) x
    ) n
    WINDOW rarest AS (ORDER BY c.texts, c.number)
    ORDER BY c.texts, c.number
), asked AS MATERIALIZED (
    SELECT string_agg(word::text, ' | ') FILTER (WHERE chosen)::tsquery AS any_word, sum(rarity) AS best,
           bool_and(chosen) AS complete
    FROM weighed
), candidates AS MATERIALIZED (
    SELECT t.node_id, t.version, t.terms, length(t.terms)::float8 AS length
    FROM asked a, memory_terms t
    WHERE t.tenant = %(tenant)s AND t.namespace = %(namespace)s AND t.terms @@ a.any_word
      -- include: readable
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

-- name: keyword_long
-- The same for a query of many words: each text's own words are looked up among the query's, not the query's in each text. How often a
-- word stands in a text counts as in ts_rank: the sum of 1/j^2 over its occurrences, divided by pi^2/6. A statement of its own: one for both
-- made short queries an eighth slower (24 to 27 ms with 4,000 texts). What stands before the last SELECT must stay as in keyword, but for
-- the lexemes. A word that is the beginning of longer ones (a hash, a single character of Chinese) is looked up in each text all the same.
-- include: spoken
), lexemes AS MATERIALIZED (
    SELECT number, lexeme, word::tsquery AS word
    FROM unnest(%(numbers)s::int[], %(languages)s::text[], %(words)s::text[], %(lexemes)s::text[]) u(number, language, word, lexeme)
    WHERE language IN ('', 'en') OR language IN (SELECT language FROM spoken)
), counted AS MATERIALIZED (
    SELECT l.number, l.lexeme, l.word, c.texts
    FROM lexemes l, LATERAL (
        SELECT count(*) AS texts FROM (
            SELECT FROM memory_terms t
            WHERE t.tenant = %(tenant)s AND t.namespace = %(namespace)s AND t.terms @@ l.word
              -- include: readable
            LIMIT %(most)s) x
    ) c
    WHERE c.texts > 0
), found_words AS MATERIALIZED (
    -- A word is any of its lexemes.
    SELECT number, string_agg(word::text, ' | ')::tsquery AS word, array_agg(lexeme) AS lexemes, least(sum(texts), %(most)s) AS texts
    FROM counted GROUP BY number
), weighed AS MATERIALIZED (
    SELECT c.number, c.word, c.lexemes, ln(1 + (n.texts - c.texts + 0.5) / (c.texts + 0.5))::float8 AS rarity,
           sum(c.texts) OVER rarest <= %(most)s OR row_number() OVER rarest = 1 AS chosen
    FROM found_words c, (
        SELECT count(*) AS texts FROM (
            SELECT FROM memory_terms WHERE tenant = %(tenant)s AND namespace = %(namespace)s LIMIT 10 * %(most)s) x
    ) n
    WINDOW rarest AS (ORDER BY c.texts, c.number)
    ORDER BY c.texts, c.number
), asked AS MATERIALIZED (
    SELECT string_agg(word::text, ' | ') FILTER (WHERE chosen)::tsquery AS any_word, sum(rarity) AS best,
           bool_and(chosen) AS complete
    FROM weighed
), candidates AS MATERIALIZED (
    SELECT t.node_id, t.version, t.terms, length(t.terms)::float8 AS length
    FROM asked a, memory_terms t
    WHERE t.tenant = %(tenant)s AND t.namespace = %(namespace)s AND t.terms @@ a.any_word
      -- include: readable
    ORDER BY t.node_id DESC LIMIT %(most)s
), found AS (
    SELECT avg(length) AS length, count(*) AS texts FROM candidates
), beginnings AS MATERIALIZED (
    -- The rarest words that stand for longer ones: these are looked up in each text.
    SELECT number, word, rarity FROM weighed WHERE word::text LIKE '%%:*%%' ORDER BY rarity DESC, number LIMIT %(beginnings)s
), whole AS MATERIALIZED (
    SELECT x.lexeme, w.rarity FROM weighed w, unnest(w.lexemes) x(lexeme) WHERE w.number NOT IN (SELECT number FROM beginnings)
)
SELECT c.node_id, c.version, s.score / a.best AS score, a.complete AND f.texts < %(most)s AS complete
FROM candidates c, asked a, found f, LATERAL (
    SELECT sum(r.rarity * r.s / (r.s + (1 - r.s) * (0.75 + 0.25 * c.length / f.length))) AS score
    FROM (
        SELECT w.rarity, (
            SELECT sum(1.0 / (j * j)) / 1.6449340668482264 FROM generate_series(1, least(cardinality(u.positions), 32)) j
        )::float8 AS s
        FROM whole w JOIN unnest(c.terms) u ON u.lexeme = w.lexeme
        UNION ALL
        SELECT b.rarity, ts_rank('{1,1,1,1}', c.terms, b.word)::float8 FROM beginnings b
    ) r
    WHERE r.s > 0
) s
WHERE s.score IS NOT NULL
ORDER BY score DESC, c.node_id LIMIT %(limit)s

-- name: explain_words
-- The words of a query that some text has, as rare as keyword takes them for, and in which of these nodes' texts they stand.
-- include: words
)
SELECT w.number, ln(1 + (n.texts - w.texts + 0.5) / (w.texts + 0.5))::float8 AS rarity, ARRAY (
           SELECT t.node_id FROM memory_terms t
           WHERE t.tenant = %(tenant)s AND t.namespace = %(namespace)s AND t.node_id = ANY (%(nodes)b::uuid[]) AND t.terms @@ w.word
       ) AS nodes
FROM found_words w, (
    SELECT count(*) AS texts FROM (
        SELECT FROM memory_terms WHERE tenant = %(tenant)s AND namespace = %(namespace)s LIMIT 10 * %(most)s) x
) n
ORDER BY rarity DESC, w.number

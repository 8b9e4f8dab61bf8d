-- Which keys sealed the log, as the log's keeper tells it. A claim here counts when the seal beside it proves it.

-- name: epochs
-- From which entry on each key seals, in order, with the log's length. The first has sealed from the beginning.
SELECT l.log, l.origin, k.from_seq, k.key_id,
       coalesce((SELECT max(s.last_seq) FROM audit_seals s WHERE s.log = l.log), -1) AS last_seq
FROM (SELECT log, origin, key_id FROM audit_logs WHERE origin = %(origin)s) l
CROSS JOIN LATERAL (
    SELECT 0::bigint AS from_seq, l.key_id
    UNION ALL
    SELECT k.from_seq, k.key_id FROM audit_keys k WHERE k.log = l.log
) k
ORDER BY k.from_seq

-- name: activation
-- The entry before the one from which the newest key seals, with the seal that covers it.
SELECT e.entry, p.salt, p.payload, s.seal_text, s.signature
FROM (SELECT log FROM audit_logs WHERE origin = %(origin)s) l
CROSS JOIN LATERAL (SELECT max(k.from_seq) - 1 AS seq FROM audit_keys k WHERE k.log = l.log) k
JOIN audit_events e ON e.log = l.log AND e.seq = k.seq
JOIN audit_seals s ON s.log = e.log AND s.batch_no = e.batch_no
LEFT JOIN audit_payloads p ON p.log = e.log AND p.seq = e.seq

-- name: retirements
-- What was retired since the newest key began; the first is that of the key before it.
SELECT p.payload
FROM (SELECT log FROM audit_logs WHERE origin = %(origin)s) l
CROSS JOIN LATERAL (SELECT max(k.from_seq) AS seq FROM audit_keys k WHERE k.log = l.log) k
JOIN audit_events e ON e.log = l.log AND e.seq >= k.seq AND e.event_type = 'audit.key.retired'
JOIN audit_payloads p ON p.log = e.log AND p.seq = e.seq
ORDER BY e.seq LIMIT 1

-- name: first_key
SELECT key_id FROM audit_logs WHERE origin = %(origin)s

-- name: key_history
-- Every change of key, in order, with what proves it: the entry in front of it, its payload, and the seal that covers both.
SELECT k.from_seq, k.key_id, k.algorithm, k.public_key, e.entry, p.salt, p.payload, s.seal_text, s.signature
FROM (SELECT log FROM audit_logs WHERE origin = %(origin)s) l
JOIN audit_keys k ON k.log = l.log
LEFT JOIN audit_events e ON e.log = k.log AND e.seq = k.from_seq - 1
LEFT JOIN audit_payloads p ON p.log = e.log AND p.seq = e.seq
LEFT JOIN audit_seals s ON s.log = e.log AND s.batch_no = e.batch_no
ORDER BY k.from_seq LIMIT %(limit)s

--
-- report.sql: compare what the plant committed with what the ERP received
--
--	psql -v file=/path/of/received.tsv -f report.sql
--
-- The file is what the consumer wrote, in order of arrival.
--
\set ON_ERROR_STOP on
\set QUIET on

CREATE TABLE received (
	n bigint GENERATED ALWAYS AS IDENTITY,
	message_id text,
	arrived_us bigint,			-- microseconds since 1970
	routing_key text,
	body text
);
COPY received (message_id, arrived_us, routing_key, body) FROM :'file';
ANALYZE received, published;

-- events as the consumer sees them; alarms are plain text
CREATE VIEW event AS
	SELECT r.n, r.message_id, r.arrived_us, j.body ->> 'work_order' AS work_order,
		(j.body ->> 'number')::integer AS number, j.body ? 'doomed' AS doomed
	FROM received r, LATERAL (SELECT CASE WHEN r.body LIKE '{%'
		THEN r.body::jsonb ELSE '{}' END AS body) j;

CREATE TABLE result AS
SELECT
	(SELECT count(*) FROM published) AS committed,
	(SELECT delivered FROM amqp_outbox.server_status
		WHERE server = 'erp') AS confirmed,
	(SELECT count(*) FROM received) AS received,
	(SELECT count(DISTINCT message_id) FROM received) AS unique_ids,
	-- marked by the transaction that was going to be rolled back, or known to
	-- no committed one
	(SELECT count(*) FROM event e LEFT JOIN published p USING (message_id)
		WHERE e.doomed OR p.message_id IS NULL) AS phantoms,
	(SELECT CASE WHEN is_called THEN last_value ELSE 0 END
		FROM rolled_back) AS doomed,
	-- the numbers of each work order count 1, 2, 3, ... as they arrive
	(SELECT count(*) FROM (
			SELECT number, lag(number, 1, 0)
				OVER (PARTITION BY work_order ORDER BY n) AS before
			FROM event WHERE number IS NOT NULL) o
		WHERE number <> before + 1) AS out_of_order,
	l.p50, l.p99
FROM (
	-- The commit's own time, which PostgreSQL takes just before it writes the
	-- commit to disk: so that write is part of the latency.
	SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY ms) AS p50,
		percentile_cont(0.99) WITHIN GROUP (ORDER BY ms) AS p99
	FROM (
		SELECT e.arrived_us / 1000.0 - extract(epoch FROM c.at) * 1000 AS ms
		FROM event e
			JOIN published p USING (message_id),
			LATERAL (SELECT pg_xact_commit_timestamp(p.xid::xid) AS at) c
			JOIN real_pace ON c.at BETWEEN began_at AND ended_at) m
) l;

CREATE VIEW verdict AS
	SELECT received = committed AND unique_ids = committed
		AND confirmed = committed AND phantoms = 0 AND out_of_order = 0
		AND committed > 0 AS ok
	FROM result;

\pset format aligned
\pset border 2
\pset footer off
SELECT line AS "the shift", figure AS "in figures"
FROM result, LATERAL (VALUES
	('committed events', to_char(committed, 'FM999,999,990')),
	('published, and confirmed by the broker', to_char(confirmed, 'FM999,999,990')),
	('received by the consumer', to_char(received, 'FM999,999,990')),
	('unique', to_char(unique_ids, 'FM999,999,990')),
	('from rolled-back transactions', format('%s  (%s were tried)', phantoms,
		to_char(doomed, 'FM999,999,990'))),
	('out of order', out_of_order::text),
	('commit to consumer at real pace, p50', to_char(p50, 'FM990.0') || ' ms'),
	('commit to consumer at real pace, p99', to_char(p99, 'FM990.0') || ' ms')
) v (line, figure);

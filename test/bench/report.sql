-- report.sql: the table that scripts/bench prints, in Markdown
--
-- Rates are messages a second and the ratio is outbox by the other; latencies
-- are milliseconds and the ratio is the other by the outbox: so 1 is as good as
-- the other everywhere, and more is better.
WITH pair AS (
	SELECT o.figure, o.round, o.n, o.figure LIKE '%consumer%' AS latency,
		o.value AS ours, b.value AS theirs, b.side
	FROM measured o JOIN measured b USING (figure, round)
	WHERE o.side = 'outbox' AND b.side <> 'outbox'
), median AS (
	SELECT figure, side, latency, min(n) AS n,
		percentile_cont(0.5) WITHIN GROUP (ORDER BY ours) AS ours,
		percentile_cont(0.5) WITHIN GROUP (ORDER BY theirs) AS theirs,
		percentile_cont(0.5) WITHIN GROUP (ORDER BY
			CASE WHEN latency THEN theirs / ours ELSE ours / theirs END) AS ratio
	FROM pair GROUP BY figure, side, latency
), line AS (
	SELECT n, format('| %s | %s | %s %s | **%s** | %s |', figure,
		CASE WHEN latency THEN to_char(ours, 'FM9990.00') || ' ms'
			ELSE to_char(ours, 'FM999,999,990') || '/s' END,
		CASE side WHEN 'plain' THEN 'plain INSERT'
			WHEN 'alone' THEN 'the good ones alone' ELSE 'bare publisher' END,
		CASE WHEN latency THEN to_char(theirs, 'FM9990.00') || ' ms'
			ELSE to_char(theirs, 'FM999,999,990') || '/s' END,
		to_char(ratio, 'FM990.00'),
		CASE WHEN latency OR figure LIKE '%synchronous_commit%' THEN ''
			WHEN side = 'plain' THEN '≥ 0.9'
			WHEN side = 'alone' THEN '≥ 0.5' ELSE '≥ 0.6' END) AS text
	FROM median
)
SELECT text FROM (
	SELECT 0 AS n, '| what | outbox | compared with | ratio | goal |' AS text
	UNION ALL SELECT 0, '|---|---|---|---|---|'
	UNION ALL SELECT * FROM line) t
ORDER BY n;

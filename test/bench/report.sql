-- report.sql: the table that scripts/bench prints, in Markdown
--
-- Of rates the ratio is outbox by the other, of times the other by the outbox: so
-- 1 is as good as the other everywhere, and more is better.
WITH pair AS (
	SELECT o.figure, o.round, coalesce(b.n, o.n) AS n, o.unit <> '/s' AS is_time, o.unit,
		o.value AS ours, b.value AS theirs, b.side,
		coalesce(nullif(b.goal, ''), nullif(o.goal, '')) AS goal
	FROM measured o LEFT JOIN measured b
		ON b.figure = o.figure AND b.round = o.round AND b.side <> 'outbox'
	WHERE o.side = 'outbox'
), median AS (
	SELECT figure, side, is_time, unit, max(goal) AS goal, min(n) AS n,
		percentile_cont(0.5) WITHIN GROUP (ORDER BY ours) AS ours,
		percentile_cont(0.5) WITHIN GROUP (ORDER BY theirs) AS theirs,
		percentile_cont(0.5) WITHIN GROUP (ORDER BY
			CASE WHEN is_time THEN theirs / nullif(ours, 0)
				ELSE ours / nullif(theirs, 0) END) AS ratio
	FROM pair GROUP BY figure, side, is_time, unit
), line AS (
	SELECT n, format('| %s | %s | %s | %s | %s |', figure,
		to_char(ours, CASE WHEN is_time THEN 'FM999990.00'
			ELSE 'FM999,999,990' END) || CASE WHEN is_time THEN ' ' ELSE '' END || unit,
		CASE side WHEN 'plain' THEN 'plain INSERT'
			WHEN 'alone' THEN 'the good ones alone'
			WHEN 'bare' THEN 'bare publisher' ELSE side END
		|| ' ' || to_char(theirs, CASE WHEN is_time THEN 'FM999990.00'
			ELSE 'FM999,999,990' END) || CASE WHEN is_time THEN ' ' ELSE '' END || unit,
		'**' || to_char(ratio, 'FM990.00') || '**',
		coalesce(goal, CASE WHEN is_time OR figure LIKE '%synchronous_commit%' THEN ''
			WHEN side = 'plain' THEN '≥ 0.9'
			WHEN side = 'alone' THEN '≥ 0.5'
			WHEN side = 'bare' THEN '≥ 0.6' END)) AS text
	FROM median
)
SELECT text FROM (
	SELECT 0 AS n, '| what | outbox | compared with | ratio | goal |' AS text
	UNION ALL SELECT 0, '|---|---|---|---|---|'
	UNION ALL SELECT * FROM line) t
ORDER BY n;

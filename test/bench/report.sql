-- report.sql: the table that scripts/bench prints
--
-- What "measured" of a figure becomes depends on its goal:
--
--	'≥ 0.9'			ratio to the other side; of rates ours by theirs, of all else
--					theirs by ours: 1 is as good as the other, more is better
--	'≤ 1.3'			the other way round: how many times as much as the other side
--	'≤ 5 µs more'	the difference to the other side
--	anything else	the figure itself
CREATE VIEW goal AS
SELECT figure, side, coalesce(nullif(max(goal), ''),
	CASE WHEN min(unit) <> '/s' OR figure ~ 'synchronous_commit|meanwhile' THEN ''
		WHEN side = 'plain' AND figure ~ 'in one transaction|1,000 messages' THEN '≥ 1.2'
		WHEN side = 'plain' THEN '≥ 1'
		WHEN side = 'alone' THEN '≥ 0.5'
		WHEN side = 'bare' THEN '≥ 0.9' ELSE '' END) AS goal
FROM (
	SELECT o.figure, o.unit, b.side,
		coalesce(nullif(b.goal, ''), nullif(o.goal, '')) AS goal
	FROM measured o LEFT JOIN measured b
		ON b.figure = o.figure AND b.round = o.round AND b.side <> 'outbox'
	WHERE o.side = 'outbox'
) g GROUP BY figure, side;

-- each round's pair
CREATE VIEW pair AS
SELECT o.n, o.part, o.figure, o.round, o.unit, o.value AS ours, b.value AS theirs,
	b.side, g.goal,
	CASE WHEN b.value IS NULL THEN 'value'
		WHEN g.goal LIKE '≤ % more' THEN 'difference'
		WHEN g.goal ~ '^≤ [0-9.]+$' THEN 'times'
		WHEN g.goal ~ '^≥' OR g.goal = '' THEN 'ratio'
		ELSE 'value' END AS kind
FROM measured o
LEFT JOIN measured b
	ON b.figure = o.figure AND b.round = o.round AND b.side <> 'outbox'
LEFT JOIN goal g ON g.figure = o.figure AND g.side IS NOT DISTINCT FROM b.side
WHERE o.side = 'outbox';

CREATE VIEW figure AS
SELECT *, CASE kind WHEN 'difference' THEN ours - theirs
	WHEN 'value' THEN ours
	WHEN 'times' THEN ours / nullif(theirs, 0)
	ELSE CASE unit WHEN '/s' THEN ours / nullif(theirs, 0)
		ELSE theirs / nullif(ours, 0) END END AS result
FROM pair;

CREATE TABLE report AS
SELECT min(n) AS n, min(part) AS part, figure, unit,
	CASE side WHEN 'plain' THEN 'plain INSERT' WHEN 'alone' THEN 'the good ones alone'
		WHEN 'bare' THEN 'bare publisher' ELSE side END AS compared_with,
	percentile_cont(0.5) WITHIN GROUP (ORDER BY ours) AS ours,
	percentile_cont(0.5) WITHIN GROUP (ORDER BY theirs) AS theirs,
	kind, goal, count(*) AS rounds,
	percentile_cont(0.5) WITHIN GROUP (ORDER BY result) AS result,
	min(result) AS smallest, max(result) AS largest,
	-- for the guard: more is better, whatever it is
	percentile_cont(0.5) WITHIN GROUP (ORDER BY CASE unit
		WHEN '/s' THEN ours / nullif(theirs, 0) ELSE theirs / nullif(ours, 0) END)
		AS ratio
FROM figure GROUP BY figure, unit, side, kind, goal;

CREATE FUNCTION show_figure(value double precision, unit text) RETURNS text
LANGUAGE sql AS $$
	-- nothing where there was nothing to compare
	SELECT coalesce(to_char(value, CASE WHEN unit = '/s' OR abs(value) >= 1000
			THEN 'FM999,999,999,990' WHEN abs(value) >= 100 THEN 'FM990.0'
			ELSE 'FM990.00' END)
		|| CASE unit WHEN '/s' THEN unit WHEN '' THEN '' ELSE ' ' || unit END, '-')
$$;

CREATE TABLE markdown AS
SELECT 0::bigint AS n,
	'| what | outbox | compared with | measured (smallest to largest) | goal |' AS line
UNION ALL SELECT 1, '|---|---|---|---|---|'
UNION ALL SELECT n + 1, format('| %s | %s | %s | **%s**%s | %s |', figure,
	show_figure(ours, report.unit),
	coalesce(compared_with || ' ' || show_figure(theirs, report.unit), ''),
	show_figure(result, shown.unit),
	CASE WHEN rounds > 1 THEN format(' (%s to %s)', show_figure(smallest, ''),
		show_figure(largest, '')) ELSE '' END, goal)
FROM report, LATERAL (SELECT CASE WHEN kind IN ('difference', 'value') THEN
	report.unit ELSE '' END AS unit) shown;

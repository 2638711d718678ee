--
-- What is shown of servers, and who sees it: columns, rules, settings, rights
--
CREATE EXTENSION amqp_outbox;
CREATE SERVER mes FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://127.0.0.1:1');
CREATE ROLE regress_outbox_monitor;
CREATE ROLE regress_outbox_stranger;
GRANT pg_monitor TO regress_outbox_monitor;

SELECT a.attrelid::regclass AS view, a.attname AS column, format_type(a.atttypid, a.atttypmod) AS type
	FROM pg_attribute a
	WHERE a.attrelid IN ('amqp_outbox.server_status'::regclass, 'amqp_outbox.health'::regclass)
	ORDER BY 1, a.attnum;
SELECT proname, pg_get_function_result(oid) FROM pg_proc
	WHERE proname IN ('measures', 'latency', 'health_threshold')
	AND pronamespace = 'amqp_outbox'::regnamespace ORDER BY 1;

-- once its worker tries to connect
DO $$
BEGIN
	FOR i IN 1 .. 1800 LOOP
		EXIT WHEN (SELECT state IN ('connecting', 'waiting') FROM amqp_outbox.server_status);
		PERFORM pg_sleep(0.1);
	END LOOP;
END $$;

-- nothing was counted yet
SELECT amqp_publish('', 'q', '12345'::text) IS NOT NULL AS published FROM generate_series(1, 3);
SELECT amqp_publish('', 'q', '12345'::text, delay => '1 day') IS NOT NULL AS scheduled;
SELECT server, backlog, scheduled, backlog_bytes, delivered, delivered_bytes,
	delivered_per_second, bytes_per_second, confirm_p50, confirm_p99,
	overdue_age > '0' AS overdue, blocked_time, reconnects, dead_letters,
	dead_letters_by_reason
	FROM amqp_outbox.server_status;

-- every rule has its thresholds, and no other has one
SELECT rule, unit, warning, critical FROM amqp_outbox.health_threshold() ORDER BY rule;
SELECT coalesce(h.rule, t.rule) AS rule, count(h.rule), count(DISTINCT h.server) AS servers
	FROM amqp_outbox.health h FULL JOIN amqp_outbox.health_threshold() t ON t.rule = h.rule
	GROUP BY 1 ORDER BY 1;
SELECT name, setting, unit, context, short_desc, extra_desc FROM pg_settings
	WHERE name LIKE 'amqp\_outbox.health%' ORDER BY name;

-- a setting moves the level, 0 means never
SELECT server, rule, level, value, unit, warning, critical, detail
	FROM amqp_outbox.health WHERE rule = 'backlog';
SET amqp_outbox.health_backlog_warning = 3;
SELECT level, warning, critical FROM amqp_outbox.health WHERE rule = 'backlog';
SET amqp_outbox.health_backlog_critical = 3;
SELECT level, warning, critical FROM amqp_outbox.health WHERE rule = 'backlog';
SET amqp_outbox.health_backlog_critical = 4;
SELECT level, warning, critical FROM amqp_outbox.health WHERE rule = 'backlog';
SET amqp_outbox.health_backlog_warning = 0;
SELECT level, warning, critical FROM amqp_outbox.health WHERE rule = 'backlog';

-- what there is not has no value
SELECT rule, level, value FROM amqp_outbox.health
	WHERE rule IN ('blocked', 'confirm_time', 'horizon', 'worker') ORDER BY rule;

-- settings in other units
SET amqp_outbox.health_outbox_size_warning = '1MB';
SELECT warning FROM amqp_outbox.health WHERE rule = 'outbox_size';
SET amqp_outbox.health_overdue_warning = '1500ms';
SELECT warning FROM amqp_outbox.health WHERE rule = 'overdue';
\set VERBOSITY sqlstate
SET amqp_outbox.health_overdue_warning = '-1s';
\set VERBOSITY default
SET amqp_outbox.health_everything_warning = 1;
RESET ALL;

-- the histogram: two limits an octave, and the last one has none
SELECT count(*) FILTER (WHERE up_to IS NOT NULL) AS limits, min(up_to), max(up_to),
	count(*) FILTER (WHERE up_to IS NULL) AS without, sum(messages), max(running_total)
	FROM amqp_outbox.latency('mes');
SELECT up_to FROM amqp_outbox.latency('mes') LIMIT 5;
SELECT * FROM amqp_outbox.latency('no such server');
SELECT * FROM amqp_outbox.latency(NULL);

-- pg_monitor sees it all, and of messages everything but what they say
SET ROLE regress_outbox_monitor;
SELECT server, backlog, delivered_per_second FROM amqp_outbox.server_status;
SELECT count(*) FROM amqp_outbox.health;
SELECT count(*) FROM amqp_outbox.measures();
SELECT count(*) FROM amqp_outbox.latency('mes');
SELECT count(*) FROM amqp_outbox.health_threshold();
SELECT server, status, exchange, routing_key FROM amqp_outbox.stored_message ORDER BY id;
SELECT body FROM amqp_outbox.stored_message;
SELECT headers FROM amqp_outbox.stored_message;
SELECT body_text FROM amqp_outbox.stored_message;
SELECT * FROM amqp_outbox.stored_message;
SELECT m FROM amqp_outbox.stored_message m;
SELECT id FROM amqp_outbox.message;
SELECT * FROM amqp_outbox.uncommitted();
SELECT body FROM amqp_outbox.deferred;
SELECT body FROM amqp_outbox.outbox_0;
SELECT body FROM amqp_outbox.dead_letter;

-- everybody else sees nothing
SET ROLE regress_outbox_stranger;
SELECT * FROM amqp_outbox.server_status;
SELECT * FROM amqp_outbox.health;
SELECT * FROM amqp_outbox.measures();
SELECT * FROM amqp_outbox.latency('mes');
SELECT * FROM amqp_outbox.health_threshold();
SELECT id FROM amqp_outbox.stored_message;
RESET ROLE;

-- all that pg_monitor may not read
SELECT a.attname FROM pg_attribute a
	WHERE a.attrelid = 'amqp_outbox.stored_message'::regclass AND a.attnum > 0
	AND NOT has_column_privilege('regress_outbox_monitor', a.attrelid, a.attnum, 'SELECT')
	ORDER BY a.attnum;

DROP EXTENSION amqp_outbox CASCADE;
DROP ROLE regress_outbox_monitor, regress_outbox_stranger;

--
-- amqp_publish(): what it takes, what it makes of it, what it refuses
--
CREATE EXTENSION amqp_outbox;
\pset null '-'

-- no server, one server
SELECT amqp_publish('', 'q', 'x'::text);
SELECT amqp_publish('', 'q', 'x'::text, server => 'mes');
CREATE SERVER mes FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://127.0.0.1:1');

-- the four kinds of body and their defaults
BEGIN;
SELECT amqp_publish('ex', 'jsonb', '{"b": 1, "a": "ä"}'::jsonb, message_id => 'm1');
SELECT amqp_publish('ex', 'json', '{"b": 1,  "a": "ä"}'::json, message_id => 'm2');
SELECT amqp_publish('ex', 'text', 'grün'::text, message_id => 'm3');
SELECT amqp_publish('ex', 'bytea', '\x00ff'::bytea, message_id => 'm4');
SELECT amqp_publish('ex', 'literal', 'plain', message_id => 'm5');
SELECT amqp_publish('', '', ''::bytea, message_id => 'm6');
SELECT server, message_id, status, exchange, routing_key, body, content_type, content_encoding
	FROM amqp_outbox.message ORDER BY message_id;
SELECT encode(body, 'escape') FROM amqp_outbox.message WHERE message_id = 'm1';
ROLLBACK;

-- every argument by name
BEGIN;
SELECT amqp_publish(exchange => 'ex', routing_key => 'rk', body => '{}'::jsonb,
	headers => '{"plant": "P1", "n": 1, "x": 1.5, "t": true, "z": null, "o": {"a": [1]}}',
	content_type => 'application/cloudevents+json', content_encoding => 'gzip',
	persistent => false, priority => 255, correlation_id => 'corr', reply_to => 'answers',
	expiration => '1 day 0.5 s', message_id => 'own-id',
	message_timestamp => '2026-01-02 03:04:05.678+00', type => 'order.released',
	user_id => 'guest', app_id => 'mes', mandatory => true, server => 'mes',
	ordering_key => 'order 4711', deliver_at => '2100-01-01 00:00:00+00', ttl => '1 day');
\x
SELECT server, id, message_id, status, exchange, routing_key, body, headers, content_type,
	content_encoding, persistent, priority, correlation_id, reply_to, expiration,
	message_timestamp AT TIME ZONE 'UTC' AS message_timestamp, type, user_id, app_id, mandatory,
	ordering_key, expires_at AT TIME ZONE 'UTC' AS expires_at, enqueued_at <= clock_timestamp() AS enqueued,
	due_at AT TIME ZONE 'UTC' AS due_at, delivered_at, attempts, last_error
	FROM amqp_outbox.message;
\x
ROLLBACK;

-- generated ids are UUIDs of version 7, in order of time, and all different
BEGIN;
SELECT count(*), count(DISTINCT id),
	bool_and(id ~ '^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$') AS version_7,
	bool_and(abs(('x' || translate(left(id, 13), '-', ''))::bit(48)::bigint
		- extract(epoch FROM clock_timestamp()) * 1000) < 60000) AS time_is_now
	FROM (SELECT amqp_publish('', 'q', 'x') AS id FROM generate_series(1, 1000)) s;
ROLLBACK;

-- nulls
SELECT amqp_publish(NULL, 'rk', 'x');
SELECT amqp_publish('ex', NULL, 'x');
SELECT amqp_publish('ex', 'rk', NULL::text);
SELECT amqp_publish('ex', 'rk', NULL::jsonb);
SELECT amqp_publish('ex', 'rk', NULL::bytea);

-- short strings
SELECT amqp_publish(repeat('e', 256), 'rk', 'x');
SELECT amqp_publish('ex', repeat('r', 256), 'x');
SELECT amqp_publish('ex', 'rk', 'x', ordering_key => repeat('k', 256));
SELECT amqp_publish('ex', repeat('ä', 128), 'x');
SELECT amqp_publish('ex', 'rk', 'x', content_type => repeat('c', 256));
SELECT amqp_publish('ex', 'rk', 'x', content_encoding => repeat('c', 256));
SELECT amqp_publish('ex', 'rk', 'x', correlation_id => repeat('c', 256));
SELECT amqp_publish('ex', 'rk', 'x', reply_to => repeat('r', 256));
SELECT amqp_publish('ex', 'rk', 'x', message_id => repeat('m', 256));
SELECT amqp_publish('ex', 'rk', 'x', message_id => '');
SELECT amqp_publish('ex', 'rk', 'x', type => repeat('t', 256));
SELECT amqp_publish('ex', 'rk', 'x', user_id => repeat('u', 256));
SELECT amqp_publish('ex', 'rk', 'x', app_id => repeat('a', 256));
BEGIN;
SELECT length(amqp_publish(repeat('e', 255), repeat('ä', 127), 'x', message_id => repeat('m', 255)));
ROLLBACK;

-- numbers and times
SELECT amqp_publish('ex', 'rk', 'x', priority => -1);
SELECT amqp_publish('ex', 'rk', 'x', priority => 256);
SELECT amqp_publish('ex', 'rk', 'x', expiration => '-1 ms');
SELECT amqp_publish('ex', 'rk', 'x', expiration => '50 days');
SELECT amqp_publish('ex', 'rk', 'x', message_timestamp => '1969-12-31 23:59:59+00');
SELECT amqp_publish('ex', 'rk', 'x', message_timestamp => 'infinity');
SELECT amqp_publish('ex', 'rk', 'x', delay => '-1 s');
SELECT amqp_publish('ex', 'rk', 'x', delay => '1 s', deliver_at => now());
SELECT amqp_publish('ex', 'rk', 'x', delay => '1000000 years');
SELECT amqp_publish('ex', 'rk', 'x', deliver_at => 'infinity');
SELECT amqp_publish('ex', 'rk', 'x', ttl => '0');
SELECT amqp_publish('ex', 'rk', 'x', ttl => '-1 month');
BEGIN;
SELECT amqp_publish('ex', 'rk', 'x', message_id => 'm', priority => 0, expiration => '0',
	message_timestamp => '1970-01-01 00:00:00+00');
SELECT priority, expiration FROM amqp_outbox.message;
ROLLBACK;

-- headers
SELECT amqp_publish('ex', 'rk', 'x', headers => '[1]');
SELECT amqp_publish('ex', 'rk', 'x', headers => '"a"');
SELECT amqp_publish('ex', 'rk', 'x', headers => '{"": 1}');
SELECT amqp_publish('ex', 'rk', 'x', headers => jsonb_build_object(repeat('k', 256), 1));
SELECT amqp_publish('ex', 'rk', 'x', headers => jsonb_build_object('a', jsonb_build_array(jsonb_build_object(repeat('k', 256), 1))));
SELECT amqp_publish('ex', 'rk', 'x', headers => '{"a": {"b": {"": 1}}}');
SELECT amqp_publish('ex', 'rk', 'x', headers => '{"n": 9223372036854775808}');
SELECT amqp_publish('ex', 'rk', 'x', headers => '{"n": -9223372036854775809}');
SELECT amqp_publish('ex', 'rk', 'x', headers => '{"n": 1.5e400}');
SELECT amqp_publish('ex', 'rk', 'x', headers => '{"CC": "a"}');
SELECT amqp_publish('ex', 'rk', 'x', headers => '{"BCC": ["a", 1]}');
SELECT amqp_publish('ex', 'rk', 'x', headers => '{"x-possible-duplicate": true}');
SELECT amqp_publish('ex', 'rk', 'x', headers => jsonb_build_object('big', repeat('h', 131072)));
BEGIN;
SELECT amqp_publish('ex', 'rk', 'x', message_id => 'm', headers => jsonb_build_object(
	repeat('k', 255), 9223372036854775807, 'min', -9223372036854775808, 'CC', '["a", "b"]'::jsonb,
	'large', repeat('h', 120000)));
ROLLBACK;
ALTER SERVER mes OPTIONS (ADD frame_max '8192');
SELECT amqp_publish('ex', 'rk', 'x', headers => jsonb_build_object('big', repeat('h', 8192)));
ALTER SERVER mes OPTIONS (DROP frame_max);

-- size of the body
SET amqp_outbox.max_message_size = 10;
SELECT amqp_publish('ex', 'rk', repeat('x', 11));
BEGIN;
SELECT amqp_publish('ex', 'rk', repeat('x', 10), message_id => 'm');
ROLLBACK;
RESET amqp_outbox.max_message_size;

-- where it may not be called
BEGIN READ ONLY;
SELECT amqp_publish('ex', 'rk', 'x');
ROLLBACK;

-- prepared transactions; the server must have its key, which its worker may be
-- slow to make
SELECT amqp_publish('ex', 'rk', 'x', message_id => 'first');
DELETE FROM amqp_outbox.outbox;
BEGIN;
SELECT amqp_publish('ex', 'rk', 'x', message_id => 'prepared');
PREPARE TRANSACTION 'messages';
SELECT count(*) FROM amqp_outbox.message WHERE message_id = 'prepared';
COMMIT PREPARED 'messages';
SELECT message_id, status, attempts FROM amqp_outbox.message WHERE message_id = 'prepared';
DELETE FROM amqp_outbox.deferred;
BEGIN;
SAVEPOINT s;
SELECT amqp_publish('ex', 'rk', 'x', message_id => 'm');
ROLLBACK TO s;
PREPARE TRANSACTION 'nothing is left';
ROLLBACK PREPARED 'nothing is left';

-- which server
SELECT amqp_publish('ex', 'rk', 'x', server => 'erp');
CREATE SERVER erp FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://127.0.0.1:1');
SELECT amqp_publish('ex', 'rk', 'x');
CREATE FOREIGN DATA WRAPPER regress_other;
CREATE SERVER other FOREIGN DATA WRAPPER regress_other;
SELECT amqp_publish('ex', 'rk', 'x', server => 'other');
BEGIN;
SELECT amqp_publish('ex', 'rk', 'x', server => 'erp', message_id => 'named');
SET LOCAL amqp_outbox.default_server = 'mes';
SELECT amqp_publish('ex', 'rk', 'x', message_id => 'by setting');
SELECT server, message_id FROM amqp_outbox.message ORDER BY 2;
SET LOCAL amqp_outbox.default_server = 'nowhere';
SELECT amqp_publish('ex', 'rk', 'x');
ROLLBACK;
DROP SERVER erp;
BEGIN;
SELECT amqp_publish('ex', 'rk', 'x', message_id => 'm');
ROLLBACK;

-- a server that is dropped in the same transaction
BEGIN;
CREATE SERVER brief FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://127.0.0.1:1');
SELECT amqp_publish('ex', 'rk', 'x', server => 'brief', message_id => 'm');
DROP SERVER brief;
COMMIT;

-- the extension is dropped in the same transaction
BEGIN;
SELECT amqp_publish('ex', 'rk', 'x', message_id => 'm');
DROP EXTENSION amqp_outbox CASCADE;
COMMIT;
SELECT count(*) FROM pg_extension WHERE extname = 'amqp_outbox';

-- error codes
DO $$
DECLARE
	call text;
BEGIN
	FOREACH call IN ARRAY ARRAY[
		'NULL, ''rk'', ''x''',
		'repeat(''e'', 256), ''rk'', ''x''',
		''''', '''', ''x'', priority => 256',
		''''', '''', ''x'', expiration => ''-1 s''',
		''''', '''', ''x'', message_timestamp => ''-infinity''',
		''''', '''', ''x'', headers => ''[]''',
		''''', '''', ''x'', headers => ''{"n": 9223372036854775808}''',
		''''', '''', repeat(''x'', 16777217)',
		''''', '''', ''x'', server => ''none''',
		''''', '''', ''x'', server => ''other''']
	LOOP
		BEGIN
			EXECUTE 'SELECT amqp_publish(' || call || ')';
			RAISE NOTICE '%: no error', call;
		EXCEPTION WHEN OTHERS THEN
			RAISE NOTICE '%: %', call, SQLSTATE;
		END;
	END LOOP;
END $$;

DROP EXTENSION amqp_outbox CASCADE;
DROP FOREIGN DATA WRAPPER regress_other CASCADE;

--
-- amqp_wait_for_confirm(): what it refuses, and how it says so.  There is no
-- broker here: see test/t/045_confirm.pl for messages that are confirmed.
--
CREATE EXTENSION amqp_outbox;
CREATE SERVER mes FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://127.0.0.1:1');
CREATE ROLE regress_outbox_stranger;
-- an error with its SQLSTATE
CREATE FUNCTION try(statement text) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
	message text;
	detail text;
	hint text;
BEGIN
	EXECUTE statement;
	RETURN NEXT 'no error';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL,
		hint = PG_EXCEPTION_HINT;
	RETURN QUERY SELECT line FROM unnest(ARRAY[SQLSTATE || ': ' || message,
		'DETAIL: ' || nullif(detail, ''), 'HINT: ' || nullif(hint, '')]) line
		WHERE line IS NOT NULL;
END $$;

-- not confirmed so far
SELECT amqp_publish('', 'q', 'x'::text, message_id => 'm1');
SELECT amqp_wait_for_confirm('m1', '0');
SELECT amqp_wait_for_confirm(message_id => 'm1', timeout => '-1 s');

SELECT try('SELECT amqp_wait_for_confirm(NULL)');
SELECT try('SELECT amqp_wait_for_confirm(''m2'')');
SELECT try('SELECT amqp_wait_for_confirm(''m1'', ''294276 years'')');
BEGIN;
SELECT amqp_publish('', 'q', 'x'::text, message_id => 'm2');
SELECT try('SELECT amqp_wait_for_confirm(''m2'')');
ROLLBACK;
SET ROLE regress_outbox_stranger;
SELECT try('SELECT amqp_wait_for_confirm(''m1'')');
RESET ROLE;

-- given up, and discarded
INSERT INTO amqp_outbox.dead_letter_item
	SELECT o.*, 'nacked', 20, now(), now(), false, NULL, 'the broker''s words', false
	FROM amqp_outbox.outbox o WHERE message_id = 'm1';
SELECT try('SELECT amqp_wait_for_confirm(''m1'')');
SELECT discarded_message_id FROM amqp_outbox.discard(server => 'mes');
SELECT try('SELECT amqp_wait_for_confirm(''m1'')');

-- the server is gone, and another one of its name is not meant
DROP EXTENSION amqp_outbox CASCADE;
CREATE EXTENSION amqp_outbox;
CREATE SERVER mes FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://127.0.0.1:1');
SELECT try('SELECT amqp_wait_for_confirm(''m1'')');

DROP FUNCTION try;
DROP EXTENSION amqp_outbox CASCADE;
DROP ROLE regress_outbox_stranger;

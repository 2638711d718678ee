--
-- Idempotency keys, and the trace context
--
CREATE EXTENSION amqp_outbox;
CREATE SERVER mes FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://127.0.0.1:1');
CREATE SERVER erp FOREIGN DATA WRAPPER amqp_outbox
	OPTIONS (uri 'amqp://127.0.0.1:1', idempotency_retention '1h');
SET amqp_outbox.default_server = 'mes';
CREATE FUNCTION publish(id text, key text, server text DEFAULT NULL) RETURNS text LANGUAGE sql
	AS $$ SELECT amqp_publish('', 'q', 'x'::text, message_id => id, idempotency_key => key, server => server) $$;
CREATE VIEW published AS
	SELECT server, message_id FROM amqp_outbox.message ORDER BY server, message_id;

-- the first one counts
SELECT publish('a1', 'a'), publish('a2', 'a'), publish('b1', 'b');
SELECT publish('a3', 'a');
TABLE published;

-- per server
SELECT publish('a4', 'a', 'erp'), publish('a5', 'a', 'erp');

-- without a key there is no question
SELECT publish('n1', NULL), publish('n1', NULL);

-- what is rolled back has claimed nothing
BEGIN;
SELECT publish('c1', 'c');
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT publish('c2', 'c');
ROLLBACK TO s;
SELECT publish('c3', 'c');
COMMIT;
SELECT publish('c4', 'c');
TABLE published;

-- a key that is too old counts for nothing
UPDATE amqp_outbox.idempotency_key SET claimed_at = claimed_at - interval '61 min';
SELECT publish('a6', 'a', 'erp');
SELECT publish('a7', 'a', 'erp');
SELECT publish('a8', 'a');
-- before the keys are too old, lest the worker remove them
ALTER SERVER erp OPTIONS (SET idempotency_retention '0');
UPDATE amqp_outbox.idempotency_key SET claimed_at = claimed_at - interval '7 days';
SELECT publish('a9', 'a');
SELECT publish('a10', 'a', 'erp');

-- whoever publishes needs no right on the table, and has none
CREATE ROLE regress_outbox_idempotent;
GRANT USAGE ON FOREIGN SERVER mes TO regress_outbox_idempotent;
SET ROLE regress_outbox_idempotent;
SELECT amqp_publish('', 'q', 'x'::text, message_id => 'r1', idempotency_key => 'r');
SELECT amqp_publish('', 'q', 'x'::text, message_id => 'r2', idempotency_key => 'r');
SELECT count(*) FROM amqp_outbox.idempotency_key;
RESET ROLE;

-- nor can it make the statements mean something else
CREATE SCHEMA regress_outbox_trap;
CREATE FUNCTION regress_outbox_trap.never(text, text) RETURNS boolean LANGUAGE plpgsql
	AS $$ BEGIN RAISE 'caught by %', current_user; END $$;
CREATE OPERATOR regress_outbox_trap.= (LEFTARG = text, RIGHTARG = text, FUNCTION = regress_outbox_trap.never);
SET search_path = regress_outbox_trap, pg_catalog, public;
SELECT public.amqp_publish('', 'q', 'x'::text, message_id => 't1', idempotency_key => 't');
SELECT public.amqp_publish('', 'q', 'x'::text, message_id => 't2', idempotency_key => 't');
RESET search_path;

-- refused
SELECT publish('x', repeat('ä', 128));
SELECT amqp_publish('', 'q', 'x'::text, idempotency_key => 'k', server => 'nowhere');
CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox
	OPTIONS (uri 'amqp://127.0.0.1:1', idempotency_retention 'a while');

--
-- The trace context
--
CREATE VIEW last_headers AS SELECT headers FROM amqp_outbox.message
	WHERE server = 'mes' ORDER BY id DESC NULLS FIRST LIMIT 1;
SELECT count(amqp_publish('', 'q', 'x'::text));
TABLE last_headers;
SET amqp_outbox.traceparent = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01';
SELECT count(amqp_publish('', 'q', 'x'::text));
TABLE last_headers;
SET amqp_outbox.tracestate = 'congo=t61rcWkgMzE';
SELECT count(amqp_publish('', 'q', 'x'::text, headers => '{"plant": "P1"}'));
TABLE last_headers;
-- the message's own goes first, and its state is not another's
SELECT count(amqp_publish('', 'q', 'x'::text,
	traceparent => '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00'));
TABLE last_headers;
SELECT count(amqp_publish('', 'q', 'x'::text, headers => '{"traceparent": "mine"}'));
TABLE last_headers;
SET amqp_outbox.traceparent = '';
SELECT count(amqp_publish('', 'q', 'x'::text,
	traceparent => '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00', tracestate => 'a=b'));
TABLE last_headers;
-- for one transaction
BEGIN;
SET LOCAL amqp_outbox.traceparent = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00';
SELECT count(amqp_publish('', 'q', 'x'::text));
TABLE last_headers;
COMMIT;
SHOW amqp_outbox.traceparent;

-- refused
SET amqp_outbox.traceparent = '00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01';
SET amqp_outbox.traceparent = '00-00000000000000000000000000000000-00f067aa0ba902b7-01';
SET amqp_outbox.traceparent = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more';
SET amqp_outbox.tracestate = E'a=b\n';
SELECT amqp_publish('', 'q', 'x'::text, traceparent => 'ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00');
SELECT amqp_publish('', 'q', 'x'::text, tracestate => 'a=b');
SELECT amqp_publish('', 'q', 'x'::text, traceparent => '01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-more',
	tracestate => 'ä');

\c
DROP VIEW published, last_headers;
DROP FUNCTION publish;
DROP SCHEMA regress_outbox_trap CASCADE;
REVOKE USAGE ON FOREIGN SERVER mes FROM regress_outbox_idempotent;
DROP ROLE regress_outbox_idempotent;
SET client_min_messages = warning;
DROP EXTENSION amqp_outbox CASCADE;

--
-- amqp_inbox_accept(): once for each consumer and message
--
CREATE EXTENSION amqp_outbox;

SELECT amqp_inbox_accept('billing', 'm1'), amqp_inbox_accept('billing', 'm1');
SELECT amqp_inbox_accept('billing', 'm1');
SELECT amqp_inbox_accept('stock', 'm1'), amqp_inbox_accept('billing', 'M1');

-- what is rolled back was not accepted
BEGIN;
SELECT amqp_inbox_accept('billing', 'm2');
ROLLBACK;
BEGIN;
SAVEPOINT s;
SELECT amqp_inbox_accept('billing', 'm2');
ROLLBACK TO s;
SELECT amqp_inbox_accept('billing', 'm2');
COMMIT;
SELECT amqp_inbox_accept('billing', 'm2');

-- what is older than the retention
SHOW amqp_outbox.inbox_retention;
INSERT INTO amqp_outbox.inbox
	SELECT 'billing', 'old' || i, now() - interval '7 days 1 min' FROM generate_series(1, 5) i;
SELECT amqp_inbox_accept('billing', 'old1');
SELECT amqp_outbox.prune_inbox(2);
SELECT amqp_outbox.prune_inbox();
SELECT amqp_inbox_accept('billing', 'old1');
SELECT consumer, message_id FROM amqp_outbox.inbox ORDER BY consumer, message_id;

-- by itself, sooner or later
INSERT INTO amqp_outbox.inbox
	SELECT 'billing', 'old' || i, now() - interval '8 days' FROM generate_series(10, 20) i;
DO $$
DECLARE
	n bigint := 0;
BEGIN
	WHILE EXISTS (SELECT FROM amqp_outbox.inbox WHERE accepted_at < now() - interval '7 days') LOOP
		n := n + 1;
		PERFORM amqp_inbox_accept('billing', 'new' || n);
	END LOOP;
END $$;
SELECT count(*) FROM amqp_outbox.inbox WHERE message_id LIKE 'old__';

-- refused
SELECT amqp_inbox_accept(NULL, 'm');
SELECT amqp_inbox_accept('c', NULL);
SELECT amqp_inbox_accept('c', repeat('ä', 128));
SELECT amqp_inbox_accept(repeat('c', 256), 'm');
BEGIN READ ONLY;
SELECT amqp_inbox_accept('c', 'm');
ROLLBACK;

-- for those who have been granted it, and they need no other right
CREATE ROLE regress_outbox_consumer;
SET ROLE regress_outbox_consumer;
SELECT amqp_inbox_accept('c', 'm');
RESET ROLE;
GRANT EXECUTE ON FUNCTION amqp_inbox_accept TO regress_outbox_consumer;
SET ROLE regress_outbox_consumer;
SET amqp_outbox.inbox_retention = 0;
SELECT amqp_inbox_accept('c', 'm');
-- nor can it make the function mean something else
CREATE TEMP TABLE inbox (consumer text, message_id text);
CREATE FUNCTION pg_temp.octet_length(text) RETURNS integer LANGUAGE plpgsql
	AS $$ BEGIN RAISE 'caught by %', current_user; END $$;
SET search_path = pg_temp, pg_catalog, public;
SELECT public.amqp_inbox_accept('c', 'm');
RESET search_path;
RESET ROLE;

DROP OWNED BY regress_outbox_consumer;
DROP ROLE regress_outbox_consumer;
DROP EXTENSION amqp_outbox CASCADE;

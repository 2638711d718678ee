--
-- Who may do what: the matrix at the end of the install script
--
CREATE EXTENSION amqp_outbox;
-- nothing was published yet
SELECT * FROM amqp_outbox.discard(message_id => 'nobody''s');
SELECT * FROM amqp_outbox.requeue(message_id => 'nobody''s');
CREATE SERVER mes FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://127.0.0.1:1');
CREATE ROLE regress_outbox_publisher;
CREATE ROLE regress_outbox_stranger;
CREATE ROLE regress_outbox_monitor;
GRANT pg_monitor TO regress_outbox_monitor;
GRANT USAGE ON FOREIGN SERVER mes TO regress_outbox_publisher;

-- USAGE on the server is all that publishing needs
SET ROLE regress_outbox_publisher;
SELECT amqp_publish('', 'q', 'x', message_id => 'by the publisher');
SELECT count(*) FROM amqp_outbox.message;
SELECT count(*) FROM amqp_outbox.outbox;
SELECT * FROM amqp_outbox.server_status;
SELECT amqp_outbox.adopt();
RESET ROLE;
GRANT EXECUTE ON FUNCTION amqp_outbox.adopt() TO regress_outbox_publisher;
SET ROLE regress_outbox_publisher;
SELECT amqp_outbox.adopt();
SET ROLE regress_outbox_stranger;
SELECT amqp_publish('', 'q', 'x');
SELECT amqp_publish('', 'q', 'x', server => 'mes');

-- pg_monitor sees how servers are, but no message (see watching.sql for what it sees of them)
SET ROLE regress_outbox_monitor;
SELECT server, backlog, delivered FROM amqp_outbox.server_status;
SELECT count(*) FROM amqp_outbox.message;
SELECT count(*) FROM amqp_outbox.outbox;
SELECT amqp_outbox.wake();
RESET ROLE;
SELECT message_id FROM amqp_outbox.message;

-- everything that PUBLIC may execute
SELECT p.oid::regprocedure AS function
	FROM pg_proc p JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
	JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
	WHERE e.extname = 'amqp_outbox' AND d.deptype = 'e'
	AND has_function_privilege('regress_outbox_stranger', p.oid, 'EXECUTE')
	ORDER BY p.oid::regprocedure::text COLLATE "C";

-- limits are not for everybody to change
SHOW amqp_outbox.max_message_size;
SET ROLE regress_outbox_publisher;
SET amqp_outbox.max_message_size = '1GB';
RESET ROLE;

-- what logical replication would write is not this database's
SELECT amqp_outbox.ignore_replicated();
-- but what a session writes is, as a restore may (see 019 for replication)
SET session_replication_role = replica;
SET statement_timeout = '20s';
SELECT amqp_publish('', 'q', 'x', server => 'mes', idempotency_key => 'k', message_id => 'once');
SELECT amqp_publish('', 'q', 'x', server => 'mes', idempotency_key => 'k');
SELECT amqp_inbox_accept('c', 'm');
DELETE FROM amqp_outbox.idempotency_key;
SELECT count(*) FROM amqp_outbox.idempotency_key;
TRUNCATE amqp_outbox.inbox;
RESET statement_timeout;
RESET session_replication_role;
ALTER TABLE amqp_outbox.inbox ENABLE TRIGGER ALL;
SELECT amqp_inbox_accept('c', 'm'), amqp_inbox_accept('c', 'm');

DROP EXTENSION amqp_outbox CASCADE;
DROP ROLE regress_outbox_publisher, regress_outbox_stranger, regress_outbox_monitor;

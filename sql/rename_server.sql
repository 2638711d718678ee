--
-- A server that is renamed keeps its messages
--
CREATE EXTENSION amqp_outbox;
CREATE SERVER mes FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://127.0.0.1:1');
SELECT amqp_publish('', 'q', 'x', message_id => 'before');
ALTER SERVER mes RENAME TO plant1;
SELECT amqp_publish('', 'q', 'x', message_id => 'after');
SELECT server, message_id, status FROM amqp_outbox.message ORDER BY id;

-- rolled back: the old name holds, also for what this session remembers
BEGIN;
ALTER SERVER plant1 RENAME TO plant2;
SELECT amqp_publish('', 'q', 'x', message_id => 'gone');
ROLLBACK;
SELECT amqp_publish('', 'q', 'x', message_id => 'still');
SELECT server, message_id FROM amqp_outbox.message ORDER BY id;

-- a new server of the old name is another one
CREATE SERVER mes FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://127.0.0.1:1');
SELECT amqp_publish('', 'q', 'x', message_id => 'new mes', server => 'mes');
SELECT server, message_id FROM amqp_outbox.message ORDER BY id;

-- a server with undelivered messages cannot be dropped, by whatever statement
DROP SERVER mes;
CREATE ROLE regress_outbox_owner;
GRANT USAGE ON FOREIGN DATA WRAPPER amqp_outbox TO regress_outbox_owner;
ALTER SERVER mes OWNER TO regress_outbox_owner;
DROP OWNED BY regress_outbox_owner;
-- as part of another extension, of what is in a schema, or of a statement that
-- comes about within DROP EXTENSION
SET client_min_messages = warning;
ALTER EXTENSION plpgsql ADD SERVER mes;
DROP EXTENSION plpgsql CASCADE;
ALTER EXTENSION plpgsql DROP SERVER mes;
CREATE SCHEMA regress_plant;
\set depend 'INSERT INTO pg_depend SELECT ''pg_foreign_server''::regclass, oid, 0, ''pg_namespace''::regclass, ''regress_plant''::regnamespace, 0, ''n'' FROM pg_foreign_server WHERE srvname = ''mes'''
:depend;
DROP SCHEMA regress_plant CASCADE;
DELETE FROM pg_depend WHERE refclassid = 'pg_namespace'::regclass AND refobjid = 'regress_plant'::regnamespace;
DROP SCHEMA regress_plant;
CREATE FUNCTION drop_mes() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN DROP SERVER mes; END $$;
CREATE EVENT TRIGGER regress_drop ON ddl_command_start WHEN TAG IN ('DROP EXTENSION')
	EXECUTE FUNCTION drop_mes();
\set SHOW_CONTEXT never
DROP EXTENSION amqp_outbox CASCADE;
\set SHOW_CONTEXT errors
DROP EVENT TRIGGER regress_drop;
DROP FUNCTION drop_mes;
RESET client_min_messages;
DELETE FROM amqp_outbox.outbox WHERE message_id = 'new mes';
DROP OWNED BY regress_outbox_owner;
DROP ROLE regress_outbox_owner;
-- names of former servers whose messages may be there are taken
ALTER SERVER plant1 RENAME TO mes;
-- servers of other wrappers are none of our business
CREATE FOREIGN DATA WRAPPER regress_other;
CREATE SERVER other FOREIGN DATA WRAPPER regress_other;
ALTER SERVER other RENAME TO mes;

DROP FOREIGN DATA WRAPPER regress_other CASCADE;
-- with the extension the messages go as well, and with the schema it was made in
DROP EXTENSION amqp_outbox CASCADE;
CREATE SCHEMA regress_plant;
CREATE EXTENSION amqp_outbox SCHEMA regress_plant;
CREATE SERVER mes FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://127.0.0.1:1');
SELECT regress_plant.amqp_publish('', 'q', 'x', message_id => 'gone');
-- also if the server is the first to go
:depend;
SET client_min_messages = warning;
DROP SCHEMA regress_plant CASCADE;
SELECT count(*) FROM pg_foreign_server WHERE srvname = 'mes';

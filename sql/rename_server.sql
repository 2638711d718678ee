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
DROP EXTENSION amqp_outbox CASCADE;

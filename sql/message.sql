--
-- INSERT into amqp_outbox.message
--
CREATE EXTENSION amqp_outbox;
CREATE SERVER mes FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://127.0.0.1:1');
CREATE SERVER erp FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://127.0.0.1:1');
SET amqp_outbox.default_server = 'mes';
\pset null '-'

-- the three kinds of body
INSERT INTO amqp_outbox.message (message_id, exchange, routing_key, body)
	VALUES ('m1', 'ex', 'rk', '\x00ff');
INSERT INTO amqp_outbox.message (message_id, exchange, routing_key, body_text)
	VALUES ('m2', 'ex', 'rk', 'grün');
INSERT INTO amqp_outbox.message (message_id, exchange, routing_key, body_json, server)
	VALUES ('m3', '', 'q', '{"b": 1,  "a": "ä"}', 'erp'), ('m4', '', 'q', '[]', NULL);
SELECT server, message_id, status, exchange, routing_key, body, content_type, content_encoding,
	body_text, body_json, idempotency_key
	FROM amqp_outbox.message ORDER BY message_id;

-- every column that can be set
BEGIN;
INSERT INTO amqp_outbox.message (server, message_id, exchange, routing_key, body, headers, content_type,
	content_encoding, persistent, priority, correlation_id, reply_to, expiration, message_timestamp,
	type, user_id, app_id, mandatory, ordering_key, expires_at, due_at, idempotency_key)
	VALUES ('erp', 'own-id', 'ex', 'rk', '{}', '{"plant": "P1"}', 'application/json', 'gzip',
	false, 255, 'corr', 'answers', '1 day 0.5 s', '2026-01-02 03:04:05.678+00',
	'order.released', 'guest', 'mes', true, 'order 4711', '2100-01-02 00:00:00+00',
	'2100-01-01 00:00:00+00', 'order 4711 released');
\x
SELECT server, message_id, status, exchange, routing_key, body, headers, content_type,
	content_encoding, persistent, priority, correlation_id, reply_to, expiration,
	message_timestamp AT TIME ZONE 'UTC' AS message_timestamp, type, user_id, app_id, mandatory,
	ordering_key, expires_at AT TIME ZONE 'UTC' AS expires_at, due_at AT TIME ZONE 'UTC' AS due_at
	FROM amqp_outbox.message WHERE status = 'uncommitted';
\x
INSERT INTO amqp_outbox.message (exchange, routing_key, body, server, idempotency_key)
	VALUES ('', 'q', '', 'erp', 'order 4711 released') RETURNING message_id;
COMMIT;

-- an id is made if there is none
INSERT INTO amqp_outbox.message (exchange, routing_key, body_text) VALUES ('', 'q', 'x')
	RETURNING message_id ~ '^[0-9a-f]{8}-[0-9a-f]{4}-7' AS made, status;
INSERT INTO amqp_outbox.message (exchange, routing_key, body_text)
	SELECT '', 'q', i::text FROM generate_series(1, 1000) i;

-- COPY
COPY amqp_outbox.message (message_id, exchange, routing_key, body_json) FROM stdin;
c1	ex	rk.1	{"n": 1}
c2	ex	rk.2	{"n": 2}
\.
SELECT message_id, routing_key, body, content_type FROM amqp_outbox.message
	WHERE message_id LIKE 'c_' ORDER BY message_id;

-- as part of the transaction
BEGIN;
INSERT INTO amqp_outbox.message (message_id, exchange, routing_key, body_text) VALUES ('gone', '', 'q', 'x');
ROLLBACK;
SELECT count(*) FROM amqp_outbox.message WHERE message_id = 'gone';

-- refused
INSERT INTO amqp_outbox.message (routing_key, body) VALUES ('rk', 'x');
INSERT INTO amqp_outbox.message (exchange, body) VALUES ('ex', 'x');
INSERT INTO amqp_outbox.message (exchange, routing_key) VALUES ('ex', 'rk');
INSERT INTO amqp_outbox.message (exchange, routing_key, body, body_text) VALUES ('ex', 'rk', 'x', 'x');
INSERT INTO amqp_outbox.message (exchange, routing_key, body, status) VALUES ('ex', 'rk', 'x', 'delivered');
INSERT INTO amqp_outbox.message (exchange, routing_key, body, id) VALUES ('ex', 'rk', 'x', 1);
INSERT INTO amqp_outbox.message (exchange, routing_key, body) VALUES (repeat('x', 256), 'rk', 'x');
INSERT INTO amqp_outbox.message (exchange, routing_key, body, ordering_key) VALUES ('', '', 'x', repeat('x', 256));
INSERT INTO amqp_outbox.message (exchange, routing_key, body, priority) VALUES ('ex', 'rk', 'x', 256);
INSERT INTO amqp_outbox.message (exchange, routing_key, body, headers) VALUES ('ex', 'rk', 'x', '[1]');
INSERT INTO amqp_outbox.message (exchange, routing_key, body, server) VALUES ('ex', 'rk', 'x', 'nowhere');
COPY amqp_outbox.message (exchange, routing_key, body, attempts) FROM stdin;
ex	rk	x	1
\.
UPDATE amqp_outbox.message SET exchange = 'x';
DELETE FROM amqp_outbox.message;
BEGIN READ ONLY;
INSERT INTO amqp_outbox.message (exchange, routing_key, body) VALUES ('ex', 'rk', 'x');
ROLLBACK;
SELECT amqp_outbox.insert_message();
CREATE TABLE regress_outbox_table (a int);
CREATE TRIGGER t BEFORE INSERT ON regress_outbox_table FOR EACH ROW EXECUTE FUNCTION amqp_outbox.insert_message();
INSERT INTO regress_outbox_table VALUES (1);
DROP TABLE regress_outbox_table;

-- everybody may, who may publish; and nobody may read
CREATE ROLE regress_outbox_inserter;
SET ROLE regress_outbox_inserter;
INSERT INTO amqp_outbox.message (exchange, routing_key, body) VALUES ('ex', 'rk', 'x');
RESET ROLE;
GRANT USAGE ON FOREIGN SERVER mes TO regress_outbox_inserter;
SET ROLE regress_outbox_inserter;
INSERT INTO amqp_outbox.message (message_id, exchange, routing_key, body) VALUES ('inserted', 'ex', 'rk', 'x');
INSERT INTO amqp_outbox.message (exchange, routing_key, body) VALUES ('ex', 'rk', 'x') RETURNING message_id;
SELECT * FROM amqp_outbox.message;
RESET ROLE;
SELECT count(*) FROM amqp_outbox.message WHERE message_id = 'inserted';

REVOKE USAGE ON FOREIGN SERVER mes FROM regress_outbox_inserter;
DROP ROLE regress_outbox_inserter;
SET client_min_messages = warning;
DROP EXTENSION amqp_outbox CASCADE;

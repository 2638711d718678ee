--
-- INSERT into amqp_outbox.message as frameworks send it: see docs/frameworks.md
--
CREATE EXTENSION amqp_outbox;
CREATE SERVER mes FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://127.0.0.1:1');
CREATE ROLE regress_outbox_application;
GRANT USAGE ON FOREIGN SERVER mes TO regress_outbox_application;
CREATE VIEW sent AS
	SELECT message_id, exchange, routing_key, convert_from(body, 'UTF8') AS body, headers,
		content_type, persistent, ordering_key
	FROM amqp_outbox.message;
\pset null '-'
SET ROLE regress_outbox_application;

-- Hibernate with pgjdbc: strings are varchar, JSON is cast, null is of its type.
-- With @DynamicInsert, without it, and as a batch that pgjdbc has rewritten.
PREPARE hibernate (varchar, varchar, varchar, varchar, varchar) AS
	insert into amqp_outbox.message (body_json, exchange, ordering_key, routing_key, message_id)
		values (cast($1 as jsonb), $2, $3, $4, $5);
PREPARE hibernate_all (varchar, varchar, varchar, varchar, varchar, varchar, bool, varchar, varchar) AS
	insert into amqp_outbox.message (body_json, body_text, exchange, headers, ordering_key, routing_key, persistent, type, message_id)
		values (cast($1 as jsonb), $2, $3, cast($4 as jsonb), $5, $6, $7, $8, $9);
PREPARE hibernate_batch (varchar, varchar, varchar, varchar, varchar, varchar, varchar, varchar) AS
	insert into amqp_outbox.message (body_text, exchange, routing_key, message_id)
		values ($1, $2, $3, $4), ($5, $6, $7, $8);
EXECUTE hibernate ('{"id": 1}', 'mes', 'order 1', 'order.placed', 'hibernate 1');
EXECUTE hibernate_all ('{"id": 2}', NULL, 'mes', NULL, NULL, 'order.placed', NULL, NULL, 'hibernate 2');
EXECUTE hibernate_batch ('3', 'mes', 'order.placed', 'hibernate 3', '4', 'mes', 'order.placed', 'hibernate 4');
-- its id as java.util.UUID, its JSON as a PGobject
PREPARE hibernate_uuid (jsonb, varchar, varchar, uuid) AS
	insert into amqp_outbox.message (body_json, exchange, routing_key, message_id) values ($1, $2, $3, $4);
EXECUTE hibernate_uuid ('{"id": 5}', 'mes', 'order.placed', '00000000-0000-7000-8000-000000000005');
-- what goes wrong: JSON as a String without @JdbcTypeCode
PREPARE hibernate_string (varchar, varchar, varchar) AS
	insert into amqp_outbox.message (body_json, exchange, routing_key) values ($1, $2, $3);
-- merge(), which is also what save() of Spring Data does with an id that is set
SELECT message_id, body_json FROM amqp_outbox.message WHERE message_id = 'hibernate 1';

-- EF Core with Npgsql: all properties, each of the type of its column or property
PREPARE ef (text, jsonb, bytea, text, jsonb, text, boolean, text, timestamptz, interval, smallint, text) AS
	INSERT INTO amqp_outbox.message (message_id, body_json, body, exchange, headers, ordering_key,
		persistent, routing_key, due_at, expiration, priority, server)
	VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12);
EXECUTE ef ('ef 1', '{"id": 1}', NULL, 'mes', '{"plant": "P1"}', 'order 1', NULL, 'order.placed', NULL, NULL, NULL, NULL);
EXECUTE ef ('ef 2', NULL, '\x32', 'mes', NULL, NULL, true, 'order.placed', NULL, '1 day', 4, 'mes');
-- what goes wrong: a property that the database is said to generate
PREPARE ef_generated (jsonb, text, text) AS
	INSERT INTO amqp_outbox.message (body_json, exchange, routing_key) VALUES ($1, $2, $3)
	RETURNING message_id;
EXECUTE ef_generated ('{}', 'mes', 'order.placed');

-- Django: literals of no type, all fields of the model
INSERT INTO "amqp_outbox"."message" ("message_id", "exchange", "routing_key", "body_json", "body_text", "headers", "ordering_key")
	VALUES ('django 1', 'mes', 'order.placed', '{"id": 1}', NULL, '{"plant": "P1"}', 'order 1');
-- bulk_create()
INSERT INTO "amqp_outbox"."message" ("message_id", "exchange", "routing_key", "body_json", "body_text", "headers", "ordering_key")
	VALUES ('django 2', 'mes', 'order.placed', '{"id": 2}', NULL, NULL, NULL),
		('django 3', 'mes', 'order.placed', NULL, '3', NULL, NULL);
-- what goes wrong: save() without force_insert, if the key has no default
UPDATE "amqp_outbox"."message" SET "exchange" = 'mes' WHERE "amqp_outbox"."message"."message_id" = 'django 4';

-- Rails: parameters of no type, all columns of the view or those that were given
PREPARE rails AS
	INSERT INTO "amqp_outbox"."message" ("server", "id", "message_id", "status", "exchange", "routing_key", "body", "headers",
		"content_type", "content_encoding", "persistent", "priority", "correlation_id", "reply_to", "expiration",
		"message_timestamp", "type", "user_id", "app_id", "mandatory", "ordering_key", "expires_at", "enqueued_at", "due_at",
		"delivered_at", "attempts", "last_error", "body_text", "body_json", "idempotency_key")
	VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24,
		$25, $26, $27, $28, $29, $30);
EXECUTE rails (NULL, NULL, 'rails 1', NULL, 'mes', 'order.placed', NULL, '{"plant": "P1"}', NULL, NULL, NULL, NULL, NULL,
	NULL, NULL, NULL, 'order', NULL, NULL, NULL, 'order 1', NULL, NULL, NULL, NULL, NULL, NULL, NULL, '{"id": 1}', NULL);
PREPARE rails_partial AS
	INSERT INTO "amqp_outbox"."message" ("message_id", "exchange", "routing_key", "body_text") VALUES ($1, $2, $3, $4);
EXECUTE rails_partial ('rails 2', 'mes', 'order.placed', '2');
-- insert_all!, insert_all
INSERT INTO "amqp_outbox"."message" ("message_id","exchange","routing_key","body_json")
	VALUES ('rails 3', 'mes', 'order.placed', '{"id":3}'), ('rails 4', 'mes', 'order.placed', '{"id":4}');
INSERT INTO "amqp_outbox"."message" ("message_id","exchange","routing_key","body_text")
	VALUES ('rails 5', 'mes', 'order.placed', '5') ON CONFLICT DO NOTHING;
-- what goes wrong: a primary key
INSERT INTO "amqp_outbox"."message" ("message_id", "exchange", "routing_key", "body_text")
	VALUES ('rails 6', 'mes', 'order.placed', '6') RETURNING "message_id";

-- what counts the rows: each framework compares this with what it has sent
\set QUIET off
INSERT INTO amqp_outbox.message (message_id, exchange, routing_key, body_text)
	VALUES ('rows 1', 'mes', 'order.placed', '1'), ('rows 2', 'mes', 'order.placed', '2');
\set QUIET on

RESET ROLE;
SELECT * FROM sent ORDER BY message_id;

DEALLOCATE ALL;
REVOKE USAGE ON FOREIGN SERVER mes FROM regress_outbox_application;
DROP ROLE regress_outbox_application;
SET client_min_messages = warning;
DROP EXTENSION amqp_outbox CASCADE;

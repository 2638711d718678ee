--
-- amqp_publish_row(): what it refuses, and how it says so
--
CREATE EXTENSION amqp_outbox;
CREATE SERVER mes FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://127.0.0.1:1');
CREATE TABLE t (id int, a text, "B c" text, gone int, plant text);
ALTER TABLE t DROP COLUMN gone;
CREATE VIEW v AS SELECT * FROM t;

-- Try a trigger with these arguments.
CREATE PROCEDURE try(VARIADIC args text[]) LANGUAGE plpgsql AS $$
DECLARE
	message text;
	detail text;
	hint text;
	context text;
BEGIN
	EXECUTE 'CREATE TRIGGER t AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION amqp_publish_row('
		|| coalesce((SELECT string_agg(quote_literal(a), ', ' ORDER BY n) FROM unnest(args) WITH ORDINALITY u(a, n)), '') || ')';
	INSERT INTO t (id, a, plant) VALUES (1, repeat('ä', 200), 'P1');
	RAISE EXCEPTION 'no error';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL,
		hint = PG_EXCEPTION_HINT, context = PG_EXCEPTION_CONTEXT;
	RAISE NOTICE E'%: %\ndetail: %\nhint: %\ncontext: %', SQLSTATE, message, detail, hint,
		regexp_replace(context, E'\n(SQL statement|PL/pgSQL function).*', '');
END $$;
\set SHOW_CONTEXT never

-- as anything but an AFTER trigger; CREATE TRIGGER says it
SELECT amqp_publish_row();
CREATE TRIGGER b BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION amqp_publish_row('', '');
CREATE TRIGGER b BEFORE TRUNCATE ON t FOR EACH STATEMENT EXECUTE FUNCTION amqp_publish_row('', '');
CREATE TRIGGER i INSTEAD OF INSERT ON v FOR EACH ROW EXECUTE FUNCTION amqp_publish_row('', '');
DROP VIEW v;

-- statement triggers without the transition table that they need
CREATE TRIGGER s AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH STATEMENT EXECUTE FUNCTION amqp_publish_row('', '');
CREATE TRIGGER s AFTER DELETE ON t FOR EACH STATEMENT EXECUTE FUNCTION amqp_publish_row('', '');
CREATE TRIGGER s AFTER UPDATE ON t REFERENCING OLD TABLE AS o FOR EACH STATEMENT EXECUTE FUNCTION amqp_publish_row('', '');
CREATE TRIGGER s AFTER UPDATE ON t REFERENCING NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION amqp_publish_row('', '{old.id}');
CREATE TRIGGER s AFTER UPDATE ON t REFERENCING NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION amqp_publish_row('', '', 'unchanged=skip');
CREATE TRIGGER s AFTER UPDATE ON t REFERENCING NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION amqp_publish_row('', '', 'body=envelope');
SELECT count(*) FROM pg_trigger WHERE tgrelid = 't'::regclass;

-- what is right when it is created may become wrong
CREATE TRIGGER t AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION amqp_publish_row('', '{a}');
ALTER TABLE t RENAME a TO b;
INSERT INTO t VALUES (1);
ALTER TABLE t RENAME b TO a;
DROP TRIGGER t ON t;

-- arguments
CREATE TRIGGER t AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION amqp_publish_row();
CALL try('ex');
CALL try('ex', 'rk', 'bdy=row');
CALL try('ex', 'rk', 'Body=row');
CALL try('ex', 'rk', '');
CALL try('ex', 'rk', 'body');
CALL try('ex', 'rk', 'body=row', 'type=t', 'body=none');
CALL try('ex', 'rk', 'body=');
CALL try('ex', 'rk', 'body=json');
CALL try('ex', 'rk', 'numeric=string');
CALL try('ex', 'rk', 'bytea=escape');
CALL try('ex', 'rk', 'dots=yes');
CALL try('ex', 'rk', 'unchanged=drop');
CALL try('ex', 'rk', 'publish_via_partition_root=maybe');
CALL try('ex', 'rk', 'cloudevents=1.0');
CALL try('ex', 'rk', 'persistent=2');
CALL try('ex', 'rk', 'mandatory=');
CALL try('ex', 'rk', 'priority=256');
CALL try('ex', 'rk', 'priority=high');
CALL try('ex', 'rk', 'expiration=soon');
CALL try('ex', 'rk', 'expiration=-1 s');
CALL try('ex', 'rk', 'expiration=1000000000000 years');
CALL try('ex', 'rk', 'headers={');
CALL try('ex', 'rk', 'headers=[1]');
CALL try('ex', 'rk', 'headers={"": 1}');
CALL try('ex', 'rk', 'server=');
CALL try('ex', 'rk', 'server=erp');
CALL try('ex', 'rk', 'app_id=');
CALL try('ex', 'rk', 'columns=');
CALL try('ex', 'rk', 'columns=a,,id');
CALL try('ex', 'rk', 'key="a');
CALL try('ex', 'rk', 'columns=id', 'except=a');
CALL try('ex', 'rk', 'cloudevents=structured', 'content_type=application/json');
CALL try('ex', 'rk', 'source=/here');
CALL try('ex', 'rk', 'subject={a}', 'cloudevents=none');

-- templates
CALL try('ex', 'a.{id');
CALL try('ex', 'ä.id}.x');
CALL try('ex', 'a.{}');
CALL try('ex', 'a.{{id}');
CALL try('ex', '{id}{a b}');
CALL try('ex', '{other.id}');
CALL try('ex', '{new.t.id}');
CALL try('ex', '{"id}');
CALL try('{', 'rk');
CALL try('ex', 'rk', 'type={');

-- columns that the table does not have
CALL try('ex', 'x.{plant_id}.y');
CALL try('ex', 'x.{B c}.y');
CALL try('ex', 'x.{old.gone}.y');
CALL try('{"ID"}', '');
CALL try('ex', 'rk', 'columns=id,b');
CALL try('ex', 'rk', 'except=gone');
CALL try('ex', 'rk', 'key="B c",x');
CALL try('ex', 'rk', 'cloudevents=binary', 'source=/{x}');

-- what AMQP does not allow
CALL try('ex', '{plant}.{a}');
CALL try('{a}', 'rk');
CALL try('ex', 'rk', 'key=plant,a');
CALL try('ex', 'rk', 'type={a}');
CALL try('ex', 'rk', 'content_type=' || repeat('x', 256));
CALL try('ex', 'rk', 'cloudevents=binary', 'type={"B c"}', 'null_word=');
CALL try('ex', 'rk', 'cloudevents=structured', 'source={old.a}', 'null_word=');
CALL try('ex', 'rk', 'headers={"x-possible-duplicate": true}');
SET amqp_outbox.max_message_size = 100;
CALL try('ex', 'rk');
RESET amqp_outbox.max_message_size;

-- a statement that fails publishes nothing, and what was right before is right
-- afterwards
CREATE TRIGGER t AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION amqp_publish_row('', '{a}', 'columns=id');
BEGIN;
INSERT INTO t VALUES (1, 'one');
SAVEPOINT s;
INSERT INTO t VALUES (2, 'two'), (3, repeat('x', 256));
ROLLBACK TO s;
ALTER TABLE t RENAME a TO b;
SAVEPOINT s;
INSERT INTO t VALUES (4, 'four');
ROLLBACK TO s;
ALTER TABLE t RENAME b TO a;
INSERT INTO t VALUES (5, 'five');
SELECT routing_key, convert_from(body, 'UTF8') AS body FROM amqp_outbox.message;
ROLLBACK;

-- settings are those of the session after an error, too
SET bytea_output = 'escape';
DO $$
BEGIN
	INSERT INTO t VALUES (3, repeat('x', 256));
EXCEPTION WHEN string_data_right_truncation THEN
	RAISE NOTICE '%', current_setting('bytea_output');
END $$;
RESET bytea_output;

-- where nothing may be published
CREATE TEMPORARY TABLE temporary (id int);
CREATE TRIGGER t AFTER INSERT ON temporary FOR EACH ROW EXECUTE FUNCTION amqp_publish_row('', 'rk');
BEGIN READ ONLY;
INSERT INTO temporary VALUES (1);
ROLLBACK;
DROP TABLE temporary;

-- CREATE TRIGGER's check goes on when what PostgreSQL remembers of the table is
-- replaced in the middle: one that was built with assertions can do that all the time
CREATE TRIGGER a AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION amqp_publish_row('ex', 'key.{id}');
SELECT count(set_config('debug_discard_caches', least(max_val::integer, 1)::text, false))
	FROM pg_settings WHERE name = 'debug_discard_caches';
CREATE TRIGGER b AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION amqp_publish_row('ex', 'key.{id}', 'headers={"b": 1', 'columns=id');
CREATE TRIGGER b AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION amqp_publish_row('ex', 'key.{id}.{nobody''s column}');
CREATE TRIGGER b AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION amqp_publish_row('ex', 'key.{id}.{plant}', 'type={a}');
RESET debug_discard_caches;
BEGIN;
INSERT INTO t (id, a, plant) VALUES (6, 'six', 'P1');
SELECT routing_key, type FROM amqp_outbox.message ORDER BY routing_key;
ROLLBACK;
DROP TRIGGER a ON t;
DROP TRIGGER b ON t;

-- the extension goes, but not without the triggers
DROP EXTENSION amqp_outbox;
\set VERBOSITY terse
DROP EXTENSION amqp_outbox CASCADE;
INSERT INTO t VALUES (1, 'no trigger any more');
DROP TABLE t;
DROP PROCEDURE try(text[]);

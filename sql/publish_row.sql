--
-- amqp_publish_row(): what triggers send
--
-- The statements of the first part are the examples of docs/triggers.md.
--
CREATE EXTENSION amqp_outbox;
CREATE SERVER mes FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://127.0.0.1:1');
\pset null '-'
\pset format unaligned

-- what the own transaction has published; what differs from run to run is masked
CREATE FUNCTION masked(body bytea) RETURNS text LANGUAGE sql AS $$
	SELECT regexp_replace(regexp_replace(regexp_replace(convert_from(body, 'UTF8'),
		'"time":"[-0-9]+T[0-9:.]+\+00:00"', '"time":"..."', 'g'),
		'"txid":"[0-9]+"', '"txid":"..."'),
		'"id":"[0-9a-f]{8}-[-0-9a-f]{27}"', '"id":"..."')
$$;
CREATE VIEW sent AS
	SELECT exchange, routing_key, masked(body) AS body
	FROM amqp_outbox.message WHERE status = 'uncommitted';

--
-- The examples
--

CREATE TABLE orders (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	plant_id text NOT NULL,
	product text,
	quantity numeric,
	state text NOT NULL DEFAULT 'new'
);

CREATE TRIGGER publish
	AFTER INSERT OR UPDATE OR DELETE ON orders
	FOR EACH ROW
	EXECUTE FUNCTION amqp_publish_row('mes.events', 'plant.{plant_id}.order.{op}');

BEGIN;
INSERT INTO orders (plant_id, product, quantity) VALUES ('P1', 'valve', 12.50);
UPDATE orders SET state = 'released';
DELETE FROM orders;
TABLE sent;
ROLLBACK;

-- only what matters
DROP TRIGGER publish ON orders;
CREATE TRIGGER publish_released
	AFTER UPDATE OF state ON orders
	FOR EACH ROW
	WHEN (OLD.state IS DISTINCT FROM NEW.state)
	EXECUTE FUNCTION amqp_publish_row('mes.events', 'plant.{plant_id}.order.{old.state}.{new.state}',
		'body=envelope', 'columns=id,state', 'key=id', 'mandatory=true');

BEGIN;
INSERT INTO orders (plant_id, product, quantity) VALUES ('P1', 'valve', 12.50);
UPDATE orders SET quantity = 13;
UPDATE orders SET state = state;
UPDATE orders SET state = 'released';
TABLE sent;
SELECT ordering_key, mandatory FROM amqp_outbox.message WHERE status = 'uncommitted';
ROLLBACK;

-- one call for each statement
DROP TRIGGER publish_released ON orders;
CREATE TRIGGER publish_inserted
	AFTER INSERT ON orders
	REFERENCING NEW TABLE AS new_rows
	FOR EACH STATEMENT
	EXECUTE FUNCTION amqp_publish_row('mes.events', 'plant.{plant_id}.order.{op}', 'key=plant_id');
CREATE TRIGGER publish_updated
	AFTER UPDATE ON orders
	REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
	FOR EACH STATEMENT
	EXECUTE FUNCTION amqp_publish_row('mes.events', 'plant.{plant_id}.order.{op}', 'key=plant_id',
		'unchanged=skip');
CREATE TRIGGER publish_deleted
	AFTER DELETE ON orders
	REFERENCING OLD TABLE AS old_rows
	FOR EACH STATEMENT
	EXECUTE FUNCTION amqp_publish_row('mes.events', 'plant.{plant_id}.order.{op}', 'key=plant_id');
CREATE TRIGGER publish_truncated
	AFTER TRUNCATE ON orders
	FOR EACH STATEMENT
	EXECUTE FUNCTION amqp_publish_row('mes.events', 'all.orders.{op}');

BEGIN;
INSERT INTO orders (plant_id, product, quantity)
	SELECT 'P' || i, 'valve', 10 * i FROM generate_series(1, 3) i;
UPDATE orders SET quantity = CASE plant_id WHEN 'P2' THEN quantity ELSE quantity + 1 END;
DELETE FROM orders WHERE plant_id = 'P3';
TRUNCATE orders;
TABLE sent;
ROLLBACK;
DROP TRIGGER publish_inserted ON orders;
DROP TRIGGER publish_updated ON orders;
DROP TRIGGER publish_deleted ON orders;
DROP TRIGGER publish_truncated ON orders;

-- CloudEvents, binary
CREATE TRIGGER publish_event
	AFTER INSERT OR UPDATE OR DELETE ON orders
	FOR EACH ROW
	EXECUTE FUNCTION amqp_publish_row('mes.events', 'plant.{plant_id}.order.{op}',
		'cloudevents=binary', 'source=https://mes.example.com/plants/{plant_id}',
		'type=com.example.order.{op}', 'subject=orders/{id}');

BEGIN;
INSERT INTO orders (plant_id, product, quantity) VALUES ('Linz 2', 'valve', 12.50);
TABLE sent;
SELECT jsonb_pretty(headers - 'cloudEvents_id' - 'cloudEvents_time') AS headers,
	headers->>'cloudEvents_id' = message_id AS id_is_message_id,
	(headers->>'cloudEvents_time')::timestamptz > now() AS time_of_the_statement,
	content_type, type
	FROM amqp_outbox.message WHERE status = 'uncommitted';
ROLLBACK;

-- CloudEvents, structured
DROP TRIGGER publish_event ON orders;
CREATE TRIGGER publish_structured
	AFTER INSERT OR UPDATE OR DELETE ON orders
	FOR EACH ROW
	EXECUTE FUNCTION amqp_publish_row('mes.events', 'plant.{plant_id}.order.{op}',
		'cloudevents=structured', 'key=id', 'numeric=text');

BEGIN;
INSERT INTO orders OVERRIDING SYSTEM VALUE VALUES (4711, 'P1', 'valve', 12.50);
TABLE sent;
SELECT convert_from(body, 'UTF8')::jsonb->>'id' = message_id AS id_is_message_id,
	content_type, headers, type, ordering_key
	FROM amqp_outbox.message WHERE status = 'uncommitted';
ROLLBACK;

-- partitions
CREATE TABLE measurement (machine text, measured_on date, value float8)
	PARTITION BY RANGE (measured_on);
CREATE TABLE measurement_2025 PARTITION OF measurement
	FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE measurement_2026 PARTITION OF measurement
	FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE TRIGGER publish
	AFTER INSERT OR UPDATE OR DELETE ON measurement
	FOR EACH ROW
	EXECUTE FUNCTION amqp_publish_row('mes.events', '{table}.{machine}.{op}',
		'publish_via_partition_root=true');

BEGIN;
INSERT INTO measurement VALUES ('press 7', '2025-12-31', 1.5), ('press 7', '2026-01-01', 1.75);
TABLE sent;
ROLLBACK;

--
-- The end of the examples; partitions further
--

-- a row that moves to another partition is deleted here and inserted there
BEGIN;
INSERT INTO measurement VALUES ('a', '2025-06-01', 1);
UPDATE measurement SET measured_on = '2026-06-01';
TABLE sent;
ROLLBACK;

-- without the option it is the partition that is named; in partitions that
-- came later, and whose columns are otherwise ordered, too
DROP TRIGGER publish ON measurement;
CREATE TRIGGER publish AFTER INSERT OR UPDATE OR DELETE ON measurement FOR EACH ROW
	EXECUTE FUNCTION amqp_publish_row('ex', '{schema}.{table}.{machine}', 'body=envelope', 'except=value', 'cloudevents=structured');
CREATE TABLE measurement_2027 (value float8, gone int, measured_on date, machine text);
ALTER TABLE measurement_2027 DROP COLUMN gone;
ALTER TABLE measurement ATTACH PARTITION measurement_2027 FOR VALUES FROM ('2027-01-01') TO ('2028-01-01');
BEGIN;
INSERT INTO measurement VALUES ('m', '2025-06-01', 1), ('m', '2027-06-01', 2);
INSERT INTO measurement_2027 VALUES (3, '2027-07-01', 'direct');
TABLE sent;
ROLLBACK;

-- statement triggers get the rows of all partitions as rows of the table named
-- in the statement
DROP TRIGGER publish ON measurement;
CREATE TRIGGER ins AFTER INSERT ON measurement REFERENCING NEW TABLE AS n FOR EACH STATEMENT
	EXECUTE FUNCTION amqp_publish_row('ex', '{table}.{machine}.{op}');
CREATE TRIGGER upd AFTER UPDATE ON measurement REFERENCING OLD TABLE AS o NEW TABLE AS n FOR EACH STATEMENT
	EXECUTE FUNCTION amqp_publish_row('ex', '{table}.{machine}.{op}', 'body=envelope');
CREATE TRIGGER del AFTER DELETE ON measurement REFERENCING OLD TABLE AS o FOR EACH STATEMENT
	EXECUTE FUNCTION amqp_publish_row('ex', '{table}.{machine}.{op}');
BEGIN;
INSERT INTO measurement VALUES ('m1', '2025-06-01', 1), ('m2', '2027-06-01', 2), ('m3', '2027-06-01', 3);
UPDATE measurement SET measured_on = measured_on - interval '1 year', value = value + 1 WHERE machine <> 'm1';
DELETE FROM measurement WHERE machine = 'm3';
TABLE sent;
ROLLBACK;

-- ... a row that is dropped on its way cannot be paired
CREATE FUNCTION drop_row() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER lost BEFORE INSERT ON measurement_2026 FOR EACH ROW EXECUTE FUNCTION drop_row();
BEGIN;
INSERT INTO measurement VALUES ('m1', '2025-06-01', 1), ('m2', '2027-06-01', 2);
UPDATE measurement SET measured_on = '2026-06-01' WHERE machine = 'm1';
ROLLBACK;
DROP TABLE measurement;

--
-- Values
--

CREATE DOMAIN positive AS numeric CHECK (VALUE > 0);
CREATE DOMAIN names AS text[];
CREATE TYPE mood AS ENUM ('good', 'bad "day"');
CREATE TYPE address AS (street text, zip numeric(8,2), raw bytea, tags text[]);
CREATE TYPE inner_type AS (a address, "Odd ""name""" int);
CREATE TABLE of_all_types (
	b bool, i2 int2, i4 int4, i8 int8, n numeric, n2 numeric(12,4), f4 float4, f8 float8,
	t text, v varchar(10), c char(5), nm name, e mood,
	d date, ti time, ts timestamp, tz timestamptz, iv interval,
	j json, jb jsonb, u uuid, raw bytea, x xml, net inet, o oid, bits bit(4),
	ia int[], ta text[], na numeric[], ra bytea[], multi int[][],
	r int4range, mr int4multirange, dr daterange,
	p positive, dn names, addr address, ad inner_type[]);
CREATE TRIGGER t AFTER INSERT ON of_all_types FOR EACH ROW EXECUTE FUNCTION
	amqp_publish_row('ex', 'row');

-- bodies are those of to_jsonb() with these settings, whatever the session has set
BEGIN;
SET LOCAL intervalstyle = 'postgres';
SET LOCAL datestyle = 'ISO';
INSERT INTO of_all_types VALUES (
	true, -1, 2147483647, -9223372036854775808, 12.3400, 5, 1.1, 1e-300,
	E'q" b\\ n\n t\t \x01 ä €', 'v', 'c', 'nm', 'bad "day"',
	'2026-02-28', '12:34:56.789', '2026-02-28 12:34:56.789', '2026-02-28 12:34:56.789+00', '1 mon 2 days 03:04:05',
	'{"a" :  [1, 2]}', '{"b": null, "a": 1.50}', '01890a5d-ac96-774b-bcce-b302099a8057', '\x00ff10', '<a>"x"</a>', '10.0.0.1/8', 4294967295, '1010',
	'{1,NULL,3}', '{a,"b \"c\"",NULL,""}', '{1.50,NaN}', '{"\\x00","\\xff"}', '{{1,2},{3,4}}',
	'[1,5)', '{[1,3),[5,8)}', '[2026-01-01,)',
	7.5, '{x,y}', ROW('Main "St"', 12.5, '\x01', '{a,b}'), ARRAY[ROW(ROW('s', 1, NULL, NULL), 2)::inner_type, NULL]);
INSERT INTO of_all_types (n, f4, f8, t, ia, tz, ts, d, addr) VALUES ('NaN', 'Infinity', '-Infinity', '', '{}', 'infinity', '-infinity', 'infinity', NULL);
INSERT INTO of_all_types (addr) VALUES (ROW(NULL, NULL, NULL, NULL));
SELECT body FROM sent LIMIT 1;
SELECT s.n, convert_from(m.body, 'UTF8')::jsonb = r.expected AS same
	FROM (SELECT row_number() OVER () AS n, body FROM amqp_outbox.message WHERE status = 'uncommitted') m
	JOIN (SELECT row_number() OVER () AS n FROM of_all_types) s USING (n)
	JOIN (SELECT row_number() OVER () AS n, to_jsonb(a) AS expected FROM of_all_types a) r USING (n);
SELECT body FROM sent OFFSET 1;
ROLLBACK;
BEGIN;
SET LOCAL datestyle = 'SQL, DMY';
SET LOCAL intervalstyle = 'sql_standard';
SET LOCAL extra_float_digits = -3;
SET LOCAL bytea_output = 'escape';
SET LOCAL timezone = 'Asia/Kolkata';
CREATE TRIGGER k AFTER INSERT ON of_all_types FOR EACH ROW EXECUTE FUNCTION
	amqp_publish_row('ex', '{b}|{f8}|{d}|{ts}|{tz}|{iv}|{raw}|{e}|{ia}|{n}', 'body=none');
INSERT INTO of_all_types (b, f4, f8, d, ts, tz, iv, raw, e, ia, n) VALUES (true, 1.1, 0.1, '2026-02-28',
	'2026-02-28 12:34:56.789', '2026-02-28 12:34:56.789+00', '1 mon 2 days 03:04:05', '\x00ff10', 'good', '{1,2}', 1.50);
TABLE sent;
SHOW datestyle;
SHOW bytea_output;
ROLLBACK;

-- at choice, at any depth
DROP TRIGGER t ON of_all_types;
CREATE TRIGGER t AFTER INSERT ON of_all_types FOR EACH ROW EXECUTE FUNCTION
	amqp_publish_row('ex', 'row', 'numeric=text', 'bytea=base64', 'columns=n,n2,f8,i8,na,p,raw,ra,addr,ad');
BEGIN;
INSERT INTO of_all_types (n, n2, f8, i8, na, p, raw, ra, addr, ad) VALUES (1.50, 2, 2.5, 3, '{1.50,NaN,NULL}', 7.50,
	decode(repeat('00ff10', 30), 'hex'), '{"\\x00ff"}', ROW('s', 12.5, '\x01', NULL),
	ARRAY[ROW(ROW('s', 1, '\xff', NULL), 2)::inner_type]);
SELECT body FROM sent;
ROLLBACK;

-- a cast to json is used as to_json() uses it, from the moment on when it is there
CREATE TYPE fraction AS (num int, den int);
CREATE TYPE level AS ENUM ('low', 'high');
CREATE TABLE cast_types (f fraction, l level);
CREATE TRIGGER t AFTER INSERT ON cast_types FOR EACH ROW EXECUTE FUNCTION amqp_publish_row('ex', 'row');
BEGIN;
INSERT INTO cast_types VALUES (ROW(1, 2), 'low');
CREATE FUNCTION to_json_cast(level) RETURNS json LANGUAGE sql AS $$ SELECT json_build_object('level', enum_first($1) = $1) $$;
CREATE CAST (level AS json) WITH FUNCTION to_json_cast(level);
INSERT INTO cast_types VALUES (ROW(1, 2), 'low');
ALTER TYPE fraction ADD ATTRIBUTE exact boolean;
ALTER TYPE fraction RENAME ATTRIBUTE num TO numerator;
INSERT INTO cast_types VALUES (ROW(1, 2, true), 'high');
SELECT body FROM sent;
SELECT to_json(c) FROM cast_types c;
ROLLBACK;
DROP TABLE cast_types, of_all_types;

--
-- Templates
--

CREATE TABLE t (id int, "Plant Id" text, op text, a text, b text, "b}r" text);
CREATE PROCEDURE retrigger(VARIADIC args text[]) LANGUAGE plpgsql AS $$
BEGIN
	DROP TRIGGER IF EXISTS t ON t;
	EXECUTE 'CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION amqp_publish_row('
		|| (SELECT string_agg(quote_literal(a), ', ' ORDER BY n) FROM unnest(args) WITH ORDINALITY u(a, n)) || ')';
END $$;
\set QUIET on
SET client_min_messages = warning;

-- names and braces
CALL retrigger('x.{a}', '{ID}.{"Plant Id"}.{op}.{"op"}.{new.op}.{ a }.{{{b}}}.{"b}r"}.{schema}.{table}', 'body=none');
BEGIN;
INSERT INTO t VALUES (1, 'p', 'column op', 'a.b', 'b#*', 'brace');
TABLE sent;
ROLLBACK;

-- old and new, and rows that there are not
CALL retrigger('', '{op}.{a}.{old.a}.{new.a}', 'body=none');
BEGIN;
INSERT INTO t (a) VALUES ('one');
UPDATE t SET a = 'two';
DELETE FROM t;
TABLE sent;
ROLLBACK;

-- nulls, empty strings, dots
CALL retrigger('{a}', 'x.{a}.{b}.y', 'body=none', 'key=a,b');
BEGIN;
INSERT INTO t (a, b) VALUES (NULL, ''), ('a.b', '.'), ('', 'a b:c\d');
SELECT exchange, routing_key, ordering_key FROM amqp_outbox.message;
ROLLBACK;
CALL retrigger('{a}', 'x.{a}.{b}.y', 'body=none', 'key=a', 'null_word=none.', 'empty_word=-', 'dots=keep');
BEGIN;
INSERT INTO t (a, b) VALUES (NULL, ''), ('a.b', '.'), ('', 'a b:c\d');
SELECT exchange, routing_key, ordering_key FROM amqp_outbox.message;
ROLLBACK;

-- all columns of the key null
CALL retrigger('', 'x', 'body=none', 'key=a, b');
BEGIN;
INSERT INTO t (a, b) VALUES (NULL, NULL), ('\N', NULL), (NULL, '\N');
SELECT ordering_key FROM amqp_outbox.message;
ROLLBACK;

-- an UPDATE that changes nothing; what is neither in the body nor in a template
-- nor in the key does not count
CALL retrigger('', '{a}', 'columns=id,b', 'key=op', 'unchanged=skip');
BEGIN;
INSERT INTO t VALUES (1, 'p', 'o', 'a', 'b', 'c');
UPDATE t SET id = id;
UPDATE t SET "b}r" = 'other';
UPDATE t SET a = 'other';
UPDATE t SET op = 'other';
UPDATE t SET b = NULL;
UPDATE t SET b = NULL;
TABLE sent;
ROLLBACK;

-- columns in and out, all out
CALL retrigger('', 'x', 'except=id, "Plant Id",op', 'body=envelope');
BEGIN;
INSERT INTO t VALUES (1, 'p', 'o', 'a', 'b', 'c');
UPDATE t SET op = 'x', b = 'x';
DELETE FROM t;
TABLE sent;
ROLLBACK;
CALL retrigger('', 'x', 'except=id,"Plant Id",op,a,b,"b}r"');
BEGIN;
INSERT INTO t VALUES (1, 'p', 'o', 'a', 'b', 'c');
TABLE sent;
ROLLBACK;

-- the message's properties
CALL retrigger('ex', 'rk', 'server=mes', 'headers={"a": [1, {"b": null}], "c": "d"}', 'content_type=text/json',
	'app_id=mes', 'type=t.{op}', 'persistent=off', 'mandatory=yes', 'priority=7', 'expiration=1 min');
BEGIN;
INSERT INTO t VALUES (1);
\x
SELECT server, headers, content_type, content_encoding, app_id, type, persistent, mandatory, priority, expiration
	FROM amqp_outbox.message;
\x
ROLLBACK;

-- CloudEvents: defaults, further headers, control characters, no content
ALTER TABLE t RENAME TO "t ä/%";
CREATE TRIGGER t2 AFTER INSERT ON "t ä/%" FOR EACH ROW EXECUTE FUNCTION
	amqp_publish_row('', 'rk', 'cloudevents=binary', 'headers={"h": 1, "cloudEvents_type": "loses", "cloudEvents_plant": "P1"}', 'key=a', 'content_type=application/json; charset=utf-8');
CREATE TRIGGER t3 AFTER INSERT ON "t ä/%" FOR EACH ROW EXECUTE FUNCTION
	amqp_publish_row('', 'rk', 'cloudevents=structured', 'subject={a}', 'source=urn:{a}', 'headers={"h": 1}', 'body=none');
CREATE TRIGGER t4 AFTER INSERT ON "t ä/%" FOR EACH ROW EXECUTE FUNCTION
	amqp_publish_row('', 'rk', 'cloudevents=binary', 'subject={a}', 'body=none');
BEGIN;
INSERT INTO "t ä/%" (a, b) VALUES (E'a\tb\u0085', 'x'), ('', 'x');
SELECT headers - 'cloudEvents_id' - 'cloudEvents_time' AS headers, masked(body) AS body, content_type FROM amqp_outbox.message
	WHERE headers IS NOT NULL;
ROLLBACK;
ALTER TABLE "t ä/%" RENAME TO t;
DROP TRIGGER t2 ON t;
DROP TRIGGER t3 ON t;
DROP TRIGGER t4 ON t;

-- what is kept of a trigger goes with every change of it
CALL retrigger('', '{schema}.{table}.{a}');
BEGIN;
INSERT INTO t (a) VALUES ('1');
ALTER TABLE t ADD COLUMN later int DEFAULT 5;
INSERT INTO t (a) VALUES ('2');
ALTER TABLE t DROP COLUMN id, DROP COLUMN op;
INSERT INTO t (a) VALUES ('3');
ALTER TABLE t RENAME COLUMN b TO renamed;
ALTER TABLE t ALTER COLUMN later TYPE text;
INSERT INTO t (a) VALUES ('4');
ALTER TABLE t RENAME TO other;
INSERT INTO other (a) VALUES ('5');
CREATE SCHEMA elsewhere;
ALTER TABLE other SET SCHEMA elsewhere;
INSERT INTO elsewhere.other (a) VALUES ('6');
ALTER SCHEMA elsewhere RENAME TO renamed;
INSERT INTO renamed.other (a) VALUES ('7');
UPDATE renamed.other SET a = a || 'x' WHERE a = '1';
TABLE sent;
DROP TABLE renamed.other;
ROLLBACK;
BEGIN;
SAVEPOINT s;
ALTER TABLE t DROP COLUMN b;
INSERT INTO t (a) VALUES ('1');
SELECT body FROM sent;
ROLLBACK TO s;
INSERT INTO t (a) VALUES ('2');
SELECT body FROM sent;
ROLLBACK;
BEGIN;
INSERT INTO t (a) VALUES ('1');
DROP TRIGGER t ON t;
INSERT INTO t (a) VALUES ('not sent');
CREATE TRIGGER t AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION amqp_publish_row('', 'anew', 'body=none');
INSERT INTO t (a) VALUES ('2');
TABLE sent;
ROLLBACK;
-- a root that is renamed
CREATE TABLE root (a int) PARTITION BY LIST (a);
CREATE TABLE branch PARTITION OF root FOR VALUES IN (1, 2) PARTITION BY LIST (a);
CREATE TABLE leaf PARTITION OF branch FOR VALUES IN (1);
CREATE TRIGGER t AFTER INSERT ON leaf FOR EACH ROW EXECUTE FUNCTION
	amqp_publish_row('', '{schema}.{table}', 'publish_via_partition_root=true', 'cloudevents=structured', 'body=envelope');
BEGIN;
INSERT INTO root VALUES (1);
ALTER TABLE root RENAME TO trunk;
INSERT INTO leaf VALUES (1);
ALTER TABLE trunk DETACH PARTITION branch;
INSERT INTO leaf VALUES (1);
TABLE sent;
ROLLBACK;
DROP TABLE root;

-- the function that writes a value changes the table under the trigger
CREATE TYPE trap AS ENUM ('x');
CREATE FUNCTION trap_json(trap) RETURNS json LANGUAGE plpgsql AS $$
BEGIN
	CREATE SCHEMA IF NOT EXISTS sprung;
	EXECUTE 'ALTER SCHEMA sprung RENAME TO released';
	DROP SCHEMA released;
	IF (SELECT count(*) < 5 FROM trapped) THEN
		INSERT INTO trapped VALUES (2, 'x', 'inner');
	END IF;
	RETURN '"trap"';
END $$;
CREATE CAST (trap AS json) WITH FUNCTION trap_json(trap);
CREATE TABLE trapped (a int, b trap, c text);
CREATE TRIGGER r AFTER INSERT ON trapped FOR EACH ROW EXECUTE FUNCTION amqp_publish_row('', 'row');
CREATE TRIGGER s AFTER INSERT ON trapped REFERENCING NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION amqp_publish_row('', 'statement');
BEGIN;
INSERT INTO trapped VALUES (1, 'x', 'outer'), (1, 'x', 'outer');
SELECT routing_key, body, count(*) FROM sent GROUP BY 1, 2 ORDER BY 1, 2;
ROLLBACK;
DROP TABLE trapped;
DROP TYPE trap CASCADE;

--
-- Kinds of tables and statements
--

-- generated, identity and dropped columns
CREATE TABLE g (gone int, a int, twice int GENERATED ALWAYS AS (a * 2) STORED, id int GENERATED BY DEFAULT AS IDENTITY);
ALTER TABLE g DROP COLUMN gone;
CREATE TRIGGER r AFTER INSERT OR UPDATE ON g FOR EACH ROW EXECUTE FUNCTION amqp_publish_row('', '{twice}', 'body=envelope');
CREATE TRIGGER s AFTER UPDATE ON g REFERENCING OLD TABLE AS o NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION amqp_publish_row('', 's.{old.twice}.{twice}');
BEGIN;
INSERT INTO g (a) VALUES (1), (2);
UPDATE g SET a = a + 10;
TABLE sent;
ROLLBACK;
DROP TABLE g;

-- all that changes rows, by row and by statement
CREATE TABLE parent (id int PRIMARY KEY, note text);
CREATE TABLE child (id int PRIMARY KEY, parent_id int REFERENCES parent ON DELETE CASCADE ON UPDATE SET NULL);
CREATE TRIGGER r AFTER INSERT OR UPDATE OR DELETE ON parent FOR EACH ROW EXECUTE FUNCTION amqp_publish_row('', 'row.{table}.{op}', 'columns=id,note');
CREATE TRIGGER i AFTER INSERT ON parent REFERENCING NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION amqp_publish_row('', 'statement.{table}.{op}', 'columns=id,note');
CREATE TRIGGER u AFTER UPDATE ON parent REFERENCING NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION amqp_publish_row('', 'statement.{table}.{op}', 'columns=id,note');
CREATE TRIGGER d AFTER DELETE ON parent REFERENCING OLD TABLE AS o FOR EACH STATEMENT EXECUTE FUNCTION amqp_publish_row('', 'statement.{table}.{op}', 'columns=id,note');
CREATE TRIGGER r AFTER INSERT OR UPDATE OR DELETE ON child FOR EACH ROW EXECUTE FUNCTION amqp_publish_row('', 'row.{table}.{op}');
CREATE TRIGGER d AFTER DELETE ON child REFERENCING OLD TABLE AS o FOR EACH STATEMENT EXECUTE FUNCTION amqp_publish_row('', 'statement.{table}.{op}');
CREATE TRIGGER t AFTER TRUNCATE ON child FOR EACH STATEMENT EXECUTE FUNCTION amqp_publish_row('', 'statement.{table}.{op}.{id}.{new.id}', 'body=envelope');
INSERT INTO parent VALUES (1, 'one'), (2, 'two');
INSERT INTO child VALUES (10, 1), (11, 1), (20, 2);
-- ON CONFLICT
BEGIN;
INSERT INTO parent VALUES (1, 'again'), (3, 'new') ON CONFLICT (id) DO UPDATE SET note = excluded.note;
INSERT INTO parent VALUES (1, 'not at all') ON CONFLICT DO NOTHING;
TABLE sent;
ROLLBACK;
-- COPY
BEGIN;
COPY parent FROM stdin;
4	copied
5	\N
\.
TABLE sent;
ROLLBACK;
-- MERGE
BEGIN;
MERGE INTO parent p USING (VALUES (1, 'merged'), (2, NULL), (6, 'new')) s (id, note) ON p.id = s.id
	WHEN MATCHED AND s.note IS NULL THEN DELETE
	WHEN MATCHED THEN UPDATE SET note = s.note
	WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.note);
TABLE sent;
ROLLBACK;
-- foreign keys
BEGIN;
DELETE FROM parent WHERE id = 1;
UPDATE parent SET id = 22 WHERE id = 2;
TABLE sent;
ROLLBACK;
-- TRUNCATE
BEGIN;
TRUNCATE parent CASCADE;
TABLE sent;
ROLLBACK;
-- no row, no message; but a TRUNCATE is one of an empty table, too
BEGIN;
DELETE FROM parent WHERE id = 99;
TRUNCATE child;
SELECT count(*) FROM sent;
ROLLBACK;
-- data-modifying WITH
BEGIN;
WITH gone AS (DELETE FROM child RETURNING *) INSERT INTO parent SELECT id, 'was a child' FROM gone;
TABLE sent;
ROLLBACK;
-- a savepoint that is rolled back
BEGIN;
INSERT INTO child VALUES (30, 2);
SAVEPOINT s;
INSERT INTO child VALUES (31, 2);
ROLLBACK TO s;
INSERT INTO child VALUES (32, 2);
SELECT routing_key, body FROM sent;
ROLLBACK;
-- transition tables that do not fit into memory
BEGIN;
SET LOCAL work_mem = '64kB';
CREATE TRIGGER u2 AFTER UPDATE ON child REFERENCING OLD TABLE AS o NEW TABLE AS n FOR EACH STATEMENT
	EXECUTE FUNCTION amqp_publish_row('', 'large.{old.id}.{id}');
ALTER TABLE child DISABLE TRIGGER r;
INSERT INTO child SELECT i, 1 FROM generate_series(1001, 6000) i;
UPDATE child SET id = -id WHERE id > 1000;
SELECT count(*), count(DISTINCT routing_key),
	bool_and(split_part(routing_key, '.', 2)::int = -split_part(routing_key, '.', 3)::int) AS paired,
	bool_and((convert_from(body, 'UTF8')::json->>'id') = split_part(routing_key, '.', 3)) AS matching
	FROM amqp_outbox.message WHERE routing_key LIKE 'large.%';
ROLLBACK;
DROP TABLE child, parent;

-- a deferred constraint trigger fires at commit, and before the messages leave
CREATE TABLE later (id int);
CREATE CONSTRAINT TRIGGER c AFTER INSERT ON later DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW EXECUTE FUNCTION amqp_publish_row('', 'deferred.{id}');
BEGIN;
INSERT INTO later VALUES (1);
SELECT count(*) AS before_commit FROM sent;
SET CONSTRAINTS ALL IMMEDIATE;
SELECT count(*) AS at_once FROM sent;
SET CONSTRAINTS ALL DEFERRED;
INSERT INTO later VALUES (2);
COMMIT;
SELECT routing_key, status FROM amqp_outbox.message WHERE routing_key LIKE 'deferred.%' ORDER BY id;
DROP TABLE later;

-- ENABLE ALWAYS and the session's replication role are as for any trigger
CREATE TABLE r (id int);
CREATE TRIGGER r AFTER INSERT ON r FOR EACH ROW EXECUTE FUNCTION amqp_publish_row('', '{id}', 'body=none');
BEGIN;
SET LOCAL session_replication_role = replica;
INSERT INTO r VALUES (1);
ALTER TABLE r ENABLE ALWAYS TRIGGER r;
INSERT INTO r VALUES (2);
TABLE sent;
ROLLBACK;
DROP TABLE r;

--
-- Rights and search_path
--

-- USAGE on the server is needed by whoever changes the table
CREATE ROLE regress_outbox_clerk;
CREATE ROLE regress_outbox_other;
GRANT INSERT ON t TO regress_outbox_clerk, regress_outbox_other;
GRANT USAGE ON FOREIGN SERVER mes TO regress_outbox_clerk;
CALL retrigger('', 'rk', 'body=none');
BEGIN;
SET LOCAL ROLE regress_outbox_clerk;
INSERT INTO t (a) VALUES ('1');
RESET ROLE;
SELECT count(*) FROM sent;
ROLLBACK;
SET ROLE regress_outbox_other;
INSERT INTO t (a) VALUES ('1');
RESET ROLE;

-- a schema in front of all others that has everything
CREATE SCHEMA hostile;
GRANT ALL ON SCHEMA hostile TO regress_outbox_clerk;
SET ROLE regress_outbox_clerk;
CREATE FUNCTION hostile.trap() RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
CREATE FUNCTION hostile.to_json(anyelement) RETURNS json LANGUAGE sql AS 'SELECT hostile.trap()::json';
CREATE FUNCTION hostile.to_jsonb(anyelement) RETURNS jsonb LANGUAGE sql AS 'SELECT hostile.trap()::jsonb';
CREATE FUNCTION hostile.amqp_publish(text, text, text) RETURNS text LANGUAGE sql AS 'SELECT hostile.trap()';
CREATE FUNCTION hostile.textout(text) RETURNS text LANGUAGE sql AS 'SELECT hostile.trap()';
CREATE FUNCTION hostile.statement_timestamp() RETURNS timestamptz LANGUAGE sql AS 'SELECT hostile.trap()::timestamptz';
CREATE FUNCTION hostile.eq(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT hostile.trap()::boolean';
CREATE FUNCTION hostile.concat(text, text) RETURNS text LANGUAGE sql AS 'SELECT hostile.trap()';
CREATE OPERATOR hostile.= (LEFTARG = text, RIGHTARG = text, FUNCTION = hostile.eq);
CREATE OPERATOR hostile.|| (LEFTARG = text, RIGHTARG = text, FUNCTION = hostile.concat);
CREATE TYPE hostile.text AS (hostile int);
CREATE TYPE hostile.jsonb AS (hostile int);
CREATE TYPE hostile.interval AS (hostile int);
CREATE TYPE hostile.timestamptz AS (hostile int);
CREATE TABLE hostile.pg_class (LIKE pg_catalog.pg_class);
CREATE TABLE hostile.pg_foreign_server (LIKE pg_catalog.pg_foreign_server);
CREATE TABLE hostile.outbox (a int);
CREATE TABLE hostile.t (a int);
RESET ROLE;
ALTER TABLE t ADD COLUMN p positive, ADD COLUMN arr text[], ADD COLUMN addr address, ADD COLUMN at timestamptz, ADD COLUMN iv interval;
GRANT USAGE ON FOREIGN SERVER mes TO regress_outbox_clerk;
CREATE TRIGGER everything AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION
	amqp_publish_row('{a}', '{table}.{at}.{iv}', 'body=envelope', 'cloudevents=structured', 'key=a,b',
		'numeric=text', 'bytea=base64', 'headers={"a": 1}', 'expiration=1 min', 'subject={addr}');
CREATE TRIGGER everything2 AFTER INSERT ON t REFERENCING NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION
	amqp_publish_row('{a}', '{table}.{at}.{iv}', 'cloudevents=binary', 'unchanged=skip');
BEGIN;
SET LOCAL ROLE regress_outbox_clerk;
SET LOCAL search_path = hostile, pg_catalog, public;
INSERT INTO public.t (a, b, p, arr, addr, at, iv) VALUES ('a', 'b', 1.5, '{x}', ROW('s', 1, '\x00', '{t}')::public.address,
	'2026-01-01 00:00:00+00', '1 h');
RESET ROLE;
SET LOCAL search_path = public;
TABLE sent;
ROLLBACK;
SET client_min_messages = notice;
\set QUIET off

SET client_min_messages = warning;
DROP SCHEMA hostile CASCADE;
DROP TABLE t, orders CASCADE;
DROP VIEW sent;
DROP EXTENSION amqp_outbox CASCADE;
DROP FUNCTION masked(bytea), drop_row();
DROP PROCEDURE retrigger(text[]);
DROP TYPE inner_type, address, names, positive, mood, fraction, level CASCADE;
DROP ROLE regress_outbox_clerk, regress_outbox_other;

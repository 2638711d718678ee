--
-- A message exists exactly when its transaction commits: what the outbox holds
-- after each kind of transaction.  (The server cannot be reached, so that
-- everything stays pending.)
--
CREATE EXTENSION amqp_outbox;
CREATE SERVER mes FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://127.0.0.1:1');

CREATE FUNCTION publish(name text) RETURNS void LANGUAGE sql AS
$$ SELECT amqp_publish('', 'q', name, message_id => name) $$;
CREATE VIEW outbox AS SELECT message_id, status FROM amqp_outbox.message
	ORDER BY id NULLS LAST, message_id;

-- commit and rollback
BEGIN; SELECT publish('committed'); COMMIT;
BEGIN; SELECT publish('rolled back'); ROLLBACK;
BEGIN; SELECT publish('failed'); SELECT 1/0; COMMIT;
SELECT publish('alone');
SELECT * FROM outbox;

-- own messages are seen before the commit, also in the middle of a statement
BEGIN;
SELECT publish('a');
SELECT publish('b'), (SELECT count(*) FROM amqp_outbox.uncommitted());
SELECT * FROM outbox WHERE status = 'uncommitted';
COMMIT;
SELECT * FROM outbox WHERE message_id IN ('a', 'b');

-- savepoints: released, rolled back, nested, reused
BEGIN;
SELECT publish('s1');
SAVEPOINT x;
SELECT publish('s2 gone');
SAVEPOINT y;
SELECT publish('s3 gone');
RELEASE y;
SELECT publish('s4 gone');
ROLLBACK TO x;
SELECT publish('s5');
SAVEPOINT y;
SELECT publish('s6');
RELEASE y;
SAVEPOINT z;
SAVEPOINT zz;
SELECT publish('s7 gone');
ROLLBACK TO zz;
SELECT publish('s8 gone');
RELEASE zz;
ROLLBACK TO z;
RELEASE z;
RELEASE x;
SELECT publish('s9');
SELECT message_id FROM amqp_outbox.uncommitted();
COMMIT;
SELECT * FROM outbox WHERE message_id LIKE 's_%';

-- everything rolled back to a savepoint: nothing is written
BEGIN;
SAVEPOINT x;
SELECT publish('nothing');
ROLLBACK TO x;
COMMIT;

-- exception blocks
DO $$
BEGIN
	FOR i IN 1..6 LOOP
		BEGIN
			PERFORM publish('e' || i);
			BEGIN
				PERFORM publish('e' || i || ' inner');
				IF i % 3 = 0 THEN
					RAISE EXCEPTION 'inner';
				END IF;
			EXCEPTION WHEN raise_exception THEN
				PERFORM publish('e' || i || ' handled');
			END;
			IF i % 2 = 0 THEN
				RAISE EXCEPTION 'outer';
			END IF;
		EXCEPTION WHEN raise_exception THEN
			NULL;
		END;
	END LOOP;
END $$;
SELECT * FROM outbox WHERE message_id LIKE 'e_%';

-- a procedure that commits
CREATE PROCEDURE batches() LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1..4 LOOP
		PERFORM publish('p' || i);
		IF i % 2 = 0 THEN
			COMMIT;
		ELSE
			ROLLBACK;
		END IF;
	END LOOP;
	PERFORM publish('p5');
END $$;
CALL batches();
SELECT * FROM outbox WHERE message_id LIKE 'p_';

-- triggers: before, after, deferred, of a constraint
CREATE TABLE work_order (id int PRIMARY KEY, qty int CHECK (qty > 0));
CREATE FUNCTION announce() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM publish(TG_NAME || ' ' || NEW.id); RETURN NEW; END $$;
CREATE TRIGGER after_row AFTER INSERT ON work_order FOR EACH ROW EXECUTE FUNCTION announce();
CREATE TRIGGER before_row BEFORE INSERT ON work_order FOR EACH ROW EXECUTE FUNCTION announce();
CREATE CONSTRAINT TRIGGER deferred AFTER INSERT ON work_order
	DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION announce();
INSERT INTO work_order VALUES (1, 1), (2, 1);
INSERT INTO work_order VALUES (3, 0);
INSERT INTO work_order VALUES (2, 1) ON CONFLICT DO NOTHING;
SELECT * FROM outbox WHERE message_id ~ '(row|deferred) ';

-- cursors: rows that were fetched, or all if it is held
BEGIN;
DECLARE c CURSOR FOR SELECT publish('c' || i) FROM generate_series(1, 5) i;
FETCH 2 FROM c;
COMMIT;
BEGIN;
DECLARE h CURSOR WITH HOLD FOR SELECT publish('h' || i) FROM generate_series(1, 3) i;
COMMIT;
CLOSE h;
SELECT * FROM outbox WHERE message_id ~ '^[ch][0-9]';

-- isolation levels
BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT publish('serializable'); COMMIT;
BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1; SELECT publish('repeatable read'); COMMIT;
SELECT * FROM outbox WHERE message_id ~ 'able';

-- ids are dense, and in the order of commit and call
SELECT bool_and(id = n) FROM
	(SELECT id, row_number() OVER (ORDER BY id) AS n FROM amqp_outbox.outbox) s;

-- several thousand messages, with some rolled back, beyond work_mem
SET work_mem = '64kB';
BEGIN;
SELECT count(amqp_publish('', 'q', repeat('x', 100), message_id => 'many ' || i)) FROM generate_series(1, 2000) i;
SAVEPOINT s;
SELECT count(amqp_publish('', 'q', repeat('x', 100), message_id => 'gone ' || i)) FROM generate_series(1, 2000) i;
ROLLBACK TO s;
SELECT count(amqp_publish('', 'q', repeat('x', 100), message_id => 'many ' || i)) FROM generate_series(2001, 4000) i;
SELECT count(*), min(message_id), max(message_id) FROM amqp_outbox.uncommitted();
COMMIT;
RESET work_mem;
SELECT count(*), bool_and(message_id = 'many ' || n) AS in_order FROM
	(SELECT message_id, row_number() OVER (ORDER BY id) AS n FROM amqp_outbox.outbox
	 WHERE message_id LIKE 'many %') s;
SELECT count(*) FROM amqp_outbox.outbox WHERE message_id LIKE 'gone %';

-- small and large messages keep their order, in memory and on disk
CREATE TABLE mixed AS SELECT i, repeat('x', CASE WHEN i IN (2, 4) THEN 5000
		WHEN i < 6 THEN 0 ELSE i % 7 * (i % 11) * 150 END) AS body
	FROM generate_series(1, 1500) i;
SET work_mem = '64kB';
BEGIN;
SELECT count(amqp_publish('', 'q', body, message_id => '+' || i, content_type => ''))
	FROM (SELECT * FROM mixed ORDER BY i) m;
SAVEPOINT s;
SELECT count(amqp_publish('', 'q', body, message_id => '-' || i)) FROM mixed;
ROLLBACK TO s;
SELECT count(*), bool_and(u.message_id = '+' || n AND u.body = m.body::bytea) AS in_order FROM
	(SELECT *, row_number() OVER () AS n FROM amqp_outbox.uncommitted()) u JOIN mixed m ON m.i = n;
COMMIT;
RESET work_mem;
SELECT count(*), bool_and(o.message_id = '+' || n AND o.body = m.body::bytea) AS in_order FROM
	(SELECT *, row_number() OVER (ORDER BY id) AS n FROM amqp_outbox.outbox
	 WHERE message_id ~ '^[-+]') o JOIN mixed m ON m.i = n;
DROP TABLE mixed;

-- rows that are toasted are found by the index, which is how the worker reads
SELECT count(amqp_publish('', 'q', body, message_id => 'large ' || length(body)))
	FROM (SELECT convert_to(repeat('x', 3000), 'UTF8') AS body UNION ALL
		SELECT convert_to(repeat('x', 300000), 'UTF8') UNION ALL
		SELECT decode(string_agg(md5(i::text), ''), 'hex') FROM generate_series(1, 400) i) s;
SET enable_seqscan = off;
SET enable_bitmapscan = off;
EXPLAIN (COSTS OFF) SELECT message_id FROM amqp_outbox.outbox WHERE server_key = 1 AND id > 0 ORDER BY id;
SELECT message_id, length(body) FROM amqp_outbox.outbox
	WHERE server_key = 1 AND id > 0 AND message_id LIKE 'large %' ORDER BY id;
RESET enable_seqscan;
RESET enable_bitmapscan;

-- an error inside of a put that somebody catches spoils the transaction
SET work_mem = '64kB';
SET temp_file_limit = 0;
BEGIN;
DO $$
BEGIN
	BEGIN
		PERFORM amqp_publish('', 'q', repeat('x', 4000), message_id => 'spoilt ' || i)
			FROM generate_series(1, 250) i;
	EXCEPTION WHEN configuration_limit_exceeded THEN
		RAISE NOTICE 'caught: %', SQLSTATE;
	END;
	BEGIN
		PERFORM publish('after');
	EXCEPTION WHEN object_not_in_prerequisite_state THEN
		RAISE NOTICE 'refused: %', SQLERRM;
	END;
END $$;
COMMIT;
RESET temp_file_limit;
RESET work_mem;
SELECT count(*) FROM amqp_outbox.outbox WHERE message_id ~ '^(spoilt|after$)';

-- an index of somebody's own on what his messages hold
CREATE INDEX own ON amqp_outbox.outbox_0 (lower(message_id), (length(body) * 2));
SELECT publish('Indexed');
SET enable_seqscan = off;
SET enable_bitmapscan = off;
EXPLAIN (COSTS OFF) SELECT message_id FROM amqp_outbox.outbox_0 WHERE lower(message_id) = 'indexed';
SELECT message_id FROM amqp_outbox.outbox_0 WHERE lower(message_id) = 'indexed';
RESET enable_seqscan;
RESET enable_bitmapscan;
DROP INDEX amqp_outbox.own;

-- whoever publishes while the messages of his transaction are written is too late
CREATE FUNCTION publish_late(message_id text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	IF message_id = 'early' THEN
		PERFORM publish('late');
	END IF;
	RETURN true;
END $$;
CREATE INDEX too_late ON amqp_outbox.outbox_0 (id) WHERE publish_late(message_id);
\set SHOW_CONTEXT never
SELECT publish('early');
\set SHOW_CONTEXT errors
SELECT publish('in time');
SELECT * FROM outbox WHERE message_id IN ('early', 'late', 'in time');
DROP INDEX amqp_outbox.too_late;
DROP FUNCTION publish_late;

-- the first messages to a server that has no worker yet cannot be prepared
BEGIN;
CREATE SERVER young FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://127.0.0.1:1');
SELECT amqp_publish('', 'q', 'x'::text, message_id => 'young', server => 'young');
PREPARE TRANSACTION 'young';

DROP TABLE work_order;
DROP PROCEDURE batches;
DROP VIEW outbox;
DROP FUNCTION announce, publish;
DROP EXTENSION amqp_outbox CASCADE;

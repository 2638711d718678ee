--
-- Allow lists: which role may publish what
--
CREATE EXTENSION amqp_outbox;
CREATE SERVER mes FOREIGN DATA WRAPPER amqp_outbox
	OPTIONS (uri 'amqp://127.0.0.1:1', paused 'true');
CREATE SERVER erp FOREIGN DATA WRAPPER amqp_outbox
	OPTIONS (uri 'amqp://127.0.0.1:1', paused 'true');
CREATE ROLE regress_outbox_owner;
CREATE ROLE regress_outbox_line;
CREATE ROLE regress_outbox_worker IN ROLE regress_outbox_line;
CREATE ROLE regress_outbox_noinherit NOINHERIT IN ROLE regress_outbox_line;
CREATE ROLE regress_outbox_lab;
GRANT USAGE ON FOREIGN SERVER mes, erp TO PUBLIC;
GRANT USAGE ON FOREIGN DATA WRAPPER amqp_outbox TO regress_outbox_owner;
ALTER SERVER mes OWNER TO regress_outbox_owner;

-- whether a role may publish
CREATE FUNCTION may(role name, exchange text, routing_key text, headers jsonb DEFAULT NULL)
	RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE format('SET LOCAL ROLE %I', role);
	PERFORM amqp_publish(exchange, routing_key, 'x'::text, headers => headers, server => 'mes');
	RESET ROLE;
	RETURN true;
EXCEPTION WHEN insufficient_privilege THEN
	RETURN false;
END $$;

-- entries alone forbid nothing, and say so
SET ROLE regress_outbox_owner;
SELECT amqp_outbox.allow('mes', 'regress_outbox_line', 'plant', 'line1.#');
RESET ROLE;
SELECT may('regress_outbox_lab', 'plant', 'line1');

-- with the option nothing is allowed but what is listed
SET ROLE regress_outbox_owner;
ALTER SERVER mes OPTIONS (ADD allow_list 'true');
SELECT amqp_outbox.allow('mes', 'regress_outbox_line', 'plant', 'line1.#');
SELECT amqp_outbox.allow('mes', 'public', '', 'hello');
SELECT * FROM amqp_outbox.allowed ORDER BY role, exchange, routing_key;
RESET ROLE;
SET ROLE regress_outbox_lab;
SELECT amqp_publish('plant', 'line1.started', 'x'::text, server => 'mes');
SELECT * FROM amqp_outbox.allowed;
RESET ROLE;
SELECT role, may(role, 'plant', 'line1.started') AS own, may(role, 'plant', 'line1') AS short,
	may(role, 'plant', 'line10.started') AS other_key, may(role, 'office', 'line1.started') AS other_exchange,
	may(role, '', 'hello') AS public, may(role, '', '') AS empty
	FROM unnest('{regress_outbox_line, regress_outbox_worker, regress_outbox_noinherit, regress_outbox_lab}'::name[]) role;
SELECT may('regress_outbox_owner', 'anywhere', 'anything') AS owner, may(current_user, 'anywhere', 'anything') AS superuser;

-- the other server has none
SET ROLE regress_outbox_lab;
SELECT amqp_publish('plant', 'line1.started', 'x', server => 'erp', message_id => 'to the other server');

-- RabbitMQ takes further routing keys from headers
RESET ROLE;
SELECT h AS headers, may('regress_outbox_line', 'plant', 'line1.started', h)
	FROM unnest(ARRAY['{"CC": ["line1.a", "line1.b"]}', '{"CC": ["line1.a", "office"]}', '{"BCC": ["office"]}',
		'{"CC": []}', '{"cc": ["office"]}', '{"to": "office"}']::jsonb[]) h;
SELECT may('regress_outbox_line', 'plant', 'line1.started', '{"CC": [["office"]]}');
SET ROLE regress_outbox_line;
SELECT amqp_publish('plant', 'line1.started', 'x'::text, headers => '{"BCC": ["office"]}', server => 'mes');
RESET ROLE;

-- however it is published
SET ROLE regress_outbox_line;
INSERT INTO amqp_outbox.message (server, exchange, routing_key, body) VALUES ('mes', 'plant', 'line2', 'x');
CREATE TEMP TABLE orders (id int);
CREATE TRIGGER publish AFTER INSERT ON orders FOR EACH ROW
	EXECUTE FUNCTION amqp_publish_row('plant', 'line{id}.order', 'server=mes');
INSERT INTO orders VALUES (1);
INSERT INTO orders VALUES (2);
-- an idempotency key is not even looked at
SELECT amqp_publish('plant', 'line2', 'x', server => 'mes', idempotency_key => 'k');
SELECT amqp_publish('plant', 'line1', 'x', server => 'mes', idempotency_key => 'k', message_id => 'first');
SELECT amqp_publish('plant', 'line2', 'x', server => 'mes', idempotency_key => 'k');
-- a function may do what its owner may
RESET ROLE;
CREATE FUNCTION as_owner() RETURNS text LANGUAGE sql SECURITY DEFINER
	AS $$ SELECT amqp_publish('office', 'report', 'x', server => 'mes', message_id => 'by definer') $$;
SET ROLE regress_outbox_lab;
SELECT as_owner();
RESET ROLE;

-- changes count at once, also in the transaction that makes them
BEGIN;
SELECT may('regress_outbox_lab', 'lab', 'a.result.b');
SELECT amqp_outbox.allow('mes', 'regress_outbox_lab', 'lab', '*.result.*');
SELECT may('regress_outbox_lab', 'lab', 'a.result.b');
SAVEPOINT s;
SELECT amqp_outbox.disallow('mes', 'regress_outbox_lab', 'lab', '*.result.*');
SELECT may('regress_outbox_lab', 'lab', 'a.result.b');
ROLLBACK TO s;
SELECT may('regress_outbox_lab', 'lab', 'a.result.b');
COMMIT;
SELECT may('regress_outbox_lab', 'lab', 'a.result.b');
GRANT regress_outbox_lab TO regress_outbox_worker;
SELECT may('regress_outbox_worker', 'lab', 'a.result.b');
REVOKE regress_outbox_lab FROM regress_outbox_worker;
SELECT may('regress_outbox_worker', 'lab', 'a.result.b');
ALTER ROLE regress_outbox_worker SUPERUSER;
SELECT may('regress_outbox_worker', 'lab', 'a.result.b');
ALTER ROLE regress_outbox_worker NOSUPERUSER;
SELECT may('regress_outbox_worker', 'lab', 'a.result.b');
DELETE FROM amqp_outbox.allowed_item WHERE exchange = 'lab';
SELECT may('regress_outbox_lab', 'lab', 'a.result.b');
SELECT amqp_outbox.allow('mes', 'pg_database_owner', 'owners', '#');
SELECT may('regress_outbox_lab', 'owners', 'x');
ALTER DATABASE :"DBNAME" OWNER TO regress_outbox_lab;
SELECT may('regress_outbox_lab', 'owners', 'x');
ALTER DATABASE :"DBNAME" OWNER TO CURRENT_USER;
SELECT may('regress_outbox_lab', 'owners', 'x');
SELECT amqp_outbox.disallow('mes', 'pg_database_owner', 'owners', '#');
-- also under the snapshot of before
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT may('regress_outbox_lab', 'lab', 'x');
SELECT amqp_outbox.allow('mes', 'regress_outbox_lab', '#', 'x');
SELECT may('regress_outbox_lab', 'lab', 'x');
ROLLBACK;
SELECT may('regress_outbox_lab', 'lab', 'x');

-- patterns
CREATE FUNCTION covers(pattern text, key text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
	result boolean;
BEGIN
	PERFORM amqp_outbox.allow('mes', 'regress_outbox_noinherit', 'e', pattern);
	result := may('regress_outbox_noinherit', 'e', key);
	PERFORM amqp_outbox.disallow('mes', 'regress_outbox_noinherit', 'e', pattern);
	RETURN result;
END $$;
SELECT pattern, key, covers(pattern, key) FROM (VALUES
	('', ''), ('', 'a'), ('', '.'), ('*', ''), ('*', 'a'), ('*', 'a.b'), ('#', ''), ('#', 'a'), ('#', 'a.b'), ('#', '.'),
	('*.*', '.'), ('.', '.'), ('a.', 'a'), ('a.', 'a.'), ('a.*', 'a.'), ('a.#', 'a'), ('a.#', 'a.'), ('a.#', 'ab'),
	('#.a', 'a'), ('#.a', 'b.a'), ('#.a', 'b.a.c'), ('#.a', 'a.b.a'), ('*.#', ''), ('*.#', 'a'), ('#.*', 'a.b'),
	('#.#', ''), ('#.a.#', 'b.c'), ('#.a.#', 'b.a.c'), ('a.#.b.#.c', 'a.b.x.b.c'), ('a.#.b.*.c', 'a.b.b.x.c'),
	('a.#.b.*.c', 'a.b.b.x.d'), ('*.a.#.a', 'a.a'), ('*.a.#.a', 'a.a.a'), ('A', 'a'), ('ä.*', 'ä.ö')) p (pattern, key);

-- what cannot be an entry
SET ROLE regress_outbox_owner;
SELECT amqp_outbox.allow('mes', 'regress_outbox_lab', 'plant', 'line*');
SELECT amqp_outbox.allow('mes', 'regress_outbox_lab', 'pl#', 'line');
SELECT amqp_outbox.allow('mes', 'regress_outbox_lab', 'plant', repeat('x', 256));
SELECT amqp_outbox.allow('mes', NULL, 'plant', '#');
SELECT amqp_outbox.allow('mes', 'regress_outbox_nobody', 'plant', '#');
SELECT amqp_outbox.allow('nowhere', 'regress_outbox_lab', 'plant', '#');
SELECT amqp_outbox.allow('erp', 'regress_outbox_lab', 'plant', '#');
SELECT amqp_outbox.disallow('erp', 'regress_outbox_lab', 'plant', '#');
SELECT amqp_outbox.disallow('mes', 'regress_outbox_lab', 'plant', '#');
ALTER SERVER mes OPTIONS (SET allow_list 'some');
BEGIN READ ONLY;
SELECT amqp_outbox.allow('mes', 'regress_outbox_lab', 'plant', '#');
ROLLBACK;
RESET ROLE;
SELECT amqp_outbox.allowed_changed();

-- a server keeps its list under another name, a role too; what is dropped has none
ALTER SERVER mes RENAME TO plant;
ALTER ROLE regress_outbox_line RENAME TO regress_outbox_assembly;
SELECT * FROM amqp_outbox.allowed ORDER BY role;
DELETE FROM amqp_outbox.outbox;
DROP OWNED BY regress_outbox_assembly;
DROP ROLE regress_outbox_assembly;
SELECT role ~ 'unknown' AS dropped, exchange, routing_key FROM amqp_outbox.allowed ORDER BY 1;
DROP SERVER plant;
SELECT count(*) FROM amqp_outbox.allowed_item;

DROP FUNCTION may, covers, as_owner;
DROP EXTENSION amqp_outbox CASCADE;
DROP OWNED BY regress_outbox_owner, regress_outbox_worker, regress_outbox_noinherit, regress_outbox_lab;
DROP ROLE regress_outbox_owner, regress_outbox_worker, regress_outbox_noinherit, regress_outbox_lab;

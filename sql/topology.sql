--
-- What a broker shall have: every refusal, and what the table keeps
--
CREATE EXTENSION amqp_outbox;
CREATE SERVER mes FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://127.0.0.1:1');
-- what is rolled back has not claimed the tables for this database
BEGIN;
SELECT amqp_outbox.declare_queue('mes', 'a'), amqp_outbox.declare_queue('mes', 'b');
ROLLBACK;
SELECT count(*) FROM amqp_outbox.identity;
SELECT amqp_outbox.declare_queue('mes', 'a');
SELECT count(*) FROM amqp_outbox.identity;
SELECT amqp_outbox.undeclare_queue('mes', 'a');

-- the server
SELECT amqp_outbox.declare_exchange(NULL, 'plant');
SELECT amqp_outbox.declare_exchange('erp', 'plant');
CREATE FOREIGN DATA WRAPPER regress_other;
CREATE SERVER other FOREIGN DATA WRAPPER regress_other;
SELECT amqp_outbox.declare_queue('other', 'q');
DROP FOREIGN DATA WRAPPER regress_other CASCADE;

-- names
SELECT amqp_outbox.declare_exchange('mes', NULL);
SELECT amqp_outbox.declare_exchange('mes', '');
SELECT amqp_outbox.declare_exchange('mes', 'amq.plant');
SELECT amqp_outbox.declare_exchange('mes', repeat('x', 256));
SELECT amqp_outbox.declare_exchange('mes', repeat('ä', 128));
SELECT amqp_outbox.declare_exchange('mes', E'plant\n');
SELECT amqp_outbox.declare_queue('mes', NULL);
SELECT amqp_outbox.declare_queue('mes', '');
SELECT amqp_outbox.declare_queue('mes', 'amq.gen-1');
SELECT amqp_outbox.declare_queue('mes', repeat('x', 256));
SELECT amqp_outbox.bind_queue('mes', '', 'plant');
SELECT amqp_outbox.bind_queue('mes', 'q', '');
SELECT amqp_outbox.bind_queue('mes', 'q', 'plant', NULL);
SELECT amqp_outbox.bind_queue('mes', 'q', 'plant', repeat('x', 256));
SELECT amqp_outbox.bind_exchange('mes', '', 'plant');
SELECT amqp_outbox.bind_exchange('mes', 'plant', '');
SELECT amqp_outbox.bind_exchange('mes', NULL, 'plant');

-- types
SELECT amqp_outbox.declare_exchange('mes', 'plant', NULL);
SELECT amqp_outbox.declare_exchange('mes', 'plant', 'topics');
SELECT amqp_outbox.declare_exchange('mes', 'plant', durable => NULL);
SELECT amqp_outbox.declare_queue('mes', 'q', 'mirrored');
SELECT amqp_outbox.declare_queue('mes', 'q', durable => false);
SELECT amqp_outbox.declare_queue('mes', 'q', 'stream', auto_delete => true);
SELECT amqp_outbox.declare_queue('mes', 'q', auto_delete => NULL);

-- arguments
SELECT amqp_outbox.declare_queue('mes', 'q', arguments => '[1]');
SELECT amqp_outbox.declare_queue('mes', 'q', arguments => '"x"');
SELECT amqp_outbox.declare_queue('mes', 'q', arguments => '{"x-queue-type": "classic"}');
SELECT amqp_outbox.declare_queue('mes', 'q', arguments => '{"": 1}');
SELECT amqp_outbox.declare_queue('mes', 'q', arguments => '{"x-max-length": 9223372036854775808}');
SELECT amqp_outbox.declare_queue('mes', 'q', arguments => '{"x-max-length": 1.5e400, "y": 1}');
SELECT amqp_outbox.declare_queue('mes', 'q', arguments => '{"x": 0.1e-400}');
SELECT amqp_outbox.declare_queue('mes', 'q', arguments => jsonb_build_object(repeat('x', 256), 1));
SELECT amqp_outbox.declare_queue('mes', 'q', arguments => jsonb_build_object('x', repeat('x', 4086)));
SELECT amqp_outbox.bind_queue('mes', 'q', 'plant', arguments => '[]');


-- nothing of that was kept
SELECT count(*) FROM amqp_outbox.topology;

-- what is kept
SELECT amqp_outbox.declare_exchange('mes', 'plant');
SELECT amqp_outbox.declare_exchange('mes', 'audit', 'x-delayed-message', false, true, true, '{"x-delayed-type": "topic"}');
SELECT amqp_outbox.declare_queue('mes', 'orders');
SELECT amqp_outbox.declare_queue('mes', 'log', 'stream', arguments => '{"x-max-age": "7D"}');
SELECT amqp_outbox.declare_queue('mes', 'retry', 'classic', false, true, '{"x-message-ttl": 60000}');
SELECT amqp_outbox.declare_queue('mes', 'theirs', NULL);
SELECT amqp_outbox.declare_queue('mes', 'long', arguments => jsonb_build_object('x', repeat('x', 4085)));
SELECT amqp_outbox.bind_queue('mes', 'orders', 'plant', 'plant1.#');
SELECT amqp_outbox.bind_queue('mes', 'orders', 'plant', 'plant2.#');
SELECT amqp_outbox.bind_queue('mes', 'orders', 'amq.headers', arguments => '{"plant": 1}');
SELECT amqp_outbox.bind_queue('mes', 'orders', 'amq.headers', arguments => '{"plant": 2}');
SELECT amqp_outbox.bind_exchange('mes', 'audit', 'plant', '#');
SELECT server, kind, name, source, routing_key AS key, type, durable, auto_delete, internal, left(arguments::text, 40) AS arguments, state
	FROM amqp_outbox.topology ORDER BY kind, name, source, routing_key, arguments;
SELECT DISTINCT since, reply_code, last_error, what_to_do FROM amqp_outbox.topology;

-- to say the same again changes nothing; something else changes what it is, and
-- 1.0 is not 1 for AMQP
CREATE TEMP TABLE before AS SELECT * FROM amqp_outbox.topology_item;
SELECT amqp_outbox.declare_exchange('mes', 'plant');
SELECT amqp_outbox.bind_queue('mes', 'orders', 'amq.headers', arguments => '{"plant": 1.0}');
SELECT amqp_outbox.bind_queue('mes', 'orders', 'amq.headers', arguments => '{"plant": 2}');
SELECT amqp_outbox.declare_queue('mes', 'log', 'stream', arguments => '{"x-max-age": "8D"}');
SELECT amqp_outbox.declare_queue('mes', 'retry', 'classic', false, true, '{"x-message-ttl": 60000.0}');
SELECT kind, name, arguments FROM amqp_outbox.topology_item WHERE item_id NOT IN (SELECT item_id FROM before) ORDER BY kind, name;
SELECT kind, name, arguments FROM before WHERE item_id NOT IN (SELECT item_id FROM amqp_outbox.topology_item) ORDER BY kind, name;
SELECT amqp_outbox.unbind_queue('mes', 'orders', 'amq.headers', arguments => '{"plant": 1.0}');

-- taking it back
SELECT amqp_outbox.undeclare_queue('mes', 'nothing');
SELECT amqp_outbox.undeclare_exchange('mes', 'nothing', delete_at_broker => true);
SELECT amqp_outbox.unbind_queue('mes', 'orders', 'plant', 'plant3.#');
SELECT amqp_outbox.unbind_queue('mes', 'orders', 'amq.headers', arguments => '{"plant": 3}');
SELECT amqp_outbox.unbind_exchange('mes', 'audit', 'plant', delete_at_broker => true);
SELECT amqp_outbox.unbind_exchange('mes', 'audit', 'plant');
SELECT amqp_outbox.undeclare_queue('mes', 'orders', true);
SELECT amqp_outbox.undeclare_queue('mes', 'orders', true, false);
SELECT amqp_outbox.undeclare_queue('mes', 'orders', true, false, false);
SELECT amqp_outbox.undeclare_exchange('mes', 'plant', true);
SELECT amqp_outbox.undeclare_exchange('mes', 'audit', true);
SELECT amqp_outbox.undeclare_exchange('mes', 'audit', NULL);
SELECT amqp_outbox.undeclare_exchange('mes', 'audit', true, NULL);
SELECT amqp_outbox.undeclare_queue('mes', 'theirs');
SELECT amqp_outbox.undeclare_queue('mes', 'retry', true);
SELECT amqp_outbox.unbind_queue('mes', 'orders', 'plant', 'plant1.#', delete_at_broker => true);
SELECT amqp_outbox.unbind_queue('mes', 'orders', 'plant', 'plant2.#');
SELECT amqp_outbox.unbind_queue('mes', 'orders', 'amq.headers', arguments => '{"plant": 1}');
SELECT amqp_outbox.unbind_queue('mes', 'orders', 'amq.headers', arguments => '{"plant": 2}');
SELECT amqp_outbox.undeclare_queue('mes', 'orders', true, false, false);
SELECT kind, name, source, routing_key AS key, state, what_to_do FROM amqp_outbox.topology ORDER BY kind, name, source, routing_key;
-- changed one's mind
SELECT amqp_outbox.declare_queue('mes', 'orders');
SELECT amqp_outbox.undeclare_queue('mes', 'retry');
SELECT kind, name, state FROM amqp_outbox.topology WHERE kind = 'queue' ORDER BY name;

-- all or nothing, as everything
BEGIN;
SELECT amqp_outbox.declare_queue('mes', 'rolled back');
ROLLBACK;
SELECT count(*) FROM amqp_outbox.topology WHERE name = 'rolled back';
BEGIN READ ONLY;
SELECT amqp_outbox.declare_queue('mes', 'q');
ROLLBACK;

-- a key that was made by what was rolled back is not remembered
BEGIN;
CREATE SERVER erp FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://127.0.0.1:1');
SELECT amqp_outbox.declare_queue('erp', 'q');
SELECT amqp_outbox.declare_queue('erp', 'q2');
ROLLBACK;
CREATE SERVER third FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://127.0.0.1:1');
SELECT amqp_outbox.declare_queue('third', 'of the third');
CREATE SERVER erp FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://127.0.0.1:1');
SELECT amqp_outbox.declare_queue('erp', 'q');
SELECT server, name FROM amqp_outbox.topology WHERE server <> 'mes' ORDER BY server;
DROP SERVER third;

-- the server's owner may, and nobody else; he sees his own
CREATE ROLE regress_outbox_owner;
CREATE ROLE regress_outbox_user;
CREATE ROLE regress_outbox_monitor;
GRANT pg_monitor TO regress_outbox_monitor;
GRANT USAGE ON FOREIGN DATA WRAPPER amqp_outbox TO regress_outbox_owner;
ALTER SERVER erp OWNER TO regress_outbox_owner;
GRANT USAGE ON FOREIGN SERVER erp TO regress_outbox_user;
SET ROLE regress_outbox_user;
SELECT amqp_outbox.declare_queue('erp', 'mine');
SELECT amqp_outbox.undeclare_queue('erp', 'q');
SELECT count(*) FROM amqp_outbox.topology;
SELECT count(*) FROM amqp_outbox.topology_item;
SET ROLE regress_outbox_owner;
SELECT amqp_outbox.declare_queue('mes', 'not mine');
SELECT amqp_outbox.declare_queue('erp', 'mine');
SELECT amqp_outbox.undeclare_queue('erp', 'q');
SELECT server, name FROM amqp_outbox.topology;
SELECT count(*) FROM amqp_outbox.topology_item;
SET ROLE regress_outbox_monitor;
SELECT DISTINCT server FROM amqp_outbox.topology ORDER BY 1;
RESET ROLE;

-- an operator of the caller's is not called with the rights of the owner
CREATE SCHEMA regress_trap AUTHORIZATION regress_outbox_owner;
SET ROLE regress_outbox_owner;
CREATE FUNCTION regress_trap.eq(integer, integer) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION 'called as %', current_user;
END $$;
CREATE OPERATOR regress_trap.= (LEFTARG = integer, RIGHTARG = integer, FUNCTION = regress_trap.eq);
SET search_path = regress_trap, pg_catalog;
SELECT amqp_outbox.declare_queue('erp', 'trapped');
SELECT amqp_outbox.undeclare_queue('erp', 'trapped');
RESET search_path;
RESET ROLE;

-- a server takes its topology with it: when it is renamed, when it is dropped
ALTER SERVER erp RENAME TO plant;
SELECT server, name FROM amqp_outbox.topology WHERE server <> 'mes' ORDER BY name;
DROP SERVER plant;
SELECT count(*) FROM amqp_outbox.topology WHERE server <> 'mes';
CREATE SERVER plant FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://127.0.0.1:1');
SELECT count(*) FROM amqp_outbox.topology WHERE server = 'plant';

DROP TABLE before;
DROP EXTENSION amqp_outbox CASCADE;
DROP SCHEMA regress_trap CASCADE;
DROP ROLE regress_outbox_owner, regress_outbox_user, regress_outbox_monitor;

--
-- Limits of the backlog: what is refused, and what is said
--
CREATE EXTENSION amqp_outbox;
CREATE SERVER mes FOREIGN DATA WRAPPER amqp_outbox
	OPTIONS (uri 'amqp://127.0.0.1:1', backlog_limit '3');
CREATE SERVER erp FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://127.0.0.1:1');
CREATE ROLE regress_outbox_loud;
CREATE ROLE regress_outbox_quiet;
GRANT USAGE ON FOREIGN SERVER mes TO regress_outbox_loud, regress_outbox_quiet;

CREATE FUNCTION publish(n int, server text DEFAULT 'mes', bytes int DEFAULT 1)
RETURNS bigint LANGUAGE sql AS $$
	SELECT count(amqp_publish('', 'q', repeat('x', bytes), server => server))
		FROM generate_series(1, n)
$$;
CREATE VIEW waiting AS
	SELECT server, role, messages, bytes, reserved_messages AS reserved
	FROM amqp_outbox.backlog() ORDER BY server, role NULLS FIRST;

-- messages of a server
SELECT publish(3);
SELECT publish(1);
SELECT publish(10, 'erp');
SELECT * FROM waiting;

-- several in one transaction: the one too many, and with it the transaction
ALTER SERVER mes OPTIONS (SET backlog_limit '5');
SELECT publish(3);
SELECT * FROM waiting;

-- a transaction sees what it has reserved; a savepoint gives it back
BEGIN;
SELECT publish(1);
SAVEPOINT s;
SELECT publish(1);
SELECT * FROM waiting;
ROLLBACK TO s;
SELECT * FROM waiting;
SELECT publish(1);
RELEASE s;
SELECT publish(1);
ROLLBACK;
SELECT * FROM waiting;

-- what is refused can be caught, and takes no room
DO $$
BEGIN
	FOR i IN 1 .. 4 LOOP
		BEGIN
			PERFORM publish(1);
			RAISE NOTICE '%: published', i;
		EXCEPTION WHEN configuration_limit_exceeded THEN
			RAISE NOTICE '%: %', i, SQLSTATE;
		END;
	END LOOP;
END $$;
SELECT * FROM waiting;

-- an idempotency key that was refused can be used again
SELECT amqp_publish('', 'q', 'x', server => 'mes', idempotency_key => 'k');
ALTER SERVER mes OPTIONS (SET backlog_limit '6');
SELECT amqp_publish('', 'q', 'x', server => 'mes', message_id => 'first', idempotency_key => 'k');
SELECT amqp_publish('', 'q', 'x', server => 'mes', message_id => 'second', idempotency_key => 'k');

-- INSERT, and triggers
INSERT INTO amqp_outbox.message (exchange, routing_key, body_text, server)
	VALUES ('', 'q', 'x', 'mes');
CREATE TABLE orders (id int);
CREATE TRIGGER publish AFTER INSERT ON orders FOR EACH ROW
	EXECUTE FUNCTION amqp_publish_row('', 'q', 'server=mes');
INSERT INTO orders VALUES (1);

-- what is to be sent later waits as well
ALTER SERVER mes OPTIONS (SET backlog_limit '7');
SELECT amqp_publish('', 'q', 'x', server => 'mes', message_id => 'later', delay => '1 day');
SELECT amqp_publish('', 'q', 'x', server => 'mes', delay => '1 day');
SELECT * FROM waiting;

-- a warning instead, once in a transaction
ALTER SERVER mes OPTIONS (ADD backlog_action 'warn');
SELECT publish(3);
SELECT publish(1);
SELECT * FROM waiting;

-- without a limit nothing is counted
ALTER SERVER mes OPTIONS (DROP backlog_limit, DROP backlog_action);
SELECT publish(100);

-- bytes of bodies
CREATE SERVER bytes FOREIGN DATA WRAPPER amqp_outbox
	OPTIONS (uri 'amqp://127.0.0.1:1', backlog_limit_bytes '1kB');
SELECT publish(1, 'bytes', 1025);
SELECT publish(1, 'bytes', 1000);
SELECT publish(1, 'bytes', 25);
SELECT publish(1, 'bytes', 24);
SELECT publish(1, 'bytes', 1);
SELECT publish(1, 'bytes', 0);
SELECT * FROM waiting WHERE server = 'bytes';

-- of roles
CREATE SERVER shared FOREIGN DATA WRAPPER amqp_outbox
	OPTIONS (uri 'amqp://127.0.0.1:1', role_backlog_limit '2',
		role_backlog_limit_bytes '100', backlog_limit '5');
GRANT USAGE ON FOREIGN SERVER shared TO regress_outbox_loud, regress_outbox_quiet;
SET ROLE regress_outbox_loud;
SELECT publish(2, 'shared');
SELECT publish(1, 'shared');
SET ROLE regress_outbox_quiet;
SELECT publish(1, 'shared', 99);
SELECT publish(1, 'shared', 2);
SELECT publish(1, 'shared', 1);
RESET ROLE;
SELECT publish(1, 'shared') \gset
SELECT publish(1, 'shared');
SELECT server, role = current_user AS mine, role <> current_user AND role IS NOT NULL AS of_other,
	messages, bytes FROM waiting WHERE server = 'shared' ORDER BY role IS NOT NULL, role <> current_user, role;
SELECT published_by LIKE 'regress_outbox_%' AS of_role, count(*) FROM amqp_outbox.outbox
	WHERE published_by IS NOT NULL GROUP BY 1 ORDER BY 1;

-- whose rights a function has, is who publishes
CREATE FUNCTION as_definer() RETURNS text LANGUAGE sql SECURITY DEFINER
	AS $$ SELECT amqp_publish('', 'q', '', server => 'shared', message_id => 'by definer') $$;
ALTER SERVER shared OPTIONS (SET backlog_limit '10');
ALTER FUNCTION as_definer() OWNER TO regress_outbox_quiet;
SELECT as_definer();


-- who may see it
SET ROLE regress_outbox_quiet;
SELECT count(*) FROM amqp_outbox.backlog();
RESET ROLE;
GRANT pg_monitor TO regress_outbox_quiet;
SET ROLE regress_outbox_quiet;
SELECT count(*) FROM amqp_outbox.backlog() WHERE server = 'shared';
RESET ROLE;

DROP EXTENSION amqp_outbox CASCADE;
DROP TABLE orders;
DROP FUNCTION publish, as_definer;
DROP ROLE regress_outbox_loud, regress_outbox_quiet;

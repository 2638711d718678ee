--
-- The doctor: every refusal, and what can be told without a broker
--
CREATE EXTENSION amqp_outbox;
CREATE SERVER mes FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://127.0.0.1:1');

-- the server
SELECT * FROM amqp_outbox.doctor(NULL);
SELECT * FROM amqp_outbox.doctor('erp');
CREATE FOREIGN DATA WRAPPER regress_other;
CREATE SERVER other FOREIGN DATA WRAPPER regress_other;
SELECT * FROM amqp_outbox.doctor('other');
DROP FOREIGN DATA WRAPPER regress_other CASCADE;

-- the probe
SELECT * FROM amqp_outbox.doctor('mes', repeat('x', 256));
SELECT * FROM amqp_outbox.doctor('mes', E'plant\n');

-- it is the owner's
CREATE ROLE regress_outbox_owner;
CREATE ROLE regress_outbox_publisher;
GRANT USAGE ON FOREIGN SERVER mes TO regress_outbox_owner, regress_outbox_publisher;
ALTER SERVER mes OWNER TO regress_outbox_owner;
SET ROLE regress_outbox_publisher;
SELECT * FROM amqp_outbox.doctor('mes');
SET ROLE regress_outbox_owner;
SELECT check_name, host, result, finding, what_to_do
	FROM amqp_outbox.doctor('mes') WHERE check_name <> 'worker';
RESET ROLE;

-- a password that cannot be read; what is not committed is examined
BEGIN;
CREATE USER MAPPING FOR PUBLIC SERVER mes
	OPTIONS (user 'u', password_file '/no/such/file');
SELECT check_name, result, finding, what_to_do
	FROM amqp_outbox.doctor('mes') WHERE check_name = 'login';
ROLLBACK;

-- nobody listens there
CREATE USER MAPPING FOR PUBLIC SERVER mes
	OPTIONS (user 'u', password 'a secret');
SET ROLE regress_outbox_owner;
SELECT check_name, host, result, finding, what_to_do
	FROM amqp_outbox.doctor('mes', 'plant') WHERE check_name <> 'worker';
RESET ROLE;

-- each host of several; the options of this transaction
BEGIN;
ALTER SERVER mes OPTIONS (DROP uri, ADD host '127.0.0.1,127.0.0.2:2', ADD port '1');
SELECT DISTINCT check_name, host, result
	FROM amqp_outbox.doctor('mes') WHERE host IS NOT NULL
	ORDER BY 1, 2;
ROLLBACK;

DROP EXTENSION amqp_outbox CASCADE;
DROP ROLE regress_outbox_owner, regress_outbox_publisher;

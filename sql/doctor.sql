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

-- nobody to log in as
SELECT result, finding, what_to_do
	FROM amqp_outbox.doctor('mes') WHERE check_name = 'login';

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

-- an owner who is not a superuser brings credentials of his own, and can have
-- those of nobody else sent to a host that he names
CREATE VIEW login AS SELECT result, finding, what_to_do
	FROM amqp_outbox.doctor('mes') WHERE check_name = 'login';
CREATE USER MAPPING FOR PUBLIC SERVER mes OPTIONS (user 'u', password 'a secret');
CREATE USER MAPPING FOR regress_outbox_publisher SERVER mes
	OPTIONS (user 'u', password 'a secret');
TABLE login;
CREATE USER MAPPING FOR regress_outbox_owner SERVER mes OPTIONS (user 'u');
TABLE login;
ALTER USER MAPPING FOR regress_outbox_owner SERVER mes OPTIONS (ADD password '');
TABLE login;
ALTER USER MAPPING FOR regress_outbox_owner SERVER mes
	OPTIONS (DROP password, ADD password_file '/no/such/file');
TABLE login;

-- a password that cannot be read; what is not committed is examined
GRANT pg_read_server_files TO regress_outbox_owner;
BEGIN;
ALTER USER MAPPING FOR regress_outbox_owner SERVER mes
	OPTIONS (SET password_file '/nor/this');
TABLE login;
ROLLBACK;
TABLE login;

-- nobody listens there
ALTER USER MAPPING FOR regress_outbox_owner SERVER mes
	OPTIONS (DROP password_file, ADD password 'a secret');
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

\set VERBOSITY terse
DROP EXTENSION amqp_outbox CASCADE;
DROP ROLE regress_outbox_owner, regress_outbox_publisher;

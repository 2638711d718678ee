-- prepare.sql: what scripts/bench needs in the database

CREATE EXTENSION amqp_outbox;
CREATE SERVER bench FOREIGN DATA WRAPPER amqp_outbox
	OPTIONS (uri :'uri', window :'window');
CREATE USER MAPPING FOR PUBLIC SERVER bench
	OPTIONS (user 'guest', password 'guest');

-- The plain table that the outbox is compared with: the same columns and the
-- same key, filled by an ordinary INSERT with the same values.  (published_by is
-- null where no role's backlog is limited.)
CREATE TABLE plain (LIKE amqp_outbox.outbox_0 INCLUDING ALL);
CREATE SEQUENCE plain_id OWNED BY plain.id;
ALTER TABLE plain
	ALTER server_key SET DEFAULT 1,
	ALTER id SET DEFAULT nextval('plain_id'),
	ALTER enqueued_at SET DEFAULT now();

-- message_id holds the body where the bare publisher's latency is measured
CREATE TABLE arrived (message_id text, arrived_us bigint);

-- when pgbench saw that a transaction had committed, and how long that took
CREATE TABLE committed (message_id text, committed_us bigint, took_us bigint);

CREATE TABLE measured (
	n integer GENERATED ALWAYS AS IDENTITY,
	part text,
	round integer,
	figure text,
	side text,				-- outbox, or what it is compared with
	value double precision,
	unit text,				-- /s; of any other, less is better
	goal text				-- empty: none, or the one in report.sql
);

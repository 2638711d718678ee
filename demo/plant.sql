--
-- plant.sql: a small plant whose ERP system hears of everything that happens
--
-- Loaded by scripts/demo; reads best from top to bottom.  Run by hand it needs
-- shared_preload_libraries = 'amqp_outbox' and, at the broker, an exchange
-- "mes":
--
--	psql -v uri=amqp://127.0.0.1:5672 -v orders=200 -f plant.sql
--
\set ON_ERROR_STOP on

--
-- 1. The broker: a foreign server, and how to log in to it
--
CREATE EXTENSION amqp_outbox;

CREATE SERVER erp FOREIGN DATA WRAPPER amqp_outbox
	OPTIONS (uri :'uri');

CREATE USER MAPPING FOR PUBLIC SERVER erp
	OPTIONS (user 'guest', password 'guest');

-- Who may use the server may publish to it.
CREATE ROLE mes LOGIN;
GRANT USAGE ON FOREIGN SERVER erp TO mes;

--
-- 2. The plant: ordinary tables
--
CREATE TABLE work_order (
	id integer PRIMARY KEY,
	article text NOT NULL,
	quantity integer NOT NULL,
	status text NOT NULL DEFAULT 'released',
	events integer NOT NULL DEFAULT 0	-- how many the ERP was told so far
) WITH (fillfactor = 50);

CREATE TABLE operation (
	work_order integer REFERENCES work_order,
	step integer,
	workplace text NOT NULL,
	status text NOT NULL DEFAULT 'planned',
	good integer NOT NULL DEFAULT 0,
	scrap integer NOT NULL DEFAULT 0,
	PRIMARY KEY (work_order, step)
) WITH (fillfactor = 50);

CREATE TABLE inspection (
	id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	work_order integer NOT NULL REFERENCES work_order,
	characteristic text NOT NULL,
	reading numeric NOT NULL,
	passed boolean NOT NULL,
	taken_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE movement (
	id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	work_order integer NOT NULL REFERENCES work_order,
	material text NOT NULL,
	quantity numeric NOT NULL,
	unit text NOT NULL,
	source text NOT NULL,
	destination text NOT NULL
);

--
-- 3. Telling the ERP: one call of amqp_publish()
--
-- The message becomes part of the transaction.  It leaves for the broker when
-- the transaction commits and never if it does not.
--
-- Two things here are for the demo's proof only.  Each event of a work order
-- carries the next number; the row stays locked until the transaction ends, so
-- the numbers are without gaps and in commit order, and the consumer can check
-- that alone.  And the plant writes down the id of each message it published,
-- so that the report can compare one by one.
--
CREATE TABLE published (
	message_id text PRIMARY KEY,
	xid xid8 NOT NULL DEFAULT pg_current_xact_id()
);

CREATE SEQUENCE rolled_back;	-- counts even what is rolled back

CREATE FUNCTION tell_erp(work_order integer, event text, data jsonb,
	urgent boolean DEFAULT false)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	number integer;
	id text;
BEGIN
	UPDATE work_order w SET events = events + 1
		WHERE w.id = tell_erp.work_order
		RETURNING events INTO number;

	id := amqp_publish('mes', 'plant1.' || event,
		jsonb_build_object('work_order', work_order, 'number', number,
			'event', event, 'at', clock_timestamp(), 'data', data)
			|| doomed(),
		type => event,
		app_id => 'mes',
		priority => CASE WHEN urgent THEN 9 END,
		headers => jsonb_build_object('plant', 1, 'urgent', urgent));

	INSERT INTO published (message_id) VALUES (id);
END $$;

-- Transactions that are about to be rolled back say so with
-- SET LOCAL plant.doomed, so that the report can look for what they published.
CREATE FUNCTION doomed() RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
	IF current_setting('plant.doomed', true) = 'on' THEN
		PERFORM nextval('rolled_back');
		RETURN '{"doomed": true}';
	END IF;
	RETURN '{}';
END $$;

--
-- 4. Triggers: whatever changes in the plant, by whatever program, is told
--
CREATE FUNCTION work_order_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM tell_erp(new.id, 'order.' || new.status,
		to_jsonb(new) - 'events');
	RETURN NULL;
END $$;

CREATE TRIGGER tell_erp AFTER INSERT OR UPDATE OF status ON work_order
	FOR EACH ROW EXECUTE FUNCTION work_order_changed();

CREATE FUNCTION operation_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM tell_erp(new.work_order, 'operation.' || new.status,
		to_jsonb(new));
	RETURN NULL;
END $$;

CREATE TRIGGER tell_erp AFTER UPDATE OF status ON operation
	FOR EACH ROW EXECUTE FUNCTION operation_changed();

CREATE FUNCTION inspection_taken() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM tell_erp(new.work_order,
		CASE WHEN new.passed THEN 'quality.passed' ELSE 'quality.failed' END,
		to_jsonb(new), urgent => NOT new.passed);
	RETURN NULL;
END $$;

CREATE TRIGGER tell_erp AFTER INSERT ON inspection
	FOR EACH ROW EXECUTE FUNCTION inspection_taken();

CREATE FUNCTION material_moved() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM tell_erp(new.work_order, 'material.moved', to_jsonb(new));
	RETURN NULL;
END $$;

CREATE TRIGGER tell_erp AFTER INSERT ON movement
	FOR EACH ROW EXECUTE FUNCTION material_moved();

GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO mes;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO mes;

--
-- 5. The work of the day
--
SET ROLE mes;

INSERT INTO work_order (id, article, quantity)
	SELECT n, 'bracket ' || n % 12, 50 + n % 7 * 25
	FROM generate_series(1, :orders) n;

INSERT INTO operation (work_order, step, workplace)
	SELECT w.id, p.step, p.workplace
	FROM work_order w, (VALUES (1, 'saw 1'), (2, 'press 2'), (3, 'mill 7'),
		(4, 'paint'), (5, 'packing')) p (step, workplace);

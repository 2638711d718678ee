-- triggers.sql: one table of ten columns for each kind of trigger

CREATE TABLE job_none (
	id bigint,
	plant_id text,
	line integer,
	product text,
	quantity numeric(12,3),
	price numeric(12,2),
	state text,
	urgent boolean,
	created_at timestamptz,
	due_on date
);
CREATE TABLE job_row (LIKE job_none);
CREATE TABLE job_statement (LIKE job_none);
CREATE TABLE job_plpgsql_row (LIKE job_none);
CREATE TABLE job_plpgsql_statement (LIKE job_none);

CREATE TRIGGER publish AFTER INSERT ON job_row
	FOR EACH ROW
	EXECUTE FUNCTION amqp_publish_row('', 'plant.{plant_id}.job.{op}');
CREATE TRIGGER publish AFTER INSERT ON job_statement
	REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT
	EXECUTE FUNCTION amqp_publish_row('', 'plant.{plant_id}.job.{op}');

-- What one would write without amqp_outbox: the same message into the table
-- that has the outbox's columns.
CREATE FUNCTION insert_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO plain (message_id, exchange, routing_key, body, content_type)
	VALUES (gen_random_uuid(), '', 'plant.' || NEW.plant_id || '.job.insert',
		convert_to(to_jsonb(NEW)::text, 'UTF8'), 'application/json');
	RETURN NULL;
END $$;
CREATE FUNCTION insert_rows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO plain (message_id, exchange, routing_key, body, content_type)
	SELECT gen_random_uuid(), '', 'plant.' || plant_id || '.job.insert',
		convert_to(to_jsonb(n)::text, 'UTF8'), 'application/json'
	FROM new_rows n;
	RETURN NULL;
END $$;
CREATE TRIGGER publish AFTER INSERT ON job_plpgsql_row
	FOR EACH ROW EXECUTE FUNCTION insert_row();
CREATE TRIGGER publish AFTER INSERT ON job_plpgsql_statement
	REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT
	EXECUTE FUNCTION insert_rows();

CREATE TABLE trigger_time (
	kind text,					-- of trigger
	at_end double precision,	-- of the statement, microseconds a row
	at_commit double precision	-- the same when the transaction has committed
);

-- Seconds that this process has been on a CPU.  Unlike the time that passes they
-- are the same when others are busy, too.
CREATE FUNCTION cpu_time() RETURNS double precision LANGUAGE sql VOLATILE AS $$
	SELECT split_part(pg_read_file('/proc/self/schedstat', 0, 100), ' ', 1)::float8 / 1e9
$$;

-- INSERT so many rows into each table, so often, each in a transaction.
CREATE PROCEDURE measure_triggers(n integer, repetitions integer)
LANGUAGE plpgsql AS $$
DECLARE
	kinds text[] := '{none,row,statement,plpgsql_row,plpgsql_statement}';
	kind text;
	began double precision;
	ended double precision;
BEGIN
	FOR r IN 1..repetitions LOOP
		FOR i IN 1..cardinality(kinds) LOOP
			kind := kinds[CASE WHEN r % 2 = 1 THEN i
				ELSE cardinality(kinds) + 1 - i END];
			began := cpu_time();
			EXECUTE format('INSERT INTO job_%s SELECT i, ''P'' || i %% 100,
				i %% 20, ''valve DN50 PN16'', 12.5, i * 1.05, ''released'',
				i %% 7 = 0, now(), current_date
				FROM generate_series(1, $1) i', kind) USING n;
			ended := cpu_time();
			COMMIT;
			INSERT INTO trigger_time SELECT kind,
				(ended - began) * 1e6 / n,
				(cpu_time() - began) * 1e6 / n;
			COMMIT;
		END LOOP;
	END LOOP;
END $$;

-- What each kind of trigger adds to a row.
CREATE VIEW trigger_cost AS
WITH median AS (
	SELECT kind, percentile_cont(0.5) WITHIN GROUP (ORDER BY at_end) AS at_end,
		percentile_cont(0.5) WITHIN GROUP (ORDER BY at_commit) AS at_commit
	FROM trigger_time GROUP BY kind
)
SELECT m.kind, m.at_end - n.at_end AS at_end,
	m.at_commit - n.at_commit AS at_commit
FROM median m, median n WHERE n.kind = 'none' AND m.kind <> 'none';

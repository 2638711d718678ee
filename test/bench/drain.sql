-- drain.sql: waiting for the worker without disturbing it

-- Until the worker has settled everything that was published; the newest receipt
-- tells cheaply how far it is.
CREATE PROCEDURE await_settled(server_name name, seconds double precision)
LANGUAGE plpgsql AS $$
DECLARE
	until timestamptz := clock_timestamp() + seconds * interval '1 s';
	last bigint;
BEGIN
	SELECT (SELECT max(id) FROM amqp_outbox.outbox o
		WHERE o.server_key = k.server_key) INTO last
	FROM amqp_outbox.server_key k WHERE k.server = server_name;
	WHILE NOT EXISTS (
		SELECT FROM amqp_outbox.server_key k CROSS JOIN LATERAL (
			SELECT through_id FROM amqp_outbox.receipt r
			WHERE r.server_key = k.server_key
			ORDER BY server_key DESC, through_id DESC, receipt_no DESC LIMIT 1) r
		WHERE k.server = server_name AND r.through_id >= last)
	LOOP
		IF clock_timestamp() > until THEN
			RAISE EXCEPTION 'not settled after % s', seconds;
		END IF;
		COMMIT;
		PERFORM pg_sleep(0.05);
	END LOOP;
END $$;

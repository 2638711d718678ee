-- confirm.sql: how long amqp_wait_for_confirm() takes for a message that was
-- confirmed long ago, in milliseconds, the median of n calls

CREATE FUNCTION wait_time(message_id text, n integer) RETURNS numeric
LANGUAGE plpgsql AS $$
DECLARE
	began timestamptz;
	times double precision[] := '{}';
BEGIN
	FOR i IN 1..n LOOP
		began := clock_timestamp();
		IF NOT amqp_wait_for_confirm(message_id) THEN
			RAISE EXCEPTION 'the message was not confirmed';
		END IF;
		times := times || extract(epoch FROM clock_timestamp() - began)::float8;
	END LOOP;
	RETURN (SELECT round((percentile_cont(0.5) WITHIN GROUP (ORDER BY t) * 1000)::numeric, 4)
		FROM unnest(times) t);
END $$;

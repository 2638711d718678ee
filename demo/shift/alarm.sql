-- A machine calls for help: no table behind it, published directly, as text.
\set machine random(1, 9)
\set degrees random(85, 110)
WITH alarm AS (
	SELECT amqp_publish('mes', 'plant1.machine.alarm',
		format('press %s: bearing at %s °C', :machine, :degrees),
		type => 'machine.alarm', app_id => 'mes',
		expiration => interval '8 hours') AS message_id
)
INSERT INTO published (message_id) SELECT message_id FROM alarm;

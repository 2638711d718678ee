-- An operation is done: four events, or none.
\set order random(1, :orders)
\set step random(1, 5)
\set kilos random(1, 40)
\set deviation random(-20, 20)
BEGIN;
UPDATE operation SET status = 'started'
	WHERE work_order = :order AND step = :step;
INSERT INTO movement (work_order, material, quantity, unit, source, destination)
	VALUES (:order, 'steel S355', :kilos, 'kg', 'store 4', 'line 1');
INSERT INTO inspection (work_order, characteristic, reading, passed)
	VALUES (:order, 'thickness', 5 + :deviation / 100.0,
		:deviation BETWEEN -18 AND 18);
UPDATE operation SET status = 'finished', good = good + 1
	WHERE work_order = :order AND step = :step;
COMMIT;

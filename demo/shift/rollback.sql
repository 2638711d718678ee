-- The terminal loses its connection before the commit: nothing happened.
\set order random(1, :orders)
\set step random(1, 5)
BEGIN;
SET LOCAL plant.doomed = on;
UPDATE operation SET status = 'interrupted'
	WHERE work_order = :order AND step = :step;
INSERT INTO movement (work_order, material, quantity, unit, source, destination)
	VALUES (:order, 'steel S355', 1000, 'kg', 'store 4', 'line 1');
ROLLBACK;

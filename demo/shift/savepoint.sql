-- A wrong reading is taken back, the rest of the transaction stays; then the
-- same once more, by an error that PL/pgSQL catches.
\set order random(1, :orders)
BEGIN;
INSERT INTO movement (work_order, material, quantity, unit, source, destination)
	VALUES (:order, 'paint RAL 5010', 2, 'l', 'store 1', 'paint');
SAVEPOINT reading;
SET LOCAL plant.doomed = on;
INSERT INTO inspection (work_order, characteristic, reading, passed)
	VALUES (:order, 'coating', 4711, false);
ROLLBACK TO SAVEPOINT reading;
DO $$
BEGIN
	SET LOCAL plant.doomed = on;
	INSERT INTO inspection (work_order, characteristic, reading, passed)
		VALUES (:order, 'coating', 4712, false);
	RAISE 'the gauge is not calibrated';
EXCEPTION WHEN raise_exception THEN
	NULL;
END $$;
INSERT INTO inspection (work_order, characteristic, reading, passed)
	VALUES (:order, 'coating', 47, true);
COMMIT;

-- Material is moved: one statement, one event, its own transaction.
\set order random(1, :orders)
\set pieces random(1, 50)
INSERT INTO movement (work_order, material, quantity, unit, source, destination)
	VALUES (:order, 'bolt M8', :pieces, 'pcs', 'store 2', 'line 1');

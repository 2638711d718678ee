# Messages exist exactly when their transaction commits: whatever was rolled
# back does not arrive, and the rest arrives in the order of the calls.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('transactions');
my $node = new_node('main', conf => 'max_prepared_transactions = 2');

create_server($node, 'postgres', 'mes', $broker);
$broker->declare_queue('q');
$node->safe_psql('postgres', <<'END');
CREATE FUNCTION p(body text) RETURNS text LANGUAGE sql
	AS $$ SELECT amqp_publish('', 'q', body) $$;
END

# What arrives when a script has run, which may fail.
sub arrives
{
	my ($name, $sql, @expected) = @_;

	$node->psql('postgres', $sql, on_error_stop => 0);
	is_deeply([ arrived() ], \@expected, $name)
	  or diag "expected: @expected";
	return;
}

sub arrived
{
	wait_settled($node, 'postgres');
	return map { $_->[0] } $broker->fields('q', 'body');
}

#
# Transactions and savepoints
#

arrives('statement by statement', "SELECT p('1'); SELECT p('2');", 1, 2);
arrives('one statement', 'SELECT p(i::text) FROM generate_series(1, 5) i',
	1 .. 5);
arrives('commit', "BEGIN; SELECT p('1'); SELECT p('2'); COMMIT", 1, 2);
arrives('rollback', "BEGIN; SELECT p('1'); SELECT p('2'); ROLLBACK");
arrives('rollback and the next transaction',
	"BEGIN; SELECT p('1'); ROLLBACK; BEGIN; SELECT p('2'); COMMIT", 2);
arrives('error at the end of a transaction',
	"BEGIN; SELECT p('1'); SELECT 1/0; COMMIT");
arrives('error in an implicit transaction',
	"SELECT p('1')\\; SELECT 1/0; SELECT p('2')", 2);
arrives('commit and rollback and chain', <<'END', 1, 3);
BEGIN; SELECT p('1'); COMMIT AND CHAIN;
SELECT p('2'); ROLLBACK AND CHAIN;
SELECT p('3'); COMMIT;
END
arrives('connection closed in a transaction', "BEGIN; SELECT p('1')");

arrives('savepoint rolled back', <<'END', 'a', 'c', 'd');
BEGIN; SELECT p('a');
SAVEPOINT s; SELECT p('b'); ROLLBACK TO s; SELECT p('c');
SAVEPOINT t; SELECT p('d'); RELEASE t;
COMMIT;
END
arrives('first savepoint rolled back', <<'END', 'b');
BEGIN; SAVEPOINT s; SELECT p('a'); ROLLBACK TO s; SELECT p('b'); COMMIT;
END
arrives('last savepoint rolled back', <<'END', 'a');
BEGIN; SELECT p('a'); SAVEPOINT s; SELECT p('b'); ROLLBACK TO s; COMMIT;
END
arrives('everything rolled back to a savepoint', <<'END');
BEGIN; SAVEPOINT s; SELECT p('a'); ROLLBACK TO s; COMMIT;
END
arrives('released savepoint inside one rolled back', <<'END', 'a', 'e');
BEGIN; SELECT p('a');
SAVEPOINT s; SELECT p('b'); SAVEPOINT t; SELECT p('c'); RELEASE t; SELECT p('d');
ROLLBACK TO s; SELECT p('e');
COMMIT;
END
arrives('released savepoint alone inside one rolled back', <<'END', 'a', 'c');
BEGIN; SELECT p('a');
SAVEPOINT s; SAVEPOINT t; SELECT p('b'); RELEASE t; ROLLBACK TO s;
SELECT p('c');
COMMIT;
END
arrives('savepoint rolled back inside one released', <<'END', 'a', 'b', 'd', 'e');
BEGIN; SELECT p('a');
SAVEPOINT s; SELECT p('b'); SAVEPOINT t; SELECT p('c'); ROLLBACK TO t;
SELECT p('d'); RELEASE s; SELECT p('e');
COMMIT;
END
arrives('both rolled back, the inner one first', <<'END', 'a', 'f');
BEGIN; SELECT p('a');
SAVEPOINT s; SELECT p('b'); SAVEPOINT t; SELECT p('c'); ROLLBACK TO t;
SELECT p('d'); SAVEPOINT u; SELECT p('e'); RELEASE u; ROLLBACK TO s;
SELECT p('f');
COMMIT;
END
arrives('the same savepoint over and over', <<'END', 3, 4);
BEGIN;
SAVEPOINT s; SELECT p('1'); ROLLBACK TO s; SELECT p('2'); ROLLBACK TO s;
SELECT p('3'); RELEASE s; SELECT p('4');
COMMIT;
END

# 400 of them, each third rolled back
arrives(
	'alternating',
	'BEGIN;'
	  . join('',
		map { "SAVEPOINT s; SELECT p('$_'); " . ($_ % 3 ? 'RELEASE s;' : 'ROLLBACK TO s;') }
		  1 .. 400)
	  . 'COMMIT;',
	grep { $_ % 3 } 1 .. 400);

# each one level deeper; those from 30 on are rolled back
arrives(
	'deep',
	'BEGIN;'
	  . join('', map { "SAVEPOINT s$_; SELECT p('$_');" } 1 .. 60)
	  . "ROLLBACK TO s30; SELECT p('z'); COMMIT;",
	1 .. 29, 'z');

# more than fits into work_mem, so that the buffer is on disk
arrives(
	'a large savepoint rolled back', <<'END', 'a', 5001 .. 9000, 'z');
SET work_mem = '64kB';
BEGIN; SELECT p('a');
SAVEPOINT s; SELECT p(i::text) FROM generate_series(1, 5000) i; ROLLBACK TO s;
SELECT p(i::text) FROM generate_series(5001, 9000) i;
SAVEPOINT s; SELECT p(i::text) FROM generate_series(9001, 12000) i; ROLLBACK TO s;
SELECT p('z');
COMMIT;
END

#
# PL/pgSQL
#

arrives('exception blocks', <<'END', '1', '2 handled', '3', '4 handled', '5', 'end');
DO $$
BEGIN
	FOR i IN 1 .. 5 LOOP
		BEGIN
			PERFORM p(i::text);
			IF i % 2 = 0 THEN
				RAISE division_by_zero;
			END IF;
		EXCEPTION WHEN division_by_zero THEN
			PERFORM p(i || ' handled');
		END;
	END LOOP;
	PERFORM p('end');
END $$;
END
arrives('nested exception blocks', <<'END', 'outside', 'handler');
DO $$
BEGIN
	PERFORM p('outside');
	BEGIN
		PERFORM p('outer block');
		BEGIN
			PERFORM p('inner block');
			RAISE no_data_found;
		EXCEPTION WHEN no_data_found THEN
			PERFORM p('inner handler');
			RAISE division_by_zero;
		END;
	EXCEPTION WHEN division_by_zero THEN
		PERFORM p('handler');
	END;
END $$;
END
arrives('a call that was refused inside an exception block', <<'END', 'a', 'b');
DO $$
BEGIN
	PERFORM p('a');
	BEGIN
		PERFORM amqp_publish('', 'q', 'x'::text, priority => 256);
	EXCEPTION WHEN others THEN
		PERFORM p('b');
	END;
END $$;
END
arrives('procedure with COMMIT and ROLLBACK', <<'END', 1, 2, 4, 5, 7, 8, 10, 'last');
CREATE PROCEDURE loop_of_transactions() LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. 10 LOOP
		PERFORM p(i::text);
		IF i % 3 = 0 THEN
			ROLLBACK;
		ELSE
			COMMIT;
		END IF;
	END LOOP;
	PERFORM p('last');
END $$;
CALL loop_of_transactions();
END
arrives('procedure that fails after COMMIT', <<'END', 'a');
DO $$
BEGIN
	PERFORM p('a');
	COMMIT;
	PERFORM p('b');
	RAISE division_by_zero;
END $$;
END
arrives('procedure that commits in a loop over a cursor', <<'END', 1 .. 5);
DO $$
DECLARE
	i int;
BEGIN
	FOR i IN SELECT * FROM generate_series(1, 5) LOOP
		PERFORM p(i::text);
		COMMIT;
	END LOOP;
END $$;
END

#
# Deferred triggers
#

$node->safe_psql('postgres', <<'END');
CREATE TABLE work_order (name text);
CREATE FUNCTION announce() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM p('deferred ' || new.name);
	IF new.name = 'bad' THEN
		RAISE 'bad work order';
	END IF;
	RETURN new;
END $$;
CREATE CONSTRAINT TRIGGER announce AFTER INSERT ON work_order
	DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION announce();
END
arrives('deferred trigger', <<'END', 'direct', 'deferred one', 'deferred two');
BEGIN;
INSERT INTO work_order VALUES ('one');
SELECT p('direct');
INSERT INTO work_order VALUES ('two');
COMMIT;
END
arrives('deferred trigger alone', <<'END', 'deferred one');
INSERT INTO work_order VALUES ('one');
END
arrives('deferred trigger of a savepoint rolled back', <<'END', 'deferred one');
BEGIN;
INSERT INTO work_order VALUES ('one');
SAVEPOINT s; INSERT INTO work_order VALUES ('two'); ROLLBACK TO s;
COMMIT;
END
arrives('deferred trigger that fails', <<'END');
BEGIN;
INSERT INTO work_order VALUES ('one');
SELECT p('direct');
INSERT INTO work_order VALUES ('bad');
COMMIT;
END
arrives('constraints made immediate', <<'END', 'deferred one', 'direct', 'deferred two');
BEGIN;
INSERT INTO work_order VALUES ('one');
SET CONSTRAINTS ALL IMMEDIATE;
SELECT p('direct');
INSERT INTO work_order VALUES ('two');
COMMIT;
END

#
# Cursors
#

arrives('cursor, half fetched', <<'END', 1, 2, 'end');
BEGIN;
DECLARE c CURSOR FOR SELECT p(i::text) FROM generate_series(1, 5) i;
FETCH 2 FROM c;
SELECT p('end');
COMMIT;
END
# COMMIT runs the rest of its query; or all of it again, if it can scroll
arrives('cursor with hold, half fetched', <<'END', 1, 2, 'between', 3, 4, 5, 'after');
BEGIN;
DECLARE c NO SCROLL CURSOR WITH HOLD FOR SELECT p(i::text) FROM generate_series(1, 5) i;
FETCH 2 FROM c;
SELECT p('between');
COMMIT;
FETCH 2 FROM c;
SELECT p('after');
CLOSE c;
END
arrives('scrolling cursor with hold', <<'END', 1, 2, 1, 2, 3);
BEGIN;
DECLARE c SCROLL CURSOR WITH HOLD FOR SELECT p(i::text) FROM generate_series(1, 3) i;
FETCH 2 FROM c;
COMMIT;
END
arrives('cursor with hold, nothing but it', <<'END', 1 .. 3);
BEGIN;
DECLARE c CURSOR WITH HOLD FOR SELECT p(i::text) FROM generate_series(1, 3) i;
COMMIT;
END
arrives('cursor with hold whose query fails at COMMIT', <<'END');
BEGIN;
SELECT p('first');
DECLARE c CURSOR WITH HOLD FOR SELECT p(i::text), 1 / (3 - i) FROM generate_series(1, 5) i;
COMMIT;
END
arrives('cursor of a savepoint rolled back', <<'END', 'a');
BEGIN;
SELECT p('a');
SAVEPOINT s;
DECLARE c CURSOR FOR SELECT p(i::text) FROM generate_series(1, 5) i;
FETCH 2 FROM c;
ROLLBACK TO s;
COMMIT;
END
# what a cursor of the outer transaction publishes inside of a savepoint
arrives('cursor fetched in a savepoint rolled back', <<'END', 1, 2, 5, 6);
BEGIN;
DECLARE c CURSOR FOR SELECT p(i::text) FROM generate_series(1, 9) i;
FETCH 2 FROM c;
SAVEPOINT s; FETCH 2 FROM c; ROLLBACK TO s;
FETCH 2 FROM c;
COMMIT;
END

#
# Sessions that end in the middle
#

my $session = $node->background_psql('postgres', on_error_stop => 0);
$session->query_safe('BEGIN');
$session->query_safe("SELECT p('lost')");
my $pid = $session->query_safe('SELECT pg_backend_pid()');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
wait_for($node, 'postgres',
	"SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $pid)");
eval { $session->quit };
arrives('after a session that was terminated', "SELECT p('after')", 'after');

arrives('after a statement that was cancelled', <<'END', 'after');
SET statement_timeout = '100ms';
SELECT p('lost'), pg_sleep(60);
RESET statement_timeout;
SELECT p('after');
END

#
# PREPARE TRANSACTION
#

arrives('a transaction without messages can be prepared', <<'END', 'after');
BEGIN; CREATE TABLE two_phase (); PREPARE TRANSACTION 'x';
COMMIT PREPARED 'x';
SELECT p('after') FROM two_phase RIGHT JOIN (SELECT) x ON true;
END

#
# What the view shows
#

$node->append_conf('postgresql.conf', 'amqp_outbox.enabled = off');
$node->reload;
wait_for($node, 'postgres',
	"SELECT count(*) = 0 FROM pg_stat_activity
		WHERE backend_type = 'amqp_outbox worker'");

my $view = "SELECT string_agg(concat_ws(' ', status, convert_from(body, 'UTF8'),
		attempts, delivered_at IS NOT NULL), ', ' ORDER BY id)
	FROM amqp_outbox.message WHERE status <> 'delivered' OR body LIKE 'view%'";

$session = $node->background_psql('postgres');
$session->query_safe('BEGIN');
$session->query_safe("SELECT p('view 1'), p('view 2')");
$session->query_safe('SAVEPOINT s');
$session->query_safe("SELECT p('view 3')");
is( $session->query_safe($view),
	'uncommitted view 1 0 f, uncommitted view 2 0 f, uncommitted view 3 0 f',
	'own messages are uncommitted');
is($node->safe_psql('postgres', $view), '', 'nobody else sees them');
$session->query_safe('ROLLBACK TO s');
is( $session->query_safe($view),
	'uncommitted view 1 0 f, uncommitted view 2 0 f',
	'without those rolled back');
$session->query_safe('COMMIT');
is( $session->query_safe($view),
	'pending view 1 0 f, pending view 2 0 f',
	'committed messages are pending');
is( $node->safe_psql('postgres', $view),
	'pending view 1 0 f, pending view 2 0 f',
	'for others too');
is(status($node, 'postgres', 'mes', 'backlog'), 2, 'and are the backlog');
is($broker->count('q'), 0, 'nothing arrives as long as it is switched off');

$node->append_conf('postgresql.conf', 'amqp_outbox.enabled = on');
$node->reload;
is_deeply([ arrived() ], [ 'view 1', 'view 2' ], 'switched on');
is( $node->safe_psql('postgres', $view),
	'delivered view 1 1 t, delivered view 2 1 t',
	'delivered at the first attempt');
is( $node->safe_psql('postgres',
		"SELECT bool_and(delivered_at BETWEEN enqueued_at AND now())
			FROM amqp_outbox.message"),
	't', 'delivered_at is between enqueued_at and now');
$session->quit;

finish_node($node);
done_testing();

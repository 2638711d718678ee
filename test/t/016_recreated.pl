# An extension that is dropped and created anew starts from nothing: the worker
# of the former one writes nothing into the new tables.  If that is rolled back,
# the former one goes on where it was.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('recreated');
my $node = new_node('main', conf => 'max_prepared_transactions = 2
autovacuum = off');
my $port = $broker->port;

$broker->declare_queue('q');
create_server($node, 'postgres', 'mes', $broker);

sub publish
{
	my ($count) = @_;

	return "SELECT count(amqp_publish('', 'q', 'x', message_id => i::text))
		FROM generate_series(1, $count) i;";
}

sub check_arrived
{
	my ($count, $name) = @_;

	wait_settled($node, 'postgres');
	is($broker->fields('q', 'message_id'), $count, $name);
	return;
}

# In one transaction, so that the new one is there when the old worker hears.
sub recreate
{
	my ($end) = @_;

	$node->safe_psql('postgres', <<"END");
BEGIN;
SET LOCAL client_min_messages = warning;
DROP EXTENSION amqp_outbox CASCADE;
CREATE EXTENSION amqp_outbox;
CREATE SERVER mes FOREIGN DATA WRAPPER amqp_outbox
	OPTIONS (host '127.0.0.1', port '$port');
CREATE USER MAPPING FOR PUBLIC SERVER mes OPTIONS (user 'guest', password 'guest');
$end
END
	return;
}

foreach my $round (1 .. 5)
{
	$node->safe_psql('postgres', publish(1000));
	check_arrived(1000, 'messages of one extension');
	recreate(publish(10) . 'COMMIT;');
	check_arrived(10, 'messages of the next one');
	is(status($node, 'postgres', 'mes', 'delivered'), 10, 'which counts anew');
}

# The counter of ids stands in shared memory.  A new one takes the place of a
# former one of the database when there is no other, so others are used up: by
# new tables, which is all that makes a counter a new one.
$node->safe_psql('postgres', <<'END');
DO $$
BEGIN
	FOR i IN 1 .. 256 LOOP
		BEGIN
			ALTER TABLE amqp_outbox.outbox RENAME TO former;
			CREATE TABLE amqp_outbox.outbox ();
			PERFORM amqp_outbox.leaf();
			RAISE 'rolled back';
		EXCEPTION WHEN raise_exception THEN
		END;
	END LOOP;
END $$;
END
recreate(publish(10) . 'COMMIT;');
check_arrived(10, 'messages of one that has the last place');

# The newest ids have left no trace in the tables.
$node->safe_psql('postgres',
	'BEGIN;' . publish(100) . "PREPARE TRANSACTION 'gone'");
$node->safe_psql('postgres', "ROLLBACK PREPARED 'gone'");
$node->safe_psql('postgres', 'VACUUM amqp_outbox.deferred');
my $next_id = 'SELECT next_id FROM amqp_outbox.horizon()';
my $id = $node->safe_psql('postgres', $next_id);
recreate('SELECT amqp_outbox.leaf(); ROLLBACK;');
$node->safe_psql('postgres', publish(10));
is($node->safe_psql('postgres', $next_id),
	$id + 10, 'rolled back: ids go on where they were');
check_arrived(10, 'rolled back: and messages of the former one arrive');

# While one that is being dropped is not gone yet, the worker waits for it before
# it has locked anything: else each could wait for the other.
my $session = $node->background_psql('postgres');
$session->query_safe('SET client_min_messages = warning; BEGIN; DROP EXTENSION amqp_outbox CASCADE');
wait_for(
	$node,
	'postgres',
	"SELECT count(*) = 1 AND bool_and(l.locktype = 'object' AND NOT EXISTS (
			SELECT FROM pg_locks h JOIN pg_class c ON c.oid = h.relation
			WHERE h.pid = l.pid AND c.relnamespace = (SELECT relnamespace
				FROM pg_class WHERE oid = 'pg_extension'::regclass) IS FALSE))
		FROM pg_locks l JOIN pg_stat_activity a USING (pid)
		WHERE a.backend_type = 'amqp_outbox worker' AND NOT l.granted",
	'the worker waits');
$session->query_safe('ROLLBACK');
$session->quit;
$node->safe_psql('postgres', "SELECT amqp_publish('', 'q', 'x'::text)");
wait_settled($node, 'postgres');
is($broker->fields('q', 'message_id'), 1, 'it goes on when nothing was dropped');

finish_node($node, errors => qr/lock timeout/);
done_testing();

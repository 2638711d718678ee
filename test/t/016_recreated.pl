# An extension that is dropped and created anew starts from nothing: the worker
# of the former one writes nothing into the new tables.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('recreated');
my $node = new_node('main');

$broker->declare_queue('q');
create_server($node, 'postgres', 'mes', $broker);

foreach my $round (1 .. 5)
{
	$node->safe_psql('postgres',
		"SELECT count(amqp_publish('', 'q', 'x', message_id => 'a' || i))
			FROM generate_series(1, 1000) i");
	wait_settled($node, 'postgres');
	is($broker->fields('q', 'message_id'), 1000, 'messages of one extension');

	# in one transaction, so that the new one is there when the old worker hears
	my $port = $broker->port;
	$node->safe_psql('postgres', <<"END");
BEGIN;
SET LOCAL client_min_messages = warning;
DROP EXTENSION amqp_outbox CASCADE;
CREATE EXTENSION amqp_outbox;
CREATE SERVER mes FOREIGN DATA WRAPPER amqp_outbox
	OPTIONS (host '127.0.0.1', port '$port');
CREATE USER MAPPING FOR PUBLIC SERVER mes OPTIONS (user 'guest', password 'guest');
SELECT count(amqp_publish('', 'q', 'x', message_id => 'b' || i)) FROM generate_series(1, 10) i;
COMMIT;
END
	wait_settled($node, 'postgres');
	is($broker->fields('q', 'message_id'), 10, 'messages of the next one');
	is(status($node, 'postgres', 'mes', 'delivered'), 10, 'which counts anew');
}

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

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

finish_node($node);
done_testing();

# As many messages on their way as a worker holds, and deferred ones that are due
# at that moment: they wait for room.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('full');
my $node = new_node('main');

create_server($node, 'postgres', 'mes', $broker,
	window => 65535, unroutable => 'dead_letter');
$broker->declare_queue('q');
$node->safe_psql('postgres',
	"SELECT count(amqp_publish('', 'later', 'x')) FROM generate_series(1, 300)");
wait_for($node, 'postgres',
	'SELECT dead_letters = 300 FROM amqp_outbox.server_status');
$broker->declare_queue('later');

$broker->freeze;
$node->safe_psql('postgres',
	"SELECT count(amqp_publish('', 'q', 'x')) FROM generate_series(1, 3072)");
wait_for($node, 'postgres',
	'SELECT in_flight = 3072 FROM amqp_outbox.server_status');
$node->safe_psql('postgres', <<'END');
BEGIN;
SELECT count(*) FROM amqp_outbox.requeue();
SELECT count(amqp_publish('', 'q', 'x')) FROM generate_series(1, 2000);
COMMIT;
END
wait_for($node, 'postgres',
	'SELECT in_flight = 4096 FROM amqp_outbox.server_status');
$broker->thaw;
wait_settled($node, 'postgres');
is($broker->count('q'), 5072, 'all arrived');
is($broker->count('later'), 300, 'and the deferred ones');

finish_node($node);
done_testing();

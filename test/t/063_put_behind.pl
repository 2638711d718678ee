# What a worker that crashed may have sent and what is then put behind another of its
# key before it is read again, says so when it comes.  The first of the key comes
# in one batch with others, the second in the next one.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('behind');
my $node = new_node('main');

create_server($node, 'postgres', 'mes', $broker);
$broker->declare_exchange('e', 'topic');
$broker->declare_queue('q');
$broker->bind_queue('q', 'e', 'good');

# who never sent anything leaves no doubt behind
$node->safe_psql('postgres', "SELECT amqp_publish('e', 'good', 'first')");
wait_settled($node, 'postgres');
$node->safe_psql('postgres', <<'END');
BEGIN;
SELECT amqp_publish('absent', 'good', 'd1', message_id => 'd1', ordering_key => 'd', delay => '1 h');
SELECT count(amqp_publish('e', 'good', 'filler', delay => '1 h')) FROM generate_series(1, 300);
SELECT amqp_publish('e', 'good', 'd2', message_id => 'd2', ordering_key => 'd', delay => '1 h');
COMMIT;
END
$node->append_conf('postgresql.conf', 'amqp_outbox.enabled = off');
$node->stop('immediate');
$node->start;
$node->safe_psql('postgres',
	"UPDATE amqp_outbox.deferred SET due_at = '2020-01-01'::timestamptz + id * '1 ms'::interval");
$node->append_conf('postgresql.conf', 'amqp_outbox.enabled = on');
$node->reload;
wait_for($node, 'postgres',
	"SELECT due_at = 'infinity' FROM amqp_outbox.deferred WHERE message_id = 'd2'",
	'd2 is put behind d1');
$broker->declare_exchange('absent', 'topic');
$broker->bind_queue('q', 'absent', 'good');
wait_settled($node, 'postgres');
is( join(' ', map { "$_->[0] $_->[2]" } grep { $_->[0] =~ /^d/ }
		@{ $broker->received_marked('q') }),
	'd1 1 d2 1', 'both are marked');

finish_node($node);
done_testing();

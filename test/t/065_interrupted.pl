# A worker that has much to send, to a broker that takes all of it at once, hears
# of a stop meanwhile.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use Test::More;

my $messages = 200;
my $broker = AmqpOutboxTest::Broker->new('eager');
my $node = new_node('main');

create_server($node, 'postgres', 'mes', $broker);
$broker->declare_queue('q');
$broker->declare_exchange('passing', 'topic');
$broker->bind_queue('q', 'passing', 'q');
wait_state($node, 'postgres', 'mes', 'connected');

# Many large messages are in flight, because their queue does not get on,
$broker->ctl('eval', '{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r('
	  . '<<"/">>, queue, <<"q">>)), sys:suspend(amqqueue:get_pid(Q)).');
$node->safe_psql('postgres',
	"SELECT count(amqp_publish('passing', 'q', repeat(md5(i::text), 2200),
		mandatory => false)) FROM generate_series(1, $messages) i");
wait_for($node, 'postgres',
	"SELECT in_flight = $messages FROM amqp_outbox.server_status");

# and have to be read and sent again, to where nothing keeps the broker.
$broker->tool('unbind', 'q', 'passing', 'q');
my $session = $node->background_psql('postgres');
$session->query_safe('BEGIN; LOCK TABLE amqp_outbox.outbox');
$node->append_conf('postgresql.conf', 'amqp_outbox.enabled = off');
$broker->ctl('close_all_connections', 'test');
wait_for($node, 'postgres', <<'END_OF_SQL', 'the worker begins to read');
SELECT wait_event_type = 'Lock' FROM pg_stat_activity
	WHERE backend_type = 'amqp_outbox worker'
END_OF_SQL
$node->reload;
$session->query_safe('COMMIT');
$session->quit;
wait_for($node, 'postgres', <<'END_OF_SQL', 'the worker ends');
SELECT count(*) = 0 FROM pg_stat_activity
	WHERE backend_type = 'amqp_outbox worker'
END_OF_SQL

# 256 kB are what one turn sends
cmp_ok( $node->safe_psql(
		'postgres',
		"SELECT count(*) FROM amqp_outbox.message WHERE status = 'pending'"),
	'>=', $messages - 8, 'before it has sent many');

$node->append_conf('postgresql.conf', 'amqp_outbox.enabled = on');
$node->reload;
wait_settled($node, 'postgres');
finish_node($node);
done_testing();

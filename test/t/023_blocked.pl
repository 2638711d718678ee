# A broker that asks for a pause (connection.blocked, here for a memory alarm):
# the connection stays as it is, however long that takes, and goes on where it
# was.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use PostgreSQL::Test::Cluster;
use Test::More;
use Time::HiRes qw(time);

my $broker = AmqpOutboxTest::Broker->new('blocks');
my $node = new_node('main');
my $drain_timeout = 2;

# Each of its clocks would run out while the broker blocks.
create_server(
	$node, 'postgres', 'mes', $broker,
	heartbeat => 1,
	confirm_timeout => 1,
	connect_timeout => 1);
create_sent($node, 'postgres');
$broker->declare_queue('q');
wait_state($node, 'postgres', 'mes', 'connected');

my $alarm = '{{resource_limit, memory, node()}, []}';
sub block { $broker->ctl('eval', "rabbit_alarm:set_alarm($alarm)."); return; }

sub unblock
{
	$broker->ctl('eval',
		'rabbit_alarm:clear_alarm({resource_limit, memory, node()}).');
	return;
}

sub state_since
{
	return status($node, 'postgres', 'mes', "concat(state, ' ', since)");
}

# Blocked for three times each of the clocks: here time itself is the test.
sub stays_blocked
{
	my $name = shift;

	wait_state($node, 'postgres', 'mes', 'blocked');
	my $offset = -s $node->logfile;
	my $before = state_since();

	$node->safe_psql('postgres', 'SELECT pg_sleep(1.5)');
	$node->safe_psql('postgres', publish_sent('q', 1, 10));
	$node->safe_psql('postgres', 'SELECT pg_sleep(2)');
	is(state_since(), $before, "$name: blocked all the time");
	is(scalar(log_lines($node, qr/LOG:  server "mes"/, $offset)),
		0, "$name: nothing is told");
	like(status($node, 'postgres', 'mes', 'last_error'),
		qr/takes no messages at present: low on memory/, "$name: last_error");
	cmp_ok(status($node, 'postgres', 'mes', 'backlog'),
		'>=', 110, "$name: nothing counts as delivered");
	return;
}

# The broker's own names of the connections that it has.
sub connections
{
	return $broker->ctl('list_connections', 'pid');
}

#
# In the middle
#

$node->safe_psql('postgres', publish_sent('q', 1, 100));
wait_settled($node, 'postgres', 'mes');
my $connections = connections();
block();
$node->safe_psql('postgres', publish_sent('q', 1, 100));
stays_blocked('blocked');
unblock();
wait_settled($node, 'postgres', 'mes');
is(status($node, 'postgres', 'mes', 'state'), 'connected', 'blocked: and goes on');
is(connections(), $connections, 'blocked: by the same connection');

#
# From the moment of connecting on
#

my $closed_port = PostgreSQL::Test::Cluster::get_free_port();
my $port = $broker->port;
$node->safe_psql('postgres',
	"ALTER SERVER mes OPTIONS (SET port '$closed_port')");
wait_state($node, 'postgres', 'mes', 'waiting');
$node->safe_psql('postgres', publish_sent('q', 1, 100));
block();
$node->safe_psql('postgres', "ALTER SERVER mes OPTIONS (SET port '$port')");
stays_blocked('blocked while connecting');
unblock();
wait_settled($node, 'postgres', 'mes');

my $received = $broker->received_marked('q');
check_account(committed($node, 'postgres'), $received, 'blocked');
is(scalar(grep { $_->[2] } @$received),
	0, 'blocked: none is marked as a possible duplicate');

#
# A stop in the meantime
#

$node->safe_psql('postgres', 'TRUNCATE sent');
block();
$node->safe_psql('postgres', publish_sent('q', 1, 100));
wait_state($node, 'postgres', 'mes', 'blocked');
my $begin = time;
$node->stop('fast');
cmp_ok(time - $begin, '<', $drain_timeout + 2, 'the stop is bounded');
unblock();
$node->start;
wait_settled($node, 'postgres', 'mes');
check_account(committed($node, 'postgres'), $broker->received_marked('q'),
	'stopped while blocked', duplicates => 'marked');

finish_node($node);
done_testing();

# Stops drain what is in flight, and never take long; an idle connection
# stays; and a long outage is told once.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $broker = AmqpOutboxTest::Broker->new('shutdown');
my $node = new_node('main');
my $drain_timeout = 2;

create_server($node, 'postgres', 'mes', $broker, heartbeat => 2);
create_sent($node, 'postgres');
$broker->declare_queue('q');
wait_state($node, 'postgres', 'mes', 'connected');

#
# What pg_stat_activity shows
#

is( $node->safe_psql('postgres', <<'END'),
SELECT backend_type, datname FROM pg_stat_activity
	WHERE backend_type LIKE 'amqp_outbox%' ORDER BY 1
END
	"amqp_outbox launcher|\namqp_outbox worker|postgres",
	'launcher and worker');
is( $node->safe_psql('postgres',
		"SELECT query FROM pg_stat_activity WHERE backend_type = 'amqp_outbox worker'"),
	'server "mes": connected, broker 127.0.0.1:' . $broker->port,
	'a sentence about the worker');
wait_for($node, 'postgres',
	"SELECT wait_event_type = 'Extension' FROM pg_stat_activity
		WHERE backend_type = 'amqp_outbox worker'",
	'the wait event of an idle worker');

#
# Idle for four heartbeats: here time itself is the test
#

my $since = status($node, 'postgres', 'mes', 'since');
my $offset = -s $node->logfile;
$node->safe_psql('postgres', 'SELECT pg_sleep(8.5)');
is(status($node, 'postgres', 'mes', 'since'), $since, 'idle: still connected');
is(scalar(log_lines($node, qr/LOG:  server "mes"/, $offset)),
	0, 'idle: nothing happened');
my $connections = $broker->ctl('list_connections', 'timeout', 'state');
like($connections, qr/^2\s+running$/m, 'the broker agreed to 2 s');

#
# Fast shutdown with messages in flight
#

# Whether it came in the middle is seen before anything more is published.
my $in_the_middle = 0;
foreach my $i (1 .. 4)
{
	my $delivered = status($node, 'postgres', 'mes', 'delivered');

	$node->safe_psql('postgres', publish_sent('q', $i, 15_000));
	wait_for($node, 'postgres',
		"SELECT delivered > $delivered FROM amqp_outbox.server_status",
		'messages on their way');
	$node->append_conf('postgresql.conf', 'amqp_outbox.enabled = off');
	$node->stop('fast');
	$node->start;
	$in_the_middle++ if status($node, 'postgres', 'mes', 'backlog') > 0;
	$node->append_conf('postgresql.conf', 'amqp_outbox.enabled = on');
	$node->reload;
}
cmp_ok($in_the_middle, '>', 0, 'stops came in the middle');
wait_settled($node, 'postgres');
check_account(committed($node, 'postgres'),
	$broker->received('q'), 'drained at each stop');

#
# A broker that is frozen
#

sub stop_takes
{
	my $begin = time;

	$node->stop('fast');
	return time - $begin;
}

$node->safe_psql('postgres', 'TRUNCATE sent');
reconnect($node, 'postgres', 'mes',
	"ALTER SERVER mes OPTIONS (SET heartbeat '0')");
$broker->freeze;

# more than the sockets hold, so that the worker stands in the middle of one
$node->safe_psql('postgres', publish_sent('q', 1, 3000));
$node->safe_psql('postgres',
	"INSERT INTO sent SELECT amqp_publish('', 'q', '2 ' || n || repeat(' ', 9000)), 2, n
		FROM generate_series(1000000, 1000999) n");
wait_for($node, 'postgres',
	'SELECT in_flight > 0 FROM amqp_outbox.server_status', 'messages in flight');
cmp_ok(stop_takes(), '<', $drain_timeout + 2, 'frozen: the stop is bounded');
$broker->thaw;
$node->start;
wait_settled($node, 'postgres');
check_account(
	committed($node, 'postgres'),
	[ map { [ $_->[0], $_->[1] =~ s/ +$//r ] } $broker->received('q')->@* ],
	'frozen',
	duplicates => 'allowed');

# and one that is frozen while the worker has nothing to do, with heartbeats
reconnect($node, 'postgres', 'mes',
	"ALTER SERVER mes OPTIONS (SET heartbeat '1')");
$broker->freeze;
wait_for($node, 'postgres',
	"SELECT last_error LIKE '%no heartbeat%' FROM amqp_outbox.server_status",
	'missing heartbeats');
pass('frozen: noticed by its missing heartbeats');
cmp_ok(stop_takes(), '<', $drain_timeout + 2, 'frozen at login: the stop is bounded');
$broker->thaw;
$node->start;
wait_state($node, 'postgres', 'mes', 'connected');

#
# A broker that is away
#

$offset = -s $node->logfile;
$broker->stop;
wait_state($node, 'postgres', 'mes', 'waiting');
$node->safe_psql('postgres', publish_sent('q', 3, 10));

# some attempts to connect
foreach my $i (1 .. 4)
{
	my $at = status($node, 'postgres', 'mes', 'last_error_at');

	wait_for($node, 'postgres',
		"SELECT last_error_at > '$at' FROM amqp_outbox.server_status",
		'another attempt');
}
cmp_ok(scalar(log_lines($node, qr/LOG:  server "mes"/, $offset)),
	'<=', 3, 'away: all those attempts are told once');
is(scalar(log_lines($node, qr/could not connect to host/, $offset)),
	1, 'away: the reason stands in the log');
cmp_ok(stop_takes(), '<', 1.5, 'away: the stop does not wait');
$node->start;
wait_state($node, 'postgres', 'mes', 'waiting');
$broker->start;
wait_settled($node, 'postgres');
is($broker->count('q'), 10, 'away: delivered when it is back');

finish_node($node);
done_testing();

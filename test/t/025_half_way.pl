# What happens between sending and confirming: the connection is reset in the
# middle of a frame, confirms never come, the line is slow, a queue is deleted
# with messages on their way.  Nothing is lost, and what comes twice says so.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxPeer;
use AmqpOutboxTest;
use Test::More;
use Time::HiRes qw(time);

my $broker = AmqpOutboxTest::Broker->new('half_way');
my $proxy = AmqpOutboxPeer::Proxy->new($broker->port);
my $node = new_node('main');
my $good = '127.0.0.1:' . $broker->port;
my $through = '127.0.0.1:' . $proxy->port;

create_server($node, 'postgres', 'mes', $broker, uri => "amqp://$through");
create_sent($node, 'postgres');
$broker->declare_queue('q');
wait_state($node, 'postgres', 'mes', 'connected');
my $worker = worker_pid($node, 'postgres', 'mes');

# Messages of 100,000 bytes, each in a frame of its own.
sub publish
{
	my $count = shift;

	$node->safe_psql('postgres', <<"END");
INSERT INTO sent SELECT amqp_publish('', 'q', rpad('1 ' || n, 100000)), 1, n
	FROM (SELECT nextval('n') AS n FROM generate_series(1, $count)) x
END
	return;
}

# Wait until it is connected, but not as it was at that time.
sub wait_connected
{
	my ($since, $what) = @_;

	wait_for(
		$node,
		'postgres',
		"SELECT state = 'connected' AND since > '$since'
			FROM amqp_outbox.server_status",
		$what);
	return;
}

sub arrived
{
	my ($name, $mode) = @_;

	wait_for(
		$node,
		'postgres',
		'SELECT sum(backlog) = 0 AND sum(in_flight) = 0
			FROM amqp_outbox.server_status',
		"$name: everything delivered");
	my $duplicates = check_account(
		committed($node, 'postgres'),
		[
			map { [ $_->[0], $_->[1] =~ s/ +$//r, $_->[2] ] }
			  $broker->received_marked('q')->@*
		],
		$name,
		duplicates => $mode);
	$node->safe_psql('postgres', 'TRUNCATE sent');
	return $duplicates;
}

#
# Reset in the middle of a frame, on the way there and on the way back
#

foreach my $case (
	[ 'cut_up', 450_000, 'a frame of the worker' ],
	[ 'cut_down', 3, 'a frame of the broker' ])
{
	my ($cut, $bytes, $what) = @$case;
	my $since = status($node, 'postgres', 'mes', 'since');
	my $name = "reset in the middle of $what";

	$proxy->$cut($bytes);
	publish(10);
	wait_connected($since, $name);
	like(status($node, 'postgres', 'mes', 'last_error'),
		qr/^connection to the broker lost: Connection reset by peer/,
		"$name: last_error");
	cmp_ok(
		status($node, 'postgres', 'mes',
			'extract(epoch FROM since - last_error_at)'),
		'<', 5, "$name: connected again within seconds");
	my $duplicates = arrived($name, 'marked');
	cmp_ok($duplicates, '>', 0, "$name: some come twice")
	  if $cut eq 'cut_down';
}

#
# Confirms never come.  Without heartbeats this is the only clock.
#

my $since = status($node, 'postgres', 'mes', 'since');
$node->safe_psql('postgres', <<'END');
ALTER SERVER mes OPTIONS (ADD heartbeat '0', ADD confirm_timeout '2');
END
wait_connected($since, 'a new connection');
$since = status($node, 'postgres', 'mes', 'since');
$proxy->swallow;
publish(10);
my $begin = time;
wait_for(
	$node,
	'postgres',
	"SELECT last_error LIKE 'the broker did not confirm a message within 2 s%'
		FROM amqp_outbox.server_status",
	'confirms are overdue');
cmp_ok(time - $begin, '<', 5, 'never confirmed: noticed in time');
$proxy->forward;
wait_connected($since, 'never confirmed: a new connection');
is(arrived('never confirmed', 'marked'), 10, 'never confirmed: all come twice');

# and the next host of a list is tried
reconnect($node, 'postgres', 'mes',
	"ALTER SERVER mes OPTIONS (SET uri 'amqp://$through,$good')");
is(status($node, 'postgres', 'mes', 'host'), $through, 'a list of hosts');
$proxy->swallow;
publish(1);
wait_for($node, 'postgres',
	"SELECT state = 'connected' AND host = '$good'
		FROM amqp_outbox.server_status",
	'the next host');
arrived('never confirmed: the next host', 'marked');
$proxy->forward;

#
# A line so slow that sending takes longer than a confirm may
#

reconnect($node, 'postgres', 'mes',
	"ALTER SERVER mes OPTIONS (SET uri 'amqp://$through')");
$since = status($node, 'postgres', 'mes', 'since');
$proxy->slow(3_000_000);
$node->safe_psql('postgres', <<'END');
INSERT INTO sent SELECT amqp_publish('', 'q', rpad('1 ' || n, 15000000)), 1, n
	FROM nextval('n') n
END
is(arrived('slow line', 'none'), 0, 'slow line: delivered once');
is(status($node, 'postgres', 'mes', 'since'),
	$since, 'slow line: the connection stays');
$proxy->forward;

#
# A queue is deleted with messages on their way
#

$node->safe_psql('postgres',
	"ALTER SERVER mes OPTIONS (SET confirm_timeout '60')");
publish(10);
wait_settled($node, 'postgres');
$proxy->hold;
$node->safe_psql('postgres',
	"SELECT publish_sent('', 'q', i) FROM generate_series(2, 101) i");
wait_for($node, 'postgres',
	'SELECT in_flight = 100 FROM amqp_outbox.server_status', 'on their way');
is($broker->count('q'), 10, 'queue deleted: what was confirmed is there');
$broker->received('q');
$node->safe_psql('postgres', 'DELETE FROM sent WHERE session = 1');
$broker->tool('delete-queue', 'q');
$proxy->forward;
wait_for($node, 'postgres',
	'SELECT count(*) = 100 FROM amqp_outbox.deferred WHERE reply_code = 312',
	'queue deleted: they come back');
is(status($node, 'postgres', 'mes', "concat(state, ' ', backlog, ' ', since)"),
	"connected 100 $since", 'queue deleted: the connection stays');
$broker->declare_queue('q');
$node->safe_psql('postgres', 'SELECT amqp_outbox.wake()');
is(arrived('queue deleted', 'none'), 0, 'queue deleted: delivered once');

is(worker_pid($node, 'postgres', 'mes'),
	$worker, 'all that by one and the same worker');
finish_node($node);
done_testing();

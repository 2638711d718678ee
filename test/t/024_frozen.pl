# A broker that freezes (SIGSTOP: connected, and silent) while a large message
# is being sent, in plain TCP and in TLS: noticed by its missing heartbeats, no
# trouble for another server, no trouble for a stop, and nothing is lost.
# (A broker that freezes between small messages, or while idle, and one that
# vanishes: 009_shutdown.pl, 005_broker_restart.pl.)

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use Test::More;
use Time::HiRes qw(time);

my $broker = AmqpOutboxTest::Broker->new('frozen', tls => 1);
my $warm = AmqpOutboxTest::Broker->new('warm');
my $node = new_node('main');
my $drain_timeout = 2;
my $heartbeat = 1;

create_server(
	$node, 'postgres', 'mes', $broker,
	uri => 'amqp://127.0.0.1:' . $broker->port,
	heartbeat => $heartbeat,
	connect_timeout => 2);
create_server($node, 'postgres', 'other', $warm);
create_sent($node, 'postgres');
$broker->declare_queue('q');
$warm->declare_queue('r');
wait_state($node, 'postgres', $_, 'connected') foreach 'mes', 'other';

# More than all buffers between here and the broker hold, and some after it.
sub publish
{
	$node->safe_psql('postgres', <<"END");
BEGIN;
INSERT INTO sent SELECT amqp_publish('', 'q', rpad('1 ' || n, 16000000),
		server => 'mes'), 1, n FROM nextval('n') n;
INSERT INTO sent SELECT amqp_publish('', 'q', '1 ' || n, server => 'mes'), 1, n
	FROM (SELECT nextval('n') AS n FROM generate_series(1, 100)) x;
COMMIT;
END
	wait_for(
		$node,
		'postgres',
		"SELECT in_flight > 0 FROM amqp_outbox.server_status
			WHERE server = 'mes'",
		'on its way');
	return;
}

# Another server's messages arrive while this one's state does not change.
sub other_delivers
{
	my $name = shift;
	my $query = "concat(state, ' ', since, ' ', in_flight > 0)";
	my $before = status($node, 'postgres', 'mes', $query);

	foreach my $i (1 .. 10)
	{
		$node->safe_psql('postgres',
			"SELECT publish_sent('', 'r', 2, server => 'other')");
		wait_settled($node, 'postgres', 'other');
	}
	is(status($node, 'postgres', 'mes', $query),
		$before, "$name: another server delivers meanwhile");
	like($before, qr/^connected .* t$/, "$name: while this one is stuck");
	return;
}

foreach my $name ('TCP', 'TLS')
{
	# the first of the two is what it began with
	reconnect($node, 'postgres', 'mes', <<"END") if $name eq 'TLS';
ALTER SERVER mes OPTIONS (SET uri 'amqps://127.0.0.1:@{[ $broker->tls_port ]}',
	ADD cacertfile '@{[ $broker->cacertfile ]}', SET heartbeat '$heartbeat')
END

	# with an end: the peer counts as dead after two heartbeats
	my $errors = status($node, 'postgres', 'mes', 'last_error_at');
	$broker->freeze;
	my $begin = time;
	publish();
	wait_for(
		$node,
		'postgres',
		"SELECT last_error LIKE '%no heartbeat from the broker%'
			AND last_error_at > '" . ($errors || '-infinity') . "'
			FROM amqp_outbox.server_status WHERE server = 'mes'",
		"$name: missing heartbeats");
	cmp_ok(time - $begin, '<', 2 * $heartbeat + 2, "$name: noticed in time");
	is(status($node, 'postgres', 'mes', 'in_flight'),
		0, "$name: nothing counts as in flight any more");
	$broker->thaw;
	$begin = time;
	wait_state($node, 'postgres', 'mes', 'connected');
	cmp_ok(time - $begin, '<', 10, "$name: connected again within seconds");
	wait_settled($node, 'postgres');

	# without an end, and stopped in the middle
	reconnect($node, 'postgres', 'mes',
		"ALTER SERVER mes OPTIONS (SET heartbeat '0')");
	$broker->freeze;
	publish();
	other_delivers($name);
	$begin = time;
	$node->stop('fast');
	cmp_ok(time - $begin, '<', $drain_timeout + 2, "$name: the stop is bounded");
	$broker->thaw;
	$node->start;
	wait_settled($node, 'postgres');
}

check_account(
	committed($node, 'postgres', 'session = 1'),
	[
		map { [ $_->[0], $_->[1] =~ s/ +$//r, $_->[2] ] }
		  $broker->received_marked('q')->@*
	],
	'frozen',
	duplicates => 'marked');
check_account(committed($node, 'postgres', 'session = 2'),
	$warm->received('r'), 'another server');

finish_node($node);
done_testing();

# Hosts that do not answer: that takes no longer than connect_timeout, the next
# host is tried, another server does not notice, and a stop does not wait.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxPeer;
use AmqpOutboxTest;
use Test::More;
use Time::HiRes qw(time);

my $broker = AmqpOutboxTest::Broker->new('answers', tls => 1);
my $silent = AmqpOutboxPeer->silent;
my $silent_tls = AmqpOutboxPeer->silent;
my $full = AmqpOutboxPeer->full;
my $name_server = AmqpOutboxPeer::NameServer->new;
my %environment = $name_server->environment;

sub with_name_server
{
	my $code = shift;

	local %ENV = (%ENV, %environment);
	return $code->();
}

my $node = with_name_server(sub { new_node('main') });
my $port = $broker->port;
my $tls_port = $broker->tls_port;

create_server($node, 'postgres', 'mes', $broker,
	uri => "amqp://127.0.0.1:$port",
	connect_timeout => 600);
create_server($node, 'postgres', 'other', $broker);
create_sent($node, 'postgres');
$broker->declare_queue('q');
$broker->declare_queue('r');
wait_state($node, 'postgres', $_, 'connected') foreach 'mes', 'other';

sub alter_server
{
	my $options = join(', ', @_);

	$node->safe_psql('postgres', "ALTER SERVER mes OPTIONS ($options)");
	return;
}

sub wait_mes
{
	my ($condition, $what) = @_;

	wait_for($node, 'postgres',
		"SELECT $condition FROM amqp_outbox.server_status WHERE server = 'mes'",
		$what);
	return;
}

# What it is that does not answer; the host; a good one after it; how it is seen
# that the worker is there; what the status says in the end; more options.
my @cases = (
	[
		'silent', 'amqp',
		'127.0.0.1:' . $silent->port,
		"127.0.0.1:$port",
		sub { $silent->accept; $silent->read_bytes(8); },
		'the broker did not greet in time'
	],
	[
		'packets dropped', 'amqp',
		'127.0.0.1:' . $full->port,
		"127.0.0.1:$port",
		sub { },
		'The host did not answer in time'
	],
	[
		'silent name server', 'amqp',
		"broker.test:$port",
		"127.0.0.1:$port",
		sub { $name_server->await_question; },
		'No name server answered in time'
	],
	[
		'silent with TLS', 'amqps',
		'127.0.0.1:' . $silent_tls->port,
		"127.0.0.1:$tls_port",
		sub { $silent_tls->accept; $silent_tls->read_bytes(5); },
		'The TLS handshake was not completed in time',
		"ADD cacertfile '@{[ $broker->cacertfile ]}'"
	]);

foreach my $case (@cases)
{
	my ($name, $scheme, $host, $good, $arrived, $words, @more) = @$case;

	# one attempt takes longer than the test
	alter_server("SET uri '$scheme://$host'", "SET connect_timeout '600'", @more);
	wait_mes("state = 'connecting'", "$name: connecting");
	$arrived->();
	my $since = status($node, 'postgres', 'mes', 'since');

	$node->safe_psql('postgres',
		"SELECT publish_sent('', 'q', 1, server => 'mes')");
	foreach my $i (1 .. 8)
	{
		$node->safe_psql('postgres',
			"SELECT publish_sent('', 'r', 2, server => 'other')");
		wait_settled($node, 'postgres', 'other');
	}
	is(status($node, 'postgres', 'mes', "concat(state, ' ', since)"),
		"connecting $since", "$name: another server delivers meanwhile");

	my $begin = time;
	$node->stop('fast');
	cmp_ok(time - $begin, '<', 2, "$name: a stop does not wait");
	with_name_server(sub { $node->start });
	wait_mes("state = 'connecting'", "$name: connecting again");

	# with an end, and again
	$begin = time;
	alter_server("SET connect_timeout '1'");
	wait_mes("last_error LIKE '%$words%'", "$name: $words");
	cmp_ok(time - $begin, '<', 5, "$name: noticed in time");
	my $at = status($node, 'postgres', 'mes', 'last_error_at');
	wait_mes("last_error_at > timestamptz '$at' + interval '1s'
		AND last_error LIKE '%$words%'", "$name: another attempt");

	$begin = time;
	alter_server("SET uri '$scheme://$host,$good'");
	wait_mes("state = 'connected' AND host = '$good'", "$name: the next host");
	cmp_ok(time - $begin, '<', 5, "$name: the next host is tried in time");
	like(status($node, 'postgres', 'mes', 'last_error'),
		qr/$words/, "$name: last_error");
	wait_settled($node, 'postgres', 'mes');
}

#
# A name server that comes back
#

$name_server->answer;
alter_server("SET uri 'amqp://broker.test:$port'", 'DROP cacertfile');
wait_mes("last_error LIKE '%No name server%'", 'the name server is away again');

my $begin = time;
wait_true(
	'connected by name',
	sub {
		$name_server->answer;
		return status($node, 'postgres', 'mes', 'state') eq 'connected';
	});
cmp_ok(time - $begin, '<', 8, 'name server back: connected within seconds');

#
# Names that do not exist, before a host of another name
#

alter_server("SET connect_timeout '600'",
	"SET uri 'amqp://gone.test,away.test:1,broker.test:$port'");
$node->safe_psql('postgres',
	"SELECT publish_sent('', 'q', 1, server => 'mes')");
wait_true(
	'connected by the third name',
	sub {
		$name_server->answer(qr/gone|away/);
		return status($node, 'postgres', 'mes', "concat(state, ' ', host)") eq
		  "connected broker.test:$port";
	});
like(status($node, 'postgres', 'mes', 'last_error'),
	qr/could not resolve host name "away.test"/, 'no such name: last_error');
wait_settled($node, 'postgres', 'mes');

check_account(committed($node, 'postgres', 'session = 1'),
	$broker->received('q'), 'no answer');
check_account(committed($node, 'postgres', 'session = 2'),
	$broker->received('r'), 'another server');

finish_node($node);
done_testing();

# Undelivered messages and dead letters survive pg_dump; what was delivered is
# not delivered again; the copy stays silent until it is adopted.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('dump');
my $node = new_node('main', conf => "amqp_outbox.default_server = 'mes'");

sub publish
{
	my ($database, $prefix, $count, $key, $server) = @_;

	$node->safe_psql($database,
		"SELECT count(amqp_publish('', '$key', 'x', message_id => '$prefix ' || i,
				server => '" . ($server // 'mes') . "'))
			FROM generate_series(1, $count) i");
	return;
}

create_server($node, 'postgres', 'mes', $broker, unroutable => 'dead_letter');
$broker->declare_queue('q');
publish('postgres', 'delivered', 300, 'q');
publish('postgres', 'dead', 3, 'nowhere');
wait_settled($node, 'postgres');
is($broker->fields('q', 'message_id'), 300, 'the first messages arrived');

# undelivered ones: the broker is out of reach
$node->safe_psql('postgres', "ALTER SERVER mes OPTIONS (SET port '1')");
wait_for($node, 'postgres',
	"SELECT last_error IS NOT NULL FROM amqp_outbox.server_status");
publish('postgres', 'pending', 200, 'q');

# and the first ones to a server whose worker has yet to send anything
create_server($node, 'postgres', 'erp', $broker, port => 1);
$broker->declare_queue('r');
publish('postgres', 'first', 10, 'r', 'erp');

# a stop in good order: to the dump nothing is in doubt
$node->restart;

my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump.sql';
$node->command_ok([ 'pg_dump', '-f', $dump, $node->connstr('postgres') ],
	'pg_dump');
my $archive = PostgreSQL::Test::Utils::tempdir() . '/dump.custom';
$node->command_ok(
	[ 'pg_dump', '-Fc', '-f', $archive, $node->connstr('postgres') ],
	'pg_dump into an archive');
$node->safe_psql('postgres', 'CREATE DATABASE copy');
$node->command_ok(
	[ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, '-d',
		$node->connstr('copy') ],
	'restore into another database');

# the copy: silent, whatever happens in it
my $port = $broker->port;
$node->safe_psql('copy', "ALTER SERVER $_ OPTIONS (SET port '$port')")
  foreach 'mes', 'erp';
publish('copy', 'new in the copy', 10, 'q');
wait_state($node, 'copy', 'mes', 'copy');
is(status($node, 'copy', 'mes', 'backlog'), 210, 'the copy holds what was not delivered');
is(status($node, 'copy', 'mes', 'dead_letters'), 3, 'and the dead letters');
is($broker->count('q'), 0, 'the copy publishes nothing');

# a worker that is started anew does not change that
$node->restart;
wait_state($node, 'copy', 'mes', 'copy');
is($broker->count('q'), 0, 'nor after a restart');

$node->safe_psql('copy', 'SELECT amqp_outbox.adopt()');
wait_settled($node, 'copy');
my @received = @{ $broker->received_marked('q') };
is_deeply(
	[ map { $_->[0] } @received ],
	[ (map { "pending $_" } 1 .. 200), (map { "new in the copy $_" } 1 .. 10) ],
	'adopted, it publishes what was pending, once and in order');
is(scalar(grep { $_->[0] =~ /^pending/ && !$_->[2] } @received),
	0, 'all of it marked: the original may have sent it since');

@received = @{ $broker->received_marked('r') };
is(scalar(@received), 10, 'and what no worker had tried to send');
is(scalar(grep { !$_->[2] } @received),
	0, 'that is marked as well: no receipt says that it was not sent since');

# the original is not disturbed
$node->safe_psql('postgres', "ALTER SERVER mes OPTIONS (SET port '$port')");
wait_settled($node, 'postgres', 'mes');
is($broker->fields('q', 'message_id'), 200, 'the original delivers its own');

# Another copy, where somebody set the counter of ids before the rows were there.
$node->safe_psql('postgres', 'CREATE DATABASE early');
$node->command_ok(
	[ 'pg_restore', '-d', $node->connstr('early'), '--section', 'pre-data',
		$archive ],
	'restore of the definitions');
is( $node->safe_psql('early',
		'SELECT amqp_outbox.leaf(); SELECT next_id FROM amqp_outbox.horizon()'),
	"0\n1", 'the counter is set');
$node->command_ok(
	[ 'pg_restore', '-d', $node->connstr('early'), '--section', 'data',
		'--section', 'post-data', $archive ],
	'restore of the rows');
$node->safe_psql('early',
	"ALTER SERVER mes OPTIONS (SET port '$port'); SELECT amqp_outbox.adopt()");
is( $node->safe_psql('early',
		'SELECT next_id > (SELECT max(id) FROM amqp_outbox.outbox)
			FROM amqp_outbox.horizon()'),
	't', 'adopted: new ids are larger than those that were restored');
publish('early', 'new', 10, 'q');
wait_settled($node, 'early', 'mes');
is_deeply(
	[ map { $_->[0] } $broker->fields('q', 'message_id') ],
	[ (map { "pending $_" } 1 .. 200), (map { "new $_" } 1 .. 10) ],
	'and new messages follow them');

finish_node($node);
done_testing();

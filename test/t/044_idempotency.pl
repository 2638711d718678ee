# Idempotency keys outlive the delivery of their message, not their retention.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('idempotency');
my $node = new_node('main');

create_server($node, 'postgres', 'mes', $broker);
$broker->declare_queue('q');

sub publish
{
	my ($id, $key) = @_;

	return $node->safe_psql('postgres',
		"SELECT amqp_publish('', 'q', 'x'::text, message_id => '$id', idempotency_key => '$key')");
}

is(publish('first', 'k'), 'first', 'the first one');
wait_settled($node, 'postgres');
is(publish('second', 'k'), 'first', 'the second one, after delivery');
wait_settled($node, 'postgres');
is_deeply([ map { $_->[0] } $broker->fields('q', 'message_id') ],
	['first'], 'only one is sent');

# the keys of a restored database count as well
$node->command_ok(
	[ 'pg_dump', '-f', "$node->{_basedir}/dump.sql", $node->connstr('postgres') ],
	'dump');
$node->safe_psql('postgres', 'CREATE DATABASE restored');
$node->command_ok(
	[
		'psql', '-qAtX', '-v', 'ON_ERROR_STOP=1', '-o', '/dev/null', '-f',
		"$node->{_basedir}/dump.sql", $node->connstr('restored')
	],
	'restore');
is( $node->safe_psql('restored',
		"SELECT amqp_publish('', 'q', 'x'::text, idempotency_key => 'k')"),
	'first',
	'a key that was dumped and restored');

# more than go in one transaction
$node->safe_psql('postgres',
	"SELECT count(amqp_publish('', 'q', 'x'::text, idempotency_key => 'many' || i))
		FROM generate_series(1, 2500) i");
wait_for($node, 'postgres',
	"SELECT max(claimed_at) < clock_timestamp() - interval '1 s'
		FROM amqp_outbox.idempotency_key",
	'all keys are older than a second');
$node->safe_psql('postgres', "ALTER SERVER mes OPTIONS (ADD idempotency_retention '1s')");
wait_for($node, 'postgres',
	'SELECT count(*) = 0 FROM amqp_outbox.idempotency_key',
	'keys that are too old are removed');
is(publish('third', 'k'), 'third', 'and their messages can be published again');

# without a worker the key of the server is made where it is needed; a DROP
# SERVER that comes first is waited for
$node->safe_psql('postgres', 'ALTER SYSTEM SET amqp_outbox.enabled = off; SELECT pg_reload_conf()');
wait_for($node, 'postgres',
	"SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'amqp_outbox worker'",
	'no worker');
$node->safe_psql('postgres', 'CREATE SERVER gone FOREIGN DATA WRAPPER amqp_outbox');
my $ddl = $node->background_psql('postgres');
$ddl->query_safe('BEGIN; DROP SERVER gone');
my $session = $node->background_psql('postgres', on_error_stop => 0);
$session->query_until(qr/begun/,
	"\\echo begun\nSELECT amqp_publish('', 'q', 'x'::text, server => 'gone', idempotency_key => 'k');\n");
wait_for($node, 'postgres',
	"SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted
		AND classid = 'pg_foreign_server'::regclass)",
	'a session that waits for the DROP');
$ddl->query_safe('COMMIT');
$session->quit;
like($session->{stderr}, qr/ERROR:  the server was dropped by another session/,
	'a server that is being dropped');
$ddl->quit;

finish_node($node);
done_testing();

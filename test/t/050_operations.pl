# What the owner of a server does to its messages: pause and resume, limits of
# the rate, requeue, discard and replay.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('operations');
my $node = new_node('main');

create_server($node, 'postgres', 'mes', $broker, unroutable => 'dead_letter');
create_server($node, 'postgres', 'erp', $broker, unroutable => 'dead_letter');
$broker->declare_queue('q');
$node->safe_psql('postgres', <<'END');
CREATE ROLE owner;
CREATE ROLE other;
GRANT USAGE ON FOREIGN DATA WRAPPER amqp_outbox TO owner;
CREATE USER MAPPING FOR owner SERVER mes OPTIONS (user 'guest', password 'guest');
ALTER SERVER mes OWNER TO owner;
END

sub sql
{
	my $sql = shift;

	return $node->safe_psql('postgres', $sql);
}

sub as_owner
{
	my $sql = shift;

	return sql("SET ROLE owner; $sql");
}

sub refused
{
	my ($role, $sql) = @_;
	my ($ret, $stdout, $stderr) =
	  $node->psql('postgres', "\\set VERBOSITY verbose\nSET ROLE $role; $sql");

	return $stderr;
}

sub publish
{
	my ($id, $arguments) = @_;

	return sql("SELECT amqp_publish('', 'q', 'x'::text, message_id => '$id', server => 'mes'"
		  . (defined $arguments ? ", $arguments" : '') . ')');
}

sub ids
{
	return [ map { $_->[0] } $broker->fields('q', 'message_id') ];
}

#
# Pause
#

publish('before');
wait_settled($node, 'postgres');
as_owner("SELECT amqp_outbox.pause('mes')");
wait_state($node, 'postgres', 'mes', 'paused');
publish('paused');
sql("SELECT amqp_publish('', 'q', 'x'::text, message_id => 'other', server => 'erp')");
wait_settled($node, 'postgres', 'erp');
is_deeply(ids(), [ 'before', 'other' ], 'a paused server gets nothing, others do');
is(status($node, 'postgres', 'mes', 'backlog'), 1, 'what is published waits');
is(status($node, 'postgres', 'mes', 'disconnected_since'), '', 'and nobody misses it');
is(sql("SELECT rule || ' ' || level || ' ' || detail FROM amqp_outbox.health
		WHERE server = 'mes' AND level <> 'ok'"),
	'worker warning paused: see amqp_outbox.resume()', 'but health says so');
wait_true('its connection is closed',
	sub { 1 == ($broker->ctl('list_connections', '--silent', 'user') =~ tr/\n//) });

# for as long as nobody resumes it
as_owner("SELECT amqp_outbox.pause('mes')");
$node->restart;
wait_state($node, 'postgres', 'mes', 'paused');
wait_state($node, 'postgres', 'erp', 'connected');
is(status($node, 'postgres', 'mes', 'backlog'), 1, 'also after a restart');
as_owner("SELECT amqp_outbox.resume('mes')");
wait_settled($node, 'postgres');
is_deeply(ids(), ['paused'], 'then it goes on');
as_owner("SELECT amqp_outbox.resume('mes')");

# what is in flight is finished first
sql("SELECT count(amqp_publish('', 'q', i::text, server => 'mes')) FROM generate_series(1, 20000) i");
as_owner("SELECT amqp_outbox.pause('mes')");
wait_state($node, 'postgres', 'mes', 'paused');
as_owner("SELECT amqp_outbox.resume('mes')");
wait_settled($node, 'postgres');
is_deeply([ map { $_->[0] } $broker->fields('q', 'body') ],
	[ 1 .. 20000 ], 'a pause in the middle: nothing twice, all in order');

like(refused('other', "SELECT amqp_outbox.pause('mes')"),
	qr/42501: must be owner of foreign server mes/, "pause: the owner's");
like(refused('other', "SELECT amqp_outbox.resume('mes')"),
	qr/42501: must be owner of foreign server mes/, "resume: the owner's");
like(refused('owner', "SELECT amqp_outbox.pause('nowhere')"),
	qr/42704: server "nowhere" does not exist/, 'pause: no such server');

#
# Rates
#

# How long so many messages of so many bytes take, from the first to the last.
sub seconds
{
	my ($count, $bytes) = @_;

	sql("SELECT amqp_outbox.pause('mes')");
	wait_state($node, 'postgres', 'mes', 'paused');
	sql("SELECT count(amqp_publish('', 'q', repeat('x', $bytes), server => 'mes'))
		FROM generate_series(1, $count)");
	sql("SELECT amqp_outbox.resume('mes')");
	wait_state($node, 'postgres', 'mes', 'connected');
	my $since = sql("SELECT extract(epoch FROM since)
		FROM amqp_outbox.server_status WHERE server = 'mes'");
	wait_settled($node, 'postgres');
	ids();
	return sql("SELECT extract(epoch FROM max(settled_at)) - $since
		FROM amqp_outbox.receipt");
}

sql("ALTER SERVER mes OPTIONS (ADD rate_limit '100')");
cmp_ok(seconds(200, 1), '>=', 1.8, '200 messages at 100 a second');
sql("ALTER SERVER mes OPTIONS (DROP rate_limit, ADD rate_limit_bytes '10000')");
cmp_ok(seconds(10, 2000), '>=', 1.7, '20,000 bytes at 10,000 a second');
cmp_ok(seconds(2, 15000), '>=', 1.4, 'one that is larger than a second allows');
sql("ALTER SERVER mes OPTIONS (SET rate_limit_bytes '0')");

#
# Dead letters
#

foreach my $server ('mes', 'erp')
{
	sql("SELECT amqp_publish('', 'nowhere', 'x'::text, message_id => '$server ' || i, server => '$server')
		FROM generate_series(1, 2) i");
}
wait_for($node, 'postgres', 'SELECT sum(dead_letters) = 4 FROM amqp_outbox.server_status',
	'four dead letters');
like(refused('owner', "SELECT * FROM amqp_outbox.requeue('erp')"),
	qr/42501: must be owner of foreign server erp/, "requeue: the owner's");
like(refused('other', "SELECT * FROM amqp_outbox.discard('mes')"),
	qr/42501: must be owner of foreign server mes/, "discard: the owner's");
is(sql('SET ROLE other; SELECT count(*) FROM amqp_outbox.discard()'),
	'0', 'without a name: those of the own servers');
is(as_owner("SELECT * FROM amqp_outbox.discard(message_id => 'mes 1')") =~ s/\|\d+\|/|/r,
	'mes|mes 1', 'the owner discards');
is(as_owner('SELECT count(*) FROM amqp_outbox.discard()'), '1', 'and all that are left');
is(sql("SELECT string_agg(message_id || ' ' || status, ', ' ORDER BY message_id)
		FROM amqp_outbox.message WHERE routing_key = 'nowhere'"),
	'erp 1 dead, erp 2 dead, mes 1 discarded, mes 2 discarded',
	'nothing of another server');
$broker->declare_queue('nowhere');
is(sql("SELECT requeued_message_id FROM amqp_outbox.requeue('erp', reason => 'unroutable', exchange => '')
		ORDER BY 1"), "erp 1\nerp 2", 'a superuser requeues those of any server');
wait_settled($node, 'postgres');
is($broker->count('nowhere'), 2, 'and they arrive');

#
# Replay
#

publish('r1', "headers => '{\"plant\": \"P1\"}', type => 'order', priority => 3,
	expiration => '1 hour', ordering_key => 'k'");
publish('r2', "delay => '10 ms', ttl => '1 hour'");
publish('r3');
wait_settled($node, 'postgres');
ids();
my $middle = sql('SELECT clock_timestamp()');
sql("SELECT amqp_publish('', 'q', 'x'::text, message_id => 'r4', server => 'mes')");
wait_settled($node, 'postgres');
ids();

is(as_owner("SELECT amqp_outbox.replay('mes', message_id => 'r1')"), 1, 'replay: by id');
wait_settled($node, 'postgres');
my ($message) = $broker->messages('q');
is_deeply(
	[
		$message->{properties}{message_id}, $message->{properties}{type},
		$message->{properties}{priority}, $message->{properties}{expiration},
		$message->{properties}{headers}{'x-replay'}{value},
		$message->{properties}{headers}{plant}{value}
	],
	[ 'r1', 'order', 3, 3600000, JSON::PP::true, 'P1' ],
	'replay: the same message, marked');

is(as_owner("SELECT amqp_outbox.replay('mes', delivered_since => '$middle', routing_key => 'q')"),
	2, 'replay: by time');
wait_settled($node, 'postgres');
is_deeply(ids(), [ 'r4', 'r1' ], 'replay: in the former order');
is(as_owner("SELECT amqp_outbox.replay('mes', delivered_before => '$middle', message_id => 'r2')"),
	1, 'replay: one that was scheduled');
wait_settled($node, 'postgres');
is_deeply(ids(), ['r2'], 'replay: at once');
is(as_owner("BEGIN; SELECT amqp_outbox.replay('mes', message_id => 'r3'); ROLLBACK"),
	1, 'replay: rolled back');
is(as_owner("SELECT amqp_outbox.replay('mes', message_id => 'never')"), 0, 'replay: unknown');
is(as_owner("SELECT amqp_outbox.replay('mes', id => id) FROM (SELECT 0 AS id) i"), 0, 'replay: no such id');
wait_settled($node, 'postgres');
is_deeply(ids(), [], 'replay: nothing of these');

like(refused('owner', "SELECT amqp_outbox.replay('mes')"),
	qr/22023: replay needs to know what to send again.*HINT:  Give delivered_since, delivered_before, id, message_id or routing_key./s, 'replay: all is not meant');
like(refused('owner', "SELECT amqp_outbox.replay(NULL, id => 1)"),
	qr/22004: argument "server" of replay must not be null/, 'replay: no server');
like(refused('owner', "SELECT amqp_outbox.replay('erp', id => 1)"),
	qr/42501: must be owner of foreign server erp/, "replay: the owner's");
like(refused('other', "SELECT amqp_outbox.replay('mes', id => 1)"),
	qr/42501: must be owner of foreign server mes/, 'replay: nor anybody else\'s');

finish_node($node);
done_testing();

# What is declared is there: before the first message, at every connection, when
# it changes; what the broker refuses is shown with its words, is not tried in a
# loop and keeps no message back.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxPeer;
use AmqpOutboxTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('topology');
my $node = new_node('main', conf => 'max_prepared_transactions = 5');
my $log = $broker->dir . '/log/rabbit.log';

sub sql
{
	my ($sql, $database) = @_;

	return $node->safe_psql($database // 'postgres', $sql);
}

sub publish
{
	my ($exchange, $key, $body) = @_;

	return sql("SELECT amqp_publish('$exchange', '$key', '$body')");
}

# How many channels the broker has closed because it did not like something.
sub channels_closed
{
	my $log = PostgreSQL::Test::Utils::slurp_file($log);

	return () = $log =~ /caused a channel exception/g;
}

sub connections_closed
{
	my $log = PostgreSQL::Test::Utils::slurp_file($log);

	return () = $log =~ /caused a connection exception/g;
}

# Wait until the broker has answered to everything.
sub wait_answered
{
	my ($database) = @_;

	wait_for(
		$node,
		$database // 'postgres',
		"SELECT count(*) = 0 FROM amqp_outbox.topology
			WHERE state IN ('pending', 'deleting')",
		'an answer to all that is declared');
	return;
}

sub wait_item
{
	my ($name, $state) = @_;

	wait_for($node, 'postgres',
		"SELECT state = '$state' FROM amqp_outbox.topology WHERE name = '$name'
			AND kind IN ('queue', 'exchange')", "$name $state");
	return;
}

sub item
{
	my ($name, $columns) = @_;

	return sql("SELECT $columns FROM amqp_outbox.topology WHERE name = '$name'");
}

sub queues
{
	my @columns = @_;

	return join("\n",
		sort split(/\n/, $broker->ctl('-q', 'list_queues', '--no-table-headers', @columns)));
}

sub exists_at_broker
{
	my ($kind, $name) = @_;

	return $broker->ctl('-q', "list_${kind}s", '--no-table-headers', 'name') =~ /^\Q$name\E$/m;
}

sub bodies
{
	my ($queue) = @_;

	return join(' ', map { $_->[0] } $broker->fields($queue, 'body'));
}

#
# Before the first message, in the order in which it must be made; declared in
# another one, in the transaction that publishes
#

create_server($node, 'postgres', 'mes', $broker);
sql(<<'END');
BEGIN;
SELECT amqp_outbox.bind_queue('mes', 'orders', 'audit', 'plant1.#');
SELECT amqp_outbox.bind_exchange('mes', 'audit', 'plant', '#');
SELECT amqp_outbox.bind_queue('mes', 'dead', 'dead letters');
SELECT amqp_outbox.declare_queue('mes', 'orders', 'classic', arguments =>
	'{"x-dead-letter-exchange": "dead letters", "x-message-ttl": 86400000, "x-max-length": 100000}');
SELECT amqp_outbox.declare_queue('mes', 'dead', 'classic');
SELECT amqp_outbox.declare_exchange('mes', 'plant');
SELECT amqp_outbox.declare_exchange('mes', 'audit', internal => true);
SELECT amqp_outbox.declare_exchange('mes', 'dead letters', 'fanout');
SELECT amqp_publish('plant', 'plant1.order', 'first');
COMMIT;
END
wait_settled($node, 'postgres');
is(bodies('orders'), 'first', 'the first message finds its queue');
is(status($node, 'postgres', 'mes', 'returned'), 0, 'at once');
is( sql('SELECT count(*), count(*) FILTER (WHERE state = $$asserted$$
		AND since IS NOT NULL AND last_error IS NULL AND what_to_do IS NULL)
		FROM amqp_outbox.topology'),
	'8|8', 'all is shown as asserted');
my ($orders) = queues('name', 'arguments') =~ /^orders\t(.*)$/m;
is( join(',', sort($orders =~ /\{[^}]*\}/g)),
	'{"x-dead-letter-exchange","dead letters"},{"x-max-length",100000},'
	  . '{"x-message-ttl",86400000},{"x-queue-type","classic"}',
	'arguments have arrived, with their types');

#
# While connected: one more, in the transaction that publishes to it
#

my $since = status($node, 'postgres', 'mes', 'since');

foreach my $i (1 .. 10)
{
	sql(<<"END");
BEGIN;
SELECT amqp_publish('plant', 'plant$i.x', 'to $i');
SELECT amqp_outbox.declare_queue('mes', 'later $i', NULL);
SELECT amqp_outbox.bind_queue('mes', 'later $i', 'plant', 'plant$i.x');
COMMIT;
END
}
wait_settled($node, 'postgres');
is(join(' ', map { bodies("later $_") } 1 .. 10),
	join(' ', map { "to $_" } 1 .. 10), 'declared and published to at once');
is(status($node, 'postgres', 'mes', 'returned'), 0, 'and never before');
is(status($node, 'postgres', 'mes', 'since'), $since, 'on the same connection');

# and by a transaction that is prepared first
sql("BEGIN; SELECT amqp_outbox.declare_queue('mes', 'prepared', 'classic');
	PREPARE TRANSACTION 'declared'");
is(sql("SELECT count(*) FROM amqp_outbox.topology WHERE name = 'prepared'"),
	0, 'prepared, it is not there');
sql("COMMIT PREPARED 'declared'");
wait_item('prepared', 'asserted');
pass('committed, it is asserted');

#
# Quorum queues and streams
#

sql("SELECT amqp_outbox.declare_queue('mes', 'safe')");
sql("SELECT amqp_outbox.declare_queue('mes', 'log', 'stream', arguments => '{\"x-max-age\": \"7D\"}')");
wait_answered();
publish('', $_, $_) foreach 'safe', 'log';
wait_settled($node, 'postgres');
like(queues('name', 'type', 'messages'), qr/^log\s+stream/m, 'a stream');
like(queues('name', 'type', 'messages'), qr/^safe\s+quorum/m, 'a quorum queue');
is(bodies('safe'), 'safe', 'which takes messages');

#
# The broker loses everything: at the next connection it is there again, before
# the first message
#

$broker->ctl('stop_app');
$broker->ctl('reset');
wait_for($node, 'postgres',
	"SELECT state IN ('waiting', 'connecting') FROM amqp_outbox.server_status");
publish('plant', 'plant1.order', 'again');
$broker->ctl('start_app');
wait_settled($node, 'postgres');
is(bodies('orders'), 'again', 'all is there again after a reset');
is(status($node, 'postgres', 'mes', 'returned'), 0, 'before the first message');

#
# Equal assertions write nothing
#

my $rows = sql('SELECT array_agg((s.ctid, s.xmin) ORDER BY s.item_id)
	FROM amqp_outbox.topology_state s');
foreach my $i (1 .. 3)
{
	reconnect($node, 'postgres', 'mes',
		"ALTER SERVER mes OPTIONS (" . ($i == 1 ? 'ADD' : 'SET') . " heartbeat '2$i')");
	publish('plant', 'plant1.order', "after $i");
	wait_settled($node, 'postgres');
}
is( sql('SELECT array_agg((s.ctid, s.xmin) ORDER BY s.item_id)
		FROM amqp_outbox.topology_state s'),
	$rows, 'what is asserted again leaves no dead rows');
is(bodies('orders'), 'after 1 after 2 after 3', 'and messages go on');

#
# A conflict: with the broker's words, without a loop, and nobody else's business
#

my $closed = channels_closed();

$broker->declare_queue('theirs');
$broker->declare_exchange('theirs too', 'direct');
sql(<<'END');
BEGIN;
SELECT amqp_outbox.declare_exchange('mes', 'theirs too', 'topic');
SELECT amqp_outbox.declare_queue('mes', 'theirs', 'classic', arguments => '{"x-message-ttl": 1000}');
SELECT amqp_outbox.declare_queue('mes', 'wrong', 'classic', arguments => '{"x-message-ttl": "soon"}');
SELECT amqp_outbox.bind_queue('mes', 'missing', 'plant');
SELECT amqp_outbox.declare_queue('mes', 'zz', 'classic');
COMMIT;
END
wait_answered();
is( sql("SELECT name, state, reply_code, last_error FROM amqp_outbox.topology
		WHERE state <> 'asserted' ORDER BY kind, name"),
	<<'END' =~ s/\n$//r, 'conflicts with the words of the broker');
theirs too|conflict|406|PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'theirs too' in vhost '/': received 'topic' but current is 'direct'
theirs|conflict|406|PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue 'theirs' in vhost '/': received the value '1000' of type 'long' but current is none
wrong|conflict|406|PRECONDITION_FAILED - invalid arg 'x-message-ttl' for queue 'wrong' in vhost '/': "expected integer, got longstr"
missing|conflict|404|NOT_FOUND - no queue 'missing' in vhost '/'
END
my $again = 'then call the same function again, or have the extension\'s owner call amqp_outbox.wake().';
is( sql("SELECT DISTINCT reply_code, what_to_do FROM amqp_outbox.topology
		WHERE state = 'conflict' ORDER BY 1"),
	"404|Declare what it names, or create it at the broker; $again\n"
	  . "406|Declare it as the broker has or takes it, or delete what the broker has; $again",
	'and what to do');
ok(exists_at_broker('queue', 'zz'), 'others are asserted');
publish('plant', 'plant1.order', "beside $_") foreach 1 .. 3;
wait_settled($node, 'postgres');
is(bodies('orders'), 'beside 1 beside 2 beside 3', 'messages flow');
wait_true('the log of the broker', sub { channels_closed() - $closed >= 4 });
is(channels_closed() - $closed, 4, 'each was tried once');
is(scalar(log_lines($node, qr/could not assert/)), 4, 'and logged once');

# a connection later
$rows = sql('SELECT array_agg((s.ctid, s.xmin) ORDER BY s.item_id)
	FROM amqp_outbox.topology_state s');
reconnect($node, 'postgres', 'mes', "ALTER SERVER mes OPTIONS (SET heartbeat '29')");
publish('plant', 'plant1.order', 'beside 4');
wait_settled($node, 'postgres');
is(bodies('orders'), 'beside 4', 'messages flow after a new connection');
wait_true('the log of the broker', sub { channels_closed() - $closed >= 8 });
is(channels_closed() - $closed, 8, 'which tries each once more');
is( sql('SELECT array_agg((s.ctid, s.xmin) ORDER BY s.item_id)
		FROM amqp_outbox.topology_state s'),
	$rows, 'and writes nothing');
is(scalar(log_lines($node, qr/could not assert/)), 4, 'nor logs what is known');

# a queue of before there were types is a classic one
$broker->declare_queue('older');
sql("SELECT amqp_outbox.declare_queue('mes', 'older', 'classic')");
wait_item('older', 'asserted');
pass('a queue that has no type at the broker');

# repaired: by another declaration, at the broker, by what a binding lacked
sql("SELECT amqp_outbox.declare_queue('mes', 'theirs', NULL)");
wait_item('theirs', 'asserted');
sql("SELECT amqp_outbox.declare_queue('mes', 'missing', 'classic')");
wait_answered();
is(item('missing', 'DISTINCT state'), 'asserted',
	'a binding that lacked its queue is tried when that is declared');
is(channels_closed() - $closed, 8, 'and the others are not');
$broker->tool('delete-exchange', 'theirs too');
sql('SELECT amqp_outbox.wake()');
wait_item('theirs too', 'asserted');
sql("SELECT amqp_outbox.declare_queue('mes', 'wrong', 'classic', arguments => '{\"x-message-ttl\": 1000.0}')");
wait_item('wrong', 'conflict');
sql("SELECT amqp_outbox.declare_queue('mes', 'wrong', 'classic', arguments => '{\"x-message-ttl\": 1000}')");
wait_item('wrong', 'asserted');
is(sql("SELECT count(*) FROM amqp_outbox.topology WHERE state <> 'asserted'"),
	0, 'all repaired');

#
# Not allowed: as little a loop
#

$broker->ctl('set_permissions', 'guest', '^secret$|^orders$', '.*', '.*');
sql("SELECT amqp_outbox.declare_queue('mes', 'forbidden', 'classic')");
wait_answered();
like(item('forbidden', "state || ' ' || reply_code || ' ' || last_error || ' ' || what_to_do"),
	qr/^conflict 403 ACCESS_REFUSED - (configure )?access to queue 'forbidden' in vhost '\/' refused for user 'guest' Give the broker's user the right/,
	'refused for lack of rights');
$broker->ctl('set_permissions', 'guest', '.*', '.*', '.*');
sql("SELECT amqp_outbox.declare_queue('mes', 'forbidden', 'classic')");
wait_item('forbidden', 'asserted');
pass('and tried again when it is declared again');

#
# What makes the broker close the connection
#

sql("SELECT amqp_outbox.declare_exchange('mes', 'plugin', 'x-of-a-plugin');
	SELECT amqp_outbox.declare_queue('mes', 'zzz', 'classic');");
wait_item('plugin', 'conflict');
wait_item('zzz', 'asserted');
wait_state($node, 'postgres', 'mes', 'connected');
# since RabbitMQ 4.0 only the channel, with another code
my $closes = item('plugin', 'reply_code') == 503;
like(
	item('plugin', "reply_code || ' ' || last_error || ' ' || what_to_do"),
	$closes
	? qr/^503 COMMAND_INVALID - (unknown|invalid) exchange type 'x-of-a-plugin' Have the broker know .*  Until then it is left out/
	: qr/^406 PRECONDITION_FAILED - unknown exchange type 'x-of-a-plugin' Declare it as the broker has or takes it/,
	'an unknown type of exchange');
$closed = connections_closed();
publish('plant', 'plant1.order', 'beside it');
reconnect($node, 'postgres', 'mes', "ALTER SERVER mes OPTIONS (SET heartbeat '28')");
publish('plant', 'plant1.order', 'and after it');
wait_settled($node, 'postgres');
is(bodies('orders'), 'beside it and after it', 'messages flow');
is(connections_closed(), $closed, 'and the connection stays');
sql('SELECT amqp_outbox.wake()');
wait_true('it to be tried when asked', sub { connections_closed() > $closed })
  if $closes;
sql("SELECT amqp_outbox.declare_exchange('mes', 'plugin', 'direct')");
wait_item('plugin', 'asserted');

# No channel is to be had for all this
$broker->ctl('set_user_limits', 'guest', '{"max-channels": 1}');
$closed = connections_closed();
reconnect($node, 'postgres', 'mes', "ALTER SERVER mes OPTIONS (SET heartbeat '27')");
publish('plant', 'plant1.order', 'with one channel');
wait_settled($node, 'postgres');
is( sql("SELECT DISTINCT state || ' ' || reply_code || ' ' || substr(last_error, 1, 40)
		FROM amqp_outbox.topology"),
	'conflict 530 NOT_ALLOWED - number of channels opened ', 'which is shown')
  or diag(sql('SELECT DISTINCT state, reply_code, last_error FROM amqp_outbox.topology'));
wait_true('the log of the broker', sub { connections_closed() > $closed });
is(connections_closed() - $closed, 1, 'one connection was closed for it');
$broker->ctl('clear_user_limits', 'guest', 'max-channels');
sql('SELECT amqp_outbox.wake()');
wait_for($node, 'postgres',
	"SELECT bool_and(state = 'asserted') FROM amqp_outbox.topology", 'all asserted');
pass('with another channel all is asserted');
is(bodies('orders'), 'with one channel', 'and messages went without it');

#
# Taking it back
#

sql("SELECT amqp_outbox.undeclare_queue('mes', 'zz');
	SELECT amqp_outbox.undeclare_exchange('mes', 'plugin');
	SELECT amqp_outbox.unbind_queue('mes', 'missing', 'plant');
	SELECT amqp_outbox.declare_queue('mes', 'a mark', 'classic')");
wait_item('a mark', 'asserted');
ok(exists_at_broker('queue', 'zz') && exists_at_broker('exchange', 'plugin'),
	'what is taken back stays at the broker');
$broker->ctl('stop_app');
$broker->ctl('reset');
$broker->ctl('start_app');
wait_true('the queues after a reset', sub { exists_at_broker('queue', 'orders') });
wait_answered();
wait_state($node, 'postgres', 'mes', 'connected');
sql('SELECT amqp_outbox.wake()');
sql("SELECT amqp_outbox.declare_queue('mes', 'another mark', 'classic')");
wait_item('another mark', 'asserted');
ok(!exists_at_broker('queue', 'zz') && !exists_at_broker('exchange', 'plugin'),
	'but is not made again');

# deleted there: but not with what is in it
publish('', 'zzz', 'kept');
wait_settled($node, 'postgres');
sql("SELECT amqp_outbox.undeclare_queue('mes', 'zzz', delete_at_broker => true)");
wait_item('zzz', 'not deleted');
like(item('zzz', "reply_code || ' ' || last_error || ' ' || what_to_do"),
	qr/^406 PRECONDITION_FAILED - queue 'zzz' in vhost '\/' not empty See to it at the broker/,
	'a queue with a message is not deleted');
is(bodies('zzz'), 'kept', 'and keeps it');
sql('SELECT amqp_outbox.wake()');
wait_for($node, 'postgres',
	"SELECT count(*) = 0 FROM amqp_outbox.topology WHERE name = 'zzz'", 'zzz deleted');
ok(!exists_at_broker('queue', 'zzz'), 'empty, it is');

sub bindings
{
	return $broker->ctl('-q', 'list_bindings', '--no-table-headers',
		'source_name', 'destination_name', 'destination_kind', 'routing_key');
}

# bindings and what they bind, in the order in which it can be done
sql(<<'END');
BEGIN;
SELECT amqp_outbox.declare_queue('mes', 'bound', NULL);
SELECT amqp_outbox.bind_queue('mes', 'bound', 'headed', arguments => '{"plant": 1, "x-match": "all"}');
SELECT amqp_outbox.bind_exchange('mes', 'headed', 'plant', 'h');
SELECT amqp_outbox.declare_exchange('mes', 'headed', 'headers');
SELECT amqp_outbox.unbind_queue('mes', 'orders', 'audit', 'plant1.#', delete_at_broker => true);
SELECT amqp_outbox.bind_queue('mes', 'orders', 'plant', 'plant1.order');
COMMIT;
END
wait_answered();
like(bindings(), qr/^plant\theaded\texchange\th$/m, 'an exchange is bound');
like(bindings(), qr/^headed\tbound\tqueue\t$/m, 'a queue is bound');
unlike(bindings(), qr/^audit\torders/m, 'and another one no more');
sql(<<'END');
BEGIN;
SELECT amqp_outbox.unbind_queue('mes', 'bound', 'headed', arguments => '{"plant": 1, "x-match": "all"}', delete_at_broker => true);
SELECT amqp_outbox.unbind_exchange('mes', 'headed', 'plant', 'h', delete_at_broker => true);
SELECT amqp_outbox.undeclare_exchange('mes', 'headed', delete_at_broker => true);
SELECT amqp_outbox.undeclare_queue('mes', 'bound', true);
SELECT amqp_outbox.undeclare_queue('mes', 'safe', true, false, false);
COMMIT;
END
wait_answered();
is( sql("SELECT count(*) FROM amqp_outbox.topology
		WHERE name IN ('bound', 'headed', 'safe') OR source IN ('bound', 'headed')"),
	0, 'all of it taken back');
unlike(bindings(), qr/headed|bound/, 'the bindings are gone');
ok( !exists_at_broker('exchange', 'headed') && !exists_at_broker('queue', 'bound')
	  && !exists_at_broker('queue', 'safe'),
	'and what they bound');
is(sql('SELECT count(*) FROM amqp_outbox.topology_state s WHERE NOT EXISTS
		(SELECT FROM amqp_outbox.topology_item i WHERE i.item_id = s.item_id)'),
	0, 'nothing is left of them');

# what is gone already is no trouble
$broker->tool('delete-queue', 'another mark');
sql("SELECT amqp_outbox.bind_queue('mes', 'a mark', 'plant', 'm')");
wait_answered();
$broker->tool('delete-queue', 'a mark');
sql("SELECT amqp_outbox.unbind_queue('mes', 'a mark', 'plant', 'm', delete_at_broker => true);
	SELECT amqp_outbox.undeclare_queue('mes', 'a mark', true);
	SELECT amqp_outbox.undeclare_queue('mes', 'another mark', true);");
wait_for($node, 'postgres',
	"SELECT count(*) = 0 FROM amqp_outbox.topology WHERE name LIKE '%mark'", 'what is not there deleted');
pass('to delete what is not there');

#
# A session that has an item locked does not keep the worker waiting
#

my $session = $node->background_psql('postgres');

sql("SELECT amqp_outbox.declare_queue('mes', 'locked', 'classic')");
wait_item('locked', 'asserted');
$session->query_safe("BEGIN; SELECT amqp_outbox.declare_queue('mes', 'locked', 'classic', false)");
$broker->tool('delete-queue', 'locked');
$broker->declare_queue('locked', '--transient');
sql('SELECT amqp_outbox.wake()');
publish('plant', 'plant1.order', 'meanwhile');
wait_settled($node, 'postgres');
is(bodies('orders'), 'meanwhile', 'messages flow while an item is locked');
$session->query_safe('COMMIT');
$session->quit;
wait_item('locked', 'asserted');
wait_answered();

#
# Whoever owns the server, and whatever it is called
#

sql('ALTER SERVER mes RENAME TO plant1');
wait_state($node, 'postgres', 'plant1', 'connected');
sql("SELECT amqp_outbox.declare_queue('plant1', 'renamed', 'classic')");
wait_item('renamed', 'asserted');
is(sql('SELECT DISTINCT server FROM amqp_outbox.topology'), 'plant1',
	'a server that is renamed keeps its topology');

#
# A copy keeps its hands off until it is adopted
#

my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump.sql';

$node->restart;
$node->command_ok([ 'pg_dump', '-f', $dump, $node->connstr('postgres') ], 'pg_dump');
sql('CREATE DATABASE copy');
$node->command_ok(
	[ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, '-d', $node->connstr('copy') ],
	'restore');
is( sql('SELECT count(*), min(state) FROM amqp_outbox.topology', 'copy'),
	sql('SELECT count(*) FROM amqp_outbox.topology') . '|pending',
	'a dump has what is declared, and not what the broker said');
wait_state($node, 'copy', 'plant1', 'copy');
$broker->tool('delete-queue', 'renamed');
sql('DROP EXTENSION amqp_outbox CASCADE');
sql("SELECT amqp_outbox.declare_queue('plant1', 'of the copy', 'classic');
	SELECT amqp_outbox.wake();", 'copy');
wait_state($node, 'copy', 'plant1', 'copy');
ok(!exists_at_broker('queue', 'of the copy') && !exists_at_broker('queue', 'renamed'),
	'a copy asserts nothing');
sql('SELECT amqp_outbox.adopt()', 'copy');
wait_answered('copy');
ok(exists_at_broker('queue', 'of the copy') && exists_at_broker('queue', 'renamed'),
	'adopted, it does');

#
# A broker that does not answer keeps messages waiting, but not for ever
#

my $peer = AmqpOutboxPeer->broker;

sub method { return AmqpOutboxPeer::method(@_); }

create_server($node, 'postgres', 'silent', $broker,
	host => '127.0.0.1:' . $peer->port, connect_timeout => 4);
sql("SELECT amqp_outbox.declare_queue('silent', 'q', NULL);
	SELECT amqp_outbox.declare_queue('silent', 'q2', NULL);
	SELECT amqp_publish('', 'q', 'x', server => 'silent');");
$peer->welcome;
$peer->expect('20 10', '50 10');
wait_true('the end of the wait',
	sub { log_lines($node, qr/does not answer to the declaration of queue "q"/) });
$peer->send_bytes(method(2, 20, 11, pack('N', 0)));
$peer->expect('60 40', '', '');
$peer->send_bytes(method(1, 60, 80, pack('NNC', 0, 1, 0)));
wait_settled($node, 'postgres', 'silent');
pass('messages flow although the broker does not answer');
$peer->send_bytes(method(2, 50, 11, pack('C/a*NN', 'q', 0, 0)));
$peer->expect('50 10');
$peer->send_bytes(method(2, 50, 11, pack('C/a*NN', 'q2', 0, 0)));
wait_for($node, 'postgres',
	"SELECT bool_and(state = 'asserted') FROM amqp_outbox.topology WHERE server = 'silent'",
	'late answers');
pass('and a late answer is an answer');

# one that has nothing to delete, and says so as AMQP wants it
sql("SELECT amqp_outbox.undeclare_queue('silent', 'q2', true)");
$peer->expect('50 40');
$peer->send_bytes(method(2, 20, 40, pack('nC/a*nn', 404, 'NOT_FOUND', 50, 40)));
$peer->expect('20 41');
wait_for($node, 'postgres',
	"SELECT count(*) = 0 FROM amqp_outbox.topology WHERE name = 'q2' AND server = 'silent'",
	'q2 forgotten');
pass('what is not there is deleted');

# one that has no second channel
sql("SELECT amqp_publish('', 'q', 'x', server => 'silent')");
$peer->hang_up;
$peer->welcome(channel_max => 1);
$peer->expect('60 40', '', '');
$peer->send_bytes(method(1, 60, 80, pack('NNC', 0, 1, 0)));
wait_settled($node, 'postgres', 'silent');
wait_for($node, 'postgres',
	"SELECT bool_and(state = 'conflict') FROM amqp_outbox.topology WHERE server = 'silent'",
	'a conflict for lack of a channel');
is( sql("SELECT DISTINCT reply_code, last_error FROM amqp_outbox.topology
		WHERE server = 'silent'"),
	'|the broker allows one channel for each connection, and this needs another',
	'a broker that allows one channel');
sql('DROP SERVER silent CASCADE');

#
# A restore that is going on: there are rows, and not yet the identity
#

sql('CREATE DATABASE half');
create_server($node, 'half', 'mes', $broker);
wait_state($node, 'half', 'mes', 'connected');
sql(<<'END', 'half');
INSERT INTO amqp_outbox.server_key VALUES (1, 'mes');
INSERT INTO amqp_outbox.topology_item VALUES (gen_random_uuid(), 1, 'queue',
	'half', '', '', 'classic', true, false, false, '{}', true, false, false);
END
reconnect($node, 'half', 'mes', "ALTER SERVER mes OPTIONS (ADD heartbeat '25')");
sql("SELECT amqp_publish('', 'orders', 'x')", 'half');
wait_settled($node, 'half');
ok(!exists_at_broker('queue', 'half'), 'rows without an identity are left alone');
reconnect($node, 'half', 'mes', "ALTER SERVER mes OPTIONS (SET heartbeat '26')");
wait_answered('half');
ok(exists_at_broker('queue', 'half'), 'with one they are asserted');

#
# What the documentation shows
#

my $docs = PostgreSQL::Test::Utils::slurp_file("$AmqpOutboxTest::ROOT/docs/topology.md");
my $erp = $broker->new_vhost('docs');
my @examples = $docs =~ /^```sql\n(.*?)^```$/msg;

sql('CREATE DATABASE docs');
create_server($node, 'docs', 'erp', $erp);
foreach my $example (@examples)
{
	sql($example, 'docs');
	wait_answered('docs');
	is(sql("SELECT name, last_error FROM amqp_outbox.topology WHERE state <> 'asserted'", 'docs'),
		'', 'example: ' . (split(/\n/, $example))[0]);
}
cmp_ok(@examples, '>=', 7, 'examples of the documentation');

finish_node($node);
done_testing();

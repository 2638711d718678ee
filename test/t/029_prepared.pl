# PREPARE TRANSACTION: messages leave with COMMIT PREPARED, from any session and
# across restarts, not before it, and never after ROLLBACK PREPARED; and a
# prepared transaction holds up nobody.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('prepared');
# nobody is to wait for a prepared transaction
my $node = new_node('main',
	conf => "max_prepared_transactions = 20\nlock_timeout = '10s'");

create_server($node, 'postgres', 'mes', $broker);
create_server($node, 'postgres', 'erp', $broker);
$broker->declare_queue('q');

# A transaction that publishes these bodies, up to PREPARE or to its end.
sub publish
{
	my ($end, @bodies) = @_;

	$node->safe_psql(
		'postgres',
		'BEGIN; '
		  . join(' ',
			map { "SELECT amqp_publish('', 'q', '$_', message_id => '$_', server => 'mes');" }
			  @bodies)
		  . " $end");
	return;
}

# So many messages come, as their bodies.
sub taken
{
	my ($n, $name) = @_;

	wait_true($name, sub { $broker->count('q') >= $n });
	return join(' ',
		map { $_->[0] } map { [ split(/\t/) ] } split(/\n/,
			$broker->tool('--count', $n, '--fields', 'body', 'consume', 'q')));
}

# Messages with these bodies come, in this order.
sub come
{
	my ($bodies, $name) = @_;

	is(taken(scalar(split(/ /, $bodies)), $name), $bodies, $name);
	return;
}

# The very first message of the server, and it is only prepared.
publish("PREPARE TRANSACTION 'first'", 'a1', 'a2');
publish('COMMIT', 'b1');
come('b1', 'the others are not held up by a prepared transaction');
$node->safe_psql('postgres',
	"SELECT amqp_publish('', 'q', 'c1', server => 'erp')");
come('c1', 'nor are those to a server that nobody published to before');
is( $node->safe_psql(
		'postgres', "SELECT horizon = next_id, holder_pid FROM amqp_outbox.horizon()"),
	't|',
	'it does not hold the horizon');
$node->safe_psql('postgres', "COMMIT PREPARED 'first'");
come('a1 a2', 'COMMIT PREPARED publishes, in order');
wait_settled($node, 'postgres');
is( $node->safe_psql(
		'postgres',
		"SELECT string_agg(DISTINCT status || ' ' || attempts, ',')
			FROM amqp_outbox.message WHERE message_id LIKE 'a%'"),
	'delivered 1',
	'and they are seen as delivered')
  or diag $node->safe_psql('postgres', 'TABLE amqp_outbox.deferred');

# ROLLBACK PREPARED; savepoints; a large one
publish("PREPARE TRANSACTION 'gone'", 'lost');
$node->safe_psql('postgres', "ROLLBACK PREPARED 'gone'");
publish("SAVEPOINT s; SELECT amqp_publish('', 'q', 'lost', server => 'mes');
	ROLLBACK TO s; PREPARE TRANSACTION 'part'", 'd1');
$node->safe_psql('postgres', "COMMIT PREPARED 'part'");
come('d1', 'without what was rolled back');
publish(
	"SELECT count(amqp_publish('', 'q', 'e', server => 'mes',
		ordering_key => nullif('k' || i % 3, 'k0'))) FROM generate_series(1, 10000) i;
	PREPARE TRANSACTION 'large'");
$node->safe_psql('postgres', "COMMIT PREPARED 'large'");
is(length(taken(10000, 'ten thousand') =~ s/ //gr),
	10000, 'ten thousand at once');
wait_settled($node, 'postgres');

# Across restarts of every kind; the worker is away when it is committed.
publish("PREPARE TRANSACTION 'fast'", 'f1');
publish("PREPARE TRANSACTION 'rolled back'", 'lost');
$node->restart;
publish("PREPARE TRANSACTION 'crash'", 'f2');
my $next_id = 'SELECT next_id FROM amqp_outbox.horizon()';
my $before = $node->safe_psql('postgres', $next_id);
$node->stop('immediate');
$node->start;
is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_prepared_xacts'),
	3, 'still prepared');
publish('COMMIT', 'g1');
come('g1', 'others go on');
is($node->safe_psql('postgres', $next_id),
	$before + 1, 'with ids behind those of prepared transactions');
$node->safe_psql('postgres', "COMMIT PREPARED 'fast'");
come('f1', 'COMMIT PREPARED after a restart');
$node->safe_psql('postgres', "ROLLBACK PREPARED 'rolled back'");
$broker->stop;
$node->safe_psql('postgres', "COMMIT PREPARED 'crash'");
$broker->start;
come('f2', 'after a crash, and an outage of the broker');

# A crash right after it: whoever comes next finds it.
publish("PREPARE TRANSACTION 'unheard'", 'h1');
$node->append_conf('postgresql.conf', 'amqp_outbox.enabled = off');
$node->reload;
wait_for($node, 'postgres',
	"SELECT count(*) = 0 FROM pg_stat_activity
		WHERE backend_type = 'amqp_outbox worker'");
$node->safe_psql('postgres', "COMMIT PREPARED 'unheard'");
is( $node->safe_psql(
		'postgres', "SELECT status, attempts FROM amqp_outbox.message WHERE message_id = 'h1'"),
	'pending|0',
	'it is pending');
$node->append_conf('postgresql.conf', 'amqp_outbox.enabled = on');
$node->reload;
come('h1', 'COMMIT PREPARED that no worker heard of');

# The statement fails, or its session ends, when everything is committed: here in
# a look at the servers that comes after that.
my $locker = $node->background_psql('postgres');
foreach my $how ('cancel', 'terminate')
{
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	my $pid = $session->query_safe('SELECT pg_backend_pid()');

	publish("PREPARE TRANSACTION 'fails'", $how);
	wait_settled($node, 'postgres');
	$locker->query_safe('BEGIN');
	$locker->query_safe('LOCK TABLE pg_foreign_server IN ACCESS EXCLUSIVE MODE');
	$session->{stdin} .= "COMMIT PREPARED 'fails';\n";
	$session->{run}->pump_nb;
	wait_for($node, 'postgres',
		"SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $pid",
		'COMMIT PREPARED waits');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM pg_prepared_xacts'),
		0, "$how: it is committed");
	$node->safe_psql('postgres', "SELECT pg_${how}_backend($pid)");
	wait_for($node, 'postgres',
		"SELECT NOT EXISTS (SELECT FROM pg_stat_activity
			WHERE pid = $pid AND state = 'active')",
		'its end');
	$locker->query_safe('ROLLBACK');
	wait_true("$how: its message", sub { $broker->count('q') == 1 });
	is(taken(1), $how, "$how: and published, although COMMIT PREPARED failed");
	eval { $session->quit };
}
$locker->quit;

# Committed while a deferred message, due later than it, is in flight.
publish("PREPARE TRANSACTION 'early'", 'l1');
$node->safe_psql('postgres',
	"SELECT amqp_publish('', 'later', 'x', server => 'mes')");
wait_for($node, 'postgres', 'SELECT count(*) = 1 FROM amqp_outbox.deferred');
$broker->declare_queue('later');
$broker->freeze;
$node->safe_psql('postgres', 'SELECT amqp_outbox.wake()');
wait_for($node, 'postgres',
	"SELECT in_flight = 1 FROM amqp_outbox.server_status WHERE server = 'mes'");
$node->safe_psql('postgres', "COMMIT PREPARED 'early'");
$broker->thaw;
come('l1', 'COMMIT PREPARED beside deferred messages');

# One of an ordering key waits: what is prepared behind it does so, too.
$broker->declare_exchange('e', 'topic');
$broker->bind_queue('q', 'e', 'good');
$node->safe_psql('postgres', <<'END');
SELECT amqp_publish('e', 'later', 'n1', ordering_key => 'n', server => 'mes');
END
wait_for($node, 'postgres',
	"SELECT attempts > 0 FROM amqp_outbox.deferred WHERE ordering_key = 'n'",
	'a message that waits');
$node->safe_psql('postgres', <<'END');
BEGIN;
SELECT amqp_publish('e', 'good', 'n2', ordering_key => 'n', server => 'mes');
PREPARE TRANSACTION 'key';
COMMIT PREPARED 'key';
END
wait_for(
	$node, 'postgres', "SELECT count(*) = 1 FROM amqp_outbox.deferred
		WHERE ordering_key = 'n' AND due_at = 'infinity'",
	'one that is held behind it');
$broker->bind_queue('q', 'e', 'later');
$node->safe_psql('postgres', 'SELECT amqp_outbox.wake()');
come('n1 n2', 'behind a message of its ordering key that waits');

# Servers that come and change with a prepared transaction.
$node->safe_psql('postgres', <<"END");
BEGIN;
CREATE SERVER late FOREIGN DATA WRAPPER amqp_outbox
	OPTIONS (host '127.0.0.1', port '@{[ $broker->port ]}');
CREATE USER MAPPING FOR PUBLIC SERVER late OPTIONS (user 'guest', password 'guest');
ALTER SERVER erp OPTIONS (ADD window '7');
PREPARE TRANSACTION 'servers';
END
my $since = status($node, 'postgres', 'erp', 'since');
$node->safe_psql('postgres', "COMMIT PREPARED 'servers'");
$node->safe_psql('postgres',
	"SELECT amqp_publish('', 'q', 'i1', server => 'late')");
come('i1', 'a server of a prepared transaction');
$broker->freeze;
$node->safe_psql('postgres',
	"SELECT count(amqp_publish('', 'q', 'j', server => 'erp'))
		FROM generate_series(1, 50)");
wait_for($node, 'postgres',
	"SELECT in_flight = 7 FROM amqp_outbox.server_status WHERE server = 'erp'",
	'the altered window');
$broker->thaw;
wait_settled($node, 'postgres');

# Nobody could make the key of a server that only the transaction itself sees.
my ($ret, $stdout, $stderr) = $node->psql('postgres', <<'END');
BEGIN;
CREATE SERVER own FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://127.0.0.1:1');
SELECT amqp_publish('', 'q', 'lost', server => 'own');
PREPARE TRANSACTION 'own';
END
like(
	$stderr,
	qr/cannot prepare a transaction with the first messages to server "own"
DETAIL: .*
HINT: /,
	'the first messages to a server of its own are refused');

# The server of a prepared transaction stays.
publish("PREPARE TRANSACTION 'last'", 'k1');
($ret, $stdout, $stderr) = $node->psql('postgres',
	"SET lock_timeout = '100ms'; DROP SERVER mes CASCADE");
like($stderr, qr/lock timeout/, 'its server cannot be dropped meanwhile');
$node->safe_psql('postgres', "ROLLBACK PREPARED 'last'");
wait_settled($node, 'postgres');
is(join(' ', map { $_->[0] } $broker->fields('q', 'body')) =~ s/j ?//gr,
	'', 'nothing else came');

finish_node($node);
done_testing();

# What is delivered and past amqp_outbox.retention goes, a leaf of the ring at a
# time and the oldest first: the outbox's size returns to that of an empty one,
# with traffic and without, and nothing that somebody still needs goes with it.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('rotation');
my $vhost = $broker->new_vhost('late');
my $node = new_node(
	'main', conf => "amqp_outbox.retention = 0
amqp_outbox.rotation_size = 1MB
autovacuum = off");

create_server($node, 'postgres', 'mes', $broker);
create_sent($node, 'postgres');
$broker->declare_queue('q');

my $total_size = "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c
	WHERE relnamespace = 'amqp_outbox'::regnamespace AND relname ~ '^%s'";
my $used_leaves = "(SELECT coalesce(string_agg(n::text, ' ' ORDER BY n), '')
	FROM generate_series(0, 3) n
	WHERE pg_relation_size('amqp_outbox.outbox_' || n) > 0)";
my $empty_size =
  $node->safe_psql('postgres', sprintf($total_size, 'outbox'));

sub wait_empty
{
	wait_for(
		$node, 'postgres',
		'SELECT (' . sprintf($total_size, 'outbox') . ") = $empty_size",
		'an empty outbox');
	return;
}

# While somebody else has locked the outbox as a worker does for it, the ring
# stands still.
sub hold_ring
{
	my $session = $node->background_psql('postgres');

	$session->query_safe('BEGIN');
	$session->query_safe(
		'LOCK TABLE ONLY amqp_outbox.outbox IN SHARE UPDATE EXCLUSIVE MODE');
	return $session;
}

sub publish
{
	my ($session, $count, $server) = @_;

	$node->safe_psql('postgres',
		"SELECT publish_sent('', 'q', $session, server => '"
		  . ($server // 'mes')
		  . "') FROM generate_series(1, $count)");
	return;
}

# Without traffic: what was drained goes, down to the newest receipt, which
# stands in the leaf that goes.
my $ring = hold_ring();
publish(1, 5000);
publish(1, 5000);
wait_settled($node, 'postgres');
$ring->quit;
wait_empty();
is( $node->safe_psql(
		'postgres',
		"SELECT sum(n_dead_tup) FROM pg_stat_all_tables
			WHERE schemaname = 'amqp_outbox'
			AND relname ~ '^(outbox|receipt|late)'"),
	'0',
	'no dead tuples');
# as many as fit into the page that the newest one needs may stay
wait_for(
	$node,
	'postgres',
	"SELECT sum(pg_relation_size(oid)) <= current_setting('block_size')::int
		FROM pg_class WHERE relnamespace = 'amqp_outbox'::regnamespace
		AND relname ~ '^receipt_[0-3]\$'",
	'old receipts gone');
is(status($node, 'postgres', 'mes', 'delivered'),
	10000, 'totals are carried on');

# Its successor goes on where it was, in the same leaf.
my $written = $node->safe_psql('postgres', 'SELECT amqp_outbox.leaf()');
$node->restart;
is($node->safe_psql('postgres', 'SELECT amqp_outbox.leaf()'),
	$written, 'the same leaf is written after a restart');
publish(1, 10);
wait_settled($node, 'postgres');
is(status($node, 'postgres', 'mes', 'delivered'),
	10010, 'and on after a restart');
check_account(committed($node, 'postgres'),
	$broker->received('q'), 'rotated to emptiness');

# With traffic: leaves come and go while messages arrive.
my $load = start_load($node,
	"SELECT publish_sent('', 'q', :client_id + 10) FROM generate_series(1, 10);",
	clients => 2, rate => 100);
my %seen;
wait_true(
	'three leaves used and emptied',
	sub {
		$seen{$_} = 1
		  foreach split(/ /,
			$node->safe_psql('postgres', "SELECT $used_leaves"));
		return keys %seen >= 3;
	});
ok(stop_load($load), 'no session failed');
wait_settled($node, 'postgres');
wait_empty();
check_account(committed($node, 'postgres', 'session >= 10'),
	$broker->received('q'), 'rotated under load');

# Within the retention what is delivered stays, however often the ring turns.
# (A reload makes the worker look at the ring at once.)
sub written { return $node->safe_psql('postgres', 'SELECT amqp_outbox.leaf()'); }

$node->append_conf('postgresql.conf', "amqp_outbox.retention = '1h'");
$node->restart;
foreach my $i (1 .. 2)
{
	my $leaf = written();

	publish(9, 8000);
	wait_settled($node, 'postgres');
	wait_true('the ring has turned',
		sub { $node->reload; return written() != $leaf; });
}
foreach my $i (1 .. 3)
{
	$node->reload;
	publish(9, 1);
	wait_settled($node, 'postgres');
}
is( $node->safe_psql('postgres',
		"SELECT count(*) FROM amqp_outbox.message WHERE status = 'delivered'"),
	16003, 'what is delivered is kept for the retention');
$node->append_conf('postgresql.conf', 'amqp_outbox.retention = 0');
$node->reload;
wait_empty();

# A reader keeps what it reads.
publish(2, 100);
my $reader = $node->background_psql('postgres');
$reader->query_safe('BEGIN');
is($reader->query_safe('SELECT count(*) FROM amqp_outbox.outbox'),
	100, 'somebody reads');
wait_settled($node, 'postgres');
wait_for(
	$node,
	'postgres',
	"SELECT amqp_outbox.leaf() <> (SELECT right(tableoid::regclass::text, 1)::int
		FROM amqp_outbox.outbox LIMIT 1)",
	'the ring has turned');
publish(2, 1);
wait_settled($node, 'postgres');
is($reader->query_safe('SELECT count(*) >= 100 FROM amqp_outbox.outbox'),
	't', 'who still sees it');
$reader->query_safe('COMMIT');
$reader->quit;
wait_empty();

# So does somebody who has a lock on nothing but what is toasted: the leaf stays,
# and nobody waits for it.
my $offset = -s $node->logfile;
my $locked = $node->safe_psql('postgres', 'SELECT amqp_outbox.leaf()');
my $toast = $node->safe_psql('postgres',
	"SELECT reltoastrelid::regclass FROM pg_class
		WHERE oid = 'amqp_outbox.outbox_$locked'::regclass");
my $toast_reader = $node->background_psql('postgres');
publish(2, 100);
$toast_reader->query_safe("BEGIN; SELECT count(*) FROM $toast");
wait_true(
	'the ring is full',
	sub {
		publish(2, 100);
		return log_lines($node,
			qr/It is being used by another session|ERROR: .*lock timeout/,
			$offset);
	});
wait_settled($node, 'postgres');
is(join("\n", log_lines($node, qr/lock timeout/, $offset)),
	'', 'what is toasted is locked: nobody waits for it');
cmp_ok($node->safe_psql('postgres', "SELECT count(*) FROM amqp_outbox.outbox_$locked"),
	'>=', 100, 'and its leaf stays');
$toast_reader->query_safe('COMMIT');
$toast_reader->quit;
wait_empty();

# Let nobody write to these leaves.
sub lock_leaves
{
	my $session = $node->background_psql('postgres');

	$session->query_safe('BEGIN');
	$session->query_safe('LOCK TABLE '
		  . join(', ', map { "amqp_outbox.outbox_$_" } @_)
		  . ' IN SHARE MODE');
	return $session;
}

sub wait_lock
{
	my ($where, $what) = @_;

	wait_for(
		$node,
		'postgres',
		"SELECT EXISTS (SELECT FROM pg_locks JOIN pg_stat_activity USING (pid)
			WHERE NOT granted AND $where)",
		$what);
	return;
}

# A transaction that took its ids, and its leaf, before the ring turned: it
# waits at the primary key for somebody who took its id.
$ring = hold_ring();
publish(3, 100);
wait_settled($node, 'postgres');
my $leaf = written();
my $blocker = $node->background_psql('postgres');
$blocker->query_safe('BEGIN');
$blocker->query_safe("INSERT INTO amqp_outbox.outbox_$leaf (server_key, id,
	message_id, enqueued_at, exchange, routing_key, body)
	SELECT 1, next_id, 'blocker', now(), '', '', '' FROM amqp_outbox.horizon()");
my $slow = $node->background_psql('postgres');
$slow->query_until(qr//, "SELECT publish_sent('', 'q', 4);\n");
wait_for(
	$node, 'postgres',
	'SELECT holder_pid IS NOT NULL FROM amqp_outbox.horizon()',
	'a transaction between its ids and its end');
$ring->quit;
wait_for($node, 'postgres', "SELECT amqp_outbox.leaf() <> $leaf",
	'the ring has turned');
# few: a worker looks for them in the leaf that is written
publish(5, 10);
is($node->safe_psql('postgres', "SELECT count(*) FROM amqp_outbox.outbox_$leaf"),
	100, 'its leaf stays');

is(scalar(log_lines($node, qr/canceling statement due to lock timeout/)),
	0, 'so far no lock was waited for');

# It commits when a worker has just seen that all in its leaf is settled: there
# the worker wants to write to another leaf and has to wait.  (It does for its
# lock_timeout.  If we are slower than that, this tests nothing.)
my $next = written();
wait_for($node, 'postgres',
	"SELECT EXISTS (SELECT FROM amqp_outbox.receipt_$next)",
	'its newest receipt is kept elsewhere');
my $locks = lock_leaves(grep { $_ != $leaf } 0 .. 3);
wait_lock("backend_type = 'amqp_outbox worker'", 'a worker held up');
$blocker->query_safe('ROLLBACK');
$slow->quit;
$locks->query_safe('ROLLBACK');
$_->quit foreach $blocker, $locks;
wait_settled($node, 'postgres');
wait_empty();
check_account(committed($node, 'postgres', 'session IN (2, 3, 4, 5, 9)'),
	$broker->received('q'), 'readers and slow writers');

# A transaction that has to wait for its leaf, and the ring turns meanwhile.
wait_for(
	$node,
	'postgres',
	"SELECT count(*) = 0 FROM pg_class
		WHERE relnamespace = 'amqp_outbox'::regnamespace
		AND relname ~ '^(outbox|receipt|late)_[0-3]\$'
		AND right(relname, 1)::int <> amqp_outbox.leaf()
		AND pg_relation_size(oid) > 0",
	'nothing but the leaf that is written');
$ring = hold_ring();
publish(12, 100);
wait_settled($node, 'postgres');
$leaf = written();
$locks = lock_leaves($leaf);
my $waiting = $node->background_psql('postgres');
$waiting->query_until(qr//, "SELECT publish_sent('', 'q', 13);\n");
wait_lock("relation = 'amqp_outbox.outbox_$leaf'::regclass",
	'a transaction that waits for its leaf');
$ring->quit;
wait_true(
	'the ring has turned',
	sub {
		# waits for that leaf, too, as long as it is the one that is written
		(undef, $next) = $node->psql('postgres',
			"SET lock_timeout = '100ms'; SELECT amqp_outbox.leaf()");
		return $next ne '' && $next != $leaf;
	});
$ring = hold_ring();
$locks->query_safe('ROLLBACK');
$waiting->quit;
is( $node->safe_psql(
		'postgres',
		'SELECT o.tableoid::regclass FROM amqp_outbox.outbox o
			JOIN sent s ON s.id = o.message_id WHERE s.session = 13'),
	"amqp_outbox.outbox_$next",
	'who waited for a leaf writes to the next one');
$_->quit foreach $locks, $ring;
wait_settled($node, 'postgres');
wait_empty();
check_account(committed($node, 'postgres', 'session IN (12, 13)'),
	$broker->received('q'), 'who waited for a leaf');

# One server lags behind: nothing goes before it has caught up, the ring cannot
# turn any more, and the log says why.
create_server($node, 'postgres', 'slow', $vhost,
	uri => 'amqp://127.0.0.1:1');
$offset = -s $node->logfile;
publish(8, 100, 'slow');
wait_true(
	'a word in the log',
	sub {
		publish(6, 100);
		return log_lines($node,
			qr/Messages to server "slow" in it are not delivered/, $offset);
	});
is( $node->safe_psql(
		'postgres',
		"SELECT count(*) FROM sent s WHERE session IN (6, 8) AND NOT EXISTS
			(SELECT FROM amqp_outbox.message m WHERE m.message_id = s.id)"),
	'0',
	'all that is kept is seen');

# Which of the leaves was written last: there is no gap to tell.
$written = written();
$node->restart;
is(written(), $written, 'the same leaf is written after a restart of a full ring');
$vhost->declare_queue('q');
$node->safe_psql('postgres',
	'ALTER SERVER slow OPTIONS (DROP uri, ADD host \'127.0.0.1\', ADD port \''
	  . $vhost->port . "', ADD vhost 'late')");
wait_settled($node, 'postgres');
wait_empty();

# A server that is dropped leaves nothing behind that could hold the ring.
publish(7, 100, 'slow');
wait_settled($node, 'postgres');
$node->safe_psql('postgres', 'DROP SERVER slow CASCADE');
wait_empty();

check_account(
	committed($node, 'postgres', 'session BETWEEN 6 AND 8'),
	[ @{ $broker->received('q') }, @{ $vhost->received('q') } ],
	'slow servers');

# Crashes in the middle of it all.
$load = start_load($node,
	"SELECT publish_sent('', 'q', :client_id + 20) FROM generate_series(1, 50);",
	clients => 2, rate => 40);
foreach my $round (1 .. 2)
{
	$written = $node->safe_psql('postgres', 'SELECT amqp_outbox.leaf()');

	wait_for($node, 'postgres', "SELECT amqp_outbox.leaf() <> $written",
		'the ring turned');
	$node->stop('immediate');
	$node->start;
	stop_load($load);
	$load = start_load($node,
		"SELECT publish_sent('', 'q', :client_id + 20 + 2 * $round)
			FROM generate_series(1, 50);",
		clients => 2, rate => 40);
}
stop_load($load);
wait_settled($node, 'postgres');
wait_empty();
check_account(committed($node, 'postgres', 'session >= 20'),
	$broker->received_marked('q'), 'crashes', duplicates => 'marked');

finish_node($node, errors => qr/canceling statement due to lock timeout/);
done_testing();

# Commits that fail, or never end: a backend killed in the middle of writing
# its messages, a full disk, a serialization failure, somebody who publishes when
# that is over.  Of these transactions nothing is published, and they hold up
# nobody afterwards.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxPeer;
use AmqpOutboxTest;
use PostgreSQL::Test::Utils;
use Test::More;

# where the first messages are written
my $outbox = 'amqp_outbox.outbox_0';

my $broker = AmqpOutboxTest::Broker->new('failed');
my $node = new_node('main', conf => <<'END');
restart_after_crash = on
autovacuum = off
max_prepared_transactions = 10
END

# without heartbeats, so that a worker that nobody wakes sleeps on
create_server($node, 'postgres', 'mes', $broker, heartbeat => 0);
create_sent($node, 'postgres');
$broker->declare_queue('q');

sub publish
{
	my ($session) = @_;

	$node->safe_psql('postgres', "SELECT publish_sent('', 'q', $session)");
	return;
}

sub check_arrived
{
	my ($name) = @_;

	wait_settled($node, 'postgres');
	check_account(committed($node, 'postgres'), $broker->received_marked('q'), $name);
	$node->safe_psql('postgres', 'TRUNCATE sent');
	return;
}

sub check_not_held
{
	my ($name) = @_;

	# whoever reports an error rolls back afterwards
	ok( $node->poll_query_until('postgres',
			'SELECT holder_pid IS NULL FROM amqp_outbox.horizon()'),
		"$name: the horizon is free");
	return;
}

#
# A commit that is held up in the middle of its flush
#
# By somebody who inserted, and did not commit, a row with one of its ids: the
# 200th, which is in its second batch.
#

sub block_flush
{
	my $blocker = $node->background_psql('postgres', on_error_stop => 0);

	$blocker->query_safe("BEGIN; INSERT INTO $outbox
		(server_key, id, message_id, enqueued_at, exchange, routing_key, body)
		SELECT 1, next_id + 199, 'blocker', now(), '', '', ''
			FROM amqp_outbox.horizon()");
	return $blocker;
}

# Send COMMIT to a session, wait until it is held up, and return its process.
sub begin_commit
{
	my ($session) = @_;
	my $pid = $session->query_safe('SELECT pg_backend_pid()');

	$session->{stdin} .= "COMMIT;\n";
	$session->{run}->pump_nb;
	wait_for($node, 'postgres',
		"SELECT wait_event_type = 'Lock' AND query = 'COMMIT;'
			FROM pg_stat_activity WHERE pid = $pid",
		'the flush waits');
	return $pid;
}

#
# A backend killed in the middle of its flush
#

publish(1);
check_arrived('before');

my $blocker = block_flush();
my $session = $node->background_psql('postgres', on_error_stop => 0);
my $size = $node->safe_psql('postgres', "SELECT pg_relation_size('$outbox')");

$session->query_safe('BEGIN');
$session->query_safe(publish_sent('q', 2, 5000));
my $pid = begin_commit($session);
cmp_ok($node->safe_psql('postgres', "SELECT pg_relation_size('$outbox')"),
	'>', $size, 'mid-flush: some messages are written');
is($node->safe_psql('postgres', 'SELECT holder_pid FROM amqp_outbox.horizon()'),
	$pid, 'mid-flush: it holds the horizon');

# others commit behind it, and are not published before it is over
publish(3);
is(status($node, 'postgres', 'mes', 'backlog'), 1, 'mid-flush: others commit');
is($broker->count('q'), 0, 'mid-flush: and are published later');

my $offset = -s $node->logfile;
kill('KILL', $pid);
wait_true('the restart after the crash',
	sub { log_lines($node, qr/ready to accept connections/, $offset) });
eval { $session->quit };
eval { $blocker->quit };
check_not_held('mid-flush');
publish(4);
is( $node->safe_psql('postgres',
		"SELECT string_agg(session::text, ' ' ORDER BY session) FROM sent"),
	'3 4', 'mid-flush: the transaction is gone');
check_arrived('mid-flush');

#
# A full disk
#
# No file may grow beyond 24 MB, in sessions from now on.  The messages wait
# in memory until they are written.
#

my ($postmaster) = split(/\n/, slurp_file($node->data_dir . '/postmaster.pid'));

sub limit_files
{
	my ($limit) = @_;

	command_ok([ 'prlimit', '--pid', $postmaster, "--fsize=$limit:" ],
		"disk full: files are limited to $limit");
	return;
}

publish(1);
limit_files(24 * 1024 * 1024);
my ($result, $output, $errors) = $node->psql('postgres', <<'END');
\set VERBOSITY verbose
SET work_mem = '256MB';
BEGIN;
INSERT INTO sent SELECT amqp_publish('', 'q', '2 ' || n || repeat(' ', 1500)), 2, n
	FROM generate_series(1, 20000) n;
\echo all published
COMMIT;
END
like($output, qr/all published/, 'disk full: noticed at the end');
like($errors, qr/ERROR: .*could not extend file/, 'disk full: COMMIT fails');
check_not_held('disk full');

# what it had written can be had back
$node->safe_psql('postgres', "VACUUM $outbox");
publish(3);
is( $node->safe_psql('postgres',
		"SELECT string_agg(session::text, ' ' ORDER BY session) FROM sent"),
	'1 3', 'disk full: the transaction is gone, the next one works');
check_arrived('disk full');
limit_files('unlimited');

#
# A serialization failure at COMMIT
#
# Each of two transactions reads what the other one writes.  The second one to
# commit learns of it when it has written some of its messages; the message of
# the first one waits for that.
#

$node->safe_psql('postgres', <<'END');
CREATE TABLE on_call (name text PRIMARY KEY, here boolean);
INSERT INTO on_call VALUES ('a', true), ('b', true);
END

my $first = $node->background_psql('postgres', on_error_stop => 0);
my $second = $node->background_psql('postgres', on_error_stop => 0);
foreach my $s ($first, $second)
{
	$s->query_safe('BEGIN ISOLATION LEVEL SERIALIZABLE');
	$s->query_safe('SELECT count(*) FROM on_call WHERE here');
}
$first->query_safe(publish_sent('q', 1, 1));
$first->query_safe("UPDATE on_call SET here = false WHERE name = 'a'");
$second->query_safe(publish_sent('q', 2, 5000));
$second->query_safe("UPDATE on_call SET here = false WHERE name = 'b'");

$blocker = block_flush();
$pid = begin_commit($second);
$first->query_safe('COMMIT');
is(status($node, 'postgres', 'mes', 'backlog'), 1,
	'serialization failure: the first transaction commits');
is($node->safe_psql('postgres', 'SELECT holder_pid FROM amqp_outbox.horizon()'),
	$pid, 'serialization failure: the second one holds the horizon');
$blocker->query_safe('ROLLBACK');
ok( pump_until($second->{run}, $second->{timeout}, \$second->{stderr},
		qr/could not serialize access/),
	'serialization failure: at COMMIT of the second one');
check_not_held('serialization failure');
is( $node->safe_psql('postgres',
		"SELECT string_agg(session::text, ' ' ORDER BY session) FROM sent"),
	'1', 'serialization failure: it is gone');
check_arrived('serialization failure');
$_->quit foreach $first, $second, $blocker;

#
# Another extension that publishes in the commit
#
# If it is called when the messages of the transaction have been written, it
# hears that it is too late, also where there were none.
#

my $late = AmqpOutboxPeer::build_preloaded('late',
	'-I' . $node->config_data('--includedir-server'));

sub preload
{
	my @libraries = @_;

	$node->append_conf('postgresql.conf',
		"shared_preload_libraries = '" . join(', ', @libraries) . "'");
	$node->restart;
	return;
}

# A transaction that ends with something more, and another one in its session;
# the errors of both.
sub end_with
{
	my ($before, $late_sql, $end) = @_;
	my (undef, undef, $errors) = $node->psql(
		'postgres',
		"BEGIN; $before; SET LOCAL late.sql = \$late\$ $late_sql \$late\$; $end;
			SELECT publish_sent('', 'q', 9)",
		on_error_stop => 0);

	return $errors;
}

my $too_late = qr/ERROR:  cannot publish while the transaction is being committed/;
my $publish = publish_sent('q', 1, 1);
my $publish_late = publish_sent('q', 2, 1);

preload($late, 'amqp_outbox');
foreach my $end ('COMMIT', "PREPARE TRANSACTION 'late'")
{
	like(end_with('SELECT 1', $publish_late, $end),
		$too_late, "too late: $end, without messages");
	like(end_with($publish, $publish_late, $end),
		$too_late, "too late: $end, with messages");
	like(end_with("SAVEPOINT s; $publish; ROLLBACK TO s", $publish_late, $end),
		$too_late, "too late: $end, with messages rolled back");
}
is($node->safe_psql('postgres', "SELECT string_agg(session::text, '' ORDER BY n) FROM sent"),
	'999999', 'too late: the transactions are gone, the next ones work');
check_arrived('too late');

# it may well go on without
is( end_with(
		publish_sent('q', 1, 3),
		"DO \$do\$ BEGIN
			PERFORM publish_sent('', 'q', 2);
		EXCEPTION WHEN object_not_in_prerequisite_state THEN
			NULL;
		END \$do\$",
		'COMMIT'),
	'', 'too late: caught');
is($node->safe_psql('postgres', "SELECT string_agg(session::text, '' ORDER BY n) FROM sent"),
	'1119', 'too late: caught, the transaction is there');
check_arrived('too late, caught');

# one that is called before it is in time
preload('amqp_outbox', $late);
is(end_with('SELECT 1', $publish_late, 'COMMIT'),
	'', 'in time: without messages');
is(end_with($publish, $publish_late, 'COMMIT'), '', 'in time: with messages');
is( end_with('SELECT 1', $publish_late,
		"PREPARE TRANSACTION 'late'; COMMIT PREPARED 'late'"),
	'', 'in time: prepared');
is($node->safe_psql('postgres', "SELECT string_agg(session::text, '' ORDER BY n) FROM sent"),
	'2912929', 'in time: all of them are there');
check_arrived('in time');

finish_node($node, killed => 1);
done_testing();

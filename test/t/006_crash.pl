# PostgreSQL crashes in different ways under load: nothing is lost, nothing
# arrives that was not committed, or could still be taken back, and what comes
# twice says so.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('crash');

# Commits stay in memory for long, where only whoever needs them to be durable
# writes them out.
my $node = new_node('main', conf => <<'END');
restart_after_crash = on
synchronous_commit = off
wal_writer_delay = 10s
wal_writer_flush_after = 1GB
max_wal_size = 2GB
autovacuum = off
END
my $killed = 0;

create_server($node, 'postgres', 'mes', $broker);
create_sent($node, 'postgres');
$broker->declare_queue('q');

my $script = <<'END';
\set k random(1, 3)
\set fails random(1, 10)
BEGIN;
SELECT publish_sent('', 'q', :client_id) FROM generate_series(1, :k);
\if :fails = 1
ROLLBACK;
\else
COMMIT;
\endif
END

# Sequences may go back by a crash when nothing durable depends on them, so
# each round has sessions of its own.
my $round = 0;

sub start_round
{
	my $base = 100 * ++$round;

	return start_load($node, $script =~ s/:client_id/$base + :client_id/r,
		clients => 3, rate => 400);
}

sub wait_for_deliveries
{
	my $before = status($node, 'postgres', 'mes', 'delivered');

	wait_for($node, 'postgres',
		"SELECT delivered >= $before + 300 FROM amqp_outbox.server_status",
		'deliveries');
	return;
}

sub check_round
{
	my $name = shift;

	wait_settled($node, 'postgres');
	check_account(committed($node, 'postgres', "session / 100 = $round"),
		$broker->received_marked('q'), $name, duplicates => 'marked');
	return;
}

#
# The worker
#

my $load = start_round();
wait_for_deliveries();
my $pid = worker_pid($node, 'postgres', 'mes');
kill(9, $pid);
$killed++;
stop_load($load);
check_round('worker killed');
isnt(worker_pid($node, 'postgres', 'mes'), $pid, 'there is a new worker');

#
# The whole server, with commits that never became durable
#

foreach my $i (1 .. 3)
{
	$load = start_round();
	wait_for_deliveries();
	$node->stop('immediate');
	$node->start;
	stop_load($load);
	check_round("immediate shutdown $i");
}

#
# What waits, sent on by a commit that is not durable
#
# By somebody who changes it, which no worker hears of, or who requeues it.  It
# has not left if the crash could still take that back.
#

$broker->declare_queue('r');
foreach my $i (1 .. 2)
{
	$node->safe_psql('postgres', "SELECT amqp_publish('', 'nowhere', 'x')");
	wait_for($node, 'postgres',
		'SELECT count(*) = 1 FROM amqp_outbox.deferred');
	$node->safe_psql('postgres',
		"UPDATE amqp_outbox.deferred SET routing_key = 'r'");
	wait_true('what was changed', sub { $broker->count('r') == 1 });
	$node->stop('immediate');
	$node->start;
	is( $node->safe_psql('postgres',
			"SELECT count(*) FROM amqp_outbox.deferred WHERE routing_key <> 'r'"),
		0, "changed $i: came after its commit was durable");
	wait_settled($node, 'postgres');
	$broker->messages('r');
}

$node->safe_psql('postgres',
	"ALTER SERVER mes OPTIONS (ADD unroutable 'dead_letter')");
foreach my $i (1 .. 2)
{
	$node->safe_psql('postgres', "SELECT amqp_publish('', 'late $i', 'x')");
	wait_for($node, 'postgres',
		'SELECT count(*) = 1 FROM amqp_outbox.dead_letter');
	$broker->declare_queue("late $i");
	$node->safe_psql('postgres', 'SELECT amqp_outbox.requeue()');
	wait_true('what was requeued', sub { $broker->count("late $i") == 1 });
	$node->stop('immediate');
	$node->start;
	is($node->safe_psql('postgres', 'SELECT count(*) FROM amqp_outbox.dead_letter'),
		0, "requeued $i: came after its commit was durable");
	wait_settled($node, 'postgres');
}

#
# A backend in the middle of writing its messages, while others publish
#

# Begin to commit many messages, and return the session and its process when
# it has begun to write them.
sub begin_large_commit
{
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	my $backend = $session->query_safe('SELECT pg_backend_pid()');

	$session->query_safe('BEGIN');
	$session->query_safe(publish_sent('q', 100 * $round + 99, 500_000));
	$session->{stdin} .= "COMMIT;\n";
	$session->{run}->pump_nb;
	wait_for(
		$node,
		'postgres',
		"SELECT state = 'active' AND query = 'COMMIT;'
			AND pg_relation_size('amqp_outbox.outbox_0') > $_[0] + 1000000
			FROM pg_stat_activity WHERE pid = $backend",
		'a large commit under way');
	return ($session, $backend);
}

sub outbox_size
{
	return $node->safe_psql('postgres',
		"SELECT pg_relation_size('amqp_outbox.outbox_0')");
}

foreach my $signal ('TERM', 'KILL')
{
	my $session;

	$load = start_round();
	wait_for_deliveries();
	stop_load($load);
	($session, $pid) = begin_large_commit(outbox_size());

	# others have begun to commit behind it, and wait for nobody
	my $other = $node->safe_psql('postgres', publish_sent('q', 100 * $round + 98, 5));

	kill($signal, $pid);
	$killed++ if $signal eq 'KILL';
	eval { $session->quit };
	wait_for($node, 'postgres',
		"SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $pid)");
	is( $node->safe_psql('postgres',
			"SELECT count(*) FROM sent WHERE session = 100 * $round + 99"),
		0, "SIG$signal: came before the commit");
	check_round("SIG$signal in mid-flush");
}

# and after all that it works
$load = start_round();
wait_for_deliveries();
ok(stop_load($load), 'load ran');
check_round('after the crashes');

finish_node($node, killed => $killed);
done_testing();

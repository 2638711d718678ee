# Databases and servers do not disturb each other; workers come and go with
# what they are for, without a restart.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use Test::More;

my $one = AmqpOutboxTest::Broker->new('one');
my $two = AmqpOutboxTest::Broker->new('two');
my $vhost = $one->new_vhost('plant');

# Autovacuum's invalidations would wake the launcher sooner or later, also when
# it has forgotten what it is to wait for.
my $node = new_node('main', conf => 'autovacuum = off');

$_->declare_queue('q') foreach $one, $two, $vhost;
$two->declare_queue('r');

# Workers there are, as "database" lines.
sub workers
{
	return $node->safe_psql('postgres',
		"SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_stat_activity
			WHERE backend_type = 'amqp_outbox worker'");
}

sub wait_workers
{
	my $workers = shift;

	wait_for(
		$node,
		'postgres',
		"SELECT coalesce(string_agg(datname, ' ' ORDER BY datname), '') = '$workers'
			FROM pg_stat_activity WHERE backend_type = 'amqp_outbox worker'",
		"workers in $workers");
	return;
}

is($node->safe_psql('postgres',
		"SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'amqp_outbox%'"),
	1, 'nothing but the launcher without the extension');

# database first: server a at broker one, server b at broker two;
# database second: server a at another virtual host of broker one
$node->safe_psql('postgres', 'CREATE DATABASE first');
$node->safe_psql('postgres', 'CREATE DATABASE second');
create_server($node, 'first', 'a', $one);
create_server($node, 'first', 'b', $two, heartbeat => 0);
create_server($node, 'second', 'a', $vhost);
create_sent($node, $_) foreach 'first', 'second';
wait_state($node, 'first', 'a', 'connected');
wait_state($node, 'first', 'b', 'connected');
wait_state($node, 'second', 'a', 'connected');
is(workers(), 'first first second', 'one worker for each server');

#
# To each its own
#

sub to_both
{
	my $second_queue = shift;

	return <<"END";
BEGIN;
SELECT publish_sent('', 'q', :client_id, server => 'a');
SELECT publish_sent('', '$second_queue', 10 + :client_id, server => 'b');
COMMIT;
END
}

my @loads = (
	start_load($node, to_both('q'), database => 'first', transactions => 300),
	start_load(
		$node, "SELECT publish_sent('', 'q', 20 + :client_id)",
		database => 'second', transactions => 300));

ok(stop_load($_, await => 1), 'load ran') foreach @loads;
wait_settled($node, $_) foreach 'first', 'second';
check_account(committed($node, 'first', 'session < 10'),
	$one->received('q'), 'first server');
check_account(committed($node, 'first', 'session >= 10'),
	$two->received('q'), 'second server');
check_account(committed($node, 'second'),
	$vhost->received('q'), 'second database');

#
# One broker is frozen, then gone: the others go on.  (Into another queue: a
# crash takes back what the consumer acknowledged last.)
#

$node->safe_psql($_, 'TRUNCATE sent') foreach 'first', 'second';
$two->freeze;
@loads = (start_load($node, to_both('r'), database => 'first', rate => 200),
	start_load($node, "SELECT publish_sent('', 'q', 20 + :client_id)",
		database => 'second', rate => 200));

sub wait_progress
{
	my $what = shift;

	foreach my $database ('first', 'second')
	{
		my $before = status($node, $database, 'a', 'delivered');

		wait_for(
			$node,
			$database,
			"SELECT delivered >= $before + 200 FROM amqp_outbox.server_status
				WHERE server = 'a'",
			"progress of $database while $what");
		is( $node->safe_psql($database,
				"SELECT coalesce(oldest_pending_age < '2s', true)
					FROM amqp_outbox.server_status WHERE server = 'a'"),
			't', "$database goes on while $what");
	}
	return;
}

wait_progress('a broker is frozen');
cmp_ok(status($node, 'first', 'b', 'backlog'), '>', 0,
	'messages of the frozen broker wait');
$two->kill9;
wait_state($node, 'first', 'b', 'waiting');
wait_progress('a broker is away');
$two->start;
ok(stop_load($_), 'load ran') foreach @loads;
wait_settled($node, $_) foreach 'first', 'second';
check_account(committed($node, 'first', 'session < 10'),
	$one->received('q'), 'first server, undisturbed');
check_account(committed($node, 'second'),
	$vhost->received('q'), 'second database, undisturbed');
check_account(
	committed($node, 'first', 'session >= 10'), $two->received_marked('r'),
	'second server, which was away', duplicates => 'marked');

#
# Coming and going
#

sub publish_and_take
{
	my ($database, $server, $broker, $name) = @_;
	my $id = $node->safe_psql($database,
		"SELECT amqp_publish('', 'q', 'x'::text, server => '$server')");

	wait_settled($node, $database, $server);
	my @messages = $broker->fields('q', 'message_id');
	is_deeply(\@messages, [ [$id] ], $name);
	return;
}

$node->safe_psql('postgres', 'CREATE DATABASE third');
create_server($node, 'third', 'c', $vhost);
publish_and_take('third', 'c', $vhost, 'a further database without a restart');

my $pid = worker_pid($node, 'first', 'a');
my $others = "SELECT string_agg(pid::text, ' ' ORDER BY pid) FROM pg_stat_activity
	WHERE backend_type LIKE 'amqp_outbox%' AND pid <> $pid";
my $pids = $node->safe_psql('postgres', $others);
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
isnt(worker_pid($node, 'first', 'a', $pid), $pid,
	'a worker that was terminated comes back');
publish_and_take('first', 'a', $one, 'and delivers');
$pid = worker_pid($node, 'first', 'a');
$others =~ s/<> \d+/<> $pid/;
is($node->safe_psql('postgres', $others), $pids, 'the others stayed');

$pid = $node->safe_psql('postgres',
	"SELECT pid FROM pg_stat_activity WHERE backend_type = 'amqp_outbox launcher'");
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
wait_for($node, 'postgres',
	"SELECT count(*) = 1 FROM pg_stat_activity
		WHERE backend_type = 'amqp_outbox launcher' AND pid <> $pid",
	'the launcher comes back');
wait_workers('first first second third');
pass('with the same workers');
publish_and_take('second', 'a', $vhost, 'which deliver');

$node->safe_psql('first', 'DROP SERVER b CASCADE');
wait_workers('first second third');
pass('DROP SERVER: its worker leaves');
publish_and_take('first', 'a', $one, 'the other server goes on');

# rolled back: nothing happens
$pid = worker_pid($node, 'first', 'a');
$node->safe_psql('first', 'BEGIN; DROP SERVER a CASCADE; ROLLBACK');
publish_and_take('first', 'a', $one, 'DROP SERVER rolled back');
is(worker_pid($node, 'first', 'a'), $pid, 'with the same worker');

$node->safe_psql('first',
	'SET client_min_messages = warning; DROP EXTENSION amqp_outbox CASCADE');
wait_workers('second third');
pass('DROP EXTENSION: its workers leave');

create_server($node, 'first', 'a', $one);
publish_and_take('first', 'a', $one, 'CREATE EXTENSION again');
is( $node->safe_psql('first', 'SELECT count(*) FROM amqp_outbox.message'),
	1, 'with nothing of the former one');

finish_node($node);
done_testing();

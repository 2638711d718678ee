# Every process killed at once, the launcher killed, and no process left for a
# server: the first two lose nothing and come back by themselves, the last one
# says so, disturbs nobody, and ends as soon as a process is free.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('processes');
$broker->declare_queue($_) foreach 'q', 'new', 'full';

#
# Every process killed at once, with commits in memory
#
# This is as near to a power cut as it gets without one: nobody has the time
# to write anything more.  Commits stay in memory for long, where only whoever
# needs them to be durable writes them out.
#

my $node = new_node('killed', conf => <<'END');
restart_after_crash = on
synchronous_commit = off
wal_writer_delay = 10s
wal_writer_flush_after = 1GB
autovacuum = off
END

create_server($node, 'postgres', 'mes', $broker);
create_sent($node, 'postgres');

# The postmaster and its children.
sub processes
{
	my ($postmaster) = split(/\n/, slurp_file($node->data_dir . '/postmaster.pid'));

	return ($postmaster,
		split(/ /, slurp_file("/proc/$postmaster/task/$postmaster/children")));
}

# Sequences may go back by a crash when nothing durable depends on them, so
# each round has a session of its own.
foreach my $round (1 .. 4)
{
	my $load = start_load($node, "SELECT publish_sent('', 'q', $round);",
		clients => 1, rate => 500);
	my @processes;

	wait_for($node, 'postgres',
		"SELECT count(*) >= 200 FROM amqp_outbox.message m JOIN sent s
			ON s.id = m.message_id AND s.session = $round
			WHERE m.status = 'delivered'",
		'deliveries');
	@processes = processes();
	kill('KILL', @processes);
	wait_true('the end of all processes',
		sub { !grep { -e "/proc/$_" } @processes });
	$node->kill9;				# which is what it takes to start it again
	$node->start;
	stop_load($load);
	wait_settled($node, 'postgres');
	check_account(committed($node, 'postgres', "session = $round"),
		$broker->received_marked('q'), "all processes killed $round",
		duplicates => 'marked');
}

#
# The launcher killed
#

my $worker = worker_pid($node, 'postgres', 'mes');
my $launcher = "SELECT pid FROM pg_stat_activity
	WHERE backend_type = 'amqp_outbox launcher'";
my $pid = $node->safe_psql('postgres', $launcher);

my $offset = -s $node->logfile;
kill('KILL', $pid);
wait_true('the restart after the crash',
	sub { log_lines($node, qr/ready to accept connections/, $offset) });
wait_for($node, 'postgres', "SELECT EXISTS ($launcher AND pid <> $pid)",
	'a new launcher');
create_server($node, 'postgres', 'new', $broker);
$node->safe_psql('postgres',
	"SELECT amqp_publish('', 'new', 'x', message_id => 'new', server => 'new')");
wait_settled($node, 'postgres');
is_deeply([ $broker->fields('new', 'message_id') ], [ ['new'] ],
	'launcher killed: it comes back and does its work');
isnt(worker_pid($node, 'postgres', 'mes'), $worker,
	'launcher killed: the whole server has restarted');
is( $node->safe_psql('postgres',
		"SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'amqp_outbox worker'"),
	2, 'launcher killed: one worker for each server');
finish_node($node, killed => 1);

#
# No process left
#

$node = new_node('full', conf => <<'END');
max_worker_processes = 3
max_logical_replication_workers = 0
END

my $lack = qr/WARNING:  no free slot for a background worker of amqp_outbox/;

sub publish
{
	my ($server, $id) = @_;

	$node->safe_psql('postgres',
		"SELECT amqp_publish('', 'full', 'x', message_id => '$id', server => '$server')");
	return;
}

foreach my $server ('one', 'two')
{
	create_server($node, 'postgres', $server, $broker);
	wait_state($node, 'postgres', $server, 'connected');
}
$offset = -s $node->logfile;
create_server($node, 'postgres', 'three', $broker);
wait_true('the lack is reported',
	sub { log_lines($node, $lack, $offset) });
like(slurp_file($node->logfile, $offset),
	qr/HINT: .*Increase max_worker_processes, which is 3/,
	'no process left: the log says what to do');
is(status($node, 'postgres', 'three', 'state'), 'not started',
	'no process left: the status shows it');
publish('three', 'to three');
publish('one', 'to one');
wait_settled($node, 'postgres', 'one');
is_deeply([ $broker->fields('full', 'message_id') ], [ ['to one'] ],
	'no process left: the others go on');

# At a start the servers become known while there still is a process for that,
# and then not all of them get a worker.
$offset = -s $node->logfile;
$node->restart;
wait_true('the lack is reported',
	sub { log_lines($node, $lack, $offset) });
wait_for($node, 'postgres',
	"SELECT count(*) FILTER (WHERE state = 'connected') = 2
		AND count(last_error) FILTER (WHERE state <> 'connected') = 1
		FROM amqp_outbox.server_status",
	'two are connected and one has an error');
my ($without, $error) = split(/\|/, $node->safe_psql('postgres',
	"SELECT server, last_error FROM amqp_outbox.server_status
		WHERE state <> 'connected'"));
is($error, 'no free slot for a background worker',
	'no process left at the start: the status says why');

my ($dropped) = grep { $_ ne $without } 'one', 'two';
$node->safe_psql('postgres', "DROP SERVER $dropped CASCADE");
wait_settled($node, 'postgres');
wait_state($node, 'postgres', $_, 'connected')
  foreach grep { $_ ne $dropped } 'one', 'two', 'three';
is_deeply([ $broker->fields('full', 'message_id') ], [ ['to three'] ],
	'a process is free: everything arrives');

finish_node($node);
done_testing();

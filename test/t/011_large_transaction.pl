# A transaction of very many messages: memory stays bounded, in the backend
# and in the worker, and all arrive in order.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $messages = 300_000;
my $broker = AmqpOutboxTest::Broker->new('large');
my $node = new_node('main');

create_server($node, 'postgres', 'mes', $broker);
create_sent($node, 'postgres');
$broker->declare_queue('q');
wait_state($node, 'postgres', 'mes', 'connected');

# The most memory that a process ever had, in MB.
sub peak
{
	my $pid = shift;

	return $1 / 1024
	  if slurp_file("/proc/$pid/status") =~ /^VmHWM:\s+(\d+) kB/m;
	die "no VmHWM of process $pid";
}

SKIP:
{
	skip '/proc is needed', 1 if !-e "/proc/$$/status";

	my $worker = worker_pid($node, 'postgres', 'mes');
	my $session = $node->background_psql('postgres');
	my $backend = $session->query_safe('SELECT pg_backend_pid()');

	$session->query_safe("SET work_mem = '64kB'");
	$session->query_safe(publish_sent('q', 1, 100));

	my $before = peak($backend);
	my $worker_before = peak($worker);

	# a sanitizer keeps what was freed
	my $sanitized = slurp_file("/proc/$backend/maps") =~ /libasan/;

	# shared buffers count as they are touched: 32 MB of them
	$session->query_safe(publish_sent('q', 1, $messages));
	cmp_ok(peak($backend) - $before, '<', 64, "backend's memory is bounded")
	  unless $sanitized;
	foreach my $part (1 .. 10)
	{
		my $count = $part * $messages / 10;

		wait_for($node, 'postgres',
			"SELECT delivered >= $count FROM amqp_outbox.server_status",
			"$count messages delivered");
	}
	wait_settled($node, 'postgres');
	cmp_ok(peak($worker) - $worker_before,
		'<', 64, "worker's memory is bounded")
	  unless $sanitized;
	note sprintf('backend %.0f MB more, worker %.0f MB more',
		peak($backend) - $before, peak($worker) - $worker_before);
	$session->quit;
	check_account(committed($node, 'postgres'),
		$broker->received('q'), 'a large transaction');
}

finish_node($node);
done_testing();

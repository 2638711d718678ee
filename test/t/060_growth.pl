# A worker takes no more memory than it may, whatever there is to send.  And one
# that lives long does not grow: messages of every fate through many
# connections, with TLS and without, altered options, topology, errors and
# rotation, over and over; what its memory contexts take in the end is what they took
# when two thirds were over, and the process itself what it took at the most in the
# second third.
#
# OUTBOX_GROWTH_ROUNDS says how often; a hundred take about seven minutes.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $rounds = $ENV{OUTBOX_GROWTH_ROUNDS} || 12;

# How much it may grow in the last third, whatever the rounds: the plans for a leaf
# of the ring that is written for the first time are 80 kB, and caches of
# PostgreSQL do not always end at the same size.  And malloc() gives the memory of a
# large message back, or keeps it, as what lies beside it allows.
my $contexts_grow = 160 * 1024;
my $process_grows = 1024 * 1024;

my $broker = AmqpOutboxTest::Broker->new('growth', tls => 1);
my $node = new_node(
	'main', conf => "amqp_outbox.retention = 0
amqp_outbox.rotation_size = 1MB
amqp_outbox.drain_timeout = '1s'
autovacuum = off");
my $plain = 'amqp://127.0.0.1:' . $broker->port;
my $tls = 'amqps://127.0.0.1:' . $broker->tls_port;

create_server($node, 'postgres', 'mes', $broker,
	uri => $plain,
	max_attempts => 1);
$broker->declare_queue('q');
wait_state($node, 'postgres', 'mes', 'connected');
my $worker = worker_pid($node, 'postgres', 'mes');

# Bytes in memory contexts, and of the process, malloc()'s included.
sub memory
{
	my $offset = -s $node->logfile;
	my $contexts;

	$node->safe_psql('postgres', "SELECT pg_log_backend_memory_contexts($worker)");
	wait_true('the memory contexts of the worker', sub {
		($contexts) = map { /Grand total: \d+ bytes.*; (\d+) used/ ? $1 : () }
		  log_lines($node, qr/\[$worker\].*Grand total/, $offset);
		return defined $contexts;
	});
	my ($process) = slurp_file("/proc/$worker/status") =~ /^RssAnon:\s*(\d+) kB/m;

	return ($contexts, $process * 1024);
}

# Nothing is on its way, and nothing will be tried again.
sub wait_quiet
{
	wait_for($node, 'postgres',
		"SELECT backlog = 0 AND in_flight = 0 AND state = 'connected'
			FROM amqp_outbox.server_status", 'everything delivered or given up');
	return;
}

# One connection's life, with everything that can become of messages.
sub round
{
	my $n = shift;
	my $uri = $n % 2 ? "SET uri '$tls', ADD cacertfile '" . $broker->cacertfile . "'"
	  : "SET uri '$plain', DROP cacertfile";

	# another connection, with other options
	$node->safe_psql('postgres', "ALTER SERVER mes OPTIONS ($uri)");
	$node->safe_psql('postgres', <<"END");
SELECT amqp_publish('', 'q', repeat('x', 100 + i), server => 'mes',
	headers => '{"a": [1, "b", {"c": null}]}', ordering_key => (i % 7)::text)
	FROM generate_series(1, 2000) i;
SELECT amqp_publish('', 'q', repeat('x', 3000000), server => 'mes');
-- returned, and an exchange that is not there
SELECT amqp_publish('', 'nowhere', 'x'::text, server => 'mes')
	FROM generate_series(1, 20);
SELECT amqp_publish('missing' || $n, 'q', 'x'::text, server => 'mes')
	FROM generate_series(1, 5);
SELECT amqp_publish('', 'q', 'x'::text, server => 'mes', delay => '10 ms');
SELECT amqp_outbox.declare_queue('mes', 'd', 'classic', arguments => '{"x-max-length": 5}');
SELECT amqp_outbox.declare_exchange('mes', 'e');
SELECT amqp_outbox.bind_queue('mes', 'd', 'e', 'k$n');
END
	wait_quiet();
	$node->safe_psql('postgres', <<"END");
SELECT amqp_outbox.unbind_queue('mes', 'd', 'e', 'k$n');
SELECT amqp_outbox.undeclare_queue('mes', 'd', true, false, false);
SELECT amqp_outbox.discard('mes');
END
	# the broker ends it, the worker comes back by itself
	if ($n % 4 == 3)
	{
		my $since = status($node, 'postgres', 'mes', 'since');

		$broker->ctl('close_all_connections', 'test');
		wait_for($node, 'postgres',
			"SELECT state = 'connected' AND since <> '$since'
				FROM amqp_outbox.server_status", 'a new connection');
	}
	# an error of the worker's own SQL
	if ($n % 4 == 1)
	{
		my $offset = -s $node->logfile;

		$node->safe_psql('postgres',
			'ALTER TABLE amqp_outbox.receipt ADD CONSTRAINT no CHECK (false) NOT VALID');
		$node->safe_psql('postgres',
			"SELECT amqp_publish('', 'q', 'x'::text, server => 'mes')");
		wait_true('an error of the worker', sub {
			return log_lines($node, qr/ERROR: .*violates check constraint "no"/, $offset) > 0;
		});
		$node->safe_psql('postgres', 'ALTER TABLE amqp_outbox.receipt DROP CONSTRAINT no');
	}
	$node->safe_psql('postgres', 'SELECT amqp_outbox.wake()');
	wait_quiet();
	return;
}

# Headers of which the worker makes much more than there is to see: it reads no
# more of them than it has room for.
my ($before) = memory();
$broker->stop;
$node->safe_psql('postgres', <<'END');
SELECT count(amqp_publish('', 'q', 'x'::text, server => 'mes', headers => h))
	FROM (SELECT jsonb_build_object('a', jsonb_agg(null::int)) AS h
		FROM generate_series(1, 110000)) x, generate_series(1, 100)
END
# the second time, it has been through a whole turn of its loop since
memory();
my ($loaded) = memory();
cmp_ok($loaded - $before, '>', 1_000_000, 'large headers: the worker has read some');
cmp_ok($loaded - $before, '<', 64_000_000, 'large headers: and no more than it has room for');
$broker->start;
wait_quiet();
is($broker->count('q'), 100, 'large headers: all arrive');

my ($contexts, $most) = (0, 0);
my @end;
foreach my $n (1 .. $rounds)
{
	round($n);
	next if $n < $rounds / 3;
	@end = memory();
	next if $n > $rounds * 2 / 3;
	$contexts = $end[0];
	$most = $end[1] if $end[1] > $most;
}
note sprintf('two thirds: %d bytes in contexts, at most %d in all', $contexts, $most);
note sprintf('in the end: %d bytes in contexts, %d in all', @end);

cmp_ok($end[0] - $contexts, '<=', $contexts_grow, 'memory contexts do not grow');
SKIP:
{
	# which keeps what is freed for a while
	skip 'under AddressSanitizer', 1
	  if slurp_file("/proc/$worker/maps") =~ /libasan/;
	cmp_ok($end[1] - $most, '<=', $process_grows, 'the process does not grow');
}
is(worker_pid($node, 'postgres', 'mes'), $worker, 'all that by one and the same worker');

finish_node($node, errors => qr/violates check constraint "no"/);
done_testing();

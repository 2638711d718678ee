# VACUUM FULL, REINDEX and pg_dump of our tables while messages are published
# and delivered: nothing is lost, nothing comes twice, nobody's commit fails.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use PostgreSQL::Test::Utils;
use Test::More;

# where the first messages are written
my $outbox = 'amqp_outbox.outbox_0';

my $broker = AmqpOutboxTest::Broker->new('maintenance');
my $node = new_node('main');

create_server($node, 'postgres', 'mes', $broker);
create_sent($node, 'postgres');
$broker->declare_queue('q');

sub no_index_is_left
{
	my ($name) = @_;

	is( $node->safe_psql('postgres', <<'END'), '', "$name: no index is left behind");
SELECT indexrelid::regclass FROM pg_index JOIN pg_class c ON c.oid = indexrelid
	WHERE c.relnamespace = 'amqp_outbox'::regnamespace
	AND (NOT indisvalid OR c.relname ~ '_cc(new|old)')
END
	return;
}

#
# An index that is being built concurrently
#
# At first it only exists, for those who write in the meantime to see, and must
# not be written into.  It stays so as long as a transaction that locked the
# table before does.
#

my $holder = $node->background_psql('postgres');
$holder->query_safe("BEGIN; LOCK TABLE $outbox IN ROW EXCLUSIVE MODE");
my $reindex = $node->background_psql('postgres', on_error_stop => 0);
my $pid = $reindex->query_safe('SELECT pg_backend_pid()');
$reindex->{stdin} .= "REINDEX TABLE CONCURRENTLY $outbox;\n";
$reindex->{run}->pump_nb;
wait_for($node, 'postgres',
	"SELECT wait_event = 'virtualxid' AND query LIKE 'REINDEX%'
		FROM pg_stat_activity WHERE pid = $pid",
	'an index that is not ready');
my ($result, $output, $errors) =
  $node->psql('postgres', publish_sent('q', 1, 10));
is($errors, '', 'index not ready: commits go on');
wait_settled($node, 'postgres');
$holder->query_safe('COMMIT');
$holder->quit;
$reindex->query_safe('SELECT 1');
$reindex->quit;
check_account(committed($node, 'postgres'), $broker->received('q'),
	'index not ready');
no_index_is_left('index not ready');

#
# A table that is locked for longer than a worker waits
#
# As VACUUM FULL locks a large one: here it is the one that the broker's answers
# are written down in.
#

$node->safe_psql('postgres', 'TRUNCATE sent');
$holder = $node->background_psql('postgres');
$holder->query_safe('BEGIN; LOCK TABLE amqp_outbox.receipt');
$node->safe_psql('postgres', publish_sent('q', 1, 10));
wait_true('the worker tries again',
	sub { 2 <= log_lines($node, qr/ERROR:  canceling statement due to lock timeout/) });
$node->safe_psql('postgres', publish_sent('q', 1, 10));
$holder->query_safe('COMMIT');
$holder->quit;
wait_settled($node, 'postgres');
check_account(committed($node, 'postgres'), $broker->received('q'),
	'locked for long');

#
# Everything under load
#

$node->safe_psql('postgres', 'TRUNCATE sent');
my $load = start_load($node, "SELECT publish_sent('', 'q', :client_id);",
	clients => 3, rate => 500);
my @tables = split(/\n/, $node->safe_psql('postgres', <<'END'));
SELECT oid::regclass FROM pg_class
	WHERE relnamespace = 'amqp_outbox'::regnamespace AND relkind = 'r'
	ORDER BY relname
END
my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump.sql';

sub run_on_all
{
	my ($statement) = @_;
	my $problems = '';

	foreach my $table (@tables)
	{
		($result, $output, $errors) = $node->psql('postgres',
			"SET client_min_messages = warning; $statement $table");
		$problems .= $errors;
	}
	return $problems;
}

# Each one while messages are on their way.
foreach my $statement ('VACUUM FULL', 'REINDEX TABLE',
	'REINDEX TABLE CONCURRENTLY', 'VACUUM (ANALYZE)', 'pg_dump')
{
	my $before = status($node, 'postgres', 'mes', 'delivered');

	foreach my $round (1 .. 2)
	{
		if ($statement eq 'pg_dump')
		{
			command_ok([ 'pg_dump', '-f', $dump, $node->connstr('postgres') ],
				"pg_dump $round");
			next;
		}
		is(run_on_all($statement), '', "$statement $round");
	}
	wait_for($node, 'postgres',
		"SELECT delivered > $before + 50 FROM amqp_outbox.server_status",
		"deliveries after $statement");
}
ok(stop_load($load), "nobody's commit failed");
no_index_is_left('under load');
wait_settled($node, 'postgres');
check_account(committed($node, 'postgres'), $broker->received('q'), 'under load');

# A worker that could not get at a table for a second tries again.
finish_node($node, errors => qr/canceling statement due to lock timeout/);
done_testing();

# A synchronous standby that is away holds back what it has not confirmed, and
# names who waits for it.  A standby publishes nothing before it is promoted and
# everything afterwards, unless it is switched off.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('standby');
my $primary = new_primary('primary');

create_server($primary, 'postgres', 'mes', $broker);
create_sent($primary, 'postgres');
$broker->declare_queue('q');

my $standby = new_standby($primary, 'standby');
my $silent =
  new_standby($primary, 'silent', conf => 'amqp_outbox.enabled = off');
$primary->append_conf('postgresql.conf', "synchronous_standby_names = 'standby'");
$primary->reload;

sub wait_for_standby
{
	wait_for($primary, 'postgres',
		"SELECT EXISTS (SELECT FROM pg_stat_replication
			WHERE application_name = 'standby' AND sync_state = 'sync')",
		'the synchronous standby');
	return;
}

# Nothing arrives: here time itself is the test, many times what a worker that
# does not hold back needs.
sub check_silence
{
	my ($node, $name) = @_;

	$node->safe_psql('postgres', 'SELECT pg_sleep(0.7)');
	is($broker->count('q'), 0, "$name: nothing is published");
	return;
}

sub settle_and_check
{
	my ($name) = @_;

	wait_settled($primary, 'postgres');
	check_account(committed($primary, 'postgres'), $broker->received('q'), $name);
	return;
}

wait_for_standby();
$primary->safe_psql('postgres', publish_sent('q', 1, 100));
settle_and_check('with the standby');

#
# The synchronous standby is away
#

$primary->safe_psql('postgres', 'TRUNCATE sent');
$standby->stop;
my $session = $primary->background_psql('postgres', on_error_stop => 0);
my $pid = $session->query_safe('SELECT pg_backend_pid()');
$session->{stdin} .= "SELECT publish_sent('', 'q', 2);\n";
$session->{run}->pump_nb;
wait_for($primary, 'postgres',
	"SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = $pid",
	'the commit waits for the standby');
is( $primary->safe_psql('postgres',
		"SELECT holder_pid, horizon < next_id, held_since < clock_timestamp()
				AND held_since > (SELECT backend_start FROM pg_stat_activity WHERE pid = $pid)
			FROM amqp_outbox.horizon()"),
	"$pid|t|t", 'a commit waits: the horizon names it and since when');
check_silence($primary, 'a commit waits');

$primary->safe_psql('postgres', "SELECT pg_cancel_backend($pid)");
$session->query('SELECT 1');
$session->quit;
is( $primary->safe_psql('postgres',
		'SELECT count(*), (SELECT holder_pid FROM amqp_outbox.horizon()) FROM sent'),
	'1|', 'wait cancelled: the commit is visible, the horizon is free');
is(status($primary, 'postgres', 'mes', 'backlog'), 1,
	'wait cancelled: its message is due');
check_silence($primary, 'wait cancelled');

# a commit that never meant to wait
$primary->safe_psql('postgres', <<'END');
SET synchronous_commit = local;
SELECT publish_sent('', 'q', 3);
END
check_silence($primary, 'synchronous_commit = local');

# and what a crash made visible
$primary->stop('immediate');
$primary->start;
wait_state($primary, 'postgres', 'mes', 'connected');
check_silence($primary, 'after a crash');

$standby->start;
wait_for_standby();
settle_and_check('the standby is back');

#
# Promotion under load
#

$primary->safe_psql('postgres', 'TRUNCATE sent');
my $load = start_load($primary, "SELECT publish_sent('', 'q', :client_id);",
	clients => 3, rate => 600);
wait_true('deliveries under load', sub { $broker->count('q') > 500 });
$primary->stop('immediate');
$load->{run}->finish;

my @received = $broker->received_marked('q')->@*;
is( $standby->safe_psql('postgres',
		"SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'amqp_outbox%'"),
	0, 'before the promotion: the standby has no worker');
check_silence($standby, 'before the promotion');

# the one that is switched off
promote($silent);
$silent->safe_psql('postgres', "SELECT publish_sent('', 'q', 4)");
is(status($silent, 'postgres', 'mes', 'state'), 'not started',
	'promoted and switched off: no worker');
cmp_ok(status($silent, 'postgres', 'mes', 'backlog'), '>', 0,
	'promoted and switched off: messages are collected');
check_silence($silent, 'promoted and switched off');
finish_node($silent);

# What was published was confirmed by the standby, so that it knows all of it.
promote($standby);
wait_settled($standby, 'postgres');
push @received, $broker->received_marked('q')->@*;
check_account(committed($standby, 'postgres'), \@received, 'promoted',
	duplicates => 'marked');
worker_pid($standby, 'postgres', 'mes');
$standby->safe_psql('postgres', "TRUNCATE sent; SELECT publish_sent('', 'q', 5)");
wait_settled($standby, 'postgres');
check_account(committed($standby, 'postgres'), $broker->received('q'),
	'published after the promotion');

finish_node($standby);
done_testing();

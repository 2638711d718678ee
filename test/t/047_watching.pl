# What amqp_outbox.server_status counts and measures, and every rule of
# amqp_outbox.health: it turns to warning and critical when it should, and back.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use PostgreSQL::Test::Cluster;
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('watched');
my $node = new_primary('main', conf => 'amqp_outbox.max_workers = 2');

create_server(
	$node, 'postgres', 'mes', $broker,
	max_attempts => 1,
	unroutable => 'dead_letter');
$broker->declare_queue('q');
wait_state($node, 'postgres', 'mes', 'connected');

sub value
{
	my $column = shift;

	return status($node, 'postgres', 'mes', $column);
}

# SQL that publishes so many messages of 100 bytes.
sub publish
{
	my ($count, $more) = @_;

	return "SELECT amqp_publish('', 'q', repeat('x', 100) " . ($more // '') .
	  ") FROM generate_series(1, $count);";
}

# Wait until everything is delivered, and counted, which comes after the receipt.
sub settled
{
	wait_settled($node, 'postgres', 'mes');
	wait_for($node, 'postgres',
		"SELECT delivered_bytes = 100 * delivered FROM amqp_outbox.server_status
			WHERE server = 'mes'", 'everything counted');
	return;
}

# Messages in the histogram with a time in a range of seconds.
sub timed
{
	my ($from, $to) = @_;

	return $node->safe_psql('postgres',
		"SELECT coalesce(sum(messages), 0) FROM amqp_outbox.latency('mes')
			WHERE coalesce(extract(epoch FROM up_to), 1e9) > $from
			AND coalesce(extract(epoch FROM up_to), 1e9) <= $to");
}

# The level of a rule with these thresholds.
sub level
{
	my ($rule, $warning, $critical, %params) = @_;

	return $node->safe_psql(
		$params{database} // 'postgres',
		"SET amqp_outbox.health_${rule}_warning = '$warning';
		SET amqp_outbox.health_${rule}_critical = '$critical';
		SELECT level FROM amqp_outbox.health WHERE rule = '$rule'
			AND (server IS NULL OR server = '@{[ $params{server} // 'mes' ]}')");
}

# A rule that has something to tell now, from the smallest threshold on.
sub turns
{
	my ($rule, $smallest) = @_;

	wait_true("$rule: warning", sub { level($rule, $smallest, 0) eq 'warning' });
	is(level($rule, $smallest, $smallest), 'critical', "$rule: critical");
	is(level($rule, 0, 0), 'ok', "$rule: never");
	return;
}

sub turns_back
{
	my ($rule, $smallest) = @_;

	wait_true("$rule: ok", sub { level($rule, $smallest, $smallest) eq 'ok' });
	pass("$rule: back to ok");
	return;
}

# What is not ok by default.
sub findings
{
	my $database = shift;

	return $node->safe_psql($database // 'postgres',
		"SELECT rule, level FROM amqp_outbox.health WHERE level <> 'ok'
			ORDER BY rule, level");
}

is(findings(), '', 'all is well');

#
# Rates, bytes, times
#

$node->safe_psql('postgres', publish(1000));
settled();
is(value('delivered_bytes'), 100_000, 'bytes');
is(value("round(bytes_per_second - 100 * delivered_per_second) = 0
		AND delivered_per_second BETWEEN 1000 / 66.0 AND 1000"),
	't', 'rates: of the last minute');
is(timed(0, 1e9), 1000, 'times: each message has one');
is(value("confirm_p50 > '0' AND confirm_p50 <= confirm_p99"), 't', 'p50 and p99');
is( $node->safe_psql('postgres',
		"SELECT confirm_count, confirm_time > '0'
			AND confirm_time < confirm_count * interval '10 s'
			FROM amqp_outbox.measures()"),
	'1000|t', 'number and sum of the times');

# Here time itself is the test.  From commit on, that is, and not from the call
my $slow = timed(2, 1e9);
my $p99 = value('confirm_p99');
$node->safe_psql('postgres', 'BEGIN;' . publish(1) . 'SELECT pg_sleep(2.5); COMMIT');
settled();
is(timed(0, 1e9), 1001, 'a long transaction: counted');
is(timed(2, 1e9), $slow, 'a long transaction: its own time does not count');

$broker->freeze;
$node->safe_psql('postgres', publish(20));
$node->safe_psql('postgres', 'SELECT pg_sleep(2.5)');
$broker->thaw;
settled();
is(timed(2, 1e9), $slow + 20, 'a broker that does not confirm: that time does count');
is(value("confirm_p99 > '2 s'"), 't', 'a broker that does not confirm: p99');
is(value("confirm_p50 < '2 s'"), 't', 'a broker that does not confirm: not p50');
turns('confirm_time', '2s');
$node->safe_psql('postgres', publish(4000));
settled();
turns_back('confirm_time', '2s');

# what is to wait has no time
my $timed = timed(0, 1e9);
my $bytes = value('delivered_bytes');
$node->safe_psql('postgres', publish(5, ", delay => '100 ms'"));
settled();
is(timed(0, 1e9), $timed, 'scheduled: no time');
is(value('delivered_bytes'), $bytes + 500, 'scheduled: but bytes');

$node->safe_psql('postgres', publish(3, ", delay => '1 day'"));
is(value('backlog, scheduled, backlog_bytes, overdue_age'),
	'3|3|300|00:00:00', 'scheduled: not overdue');
is(level('backlog', 1, 1), 'ok', 'scheduled: no backlog');
is(level('overdue', '1ms', '1ms'), 'ok', 'scheduled: nothing to warn of');
$node->safe_psql('postgres', 'DELETE FROM amqp_outbox.deferred');

#
# A broker that is away
#

is(value('reconnects'), 0, 'reconnects: the first connection is none');
is(value('disconnected_since IS NULL'), 't', 'connected');
is(level('last_error', '1h', 0), 'ok', 'last_error: none');
$broker->stop;
wait_true('the worker to notice', sub { value('disconnected_since') ne '' });
$node->safe_psql('postgres', publish(2));
turns('connection', '1ms');
turns('overdue', '1ms');
turns('backlog', 2);
turns('last_error', '1h');
is(level('backlog', 3, 0), 'ok', 'backlog: below the threshold');
is(value('backlog_bytes'), 200, 'backlog in bytes');
is(level('worker', '1ms', '1ms'), 'ok', 'worker: it is there');
my $since = value('disconnected_since');
my $last_error_at = value('last_error_at');
wait_for($node, 'postgres',
	"SELECT last_error_at > '$last_error_at' FROM amqp_outbox.server_status",
	'a failed attempt');
is(value('disconnected_since'), $since, 'attempts do not begin it anew');
$broker->start;
settled();
is(value('reconnects'), 1, 'reconnects: only what succeeded counts');
turns_back('connection', '1ms');
turns_back('overdue', '1ms');
turns_back('backlog', 2);
turns_back('last_error', '1ms');

#
# A broker that asks for a pause
#

my $alarm = '{resource_limit, memory, node()}';
is(value('blocked_time'), '00:00:00', 'blocked: never so far');
$broker->ctl('eval', "rabbit_alarm:set_alarm({$alarm, []}).");
$node->safe_psql('postgres', publish(1));
wait_state($node, 'postgres', 'mes', 'blocked');
turns('blocked', '1ms');
wait_true('a second', sub { value("blocked_time > '1 s'") eq 't' });
is(level('connection', '1ms', '1ms'), 'ok', 'blocked: but connected');
$broker->ctl('eval', "rabbit_alarm:clear_alarm($alarm).");
settled();
turns_back('blocked', '1ms');
my $blocked = value('blocked_time');
cmp_ok(value("blocked_time > '1 s'"), 'eq', 't', 'blocked: is remembered');
$node->safe_psql('postgres', 'SELECT pg_sleep(0.1)');
is(value('blocked_time'), $blocked, 'blocked: and does not go on');
is(value('reconnects'), 1, 'blocked: without a new connection');

#
# Dead letters
#

is(value('dead_letters_by_reason'), '{}', 'dead letters: none');
$node->safe_psql('postgres', <<'END');
SELECT amqp_publish('', 'nowhere', 'x'::text) FROM generate_series(1, 2);
SELECT amqp_publish('no such exchange', 'x', 'x'::text);
END
wait_for($node, 'postgres',
	'SELECT dead_letters = 3 FROM amqp_outbox.server_status');
is(value('dead_letters_by_reason'),
	'{"unroutable": 2, "no exchange": 1}', 'dead letters by reason');
is(findings() =~ s/\n?last_error\|warning\n?//r,
	'dead_letters|warning', 'dead letters: by default');
turns('dead_letters', 3);
$node->safe_psql('postgres', 'SELECT * FROM amqp_outbox.discard()');
turns_back('dead_letters', 1);
is(value('dead_letters_by_reason'), '{}', 'dead letters: discarded');

#
# A conflict
#

$node->safe_psql('postgres',
	"SELECT amqp_outbox.declare_queue('mes', 'q', type => 'quorum')");
turns('topology', 1);
$node->safe_psql('postgres', "SELECT amqp_outbox.undeclare_queue('mes', 'q')");
turns_back('topology', 1);

#
# A transaction that takes long to commit
#

$node->append_conf('postgresql.conf', "synchronous_standby_names = 'nobody'");
$node->reload;
my $load = start_load($node, publish(1), clients => 1, transactions => 1);
turns('horizon', '1ms');
like(
	$node->safe_psql('postgres',
		"SELECT detail FROM amqp_outbox.health WHERE rule = 'horizon'"),
	qr/^held by process \d+$/, 'horizon: who it is');
$node->append_conf('postgresql.conf', "synchronous_standby_names = ''");
$node->reload;
stop_load($load, await => 1);
turns_back('horizon', '1ms');
settled();

#
# A large outbox
#

is(level('outbox_size', '1GB', '1GB'), 'ok', 'outbox_size');
$node->safe_psql('postgres', publish(10_000));
turns('outbox_size', '1MB');
settled();
my $quiet = $node->safe_psql('postgres', 'SELECT now()');

#
# No worker
#

my $launcher = $node->safe_psql('postgres',
	"SELECT pid FROM pg_stat_activity WHERE backend_type = 'amqp_outbox launcher'");
my $worker = worker_pid($node, 'postgres', 'mes');
kill 'STOP', $launcher;
$node->safe_psql('postgres', "SELECT pg_terminate_backend($worker)");
turns('worker', '1ms');
is(level('connection', '1ms', '1ms'), 'ok', 'worker: one cause, one finding');
kill 'CONT', $launcher;
wait_state($node, 'postgres', 'mes', 'connected');
turns_back('worker', '1ms');
is(value('reconnects'), 2, 'reconnects: also by another worker');

$node->append_conf('postgresql.conf', 'amqp_outbox.enabled = off');
$node->reload;
wait_true('off', sub { level('worker', 0, 0) eq 'warning' });
is( $node->safe_psql('postgres',
		"SELECT detail FROM amqp_outbox.health WHERE rule = 'worker'"),
	'amqp_outbox.enabled is off', 'worker: switched off');
$node->append_conf('postgresql.conf', 'amqp_outbox.enabled = on');
$node->reload;
wait_state($node, 'postgres', 'mes', 'connected');
turns_back('worker', '1ms');

$node->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE postgres');
wait_state($node, 'copy', 'mes', 'copy');
is(level('worker', 0, 0, database => 'copy'), 'warning', 'worker: a copy');
is(level('connection', '1ms', '1ms', database => 'copy'),
	'ok', 'worker: a copy need not be connected');
$node->safe_psql('copy', 'SELECT amqp_outbox.adopt()');
wait_state($node, 'copy', 'mes', 'connected');
is(level('worker', '1ms', '1ms', database => 'copy'), 'ok', 'worker: adopted');

create_server($node, 'postgres', 'third', $broker);
is(level('worker', 0, 0, server => 'third'), 'critical', 'worker: none left');
$node->safe_psql('postgres', 'DROP SERVER third CASCADE');

#
# What is more than a minute ago is not recent any more; here time itself is the
# test.
#

$node->safe_psql('postgres', "SELECT pg_sleep_until('$quiet'::timestamptz + '66 s')");
is(value('delivered_per_second, bytes_per_second, confirm_p50, confirm_p99'),
	'0|0||', 'after a quiet minute');
cmp_ok(timed(0, 1e9), '>', 10_000, 'the histogram is of all times');

#
# A restart
#

wait_state($node, 'postgres', 'mes', 'connected');
my $delivered = value('delivered');
my $counted_since = value('counted_since');
$node->restart;
wait_state($node, 'postgres', 'mes', 'connected');
is(value("counted_since > '$counted_since', delivered_bytes, reconnects,
		delivered_per_second, confirm_p50, delivered = $delivered"),
	't|0|0|0||t', 'a restart: only totals remain');
is(timed(0, 1e9), 0, 'a restart: no times');
is(findings(), '', 'a restart: all is well');

#
# A standby needs no worker
#

my $standby = new_standby($node, 'standby');
is( $standby->safe_psql('postgres',
		"SELECT rule, level, detail FROM amqp_outbox.health
			WHERE rule IN ('connection', 'worker') ORDER BY rule"),
	"connection|ok|\nworker|ok|this is a standby", 'a standby');
$standby->stop('fast');

finish_node($node);
done_testing();

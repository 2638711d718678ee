# amqp_wait_for_confirm(): true, false, or an error that says why not.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('confirm');
my $node = new_node('main', conf => 'max_prepared_transactions = 2');

create_server($node, 'postgres', 'mes', $broker,
	max_attempts => 1, unroutable => 'dead_letter');
$broker->declare_queue('q');

sub publish
{
	my ($id, $arguments) = @_;

	return "SELECT amqp_publish('', 'q', 'x'::text, message_id => '$id'"
	  . (defined $arguments ? ", $arguments" : '') . ');';
}

# Longer than anything should take; all else is a failure.
my $patience = "$PostgreSQL::Test::Utils::timeout_default s";

sub waiting
{
	my ($id, $timeout) = @_;

	return
	  "SELECT amqp_wait_for_confirm('$id', " . ($timeout // "'$patience'") . ');';
}

# What one session answers to several statements, last line only.
sub sql
{
	my @lines = split(/\n/, $node->safe_psql('postgres', join('', @_)));

	return $lines[-1];
}

# The error of the last of several statements.
sub refused
{
	my ($ret, $stdout, $stderr) = $node->psql('postgres',
		join('', '\set VERBOSITY verbose' . "\n", @_));

	return $stderr =~ s/^psql:<stdin>:\d+: |\nLOCATION:.*//grm;
}

is(sql(publish('own'), waiting('own')), 't', 'the own message');
is(sql(waiting('own')), 't', 'that of another session, after delivery');
is(sql('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1;', waiting('own'), 'COMMIT'),
	't', 'in a transaction with a snapshot of its own');
is(sql(publish('scheduled', "delay => '1 s'"), waiting('scheduled')),
	't', 'a scheduled message');
is( $node->safe_psql(
		'postgres',
		"SELECT count(*) = 0 FROM amqp_outbox.message WHERE status <> 'delivered'"),
	't',
	'all of them are delivered');

# the DO block commits in between
is( sql("DO \$\$ DECLARE id text; BEGIN
			id := amqp_publish('', 'q', 'x'::text); COMMIT;
			IF NOT amqp_wait_for_confirm(id) THEN RAISE 'not confirmed'; END IF;
		END \$\$;", "SELECT 'done'"),
	'done',
	'in a procedure that commits');

#
# Not yet
#

$broker->stop;
is(sql(publish('away'), waiting('away', "'200 ms'")), 'f', 'false at the timeout');
is(sql(waiting('away', "'0'")), 'f', 'false at once');
is(sql(waiting('away', "'-1 s'")), 'f', 'a timeout that is over');

# several sessions, which published it or not, with and without a limit
my @sessions = map { $node->background_psql('postgres') } 1 .. 3;
my @ids = ('away', 'away', 'third');
$sessions[2]->query_safe(publish('third'));
$sessions[$_]->query_until(qr/begun/,
	"\\echo begun\nSET statement_timeout = '$patience';\n"
	  . waiting($ids[$_], $_ == 1 ? 'NULL' : undef) . "\n")
  foreach 0 .. 2;
wait_for(
	$node, 'postgres',
	"SELECT count(*) = 3 FROM pg_stat_activity
		WHERE query LIKE 'SELECT amqp_wait_for_confirm%' AND state = 'active'",
	'three sessions that wait');
$broker->start;
wait_settled($node, 'postgres');
$_->quit foreach @sessions;
is_deeply([ map { $_->{stdout} =~ /\bt\b/ ? 't' : $_->{stdout} } @sessions ],
	[ 't', 't', 't' ], 'woken by the receipt');

# the worker is killed while a session waits
$broker->freeze;
my $session = $node->background_psql('postgres');
$session->query_until(qr/begun/,
	"\\echo begun\n" . publish('killed') . waiting('killed') . "\n");
wait_for($node, 'postgres',
	'SELECT in_flight = 1 FROM amqp_outbox.server_status', 'in flight');
$node->safe_psql('postgres', "SELECT pg_terminate_backend(pid)
	FROM pg_stat_activity WHERE backend_type = 'amqp_outbox worker'");
$broker->thaw;
$session->quit;
like($session->{stdout}, qr/^t$/m, 'by the next worker');

#
# Never
#

like(refused(publish('dead') =~ s/'q'/'nowhere'/r, waiting('dead')),
	qr/^ERROR:  HV000: message "dead" is a dead letter: unroutable\nDETAIL:  .*NO_ROUTE.*\nHINT:  amqp_outbox.requeue/m,
	'a dead letter');
sql("SELECT amqp_outbox.discard(message_id => 'dead');");
is(refused(waiting('dead')), 'ERROR:  HV000: message "dead" was discarded', 'a discarded one');
like(refused('BEGIN;', publish('mine'), waiting('mine')),
	qr/^ERROR:  55000: message "mine" is not committed yet\nDETAIL:  .*\nHINT:  Commit/m,
	'the own transaction');
like(refused('BEGIN;', publish('gone'), 'ROLLBACK;', waiting('gone')),
	qr/^ERROR:  42704: message "gone" is not known\nDETAIL:  .*retention/m,
	'rolled back');

# a commit that is cancelled when it has written its message: it waits for
# somebody who has taken its id
my $leaf = sql('SELECT amqp_outbox.leaf()');
my $blocker = $node->background_psql('postgres');
$blocker->query_safe("BEGIN; INSERT INTO amqp_outbox.outbox_$leaf (server_key, id,
	message_id, enqueued_at, exchange, routing_key, body)
	SELECT 1, next_id, 'blocker', now(), '', '', '' FROM amqp_outbox.horizon()");
$session = $node->background_psql('postgres', on_error_stop => 0);
$session->query_until(qr/begun/,
	"\\echo begun\n" . publish('cancelled') . waiting('cancelled') . "\n");
wait_for($node, 'postgres',
	'SELECT pg_cancel_backend(holder_pid) FROM amqp_outbox.horizon()
		WHERE holder_pid IS NOT NULL',
	'a commit that is cancelled');
$session->quit;
like($session->{stderr}, qr/canceling statement.*message "cancelled" is not known/s,
	'failed in its commit');
$blocker->query_safe('ROLLBACK');
$blocker->quit;

is(refused(waiting('x') =~ s/'x'/NULL/r) =~ /^(ERROR:  22004)/ && $1,
	'ERROR:  22004', 'null');

# what is prepared is not known before it is committed
like(refused('BEGIN;', publish('prepared'), "PREPARE TRANSACTION 'p';", waiting('prepared')),
	qr/42704: message "prepared" is not known/, 'prepared');
is(sql("COMMIT PREPARED 'p';", waiting('prepared')), 't', 'committed');

sql('CREATE ROLE stranger LOGIN;');
like(refused('SET ROLE stranger;', waiting('own')),
	qr/42501: permission denied to wait for messages\nDETAIL:  Who may publish to a server may wait for its messages, and you may publish to none.\nHINT:  GRANT USAGE ON FOREIGN SERVER ... is the right to publish./,
	'no right on any server');
sql("CREATE SERVER other FOREIGN DATA WRAPPER amqp_outbox OPTIONS (paused 'true');",
	'GRANT USAGE ON FOREIGN SERVER other TO stranger;');
like(refused('SET ROLE stranger;', waiting('own')),
	qr/42704: message "own" is not known/, 'who may publish elsewhere cannot tell whether it exists');
sql('DROP SERVER other CASCADE;');

# longer ago than the retention
sql("ALTER SYSTEM SET amqp_outbox.retention = 0;", 'SELECT pg_reload_conf();');
wait_for($node, 'postgres', 'SELECT count(*) = 0 FROM amqp_outbox.outbox', 'an empty outbox');
like(refused(waiting('own')), qr/42704: message "own" is not known/, 'forgotten');
is(sql(publish('last'), waiting('last')), 't', 'with a retention of 0');

finish_node($node);
done_testing();

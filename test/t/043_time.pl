# Messages with a time: not to be sent before it, or not after it.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('time');
my $node = new_node('main', conf => 'max_prepared_transactions = 2');

create_server($node, 'postgres', 'mes', $broker);
$broker->declare_queue('q');

sub publish
{
	my ($body, $arguments) = @_;

	return
	  "SELECT amqp_publish('', 'q', '$body'::text, message_id => '$body', $arguments);";
}

sub sql
{
	my $sql = shift;

	return $node->safe_psql('postgres', $sql);
}

sub bodies
{
	return [ map { $_->[0] } $broker->fields('q', 'body') ];
}

sub wait_delivered
{
	my @ids = @_;
	my $list = join(', ', map { "'$_'" } @ids);

	wait_for(
		$node,
		'postgres',
		'SELECT count(*) = ' . scalar(@ids) . " FROM amqp_outbox.message
			WHERE status = 'delivered' AND message_id IN ($list)",
		"delivered: @ids");
	return;
}

# One message, as the view shows it.
sub view
{
	my ($id, $columns) = @_;

	return sql("SELECT $columns FROM amqp_outbox.message WHERE message_id = '$id'");
}

#
# Not before
#

sql(publish('tomorrow', "delay => '1 day'") . publish('now', 'delay => NULL'));
wait_delivered('now');
is(view('tomorrow', "status, attempts, due_at - enqueued_at = '1 day'"),
	'scheduled|0|t', 'scheduled');
is_deeply(bodies(), ['now'], 'others do not wait for it');

# it is due before the one that the worker waits for
sql(publish('soon', "delay => '500 ms'"));
wait_delivered('soon');
is(view('soon', "delivered_at >= enqueued_at + interval '500 ms'"),
	't', 'not sent before it is due');
is_deeply(bodies(), ['soon'], 'sent when it is due');
is(view('soon', 'attempts'), '1', 'by one attempt');

# and this one before what was sent last
my $at = sql("SELECT now() + interval '1 s'");
sql(publish('second', "deliver_at => '$at'"));
sql(publish('first', "delay => '200 ms'"));
wait_delivered('first', 'second');
is_deeply(bodies(), [ 'first', 'second' ], 'in the order of their times');

sql(publish('past', "deliver_at => '2020-01-01'") . publish('present', 'ttl => NULL'));
wait_delivered('past', 'present');
is_deeply(bodies(), [ 'past', 'present' ], 'a time that is over is no time');

# one is overdue when its commit is done, and others were sent meanwhile
sql(publish('meanwhile', "delay => '2 s'"));
my $blocker = $node->background_psql('postgres');
my $slow = $node->background_psql('postgres');
$blocker->query_safe('BEGIN; LOCK TABLE amqp_outbox.identity');
$slow->query_until(qr/begun/,
	"\\echo begun\n" . publish('slow', "delay => '100 ms'") . "\n");
wait_delivered('meanwhile');
$blocker->query_safe('COMMIT');
$_->quit foreach ($blocker, $slow);
wait_delivered('slow');
is_deeply(bodies(), [ 'meanwhile', 'slow' ], 'overdue when it is committed');

sql('BEGIN;' . publish('rolled back', "delay => '1 ms'") . 'ROLLBACK');
sql(    'BEGIN; SAVEPOINT s;'
	  . publish('savepoint', "delay => '1 ms'")
	  . 'ROLLBACK TO s;'
	  . publish('kept', "delay => '1 ms'")
	  . 'SELECT pg_sleep(0.01); COMMIT');
wait_delivered('kept');
is_deeply(bodies(), ['kept'], 'what is rolled back is not scheduled');

# a prepared transaction's is due by its own time
sql('BEGIN;' . publish('prepared', "delay => '1 s'") . "PREPARE TRANSACTION 'p'");
sql("COMMIT PREPARED 'p'");
is(view('prepared', 'status'), 'scheduled', 'prepared: scheduled');
wait_delivered('prepared');
is(view('prepared', "delivered_at >= enqueued_at + interval '1 s'"),
	't', 'prepared: not sent before it is due');
bodies();

#
# Ordering keys
#

sql(publish('k1', "ordering_key => 'k', delay => '1 s'")
	  . publish('k2', "ordering_key => 'k'")
	  . publish('k3', "ordering_key => 'k', delay => '300 ms'")
	  . publish('other', "ordering_key => 'o'"));
wait_delivered('other');
is(view('k2', 'status'), 'pending', 'a later one of its key waits for it');
wait_delivered('k1', 'k2', 'k3');
is_deeply(bodies(), [ 'other', 'k1', 'k2', 'k3' ], 'and is not overtaken');

#
# Not after
#

sql(publish('in time', "ttl => '1 hour'")
	  . publish('shorter', "ttl => '1 hour', expiration => '5 s'")
	  . publish('longer', "ttl => '1 hour', expiration => '2 hours'")
	  . publish('later', "delay => '1 s', ttl => '1 hour'"));
wait_delivered('in time', 'shorter', 'longer', 'later');
my %expiration =
  map { $_->{body_text} => $_->{properties}{expiration} } $broker->messages('q');
for my $id ('in time', 'longer', 'later')
{
	ok($expiration{$id} <= 3_600_000 && $expiration{$id} > 3_500_000,
		"$id: what remains is its expiration: $expiration{$id} ms");
}
is($expiration{shorter}, 5000, 'its own expiration, if it is shorter');

$broker->stop;
sql(publish('too late', "ttl => '1 ms'") . publish('still', "ttl => '1 hour'"));
is(view('too late', 'status'), 'pending', 'while the broker is away it waits');
$broker->start;
wait_delivered('still');
is_deeply(bodies(), ['still'], 'its time is over: it is not sent');
is( sql("SELECT reason, attempts, last_error, possible_duplicate
		FROM amqp_outbox.dead_letter WHERE message_id = 'too late'"),
	'expired|0|not delivered within its ttl|f',
	'but it is a dead letter');
is(sql('SELECT rejected FROM amqp_outbox.server_status'),
	'0', 'which the broker did not refuse');

sql("SELECT amqp_outbox.requeue(message_id => 'too late')");
wait_delivered('too late');
is_deeply(bodies(), ['too late'], 'requeued, it has all the time');

# the next attempt would come long after its end
sql("SELECT amqp_publish('', 'nowhere', 'x'::text, message_id => 'unroutable',
	ttl => '1500 ms')");
wait_for(
	$node,
	'postgres',
	"SELECT count(*) = 1 FROM amqp_outbox.dead_letter
		WHERE message_id = 'unroutable' AND reason = 'expired'",
	'its time ends between two attempts');
is( sql("SELECT attempts >= 1, last_attempt_at - enqueued_at < interval '3 s'
		FROM amqp_outbox.dead_letter WHERE message_id = 'unroutable'"),
	't|t',
	'and it does not wait for the next one');

# a key goes on after one of it has expired
$broker->stop;
sql(publish('e1', "ordering_key => 'e', ttl => '1 ms'")
	  . publish('e2', "ordering_key => 'e'"));
$broker->start;
wait_delivered('e2');
is_deeply(bodies(), ['e2'], 'an expired message releases its key');

is(view('tomorrow', 'status'), 'scheduled', 'what is due tomorrow is still there');
finish_node($node);
done_testing();

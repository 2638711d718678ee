# What the broker does not take waits in amqp_outbox.deferred with the broker's
# words, holds up nobody, and is delivered as soon as it can be.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('returned');
my $node = new_node('main');

create_server($node, 'postgres', 'mes', $broker);
$broker->declare_queue('q');

sub publish
{
	my ($exchange, $routing_key, $body) = @_;

	return "SELECT amqp_publish('$exchange', '$routing_key', '$body'::text);";
}

# Wait until so many messages are deferred and nothing else is left.
sub wait_deferred
{
	my $count = shift;

	wait_for(
		$node,
		'postgres',
		"SELECT backlog = $count AND in_flight = 0
			AND (SELECT count(*) FROM amqp_outbox.deferred) = $count
			FROM amqp_outbox.server_status",
		"$count deferred messages");
	return;
}

sub bodies
{
	return [ map { $_->[0] } $broker->fields(shift, 'body') ];
}

# One message, as the view shows it.
sub view
{
	my ($id, $columns) = @_;

	return $node->safe_psql('postgres',
		"SELECT $columns FROM amqp_outbox.message WHERE message_id = '$id'");
}

# Counts of the server's status.
sub counts
{
	return status($node, 'postgres', 'mes',
		"concat_ws(' ', delivered, returned > 0, rejected > 0)");
}

#
# Returned: there is no queue
#

my $ids = $node->safe_psql('postgres',
	'BEGIN;'
	  . publish('', 'q', 'before')
	  . publish('', 'later', 'returned')
	  . publish('', 'q', 'after')
	  . 'COMMIT');
my $id = (split(/\n/, $ids))[1];

wait_deferred(1);
is_deeply(bodies('q'), [ 'before', 'after' ], 'returned: neighbours arrive');
is( $node->safe_psql('postgres',
		"SELECT message_id = '$id', reply_code, last_error
			FROM amqp_outbox.deferred"),
	't|312|NO_ROUTE',
	"returned: the broker's words");
is(view($id, 'status, attempts >= 1, due_at > enqueued_at, delivered_at'),
	'retrying|t|t|', 'returned: the view');
like(view($id, 'last_error'), qr/NO_ROUTE/, 'returned: the view has the words');
is(counts(), '2 t f', 'returned: not counted as delivered');
is(status($node, 'postgres', 'mes', 'state'),
	'connected', 'returned: the connection stays');
$node->safe_psql('postgres', publish('', 'q', 'much later'));
wait_deferred(1);
is_deeply(bodies('q'), ['much later'], 'returned: others go on');

# it is tried again, and again
wait_for($node, 'postgres',
	'SELECT attempts >= 2 FROM amqp_outbox.deferred', 'a second attempt');
is($node->safe_psql('postgres',
		'SELECT due_at > last_attempt_at AND last_attempt_at > first_attempt_at
			FROM amqp_outbox.deferred'),
	't', 'returned: times of the attempts');

$broker->declare_queue('later');
wait_settled($node, 'postgres');
my ($message) = $broker->messages('later');
is($message->{body_text}, 'returned', 'returned: delivered in the end');
is($message->{properties}{message_id}, $id, 'returned: with its id');
is($message->{properties}{headers},
	undef, 'returned: an outcome that is known makes no duplicate');
is(view($id, 'status, attempts >= 3, due_at, delivered_at > enqueued_at, last_error'),
	'delivered|t||t|', 'returned: the view in the end');
is(counts(), '4 t f', 'returned: counted as delivered once');

#
# Rejected: the queue is full
#

$broker->declare_queue('full', '--arg', 'x-max-length=2', '--arg',
	'x-overflow=reject-publish');
$node->safe_psql('postgres',
	join('', map { publish('', $_ % 2 ? 'full' : 'q', $_) } 1 .. 8));

# a full queue says so only when it is full: two or three of four fit
wait_for(
	$node, 'postgres',
	'SELECT backlog > 0 AND in_flight = 0
		AND backlog = (SELECT count(*) FROM amqp_outbox.deferred)
		FROM amqp_outbox.server_status', 'rejected messages');
is_deeply(bodies('q'), [ 2, 4, 6, 8 ], 'rejected: neighbours arrive');
is( $node->safe_psql('postgres',
		"SELECT DISTINCT reply_code IS NULL, last_error <> ''
			FROM amqp_outbox.deferred"),
	't|t', 'rejected: a nack has no code, but a reason');
is(status($node, 'postgres', 'mes', 'rejected > 0'), 't', 'rejected: counted');

# each time that there is room, more of them arrive
my %arrived;
wait_true(
	'all rejected messages',
	sub {
		$arrived{$_}++ foreach bodies('full')->@*;
		return keys %arrived == 4;
	});
is_deeply([ sort keys %arrived ], [ 1, 3, 5, 7 ], 'rejected: all in the end');
is_deeply([ values %arrived ], [ 1, 1, 1, 1 ], 'rejected: each once');
wait_settled($node, 'postgres');

#
# No such exchange: the broker closes the channel and forgets everybody's
# confirms
#

my $delivered = status($node, 'postgres', 'mes', 'delivered');
my $worker = worker_pid($node, 'postgres', 'mes');
my $since = status($node, 'postgres', 'mes', 'since');
$ids = $node->safe_psql('postgres',
	'BEGIN;'
	  . join('', map { publish('', 'q', "before $_") } 1 .. 50)
	  . publish('no such exchange', 'k', 'culprit')
	  . join('', map { publish('', 'q', "after $_") } 1 .. 50)
	  . 'COMMIT');
$id = (split(/\n/, $ids))[50];

wait_deferred(1);
my @messages = $broker->messages('q');
my %seen;
my @unmarked;
my @first;

foreach my $message (@messages)
{
	if ($seen{ $message->{body_text} }++)
	{
		push @unmarked, $message->{body_text}
		  unless $message->{properties}{headers}{'x-possible-duplicate'};
	}
	else
	{
		push @first, $message->{body_text};
	}
}
is_deeply(\@first,
	[ (map { "before $_" } 1 .. 50), (map { "after $_" } 1 .. 50) ],
	'missing exchange: neighbours arrive in order');
is_deeply(\@unmarked, [], 'missing exchange: copies say that they are');
is($node->safe_psql('postgres',
		"SELECT message_id = '$id', reply_code FROM amqp_outbox.deferred"),
	't|404', 'missing exchange: the culprit is deferred');
like(view($id, 'last_error'), qr/NOT_FOUND.*no such exchange/,
	"missing exchange: the broker's words");
is(status($node, 'postgres', 'mes', "delivered - $delivered"),
	100, 'missing exchange: neighbours are counted once');
is(worker_pid($node, 'postgres', 'mes'),
	$worker, 'missing exchange: the worker stays');

# others go on while it is tried again
foreach my $i (1 .. 3)
{
	my $attempts = $node->safe_psql('postgres',
		'SELECT attempts FROM amqp_outbox.deferred');

	last if $attempts >= 3;
	wait_for($node, 'postgres',
		"SELECT attempts > $attempts FROM amqp_outbox.deferred",
		'another attempt');
	$node->safe_psql('postgres', publish('', 'q', "meanwhile $i"));
	wait_deferred(1);
	is_deeply([ grep { !/after|before/ } bodies('q')->@* ],
		["meanwhile $i"], 'missing exchange: others go on');
}

$broker->declare_exchange('no such exchange', 'fanout');
$broker->bind_queue('later', 'no such exchange', '');
wait_settled($node, 'postgres');
is_deeply(bodies('later'), ['culprit'],
	'missing exchange: delivered in the end');
is(view($id, 'status, attempts >= 2, delivered_at > enqueued_at'),
	'delivered|t|t', 'missing exchange: the view in the end');

#
# Several culprits of different kinds among many
#

my @expected;
my $sql = 'BEGIN;';
foreach my $i (1 .. 200)
{
	if ($i % 50 == 7)
	{
		$sql .= publish("missing $i", 'k', "missing $i");
	}
	elsif ($i % 50 == 20)
	{
		$sql .= publish('', "nowhere $i", "nowhere $i");
	}
	else
	{
		$sql .= publish('', 'q', $i);
		push @expected, $i;
	}
}
$node->safe_psql('postgres', "$sql COMMIT");
wait_deferred(8);
%seen = ();
is_deeply([ grep { !$seen{$_}++ } bodies('q')->@* ],
	\@expected, 'eight culprits: neighbours arrive in order');
is( $node->safe_psql('postgres',
		"SELECT string_agg(DISTINCT split_part(convert_from(body, 'UTF8'), ' ', 1)
			|| ' ' || reply_code, ', ') FROM amqp_outbox.deferred"),
	'missing 404, nowhere 312',
	'eight culprits: each with its reason');

finish_node($node);
done_testing();

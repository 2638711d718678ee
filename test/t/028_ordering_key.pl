# Messages of one ordering key do not overtake each other, whatever fails; they
# hold back no other key; and on the way that is known to work thousands of one
# key are in flight together.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('ordering');
my $node = new_node('main');

create_server($node, 'postgres', 'mes', $broker);
$broker->declare_exchange('e', 'topic');
$broker->declare_queue('q');
$broker->bind_queue('q', 'e', 'good');

# Publish in one transaction: a list of [key, routing key, body].
sub publish
{
	my @messages = @_;
	my $sql = join(
		'',
		map {
			my $key = defined $_->[0] ? "'$_->[0]'" : 'NULL';
			"SELECT amqp_publish('e', '$_->[1]', '$_->[2]', message_id => '$_->[2]',
				ordering_key => $key);"
		} @messages);

	$node->safe_psql('postgres', "BEGIN; $sql COMMIT");
	return;
}

# Wait until only these are not delivered (bodies, in the order of publishing).
sub wait_pending
{
	my ($pending) = @_;

	wait_for(
		$node, 'postgres',
		"SELECT coalesce(string_agg(message_id, ' ' ORDER BY id), '') = '$pending'
			FROM amqp_outbox.message WHERE status IN ('pending', 'retrying')",
		"nothing pending but '$pending'");
	return;
}

sub taken
{
	return join(' ', map { $_->[0] } $broker->fields('q', 'body'));
}

sub wake { $node->safe_psql('postgres', 'SELECT amqp_outbox.wake()'); return; }

#
# One in the middle that cannot be routed
#

publish([ 'a', 'good', 'a1' ], [ 'a', 'later', 'a2' ], [ 'a', 'good', 'a3' ],
	[ 'b', 'good', 'b1' ], [ undef, 'good', 'x1' ], [ 'a', 'good', 'a4' ],
	[ 'b', 'good', 'b2' ]);
wait_pending('a2 a3 a4');
is(taken(), 'a1 b1 x1 b2', 'what follows it in its key waits, the rest does not');

publish([ 'b', 'good', 'b3' ], [ 'a', 'good', 'a5' ]);
publish([ 'c', 'later', 'c1' ], [ 'c', 'good', 'c2' ]);
wait_pending('a2 a3 a4 a5 c1 c2');
is(taken(), 'b3', 'so does what is published afterwards');

# many behind it, more than become due together
$node->safe_psql('postgres', <<'END');
SELECT count(amqp_publish('e', 'good', 'a' || i, message_id => 'a' || i,
	ordering_key => 'a')) FROM generate_series(6, 1500) i;
SELECT count(amqp_publish('e', 'good', 'd' || i, message_id => 'd' || i,
	ordering_key => 'd')) FROM generate_series(1, 1500) i;
END
wait_for(
	$node, 'postgres', "SELECT count(*) = 1500 FROM amqp_outbox.message
		WHERE message_id ~ '^d' AND status = 'delivered'",
	'the other key delivered');
is(taken(), join(' ', map { "d$_" } 1 .. 1500), 'another key is not held up');

# whatever happens to the worker
$node->restart;
$node->stop('immediate');
$node->start;
wait_state($node, 'postgres', 'mes', 'connected');
publish([ 'a', 'good', 'a1501' ], [ undef, 'good', 'x2' ]);
wait_for($node, 'postgres',
	"SELECT status = 'delivered' FROM amqp_outbox.message WHERE message_id = 'x2'"
);
is(taken(), 'x2', 'they wait after a crash, too');

$broker->bind_queue('q', 'e', 'later');
wake();
wait_settled($node, 'postgres');
my @taken = split(/ /, taken());
is( join(' ', grep { /^a/ } @taken),
	join(' ', map { "a$_" } 2 .. 1501),
	'then all arrive in their order');
is(join(' ', grep { /^c/ } @taken), 'c1 c2', 'those of the third key, too');

#
# An exchange that is missing: the broker closes the channel
#

$node->safe_psql('postgres', <<'END');
BEGIN;
SELECT count(amqp_publish('e', 'good', 'k' || k || ' ' || i, ordering_key => 'k' || k))
	FROM generate_series(1, 20) i, generate_series(1, 5) k;
SELECT amqp_publish('gone', 'x', 'a1', ordering_key => 'a');
SELECT count(amqp_publish('e', 'good', 'a' || i, ordering_key => 'a'))
	FROM generate_series(2, 20) i;
SELECT count(amqp_publish('e', 'good', 'k' || k || ' ' || i, ordering_key => 'k' || k))
	FROM generate_series(21, 40) i, generate_series(1, 5) k;
COMMIT;
END
wait_for($node, 'postgres',
	"SELECT backlog = 20 FROM amqp_outbox.server_status");

# the broker forgot the confirms of what was in flight: once, and marked
my (%times, %unmarked);
my @first;
foreach my $arrival (@{ $broker->received_marked('q') })
{
	my ($id, $body, $marked) = @$arrival;

	push @first, $body if !$times{$body}++;
	$unmarked{$body} += !$marked;
}
is_deeply(
	[ grep { /^k1 / } @first ],
	[ map { "k1 $_" } 1 .. 40 ],
	'other keys keep their order through a closed channel');
is(scalar(@first), 200, 'none of its key came');
is(scalar(grep { $times{$_} > 2 || $unmarked{$_} > 1 } @first),
	0, 'nothing came more than twice, nor twice without a mark');
$broker->declare_exchange('gone', 'fanout');
$broker->bind_queue('q', 'gone', '');
wake();
wait_settled($node, 'postgres');
is(taken(), join(' ', map { "a$_" } 1 .. 20), 'and then in their order');

#
# A queue that rejects: with key_window 1 not even that can be overtaken
#

$broker->tool(
	'--arg' => 'x-max-length=3',
	'--arg' => 'x-overflow=reject-publish',
	'declare-queue' => 'small');
$broker->bind_queue('small', 'e', 'small');
$node->safe_psql('postgres',
	"ALTER SERVER mes OPTIONS (ADD key_window '1')");
$node->safe_psql('postgres', <<'END');
SELECT count(amqp_publish('e', 'small', 's' || i, ordering_key => 's'))
	FROM generate_series(1, 30) i;
END
my @small;
wait_true(
	'all through the small queue',
	sub {
		push @small, map { $_->[0] } $broker->fields('small', 'body');
		wake();
		return @small >= 30;
	});
is(join(' ', @small), join(' ', map { "s$_" } 1 .. 30), 'in their order');
$node->safe_psql('postgres', 'ALTER SERVER mes OPTIONS (DROP key_window)');
wait_settled($node, 'postgres');

#
# Dead letters: they release their key, or hold it
#

$node->safe_psql('postgres',
	"ALTER SERVER mes OPTIONS (ADD unroutable 'dead_letter')");
publish([ 'r', 'never', 'r1' ], [ 'r', 'good', 'r2' ], [ 'r', 'good', 'r3' ]);
wait_settled($node, 'postgres');
is(taken(), 'r2 r3', 'a dead letter releases its key');

reconnect($node, 'postgres', 'mes',
	"ALTER SERVER mes OPTIONS (ADD dead_letter_holds_key 'true', SET host 'localhost')");
publish(
	map { ([ $_, 'never', "${_}1" ], [ $_, 'good', "${_}2" ], [ $_, 'good', "${_}3" ]) }
	  'h', 'i');
publish([ 'h', 'good', 'h4' ], [ 'j', 'good', 'j1' ]);
wait_pending('h2 h3 i2 i3 h4');
is(taken(), 'j1', 'or holds it');
$node->restart;
publish([ 'h', 'good', 'h5' ], [ 'j', 'good', 'j2' ]);
wait_pending('h2 h3 i2 i3 h4 h5');
is(taken(), 'j2', 'also after a restart');
is( $node->safe_psql(
		'postgres', "SELECT * FROM amqp_outbox.discard(message_id => 'i1')"),
	'mes|' . $node->safe_psql('postgres', "SELECT id FROM amqp_outbox.message WHERE message_id = 'i1'") . '|i1',
	'discard');
wait_pending('h2 h3 h4 h5');
is(taken(), 'i2 i3', 'until it is discarded');
$broker->bind_queue('q', 'e', 'never');
$node->safe_psql('postgres', "SELECT amqp_outbox.requeue(message_id => 'h1')");
wait_settled($node, 'postgres');
is(taken(), 'h1 h2 h3 h4 h5', 'or requeued, and then it goes first');

#
# Thousands of one key in flight, where messages of it arrive
#

publish([ 'f', 'good', 'f0' ]);
wait_settled($node, 'postgres');
$broker->freeze;
$node->safe_psql('postgres', <<'END');
SELECT count(amqp_publish('e', 'good', 'f' || i, ordering_key => 'f'))
	FROM generate_series(1, 5000) i;
END
wait_for($node, 'postgres',
	'SELECT in_flight = 1024 FROM amqp_outbox.server_status');
$broker->thaw;
wait_settled($node, 'postgres');
is(taken(), join(' ', map { "f$_" } 0 .. 5000), 'pipelined, and in order');

#
# A stop while one waits for another of its key: what follows it was delivered,
# and no receipt can say so; it comes again, and must say that.
#

$node->append_conf('postgresql.conf', 'amqp_outbox.drain_timeout = 60s');
$node->restart;
wait_state($node, 'postgres', 'mes', 'connected');
$broker->freeze;
publish([ 'w', 'good', 'w1' ], [ 'w', 'good', 'w2' ],
	map { [ undef, 'good', "y$_" ] } 1 .. 50);
wait_for($node, 'postgres',
	'SELECT in_flight = 51 FROM amqp_outbox.server_status', 'w2 waits for w1');
$node->append_conf('postgresql.conf', 'amqp_outbox.enabled = off');
$node->reload;
wait_state($node, 'postgres', 'mes', 'draining');
$broker->thaw;
wait_for($node, 'postgres',
	"SELECT count(*) = 0 FROM pg_stat_activity
		WHERE backend_type = 'amqp_outbox worker'");
$node->append_conf('postgresql.conf', 'amqp_outbox.enabled = on');
$node->reload;
wait_settled($node, 'postgres');
%times = %unmarked = ();
foreach my $arrival (@{ $broker->received_marked('q') })
{
	$times{ $arrival->[1] }++;
	$unmarked{ $arrival->[1] } += !$arrival->[2];
}
is(scalar(grep { /^y/ && $times{$_} == 2 } keys %times),
	50, 'what was delivered behind it comes again');
is(scalar(grep { $unmarked{$_} > 1 } keys %times), 0, 'marked');

finish_node($node);
done_testing();

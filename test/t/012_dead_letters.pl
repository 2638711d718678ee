# What the broker will not take ends in amqp_outbox.dead_letter, with the
# reason and the broker's words; from there it is sent again or discarded.
# Policy for unroutable messages: retry, dead_letter, accept.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxPeer;
use AmqpOutboxTest;
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('dead_letters');
my $node = new_node('main');

create_server($node, 'postgres', 'mes', $broker, max_attempts => 2);
$broker->declare_queue('q');

sub publish
{
	my ($id, $exchange, $key, $more) = @_;

	$node->safe_psql('postgres',
		"SELECT amqp_publish('$exchange', '$key', 'x', message_id => '$id' "
		  . ($more // '') . ')');
	return;
}

sub dead
{
	return $node->safe_psql('postgres',
		'SELECT message_id, reason, reply_code, attempts, last_error
			FROM amqp_outbox.dead_letter ORDER BY message_id');
}

sub wait_dead
{
	my ($count) = @_;

	wait_for($node, 'postgres',
		"SELECT count(*) = $count FROM amqp_outbox.dead_letter",
		"$count dead letters");
	return;
}

#
# Reasons
#

publish('good 1', '', 'q');
publish('lost', '', 'nowhere');
publish('stray', 'no such exchange', 'x');
publish('good 2', '', 'q');
publish('forger', '', 'q', ", user_id => 'somebody else'");
publish('good 3', '', 'q');
wait_dead(3);
wait_settled($node, 'postgres');

is( dead(), <<'END' =~ s/\n\z//r,
forger|malformed|406|1|PRECONDITION_FAILED - user_id property set to 'somebody else' but authenticated user was 'guest'
lost|unroutable|312|2|NO_ROUTE
stray|no exchange|404|2|NOT_FOUND - no exchange 'no such exchange' in vhost '/'
END
	'dead letters with reason, reply code, attempts and the words of the broker');
my %seen = map { $_->[0] => 1 } $broker->fields('q', 'message_id');
is_deeply([ sort keys %seen ], [ 'good 1', 'good 2', 'good 3' ],
	'their neighbours arrived');
is( $node->safe_psql('postgres',
		"SELECT message_id, status, attempts, delivered_at IS NULL
			FROM amqp_outbox.message WHERE status <> 'delivered' ORDER BY 1"),
	"forger|dead|1|t\nlost|dead|2|t\nstray|dead|2|t",
	'the view shows them as dead');
is(status($node, 'postgres', 'mes', 'dead_letters'), 3,
	'so does the status of the server');

#
# Requeue and discard
#

$broker->declare_queue('nowhere');
is( $node->safe_psql('postgres',
		"SELECT * FROM amqp_outbox.requeue(reason => 'unroutable')"),
	$node->safe_psql('postgres',
		"SELECT server, id, message_id FROM amqp_outbox.message
			WHERE message_id = 'lost'"),
	'requeue says which messages it took');
wait_settled($node, 'postgres');
is_deeply([ $broker->fields('nowhere', 'message_id') ], [ ['lost'] ],
	'a requeued message arrives with its message id');
is( $node->safe_psql('postgres',
		"SELECT status, delivered_at > enqueued_at FROM amqp_outbox.message
			WHERE message_id = 'lost'"),
	'delivered|t', 'and is delivered');

is( $node->safe_psql('postgres',
		"SELECT discarded_message_id FROM amqp_outbox.discard(message_id => 'stray')"),
	'stray', 'discard says which messages it took');
is( $node->safe_psql('postgres',
		"SELECT status, delivered_at IS NULL FROM amqp_outbox.message
			WHERE message_id = 'stray'"),
	'discarded|t', 'a discarded message is not delivered');
is( $node->safe_psql('postgres',
		"SELECT count(*) FROM amqp_outbox.requeue(exchange => 'none')"),
	0, 'nothing matches, nothing happens');
like(dead(), qr{\Aforger[^\n]*\z}, 'one dead letter is left');

#
# Policies
#

$node->safe_psql('postgres',
	"ALTER SERVER mes OPTIONS (ADD unroutable 'dead_letter')");
publish('at once', '', 'really nowhere');
wait_dead(2);
is( $node->safe_psql('postgres',
		"SELECT reason, attempts FROM amqp_outbox.dead_letter
			WHERE message_id = 'at once'"),
	'unroutable|1', 'policy dead_letter: after the first attempt');

$node->safe_psql('postgres', "ALTER SERVER mes OPTIONS (SET unroutable 'accept')");
publish('accepted', '', 'really nowhere');
wait_settled($node, 'postgres');
is( $node->safe_psql('postgres',
		"SELECT status FROM amqp_outbox.message WHERE message_id = 'accepted'"),
	'delivered', 'policy accept: it counts as delivered');
is(status($node, 'postgres', 'mes', 'accepted'), 1, 'and is counted apart');

# The policy counts that is there when a message comes back, not when it is settled:
# here it waits for one before it, to a broker that is a script.
my $peer = AmqpOutboxPeer->broker;

sub returned
{
	my ($policy, $next, $tag) = @_;

	publish("before $next", '', 'q');
	publish("then $next", '', 'nowhere');
	$peer->read_message foreach 1 .. 2;
	wait_for($node, 'postgres',
		'SELECT in_flight = 2 FROM amqp_outbox.server_status');
	$peer->return_message("then $next", '', 'nowhere');
	$peer->ack($tag + 1);
	wait_for($node, 'postgres',
		'SELECT in_flight = 1 FROM amqp_outbox.server_status',
		"back under policy $policy");
	$node->safe_psql('postgres',
		"ALTER SERVER mes OPTIONS (SET unroutable '$next')");
	$peer->ack($tag);
	wait_for($node, 'postgres',
		"SELECT status = 'delivered' FROM amqp_outbox.message
			WHERE message_id = 'before $next'");
	return $node->safe_psql('postgres',
		"SELECT status FROM amqp_outbox.message WHERE message_id = 'then $next'");
}

$node->safe_psql('postgres',
	"ALTER SERVER mes OPTIONS (SET port '@{[ $peer->port ]}')");
$peer->welcome;
is(returned('accept', 'dead_letter', 1),
	'delivered', 'altered from accept to dead_letter: it was accepted');
is(status($node, 'postgres', 'mes', 'accepted'), 2, 'and is counted');
$node->safe_psql('postgres', "ALTER SERVER mes OPTIONS (SET unroutable 'retry')");
is(returned('retry', 'accept', 3),
	'retrying', 'altered from retry to accept: it is tried again');
is(status($node, 'postgres', 'mes', 'accepted'), 2, 'and is not counted');
$peer->read_message;
$peer->ack(5);
wait_settled($node, 'postgres');
$node->safe_psql('postgres',
	"ALTER SERVER mes OPTIONS (SET port '@{[ $broker->port ]}')");
$peer->await_hangup;

#
# Age: attempts are left, but the first one is too long ago
#

$node->safe_psql('postgres',
	"ALTER SERVER mes OPTIONS (SET unroutable 'retry', SET max_attempts '1000',
		ADD max_age '1h')");
publish('young', '', 'really nowhere');
publish('old', '', 'really nowhere');
wait_for($node, 'postgres',
	'SELECT count(*) = 2 FROM amqp_outbox.deferred', 'both wait');
$node->safe_psql('postgres',
	"UPDATE amqp_outbox.deferred SET first_attempt_at = now() - interval '2h'
		WHERE message_id = 'old'");
wait_dead(3);
is( $node->safe_psql('postgres',
		"SELECT reason FROM amqp_outbox.dead_letter WHERE message_id = 'old'"),
	'unroutable', 'beyond max_age: given up');
wait_for($node, 'postgres',
	"SELECT attempts >= 2 FROM amqp_outbox.deferred WHERE message_id = 'young'",
	'the other one is tried again');


#
# An outage is no attempt, even of what is in flight
#

$node->safe_psql('postgres', 'SELECT amqp_outbox.discard(); DELETE FROM amqp_outbox.deferred');
$broker->fields('q', 'message_id');
$node->safe_psql('postgres', "ALTER SERVER mes OPTIONS (SET max_attempts '1', SET max_age '0')");
wait_state($node, 'postgres', 'mes', 'connected');
$broker->freeze;
$node->safe_psql('postgres',
	"SELECT amqp_publish('', 'q', 'x'::text, message_id => 'outage ' || i)
		FROM generate_series(1, 10) i");
wait_for($node, 'postgres',
	'SELECT in_flight = 10 FROM amqp_outbox.server_status', 'ten in flight');
$broker->kill9;
wait_state($node, 'postgres', 'mes', 'waiting');
$broker->start;
wait_settled($node, 'postgres');
is( $node->safe_psql('postgres',
		"SELECT status, attempts, count(*) FROM amqp_outbox.message
			WHERE message_id LIKE 'outage%' GROUP BY 1, 2"),
	'delivered|1|10',
	'an outage uses up no attempt');

finish_node($node);
done_testing();

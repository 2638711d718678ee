# What is held back behind a message of its ordering key: it goes on when that one
# is done, whatever happens in between, and never before it.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxPeer;
use AmqpOutboxTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('held');
my $node = new_node('main', conf => "ignore_checksum_failure = on
amqp_outbox.drain_timeout = 1s");

create_server($node, 'postgres', 'mes', $broker);
$broker->declare_exchange('e', 'topic');
$broker->declare_queue('q');
$broker->bind_queue('q', 'e', 'good');

sub publish
{
	my ($key, $routing_key, @bodies) = @_;

	$node->safe_psql('postgres', join('', map {
		"SELECT amqp_publish('e', '$routing_key', '$_', message_id => left('$_', 10),
			ordering_key => " . (defined $key ? "'$key'" : 'NULL') . ');' } @bodies));
	return;
}

sub wait_status
{
	my ($id, $status) = @_;

	wait_for($node, 'postgres',
		"SELECT status = '$status' FROM amqp_outbox.message WHERE message_id = '$id'",
		"$id $status");
	return;
}

sub taken
{
	return join(' ', map { $_->[0] } $broker->fields('q', 'body'));
}

# A wider key_window while some wait by the narrow one.
$node->safe_psql('postgres', "ALTER SERVER mes OPTIONS (ADD key_window '1')");
publish('w', 'good', 'w0');
wait_settled($node, 'postgres');
$broker->freeze;
publish('w', 'good', 'w1', 'w2', 'w3');
wait_for($node, 'postgres',
	'SELECT in_flight = 1 FROM amqp_outbox.server_status');
$node->safe_psql('postgres', 'ALTER SERVER mes OPTIONS (DROP key_window)');
publish('w', 'good', 'w4');
wait_for($node, 'postgres',
	'SELECT in_flight = 4 FROM amqp_outbox.server_status');
$broker->thaw;
wait_settled($node, 'postgres');
is(taken(), 'w0 w1 w2 w3 w4', 'a wider key_window does not let one overtake');

# The one that holds is discarded while another deferred message is in flight.
reconnect($node, 'postgres', 'mes', "ALTER SERVER mes OPTIONS
	(ADD dead_letter_holds_key 'true', ADD max_attempts '1', SET host 'localhost')");
publish('d', 'never', 'd1');
wait_status('d1', 'dead');
$node->safe_psql('postgres', "ALTER SERVER mes OPTIONS (SET max_attempts '100')");
publish('d', 'good', 'd2');
publish(undef, 'nope', 'x');
wait_for($node, 'postgres', 'SELECT count(*) = 2 FROM amqp_outbox.deferred');
$broker->bind_queue('q', 'e', 'nope');
$broker->freeze;
$node->safe_psql('postgres', 'SELECT amqp_outbox.wake()');
wait_for($node, 'postgres',
	'SELECT in_flight = 1 FROM amqp_outbox.server_status');
$node->safe_psql('postgres',
	"SELECT amqp_outbox.discard(message_id => 'd1')");
$broker->thaw;
wait_status('x', 'delivered');
wait_status('d2', 'delivered');
is(join(' ', sort split(/ /, taken())), 'd2 x', 'nothing waits for what was discarded');

# Those that wait may stand before the one that they wait for: it goes all the
# same.
publish('s', 'soon', 's1');
wait_status('s1', 'retrying');
$broker->bind_queue('q', 'e', 'soon');
$broker->freeze;
publish(undef, 'good', 'z');
wait_for($node, 'postgres',
	'SELECT in_flight = 1 FROM amqp_outbox.server_status');
publish('s', 'good', 's2');
$node->safe_psql('postgres', 'UPDATE amqp_outbox.deferred SET due_at = now();
	SELECT amqp_outbox.wake()');
wait_for($node, 'postgres',
	'SELECT in_flight = 2 FROM amqp_outbox.server_status',
	'the deferred one is sent');
$broker->thaw;
wait_settled($node, 'postgres');
is(taken(), 'z s1 s2', 'and those that wait follow');

# A key with steady traffic: it must catch up with itself.
publish('a', 'later', 'a1');
wait_status('a1', 'retrying');
my $load = start_load($node,
	"SELECT amqp_publish('e', 'good', 'y', ordering_key => 'a');",
	clients => 1, rate => 300);
wait_for($node, 'postgres', 'SELECT count(*) > 500 FROM amqp_outbox.deferred');
$broker->bind_queue('q', 'e', 'later');
$node->safe_psql('postgres', 'SELECT amqp_outbox.wake()');
wait_status('a1', 'delivered');
wait_for($node, 'postgres', 'SELECT count(*) = 0 FROM amqp_outbox.deferred',
	'the key has caught up');
ok(stop_load($load), 'while its traffic went on');
wait_settled($node, 'postgres');
like(taken(), qr/^a1 y( y)*$/, 'the first one first');

# Deferred messages of a key in flight together; the first fails, and the worker
# dies before it hears of the second: that comes again, marked.
my $peer = AmqpOutboxPeer->broker;
$node->safe_psql('postgres', <<"END");
ALTER SERVER mes OPTIONS (SET host '127.0.0.1', SET port '@{[ $peer->port ]}');
END

# the next message: its body, and its mark
sub received
{
	my ($header, $body) = $peer->read_message;

	return substr($body, 0, 2)
	  . ($header =~ /x-possible-duplicate/ ? ' marked' : '');
}

$peer->welcome;
publish('m', 'r', 'm1', 'm2', 'm3');
is(received(), 'm1', 'm1 goes first');
$peer->nack(1);
is(received(), 'm1 marked', 'and again');
$peer->ack(2);
is(received(), 'm2', 'then m2');
is(received(), 'm3', 'and m3 behind it');
$peer->nack(3);
wait_for($node, 'postgres',
	"SELECT attempts = 1 FROM amqp_outbox.deferred WHERE message_id = 'm2'");
$node->stop('immediate');
$peer->hang_up;
$node->start;
$peer->welcome;
is(received(), 'm2 marked', 'after a crash m2 comes again');
$peer->ack(1);
is(received(), 'm3 marked', 'and m3, which was sent before it');
$peer->ack(2);
wait_settled($node, 'postgres');

# A deferred message of a key that cannot be read: those behind it go on.
$node->safe_psql('postgres', <<'END');
ALTER TABLE amqp_outbox.outbox ALTER body SET STORAGE EXTERNAL;
ALTER TABLE amqp_outbox.deferred ALTER body SET STORAGE EXTERNAL;
ALTER SERVER mes OPTIONS (SET dead_letter_holds_key 'false');
END
publish('n', 'r2', 'n1' . 'x' x 3000, 'n2' . 'x' x 3000);
received();
$peer->nack(3);
wait_for($node, 'postgres', 'SELECT count(*) = 2 FROM amqp_outbox.deferred');
$node->safe_psql('postgres', "UPDATE amqp_outbox.deferred
	SET due_at = now() + interval '5 s' WHERE message_id LIKE 'n1%'");
my $file = $node->data_dir . '/' . $node->safe_psql('postgres',
	"SELECT pg_relation_filepath(reltoastrelid) FROM pg_class
		WHERE oid = 'amqp_outbox.deferred'::regclass");
$node->stop;
$peer->hang_up;
my $data = slurp_file($file);
is($data =~ s/\0\0\0\0(....n1x)/\x63\0\0\0$1/sg, 1, 'n1 is damaged');
open(my $handle, '+<:raw', $file) or die "cannot open $file";
print $handle $data;
close($handle) or die "cannot write $file";
$node->start;
$peer->welcome;
is(received(), 'n2', 'nothing waits for what was buried');
$peer->ack(1);
wait_settled($node, 'postgres');

finish_node($node, errors => qr/unexpected chunk number/);
done_testing();

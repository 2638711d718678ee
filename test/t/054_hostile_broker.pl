# A broker that means harm, played by a script (026 has one that is only
# confused): it confirms what it was never sent, floods the worker, opens and
# closes without end, does not read.  The worker does not crash, hang or grow,
# marks nothing as delivered that was not confirmed, and goes on with the next
# host; the worker of another server does not notice.
#
# The last part plays mutations of what a real broker said.  Its seed is in the
# output; OUTBOX_SEED repeats one, OUTBOX_FUZZ_SECONDS says how long it takes.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxPeer;
use AmqpOutboxTest;
use Test::More;
use Time::HiRes qw(time);

my $seed = $ENV{OUTBOX_SEED} || time % 1_000_000_000;
my $seconds = $ENV{OUTBOX_FUZZ_SECONDS} || 15;

my $broker = AmqpOutboxTest::Broker->new('hostile');
my $node = new_node('main', conf => "amqp_outbox.drain_timeout = '1s'");
my $good = '127.0.0.1:' . $broker->port;

create_server($node, 'postgres', 'mes', $broker,
	uri => "amqp://$good",
	connect_timeout => 3,
	confirm_timeout => 3);
create_server($node, 'postgres', 'other', $broker);
create_sent($node, 'postgres');
$broker->declare_queue('q');
$broker->declare_queue('other');
wait_state($node, 'postgres', 'mes', 'connected');
wait_state($node, 'postgres', 'other', 'connected');
my $worker = worker_pid($node, 'postgres', 'mes');

sub frame { return AmqpOutboxPeer::frame(@_); }
sub method { return AmqpOutboxPeer::method(@_); }

sub ack { my ($tag, $multiple) = @_; return method(1, 60, 80, pack('NNC', 0, $tag, $multiple // 0)); }
sub nack { my ($tag, $multiple) = @_; return method(1, 60, 120, pack('NNC', 0, $tag, $multiple // 0)); }

my $heartbeat = frame(8, 0, '');
my $opened = method(1, 20, 11, pack('N', 0)) . method(1, 85, 11);
my $close = method(1, 20, 40, pack('nC/a*nn', 404, 'NOT_FOUND', 60, 40));
my $blocked = method(0, 10, 60, pack('C/a*', 'no room'));
my $unblocked = method(0, 10, 61);
my $return = method(1, 60, 50, pack('nC/a*C/a*C/a*', 312, 'NO_ROUTE', '', 'q'));

# A script, to which the worker connects first of all.
sub next_peer
{
	my $peer = AmqpOutboxPeer->broker;
	my $bad = '127.0.0.1:' . $peer->port;

	$node->safe_psql('postgres',
		"ALTER SERVER mes OPTIONS (SET uri 'amqp://$bad,$good')");
	return $peer;
}

# The worker has gone on to the next host, and said why; nothing is lost.
sub overcome
{
	my ($name, $words) = @_;

	wait_for($node, 'postgres',
		"SELECT state = 'connected' AND host = '$good'
			FROM amqp_outbox.server_status WHERE server = 'mes'",
		"$name: the next host");
	like(status($node, 'postgres', 'mes', 'last_error'),
		qr/$words/, "$name: last_error");
	wait_settled($node, 'postgres', 'mes');
	return;
}

sub publish { return $node->safe_psql('postgres', "SELECT publish_sent('', 'q', 1, server => 'mes')"); }

# The other server's worker delivers, whatever happens to this one.
sub other_delivers
{
	my $name = shift;

	$node->safe_psql('postgres', "SELECT amqp_publish('', 'other', 'x'::text, server => 'other')");
	wait_settled($node, 'postgres', 'other');
	pass("$name: another server's messages arrive");
	return;
}

# Bytes that the worker's memory contexts take; it answers between two turns of
# its loop, so that it answers at all is worth something.
sub memory
{
	my $offset = -s $node->logfile;
	my $total;

	$node->safe_psql('postgres', "SELECT pg_log_backend_memory_contexts($worker)");
	wait_true('the memory contexts of the worker', sub {
		($total) = map { /Grand total: (\d+) bytes/ ? $1 : () }
		  log_lines($node, qr/\[$worker\].*Grand total/, $offset);
		return defined $total;
	});
	return $total;
}

my $memory = memory();

#
# Confirms of what was not sent
#

# What it is told together with the channel, when a message waits to be sent:
# not one of them counts as its confirm.
foreach my $case (
	[ 'an ack of tag 0', ack(0) ],
	[ 'an ack of tag 1', ack(1) ],
	[ 'an ack of tag 4096', ack(4096) ],
	[ 'an ack of many', ack(4097, 1) ],
	[ 'an ack of a negative tag', method(1, 60, 80, pack('NNC', 0xffffffff, 0xffffffff, 1)) ],
	[ 'a nack of tag 0', nack(0) ],
	[ 'a nack of many', nack(99, 1) ])
{
	my ($name, $bytes) = @$case;

	foreach my $waiting (1, 0)
	{
		my $peer = next_peer();
		publish() if $waiting;
		$peer->welcome(more => $bytes);
		$peer->await_hangup;
		overcome("$name, " . ($waiting ? 'a message waits' : 'none waits'),
			'answered a message that it was not sent');
	}
	is($node->safe_psql('postgres', "SELECT count(*) FROM amqp_outbox.dead_letter"),
		0, "$name: no dead letter");
}
is($broker->count('q'), 7, 'confirms of what was not sent: every message arrived');

# The same when one is on its way: nothing but its own confirm counts.
foreach my $case (
	[ 'confirmed twice', 1, ack(1), ack(1) ],
	[ 'acked and nacked', 1, ack(1), nack(1), nack(1, 1) ],
	[ 'the one after it is confirmed', 0, ack(2) ],
	[ 'tag 0 alone is confirmed', 0, ack(0) ])
{
	my ($name, $taken, @bytes) = @$case;
	my $peer = next_peer();

	publish();
	$peer->welcome;
	$peer->expect('60 40', '', '');
	$peer->send_bytes($_) foreach @bytes;
	if ($taken)
	{
		# what else it says must not be taken for an answer to the next one
		wait_settled($node, 'postgres', 'mes');
		publish();
		$peer->expect('60 40', '', '');
		$peer->send_bytes(join('', @bytes, $bytes[-1]));
	}
	$taken ? $peer->hang_up : $peer->await_hangup;
	overcome($name, $taken ? 'closed by the broker|lost' : 'answered a message that it was not sent');
	# the scripted broker took it and threw it away
	$node->safe_psql('postgres', 'DELETE FROM sent WHERE n = (SELECT max(n) - 1 FROM sent)') if $taken;
}

#
# Floods
#

# Each is without end, by a broker that does not read any more.  The worker must
# leave it, by its own clock or because it is told to, and not grow meanwhile.
foreach my $case (
	[ 'heartbeats during the login', 'login', $heartbeat x 50_000, 'timeout while connecting' ],
	[ 'confirms before the channel is open', 'channel', ack(1) x 50_000, 'timeout while connecting' ],
	[ 'heartbeats instead of confirms', 'ready', $heartbeat x 50_000, 'did not confirm a message within' ],
	[
		'a returned message without end', 'ready',
		$return . frame(2, 1, pack('nnNNn', 60, 0, 0x7fffffff, 0, 0)), 'did not confirm a message within',
		frame(3, 1, 'x' x 100_000) x 10
	],
	[
		'a returned message of no bytes', 'ready',
		$return . frame(2, 1, pack('nnNNn', 60, 0, 0, 1, 0)), 'did not confirm a message within',
		frame(3, 1, '') x 50_000
	],
	[ 'channels that close by themselves', 'ready', "$close$opened" x 20_000, 'channel closed by the broker' ],
	[ 'alarms', 'ready', "$blocked$unblocked" x 50_000, undef ],
	[ 'one alarm over and over', 'ready', $blocked x 50_000, undef ],
	[ 'the same confirm', 'ready', ack(1) x 50_000, undef ])
{
	my ($name, $phase, $first, $words, $then) = @$case;
	my $peer = next_peer();

	publish();
	$peer->welcome(until => $phase);
	$peer->expect('60 40', '', '') if $phase eq 'ready';
	$peer->flood($first, $then // $first);
	other_delivers($name);
	cmp_ok(memory(), '<', $memory + 8_000_000, "$name: the worker does not grow");
	if (!defined $words)
	{
		# a worker that does nothing but listen would not hear of this
		$node->safe_psql('postgres', "ALTER SERVER mes OPTIONS (SET uri 'amqp://$good')");
		$words = '';
	}
	overcome($name, $words);
	$peer->stop_flood;
	$node->safe_psql('postgres', 'DELETE FROM sent WHERE n = (SELECT max(n) FROM sent)')
	  if $name eq 'the same confirm';
}

# A database can be dropped while a worker is flooded: every process has to
# answer for that.
{
	my $peer = next_peer();

	$peer->welcome;
	$peer->flood("$blocked$unblocked" x 50_000, "$blocked$unblocked" x 50_000);
	$node->safe_psql('postgres', 'CREATE DATABASE gone');
	$node->safe_psql('postgres', 'DROP DATABASE gone');
	$node->safe_psql('postgres', "ALTER SERVER mes OPTIONS (SET uri 'amqp://$good')");
	overcome('a database is dropped meanwhile', '');
	$peer->stop_flood;
}

#
# What is agreed on
#

# channel_max, frame_max, heartbeat; and what comes of it
foreach my $case (
	[ 'no limits', 0, 0, 0, undef ],
	[ 'the largest limits', 0xffff, 0xffffffff, 0xffff, undef ],
	[ 'the smallest limits', 1, 4096, 1, undef ],
	[ 'frames of a byte', 2047, 1, 60, 'frames of less than 4096 bytes' ],
	[ 'frames of 4095 bytes', 2047, 4095, 60, 'frames of less than 4096 bytes' ])
{
	my ($name, $channel_max, $frame_max, $heartbeat_s, $words) = @$case;
	my $peer = next_peer();

	publish();
	my %limits = (channel_max => $channel_max, frame_max => $frame_max,
		heartbeat => $heartbeat_s);

	$peer->welcome(%limits, $words ? (until => 'login') : ());
	$peer->send_bytes($peer->tune(%limits)) if $words;
	if (!$words)
	{
		$peer->expect('60 40', '', '');
		# a frame as large as it may be
		my $size = $frame_max == 4096 ? 4096 : 131072;

		$peer->send_bytes($return . frame(2, 1, pack('nnNNn', 60, 0, 0, 2 * $size, 0))
			  . frame(3, 1, 'x' x ($size - 8)));
		$peer->send_bytes(frame(3, 1, 'x' x ($size - 7)));
		$words = 'frame larger than agreed';
	}
	$peer->await_hangup;
	overcome($name, $words);
}

#
# Tables
#

# connection.start with these properties of the server
sub greet
{
	my $table = shift;

	return method(0, 10, 10, pack('CCN/a*N/a*N/a*', 0, 9, $table, 'PLAIN', 'en_US'));
}

my $deep = '';
$deep = pack('C/a*aN/a*', 'x', 'F', $deep) while length($deep) < 15_000;
my $array = '';
$array = pack('aN/a*', 'A', $array) while length($array) < 15_000;

foreach my $case (
	[ 'tables in tables', greet($deep), undef ],
	[ 'arrays in arrays', greet(pack('C/a*a*', 'x', $array)), undef ],
	[ 'names of no length', greet("\0t\1" x 5000), undef ],
	[ 'a string that is too long', greet(pack('C/a*aNa*', 'product', 'S', 0xffffffff, 'x')), 'violated' ],
	[ 'a table that is too long', greet(pack('C/a*aNa*', 'x', 'F', 0x7fffffff, 'x')), 'violated' ],
	[ 'an array that is too long', greet(pack('C/a*aNa*', 'x', 'A', 0xfffffff0, 'x')), 'violated' ],
	[ 'an unknown type', greet(pack('C/a*a', 'x', '?')), 'violated' ],
	[ 'half of a table', greet(pack('Ca*', 200, 'x')), 'violated' ],
	[ 'every byte is invalid text', greet(pack('C/a*aN/a*', 'product', 'S', "\xff\xfe\0\x80" x 1000)), undef ],
	[ 'more than a frame before the login', greet('x' x 20_000), 'does not speak AMQP' ])
{
	my ($name, $bytes, $words) = @$case;
	my $peer = next_peer();

	$peer->accept;
	$peer->read_bytes(8);
	$peer->send_bytes($bytes);
	# without words that is odd and no more: the login may go on
	$peer->fall_silent;
	overcome($name, $words // 'closed the connection during login|violated');
}

#
# Closing in every phase, a byte at a time, and another protocol
#

my $connection_close = method(0, 10, 50, pack('nC/a*nn', 320, "CONNECTION_FORCED \xff\e[2J", 0, 0));

foreach my $phase ('greeting', 'login', 'tune', 'channel', 'ready')
{
	foreach my $how ('closes', 'hangs up', 'sends half of a frame and hangs up', 'resets')
	{
		my $peer = next_peer();

		publish() if $phase eq 'ready';
		$peer->welcome(until => $phase);
		$peer->send_bytes($connection_close) if $how eq 'closes';
		$peer->send_bytes(substr($connection_close, 0, 11)) if $how =~ /half/;
		$how eq 'closes' ? $peer->await_hangup : $peer->hang_up($how eq 'resets');
		overcome("the broker $how, $phase", $how eq 'closes' ? 'code 320|does not speak AMQP|violated'
			  : 'closed the connection|connection closed|connection to the broker lost|does not speak AMQP');
	}
}

{
	my $peer = next_peer();

	publish();
	$peer->welcome(bytewise => 1);
	$peer->expect('60 40', '', '');
	$peer->send_bytes($_) foreach split(//, $connection_close);
	$peer->await_hangup;
	overcome('a byte at a time', 'code 320');
}

foreach my $case (
	[ 'SSH', "SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n" ],
	[ 'HTTP without end', "HTTP/1.1 200 OK\r\nX: " ],
	[ 'STOMP', "ERROR\nmessage:bad\n\n\0" ],
	[ 'AMQP 1.0', "AMQP\0\1\0\0" ],
	[ 'its own words', "AMQP\0\0\x09\x01" ],
	[ 'zeros', "\0" x 4096 ])
{
	my ($name, $bytes) = @$case;
	my $peer = next_peer();

	$peer->accept;
	$peer->read_bytes(8);
	$peer->flood($bytes, 'x' x 4096);
	overcome($name, 'does not speak AMQP');
	$peer->stop_flood;
}

cmp_ok(memory(), '<', $memory + 8_000_000, 'after all that: the worker has not grown');
is(worker_pid($node, 'postgres', 'mes'), $worker, 'all that by one and the same worker');
check_account(committed($node, 'postgres'),
	$broker->received_marked('q'), 'hostile', duplicates => 'marked');

#
# Mutations
#

note "seed $seed, $seconds seconds";
srand($seed);

# What a real broker says to a message that arrives and to one that comes back.
my @said;
{
	my $peer = next_peer();

	$node->safe_psql('postgres', <<'END');
SELECT amqp_publish('', 'q', 'x'::text, server => 'mes');
SELECT amqp_publish('', 'nowhere', repeat('x', 300), server => 'mes', message_id => 'back');
END
	@said = $peer->relay($broker->port, qr/\x00\x3c\x00\x32.*\x00\x3c\x00\x50/s);
	$node->safe_psql('postgres', "ALTER SERVER mes OPTIONS (SET uri 'amqp://$good')");
	$broker->declare_queue('nowhere');
	$node->safe_psql('postgres', 'SELECT amqp_outbox.wake()');
	wait_settled($node, 'postgres', 'mes');
}
cmp_ok(scalar(@said), '>', 3, 'a real conversation');

# One of the things that can go wrong with bytes.
sub mutate
{
	my $bytes = shift;
	my $n = length($bytes) or return $bytes;
	my $at = int(rand($n));
	my $what = int(rand(8));
	my @odd = (0, 1, 0x7f, 0x80, 0xff, 0xce);

	substr($bytes, $at, 1) = chr(int(rand(256))) if $what == 0;
	substr($bytes, $at, 1) ^= chr(1 << int(rand(8))) if $what == 1;
	substr($bytes, $at, 1) = chr($odd[ int(rand(@odd)) ]) if $what == 2;
	substr($bytes, $at, 1 + int(rand(8))) = '' if $what == 3;
	substr($bytes, $at, 0) = join('', map { chr(int(rand(256))) } 0 .. int(rand(16))) if $what == 4;
	substr($bytes, $at, 0) = substr($bytes, int(rand($n)), 1 + int(rand(64))) if $what == 5;
	$bytes = substr($bytes, 0, $at) if $what == 6;
	substr($bytes, $at, 4) = pack('N', [ 0, 1, 0x7fffffff, 0xffffffff, 131065 ]->[ int(rand(5)) ])
	  if $what == 7 && $at + 4 <= $n;
	return $bytes;
}

my $rounds = 0;
my $peer = AmqpOutboxPeer->broker;
my $end = time + $seconds;
my $bad = '127.0.0.1:' . $peer->port;

$node->safe_psql('postgres', "ALTER SERVER mes OPTIONS (SET uri 'amqp://$bad')");
while (time < $end)
{
	my @bytes = @said;

	$bytes[ int(rand(@bytes)) ] = mutate($bytes[ int(rand(@bytes)) ]) foreach 0 .. int(rand(3));
	splice(@bytes, int(rand(@bytes)), 0, $bytes[ int(rand(@bytes)) ]) if rand() < 0.2;

	# what it confirms it has thrown away, so this is not in the account
	$node->safe_psql('postgres', "SELECT amqp_publish('', 'q', 'x'::text, server => 'mes');
		ALTER SERVER mes OPTIONS (SET connect_timeout '" . (2 + $rounds % 2) . "')");
	$peer->replay(@bytes);
	$rounds++;
}
note "$rounds rounds";
$node->safe_psql('postgres', 'TRUNCATE sent');
$broker->received('q');
$node->safe_psql('postgres', "ALTER SERVER mes OPTIONS (SET uri 'amqp://$good')");
publish() foreach 1 .. 10;
# what came back has a pause before it
wait_true("seed $seed: everything is delivered", sub {
	$node->safe_psql('postgres', 'SELECT amqp_outbox.wake()');
	return status($node, 'postgres', 'mes', 'backlog') == 0;
});
my %mine = map { $_->[0] => 1 } committed($node, 'postgres')->@*;
check_account(committed($node, 'postgres'),
	[ grep { $mine{ $_->[0] } } $broker->received_marked('q')->@* ], "mutations, seed $seed");
is(worker_pid($node, 'postgres', 'mes'), $worker, "mutations, seed $seed: the same worker");
cmp_ok(memory(), '<', $memory + 8_000_000, "mutations, seed $seed: the worker has not grown");

finish_node($node);
done_testing();

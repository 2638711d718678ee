# A peer that does not keep to the protocol, played by a script: the worker
# says what is wrong, connects again, and does not crash.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxPeer;
use AmqpOutboxTest;
use Digest::MD5 qw(md5_hex);
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('sense');

# memory that is freed does not keep what was in it
$ENV{MALLOC_PERTURB_} = 165;
my $node = new_node('main');
my $good = '127.0.0.1:' . $broker->port;

create_server($node, 'postgres', 'mes', $broker, uri => "amqp://$good");
create_sent($node, 'postgres');
$broker->declare_queue('q');
wait_state($node, 'postgres', 'mes', 'connected');
my $worker = worker_pid($node, 'postgres', 'mes');

sub frame { return AmqpOutboxPeer::frame(@_); }
sub method { return AmqpOutboxPeer::method(@_); }

# basic.return of a message that nobody sent, up to its content
my $return = method(1, 60, 50, pack('nC/a*C/a*C/a*', 312, 'NO_ROUTE', '', 'q'));
my $ack = method(1, 60, 80, pack('NNC', 0, 1, 0));

# What the worker is told once it may send; and what it says to that.
my @cases = (
	[ 'noise', "\xff" x 100, 'frame larger than agreed' ],
	[ 'an unknown type of frame', frame(9, 1, 'x'), 'unknown type of frame' ],
	[ 'no end octet', substr($ack, 0, -1) . 'x', 'frame without end octet' ],
	[
		'a frame that is too large', pack('CnNC', 1, 1, 0x7fffffff, 0),
		'frame larger than agreed'
	],
	[ 'a frame of no size', frame(1, 1, ''), 'method frame too short' ],
	[ 'an unknown channel', method(7, 60, 80), 'channel that is not open' ],
	[
		'an answer to what was not asked', method(2, 50, 11, pack('C/a*NN', 'q', 0, 0)),
		'unexpected method AMQP_QUEUE_DECLARE_OK_METHOD'
	],
	[
		'content on the channel for declarations',
		frame(2, 2, pack('nnNNn', 60, 0, 0, 0, 0)),
		'malformed content header frame'
	],
	[
		'a body on the channel for declarations', frame(3, 2, 'x'),
		'body frame on a channel without messages'
	],
	[ 'an unknown method', method(1, 99, 99), 'of unknown name (99, 99)' ],
	[ 'half of a method', method(1, 60, 80, "\0"), 'violated the protocol' ],
	[
		'another greeting', AmqpOutboxPeer->start,
		'unexpected method AMQP_CONNECTION_START_METHOD'
	],
	[
		'a channel opened twice',
		method(1, 20, 11, pack('N', 0)),
		'unexpected method AMQP_CHANNEL_OPEN_OK_METHOD'
	],
	[
		'a delivery', method(1, 60, 60, pack('C/a*NNCC/a*C/a*', '', 0, 1, 0, '', '')),
		'unexpected method AMQP_BASIC_DELIVER_METHOD'
	],
	[
		'a heartbeat on a channel', frame(8, 1, ''),
		'malformed heartbeat frame'
	],
	[
		'content of nothing', frame(2, 1, pack('nnNNn', 60, 0, 0, 0, 0)),
		'violated the protocol'
	],
	[
		'a return without its content', "$return$ack",
		'unexpected method AMQP_BASIC_ACK_METHOD'
	],
	[
		'a return without a message id',
		$return . frame(2, 1, pack('nnNNn', 60, 0, 0, 0, 0)),
		'answered a message that it was not sent'
	],
	[
		'an ack of nothing', method(1, 60, 80, pack('NNC', 0, 999, 0)),
		'answered a message that it was not sent'
	],
	[
		'half of a frame', substr(method(0, 10, 50, 'x' x 20), 0, 20),
		'connection closed by the broker', 'hang up'
	]);

# A script, to which the worker connects first of all.
sub next_peer
{
	my $peer = AmqpOutboxPeer->broker;
	my $bad = '127.0.0.1:' . $peer->port;

	$node->safe_psql('postgres',
		"ALTER SERVER mes OPTIONS (SET uri 'amqp://$bad,$good')");
	return $peer;
}

# What the worker says to that; and the next host.
sub refused
{
	my ($name, $words) = @_;

	wait_for($node, 'postgres',
		"SELECT state = 'connected' AND host = '$good'
			FROM amqp_outbox.server_status",
		"$name: the next host");
	like(status($node, 'postgres', 'mes', 'last_error'),
		qr/\Q$words\E/, "$name: $words");
	return;
}

foreach my $case (@cases)
{
	my ($name, $bytes, $words, $hang_up) = @$case;

	# it is told this when a whole message is on its way
	my $peer = next_peer();
	$node->safe_psql('postgres', "SELECT publish_sent('', 'q', 1)");
	$peer->welcome;
	$peer->expect('60 40', '', '');
	$peer->send_bytes($bytes);
	$hang_up ? $peer->hang_up : $peer->await_hangup;
	refused($name, $words);
	wait_settled($node, 'postgres');
}

#
# An answer to what is still being sent: the rest of it is sent as it was, though
# the message is settled by then
#

my $long = 15 * 1024 * 1024;	# more than sockets hold
my $count = $long / 32;
$broker->declare_queue('long');

foreach my $case (
	[ 'confirmed', method(1, 60, 80, pack('NNC', 0, 1, 0)) ],
	[
		'returned',
		method(1, 60, 50, pack('nC/a*C/a*C/a*', 312, 'NO_ROUTE', '', 'long'))
		  . frame(2, 1, pack('nnNNnC/a*', 60, 0, 0, 0, 0x80, 'returned'))
	],
	[ 'refused', method(1, 20, 40, pack('nC/a*nn', 404, 'NOT_FOUND', 60, 40)) ])
{
	my ($name, $bytes) = @$case;
	my $peer = next_peer();
	my $body = '';

	$node->safe_psql('postgres',
		"SELECT amqp_publish('', 'long', string_agg(md5(i::text), ''),
				message_id => '$name')
			FROM generate_series(1, $count) i");
	$peer->welcome;
	$peer->expect('60 40', '');
	my $receipts = $node->safe_psql('postgres',
		'SELECT max(receipt_no) FROM amqp_outbox.receipt');
	$peer->send_bytes($bytes);
	wait_for($node, 'postgres',
		"SELECT receipt_no > $receipts FROM amqp_outbox.receipt
			ORDER BY receipt_no DESC LIMIT 1",
		"$name while it is sent: settled");
	while (length($body) < $long)
	{
		my ($type, $payload) = $peer->read_any_frame;

		die "frame of type $type in a body" if $type != 3;
		$body .= $payload;
	}
	is(md5_hex($body), md5_hex(join('', map { md5_hex($_) } 1 .. $count)),
		"$name while it is sent: sent to its end");
	$peer->hang_up;
	wait_for($node, 'postgres',
		"SELECT state = 'connected' AND host = '$good'
			FROM amqp_outbox.server_status",
		"$name while it is sent: the next host");
	wait_settled($node, 'postgres');
}

#
# Before the login
#

foreach my $case (
	[ 'a web server', "HTTP/1.1 400 Bad Request\r\n\r\n", 'does not speak AMQP' ],
	[ 'another version', "AMQP\0\1\0\0", 'protocol 0, version 1-0-0' ],
	[ 'TLS', "\x15\x03\x01\0\2\2\x46\0", 'It expects TLS' ],
	[ 'an answer before the question', method(0, 10, 41, "\0"), 'AMQP_CONNECTION_OPEN_OK' ],
	[ 'a huge greeting', pack('CnNC', 1, 0, 1_000_000, 0), 'does not speak AMQP' ])
{
	my ($name, $bytes, $words) = @$case;

	my $peer = next_peer();
	$peer->accept;
	$peer->read_bytes(8);
	$peer->send_bytes($bytes);
	$peer->await_hangup;
	refused($name, $words);
}

is(scalar(log_lines($node, qr/violated the protocol|does not speak AMQP/)) > 0,
	1, 'the log says so too');
is(worker_pid($node, 'postgres', 'mes'),
	$worker, 'all that by one and the same worker');
check_account(committed($node, 'postgres'),
	$broker->received_marked('q'), 'nonsense');
finish_node($node);
done_testing();

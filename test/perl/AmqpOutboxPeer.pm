# AmqpOutboxPeer.pm: what a real broker cannot be made to do.
#
# Small peers on ports that the kernel chose:
#
#	AmqpOutboxPeer->silent       the kernel completes each connection, and
#	                             nobody ever says a word
#	AmqpOutboxPeer->full         the same with a queue that is full: the kernel
#	                             drops what asks for one more connection
#	AmqpOutboxPeer->broker       a script: the test accepts and speaks AMQP up
#	                             to a point of its choice, then anything
#	AmqpOutboxPeer::NameServer   answers when the test says so
#	AmqpOutboxPeer::Clock        is as far ahead as the test says
#
# These live in the test's own process: a socket that nobody reads needs none.
#
#	AmqpOutboxPeer::Proxy->new($port)
#
# forwards to a broker's port, in a process of its own that ends with the test,
# until it is told one of
#
#	hold           what the worker sends waits
#	swallow        what the broker sends is thrown away
#	cut_up N       after N more bytes of the worker both ends are reset
#	cut_down N     after N more bytes of the broker both ends are reset
#	slow N         N bytes of the worker a second, and hardly more wait
#	forward        again everything
#
# After a cut it forwards again.  Each of these is in effect when it returns.

package AmqpOutboxPeer;

use strict;
use warnings FATAL => 'all';

use IO::Select;
use IO::Socket::INET;
use POSIX ();
use PostgreSQL::Test::Utils;
use Socket qw(IPPROTO_TCP SOL_SOCKET SO_LINGER TCP_NODELAY);

sub _listen
{
	my ($class, $backlog) = @_;
	my $listener = IO::Socket::INET->new(
		LocalAddr => '127.0.0.1',
		Proto => 'tcp',
		Listen => $backlog) or die "cannot listen: $@";

	return bless { listener => $listener }, $class;
}

sub silent { my $class = shift; return $class->_listen(16); }
sub broker { my $class = shift; return $class->_listen(16); }
sub port { my $self = shift; return $self->{listener}->sockport; }

sub full
{
	my $class = shift;
	my $self = $class->_listen(1);

	# until one more of them hangs
	while (
		my $socket = IO::Socket::INET->new(
			PeerAddr => '127.0.0.1',
			PeerPort => $self->port,
			Timeout => 0.5))
	{
		push @{ $self->{fillers} }, $socket;
		die "cannot fill the queue of a listening socket"
		  if @{ $self->{fillers} } > 100;
	}
	return $self;
}

# The next connection.
sub accept
{
	my $self = shift;

	IO::Select->new($self->{listener})
	  ->can_read($PostgreSQL::Test::Utils::timeout_default)
	  or AmqpOutboxTest::give_up("timed out waiting for a connection");
	$self->{socket} = $self->{listener}->accept;
	return;
}

# The next so many bytes of the worker.
sub read_bytes
{
	my ($self, $length) = @_;
	my $bytes = '';

	while (length($bytes) < $length)
	{
		IO::Select->new($self->{socket})
		  ->can_read($PostgreSQL::Test::Utils::timeout_default)
		  or AmqpOutboxTest::give_up("timed out waiting for the worker to speak");
		sysread($self->{socket}, $bytes, $length - length($bytes),
			length($bytes)) or die "the worker hung up";
	}
	return $bytes;
}

sub send_bytes
{
	my ($self, $bytes) = @_;

	local $SIG{PIPE} = 'IGNORE';
	syswrite($self->{socket}, $bytes);
	return;
}

# Parameter: whether the worker is to see a reset.
sub hang_up
{
	my ($self, $reset) = @_;

	setsockopt($self->{socket}, SOL_SOCKET, SO_LINGER, pack('ii', 1, 0))
	  if $reset;
	close($self->{socket});
	return;
}

# Say no more, and hear the worker out.
sub fall_silent
{
	my $self = shift;

	shutdown($self->{socket}, 1);
	return $self->await_hangup;
}

# Send the first bytes, then the others again and again, from a process of its
# own that never reads; until stop_flood, or until the worker hangs up.
sub flood
{
	my ($self, $first, $then) = @_;
	my $pid = fork // die "cannot fork: $!";

	if ($pid == 0)
	{
		$SIG{$_} = 'DEFAULT' foreach 'PIPE', 'TERM';
		for (my $bytes = $first; syswrite($self->{socket}, $bytes);)
		{
			$bytes = $then;
		}
		POSIX::_exit(0);
	}
	$self->{flood} = $pid;
	return;
}

sub stop_flood
{
	my $self = shift;

	return unless $self->{flood};
	kill('TERM', $self->{flood});
	waitpid(delete $self->{flood}, 0);
	close($self->{socket});
	return;
}

# A test that dies must not leave it behind.
sub DESTROY
{
	my $self = shift;

	local ($?, $!);
	$self->stop_flood;
	return;
}

# Pass on what the next connection and the broker at that port say to each
# other, until the broker has said what matches; its words, piece by piece.
sub relay
{
	my ($self, $port, $pattern) = @_;
	my @said;

	$self->accept;
	my $down = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port)
	  or die "cannot connect to the broker: $@";
	my %other = ($self->{socket} => $down, $down => $self->{socket});

	while (join('', @said) !~ $pattern)
	{
		my @ready = IO::Select->new($self->{socket}, $down)
		  ->can_read($PostgreSQL::Test::Utils::timeout_default)
		  or AmqpOutboxTest::give_up("timed out waiting for worker and broker to talk");

		foreach my $ready (@ready)
		{
			sysread($ready, my $bytes, 65536) or die "worker or broker hung up";
			syswrite($other{$ready}, $bytes);
			push @said, $bytes if $ready == $down;
		}
	}
	close($down);
	$self->hang_up;
	return @said;
}

# Say all that to the next connection, whatever that says to it.
sub replay
{
	my ($self, @said) = @_;

	$self->accept;
	local $SIG{PIPE} = 'IGNORE';
	foreach my $bytes (@said, undef)
	{
		# it mostly answers at once, and if not, that is a test, too
		while (IO::Select->new($self->{socket})->can_read(0.02))
		{
			last unless sysread($self->{socket}, my $heard, 65536);
		}
		last unless defined $bytes && syswrite($self->{socket}, $bytes);
	}
	close($self->{socket});
	return;
}

# Read what comes until the worker hangs up; returns it.
sub await_hangup
{
	my $self = shift;
	my $bytes = '';

	do
	{
		IO::Select->new($self->{socket})
		  ->can_read($PostgreSQL::Test::Utils::timeout_default)
		  or AmqpOutboxTest::give_up("timed out waiting for the worker to hang up");
	} while (sysread($self->{socket}, $bytes, 65536, length($bytes)));
	close($self->{socket});
	return $bytes;
}

# Build what is preloaded into servers; returns where it is.  Further options are
# the compiler's.
sub build_preloaded
{
	my ($name, @options) = @_;
	my $library = PostgreSQL::Test::Utils::tempdir() . "/$name.so";
	my $source = "$AmqpOutboxTest::ROOT/test/helpers/$name.c";

	system('cc', '-shared', '-fPIC', @options, '-o', $library, $source) == 0
	  or die "cannot build $source";
	return $library;
}

#
# AMQP 0-9-1
#

sub frame
{
	my ($type, $channel, $payload) = @_;

	return pack('CnN/a*C', $type, $channel, $payload, 0xce);
}

sub method
{
	my ($channel, $class, $method, $arguments) = @_;

	return frame(1, $channel, pack('nna*', $class, $method, $arguments // ''));
}

# One frame of the worker: its type and payload.
sub read_any_frame
{
	my $self = shift;
	my ($type, $channel, $length) = unpack('CnN', $self->read_bytes(7));
	my $payload = $self->read_bytes($length);

	die "frame without end octet" if $self->read_bytes(1) ne "\xce";
	return ($type, $payload);
}

# The same; class and method if it is a method.
sub read_frame
{
	my $self = shift;
	my ($type, $payload) = $self->read_any_frame;

	return $type == 1 ? join(' ', unpack('nn', $payload)) : '';
}

# The next message, which is not empty: its header and its first frame of body.
sub read_message
{
	my $self = shift;
	my ($type, $header, $body);

	do { ($type) = $self->read_any_frame } while $type != 1;
	(undef, $header) = $self->read_any_frame;
	(undef, $body) = $self->read_any_frame;
	return ($header, $body);
}

# basic.ack and basic.nack of one message
sub ack { my ($self, $tag) = @_; return $self->_confirm(80, $tag); }
sub nack { my ($self, $tag) = @_; return $self->_confirm(120, $tag); }

sub _confirm
{
	my ($self, $method, $tag) = @_;

	return $self->send_bytes(method(1, 60, $method, pack('NNC', 0, $tag, 0)));
}

# basic.return, with the message id alone of all properties and no body
sub return_message
{
	my ($self, $message_id, $exchange, $routing_key) = @_;

	return $self->send_bytes(
		method(1, 60, 50, pack('nC/a*C/a*C/a*', 312, 'NO_ROUTE', $exchange,
				$routing_key))
		  . frame(2, 1, pack('nnNNnC/a*', 60, 0, 0, 0, 0x80, $message_id)));
}

sub expect
{
	my ($self, @methods) = @_;

	foreach my $method (@methods)
	{
		my $read = $self->read_frame;

		die "the worker sent $read, not $method" if $read ne $method;
	}
	return;
}

# Be a broker for the next connection, up to where messages are sent.
# Parameters: channel_max, frame_max, heartbeat, what it proposes; until, where it
# stops: before its greeting (greeting), when it has read the user (login), the
# virtual host (tune), or that a channel is wanted (channel); bytewise, whether
# each byte comes by itself; more, what it says together with its last words.
sub welcome
{
	my ($self, %params) = @_;
	my $until = $params{until} // 'ready';
	my $say = sub {
		my $bytes = shift;
		$self->send_bytes($_)
		  foreach $params{bytewise} ? split(//, $bytes) : $bytes;
	};

	$self->accept;
	$self->{socket}->setsockopt(IPPROTO_TCP, TCP_NODELAY, 1);
	die "no protocol header" if $self->read_bytes(8) ne "AMQP\0\0\x09\x01";
	return if $until eq 'greeting';
	$say->($self->start);
	$self->expect('10 11');
	return if $until eq 'login';
	$say->($self->tune(%params));
	$self->expect('10 31', '10 40');
	return if $until eq 'tune';
	$say->(method(0, 10, 41, "\0"));
	$self->expect('20 10', '85 10');
	return if $until eq 'channel';
	$say->(method(1, 20, 11, pack('N', 0)) . method(1, 85, 11)
		  . ($params{more} // ''));
	return;
}

# connection.tune
sub tune
{
	my ($self, %params) = @_;

	return method(0, 10, 30,
		pack('nNn', $params{channel_max} // 2047, $params{frame_max} // 131072,
			$params{heartbeat} // 0));
}

# connection.start
sub start
{
	return method(0, 10, 10, pack('CCN/a*N/a*N/a*', 0, 9, '', 'PLAIN', 'en_US'));
}

#
# The name server
#

package AmqpOutboxPeer::NameServer;

use IO::Select;
use IO::Socket::INET;
use PostgreSQL::Test::Utils;

sub new
{
	my $class = shift;
	my $socket = IO::Socket::INET->new(
		LocalAddr => '127.0.0.1',
		Proto => 'udp') or die "cannot open a socket: $@";

	return bless { socket => $socket }, $class;
}

# What makes a program that is started with it ask this name server.
sub environment
{
	my $self = shift;
	my $dir = PostgreSQL::Test::Utils::tempdir();

	append_to_file("$dir/resolv.conf", "nameserver 127.0.0.1\n");
	return (
		LD_PRELOAD => AmqpOutboxPeer::build_preloaded('name_server'),
		OUTBOX_RESOLV_CONF => "$dir/resolv.conf",
		OUTBOX_NAME_SERVER_PORT => $self->{socket}->sockport);
}

# Wait until there is a question.
sub await_question
{
	my $self = shift;

	IO::Select->new($self->{socket})
	  ->can_read($PostgreSQL::Test::Utils::timeout_default)
	  or AmqpOutboxTest::give_up("timed out waiting for a question");
	return;
}

# Answer all questions that are there: the address of every name is 127.0.0.1,
# and it has no other.  Names that match $unknown do not exist.
sub answer
{
	my ($self, $unknown) = @_;

	while (IO::Select->new($self->{socket})->can_read(0))
	{
		my $from = $self->{socket}->recv(my $question, 1000);
		my ($id, $name) = unpack('n x10 Z*', $question);
		my $asked = substr($question, 12, length($name) + 5);
		my $is_a = unpack('n', substr($asked, -4)) == 1;
		my $exists = !defined $unknown || $name !~ $unknown;
		my $answer = pack('n6a*', $id, $exists ? 0x8180 : 0x8183,
			1, $exists && $is_a ? 1 : 0, 0, 0, $asked);

		$answer .= pack('nnnNnC4', 0xc00c, 1, 1, 0, 4, 127, 0, 0, 1)
		  if $exists && $is_a;
		$self->{socket}->send($answer, 0, $from);
	}
	return;
}

#
# The clock
#

package AmqpOutboxPeer::Clock;

use PostgreSQL::Test::Utils;

sub new
{
	my $class = shift;
	my $self = bless { file => PostgreSQL::Test::Utils::tempdir() . '/clock' }, $class;

	append_to_file($self->{file}, pack('q', 0));
	return $self;
}

# What makes a program that is started with it go by this clock.
sub environment
{
	my $self = shift;

	return (
		LD_PRELOAD => AmqpOutboxPeer::build_preloaded('clock'),
		OUTBOX_CLOCK => $self->{file});
}

# Set it so many seconds ahead of the time.
sub set_ahead
{
	my ($self, $seconds) = @_;

	open(my $handle, '+<:raw', $self->{file}) or die "cannot open the clock";
	syswrite($handle, pack('q', $seconds)) == 8 or die "cannot set the clock";
	close($handle);
	return;
}

#
# The proxy
#

package AmqpOutboxPeer::Proxy;

use IO::Select;
use IO::Socket::INET;
use POSIX ();
use Socket;
use Time::HiRes ();

sub new
{
	my ($class, $port) = @_;
	my $self = AmqpOutboxPeer::_listen($class, 16);
	my ($ours, $its);

	# a window of the usual size would hold megabytes
	setsockopt($self->{listener}, SOL_SOCKET, SO_RCVBUF, 65536);
	socketpair($ours, $its, AF_UNIX, SOCK_STREAM, PF_UNSPEC)
	  or die "no socketpair: $!";
	my $pid = fork // die "cannot fork: $!";
	if ($pid == 0)
	{
		close($ours);
		$SIG{PIPE} = 'IGNORE';
		eval { _serve($self->{listener}, $its, $port) };
		POSIX::_exit(0);
	}
	close($its);
	$self->{control} = $ours;
	$self->{pid} = $pid;
	return $self;
}

sub port { my $self = shift; return $self->{listener}->sockport; }

sub _tell
{
	my ($self, $order) = @_;

	syswrite($self->{control}, "$order\n");
	readline($self->{control}) // die "the proxy is gone";
	return;
}

sub forward { my $self = shift; return $self->_tell('forward 0'); }
sub hold { my $self = shift; return $self->_tell('hold 0'); }
sub swallow { my $self = shift; return $self->_tell('swallow 0'); }
sub slow { my ($self, $n) = @_; return $self->_tell("slow $n"); }
sub cut_up { my ($self, $n) = @_; return $self->_tell("cut_up $n"); }
sub cut_down { my ($self, $n) = @_; return $self->_tell("cut_down $n"); }

# It ends when the other end of its control is closed.
sub DESTROY
{
	my $self = shift;

	local ($?, $!);
	shutdown($self->{control}, 2);
	waitpid($self->{pid}, 0);
	return;
}

sub _serve
{
	my ($listener, $control, $port) = @_;
	my ($mode, $left) = ('forward', 0);
	my %peers;    # by socket: the other one, and the way that its bytes go

	while (1)
	{
		my @sockets = map { $_->{socket} }
		  grep { $mode ne 'hold' || $_->{way} eq 'down' } values %peers;

		foreach my $ready (
			IO::Select->new($listener, $control, @sockets)->can_read)
		{
			if ($ready == $control)
			{
				my $order = '';

				# one order at a time, a line of its own
				sysread($control, $order, 100) or return;
				($mode, $left) = split(/\s+/, $order);
				syswrite($control, "ok\n");
				last;
			}
			if ($ready == $listener)
			{
				my $up = $listener->accept or next;
				my $down = IO::Socket::INET->new(
					PeerAddr => '127.0.0.1',
					PeerPort => $port);

				# the broker is away: so are we
				next unless $down;
				$peers{$up} = { socket => $up, other => $down, way => 'up' };
				$peers{$down} =
				  { socket => $down, other => $up, way => 'down' };
				last;
			}
			my $peer = $peers{$ready} or next;
			my $other = $peer->{other};
			my $cut = $mode eq "cut_$peer->{way}";
			my $n = sysread($ready, my $bytes, $cut ? $left : 65536);

			# not a wait for anything: this is what a slow line is
			Time::HiRes::sleep($n / $left)
			  if $n && $mode eq 'slow' && $peer->{way} eq 'up';

			next if $n && $mode eq 'swallow' && $peer->{way} eq 'down';
			if ($n)
			{
				_write($other, $bytes);
				$left -= $n if $cut;
				next unless $cut && $left <= 0;
				$mode = 'forward';
				setsockopt($_, SOL_SOCKET, SO_LINGER, pack('ii', 1, 0))
				  foreach $ready, $other;
			}
			delete @peers{ $ready, $other };
			close($ready);
			close($other);
		}
	}
	return;
}

sub _write
{
	my ($socket, $bytes) = @_;

	while (length($bytes))
	{
		my $n = syswrite($socket, $bytes) // return;
		substr($bytes, 0, $n) = '';
	}
	return;
}

1;

# Many bytes and a broker that takes none: a worker reads ahead as far as
# amqp_outbox.read_ahead allows, and large messages no further than they are soon
# sent; what waits beyond that is lost no less.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use PostgreSQL::Test::Utils;
use Test::More;

plan skip_all => '/proc is needed' if !-e "/proc/$$/schedstat";

my $broker = AmqpOutboxTest::Broker->new('ahead');
my $node = new_node('main', conf => "amqp_outbox.read_ahead = '8MB'");

create_server($node, 'postgres', 'mes', $broker);
$broker->declare_queue('q');
wait_state($node, 'postgres', 'mes', 'connected');

# The most memory that the worker ever had, in MB; shared buffers count as they
# are touched.
sub peak
{
	my $pid = worker_pid($node, 'postgres', 'mes');

	return $1 / 1024
	  if slurp_file("/proc/$pid/status") =~ /^VmHWM:\s+(\d+) kB/m;
	die "no VmHWM of process $pid";
}

# Has the worker used no CPU in five looks one after the other?
sub at_rest
{
	my ($rest) = @_;
	my $file = '/proc/' . worker_pid($node, 'postgres', 'mes') . '/schedstat';
	my ($ns) = split(/ /, slurp_file($file));

	$rest->{looks} = $ns == ($rest->{ns} // -1) ? $rest->{looks} + 1 : 0;
	$rest->{ns} = $ns;
	return $rest->{looks} == 5;
}

# Publish messages of a size, in transactions of so many each, while the broker is
# frozen; the worker's memory is bounded meanwhile, and it comes to rest.
sub publish_frozen
{
	my ($what, $size, $transactions, $each) = @_;
	my $messages = $each * $transactions;
	my $before = peak();
	my %rest;

	$broker->freeze;
	$node->safe_psql('postgres',
		"SELECT count(amqp_publish('', 'q', repeat(md5(i::text), $size / 32)))
			FROM generate_series(1, $each) i;\n" x $transactions);
	wait_for($node, 'postgres',
		'SELECT in_flight > 0 FROM amqp_outbox.server_status',
		'messages on their way');
	wait_true('the worker reads no further', sub { at_rest(\%rest) });
	$broker->thaw;
	wait_settled($node, 'postgres');
	my $more = peak() - $before;
	note sprintf('%s: worker %.0f MB more', $what, $more);
  SKIP:
	{
		# which keeps what was freed
		skip 'this runs under a sanitizer', 1
		  if slurp_file("/proc/" . worker_pid($node, 'postgres', 'mes') . "/maps") =~
		  /libasan/;
		cmp_ok($more, '<', 48, "$what: memory is bounded");
	}
	is(scalar($broker->fields('q', 'size')), $messages, "$what: all arrived");
	return;
}

publish_frozen('messages of 60 kB', 60 * 1024, 1, 2560);
$node->append_conf('postgresql.conf', "amqp_outbox.read_ahead = '1GB'");
$node->restart;
wait_state($node, 'postgres', 'mes', 'connected');
publish_frozen('messages of 1 MB', 1024 * 1024, 1, 150);
publish_frozen('many transactions', 32, 1000, 4);
$node->append_conf('postgresql.conf', "amqp_outbox.read_ahead = '8MB'");
$node->reload;

# What is sent need not be kept until the broker answers: a queue that does not
# get on is no reason to stop.
sub queue_process
{
	my $action = shift;

	$broker->ctl('eval', '{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r('
		  . "<<\"/\">>, queue, <<\"q\">>)), sys:$action(amqqueue:get_pid(Q)).");
	return;
}
queue_process('suspend');
$broker->declare_exchange('passing', 'topic');
$broker->bind_queue('q', 'passing', 'q');
$node->safe_psql('postgres',
	"SELECT count(amqp_publish('passing', 'q', repeat(md5(i::text), 32768)))
		FROM generate_series(1, 100) i");
wait_for($node, 'postgres',
	'SELECT in_flight = 100 FROM amqp_outbox.server_status',
	'more in flight than may be read ahead');

# And what is then not sent again need not be read again.
my $pid = worker_pid($node, 'postgres', 'mes');
my $held = peak();
$broker->ctl('eval', 'rabbit_exchange:delete(rabbit_misc:r('
	  . '<<"/">>, exchange, <<"passing">>), false, <<"test">>).');
$broker->ctl('close_all_connections', 'test');
wait_for($node, 'postgres',
	"SELECT count(*) = 100 FROM amqp_outbox.message WHERE status = 'retrying'");
is(worker_pid($node, 'postgres', 'mes'), $pid, 'by one and the same worker');
cmp_ok(peak() - $held, '<', 24, 'which read few of them again');
queue_process('resume');
$broker->declare_exchange('passing', 'topic');
$broker->bind_queue('q', 'passing', 'q');
$node->safe_psql('postgres', 'SELECT amqp_outbox.wake()');
wait_settled($node, 'postgres');
cmp_ok(scalar($broker->fields('q', 'size')), '>=', 100, 'all of these arrived');

finish_node($node);
done_testing();

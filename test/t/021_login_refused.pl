# A broker that does not let the worker in, each time with its words: nothing is
# lost, the pauses grow, and the worker is back within seconds once it may.
# (Wrong credentials and a closed port: 007_alter_server.pl.)

use strict;
use warnings FATAL => 'all';

use AmqpOutboxPeer;
use AmqpOutboxTest;
use File::Path qw(remove_tree);
use Test::More;
use Time::HiRes qw(time);

my $broker = AmqpOutboxTest::Broker->new('refuses');
my $clock = AmqpOutboxPeer::Clock->new;
my $node = do
{
	local %ENV = (%ENV, $clock->environment);
	new_node('main');
};
my $port = $broker->port;

create_server($node, 'postgres', 'mes', $broker, vhost => 'plant');
create_sent($node, 'postgres');

sub last_error_like
{
	my ($pattern, $name) = @_;

	wait_true(
		$name,
		sub {
			return status($node, 'postgres', 'mes', 'last_error') =~ $pattern;
		});
	wait_state($node, 'postgres', 'mes', 'waiting');
	pass($name);
	return;
}

# The pause of five seconds and a quarter is the longest.
sub back_soon
{
	my $name = shift;
	my $begin = time;

	wait_state($node, 'postgres', 'mes', 'connected');
	cmp_ok(time - $begin, '<', 8, "$name: connected again within seconds");
	return;
}

# Times of this many further attempts.
sub attempts
{
	my $count = shift;
	my @at = (status($node, 'postgres', 'mes', 'extract(epoch FROM last_error_at)'));

	while (@at <= $count)
	{
		wait_for($node, 'postgres',
			"SELECT extract(epoch FROM last_error_at) > $at[-1]
				FROM amqp_outbox.server_status",
			'another attempt');
		push @at,
		  status($node, 'postgres', 'mes', 'extract(epoch FROM last_error_at)');
	}
	return @at;
}

#
# No such virtual host
#

my $words = qr/NOT_ALLOWED - vhost plant not found/;
last_error_like($words, 'missing virtual host: last_error');
$node->safe_psql('postgres', publish_sent('q', 1, 1));

# from 0.25 to 5 s, each a quarter more or less: here at least the fifth one
my @at = attempts(5);
my $pause = $at[5] - $at[4];
cmp_ok($pause, '>', 2.5, 'missing virtual host: the pauses grow');
cmp_ok($pause, '<', 8, 'missing virtual host: but not beyond seconds');
is(scalar(log_lines($node, $words)),
	1, 'missing virtual host: all those attempts are told once');

# nor are they news because roles change, which they do all the time; the worker
# hears of that when it reads what is published.  (Another publisher's: the first
# to arrive where the queue is not declared yet is late.)
$node->safe_psql('postgres',
	'CREATE ROLE newcomer; GRANT pg_monitor TO newcomer; DROP ROLE newcomer');
$node->safe_psql('postgres', publish_sent('q', 3, 1));
attempts(2);
is(scalar(log_lines($node, $words)),
	1, 'missing virtual host: roles that change are no reason to tell it again');

# an hour later
$clock->set_ahead(3600);
wait_true('a reminder', sub { log_lines($node, $words) == 2 });
attempts(2);
is(scalar(log_lines($node, $words)),
	2, 'missing virtual host: and again after an hour, once');
is( scalar(
		log_lines(
			$node,
			qr/HINT: .*[1-9][0-9]* failures since the last message were not logged/)),
	1, 'missing virtual host: with the number of failures meanwhile');

my $vhost = $broker->new_vhost('plant');
back_soon('missing virtual host');
$vhost->declare_queue('q');
wait_settled($node, 'postgres');

#
# Limits, which this version checks when a virtual host is opened
#

foreach my $limit (
	[ 'the virtual host', 'vhost_limits', '-p', 'plant' ],
	[ 'the user', 'user_limits', 'guest' ])
{
	my ($whose, $what, @of) = @$limit;
	my $name = "limit of $whose";

	$broker->ctl("set_$what", @of, '{"max-connections": 0}');
	$broker->ctl('close_all_connections', '--global', 'test');
	last_error_like(qr/NOT_ALLOWED .*connection limit \(0\) is reached/,
		"$name: last_error");
	$node->safe_psql('postgres', publish_sent('q', 2, 10));
	$broker->ctl("clear_$what", @of, $what eq 'user_limits' ? 'all' : ());
	$node->safe_psql('postgres', 'SELECT amqp_outbox.wake()');
	wait_settled($node, 'postgres');
	pass("$name: and goes on");
}
check_account(committed($node, 'postgres'),
	$vhost->received('q'), 'refused and let in again');

#
# It stops in good order, and comes back empty
#

$node->safe_psql('postgres', 'TRUNCATE sent');
wait_for(
	$node,
	'postgres',
	"SELECT last_error_at < clock_timestamp() - interval '1 s'
		FROM amqp_outbox.server_status WHERE server = 'mes'",
	'the end of the pause between two failures in the log');
my $offset = -s $node->logfile;
$broker->stop;
wait_state($node, 'postgres', 'mes', 'waiting');
like(
	join("\n", log_lines($node, qr/LOG:  server "mes"|DETAIL/, $offset)),
	qr/closed by the broker \(code 320\).*CONNECTION_FORCED.*shutdown/s,
	'shut down: the words of the broker are logged');
$node->safe_psql('postgres',
	"SELECT publish_sent('', 'q', i) FROM generate_series(1, 50) i");
remove_tree($broker->dir . '/data', { keep_root => 1 });
$broker->start;
is($broker->port, $port, 'at the same port');
last_error_like($words, 'come back empty: last_error');
$vhost = $broker->new_vhost('plant');
back_soon('come back empty');

# nobody is there for them, and nobody is told that they are delivered
wait_for($node, 'postgres', 'SELECT count(*) = 50 FROM amqp_outbox.deferred');
is( $node->safe_psql('postgres',
		'SELECT DISTINCT reply_code FROM amqp_outbox.deferred'),
	312, 'come back empty: returned');
$vhost->declare_queue('q');
$node->safe_psql('postgres', 'SELECT amqp_outbox.wake()');
wait_settled($node, 'postgres');
check_account(committed($node, 'postgres'),
	$vhost->received('q'), 'come back empty');

finish_node($node);
done_testing();

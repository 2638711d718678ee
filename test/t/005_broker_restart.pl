# A broker that goes and comes back, in good order or not, under load: nothing
# is lost, what comes twice says so, and the order is kept.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use Test::More;
use Time::HiRes qw(time);

my $broker = AmqpOutboxTest::Broker->new('restart');
my $node = new_node('main');

create_server($node, 'postgres', 'mes', $broker);
create_sent($node, 'postgres');
$broker->declare_queue('q');
wait_state($node, 'postgres', 'mes', 'connected');
is(status($node, 'postgres', 'mes', 'last_error'), '', 'no error so far');
is(status($node, 'postgres', 'mes', 'host'),
	'127.0.0.1:' . $broker->port, 'host');

my $load = start_load($node, <<'END', clients => 3, rate => 300);
\set k random(1, 3)
SELECT publish_sent('', 'q', :client_id) FROM generate_series(1, :k);
END

# Wait until so many more are delivered, or published.
sub wait_for_more
{
	my ($query, $more) = @_;
	my $before = $node->safe_psql('postgres', "SELECT ($query)");

	wait_for($node, 'postgres', "SELECT ($query) >= $before + $more");
	return;
}
my $delivered = 'SELECT delivered FROM amqp_outbox.server_status';
my $sent = 'SELECT count(*) FROM sent';

foreach my $how ('stop', 'kill9')
{
	wait_for_more($delivered, 500);
	# it goes in the middle of many
	$node->safe_psql('postgres', publish_sent('q', 10, 5000));
	$broker->$how;
	wait_state($node, 'postgres', 'mes', 'waiting');
	isnt(status($node, 'postgres', 'mes', 'last_error'), '', "$how: last_error");
	is(status($node, 'postgres', 'mes', "last_error_at > now() - '1min'::interval"),
		't', "$how: last_error_at");
	is(status($node, 'postgres', 'mes', 'in_flight'), 0, "$how: none in flight");

	wait_for_more($sent, 500);
	cmp_ok(status($node, 'postgres', 'mes', 'backlog'),
		'>=', 500, "$how: transactions commit while it is away");

	$broker->start;
	my $up = time;
	wait_state($node, 'postgres', 'mes', 'connected');
	cmp_ok(time - $up, '<', 12, "$how: connected again within seconds");
	wait_for_more($delivered, 500);
}

ok(stop_load($load), 'load ran');
wait_settled($node, 'postgres');

my $committed = committed($node, 'postgres');
check_account($committed, $broker->received_marked('q'),
	'broker restarted', duplicates => 'marked');
is(status($node, 'postgres', 'mes', 'delivered'),
	scalar(@$committed), 'each is counted as delivered once');
is(status($node, 'postgres', 'mes', 'returned + rejected'),
	0, 'and none as returned or rejected');
is( $node->safe_psql('postgres',
		"SELECT count(*) FROM amqp_outbox.message m JOIN sent s ON s.id = m.message_id
			WHERE m.status = 'delivered'"),
	scalar(@$committed), 'the view says so too');

finish_node($node);
done_testing();

# A missing exchange costs a channel for each pause, not for each message, and
# its messages arrive when the exchange is there.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('missing');
my $node = new_node('main');
my $count = 5000;

sub channels_closed
{
	my $log = PostgreSQL::Test::Utils::slurp_file($broker->dir . '/log/rabbit.log');

	return () = $log =~ /caused a channel exception not_found/g;
}

create_server($node, 'postgres', 'mes', $broker);
$broker->declare_queue('q');
$node->safe_psql('postgres',
	"SELECT count(amqp_publish(CASE WHEN i % 2 = 0 THEN '' ELSE 'missing' END,
		'q', i::text)) FROM generate_series(1, 2 * $count) i");
wait_for($node, 'postgres',
	"SELECT delivered >= $count FROM amqp_outbox.server_status");
wait_for($node, 'postgres',
	"SELECT count(*) = $count FROM amqp_outbox.deferred");
my $closed = channels_closed();
cmp_ok($closed, '<=', 10, "$closed channels closed for $count messages");

my @bodies = map { $_->[0] } $broker->fields('q', 'body');
my %seen;
my @first = grep { !$seen{$_}++ } @bodies;
is_deeply(\@first, [ map { 2 * $_ } 1 .. $count ],
	'the good ones arrived, in order');
cmp_ok(@bodies - @first, '<=', 1024, 'no more than what was in flight twice');
is( $node->safe_psql('postgres',
		'SELECT DISTINCT reply_code, last_error FROM amqp_outbox.deferred'),
	"404|NOT_FOUND - no exchange 'missing' in vhost '/'",
	'the others wait with the words of the broker');

$broker->declare_exchange('missing', 'direct');
$broker->bind_queue('q', 'missing', 'q');
$node->safe_psql('postgres', 'SELECT amqp_outbox.wake()');
wait_settled($node, 'postgres');
@bodies = map { $_->[0] } $broker->fields('q', 'body');
is_deeply([ sort { $a <=> $b } @bodies ], [ map { 2 * $_ - 1 } 1 .. $count ],
	'and arrive once when the exchange is there');

#
# Nobody tells the worker that it is there again: it learns by trying
#

$broker->tool('delete-exchange', 'missing');
$node->safe_psql('postgres', "SELECT amqp_publish('missing', 'q', 'first')");
wait_for($node, 'postgres',
	'SELECT attempts > 0 FROM amqp_outbox.deferred');
$broker->declare_exchange('missing', 'direct');
$broker->bind_queue('q', 'missing', 'q');
wait_settled($node, 'postgres');
$node->safe_psql('postgres',
	"SELECT count(amqp_publish('missing', 'q', 'later')) FROM generate_series(1, 100)");
wait_settled($node, 'postgres');
is( $node->safe_psql('postgres',
		"SELECT count(*) FROM amqp_outbox.message
		WHERE attempts = 1 AND convert_from(body, 'UTF8') = 'later'"),
	100, 'after one that arrived the others need one attempt');

finish_node($node);
done_testing();

# An attempt after one whose outcome is unknown carries the header
# x-possible-duplicate, and nothing else does: nothing after a clean stop,
# every repetition after a crash or a lost connection.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('duplicates');
my $node = new_node('main');

create_server($node, 'postgres', 'mes', $broker);
$broker->declare_queue('q');

sub publish
{
	my ($prefix, $count) = @_;

	$node->safe_psql('postgres',
		"SELECT count(amqp_publish('', 'q', 'x', message_id => '$prefix' || i,
			headers => '{\"kept\": 1}')) FROM generate_series(1, $count) i");
	return;
}

# Takes all messages; counts ids, repetitions, marks, and what must not be.
sub take
{
	my %count = (ids => 0, repeated => 0, marked => 0, unmarked => 0, spoilt => 0);
	my %seen;

	foreach my $message ($broker->messages('q'))
	{
		my $headers = $message->{properties}{headers};
		my $mark = delete $headers->{'x-possible-duplicate'};

		$count{marked}++ if $mark;
		$count{spoilt}++
		  if $mark && ($mark->{type} ne 'boolean' || !$mark->{value});
		$count{spoilt}++ if join(',', keys %$headers) ne 'kept';
		if ($seen{ $message->{properties}{message_id} }++)
		{
			$count{repeated}++;
			$count{unmarked}++ if !$mark;
		}
	}
	$count{ids} = keys %seen;
	return %count;
}

# A clean stop leaves nothing in doubt.
publish('clean ', 5000);
$node->stop('fast');
$node->start;
wait_settled($node, 'postgres');
publish('after ', 10);
wait_settled($node, 'postgres');
my %count = take();
is_deeply(\%count,
	{ ids => 5010, repeated => 0, marked => 0, unmarked => 0, spoilt => 0 },
	'nothing repeated and nothing marked after a fast shutdown');

# A crash before the worker has written a receipt with an outcome: that its
# predecessor ended in good order says nothing about what it has sent.
$node->restart;
wait_state($node, 'postgres', 'mes', 'connected');
$broker->freeze;
publish('unconfirmed ', 10);
wait_for($node, 'postgres',
	'SELECT in_flight = 10 FROM amqp_outbox.server_status', 'all are sent');
$node->stop('immediate');
$broker->thaw;
wait_true('the broker has them', sub { $broker->count('q') == 10 });
$node->start;
wait_settled($node, 'postgres');
%count = take();
is_deeply(\%count,
	{ ids => 10, repeated => 10, marked => 10, unmarked => 0, spoilt => 0 },
	'a crash before the first receipt: all are repeated and marked');

# A crash: what may have been sent is marked, what comes later is not.
publish('crash ', 20000);
wait_true('some arrived', sub { $broker->count('q') > 2000 });
$node->stop('immediate');
$node->start;
wait_settled($node, 'postgres');
publish('later ', 10);
wait_settled($node, 'postgres');
my @later = grep { $_->[0] =~ /^later/ } $broker->fields('q', 'message_id');
is(scalar(@later), 10, 'messages after the crash arrived');

publish('crash again ', 20000);
wait_true('some arrived', sub { $broker->count('q') > 2000 });
$node->stop('immediate');
$node->start;
wait_settled($node, 'postgres');
publish('later ', 10);
wait_settled($node, 'postgres');
%count = take();
is($count{ids}, 20010, 'all messages arrived');
is($count{unmarked}, 0, "each of $count{repeated} repetitions is marked");
cmp_ok($count{marked}, '<=', 20000, "messages after the crash are not marked");
cmp_ok($count{marked}, '>', 0, "$count{marked} are marked");
is($count{spoilt}, 0, 'the mark is a boolean and the only change');

# A lost connection: what was in flight is marked.
publish('lost ', 20000);
wait_true('some arrived', sub { $broker->count('q') > 2000 });
$broker->ctl('close_all_connections', 'test');
wait_settled($node, 'postgres');
%count = take();
is($count{ids}, 20000, 'all messages arrived');
is($count{unmarked}, 0, "each of $count{repeated} repetitions is marked");
cmp_ok($count{marked}, '<=', 1024, "only what was in flight is marked: $count{marked}");

finish_node($node);
done_testing();

# The worker lets a large body go when it is sent.  What has to be sent again is
# read again, whole; and what cannot be read any more is told, and holds up nobody.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('again');
my $node = new_node('main');

create_server($node, 'postgres', 'mes', $broker);
$broker->declare_queue('q');
wait_state($node, 'postgres', 'mes', 'connected');
$node->safe_psql('postgres', <<'END');
CREATE EXTENSION pg_surgery;
ALTER TABLE amqp_outbox.outbox_0 ALTER body SET STORAGE EXTERNAL;
CREATE FUNCTION large(id text) RETURNS text LANGUAGE sql
	RETURN id || ' ' || repeat(md5(id), 2100);
END

# What came with ids of this beginning: each message once, whatever came twice, in
# the order of their ids, with the first word of the body and whether all of it is
# there.
sub arrived
{
	my ($beginning) = @_;
	my %arrived;

	foreach my $message ($broker->fields('q', 'message_id', 'body'))
	{
		my ($id, $body) = @$message;
		next if $id !~ /^$beginning/;
		my ($word, $rest) = split(/ /, $body, 2);
		my $whole = length($rest) == 67200
		  && $rest eq substr($rest, 0, 32) x 2100;
		$arrived{$id} = "$id $word" . ($whole ? '' : ' damaged');
	}
	return join(', ', map { $arrived{$_} } sort keys %arrived);
}

#
# All of them, but the one because of which the broker closes the channel
#

$node->safe_psql('postgres', <<'END');
SELECT count(amqp_publish(CASE i WHEN 120 THEN 'absent' ELSE '' END, 'q',
	large('m' || i), message_id => 'm' || i)) FROM generate_series(101, 140) i;
END
wait_for($node, 'postgres',
	"SELECT array_agg(message_id) = '{m120}' FROM amqp_outbox.message
		WHERE status IN ('pending', 'retrying')");
is( arrived('m'),
	join(', ', map { "m$_ m$_" } grep { $_ != 120 } 101 .. 140),
	'the channel was closed: all others arrive whole');
$broker->declare_exchange('absent', 'topic');
$broker->bind_queue('q', 'absent', 'q');
$node->safe_psql('postgres', 'SELECT amqp_outbox.wake()');
wait_settled($node, 'postgres');
is(arrived('m'), 'm120 m120', 'and that one, too, once it can');

#
# While they are on their way, one row goes and another one is damaged
#

$broker->freeze;
$node->safe_psql('postgres', <<'END');
SELECT count(amqp_publish('', 'q', large('n' || i), message_id => 'n' || i,
	ordering_key => CASE WHEN i IN (3, 4) THEN 'k' END)) FROM generate_series(1, 5) i;
END
wait_for($node, 'postgres',
	'SELECT in_flight = 4 FROM amqp_outbox.server_status', 'n4 waits for n3');
my $pieces = $node->safe_psql('postgres', <<'END');
SELECT reltoastrelid::regclass FROM pg_class WHERE oid = 'amqp_outbox.outbox_0'::regclass
END
$node->safe_psql('postgres', <<"END");
DELETE FROM amqp_outbox.outbox_0 WHERE message_id = 'n2';
SELECT heap_force_kill('$pieces', array_agg(ctid)) FROM $pieces
	WHERE chunk_seq = 0 AND substr(chunk_data, 1, 3) = 'n3 ';
END
$broker->kill9;
$broker->start;
wait_settled($node, 'postgres');
is(arrived('n'), 'n1 n1, n4 n4, n5 n5',
	'the connection was lost: the others arrive whole');
is( $node->safe_psql(
		'postgres',
		"SELECT string_agg(concat_ws(' ', message_id, reason, possible_duplicate, last_error), ', ' ORDER BY id)
			FROM amqp_outbox.dead_letter") =~
	  s/(unexpected chunk number 1).*/$1/r,
	' malformed t the row of the message is gone, n3 malformed t unexpected chunk number 1',
	'and these are dead letters');

#
# Those with a time of their own stand in another table
#

$broker->freeze;
$node->safe_psql('postgres', <<'END');
SELECT count(amqp_publish('', 'q', large('o' || i), message_id => 'o' || i,
	delay => '1 ms')) FROM generate_series(1, 3) i;
END
wait_for($node, 'postgres',
	'SELECT in_flight = 3 FROM amqp_outbox.server_status');
$broker->kill9;
$broker->start;
wait_settled($node, 'postgres');
is(arrived('o'), 'o1 o1, o2 o2, o3 o3', 'deferred ones arrive whole');

#
# The broker asks for a pause when some of them are still to be sent again, and
# when it is over the extension is being dropped, which is taken back
#

sub broker_does
{
	my ($what) = @_;

	$broker->ctl('eval', $what);
	return;
}

my $queue = '{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r('
  . '<<"/">>, queue, <<"q">>)), P = amqqueue:get_pid(Q)';
broker_does("$queue, sys:suspend(P).");
$node->safe_psql('postgres',
	"SELECT count(amqp_publish('', 'q', large('p' || i), message_id => 'p' || i))
		FROM generate_series(100, 299) i");
wait_for($node, 'postgres',
	'SELECT in_flight = 200 FROM amqp_outbox.server_status');
broker_does('rabbit_alarm:set_alarm({{resource_limit, memory, node()}, []}).');
$broker->ctl('close_all_connections', 'test');
wait_state($node, 'postgres', 'mes', 'blocked');
cmp_ok(status($node, 'postgres', 'mes', 'in_flight'), '<', 200, 'not all of them have left');
my $session = $node->background_psql('postgres');
my $offset = -s $node->logfile;
$session->query_safe('SET client_min_messages = warning');
$session->query_safe('BEGIN; DROP EXTENSION amqp_outbox CASCADE');
broker_does('rabbit_alarm:clear_alarm({resource_limit, memory, node()}).');
# one may be of a look at the ring
wait_true('the worker cannot read', sub {
	return log_lines($node, qr/canceling statement due to lock timeout/, $offset)
	  >= 3;
});
$session->query_safe('ROLLBACK');
$session->quit;
broker_does("$queue, sys:resume(P).");
wait_settled($node, 'postgres');
is(arrived('p'), join(', ', map { "p$_ p$_" } 100 .. 299),
	'it was not dropped: they arrive whole');

finish_node($node, errors => qr/unexpected chunk number|lock timeout/);
done_testing();

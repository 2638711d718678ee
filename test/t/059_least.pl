# The broker's permissions as docs/security.md reduces them: with exactly those
# what is to be delivered is delivered, and nothing else.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $text = slurp_file("$AmqpOutboxTest::ROOT/docs/security.md");
my $broker = AmqpOutboxTest::Broker->new('least');
my $plant = $broker->new_vhost('plant');
my $node = new_node('main');

# Run the lines of a block of the document.
sub run_block
{
	my $name = shift;
	my ($block) = $text =~ /^```sh $name\n(.*?)^```/ms;

	foreach my $line (split(/\n/, $block))
	{
		my ($command, @words) = map { s/^'|'$//gr } $line =~ /('[^']*'|\S+)/g;

		push @words, 'password of the test' if $words[0] eq 'add_user';
		$broker->ctl(@words);
	}
	return;
}

sub sql
{
	my $sql = shift;

	return $node->safe_psql('postgres', $sql);
}

sub dead
{
	my ($id, $what) = @_;

	wait_for($node, 'postgres', "SELECT count(*) = 1 FROM amqp_outbox.dead_letter
		WHERE message_id = '$id'", "$id to be a dead letter");
	like(sql("SELECT reply_code || ' ' || last_error FROM amqp_outbox.dead_letter
		WHERE message_id = '$id'"), qr/^403 .*ACCESS_REFUSED/, "$what is refused");
	return;
}

$plant->declare_exchange('mes', 'topic');
$plant->declare_exchange('office', 'topic');
$plant->declare_queue('all');
$plant->bind_queue('all', $_, '#') foreach 'mes', 'office';
run_block('least');

sql(<<"END");
CREATE EXTENSION amqp_outbox;
BEGIN;
CREATE SERVER mes FOREIGN DATA WRAPPER amqp_outbox
	OPTIONS (host '127.0.0.1', port '@{[ $broker->port ]}', vhost 'plant', max_attempts '1');
CREATE USER MAPPING FOR PUBLIC SERVER mes
	OPTIONS (user 'amqp_outbox', password 'password of the test');
COMMIT;
END

#
# Publishing
#

sql("SELECT amqp_publish('mes', 'plant1.order', 'x'::text, message_id => 'wanted')");
wait_settled($node, 'postgres');
is_deeply([ map { $_->[0] } $plant->fields('all', 'message_id') ], ['wanted'], 'it is delivered');

sql("SELECT amqp_publish('mes', 'plant2.order', 'x'::text, message_id => 'other key')");
sql("SELECT amqp_publish('office', 'plant1.order', 'x'::text, message_id => 'other exchange')");
sql("SELECT amqp_publish('', 'all', 'x'::text, message_id => 'default exchange')");
sql("SELECT amqp_publish('mes', 'plant1.order', 'x'::text, message_id => 'also wanted')");
dead('other key', 'another routing key');
dead('other exchange', 'another exchange');
dead('default exchange', 'a queue, past the exchanges');
wait_settled($node, 'postgres');
is_deeply([ map { $_->[0] } $plant->fields('all', 'message_id') ], ['also wanted'], 'nothing else is');

# the probe has to be expected by consumers, and to be allowed
is(sql("SELECT string_agg(check_name || ' ' || result, ', ')
		FROM amqp_outbox.doctor('mes') WHERE result = 'error'"), '', 'the doctor needs no more');
like(sql("SELECT string_agg(check_name || ' ' || result, ', ') FROM amqp_outbox.doctor('mes', 'office')"),
	qr/probe error/, 'and tells what is not allowed');

# nor may whoever has the password read, or make anything
foreach my $attempt ([ 'get', 'all' ], [ 'declare-queue', 'mine' ], [ 'declare-exchange', 'mine', 'topic' ],
	[ 'bind', 'all', 'mes', 'x' ], [ 'purge', 'all' ], [ 'delete-queue', 'all' ])
{
	my $url = 'amqp://amqp_outbox:password%20of%20the%20test@127.0.0.1:' . $broker->port . '/plant';

	ok(!eval { $broker->tool('--url', $url, @$attempt); 1 } && $@ =~ /403|ACCESS_REFUSED/,
		"not allowed: $attempt->[0]");
}

#
# Topology
#

run_block('topology');
sql("SELECT amqp_outbox.declare_exchange('mes', 'mes'), amqp_outbox.declare_queue('mes', 'orders'),
	amqp_outbox.bind_queue('mes', 'orders', 'mes', '#')");
wait_for($node, 'postgres', "SELECT bool_and(state = 'asserted') FROM amqp_outbox.topology", 'topology');
sql("SELECT amqp_publish('mes', 'plant1.order', 'x'::text, message_id => 'to the queue')");
wait_settled($node, 'postgres');
is_deeply([ map { $_->[0] } $plant->fields('orders', 'message_id') ], ['to the queue'],
	'what the worker declared gets messages');
sql("SELECT amqp_outbox.declare_queue('mes', 'not mine')");
wait_for($node, 'postgres', "SELECT state = 'conflict' AND reply_code = 403
	FROM amqp_outbox.topology WHERE name = 'not mine'", 'another queue to be refused');
pass('another queue is refused');

finish_node($node);
done_testing();

# An error in the worker's own SQL is reported and tried again after a pause,
# never in a tight loop; when its cause is gone everything goes on.  An error of
# the rotation is none of delivery.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('own_errors');
my $node = new_node('main');

create_server($node, 'postgres', 'mes', $broker);
$broker->declare_queue('q');
wait_state($node, 'postgres', 'mes', 'connected');

sub errors
{
	return scalar(log_lines($node, qr/ERROR:  .*violates check constraint/));
}

foreach my $when ('first', 'later')
{
	my $before = errors();

	$node->safe_psql('postgres',
		'ALTER TABLE amqp_outbox.receipt_0 ADD CONSTRAINT broken CHECK (false) NOT VALID');
	$node->safe_psql('postgres',
		"SELECT amqp_publish('', 'q', 'x', message_id => '$when')");
	wait_true('several errors', sub { errors() >= $before + 3 });
	cmp_ok(errors() - $before, '<', 10, "$when receipt: a pause after each error");
	like(status($node, 'postgres', 'mes', 'last_error'),
		qr/violates check constraint/, "$when receipt: shown in the status");

	$node->safe_psql('postgres',
		'ALTER TABLE amqp_outbox.receipt_0 DROP CONSTRAINT broken');
	wait_settled($node, 'postgres');
	is_deeply([ $broker->fields('q', 'message_id') ], [ [$when] ],
		"$when receipt: delivered once in the end");
}

# The ring cannot be looked at, as one of its tables has another name.
my $missing = qr/ERROR:  table "amqp_outbox.late_3" does not exist/;

$node->safe_psql('postgres',
	'ALTER TABLE amqp_outbox.late_3 RENAME TO elsewhere');
$node->append_conf('postgresql.conf', 'amqp_outbox.retention = 0');
$node->reload;
wait_true('an error of the rotation',
	sub { log_lines($node, $missing) });
foreach my $i (1 .. 10)
{
	$node->safe_psql('postgres',
		"SELECT amqp_publish('', 'q', 'x', message_id => '$i')");
	wait_settled($node, 'postgres');
}
cmp_ok(scalar(log_lines($node, $missing)),
	'<', 5, 'rotation: delivery neither repeats its error nor waits for it');
is_deeply([ $broker->fields('q', 'message_id') ], [ map { [$_] } 1 .. 10 ],
	'rotation: everything is delivered once');
$node->safe_psql('postgres',
	'ALTER TABLE amqp_outbox.elsewhere RENAME TO late_3');
$node->reload;
wait_for($node, 'postgres',
	"SELECT pg_relation_size('amqp_outbox.outbox_0') = 0",
	'what is delivered goes');

finish_node($node,
	errors => qr{violates check constraint|table "amqp_outbox.late_3"});
done_testing();

# Statements that need a database for themselves do not meet a worker in it,
# and afterwards everything goes on, in whatever database there is then.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('databases');
my $node = new_node('main');

$broker->declare_queue('q');
$node->safe_psql('postgres', 'CREATE DATABASE plant');
create_server($node, 'plant', 'mes', $broker);
$broker->declare_queue('q');

sub publish
{
	my ($database, $id) = @_;

	$node->safe_psql($database,
		"SELECT amqp_publish('', 'q', 'x', message_id => '$id')");
	return;
}

sub arrives
{
	my ($database, $id, $name) = @_;

	publish($database, $id);
	wait_settled($node, $database);
	is_deeply([ $broker->fields('q', 'message_id') ], [ [$id] ], $name);
	return;
}

arrives('plant', 'before', 'a worker is at work in the database');

my ($result, $output, $errors) =
  $node->psql('postgres', 'ALTER DATABASE plant RENAME TO plant1');
is($errors, '', 'ALTER DATABASE RENAME');
arrives('plant1', 'renamed', 'it goes on under the new name');

($result, $output, $errors) =
  $node->psql('postgres', 'CREATE DATABASE copy TEMPLATE plant1');
is($errors, '', 'CREATE DATABASE from it');
arrives('plant1', 'copied', 'it goes on in the source');
publish('copy', 'in the copy');
wait_state($node, 'copy', 'mes', 'copy');
is($broker->count('q'), 0, 'the copy stays silent');

# a statement that fails leaves no hold behind
($result, $output, $errors) =
  $node->psql('postgres', 'CREATE DATABASE copy TEMPLATE plant1');
like($errors, qr/already exists/, 'a statement that fails');
arrives('plant1', 'failed', 'it goes on after it');
($result, $output, $errors) = $node->psql('postgres',
	'BEGIN; DROP DATABASE plant1; COMMIT');
like($errors, qr/cannot run inside a transaction block/, 'another one');
arrives('plant1', 'failed again', 'it goes on after it');

foreach my $database ('copy', 'plant1')
{
	($result, $output, $errors) =
	  $node->psql('postgres', "DROP DATABASE $database");
	is($errors, '', "DROP DATABASE $database");
}
wait_for($node, 'postgres',
	"SELECT count(*) = 0 FROM pg_stat_activity
		WHERE backend_type IN ('amqp_outbox worker', 'amqp_outbox scout')");

$node->safe_psql('postgres', 'CREATE DATABASE plant');
create_server($node, 'plant', 'mes', $broker);
arrives('plant', 'anew', 'a new database of the same name');

finish_node($node);
done_testing();

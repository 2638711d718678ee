# What others do does not stop the workers: a role without rights, a server
# that was dropped elsewhere, a transaction that is rolled back, logical
# replication.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('bystanders');
my $node = new_node('main', conf => <<'END');
amqp_outbox.max_workers = 1
wal_level = logical
max_wal_senders = 16
max_replication_slots = 16
END

sub arrives
{
	my ($node, $database, $id, $name) = @_;

	$node->safe_psql($database,
		"SELECT amqp_publish('', 'q', 'x', message_id => '$id')");
	wait_settled($node, $database);
	is_deeply([ $broker->fields('q', 'message_id') ], [ [$id] ], $name);
	return;
}

$broker->declare_queue('q');
$node->safe_psql('postgres', 'CREATE DATABASE one');
$node->safe_psql('postgres', 'CREATE DATABASE two');
create_server($node, 'one', 'mes', $broker);
wait_state($node, 'one', 'mes', 'connected');

#
# A role without rights
#

$node->safe_psql('postgres', 'CREATE ROLE plain LOGIN');
my $session = $node->background_psql('postgres',
	on_error_stop => 0, extra_params => [ '-U', 'plain' ]);
$session->query('BEGIN');
$session->query('SAVEPOINT a');
$session->query('DROP DATABASE one');
$session->query('ROLLBACK TO a');
arrives($node, 'one', 'held', 'a failed DROP DATABASE of somebody holds up nobody');
$session->query('ROLLBACK');
$session->query('DROP DATABASE one');
$session->query('ALTER DATABASE one RENAME TO three');
$session->query('CREATE DATABASE three TEMPLATE one');
is(worker_pid($node, 'one', 'mes'),
	worker_pid($node, 'one', 'mes'), 'there is a worker');
$session->quit;
is(scalar(log_lines($node, qr/server "mes": connected/)),
	1, 'it never left');

#
# A server that found no room among the workers
#

create_server($node, 'two', 'mes', $broker);
wait_true('the lack is reported',
	sub { log_lines($node, qr/1 servers of database "two" have no worker/) });
$node->safe_psql('two',
	"SELECT amqp_publish('', 'q', 'x', message_id => 'starved')");
$node->safe_psql('one',
	'SET client_min_messages = warning; DROP EXTENSION amqp_outbox CASCADE');
wait_settled($node, 'two');
is_deeply([ $broker->fields('q', 'message_id') ],
	[ ['starved'] ], 'it gets the one that becomes free');

#
# An extension that is created anew and rolled back
#

my $next_id = 'SELECT next_id FROM amqp_outbox.horizon()';
$node->safe_psql('two', "SELECT count(amqp_publish('', 'q', 'x')) FROM generate_series(1, 10)");
wait_settled($node, 'two');
$broker->fields('q', 'message_id');
my $before = $node->safe_psql('two', $next_id);
$node->safe_psql('two', 'DELETE FROM amqp_outbox.outbox; DELETE FROM amqp_outbox.receipt');
$node->safe_psql('two', <<'END');
SET client_min_messages = warning;
BEGIN;
DROP EXTENSION amqp_outbox CASCADE;
CREATE EXTENSION amqp_outbox;
SELECT amqp_outbox.adopt();
ROLLBACK;
END
is($node->safe_psql('two', $next_id), $before, 'ids do not go back');
arrives($node, 'two', 'after the rollback', 'messages arrive');

#
# Logical replication of all tables
#

my $subscriber = new_node('subscriber', conf => 'max_replication_slots = 16');
$subscriber->safe_psql('postgres', 'CREATE DATABASE two');
create_server($subscriber, 'two', 'mes', $broker);
arrives($subscriber, 'two', 'own', 'a message of the subscriber');
$node->safe_psql('two', 'CREATE PUBLICATION p FOR ALL TABLES');
my $publisher = $node->connstr('two') =~ s{'}{''}gr;
$subscriber->safe_psql('two',
	"CREATE SUBSCRIPTION s CONNECTION '$publisher' PUBLICATION p");
$node->wait_for_catchup('s');
wait_for($subscriber, 'two',
	"SELECT count(*) = 0 FROM pg_subscription_rel WHERE srsubstate NOT IN ('r', 's')");
arrives($node, 'two', 'publisher', 'a message of the publisher arrives once');
$node->wait_for_catchup('s');
arrives($subscriber, 'two', 'subscriber', 'and one of the subscriber, too');
is($subscriber->safe_psql('two',
		'SELECT count(*) FROM amqp_outbox.identity'), 1, 'no row was applied');

# a leaf of the ring that is emptied says nothing; a TRUNCATE by hand is refused
my $leaf = $node->safe_psql('two', 'SELECT amqp_outbox.leaf()');
$node->append_conf('postgresql.conf', 'amqp_outbox.retention = 0');
$node->reload;
wait_for($node, 'two', "SELECT pg_relation_size('amqp_outbox.outbox_$leaf') = 0",
	'a leaf emptied');
$node->wait_for_catchup('s');
ok(!log_lines($subscriber, qr/cannot replicate TRUNCATE/),
	'a leaf that is emptied is not replicated');
$node->safe_psql('two', 'TRUNCATE amqp_outbox.outbox');
wait_true('TRUNCATE refused',
	sub { log_lines($subscriber, qr/cannot replicate TRUNCATE to the tables of amqp_outbox/) });
ok(log_lines($subscriber, qr/Leave them out of the publication, or skip this transaction with ALTER SUBSCRIPTION ... SKIP./),
	'and what to do');
isnt($subscriber->safe_psql('two', 'SELECT count(*) FROM amqp_outbox.outbox'),
	0, 'a TRUNCATE takes nothing at a subscriber');
$subscriber->safe_psql('two', 'DROP SUBSCRIPTION s');
finish_node($subscriber, errors => qr{logical replication|cannot replicate TRUNCATE});

finish_node($node);
done_testing();

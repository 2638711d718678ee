# pg_upgrade --link with messages of every kind: the new cluster is a copy that
# stays silent until it is adopted; then it delivers what was not delivered, and
# nothing else.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('upgrade');
my $old = new_node('old');
my $new = new_node('new');

sub publish
{
	my ($node, $prefix, $count, $key) = @_;

	$node->safe_psql('postgres',
		"SELECT count(amqp_publish('', '$key', 'x', message_id => '$prefix ' || i))
			FROM generate_series(1, $count) i");
	return;
}

create_server($old, 'postgres', 'mes', $broker, unroutable => 'dead_letter');
$broker->declare_queue('q');
publish($old, 'delivered', 300, 'q');
publish($old, 'dead', 3, 'nowhere');
wait_settled($old, 'postgres');
is($broker->fields('q', 'message_id'), 300, 'the first messages arrived');

# Undelivered ones, which nothing but being upgraded keeps from being delivered.
$old->append_conf('postgresql.conf', 'amqp_outbox.enabled = off');
$old->reload;
wait_state($old, 'postgres', 'mes', 'stopped');
publish($old, 'pending', 200, 'q');
$old->stop;
$old->append_conf('postgresql.conf', 'amqp_outbox.enabled = on');
$new->stop;

my $bindir = $old->config_data('--bindir');
chdir(PostgreSQL::Test::Utils::tempdir()) or die "chdir: $!";
command_ok(
	[ 'pg_upgrade', '--link', '--no-sync',
		'--old-bindir', $bindir, '--new-bindir', $bindir,
		'--old-datadir', $old->data_dir, '--new-datadir', $new->data_dir,
		'--old-port', $old->port, '--new-port', $new->port,
		'--socketdir', $new->host ],
	'pg_upgrade --link');
is($broker->count('q'), 0, 'pg_upgrade publishes nothing');

# a copy, and a silent one, whatever happens in it
$new->start;
wait_state($new, 'postgres', 'mes', 'copy');
publish($new, 'collected', 10, 'q');
is(status($new, 'postgres', 'mes', 'backlog'), 210,
	'upgraded: what was not delivered is there');
is(status($new, 'postgres', 'mes', 'dead_letters'), 3,
	'upgraded: and the dead letters');
$new->restart;
wait_state($new, 'postgres', 'mes', 'copy');
# here time itself is the test
$new->safe_psql('postgres', 'SELECT pg_sleep(0.7)');
is($broker->count('q'), 0, 'upgraded: nothing is published');

$new->safe_psql('postgres', 'SELECT amqp_outbox.adopt()');
wait_settled($new, 'postgres');
publish($new, 'new', 10, 'q');
wait_settled($new, 'postgres');
is_deeply(
	[ map { $_->[0] } $broker->fields('q', 'message_id') ],
	[ (map { "pending $_" } 1 .. 200), (map { "collected $_" } 1 .. 10),
		(map { "new $_" } 1 .. 10) ],
	'adopted: what was pending arrives, once and in order');
is( $new->safe_psql('postgres',
		"SELECT status, count(*) FROM amqp_outbox.message GROUP BY 1 ORDER BY 1"),
	"dead|3\ndelivered|520", 'adopted: what was delivered before still is');

finish_node($new);
done_testing();

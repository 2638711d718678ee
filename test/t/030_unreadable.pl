# A row that is damaged, so that it cannot be read, holds up nobody: it becomes a
# dead letter with what can be read of it and PostgreSQL's words.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use PostgreSQL::Test::Utils;
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('unreadable');
my $node = new_node('main', conf => "ignore_checksum_failure = on
amqp_outbox.retention = 10");

create_server($node, 'postgres', 'mes', $broker);
$broker->declare_queue('q');

# Large bodies stand in a TOAST table.  Give the first pieces of some, which begin
# with their message's id, another number; in the file, for nothing else can.
sub damage
{
	my ($table, @ids) = @_;
	my $file = $node->data_dir . '/' . $node->safe_psql('postgres', <<"END");
SELECT pg_relation_filepath(reltoastrelid) FROM pg_class WHERE oid = '$table'::regclass
END
	$node->stop;
	my $data = slurp_file($file);

	foreach my $id (@ids)
	{
		my $damaged = $data =~ s/\0\0\0\0(....\Q$id\E x)/\x63\0\0\0$1/sg;
		is($damaged, 1, "$id is damaged");
	}
	open(my $handle, '+<:raw', $file) or die "cannot open $file";
	print $handle $data;
	close($handle) or die "cannot write $file";
	$node->start;
	return;
}

sub publish
{
	my ($prefix, $key) = @_;

	$node->safe_psql('postgres', <<"END");
ALTER TABLE amqp_outbox.outbox_0 ALTER body SET STORAGE EXTERNAL;
ALTER TABLE amqp_outbox.deferred ALTER body SET STORAGE EXTERNAL;
SELECT count(amqp_publish('', '$key', '$prefix' || i || ' ' || repeat('x', 3000),
	message_id => '$prefix' || i)) FROM generate_series(1, 50) i;
END
	return;
}

sub settle_and_take
{
	wait_settled($node, 'postgres');
	return join(' ', map { $_->[0] } $broker->fields('q', 'message_id'));
}

# In the outbox, while nobody reads it.
wait_state($node, 'postgres', 'mes', 'connected');
$node->append_conf('postgresql.conf', 'amqp_outbox.enabled = off');
$node->reload;
wait_for($node, 'postgres',
	"SELECT count(*) = 0 FROM pg_stat_activity
		WHERE backend_type = 'amqp_outbox worker'");
publish('a', 'q');
damage('amqp_outbox.outbox_0', 'a7', 'a33');
$node->append_conf('postgresql.conf', 'amqp_outbox.enabled = on');
$node->reload;
is( settle_and_take(),
	join(' ', map { "a$_" } grep { $_ != 7 && $_ != 33 } 1 .. 50),
	'the others arrive, in order');
is( $node->safe_psql(
		'postgres',
		"SELECT string_agg(message_id || ' ' || reason || ' ' || routing_key || ' '
			|| length(body) || ' ' || (last_error LIKE 'unexpected chunk number%'), ', ' ORDER BY id)
			FROM amqp_outbox.dead_letter"),
	'a7 malformed q 0 true, a33 malformed q 0 true',
	'the damaged ones are dead letters');

# In amqp_outbox.deferred.
publish('b', 'later');
wait_for($node, 'postgres',
	'SELECT count(*) = 50 FROM amqp_outbox.deferred');
damage('amqp_outbox.deferred', 'b20');
$node->safe_psql('postgres',
	"UPDATE amqp_outbox.deferred SET routing_key = 'q'");
is( join(' ', sort { substr($a, 1) <=> substr($b, 1) } split(/ /, settle_and_take())),
	join(' ', map { "b$_" } grep { $_ != 20 } 1 .. 50),
	'the others of the deferred ones arrive');
is( $node->safe_psql(
		'postgres',
		"SELECT reason FROM amqp_outbox.dead_letter WHERE message_id = 'b20'"),
	'malformed',
	'the damaged one is a dead letter');

# A whole page, in a leaf that is read later: what is before it and behind it
# arrives, and what is on it is known by its ids only.
$broker->stop;
my $leaf = $node->safe_psql('postgres', 'SELECT amqp_outbox.leaf()');
publish('c', 'q');
wait_for($node, 'postgres', "SELECT amqp_outbox.leaf() <> $leaf",
	'the ring has turned');
$leaf = $node->safe_psql('postgres', 'SELECT amqp_outbox.leaf()');
$node->safe_psql('postgres',
	"SELECT count(amqp_publish('', 'q', repeat('d', 500), message_id => 'd' || i))
		FROM generate_series(1, 100) i");
my $on_page = $node->safe_psql('postgres',
	"SELECT count(*) FROM amqp_outbox.outbox_$leaf WHERE ctid < '(1,0)'");
my $file = $node->data_dir . '/'
  . $node->safe_psql('postgres',
	"SELECT pg_relation_filepath('amqp_outbox.outbox_$leaf')");
$node->stop;
my $data = slurp_file($file);
substr($data, 12, 4) = "\xff\xff\xff\xff";
open(my $handle, '+<:raw', $file) or die "cannot open $file";
print $handle $data;
close($handle) or die "cannot write $file";
$node->start;
$broker->start;
is( settle_and_take(),
	join(' ', (map { "c$_" } 1 .. 50), (map { "d$_" } $on_page + 1 .. 100)),
	'all arrive that are not on the damaged page');
is( $node->safe_psql(
		'postgres',
		"SELECT count(*) FROM amqp_outbox.dead_letter WHERE message_id = ''
			AND reason = 'malformed' AND last_error LIKE 'invalid page%'"),
	$on_page,
	'those on the damaged page are dead letters');

# Headers that are nested deeper than the worker may go, from a session that may.
$node->safe_psql('postgres', <<'END');
SET max_stack_depth = '7MB';
SELECT amqp_publish('', 'q', 'x'::text, message_id => 'deep', headers =>
	('{"a": ' || repeat('[', 12000) || repeat(']', 12000) || '}')::jsonb),
	amqp_publish('', 'q', 'x'::text, message_id => 'shallow');
END
is(settle_and_take(), 'shallow', 'headers too deep for the worker: the next one arrives');
is( $node->safe_psql(
		'postgres',
		"SELECT reason, last_error, convert_from(body, 'UTF8'), headers IS NOT NULL
			FROM amqp_outbox.dead_letter WHERE message_id = 'deep'"),
	'malformed|stack depth limit exceeded|x|t',
	'headers too deep for the worker: a dead letter, with all that it holds');

finish_node($node,
	errors => qr/unexpected chunk number|invalid page|stack depth limit/);
done_testing();

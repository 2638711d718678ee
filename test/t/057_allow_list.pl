# Allow lists: their patterns are those of the broker's topic exchanges, a
# session that is open notices a change, and a dump has them.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('allow_list');
my $node = new_node('main');

create_server($node, 'postgres', 'mes', $broker, allow_list => 'true');
$node->safe_psql('postgres', <<'END');
CREATE ROLE line;
GRANT USAGE ON FOREIGN SERVER mes TO line;
CREATE FUNCTION may(routing_key text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	SET LOCAL ROLE line;
	PERFORM amqp_publish('e', routing_key, 'x'::text, server => 'mes');
	RESET ROLE;
	RAISE EXCEPTION SQLSTATE 'OK000';
EXCEPTION
	WHEN insufficient_privilege THEN RETURN false;
	WHEN SQLSTATE 'OK000' THEN RETURN true;
END $$;
END

#
# The patterns are the broker's
#

my $seed = $ENV{SEED} // time();
srand($seed);
note("SEED=$seed");

sub some_words
{
	my ($n, @words) = @_;

	return join('.', map { $words[ rand @words ] } 1 .. int(rand($n + 1)));
}

my @patterns = ('', '#', '*', '#.a.#', '*.#', 'a.#.b.*.a');
my @keys = ('', '.', 'a', 'a.', 'a.b.b.b.a');
push @patterns, some_words(5, 'a', 'b', '*', '#', '') for 1 .. 30;
push @keys, some_words(7, 'a', 'b', '') for 1 .. 60;
my %seen;
@patterns = grep { !$seen{$_}++ } @patterns;
%seen = ();
@keys = grep { !$seen{$_}++ } @keys;

$broker->declare_exchange('e', 'topic');
foreach my $i (0 .. $#patterns)
{
	$broker->declare_queue("q$i");
	$broker->bind_queue("q$i", 'e', $patterns[$i]);
}
my $values = join(', ', map { "('$_')" } @keys);
$node->safe_psql('postgres', "SELECT count(amqp_publish('e', key, 'key ' || key, mandatory => false))
	FROM (VALUES $values) v (key)");
wait_settled($node, 'postgres');

my @differences;
my $pairs = 0;
foreach my $i (0 .. $#patterns)
{
	my %routed = map { $_->[0] => 1 } $broker->fields("q$i", 'body');
	my $covered = $node->safe_psql('postgres', "
		SELECT FROM amqp_outbox.allow('mes', 'line', 'e', '$patterns[$i]');
		SELECT 'key ' || key FROM (VALUES $values) v (key) WHERE may(key);
		SELECT FROM amqp_outbox.disallow('mes', 'line', 'e', '$patterns[$i]')");
	my %covered = map { $_ => 1 } grep { /^key / } split(/\n/, $covered);
	my @wrong = grep { ($routed{"key $_"} // 0) != ($covered{"key $_"} // 0) } @keys;

	$pairs += keys %routed;
	push @differences, map { "pattern '$patterns[$i]', key '$_'" } @wrong;
}
is(join("\n", @differences), '', scalar(@patterns) . ' patterns cover ' . scalar(@keys) . ' keys as the broker does');
cmp_ok($pairs, '>', @patterns, 'which is something');

#
# A session that is open
#

my $session = $node->background_psql('postgres');
is($session->query_safe("SELECT may('a')"), 'f', 'not allowed');
$node->safe_psql('postgres', "SELECT amqp_outbox.allow('mes', 'line', 'e', 'a')");
is($session->query_safe("SELECT may('a')"), 't', 'a session that is open may what others allow');
$node->safe_psql('postgres', "SELECT amqp_outbox.disallow('mes', 'line', 'e', 'a')");
is($session->query_safe("SELECT may('a')"), 'f', 'and no more what they take back');
$node->safe_psql('postgres', "ALTER SERVER mes OPTIONS (SET allow_list 'false')");
is($session->query_safe("SELECT may('a')"), 't', 'a server without a list');
$node->safe_psql('postgres', "ALTER SERVER mes OPTIONS (SET allow_list 'true')");

# an old snapshot does not make a former list the session's
$session->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ');
$session->query_safe('SELECT count(*) FROM amqp_outbox.allowed_item');
$node->safe_psql('postgres', "SELECT amqp_outbox.allow('mes', 'public', 'e', 'a.*')");
is($session->query_safe("SELECT may('a.b')"), 't', 'also under an old snapshot');
$session->query_safe('COMMIT');
is($session->query_safe("SELECT may('a.b')"), 't', 'and after it');
$session->quit;

#
# A dump
#

$node->safe_psql('postgres', "SELECT amqp_outbox.allow('mes', 'line', 'plant', 'b.#');
	CREATE ROLE gone; SELECT amqp_outbox.allow('mes', 'gone', 'plant', 'c'); DROP ROLE gone");
$node->run_log([ 'pg_dump', '-f', $node->basedir . '/dump.sql', $node->connstr('postgres') ]);
$node->safe_psql('postgres', 'CREATE DATABASE copy');
$node->run_log([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $node->basedir . '/dump.sql',
	$node->connstr('copy') ]);
is($node->safe_psql('copy', 'SELECT role, exchange, routing_key FROM amqp_outbox.allowed ORDER BY 1'),
	"line|plant|b.#\npublic|e|a.*", 'a dump has them, but not those of roles that were dropped');
$node->safe_psql('copy', "ALTER SERVER mes OPTIONS (ADD paused 'true')");

finish_node($node);
done_testing();

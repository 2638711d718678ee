# Messages arrive in the order of commits: if A had committed before B began
# to commit, A's come first; and a transaction that is open holds up nobody.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('order');
my $node = new_node('main');

create_server($node, 'postgres', 'mes', $broker);
create_sent($node, 'postgres');
$broker->declare_queue('q');

# Each transaction notes the time before it begins to commit, and its session
# notes the time after the commit.
$node->safe_psql('postgres', <<'END');
CREATE TABLE before (xid bigint PRIMARY KEY, at double precision);
CREATE TABLE after (xid bigint PRIMARY KEY, at double precision);
CREATE FUNCTION seconds() RETURNS double precision LANGUAGE sql VOLATILE
	AS $$ SELECT extract(epoch FROM clock_timestamp()) $$;
END

# How many messages came although another one, which came earlier, began to
# commit when they had committed already.
sub commits_out_of_order
{
	my ($received) = @_;
	my $rows = $node->safe_psql('postgres', <<'END');
SELECT s.id, b.at, a.at FROM sent s
	JOIN before b ON b.xid::text = s.xmin::text
	JOIN after a ON a.xid = b.xid
END
	my %times = map { my @row = split(/\|/); $row[0] => \@row } split(/\n/, $rows);
	my $newest_before = 0;
	my $wrong = 0;

	foreach my $message (@$received)
	{
		my $times = $times{ $message->[0] } or next;

		$wrong++ if $times->[2] < $newest_before;
		$newest_before = $times->[1] if $times->[1] > $newest_before;
	}
	return $wrong;
}

#
# Many sessions at once, one transaction in ten rolled back
#

my $load = start_load(
	$node, <<'END', clients => 6, transactions => 700);
\set k random(1, 3)
\set fails random(1, 10)
BEGIN;
SELECT pg_current_xact_id()::text AS xid \gset
SELECT count(publish_sent('', 'q', :client_id)) FROM generate_series(1, :k);
INSERT INTO before SELECT :xid, seconds();
\if :fails = 1
ROLLBACK;
\else
COMMIT;
INSERT INTO after SELECT :xid, seconds();
\endif
END
ok(stop_load($load, await => 1), 'load ran');
wait_settled($node, 'postgres');

my $received = $broker->received('q');
my $committed = committed($node, 'postgres');
check_account($committed, $received, 'many sessions');
is(commits_out_of_order($received), 0, 'none against the order of commits');
cmp_ok($node->safe_psql('postgres', 'SELECT count(DISTINCT xid) FROM after'),
	'>', 3000, 'transactions were compared');
is(status($node, 'postgres', 'mes', 'delivered'),
	scalar(@$committed), 'all are counted as delivered');

#
# Transactions of very different size: the small ones pass while a large one
# runs, and the large one is not torn apart
#

$node->safe_psql('postgres', 'TRUNCATE sent');
$load = start_load($node, <<'END', clients => 2, rate => 500);
SELECT publish_sent('', 'q', :client_id);
END
do
{
	$node->safe_psql('postgres',
		"BEGIN; " . publish_sent('q', 100, 3000) . " COMMIT");
} until $node->safe_psql('postgres',
	'SELECT count(*) >= 200 FROM sent WHERE session < 100') eq 't';
ok(stop_load($load), 'load ran');
wait_settled($node, 'postgres');
$received = $broker->received('q');
check_account(committed($node, 'postgres'), $received, 'small and large');

# a run of the large session is one transaction
my @runs = join(' ', map { $_->[1] =~ /^100 / ? 'l' : 's' } @$received) =~
  /(l(?: l)*)/g;
is(scalar(grep { (() = /l/g) % 3000 } @runs),
	0, 'no other message inside of a large transaction');

#
# Open transactions
#

$node->safe_psql('postgres', 'TRUNCATE sent');
my @sessions = map { $node->background_psql('postgres') } 1 .. 3;

# three that published first, one of them in a savepoint and one by a cursor
$_->query_safe('BEGIN') foreach @sessions;
$sessions[0]->query_safe(publish_sent('q', 1, 10));
$sessions[1]->query_safe('SAVEPOINT s');
$sessions[1]->query_safe(publish_sent('q', 2, 10));
$sessions[2]->query_safe(
	"DECLARE c CURSOR FOR SELECT publish_sent('', 'q', 3) FROM generate_series(1, 10)"
);
$sessions[2]->query_safe('FETCH 5 FROM c');

foreach my $i (1 .. 20)
{
	$node->safe_psql('postgres', publish_sent('q', 4, 5));
}
wait_settled($node, 'postgres');
$received = $broker->received('q');
is(scalar(@$received), 100, 'later transactions do not wait for open ones');
is(scalar(grep { $_->[1] !~ /^4 / } @$received), 0, 'which stay away');

# now the last one first
$sessions[2]->query_safe('FETCH 5 FROM c');
$sessions[2]->query_safe('COMMIT');
$sessions[0]->query_safe('ROLLBACK');
$sessions[1]->query_safe('RELEASE s');
$sessions[1]->query_safe('COMMIT');
$_->quit foreach @sessions;
wait_settled($node, 'postgres');
push @$received, $broker->received('q')->@*;
check_account(committed($node, 'postgres'), $received, 'open transactions');
is( join('', map { substr($_->[1], 0, 1) } @$received[ 100 .. 119 ]),
	'3' x 10 . '2' x 10,
	'in the order of their commits');

#
# The very first messages of a database, by several sessions at once
#

foreach my $i (1 .. 10)
{
	$node->safe_psql('postgres', "CREATE DATABASE new$i");
	create_server($node, "new$i", 'mes', $broker);
	create_sent($node, "new$i");
	$load = start_load(
		$node, "SELECT publish_sent('', 'q', :client_id)",
		database => "new$i", clients => 4, transactions => 5);
	ok(stop_load($load, await => 1), "first messages, load $i ran");
	wait_settled($node, "new$i");
	check_account(committed($node, "new$i"),
		$broker->received('q'), "first messages $i");
}

finish_node($node);
done_testing();

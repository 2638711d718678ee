# Limits of the backlog: that they hold whoever tries and whatever happens, and
# that the counters they look at are what the tables hold.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('backlog');
my $node = new_node('main', conf => 'max_prepared_transactions = 10');

create_server($node, 'postgres', 'mes', $broker, backlog_limit => 10);
create_server($node, 'postgres', 'erp', $broker);
$broker->declare_queue('q');

# What the tables hold, and where the counters differ from it.
sql(<<'END');
CREATE ROLE loud;
CREATE ROLE quiet;
GRANT USAGE ON FOREIGN SERVER mes, erp TO loud, quiet;
CREATE VIEW held AS
	WITH rows AS (
		SELECT k.server, m.published_by AS role, octet_length(m.body) + coalesce(pg_column_size(m.headers || '{}') - 4, 0) AS bytes
		FROM amqp_outbox.server_key k
		JOIN (SELECT server_key, id, published_by, body, headers, false AS deferred
				FROM amqp_outbox.outbox
			UNION ALL SELECT server_key, id, published_by, body, headers, true
				FROM amqp_outbox.deferred) m USING (server_key)
		WHERE m.deferred OR m.id > coalesce((SELECT max(r.through_id)
			FROM amqp_outbox.receipt r WHERE r.server_key = k.server_key), 0))
	SELECT server, NULL::name AS role, count(*) AS messages, sum(bytes) AS bytes,
		0::bigint AS reserved_messages, 0::bigint AS reserved_bytes
	FROM rows GROUP BY server
	UNION ALL SELECT server, role::name, count(*), sum(bytes), 0, 0
	FROM rows WHERE role IS NOT NULL GROUP BY server, role;
CREATE VIEW known AS
	SELECT server, role, messages, bytes::numeric, reserved_messages, reserved_bytes
	FROM amqp_outbox.backlog()
	WHERE role IS NOT NULL OR (messages, bytes, reserved_messages, reserved_bytes)
		IS DISTINCT FROM (0, 0, 0, 0);
CREATE VIEW difference AS
	(SELECT 'held' AS only, * FROM (TABLE held EXCEPT ALL TABLE known) h
		WHERE server IN (SELECT server FROM amqp_outbox.backlog()))
	UNION ALL SELECT 'known', * FROM (TABLE known EXCEPT ALL TABLE held) k;
CREATE FUNCTION publish(n int, server text DEFAULT 'mes', bytes int DEFAULT 1)
	RETURNS bigint LANGUAGE sql AS $$
	SELECT count(amqp_publish('', 'q', repeat('x', bytes), server => server))
	FROM generate_series(1, n) $$;
CREATE FUNCTION try(n int, server text DEFAULT 'mes') RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM publish(n, server);
EXCEPTION WHEN configuration_limit_exceeded THEN NULL;
END $$;
END

sub sql
{
	my $sql = shift;

	return $node->safe_psql('postgres', $sql);
}

# The error of a statement, with its SQLSTATE.
sub refused
{
	my $sql = shift;
	my ($ret, $stdout, $stderr) =
	  $node->psql('postgres', "\\set VERBOSITY verbose\n$sql");

	return $stderr;
}

# What is known of a server, or of a role there.
sub messages
{
	my ($server, $role) = @_;
	my $of = defined $role ? "role = '$role'" : 'role IS NULL';

	return sql("SELECT coalesce(sum(messages), 0) FROM amqp_outbox.backlog()
		WHERE server = '$server' AND $of");
}

sub wait_counted
{
	my ($since, $server) = @_;

	wait_for($node, 'postgres', "SELECT count(*) > 0 FROM amqp_outbox.backlog()
			WHERE server = '" . ($server // 'mes') . "' AND counted_at > '$since'",
		'the tables to be counted');
	return;
}

# Until all that is in the outbox has an outcome, and nothing is due.
sub wait_outcome
{
	wait_for($node, 'postgres', "SELECT sum(in_flight) = 0
			AND NOT EXISTS (SELECT FROM amqp_outbox.outbox o
				JOIN amqp_outbox.server_key k USING (server_key)
				WHERE k.server = 'mes' AND o.id > (SELECT max(through_id)
					FROM amqp_outbox.receipt r WHERE r.server_key = o.server_key))
		FROM amqp_outbox.server_status", 'all to have an outcome');
	return;
}

sub now { return sql('SELECT clock_timestamp()'); }

sub same
{
	my $name = shift;

	is(sql('TABLE difference'), '', "$name: the counters are what the tables hold");
	return;
}

sub wait_same
{
	my $name = shift;

	wait_for($node, 'postgres', 'SELECT count(*) = 0 FROM difference',
		"$name: the counters are what the tables hold");
	pass("$name: the counters are what the tables hold");
	return;
}

#
# The broker is away
#

$broker->stop;
sql('SELECT publish(10)');
like(
	refused('SELECT publish(1)'),
	qr/53400: backlog of server "mes" is full\nDETAIL:  10 messages wait .* backlog_limit is 10\.\nHINT:  Publish again/,
	'the broker is away: no more than the limit');
sql("SELECT publish(100, 'erp')");
same('the broker is away');
is(sql("SELECT count(*) FROM amqp_outbox.backlog() WHERE server = 'erp'"),
	0, 'a server without limits is not counted');

$broker->start;
wait_settled($node, 'postgres');
is(messages('mes'), 0, 'the broker is back: nothing waits');
same('the broker is back');
sql('SELECT publish(10)');
wait_settled($node, 'postgres');
$broker->received('q');

#
# Several at once
#

sql("ALTER SERVER mes OPTIONS (SET backlog_limit '300')");
$broker->stop;
my $load = start_load($node, "SELECT try(1);\nSELECT try(2);\n",
	clients => 8, transactions => 100);
ok(stop_load($load, await => 1), 'many sessions try');
is(messages('mes'), 300, 'together they come to the limit and not beyond');
same('many sessions');
$broker->start;
wait_settled($node, 'postgres');
$broker->received('q');

#
# What does not commit takes no room
#

sql("SELECT amqp_outbox.pause('mes')");
wait_state($node, 'postgres', 'mes', 'paused');
sql("ALTER SERVER mes OPTIONS (SET backlog_limit '100')");
sql('BEGIN; SELECT publish(100); ROLLBACK');
sql('BEGIN; SELECT publish(60); SAVEPOINT s; SELECT publish(40); ROLLBACK TO s;
	SAVEPOINT a; SAVEPOINT b; SELECT publish(20); RELEASE b; ROLLBACK TO a;
	SELECT publish(40); ROLLBACK');
like(refused('BEGIN; SELECT publish(60); SAVEPOINT s; SELECT publish(30); RELEASE s;
		SAVEPOINT s; SELECT publish(11)'),
	qr/53400: .*\nDETAIL:  100 messages wait/, 'a released savepoint keeps its room');
same('rolled back');

my $session = $node->background_psql('postgres', on_error_stop => 0);
my $pid = $session->query_safe('SELECT pg_backend_pid()');
$session->query_safe('BEGIN; SELECT publish(100)');
like(refused('SELECT publish(1)'), qr/53400/, 'an open transaction has reserved it all');
sql("SELECT pg_terminate_backend($pid)");
wait_for($node, 'postgres', 'SELECT sum(reserved_messages) = 0 FROM amqp_outbox.backlog()',
	'what a session had reserved that died');
eval { $session->quit };
sql('SELECT publish(50)');
same('a session that dies');

# the limits are gone and back while a transaction is open
$session = $node->background_psql('postgres');
$session->query_safe('BEGIN; SELECT publish(20)');
sql("ALTER SERVER mes OPTIONS (DROP backlog_limit)");
wait_for($node, 'postgres', 'SELECT count(*) = 0 FROM amqp_outbox.backlog()',
	'a limit that is dropped');
my $unlimited = $node->background_psql('postgres');
$unlimited->query_safe('BEGIN; SELECT publish(5)');
my $since = now();
sql("ALTER SERVER mes OPTIONS (ADD backlog_limit '100')");
wait_counted($since);
$session->query_safe('SELECT publish(5)');
$session->query_safe('COMMIT');
$unlimited->query_safe('COMMIT');
is(messages('mes'), 80, 'what was published while there was no limit is counted');
same('a limit that comes and goes');

# a scout that looks for servers does not see one that is not committed yet
$session->query_safe("BEGIN; CREATE SERVER early FOREIGN DATA WRAPPER amqp_outbox
	OPTIONS (uri 'amqp://127.0.0.1:1', backlog_limit '3'); SELECT publish(2, 'early')");
sql("CREATE SERVER other FOREIGN DATA WRAPPER amqp_outbox
	OPTIONS (uri 'amqp://127.0.0.1:1', paused 'true', backlog_limit '1')");
wait_state($node, 'postgres', 'other', 'paused');
is($session->query_safe("SELECT try(3, 'early');
		SELECT reserved_messages FROM amqp_outbox.backlog() WHERE server = 'early'"),
	"\n2", 'what is reserved for a new server stays reserved');
$session->query_safe('ROLLBACK');
sql('DROP SERVER other');

#
# Prepared transactions
#

sql("BEGIN; SELECT publish(20); PREPARE TRANSACTION 'a'");
sql("BEGIN; SELECT publish(20); PREPARE TRANSACTION 'b'");
same('prepared');
sql("COMMIT PREPARED 'a'");
wait_same('COMMIT PREPARED');
is(messages('mes'), 100, 'COMMIT PREPARED: they wait');
sql("ROLLBACK PREPARED 'b'");
like(refused('SELECT publish(1)'), qr/53400.*\nDETAIL:  100 messages/, 'and count');
same('ROLLBACK PREPARED');
$session->quit;
$unlimited->quit;

#
# A restart, and a crash
#

$since = now();
$node->restart;
wait_counted($since);
same('a restart');
like(refused('SELECT publish(1)'), qr/53400.*\nDETAIL:  100 messages/, 'a restart: as before');

$since = now();
$node->stop('immediate');
$node->start;
wait_counted($since);
same('a crash');
like(refused('SELECT publish(1)'), qr/53400.*\nDETAIL:  100 messages/, 'a crash: as before');

#
# The limits change while messages wait
#

sql("ALTER SERVER mes OPTIONS (SET backlog_limit '50')");
like(refused('SELECT publish(1)'), qr/53400.*\nDETAIL:  100 messages/, 'a lower limit');
sql("ALTER SERVER mes OPTIONS (SET backlog_limit '101')");
sql('SELECT publish(1)');
sql("ALTER SERVER mes OPTIONS (DROP backlog_limit)");
sql('SELECT publish(100)');
$since = now();
sql("ALTER SERVER mes OPTIONS (ADD backlog_limit_bytes '300')");
wait_counted($since);
same('a limit is new');
sql("SELECT publish(1, 'mes', 99)");
like(refused('SELECT publish(1)'),
	qr/53400: .*\nDETAIL:  Messages with 300 bytes wait to be delivered, and this one has 1; the server's backlog_limit_bytes is 300\./,
	'bytes');

# large bodies stand out of line
sql("ALTER SERVER mes OPTIONS (SET backlog_limit_bytes '1MB')");
sql("SELECT publish(2, 'mes', 100000)");
is(sql("SELECT bytes FROM amqp_outbox.backlog()"), 200300, 'large bodies');

# nor is it a way around the limit to have large headers
like(refused("SELECT amqp_publish('', 'q', '', server => 'mes',
		headers => jsonb_build_object('h', repeat(md5(i::text), 3000))) FROM generate_series(1, 20) i"),
	qr/53400: .*\nDETAIL:  Messages with \d+ bytes wait to be delivered, and this one has 9\d+;/,
	'large headers');
sql("SELECT amqp_publish('', 'q', '', server => 'mes',
		headers => jsonb_build_object('h', repeat(md5(i::text), 3000))) FROM generate_series(1, 5) i");
cmp_ok(sql("SELECT bytes FROM amqp_outbox.backlog()"), '>', 200300 + 5 * 96000, 'headers count');
same('large bodies');

sql("SELECT amqp_outbox.resume('mes')");
wait_settled($node, 'postgres');
is(messages('mes'), 0, 'all of it is delivered');
same('delivered');
$broker->received('q');

#
# Roles
#

sql("ALTER SERVER mes OPTIONS (DROP backlog_limit_bytes, ADD role_backlog_limit '500',
	ADD role_backlog_limit_bytes '10000')");
sql("SELECT amqp_outbox.pause('mes')");
wait_state($node, 'postgres', 'mes', 'paused');
like(refused('SET ROLE loud; SELECT publish(100000)'),
	qr/53400: backlog of role "loud" for server "mes" is full\nDETAIL:  500 messages wait/,
	'a role tries with one transaction');
my @floods = map {
	start_load($node, "SET ROLE loud;\nSELECT try(3);\nSELECT try(1);\n",
		clients => 4, transactions => 200)
} 1 .. 2;
sql("SET ROLE quiet; SELECT publish(1, 'mes', 9000)");
sql('SET ROLE quiet; SELECT publish(400)');
ok(stop_load($_, await => 1), 'a role tries with many sessions') foreach @floods;
is(messages('mes', 'loud'), 500, 'and comes to its own limit');
sql('SET ROLE quiet; SELECT publish(98)');
like(refused("SET ROLE quiet; SELECT publish(1, 'mes', 700)"),
	qr/backlog of role "quiet" .*\nDETAIL:  Messages with 9498 bytes wait/, 'bytes of a role');
sql('SELECT publish(1)');
is(messages('mes'), 1000, 'the server has all of them');
same('roles');

# a role's messages keep its name
sql('ALTER ROLE loud RENAME TO noisy');
$since = now();
sql('SELECT amqp_outbox.wake()');
wait_counted($since);
same('a role is renamed');
sql("SELECT amqp_outbox.resume('mes')");
wait_settled($node, 'postgres');
is(sql("SELECT count(*) FROM amqp_outbox.backlog() WHERE role IS NOT NULL"),
	0, 'roles of which nothing waits are forgotten');
same('of roles, delivered');
sql('ALTER ROLE noisy RENAME TO loud');

# replay() runs as the owner of the tables
sql('GRANT USAGE ON FOREIGN DATA WRAPPER amqp_outbox TO loud;
	CREATE USER MAPPING FOR loud SERVER mes OPTIONS (user $$guest$$, password $$guest$$);
	ALTER SERVER mes OWNER TO loud');
sql("SELECT amqp_outbox.pause('mes')");
wait_state($node, 'postgres', 'mes', 'paused');
my $replayed = sql("SELECT max(id) FROM amqp_outbox.message WHERE server = 'mes'");
sql("SET ROLE loud; SELECT amqp_outbox.replay('mes', id => $replayed)");
is(messages('mes', 'loud'), 1, "a replay is its caller's");
same('a replay');
sql("SELECT amqp_outbox.resume('mes')");
wait_settled($node, 'postgres');
$broker->received('q');

# more roles than there is room for: they count for the server
sql("SELECT amqp_outbox.pause('mes')");
wait_state($node, 'postgres', 'mes', 'paused');
sql("ALTER SERVER mes OPTIONS (ADD backlog_limit '2200')");
sql('DO $$ BEGIN
	FOR i IN 1 .. 2100 LOOP
		EXECUTE format(\'CREATE ROLE many_%s; GRANT loud TO many_%s; SET LOCAL ROLE many_%s\', i, i, i);
		PERFORM publish(1);
		RESET ROLE;
	END LOOP;
END $$');
is(messages('mes'), 2100, 'more roles than there is room for');
my $roles = sql("SELECT count(*) FROM amqp_outbox.backlog() WHERE role IS NOT NULL");
cmp_ok($roles, '<', 2048, 'not each has a limit of its own');
cmp_ok($roles, '>', 2000, 'but most');
is(scalar(my @told = log_lines($node, $_)), 1, "the log says so, once: $_")
  foreach qr/too many roles have a backlog for amqp_outbox to limit each of them/,
  qr/There is room for 2048 roles and servers in one cluster./,
  qr/Messages of the others count for the limits of their server only; set those as well./;
like(refused("SET ROLE many_2099; SELECT publish(101)"),
	qr/53400: backlog of server "mes" is full/, 'the others are held by the limit of the server');

# more servers than there is room for, twice as many as may have workers: the
# last two have no limit, and that is something else to say
my $fill = 'BEGIN; ' . join('', map { "CREATE SERVER s$_ FOREIGN DATA WRAPPER amqp_outbox
		OPTIONS (uri 'amqp://127.0.0.1:1', backlog_limit '1');
		SELECT try(2, 's$_');" } 1 .. 2 * 32 + 2)
  . "SELECT count(*) FROM amqp_outbox.uncommitted() WHERE server ~ '^s'; ROLLBACK";
like(sql($fill), qr/^4$/m, 'more servers than there is room for');
sql($fill);
is(scalar(@told = log_lines($node, $_)), 1, "the log says that once, too: $_")
  foreach qr/too many servers have a backlog for amqp_outbox to limit each of them/,
  qr/There is room for 2112 roles and servers in one cluster./,
  qr/Backlogs of the others are not limited at present; a larger amqp_outbox.max_workers makes room./;
# their room is free again when somebody looks which servers there are
sql("CREATE SERVER other FOREIGN DATA WRAPPER amqp_outbox
	OPTIONS (uri 'amqp://127.0.0.1:1', paused 'true')");
wait_state($node, 'postgres', 'other', 'paused');
sql('DROP SERVER other');
sql("SELECT amqp_outbox.resume('mes')");
wait_settled($node, 'postgres');
same('many roles');
sql('DO $$ BEGIN
	FOR i IN 1 .. 2100 LOOP EXECUTE format(\'DROP ROLE many_%s\', i); END LOOP;
END $$');
sql("ALTER SERVER mes OPTIONS (DROP backlog_limit)");
$broker->received('q');

#
# Dead letters do not wait
#

$since = now();
sql("ALTER SERVER mes OPTIONS (ADD unroutable 'dead_letter')");
wait_counted($since);
sql("SET ROLE loud; SELECT amqp_publish('', 'nowhere', 'x'::text, server => 'mes') FROM generate_series(1, 7)");
sql("SET ROLE loud; SELECT amqp_publish('', 'nowhere', 'x'::text, server => 'mes', ttl => '1 microsecond')");
wait_for($node, 'postgres', "SELECT dead_letters = 8 FROM amqp_outbox.server_status WHERE server = 'mes'",
	'dead letters');
wait_for($node, 'postgres', 'SELECT sum(messages) = 0 FROM amqp_outbox.backlog()', 'nothing to wait');
same('dead letters');
sql("SELECT amqp_outbox.pause('mes')");
wait_state($node, 'postgres', 'mes', 'paused');
sql("SELECT amqp_outbox.requeue('mes', reason => 'unroutable')");
wait_for($node, 'postgres', "SELECT sum(messages) = 7 FROM amqp_outbox.backlog() WHERE role = 'loud'",
	'messages that are requeued');
same('requeued');
sql("SELECT amqp_outbox.discard('mes', reason => 'expired')");
sql("SELECT amqp_outbox.resume('mes')");
wait_for($node, 'postgres', "SELECT dead_letters = 7 FROM amqp_outbox.server_status WHERE server = 'mes'",
	'dead letters again');
same('dead letters again');

#
# Whatever happens
#

my $workload = <<'END';
\set n random(1, 20)
\set bytes random(0, 3000)
\set what random(1, 8)
\set role random(1, 3)
\if :role = 1
	SET ROLE loud;
\elif :role = 2
	SET ROLE quiet;
\else
	RESET ROLE;
\endif
BEGIN;
SELECT publish(:n, 'mes', :bytes);
\if :what = 1
	ROLLBACK;
\elif :what = 2
	SAVEPOINT s;
	SELECT publish(:n);
	ROLLBACK TO s;
	SELECT publish(:n);
	COMMIT;
\elif :what = 3
	SELECT amqp_publish('', 'q', 'x'::text, server => 'mes', delay => '50 ms');
	SELECT amqp_publish('', 'q', 'x'::text, server => 'mes', delay => '1 day');
	COMMIT;
\elif :what = 4
	SELECT amqp_publish('', 'nowhere', 'x'::text, server => 'mes');
	SELECT publish(3, 'erp');
	COMMIT;
\elif :what = 5
	SAVEPOINT s;
	SELECT amqp_publish('nowhere', '', 'x'::text, server => 'mes', ordering_key => 'k' || :n,
		headers => jsonb_build_object('h', repeat('x', :bytes)));
	RELEASE s;
	COMMIT;
\else
	COMMIT;
\endif
END

sql("ALTER SERVER mes OPTIONS (DROP role_backlog_limit, DROP role_backlog_limit_bytes,
	ADD role_backlog_limit '10000000', ADD backlog_limit_bytes '10GB')");
$since = now();
sql('SELECT amqp_outbox.wake()');
wait_counted($since);

# without a count: the broker goes, so that something waits at the end
my $delivered = status($node, 'postgres', 'mes', 'delivered');
$load = start_load($node, $workload, clients => 6, rate => 300);
wait_for($node, 'postgres', "SELECT delivered > $delivered + 2000
	FROM amqp_outbox.server_status WHERE server = 'mes'", 'messages to be delivered');
$broker->stop;
my $waiting = messages('mes');
wait_for($node, 'postgres', "SELECT messages > $waiting + 2000
	FROM amqp_outbox.backlog() WHERE role IS NULL", 'messages to wait');
ok(stop_load($load), 'sessions do what they may');
same('many transactions');
$broker->start;
wait_outcome();

# a count that has to wait for a transaction which has taken its ids
my $delayed = "SELECT amqp_publish('', 'q', 'x'::text, server => 'mes',
	message_id => 'soon ' || clock_timestamp(), delay =>";
my ($next_id, $leaf, $key) = split(/\|/,
	sql("SELECT h.next_id, amqp_outbox.leaf(), k.server_key
		FROM amqp_outbox.horizon() h, amqp_outbox.server_key k WHERE server = 'mes'"));
sql("$delayed '3 s')");
$next_id++;
my $blocker = $node->background_psql('postgres');
$blocker->query_safe("BEGIN; INSERT INTO amqp_outbox.outbox_$leaf (server_key, id, message_id,
	enqueued_at, exchange, routing_key, body) VALUES ($key, $next_id, '', now(), '', '', '')");
my $slow = $node->background_psql('postgres');
$slow->query_safe('BEGIN; SELECT publish(3)');
$slow->{stdin} .= "COMMIT;\n";
$slow->{run}->pump_nb;
wait_for($node, 'postgres', "SELECT horizon = $next_id AND holder_pid IS NOT NULL
	FROM amqp_outbox.horizon()",
	'a commit that holds the horizon');
$since = now();
sql('SELECT amqp_outbox.wake()');
wait_for($node, 'postgres', 'SELECT bool_and(counting) FROM amqp_outbox.backlog()',
	'a count that has begun');
sql('SET ROLE loud; SELECT publish(5)');
sql("SET ROLE quiet; $delayed '1 ms')");
wait_for($node, 'postgres', "SELECT count(*) = 0 FROM amqp_outbox.deferred
	WHERE message_id LIKE 'soon %'",
	'messages to be delivered while the count waits');
is(sql("SELECT count(*) FROM amqp_outbox.backlog() WHERE counting"),
	sql('SELECT count(*) FROM amqp_outbox.backlog()'), 'it waits');
$blocker->query_safe('ROLLBACK');
wait_counted($since);
$slow->quit;
$blocker->quit;
wait_for($node, 'postgres', "SELECT horizon > $next_id FROM amqp_outbox.horizon()", 'the commit');
wait_outcome();
same('counted behind a slow commit');

# with counts while sessions commit and messages are delivered, and none after
foreach my $round (1 .. 5)
{
	$load = start_load($node, $workload, clients => 6, rate => 300);
	$delivered = status($node, 'postgres', 'mes', 'delivered');
	wait_for($node, 'postgres', "SELECT delivered > $delivered + 500
		FROM amqp_outbox.server_status WHERE server = 'mes'", 'messages to be delivered');
	$since = now();
	sql('SELECT amqp_outbox.wake()');
	wait_counted($since);
	$broker->stop if $round == 5;
	ok(stop_load($load), "round $round");
	if ($round < 5)
	{
		wait_for($node, 'postgres', 'SELECT sum(in_flight) = 0 FROM amqp_outbox.server_status',
			'nothing to be in flight');
		wait_same("counted while much happened, round $round");
	}
	else
	{
		same('counted while much happened');
	}
}
$broker->start;

finish_node($node);
done_testing();

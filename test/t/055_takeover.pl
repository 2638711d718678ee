# Whoever is not a superuser has no code run by a worker, and does not stop one:
# the owner of the database, who may define operators and functions and set
# parameters for all sessions in it; a role that was given ALL on our tables; one
# that was given a table.  Nor do settings, event triggers and policies that a
# superuser has for other reasons.  Messages are delivered all the while, by all
# ways: at once, in the end, never, and the ring turns.
#
# What runs as somebody else leaves a mark.  Sessions: see sql/takeover.sql.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use PostgreSQL::Test::Utils qw(slurp_file);
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('takeover');
my $node = new_node(
	'main', conf => "amqp_outbox.retention = 0
amqp_outbox.rotation_size = 1MB
autovacuum = off");
my $version = $node->safe_psql('postgres', 'SHOW server_version_num');

$node->safe_psql('postgres', 'CREATE ROLE mallory');
$node->safe_psql('postgres', 'CREATE ROLE plain LOGIN');
$node->safe_psql('postgres', 'CREATE DATABASE plant OWNER mallory');
$broker->declare_queue('q');

# Traps: for each operator and function that the worker might mean, one that
# fits as well.
$node->safe_psql('plant', <<'END');
SET ROLE mallory;
CREATE SCHEMA traps;
GRANT ALL ON SCHEMA traps TO PUBLIC;
CREATE TABLE traps.taken (who name, process text, how text);
GRANT INSERT ON traps.taken TO PUBLIC;
CREATE FUNCTION traps.take(how text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	IF current_user <> 'mallory' THEN
		INSERT INTO traps.taken SELECT current_user, backend_type, how
			FROM pg_catalog.pg_stat_activity
			WHERE pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid();
	END IF;
	RETURN true;
END;
$$;
CREATE FUNCTION traps.fire() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM traps.take('trigger on ' || TG_TABLE_NAME);
	RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
END;
$$;
DO $$
DECLARE
	type regtype;
	operator text;
BEGIN
	FOREACH type IN ARRAY ARRAY['int4', 'int8', 'text', 'name', 'timestamptz', 'oid', 'uuid',
		'boolean']::regtype[] LOOP
		EXECUTE format('CREATE FUNCTION traps.compare(%s, %1$s) RETURNS boolean
			LANGUAGE sql AS $f$ SELECT traps.take(%L) $f$', type, 'operator of ' || type);
		FOREACH operator IN ARRAY ARRAY['=', '<>', '<', '<=', '>', '>='] LOOP
			EXECUTE format('CREATE OPERATOR traps.%s (LEFTARG = %s, RIGHTARG = %2$s,
				FUNCTION = traps.compare)', operator, type);
		END LOOP;
	END LOOP;
END $$;
CREATE FUNCTION traps.bool_and(boolean) RETURNS boolean
	LANGUAGE sql AS $$ SELECT traps.take('bool_and') $$;
CREATE FUNCTION traps.clock_timestamp() RETURNS timestamptz
	LANGUAGE sql AS $$ SELECT CASE WHEN traps.take('clock_timestamp') THEN pg_catalog.now() END $$;
CREATE TABLE traps.server_key (k int);
END
create_server($node, 'plant', 'mes', $broker,
	max_attempts => 2, idempotency_retention => 1);
$node->safe_psql('plant', 'GRANT USAGE ON FOREIGN SERVER mes TO plain');
$node->safe_psql('plant', 'CREATE TABLE sent (id text)');
$node->safe_psql('plant', 'GRANT INSERT ON sent TO PUBLIC');

my $marks = "SELECT string_agg(DISTINCT format('%s as %s: %s', process, who, how), ', ')
	FROM traps.taken";
my $empty = "SELECT pg_relation_size('amqp_outbox.outbox_0')
	+ pg_relation_size('amqp_outbox.outbox_1')
	+ pg_relation_size('amqp_outbox.outbox_2')
	+ pg_relation_size('amqp_outbox.outbox_3') = 0";

# Have a worker that begins with what is set now, as seen from outside.
sub restart_worker
{
	my $worker = "SELECT pid FROM pg_stat_activity
		WHERE backend_type = 'amqp_outbox worker' AND datname = 'plant'";
	my $pid = $node->safe_psql('postgres', $worker);

	$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
	wait_for(
		$node,
		'postgres',
		"SELECT EXISTS ($worker AND pid <> $pid AND query ~ ': connected')",
		'another worker');
	return;
}

my $round = 0;

# All that a worker does: deliver, now and later; try again, give up; claim and
# forget keys; declare; turn the ring and empty it.
sub works
{
	my ($what) = @_;

	$round++;
	$node->safe_psql('plant', <<"END");
INSERT INTO sent SELECT amqp_publish('', 'q', 'now', message_id => 'now $round');
INSERT INTO sent SELECT amqp_publish('', 'q', 'later', message_id => 'later $round',
	delay => '10 ms');
INSERT INTO sent SELECT amqp_publish('', 'q', 'key', message_id => 'key $round',
	idempotency_key => '$round', ordering_key => 'k');
SELECT amqp_publish('', 'nowhere', 'x', ordering_key => 'l');
SELECT amqp_publish('', 'nowhere', 'x', ordering_key => 'l');
SELECT amqp_outbox.declare_queue('mes', 'declared $round', 'classic');
END
	wait_for(
		$node, 'plant',
		"SELECT count(*) = 2 FROM amqp_outbox.dead_letter WHERE routing_key = 'nowhere'",
		"$what: dead letters");
	wait_settled($node, 'plant');
	wait_for($node, 'plant',
		"SELECT count(*) = $round FROM amqp_outbox.topology WHERE state = 'asserted'",
		"$what: the declared queue");
	wait_for($node, 'plant', $empty, "$what: an empty outbox");
	wait_for($node, 'plant',
		"SELECT count(*) = 0 FROM amqp_outbox.idempotency_key",
		"$what: no key");
	$node->safe_psql('plant', 'SELECT amqp_outbox.discard()');
	is($node->safe_psql('plant', $marks), '', "$what: nothing ran");
	is_deeply(
		[ sort map { $_->[0] } $broker->fields('q', 'message_id') ],
		[ map { "$_ $round" } 'key', 'later', 'now' ],
		"$what: all is delivered");
	return;
}

sub refused
{
	my ($sql, $error, $what) = @_;
	my ($status, undef, $said) =
	  $node->psql('plant', "SET ROLE mallory; $sql", on_error_stop => 1);

	isnt($status, 0, "$what: refused");
	like($said, $error, "$what: error");
	return;
}

works('as it should be');

#
# Settings of the database, by its owner
#

my @settings = (
	[ search_path => 'traps, pg_catalog, public' ],
	[ role => 'mallory' ],
	[ session_authorization => 'mallory' ],
	[ default_transaction_read_only => 'on' ],
	[ default_transaction_isolation => 'serializable' ],
	[ default_transaction_deferrable => 'on' ],
	[ statement_timeout => '1ms' ],
	[ lock_timeout => '1ms' ],
	[ idle_in_transaction_session_timeout => '1ms' ],
	[ idle_session_timeout => '1ms' ],
	[ row_security => 'on' ],
	[ synchronous_commit => 'remote_apply' ],
	[ local_preload_libraries => 'evil' ],
	[ enable_indexscan => 'off' ],
	[ enable_indexonlyscan => 'off' ],
	[ enable_nestloop => 'off' ],
	[ enable_seqscan => 'on' ],
	[ plan_cache_mode => 'force_custom_plan' ],
	[ join_collapse_limit => '1' ],
	[ from_collapse_limit => '1' ],
	[ geqo_threshold => '2' ],
	[ jit => 'on' ],
	[ jit_above_cost => '0' ],
	[ work_mem => '64kB' ],
	[ array_nulls => 'off' ],
	[ bytea_output => 'escape' ],
	[ transform_null_equals => 'on' ],
	[ quote_all_identifiers => 'on' ],
	[ client_encoding => 'LATIN1' ],
	[ DateStyle => 'SQL, DMY' ],
	[ IntervalStyle => 'sql_standard' ],
	[ TimeZone => 'Pacific/Kiritimati' ],
	[ extra_float_digits => '-15' ],
	[ xmloption => 'document' ],
	[ default_toast_compression => 'pglz' ],
	[ application_name => 'mallory' ],
	[ debug_print_parse => 'on' ],
	[ debug_print_rewritten => 'on' ],
	[ debug_print_plan => 'on' ],
	[ 'amqp_outbox.default_server' => 'nowhere' ]);

push @settings, [ transaction_timeout => '10s' ] if $version >= 170000;
push @settings, [ standard_conforming_strings => 'off' ],
  if $version < 190000;

sub set_all
{
	my ($whose, @these) = @_;

	return join('', map { "ALTER $whose SET $_->[0] = "
			  . ($_->[0] eq 'search_path' ? $_->[1] : "'$_->[1]'") . ';' } @these);
}

my $offset = -s $node->logfile;

$node->safe_psql('postgres',
	'SET ROLE mallory;' . set_all('DATABASE plant', @settings));
restart_worker();
$node->safe_psql('postgres', 'ALTER DATABASE plant RESET ALL');
works('ALTER DATABASE SET by its owner');
unlike(
	slurp_file($node->logfile, $offset),
	qr/parse tree:|plan:|rewritten/,
	'ALTER DATABASE SET by its owner: does not fill the log');

# those that he may not set
foreach my $setting (
	[ session_replication_role => 'replica' ],
	[ session_preload_libraries => 'evil' ],
	[ log_statement => 'all' ],
	[ log_min_messages => 'debug5' ],
	[ zero_damaged_pages => 'on' ],
	[ 'amqp_outbox.max_message_size' => '1' ],
	[ 'amqp_outbox.inbox_retention' => '0' ],
	[ 'amqp_outbox.enabled' => 'off' ],
	[ 'amqp_outbox.drain_timeout' => '0' ],
	[ 'amqp_outbox.retention' => '0' ])
{
	refused(
		set_all('DATABASE plant', $setting),
		qr/permission denied|cannot be changed now/,
		"ALTER DATABASE SET $setting->[0]");
}
my $superuser = $node->safe_psql('postgres', 'SELECT current_user');

refused(
	"ALTER ROLE \"$superuser\" SET search_path = traps",
	qr/permission denied|must be superuser/,
	'ALTER ROLE of a superuser');
refused('ALTER ROLE ALL SET search_path = traps',
	qr/permission denied|must be superuser/, 'ALTER ROLE ALL');

#
# Settings of everybody, by a superuser
#

$node->safe_psql('postgres',
	set_all("ROLE \"$superuser\" IN DATABASE plant", @settings,
		[ session_replication_role => 'replica' ],
		[ log_statement => 'all' ]));
restart_worker();
$node->safe_psql('postgres',
	"ALTER ROLE \"$superuser\" IN DATABASE plant RESET ALL");
works('ALTER ROLE SET by a superuser');

#
# Event triggers
#

$node->safe_psql('plant', <<'END');
CREATE FUNCTION no_ddl() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM traps.take('event trigger');
	IF current_setting('application_name') <> 'drop' THEN
		RAISE 'no DDL here: % %', tg_event, tg_tag;
	END IF;
END;
$$;
CREATE EVENT TRIGGER e1 ON ddl_command_start EXECUTE FUNCTION no_ddl();
CREATE EVENT TRIGGER e2 ON ddl_command_end EXECUTE FUNCTION no_ddl();
CREATE EVENT TRIGGER e3 ON sql_drop EXECUTE FUNCTION no_ddl();
CREATE EVENT TRIGGER e4 ON table_rewrite EXECUTE FUNCTION no_ddl();
ALTER EVENT TRIGGER e1 ENABLE ALWAYS;
ALTER EVENT TRIGGER e2 ENABLE ALWAYS;
ALTER EVENT TRIGGER e3 ENABLE ALWAYS;
ALTER EVENT TRIGGER e4 ENABLE ALWAYS;
END
restart_worker();
works('event triggers that forbid all DDL');
$node->safe_psql('plant', "DROP EVENT TRIGGER e$_") foreach 1 .. 4;
$node->safe_psql('plant', 'DELETE FROM traps.taken');

#
# Row security
#

my @tables = split(
	/\n/,
	$node->safe_psql(
		'plant',
		"SELECT oid::regclass FROM pg_class WHERE relkind = 'r'
			AND relnamespace = 'amqp_outbox'::regnamespace"));

$node->safe_psql('plant', join('', map { "ALTER TABLE $_ ENABLE ROW LEVEL SECURITY;
	ALTER TABLE $_ FORCE ROW LEVEL SECURITY;
	CREATE POLICY p ON $_ USING (traps.take('policy'));" } @tables));
restart_worker();
works('policies on all tables');
$node->safe_psql('plant', join('', map { "DROP POLICY p ON $_;
	ALTER TABLE $_ DISABLE ROW LEVEL SECURITY;
	ALTER TABLE $_ NO FORCE ROW LEVEL SECURITY;" } @tables));

#
# ALL on all tables
#

$node->safe_psql('plant',
	'GRANT ALL ON ALL TABLES IN SCHEMA amqp_outbox TO mallory;
	GRANT ALL ON SCHEMA amqp_outbox TO mallory');
foreach my $table (@tables, 'amqp_outbox.message')
{
	my $timing = $table eq 'amqp_outbox.message' ? 'INSTEAD OF' : 'BEFORE';

	refused(
		"CREATE TRIGGER mallory $timing INSERT OR UPDATE OR DELETE ON $table
			FOR EACH ROW EXECUTE FUNCTION traps.fire()",
		qr/permission denied to create a trigger on "$table"/,
		"trigger on $table");
}
refused(
	'CREATE TABLE traps.reference (k int REFERENCES amqp_outbox.server_key ON DELETE CASCADE)',
	qr/permission denied to create a trigger/,
	'foreign key');

# names that are looked up in our schema
$node->safe_psql('plant', <<'END');
SET ROLE mallory;
CREATE FUNCTION amqp_outbox.clock_timestamp() RETURNS timestamptz
	LANGUAGE sql AS $$ SELECT CASE WHEN traps.take('ours') THEN pg_catalog.now() END $$;
CREATE FUNCTION amqp_outbox.compare(int8, int8) RETURNS boolean
	LANGUAGE sql AS $$ SELECT traps.take('our operator') $$;
CREATE OPERATOR amqp_outbox.= (LEFTARG = int8, RIGHTARG = int8, FUNCTION = amqp_outbox.compare);
END
restart_worker();
works('ALL on all tables and on their schema');
$node->safe_psql('plant', <<'END');
DROP OPERATOR amqp_outbox.= (int8, int8);
DROP FUNCTION amqp_outbox.compare, amqp_outbox.clock_timestamp;
REVOKE ALL ON ALL TABLES IN SCHEMA amqp_outbox FROM mallory;
REVOKE ALL ON SCHEMA amqp_outbox FROM mallory;
END

#
# A table of his own: nothing is done with it
#

foreach my $table ('amqp_outbox.receipt_0', 'amqp_outbox.deferred',
	'amqp_outbox.topology_state')
{
	my $lines = log_lines($node, qr/ERROR: .*have different owners/);

	$node->safe_psql('plant', <<"END");
ALTER TABLE $table OWNER TO mallory;
SET ROLE mallory;
CREATE TRIGGER mallory BEFORE INSERT OR UPDATE OR DELETE ON $table
	FOR EACH ROW EXECUTE FUNCTION traps.fire();
ALTER TABLE $table ENABLE ALWAYS TRIGGER mallory;
ALTER TABLE $table ADD CONSTRAINT mallory CHECK (traps.take('check'));
CREATE RULE mallory AS ON INSERT TO $table DO ALSO SELECT traps.take('rule');
END
	$node->safe_psql('plant',
		"SET ROLE plain; SELECT amqp_publish('', 'q', 'x', message_id => '$table')");
	wait_true("the worker's refusal of $table",
		sub { log_lines($node, qr/ERROR: .*have different owners/) > $lines });
	like(
		status($node, 'plant', 'mes', 'last_error'),
		qr/"amqp_outbox.outbox" have different owners/,
		"$table of another owner: in the status");
	is($node->safe_psql('plant', $marks),
		'', "$table of another owner: nothing ran");
	$node->safe_psql('plant', <<"END");
DROP TRIGGER mallory ON $table;
DROP RULE mallory ON $table;
ALTER TABLE $table DROP CONSTRAINT mallory;
ALTER TABLE $table OWNER TO CURRENT_USER;
SELECT amqp_outbox.wake();
END
	wait_settled($node, 'plant');
	is_deeply([ map { $_->[0] } $broker->fields('q', 'message_id') ],
		[$table], "$table of another owner: delivered when it has ours");
}
works('after all that');

#
# A role without rights does not keep the ring from turning
#

my $session = $node->background_psql(
	'plant',
	on_error_stop => 0,
	extra_params => [ '-U', 'plain' ]);

$session->query('BEGIN');
$session->query("SELECT amqp_publish('', 'q', 'x', message_id => 'x')");
$session->query('LOCK TABLE amqp_outbox.message IN ROW EXCLUSIVE MODE');
works('somebody tries to lock the tables');
$session->quit;

finish_node($node, errors => qr/have different owners/);
done_testing();

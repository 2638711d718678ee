# Who may do what: every object of the extension, as every kind of role, against
# the table in docs/security.md.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use PostgreSQL::Test::Utils;
use Test::More;

# In the order of the table's columns.
my @roles = ('plain', 'publisher', 'owner', 'monitor');

my $broker = AmqpOutboxTest::Broker->new('rights');
my $node = new_node('main');

create_server($node, 'postgres', 'mes', $broker);
$broker->declare_queue('q');
$node->safe_psql('postgres', <<'END');
CREATE ROLE plain;
CREATE ROLE publisher;
CREATE ROLE owner;
CREATE ROLE monitor IN ROLE pg_monitor;
GRANT USAGE ON FOREIGN SERVER mes TO publisher;
GRANT USAGE ON FOREIGN DATA WRAPPER amqp_outbox TO owner;
CREATE USER MAPPING FOR owner SERVER mes OPTIONS (user 'guest', password 'guest');
ALTER SERVER mes OWNER TO owner;
REVOKE USAGE ON FOREIGN DATA WRAPPER amqp_outbox FROM owner;
SELECT amqp_outbox.declare_exchange('mes', 'e'), amqp_outbox.declare_queue('mes', 'declared');
SELECT amqp_outbox.allow('mes', 'publisher', 'e', '#');
SELECT amqp_publish('', 'q', 'x'::text, message_id => 'one');
END
wait_settled($node, 'postgres');

# What is called, in a transaction that is rolled back.
my %calls = (
	'amqp_publish' => "SELECT amqp_publish('', 'q', 'x'::text, server => 'mes')",
	'amqp_publish_row' => "CREATE TEMP TABLE t (id int);
		CREATE TRIGGER publish AFTER INSERT ON t FOR EACH ROW
			EXECUTE FUNCTION amqp_publish_row('', 'q', 'server=mes');
		INSERT INTO t VALUES (1)",
	'amqp_wait_for_confirm' => "SELECT amqp_wait_for_confirm('one')",
	'amqp_outbox.allow' => "SELECT amqp_outbox.allow('mes', 'plain', 'e', '#')",
	'amqp_outbox.disallow' => "SELECT amqp_outbox.disallow('mes', 'publisher', 'e', '#')",
	'amqp_outbox.declare_exchange' => "SELECT amqp_outbox.declare_exchange('mes', 'f')",
	'amqp_outbox.declare_queue' => "SELECT amqp_outbox.declare_queue('mes', 'f')",
	'amqp_outbox.bind_queue' => "SELECT amqp_outbox.bind_queue('mes', 'declared', 'e')",
	'amqp_outbox.bind_exchange' => "SELECT amqp_outbox.bind_exchange('mes', 'e', 'amq.topic')",
	'amqp_outbox.unbind_queue' => "SELECT amqp_outbox.unbind_queue('mes', 'declared', 'e')",
	'amqp_outbox.unbind_exchange' => "SELECT amqp_outbox.unbind_exchange('mes', 'e', 'amq.topic')",
	'amqp_outbox.undeclare_queue' => "SELECT amqp_outbox.undeclare_queue('mes', 'declared')",
	'amqp_outbox.undeclare_exchange' => "SELECT amqp_outbox.undeclare_exchange('mes', 'e')",
	'amqp_outbox.pause' => "SELECT amqp_outbox.pause('mes')",
	'amqp_outbox.resume' => "SELECT amqp_outbox.resume('mes')",
	'amqp_outbox.requeue' => "SELECT amqp_outbox.requeue('mes')",
	'amqp_outbox.discard' => "SELECT amqp_outbox.discard('mes')",
	'amqp_outbox.replay' => "SELECT amqp_outbox.replay('mes', message_id => 'one')",
	'amqp_outbox.doctor' => "SELECT amqp_outbox.doctor('mes')",
	'amqp_outbox.worker' => 'SELECT amqp_outbox.worker()',
	'amqp_outbox.horizon' => 'SELECT amqp_outbox.horizon()',
	'amqp_outbox.backlog' => 'SELECT amqp_outbox.backlog()',
	'amqp_outbox.measures' => 'SELECT amqp_outbox.measures()',
	'amqp_outbox.latency' => "SELECT amqp_outbox.latency('mes')",
	'amqp_outbox.health_threshold' => 'SELECT amqp_outbox.health_threshold()',
	'amqp_inbox_accept' => "SELECT amqp_inbox_accept('a', 'b')",
	'amqp_outbox.prune_inbox' => 'SELECT amqp_outbox.prune_inbox()',
	'amqp_outbox.wake' => 'SELECT amqp_outbox.wake()',
	'amqp_outbox.adopt' => 'SELECT amqp_outbox.adopt()',
	'amqp_outbox.uncommitted' => 'SELECT amqp_outbox.uncommitted()',
	'amqp_outbox.leaf' => 'SELECT amqp_outbox.leaf()',
	'amqp_outbox.validator' => "SELECT amqp_outbox.validator('{}', 0)",
	'amqp_outbox.insert_message' => 'SELECT amqp_outbox.insert_message()',
	'amqp_outbox.ignore_replicated' => 'SELECT amqp_outbox.ignore_replicated()',
	'amqp_outbox.allowed_changed' => 'SELECT amqp_outbox.allowed_changed()');
my $insert = "INSERT INTO amqp_outbox.message (server, exchange, routing_key, body)
	VALUES ('mes', '', 'q', 'x')";

sub rows
{
	my $sql = shift;

	return map { [ split(/\|/, $_, -1) ] } split(/\n/, $node->safe_psql('postgres', $sql));
}

# What a role's statement comes to.
sub refused
{
	my ($role, $sql) = @_;
	my ($ret, $stdout, $stderr) = $node->psql('postgres',
		"\\set VERBOSITY sqlstate\nBEGIN; SET LOCAL ROLE $role; $sql; ROLLBACK");

	return $stderr =~ /42501/;
}

#
# The table
#

my %documented;
foreach my $line (split(/\n/, slurp_file("$AmqpOutboxTest::ROOT/docs/security.md")))
{
	my ($object, @cells) = $line =~ /^\| (.*?) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$/ or next;

	$documented{ $object =~ s/`|\(\)//gr } = \@cells;
}
delete @documented{ 'object', '---' };

my @wrong;

sub check
{
	my ($object, @real) = @_;
	my $said = delete $documented{$object};

	push @wrong, "$object: " . join(', ', @real)
	  if !defined $said || join('|', @$said) ne join('|', @real);
	return;
}

my $members = "SELECT objid, classid FROM pg_depend WHERE deptype = 'e'
	AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'amqp_outbox')
	AND refclassid = 'pg_extension'::regclass";

# Whether roles have a privilege on every object of a kind, or on none.
sub check_privilege
{
	my ($object, $catalog, $function, $privilege) = @_;

	check($object, map {
		my $have = join(',', map { $_->[0] } rows("SELECT DISTINCT
			$function('$_', m.objid, '$privilege') FROM ($members) m
			WHERE m.classid = '$catalog'::regclass"));
		{ t => 'yes', f => 'no' }->{$have} // $have
	} @roles);
	return;
}

#
# Functions: each is called
#

my %functions;
foreach my $row (rows("SELECT p.oid::regproc, p.oid FROM ($members) m
	JOIN pg_proc p ON p.oid = m.objid WHERE m.classid = 'pg_proc'::regclass"))
{
	# qualified if there are several
	push @{ $functions{ $row->[0] =~ s/^public\.//r } }, $row->[1];
}
# something to unbind
$node->safe_psql('postgres', "SELECT amqp_outbox.bind_queue('mes', 'declared', 'e');
	SELECT amqp_outbox.bind_exchange('mes', 'e', 'amq.topic')");
foreach my $function (sort keys %functions)
{
	my @real;

	if (!defined $calls{$function})
	{
		push @wrong, "$function: this test does not call it";
		next;
	}
	foreach my $role (@roles)
	{
		my $privilege = join(',', map { $_->[0] } rows("SELECT DISTINCT
			has_function_privilege('$role', f, 'EXECUTE')
			FROM unnest('{@{[ join(',', @{ $functions{$function} }) ]}}'::oid[]) f"));
		my $refused = refused($role, $calls{$function});

		push @real, $privilege eq 't' ? ($refused ? 'refused' : 'yes')
		  : $privilege eq 'f' && $refused ? 'no' : "privilege $privilege, refused '$refused'";
	}
	check($function, @real);
}

#
# Tables and views
#

my @relations = rows("SELECT c.oid::regclass, c.relkind FROM ($members) m
	JOIN pg_class c ON c.oid = m.objid WHERE m.classid = 'pg_class'::regclass ORDER BY 1");
my %tables;
foreach my $relation (@relations)
{
	my ($name, $kind) = @$relation;
	my @real;

	foreach my $role (@roles)
	{
		my @privileges = grep { !($name eq 'amqp_outbox.message' && $_ eq 'INSERT') }
		  map { $_->[0] } rows("SELECT p FROM unnest('{SELECT, INSERT, UPDATE, DELETE,
				TRUNCATE, REFERENCES, TRIGGER}'::text[]) p
			WHERE has_table_privilege('$role', '$name', p)");
		my @columns = map { $_->[0] } rows("SELECT attname FROM pg_attribute
			WHERE attrelid = '$name'::regclass AND attnum > 0 AND NOT attisdropped
			AND NOT has_column_privilege('$role', '$name', attname, 'SELECT') ORDER BY attnum");
		my $ncolumns = $node->safe_psql('postgres', "SELECT count(*) FROM pg_attribute
			WHERE attrelid = '$name'::regclass AND attnum > 0 AND NOT attisdropped");
		my $updates = $node->safe_psql('postgres',
			"SELECT has_any_column_privilege('$role', '$name', 'UPDATE, REFERENCES')");

		push @real, "@privileges" eq '' && @columns == $ncolumns && $updates eq 'f' ? 'no'
		  : "@privileges" eq '' && @columns > 0
		  ? 'all but ' . join(', ', map { "`$_`" } @columns)
		  : "@privileges" ne 'SELECT' ? "@privileges"
		  : $name =~ /\.(topology|allowed)$/ && $role ne 'monitor' ? 'own' : 'yes';
	}
	if ($kind eq 'r')
	{
		$tables{"@real"} = \@real;
		next;
	}
	check("SELECT of $name", @real);
}
is(scalar(keys %tables), 1, 'all tables have the same rights');
check('all tables', @{ (values %tables)[0] });
check('INSERT into amqp_outbox.message', map { refused($_, $insert) ? 'refused' : 'yes' } @roles);

# what is whose
foreach my $view ('topology', 'allowed')
{
	my @counts = map { $node->safe_psql('postgres', "SET ROLE $_; SELECT count(*) FROM amqp_outbox.$view") } @roles;

	is("@counts", $view eq 'topology' ? '0 0 4 4' : '0 1 1 1', "rows of amqp_outbox.$view");
}

#
# The rest, and that there is no other kind of object
#

check_privilege('USAGE of the schema', 'pg_namespace', 'has_schema_privilege', 'USAGE');
check_privilege('USAGE of the types', 'pg_type', 'has_type_privilege', 'USAGE');
check_privilege('USAGE of the foreign-data wrapper', 'pg_foreign_data_wrapper',
	'has_foreign_data_wrapper_privilege', 'USAGE');
is($node->safe_psql('postgres', "SELECT has_schema_privilege('plain', 'amqp_outbox', 'CREATE')"),
	'f', 'nobody creates in the schema');
is($node->safe_psql('postgres', "SELECT string_agg(DISTINCT classid::regclass::text, ' ' ORDER BY classid::regclass::text)
		FROM ($members) m"),
	'pg_class pg_foreign_data_wrapper pg_namespace pg_proc pg_type', 'these are all kinds of objects');

is(join("\n", @wrong), '', 'rights are those of docs/security.md');
is(join("\n", sort keys %documented), '', 'docs/security.md names nothing else');

#
# Whatever others are given by default
#

sub acls
{
	my $database = shift;

	return $node->safe_psql($database, "SELECT o.name, a.grantee::regrole, a.privilege_type FROM (
		SELECT p.oid::regprocedure::text AS name, coalesce(p.proacl, acldefault('f', p.proowner)) AS acl
			FROM ($members) m JOIN pg_proc p ON p.oid = m.objid
			WHERE m.classid = 'pg_proc'::regclass
		UNION ALL SELECT c.oid::regclass::text, coalesce(c.relacl, acldefault('r', c.relowner))
			FROM ($members) m JOIN pg_class c ON c.oid = m.objid
			WHERE m.classid = 'pg_class'::regclass
		UNION ALL SELECT n.nspname, coalesce(n.nspacl, acldefault('n', n.nspowner))
			FROM ($members) m JOIN pg_namespace n ON n.oid = m.objid
			WHERE m.classid = 'pg_namespace'::regclass) o, aclexplode(o.acl) a
		ORDER BY 1, 2, 3");
}

$node->safe_psql('postgres', 'CREATE DATABASE generous');
$node->safe_psql('generous', <<'END');
ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO plain, PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO plain;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON FUNCTIONS FROM PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO plain;
CREATE EXTENSION amqp_outbox;
END
is(acls('generous'), acls('postgres'), 'default privileges make no difference');

# and superusers see bodies
is($node->safe_psql('postgres', "SELECT convert_from(body, 'UTF8') FROM amqp_outbox.message WHERE message_id = 'one'"),
	'x', 'a superuser sees bodies');

finish_node($node);
done_testing();

# A password stands in the user mapping, or in a file that only the server's
# user can read, and nowhere else: not in the log, not in an error, not in any
# view, not in a dump by somebody who is not a superuser, and no longer in the
# worker's memory than it takes to log in.  Whatever goes wrong on the way.
#
# An owner of a server who is not a superuser uses credentials of his own.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use IO::Select;
use IO::Socket::INET;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use POSIX qw(mkfifo);
use Test::More;

my $secret = 'Geheimnis7f3a91c4';
my $dir = PostgreSQL::Test::Utils::tempdir();
my $closed_port = PostgreSQL::Test::Cluster::get_free_port();

my $broker = AmqpOutboxTest::Broker->new('secrets', tls => 1);

# The server's own report of a statement that failed would name it; everything
# else that there is gets logged.
my $node = new_node('main', conf => <<'END');
log_min_messages = debug5
log_min_error_statement = panic
log_statement = none
logging_collector = off
amqp_outbox.drain_timeout = 100
END

my $statistics = -e "@{[ $node->config_data('--pkglibdir') ]}/pg_stat_statements.so";

if ($statistics)
{
	# what it says of our statements, not of CREATE USER MAPPING
	$node->append_conf('postgresql.conf', <<'END');
shared_preload_libraries = 'amqp_outbox, pg_stat_statements'
pg_stat_statements.track = all
pg_stat_statements.track_utility = off
END
	$node->restart;
	$node->safe_psql('postgres', 'CREATE EXTENSION pg_stat_statements');
}

$broker->ctl('add_user', 'mes', $secret);
$broker->ctl('set_permissions', '-p', '/', 'mes', '.*', '.*', '.*');
$broker->declare_queue('q');
create_server($node, 'postgres', 'mes', $broker, heartbeat => 30);
$node->safe_psql('postgres', <<'END');
CREATE ROLE monitor LOGIN;
CREATE ROLE plain LOGIN;
CREATE ROLE owner LOGIN;
CREATE ROLE third;
GRANT pg_monitor TO monitor;
GRANT USAGE ON FOREIGN SERVER mes TO plain;
GRANT USAGE ON FOREIGN DATA WRAPPER amqp_outbox TO owner;
END
wait_state($node, 'postgres', 'mes', 'connected');

# All that was said to clients.
my $said = '';

# To whom PostgreSQL does not show the options of the mappings.
my @strangers = ('monitor', 'plain', 'owner');

sub sql
{
	my ($sql, $role) = @_;
	my ($status, $stdout, $stderr) = $node->psql(
		'postgres', $sql,
		extra_params => [ '-U', $role // $node->safe_psql('postgres', 'SELECT current_user') ]);

	$said .= "$stdout\n$stderr\n";
	return ($status, $stdout, $stderr);
}

# Every view, table and function that shows something, and what PostgreSQL shows
# of processes and statements.
sub everything
{
	my $relations = $node->safe_psql('postgres', <<'END');
SELECT string_agg(format('SELECT %L, x::text FROM %s x', name, name), ' UNION ALL ')
FROM (SELECT c.oid::regclass::text FROM pg_class c
		WHERE c.relnamespace = 'amqp_outbox'::regnamespace AND c.relkind IN ('r', 'v')
	UNION ALL VALUES ('amqp_outbox.worker()'), ('amqp_outbox.measures()'),
		('pg_stat_activity'), ('pg_foreign_server'), ('pg_settings'),
		('pg_prepared_statements'), ('pg_cursors')) r (name)
END
	$relations .= " UNION ALL SELECT 'statements', s::text FROM pg_stat_statements s"
	  if $statistics;
	my $shown = $node->safe_psql('postgres', $relations);

	foreach my $role (@strangers)
	{
		my (undef, $out, $err) = $node->psql(
			'postgres',
			'SELECT * FROM pg_user_mappings WHERE srvname = $$mes$$;
				SELECT * FROM pg_stat_activity; SELECT * FROM amqp_outbox.server_status;
				SELECT * FROM amqp_outbox.health; SELECT * FROM pg_user_mapping',
			on_error_stop => 0,
			extra_params => [ '-U', $role ]);

		$shown .= $out . $err;
	}
	return $shown;
}

sub told_nowhere
{
	my $what = shift;
	my $shown = everything();

	like($shown, qr/server "mes": /, "$what: the views are looked at");
	unlike($shown, qr/$secret/, "$what: not in any view");
	unlike($said, qr/$secret/, "$what: not said to any client");
	unlike(slurp_file($node->logfile), qr/$secret/, "$what: not in the log");
	return;
}

# Change something; then the worker must have failed in these words, in the
# status and in the log, and the doctor must say so, too.
sub fails
{
	my ($sql, $words, $what) = @_;

	sql($sql) if $sql;
	wait_true("$what: the failure",
		sub { status($node, 'postgres', 'mes', 'last_error') =~ $words });
	sql("SELECT * FROM amqp_outbox.doctor('mes')");
	told_nowhere($what);
	return;
}

sub mapping
{
	my $options = shift;

	return "DROP USER MAPPING FOR PUBLIC SERVER mes;
		CREATE USER MAPPING FOR PUBLIC SERVER mes OPTIONS (user 'mes', $options)";
}

my $at_broker = "host '127.0.0.1', SET port '" . $broker->port . "'";

#
# In the user mapping
#

reconnect($node, 'postgres', 'mes', mapping("password '$secret'"));
sql("SELECT amqp_publish('', 'q', 'x')");
wait_settled($node, 'postgres');
sql("SELECT * FROM amqp_outbox.doctor('mes')");
told_nowhere('the right password');

fails(
	"ALTER USER MAPPING FOR PUBLIC SERVER mes OPTIONS (SET password '$secret and more')",
	qr/ACCESS_REFUSED/, 'a wrong password');
fails("ALTER SERVER mes OPTIONS (SET port '$closed_port')",
	qr/Connection refused/, 'nobody listens');
fails("ALTER SERVER mes OPTIONS (SET host 'no.such.host.invalid')",
	qr/no.such.host.invalid/, 'no such host');
fails(
	"ALTER SERVER mes OPTIONS (SET $at_broker, ADD tls 'on')",
	qr/TLS|SSL|ssl/, 'no TLS at the broker');
fails(
	"ALTER SERVER mes OPTIONS (SET port '" . $broker->tls_port . "')",
	qr/certificate/, 'a certificate of nobody');
fails(
	"ALTER SERVER mes OPTIONS (SET $at_broker, DROP tls, SET vhost 'nowhere')",
	qr/ACCESS_REFUSED|vhost/, 'no such virtual host');
sql("ALTER SERVER mes OPTIONS (SET vhost '/')");
wait_state($node, 'postgres', 'mes', 'waiting');

#
# In statements that fail
#

foreach my $sql (
	(map { "CREATE SERVER wrong FOREIGN DATA WRAPPER amqp_outbox OPTIONS ($_)" }
		"uri 'amqp://mes:$secret\@localhost'",
		"uri 'amqp://mes:$secret'",
		"uri 'amqp://mes:$secret/vhost'",
		"uri 'amqp://$secret:x/vhost'",
		"uri 'amqp://mes%3A$secret%40localhost'",
		"uri 'amqp:mes:$secret\@localhost'",
		"uri 'mes:$secret'",
		"uri 'https://$secret'",
		"uri 'amqp://localhost?password=$secret'",
		"uri 'amqp://localhost#$secret'",
		"uri 'amqp://localhost/a/$secret'",
		"uri 'amqp://localhost/%$secret'",
		"host 'mes:$secret\@localhost'",
		"host 'mes:$secret'",
		"host '[$secret'",
		"host '$secret!'",
		"password '$secret'",
		"uri 'amqp://a', host '$secret'"),
	mapping("passwort '$secret'"),
	mapping("password_file '$secret'"),
	mapping("password '$secret', password_file '/$secret'"),
	mapping("password '$secret', port '5'"),
	mapping("password '" . $secret x 1000 . "'"),
	"SET ROLE plain; CREATE USER MAPPING FOR PUBLIC SERVER mes OPTIONS (password '$secret')",
	"SET ROLE plain; CREATE USER MAPPING FOR plain SERVER mes OPTIONS (password_file '/$secret')",
	"ALTER USER MAPPING FOR plain SERVER mes OPTIONS (SET password '$secret')")
{
	my ($status) = sql("BEGIN; $sql");

	isnt($status, 0, 'refused: ' . $sql =~ s/($secret)+/.../gr);
}
told_nowhere('refused options');

#
# In a file
#

my $file = "$dir/password";
my $other = "$dir/other";

sub write_file
{
	my ($contents, $mode) = @_;

	unlink($file);
	append_to_file($file, $contents);
	chmod($mode // 0600, $file) or die "$file: $!";
	return;
}

sub by_file
{
	return mapping("password_file '" . ($_[0] // $file) . "'");
}

write_file("$secret\nand a comment\n");
reconnect($node, 'postgres', 'mes', by_file());
sql("SELECT amqp_publish('', 'q', 'x')");
wait_settled($node, 'postgres');
told_nowhere('a password file');

# The worker's memory, as somebody sees it who gets hold of a core; that of one
# that has never seen another user mapping.
SKIP:
{
	my $former = worker_pid($node, 'postgres', 'mes');
	my $pid;

	$node->safe_psql('postgres', "SELECT pg_terminate_backend($former)");
	$pid = worker_pid($node, 'postgres', 'mes', $former);
	wait_state($node, 'postgres', 'mes', 'connected');
	my $found = 0;
	my $seen = 0;

	open(my $maps, '<', "/proc/$pid/maps") or skip 'no /proc', 2;
	# a sanitizer's shadow is terabytes, and it keeps what was freed
	skip 'under AddressSanitizer', 2 if slurp_file("/proc/$pid/maps") =~ /libasan/;
	open(my $memory, '<:raw', "/proc/$pid/mem") or skip 'memory cannot be read', 2;
	while (my $line = <$maps>)
	{
		my ($from, $to, $what) =
		  $line =~ /^([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ \S+\s*(.*)$/
		  or next;
		my $piece;

		no warnings 'portable';
		sysseek($memory, hex($from), 0) or next;
		sysread($memory, $piece, hex($to) - hex($from)) or next;
		$found += () = $piece =~ /$secret/g;
		$seen += () = $piece =~ /\Q$file\E/g;
	}
	skip 'memory cannot be read', 2 if !$seen;
	cmp_ok($seen, '>', 0, "in the worker's memory: the file's name");
	is($found, 0, "in the worker's memory: not the password, once logged in");
}

# What is not one that only the server's user can read.  Each is told, and when
# it is right again the worker goes on.
my $modes = 'File must have permissions u=rw (0600) or less if owned by the database user, or permissions u=rw,g=r (0640) or less if owned by root.';
my $no_pipe = 'It is read again for each connection, which a pipe or a device cannot be.';
my $heartbeat = 30;

mkfifo($other, 0600) or die "$other: $!";
foreach my $wrong (
	[ 0640 => $secret, qr/has group or world access: \Q$modes\E/ ],
	[ 0604 => $secret, qr/has group or world access/ ],
	[ 0620 => $secret, qr/has group or world access/ ],
	[ 0666 => $secret, qr/has group or world access/ ],
	[ 0600 => '', qr/first line of password file ".*" is empty/ ],
	[ 0600 => "\n$secret", qr/first line of password file ".*" is empty/ ],
	[ 0600 => $secret x 500, qr/has more than 8000 bytes/ ],
	[ 0600 => $secret . "\n" x 70000, qr/is larger than 65536 bytes/ ],
	[ 0000 => $secret, qr/could not open password file ".*": Permission denied|could not open/ ])
{
	my ($mode, $contents, $words) = @$wrong;

	write_file($contents, $mode);
	$heartbeat++;
	fails("ALTER SERVER mes OPTIONS (SET heartbeat '$heartbeat')",
		$words, sprintf('a file of mode %04o and %d bytes', $mode, length($contents)));
	write_file($secret);
	wait_state($node, 'postgres', 'mes', 'connected');
}
foreach my $wrong (
	[ $other, qr/is not a regular file: \Q$no_pipe\E/ ],
	[ $dir, qr/is not a regular file/ ],
	[ '/dev/null', qr/is not a regular file/ ],
	[ '/dev/fd/987', qr/could not open/ ],
	[ "$dir/missing", qr/could not open password file ".*\/missing"/ ])
{
	fails(by_file($wrong->[0]), $wrong->[1], $wrong->[0] =~ s{.*/}{}r);
}

# as PostgreSQL starts: a file that has no name any more, by its descriptor
{
	local $^F = 100;
	my $name = "$dir/without a name";

	append_to_file($name, "$secret\n");
	chmod(0644, $name);
	open(my $handle, '<', $name) or die "$name: $!";
	$node->restart;
	fails(by_file('/dev/fd/' . fileno($handle)),
		qr/has group or world access/, 'a descriptor of a file that others can open');
	unlink($name);
	foreach my $path ('/dev/fd', '/proc/self/fd')
	{
		reconnect($node, 'postgres', 'mes', by_file("$path/" . fileno($handle)));
		sql("SELECT amqp_publish('', 'q', 'x'); SELECT * FROM amqp_outbox.doctor('mes')");
		wait_settled($node, 'postgres');
		sql("ALTER SERVER mes OPTIONS (SET port '$closed_port')");
		wait_state($node, 'postgres', 'mes', 'waiting');
		reconnect($node, 'postgres', 'mes', "ALTER SERVER mes OPTIONS (SET $at_broker)");
	}
	told_nowhere('a descriptor');
}

#
# An owner who is not a superuser
#

my $listener = IO::Socket::INET->new(
	Listen => 5, LocalAddr => '127.0.0.1', LocalPort => 0) or die "listen: $!";
my $at_owner = "SET host '127.0.0.1', SET port '" . $listener->sockport . "'";

sub refuses
{
	my ($sql, $words, $what) = @_;

	fails($sql, $words, $what);
	ok(!IO::Select->new($listener)->can_read(0),
		"$what: nobody connects to the owner's host");
	return;
}

write_file($secret);
@strangers = ('monitor', 'plain');
$node->safe_psql('postgres', 'ALTER SERVER mes OWNER TO owner');
refuses(
	mapping("password '$secret'") . ";
	CREATE USER MAPPING FOR third SERVER mes OPTIONS (user 'mes', password '$secret');
	SET ROLE owner; ALTER SERVER mes OPTIONS ($at_owner)",
	qr/the server's owner has no user mapping/,
	"PUBLIC's and others' mappings");
refuses(
	"SET ROLE owner; CREATE USER MAPPING FOR owner SERVER mes OPTIONS (user 'guest')",
	qr/the user mapping of the server's owner has no password/,
	'no password');
refuses(
	"SET ROLE owner; ALTER USER MAPPING FOR owner SERVER mes OPTIONS (ADD password '')",
	qr/the user mapping of the server's owner has no password/,
	'an empty password');
refuses(
	"ALTER USER MAPPING FOR owner SERVER mes
		OPTIONS (SET user 'mes', DROP password, ADD password_file '$file')",
	qr/option "password_file" cannot be used for the server's owner/,
	"a superuser's file");

# with the right to read files it is his; then without again
sub listens
{
	my $what = shift;

	wait_true($what, sub { IO::Select->new($listener)->can_read(0) });
	$listener->accept->close;
	pass($what);
	return;
}

sql('GRANT pg_read_server_files TO owner');
listens('a file that he may read is used');
sql('REVOKE pg_read_server_files FROM owner');
wait_true('the refusal',
	sub { status($node, 'postgres', 'mes', 'last_error') =~ /cannot be used for the server's owner/ });
pass('not when the right is taken away');
sql('ALTER ROLE owner SUPERUSER');
wait_true('another attempt', sub { IO::Select->new($listener)->can_read(0) });
pass('a superuser may use it');
sql('ALTER ROLE owner NOSUPERUSER');

# his own
$node->safe_psql('postgres', "ALTER SERVER mes OPTIONS (SET $at_broker)");
$node->safe_psql('postgres', "SET ROLE owner; ALTER USER MAPPING FOR owner SERVER mes
	OPTIONS (DROP password_file, ADD password '$secret')");
wait_state($node, 'postgres', 'mes', 'connected');
sql("SET ROLE owner; SELECT amqp_publish('', 'q', 'x'); SELECT * FROM amqp_outbox.doctor('mes')");
wait_settled($node, 'postgres');
told_nowhere('his own password');

# a right that comes and goes while he is connected
reconnect($node, 'postgres', 'mes', "GRANT pg_read_server_files TO owner;
	ALTER USER MAPPING FOR owner SERVER mes OPTIONS (DROP password, ADD password_file '$file')");
my $before = $node->safe_psql('postgres', 'SELECT clock_timestamp()');
sql('REVOKE pg_read_server_files FROM owner');
sql("SELECT amqp_publish('', 'q', 'x')");
wait_for(
	$node,
	'postgres',
	"SELECT state = 'waiting' AND last_error_at > '$before'
			AND last_error ~ 'cannot be used for the server''s owner'
		FROM amqp_outbox.server_status",
	'the end of the connection');
pass('he is disconnected when the right is taken away');
sql('GRANT pg_read_server_files TO owner');
wait_state($node, 'postgres', 'mes', 'connected');
wait_settled($node, 'postgres');
told_nowhere('a right that comes and goes');

#
# Dumps
#

sub dump_by
{
	my ($role, @options) = @_;
	my ($out, $err);

	IPC::Run::run(
		[
			$node->installed_command('pg_dump'),
			'-d', $node->connstr('postgres'),
			'-U', $role, @options
		],
		'>', \$out, '2>', \$err);
	return $out . $err;
}

foreach my $options ([], ['--schema-only'], ['--exclude-schema=amqp_outbox'],
	[ '--section=pre-data' ])
{
	unlike(dump_by($_, @$options), qr/$secret/, "not in a dump by $_: @$options")
	  foreach @strangers;
}
like(dump_by($node->safe_psql('postgres', 'SELECT current_user')),
	qr/$secret/, 'it is in a dump by a superuser');

finish_node($node);
done_testing();

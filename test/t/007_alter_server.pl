# Servers and user mappings change under load: what is new holds at once, and
# nothing is lost, doubled or out of order.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $second_port = PostgreSQL::Test::Cluster::get_free_port();
my $closed_port = PostgreSQL::Test::Cluster::get_free_port();
my $broker = AmqpOutboxTest::Broker->new('alter',
	conf => "listeners.tcp.2 = 127.0.0.1:$second_port");
my $node = new_node('main');
my $port = $broker->port;
my $password_file = PostgreSQL::Test::Utils::tempdir() . '/password';

foreach my $user ('mes', 'third')
{
	$broker->ctl('add_user', $user, 'secret');
	$broker->ctl('set_permissions', $user, '.*', '.*', '.*');
}
append_to_file($password_file, "secret\n");
chmod(0600, $password_file) or die "chmod: $!";

create_server($node, 'postgres', 'mes', $broker);
create_sent($node, 'postgres');
$broker->declare_queue('q');
wait_state($node, 'postgres', 'mes', 'connected');

my $pid = worker_pid($node, 'postgres', 'mes');
my $load = start_load($node, <<'END', clients => 3, rate => 300);
\set k random(1, 3)
SELECT publish_sent('', 'q', :client_id) FROM generate_series(1, :k);
END

sub wait_for_deliveries
{
	my $before = status($node, 'postgres', 'mes', 'delivered');

	wait_for($node, 'postgres',
		"SELECT delivered >= $before + 100 FROM amqp_outbox.server_status",
		'deliveries');
	return;
}

# Change something and wait for the state, and the host, that must follow by a
# new attempt to connect.
sub change
{
	my ($sql, $state, $host) = @_;
	my $since = status($node, 'postgres', 'mes', 'since');

	$node->safe_psql('postgres', $sql);
	wait_for(
		$node,
		'postgres',
		"SELECT state = '$state' AND since <> '$since'"
		  . (defined $host ? " AND host = '$host'" : '')
		  . " FROM amqp_outbox.server_status",
		"$state after $sql");
	wait_for_deliveries() if $state eq 'connected';
	pass($sql);
	return;
}

sub last_error_like
{
	my ($pattern, $name) = @_;

	like(status($node, 'postgres', 'mes', 'last_error'), $pattern, $name);
	return;
}

#
# What needs a new connection, and what does not
#

my $since = status($node, 'postgres', 'mes', 'since');
foreach my $window (1, 7, 1024)
{
	my $verb = $window == 1 ? 'ADD' : 'SET';

	$node->safe_psql('postgres',
		"ALTER SERVER mes OPTIONS ($verb window '$window')");
	wait_for_deliveries();
}
is(status($node, 'postgres', 'mes', 'since'),
	$since, 'a new window needs no new connection');

change("ALTER SERVER mes OPTIONS (SET port '$second_port')",
	'connected', "127.0.0.1:$second_port");
change("ALTER SERVER mes OPTIONS (SET port '$port')",
	'connected', "127.0.0.1:$port");
change("ALTER SERVER mes OPTIONS (SET host 'localhost')",
	'connected', "localhost:$port");
change("ALTER SERVER mes OPTIONS (DROP host, DROP port, DROP vhost,
	ADD uri 'amqp://127.0.0.1:$second_port')",
	'connected', "127.0.0.1:$second_port");
change("ALTER SERVER mes OPTIONS (SET uri 'amqp://127.0.0.1:$port')",
	'connected', "127.0.0.1:$port");
change("ALTER SERVER mes OPTIONS (ADD heartbeat '7')",
	'connected', "127.0.0.1:$port");

#
# Users
#

change("ALTER USER MAPPING FOR PUBLIC SERVER mes OPTIONS (SET password 'wrong')",
	'waiting');
last_error_like(qr/ACCESS_REFUSED/, 'wrong password: last_error');
change("ALTER USER MAPPING FOR PUBLIC SERVER mes OPTIONS (SET password 'guest')",
	'connected');
change("ALTER USER MAPPING FOR PUBLIC SERVER mes
	OPTIONS (SET user 'mes', SET password 'secret')",
	'connected');
like($broker->ctl('list_connections', 'user', 'state'),
	qr/^mes\s+running$/m, 'the broker knows the new user');
unlike($broker->ctl('list_connections', 'user', 'state'),
	qr/^guest/m, 'and the old connection is closed');
change("ALTER USER MAPPING FOR PUBLIC SERVER mes
	OPTIONS (DROP password, ADD password_file '$password_file')",
	'connected');
change("ALTER USER MAPPING FOR PUBLIC SERVER mes
	OPTIONS (SET password_file '$password_file.missing')",
	'waiting');
last_error_like(qr/could not open password file/,
	'missing password file: last_error');

# Whose mapping it is that counts.
sub connected_as
{
	my ($user, $name) = @_;

	wait_true(
		"connected as $user",
		sub {
			my @users = $broker->ctl('list_connections', 'user', 'state') =~
			  /^(\S+)\s+running$/mg;
			return "@users" eq $user;
		});
	pass($name);
	return;
}

change("CREATE ROLE other;
	CREATE USER MAPPING FOR other SERVER mes OPTIONS (user 'third', password 'secret');
	DROP USER MAPPING FOR PUBLIC SERVER mes", 'waiting');
last_error_like(qr/no user mapping/, 'no user mapping but of another role: last_error');
change("CREATE USER MAPPING FOR CURRENT_USER SERVER mes
	OPTIONS (user 'guest', password 'guest')",
	'connected');
change("CREATE USER MAPPING FOR PUBLIC SERVER mes
		OPTIONS (user 'mes', password 'secret');
	ALTER SERVER mes OPTIONS (SET heartbeat '8')",
	'connected');
connected_as('guest', "the owner's mapping goes before that of PUBLIC");
change("ALTER SERVER mes OWNER TO other", 'connected');
connected_as('third', "another owner's mapping");
change("BEGIN;
	ALTER SERVER mes OWNER TO CURRENT_USER;
	DROP USER MAPPING FOR CURRENT_USER SERVER mes;
	COMMIT",
	'connected');
connected_as('mes', 'that of PUBLIC where the owner has none');

#
# Failover
#

change("ALTER SERVER mes OPTIONS (SET uri 'amqp://127.0.0.1:$closed_port')",
	'waiting');
last_error_like(qr/could not connect to host "127.0.0.1", port $closed_port/,
	'closed port: last_error');
change("ALTER SERVER mes OPTIONS
	(SET uri 'amqp://127.0.0.1:$closed_port,127.0.0.1:$second_port,127.0.0.1:$port')",
	'connected', "127.0.0.1:$second_port");
ok(stop_load($load), 'load ran');
wait_settled($node, 'postgres');
check_account(committed($node, 'postgres'),
	$broker->received('q'), 'servers altered');

# the host in use goes: what was in flight may come twice
$node->safe_psql('postgres', 'TRUNCATE sent');
$load = start_load($node, "SELECT publish_sent('', 'q', :client_id)",
	clients => 2, rate => 300);
wait_for_deliveries();
$broker->ctl('eval',
	"ranch:stop_listener(rabbit_networking:ranch_ref({127,0,0,1}, $second_port)).");
$broker->ctl('close_all_connections', 'test');
wait_for(
	$node,
	'postgres',
	"SELECT state = 'connected' AND host = '127.0.0.1:$port'
		FROM amqp_outbox.server_status",
	'the next host of the list');
pass('a host that goes: the next one');
wait_for_deliveries();

ok(stop_load($load), 'load ran');
wait_settled($node, 'postgres');

check_account(committed($node, 'postgres'),
	$broker->received_marked('q'), 'a host that goes',
	duplicates => 'marked');
is(worker_pid($node, 'postgres', 'mes'), $pid, 'by one and the same worker');

#
# A change holds for what is published after it, at once and each time
#

$load = start_load($node, <<'END', clients => 2, rate => 300);
SELECT publish_sent('', 'q', 10 + :client_id);
END
$broker->declare_queue('r');
my @expected;
foreach my $i (1 .. 60)
{
	my $persistent = $i % 2 ? 'false' : 'true';
	my $verb = $i == 1 ? 'ADD' : 'SET';

	$node->safe_psql('postgres', <<"END");
ALTER SERVER mes OPTIONS ($verb persistent '$persistent');
SELECT amqp_publish('', 'r', '$i'::text);
END
	push @expected, "$i " . ($i % 2 ? 1 : 2);
	wait_true("message $i", sub { return $broker->count('r') == $i });
}
wait_settled($node, 'postgres');
is_deeply(
	[
		map { "$_->{body_text} $_->{properties}{delivery_mode}" }
		  $broker->messages('r')
	],
	\@expected,
	'60 changes, each in effect at once');

# and each with a new connection
foreach my $i (1 .. 20)
{
	$node->safe_psql('postgres',
		"ALTER SERVER mes OPTIONS (SET heartbeat '" . (10 + $i) . "')");
}
wait_for_deliveries();
ok(stop_load($load), 'load ran');
wait_settled($node, 'postgres');
check_account(
	committed($node, 'postgres', 'session >= 10'),
	$broker->received('q'), 'altered over and over');

finish_node($node);
done_testing();

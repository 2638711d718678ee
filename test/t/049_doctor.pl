# amqp_outbox.doctor(): each thing that can be wrong on the way to a broker is
# named, with what to do; nothing of it gets into a queue, and nobody has to wait
# for the process that looks.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxPeer;
use AmqpOutboxTest;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use POSIX qw(strftime);
use Test::More;
use Time::HiRes qw(time usleep);

my $dir = PostgreSQL::Test::Utils::tempdir();
my $tls_port = PostgreSQL::Test::Cluster::get_free_port();
my $closed_port = PostgreSQL::Test::Cluster::get_free_port();

sub make_ca
{
	my $name = shift;

	system_or_bail(
		'openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt',
		'ec_paramgen_curve:prime256v1', '-nodes', '-days', '1000',
		'-subj', "/CN=$name", '-keyout', "$dir/$name.key",
		'-out', "$dir/$name.pem");
	return;
}

# The broker's certificate from now on.
sub make_certificate
{
	my ($names, $days) = @_;

	my @validity = ('-days', $days);

	# newer ones of openssl refuse an end before the beginning
	@validity = map {
		(
			'-not_' . ($_ == 1 ? 'after' : 'before'),
			strftime('%Y%m%d%H%M%SZ', gmtime(time + $_ * $days * 86400)))
	} (1, 2)
	  if $days < 0 && `openssl x509 -help 2>&1` =~ /-not_after/;
	append_to_file("$dir/extensions", "subjectAltName = $names\n");
	system_or_bail(
		'openssl', 'x509', '-req', '-in', "$dir/server.csr",
		'-CA', "$dir/ours.pem", '-CAkey', "$dir/ours.key",
		'-CAcreateserial', @validity,
		'-extfile', "$dir/extensions", '-out', "$dir/server.pem");
	unlink("$dir/extensions");
	return;
}

make_ca('ours');
make_ca('other');
system_or_bail(
	'openssl', 'req', '-newkey', 'ec', '-pkeyopt',
	'ec_paramgen_curve:prime256v1', '-nodes', '-subj', '/CN=broker',
	'-keyout', "$dir/server.key", '-out', "$dir/server.csr");
make_certificate('IP:127.0.0.1', 400);

my $broker = AmqpOutboxTest::Broker->new('examined', conf => <<"END");
listeners.ssl.1 = 127.0.0.1:$tls_port
ssl_options.certfile = $dir/server.pem
ssl_options.keyfile = $dir/server.key
ssl_options.verify = verify_none
ssl_options.fail_if_no_peer_cert = false
END
my $name_server = AmqpOutboxPeer::NameServer->new;
my %environment = $name_server->environment;
my $node = do { local %ENV = (%ENV, %environment); new_primary('main') };

$broker->declare_queue('q');
create_server($node, 'postgres', 'mes', $broker);
$node->safe_psql('postgres', <<'END');
ALTER USER MAPPING FOR PUBLIC SERVER mes OPTIONS (SET password 'guest');
SELECT amqp_outbox.declare_exchange('mes', 'plant');
SELECT amqp_outbox.declare_queue('mes', 'orders');
SELECT amqp_outbox.bind_queue('mes', 'orders', 'plant', '#');
END
wait_for(
	$node,
	'postgres',
	"SELECT bool_and(state = 'asserted') FROM amqp_outbox.topology",
	'the topology');
wait_state($node, 'postgres', 'mes', 'connected');

my $query = "SELECT check_name, coalesce(host, ''), result, finding,
	coalesce(what_to_do, '') FROM amqp_outbox.doctor";

# Rows of the doctor as a hash: by check, "result: finding -> what to do", one a
# line; by "worst" the worst result.
sub rows
{
	my $output = shift;
	my %rows = (worst => 'ok', all => $output);
	my %gravity = (ok => 0, warning => 1, error => 2);

	foreach my $row (grep { /\|/ } split(/\n/, $output))
	{
		my ($check, $host, $result, $finding, $what_to_do) =
		  split(/\|/, $row, -1);

		$rows{$check} .= "\n" if defined $rows{$check};
		$rows{$check} .= "$host $result: $finding -> $what_to_do";
		$rows{worst} = $result if $gravity{$result} > $gravity{ $rows{worst} };
	}
	return \%rows;
}

# What it finds after a statement that is rolled back: it sees what the
# transaction sees.
sub examine
{
	my ($sql, $probe) = @_;
	my $arguments = "('mes'" . (defined $probe ? ", '$probe')" : ')');

	return rows(
		$node->safe_psql('postgres', "BEGIN; $sql; $query$arguments; ROLLBACK"));
}

# The same without waiting for it.
sub start_examination
{
	my ($sql, $database) = @_;
	my %run = (output => '', errors => '');

	$run{handle} = IPC::Run::start(
		[
			$node->installed_command('psql'), '-XAtq',
			'-d', $node->connstr($database // 'postgres'),
			'-c', "BEGIN; $sql; $query('mes')"
		],
		'<', \undef, '>', \$run{output}, '2>', \$run{errors});
	return \%run;
}

sub await_examination
{
	my ($run, $meanwhile) = @_;

	wait_true(
		'the end of the examination',
		sub {
			$meanwhile->() if $meanwhile;
			return !$run->{handle}->pumpable || do
			{
				$run->{handle}->pump_nb;
				!$run->{handle}->pumpable;
			};
		});
	$run->{handle}->finish;
	return rows($run->{output});
}

my $is_there = "SELECT count(*) > 0 FROM pg_stat_activity
	WHERE backend_type = 'amqp_outbox doctor'";

sub await_doctor
{
	wait_for($node, 'postgres', $is_there, 'a doctor');
	return;
}

# Ended is what a process is when it is gone.
sub no_doctor
{
	my $name = shift;

	wait_for($node, 'postgres', "SELECT NOT ($is_there)",
		"$name: no doctor is left");
	pass("$name: no doctor is left");
	return;
}

my $port = $broker->port;

#
# All is well
#

my $rows = examine('SELECT');
is($rows->{worst}, 'ok', 'all is well') or diag $rows->{all};
is( join(' ', map { /^(\w+)\|/ } split(/\n/, $rows->{all})),
	'preload worker identity worker_slots name_resolution tcp tls broker'
	  . ' login vhost limits topology write_permission blocked',
	'all checks, in their order');
like($rows->{worker}, qr/worker is connected/, 'worker');
like($rows->{broker}, qr/RabbitMQ \d+\.\d+/, 'product and version');
like($rows->{login}, qr/user "guest", by mechanism PLAIN/, 'login');
like($rows->{vhost}, qr{virtual host "/"}, 'vhost');
like($rows->{limits}, qr/heartbeat \d+ s, frame_max 131072 bytes, channel_max 2/,
	'limits');
like($rows->{topology}, qr/at the broker: 2 /, 'topology');
like($rows->{write_permission}, qr/written to: 1 /, 'write permission');
is($broker->count('orders'), 0, 'no message gets into a queue');
is(status($node, 'postgres', 'mes', 'state'), 'connected',
	'the worker is still connected');

#
# The probe
#

$rows = examine('SELECT', 'plant');
like($rows->{probe}, qr/^ ok: exchange "plant".*routed and confirmed/, 'probe');
my ($probe) = $broker->messages('orders');
is($probe->{routing_key}, 'amqp_outbox.doctor', 'the probe has arrived');
$broker->declare_exchange('lonely', 'direct');
$rows = examine('SELECT', 'lonely');
like($rows->{probe}, qr/^ warning: .* no queue gets routing key/,
	'an unroutable probe is a finding, not an error');
$rows = examine('SELECT', 'missing');
like($rows->{probe}, qr/^ error: .*NOT_FOUND - no exchange 'missing'/,
	'probe to a missing exchange');

#
# Name, address, login
#

my $uri = 'ALTER SERVER mes OPTIONS';

$rows = examine("$uri (SET port '$closed_port')");
like($rows->{tcp}, qr/^127.0.0.1:$closed_port error: .*Connection refused.* -> See/,
	'wrong port');
is($rows->{broker}, undef, 'wrong port: nothing is told of what comes then');

$rows = examine(
	"$uri (SET host '127.0.0.1:$closed_port,127.0.0.1:$port', DROP port)");
like($rows->{tcp}, qr/^127.0.0.1:$closed_port error: .*\n127.0.0.1:$port ok/,
	'two hosts: each is looked at');
like($rows->{topology}, qr/^ ok: [^\n]*$/, 'two hosts: but the broker once');

$rows = examine("$uri (SET host '127.0.0.1:$port,127.0.0.1:$port', DROP port)");
like($rows->{topology}, qr/^ ok: [^\n]*$/, 'two hosts that work');

my $run = start_examination("$uri (SET host 'nowhere.test')");
$rows = await_examination($run, sub { $name_server->answer(qr/nowhere/) });
like($rows->{name_resolution},
	qr/^nowhere.test:$port error: could not resolve host name.* -> Correct/,
	'a name that does not resolve');
$run = start_examination("$uri (SET host 'broker.test')");
$rows = await_examination($run, sub { $name_server->answer(qr/nowhere/) });
is($rows->{worst}, 'ok', 'a name that resolves') or diag $rows->{all};

$rows = examine(
	"ALTER USER MAPPING FOR PUBLIC SERVER mes OPTIONS (SET password 'a secret')");
like($rows->{login}, qr/error: .*ACCESS_REFUSED.* -> Correct user and password/,
	'wrong password');
unlike($rows->{all}, qr/a secret/, 'wrong password: it is not shown');
is($rows->{vhost}, undef, 'wrong password: nothing is told of the vhost');

$rows = examine("$uri (SET vhost 'nowhere')");
like($rows->{vhost}, qr/error: .*vhost nowhere not found.* -> Correct/,
	'missing vhost');

#
# TLS
#

my $tls = "$uri (SET port '$tls_port', ADD tls 'true', ADD cacertfile '$dir/%s.pem')";

sub examine_tls { return examine(sprintf($tls, shift)); }

# The serial number of a certificate, out of text that holds it.
sub serial
{
	my $pem = shift;
	my $serial = '';

	IPC::Run::run([ 'openssl', 'x509', '-noout', '-serial' ],
		'<', \$pem, '>', \$serial, '2>', \my $errors);
	return $serial;
}

# From now on the broker shows this one: it reads the file again some time after
# it was told to forget it.
sub new_certificate
{
	make_certificate(@_);
	$broker->ctl('eval', 'ssl:clear_pem_cache().');
	wait_true(
		'the new certificate',
		sub {
			IPC::Run::run(
				[ 'openssl', 's_client', '-connect', "127.0.0.1:$tls_port" ],
				'<', \'', '>', \my $shown, '2>', \my $errors);
			return serial($shown) eq serial(slurp_file("$dir/server.pem"));
		});
	return;
}

$rows = examine_tls('ours');
is($rows->{worst}, 'ok', 'TLS: all is well') or diag $rows->{all};
like($rows->{tls}, qr/ok: TLSv1\.[23]; .*CN=broker" is valid for (399|400) more days/,
	'TLS: the certificate');
$rows = examine_tls('other');
like($rows->{tls}, qr/error: could not verify .* -> Set the server's option cacertfile/,
	'TLS: unknown CA');
$rows = examine_tls('missing');
like($rows->{tls}, qr/error: could not open CA certificate file.* -> Correct the server's option cacertfile/,
	'TLS: missing CA file');
new_certificate('IP:127.0.0.1', 20);
$rows = examine_tls('ours');
like($rows->{tls}, qr/warning: .*is valid for (19|20) more days -> Renew/,
	'TLS: it will expire');
new_certificate('IP:127.0.0.1', -1);
$rows = examine_tls('ours');
like($rows->{tls}, qr/error: .*expired.*CN=broker", days left: -1 -> Renew/,
	'TLS: it has expired');
new_certificate('DNS:broker.example', 400);
$rows = examine_tls('ours');
like($rows->{tls}, qr/error: .* -> Connect to a host name that the certificate is for/,
	'TLS: wrong name');
$rows = examine("$uri (ADD tls 'true', ADD cacertfile '$dir/ours.pem')");
like($rows->{tls}, qr/error: could not establish TLS.* -> See whether the broker expects TLS/,
	'TLS: at a port without');

#
# Exchanges, rights, alarms
#

$rows = examine("SELECT amqp_outbox.declare_exchange('mes', 'forgotten');
	SELECT amqp_outbox.declare_queue('mes', 'lost')");
like($rows->{topology},
	qr/^ error: declared exchange "forgotten": NOT_FOUND.*\n error: declared queue "lost"/,
	'what is declared and not at the broker');
like($rows->{topology}, qr/-> amqp_outbox\.pause\(\), and then resume\(\)/,
	"what the server's owner may do about it");
like($rows->{write_permission}, qr/^ ok/, 'and the others may be written to');

# the queue is there, but another one
$broker->declare_exchange('odd', 'fanout');
$node->safe_psql('postgres', "SELECT amqp_outbox.declare_exchange('mes', 'odd')");
wait_for($node, 'postgres',
	"SELECT state = 'conflict' FROM amqp_outbox.topology WHERE name = 'odd'",
	'a conflict');
$rows = examine('SELECT');
like($rows->{topology}, qr/error: refused to the worker: exchange "odd": PRECONDITION_FAILED/,
	'what the broker has refused');
$node->safe_psql('postgres', "SELECT amqp_outbox.undeclare_exchange('mes', 'odd')");

$broker->ctl('set_permissions', 'guest', '.*', '^amq\.default$', '.*');
$rows = examine('SELECT');
like($rows->{write_permission},
	qr/^ error: .*ACCESS_REFUSED.*'plant'.* -> Give the user/,
	'no right to write');
$rows = examine('SELECT', 'lonely');
like($rows->{probe}, qr/^ error: .*ACCESS_REFUSED/, 'nor to probe');
$broker->ctl('set_permissions', 'guest', '.*', '^plant$', '.*');
$rows = examine("DELETE FROM amqp_outbox.topology_item");
like($rows->{write_permission}, qr/^ warning: default exchange: ACCESS_REFUSED/,
	'nothing is declared');
$broker->ctl('set_permissions', 'guest', '.*', '.*', '.*');

$broker->ctl('eval',
	'rabbit_alarm:set_alarm({{resource_limit, memory, node()}, []}).');
$rows = examine('SELECT');
like($rows->{blocked}, qr/^ error: .*low on memory.* -> Give the broker/,
	'blocked');
$broker->ctl('eval',
	'rabbit_alarm:clear_alarm({resource_limit, memory, node()}).');
$rows = examine('SELECT');
is($rows->{worst}, 'ok', 'and all is well again') or diag $rows->{all};
is($broker->count('orders'), 0, 'nothing of all that got into a queue');

# another broker would perhaps take what RabbitMQ refuses
my $other = AmqpOutboxPeer->broker;
my $there = "$uri (SET port '" . $other->port . "')";

$run = start_examination("DELETE FROM amqp_outbox.topology_item; $there");
$other->welcome;
is($other->read_frame, '10 50', 'a broker that is not RabbitMQ: no message');
$other->hang_up;
$rows = await_examination($run);
is($rows->{write_permission}, undef,
	'a broker that is not RabbitMQ: nothing is told of rights');

$run = start_examination($there);
$other->welcome(channel_max => 1);
$other->expect('10 50');
$other->hang_up;
$rows = await_examination($run);
like($rows->{topology}, qr/^ warning: the broker allows one channel/,
	'one channel: topology cannot be asked for');
like($rows->{limits}, qr/ warning: .*channel_max 1/, 'one channel');

#
# This side
#

$rows = examine('UPDATE amqp_outbox.identity SET database_oid = 1');
like($rows->{identity}, qr/^ error: .*copy.* -> .*adopt/, 'a copy');

my $standby = do { local %ENV = (%ENV, %environment); new_standby($node, 'standby') };
$node->wait_for_catchup($standby);
$rows = rows($standby->safe_psql('postgres', "$query('mes')"));
like($rows->{worker}, qr/^ ok: none, because this cluster is a standby/,
	'a standby');
is($rows->{worst}, 'ok', 'a standby: all is well') or diag $rows->{all};
finish_node($standby, errors => qr/walreceiver/);

my $silent = AmqpOutboxPeer->silent;
my $hangs = "$uri (SET port '" . $silent->port . "', ADD connect_timeout '%d')";

my $begin = time;
$rows = examine(sprintf($hangs, 1));
like($rows->{broker}, qr/error: timeout.*did not greet in time/, 'a silent host');
cmp_ok(time - $begin, '<', 5, 'a silent host: it does not take long');

#
# The process is in nobody's way
#

# a session that waits no longer
my ($ret, undef, $errors) = $node->psql('postgres',
	"SET statement_timeout = 500; BEGIN; " . sprintf($hangs, 600) . "; $query('mes')",
	extra_params => [ '-v', 'ON_ERROR_STOP=1' ]);
like($errors, qr/canceling statement due to statement timeout/, 'timeout');
no_doctor('timeout');

$run = start_examination(sprintf($hangs, 600));
await_doctor();
$node->safe_psql('postgres',
	"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%ADD connect_timeout%' AND pid <> pg_backend_pid()");
await_examination($run);
like($run->{errors}, qr/terminating connection/, 'terminated');
no_doctor('terminated');

# a database that is needed for itself
$node->safe_psql('postgres', 'CREATE DATABASE other');
create_server($node, 'other', 'mes', $broker);
wait_state($node, 'other', 'mes', 'connected');
$run = start_examination(sprintf($hangs, 600), 'other');
await_doctor();
foreach my $statement (
	'CREATE DATABASE third',
	'DROP DATABASE third',
	'DROP DATABASE other WITH (FORCE)')
{
	# a block would not be allowed, so not by SET
	local $ENV{PGOPTIONS} = '-c statement_timeout=20s';

	is($node->psql('postgres', $statement), 0, "$statement does not wait");
}
await_examination($run);
no_doctor('DROP DATABASE');

# two at once
my @runs = map { start_examination('SELECT') } 1 .. 2;
is(await_examination($_)->{worst}, 'ok', 'two at once') foreach @runs;

# a stop
$run = start_examination(sprintf($hangs, 600));
await_doctor();
$begin = time;
$node->stop('fast');
cmp_ok(time - $begin, '<', 10, 'a stop does not wait');
await_examination($run);

#
# No slot: the two launchers and the worker are all that there is room for
#

$node->append_conf('postgresql.conf', 'max_worker_processes = 3');
$node->start;
wait_state($node, 'postgres', 'mes', 'connected');
$rows = examine('SELECT');
like($rows->{worker_slots},
	qr/^ error: no process can be started.*\(3\).* -> Increase max_worker_processes/,
	'no free slot');
is($rows->{tcp}, undef, 'no free slot: that is all');

# one slot is enough, for one after the other; no scout of another database
# comes for it
$node->safe_psql('postgres', 'ALTER DATABASE template1 ALLOW_CONNECTIONS false');
$node->append_conf('postgresql.conf', 'max_worker_processes = 4');
$node->restart;
wait_state($node, 'postgres', 'mes', 'connected');
my $without_slot = "SELECT count(*) FROM generate_series(1, %d) n,
	LATERAL amqp_outbox.doctor(left('mes', 2 + n)::name) d
	WHERE check_name = 'worker_slots' AND result = 'error'";
wait_for($node, 'postgres', 'SELECT (' . sprintf($without_slot, 1) . ') = 0',
	'a free slot');
is($node->safe_psql('postgres', sprintf($without_slot, 10)),
	0, 'one slot: free again when the function returns');

#
# Not enabled, not preloaded
#

$node->append_conf('postgresql.conf', "max_worker_processes = 8\namqp_outbox.enabled = off");
$node->restart;
$rows = examine('SELECT');
like($rows->{preload}, qr/^ warning: .*amqp_outbox.enabled is off/, 'not enabled');
like($rows->{vhost}, qr/ ok: /, 'not enabled: but the way to the broker is well');
$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->restart;
$rows = examine('SELECT');
like($rows->{preload}, qr/^ error: .* -> Set shared_preload_libraries/,
	'not preloaded');

is(scalar(log_lines($node, qr/a secret'?$/)), 0, 'no password in the log');
# a scout may come too late to a database that is dropped
finish_node($node, errors => qr/database (\d+|"third") does not exist/);
done_testing();

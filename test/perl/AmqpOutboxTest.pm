# AmqpOutboxTest.pm: what the TAP tests of amqp_outbox have in common.
#
# A test makes its own PostgreSQL cluster and its own RabbitMQ, publishes by
# SQL, takes what arrived out of the queues with a client of its own
# (test/helpers/amqp_tool), and compares.  Every wait is for a state.  What was
# started ends with the test, also when the test dies.
#
#	use AmqpOutboxTest;
#	my $broker = AmqpOutboxTest::Broker->new('one');
#	my $node = new_node('main');
#	create_server($node, 'postgres', 'mes', $broker);
#	$broker->declare_queue('q');
#	... amqp_publish('', 'q', ...)
#	wait_settled($node, 'postgres');
#	my @messages = $broker->messages('q');
#	finish_node($node);
#
# Accounting: create_sent() makes a table "sent", into which a test inserts the
# message id, a session number and a number that grows within the session, in
# the transaction that publishes the text "session number".  So the table holds
# exactly what was committed, and check_account() compares it with what came.

package AmqpOutboxTest;

use strict;
use warnings FATAL => 'all';

use Carp qw(croak);
use Cwd qw(abs_path);
use Exporter 'import';
use File::Basename qw(dirname);
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

our @EXPORT = qw(
  new_node
  new_primary
  new_standby
  promote
  finish_node
  create_server
  create_sent
  committed
  publish_sent
  reconnect
  start_load
  stop_load
  wait_for
  wait_settled
  wait_state
  wait_true
  worker_pid
  status
  account
  check_account
  log_lines
);

# An error is the test's, at that line.
our @CARP_NOT = qw(AmqpOutboxPeer AmqpOutboxPeer::NameServer);

our $ROOT = abs_path(dirname(__FILE__) . '/../..');

# What must never stand in a server's log.
my $ALARM = qr/^TRAP: |PANIC: |was terminated by signal|ERROR: AddressSanitizer|runtime error: /m;

# What a standby says when its primary is away.
my $ALONE = qr/primary server|WAL stream|walreceiver/;

# What is to end with the test.
my @brokers;
my @loads;

# Clusters and databases with servers: whose status is shown when somebody waits
# in vain.
my @watched;

# Names of standbys that were promoted.
my %promoted;

# A test that is interrupted dies, so that the END blocks run.  (PostgreSQL's
# module does this too, in later versions.)
INIT
{
	$SIG{$_} = sub { die "death by signal" }
	  foreach 'HUP', 'INT', 'TERM';
}

# Who wants to know only whether a test fails (scripts/breaks) need not wait for
# its end.
if ($ENV{OUTBOX_FIRST_FAILURE})
{
	my $ok = \&Test::Builder::ok;

	no warnings 'redefine';
	*Test::Builder::ok = sub {
		local $Test::Builder::Level = $Test::Builder::Level + 1;
		exit 1 unless $ok->(@_);
		return 1;
	};
}

#
# Servers
#

# A cluster with the extension preloaded, started.  Parameters: conf, more
# lines of postgresql.conf; port, own port.
sub new_node
{
	my ($name, %params) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	$node->init(extra => [ '--no-locale', '-E', 'UTF8' ]);
	$node->append_conf('postgresql.conf', <<"END");
shared_preload_libraries = 'amqp_outbox'
shared_buffers = 32MB
max_wal_size = 512MB
max_worker_processes = 16
log_statement = none
@{[ $params{conf} // '' ]}
END
	$node->start;
	return $node;
}

# The same, for one that is to have standbys.
sub new_primary
{
	my ($name, %params) = @_;
	my $conf = $params{conf} // '';

	return new_node($name, %params, conf => <<"END");
wal_level = replica
max_wal_senders = 10
max_replication_slots = 10
wal_keep_size = 256MB
hot_standby = on
$conf
END
}

# A standby, started, with all that its primary has now.  Its name is that by
# which synchronous_standby_names knows it.  Parameter: conf.
sub new_standby
{
	my ($primary, $name, %params) = @_;
	my $standby = PostgreSQL::Test::Cluster->new($name);

	$primary->backup($name);
	$standby->init_from_backup($primary, $name, has_streaming => 1);
	$standby->append_conf('postgresql.conf', $params{conf} // '');
	$standby->start;
	return $standby;
}

# Make a primary of a standby.  From now on it may have said, as one whose own
# primary is away, what is no error of a worker.
sub promote
{
	my $standby = shift;

	$standby->promote;
	wait_for($standby, 'postgres', 'SELECT NOT pg_is_in_recovery()',
		'the end of the promotion');
	$promoted{ $standby->name } = 1;
	return;
}

# Stop a cluster, and look whether something went wrong unseen.  Parameters:
# killed, the number of processes that the test ended with SIGKILL; errors, a
# pattern of errors that the workers were made to have.
sub finish_node
{
	my ($node, %params) = @_;

	$node->stop('fast');
	check_log($node, %params);
	return;
}

# Lines of the log that match, from an offset on.
sub log_lines
{
	my ($node, $pattern, $offset) = @_;

	return grep { /$pattern/ }
	  split(/\n/, slurp_file($node->logfile, $offset // 0));
}

# Lines of processes without a session carry no application name: those of the
# launcher and of the workers.
sub check_log
{
	my ($node, %params) = @_;
	my $name = $node->name;
	my @alarms = log_lines($node, $ALARM);
	my @errors = log_lines($node, qr/^\S+ \S+ \S+ \[\d+\] (ERROR|FATAL): /);
	my $killed = $params{killed} // 0;

	@alarms = grep { !/was terminated by signal 9/ || --$killed < 0 } @alarms;
	@errors = grep { !/$params{errors}/ } @errors if defined $params{errors};
	@errors = grep { !/$ALONE/ } @errors if $promoted{$name};
	# dropped while a process of ours was starting in it
	@errors = grep { !/FATAL:  database \d+ does not exist/ } @errors;
	is(join("\n", @alarms), '', "$name: no alarm in the log");
	is(join("\n", @errors), '', "$name: no error of a worker in the log");
	return;
}

# Extension, server and user mapping.  Further options of the server are given
# as pairs; host, port and vhost are those of the broker unless "uri" or they
# are among them.
sub create_server
{
	my ($node, $database, $server, $broker, %options) = @_;

	if (!defined $options{uri})
	{
		$options{host} //= '127.0.0.1';
		$options{port} //= $broker->port;
		$options{vhost} //= $broker->{vhost};
	}
	my $list = join(', ', map { "$_ '$options{$_}'" } sort keys %options);

	watch($node, $database);
	$node->safe_psql($database, <<"END");
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS amqp_outbox;
-- at once: a worker that starts in between notes that the mapping is missing
BEGIN;
CREATE SERVER $server FOREIGN DATA WRAPPER amqp_outbox OPTIONS ($list);
CREATE USER MAPPING FOR PUBLIC SERVER $server
	OPTIONS (user 'guest', password 'guest');
COMMIT;
END
	return;
}

#
# Waiting
#

sub watch
{
	my ($node, $database) = @_;

	push @watched, [ $node, $database ]
	  if !grep { $_->[0] == $node && $_->[1] eq $database } @watched;
	return;
}

sub show_status
{
	my ($node, $database) = @_;
	my ($status, $errors, $timed_out);

	# what cannot be shown must not hide what was waited for
	eval {
		$node->psql(
			$database,
			'SELECT clock_timestamp() AS now, * FROM amqp_outbox.server_status',
			stdout => \$status,
			stderr => \$errors,
			timeout => 10,
			timed_out => \$timed_out,
			extra_params => ['--expanded']);
	};
	$errors = 'no answer' if $timed_out;
	diag 'amqp_outbox.server_status of ' . $node->name . ", database $database:\n"
	  . join("\n", grep { defined && $_ ne '' } $status, $errors);
	return;
}

# Die because somebody has waited in vain, and show how the servers are: it may
# not be seen again for a long time.
sub give_up
{
	my $message = shift;

	show_status(@$_) foreach @watched;
	croak $message;
}

# Wait until a query is true.
sub wait_for
{
	my ($node, $database, $query, $what) = @_;
	my $tries = 10 * $PostgreSQL::Test::Utils::timeout_default;
	my $true;

	# a psql that finds no server may end before it was given the query
	while (!defined($true = eval { $node->poll_query_until($database, $query) }))
	{
		die $@ if $@ !~ /Broken pipe/ || $tries-- <= 0;
		usleep(100_000);
	}
	return if $true;
	watch($node, $database);
	give_up('timed out waiting for: ' . ($what // $query));
	return;
}

# Wait until a piece of Perl is true.
sub wait_true
{
	my ($what, $code) = @_;
	my $end = time + $PostgreSQL::Test::Utils::timeout_default;

	while (!$code->())
	{
		give_up("timed out waiting for: $what") if time > $end;
		usleep(50_000);
	}
	return;
}

# Wait until nothing is left to deliver, for one server or for all.
sub wait_settled
{
	my ($node, $database, $server) = @_;
	my $where = defined $server ? "WHERE server = '$server'" : '';

	wait_for(
		$node,
		$database,
		"SELECT sum(backlog) = 0 AND sum(in_flight) = 0
			FROM amqp_outbox.server_status $where",
		"everything delivered");
	return;
}

sub wait_state
{
	my ($node, $database, $server, $state) = @_;

	wait_for(
		$node,
		$database,
		"SELECT state = '$state' FROM amqp_outbox.server_status
			WHERE server = '$server'",
		"server $server $state");
	return;
}

# Change something, and wait for the new connection that must follow.
sub reconnect
{
	my ($node, $database, $server, $sql) = @_;
	my $since = status($node, $database, $server, 'since');

	$node->safe_psql($database, $sql);
	wait_for(
		$node,
		$database,
		"SELECT state = 'connected' AND since <> '$since'
			FROM amqp_outbox.server_status WHERE server = '$server'",
		"a new connection after $sql");
	return;
}

# One value of a server's status.
sub status
{
	my ($node, $database, $server, $column) = @_;

	return $node->safe_psql($database,
		"SELECT $column FROM amqp_outbox.server_status WHERE server = '$server'"
	);
}

# The process id of a server's worker, once there is one; but not $former.
sub worker_pid
{
	my ($node, $database, $server, $former) = @_;
	my $query = "SELECT w.pid FROM amqp_outbox.worker() w
		JOIN pg_foreign_server s ON s.oid = w.server_oid
		JOIN pg_stat_activity a ON a.pid = w.pid
		WHERE s.srvname = '$server' AND w.pid > 0 AND w.pid <> "
	  . ($former // 0);

	wait_for($node, $database, "SELECT EXISTS ($query)",
		"a worker of server $server");
	return $node->safe_psql($database, $query);
}

#
# Accounting
#

sub create_sent
{
	my ($node, $database) = @_;

	$node->safe_psql($database, <<'END');
CREATE TABLE sent (id text, session int, n bigint);
CREATE SEQUENCE n;
CREATE FUNCTION publish_sent(exchange text, routing_key text, session int,
	n bigint DEFAULT nextval('n'), server text DEFAULT NULL)
RETURNS void LANGUAGE sql AS $$
	INSERT INTO sent
		SELECT amqp_publish(exchange, routing_key, session || ' ' || n,
			server => server), session, n
$$;
END
	return;
}

# SQL that publishes $count messages of one session in one transaction.
sub publish_sent
{
	my ($routing_key, $session, $count) = @_;

	return "INSERT INTO sent
		SELECT amqp_publish('', '$routing_key', $session || ' ' || n),
			$session, n
		FROM (SELECT nextval('n') AS n FROM generate_series(1, $count)) x;";
}

# What was committed: a list of [message id, "session n"].
sub committed
{
	my ($node, $database, $where) = @_;
	my $rows = $node->safe_psql($database,
		'SELECT id, session, n FROM sent WHERE ' . ($where // 'true'));

	return [ map { [ split(/\|/, $_, 2) ] }
		  map { s/\|(\d+)$/ $1/r } split(/\n/, $rows) ];
}

# Compare what was committed with what was received, both lists of
# [message id, "session n"], the latter in the order of arrival; a third element
# tells whether a message was marked as a possible duplicate.
sub account
{
	my ($committed, $received) = @_;
	my %count =
	  (lost => 0, duplicate => 0, 'out of order' => 0, phantom => 0,
		unmarked => 0);
	my %committed = map { $_->[0] => $_->[1] } @$committed;
	my %seen;
	my %newest;

	foreach my $message (@$received)
	{
		my ($id, $body) = @$message;

		# never committed, or not with this body
		if (!defined $committed{$id} || $committed{$id} ne $body)
		{
			$count{phantom}++;
			next;
		}
		if ($seen{$id}++)
		{
			$count{duplicate}++;
			$count{unmarked}++ unless $message->[2];
			next;
		}
		my ($session, $n) = split(/ /, $body);

		$count{'out of order'}++
		  if defined $newest{$session} && $n <= $newest{$session};
		$newest{$session} = $n;
	}
	$count{lost} = grep { !$seen{$_} } keys %committed;
	die "message ids are not unique" if keys %committed != @$committed;
	return %count;
}

# The same as a test.  Parameters: duplicates, 'marked' after a fault whose
# outcome nobody can know: then each copy but the first must say what it is;
# 'allowed' if not even that is looked at.
sub check_account
{
	my ($committed, $received, $name, %params) = @_;
	my %count = account($committed, $received);
	my $duplicates = delete $count{duplicate};
	my $unmarked = delete $count{unmarked};
	my $mode = $params{duplicates} // 'none';

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	note sprintf('%d committed, %d received, %d duplicates',
		scalar(@$committed), scalar(@$received), $duplicates);
	$count{duplicate} = $duplicates if $mode eq 'none';
	$count{'unmarked duplicate'} = $unmarked if $mode eq 'marked';
	is( join(', ', map { "$_ $count{$_}" } sort keys %count),
		join(', ', map { "$_ 0" } sort keys %count),
		"$name: all of " . scalar(@$committed) . " messages arrived");
	return $duplicates;
}

#
# Load in the background
#

# Run pgbench with a script.  Parameters: clients; rate, in transactions per
# second; database.  It runs until stop_load(), or ends by itself after
# "transactions" of each client.
sub start_load
{
	my ($node, $script, %params) = @_;
	my $number = @loads;
	my $file = PostgreSQL::Test::Utils::tempdir() . "/load$number.sql";
	my @command = (
		$node->installed_command('pgbench'), '-n',
		'-c', $params{clients} // 2,
		'-f', $file);
	my %load = (node => $node, output => '');

	append_to_file($file, $script);
	push @command, '--rate', $params{rate} if defined $params{rate};
	push @command,
	  defined $params{transactions}
	  ? ('-t', $params{transactions})
	  : ('-T', 600);
	push @command,
	  $node->connstr($params{database} // 'postgres')
	  . " application_name=load$number";
	$load{name} = "load$number";
	$load{run} =
	  IPC::Run::start(\@command, '<', \undef, '>', \$load{output}, '2>&1');
	push @loads, \%load;
	return \%load;
}

# End it, or with "await" wait for its end if it is one that ends by itself; and
# wait until its sessions are gone.  True if no session failed.
sub stop_load
{
	my ($load, %params) = @_;

	if (!$params{await})
	{
		$load->{run}->pump_nb;
		$load->{run}->signal('INT') if $load->{run}->pumpable;
	}
	eval { $load->{run}->finish };
	note $load->{output};
	$load->{run} = undef;
	wait_for(
		$load->{node},
		'postgres',
		"SELECT count(*) = 0 FROM pg_stat_activity
			WHERE application_name = '$load->{name}'",
		"end of the load's sessions");
	return $load->{output} !~ /aborted|error:|failed transactions: [1-9]/;
}

END
{
	my $exit_code = $?;

	foreach my $load (grep { defined $_->{run} } @loads)
	{
		eval { $load->{run}->kill_kill(grace => 2) };
	}
	foreach my $broker (@brokers)
	{
		# its data go with the test; this also ends a frozen one
		eval { $broker->kill9 };
	}
	$? = $exit_code;
}

#
# A private RabbitMQ
#

package AmqpOutboxTest::Broker;

use JSON::PP ();
use Test::More;

my $tool;

# The client.  "make installcheck" has built it, a test run alone may have to.
sub _tool
{
	my $source = "$ROOT/test/helpers/amqp_tool";

	return $tool if defined $tool;
	$tool = $source;
	if (!-x $tool)
	{
		$tool = PostgreSQL::Test::Utils::tempdir() . '/amqp_tool';
		system('cc', '-O2', '-o', $tool, "$source.c", '-lrabbitmq') == 0
		  or die "cannot build amqp_tool";
	}
	return $tool;
}

# Make one and start it.  Parameters: conf, lines of rabbitmq.conf; env, a hash
# of environment variables for scripts/rabbitmq; tls, true for a listener with
# TLS as well, at tls_port() and with a certificate that cacertfile() verifies.
sub new
{
	my ($class, $name, %params) = @_;
	my $self = bless {
		name => $name,
		vhost => '/',
		dir => PostgreSQL::Test::Utils::tempdir("rabbitmq_$name"),
	}, $class;

	push @brokers, $self;
	local %ENV = (%ENV, %{ $params{env} // {} });
	my $conf = ($params{conf} // '') . "\n";
	$conf .= $self->_tls if $params{tls};
	$self->_script(['start'], $conf);
	return $self;
}

# A certificate for this machine that signs itself, and the lines that use it.
sub _tls
{
	my $self = shift;
	my $dir = PostgreSQL::Test::Utils::tempdir("tls_$self->{name}");

	PostgreSQL::Test::Utils::system_or_bail(
		'openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt',
		'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2',
		'-subj', '/CN=broker', '-addext', 'subjectAltName = IP:127.0.0.1',
		'-keyout', "$dir/key.pem", '-out', "$dir/certificate.pem");
	$self->{cacertfile} = "$dir/certificate.pem";
	$self->{tls_port} = PostgreSQL::Test::Cluster::get_free_port();
	return <<"END";
listeners.ssl.1 = 127.0.0.1:$self->{tls_port}
ssl_options.certfile = $dir/certificate.pem
ssl_options.keyfile = $dir/key.pem
ssl_options.verify = verify_none
ssl_options.fail_if_no_peer_cert = false
END
}

sub tls_port { my $self = shift; return $self->{tls_port}; }
sub cacertfile { my $self = shift; return $self->{cacertfile}; }

sub _script
{
	my ($self, $command, $input) = @_;
	my ($verb, @arguments) = @$command;
	my ($output, $errors);

	$input //= '';
	print "# rabbitmq @$command ($self->{name})\n";
	IPC::Run::run(
		[ "$ROOT/scripts/rabbitmq", $verb, $self->{dir}, @arguments ],
		'<', \$input, '>', \$output, '2>', \$errors)
	  or die "rabbitmq @$command failed: $errors";
	return $output;
}

sub start { my $self = shift; $self->_script(['start']); return; }
sub stop { my $self = shift; $self->_script(['stop']); return; }
sub kill9 { my $self = shift; $self->_script(['kill']); return; }
sub freeze { my $self = shift; $self->_script(['freeze']); return; }
sub thaw { my $self = shift; $self->_script(['thaw']); return; }
sub ctl { my ($self, @arguments) = @_; return $self->_script([ 'ctl', @arguments ]); }

sub dir { my $self = shift; return $self->{dir}; }

sub port
{
	my $self = shift;

	chomp(my $port = PostgreSQL::Test::Utils::slurp_file("$self->{dir}/port"));
	return $port;
}

# The same broker with another virtual host, which is made.
sub new_vhost
{
	my ($self, $vhost) = @_;

	$self->ctl('add_vhost', $vhost);
	$self->ctl('set_permissions', '-p', $vhost, 'guest', '.*', '.*', '.*');
	return bless { %$self, vhost => $vhost }, ref $self;
}

# amqp_tool with these arguments; its output, as bytes.
sub tool
{
	my ($self, @arguments) = @_;
	my $url = 'amqp://guest:guest@127.0.0.1:' . $self->port;
	my ($output, $errors);

	$url .= "/$self->{vhost}" if $self->{vhost} ne '/';
	IPC::Run::run([ _tool(), '--url', $url, @arguments ],
		'<', \undef, '>', \$output, '2>', \$errors)
	  or die "amqp_tool @arguments failed: $errors";
	return $output;
}

sub declare_queue
{
	my ($self, $name, @options) = @_;

	$self->tool(@options, 'declare-queue', $name);
	return;
}

sub declare_exchange
{
	my ($self, $name, $type) = @_;

	$self->tool('declare-exchange', $name, $type);
	return;
}

sub bind_queue
{
	my ($self, $queue, $exchange, $key) = @_;

	$self->tool('bind', $queue, $exchange, $key);
	return;
}

# How many messages are in a queue.
sub count
{
	my ($self, $queue) = @_;

	return $self->tool('count', $queue) + 0;
}

# Everything that is in a queue, as the tool's lines.
sub _drain
{
	my ($self, $queue, @options) = @_;
	my $lines = '';

	while ((my $n = $self->count($queue)) > 0)
	{
		$lines .= $self->tool(@options, '--count', $n, 'consume', $queue);
	}
	return split(/\n/, $lines);
}

# Everything that is in a queue, with all details: see amqp_tool.c for them.
sub messages
{
	my ($self, $queue) = @_;
	my $json = JSON::PP->new->utf8;

	return map { $json->decode($_) } $self->_drain($queue);
}

# Everything that is in a queue, with the fields named.
sub fields
{
	my ($self, $queue, @fields) = @_;
	my %escapes = ('\\' => '\\', t => "\t", n => "\n", r => "\r");

	return map {
		[ map { s/\\(.)/$escapes{$1}/gr } split(/\t/, $_, -1) ]
	} $self->_drain($queue, '--fields', join(',', @fields));
}

# Everything that is in a queue, as account() wants it, with the mark.
sub received_marked
{
	my ($self, $queue) = @_;

	return [
		map {
			[
				/"message_id":"([^"]*)"/, /"body_text":"([^"]*)"/,
				/"x-possible-duplicate":\{"type":"boolean","value":true\}/ ? 1 : 0
			]
		} $self->_drain($queue)
	];
}

# The same without the mark.
sub received
{
	my ($self, $queue) = @_;

	return [ $self->fields($queue, 'message_id', 'body') ];
}

1;

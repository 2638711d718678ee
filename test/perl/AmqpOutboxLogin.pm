# AmqpOutboxLogin.pm: what the tests of connections have in common, which let a
# worker in or keep it out in many ways, one after the other.
#
# One server, "mes", with a user mapping for PUBLIC, and one queue, "q":
#
#	use AmqpOutboxLogin;
#	create_server($node, 'postgres', 'mes', $broker, ...);
#	try_logins($node, $broker);
#	accepted('a name', sub { server("SET host 'localhost'") });
#	refused('a wrong name', sub { server("SET host 'elsewhere'") },
#		qr/why/, sub { server("SET host 'localhost'") }, qr/what to do/);

package AmqpOutboxLogin;

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use Exporter 'import';
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(
  openssl
  make_ca
  try_logins
  sql
  server
  mapping
  next_body
  publish
  arrives
  accepted
  refused
);

my $node;
my $broker;
my $meanwhile;
my $number = 0;

#
# Certificates
#

sub openssl { system_or_bail('openssl', @_); return; }

# An authority: $name.pem and $name.key.
sub make_ca
{
	my ($dir, $name) = @_;

	openssl('req', '-x509', '-newkey', 'ec', '-pkeyopt',
		'ec_paramgen_curve:prime256v1', '-nodes', '-days', '400',
		'-subj', "/CN=$name", '-keyout', "$dir/$name.key",
		'-out', "$dir/$name.pem");
	return;
}

#
# The server
#

# Parameter: meanwhile, what is to be done while a worker tries.
sub try_logins
{
	my %params;

	($node, $broker, %params) = @_;
	$meanwhile = $params{meanwhile} // sub { };
	return;
}

sub sql { return $node->safe_psql('postgres', shift); }

sub server { my $options = shift; return sql("ALTER SERVER mes OPTIONS ($options)"); }

sub mapping
{
	my $options = shift;

	return sql("ALTER USER MAPPING FOR PUBLIC SERVER mes OPTIONS ($options)");
}

#
# Messages
#

# That of the message which the test publishes next.
sub next_body { $number++; return "message $number"; }

sub publish { return sql("SELECT amqp_publish('', 'q', '" . next_body() . "')"); }

# What was published last arrives, once and with nothing else.
sub arrives
{
	my $name = shift;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_settled($node, 'postgres');
	is_deeply([ $broker->fields('q', 'body') ],
		[ ["message $number"] ], "$name: the message arrives");
	return;
}

# Connected, and a message gets through.
sub accepted
{
	my ($name, $change) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$change->();
	publish();
	arrives($name);
	return;
}

# A worker that would connect waits instead, says why in status and log, and
# with the cure goes on.  $finding: which check of doctor() fails, and what it
# says to do, if it is asked.
sub refused
{
	my ($name, $change, $error, $cure, $finding) = @_;
	my $before = sql('SELECT clock_timestamp()');
	my $offset = -s $node->logfile;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$change->();
	publish();
	wait_true(
		"$name: refused",
		sub {
			$meanwhile->();
			return status($node, 'postgres', 'mes',
				"state = 'waiting' AND last_error_at > '$before'
					AND last_error !~ 'CONNECTION_FORCED'") eq 't';
		});
	like(status($node, 'postgres', 'mes', 'last_error'), $error, "$name: status");
	wait_true("$name: the log says so",
		sub { return log_lines($node, qr/LOG:  (?:\S+: )?server "mes": /, $offset) > 0; });
	is($broker->count('q'), 0, "$name: nothing is delivered");
	like(
		sql("SELECT check_name || ' ' || what_to_do FROM amqp_outbox.doctor('mes')
			WHERE result = 'error'"),
		$finding, "$name: the doctor says what to do") if $finding;
	$cure->();
	arrives($name);
	return;
}

1;

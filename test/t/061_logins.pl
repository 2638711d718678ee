# Who we are, and to whom that is told: no password leaves the machine without
# TLS, secrets are taken out of files that nobody else can read, a certificate
# can be the login, and so can a token, which is replaced before it ends.
#
# What goes over a network is tried with 0.0.0.0: a connection to it arrives at
# this machine, and yet it is no loopback address.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxLogin;
use AmqpOutboxPeer;
use AmqpOutboxTest;
use JSON::PP ();
use MIME::Base64 qw(encode_base64url);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $dir = PostgreSQL::Test::Utils::tempdir();
my $tls_port = PostgreSQL::Test::Cluster::get_free_port();

sub make_certificate
{
	my ($name, $names) = @_;

	append_to_file("$dir/$name.ext", "subjectAltName = $names\n");
	openssl('req', '-newkey', 'ec', '-pkeyopt',
		'ec_paramgen_curve:prime256v1', '-nodes', '-subj', "/CN=$name",
		'-keyout', "$dir/$name.key", '-out', "$dir/$name.csr");
	openssl('x509', '-req', '-in', "$dir/$name.csr", '-CA', "$dir/ca.pem",
		'-CAkey', "$dir/ca.key", '-CAcreateserial', '-days', '400',
		'-extfile', "$dir/$name.ext", '-out', "$dir/$name.pem");
	chmod(0600, "$dir/$name.key") or die "chmod: $!";
	return;
}

# A file with a secret: others cannot read it, and nobody reads half of it.
sub put
{
	my ($name, $contents, $mode) = @_;

	unlink("$dir/$name.new");
	append_to_file("$dir/$name.new", $contents);
	chmod($mode // 0600, "$dir/$name.new") or die "chmod: $!";
	rename("$dir/$name.new", "$dir/$name") or die "rename: $!";
	return;
}

make_ca($dir, 'ca');
make_certificate('broker', 'DNS:localhost, IP:127.0.0.1');
make_certificate('mes', 'DNS:mes');
openssl('genrsa', '-out', "$dir/issuer.key", '2048');
openssl('rsa', '-in', "$dir/issuer.key", '-pubout', '-out', "$dir/issuer.pem");

my $broker = AmqpOutboxTest::Broker->new(
	'logins',
	env => {
		PLUGINS => 'rabbitmq_auth_mechanism_ssl,rabbitmq_auth_backend_oauth2'
	},
	conf => <<"END");
listeners.ssl.1 = 127.0.0.1:$tls_port
ssl_options.cacertfile = $dir/ca.pem
ssl_options.certfile = $dir/broker.pem
ssl_options.keyfile = $dir/broker.key
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = false
ssl_cert_login_from = common_name
auth_mechanisms.1 = PLAIN
auth_mechanisms.2 = EXTERNAL
auth_backends.1 = internal
auth_backends.2 = rabbit_auth_backend_oauth2
auth_oauth2.resource_server_id = rabbitmq
auth_oauth2.default_key = issuer
auth_oauth2.signing_keys.issuer = $dir/issuer.pem
END

# a name server that gives 127.0.0.1 for every name
my $name_server = AmqpOutboxPeer::NameServer->new;
my %environment = $name_server->environment;
my $node = do { local %ENV = (%ENV, %environment); new_node('main') };
my $port = $broker->port;

$broker->declare_queue('q');
create_server($node, 'postgres', 'mes', $broker);
try_logins($node, $broker, meanwhile => sub { $name_server->answer; });

# Who the worker is at the broker, and by which mechanism.
sub who
{
	my ($who) = grep { !/^user/ }
	  split(/\n/, $broker->ctl('list_connections', 'user', 'auth_mechanism'));

	return $who =~ s/\s+/ /r;
}

#
# Without TLS
#

accepted('loopback', sub { });
refused('a network',
	sub { server("SET host '0.0.0.0'"); },
	qr/no password is sent over a network without TLS: The address 0\.0\.0\.0 is not a loopback address\.\Q Connect with TLS (amqps), or, if everybody on the way may read it, set the server's option allow_plaintext.\E/,
	sub { server("SET host '127.0.0.1'"); },
	qr/^tls Have the broker listen with TLS/);
accepted('a name for loopback', sub { server("SET host 'localhost'"); });

# whoever listens there hears nothing that could be used
my $peer = AmqpOutboxPeer->broker;
my $peer_port = $peer->port;

server("SET host '0.0.0.0', SET port '$peer_port'");
publish();
$peer->accept;
is($peer->await_hangup, '', 'a peer is not told anything');
server("SET host '0.0.0.0:$peer_port,127.0.0.1', SET port '$port'");
arrives('the next host of the list');
is(status($node, 'postgres', 'mes', 'host'), "127.0.0.1:$port", 'is loopback');
accepted('if it is allowed',
	sub { server("SET host '0.0.0.0', ADD allow_plaintext 'true'"); });
is(sql("SELECT level || ' ' || detail FROM amqp_outbox.health WHERE rule = 'protection'"),
	'warning a password may go over a network without TLS (option allow_plaintext)',
	'health warns');
refused('no longer allowed',
	sub { server("SET allow_plaintext 'false'"); },
	qr/no password is sent/, sub { server("DROP allow_plaintext, SET host '127.0.0.1'"); });

#
# Secrets in files
#

put('password', "guest\n", 0640);
my $private = qr/ has group or world access: File must have permissions u=rw \(0600\)/;
refused('a password that the group can read',
	sub { mapping("DROP password, ADD password_file '$dir/password'"); },
	qr/password file "\S+"$private/, sub { put('password', "guest\n"); },
	qr/^login Correct the option of the user mapping that names the file, or the file's permissions/);
put('password', "guest\n", 0604);
refused('a password that the world can read',
	sub { server("ADD heartbeat '20'"); },
	qr/password file "\S+"$private/, sub { put('password', "guest\n"); });
put('password', ('x' x 8001) . "\n");
refused('a password that is too long',
	sub { server("SET heartbeat '21'"); },
	qr/the first line of password file "\S+" has more than 8000 bytes/,
	sub { put('password', "guest\n"); });
put('password', 'x' x 70000);
refused('a file that is too large',
	sub { server("SET heartbeat '22'"); },
	qr/password file "\S+" is larger than 65536 bytes/,
	sub { put('password', "guest\n"); });
system_or_bail('mkfifo', '-m', '600', "$dir/pipe");
refused('a pipe, from which one could wait for ever',
	sub { mapping("SET password_file '$dir/pipe'"); },
	qr/password file "\S+" is not a regular file/,
	sub { mapping("SET password_file '$dir/password'"); });
refused("a file of somebody else's",
	sub { mapping("SET password_file '/proc/1/cmdline'"); },
	qr/password file "\S+" (?:has group or world access|must be owned)/,
	sub { mapping("SET password_file '$dir/password'"); });

#
# EXTERNAL
#

refused('a certificate without TLS',
	sub {
		mapping("DROP user, DROP password_file, ADD auth_mechanism 'external',
			ADD certfile '$dir/mes.pem', ADD keyfile '$dir/mes.key'");
	},
	qr/authentication by a certificate needs TLS: Connect with TLS \(amqps\)/,
	sub {
		$broker->ctl('add_user', 'mes', 'secret');
		$broker->ctl('clear_password', 'mes');
		$broker->ctl('set_permissions', 'mes', '', '.*', '');
		server("DROP host, DROP port, ADD uri 'amqps://localhost:$tls_port',
			ADD cacertfile '$dir/ca.pem', DROP vhost");
	},
	qr/^tls /);
is(who(), 'mes EXTERNAL', 'the certificate is the login');
like(sql("SELECT finding FROM amqp_outbox.doctor('mes') WHERE check_name = 'login'"),
	qr/^by mechanism EXTERNAL, as the certificate says$/, 'so says the doctor');
refused('nobody of that name',
	sub { $broker->ctl('delete_user', 'mes'); server("SET heartbeat '23'"); },
	qr/ACCESS_REFUSED/,
	sub {
		$broker->ctl('add_user', 'mes', 'secret');
		$broker->ctl('set_permissions', 'mes', '', '.*', '');
	},
	qr/^login Have the broker .* know a user/);

#
# Tokens
#

# One that lives so many seconds, signed by the issuer.
sub make_token
{
	my ($seconds) = @_;
	my $json = JSON::PP->new->canonical;
	my %claims = (
		sub => 'line1',
		aud => ['rabbitmq'],
		scope => 'rabbitmq.write:*/* rabbitmq.read:*/* rabbitmq.configure:*/*',

		# whoever looks for the wrong "exp" finds one of these
		act => { exp => 1 },
		note => '\"exp":1');
	my $signature;

	$claims{exp} = time() + $seconds if defined $seconds;
	my $signed = join('.', map { encode_base64url($json->encode($_)) }
		  { alg => 'RS256', typ => 'JWT', kid => 'issuer' }, \%claims);

	IPC::Run::run([ 'openssl', 'dgst', '-sha256', '-sign', "$dir/issuer.key" ],
		'<', \$signed, '>', \$signature) or die 'openssl dgst failed';
	return $signed . '.' . encode_base64url($signature);
}

my $first = make_token(3600);

put('token', "$first\n");
accepted('a token', sub {
	mapping("DROP auth_mechanism, DROP certfile, DROP keyfile, ADD token_file '$dir/token'");
});
is(who(), 'line1 PLAIN', 'the token says who we are');
like(sql("SELECT finding FROM amqp_outbox.doctor('mes') WHERE check_name = 'login'"),
	qr/^by mechanism PLAIN, as the token says$/, 'so says the doctor');

put('token', make_token(-10));
refused('a token that has expired',
	sub { server("SET heartbeat '24'"); },
	qr/the token in file "\S+" expired at .*: \QWrite a new one into the file; and compare the clocks of this machine and of the one that made it.\E/,
	sub { put('token', $first); },
	qr/^login See to it that the file gets a new token/);
put('token', substr($first, 0, -8));
refused('a token that the broker does not accept',
	sub { server("SET heartbeat '25'"); },
	qr/ACCESS_REFUSED/, sub { put('token', $first); },
	qr/^login See the broker's log for what it finds wrong with the token/);

# a token that ends soon, and messages all the time
put('token', make_token(12));
server("SET heartbeat '26'");
wait_state($node, 'postgres', 'mes', 'connected');
create_sent($node, 'postgres');
my $since = status($node, 'postgres', 'mes', 'since');
my $errors = status($node, 'postgres', 'mes', 'last_error_at');
my $load = start_load($node, publish_sent('q', ':client_id', 5), clients => 2, rate => 20);
put('token', make_token(3600));
wait_for(
	$node,
	'postgres',
	"SELECT state = 'connected' AND since <> '$since'
		FROM amqp_outbox.server_status",
	'a connection with the new token');
is(status($node, 'postgres', 'mes', 'last_error_at'), $errors,
	'it was made before the old one ended');
ok(stop_load($load), 'no session noticed');
wait_settled($node, 'postgres');
check_account(committed($node, 'postgres'), $broker->received('q'), 'renewed');

# and one that ends while a message is on its way, which is waited for
my $proxy = AmqpOutboxPeer::Proxy->new($tls_port);

put('token', make_token(6));
server("SET uri 'amqps://localhost:" . $proxy->port . "'");
wait_for($node, 'postgres',
	"SELECT state = 'connected' AND host LIKE '%:" . $proxy->port . "'
		FROM amqp_outbox.server_status", 'a connection through the proxy');
$proxy->hold;
publish();
wait_for($node, 'postgres',
	'SELECT in_flight = 1 FROM amqp_outbox.server_status', 'a message on its way');
put('token', make_token(3600));
wait_state($node, 'postgres', 'mes', 'draining');
$proxy->forward;
arrives('renewed while it was on its way');
wait_state($node, 'postgres', 'mes', 'connected');
server("SET uri 'amqps://localhost:$tls_port'");

# nobody renews it: the status says so while there is time, and it goes on when
# somebody has
put('token', make_token(8));
server("SET heartbeat '27'");
wait_for($node, 'postgres',
	"SELECT last_error ~ 'the token in file \"\\S+\" expires at .*: Write a new one into the file before'
		FROM amqp_outbox.server_status", 'a warning');
accepted('a token in the last moment', sub { put('token', make_token(3600)); });
put('token', make_token(3));
server("SET heartbeat '28'");
wait_for($node, 'postgres',
	"SELECT last_error ~ 'the token in file \"\\S+\" expired at'
		FROM amqp_outbox.server_status", 'the end of a token');
refused('after the end of a token',
	sub { server("SET heartbeat '29'"); }, qr/the token in file "\S+" expired at/,
	sub { put('token', make_token(3600)); });

# of a token whose end is not known nobody says anything
put('token', make_token());
accepted('a token without an end', sub { server("SET heartbeat '30'"); });

my $tokens = substr($first, 40, 40);
is(scalar(log_lines($node, qr/\Q$tokens\E|guest|PRIVATE/)), 0, 'no secret in the log');
finish_node($node);
done_testing();

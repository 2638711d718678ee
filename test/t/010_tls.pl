# amqps: the broker's certificate is verified, by chain and by name, and
# nothing is delivered to a broker that has no right one.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxPeer;
use AmqpOutboxTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $dir = PostgreSQL::Test::Utils::tempdir();
my $port = PostgreSQL::Test::Cluster::get_free_port();

# A certificate authority.
sub make_ca
{
	my $name = shift;

	system_or_bail(
		'openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt',
		'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2',
		'-subj', "/CN=$name", '-keyout', "$dir/$name.key",
		'-out', "$dir/$name.pem");
	return;
}

# A server's certificate for these names, signed by it.
sub make_certificate
{
	my ($ca, $names) = @_;

	append_to_file("$dir/extensions", "subjectAltName = $names\n");
	system_or_bail(
		'openssl', 'req', '-newkey', 'ec', '-pkeyopt',
		'ec_paramgen_curve:prime256v1', '-nodes',
		'-subj', '/CN=broker', '-keyout', "$dir/server.key",
		'-out', "$dir/server.csr");
	system_or_bail(
		'openssl', 'x509', '-req', '-in', "$dir/server.csr",
		'-CA', "$dir/$ca.pem", '-CAkey', "$dir/$ca.key",
		'-CAcreateserial', '-days', '2',
		'-extfile', "$dir/extensions", '-out', "$dir/server.pem");
	return;
}

make_ca('ours');
make_ca('other');
make_certificate('ours', 'DNS:localhost, IP:127.0.0.1');

# 127.0.0.2 is this machine too, but not in the certificate
my $broker = AmqpOutboxTest::Broker->new('tls', conf => <<"END");
listeners.ssl.1 = 127.0.0.1:$port
listeners.ssl.2 = 127.0.0.2:$port
ssl_options.cacertfile = $dir/ours.pem
ssl_options.certfile = $dir/server.pem
ssl_options.keyfile = $dir/server.key
ssl_options.verify = verify_none
ssl_options.fail_if_no_peer_cert = false
END
# a name server that gives 127.0.0.1 for every name
my $name_server = AmqpOutboxPeer::NameServer->new;
my %environment = $name_server->environment;
my $node = do { local %ENV = (%ENV, %environment); new_node('main') };

$broker->declare_queue('q');
create_server(
	$node, 'postgres', 'mes', $broker,
	uri => "amqps://localhost:$port",
	cacertfile => "$dir/other.pem");
create_sent($node, 'postgres');
$node->safe_psql('postgres', publish_sent('q', 1, 10));

# A change that must end in an error like this, and deliver nothing.
sub refused
{
	my ($options, $pattern, $name) = @_;
	my $before = $node->safe_psql('postgres', 'SELECT clock_timestamp()');

	$node->safe_psql('postgres', "ALTER SERVER mes OPTIONS ($options)")
	  if $options;
	wait_true(
		$name,
		sub {
			$name_server->answer;
			return status($node, 'postgres', 'mes',
				"state = 'waiting'"
				  . ($options ? " AND last_error_at > '$before'" : '')) eq 't';
		});
	like(status($node, 'postgres', 'mes', 'last_error'), $pattern, $name);
	is($broker->count('q'), 0, "$name: nothing is delivered");
	return;
}

sub accepted
{
	my ($options, $host, $name) = @_;

	$node->safe_psql('postgres',
		"ALTER SERVER mes OPTIONS ($options);" . publish_sent('q', 1, 10));
	wait_for(
		$node,
		'postgres',
		"SELECT state = 'connected' AND host = '$host:$port' AND backlog = 0
			FROM amqp_outbox.server_status",
		$name);
	pass($name);
	return;
}

refused('', qr/could not verify the certificate of host "localhost"/,
	'unknown CA');
refused('DROP cacertfile',
	qr/could not verify the certificate of host "localhost"/,
	"not a CA of the system's");
refused("ADD cacertfile '$dir/ours.pem', SET uri 'amqps://127.0.0.2:$port'",
	qr/could not verify the certificate of host "127.0.0.2"/,
	'wrong address');
refused("SET uri 'amqps://broker.test:$port'",
	qr/could not verify the certificate of host "broker.test"/,
	'wrong name');
refused("SET cacertfile '$dir/missing.pem'",
	qr/could not open CA certificate file/, 'missing CA file');
refused("SET cacertfile '$dir/ours.pem', SET uri 'amqps://127.0.0.1:" . $broker->port . "'",
	qr/could not establish TLS with host "127.0.0.1"/,
	'a broker that speaks no TLS');

# the same text is logged once, and never a password
is(scalar(log_lines($node, qr/guest/)), 0, 'no password in the log');

accepted("SET cacertfile '$dir/ours.pem', SET uri 'amqps://localhost:$port'",
	'localhost', 'own CA and right name');
like($broker->ctl('list_connections', 'ssl', 'ssl_protocol'),
	qr/^true\s+tlsv1\.[23]$/m, 'the broker sees TLS');
accepted("SET uri 'amqps://127.0.0.1:$port'",
	'127.0.0.1', 'own CA and right address');
accepted("DROP uri, ADD host 'localhost', ADD port '$port', ADD tls 'true'",
	'localhost', 'by single options');
check_account(committed($node, 'postgres'),
	$broker->received('q'), 'through TLS');

# more than any buffer holds
$node->safe_psql('postgres',
	"SELECT amqp_publish('', 'q', repeat('x', 8000000)) FROM generate_series(1, 5)");
wait_settled($node, 'postgres');
is_deeply([ $broker->fields('q', 'size') ],
	[ map { [8000000] } 1 .. 5 ], 'large bodies through TLS');

finish_node($node);
done_testing();

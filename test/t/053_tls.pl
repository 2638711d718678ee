# TLS as a plant has it: versions, authorities, names and addresses, a client
# certificate with its key, and all of them exchanged while the worker runs.
# Whatever is wrong with one of them, the message waits, status and log say why,
# and it arrives when that is put right.
#
# One RabbitMQ with a listener for each kind of trouble, and a PostgreSQL that
# has TLS of its own.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxLogin;
use AmqpOutboxTest;
use File::Copy qw(copy);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use POSIX qw(strftime);
use Test::More;

my $dir = PostgreSQL::Test::Utils::tempdir();

#
# Certificates
#

append_to_file("$dir/ca.cnf", <<"END");
[ca]
default_ca = ours
[ours]
database = $dir/index.txt
new_certs_dir = $dir
rand_serial = yes
default_md = sha256
policy = any
unique_subject = no
[any]
commonName = supplied
END
append_to_file("$dir/index.txt", '');

# $name.pem and $name.key.  Parameters: ca; names, for subjectAltName; from and
# to, beginnings of years, or days, a life from now on.
sub make_certificate
{
	my ($name, %params) = @_;
	my $ca = $params{ca} // 'ours';
	my ($from, $to) =
	  map { "${_}0101000000Z" } $params{from} // 2020, $params{to} // 2090;

	$to = strftime('%Y%m%d%H%M%SZ', gmtime(time() + 86400 * $params{days}))
	  if $params{days};

	append_to_file("$dir/$name.ext",
		'subjectAltName = ' . ($params{names} // 'DNS:localhost') . "\n");
	openssl('req', '-newkey', 'ec', '-pkeyopt',
		'ec_paramgen_curve:prime256v1', '-nodes', '-subj', "/CN=$name",
		'-keyout', "$dir/$name.key", '-out', "$dir/$name.csr");
	openssl('ca', '-batch', '-notext', '-config', "$dir/ca.cnf",
		'-cert', "$dir/$ca.pem", '-keyfile', "$dir/$ca.key",
		'-in', "$dir/$name.csr", '-extfile', "$dir/$name.ext",
		'-startdate', $from, '-enddate', $to,
		'-out', "$dir/$name.pem");
	chmod(0600, "$dir/$name.key") or die "chmod: $!";
	return;
}

# As an administrator exchanges a file: at once.
sub put
{
	my ($from, $to, $mode) = @_;

	copy("$dir/$from", "$dir/$to.new") or die "copy: $!";
	chmod($mode // 0600, "$dir/$to.new") or die "chmod: $!";
	rename("$dir/$to.new", "$dir/$to") or die "rename: $!";
	return;
}

make_ca($dir, $_) foreach 'ours', 'other', 'clients';
make_certificate('good', names => 'DNS:localhost, IP:127.0.0.1');
make_certificate('name');
make_certificate('address', names => 'IP:127.0.0.1');
make_certificate('elsewhere', names => 'DNS:broker.example, IP:127.0.0.9');
make_certificate('expired', to => 2021);
make_certificate('early', from => 2080);
make_certificate('client', ca => 'clients');
make_certificate('stranger', ca => 'other');
make_certificate('soon', ca => 'clients', days => 10.5);
make_certificate('late', ca => 'clients', to => 2021);
openssl('ec', '-aes256', '-passout', 'pass:Sesame8', '-in', "$dir/client.key",
	'-out', "$dir/encrypted.key");
chmod(0600, "$dir/encrypted.key");
mkdir("$dir/empty");
mkdir("$dir/hashed");
put('ours.pem', 'hashed/ours.pem', 0644);
openssl('rehash', "$dir/hashed");

#
# The broker and its listeners
#

my $broker = AmqpOutboxTest::Broker->new('tls');
my %port;

# One more listener with Erlang's options of its own.
sub listen_tls
{
	my ($name, $certificate, $more) = @_;
	my $port = $port{$name} = PostgreSQL::Test::Cluster::get_free_port();
	my $options = "[{certfile, \"$dir/$certificate.pem\"},
		{keyfile, \"$dir/$certificate.key\"}" . ($more ? ", $more" : '') . ']';
	my $listener = "{\"127.0.0.1\", $port}, $options, 1";

	$broker->ctl('eval', "
		rabbit_networking:ensure_ssl(),
		case erlang:function_exported(rabbit_networking, start_ssl_listener, 3) of
			true -> rabbit_networking:start_ssl_listener($listener);
			false -> rabbit_networking:start_ssl_listener($listener, 1)
		end.");
	return;
}

my $demand = "{cacertfile, \"$dir/clients.pem\"}, {verify, verify_peer},
	{fail_if_no_peer_cert, true}";

listen_tls('good', 'good');
listen_tls('1.2', 'good', "{versions, ['tlsv1.2']}");
listen_tls('1.3', 'good', "{versions, ['tlsv1.3']}");
listen_tls($_, $_) foreach qw(name address elsewhere expired early);
listen_tls('sni', 'elsewhere', "{sni_hosts, [{\"localhost\",
	[{certfile, \"$dir/good.pem\"}, {keyfile, \"$dir/good.key\"}]}]}");
listen_tls('demanding 1.2', 'good', "$demand, {versions, ['tlsv1.2']}");
listen_tls('demanding 1.3', 'good', "$demand, {versions, ['tlsv1.3']}");

#
# The database
#

# the certificate of its own is another one, of another authority
my $node = new_node('main', conf => <<"END");
listen_addresses = '127.0.0.1'
ssl = on
ssl_cert_file = '$dir/stranger.pem'
ssl_key_file = '$dir/stranger.key'
END

put('ours.pem', 'ca.pem', 0644);
$broker->declare_queue('q');
create_server(
	$node, 'postgres', 'mes', $broker,
	uri => "amqps://localhost:$port{good}",
	cacertfile => "$dir/ca.pem");
try_logins($node, $broker);

# The server at another listener, by name unless it is said otherwise.
sub at
{
	my ($listener, $host) = @_;

	$host //= 'localhost';
	return sub { server("SET uri 'amqps://$host:$port{$listener}'"); };
}

my $back = at('good');
my $unverified = qr/could not verify the certificate of host "\S+", port \d+/;

#
# Versions
#

# That of the worker's connection, as the broker has it.
sub version
{
	my ($version) = $broker->ctl('list_connections', 'ssl_protocol') =~ /^(tlsv\S+)/m;

	return $version;
}

accepted('TLS 1.2', at('1.2'));
is(version(), 'tlsv1.2', 'TLS 1.2 is what is spoken');
accepted('TLS 1.3', at('1.3'));
is(version(), 'tlsv1.3', 'TLS 1.3 is what is spoken');
accepted('both', at('good'));
is(version(), 'tlsv1.3', 'the newer one of both');
refused(
	'an old version',
	sub { server("ADD tls_min_version '1.3', SET uri 'amqps://localhost:$port{'1.2'}'"); },
	qr/could not establish TLS.*the broker speaks no version of TLS that is allowed/,
	sub { server('DROP tls_min_version'); },
	qr/newer version of TLS/);

#
# What the certificate is for
#

accepted('a name', at('name'));
refused('a certificate with a name, at the address',
	at('name', '127.0.0.1'), qr/$unverified.*IP address mismatch/, $back, qr/subjectAltName/);
accepted('an address', at('address', '127.0.0.1'));
refused('a certificate with an address, at the name',
	at('address'), qr/$unverified.*Hostname mismatch/i, $back);
refused('wrong host', at('elsewhere'), qr/$unverified.*mismatch/i, $back);
refused('wrong address', at('elsewhere', '127.0.0.1'), qr/$unverified.*mismatch/, $back);
accepted('the broker is told the name', at('sni'));
refused('an address is no name to tell',
	at('sni', '127.0.0.1'), qr/$unverified.*mismatch/, $back);
accepted('another name than the host',
	sub {
		server("ADD server_name_indication 'broker.example',
			SET uri 'amqps://127.0.0.1:$port{elsewhere}'");
	});
refused('another name than the certificate',
	$back, qr/$unverified.*mismatch/i, sub { server('DROP server_name_indication'); });

#
# Until when, and by whom
#

refused('expired', at('expired'), qr/$unverified.*expired/, $back, qr/Renew the certificate/);
refused('not yet valid', at('early'), qr/$unverified.*not yet valid/, $back, qr/clocks/);
foreach my $name ('unknown authority', 'the same mistake again')
{
	refused($name,
		sub { server("SET cacertfile '$dir/other.pem'"); },
		qr/$unverified/, sub { server("SET cacertfile '$dir/ca.pem'"); },
		qr/cacertfile/);
}

# The broker closes the connection.
sub lose_connection
{
	$broker->ctl('close_all_connections', 'test');
	return;
}

# A new one for another reason, which is quicker.
my $heartbeat = 30;

sub connect_anew
{
	my $action = $heartbeat == 30 ? 'ADD' : 'SET';

	$heartbeat++;
	return server("$action heartbeat '$heartbeat'");
}

refused('trust is withdrawn while the worker runs',
	sub { put('other.pem', 'ca.pem', 0644); lose_connection(); },
	$unverified, sub { put('ours.pem', 'ca.pem', 0644); });
refused("not an authority of the system's",
	sub { server('DROP cacertfile'); },
	$unverified, sub { server("ADD cacertdir '$dir/hashed'"); });
accepted('a directory of authorities', \&connect_anew);
refused('a directory that is not hashed',
	sub { server("SET cacertdir '$dir/empty'"); },
	qr/CA certificate directory "\S+" holds no hashed certificates: \QOpenSSL finds certificates by the hash of their names; run "openssl rehash" on it.\E/,
	sub { server("SET cacertdir '$dir/hashed'"); }, qr/cacertdir/);
refused('a directory that is missing',
	sub { server("SET cacertdir '$dir/missing'"); },
	qr/could not open CA certificate directory/,
	sub { server("DROP cacertdir, ADD cacertfile '$dir/ca.pem'"); });
refused('a file without certificates',
	sub { server("SET cacertfile '$dir/good.key'"); },
	qr/could not load CA certificates from "\S+good.key"/,
	sub { server("SET cacertfile '$dir/ca.pem'"); });
refused('no file at all',
	sub { server("SET cacertfile '$dir/empty'"); },
	qr/CA certificate file "\S+" is not a regular file/,
	sub { server("SET cacertfile '$dir/ca.pem'"); });

#
# No verification
#

accepted('verify none',
	sub { server("ADD verify 'none', SET uri 'amqps://localhost:$port{elsewhere}'"); });
is(sql("SELECT level || ' ' || detail FROM amqp_outbox.health WHERE rule = 'protection'"),
	'warning the certificate of the broker is not verified (option verify)',
	'verify none: health warns');
like(
	sql("SELECT result || ' ' || finding || ' ' || what_to_do
		FROM amqp_outbox.doctor('mes') WHERE check_name = 'tls'"),
	qr/^warning TLSv1\.3; the broker's certificate is not verified: .* cacertfile/,
	'verify none: the doctor warns');
refused('verify again',
	sub { server('DROP verify'); }, qr/$unverified.*mismatch/i, $back);

#
# Our own certificate
#

put('client.pem', 'mes.pem', 0644);
put('client.key', 'mes.key');

# With TLS 1.3 the broker's alert comes after the handshake, and what we have
# said by then may reset the connection before it is read.
foreach my $version ('1.2', '1.3')
{
	refused("a missing client certificate, TLS $version",
		at("demanding $version"),
		$version eq '1.2' ? qr/the broker may demand a client certificate/ : qr/demand/,
		sub { mapping("ADD certfile '$dir/mes.pem', ADD keyfile '$dir/mes.key'"); },
		qr/certfile and keyfile/);
	refused("a client certificate of nobody's, TLS $version",
		sub {
			put('stranger.pem', 'mes.pem', 0644);
			put('stranger.key', 'mes.key');
			connect_anew();
		},
		$version eq '1.2' ? qr/the broker does not accept the client certificate/ :
		  qr/does not accept the client certificate/,
		sub { put('client.pem', 'mes.pem', 0644); put('client.key', 'mes.key'); },
		qr/certificate that the broker accepts|accepts the client certificate/);
	mapping('DROP certfile, DROP keyfile') if $version eq '1.2';
}
refused('a client certificate that has expired',
	sub { put('late.pem', 'mes.pem', 0644); put('late.key', 'mes.key'); connect_anew(); },
	qr/does not accept the client certificate/,
	sub { put('client.pem', 'mes.pem', 0644); put('client.key', 'mes.key'); });
refused('half of it is exchanged',
	sub { put('stranger.key', 'mes.key'); connect_anew(); },
	qr/key file "\S+mes.key" is not for certificate file "\S+mes.pem"/,
	sub { put('client.key', 'mes.key'); }, qr/certfile and keyfile/);
refused('a key that others can read',
	sub { chmod(0640, "$dir/mes.key"); connect_anew(); },
	qr/key file "\S+" has group or world access: \QFile must have permissions u=rw (0600) or less if owned by the database user, or permissions u=rw,g=r (0640) or less if owned by root.\E/,
	sub { chmod(0600, "$dir/mes.key"); });
refused('a key that is missing',
	sub { unlink("$dir/mes.key"); connect_anew(); },
	qr/could not open key file "\S+": No such file/,
	sub { put('client.key', 'mes.key'); });
refused('a certificate that is none',
	sub { put('client.key', 'mes.pem'); connect_anew(); },
	qr/could not load certificate file "\S+mes.pem"/,
	sub { put('client.pem', 'mes.pem', 0644); });
refused('an encrypted key without a passphrase',
	sub { put('encrypted.key', 'mes.key'); connect_anew(); },
	qr/could not load key file "\S+": \QIt is encrypted: set keyfile_password or keyfile_password_file.\E/,
	sub { mapping("ADD keyfile_password 'Sesame8'"); });
refused('a wrong passphrase',
	sub { mapping("SET keyfile_password 'Sesame9'"); },
	qr/could not load key file "\S+": \QIt is encrypted, and not with the passphrase that was given.\E/,
	sub { mapping("SET keyfile_password 'Sesame8'"); });
append_to_file("$dir/passphrase", "Sesame8\n");
chmod(0644, "$dir/passphrase");
refused('a passphrase that others can read',
	sub { mapping("DROP keyfile_password, ADD keyfile_password_file '$dir/passphrase'"); },
	qr/key password file "\S+" has group or world access/,
	sub { chmod(0600, "$dir/passphrase"); });
like(
	sql("SELECT string_agg(check_name || ' ' || result, ' ' ORDER BY check_name)
		FROM amqp_outbox.doctor('mes') WHERE check_name IN ('tls', 'login')"),
	qr/^login ok tls ok$/, 'the doctor has certificate, key and passphrase as well');

put('soon.pem', 'mes.pem', 0644);
put('soon.key', 'mes.key');
like(
	sql("SELECT result || ' ' || finding FROM amqp_outbox.doctor('mes')
		WHERE check_name = 'tls'"),
	qr/^warning TLSv1\.3; .*"\/CN=soon" is valid for 10 more days/,
	'the doctor warns of a certificate of ours that ends soon');

#
# Beside the server's own TLS
#

my $own = 'host=127.0.0.1 port=' . $node->port . ' dbname=postgres sslmode=require';

sub own_tls { return $node->safe_psql('postgres', shift, connstr => $own); }

put('client.pem', 'mes.pem', 0644);
put('client.key', 'mes.key');
is(own_tls('SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()'),
	't', 'a session over TLS');
my $body = next_body();

is( own_tls("SELECT amqp_publish('', 'q', '$body') IS NOT NULL;
		SELECT max(result) FROM amqp_outbox.doctor('mes') WHERE check_name = 'tls'"),
	"t\nok", 'publishes, and asks the doctor');
arrives('over TLS on both sides');
$node->reload;
accepted('after a reload', \&connect_anew);

is(scalar(log_lines($node, qr/Sesame|guest|BEGIN.*PRIVATE/)), 0, 'no secret in the log');
finish_node($node);
done_testing();

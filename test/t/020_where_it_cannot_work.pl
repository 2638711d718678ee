# Where amqp_publish() cannot work it says why: the library is not preloaded,
# the server is a standby.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use PostgreSQL::Test::Cluster;
use Test::More;

my $publish = "SELECT amqp_publish('', 'q', 'x')";

my $plain = PostgreSQL::Test::Cluster->new('plain');
$plain->init;
$plain->start;
$plain->safe_psql('postgres', <<'END');
CREATE EXTENSION amqp_outbox;
CREATE SERVER mes FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://127.0.0.1:1');
END
my ($result, $output, $errors) = $plain->psql('postgres', $publish);
like($errors, qr/amqp_outbox must be loaded when the server starts/,
	'not preloaded: refused');
like(
	$errors,
	qr/HINT:  \QSet shared_preload_libraries = 'amqp_outbox' in postgresql.conf and restart the server.\E/,
	'not preloaded: with the setting to make');
$plain->stop;

my $primary = new_primary('primary');
my $standby = new_standby($primary, 'standby');
$primary->safe_psql('postgres', <<'END');
CREATE EXTENSION amqp_outbox;
CREATE SERVER mes FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://127.0.0.1:1');
END
$primary->wait_for_catchup('standby');
($result, $output, $errors) = $standby->psql('postgres', $publish);
like($errors, qr/cannot execute amqp_publish\(\) in a read-only transaction/,
	'standby: refused');
($result, $output, $errors) = $standby->psql('postgres', "SELECT amqp_wait_for_confirm('x')");
like(
	$errors,
	qr/\QERROR:  amqp_wait_for_confirm() cannot be used during recovery\E
		\s+\QHINT:  Wait on the primary, which publishes.\E/x,
	'standby: no waiting');
$standby->stop;
finish_node($primary);
done_testing();

# A standby that did not hear of it when its primary's worker began to send, as
# happens without synchronous replication, does not believe the last stop in
# good order after its promotion: what comes twice is marked.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use PostgreSQL::Test::Cluster;
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('lagging');
my $primary = new_node('primary', conf => <<'END');
wal_level = replica
max_wal_senders = 10
hot_standby = on
END

create_server($primary, 'postgres', 'mes', $broker);
create_sent($primary, 'postgres');
$broker->declare_queue('q');
$primary->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'backup', has_streaming => 1);
$standby->start;

# a worker that ends in good order, after messages of its own
$primary->safe_psql('postgres', publish_sent('q', 1, 10));
wait_settled($primary, 'postgres');
$primary->append_conf('postgresql.conf', 'amqp_outbox.enabled = off');
$primary->reload;
wait_state($primary, 'postgres', 'mes', 'stopped');

# messages that the standby has, and then nothing more
$primary->safe_psql('postgres', publish_sent('q', 2, 10));
$primary->wait_for_catchup('standby');
$standby->stop;
$primary->append_conf('postgresql.conf', 'amqp_outbox.enabled = on');
$primary->reload;
wait_settled($primary, 'postgres');
my @received = $broker->received_marked('q')->@*;
is(scalar(@received), 20, 'the primary has sent them');

$primary->stop('immediate');
$standby->start;
$standby->promote;
wait_for($standby, 'postgres', 'SELECT NOT pg_is_in_recovery()');
wait_settled($standby, 'postgres');
push @received, $broker->received_marked('q')->@*;
check_account(committed($standby, 'postgres'), \@received, 'promoted',
	duplicates => 'marked');

# once, and not for ever
$standby->safe_psql('postgres', 'TRUNCATE sent; ' . publish_sent('q', 3, 10));
wait_settled($standby, 'postgres');
$standby->restart;
$standby->safe_psql('postgres', publish_sent('q', 4, 10));
wait_settled($standby, 'postgres');
@received = $broker->received_marked('q')->@*;
check_account(committed($standby, 'postgres'), \@received, 'after the promotion');
is(scalar(grep { $_->[2] } @received), 0,
	'after the promotion: later messages are not marked');

finish_node($standby, errors => qr/primary server|WAL stream|walreceiver/);
done_testing();

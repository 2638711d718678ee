# What a primary has sent after a stop in good order is in doubt on its standby:
# a worker's first message waits until a synchronous standby knows of it, so
# that nothing comes twice without the mark after a promotion.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('failover');
my $primary = new_primary('primary');

create_server($primary, 'postgres', 'mes', $broker);
create_sent($primary, 'postgres');
$broker->declare_queue('q');

my $standby = new_standby($primary, 'standby');
$primary->append_conf('postgresql.conf', "synchronous_standby_names = 'standby'");
$primary->reload;

# a worker that ends in good order, after messages of its own
$primary->safe_psql('postgres', publish_sent('q', 1, 10));
wait_settled($primary, 'postgres');
my @received = $broker->received_marked('q')->@*;
$primary->append_conf('postgresql.conf', 'amqp_outbox.enabled = off');
$primary->reload;
wait_state($primary, 'postgres', 'mes', 'stopped');

# messages that the standby has, and then nothing more
$primary->safe_psql('postgres', publish_sent('q', 2, 10));
$primary->wait_for_catchup('standby');
$standby->stop;
$primary->append_conf('postgresql.conf', 'amqp_outbox.enabled = on');
$primary->reload;
wait_state($primary, 'postgres', 'mes', 'connected');
# here time itself is the test
$primary->safe_psql('postgres', 'SELECT pg_sleep(0.7)');
is($broker->count('q'), 0, 'the standby does not know that messages are sent: they wait');

$primary->stop('immediate');
$standby->start;
promote($standby);
wait_settled($standby, 'postgres');
push @received, $broker->received_marked('q')->@*;
check_account(committed($standby, 'postgres'), \@received, 'promoted',
	duplicates => 'marked');

finish_node($standby);
done_testing();

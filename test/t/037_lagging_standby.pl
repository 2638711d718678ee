# A standby that did not hear of it when its primary's worker began to send, as
# happens without synchronous replication, does not believe the last stop in
# good order after its promotion: what comes twice is marked.  Nor does it take
# for granted that nothing was sent to a server because no receipt says so.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('lagging');
my $primary =
  new_primary('primary', conf => "amqp_outbox.default_server = 'mes'");

create_server($primary, 'postgres', 'mes', $broker);
create_server($primary, 'postgres', 'erp', $broker);
create_sent($primary, 'postgres');
$broker->declare_queue('q');

my $standby = new_standby($primary, 'standby');

# a worker that ends in good order, after messages of its own
$primary->safe_psql('postgres', publish_sent('q', 1, 10));
wait_settled($primary, 'postgres');
$primary->append_conf('postgresql.conf', 'amqp_outbox.enabled = off');
$primary->reload;
wait_state($primary, 'postgres', 'mes', 'stopped');

# Messages that the standby has, and then nothing more; those to the other server
# are its first ones.
my $to_erp = "SELECT publish_sent('', 'q', %d, server => 'erp')
	FROM generate_series(1, 10)";
$primary->safe_psql('postgres', publish_sent('q', 2, 10));
$primary->safe_psql('postgres', sprintf($to_erp, 12));
$primary->wait_for_catchup('standby');
$standby->stop;
$primary->append_conf('postgresql.conf', 'amqp_outbox.enabled = on');
$primary->reload;
wait_settled($primary, 'postgres');
my @received = $broker->received_marked('q')->@*;
is(scalar(@received), 30, 'the primary has sent them');

$primary->stop('immediate');
$standby->start;
promote($standby);
wait_settled($standby, 'postgres');
push @received, $broker->received_marked('q')->@*;
check_account(committed($standby, 'postgres'), \@received, 'promoted',
	duplicates => 'marked');

# once, and not for ever
$standby->safe_psql('postgres', 'TRUNCATE sent; ' . publish_sent('q', 3, 10));
$standby->safe_psql('postgres', sprintf($to_erp, 13));
wait_settled($standby, 'postgres');
$standby->restart;
$standby->safe_psql('postgres', publish_sent('q', 4, 10));
wait_settled($standby, 'postgres');
@received = $broker->received_marked('q')->@*;
check_account(committed($standby, 'postgres'), \@received, 'after the promotion');
is(scalar(grep { $_->[2] } @received), 0,
	'after the promotion: later messages are not marked');

finish_node($standby);
done_testing();

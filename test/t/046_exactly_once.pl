# An effect that happens exactly once, between two databases: one publishes by
# the outbox, the other consumes with the inbox, by both programs of examples/.
# Duplicates are forced at both ends: what was in flight when the worker was
# killed, and when its confirms were lost, is sent again; what the consumers had
# done when they were killed comes again.  Each order that was committed is
# booked once, whatever the faults, and none that was rolled back.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxPeer;
use AmqpOutboxTest;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

my $PREFETCH = 50;    # of the consumers
my $examples = "$AmqpOutboxTest::ROOT/examples";
my $dir = PostgreSQL::Test::Utils::tempdir();
my $broker = AmqpOutboxTest::Broker->new('orders');
my $line = AmqpOutboxPeer::Proxy->new($broker->port);
my $mes = new_node('mes', conf => 'restart_after_crash = on');
my $erp = new_node('erp');

#
# The publishing database.  Every fifth order is rolled back.
#

create_server($mes, 'postgres', 'broker', $broker,
	host => '127.0.0.1',
	port => $line->port);
$mes->safe_psql('postgres', <<'END');
CREATE TABLE placed (order_id bigint PRIMARY KEY, quantity numeric NOT NULL);
CREATE PROCEDURE place(first bigint, last bigint) LANGUAGE plpgsql AS $$
DECLARE
	message jsonb;
BEGIN
	FOR number IN first .. last LOOP
		INSERT INTO placed VALUES (number, number % 7 + 0.5);
		message := jsonb_build_object('order_id', number, 'quantity', number % 7 + 0.5);
		IF number % 2 = 0 THEN
			PERFORM amqp_publish('orders', '', message);
		ELSE
			INSERT INTO amqp_outbox.message (message_id, exchange, routing_key, body_json)
				VALUES ('order ' || number, 'orders', '', message);
		END IF;
		IF number % 5 = 0 THEN
			ROLLBACK;
		ELSE
			COMMIT;
		END IF;
	END LOOP;
END $$;
SELECT amqp_outbox.declare_exchange('broker', 'orders', type => 'fanout');
SELECT amqp_outbox.declare_exchange('broker', 'dead', type => 'fanout');
SELECT amqp_outbox.declare_queue('broker', 'dead', type => 'classic');
SELECT amqp_outbox.bind_queue('broker', 'dead', 'dead');
SELECT amqp_outbox.declare_queue('broker', 'witness');
SELECT amqp_outbox.bind_queue('broker', 'witness', 'orders');
END

my $number = 0;

# Place so many orders; returns how many of them are committed.
sub place
{
	my $count = shift;
	my $before = placed();
	my ($first, $last) = ($number + 1, $number + $count);

	$number = $last;
	$mes->safe_psql('postgres', "CALL place($first, $last)");
	return placed() - $before;
}

sub placed
{
	return $mes->safe_psql('postgres', 'SELECT count(*) FROM placed');
}

#
# The consuming databases.  Every tenth transaction is the victim of another one.
#

my %programs = (
	python => [ '/usr/bin/python3', '-B', "$examples/consumer.py" ],
	c => ["$dir/consumer"]);
my @names = sort keys %programs;
my %consumers;

chomp(my $includedir = `pg_config --includedir`);
system('cc', '-O2', '-Wall', '-Wextra', "-I$includedir", '-o', "$dir/consumer",
	"$examples/consumer.c", '-lrabbitmq', '-lpq') == 0
  or die 'cannot build the consumer';

$erp->safe_psql('postgres', 'CREATE ROLE order_consumer LOGIN');
foreach my $name (@names)
{
	$erp->safe_psql('postgres', "CREATE DATABASE $name");
	$erp->safe_psql($name, <<'END');
CREATE EXTENSION amqp_outbox;
CREATE TABLE booking (order_id bigint NOT NULL, quantity numeric NOT NULL);
CREATE SEQUENCE attempt;
CREATE FUNCTION fail() RETURNS trigger SECURITY DEFINER LANGUAGE plpgsql AS $$
BEGIN
	IF nextval('attempt') % 10 = 0 THEN
		RAISE serialization_failure;
	END IF;
	RETURN NEW;
END $$;
CREATE TRIGGER fail BEFORE INSERT ON booking FOR EACH ROW EXECUTE FUNCTION fail();
GRANT INSERT ON booking TO order_consumer;
GRANT EXECUTE ON FUNCTION amqp_inbox_accept TO order_consumer;
END
	$mes->safe_psql('postgres', <<"END");
SELECT amqp_outbox.declare_queue('broker', 'orders.$name', type => 'classic',
	arguments => '{"x-dead-letter-exchange": "dead"}');
SELECT amqp_outbox.bind_queue('broker', 'orders.$name', 'orders');
END
	$consumers{$name} = {
		line => AmqpOutboxPeer::Proxy->new($broker->port),
		log => "$dir/$name.log"
	};
}
wait_for($mes, 'postgres',
	"SELECT bool_and(state = 'asserted') FROM amqp_outbox.topology",
	'everything declared');

sub start_consumers
{
	foreach my $name (@names)
	{
		my $consumer = $consumers{$name};

		local %ENV = (
			%ENV,
			AMQP_URL => 'amqp://guest:guest@127.0.0.1:' . $consumer->{line}->port,
			PGHOST => $erp->host,
			PGPORT => $erp->port,
			PGDATABASE => $name,
			PGUSER => 'order_consumer');
		$consumer->{run} =
		  IPC::Run::start([ @{ $programs{$name} }, "orders.$name", $name ],
			'<', \undef, '>>', $consumer->{log}, '2>&1');
	}
	return;
}

sub kill_consumers
{
	foreach my $name (@names)
	{
		$consumers{$name}{run}->signal('KILL');
		$consumers{$name}{run}->finish;
	}
	return;
}

sub stop_consumers
{
	$consumers{$_}{run}->signal('TERM') foreach @names;
	foreach my $name (@names)
	{
		ok($consumers{$name}{run}->finish, "$name: a clean stop");
	}
	return;
}

END
{
	my $exit_code = $?;

	foreach my $run (grep { defined } map { $_->{run} } values %consumers)
	{
		eval { $run->kill_kill(grace => 0) } if eval { $run->pumpable };
	}
	if ($exit_code)
	{
		note "$_->{log}:\n" . slurp_file($_->{log})
		  foreach grep { -e $_->{log} } values %consumers;
	}
	$? = $exit_code;
}

# How many messages a consumer took whose work was done already.
sub duplicates
{
	my $name = shift;

	return -e $consumers{$name}{log}
	  ? scalar(grep { /is a duplicate$/ } split(/\n/, slurp_file($consumers{$name}{log})))
	  : 0;
}

sub booked
{
	my $name = shift;

	return $erp->safe_psql($name, 'SELECT count(*) FROM booking');
}

# Wait until nothing is on its way, neither in the outbox nor at the broker.
sub wait_done
{
	wait_settled($mes, 'postgres');
	wait_true(
		'the consumers have acknowledged everything',
		sub {
			$broker->ctl('-q', 'list_queues', 'name', 'messages') !~
			  /^orders\.\w+\t[1-9]/m;
		});
	return;
}

# The orders, with how often each was booked, and for how much.
sub check_booked
{
	my $what = shift;
	my $placed = $mes->safe_psql('postgres',
		'SELECT order_id, 1, quantity FROM placed ORDER BY order_id');

	wait_done();
	foreach my $name (@names)
	{
		my $booked = $erp->safe_psql($name,
			'SELECT order_id, count(*), sum(quantity) FROM booking
				GROUP BY order_id ORDER BY order_id');

		ok($booked eq $placed,
			"$name: each of " . placed() . " orders booked once: $what");
	}
	return;
}

#
# The worker is killed with SIGKILL, and all its messages are in flight
#

start_consumers();
wait_state($mes, 'postgres', 'broker', 'connected');
$line->swallow;
my $in_flight = place(500);
wait_for($mes, 'postgres',
	"SELECT in_flight = $in_flight FROM amqp_outbox.server_status", 'all in flight');
wait_true('the broker has them all', sub { $broker->count('witness') == $in_flight });
my $pid = worker_pid($mes, 'postgres', 'broker');
kill('KILL', $pid);
wait_for($mes, 'postgres',
	"SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $pid)", 'its end');
$line->forward;
check_booked('the worker is killed');
cmp_ok($broker->count('witness'), '>=', 2 * $in_flight, 'all messages were sent twice');
foreach my $name (@names)
{
	cmp_ok(duplicates($name), '>=', $in_flight, "$name: and came twice");
	my $log = slurp_file($consumers{$name}{log});
	like($log, qr/is tried again/, "$name: victims of others are tried again");
	unlike($log, qr/starting over/, "$name: on the same connections");
}

#
# The confirms are lost, and then the connection
#

my %before = map { $_ => duplicates($_) } @names;

$line->swallow;
$in_flight = place(500);
wait_for($mes, 'postgres',
	"SELECT in_flight = $in_flight FROM amqp_outbox.server_status", 'all in flight');
$line->cut_down(1);
place(1);    # its confirm is where it is cut
check_booked('confirms are lost');
foreach my $name (@names)
{
	cmp_ok(duplicates($name), '>=', $before{$name} + $in_flight,
		"$name: the messages came twice");
}

#
# The consumers are killed between COMMIT and basic.ack
#

%before = map { $_ => duplicates($_) } @names;
my $booked = placed();
$consumers{$_}{line}->hold foreach @names;
my $sent = place(100);
foreach my $name (@names)
{
	wait_true("$name: as many done as the broker gives",
		sub { booked($name) >= $booked + $PREFETCH });
}
kill_consumers();
$consumers{$_}{line}->cut_up(1) foreach @names;
foreach my $name (@names)
{
	wait_true("$name: the broker has them all back",
		sub { $broker->count("orders.$name") == $sent });
}
start_consumers();
check_booked('killed after the commit');
foreach my $name (@names)
{
	is(duplicates($name), $before{$name} + $PREFETCH,
		"$name: what was not acknowledged came again");
}

#
# The consumers are killed in the middle of the work: that loses nothing
#

my %lockers = map { $_ => $erp->background_psql($_) } @names;
$lockers{$_}->query_safe('BEGIN; LOCK TABLE booking IN EXCLUSIVE MODE') foreach @names;
$sent = place(10);
foreach my $name (@names)
{
	wait_for($erp, $name,
		"SELECT count(*) = 1 FROM pg_stat_activity
			WHERE application_name = '$name' AND wait_event_type = 'Lock'",
		"$name: in the middle of the work");
}
kill_consumers();
foreach my $name (@names)
{
	wait_true("$name: the broker has them all back",
		sub { $broker->count("orders.$name") == $sent });
}
start_consumers();
$lockers{$_}->quit foreach @names;
check_booked('killed before the commit');

#
# The database goes away, and the broker
#

place(200);
$erp->stop('immediate');
place(200);
$erp->start;
check_booked('the database crashes');

place(200);
$broker->ctl('close_all_connections', 'test');
place(200);
check_booked('the broker closes the connections');

#
# Messages whose work cannot succeed, and one that nobody can tell from another
#

$mes->safe_psql('postgres', <<'END');
SELECT amqp_publish('orders', '', 'nonsense'::text, message_id => 'no json');
SELECT amqp_publish('orders', '', '[1]'::jsonb, message_id => 'no object');
SELECT amqp_publish('orders', '', '{"order_id": "x", "quantity": 1}'::jsonb, message_id => 'no number');
SELECT amqp_publish('orders', '', '{"order_id": 1}'::jsonb, message_id => 'no quantity');
SELECT amqp_publish('orders', '', '\x7b7d00'::bytea, message_id => 'a zero byte');
SELECT amqp_publish('orders', '', '\xff'::bytea, message_id => 'no utf8');
SELECT amqp_publish('orders', '', ''::text, message_id => 'empty');
END
wait_settled($mes, 'postgres');
system('/usr/bin/python3', '-c', <<'END', $broker->port) == 0 or die 'cannot publish';
import pika, sys
port = int(sys.argv[1])
connection = pika.BlockingConnection(pika.ConnectionParameters('127.0.0.1', port))
channel = connection.channel()
channel.confirm_delivery()
for message_id in None, '':
    channel.basic_publish('orders', '', b'{"order_id": 1, "quantity": 1}',
                          pika.BasicProperties(message_id=message_id))
connection.close()
END
place(10);
check_booked('besides bad messages');
wait_true('the dead letters', sub { $broker->count('dead') >= 9 * @names });
is_deeply(
	[ sort map { $_->[0] } $broker->fields('dead', 'message_id', 'exchange') ],
	[
		sort map { ($_) x @names } 'no json', 'no object', 'no number',
		'no quantity', 'a zero byte', 'no utf8', 'empty', '', ''
	],
	'bad messages are dead letters, once, and nothing else is');

#
# A stop
#

%before = map { $_ => duplicates($_) } @names;
$booked = placed();
place(1000);
foreach my $name (@names)
{
	wait_true("$name: at work", sub { booked($name) > $booked });
}
stop_consumers();
start_consumers();
check_booked('a stop');
is(duplicates($_), $before{$_}, "$_: a clean stop repeats nothing") foreach @names;
stop_consumers();

# and none of that was in vain
foreach my $name (@names)
{
	my ($effects, $duplicates) = (booked($name), duplicates($name));
	my $received = $effects + $duplicates;

	is($broker->count("orders.$name"), 0, "$name: nothing is left");
	cmp_ok($received, '>', $effects,
		"$name: $received messages were received, and had $effects effects");
}
cmp_ok($broker->count('witness'), '>', placed(), 'the broker got more than were published');

finish_node($mes, killed => 1);
finish_node($erp);
done_testing();

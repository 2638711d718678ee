# What amqp_publish_row() publishes arrives: CloudEvents with their headers, all
# rows of a statement in their order, text of a database that is not in UTF-8;
# and the examples of docs/triggers.md are those that the SQL test runs.

use strict;
use warnings FATAL => 'all';
use utf8;

use AmqpOutboxTest;
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('publish_row');
my $node = new_node('main', conf => "timezone = 'UTC'");
my $json = JSON::PP->new->utf8->canonical;

create_server($node, 'postgres', 'mes', $broker);
$broker->declare_exchange('e', 'topic');
$broker->declare_queue('q');
$broker->bind_queue('q', 'e', '#');

# Make a trigger with these options, run the statement, and take what arrives.
sub sent
{
	my ($options, $statement, $database) = @_;

	$database //= 'postgres';
	utf8::encode(my $sql = <<"END");
DROP TRIGGER IF EXISTS t ON orders;
CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON orders FOR EACH ROW
	EXECUTE FUNCTION amqp_publish_row('e', 'plant.{plant}.{op}', $options);
$statement
END
	$node->safe_psql($database, "SET client_encoding = 'UTF8'; $sql");
	wait_settled($node, $database);
	return $broker->messages('q');
}

my $table = 'CREATE TABLE orders (id int, plant text, quantity numeric)';
my $insert = q{INSERT INTO orders VALUES (1, 'Köln 1.2', 1.50);};

$node->safe_psql('postgres', $table);

#
# CloudEvents
#

my @messages = sent(q{'cloudevents=binary', 'subject={plant}', 'headers={"n": 1}'}, $insert);
is(scalar(@messages), 1, 'binary: one message');

my $properties = $messages[0]{properties};
my $headers = $properties->{headers};
my $time = delete $headers->{cloudEvents_time};

is($messages[0]{routing_key}, 'plant.Köln 1_2.insert', 'binary: routing key');
is_deeply(
	$headers,
	{
		n => { type => 'int64', value => 1 },
		cloudEvents_specversion => { type => 'string', value => '1.0' },
		cloudEvents_id => { type => 'string', value => $properties->{message_id} },
		cloudEvents_source => { type => 'string', value => '/postgres/public/orders' },
		cloudEvents_type => { type => 'string', value => 'public.orders.insert' },
		cloudEvents_subject => { type => 'string', value => 'Köln 1.2' },
	},
	'binary: attributes are headers, strings all of them');
is($time->{type}, 'string', 'binary: so is the time');
like($time->{value}, qr/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00$/, 'binary: of RFC 3339');
is($properties->{content_type}, 'application/json', 'binary: content type of the data');
is($messages[0]{body_text}, '{"id":1,"plant":"Köln 1.2","quantity":1.50}', 'binary: data');

@messages = sent(q{'cloudevents=structured', 'key=id', 'numeric=text'}, $insert);
$properties = $messages[0]{properties};
is($properties->{content_type},
	'application/cloudevents+json; charset=UTF-8',
	'structured: content type');
is($properties->{headers}, undef, 'structured: no headers');
utf8::encode(my $body = $messages[0]{body_text});
my $event = $json->decode($body);
$time = delete $event->{time};
is_deeply(
	$event,
	{
		specversion => '1.0',
		id => $properties->{message_id},
		source => '/postgres/public/orders',
		type => 'public.orders.insert',
		subject => '1',
		datacontenttype => 'application/json',
		data => { id => 1, plant => 'Köln 1.2', quantity => '1.50' },
	},
	'structured: attributes and data');
like($time, qr/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00$/, 'structured: time');

#
# Many rows
#

$node->safe_psql('postgres', <<'END');
DROP TRIGGER t ON orders;
CREATE TRIGGER s AFTER INSERT ON orders REFERENCING NEW TABLE AS n FOR EACH STATEMENT
	EXECUTE FUNCTION amqp_publish_row('e', '{id}', 'columns=id', 'key=plant');
INSERT INTO orders SELECT i, i % 3, 0 FROM generate_series(1, 10000) i;
DROP TRIGGER s ON orders;
END
wait_settled($node, 'postgres');
my @bodies = map { $_->[0] } $broker->fields('q', 'body');
ok("@bodies" eq join(' ', map { qq({"id":$_}) } 1 .. 10000),
	'ten thousand rows of a statement arrive in their order');

#
# Another encoding
#

$node->safe_psql('postgres',
	"CREATE DATABASE latin1 TEMPLATE template0 ENCODING 'LATIN1'");
create_server($node, 'latin1', 'mes', $broker);
$node->safe_psql('latin1', $table);

@messages = sent(q{'cloudevents=binary', 'source=/{plant}', 'type=Größe', 'key=plant'}, $insert, 'latin1');
is($messages[0]{routing_key}, 'plant.Köln 1_2.insert', 'LATIN1: routing key');
is($messages[0]{body_text}, '{"id":1,"plant":"Köln 1.2","quantity":1.50}', 'LATIN1: body');
is($messages[0]{properties}{type}, 'Größe', 'LATIN1: type');
$headers = $messages[0]{properties}{headers};
is($headers->{cloudEvents_source}{value}, '/K%C3%B6ln%201.2', 'LATIN1: source');
is($headers->{cloudEvents_type}{value}, 'Größe', 'LATIN1: type of the event');
is($headers->{cloudEvents_subject}{value}, 'Köln 1.2', 'LATIN1: subject');

@messages = sent(q{'cloudevents=structured', 'body=envelope'}, $insert, 'latin1');
like($messages[0]{body_text}, qr/"new":\{"id":1,"plant":"Köln 1\.2",/, 'LATIN1: structured');

# what has 255 characters may have more bytes in UTF-8
my ($ret, $stdout, $stderr) = $node->psql('latin1', <<'END');
INSERT INTO orders VALUES (1, repeat(chr(246), 200), 1);
END
like($stderr, qr/property "routing_key" of amqp_publish_row is too long\nDETAIL:  It has 413 bytes/,
	'LATIN1: the length that counts is that in UTF-8');

#
# The documentation
#

sub squeezed
{
	my $text = shift;

	$text =~ s/\s+/ /g;
	return $text;
}

my $sql = squeezed(slurp_file("$AmqpOutboxTest::ROOT/sql/publish_row.sql"));
my @examples = slurp_file("$AmqpOutboxTest::ROOT/docs/triggers.md") =~ /^```sql\n(.*?)^```/msg;

cmp_ok(scalar(@examples), '>', 5, 'docs/triggers.md has examples');
ok(index($sql, squeezed($_)) >= 0, 'the SQL test runs: ' . substr(squeezed($_), 0, 60))
  foreach @examples;

finish_node($node);
done_testing();

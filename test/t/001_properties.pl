# A message arrives as it was published: body, every property, and the headers
# with their types, compared field by field at the consumer.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use Digest::MD5 qw(md5_hex);
use JSON::PP;
use MIME::Base64;
use Test::More;

my $broker = AmqpOutboxTest::Broker->new('properties');
my $node = new_node('main', conf => "timezone = 'UTC'");
my $json = JSON::PP->new->utf8->canonical;
my $uuid7 = qr/^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;

create_server($node, 'postgres', 'mes', $broker);
$broker->declare_queue('q');

# Publish by one call, and take the one message that arrives.  In $arguments
# an exchange and routing key stand first.
sub publish
{
	my ($arguments, %params) = @_;
	my $database = $params{database} // 'postgres';
	my $id = $node->safe_psql($database,
		($params{before} // '') . "SELECT amqp_publish($arguments)");

	utf8::decode($id);
	wait_settled($node, $database);
	my @messages = $broker->messages($params{queue} // 'q');

	is(scalar(@messages), 1, "one message for: " . substr($arguments, 0, 60));
	is($messages[0]{properties}{message_id}, $id, "with the id returned");
	return $messages[0];
}

# A call that fails with this SQLSTATE.
sub refused
{
	my ($arguments, $sqlstate, $name, $database) = @_;
	my ($ret, $stdout, $stderr) = $node->psql(
		$database // 'postgres',
		"SELECT amqp_publish($arguments)",
		extra_params => [ '-v', 'VERBOSITY=sqlstate' ]);

	like($stderr, qr/ERROR:  $sqlstate/, "$name is refused");
	return;
}

# All properties but the message id.
sub properties
{
	my $message = shift;
	my %properties = %{ $message->{properties} };

	delete $properties{message_id};
	return $json->encode(\%properties);
}

#
# Bodies
#

my $message = publish(q{'', 'q', '{"a": [1, "zwei", null]}'::jsonb});
is($message->{body_text}, '{"a": [1, "zwei", null]}', 'jsonb: body');
is( properties($message),
	'{"content_type":"application/json","delivery_mode":2}',
	'jsonb: properties');
is($message->{exchange}, '', 'default exchange');
is($message->{routing_key}, 'q', 'routing key');
like($message->{properties}{message_id}, $uuid7, 'message id is a UUIDv7');

$message = publish(q{'', 'q', '{"a":   1 , "a":2}'::json});
is($message->{body_text}, '{"a":   1 , "a":2}', 'json: body as written');
is( properties($message),
	'{"content_type":"application/json","delivery_mode":2}',
	'json: properties');

$message = publish(qq{'', 'q', 'Gr\xc3\xbc\xc3\x9fe \xe2\x82\xac \xf0\x9f\x98\x80'::text});
is( decode_base64($message->{body_base64}),
	"Gr\xc3\xbc\xc3\x9fe \xe2\x82\xac \xf0\x9f\x98\x80",
	'text: body');
is( properties($message),
	'{"content_encoding":"UTF-8","content_type":"text/plain","delivery_mode":2}',
	'text: properties');

$message = publish(q{'', 'q', '\x000102'::bytea});
is(decode_base64($message->{body_base64}), "\0\1\2", 'bytea: body');
is( properties($message),
	'{"content_type":"application/octet-stream","delivery_mode":2}',
	'bytea: properties');

foreach my $type ('text', 'bytea')
{
	$message = publish("'', 'q', ''::$type");
	is($message->{body_base64}, '', "$type: empty body");
}

my $every_byte = join('', map { chr } 0 .. 255) x 3;
$message = publish("'', 'q', decode('" . unpack('H*', $every_byte) . "', 'hex')");
is($message->{body_base64}, encode_base64($every_byte, ''), 'every byte value');

# sizes around those of a frame, whose payload has 131072 - 8 bytes
foreach my $size (131063, 131064, 131065, 262128, 262129)
{
	$node->safe_psql('postgres',
		"SELECT amqp_publish('', 'q', convert_to(repeat('x', $size), 'UTF8'))");
	wait_settled($node, 'postgres');
	is(($broker->fields('q', 'size'))[0][0], $size, "body of $size bytes");
}

# exactly the largest body, and one byte more
my $large = 'substring(repeat(md5(7::text), 524288) FROM 1 FOR %d)';
my $id = $node->safe_psql('postgres',
	sprintf("SELECT amqp_publish('', 'q', $large)", 16 * 1024 * 1024));
wait_settled($node, 'postgres');
my @large = $broker->fields('q', 'message_id', 'size', 'body');
is(scalar(@large), 1, '16 MiB: one message');
is($large[0][0], $id, '16 MiB: message id');
is($large[0][1], 16 * 1024 * 1024, '16 MiB: size');
is(md5_hex($large[0][2]), md5_hex(md5_hex('7') x 524288), '16 MiB: body');
refused("'', 'q', " . sprintf($large, 16 * 1024 * 1024) . " || 'x'",
	'54000', '16 MiB and a byte');

#
# Properties
#

$message = publish(<<'END');
'', 'q', 'all of them'::text, content_type => 'text/html',
	content_encoding => 'identity', persistent => false, priority => 255,
	correlation_id => 'c-1', reply_to => 'answers', expiration => '1h 0.25s',
	message_id => 'my own id', message_timestamp => '2024-02-29 12:00:00.9+00',
	type => 'order.done', user_id => 'guest', app_id => 'mes 7',
	mandatory => true, server => 'mes'
END
is( properties($message),
	$json->encode(
		{
			content_type => 'text/html',
			content_encoding => 'identity',
			delivery_mode => 1,
			priority => 255,
			correlation_id => 'c-1',
			reply_to => 'answers',
			expiration => '3600250',
			timestamp => 1709208000,
			type => 'order.done',
			user_id => 'guest',
			app_id => 'mes 7',
		}),
	'all properties');
is($message->{properties}{message_id}, 'my own id', 'own message id');

$message = publish(
	q{'', 'q', ''::text, priority => 0, expiration => '1 day', message_timestamp => 'epoch'});
is( properties($message),
	'{"content_encoding":"UTF-8","content_type":"text/plain","delivery_mode":2,'
	  . '"expiration":"86400000","priority":0,"timestamp":0}',
	'smallest values are sent');

# short strings of 255 bytes, in letters of two bytes and one more
my $long = "\xc3\xa4" x 127 . 'z';
my $text = $json->decode(qq{["$long"]})->[0];
my @strings = qw(content_type content_encoding correlation_id reply_to
  message_id type app_id);
$message = publish("'', 'q', ''::text, "
	  . join(', ', map { "$_ => '$long'" } @strings));
is($message->{properties}{$_}, $text, "$_ of 255 bytes") foreach @strings;
refused("'', 'q', ''::text, $_ => '${long}z'", '22001', "$_ of 256 bytes")
  foreach @strings;
$broker->declare_queue($long);
$message = publish("'', '$long', 'x'::text", queue => $long);
is($message->{routing_key}, $text, 'routing key of 255 bytes');

# persistent: default, option of the server, argument
is($json->decode(properties(publish(q{'', 'q', 'x'::text})))->{delivery_mode},
	2, 'persistent by default');
$node->safe_psql('postgres', "ALTER SERVER mes OPTIONS (ADD persistent 'false')");
is(publish(q{'', 'q', 'x'::text})->{properties}{delivery_mode},
	1, 'not by option of the server');
is( publish(q{'', 'q', 'x'::text, persistent => true})
	  ->{properties}{delivery_mode},
	2,
	'persistent by argument');
$node->safe_psql('postgres', 'ALTER SERVER mes OPTIONS (DROP persistent)');
is( publish(q{'', 'q', 'x'::text, persistent => false})
	  ->{properties}{delivery_mode},
	1,
	'not by argument');

#
# Exchanges
#

$broker->declare_exchange('events', 'topic');
$broker->bind_queue('q', 'events', 'line.*.done');
$message = publish(q{'events', 'line.7.done', 'x'::text});
is($message->{exchange}, 'events', 'named exchange');
is($message->{routing_key}, 'line.7.done', 'its routing key');

$broker->declare_exchange($long, 'fanout');
$broker->bind_queue('q', $long, '');
$message = publish("'$long', '', 'x'::text");
is($message->{exchange}, $text, 'exchange of 255 bytes');
is($message->{routing_key}, '', 'empty routing key');

# whoever asks for no answer is content with none
$id = $node->safe_psql('postgres',
	q{SELECT amqp_publish('', 'nowhere', 'x'::text, mandatory => false)});
wait_settled($node, 'postgres');
is( $node->safe_psql('postgres',
		"SELECT status FROM amqp_outbox.message WHERE message_id = '$id'"),
	'delivered',
	'not mandatory and to nowhere is delivered');
is(status($node, 'postgres', 'mes', 'returned'), 0, 'and did not come back');

#
# Headers
#

$message = publish(<<"END");
'', 'q', ''::bytea, headers => '{
	"zero": 0, "one": 1, "minus": -1, "e": 1e3,
	"max": 9223372036854775807, "min": -9223372036854775808,
	"half": 0.5, "one point": 1.0, "pi": 3.141592653589793, "large": 98765432109876543210.5,
	"small": -2.5e-300, "yes": true, "no": false, "null": null,
	"string": "Gr\xc3\xbc\xc3\x9fe", "euro \xe2\x82\xac": "\xf0\x9f\x98\x80", "empty": "",
	"table": {"a": 1, "b": {"c": "deep", "d": {}}},
	"array": [1, "two", 3.5, null, true, [], [[4]], {"five": 5}],
	"CC": ["another"]
}'
END
is( $json->encode($message->{properties}{headers}),
	$json->encode(
		$json->decode(<<"END")), 'headers');
{
	"zero": {"type": "int64", "value": 0},
	"one": {"type": "int64", "value": 1},
	"minus": {"type": "int64", "value": -1},
	"e": {"type": "int64", "value": 1000},
	"max": {"type": "int64", "value": 9223372036854775807},
	"min": {"type": "int64", "value": -9223372036854775808},
	"half": {"type": "double", "value": 0.5},
	"one point": {"type": "double", "value": 1},
	"pi": {"type": "double", "value": 3.1415926535897931},
	"large": {"type": "double", "value": 9.8765432109876543e+19},
	"small": {"type": "double", "value": -2.5e-300},
	"yes": {"type": "boolean", "value": true},
	"no": {"type": "boolean", "value": false},
	"null": {"type": "void", "value": null},
	"string": {"type": "string", "value": "Gr\xc3\xbc\xc3\x9fe"},
	"euro \xe2\x82\xac": {"type": "string", "value": "\xf0\x9f\x98\x80"},
	"empty": {"type": "string", "value": ""},
	"table": {"type": "table", "value": {
		"a": {"type": "int64", "value": 1},
		"b": {"type": "table", "value": {
			"c": {"type": "string", "value": "deep"},
			"d": {"type": "table", "value": {}}}}}},
	"array": {"type": "array", "value": [
		{"type": "int64", "value": 1},
		{"type": "string", "value": "two"},
		{"type": "double", "value": 3.5},
		{"type": "void", "value": null},
		{"type": "boolean", "value": true},
		{"type": "array", "value": []},
		{"type": "array", "value": [
			{"type": "array", "value": [{"type": "int64", "value": 4}]}]},
		{"type": "table", "value": {"five": {"type": "int64", "value": 5}}}]},
	"CC": {"type": "array", "value": [{"type": "string", "value": "another"}]}
}
END

$message = publish(q{'', 'q', ''::bytea, headers => '{}'});
is($json->encode($message->{properties}{headers} // {}), '{}', 'no headers');

$message = publish("'', 'q', ''::bytea, headers => jsonb_build_object('$long', '$long')");
is( $json->encode($message->{properties}{headers}),
	$json->encode({ $text => { type => 'string', value => $text } }),
	'header name of 255 bytes');

# as much as fits into a frame, the other properties taken away
$message = publish(
	q{'', 'q', ''::bytea, headers => jsonb_build_object('large', repeat('x', 130000))});
is(length($message->{properties}{headers}{large}{value}),
	130000, 'headers that fill a frame');

#
# Encodings of the database
#

foreach my $encoding ('LATIN1', 'SQL_ASCII')
{
	my $database = lc $encoding;

	$node->safe_psql('postgres', "CREATE DATABASE $database
		TEMPLATE template0 ENCODING '$encoding' LOCALE 'C'");
	create_server($node, $database, 'mes', $broker);
}

# the client speaks UTF-8, the database LATIN1, the consumer UTF-8 again
$message = publish(
	"'', 'q', 'Stra\xc3\x9fe'::text, type => '\xc3\xa4\xc3\xb6', headers => '{\"\xc3\xbc\": \"\xc3\xa9\"}'",
	database => 'latin1',
	before => "SET client_encoding = 'UTF8';");
is( decode_base64($message->{body_base64}),
	"Stra\xc3\x9fe", 'LATIN1: text leaves as UTF-8');
is($message->{properties}{type}, "\xe4\xf6", 'LATIN1: property');
is( $json->encode($message->{properties}{headers}),
	"{\"\xc3\xbc\":{\"type\":\"string\",\"value\":\"\xc3\xa9\"}}",
	'LATIN1: header');
$message = publish("'', 'q', '{\"\xc3\xbc\": \"\xc3\xa9\"}'::jsonb",
	database => 'latin1', before => "SET client_encoding = 'UTF8';");
is( decode_base64($message->{body_base64}),
	"{\"\xc3\xbc\": \"\xc3\xa9\"}", 'LATIN1: jsonb leaves as UTF-8');
# 200 letters are 200 bytes in the database and 400 in a message
refused("'', 'q', ''::text, type => repeat('\xe4', 200)",
	'22001', 'LATIN1: what is too long as it leaves', 'latin1');

$message = publish("'', 'q', 'Stra\xc3\x9fe'::text", database => 'sql_ascii');
is( decode_base64($message->{body_base64}),
	"Stra\xc3\x9fe", 'SQL_ASCII: UTF-8 leaves as it is');
$message = publish("'', 'q', '\\xff00'::bytea", database => 'sql_ascii');
is(decode_base64($message->{body_base64}),
	"\xff\0", 'SQL_ASCII: bytea leaves as it is');
refused("'', 'q', '\xff'::text",
	'22021', 'SQL_ASCII: text that is not UTF-8', 'sql_ascii');
is($broker->count('q'), 0, 'nothing more has arrived');

finish_node($node);
done_testing();

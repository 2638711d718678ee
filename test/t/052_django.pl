# The model of docs/frameworks.md in a real Django: what it saves is published
# with the transaction, by a role that may publish and nothing else.

use strict;
use warnings FATAL => 'all';

use AmqpOutboxTest;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main');
my $document = slurp_file("$AmqpOutboxTest::ROOT/docs/frameworks.md");

# there is no broker, so that messages stay to be looked at
create_server($node, 'postgres', 'mes', undef, uri => 'amqp://127.0.0.1:1');
$node->safe_psql('postgres', <<'END');
CREATE ROLE application LOGIN;
GRANT USAGE ON FOREIGN SERVER mes TO application;
END

# The block of Python in the document that begins so.
sub block
{
	my $begin = shift;

	$document =~ /^```python\n(\Q$begin\E.*?)^```/ms
	  or die "no block of Python begins with $begin";
	return $1;
}

# Run Python after the model; returns what it says, nothing if all is well.
sub django
{
	my $code = shift;
	my ($host, $port) = ($node->host, $node->port);
	my $model = block('import uuid');
	my $output = '';

	$model =~ s/^    class Meta:\n\K/        app_label = "outbox"\n/m
	  or die 'the model has no Meta';
	my $program = <<"END";
import django
from django.conf import settings
settings.configure(DATABASES={"default": {
    "ENGINE": "django.db.backends.postgresql", "NAME": "postgres",
    "USER": "application", "HOST": "$host", "PORT": "$port"}})
django.setup()
from django.db import transaction
$model
$code
END
	IPC::Run::run([ '/usr/bin/python3', '-B', '-W', 'ignore', '-' ],
		'<', \$program, '>&', \$output);
	return $output;
}

# the example, without its order
my $example = block('with transaction.atomic()');
$example =~ s/^    order\.save\(\)\n//m or die 'the example saves no order';
$example =~ s/order\.pk/4711/ or die 'the example uses no order';
is(django($example), '', 'the example');

is(django(<<'END'), '', 'save() and bulk_create()');
with transaction.atomic():
    OutboxMessage(exchange="mes", routing_key="saved", body_text="gr\u00f6\u00dfer",
                  headers={"plant": "P1"}, ordering_key="order 1").save()
    OutboxMessage(message_id="own", exchange="mes", routing_key="own",
                  body_json=[1, None]).save()
    OutboxMessage.objects.bulk_create(
        OutboxMessage(exchange="mes", routing_key=f"bulk {n}", body_json=n)
        for n in range(3))
END

is(django(<<'END'), '', 'and with a transaction that is rolled back');
try:
    with transaction.atomic():
        OutboxMessage.objects.create(exchange="mes", routing_key="gone", body_text="x")
        raise KeyError
except KeyError:
    pass
END

like(django(<<'END'), qr/permission denied for view message/, 'nothing can be read');
OutboxMessage.objects.get(message_id="own")
END

like(django(<<'END'), qr/column "exchange" of amqp_outbox.message is too long/, 'what AMQP does not allow is an error');
OutboxMessage.objects.create(exchange="x" * 256, routing_key="", body_text="x")
END

is( $node->safe_psql('postgres', <<'END'), <<'END' =~ s/\n\z//r, 'what was saved is published');
SELECT routing_key, convert_from(body, 'UTF8') = CASE routing_key
		WHEN 'order.placed' THEN '{"id": 4711}'
		WHEN 'saved' THEN U&'gr\00f6\00dfer'
		WHEN 'own' THEN '[1, null]'
		ELSE right(routing_key, 1) END,
	content_type, headers, ordering_key,
	CASE WHEN message_id ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
		THEN 'a UUID' ELSE message_id END
	FROM amqp_outbox.message ORDER BY id
END
order.placed|t|application/json|||a UUID
saved|t|text/plain|{"plant": "P1"}|order 1|a UUID
own|t|application/json|||own
bulk 0|t|application/json|||a UUID
bulk 1|t|application/json|||a UUID
bulk 2|t|application/json|||a UUID
END

finish_node($node);
done_testing();

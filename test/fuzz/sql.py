#!/usr/bin/python3
"""sql.py: throw at a server whatever SQL can say to the extension.

    sql.py --host DIR --log FILE --amqp PORT --seed N --seconds S

Every statement follows from the seed.  Any answer is right but a crash, a hang,
an internal error, and a report of a sanitizer or of an assertion; and what was
accepted must be delivered or end as a dead letter, which a real broker and an
honest set of options show in the end.

Each promise is a line "ok - ..." or "not ok - ...".
"""

import argparse
import json
import random
import re
import sys
import time

import psycopg2
import psycopg2.extras

# Nobody should ever see these.
INTERNAL = re.compile(r'^(XX|58)')
TIMEOUT = '57014'

# What must not stand in the server's log.
ALARM = re.compile(r'^TRAP: |PANIC: |terminated by signal|'
                   r'ERROR: AddressSanitizer|runtime error: ')

# Lines of processes without a session carry "[pid] LEVEL:" and no application.
WORKER_ERROR = re.compile(r'^\S+ \S+ \S+ \[\d+\] (ERROR|FATAL): ')

# What a worker is made to say: headers deeper than it may go.
EXPECTED = re.compile(r'stack depth limit exceeded')

STATEMENT_SECONDS = 120         # a replay of all, under sanitizers, takes its time
DRAIN_SECONDS = 60               # without any progress

rnd = random.Random()


def pick(*choices):
    return rnd.choice(choices)


def maybe(chance):
    return rnd.random() < chance


#
# Values
#

ODD_CHARACTERS = ('\x01\x07\x1b\x7f\x80\x85\u00a0\u00ad\u0301\u200b\u202e\u2028'
                  '\ufeff\ufffd\uffff\U0001f600\U0010ffff'
                  '\t\n\r \'"\\%{}[]$:;,.*#/@?&=+-_~`<>|^!()')


def odd_text():
    kind = rnd.randrange(9)
    if kind == 0:
        return ''
    if kind == 1:
        return ''.join(rnd.choice(ODD_CHARACTERS)
                       for _ in range(rnd.randrange(1, 20)))
    if kind == 2:
        return pick('x', 'ü', '€', '😀') * pick(63, 64, 85, 86, 127, 128, 254,
                                               255, 256, 257, 1000, 70000)
    if kind == 3:
        return pick("'; DROP TABLE x; --", '%s%s%n', '{{}}', '${x}', '\\x00',
                    '../../../etc/passwd', 'NULL', 'null', '0', '-1', '1e999',
                    'infinity', 'NaN', 'true', 'a.b.c', '#', '*', 'a.#.b')
    if kind == 4:
        return ''.join(chr(rnd.choice((rnd.randrange(1, 128),
                                       rnd.randrange(1, 0xd800),
                                       rnd.randrange(0xe000, 0x110000))))
                       for _ in range(rnd.randrange(1, 30)))
    return pick('q', 'q2', 'amq.topic', 'amq.direct', 'x', 'mes', 'key', 'a b',
                'application/json', 'guest')


def odd_number():
    return pick('0', '1', '-1', '1.0', '-0', '-0.0', '1e3', '1e400', '1e-400',
                '1.5e308', '1.8e308', '2.2e-308', '4.9e-324',
                '9223372036854775807', '9223372036854775808',
                '-9223372036854775808', '-9223372036854775809',
                '123456789012345678901234567890.123', '1e131071',
                str(rnd.randrange(-1000, 1000)), str(rnd.random()))


def odd_json(depth=0):
    """Text of a JSON value; what is not valid is right, too."""
    kind = rnd.randrange(10)
    if depth > 4:
        kind %= 4
    if kind == 0:
        return odd_number()
    if kind == 1:
        return json.dumps(odd_text(), ensure_ascii=maybe(0.5))
    if kind == 2:
        return pick('null', 'true', 'false', '[]', '{}', '""', '[null]',
                    '"\\u0000"', '"\\ud800"', '{"a":', '')
    if kind == 3:
        return str(rnd.randrange(100))
    if kind < 6:
        return '[' + ','.join(odd_json(depth + 1)
                              for _ in range(rnd.randrange(4))) + ']'
    return '{' + ','.join(
        json.dumps(pick('CC', 'BCC', 'x-possible-duplicate', 'traceparent',
                        'tracestate', 'x-delay', 'x-match', 'a', 'b', 'c', '',
                        odd_text()))
        + ':' + odd_json(depth + 1) for _ in range(rnd.randrange(5))) + '}'


def odd_headers():
    if maybe(0.03):
        n = pick(10, 100, 1000, 3000, 6000, 12000, 20000)
        return ('{"a":' + '[' * n + ']' * n + '}' if maybe(0.5) else
                '{"a":' * n + '1' + '}' * n)
    if maybe(0.03):
        return json.dumps({'k%d' % i: i for i in range(pick(100, 5000, 20000))})
    if maybe(0.03):
        return json.dumps({'a': 'x' * pick(8000, 100000, 131000, 1000000)})
    if maybe(0.3):
        return json.dumps({'a': pick(['q'], 'q', 1, {'b': [1.5]})})
    return odd_json()


def odd_time():
    return pick('-infinity', 'infinity', 'epoch', 'now', '1969-12-31',
                '0001-01-01 BC', '4714-11-24 00:00:00+00 BC', '2038-01-20',
                '2106-02-08', '9999-12-31', '294276-12-31 23:59:59.999999+00',
                '2000-01-01 00:00:00.000001', 'x')


def odd_interval():
    return pick('0', '1 microsecond', '1 ms', '100 ms', '1 s', '1 min', '1 day',
                '1 mon', '1 year', '-1 s', '-1 microsecond', '4294967295 ms',
                '4294967296 ms', '100 years', '178000000 years',
                '-178000000 years', '1 mon -30 days', '2562047788 hours',
                'infinity', 'x')


def odd_integer():
    return pick('-2147483648', '-1', '0', '1', '5', '9', '10', '100', '255',
                '256', '2147483647', '2147483648', 'x')


def odd_boolean():
    return pick('true', 'false', 'maybe')


def quote(value):
    """A literal; a NUL cannot even be sent."""
    if value is None:
        return 'NULL'
    value = value.replace('\0', '')
    return "E'" + value.replace('\\', '\\\\').replace("'", "''") + "'"


def odd_body():
    kind = rnd.randrange(4)
    if kind == 0:
        return quote(odd_text()) + '::text'
    if kind == 1:
        return quote(odd_json()) + pick('::json', '::jsonb')
    if kind == 2:
        return pick("''", "'\\x00ff'", "'\\xff'") + '::bytea'
    return pick('NULL::text', 'NULL::bytea', 'NULL::jsonb',
                "repeat('x', %d)" % pick(4000, 131063, 131064, 131065, 400000))


#
# Statements
#

PROPERTIES = {
    'headers': odd_headers, 'content_type': odd_text,
    'content_encoding': odd_text, 'persistent': odd_boolean,
    'priority': odd_integer, 'correlation_id': odd_text, 'reply_to': odd_text,
    'expiration': odd_interval, 'message_id': odd_text,
    'message_timestamp': odd_time, 'type': odd_text,
    # any other makes the broker close the channel, which takes its time
    'user_id': lambda: odd_text() if maybe(0.05) else 'guest',
    'app_id': odd_text, 'mandatory': odd_boolean,
    'idempotency_key': odd_text, 'traceparent': lambda: pick(
        '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01',
        'ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01', odd_text()),
    'tracestate': odd_text, 'delay': odd_interval, 'deliver_at': odd_time,
    'ttl': odd_interval, 'ordering_key': odd_text,
}


def odd_properties(names):
    """Some of them, as pairs of name and literal."""
    count = pick(0, 1, 1, 2, 3, 5)
    chosen = rnd.sample(names, min(count, len(names)))
    # one that waits for ever would hold up the others of its key for ever
    if 'ordering_key' in chosen:
        chosen = [n for n in chosen if n not in ('delay', 'deliver_at')]
    pairs = []
    for name in chosen:
        value = None if maybe(0.1) else PROPERTIES[name]()
        pairs.append((name, quote(value)))
    return pairs


def odd_exchange():
    # each that is not there makes the broker close the channel once
    if maybe(0.05):
        return odd_text()
    return pick('', '', '', 'amq.topic', 'amq.direct', 'missing')


def odd_key():
    return pick('q', 'q', 'q2', 'nowhere', odd_text())


def publish():
    arguments = [quote(odd_exchange()), quote(odd_key()), odd_body()]
    arguments += ['%s => %s' % pair for pair in odd_properties(list(PROPERTIES))]
    # the third one is never delivered to, and so gets nothing else
    arguments.append('server => %s' % quote(
        odd_text() if maybe(0.05) else 'mes'))
    many = ' FROM generate_series(1, %d)' % pick(2, 10, 100) if maybe(0.1) else ''
    return 'SELECT public.amqp_publish(%s)%s' % (', '.join(arguments), many)


VIEW_COLUMNS = ['headers', 'content_type', 'content_encoding', 'persistent',
                'priority', 'correlation_id', 'reply_to', 'message_id',
                'message_timestamp', 'type', 'user_id', 'app_id', 'mandatory',
                'ordering_key']


def insert():
    pairs = [('server', quote('mes')), ('exchange', quote(odd_exchange())),
             ('routing_key', quote(odd_key())),
             ('body', quote(pick('\\x00', 'text', odd_text())))]
    pairs += odd_properties(VIEW_COLUMNS)
    if maybe(0.2):
        pairs.append((pick('status', 'attempts', 'expiration_ms', 'due_at',
                           'expires_at', 'delivered_at', 'id', 'nonsense'),
                      quote(pick('pending', '1', '-1', '9223372036854775807',
                                 'now', 'infinity'))))
    rnd.shuffle(pairs)
    return 'INSERT INTO amqp_outbox.message (%s) VALUES (%s)' % (
        ', '.join(p[0] for p in pairs), ', '.join(p[1] for p in pairs))


URIS = ['amqp://127.0.0.1:1', 'amqps://127.0.0.1:1/v', 'amqp://[::1]:1/%2F',
        'amqp://a,b:1,127.0.0.1:2/x', 'amqp://', 'http://x', 'amqp://h:0',
        'amqp://h:65536', 'amqp://user:pw@h', 'amqp://h/%00', 'amqp://h/%zz',
        'amqp://h/a/b', 'amqp://h?x=1', 'amqp://,', 'AMQP://127.0.0.1:1']


def mutated(text):
    text = list(text)
    for _ in range(rnd.randrange(3)):
        at = rnd.randrange(len(text) + 1)
        text[at:at + rnd.randrange(2)] = [pick('%', '/', ':', '[', ']', ',', '@',
                                               '#', '\x7f', 'ü', '0', '')]
    return ''.join(text)


def odd_server_option():
    name = pick('uri', 'uri', 'uri', 'host', 'port', 'vhost', 'tls', 'heartbeat',
                'cacertfile', 'connect_timeout', 'confirm_timeout', 'frame_max',
                'window', 'key_window', 'max_attempts', 'max_age', 'unroutable',
                'rate_limit', 'rate_limit_bytes', 'idempotency_retention',
                'paused', 'persistent', 'mandatory', 'dead_letter_holds_key',
                'backlog_limit', 'backlog_limit_bytes', 'role_backlog_limit_bytes',
                'backlog_action', 'allow_list', 'verify', 'tls_min_version',
                'cacertdir', 'server_name_indication', 'allow_plaintext',
                'password', 'nonsense')
    if name == 'uri':
        return name, mutated(rnd.choice(URIS))
    if name == 'host':
        return name, mutated('127.0.0.1,[::1]:7')
    return name, pick(odd_integer(), odd_interval(), odd_boolean(), odd_text(),
                      'retry', 'accept', '/tmp/x')


def options(pairs, verb=''):
    return 'OPTIONS (%s)' % ', '.join(
        '%s%s %s' % (verb, name, "'" + value.replace('\0', '').replace("'", "''")
                     + "'") for name, value in pairs)


def server():
    pairs = list(dict(odd_server_option()
                      for _ in range(rnd.randrange(1, 4))).items())
    kind = rnd.randrange(5)
    if kind == 0:
        return 'CREATE SERVER f FOREIGN DATA WRAPPER amqp_outbox ' + options(pairs)
    if kind == 1:
        return 'ALTER SERVER f ' + options(pairs, pick('ADD ', 'SET '))
    if kind == 2:
        return 'DROP SERVER f CASCADE'
    if kind == 3:
        return 'SELECT amqp_outbox.validator(ARRAY[%s]::text[], %s)' % (
            ', '.join(quote('%s=%s' % pair) for pair in pairs),
            pick("'pg_catalog.pg_foreign_server'::regclass",
                 "'pg_catalog.pg_user_mapping'::regclass", '0', '1259'))
    return pick('CREATE', 'ALTER') + ' USER MAPPING FOR ' + \
        pick('PUBLIC', 'CURRENT_USER') + ' SERVER f ' + options(
            [(pick('user', 'password', 'password_file', 'uri', 'token_file',
                   'auth_mechanism', 'certfile', 'keyfile', 'keyfile_password'),
              odd_text())])


def alter():
    """The server that everything is published to, but so that it works."""
    name, value = rnd.choice([
        ('window', pick('1', '2', '1024', '65535')),
        ('frame_max', pick('8192', '131072', '1048576')),
        ('heartbeat', pick('0', '1', '30')), ('max_attempts', pick('1', '2')),
        ('unroutable', pick('retry', 'dead_letter', 'accept')),
        ('mandatory', odd_boolean()), ('persistent', odd_boolean()),
        ('key_window', pick('0', '1', '10')),
        ('rate_limit', pick('0', '100000')),
        ('backlog_limit', pick('0', '100', '1000')),
        ('role_backlog_limit_bytes', pick('0', '1MB', '1GB')),
        ('backlog_action', pick('refuse', 'warn')), ('allow_list', odd_boolean()),
        ('dead_letter_holds_key', 'true')])
    return 'ALTER SERVER mes ' + options([(name, value)], pick('ADD ', 'SET '))


TEMPLATES = ['a.{id}.{op}', '{schema}.{table}', '{old.t}.{new.t}', '{"T"}', '{',
             '}', '{{}}', '{id', '{id}}', '{nonsense}', '{old.id.x}', '{"', '{}',
             'q', '{j}', '{n}']
ROW_OPTIONS = ['body', 'columns', 'except', 'numeric', 'bytea', 'key',
               'null_word', 'empty_word', 'dots', 'unchanged',
               'publish_via_partition_root', 'cloudevents', 'source', 'subject',
               'type', 'server', 'headers', 'content_type', 'app_id',
               'persistent', 'mandatory', 'priority', 'expiration', 'nonsense']


def trigger():
    arguments = [odd_exchange(), pick(*TEMPLATES, odd_text())]
    for _ in range(rnd.randrange(4)):
        name = rnd.choice(ROW_OPTIONS)
        value = pick('row', 'envelope', 'none', 'id', 'id,t', '"', 'text',
                     'number', 'hex', 'base64', 'skip', 'keep', 'binary',
                     'structured', 'true', 'false', '5', '256', '1 s',
                     odd_headers(), odd_text(), rnd.choice(TEMPLATES))
        arguments.append(name + pick('=', '=', '=', '') + value)
    arguments.append('server=mes')
    level = pick('ROW', 'ROW', 'STATEMENT')
    tables = '' if level == 'ROW' or maybe(0.3) else pick(
        'REFERENCING NEW TABLE AS n', 'REFERENCING OLD TABLE AS o NEW TABLE AS n')
    event = 'UPDATE' if tables.endswith('n') and 'OLD' in tables else \
        'INSERT' if tables else 'INSERT OR UPDATE OR DELETE' + (
            ' OR TRUNCATE' if level == 'STATEMENT' else '')
    return ('CREATE OR REPLACE TRIGGER g%d %s %s ON t %s FOR EACH %s '
            'EXECUTE FUNCTION public.amqp_publish_row(%s)') % (
                rnd.randrange(3), pick('AFTER', 'AFTER', 'AFTER', 'BEFORE'),
                event, tables, level,
                ', '.join(quote(a) for a in arguments))


def change():
    kind = rnd.randrange(6)
    if kind < 3:
        return 'INSERT INTO t VALUES (%s, %s, %s, %s, %s, %s, %s, %s)' % (
            pick('NULL', odd_integer()), quote(odd_text()),
            quote(pick('1', 'NaN', 'infinity', odd_number())),
            quote(pick(odd_json(), 'null')), quote(odd_time()),
            quote(odd_interval()), pick("'\\xff00'", 'NULL'),
            pick('NULL', "'{}'", "'{1,NULL,3}'", "'{{1},{2}}'", "'[0:1]={1,2}'"))
    return pick('UPDATE t SET t = ' + quote(odd_text()),
                'UPDATE t SET id = id', 'DELETE FROM t', 'TRUNCATE t',
                'DROP TRIGGER IF EXISTS g%d ON t' % rnd.randrange(3),
                'UPDATE t SET "T" = ' + quote(odd_number()))


def topology():
    name = quote(pick('mes', 'mes', 'mes', 'nope'))
    words = [quote(pick('q', 'tq', 'te', 'amq.x', odd_text())) for _ in range(3)]
    kind = quote(pick('topic', 'direct', 'fanout', 'headers', 'quorum',
                      'classic', 'stream', 'x-nonsense', odd_text()))
    arguments = quote(pick('{}', '{"x-message-ttl": 1}', '{"x-max-length": -1}',
                           '{"alternate-exchange": "q"}', odd_headers()))
    call = pick(
        'declare_exchange(%s, %s, %s, arguments => %s)' % (
            name, words[0], kind, arguments),
        'declare_queue(%s, %s, %s, arguments => %s)' % (
            name, words[0], kind, arguments),
        'bind_queue(%s, %s, %s, %s, %s)' % (name, *words, arguments),
        'bind_exchange(%s, %s, %s, %s, %s)' % (name, *words, arguments),
        'undeclare_exchange(%s, %s, %s)' % (name, words[0], odd_boolean()),
        'undeclare_queue(%s, %s, %s)' % (name, words[0], odd_boolean()),
        'unbind_queue(%s, %s, %s, %s, %s, %s)' % (
            name, *words, arguments, odd_boolean()),
        'unbind_exchange(%s, %s, %s, %s, %s)' % (name, *words, arguments))
    return 'SELECT amqp_outbox.' + call


def operate():
    return pick(
        'SELECT public.amqp_inbox_accept(%s, %s)' % (
            quote(odd_text()), quote(odd_text())),
        'SELECT amqp_outbox.prune_inbox(%s)' % pick('NULL', '0', '-1', '10'),
        "SELECT public.amqp_wait_for_confirm(%s, %s)" % (
            quote(odd_text()), quote(pick('0', '10 ms', '-1 s', 'infinity', 'x'))
            if maybe(0.5) else quote('1 ms')),
        'SELECT * FROM amqp_outbox.requeue(%s)' % pick(
            '', "'mes'", 'id => %s' % odd_integer(),
            'message_id => %s' % quote(odd_text()), "reason => 'nacked'",
            'exchange => %s' % quote(odd_text())),
        'SELECT * FROM amqp_outbox.discard(%s)' % pick(
            "'mes'", 'id => %s' % odd_integer(),
            'message_id => %s' % quote(odd_text()), "reason => 'unroutable'"),
        "SELECT amqp_outbox.replay('mes', %s, %s)" % (
            quote(pick(odd_time(), 'now')), quote(pick('now', odd_time()))),
        "SELECT amqp_outbox.replay('mes', message_id => %s)" % quote(odd_text()),
        "SELECT amqp_outbox.replay('mes', id => %s)" % odd_integer(),
        "SELECT amqp_outbox.replay('mes', now() - interval '1 s', "
        "routing_key => %s)" % quote(odd_text()),
        'SELECT amqp_outbox.%s(%s, %s, %s, %s)' % (
            pick('allow', 'disallow'), quote(pick('mes', odd_text())),
            pick("'public'", 'current_user', quote(odd_text())),
            quote(pick('#', '*', '', odd_text())),
            quote(pick('#', 'a.*', '', odd_text()))),
        'SELECT * FROM amqp_outbox.backlog()',
        'SELECT * FROM amqp_outbox.latency(%s)' % quote(pick('mes', odd_text())),
        # deeper than the worker may go
        pick("SET max_stack_depth = '7MB'", 'RESET max_stack_depth'),
        "SELECT amqp_outbox.pause('mes')", "SELECT amqp_outbox.resume('mes')",
        "SELECT amqp_outbox.resume('mes')", 'SELECT amqp_outbox.wake()',
        'SELECT amqp_outbox.adopt()',
        'SELECT * FROM amqp_outbox.uncommitted()',
        'SELECT * FROM amqp_outbox.server_status',
        'SELECT * FROM amqp_outbox.topology',
        'SELECT * FROM amqp_outbox.message ORDER BY id DESC LIMIT 10')


def control():
    return pick('BEGIN', 'BEGIN', 'COMMIT', 'COMMIT', 'ROLLBACK', 'SAVEPOINT s',
                'ROLLBACK TO s', 'RELEASE s', "PREPARE TRANSACTION 'p'",
                "COMMIT PREPARED 'p'", "ROLLBACK PREPARED 'p'",
                "DO 'BEGIN PERFORM public.amqp_publish(%s, %s, %s::text, server => %s);"
                " RAISE division_by_zero; EXCEPTION WHEN others THEN NULL; END'"
                % tuple("''%s''" % w for w in ('', 'q', 'x', 'mes')))


KINDS = [(publish, 40), (insert, 10), (server, 10), (alter, 2), (trigger, 6),
         (change, 12), (topology, 8), (operate, 8), (control, 8)]


def statement():
    return rnd.choices([k for k, _ in KINDS], [w for _, w in KINDS])[0]()


def copy_rows():
    """Lines for COPY into the view; the first two fields are what makes sense."""
    return ''.join('mes\tq\t%s\t%s\n' % (
        odd_text().replace('\0', '') if maybe(0.7) else '\\\\x00',
        pick('\\N', '{}', odd_headers().replace('\\', '\\\\')
             .replace('\n', ' ').replace('\t', ' '))) for _ in range(5))


#
# The run
#

class Finding(Exception):
    pass


class Fuzz:
    def __init__(self, arguments):
        self.arguments = arguments
        self.connection = None
        self.count = 0
        self.accepted = 0
        self.states = {}
        self.last = ''
        self.findings = 0

    def connect(self):
        self.connection = psycopg2.connect(
            host=self.arguments.host, dbname='postgres', user='postgres',
            application_name='fuzz')
        self.connection.autocommit = True
        # what comes back is not looked at, and may be deeper than Python
        psycopg2.extras.register_default_json(self.connection, loads=str)
        psycopg2.extras.register_default_jsonb(self.connection, loads=str)
        self.run('SET statement_timeout = %d' % (STATEMENT_SECONDS * 1000))
        self.run('SET lock_timeout = 1000')

    def run(self, sql):
        with self.connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else None

    def value(self, sql):
        return self.run(sql)[0][0]

    def set_up(self):
        self.run('CREATE EXTENSION IF NOT EXISTS amqp_outbox')
        self.run("CREATE SERVER mes FOREIGN DATA WRAPPER amqp_outbox OPTIONS "
                 "(host '127.0.0.1', port '%d', max_attempts '2')"
                 % self.arguments.amqp)
        self.run("CREATE USER MAPPING FOR PUBLIC SERVER mes OPTIONS "
                 "(user 'guest', password 'guest')")
        self.run("CREATE TABLE t (id int, t text, n numeric, j jsonb, "
                 "z timestamptz, i interval, b bytea, a int[], \"T\" float8)")
        for queue in ('q', 'q2'):
            self.run("SELECT amqp_outbox.declare_queue('mes', '%s', 'classic')"
                     % queue)

    def finding(self, what):
        self.findings += 1
        print('not ok - seed %d, statement %d: %s' % (
            self.arguments.seed, self.count, what))
        print('# %s' % self.last[:2000].encode('unicode_escape').decode())
        sys.stdout.flush()

    def survive(self, error):
        """The server is gone, or the session: which is it?"""
        self.finding('connection lost: %s' % str(error).strip())
        for _ in range(600):
            try:
                self.connect()
                return
            except psycopg2.OperationalError:
                time.sleep(0.1)
        raise Finding('the server does not come back')

    def throw(self, execute):
        self.count += 1
        try:
            execute()
            self.accepted += 1
        except psycopg2.Error as error:
            state = error.pgcode
            if state is None and self.connection.closed:
                self.survive(error)
            elif state is None:
                pass               # psycopg2 refused it
            elif INTERNAL.match(state):
                self.finding('%s: %s' % (state, str(error).strip()))
            elif state == TIMEOUT and 'lock timeout' not in str(error):
                self.finding('no answer within %d s' % STATEMENT_SECONDS)
            self.states[state] = self.states.get(state, 0) + 1
        except (ValueError, UnicodeError):
            pass                   # it cannot even be sent

    def copy(self, rows):
        import io
        with self.connection.cursor() as cursor:
            cursor.copy_expert('COPY amqp_outbox.message (server, routing_key,'
                               ' body, headers) FROM STDIN', io.StringIO(rows))

    def one(self):
        if maybe(0.02):
            self.last = copy_rows()
            self.throw(lambda: self.copy(self.last))
        else:
            self.last = statement()
            self.throw(lambda: self.run(self.last))
        # an open transaction keeps the worker from what comes after it
        if self.count % 20 == 0:
            for sql in ('ROLLBACK', "ROLLBACK PREPARED 'p'"):
                try:
                    self.run(sql)
                except psycopg2.Error:
                    pass

    def clean_up(self):
        """Options with which everything that can be delivered is delivered."""
        self.last = 'clean up'
        for sql in ('ROLLBACK', "ROLLBACK PREPARED 'p'", 'DROP SERVER f CASCADE',
                    'DROP TABLE IF EXISTS t'):
            try:
                self.run(sql)
            except psycopg2.Error:
                pass
        for name, value in (('unroutable', 'dead_letter'), ('max_attempts', '1'),
                            ('paused', 'false'), ('rate_limit', '0'),
                            ('key_window', '0'), ('heartbeat', '30'),
                            ('window', '1024'), ('frame_max', '131072'),
                            ('dead_letter_holds_key', 'false')):
            try:
                self.run("ALTER SERVER mes OPTIONS (SET %s '%s')" % (name, value))
            except psycopg2.Error:
                self.run("ALTER SERVER mes OPTIONS (ADD %s '%s')" % (name, value))

    def waiting(self):
        return self.value("SELECT count(*) FROM amqp_outbox.message"
                          " WHERE server = 'mes' AND status IN ('pending',"
                          " 'retrying')")

    def drain(self):
        fewest = None
        while True:
            # a dead letter may have been told to hold up those of its key
            self.run("SELECT amqp_outbox.discard('mes', id => id)"
                     " FROM amqp_outbox.dead_letter WHERE holds_key")
            self.run('SELECT amqp_outbox.wake()')
            left = self.waiting()
            if fewest is None or left < fewest:
                fewest = left
                end = time.monotonic() + DRAIN_SECONDS
            if left == 0 or time.monotonic() > end:
                break
            time.sleep(0.5)
        if left > 0:
            self.finding('%d messages are neither delivered nor dead letters: %s'
                         % (left, self.run(
                             "SELECT id, status, attempts, due_at, exchange,"
                             " routing_key, ordering_key, last_error"
                             " FROM amqp_outbox.message WHERE server = 'mes'"
                             " AND status IN ('pending', 'retrying')"
                             " ORDER BY id LIMIT 5")))
        status = self.run("SELECT state, delivered, dead_letters, scheduled,"
                          " last_error FROM amqp_outbox.server_status"
                          " WHERE server = 'mes'")
        print('# %s' % (status,))

    def look_at_log(self):
        with open(self.arguments.log, errors='replace') as log:
            lines = log.read().split('\n')
        for number, line in enumerate(lines):
            if ALARM.search(line) or (WORKER_ERROR.match(line)
                                      and not EXPECTED.search(line)):
                self.last = ' / '.join(lines[number:number + 12])
                self.finding('in the log: %s' % line[:300])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--host', required=True)
    parser.add_argument('--log', required=True)
    parser.add_argument('--amqp', type=int, required=True)
    parser.add_argument('--seed', type=int, required=True)
    parser.add_argument('--seconds', type=float, required=True)
    fuzz = Fuzz(parser.parse_args())
    seed = fuzz.arguments.seed
    rnd.seed(seed)
    sys.stdout.reconfigure(line_buffering=True)
    print('# sql.py, seed %d, %g seconds' % (seed, fuzz.arguments.seconds))
    fuzz.connect()
    fuzz.set_up()
    end = time.monotonic() + fuzz.arguments.seconds
    while time.monotonic() < end and fuzz.findings < 20:
        fuzz.one()
    print('# %d statements, %d accepted; refused: %s' % (
        fuzz.count, fuzz.accepted, ', '.join(
            '%s %d' % pair for pair in sorted(
                fuzz.states.items(), key=lambda p: -p[1]))))
    fuzz.clean_up()
    fuzz.drain()
    fuzz.look_at_log()
    if fuzz.findings == 0:
        print('ok - seed %d: %d statements, no crash, no hang, nothing stalled'
              % (seed, fuzz.count))
    return 1 if fuzz.findings else 0


if __name__ == '__main__':
    sys.exit(main())

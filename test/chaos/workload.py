"""Publishers: sessions that publish in transactions of all kinds.

What publisher P does in its transaction T depends on the seed, P and T only,
so a seed replays the workload.  Each message is noted in the table "sent" by
the transaction that publishes it: the table holds exactly what was committed,
whatever the client came to know of it.

A key belongs to one publisher, and numbers grow within a publisher; so by
number is the order in which the messages of a key were committed.
"""

import json
import random
import threading
import time

import psycopg2

from plant import DESTINATIONS, Trouble, insist

KINDS = (("commit", 2400), ("rollback", 480), ("savepoint", 480),
         ("exception", 320), ("prepared", 200), ("large", 1))
LARGE = (5000, 20000)
OPEN_PREPARED = 3               # of a publisher at the same time
NUMBERS_OF_TRANSACTION = 100000     # numbers of T begin at T times this

SCHEMA = """
CREATE EXTENSION amqp_outbox;
CREATE TABLE sent (id text PRIMARY KEY, publisher int, transaction int,
    kind text, server text, queue text, key text, n bigint);

CREATE FUNCTION publish(messages jsonb) RETURNS void LANGUAGE sql AS $$
    INSERT INTO sent
    SELECT amqp_publish(m->>'exchange', m->>'routing_key', m->'body',
            server => m->>'server', ordering_key => m->'body'->>'key'),
        (m->'body'->>'publisher')::int, (m->'body'->>'transaction')::int,
        m->'body'->>'kind', m->>'server', m->>'queue', m->'body'->>'key',
        (m->'body'->>'n')::bigint
    FROM jsonb_array_elements(messages) WITH ORDINALITY AS a (m, i)
$$;

-- what was published in the block goes with it
CREATE FUNCTION publish_and_fail(messages jsonb) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM publish(messages);
    PERFORM 1 / (random() * 0)::int;
EXCEPTION WHEN division_by_zero THEN
    NULL;
END $$;

-- one message many times, with growing numbers
CREATE FUNCTION publish_many(message jsonb, count int) RETURNS void
LANGUAGE sql AS $$
    SELECT publish(jsonb_agg(jsonb_set(message, '{body,n}',
        to_jsonb((message->'body'->>'n')::bigint + i)) ORDER BY i))
    FROM generate_series(1, count) i
$$;
"""

SERVER = """
CREATE SERVER {name} FOREIGN DATA WRAPPER amqp_outbox OPTIONS (
    host '127.0.0.1', port '{port}', vhost '{name}', heartbeat '3',
    confirm_timeout '5', connect_timeout '3', window '1024',
    key_window '{key_window}', max_attempts '100000');
CREATE USER MAPPING FOR PUBLIC SERVER {name}
    OPTIONS (user 'outbox', password 'secret');
"""


def can_prepare(postgres):
    """Whether a transaction that published may be prepared."""
    try:
        postgres.query(
            "BEGIN; SELECT amqp_publish('', 'nowhere', 'x'::text,"
            " server => 'mes'); PREPARE TRANSACTION 'probe'")
    except psycopg2.errors.FeatureNotSupported:
        return False
    postgres.query("ROLLBACK PREPARED 'probe'")
    return True


def asynchronous_share(seed):
    """With even seeds no session flushes its commit, as each flush makes those
    of all others durable too."""
    return 0.3 if seed % 2 else 1


class Plan:
    """A transaction as the seed wants it."""

    def __init__(self, seed, publisher, transaction):
        self.rng = random.Random(f"{seed}/{publisher}/{transaction}")
        self.publisher = publisher
        self.transaction = transaction
        self.kind = self.rng.choices([k for k, _ in KINDS],
                                     [w for _, w in KINDS])[0]
        self.asynchronous = self.rng.random() < asynchronous_share(seed)
        self.rolls_back = (self.kind == "rollback" or self.kind == "prepared"
                           and self.rng.random() < 0.4)
        self.pause = self.rng.uniform(0.01, 0.12)
        self.resolve_after = self.rng.randint(1, 40)    # transactions
        self.n = transaction * NUMBERS_OF_TRANSACTION

    def name(self):
        return f"chaos.{self.publisher}.{self.transaction}"

    def key(self, destination):
        """None, one of two keys of this destination, or one that goes to
        all destinations of its server; no key where it promises nothing."""
        choice = self.rng.randint(0, 5)
        if (not destination.keyed or self.kind == "prepared" or choice == 0):
            return None
        if choice == 1 and destination.server == "erp":
            return f"{self.publisher}.erp"
        return f"{self.publisher}.{destination.queue}.{choice % 2}"

    def message(self, destination):
        self.n += 1
        return {"exchange": destination.exchange,
                "routing_key": destination.routing_key,
                "server": destination.server, "queue": destination.queue,
                "body": {"publisher": self.publisher,
                         "transaction": self.transaction, "kind": self.kind,
                         "key": self.key(destination), "n": self.n,
                         "fill": "x" * self.rng.choice((0, 20, 200, 2000))}}

    def messages(self, at_most=20):
        queues = list(DESTINATIONS)
        return [self.message(DESTINATIONS[self.rng.choice(queues)])
                for _ in range(self.rng.randint(1, at_most))]

    def large(self):
        """A message, and how often."""
        queue = self.rng.choice(("mes.direct", "mes.topic", "mes.guarded"))
        return self.message(DESTINATIONS[queue]), self.rng.randint(*LARGE)


class Publisher(threading.Thread):
    def __init__(self, postgres, seed, number, with_prepared):
        super().__init__(daemon=True)
        self.postgres = postgres
        self.seed = seed
        self.number = number
        self.with_prepared = with_prepared
        self.conn = None
        self.pid = None
        self.ending = False
        self.prepared = []              # plans that wait for their end
        self.counts = {}                # transactions by kind
        self.unknown = 0                # ended without an answer
        self.error = None

    def run(self):
        transaction = 0
        try:
            while not self.ending:
                transaction += 1
                self.one(Plan(self.seed, self.number, transaction))
        except Exception as e:
            self.error = f"publisher {self.number}: {e!r}"
        if self.conn:
            self.conn.close()

    def one(self, plan):
        if plan.kind == "prepared" and (
                not self.with_prepared or len(self.prepared) >= OPEN_PREPARED):
            plan.kind = "commit"
            plan.rolls_back = False
        try:
            self.connect()
            self.resolve(plan.transaction)
            with self.conn.cursor() as cursor:
                self.perform(cursor, plan)
            self.counts[plan.kind] = self.counts.get(plan.kind, 0) + 1
        except psycopg2.Error as e:
            # a fault ended the connection; what was committed, the table knows
            if e.pgcode is not None and not isinstance(
                    e, psycopg2.OperationalError):
                raise
            self.unknown += 1
            self.drop_connection()
            time.sleep(0.1)
        time.sleep(plan.pause)

    def connect(self):
        if self.conn is None:
            self.conn = self.postgres.connect(f"publisher {self.number}")
            self.pid = self.conn.info.backend_pid

    def drop_connection(self):
        if self.conn:
            self.conn.close()
        self.conn = self.pid = None

    def perform(self, cursor, plan):
        cursor.execute("BEGIN")
        if plan.asynchronous:
            cursor.execute("SET LOCAL synchronous_commit = off")
        getattr(self, "do_" + plan.kind)(cursor, plan)
        if plan.kind == "prepared":
            self.prepared.append(plan)
            cursor.execute(f"PREPARE TRANSACTION '{plan.name()}'")
        else:
            cursor.execute("ROLLBACK" if plan.rolls_back else "COMMIT")

    def publish(self, cursor, messages, function="publish"):
        cursor.execute(f"SELECT {function}(%s)", [json.dumps(messages)])

    def do_commit(self, cursor, plan):
        self.publish(cursor, plan.messages())

    do_rollback = do_commit
    do_prepared = do_commit

    def do_savepoint(self, cursor, plan):
        depth = 0
        for _ in range(plan.rng.randint(2, 6)):
            cursor.execute(f"SAVEPOINT s{depth}")
            depth += 1
            self.publish(cursor, plan.messages(6))
            if depth > 0 and plan.rng.random() < 0.6:
                depth = plan.rng.randrange(depth)
                cursor.execute(plan.rng.choice(
                    ("ROLLBACK TO", "ROLLBACK TO", "RELEASE")) + f" s{depth}")
                # after ROLLBACK TO it is still there, and shadowed by the next
        self.publish(cursor, plan.messages(3))

    def do_exception(self, cursor, plan):
        self.publish(cursor, plan.messages(5))
        self.publish(cursor, plan.messages(5), "publish_and_fail")
        self.publish(cursor, plan.messages(5))

    def do_large(self, cursor, plan):
        message, count = plan.large()
        cursor.execute("SELECT publish_many(%s, %s)",
                       [json.dumps(message), count])

    def resolve(self, transaction):
        """End prepared transactions whose time has come."""
        for plan in list(self.prepared):
            if plan.transaction + plan.resolve_after > transaction:
                continue
            with self.conn.cursor() as cursor:
                resolve_prepared(cursor, plan)
            self.prepared.remove(plan)


def resolve_prepared(cursor, plan):
    """As its plan says; a fault may have kept it from being prepared, or the
    answer from arriving."""
    verb = "ROLLBACK" if plan.rolls_back else "COMMIT"
    try:
        cursor.execute(f"{verb} PREPARED '{plan.name()}'")
    except psycopg2.errors.UndefinedObject:
        pass


def resolve_rest(postgres, publishers):
    """At the end, when nothing is broken any more."""
    conn = postgres.connect("chaos")
    with conn.cursor() as cursor:
        for publisher in publishers:
            for plan in publisher.prepared:
                resolve_prepared(cursor, plan)
    conn.close()


def finish(publishers):
    for publisher in publishers:
        publisher.ending = True
    for publisher in publishers:
        publisher.join(90)
        if publisher.is_alive():
            raise Trouble(f"publisher {publisher.number} does not end")


def prepare(postgres, ports):
    postgres.query(SCHEMA)
    for name, port in ports.items():
        postgres.query(SERVER.format(name=name, port=port,
                                     key_window=1 if name == "erp" else 0))
    insist(lambda: postgres.worker_pid("mes"))
    insist(lambda: postgres.worker_pid("erp"))

"""The steady workload of the fault matrix, and what watches it.

Publisher threads send at a constant rate in small transactions, some of which
roll back; as in workload.py the table "sent" holds exactly what was committed.
A monitor reads the status of the servers ten times a second, and an observer
reads the ledgers of the consumers as they grow.
"""

import json
import os
import random
import threading
import time

import psycopg2

import consumer

TRANSACTIONS = 20               # of a publisher, in a second
MOST = 4                        # messages of a transaction, 1 to so many
RATE = TRANSACTIONS * (1 + MOST) / 2
KINDS = (("commit", 15), ("rollback", 3), ("savepoint", 2))
SAMPLE_EVERY = 0.1              # seconds

STATUS = """
SELECT server, state, backlog, in_flight, delivered,
    extract(epoch FROM last_error_at), dead_letters,
    (SELECT count(*) FROM amqp_outbox.deferred)
FROM amqp_outbox.server_status
"""


class Steady(threading.Thread):
    """One session.  A key belongs to it, and its numbers grow."""

    def __init__(self, postgres, number, destinations, asynchronous):
        super().__init__(daemon=True)
        self.postgres = postgres
        self.number = number
        self.destinations = destinations
        self.asynchronous = asynchronous
        self.rng = random.Random(number)
        self.conn = None
        self.transaction = 0
        self.unknown = 0                # transactions without an answer
        self.rolled_back = 0
        self.ending = False
        self.error = None

    def run(self):
        due = time.monotonic()
        try:
            while not self.ending:
                self.one()
                due = max(due + 1 / TRANSACTIONS, time.monotonic() - 0.2)
                time.sleep(max(due - time.monotonic(), 0))
        except Exception as e:
            self.error = f"publisher {self.number}: {e!r}"
        self.disconnect()

    def disconnect(self):
        if self.conn:
            self.conn.close()
        self.conn = None

    def one(self):
        try:
            if self.conn is None:
                self.conn = self.postgres.connect(f"steady {self.number}")
            with self.conn.cursor() as cursor:
                self.perform(cursor)
        except psycopg2.Error as e:
            if e.pgcode is not None and not isinstance(
                    e, psycopg2.OperationalError):
                raise
            self.unknown += 1
            self.disconnect()
            time.sleep(0.05)

    def perform(self, cursor):
        self.transaction += 1
        kind = self.rng.choices([k for k, _ in KINDS],
                                [w for _, w in KINDS])[0]
        messages = [self.message(kind, i)
                    for i in range(self.rng.randint(1, MOST))]
        cursor.execute("BEGIN")
        if self.asynchronous:
            cursor.execute("SET LOCAL synchronous_commit = off")
        if kind == "savepoint":
            cursor.execute("SAVEPOINT s")
            self.publish(cursor, [self.message("undone", MOST)])
            cursor.execute("ROLLBACK TO s")
        self.publish(cursor, messages)
        cursor.execute("ROLLBACK" if kind == "rollback" else "COMMIT")
        self.rolled_back += kind == "rollback"

    def publish(self, cursor, messages):
        cursor.execute("SELECT publish(%s)", [json.dumps(messages)])

    def message(self, kind, i):
        d = self.rng.choice(self.destinations)
        # two keys of a destination, one of all of the server, or none
        choice = self.rng.randint(0, 5)
        key = (None if choice == 0 else
               f"{self.number}.{d.server}" if choice == 1 else
               f"{self.number}.{d.queue}.{choice % 2}")
        return {"exchange": d.exchange, "routing_key": d.routing_key,
                "server": d.server, "queue": d.queue,
                "body": {"publisher": self.number,
                         "transaction": self.transaction, "kind": kind,
                         "key": key, "n": self.transaction * (MOST + 1) + i,
                         "at": time.time(),
                         "fill": "x" * self.rng.choice((0, 20, 200))}}


def finish(publishers):
    for publisher in publishers:
        publisher.ending = True
    for publisher in publishers:
        publisher.join(60)
        if publisher.is_alive():
            publisher.error = f"publisher {publisher.number} does not end"


class Sample:
    """The status of all servers at a time."""

    def __init__(self, rows):
        self.time = time.time()
        self.state = {r[0]: r[1] for r in rows}
        self.backlog = {r[0]: r[2] for r in rows}
        self.delivered = {r[0]: r[4] for r in rows}
        self.error_at = {r[0]: float(r[5] or 0) for r in rows}
        self.in_flight = sum(r[3] for r in rows)
        self.dead_letters = sum(r[6] for r in rows)
        self.deferred = rows[0][7]

    def idle(self):
        return (sum(self.backlog.values()) == 0 and self.in_flight == 0
                and set(self.state.values()) == {"connected"})


class Monitor(threading.Thread):
    """Samples; none while PostgreSQL is away."""

    def __init__(self, postgres):
        super().__init__(daemon=True)
        self.postgres = postgres
        self.samples = []
        self.conn = None

    def run(self):
        while True:
            try:
                if self.conn is None:
                    self.conn = self.postgres.connect("monitor")
                with self.conn.cursor() as cursor:
                    cursor.execute(STATUS)
                    self.samples.append(Sample(cursor.fetchall()))
            except psycopg2.Error:
                if self.conn:
                    self.conn.close()
                self.conn = None
            time.sleep(SAMPLE_EVERY)

    def since(self, begin):
        return [s for s in self.samples if s.time >= begin]


class Observer:
    """Arrivals of one queue since it was made."""

    def __init__(self, consumer):
        self.consumer = consumer
        self.queue = consumer.queue
        self.offset = (os.path.getsize(consumer.path)
                       if os.path.exists(consumer.path) else 0)
        self.arrivals = []

    def read(self):
        """Returns how many are new."""
        if not os.path.exists(self.consumer.path):
            return 0
        with open(self.consumer.path, "rb") as f:
            f.seek(self.offset)
            data = f.read()
        data = data[:data.rfind(b"\n") + 1]
        self.offset += len(data)
        lines = data.splitlines()
        for line in lines:
            self.arrivals.append(consumer.Arrival(
                self.queue, len(self.arrivals) + 1, line))
        return len(lines)

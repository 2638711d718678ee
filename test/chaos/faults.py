"""Faults, and when they come.

Faults of one track follow one another, those of different tracks overlap.
The schedule depends on the seed only; a fault that comes late because the one
before it took long comes right after it.

A fault is a generator: it breaks something, yields for as long as it is to
last, and heals it.  Healing insists, whatever other tracks do meanwhile.  Its
target (a server, a queue, a table, a publisher) is part of the schedule.
"""

import os
import random
import signal
import subprocess
import threading
import time

import psycopg2

from plant import DESTINATIONS, NARROW, VHOSTS, Trouble, insist

TRACKS = {}                     # name: list of Fault
# seconds from the end of one to the next
PAUSES = {"postgres": (4, 9), "broker": (5, 10), "topology": (2, 6),
          "network": (2, 7), "sessions": (3, 8)}

TABLES = ("deferred", "receipt", "server_key", *(
    f"{name}_{leaf}" for name in ("outbox", "receipt", "late")
    for leaf in range(4)))


def queues(suffix):
    return tuple(sorted(q for q in DESTINATIONS if q.endswith(suffix)))


class Fault:
    def __init__(self, function, shortest, longest, targets):
        self.function = function
        self.name = function.__name__.replace("_", " ")
        self.shortest = shortest        # seconds
        self.longest = longest
        self.targets = targets


def fault(track, shortest=0, longest=0, targets=("",)):
    def register(function):
        TRACKS.setdefault(track, []).append(
            Fault(function, shortest, longest, targets))
        return function
    return register


#
# PostgreSQL's processes
#

@fault("postgres", targets=VHOSTS)
def worker_terminated(plant, target, rng):
    os.kill(plant.postgres.worker_pid(target), signal.SIGTERM)
    yield


@fault("postgres", targets=VHOSTS)
def worker_killed(plant, target, rng):
    os.kill(plant.postgres.worker_pid(target), signal.SIGKILL)
    yield


@fault("postgres", targets=(1, 2, 3, 4, 5))
def backend_killed(plant, target, rng):
    pid = plant.publishers[target - 1].pid
    if pid is None:
        raise Trouble("not connected")
    os.kill(pid, signal.SIGKILL)
    yield


@fault("postgres")
def launcher_terminated(plant, target, rng):
    os.kill(plant.postgres.launcher_pid(), signal.SIGTERM)
    yield


@fault("postgres", 0, 3)
def stopped_fast(plant, target, rng):
    plant.postgres.stop("fast")
    yield
    plant.postgres.start()


@fault("postgres", 0, 3)
def stopped_immediate(plant, target, rng):
    plant.postgres.stop("immediate")
    yield
    plant.postgres.start()


#
# The broker as a whole
#

@fault("broker", 0, 4)
def broker_killed(plant, target, rng):
    plant.broker.script("kill")
    yield
    plant.broker.start()


@fault("broker", 0, 4)
def broker_stopped(plant, target, rng):
    plant.broker.script("stop")
    yield
    plant.broker.start()


@fault("broker", 1, 4)
def application_stopped(plant, target, rng):
    plant.broker.ctl("stop_app")
    yield
    try:
        plant.broker.ctl("start_app")
    except Trouble:
        # it does not always get its port back
        plant.broker.script("kill")
        plant.broker.start()


@fault("broker", 2, 9)
def broker_frozen(plant, target, rng):
    plant.broker.script("freeze")
    yield
    plant.broker.script("thaw")


@fault("broker", 3, 9)
def memory_alarm(plant, target, rng):
    plant.broker.set_alarm()
    yield
    insist(plant.broker.clear_alarm)


@fault("broker")
def connections_closed(plant, target, rng):
    plant.broker.ctl("close_all_connections", "a fault")
    yield


#
# Exchanges, bindings, permissions, queues
#

@fault("topology", 2, 7, queues(".frail"))
def exchange_deleted(plant, target, rng):
    d = DESTINATIONS[target]
    plant.broker.tool(d.server, "delete-exchange", d.exchange)
    yield
    insist(lambda: plant.broker.declare(d))


@fault("topology", 2, 7, queues(".frail"))
def binding_removed(plant, target, rng):
    d = DESTINATIONS[target]
    plant.broker.tool(d.server, "unbind", d.queue, d.exchange, "plant1.#")
    yield
    insist(lambda: plant.broker.declare(d))


@fault("topology", 3, 7, queues(".narrow"))
def queue_full(plant, target, rng):
    """Nobody takes anything: it rejects."""
    yield from fill_queue(plant, DESTINATIONS[target], "pause")


@fault("topology", 4, 8, queues(".narrow"))
def queue_trickles(plant, target, rng):
    """It is full and somebody takes a few at a time: it rejects one message
    and has room for the next."""
    yield from fill_queue(plant, DESTINATIONS[target], "trickle")


def fill_queue(plant, d, mode):
    """With messages of its own, so that it is full at once."""
    plant.consumers[d.queue].set_mode(mode)
    try:
        plant.postgres.query(
            "SELECT publish(jsonb_agg(jsonb_build_object('exchange', '',"
            " 'routing_key', %s, 'queue', %s, 'server', %s, 'body',"
            " jsonb_build_object('publisher', 0, 'transaction', 0,"
            " 'kind', 'commit', 'n', i)))) FROM generate_series(1, %s) i",
            [d.queue, d.queue, d.server, NARROW])
        yield
    finally:
        plant.consumers[d.queue].set_mode("consume")


@fault("topology", 2, 7)
def access_revoked(plant, target, rng):
    """On a new connection, as the broker remembers for each channel what was
    allowed there."""
    plant.broker.permit("mes", r"^(?!mes\.guarded$).*$")
    try:
        reconnect(plant, "mes")
    except psycopg2.Error:
        pass                    # the server is away, so it will anyway
    yield
    insist(lambda: plant.broker.permit("mes"))


def reconnect(plant, server):
    """By another heartbeat than it has, from 2 to 4 s."""
    heartbeat, = plant.postgres.query(
        "SELECT option_value::int"
        " FROM pg_foreign_server, pg_options_to_table(srvoptions)"
        " WHERE srvname = %s AND option_name = 'heartbeat'", [server])[0]
    plant.postgres.query(f"ALTER SERVER {server} OPTIONS"
                         f" (SET heartbeat '{heartbeat % 3 + 2}')")


#
# The way between worker and broker
#

@fault("network", targets=VHOSTS)
def connection_reset(plant, target, rng):
    plant.proxies[target].reset()
    yield


@fault("network", targets=VHOSTS)
def connection_cut(plant, target, rng):
    plant.proxies[target].cut(rng.randint(1, 60000))
    yield


@fault("network", 1, 6, VHOSTS)
def way_stalled(plant, target, rng):
    plant.proxies[target].set_mode("stall")
    yield
    plant.proxies[target].heal()


@fault("network", 2, 9, VHOSTS)
def way_silent(plant, target, rng):
    plant.proxies[target].set_mode("silence")
    yield
    plant.proxies[target].heal()


@fault("network", 1, 4, VHOSTS)
def confirms_lost(plant, target, rng):
    plant.proxies[target].set_mode("deaf")
    yield
    plant.proxies[target].heal()


#
# What others do in the database
#

@fault("sessions", targets=VHOSTS)
def server_altered(plant, target, rng):
    options = {"window": rng.choice((1, 16, 256, 1024)),
               "heartbeat": rng.randint(2, 4),
               "confirm_timeout": rng.randint(3, 6)}
    plant.postgres.query("ALTER SERVER {} OPTIONS ({})".format(
        target, ", ".join(f"SET {k} '{v}'" for k, v in options.items())))
    yield


@fault("sessions")
def dumped(plant, target, rng):
    subprocess.call(["pg_dump", "-h", plant.postgres.dir, "-U", "postgres",
                     "-f", "/dev/null", "postgres"],
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield


def maintain(plant, statement):
    """It waits for locks, but not longer than a message may."""
    conn = plant.postgres.connect("chaos")
    try:
        with conn.cursor() as cursor:
            cursor.execute("SET lock_timeout = '3s'")
            cursor.execute(statement)
    except psycopg2.errors.LockNotAvailable:
        pass
    finally:
        conn.close()


@fault("sessions", targets=TABLES)
def vacuumed_full(plant, target, rng):
    maintain(plant, f"VACUUM FULL amqp_outbox.{target}")
    yield


@fault("sessions", targets=TABLES)
def reindexed(plant, target, rng):
    maintain(plant, f"REINDEX TABLE amqp_outbox.{target}")
    yield


@fault("sessions")
def checkpointed(plant, target, rng):
    plant.postgres.query("CHECKPOINT")
    yield


@fault("sessions", 3, 15)
def snapshot_held(plant, target, rng):
    conn = plant.postgres.connect("chaos")
    try:
        with conn.cursor() as cursor:
            cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            cursor.execute("SELECT count(*) FROM amqp_outbox.outbox")
            yield
    except psycopg2.Error:
        pass                    # the server ended; so did the snapshot
    finally:
        conn.close()


#
# The schedule
#

class Event:
    """One fault at one time."""

    def __init__(self, fault, begin, rng):
        self.fault = fault
        self.begin = begin
        self.duration = rng.uniform(fault.shortest, fault.longest)
        self.target = rng.choice(fault.targets)
        self.rng = random.Random(rng.random())
        self.text = f"{fault.name} {self.target}".strip()


def schedule(seed, seconds):
    """The events of each track."""
    events = {}
    for track, faults in TRACKS.items():
        rng = random.Random(f"{seed}/faults/{track}")
        begin = rng.uniform(1, 6)
        events[track] = []
        bag = []
        while begin < seconds - 2:
            if not bag:         # each kind once before any comes again
                bag = rng.sample(faults, len(faults))
            event = Event(bag.pop(), begin, rng)
            events[track].append(event)
            begin += event.duration + rng.uniform(*PAUSES[track])
    return events


class Track(threading.Thread):
    """Runs the events of one track."""

    def __init__(self, plant, name, events, start, stop, say):
        super().__init__(daemon=True, name=name)
        self.plant = plant
        self.events = events
        self.start_time = start
        self.stop = stop
        self.say = say
        self.counts = {}
        self.spans = []         # (target, begin, end) by the clock
        self.error = None

    def run(self):
        for event in self.events:
            wait = self.start_time + event.begin - time.monotonic()
            if self.stop.wait(max(wait, 0)):
                break
            try:
                self.one(event)
            except Exception as e:
                self.error = f"track {self.name}: {event.text}: {e!r}"
                break

    def one(self, event):
        generator = event.fault.function(self.plant, event.target, event.rng)
        lasts = f", {event.duration:.1f} s" if event.duration else ""
        self.say(f"{event.text} ({self.name}{lasts})")
        try:
            next(generator)
        except (Trouble, psycopg2.Error, ProcessLookupError,
                StopIteration) as e:
            self.say(f"{event.text}: could not be, {str(e).strip()[:50]!r}")
            return
        name = event.fault.name
        begin = time.time()
        self.counts[name] = self.counts.get(name, 0) + 1
        self.stop.wait(event.duration)
        self.spans.append((event.target, begin, time.time()))
        next(generator, None)
        if event.duration:
            self.say(f"{event.text}: over")

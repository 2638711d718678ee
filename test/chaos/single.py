"""The faults of the matrix, one at a time, in the order of its rows.

Each is a generator as in faults.py, and mostly one of those: it breaks
something, yields for as long as the fault is to last, and heals it.  They hit
the server "mes"; "erp", which has a broker of its own, is the other one.
"""

import json
import os
import random
import signal
import socket
import threading
import time

import psycopg2

import faults
from plant import DESTINATIONS, insist
from proxy import Proxy

ALL = {}                        # in order; the keys are for the command line

STAYS = "the worker tries again; nothing is lost, nobody else notices"
REPEATED = "what was in flight is sent again, marked"
KEPT = "kept with the broker's words, tried again, in order within a key"
ATOMIC = "what committed is sent, what did not is not; repetitions are marked"
UNTOUCHED = "nothing lost, nothing twice, no commit fails"


class Single:
    """One row.  notice: "status", what the log says, or nothing to notice."""

    def __init__(self, function, name, promise, tests, **options):
        self.function = function
        self.name = name
        self.promise = promise
        self.tests = tests
        self.notice = options.get("notice", "status")
        self.hold = options.get("hold", 1)      # seconds, at least
        # the command that breaks takes its time before it does
        self.late = options.get("late", False)
        self.asynchronous = options.get("asynchronous", False)
        self.queues = options.get("queues", ("mes.direct", "mes.topic",
                                             "mes.guarded", "mes.frail"))
        self.options = options.get("alter")     # of the server, meanwhile
        # whether the order within a key is promised
        self.ordered = options.get("ordered", True)
        # whether it is promised that nothing comes twice
        self.clean = options.get("clean", False)


def single(name, promise, tests, **options):
    def register(function):
        identifier = options.get("id", function.__name__)
        ALL[identifier] = Single(function, name, promise, tests, **options)
        return function
    return register


def known(identifier, function, target, name, promise, tests, **options):
    """One of faults.py, with its target."""
    single(name, promise, tests, id=identifier, **options)(
        lambda plant: function(plant, target, random.Random(1)))


class Way(Proxy):
    """A proxy that can also be away: in mode "refused" nobody listens, in
    mode "swallowed" packets that would open a connection are dropped, as its
    backlog is full, and what is connected is silent."""

    def open(self, ports):
        self.fillers = []
        self.absent, self.other_end = socket.socketpair()
        self.real = None
        self.port = super().open(ports)
        return self.port

    def refuse(self):
        self.ask(self.refuse_now)

    def swallow(self):
        self.ask(self.swallow_now)

    def refuse_now(self):
        self.listener.close()
        self.listener = self.absent
        self.mode = "refused"
        self.reset_all()

    def swallow_now(self):
        self.real = self.listener
        self.listener = self.absent
        self.real.listen(0)
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", self.port))
            self.fillers.append(filler)
        self.mode = "silence"

    def heal_now(self):
        if self.mode == "refused":
            self.listener = socket.socket()
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.listener.bind(("127.0.0.1", self.port))
            self.listener.listen(16)
            self.listener.setblocking(False)
        elif self.real:
            for filler in self.fillers:
                filler.close()
            self.fillers = []
            self.real.listen(16)
            self.listener, self.real = self.real, None
        super().heal_now()


def alter(plant, options):
    insist(lambda: plant.postgres.query(
        f"ALTER SERVER mes OPTIONS ({options})"))


def burst(plant, queue, count, cursor=None):
    """Many messages without a key."""
    d = DESTINATIONS[queue]
    message = {"exchange": d.exchange, "routing_key": d.routing_key,
               "server": d.server, "queue": queue,
               "body": {"publisher": 0, "transaction": 0, "kind": "burst",
                        "key": None, "n": 0, "at": 0}}
    statement = "SELECT publish_many(%s, %s)", [json.dumps(message), count]
    if cursor:
        cursor.execute(*statement)
    else:
        plant.postgres.query(*statement)


#
# For comparison
#

@single("none, for comparison", "", "", notice=None, hold=5, clean=True)
def none(plant):
    yield


#
# The broker does not let the worker in, or does not answer
#

@single("connection refused", STAYS,
        "007_alter_server, 005_broker_restart", hold=3)
def connection_refused(plant):
    plant.proxies["mes"].refuse()
    yield
    plant.proxies["mes"].heal()


@single("wrong credentials", STAYS, "007_alter_server", hold=3)
def wrong_credentials(plant):
    mapping = ("ALTER USER MAPPING FOR PUBLIC SERVER mes"
               " OPTIONS (SET password '{}')")
    plant.postgres.query(mapping.format("wrong"))
    yield
    plant.postgres.query(mapping.format("secret"))


@single("virtual host missing", STAYS, "021_login_refused", hold=3)
def vhost_missing(plant):
    alter(plant, "SET vhost 'nowhere'")
    yield
    alter(plant, "SET vhost 'mes'")


@single("connection limit reached", STAYS, "021_login_refused", late=True,
        hold=3)
def connection_limit(plant):
    plant.broker.ctl("set_user_limits", "outbox", '{"max-connections": 0}')
    plant.proxies["mes"].reset()
    yield
    insist(lambda: plant.broker.ctl("clear_user_limits", "outbox",
                                    "max-connections"))


@single("TLS handshake never answered",
        "given up after `connect_timeout`; nobody else notices",
        "022_no_answer", hold=3)
def handshake_unanswered(plant):
    plant.proxies["mes"].set_mode("silence")
    alter(plant, "ADD tls 'true'")
    yield
    alter(plant, "DROP tls")
    plant.proxies["mes"].heal()


@single("host that swallows packets",
        "given up after `confirm_timeout`, each attempt after"
        " `connect_timeout`; nobody else notices", "022_no_answer", hold=8)
def packets_swallowed(plant):
    plant.proxies["mes"].swallow()
    yield
    plant.proxies["mes"].heal()


#
# The broker and the way to it end
#

@single("connection reset in the middle of a frame", REPEATED,
        "025_half_way", hold=0)
def connection_cut(plant):
    plant.proxies["mes"].cut(5000)
    yield


known("node_shut_down", faults.broker_stopped, "",
      "node shut down in order (320)", REPEATED,
      "021_login_refused, 005_broker_restart", hold=3)
known("broker_killed", faults.broker_killed, "", "broker killed (SIGKILL)",
      REPEATED, "005_broker_restart", hold=3)
known("broker_restarted", faults.broker_stopped, "",
      "broker restarted", REPEATED, "005_broker_restart", hold=0)
known("memory_alarm", faults.memory_alarm, "",
      "memory alarm (connection.blocked)",
      "it pauses, on the same connection; nothing twice", "023_blocked",
      hold=4, late=True, clean=True)
known("broker_frozen", faults.broker_frozen, "", "broker frozen (SIGSTOP)",
      REPEATED, "024_frozen", hold=3)
known("confirms_lost", faults.confirms_lost, "mes", "confirms lost", REPEATED,
      "025_half_way", hold=3)


#
# The broker does not take messages
#

@single("queue deleted with publishes in flight, `key_window` 1",
        "what it had not confirmed is " + KEPT, "025_half_way",
        alter="key_window '1'", hold=3)
def queue_deleted(plant):
    """What it has confirmed and not yet passed on is gone with it."""
    d = DESTINATIONS["mes.frail"]
    burst(plant, d.queue, 1000)
    plant.broker.tool(d.server, "delete-queue", d.queue)
    plant.gone = d.queue, time.time()
    yield
    insist(lambda: plant.broker.declare(d))


known("exchange_missing", faults.exchange_deleted, "mes.frail",
      "exchange missing (404)", KEPT, "017_missing_exchange, 008_returned",
      hold=3)


@single("access refused (403)", KEPT, "scripts/chaos", hold=3, late=True)
def access_refused(plant):
    revoked = faults.access_revoked(plant, "", None)
    next(revoked)
    yield
    next(revoked, None)
    alter(plant, "SET heartbeat '3'")


NARROW = ("mes.direct", "mes.narrow")
known("queue_full", faults.queue_full, "mes.narrow",
      "queue full (nack), `key_window` 1", KEPT, "008_returned", hold=3,
      queues=NARROW, alter="key_window '1'")
known("queue_full_pipelined", faults.queue_full, "mes.narrow",
      "queue full (nack), `key_window` 0",
      "as above, but what is in flight may pass the first one refused",
      "008_returned", hold=3, queues=NARROW, ordered=False)
known("unroutable", faults.binding_removed, "mes.frail",
      "unroutable: binding removed, `key_window` 1", KEPT,
      "008_returned, 028_ordering_key", hold=3, alter="key_window '1'")


#
# PostgreSQL's processes
#

known("worker_terminated", faults.worker_terminated, "mes",
      "worker terminated", "drained first: nothing twice",
      "009_shutdown, 004_two", notice=None, hold=0, clean=True)
known("worker_killed", faults.worker_killed, "mes",
      "worker killed (SIGKILL)", ATOMIC, "006_crash", notice=None, hold=0)


@single("backend killed in its commit", ATOMIC,
        "032_failed_commits, 006_crash", notice=None, hold=0)
def backend_killed(plant):
    conn = plant.postgres.connect("victim")
    with conn.cursor() as cursor:
        cursor.execute("BEGIN")
        burst(plant, "mes.direct", 50000, cursor)
    victim = threading.Thread(target=commit, args=(conn,))
    watcher = plant.postgres.connect("watcher")
    with watcher.cursor() as cursor:
        victim.start()
        holder = None
        while victim.is_alive() and holder != conn.info.backend_pid:
            cursor.execute("SELECT holder_pid FROM amqp_outbox.horizon()")
            holder = cursor.fetchone()[0]
        plant.begun()
        if holder == conn.info.backend_pid:
            os.kill(holder, signal.SIGKILL)
        else:
            plant.remark("the commit was too fast to be hit")
    victim.join()
    yield


def commit(conn):
    try:
        with conn.cursor() as cursor:
            cursor.execute("COMMIT")
    except psycopg2.Error:
        pass


known("launcher_terminated", faults.launcher_terminated, "",
      "launcher terminated", "it comes back, the workers stay",
      "004_two, 031_processes", notice=None, hold=2, clean=True)
known("stopped_fast", faults.stopped_fast, "",
      "PostgreSQL stopped (fast), started", "drained first: nothing twice",
      "009_shutdown, 013_possible_duplicates", notice=None, hold=1,
      clean=True)
known("stopped_immediate", faults.stopped_immediate, "",
      "PostgreSQL stopped (immediate), started", ATOMIC, "006_crash",
      notice=None, hold=1)


#
# Transactions
#

@single("transaction of 50,000 messages",
        "memory is bounded, other servers go on", "011_large_transaction",
        notice=None, hold=0, clean=True)
def large_transaction(plant):
    conn = plant.postgres.connect("large")
    with conn.cursor() as cursor:
        cursor.execute("BEGIN")
        burst(plant, "mes.direct", 50000, cursor)
        plant.begun()
        cursor.execute("COMMIT")
    conn.close()
    yield


@single("prepared transaction across a restart",
        "it leaves with COMMIT PREPARED and holds up nobody", "029_prepared",
        notice=None, hold=2, clean=True)
def prepared(plant):
    conn = plant.postgres.connect("prepared")
    with conn.cursor() as cursor:
        cursor.execute("BEGIN")
        burst(plant, "mes.direct", 100, cursor)
        cursor.execute("PREPARE TRANSACTION 'matrix'")
    conn.close()
    plant.begun()
    plant.postgres.stop("fast")
    plant.postgres.start()
    yield
    plant.postgres.query("COMMIT PREPARED 'matrix'")


@single("`synchronous_commit = off`, every process killed",
        "nothing is published that the crash takes back", "006_crash,"
        " 031_processes", notice=None, hold=1, asynchronous=True)
def power_cut(plant):
    """Processes only; what the kernel has stays."""
    with open(os.path.join(plant.postgres.data, "postmaster.pid")) as f:
        postmaster = int(f.readline())
    for pid in (postmaster, *children(postmaster)):
        os.kill(pid, signal.SIGKILL)
    yield
    # until somebody has collected it, it counts as one that runs
    deadline = time.monotonic() + 30
    while (os.path.exists(f"/proc/{postmaster}")
           and time.monotonic() < deadline):
        time.sleep(0.02)
    insist(plant.postgres.start)


def children(parent):
    """Before the parent ends: afterwards they are nobody's."""
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/stat") as f:
                if int(f.read().rpartition(")")[2].split()[1]) == parent:
                    yield int(entry)
        except (OSError, ValueError):
            continue


#
# What others do in the database
#

@single("pg_dump, VACUUM FULL, REINDEX of all tables", UNTOUCHED,
        "035_maintenance", notice=None, hold=0, clean=True)
def maintenance(plant):
    for _ in faults.dumped(plant, "", None):
        pass
    for statement in "VACUUM FULL", "REINDEX TABLE":
        for table in faults.TABLES:
            faults.maintain(plant, f"{statement} amqp_outbox.{table}")
    yield


@single("ALTER SERVER to another address and back",
        "drained first: nothing twice", "007_alter_server", notice=None,
        hold=3, clean=True)
def server_altered(plant):
    alter(plant, f"SET port '{plant.detour.port}'")
    yield
    alter(plant, f"SET port '{plant.proxies['mes'].port}'")


@single("retention 0: the ring turns under load", UNTOUCHED, "027_rotation",
        notice=None, hold=0, clean=True)
def rotation(plant):
    leaves = set()
    for _ in range(20):
        burst(plant, "mes.direct", 1000)
        leaves.add(plant.postgres.query("SELECT amqp_outbox.leaf()")[0][0])
    plant.remark(f"{len(leaves)} of 4 leaves were written")
    yield


@single("old snapshot held", "the outbox grows, the log says who",
        "027_rotation", notice="its oldest leaf cannot be emptied", hold=1,
        clean=True)
def snapshot_held(plant):
    held = faults.snapshot_held(plant, "", None)
    next(held)
    for _ in range(20):
        burst(plant, "mes.direct", 1000)
    yield
    next(held, None)

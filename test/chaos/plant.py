"""The plant under fire: a PostgreSQL, a RabbitMQ and the way between them.

Everything lives in one directory and belongs to one run.  What changes a
server's life (start, stop, kill) is called by one thread at a time: the
tracks of faults.py see to that.
"""

import os
import signal
import subprocess
import threading
import time

import psycopg2

SOURCE = os.environ["SOURCE"]
VHOSTS = ("mes", "erp")
NARROW = 300                    # messages that fit into a narrow queue
ALARM = "{resource_limit,memory,node()}"

POSTGRES_CONF = """
listen_addresses = ''
unix_socket_directories = '{dir}'
shared_preload_libraries = 'amqp_outbox'
shared_buffers = 64MB
max_wal_size = 512MB
max_worker_processes = 16
max_prepared_transactions = 32
restart_after_crash = on
wal_writer_delay = 5s           # it must not be what makes commits durable
log_line_prefix = '%m [%p] %q%a '
amqp_outbox.retention = 0
amqp_outbox.rotation_size = 1MB
amqp_outbox.drain_timeout = 1s
"""


class Trouble(Exception):
    """A command on the plant did not work, perhaps because of a fault."""


class Destination:
    """Where messages go.  frail: an exchange that faults take away, or whose
    binding they remove; guarded: one whose permission they revoke."""

    def __init__(self, server, queue, exchange="", key=None, keyed=True):
        self.server = server
        self.queue = queue
        self.exchange = exchange
        self.routing_key = key or queue
        self.keyed = keyed


# What is in flight behind a message that a full queue rejects, or that came
# back as its binding was gone, may pass it unless key_window is 1.  So keyed
# messages go to such destinations only by the server "erp", which has that.
DESTINATIONS = {d.queue: d for d in (
    Destination("mes", "mes.direct"),
    Destination("mes", "mes.topic", "mes.events", "plant1.order.released"),
    Destination("mes", "mes.guarded", "mes.guarded", "plant1.recipe"),
    Destination("mes", "mes.frail", "mes.frail", "plant1.alarm", keyed=False),
    Destination("mes", "mes.narrow", keyed=False),
    Destination("erp", "erp.direct"),
    Destination("erp", "erp.frail", "erp.frail", "plant1.posting"),
    Destination("erp", "erp.narrow"),
)}


def run(args, timeout=60, **kwargs):
    """Run a command; Trouble with its words if it fails or takes too long."""
    process = subprocess.Popen(args, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True,
                               start_new_session=True, **kwargs)
    try:
        out, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise Trouble(f"{args[0]} took longer than {timeout} s")
    if process.returncode != 0:
        raise Trouble(f"{' '.join(args)}: {out.strip()[-300:]}")
    return out


def insist(action, seconds=90):
    """Do it until it works: what heals must not fail because of a fault of
    another track."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return action()
        except (Trouble, psycopg2.Error, ProcessLookupError) as e:
            if time.monotonic() > deadline:
                raise Trouble(f"not healed in {seconds} s: {e}")
            time.sleep(0.3)


class Postgres:
    """The cluster.  Its server may be down or in recovery at any time."""

    def __init__(self, directory):
        self.dir = directory
        self.data = os.path.join(directory, "data")
        self.log = os.path.join(directory, "log")

    def create(self):
        os.makedirs(self.dir)
        run(["initdb", "-D", self.data, "-U", "postgres", "-A", "trust",
             "--no-locale", "-E", "UTF8"])
        with open(os.path.join(self.data, "postgresql.conf"), "a") as f:
            f.write(POSTGRES_CONF.format(dir=self.dir))
        self.start()

    def start(self):
        with open(os.path.join(self.dir, "pg_ctl"), "a") as out:
            status = subprocess.call(
                ["pg_ctl", "-D", self.data, "-l", self.log, "-w", "-t", "120",
                 "start"], stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        if status != 0:
            raise Trouble(f"PostgreSQL does not start, see {self.log}")

    def stop(self, mode):
        run(["pg_ctl", "-D", self.data, "-m", mode, "-w", "-t", "60", "stop"],
            timeout=90)

    def runs(self):
        return subprocess.call(["pg_ctl", "-D", self.data, "status"],
                               stdout=subprocess.DEVNULL) == 0

    def connect(self, name):
        conn = psycopg2.connect(host=self.dir, user="postgres",
                                dbname="postgres", application_name=name,
                                connect_timeout=10)
        conn.autocommit = True
        return conn

    def query(self, sql, args=None):
        """The rows of one statement, over a connection of its own."""
        conn = self.connect("chaos")
        try:
            with conn.cursor() as cursor:
                cursor.execute(sql, args)
                return cursor.fetchall() if cursor.description else []
        finally:
            conn.close()

    def worker_pid(self, server):
        rows = self.query(
            "SELECT w.pid FROM amqp_outbox.worker() w"
            " JOIN pg_foreign_server s ON s.oid = w.server_oid"
            " JOIN pg_stat_activity a ON a.pid = w.pid"
            " WHERE s.srvname = %s", [server])
        if not rows:
            raise Trouble(f"no worker of {server}")
        return rows[0][0]

    def launcher_pid(self):
        rows = self.query("SELECT pid FROM pg_stat_activity"
                          " WHERE backend_type = 'amqp_outbox launcher'")
        if not rows:
            raise Trouble("no launcher")
        return rows[0][0]


class Broker:
    """The RabbitMQ, by scripts/rabbitmq."""

    def __init__(self, directory):
        self.dir = directory
        self.lock = threading.Lock()

    def script(self, command, *args, timeout=60):
        with open(os.path.join(os.path.dirname(self.dir), "rabbitmq.out"),
                  "a") as out:
            process = subprocess.Popen(
                [os.path.join(SOURCE, "scripts/rabbitmq"), command, self.dir,
                 *args], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True)
            try:
                status = process.wait(timeout)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise Trouble(f"rabbitmq {command} took over {timeout} s")
        if status != 0:
            raise Trouble(f"rabbitmq {command} failed")

    def start(self):
        self.script("start", timeout=150)

    def ctl(self, *args):
        self.script("ctl", *args, timeout=30)

    def port(self):
        with open(os.path.join(self.dir, "port")) as f:
            return int(f.read())

    def url(self, vhost):
        return f"amqp://guest:guest@127.0.0.1:{self.port()}/{vhost}"

    def tool(self, vhost, *args):
        return run(["amqp_tool", "--url", self.url(vhost), *args], timeout=25)

    def prepare(self):
        for vhost in VHOSTS:
            self.ctl("add_vhost", vhost)
            self.ctl("set_permissions", "-p", vhost, "guest", ".*", ".*", ".*")
        self.ctl("add_user", "outbox", "secret")
        for vhost in VHOSTS:
            self.permit(vhost)
        for d in DESTINATIONS.values():
            self.declare(d)

    def permit(self, vhost, write=".*"):
        self.ctl("set_permissions", "-p", vhost, "outbox", "^$", write, ".*")

    def set_alarm(self):
        self.ctl("eval", f"rabbit_alarm:set_alarm({{{ALARM},[]}}).")

    def clear_alarm(self):
        self.ctl("eval", f"rabbit_alarm:clear_alarm({ALARM}).")

    def declare(self, d):
        """Queue, exchange and binding, as they are to be."""
        limits = []
        if d.queue.endswith(".narrow"):
            limits = ["--arg", f"x-max-length={NARROW}",
                      "--arg", "x-overflow=reject-publish"]
        self.tool(d.server, "declare-queue", d.queue, *limits)
        if d.exchange:
            self.tool(d.server, "declare-exchange", d.exchange, "topic")
            self.tool(d.server, "bind", d.queue, d.exchange, "plant1.#")

    def answers(self):
        try:
            for vhost in VHOSTS:
                self.tool(vhost, "count", f"{vhost}.direct")
            return True
        except Trouble:
            return False


class Plant:
    """All of it."""

    def __init__(self, directory, proxies):
        self.dir = directory
        self.postgres = Postgres(os.path.join(directory, "pg"))
        self.broker = Broker(os.path.join(directory, "rabbit"))
        self.proxies = proxies          # by server
        self.consumers = {}             # by queue
        self.publishers = []

    def heal(self):
        """Whatever faults did, it is whole after this."""
        for proxy in self.proxies.values():
            proxy.heal()
        try:
            self.broker.script("thaw")
        except Trouble:
            pass
        if not self.broker.answers():
            self.broker.script("kill")
            self.broker.start()
        insist(self.broker.clear_alarm)
        for vhost in VHOSTS:
            insist(lambda: self.broker.permit(vhost))
        for d in DESTINATIONS.values():
            insist(lambda: self.broker.declare(d))
        for consumer in self.consumers.values():
            consumer.set_mode("consume")
        if not self.postgres.runs():
            self.postgres.start()
        for server in VHOSTS:
            insist(lambda: self.postgres.query(
                f"ALTER SERVER {server} OPTIONS (SET window '1024')"))

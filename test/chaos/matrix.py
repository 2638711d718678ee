"""The fault matrix: what each single fault does, measured.

    matrix.py DIRECTORY [FAULT...]

Called by scripts/reliability, inside.  Two servers, each with a broker of its
own, get a steady load.  For each fault: load, break, wait until it is noticed,
heal, wait until all is as it was, stop the load, compare what arrived with
what was committed.  The next fault begins with everything delivered.

The table goes to DIRECTORY/table.md.  Exit code 0 if every promise was kept, 1
if one was broken, 2 if it could not be found out.
"""

import os
import random
import re
import sys
import threading
import time
import traceback

import psycopg2

import consumer
import steady
import verdict
import workload
from plant import DESTINATIONS, VHOSTS, Broker, Plant, Trouble, insist, run
from single import ALL, Way

WARM_UP = 2                     # seconds
NOTICE_TIMEOUT = 20
RECOVER_TIMEOUT = 30
SETTLE_TIMEOUT = 30
SLACK = 10                      # messages of backlog that are none
OTHER_QUEUES = ("erp.direct", "erp.frail")
SETTINGS = ("heartbeat", "confirm_timeout", "connect_timeout")
HEAD = ("fault", "what is promised", "lost", "duplicated", "marked",
        "out of order", "notice s", "recover s",
        "other server's longest gap s", "the test that holds it")


class Trial(Plant):
    """A plant with a broker for each server, and one fault at a time."""

    def __init__(self, directory):
        self.detour = Way(lambda: self.broker.port())
        super().__init__(directory, {
            name: Way(lambda name=name: self.brokers[name].port())
            for name in VHOSTS})
        self.brokers = {name: Broker(os.path.join(directory, name, "rabbit"))
                        for name in VHOSTS}
        self.broker = self.brokers["mes"]
        self.monitor = steady.Monitor(self.postgres)

    def build(self):
        makers = [threading.Thread(target=self.make, args=(b,))
                  for b in self.brokers.values()]
        for maker in makers:
            maker.start()
        self.postgres.create()
        for maker in makers:
            maker.join()
        low, high = map(int, (os.environ.get("OUTBOX_PORTS")
                              or "10000-31999").split("-"))
        ports = {name: proxy.open(random.sample(range(low, high + 1), 50))
                 for name, proxy in (*self.proxies.items(),
                                     ("detour", self.detour))}
        del ports["detour"]
        workload.prepare(self.postgres, ports)
        self.set_window(0)
        ledger = os.path.join(self.dir, "ledger")
        os.makedirs(ledger)
        for queue, d in DESTINATIONS.items():
            self.consumers[queue] = consumer.Consumer(
                self.brokers[d.server], d, ledger)
            self.consumers[queue].start()
        self.monitor.start()

    def make(self, broker):
        os.makedirs(os.path.dirname(broker.dir))
        broker.start()
        broker.prepare()

    def set_window(self, keys):
        for server in VHOSTS:
            self.postgres.query(
                f"ALTER SERVER {server} OPTIONS (SET key_window '{keys}')")

    def reset(self):
        """As before any fault, also after one that failed."""
        for way in self.proxies.values():
            way.heal()
        if not self.broker.answers():
            self.broker.script("kill")
            self.broker.start()
        if not self.postgres.runs():
            insist(self.postgres.start)
        insist(lambda: self.set_window(0))
        if not self.wait_idle():
            self.postgres.query("SELECT amqp_outbox.wake()")
            self.wait_idle()
        insist(lambda: self.postgres.query("TRUNCATE sent"))

    def wait_idle(self):
        """Until all is delivered."""
        deadline = time.monotonic() + SETTLE_TIMEOUT
        while time.monotonic() < deadline:
            recent = self.monitor.since(time.time() - 1)
            if recent and all(s.idle() for s in recent[-2:]):
                return True
            time.sleep(steady.SAMPLE_EVERY)
        return False

    def finish(self):
        for c in self.consumers.values():
            c.ending = True
            c.stop_process()
        for action in (lambda: self.postgres.stop("immediate"),
                       *(lambda b=b: b.script("kill")
                         for b in self.brokers.values())):
            try:
                action()
            except Trouble:
                pass


class Measurement:
    """One fault."""

    def __init__(self, trial, single):
        self.trial = trial
        self.single = single
        self.remarks = []
        self.broken = []                # promises
        self.noticed = None             # time, or None
        self.recovered = None
        trial.remark = self.remarks.append
        trial.begun = self.begun
        trial.gone = None
        trial.set_window(0)

    def begun(self):
        self.begin = time.time()

    def measure(self):
        trial = self.trial
        if self.single.options:
            trial.postgres.query(
                f"ALTER SERVER mes OPTIONS (SET {self.single.options})")
        self.observers = [steady.Observer(c)
                          for c in trial.consumers.values()]
        self.log_offset = os.path.getsize(trial.postgres.log)
        self.delivered = trial.monitor.samples[-1].delivered
        self.load()
        time.sleep(WARM_UP)
        try:
            self.usual = max((sum(s.backlog.values()) for s in
                              trial.monitor.since(time.time() - WARM_UP)),
                             default=0) + SLACK
            self.break_and_heal()
            self.wait_recovered()
            time.sleep(0.5)
        finally:
            steady.finish(self.publishers)
        if not trial.wait_idle():
            self.broken.append("not all is delivered in the end")
        while self.read():
            time.sleep(0.4)
        self.judge()

    def load(self):
        """Two sessions for each server."""
        queues = (self.single.queues, OTHER_QUEUES) * 2
        self.publishers = [
            steady.Steady(self.trial.postgres, i + 1,
                          [DESTINATIONS[q] for q in queues[i]],
                          self.single.asynchronous)
            for i in range(len(queues))]
        for publisher in self.publishers:
            publisher.start()

    def break_and_heal(self):
        self.called = time.time()
        self.begin = None
        fault = self.single.function(self.trial)
        next(fault)
        if self.begin is None:
            self.begin = time.time() if self.single.late else self.called
        deadline = time.time() + NOTICE_TIMEOUT
        while self.single.notice and time.time() < deadline:
            self.noticed = self.notice()
            if self.noticed:
                break
            time.sleep(0.02)
        else:
            if self.single.notice:
                self.broken.append("not noticed")
        time.sleep(max(self.called + self.single.hold - time.time(), 0))
        if next(fault, self) is not self:
            raise Trouble("a fault that does not end")
        self.healed = time.time()

    def notice(self):
        if self.single.notice == "status":
            for s in self.trial.monitor.since(self.called):
                if s.error_at["mes"] > self.called:
                    return s.error_at["mes"]
                if (s.state["mes"] == "blocked" or s.deferred > 0
                        or s.dead_letters > 0):
                    return s.time
            return None
        with open(self.trial.postgres.log, errors="replace") as f:
            f.seek(self.log_offset)
            return time.time() if self.single.notice in f.read() else None

    def read(self):
        return sum(o.read() for o in self.observers)

    def wait_recovered(self):
        """Until messages begun after the healing have arrived, of both
        servers, and the backlog is what it was."""
        deadline = time.time() + RECOVER_TIMEOUT
        while time.time() < deadline:
            self.read()
            first = [self.first_arrival(server) for server in VHOSTS]
            calm = next((s.time for s in self.trial.monitor.since(self.healed)
                         if sum(s.backlog.values()) <= self.usual), None)
            if None not in first and calm:
                self.recovered = max(*first, calm)
                return
            time.sleep(0.05)
        self.broken.append(f"not recovered in {RECOVER_TIMEOUT} s")

    def first_arrival(self, server):
        return min((a.time for o in self.observers
                    if o.queue.startswith(server) for a in o.arrivals
                    if a.body.get("at", 0) > self.healed), default=None)

    def longest_gap(self):
        """Of the other server's arrivals, from break to recovery."""
        end = self.recovered or time.time()
        times = sorted(a.time for o in self.observers
                       if o.queue in OTHER_QUEUES for a in o.arrivals)
        return max((b - a for a, b in zip(times, times[1:])
                    if b > self.begin and a < end), default=end - self.begin)

    def judge(self):
        sent = verdict.read_sent(self.trial.postgres)
        arrivals = [a for o in self.observers for a in o.arrivals]
        copies, unmarked = verdict.group(arrivals)
        received = {message_id for _, message_id in copies}
        left = verdict.read_left(self.trial.postgres)
        lost = self.without_gone([i for i in sent if i not in received
                                  and i not in left], sent)
        self.sent = len(sent)
        self.lost = len(lost)
        self.duplicates = sum(c.duplicates for c in copies.values())
        self.redelivered = sum(c.redelivered for c in copies.values())
        self.unmarked = len(unmarked)
        disorder = list(verdict.out_of_order(copies))
        self.disorder = len(disorder)
        phantoms = list(verdict.of_other_transactions(arrivals, sent))
        self.rolled_back = sum(p.rolled_back for p in self.publishers)
        self.broken += [f"{what}: {len(which)}, first {which[0]}"
                        for what, which in (
            ("lost", [f"{i} {sent[i]}" for i in lost]),
            ("left", list(left.values())),
            ("unmarked", unmarked),
            ("received from transactions that did not commit", phantoms),
            ("out of order", disorder if self.single.ordered else []),
            ("twice, marked", [1] * self.duplicates if self.single.clean
             else []),
            ("changed", list(verdict.changed(arrivals, sent))),
            ("account", list(self.account(sent))),
            ("errors", [p.error for p in self.publishers if p.error]))
            if which]

    def without_gone(self, lost, sent):
        """Without what was sent to a queue before it was deleted: what it had
        confirmed went with it."""
        if not self.trial.gone:
            return lost
        queue, when = self.trial.gone
        gone = [i for i in lost if sent[i]["queue"] == queue
                and published_at(i) < when]
        if gone:
            self.remarks.append(f"{len(gone)} messages that the queue had"
                                " confirmed went with it")
        return [i for i in lost if i not in set(gone)]

    def account(self, sent):
        """What the extension counts as delivered, in this trial."""
        now = self.trial.monitor.samples[-1].delivered
        for server in VHOSTS:
            committed = sum(row["server"] == server for row in sent.values())
            counted = now[server] - self.delivered[server]
            if committed != counted:
                yield f"{server}: {committed} committed, {counted} counted"

    def row(self):
        s = self.single

        def seconds(time, since):
            if time is None:
                return "-"
            return f"{time - since:.1f}" if time - since >= 0.1 else "< 0.1"

        tests = ", ".join(t if "/" in t else f"{t}.pl"
                          for t in s.tests.split(", ") if t)
        return (s.name, s.promise, self.lost, self.duplicates,
                self.duplicates - self.unmarked, self.disorder,
                seconds(self.noticed, self.begin),
                seconds(self.recovered, self.healed) if s.promise else "-",
                f"{self.longest_gap():.1f}", tests)


def published_at(message_id):
    """The time in a UUID of version 7."""
    return int(message_id.replace("-", "")[:12], 16) / 1000


def line(cells):
    return "| " + " | ".join(map(str, cells)) + " |"


def preamble():
    options = {m: re.search(rf"{m} '(\d+)'", workload.SERVER).group(1)
               for m in SETTINGS}
    version = run(["postgres", "--version"]).split()[2]
    return (
        f"PostgreSQL {version}; two servers, each with a broker of its own and"
        f" {2 * steady.RATE:.0f} messages/s; "
        + ", ".join(f"`{k}` {v} s" for k, v in options.items()) + ".")


def summary(measurements):
    return (
        f"{sum(m.sent for m in measurements):,} messages were committed in"
        f" these {len(measurements)} trials,"
        f" {sum(m.rolled_back for m in measurements):,} transactions rolled"
        f" back, and no message of these arrived; the brokers redelivered"
        f" {sum(m.redelivered for m in measurements):,} of their own.")


def one(trial, identifier):
    """Returns the measurement, or None if it could not be made."""
    single = ALL[identifier]
    print(f"# {identifier}", flush=True)
    begin = time.monotonic()
    try:
        trial.reset()
        m = Measurement(trial, single)
        m.measure()
    except (Trouble, psycopg2.Error, ProcessLookupError, StopIteration) as e:
        print(f"not ok - {identifier} could not be measured: {e!r}",
              flush=True)
        traceback.print_exc(file=sys.stdout)
        return None
    print(line(m.row()), flush=True)
    for remark in m.remarks:
        print(f"#   {remark}")
    for what in m.broken:
        print(f"#   {what}")
    print(f"{'not ' if m.broken else ''}ok - {identifier} ({m.sent} messages,"
          f" {time.monotonic() - begin:.0f} s)", flush=True)
    return m


def write_table(path, measurements):
    with open(path, "w") as f:
        print(preamble(), file=f)
        print(file=f)
        print(line(HEAD), file=f)
        print(line(["---", "---", *["---:"] * 7, "---"]), file=f)
        for m in measurements:
            print(line(m.row()), file=f)
        print(file=f)
        print(summary(measurements), file=f)


def main():
    directory, *names = sys.argv[1:]
    unknown = [n for n in names if n not in ALL]
    if unknown:
        print("no fault", *unknown, "- there are", *ALL)
        return 2
    os.makedirs(directory)
    trial = Trial(directory)
    try:
        trial.build()
        measurements = [one(trial, name) for name in names or ALL]
    except Exception:
        print(traceback.format_exc())
        return 2
    finally:
        trial.finish()
    bad = list(verdict.bad_log_lines(trial.postgres.log))
    for text in bad[:verdict.SHOWN]:
        print(f"not ok - in the server's log: {text}")
    made = [m for m in measurements if m]
    if made:
        table = os.path.join(directory, "table.md")
        write_table(table, made)
        print()
        print(open(table).read())
    failed = len(measurements) - sum(not m.broken for m in made)
    print(f"{len(measurements) - failed} of {len(measurements)} faults kept"
          " every promise")
    return 1 if failed or bad else 0


if __name__ == "__main__":
    sys.exit(main())

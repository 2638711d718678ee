"""chaos: publishers, faults and consumers for a while, and the verdict.

    chaos.py DIRECTORY SEED MINUTES

Called by scripts/chaos, inside.  Exit code 0 if every promise was kept, 1 if
one was broken, 2 if it could not be found out.
"""

import os
import random
import sys
import threading
import time
import traceback

import consumer
import faults
import verdict
import workload
from plant import DESTINATIONS, VHOSTS, Plant, Trouble, insist
from proxy import Proxy

PUBLISHERS = 5
SETTLE_TIMEOUT = 120            # seconds for the rest to be delivered


class Run:
    def __init__(self, directory, seed, minutes):
        self.dir = directory
        self.seed = seed
        self.seconds = minutes * 60
        self.begin = time.monotonic()
        self.lock = threading.Lock()
        self.output = open(os.path.join(directory, "output"), "w")
        self.errors = []

    def print(self, text):
        with self.lock:
            print(text, flush=True)
            print(text, file=self.output, flush=True)

    def say(self, text):
        """With the time since the start, and of the clock for the logs."""
        now = time.time()
        clock = time.strftime("%H:%M:%S", time.localtime(now))
        self.print(f"{time.monotonic() - self.begin:8.1f} s  "
                   f"{clock}.{int(now * 1000) % 1000:03d}  {text}")

    def build(self):
        low, high = map(int, (os.environ.get("OUTBOX_PORTS")
                              or "10000-31999").split("-"))
        proxies = {name: Proxy(lambda: self.plant.broker.port())
                   for name in VHOSTS}
        self.plant = plant = Plant(self.dir, proxies)
        plant.broker.start()
        plant.broker.prepare()
        plant.postgres.create()
        ports = {name: proxy.open(random.sample(range(low, high + 1), 50))
                 for name, proxy in proxies.items()}
        workload.prepare(plant.postgres, ports)
        self.with_prepared = workload.can_prepare(plant.postgres)
        if not self.with_prepared:
            self.print("(PREPARE TRANSACTION is refused after publishing:"
                       " no prepared transactions)")
        ledger = os.path.join(self.dir, "ledger")
        os.makedirs(ledger)
        for queue, d in DESTINATIONS.items():
            plant.consumers[queue] = consumer.Consumer(plant.broker, d, ledger)
            plant.consumers[queue].start()
        plant.publishers += [
            workload.Publisher(plant.postgres, self.seed, i + 1,
                               self.with_prepared) for i in range(PUBLISHERS)]

    def rage(self):
        """Publish while things break."""
        stop = threading.Event()
        self.begin = time.monotonic()
        self.tracks = [
            faults.Track(self.plant, name, events, self.begin, stop, self.say)
            for name, events in
            faults.schedule(self.seed, self.seconds).items()]
        for thread in self.plant.publishers + self.tracks:
            thread.start()
        stop.wait(self.seconds)
        stop.set()
        for track in self.tracks:
            track.join(200)
            if track.is_alive():
                self.errors.append("a fault does not end")

    def settle(self):
        """No more faults; everything is to be delivered."""
        plant = self.plant
        self.say("healing")
        plant.heal()
        workload.finish(plant.publishers)
        workload.resolve_rest(plant.postgres, plant.publishers)
        plant.postgres.query("SELECT amqp_outbox.wake()")
        self.say("waiting for the rest to be delivered")
        deadline = time.monotonic() + SETTLE_TIMEOUT
        while not self.settled() and time.monotonic() < deadline:
            time.sleep(0.5)
        self.say("emptying the queues")
        for c in plant.consumers.values():
            insist(c.finish, 30)

    def settled(self):
        rows = self.plant.postgres.query(
            "SELECT sum(backlog) = 0 AND sum(in_flight) = 0"
            " FROM amqp_outbox.server_status")
        return rows[0][0]

    def judge(self):
        plant = self.plant
        self.errors += [t.error for t in self.tracks + plant.publishers
                        if t.error]
        self.print("")
        arrivals = consumer.read_ledger(plant.consumers.values())
        failed, figures = verdict.judge(plant.postgres, arrivals, self.errors,
                                        self.print)
        spans = [s for t in self.tracks if t.name == "network"
                 for s in t.spans]
        figures.update([verdict.independence(spans, arrivals)])
        self.report(figures)
        return failed

    def report(self, figures):
        plant = self.plant
        self.print("")
        for kind in sorted({k for p in plant.publishers for k in p.counts}):
            n = sum(p.counts.get(kind, 0) for p in plant.publishers)
            self.print(f"{n:8d}  transactions: {kind}")
        n = sum(p.unknown for p in plant.publishers)
        self.print(f"{n:8d}  transactions without an answer")
        for name, n in figures.items():
            self.print(f"{n:8d}  {name}")
        for track in self.tracks:
            for name, n in sorted(track.counts.items()):
                self.print(f"{n:8d}  faults: {name}")
        self.print(f"{time.monotonic() - self.begin:8.0f}  seconds")

    def finish(self):
        """End the servers, whatever state they are in."""
        for c in self.plant.consumers.values():
            c.ending = True
            c.stop_process()
        for action in (lambda: self.plant.postgres.stop("immediate"),
                       lambda: self.plant.broker.script("kill")):
            try:
                action()
            except Trouble:
                pass


def main():
    directory, seed, minutes = sys.argv[1:]
    os.makedirs(directory)
    run = Run(directory, int(seed), float(minutes))
    run.print(f"seed {seed}, {minutes} minutes")
    try:
        run.build()
        run.rage()
        run.settle()
        failed = run.judge()
    except Exception:
        run.print(traceback.format_exc())
        run.print("not ok - the harness came to its end: 1")
        return 2
    finally:
        run.finish()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Consumers, one for each queue, and the ledger that they keep.

A consumer is test/helpers/amqp_tool, which shares no line with the extension.
It appends each arrival to a file before it acknowledges it; when the broker
throws it out, it is started again.  The number of a line is the number of the
arrival.
"""

import json
import os
import signal
import subprocess
import threading
import time

from plant import Trouble

PREFETCH = "200"
TRICKLE = "5"


class Consumer(threading.Thread):
    def __init__(self, broker, destination, directory):
        super().__init__(daemon=True)
        self.broker = broker
        self.destination = destination
        self.queue = destination.queue
        self.path = os.path.join(directory, f"{self.queue}.jsonl")
        self.log = os.path.join(directory, f"{self.queue}.log")
        self.process = None
        self.lock = threading.Lock()
        self.mode = "consume"           # or "trickle", or "pause"
        self.ending = False

    def command(self, *args):
        return ["amqp_tool", "--url", self.broker.url(self.destination.server),
                *args]

    def begin(self):
        args = {"consume": ("consume", self.queue, "--prefetch", PREFETCH),
                "trickle": ("get", self.queue, TRICKLE)}
        with self.lock:
            if self.mode == "pause" or self.ending:
                return None
            self.end_line()
            with open(self.path, "ab") as out, open(self.log, "ab") as log:
                self.process = subprocess.Popen(
                    self.command(*args[self.mode]),
                    stdin=subprocess.DEVNULL, stdout=out, stderr=log)
            return self.process

    def end_line(self):
        """A process that was killed may have left half a line."""
        with open(self.path, "ab+") as ledger:
            if ledger.tell() > 0:
                ledger.seek(-1, os.SEEK_END)
                if ledger.read(1) != b"\n":
                    ledger.write(b"\n")

    def run(self):
        while not self.ending:
            process = self.begin()
            if process:
                process.wait()
            time.sleep(0.03 if self.mode == "trickle" else 0.2)

    def stop_process(self):
        with self.lock:
            process = self.process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()

    def set_mode(self, mode):
        """consume; trickle: take a few now and then; or pause."""
        self.mode = mode
        self.stop_process()

    def finish(self):
        """End it, and take what may still be in the queue."""
        self.ending = True
        self.stop_process()
        self.join(30)
        self.end_line()
        with open(self.path, "ab") as out:
            status = subprocess.call(self.command("get", self.queue),
                                     stdin=subprocess.DEVNULL, stdout=out,
                                     timeout=120)
        if status != 0:
            raise Trouble(f"cannot empty {self.queue}")


class Arrival:
    """One line of the ledger."""

    __slots__ = ("queue", "number", "id", "time", "redelivered", "marked",
                 "body")

    def __init__(self, queue, number, line):
        entry = json.loads(line)
        properties = entry["properties"]
        mark = properties.get("headers", {}).get("x-possible-duplicate")
        self.queue = queue
        self.number = number
        self.id = properties.get("message_id")
        self.time = entry["arrived_us"] / 1e6
        self.redelivered = entry["redelivered"]
        self.marked = mark is not None and mark["value"] is True
        self.body = json.loads(entry["body_text"])


def read_ledger(consumers):
    """All arrivals, of each queue in their order.

    Half a line is none: what it was about was not acknowledged.
    """
    arrivals = []
    for consumer in consumers:
        with open(consumer.path) as f:
            for number, line in enumerate(f, 1):
                try:
                    arrivals.append(Arrival(consumer.queue, number, line))
                except json.JSONDecodeError:
                    continue
    return arrivals

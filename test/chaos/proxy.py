"""A way to the broker that can be broken: a TCP proxy on loopback.

One for each server of amqp_outbox, a thread each.  Modes:

    open      bytes pass both ways
    stall     nothing is read from either side; on healing it goes on
    silence   the same, but on healing all connections are reset
    deaf      what the worker sends passes, what the broker answers is thrown
              away: confirms are lost; on healing all connections are reset
"""

import selectors
import socket
import struct
import threading


class Pair:
    """One connection of a worker and its counterpart to the broker."""

    def __init__(self, worker, broker):
        self.ends = (worker, broker)
        self.buffers = {worker: b"", broker: b""}   # still to be sent to

    def other(self, end):
        return self.ends[1] if end is self.ends[0] else self.ends[0]


class Proxy(threading.Thread):
    CHUNK = 65536

    def __init__(self, target):
        super().__init__(daemon=True)
        self.target = target            # function: the broker's port
        self.mode = "open"
        self.cut_after = None           # bytes to the broker until a reset
        self.requests = []              # functions to run in this thread
        self.pairs = {}                 # by socket
        self.selector = selectors.DefaultSelector()
        self.listener = None
        self.wake_in, self.wake_out = socket.socketpair()

    def open(self, ports):
        """Listen on the first free port of those given."""
        for port in ports:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                listener.close()
                continue
            listener.listen(16)
            listener.setblocking(False)
            self.listener = listener
            self.start()
            return port
        raise OSError("no free port for a proxy")

    # called by other threads

    def ask(self, function):
        self.requests.append(function)
        self.wake_in.send(b"x")

    def set_mode(self, mode):
        self.ask(lambda: setattr(self, "mode", mode))

    def reset(self):
        self.ask(self.reset_all)

    def cut(self, after):
        """Reset in the middle of what the worker sends."""
        self.ask(lambda: setattr(self, "cut_after", after))

    def heal(self):
        self.ask(self.heal_now)

    # this thread

    def heal_now(self):
        if self.mode in ("silence", "deaf"):
            self.reset_all()
        self.mode = "open"
        self.cut_after = None

    def reset_all(self):
        for pair in set(self.pairs.values()):
            self.end(pair)

    def end(self, pair):
        """Without goodbye: a RST to both ends."""
        for end in pair.ends:
            self.pairs.pop(end, None)
            try:
                self.selector.unregister(end)
            except (KeyError, ValueError):
                pass
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                           struct.pack("ii", 1, 0))
            end.close()

    def accept(self):
        worker, _ = self.listener.accept()
        broker = socket.socket()
        try:
            broker.connect(("127.0.0.1", self.target()))
        except OSError:
            broker.close()
            worker.close()
            return
        pair = Pair(worker, broker)
        for end in pair.ends:
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.pairs[end] = pair

    def receive(self, pair, end):
        data = end.recv(self.CHUNK)
        if not data:
            self.end(pair)
            return
        to_broker = end is pair.ends[0]
        if self.mode == "deaf" and not to_broker:
            return
        if to_broker and self.cut_after is not None:
            if self.cut_after <= len(data):
                pair.ends[1].send(data[:self.cut_after])
                self.cut_after = None
                self.end(pair)
                return
            self.cut_after -= len(data)
        pair.buffers[pair.other(end)] += data

    def pass_on(self, pair, end):
        buffer = pair.buffers[end]
        pair.buffers[end] = buffer[end.send(buffer):]

    def wanted(self):
        """Which events each socket is waited for."""
        if self.mode in ("stall", "silence"):
            return {}
        events = {}
        for end, pair in self.pairs.items():
            mask = 0
            if len(pair.buffers[pair.other(end)]) < self.CHUNK:
                mask |= selectors.EVENT_READ
            if pair.buffers[end]:
                mask |= selectors.EVENT_WRITE
            if mask:
                events[end] = mask
        return events

    def register(self):
        wanted = self.wanted()
        wanted[self.listener] = selectors.EVENT_READ
        wanted[self.wake_out] = selectors.EVENT_READ
        for key in list(self.selector.get_map().values()):
            if key.fileobj not in wanted:
                self.selector.unregister(key.fileobj)
            elif key.events != wanted.pop(key.fileobj):
                self.selector.unregister(key.fileobj)
                wanted[key.fileobj] = self.wanted().get(key.fileobj, 1)
        for end, mask in wanted.items():
            self.selector.register(end, mask)

    def handle(self, end, mask):
        if end is self.listener:
            self.accept()
            return
        if end is self.wake_out:
            self.wake_out.recv(4096)
            return
        pair = self.pairs.get(end)
        if pair is None:
            return
        try:
            if mask & selectors.EVENT_WRITE:
                self.pass_on(pair, end)
            if mask & selectors.EVENT_READ:
                self.receive(pair, end)
        except OSError:
            self.end(pair)

    def run(self):
        while True:
            while self.requests:
                self.requests.pop(0)()
            self.register()
            for key, mask in self.selector.select(1):
                self.handle(key.fileobj, mask)

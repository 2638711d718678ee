"""The verdict: what was committed against what arrived.

"sent" holds what was committed; the ledger holds every arrival.  Each promise
is a line "ok - ..." or "not ok - ..." with its first violations.

An arrival with the broker's redelivered flag is the broker's repetition of a
copy that it already had; it is counted apart, unless only a second copy can
explain it.
"""

import re

SHOWN = 5                       # violations of each kind

ALARM = re.compile(r"TRAP: |PANIC: |ERROR: AddressSanitizer|runtime error: |"
                   r"terminated by signal (?!9:|9$)\d+")
# errors of processes without a session: those of workers and launcher
OWN_ERROR = re.compile(r"^\S+ \S+ \S+ \[\d+\] (ERROR|FATAL): ")
# what the faults explain
EXPECTED = re.compile(r"terminating background worker|"
                      r"the database system is |"
                      r"terminating connection due to |"
                      r"canceling statement due to lock timeout")


class Verdict:
    def __init__(self, say):
        self.say = say
        self.failed = 0

    def judge(self, promise, violations):
        violations = list(violations)
        if violations:
            self.failed += 1
            self.say(f"not ok - {promise}: {len(violations)}")
            for v in violations[:SHOWN]:
                self.say(f"#   {v}")
            if len(violations) > SHOWN:
                self.say(f"#   and {len(violations) - SHOWN} more")
        else:
            self.say(f"ok - {promise}: 0")


class Copies:
    """The arrivals of one message at one queue."""

    def __init__(self):
        self.arrivals = []
        self.duplicates = 0     # copies beyond the first
        self.redelivered = 0    # repetitions by the broker

    def add(self, arrival):
        """Returns what is wrong with this one, or None."""
        before = self.arrivals
        self.arrivals = before + [arrival]
        if not before:
            return None
        again = arrival.redelivered and any(
            a.marked == arrival.marked for a in before)
        if again:
            self.redelivered += 1
            return None
        self.duplicates += 1
        return None if arrival.marked else "a later copy without the mark"


def group(arrivals):
    """Copies by queue and message id, and duplicates that are wrong."""
    copies = {}
    wrong = []
    for a in arrivals:
        problem = copies.setdefault((a.queue, a.id), Copies()).add(a)
        if problem:
            wrong.append(f"{describe(a)}: {problem}")
    return copies, wrong


def describe(a):
    return (f"{a.queue} line {a.number} id {a.id} key {a.body.get('key')}"
            f" n {a.body['n']} ({a.body['kind']}, publisher"
            f" {a.body['publisher']})")


def out_of_order(copies):
    """First arrivals of a key at a queue must be in the order of their
    numbers."""
    newest = {}
    for c in copies.values():   # in the order of first arrivals of a queue
        a = c.arrivals[0]
        key = a.body.get("key")
        if key is None:
            continue
        before = newest.get((a.queue, key))
        if before and before.body["n"] > a.body["n"]:
            yield f"{describe(a)} behind n {before.body['n']}" \
                  f" of line {before.number}"
        else:
            newest[a.queue, key] = a


def of_other_transactions(arrivals, sent):
    return (describe(a) for a in arrivals if a.id not in sent)


def changed(arrivals, sent):
    for a in arrivals:
        row = sent.get(a.id)
        if row and (row["queue"], row["key"], row["n"]) != (
                a.queue, a.body.get("key"), a.body["n"]):
            yield f"{describe(a)} was sent as {row}"


def read_left(postgres):
    """Whatever is not delivered at the end, by message id."""
    return {row[0]: "{1} {2}, id {3}, key {4}, attempts {5}: {6}".format(*row)
            for row in postgres.query(
                "SELECT message_id, server, status, id, ordering_key,"
                " attempts, last_error FROM amqp_outbox.message"
                " WHERE status <> 'delivered'")}


def left_over(postgres, left):
    yield from left.values()
    for (gid,) in postgres.query("SELECT gid FROM pg_prepared_xacts"):
        yield f"prepared transaction {gid}"


def unexplained(postgres, sent):
    """The extension's own count of deliveries against what was committed."""
    committed = {}
    for row in sent.values():
        committed[row["server"]] = committed.get(row["server"], 0) + 1
    for server, delivered, backlog in postgres.query(
            "SELECT server, delivered, backlog"
            " FROM amqp_outbox.server_status"):
        if delivered != committed.get(server, 0) or backlog != 0:
            yield (f"{server}: {committed.get(server, 0)} committed,"
                   f" {delivered} delivered, backlog {backlog}")


def bad_log_lines(path):
    with open(path, errors="replace") as f:
        for line in f:
            if ALARM.search(line) or (OWN_ERROR.search(line) and
                                      not EXPECTED.search(line)):
                yield line.strip()


def read_sent(postgres):
    names = ("queue", "key", "n", "server", "kind")
    return {row[0]: dict(zip(names, row[1:])) for row in postgres.query(
        "SELECT id, queue, key, n, server, kind FROM sent")}


def independence(spans, arrivals):
    """While only the way of one server is broken, messages of the other must
    arrive; but other faults overlap, so this is a figure and no promise."""
    long = [s for s in spans if s[2] - s[1] >= 2]
    lively = sum(any(not a.queue.startswith(server) and begin < a.time < end
                     for a in arrivals) for server, begin, end in long)
    return f"of {len(long)} long breaks of one server's way:" \
           " the other one's messages arrived", lively


def judge(postgres, arrivals, errors, say):
    """All promises; returns how many were broken, and the figures."""
    verdict = Verdict(say)
    sent = read_sent(postgres)
    copies, wrong = group(arrivals)
    received = {message_id for _, message_id in copies}
    left = read_left(postgres)
    verdict.judge("lost",
                  (f"{i} {sent[i]}" for i in sent
                   if i not in received and i not in left))
    verdict.judge("received from transactions that did not commit",
                  of_other_transactions(arrivals, sent))
    verdict.judge("later copies without x-possible-duplicate", wrong)
    verdict.judge("order violations within a key", out_of_order(copies))
    verdict.judge("changed on the way", changed(arrivals, sent))
    verdict.judge("left pending, deferred or prepared",
                  left_over(postgres, left))
    verdict.judge("unexplained differences in the extension's account",
                  unexplained(postgres, sent))
    verdict.judge("alarms and own errors in the server's log",
                  bad_log_lines(postgres.log))
    verdict.judge("errors of the harness itself", errors)
    figures = {
        "messages committed": len(sent),
        "arrivals": len(arrivals),
        "duplicates, marked": sum(c.duplicates for c in copies.values())
        - len(wrong),
        "first arrivals marked": sum(c.arrivals[0].marked
                                     for c in copies.values()),
        "redelivered by the broker": sum(c.redelivered
                                         for c in copies.values()),
    }
    return verdict.failed, figures

"""Publish, make trouble, and look at what Prometheus saw; see scripts/monitoring.

    watch.py PROMETHEUS-URL PICTURES-DIRECTORY

Runs inside, beside a PostgreSQL, a RabbitMQ, an exporter and a Prometheus that
are up.  Waits for what Prometheus sees and never for times, but for those that
are the length of a fault.
"""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import picture

URL, PICTURES = sys.argv[1:]
WORK = os.environ["WORK"]
FAULT = 22                      # seconds that the broker is away
PAUSE = 10                      # seconds that it asks for a pause
TIMEOUT = 120

failed = 0


def check(ok, name, detail=""):
    global failed
    print(f"{'ok' if ok else 'not ok'} - {name}", flush=True)
    if not ok:
        failed += 1
        print(f"#   {detail}", flush=True)


def ask(path, **params):
    with urllib.request.urlopen(f"{URL}/api/v1/{path}?" +
                                urllib.parse.urlencode(params)) as answer:
        return json.load(answer)["data"]["result"]


def query(expr):
    """The samples of an instant query, without NaN."""
    return [(s["metric"], float(s["value"][1]))
            for s in ask("query", query=expr)
            if not math.isnan(float(s["value"][1]))]


def query_range(expr, begin, end):
    """Series of (time, value) without NaN; those with nothing are left out."""
    found = []
    for series in ask("query_range", query=expr, start=begin, end=end, step=1):
        values = [(float(t), float(v)) for t, v in series["values"]]
        values = [(t, v) for t, v in values if not math.isnan(v)]
        if values:
            found.append((series["metric"], values))
    return found


def wait_for(expr, what):
    """Until an instant query has a result."""
    end = time.time() + TIMEOUT
    while not query(expr):
        if time.time() > end:
            sys.exit(f"timed out waiting for: {what} ({expr})")
        time.sleep(0.3)


def sql(text):
    return subprocess.run(["psql", "-qAtX", "-v", "ON_ERROR_STOP=1"],
                          input=text, check=True, capture_output=True,
                          text=True).stdout.strip()


def broker(*args):
    subprocess.run(["scripts/rabbitmq", args[0], f"{WORK}/rabbit", *args[1:]],
                   check=True, stdin=subprocess.DEVNULL,
                   stdout=subprocess.DEVNULL)


def start_load():
    script = f"{WORK}/load.sql"
    with open(script, "w") as f:
        f.write("SELECT amqp_publish('', 'q', repeat('x', 300));\n")
    return subprocess.Popen(["pgbench", "-n", "-c", "2", "-R", "200",
                             "-T", "600", "-f", script],
                            stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL)


def take_broker_away():
    begin = time.time()
    broker("stop")
    time.sleep(FAULT)
    broker("start")
    wait_for("amqp_outbox_server_connected == 1", "the connection")
    end = time.time()
    wait_for("amqp_outbox_server_backlog < 50", "the backlog to go")
    time.sleep(10)              # for the pictures: quiet again
    return begin, end, "broker away"


def have_broker_block():
    begin = time.time()
    alarm = "{resource_limit, memory, node()}"
    broker("ctl", "eval", f"rabbit_alarm:set_alarm({{{alarm}, []}}).")
    time.sleep(PAUSE)
    broker("ctl", "eval", f"rabbit_alarm:clear_alarm({alarm}).")
    wait_for("amqp_outbox_server_blocked == 0", "the end of the pause")
    return begin, time.time(), "broker blocks"


def reconnect():
    for heartbeat in (11, 12, 13, 14):
        before = query("amqp_outbox_server_reconnects_total")[0][1]
        verb = "ADD" if heartbeat == 11 else "SET"
        sql(f"ALTER SERVER erp OPTIONS ({verb} heartbeat '{heartbeat}')")
        wait_for(f"amqp_outbox_server_reconnects_total > {before}",
                 "a new connection")
    wait_for('ALERTS{alertname="AmqpOutboxReconnects"}', "the alert")


def trouble():
    """Returns (begin, end, name) of each fault."""
    load = start_load()
    wait_for("count_over_time(amqp_outbox_server_delivered_total[18s]) >= 18 "
             "and rate(amqp_outbox_server_delivered_total[18s]) > 0",
             "a quiet time, long enough for each rule to speak")
    quiet = query("ALERTS")
    check(not quiet, "no alert before the first fault", quiet)

    spans = [take_broker_away(), have_broker_block()]
    sql("SELECT amqp_publish('', 'nowhere', 'x'::text) "
        "FROM generate_series(1, 7)")
    reconnect()
    wait_for("sum(amqp_outbox_dead_letters_messages) >= 7", "dead letters")
    time.sleep(8)               # for the pictures: and what follows
    load.send_signal(signal.SIGINT)
    load.wait()
    wait_for("amqp_outbox_server_backlog == 0", "everything delivered")
    return spans


def metrics():
    """Names of the metrics that postgres_exporter.yaml defines."""
    namespace, column, names = None, None, []
    for line in open("monitoring/postgres_exporter.yaml"):
        if found := re.match(r"(\w+):$", line):
            namespace = found[1]
        elif found := re.match(r"    - (\w+):$", line):
            column = found[1]
        elif found := re.match(r'        usage: "(\w+)"', line):
            if found[1] == "HISTOGRAM":
                names += [f"{namespace}_{column}_{part}"
                          for part in ("bucket", "sum", "count")]
            elif found[1] != "LABEL":
                names.append(f"{namespace}_{column}")
    return names


def check_data(begin, end):
    for name in metrics():
        check(query_range(name, begin, end), f"metric {name}")
    with open("monitoring/grafana-dashboard.json") as f:
        dashboard = json.load(f)
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            expr = (target["expr"].replace("$__rate_interval", "10s")
                    .replace("$datname", ".*").replace("$amqp_server", ".*"))
            check(query_range(expr, begin, end),
                  f"dashboard, {panel['title']}: {target['refId']}", expr)
    loaded = query_range("pg_exporter_user_queries_load_error", begin, end)
    check(loaded and all(v == 0 for _, values in loaded for _, v in values),
          "the exporter loads the queries", loaded)
    with open(f"{WORK}/log/exporter.log") as f:
        errors = [line for line in f if "level=error" in line]
    check(not errors, "the exporter has no errors", errors[:3])


def check_truth():
    """Prometheus and the database must say the same when all is quiet."""
    pairs = {
        "amqp_outbox_server_delivered_total":
            "SELECT delivered FROM amqp_outbox.server_status",
        "amqp_outbox_server_delivered_bytes_total":
            "SELECT delivered_bytes FROM amqp_outbox.server_status",
        "amqp_outbox_confirm_seconds_count":
            "SELECT confirm_count FROM amqp_outbox.measures()",
        'amqp_outbox_confirm_seconds_bucket{le="+Inf"}':
            "SELECT max(running_total) FROM amqp_outbox.latency('erp')",
        "sum(amqp_outbox_dead_letters_messages)":
            "SELECT dead_letters FROM amqp_outbox.server_status",
        'amqp_outbox_dead_letters_messages{reason="unroutable"}':
            "SELECT count(*) FROM amqp_outbox.dead_letter",
        "amqp_outbox_server_reconnects_total":
            "SELECT reconnects FROM amqp_outbox.server_status",
    }
    for expr, text in pairs.items():
        truth = float(sql(text))
        end = time.time() + 20
        while True:
            seen = sum(v for _, v in query(expr))
            if seen == truth or time.time() > end:
                break
            time.sleep(0.3)
        check(seen == truth and truth > 0,
              f"{expr} is what the database says", f"{seen}, {truth}")


def check_alerts(begin):
    os.kill(int(os.environ["EXPORTER_PID"]), signal.SIGTERM)
    wait_for('ALERTS{alertname="AmqpOutboxUnwatched"}', "the last alert")
    end = time.time()
    with open("monitoring/alerts.yaml") as f:
        rules = re.findall(r"- alert: (\w+)", f.read())
    for rule in rules:
        check(query_range(
            f'ALERTS{{alertname="{rule}",alertstate="firing"}}', begin, end),
            f"alert {rule}")


def draw(begin, end, spans):
    def one(expr):
        return [p for _, values in query_range(expr, begin, end)
                for p in values]

    confirm = ("histogram_quantile(%s, sum by (le) "
               "(rate(amqp_outbox_confirm_seconds_bucket[5s])))")
    picture.lines(f"{PICTURES}/delivered.svg", "delivered, messages a second",
                  begin, end, spans,
                  [("delivered",
                    one("rate(amqp_outbox_server_delivered_total[5s])"))])
    picture.lines(f"{PICTURES}/backlog.svg", "backlog, messages", begin, end,
                  spans, [("backlog", one("amqp_outbox_server_backlog"))])
    picture.lines(f"{PICTURES}/confirm.svg", "commit to confirm, seconds",
                  begin, end, spans,
                  [("p99", one(confirm % 0.99)), ("p50", one(confirm % 0.5))],
                  log=True)
    health = [(m["rule"], values) for m, values in
              query_range("amqp_outbox_health_level", begin, end)]
    picture.levels(f"{PICTURES}/health.svg", begin, end, spans, sorted(health))


def main():
    wait_for("amqp_outbox_server_connected == 1", "the exporter's first data")
    begin = time.time()
    spans = trouble()
    end = time.time()
    check_data(begin, end)
    check_truth()
    draw(begin, end, spans)
    check_alerts(begin)
    print(f"{failed} failed" if failed else "all passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

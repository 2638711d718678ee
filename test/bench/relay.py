"""What one would write without an extension, in an afternoon, in Python: rows of a
table are taken FOR UPDATE SKIP LOCKED, published with confirms, and deleted when
the broker has confirmed them.  For comparison only; as relay.c.

	relay.py [--batch N] [--poll MS] [--until-empty]
"""

import argparse
import json
import os
import signal
import time

import pika
import psycopg2


class Stop(Exception):
    pass


class Relay:
    def __init__(self, batch):
        self.batch = batch
        self.db = psycopg2.connect("")
        connection = pika.BlockingConnection(
            pika.URLParameters(os.environ["AMQP_URL"] + "/%2f"))
        self.channel = connection.channel()
        self.channel.confirm_delivery()

    def step(self):
        """One transaction; returns how many messages it delivered."""
        with self.db, self.db.cursor() as cursor:
            cursor.execute(
                "SELECT id, exchange, routing_key, body, message_id, "
                "content_type FROM plain ORDER BY server_key, id LIMIT %s "
                "FOR UPDATE SKIP LOCKED", (self.batch,))
            rows = cursor.fetchall()
            for _, exchange, key, body, message_id, content_type in rows:
                # waits for the confirm; raises if there is none
                self.channel.basic_publish(
                    exchange, key, bytes(body), pika.BasicProperties(
                        message_id=message_id, content_type=content_type,
                        delivery_mode=2), mandatory=True)
            cursor.execute(
                "DELETE FROM plain WHERE server_key = 1 AND id = ANY (%s)",
                ([row[0] for row in rows],))
            return len(rows)


def stop(*_):
    raise Stop


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--poll", type=int, default=10)
    parser.add_argument("--until-empty", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    relay = Relay(options.batch)
    count, begin = 0, time.monotonic()
    end = begin
    try:
        while True:
            n = relay.step()
            count += n
            if n > 0:
                end = time.monotonic()
            elif options.until_empty:
                break
            else:
                time.sleep(options.poll / 1000)
    except Stop:
        pass
    print(json.dumps({"count": count, "seconds": end - begin}))


if __name__ == "__main__":
    main()

#!/usr/bin/python3
"""A consumer whose effect is exactly once: each message's work and the note
that it was done are one transaction, which is committed before the message is
acknowledged.  See docs/consumers.md; consumer.c is the same program in C.

    consumer.py QUEUE CONSUMER

QUEUE exists, with a dead-letter exchange.  CONSUMER names what consumes: all
processes that share this work use the same name, for ever.

Environment: AMQP_URL, amqp://user:password@host:port/vhost or amqps://...; the
database is that of libpq's variables, PGHOST, PGDATABASE, PGUSER ...  There
amqp_outbox is installed, and the user may EXECUTE amqp_inbox_accept.

SIGTERM and SIGINT end it cleanly, with exit code 0.  Needs pika and psycopg2.
"""

import logging
import os
import random
import signal
import sys

import pika
import psycopg2

QUEUE, CONSUMER = sys.argv[1:]
PREFETCH = 50               # messages the broker sends ahead of the acknowledgements
HEARTBEAT = 60              # seconds; a message's work must be done within one
ATTEMPTS = 10               # of a transaction that is a victim of concurrent ones
BACKOFF = 0.1, 30           # seconds: the first and the longest

# A statement that hangs, or a database that is gone without a word, is noticed
# before the broker misses a heartbeat.
DATABASE = f"""application_name='{CONSUMER}' client_encoding=UTF8
    connect_timeout=10 tcp_user_timeout=30000
    keepalives_idle=15 keepalives_interval=5 keepalives_count=3
    options='-c statement_timeout=20s'"""

STOP = {signal.SIGTERM, signal.SIGINT}
stopping = False

log = logging.getLogger(CONSUMER)


class Poison(Exception):
    """A message whose work cannot succeed, however often it is tried."""


def work(cursor, body):
    """What a message is for: the only part that is this consumer's own.

    The database takes the body apart, so what is wrong with it is a data error.
    """
    cursor.execute("""
        INSERT INTO booking (order_id, quantity)
        SELECT order_id, quantity FROM jsonb_to_record(convert_from(%s, 'UTF8')::jsonb)
            AS (order_id bigint, quantity numeric)""", (body,))


def process(database, message_id, body):
    """One transaction.  Returns whether it did the work; not if it was done."""
    with database, database.cursor() as cursor:     # COMMIT, or ROLLBACK if it raises
        cursor.execute("SELECT amqp_inbox_accept(%s, %s)", (CONSUMER, message_id))
        accepted, = cursor.fetchone()
        if accepted:
            work(cursor, body)
    return accepted


def process_safely(database, message_id, body):
    """The same; says what is the message's fault and what is not.

    An error that is neither, like a connection lost or a table not there (yet),
    goes on to main(), which gives the message back to the broker.
    """
    # All messages go through the inbox.  The header x-possible-duplicate and the
    # flag "redelivered" mark those that may be repetitions; but the first copy,
    # which has no mark, must be noted as well, and amqp_inbox_accept() looks and
    # notes at once.  The marks help only where the look is a costly one of its
    # own: then it can be left out for messages that have neither.
    if not message_id or not isinstance(message_id, str):
        raise Poison("it has no message_id, so a repetition could not be told")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return process(database, message_id, body)
        except ValueError as error:                 # what psycopg2 cannot even send
            raise Poison(str(error)) from error
        except psycopg2.Error as error:
            state = error.pgcode or ""
            if state[:2] in ("22", "23"):           # of its data; by a constraint
                raise Poison(f"{state}: {error}") from error
            if state[:2] != "40" or attempt == ATTEMPTS:
                raise
            log.info("message %s is tried again: %s", message_id, state)
            wait_for_stop(random.uniform(0, 0.01 * 2 ** attempt))


def wait_for_stop(seconds):
    """Wait so long, unless a signal asks for the end; returns whether one did."""
    global stopping
    stopping = stopping or signal.sigtimedwait(STOP, seconds) is not None
    return stopping


class Backoff:
    """How long to wait after failures in a row."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.delay = BACKOFF[0]

    def wait(self):
        wait_for_stop(random.uniform(self.delay / 2, self.delay))
        self.delay = min(2 * self.delay, BACKOFF[1])


def handle(database, channel, method, properties, body):
    """One message, to its acknowledgement or rejection."""
    message_id = properties.message_id
    try:
        if not process_safely(database, message_id, body):
            log.info("message %s is a duplicate", message_id)
    except Poison as error:
        log.error("message %s goes to the dead letters: %s", message_id, error)
        channel.basic_reject(method.delivery_tag, requeue=False)
    else:
        # The transaction is committed.  If this gets lost the message comes
        # again, and is not accepted then.
        channel.basic_ack(method.delivery_tag)


def consume(database, channel, backoff):
    """Handle messages until it is time to stop, or something fails."""
    channel.basic_qos(prefetch_count=PREFETCH)
    for method, properties, body in channel.consume(QUEUE, inactivity_timeout=1):
        if method:                                  # else none came for a second
            handle(database, channel, method, properties, body)
        backoff.reset()
        if wait_for_stop(0):
            return
    raise pika.exceptions.AMQPError(f"the broker cancelled the consumer of {QUEUE}")


def main():
    # They stay pending until wait_for_stop() looks, so none comes amid a message.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s: %(message)s",
                        level=logging.INFO)
    logging.getLogger("pika").setLevel(logging.CRITICAL)    # its errors arrive here
    broker_at = pika.URLParameters(os.environ["AMQP_URL"])
    broker_at.heartbeat = HEARTBEAT
    broker_at.client_properties = {"connection_name": CONSUMER}
    backoff = Backoff()

    # Whatever fails, both connections are made anew: when that of the broker is
    # closed, it gives what is not acknowledged to the next one.  The database
    # comes first, because without it no message is worth taking.
    while not stopping:
        database = broker = None
        try:
            database = psycopg2.connect(DATABASE)
            broker = pika.BlockingConnection(broker_at)
            consume(database, broker.channel(), backoff)
        except (psycopg2.Error, pika.exceptions.AMQPError, OSError) as error:
            log.warning("starting over in at most %.1f s: %s: %s", backoff.delay,
                        type(error).__name__, error)
            backoff.wait()
        finally:
            close(broker)
            close(database)


def close(connection):
    try:
        if connection:
            connection.close()
    except (psycopg2.Error, pika.exceptions.AMQPError, OSError):
        pass                                        # it was closed already


if __name__ == "__main__":
    main()

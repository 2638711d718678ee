/*-------------------------------------------------------------------------
 *
 * broker.c
 *	  Fuzzes what reads the words of a broker: frames, methods, tables, and
 *	  what they do to the connection and to the messages on their way.
 *
 * The harness is the stream below the transport and the worker above it.  The
 * input is a script: an octet says what comes next, mostly a frame whose size
 * and end are right; see play().  So the fuzzer need not find out by itself
 * how a login goes.  Whatever comes:
 *
 *	- a message counts as delivered only if it was sent, and the connection's
 *	  words say so;
 *	- a turn ends, and what waits to be sent does not grow without end;
 *	- words of the broker are valid UTF-8 when they leave the transport.
 *
 *-------------------------------------------------------------------------
 */
#define OUTBOX_WITH_LIBRABBITMQ

#include "backend.h"

#include "mb/pg_wchar.h"
#include "utils/memutils.h"

#include "compat.h"
#include "ledger.h"
#include "properties.h"
#include "transport.h"
#include "wire.h"

#define LEDGER_SIZE		16
#define MESSAGES		64		/* of one run, at the most */

/* What one turn of the transport may report, see FRAMES_PER_TURN there. */
#define EVENTS_MAX		(16384 + 2)

/* What may wait to be sent if nobody reads: the messages, and a few methods. */
#define PENDING_MAX		(256 * 1024)

/*
 * The stream
 */

struct OutboxStream
{
	const uint8 *data;			/* the script, and where it is */
	size_t		size;
	size_t		at;

	char		said[70000];	/* by the broker and not read yet */
	size_t		said_start;
	size_t		said_end;
	size_t		per_read;		/* bytes of one read */
	bool		floods;			/* and then the same again, without end */
	bool		deaf;			/* the broker does not read */
	bool		gone;
	OutboxFailure failure;
};

static OutboxStream stream;
static int64 clock_ms;

int64
outbox_clock_ms(void)
{
	return clock_ms;
}

OutboxStream *
outbox_stream_open(const char *host, int port, const OutboxTlsOptions *tls,
				   const char *key_password)
{
	return &stream;
}

OutboxStreamState
outbox_stream_advance(OutboxStream *s)
{
	return OUTBOX_STREAM_OPEN;
}

ssize_t
outbox_stream_read(OutboxStream *s, char *buf, Size len)
{
	size_t		n;

	fuzz_check(len > 0);
	if (s->floods && s->said_start == s->said_end)
		s->said_start = 0;
	n = Min(Min(len, s->per_read), s->said_end - s->said_start);
	if (n == 0 && !s->gone)
		return 0;
	if (n == 0)
	{
		outbox_failure_set(&s->failure, ERRCODE_CONNECTION_FAILURE, NULL,
						   "connection closed by the broker");
		return -1;
	}
	memcpy(buf, s->said + s->said_start, n);
	s->said_start += n;
	return n;
}

ssize_t
outbox_stream_write(OutboxStream *s, const char *buf, Size len)
{
	/* somebody reads all of it, for the sanitizer's sake */
	fuzz_check(memchr(buf, 0, len) == NULL || len > 0);
	return s->deaf ? 0 : (ssize_t) len;
}

int
outbox_stream_sockets(OutboxStream *s, bool want_write, OutboxSocket *sockets)
{
	return 0;
}

uint64
outbox_stream_generation(const OutboxStream *s)
{
	return 1;
}

long
outbox_stream_timeout(OutboxStream *s)
{
	return -1;
}

const OutboxFailure *
outbox_stream_failure(const OutboxStream *s)
{
	return &s->failure;
}

void
outbox_stream_report(const OutboxStream *s, OutboxStreamReport *report)
{
	memset(report, 0, sizeof(*report));
	report->reached = OUTBOX_STREAM_OPEN;
	report->loopback = true;	/* else no password is sent */
}

/*
 * The broker
 */

static void
say(const void *bytes, size_t len)
{
	if (stream.said_start == stream.said_end && !stream.floods)
		stream.said_start = stream.said_end = 0;
	len = Min(len, sizeof(stream.said) - stream.said_end);
	memcpy(stream.said + stream.said_end, bytes, len);
	stream.said_end += len;
}

static void
say_frame(uint8 type, uint8 channel, const void *payload, size_t len)
{
	uint8		header[] = {type, 0, channel, len >> 24, len >> 16, len >> 8, len};
	uint8		end = 0xce;

	say(header, sizeof(header));
	say(payload, len);
	say(&end, 1);
}

static uint8
next_octet(void)
{
	return stream.at < stream.size ? stream.data[stream.at++] : 0;
}

/* A frame of this type; channel, length and payload are the script's. */
static void
say_next_frame(uint8 type)
{
	uint8		channel = next_octet();
	size_t		len = next_octet();

	/* an odd one is that of something long */
	if (len == 255)
		len = next_octet() * (size_t) 256 + next_octet();
	len = Min(len, stream.size - stream.at);
	say_frame(type, channel, stream.data + stream.at, len);
	stream.at += len;
}

/* What is not read yet comes again and again. */
static void
begin_flood(void)
{
	size_t		len = stream.said_end - stream.said_start;

	memmove(stream.said, stream.said + stream.said_start, len);
	stream.said_start = 0;
	stream.said_end = len;
	if (len == 0)
		return;
	for (; stream.said_end + len <= sizeof(stream.said); stream.said_end += len)
		memcpy(stream.said + stream.said_end, stream.said, len);
	stream.floods = true;
}

/* The login of a broker that does what it should, step by step. */
static void
say_login(int step)
{
	static const char start[] = "\0\12\0\12\0\11\0\0\0\34\7productS\0\0\0\6Rabbit\5otherF\0\0\0\0"
	"\0\0\0\5PLAIN\0\0\0\5en_US";
	static const char tune[] = "\0\12\0\36\0\11\0\2\0\0\0\12";
	static const char open_ok[] = "\0\12\0\51\0";
	static const char channel_ok[] = "\0\24\0\13\0\0\0\0";
	static const char select_ok[] = "\0\125\0\13";

	if (step == 0)
		say_frame(1, 0, start, sizeof(start) - 1);
	else if (step == 1)
		say_frame(1, 0, tune, sizeof(tune) - 1);
	else if (step == 2)
		say_frame(1, 0, open_ok, sizeof(open_ok) - 1);
	else if (step == 3)
		say_frame(1, 1, channel_ok, sizeof(channel_ok) - 1);
	else
		say_frame(1, 1, select_ok, sizeof(select_ok) - 1);
}

/*
 * The worker
 */

typedef struct Run
{
	OutboxServer server;
	OutboxHost	host;
	OutboxTransport *transport;
	OutboxLedger *ledger;
	bool		ready;
	int64		deadline;		/* of the login */
	int			floods;			/* turns in one */
	int			messages;		/* how many there were */
	bool		sent[MESSAGES];
	int			asked;			/* items that were asserted */
} Run;

static void
check_text(const char *text)
{
	fuzz_check(text == NULL || pg_verifymbstr(text, strlen(text), true));
}

static void
check_failure(const OutboxFailure *failure)
{
	check_text(failure->message);
	check_text(failure->detail);
}

static void
check_ledger(Run *run)
{
	int			settled = outbox_ledger_settled(run->ledger);
	int			in_flight = outbox_ledger_in_flight(run->ledger);

	fuzz_check(in_flight >= 0 && in_flight <= LEDGER_SIZE);
	for (int i = 0; i < settled; i++)
	{
		OutboxEntry *entry = outbox_ledger_get(run->ledger, i);

		if (entry->outcome == OUTBOX_DELIVERED)
			fuzz_check(run->sent[entry->message->id]);
	}
}

static OutboxMessage *
make_message(int id)
{
	OutboxMessage *msg = palloc0(sizeof(OutboxMessage));

	msg->id = id;
	msg->message_id = psprintf("m%d", id);
	msg->exchange = "";
	msg->routing_key = "q";
	msg->body = "body";
	msg->body_len = 4;
	msg->ordering_key = id % 3 == 0 ? "key" : NULL;
	msg->expiration_ms = msg->timestamp_s = msg->priority = -1;
	msg->persistent = msg->mandatory = true;
	outbox_properties_build(msg);
	return msg;
}

/* A message more is read from the outbox. */
static void
add_message(Run *run)
{
	MemoryContext batch;
	MemoryContext old_context;
	OutboxMessage *msg;

	if (run->messages == MESSAGES || outbox_ledger_room(run->ledger) == 0)
		return;
	batch = AllocSetContextCreate(CurrentMemoryContext, "batch",
								  ALLOCSET_DEFAULT_SIZES);
	old_context = MemoryContextSwitchTo(batch);
	msg = make_message(run->messages++);
	MemoryContextSwitchTo(old_context);
	outbox_ledger_add(run->ledger, &msg, 1, batch);
}

static void
publish(Run *run)
{
	OutboxEntry *entry;

	while (run->ready &&
		   outbox_transport_pending(run->transport) < PENDING_MAX / 2 &&
		   (entry = outbox_ledger_next(run->ledger, 0)) != NULL)
	{
		OutboxFailure failure;
		uint64		tag = outbox_transport_publish(run->transport,
												   entry->message, &failure);

		fuzz_check(tag != 0);
		run->sent[entry->message->id] = true;
		outbox_ledger_sent(run->ledger, tag, 1);
	}
	outbox_transport_flush(run->transport);
}

static void
settle(Run *run)
{
	int			n;

	check_ledger(run);
	n = outbox_ledger_settled(run->ledger);
	if (n > 0)
		outbox_ledger_remove(run->ledger, n);
}

static void
assert_item(Run *run)
{
	static amqp_table_t no_arguments = {0};
	OutboxItem	item = {.kind = OUTBOX_ITEM_EXCHANGE,.name = "e",.type = "topic",
	.wanted = true,.table = &no_arguments};
	OutboxAnswer answer;

	if (!run->ready || run->asked > 0)
		return;
	if (outbox_transport_assert(run->transport, &item, &answer))
		run->asked++;
}

static void
disconnect(Run *run)
{
	OutboxTransportReport report;

	if (run->transport == NULL)
		return;
	outbox_transport_report(run->transport, &report);
	check_text(report.product);
	check_text(report.version);
	check_text(report.mechanisms);
	outbox_transport_close(run->transport);
	run->transport = NULL;
	run->ready = false;
	run->asked = 0;
	outbox_ledger_forget_tags(run->ledger);
}

static void
connect_anew(Run *run)
{
	OutboxCredentials credentials = {.password = "password"};
	size_t		at = stream.at;

	disconnect(run);
	stream.said_start = stream.said_end = 0;
	stream.floods = stream.deaf = stream.gone = false;
	stream.at = at;
	run->deadline = clock_ms + run->server.connect_timeout * 1000;
	run->transport = outbox_transport_start(&run->server, 0, &credentials,
											"name");
}

/* Returns whether the connection is still of use. */
static bool
handle_event(Run *run, const OutboxEvent *event)
{
	bool		plausible = true;

	check_failure(&event->failure);
	check_text(event->message_id);
	check_text(event->exchange);
	check_text(event->routing_key);
	switch (event->type)
	{
		case OUTBOX_EVENT_READY:
			run->ready = true;
			break;
		case OUTBOX_EVENT_CONFIRM:
			plausible = outbox_ledger_confirm(run->ledger, event->tag,
											  event->multiple, event->ack, 2);
			break;
		case OUTBOX_EVENT_RETURN:
			plausible = outbox_ledger_return(run->ledger, event->message_id,
											 event->exchange,
											 event->routing_key,
											 event->reply_code,
											 event->failure.detail, false);
			break;
		case OUTBOX_EVENT_CHANNEL_CLOSED:
			{
				OutboxEntry *culprit = outbox_ledger_sole(run->ledger);

				if (culprit)
					outbox_ledger_reject(run->ledger, culprit,
										 event->reply_code,
										 event->failure.detail);
				outbox_ledger_forget_tags(run->ledger);
				run->ready = false;
				break;
			}
		case OUTBOX_EVENT_ASSERTED:
			run->asked--;
			fuzz_check(run->asked == 0);
			break;
		default:
			break;
	}
	check_ledger(run);
	return plausible && event->type != OUTBOX_EVENT_LOST;
}

/* It must not take longer to log in, whatever the broker says meanwhile. */
static void
check_deadline(Run *run)
{
	OutboxTransportReport report;

	outbox_transport_report(run->transport, &report);
	fuzz_check(report.phase >= OUTBOX_PHASE_CHANNEL ||
			   clock_ms < run->deadline);
}

/* What outbox_worker_cycle() does. */
static void
cycle(Run *run)
{
	OutboxEvent event;
	int			events = 0;

	/* one turn in a flood is enough to see what comes of it, and costs much */
	if (stream.floods && run->floods++ >= 3)
		return;
	while (run->transport != NULL &&
		   outbox_transport_next_event(run->transport,
									   &event) != OUTBOX_EVENT_NONE)
	{
		fuzz_check(++events <= EVENTS_MAX);
		if (!handle_event(run, &event))
			disconnect(run);
	}
	if (run->transport != NULL)
	{
		(void) outbox_transport_timeout(run->transport);
		publish(run);
		fuzz_check(outbox_transport_pending(run->transport) < PENDING_MAX);
		check_deadline(run);
	}
	settle(run);
}

/*
 * The script
 */

static void
play(void *arg)
{
	Run		   *run = arg;

	run->ledger = outbox_ledger_create(CurrentMemoryContext, LEDGER_SIZE);
	stream.per_read = 1 + next_octet() * (size_t) 64;
	connect_anew(run);
	while (stream.at < stream.size)
	{
		uint8		what = next_octet();

		switch (what)
		{
			case 'M':
				say_next_frame(1);
				break;
			case 'H':
				say_next_frame(2);
				break;
			case 'B':
				say_next_frame(3);
				break;
			case 'h':
				say_frame(8, 0, "", 0);
				break;
			case 'F':			/* any type of frame */
				say_next_frame(next_octet());
				break;
			case 'R':			/* no frame at all */
				{
					size_t		n = next_octet();

					n = Min(n, stream.size - stream.at);
					say(stream.data + stream.at, n);
					stream.at += n;
					break;
				}
			case 'L':			/* all of the login, or a step of it */
				for (int i = 0; i < 5; i++)
					say_login(i);
				break;
			case '0':
			case '1':
			case '2':
			case '3':
			case '4':
				say_login(what - '0');
				break;
			case 'm':
				add_message(run);
				break;
			case 'a':
				assert_item(run);
				break;
			case 'f':
				begin_flood();
				break;
			case 'd':
				stream.deaf = true;
				break;
			case 'g':
				stream.gone = true;
				break;
			case 't':
				clock_ms += next_octet() * INT64CONST(100);
				break;
			case 'c':
				connect_anew(run);
				break;
			case '.':
				cycle(run);
				break;
			default:
				break;
		}
	}
	for (int i = 0; i < 3; i++)
		cycle(run);
	disconnect(run);
}

int
LLVMFuzzerTestOneInput(const uint8 *data, size_t size)
{
	Run			run = {0};

	memset(&stream, 0, sizeof(stream));
	stream.data = data;
	stream.size = size;
	run.host = (OutboxHost) {.name = "host",.port = 5672};
	run.server = (OutboxServer) {
		.nhosts = 1,.hosts = &run.host,.vhost = "/",.user = "user",
		.heartbeat = 30,.connect_timeout = 5,.frame_max = 131072
	};
	fuzz_check(fuzz_run(play, &run));
	return 0;
}

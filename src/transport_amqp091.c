/*-------------------------------------------------------------------------
 *
 * transport_amqp091.c
 *	  One connection to one broker over AMQP 0-9-1.
 *
 * The states of a transport and what takes it from one to the next; any of
 * them may end in LOST:
 *
 *	CONNECTING --stream open--> LOGIN --connection.open-ok-->
 *	AWAIT_CHANNEL --channel.open-ok--> AWAIT_CONFIRM --confirm.select-ok-->
 *	READY --channel.close--> AWAIT_CHANNEL ...
 *
 * What is said in LOGIN is login.c's, and what on the channel for assertions,
 * once that of the messages was READY, assertion.c's.  Frames come from wire.c, each checked
 * for itself; which of them may come when is known here.  A method that may not
 * come in the present state never gets to the decoder, and the first thing that
 * does not fit ends the connection for good.
 *
 * A transport lives in a worker, in a memory context of its own, and all that
 * belongs to it goes with that.
 *
 *-------------------------------------------------------------------------
 */
#define OUTBOX_WITH_LIBRABBITMQ

#include "postgres.h"

#include "access/xact.h"
#include "utils/memutils.h"

#include "assertion.h"
#include "compat.h"
#include "login.h"
#include "returned.h"
#include "transport.h"
#include "wire.h"

/*
 * How much is read from the socket, and how many frames are handled, before
 * there is "nothing more to report now": a peer that floods us must not keep
 * the worker from looking at its latch and its clocks.
 */
#define READS_PER_TURN		64
#define FRAMES_PER_TURN		16384

typedef enum TransportState
{
	STATE_CONNECTING,
	STATE_LOGIN,
	STATE_AWAIT_CHANNEL,
	STATE_AWAIT_CONFIRM,
	STATE_READY,
	STATE_LOST
} TransportState;

struct OutboxTransport
{
	MemoryContext context;		/* holds this and all that it points to */

	TransportState state;
	OutboxFailure failure;		/* with STATE_LOST */
	int			reply_code;		/* the broker's, or 0 */

	OutboxWire *wire;
	OutboxStreamState stream_state;	/* in STATE_CONNECTING */
	OutboxLogin *login;
	char	   *host;
	int			port;
	int64		connect_timeout_ms;
	int64		deadline;		/* of reaching READY, on outbox_clock_ms() */
	int			turn_reads;		/* since there was nothing more to report */
	int			turn_frames;
	bool		more_input;		/* stopped by READS_PER_TURN or FRAMES_... */

	uint64		next_tag;
	bool		blocked;
	OutboxReturned returned;
	OutboxAssertion assertion;
	OutboxAnswer blame;			/* with STATE_LOST: if closes_connection */
};


/* --------
 * Losing the connection
 * --------
 */

/* t->failure says why. */
static void
become_lost(OutboxTransport *t)
{
	Assert(t->state != STATE_LOST);
	t->state = STATE_LOST;
}

/* The stream failed; so did we. */
static void
lose_stream(OutboxTransport *t)
{
	const char *hint = t->state == STATE_LOGIN ?
		outbox_login_hangup_hint(t->login) : NULL;

	t->failure = *outbox_wire_failure(t->wire);
	if (hint)
	{
		char		detail[OUTBOX_FAILURE_DETAIL_LEN];

		snprintf(detail, sizeof(detail), "%s%s%s", hint,
				 t->failure.detail[0] ? "  " : "", t->failure.detail);
		outbox_failure_set(&t->failure,
						   ERRCODE_SQLSERVER_REJECTED_ESTABLISHMENT_OF_SQLCONNECTION,
						   detail,
						   "broker at host \"%s\", port %d, closed the connection during login",
						   t->host, t->port);
	}
	become_lost(t);
}

static void
lose_for_timeout(OutboxTransport *t)
{
	const char *phase;

	switch (t->state)
	{
		case STATE_CONNECTING:
			if (t->stream_state == OUTBOX_STREAM_RESOLVING)
				phase = "No name server answered in time.";
			else if (t->stream_state == OUTBOX_STREAM_CONNECTING)
				phase = "The host did not answer in time.";
			else
				phase = "The TLS handshake was not completed in time.";
			break;
		case STATE_LOGIN:
			if (outbox_login_state(t->login) == OUTBOX_LOGIN_AWAIT_START)
				phase = "Connected, but the broker did not greet in time.";
			else
				phase = "Connected, but the login was not completed in time.";
			break;
		default:
			phase = "The broker did not open a channel in time.";
			break;
	}
	outbox_failure_set(&t->failure,
					   ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION,
					   phase,
					   "timeout while connecting to host \"%s\", port %d",
					   t->host, t->port);
	become_lost(t);
}

/* The first bytes of the broker, 8 or more, are no frame of AMQP 0-9-1. */
static void
lose_for_greeting(OutboxTransport *t, const char *bytes)
{
	char		detail[OUTBOX_FAILURE_DETAIL_LEN];

	outbox_login_describe_greeting(bytes, detail, sizeof(detail));
	outbox_failure_set(&t->failure, ERRCODE_PROTOCOL_VIOLATION, detail,
					   "host \"%s\", port %d, does not speak AMQP 0-9-1",
					   t->host, t->port);
	become_lost(t);
}


/* --------
 * Publishing
 * --------
 */

uint64
outbox_transport_publish(OutboxTransport *t, const OutboxMessage *msg,
						 OutboxFailure *failure)
{
	Assert(t->state == STATE_READY);

	if (!outbox_wire_queue_message(t->wire, msg, failure))
		return 0;
	return t->next_tag++;
}

void
outbox_transport_flush(OutboxTransport *t)
{
	Assert(!IsTransactionState());

	if (t->state > STATE_CONNECTING && t->state < STATE_LOST)
		outbox_wire_flush(t->wire);
}

Size
outbox_transport_pending(const OutboxTransport *t)
{
	return outbox_wire_pending(t->wire);
}


/* --------
 * The way to READY
 * --------
 */

/* None of the methods that we send from here is too long to be encoded. */
static void
queue_method(OutboxTransport *t, uint16 channel, uint32 id, void *method)
{
	if (!outbox_wire_queue_method(t->wire, channel, id, method, 0,
								  &t->failure))
		become_lost(t);
}

static void
enter_login(OutboxTransport *t)
{
	Assert(t->state == STATE_CONNECTING);
	t->state = STATE_LOGIN;
}

/* After connection.open-ok, and again after channel.close. */
static void
open_channel(OutboxTransport *t)
{
	amqp_channel_open_t open = {0};
	amqp_confirm_select_t select = {0};

	Assert(t->state == STATE_LOGIN || t->state == STATE_READY);
	t->state = STATE_AWAIT_CHANNEL;
	queue_method(t, OUTBOX_CHANNEL, AMQP_CHANNEL_OPEN_METHOD, &open);
	queue_method(t, OUTBOX_CHANNEL, AMQP_CONFIRM_SELECT_METHOD, &select);
}

static void
handle_login(OutboxTransport *t, uint32 id, void *method)
{
	Assert(t->state == STATE_LOGIN);

	if (!outbox_login_answer(t->login, t->wire, id, method, &t->failure))
		become_lost(t);
	else if (outbox_login_state(t->login) == OUTBOX_LOGIN_DONE)
		open_channel(t);
}

static void
enter_await_confirm(OutboxTransport *t)
{
	Assert(t->state == STATE_AWAIT_CHANNEL);
	t->state = STATE_AWAIT_CONFIRM;
}

static void
enter_ready(OutboxTransport *t, OutboxEvent *event)
{
	Assert(t->state == STATE_AWAIT_CONFIRM);
	t->state = STATE_READY;
	t->next_tag = 1;
	event->type = OUTBOX_EVENT_READY;
}


/* --------
 * What the broker shall have
 * --------
 */

bool
outbox_transport_assert(OutboxTransport *t, const OutboxItem *item,
						OutboxAnswer *answer)
{
	Assert(t->state >= STATE_AWAIT_CHANNEL && t->state < STATE_LOST);

	memset(answer, 0, sizeof(*answer));
	if (outbox_login_channel_max(t->login) < OUTBOX_ASSERTION_CHANNEL)
	{
		strlcpy(answer->words,
				"the broker allows one channel for each connection, and this needs another",
				sizeof(answer->words));
		return false;
	}
	if (!outbox_assertion_begin(&t->assertion, t->wire, item, &t->failure))
		become_lost(t);
	return true;
}

static void
handle_assertion(OutboxTransport *t, uint32 id, void *method,
				 OutboxEvent *event)
{
	amqp_channel_close_ok_t close_ok = {0};

	if (id == AMQP_CHANNEL_CLOSE_METHOD)
		queue_method(t, OUTBOX_ASSERTION_CHANNEL,
					 AMQP_CHANNEL_CLOSE_OK_METHOD, &close_ok);
	if (outbox_assertion_answer(&t->assertion, id, method, &event->answer))
		event->type = OUTBOX_EVENT_ASSERTED;
}


/* --------
 * Confirms and returned messages
 * --------
 */

static void
handle_confirm(OutboxTransport *t, OutboxEvent *event, uint64 tag,
			   bool multiple, bool ack)
{
	/* of a channel that is closed already */
	if (t->state != STATE_READY)
		return;

	/* of what is still being sent, which only a broken broker does */
	if (tag == 0 || tag >= t->next_tag - 1)
		outbox_wire_keep_body(t->wire);
	event->type = OUTBOX_EVENT_CONFIRM;
	event->tag = tag;
	event->multiple = multiple;
	event->ack = ack;
}

/* A part of the content of a returned message. */
static void
handle_content(OutboxTransport *t, const OutboxFrame *frame,
			   OutboxEvent *event)
{
	OutboxReturned *returned = &t->returned;

	if (!outbox_returned_content(returned, frame, &t->failure))
	{
		become_lost(t);
		return;
	}
	if (returned->state != OUTBOX_RETURNED_NONE || t->state != STATE_READY)
		return;

	/* mostly an earlier one; but which it is is not known here */
	outbox_wire_keep_body(t->wire);
	event->type = OUTBOX_EVENT_RETURN;
	event->reply_code = returned->reply_code;
	event->message_id = returned->has_message_id ? returned->message_id : NULL;
	event->exchange = returned->exchange;
	event->routing_key = returned->routing_key;
	event->failure = returned->failure;
}


/* --------
 * Closing by the broker, alarms
 * --------
 */

/*
 * The broker closed the channel because of something that we published.  All
 * that was published after it is discarded until it gets our close-ok, so the
 * new channel may be asked for in the same breath.
 */
static void
handle_channel_close(OutboxTransport *t, const amqp_channel_close_t *close,
					 OutboxEvent *event)
{
	amqp_channel_close_ok_t close_ok = {0};
	char		text[OUTBOX_SHORTSTR_MAX + 1];
	bool		was_ready = t->state == STATE_READY;

	outbox_utf8_copy(text, sizeof(text), close->reply_text.bytes,
					 close->reply_text.len, true);
	outbox_failure_set(&t->failure, was_ready ?
					   outbox_returned_sqlerrcode(close->reply_code) :
					   ERRCODE_SQLSERVER_REJECTED_ESTABLISHMENT_OF_SQLCONNECTION,
					   text, "channel closed by the broker (code %d)",
					   close->reply_code);
	outbox_returned_abandon(&t->returned);

	/*
	 * A channel that cannot even be opened would be opened for ever, and so
	 * would one that is closed although nothing was published on it.
	 */
	if (!was_ready || t->next_tag == 1)
	{
		t->reply_code = close->reply_code;
		become_lost(t);
		return;
	}
	event->type = OUTBOX_EVENT_CHANNEL_CLOSED;
	event->reply_code = close->reply_code;
	event->failure = t->failure;

	queue_method(t, OUTBOX_CHANNEL, AMQP_CHANNEL_CLOSE_OK_METHOD, &close_ok);
	open_channel(t);
	t->deadline = outbox_clock_ms() + t->connect_timeout_ms;
}

static void
handle_connection_close(OutboxTransport *t,
						const amqp_connection_close_t *close)
{
	amqp_connection_close_ok_t close_ok = {0};
	char		text[OUTBOX_SHORTSTR_MAX + 1];

	/* one try to be polite; what was queued before does not matter any more */
	outbox_wire_drop_body(t->wire);
	queue_method(t, 0, AMQP_CONNECTION_CLOSE_OK_METHOD, &close_ok);
	outbox_wire_flush(t->wire);

	outbox_utf8_copy(text, sizeof(text), close->reply_text.bytes,
					 close->reply_text.len, true);
	outbox_failure_set(&t->failure,
					   outbox_login_sqlerrcode(t->login, close->reply_code),
					   text,
					   "connection closed by the broker (code %d)",
					   close->reply_code);
	t->reply_code = close->reply_code;
	(void) outbox_assertion_blamed(&t->assertion, close, &t->blame);
	become_lost(t);
}

static void
handle_blocked(OutboxTransport *t, const amqp_connection_blocked_t *blocked,
			   OutboxEvent *event)
{
	char		text[OUTBOX_SHORTSTR_MAX + 1];

	outbox_utf8_copy(text, sizeof(text), blocked->reason.bytes,
					 blocked->reason.len, true);
	outbox_failure_set(&event->failure, ERRCODE_INSUFFICIENT_RESOURCES, text,
					   "the broker takes no messages at present");
	event->type = OUTBOX_EVENT_BLOCKED;
	t->blocked = true;
}

static void
handle_unblocked(OutboxTransport *t, OutboxEvent *event)
{
	event->type = OUTBOX_EVENT_UNBLOCKED;
	t->blocked = false;

	/* a channel that was to be reopened could not be, see has_deadline() */
	t->deadline = outbox_clock_ms() + t->connect_timeout_ms;
}


/* --------
 * Frames in, events out
 * --------
 */

/* Which methods may come in the present state; all others end it. */
static bool
method_expected(const OutboxTransport *t, uint16 channel, uint32 id)
{
	if (channel == 0)
	{
		switch (id)
		{
			case AMQP_CONNECTION_CLOSE_METHOD:
				return true;
			case AMQP_CONNECTION_BLOCKED_METHOD:
			case AMQP_CONNECTION_UNBLOCKED_METHOD:
				return t->state > STATE_LOGIN;
			default:
				return outbox_login_expects(t->login, id);
		}
	}

	if (t->state < STATE_AWAIT_CHANNEL)
		return false;
	if (channel == OUTBOX_ASSERTION_CHANNEL)
		return outbox_assertion_expects(&t->assertion, id);
	switch (id)
	{
		case AMQP_CHANNEL_CLOSE_METHOD:
			return true;
		case AMQP_CHANNEL_OPEN_OK_METHOD:
			return t->state == STATE_AWAIT_CHANNEL;
		case AMQP_CONFIRM_SELECT_OK_METHOD:
			return t->state == STATE_AWAIT_CONFIRM;
		case AMQP_BASIC_ACK_METHOD:
		case AMQP_BASIC_NACK_METHOD:
		case AMQP_BASIC_RETURN_METHOD:
			/* not in the middle of a returned message */
			return t->returned.state == OUTBOX_RETURNED_NONE;
		default:
			return false;
	}
}

static void
handle_method(OutboxTransport *t, const OutboxFrame *frame,
			  OutboxEvent *event)
{
	uint32		id = outbox_wire_get_uint32(frame->payload);
	void	   *method;

	if (!method_expected(t, frame->channel, id))
	{
		outbox_wire_unexpected(&t->failure, frame);
		become_lost(t);
		return;
	}
	method = outbox_wire_decode(t->wire, frame, &t->failure);
	if (method == NULL)
	{
		become_lost(t);
		return;
	}

	if (frame->channel == OUTBOX_ASSERTION_CHANNEL)
	{
		handle_assertion(t, id, method, event);
		return;
	}
	switch (id)
	{
		case AMQP_BASIC_ACK_METHOD:
			{
				amqp_basic_ack_t *ack = method;

				handle_confirm(t, event, ack->delivery_tag,
							   ack->multiple != 0, true);
				break;
			}
		case AMQP_BASIC_NACK_METHOD:
			{
				amqp_basic_nack_t *nack = method;

				handle_confirm(t, event, nack->delivery_tag,
							   nack->multiple != 0, false);
				break;
			}
		case AMQP_BASIC_RETURN_METHOD:
			outbox_returned_begin(&t->returned, method);
			break;
		case AMQP_CHANNEL_CLOSE_METHOD:
			handle_channel_close(t, method, event);
			break;
		case AMQP_CHANNEL_OPEN_OK_METHOD:
			enter_await_confirm(t);
			break;
		case AMQP_CONFIRM_SELECT_OK_METHOD:
			enter_ready(t, event);
			break;
		case AMQP_CONNECTION_BLOCKED_METHOD:
			handle_blocked(t, method, event);
			break;
		case AMQP_CONNECTION_UNBLOCKED_METHOD:
			handle_unblocked(t, event);
			break;
		case AMQP_CONNECTION_CLOSE_METHOD:
			handle_connection_close(t, method);
			break;
		case AMQP_CONNECTION_START_METHOD:
		case AMQP_CONNECTION_TUNE_METHOD:
		case AMQP_CONNECTION_OPEN_OK_METHOD:
			handle_login(t, id, method);
			break;
		default:
			Assert(false);		/* method_expected() knows no others */
			break;
	}
}

static void
handle_frame(OutboxTransport *t, const OutboxFrame *frame, OutboxEvent *event)
{
	switch (frame->type)
	{
		case AMQP_FRAME_METHOD:
			handle_method(t, frame, event);
			break;
		case AMQP_FRAME_HEADER:
		case AMQP_FRAME_BODY:
			handle_content(t, frame, event);
			break;
		case AMQP_FRAME_HEARTBEAT:
			/* the wire noted the time already */
			break;
		default:
			Assert(false);		/* the wire takes no others */
			break;
	}
}

/* Handle the next frame; false if no whole one is there. */
static bool
handle_next_frame(OutboxTransport *t, OutboxEvent *event)
{
	OutboxFrame frame;
	OutboxFrameResult result = outbox_wire_take(t->wire, &frame, &t->failure);

	if (result == OUTBOX_FRAME_NONE)
		return false;

	/* the very first frame can only be connection.start, a method */
	if (outbox_login_state(t->login) == OUTBOX_LOGIN_AWAIT_START &&
		result != OUTBOX_FRAME_BAD_END &&
		!(result == OUTBOX_FRAME_TAKEN && frame.type == AMQP_FRAME_METHOD))
		lose_for_greeting(t, frame.start);
	else if (result == OUTBOX_FRAME_TAKEN)
		handle_frame(t, &frame, event);
	else
		become_lost(t);
	return true;
}

/*
 * Read and handle frames until there is an event to report or nothing more to
 * read.  Output that handling queued goes out before the next read, many
 * answers and what the caller published in one piece.
 */
static void
work_off_input(OutboxTransport *t, OutboxEvent *event)
{
	ssize_t		n;

	t->more_input = false;
	while (event->type == OUTBOX_EVENT_NONE && t->state != STATE_LOST)
	{
		if (t->turn_frames >= FRAMES_PER_TURN)
		{
			outbox_wire_flush(t->wire);
			t->more_input = true;
			break;
		}
		if (handle_next_frame(t, event))
		{
			t->turn_frames++;
			continue;
		}
		outbox_wire_flush(t->wire);
		if (t->turn_reads++ == READS_PER_TURN)
		{
			t->more_input = true;
			break;
		}
		n = outbox_wire_receive(t->wire);
		if (n < 0)
			lose_stream(t);
		if (n <= 0)
			break;
	}
}


/* --------
 * Clocks
 * --------
 */

static bool
has_deadline(const OutboxTransport *t)
{
	/* a broker that blocks us does not read, so it cannot open a channel */
	return t->state < STATE_READY && !t->blocked;
}

/* When the peer counts as dead, by the heartbeat agreed on. */
static int64
peer_dead_at(const OutboxTransport *t)
{
	return outbox_wire_last_received(t->wire) +
		outbox_login_heartbeat(t->login) * INT64CONST(2000);
}

/* When we have to send something. */
static int64
heartbeat_due_at(const OutboxTransport *t)
{
	/* bytes that wait to be sent will do as well as a heartbeat */
	if (outbox_wire_pending(t->wire) > 0)
		return PG_INT64_MAX;
	return outbox_wire_last_sent(t->wire) +
		outbox_login_heartbeat(t->login) * INT64CONST(500);
}

/*
 * Whether the peer is dead is known only after all input is read: this process
 * may not have run for a while, and then the broker's heartbeats wait in the
 * socket.
 */
static void
check_clocks(OutboxTransport *t)
{
	int64		now = outbox_clock_ms();

	if (has_deadline(t) && now >= t->deadline)
	{
		lose_for_timeout(t);
		return;
	}
	if (outbox_login_heartbeat(t->login) == 0)
		return;
	if (!t->more_input && now >= peer_dead_at(t))
	{
		outbox_failure_set(&t->failure, ERRCODE_CONNECTION_FAILURE, NULL,
						   "no heartbeat from the broker for %d seconds",
						   2 * outbox_login_heartbeat(t->login));
		become_lost(t);
	}
	else if (now >= heartbeat_due_at(t))
	{
		outbox_wire_queue_heartbeat(t->wire);
		outbox_wire_flush(t->wire);
	}
}

static int64
earlier(int64 a, int64 b)
{
	return Min(a, b);
}

long
outbox_transport_timeout(OutboxTransport *t)
{
	int64		when = PG_INT64_MAX;
	int64		now;
	long		stream_ms;

	if (t->state == STATE_LOST || t->more_input)
		return 0;

	now = outbox_clock_ms();
	stream_ms = outbox_wire_timeout(t->wire);
	if (stream_ms >= 0)
		when = now + stream_ms;
	if (has_deadline(t))
		when = earlier(when, t->deadline);
	if (outbox_login_heartbeat(t->login) > 0)
	{
		when = earlier(when, peer_dead_at(t));
		when = earlier(when, heartbeat_due_at(t));
	}
	if (when == PG_INT64_MAX)
		return -1;
	return (long) Max(when - now, 0);
}


/* --------
 * The life of a transport
 * --------
 */

OutboxTransport *
outbox_transport_start(const OutboxServer *server, int host_no,
					   const OutboxCredentials *credentials,
					   const char *connection_name)
{
	MemoryContext context;
	MemoryContext old_context;
	OutboxTransport *t;

	Assert(server->connect_timeout > 0);

	context = AllocSetContextCreate(CurrentMemoryContext,
									"amqp_outbox transport",
									ALLOCSET_DEFAULT_SIZES);
	old_context = MemoryContextSwitchTo(context);
	t = palloc0(sizeof(OutboxTransport));
	t->context = context;
	t->state = STATE_CONNECTING;
	t->host = pstrdup(server->hosts[host_no].name);
	t->port = server->hosts[host_no].port;
	t->connect_timeout_ms = server->connect_timeout * INT64CONST(1000);
	t->deadline = outbox_clock_ms() + t->connect_timeout_ms;
	t->login = outbox_login_create(server, credentials, connection_name);
	t->wire = outbox_wire_open(t->host, t->port,
							   server->tls ? &server->tls_options : NULL,
							   credentials->key_password);
	MemoryContextSwitchTo(old_context);
	return t;
}

static void
connect_further(OutboxTransport *t)
{
	t->stream_state = outbox_wire_advance(t->wire);
	if (t->stream_state == OUTBOX_STREAM_OPEN)
	{
		OutboxStreamReport stream;

		outbox_wire_report(t->wire, &stream);
		if (outbox_login_permit(t->login, &stream, &t->failure))
			enter_login(t);
		else
			become_lost(t);
	}
	else if (t->stream_state == OUTBOX_STREAM_FAILED)
		lose_stream(t);
}

OutboxEventType
outbox_transport_next_event(OutboxTransport *t, OutboxEvent *event)
{
	Assert(!IsTransactionState());

	/* not all of it: a confirm uses a small part of a large struct */
	event->type = OUTBOX_EVENT_NONE;
	event->reply_code = 0;
	event->message_id = event->exchange = event->routing_key = NULL;
	event->failure.sqlerrcode = 0;
	event->failure.message[0] = event->failure.detail[0] = '\0';

	if (t->state == STATE_CONNECTING)
		connect_further(t);
	if (t->state > STATE_CONNECTING && t->state < STATE_LOST)
		work_off_input(t, event);
	if (event->type == OUTBOX_EVENT_NONE && t->state != STATE_LOST)
	{
		t->turn_reads = t->turn_frames = 0;
		check_clocks(t);
	}

	if (t->state == STATE_LOST)
	{
		event->type = OUTBOX_EVENT_LOST;
		event->reply_code = t->reply_code;
		event->failure = t->failure;
		event->answer = t->blame;
	}
	return event->type;
}

int
outbox_transport_sockets(OutboxTransport *t, OutboxSocket *sockets)
{
	return outbox_wire_sockets(t->wire, sockets);
}

uint64
outbox_transport_generation(const OutboxTransport *t)
{
	return outbox_wire_generation(t->wire);
}

static OutboxPhase
phase_of(const OutboxTransport *t, const OutboxStreamReport *stream)
{
	switch (stream->reached)
	{
		case OUTBOX_STREAM_RESOLVING:
			return OUTBOX_PHASE_RESOLVING;
		case OUTBOX_STREAM_CONNECTING:
			return OUTBOX_PHASE_CONNECTING;
		case OUTBOX_STREAM_HANDSHAKING:
			return OUTBOX_PHASE_HANDSHAKING;
		default:
			break;
	}
	/* open, but not protected as it would have to be */
	if (outbox_login_is_forbidden(t->login))
		return OUTBOX_PHASE_HANDSHAKING;
	switch (outbox_login_state(t->login))
	{
		case OUTBOX_LOGIN_AWAIT_START:
			return OUTBOX_PHASE_GREETING;
		case OUTBOX_LOGIN_AWAIT_TUNE:
			return OUTBOX_PHASE_LOGIN;
		case OUTBOX_LOGIN_AWAIT_OPEN:
			return OUTBOX_PHASE_OPENING;
		case OUTBOX_LOGIN_DONE:
			break;
	}
	return t->next_tag == 0 ? OUTBOX_PHASE_CHANNEL : OUTBOX_PHASE_READY;
}

void
outbox_transport_report(const OutboxTransport *t,
						OutboxTransportReport *report)
{
	const OutboxGreeting *greeting = outbox_login_greeting(t->login);

	memset(report, 0, sizeof(*report));
	outbox_wire_report(t->wire, &report->stream);
	report->phase = phase_of(t, &report->stream);
	strlcpy(report->product, greeting->product, sizeof(report->product));
	strlcpy(report->version, greeting->version, sizeof(report->version));
	strlcpy(report->mechanisms, greeting->mechanisms,
			sizeof(report->mechanisms));
	report->heartbeat = outbox_login_heartbeat(t->login);
	report->frame_max = outbox_login_frame_max(t->login);
	report->channel_max = outbox_login_channel_max(t->login);
}

static void
say_goodbye(OutboxTransport *t)
{
	amqp_connection_close_t close = {0};

	close.reply_code = AMQP_REPLY_SUCCESS;
	close.reply_text = amqp_cstring_bytes("goodbye");
	outbox_wire_drop_body(t->wire);
	queue_method(t, 0, AMQP_CONNECTION_CLOSE_METHOD, &close);
	outbox_wire_flush(t->wire);
}

void
outbox_transport_close(OutboxTransport *t)
{
	if (t == NULL)
		return;
	Assert(!IsTransactionState());

	if (t->state > STATE_LOGIN && t->state < STATE_LOST)
		say_goodbye(t);
	MemoryContextDelete(t->context);
}

/*-------------------------------------------------------------------------
 *
 * transport_amqp091.c
 *	  One connection to one broker over AMQP 0-9-1.
 *
 * The states of a transport and what takes it from one to the next; any of
 * them may end in LOST:
 *
 *	CONNECTING --stream open--> AWAIT_START --connection.start-->
 *	AWAIT_TUNE --connection.tune--> AWAIT_OPEN --connection.open-ok-->
 *	AWAIT_CHANNEL --channel.open-ok--> AWAIT_CONFIRM --confirm.select-ok-->
 *	READY --channel.close--> AWAIT_CHANNEL ...
 *
 * librabbitmq is a codec here and nothing else: its own input and output block
 * without a limit in every version, and it calls abort() where it finds itself
 * in the wrong state.  It encodes methods and properties into our output
 * buffer and decodes the methods that we expect.  The rest of the input we
 * read ourselves, because a crash here restarts the whole database cluster
 * and the bytes come from the network:
 *
 *	- every frame's header is checked before anything looks into the frame;
 *	- the decoder gets whole method frames only, and of those only the methods
 *	  that may come in the present state.  So it never keeps a frame in part,
 *	  and the one table that it ever decodes is that of connection.start, whose
 *	  size is bounded (its recursion is not, before librabbitmq 0.14);
 *	- the content of a returned message is skipped but for its message-id;
 *	- the first thing that does not fit ends the connection for good.
 *
 * A transport lives in a worker, in a memory context of its own; what is not
 * from palloc goes with that context (a reset callback), the stream as well.
 *
 *-------------------------------------------------------------------------
 */
#define OUTBOX_WITH_LIBRABBITMQ

#include "postgres.h"

#include "access/xact.h"
#include "port/pg_bswap.h"
#include "utils/memutils.h"

#include "compat.h"
#include "properties.h"
#include "transport.h"

/* the only channel that we use, and so all that we ask for */
#define CHANNEL				1

/* AMQP 0-9-1, sections 2.3.5 and 4.2.3: type, channel, size; end octet */
#define FRAME_HEADER_SIZE	7
#define FRAME_OVERHEAD		8

/* AMQP 0-9-1, section 1.2, constant frame-min-size */
#define FRAME_MIN_SIZE		4096

/*
 * The largest frame that we take before the limit is negotiated.  4096 is what
 * the protocol says, RabbitMQ 4.1 takes 8192.
 */
#define LOGIN_FRAME_MAX		16384

/* class 2, weight 2, body size 8, at the start of a content header */
#define CONTENT_HEADER_SIZE	12

/* basic.publish at its longest: method, ticket, two short strings, bits */
#define PUBLISH_ROOM		(4 + 2 + 2 * (1 + OUTBOX_SHORTSTR_MAX) + 1)

/* any other method, besides the strings of connection.start-ok */
#define METHOD_ROOM			4096

#define INPUT_SIZE			(64 * 1024)
#define OUTPUT_SIZE			(64 * 1024)

/* an empty output buffer larger than this goes back to OUTPUT_SIZE */
#define OUTPUT_KEEP			(1024 * 1024)

/*
 * So often one call reads from the socket at most: a peer that floods us must
 * not keep the worker from looking at its latch.
 */
#define READS_PER_CALL		64

typedef enum TransportState
{
	STATE_CONNECTING,
	STATE_AWAIT_START,
	STATE_AWAIT_TUNE,
	STATE_AWAIT_OPEN,
	STATE_AWAIT_CHANNEL,
	STATE_AWAIT_CONFIRM,
	STATE_READY,
	STATE_LOST
} TransportState;

/* Where we are in a returned message: method, header, body frames. */
typedef enum ReturnState
{
	RETURN_NONE,
	RETURN_AWAIT_HEADER,
	RETURN_AWAIT_BODY
} ReturnState;

/* One whole frame in the input buffer. */
typedef struct Frame
{
	uint8		type;
	uint16		channel;
	char	   *start;			/* its header */
	Size		total;			/* all of it, in bytes */
	char	   *payload;
	Size		len;			/* of the payload */
} Frame;

struct OutboxTransport
{
	MemoryContext context;		/* holds this and all that it points to */
	MemoryContextCallback release;

	TransportState state;
	OutboxFailure failure;		/* with STATE_LOST */
	int			reply_code;		/* the broker's, or 0 */

	OutboxStream *stream;
	OutboxStreamState stream_state;	/* as of the last look */
	bool		write_failed;	/* LOST as soon as the input is read */
	amqp_connection_state_t decoder;
	bool		decoder_used;	/* since it last gave back its memory */

	char	   *host;
	int			port;
	char	   *vhost;
	char	   *user;
	char	   *password;		/* wiped and NULL once it is sent */
	char	   *connection_name;
	int64		connect_timeout_ms;
	int64		deadline;		/* of reaching READY */

	int			heartbeat;		/* seconds, 0 for none; ours, then agreed */
	uint32		frame_max;		/* bytes; ours, then agreed */
	int64		last_received;	/* on outbox_clock_ms() */
	int64		last_sent;

	/* bytes start up to end are to be sent; the rest of size is free */
	char	   *output;
	Size		output_start;
	Size		output_end;
	Size		output_size;

	/* the same for bytes received and not looked at yet */
	char	   *input;
	Size		input_start;
	Size		input_end;
	Size		input_size;
	bool		more_input;		/* stopped by READS_PER_CALL */

	uint64		next_tag;
	bool		blocked;

	/* the returned message that is coming in, and the strings of its event */
	ReturnState return_state;
	int			return_code;
	uint64		return_body_left;
	OutboxFailure return_failure;
	bool		has_message_id;
	char		message_id[OUTBOX_SHORTSTR_MAX + 1];
	char		exchange[OUTBOX_SHORTSTR_MAX + 1];
	char		routing_key[OUTBOX_SHORTSTR_MAX + 1];
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

static void
lose_for_protocol(OutboxTransport *t, const char *detail)
{
	outbox_failure_set(&t->failure, ERRCODE_PROTOCOL_VIOLATION, detail,
					   "the broker violated the protocol AMQP 0-9-1");
	become_lost(t);
}

/*
 * What the end of the stream means while we log in.  Several brokers answer
 * what they do not like by hanging up, RabbitMQ after three seconds.
 */
static const char *
login_hint(const OutboxTransport *t)
{
	switch (t->state)
	{
		case STATE_AWAIT_START:
			return "It did not greet: perhaps it expects TLS, or takes no more connections.";
		case STATE_AWAIT_TUNE:
			return "It hung up after the login: perhaps it does not accept user or password.";
		case STATE_AWAIT_OPEN:
			return "It hung up when the virtual host was opened: perhaps that does not exist, or the limits asked for are refused.";
		default:
			return NULL;
	}
}

/* The stream failed; so did we. */
static void
lose_stream(OutboxTransport *t)
{
	const char *hint = login_hint(t);

	t->failure = *outbox_stream_failure(t->stream);
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
		case STATE_AWAIT_START:
			phase = "Connected, but the broker did not greet in time.";
			break;
		case STATE_AWAIT_CHANNEL:
		case STATE_AWAIT_CONFIRM:
			phase = "The broker did not open a channel in time.";
			break;
		default:
			phase = "Connected, but the login was not completed in time.";
			break;
	}
	outbox_failure_set(&t->failure,
					   ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION,
					   phase,
					   "timeout while connecting to host \"%s\", port %d",
					   t->host, t->port);
	become_lost(t);
}

/*
 * SQLSTATE for a reply code (AMQP 0-9-1, section 1.2) that ends a connection.
 */
static int
connection_sqlerrcode(const OutboxTransport *t, int reply_code)
{
	switch (reply_code)
	{
		case AMQP_ACCESS_REFUSED:
			return t->state == STATE_AWAIT_TUNE ?
				ERRCODE_INVALID_PASSWORD :
				ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION;
		case AMQP_INVALID_PATH:
		case AMQP_NOT_ALLOWED:
		case AMQP_RESOURCE_ERROR:
			return ERRCODE_SQLSERVER_REJECTED_ESTABLISHMENT_OF_SQLCONNECTION;
		case AMQP_FRAME_ERROR:
		case AMQP_SYNTAX_ERROR:
		case AMQP_COMMAND_INVALID:
		case AMQP_CHANNEL_ERROR:
		case AMQP_UNEXPECTED_FRAME:
		case AMQP_NOT_IMPLEMENTED:
			return ERRCODE_PROTOCOL_VIOLATION;
		default:
			return ERRCODE_CONNECTION_FAILURE;
	}
}

/* The same for a channel or for one message. */
static int
channel_sqlerrcode(int reply_code)
{
	switch (reply_code)
	{
		case AMQP_CONTENT_TOO_LARGE:
			return ERRCODE_PROGRAM_LIMIT_EXCEEDED;
		case AMQP_NO_ROUTE:
		case AMQP_NOT_FOUND:
			return ERRCODE_UNDEFINED_OBJECT;
		case AMQP_ACCESS_REFUSED:
			return ERRCODE_INSUFFICIENT_PRIVILEGE;
		case AMQP_RESOURCE_LOCKED:
			return ERRCODE_OBJECT_IN_USE;
		case AMQP_PRECONDITION_FAILED:
			return ERRCODE_INVALID_PARAMETER_VALUE;
		case AMQP_RESOURCE_ERROR:
			return ERRCODE_INSUFFICIENT_RESOURCES;
		default:
			return ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
	}
}


/* --------
 * Output
 * --------
 */

static inline char *
put_uint16(char *p, uint16 value)
{
	value = pg_hton16(value);
	memcpy(p, &value, sizeof(value));
	return p + sizeof(value);
}

static inline char *
put_uint32(char *p, uint32 value)
{
	value = pg_hton32(value);
	memcpy(p, &value, sizeof(value));
	return p + sizeof(value);
}

static inline char *
put_frame_header(char *p, uint8 type, uint16 channel, uint32 len)
{
	*p++ = (char) type;
	p = put_uint16(p, channel);
	return put_uint32(p, len);
}

/*
 * Make room for so many bytes at output_end.  Bytes that were sent are
 * dropped when there are more of them than of those to keep, so that a byte is
 * moved once on average.
 */
static void
reserve_output(OutboxTransport *t, Size room)
{
	Size		pending = t->output_end - t->output_start;
	Size		size = t->output_size;

	if (t->output_size - t->output_end >= room)
		return;
	if (t->output_start >= pending)
	{
		memmove(t->output, t->output + t->output_start, pending);
		t->output_start = 0;
		t->output_end = pending;
	}
	while (size - t->output_end < room)
		size *= 2;
	if (size > t->output_size)
	{
		t->output = repalloc_huge(t->output, size);
		t->output_size = size;
	}
}

/*
 * All is sent.  Keep a buffer of the size that an ordinary load needs, but not
 * that of one huge message for ever.
 */
static void
empty_output(OutboxTransport *t)
{
	t->output_start = t->output_end = 0;
	if (t->output_size > OUTPUT_KEEP + 2 * (Size) t->frame_max)
	{
		pfree(t->output);
		t->output_size = OUTPUT_SIZE;
		t->output = MemoryContextAlloc(t->context, t->output_size);
	}
}

/* Send what there is, as far as the socket takes it. */
static void
send_output(OutboxTransport *t)
{
	bool		progress = false;

	while (t->output_start < t->output_end && !t->write_failed)
	{
		ssize_t		n = outbox_stream_write(t->stream,
											t->output + t->output_start,
											t->output_end - t->output_start);

		if (n == 0)
			break;
		if (n < 0)
		{
			/* the broker may have said why: next_event() reads first */
			t->write_failed = true;
			break;
		}
		t->output_start += n;
		progress = true;
	}
	if (t->output_start == t->output_end)
		empty_output(t);
	if (progress)
		t->last_sent = outbox_clock_ms();
}

/*
 * Append a method frame, whose arguments need no more than room bytes.  What
 * we send here is ours but for names from the options, so it fits, except
 * for a virtual host of more than 255 bytes.
 */
static void
queue_method(OutboxTransport *t, uint16 channel, amqp_method_number_t id,
			 void *method, Size room)
{
	char	   *frame;
	amqp_bytes_t arguments;
	int			len;

	reserve_output(t, FRAME_OVERHEAD + 4 + room);
	frame = t->output + t->output_end;
	arguments.bytes = frame + FRAME_HEADER_SIZE + 4;
	arguments.len = room;
	len = amqp_encode_method(id, method, arguments);
	if (len < 0)
	{
		outbox_failure_set(&t->failure, ERRCODE_INVALID_PARAMETER_VALUE,
						   amqp_error_string2(len), "could not encode %s",
						   amqp_method_name(id));
		become_lost(t);
		return;
	}
	frame = put_frame_header(frame, AMQP_FRAME_METHOD, channel, 4 + len);
	frame = put_uint32(frame, id);
	frame[len] = (char) AMQP_FRAME_END;
	t->output_end += FRAME_OVERHEAD + 4 + len;
}

/* Always at a frame's boundary, as only whole frames are ever appended. */
static void
queue_heartbeat(OutboxTransport *t)
{
	char	   *frame;

	reserve_output(t, FRAME_OVERHEAD);
	frame = put_frame_header(t->output + t->output_end,
							 AMQP_FRAME_HEARTBEAT, 0, 0);
	*frame = (char) AMQP_FRAME_END;
	t->output_end += FRAME_OVERHEAD;
}


/* --------
 * Publishing
 *
 * This is the hot path: no allocation, no system call and no clock here.
 * --------
 */

static bool
put_publish(OutboxTransport *t, const OutboxMessage *msg)
{
	char	   *frame = t->output + t->output_end;
	amqp_basic_publish_t method = {0};
	amqp_bytes_t arguments;
	int			len;

	method.exchange = amqp_cstring_bytes(msg->exchange);
	method.routing_key = amqp_cstring_bytes(msg->routing_key);
	method.mandatory = msg->mandatory;

	arguments.bytes = frame + FRAME_HEADER_SIZE + 4;
	arguments.len = PUBLISH_ROOM - 4;
	len = amqp_encode_method(AMQP_BASIC_PUBLISH_METHOD, &method, arguments);
	if (len < 0)
		return false;
	frame = put_frame_header(frame, AMQP_FRAME_METHOD, CHANNEL, 4 + len);
	frame = put_uint32(frame, AMQP_BASIC_PUBLISH_METHOD);
	frame[len] = (char) AMQP_FRAME_END;
	t->output_end += FRAME_OVERHEAD + 4 + len;
	return true;
}

static bool
put_content_header(OutboxTransport *t, const OutboxMessage *msg)
{
	char	   *frame = t->output + t->output_end;
	amqp_bytes_t properties;
	int			len;

	/* properties do not travel in more than one frame */
	properties.bytes = frame + FRAME_HEADER_SIZE + CONTENT_HEADER_SIZE;
	properties.len = t->frame_max - OUTBOX_HEADER_FRAME_OVERHEAD;
	len = amqp_encode_properties(AMQP_BASIC_CLASS, msg->properties,
								 properties);
	if (len < 0)
		return false;
	frame = put_frame_header(frame, AMQP_FRAME_HEADER, CHANNEL,
							 CONTENT_HEADER_SIZE + len);
	frame = put_uint16(frame, AMQP_BASIC_CLASS);
	frame = put_uint16(frame, 0);
	frame = put_uint32(frame, (uint32) ((uint64) msg->body_len >> 32));
	frame = put_uint32(frame, (uint32) msg->body_len);
	frame[len] = (char) AMQP_FRAME_END;
	t->output_end += OUTBOX_HEADER_FRAME_OVERHEAD + len;
	return true;
}

static void
put_body(OutboxTransport *t, const OutboxMessage *msg)
{
	Size		piece_max = t->frame_max - FRAME_OVERHEAD;
	Size		done = 0;

	while (done < msg->body_len)
	{
		Size		piece = Min(msg->body_len - done, piece_max);
		char	   *frame = t->output + t->output_end;

		frame = put_frame_header(frame, AMQP_FRAME_BODY, CHANNEL,
								 (uint32) piece);
		memcpy(frame, msg->body + done, piece);
		frame[piece] = (char) AMQP_FRAME_END;
		t->output_end += FRAME_OVERHEAD + piece;
		done += piece;
	}
}

uint64
outbox_transport_publish(OutboxTransport *t, const OutboxMessage *msg,
						 OutboxFailure *failure)
{
	Size		body_frames;
	Size		before;

	Assert(t->state == STATE_READY);
	Assert(msg->properties != NULL);

	body_frames = msg->body_len / (t->frame_max - FRAME_OVERHEAD) + 1;
	reserve_output(t, FRAME_OVERHEAD + PUBLISH_ROOM + t->frame_max +
				   msg->body_len + body_frames * FRAME_OVERHEAD);

	/* nothing is sent before all of it is encoded */
	before = t->output_end - t->output_start;
	if (!put_publish(t, msg))
	{
		t->output_end = t->output_start + before;
		outbox_failure_set(failure, ERRCODE_INVALID_PARAMETER_VALUE, NULL,
						   "exchange or routing key is longer than %d bytes",
						   OUTBOX_SHORTSTR_MAX);
		return 0;
	}
	if (!put_content_header(t, msg))
	{
		t->output_end = t->output_start + before;
		outbox_failure_set(failure, ERRCODE_PROGRAM_LIMIT_EXCEEDED, NULL,
						   "headers and properties of the message do not fit into a frame of %u bytes",
						   t->frame_max);
		return 0;
	}
	put_body(t, msg);
	return t->next_tag++;
}

void
outbox_transport_flush(OutboxTransport *t)
{
	Assert(!IsTransactionState());

	if (t->state > STATE_CONNECTING && t->state < STATE_LOST)
		send_output(t);
}

Size
outbox_transport_pending(const OutboxTransport *t)
{
	return t->output_end - t->output_start;
}


/* --------
 * Input
 * --------
 */

static inline uint16
get_uint16(const char *p)
{
	uint16		value;

	memcpy(&value, p, sizeof(value));
	return pg_ntoh16(value);
}

static inline uint32
get_uint32(const char *p)
{
	uint32		value;

	memcpy(&value, p, sizeof(value));
	return pg_ntoh32(value);
}

static inline uint64
get_uint64(const char *p)
{
	uint64		value;

	memcpy(&value, p, sizeof(value));
	return pg_ntoh64(value);
}

/*
 * Read once.  Returns false if there is nothing (more) to read now; then the
 * connection may also be lost.
 */
static bool
receive(OutboxTransport *t)
{
	ssize_t		n;

	if (t->input_start > 0)
	{
		memmove(t->input, t->input + t->input_start,
				t->input_end - t->input_start);
		t->input_end -= t->input_start;
		t->input_start = 0;
	}

	n = outbox_stream_read(t->stream, t->input + t->input_end,
						   t->input_size - t->input_end);
	if (n > 0)
	{
		t->input_end += n;
		t->last_received = outbox_clock_ms();
		return true;
	}
	if (n < 0 || t->write_failed)
		lose_stream(t);
	return false;
}

/* The first bytes of the broker are no frame of AMQP 0-9-1. */
static void
lose_for_greeting(OutboxTransport *t, const char *p, Size len)
{
	char		detail[OUTBOX_FAILURE_DETAIL_LEN];

	if (len >= 8 && memcmp(p, "AMQP", 4) == 0)
		snprintf(detail, sizeof(detail),
				 "It proposes protocol %u, version %u-%u-%u.",
				 (uint8) p[4], (uint8) p[5], (uint8) p[6], (uint8) p[7]);
	else if (p[0] == 21 && p[1] == 3)
		strlcpy(detail, "It expects TLS.", sizeof(detail));
	else
		strlcpy(detail, "Its first bytes are not those of an AMQP broker.",
				sizeof(detail));
	outbox_failure_set(&t->failure, ERRCODE_PROTOCOL_VIOLATION, detail,
					   "host \"%s\", port %d, does not speak AMQP 0-9-1",
					   t->host, t->port);
	become_lost(t);
}

/*
 * Check a frame's header, before anything depends on it.  Returns NULL, or
 * what is wrong.
 */
static const char *
frame_error(const OutboxTransport *t, const Frame *frame)
{
	Size		limit = t->state > STATE_AWAIT_TUNE ?
		t->frame_max : LOGIN_FRAME_MAX;

	if (frame->total > limit)
		return "frame larger than agreed";
	if (frame->channel > CHANNEL)
		return "frame for a channel that is not open";
	switch (frame->type)
	{
		case AMQP_FRAME_METHOD:
			return frame->len < 4 ? "method frame too short" : NULL;
		case AMQP_FRAME_HEADER:
			return frame->channel == 0 || frame->len < CONTENT_HEADER_SIZE ?
				"malformed content header frame" : NULL;
		case AMQP_FRAME_BODY:
			return frame->channel == 0 ? "body frame on channel 0" : NULL;
		case AMQP_FRAME_HEARTBEAT:
			return frame->channel != 0 || frame->len != 0 ?
				"malformed heartbeat frame" : NULL;
		default:
			return "unknown type of frame";
	}
}

/* The input buffer must be able to hold a frame of the broker. */
static void
enlarge_input(OutboxTransport *t, Size size)
{
	if (size <= t->input_size)
		return;
	t->input = repalloc_huge(t->input, size);
	t->input_size = size;
}

/*
 * Take the next frame out of the input buffer, if a whole one is there.  Its
 * bytes stay where they are until the next receive().
 */
static bool
take_frame(OutboxTransport *t, Frame *frame)
{
	char	   *p = t->input + t->input_start;
	Size		available = t->input_end - t->input_start;
	const char *error;

	/* the protocol header that a broker answers with has just 8 bytes */
	if (available < FRAME_OVERHEAD)
		return false;

	frame->type = (uint8) p[0];
	frame->channel = get_uint16(p + 1);
	frame->len = get_uint32(p + 3);
	frame->total = frame->len + FRAME_OVERHEAD;
	frame->start = p;
	frame->payload = p + FRAME_HEADER_SIZE;

	error = frame_error(t, frame);
	if (error)
	{
		if (t->state == STATE_AWAIT_START)
			lose_for_greeting(t, p, available);
		else
			lose_for_protocol(t, error);
		return false;
	}
	if (available < frame->total)
	{
		enlarge_input(t, frame->total);
		return false;
	}
	if ((uint8) p[frame->total - 1] != AMQP_FRAME_END)
	{
		lose_for_protocol(t, "frame without end octet");
		return false;
	}
	t->input_start += frame->total;
	return true;
}

/*
 * Give a method frame to librabbitmq; the decoded method lives until
 * release_decoder().  NULL if the connection is lost by that: after an error
 * the decoder is in no state to go on.
 */
static void *
decode_method(OutboxTransport *t, const Frame *frame)
{
	amqp_bytes_t input;
	amqp_frame_t decoded;
	int			n;

	input.bytes = frame->start;
	input.len = frame->total;
	t->decoder_used = true;
	n = amqp_handle_input(t->decoder, input, &decoded);
	if (n == (int) frame->total && decoded.frame_type == AMQP_FRAME_METHOD)
		return decoded.payload.method.decoded;

	lose_for_protocol(t, n < 0 ? amqp_error_string2(n) : "malformed method");
	return NULL;
}

/* Without this every method that is decoded stays in memory. */
static void
release_decoder(OutboxTransport *t)
{
	if (!t->decoder_used)
		return;
	amqp_maybe_release_buffers(t->decoder);
	t->decoder_used = false;
}


/* --------
 * Logging in
 * --------
 */

static void
enter_await_start(OutboxTransport *t)
{
	Assert(t->state == STATE_CONNECTING);
	t->state = STATE_AWAIT_START;
	t->last_received = outbox_clock_ms();

	/* AMQP 0-9-1, section 4.2.2 */
	reserve_output(t, 8);
	memcpy(t->output + t->output_end, "AMQP\0\0\11\1", 8);
	t->output_end += 8;
}

static bool
offers_plain(amqp_bytes_t mechanisms)
{
	const char *p = mechanisms.bytes;
	const char *end = p + mechanisms.len;

	while (p < end)
	{
		const char *space = memchr(p, ' ', end - p);
		Size		len = (space ? space : end) - p;

		if (len == 5 && memcmp(p, "PLAIN", 5) == 0)
			return true;
		p += len + 1;
	}
	return false;
}

static amqp_table_entry_t
string_entry(const char *key, const char *value)
{
	amqp_table_entry_t entry;

	entry.key = amqp_cstring_bytes(key);
	entry.value.kind = AMQP_FIELD_KIND_UTF8;
	entry.value.value.bytes = amqp_cstring_bytes(value);
	return entry;
}

static amqp_table_entry_t
true_entry(const char *key)
{
	amqp_table_entry_t entry;

	entry.key = amqp_cstring_bytes(key);
	entry.value.kind = AMQP_FIELD_KIND_BOOLEAN;
	entry.value.value.boolean = 1;
	return entry;
}

/* The password is not needed twice. */
static void
forget_password(OutboxTransport *t)
{
	if (t->password)
		explicit_bzero(t->password, strlen(t->password));
	t->password = NULL;
}

/*
 * connection.blocked makes the broker tell of an alarm, and
 * authentication_failure_close makes it refuse a login in words; see
 * https://www.rabbitmq.com/docs/connections#capabilities.
 */
static void
queue_start_ok(OutboxTransport *t)
{
	amqp_connection_start_ok_t start_ok = {0};
	amqp_table_entry_t capabilities[4];
	amqp_table_entry_t properties[5];
	Size		user_len = strlen(t->user);
	Size		password_len = strlen(t->password);
	char	   *response = MemoryContextAlloc(t->context,
											  user_len + password_len + 2);

	capabilities[0] = true_entry("authentication_failure_close");
	capabilities[1] = true_entry("basic.nack");
	capabilities[2] = true_entry("connection.blocked");
	capabilities[3] = true_entry("publisher_confirms");
	properties[0] = string_entry("product", "amqp_outbox");
	properties[1] = string_entry("version", OUTBOX_VERSION);
	properties[2] = string_entry("platform", "PostgreSQL " PG_VERSION);
	properties[3] = string_entry("connection_name", t->connection_name);
	properties[4].key = amqp_cstring_bytes("capabilities");
	properties[4].value.kind = AMQP_FIELD_KIND_TABLE;
	properties[4].value.value.table.num_entries = lengthof(capabilities);
	properties[4].value.value.table.entries = capabilities;

	/* RFC 4616: NUL, user, NUL, password */
	response[0] = '\0';
	memcpy(response + 1, t->user, user_len + 1);
	memcpy(response + user_len + 2, t->password, password_len);

	start_ok.client_properties.num_entries = lengthof(properties);
	start_ok.client_properties.entries = properties;
	start_ok.mechanism = amqp_cstring_bytes("PLAIN");
	start_ok.response.bytes = response;
	start_ok.response.len = user_len + password_len + 2;
	start_ok.locale = amqp_cstring_bytes("en_US");
	queue_method(t, 0, AMQP_CONNECTION_START_OK_METHOD, &start_ok,
				 METHOD_ROOM + strlen(t->connection_name) +
				 start_ok.response.len);

	explicit_bzero(response, start_ok.response.len);
	pfree(response);
	forget_password(t);
}

static void
handle_start(OutboxTransport *t, const amqp_connection_start_t *start)
{
	Assert(t->state == STATE_AWAIT_START);

	if (!offers_plain(start->mechanisms))
	{
		char		offered[OUTBOX_SHORTSTR_MAX + 1];
		char		detail[OUTBOX_FAILURE_DETAIL_LEN];

		outbox_utf8_copy(offered, sizeof(offered), start->mechanisms.bytes,
						 start->mechanisms.len, true);
		snprintf(detail, sizeof(detail), "It offers: %s.", offered);
		outbox_failure_set(&t->failure,
						   ERRCODE_SQLSERVER_REJECTED_ESTABLISHMENT_OF_SQLCONNECTION,
						   detail,
						   "the broker does not offer the authentication mechanism PLAIN");
		become_lost(t);
		return;
	}
	t->state = STATE_AWAIT_TUNE;
	queue_start_ok(t);
}

/* The smaller of two limits, of which 0 is none. */
static uint32
tighter_limit(uint32 a, uint32 b)
{
	if (a == 0 || b == 0)
		return Max(a, b);
	return Min(a, b);
}

static void
handle_tune(OutboxTransport *t, const amqp_connection_tune_t *tune)
{
	amqp_connection_tune_ok_t tune_ok = {0};
	amqp_connection_open_t open = {0};

	Assert(t->state == STATE_AWAIT_TUNE);

	if (tune->frame_max != 0 && tune->frame_max < FRAME_MIN_SIZE)
	{
		lose_for_protocol(t, "the broker proposes frames of less than 4096 bytes");
		return;
	}
	t->frame_max = tighter_limit(t->frame_max, tune->frame_max);
	if (t->heartbeat > 0)
		t->heartbeat = tighter_limit(t->heartbeat, tune->heartbeat);
	t->state = STATE_AWAIT_OPEN;

	/*
	 * The decoder is not told: it is given nothing near the limit that it
	 * begins with, and amqp_tune_connection() is one of the functions that
	 * may abort().
	 */
	tune_ok.channel_max = CHANNEL;
	tune_ok.frame_max = t->frame_max;
	tune_ok.heartbeat = (uint16) t->heartbeat;
	queue_method(t, 0, AMQP_CONNECTION_TUNE_OK_METHOD, &tune_ok, METHOD_ROOM);
	open.virtual_host = amqp_cstring_bytes(t->vhost);
	queue_method(t, 0, AMQP_CONNECTION_OPEN_METHOD, &open, METHOD_ROOM);
}

/* After connection.open-ok, and again after channel.close. */
static void
open_channel(OutboxTransport *t)
{
	amqp_channel_open_t open = {0};
	amqp_confirm_select_t select = {0};

	Assert(t->state == STATE_AWAIT_OPEN || t->state == STATE_READY);
	t->state = STATE_AWAIT_CHANNEL;
	queue_method(t, CHANNEL, AMQP_CHANNEL_OPEN_METHOD, &open, METHOD_ROOM);
	queue_method(t, CHANNEL, AMQP_CONFIRM_SELECT_METHOD, &select,
				 METHOD_ROOM);
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

	event->type = OUTBOX_EVENT_CONFIRM;
	event->tag = tag;
	event->multiple = multiple;
	event->ack = ack;
}

/*
 * basic.return: the content of the message follows.  Which one it is only its
 * message-id tells, there is no delivery tag.
 */
static void
handle_return(OutboxTransport *t, const amqp_basic_return_t *ret)
{
	char		text[OUTBOX_SHORTSTR_MAX + 1];

	Assert(t->return_state == RETURN_NONE);
	t->return_state = RETURN_AWAIT_HEADER;
	t->return_code = ret->reply_code;
	outbox_utf8_copy(text, sizeof(text), ret->reply_text.bytes,
					 ret->reply_text.len, true);
	outbox_failure_set(&t->return_failure,
					   channel_sqlerrcode(ret->reply_code), text,
					   "message returned by the broker (code %d)",
					   ret->reply_code);
	outbox_utf8_copy(t->exchange, sizeof(t->exchange), ret->exchange.bytes,
					 ret->exchange.len, false);
	outbox_utf8_copy(t->routing_key, sizeof(t->routing_key),
					 ret->routing_key.bytes, ret->routing_key.len, false);
}

/* The returned message is complete. */
static void
finish_return(OutboxTransport *t, OutboxEvent *event)
{
	t->return_state = RETURN_NONE;
	if (t->state != STATE_READY)
		return;

	event->type = OUTBOX_EVENT_RETURN;
	event->reply_code = t->return_code;
	event->message_id = t->has_message_id ? t->message_id : NULL;
	event->exchange = t->exchange;
	event->routing_key = t->routing_key;
	event->failure = t->return_failure;
}

/*
 * Step over one property; false if it does not end before end.
 */
static bool
skip_property(const char **p, const char *end, char kind)
{
	Size		left = end - *p;
	Size		len;

	switch (kind)
	{
		case 'o':				/* octet */
			len = 1;
			break;
		case 's':				/* short string */
			if (left < 1)
				return false;
			len = 1 + (Size) (uint8) **p;
			break;
		default:				/* table */
			if (left < 4)
				return false;
			len = 4 + (Size) get_uint32(*p);
			break;
	}
	if (left < len)
		return false;
	*p += len;
	return true;
}

/*
 * Find the message-id among the properties of a returned message (AMQP 0-9-1,
 * section 4.2.6.1): flag words, then the values of the properties whose flag
 * is set, in this order.  Returns false if they are malformed.
 */
static bool
find_message_id(OutboxTransport *t, const char *p, const char *end)
{
	static const struct
	{
		uint16		flag;
		char		kind;
	}			before[] = {
		{AMQP_BASIC_CONTENT_TYPE_FLAG, 's'},
		{AMQP_BASIC_CONTENT_ENCODING_FLAG, 's'},
		{AMQP_BASIC_HEADERS_FLAG, 't'},
		{AMQP_BASIC_DELIVERY_MODE_FLAG, 'o'},
		{AMQP_BASIC_PRIORITY_FLAG, 'o'},
		{AMQP_BASIC_CORRELATION_ID_FLAG, 's'},
		{AMQP_BASIC_REPLY_TO_FLAG, 's'},
		{AMQP_BASIC_EXPIRATION_FLAG, 's'},
	};
	uint16		flags;
	uint16		word;

	if (end - p < 2)
		return false;
	flags = word = get_uint16(p);
	p += 2;
	while (word & 1)			/* another word of flags follows */
	{
		if (end - p < 2)
			return false;
		word = get_uint16(p);
		p += 2;
	}

	for (int i = 0; i < (int) lengthof(before); i++)
	{
		if ((flags & before[i].flag) &&
			!skip_property(&p, end, before[i].kind))
			return false;
	}
	t->has_message_id = (flags & AMQP_BASIC_MESSAGE_ID_FLAG) != 0;
	if (t->has_message_id)
	{
		const char *value = p + 1;

		if (!skip_property(&p, end, 's'))
			return false;
		outbox_utf8_copy(t->message_id, sizeof(t->message_id), value,
						 p - value, false);
	}
	return true;
}

static void
handle_content_header(OutboxTransport *t, const Frame *frame,
					  OutboxEvent *event)
{
	if (t->return_state != RETURN_AWAIT_HEADER)
	{
		lose_for_protocol(t, "content header without a returned message");
		return;
	}
	if (get_uint16(frame->payload) != AMQP_BASIC_CLASS ||
		!find_message_id(t, frame->payload + CONTENT_HEADER_SIZE,
						 frame->payload + frame->len))
	{
		lose_for_protocol(t, "malformed properties of a returned message");
		return;
	}
	t->return_body_left = get_uint64(frame->payload + 4);
	if (t->return_body_left > 0)
		t->return_state = RETURN_AWAIT_BODY;
	else
		finish_return(t, event);
}

/* We have the body ourselves; only its length counts. */
static void
handle_body(OutboxTransport *t, const Frame *frame, OutboxEvent *event)
{
	if (t->return_state != RETURN_AWAIT_BODY ||
		frame->len > t->return_body_left)
	{
		lose_for_protocol(t, "body frame that belongs to no message");
		return;
	}
	t->return_body_left -= frame->len;
	if (t->return_body_left == 0)
		finish_return(t, event);
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
					   channel_sqlerrcode(close->reply_code) :
					   ERRCODE_SQLSERVER_REJECTED_ESTABLISHMENT_OF_SQLCONNECTION,
					   text, "channel closed by the broker (code %d)",
					   close->reply_code);
	t->return_state = RETURN_NONE;

	/* a channel that cannot even be opened would be opened for ever */
	if (!was_ready)
	{
		t->reply_code = close->reply_code;
		become_lost(t);
		return;
	}
	event->type = OUTBOX_EVENT_CHANNEL_CLOSED;
	event->reply_code = close->reply_code;
	event->failure = t->failure;

	queue_method(t, CHANNEL, AMQP_CHANNEL_CLOSE_OK_METHOD, &close_ok,
				 METHOD_ROOM);
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
	queue_method(t, 0, AMQP_CONNECTION_CLOSE_OK_METHOD, &close_ok,
				 METHOD_ROOM);
	send_output(t);

	outbox_utf8_copy(text, sizeof(text), close->reply_text.bytes,
					 close->reply_text.len, true);
	outbox_failure_set(&t->failure,
					   connection_sqlerrcode(t, close->reply_code), text,
					   "connection closed by the broker (code %d)",
					   close->reply_code);
	t->reply_code = close->reply_code;
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

	/* a channel that was to be reopened could not be, see check_deadline() */
	t->deadline = outbox_clock_ms() + t->connect_timeout_ms;
}


/* --------
 * Frames in, events out
 * --------
 */

/* Which methods may come in the present state; all others end it. */
static bool
method_expected(const OutboxTransport *t, uint16 channel,
				amqp_method_number_t id)
{
	if (channel == 0)
	{
		switch (id)
		{
			case AMQP_CONNECTION_START_METHOD:
				return t->state == STATE_AWAIT_START;
			case AMQP_CONNECTION_TUNE_METHOD:
				return t->state == STATE_AWAIT_TUNE;
			case AMQP_CONNECTION_OPEN_OK_METHOD:
				return t->state == STATE_AWAIT_OPEN;
			case AMQP_CONNECTION_CLOSE_METHOD:
				return true;
			case AMQP_CONNECTION_BLOCKED_METHOD:
			case AMQP_CONNECTION_UNBLOCKED_METHOD:
				return t->state > STATE_AWAIT_OPEN;
			default:
				return false;
		}
	}

	if (t->state < STATE_AWAIT_CHANNEL)
		return false;
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
			return t->return_state == RETURN_NONE;
		default:
			return false;
	}
}

static void
handle_method(OutboxTransport *t, const Frame *frame, OutboxEvent *event)
{
	amqp_method_number_t id = get_uint32(frame->payload);
	void	   *method;

	if (!method_expected(t, frame->channel, id))
	{
		const char *name = amqp_method_name(id);
		char		detail[OUTBOX_FAILURE_DETAIL_LEN];

		snprintf(detail, sizeof(detail),
				 "unexpected method %s (%u, %u) on channel %u",
				 name ? name : "of unknown name", id >> 16, id & 0xffff,
				 frame->channel);
		lose_for_protocol(t, detail);
		return;
	}
	method = decode_method(t, frame);
	if (method == NULL)
		return;

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
			handle_return(t, method);
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
			handle_start(t, method);
			break;
		case AMQP_CONNECTION_TUNE_METHOD:
			handle_tune(t, method);
			break;
		case AMQP_CONNECTION_OPEN_OK_METHOD:
			open_channel(t);
			break;
		default:
			Assert(false);		/* method_expected() knows no others */
			break;
	}
}

static void
handle_frame(OutboxTransport *t, const Frame *frame, OutboxEvent *event)
{
	/* the very first frame can only be connection.start */
	if (t->state == STATE_AWAIT_START && frame->type != AMQP_FRAME_METHOD)
	{
		lose_for_greeting(t, frame->start, frame->total);
		return;
	}
	switch (frame->type)
	{
		case AMQP_FRAME_METHOD:
			handle_method(t, frame, event);
			break;
		case AMQP_FRAME_HEADER:
			handle_content_header(t, frame, event);
			break;
		case AMQP_FRAME_BODY:
			handle_body(t, frame, event);
			break;
		case AMQP_FRAME_HEARTBEAT:
			/* receive() noted the time already */
			break;
		default:
			Assert(false);		/* frame_error() knows no others */
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

static bool
has_heartbeat(const OutboxTransport *t)
{
	return t->heartbeat > 0 && t->state > STATE_AWAIT_TUNE;
}

/*
 * Only after all input is read: this process may not have run for a while,
 * and then the broker's heartbeats wait in the socket.
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
	if (!has_heartbeat(t))
		return;
	if (now - t->last_received >= t->heartbeat * INT64CONST(2000))
	{
		outbox_failure_set(&t->failure, ERRCODE_CONNECTION_FAILURE, NULL,
						   "no heartbeat from the broker for %d seconds",
						   2 * t->heartbeat);
		become_lost(t);
		return;
	}

	/* bytes that wait to be sent will do as well as a heartbeat */
	if (t->output_start == t->output_end &&
		now - t->last_sent >= t->heartbeat * INT64CONST(500))
	{
		queue_heartbeat(t);
		send_output(t);
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

	if (t->state == STATE_LOST || t->write_failed || t->more_input)
		return 0;

	now = outbox_clock_ms();
	stream_ms = outbox_stream_timeout(t->stream);
	if (stream_ms >= 0)
		when = now + stream_ms;
	if (has_deadline(t))
		when = earlier(when, t->deadline);
	if (has_heartbeat(t))
	{
		when = earlier(when,
					   t->last_received + t->heartbeat * INT64CONST(2000));
		if (t->output_start == t->output_end)
			when = earlier(when,
						   t->last_sent + t->heartbeat * INT64CONST(500));
	}
	if (when == PG_INT64_MAX)
		return -1;
	return (long) Max(when - now, 0);
}


/* --------
 * The life of a transport
 * --------
 */

/* The reset callback of the transport's memory context. */
static void
release_transport(void *arg)
{
	OutboxTransport *t = (OutboxTransport *) arg;

	if (t->decoder)
		amqp_destroy_connection(t->decoder);
	forget_password(t);
}

static void
copy_options(OutboxTransport *t, const OutboxServer *server, int host_no,
			 const char *password, const char *connection_name)
{
	t->host = pstrdup(server->hosts[host_no].name);
	t->port = server->hosts[host_no].port;
	t->vhost = pstrdup(server->vhost);
	t->user = pstrdup(server->user);
	t->password = pstrdup(password);
	t->connection_name = pstrdup(connection_name);
	t->heartbeat = Min(server->heartbeat, PG_UINT16_MAX);
	t->frame_max = server->frame_max;
	t->connect_timeout_ms = server->connect_timeout * INT64CONST(1000);
}

OutboxTransport *
outbox_transport_start(const OutboxServer *server, int host_no,
					   const char *password, const char *connection_name)
{
	MemoryContext context;
	MemoryContext old_context;
	OutboxTransport *t;

	Assert(server->user != NULL && password != NULL);
	Assert(server->frame_max >= FRAME_MIN_SIZE);
	Assert(server->connect_timeout > 0);

	context = AllocSetContextCreate(CurrentMemoryContext,
									"amqp_outbox transport",
									ALLOCSET_DEFAULT_SIZES);
	old_context = MemoryContextSwitchTo(context);
	t = palloc0(sizeof(OutboxTransport));
	t->context = context;
	t->state = STATE_CONNECTING;
	t->release.func = release_transport;
	t->release.arg = t;
	MemoryContextRegisterResetCallback(context, &t->release);

	copy_options(t, server, host_no, password, connection_name);
	t->deadline = outbox_clock_ms() + t->connect_timeout_ms;
	t->input_size = INPUT_SIZE;
	t->input = palloc(t->input_size);
	t->output_size = OUTPUT_SIZE;
	t->output = palloc(t->output_size);

	t->decoder = amqp_new_connection();
	if (t->decoder == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory"),
				 errdetail("Failed while creating an AMQP decoder.")));
	t->stream = outbox_stream_open(t->host, t->port, server->tls,
								   server->cacertfile);
	MemoryContextSwitchTo(old_context);
	return t;
}

/* Let the stream go on; false as long as it is not open. */
static bool
stream_is_open(OutboxTransport *t)
{
	t->stream_state = outbox_stream_advance(t->stream);
	switch (t->stream_state)
	{
		case OUTBOX_STREAM_OPEN:
			enter_await_start(t);
			return true;
		case OUTBOX_STREAM_FAILED:
			lose_stream(t);
			return false;
		default:
			return false;
	}
}

/*
 * Read and handle frames until there is an event to report or nothing more to
 * read.  Output that handling queued goes out before the next read, many
 * answers and what the caller published in one piece.
 */
static void
work_off_input(OutboxTransport *t, OutboxEvent *event)
{
	int			reads = 0;
	Frame		frame;

	t->more_input = false;
	while (event->type == OUTBOX_EVENT_NONE && t->state != STATE_LOST)
	{
		if (take_frame(t, &frame))
		{
			handle_frame(t, &frame, event);
			continue;
		}
		if (t->state == STATE_LOST)
			break;
		release_decoder(t);
		send_output(t);
		if (reads++ == READS_PER_CALL)
		{
			t->more_input = true;
			break;
		}
		if (!receive(t))
			break;
	}
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
		(void) stream_is_open(t);
	if (t->state > STATE_CONNECTING && t->state < STATE_LOST)
		work_off_input(t, event);
	if (event->type == OUTBOX_EVENT_NONE && t->state != STATE_LOST &&
		!t->more_input)
		check_clocks(t);

	if (t->state == STATE_LOST)
	{
		event->type = OUTBOX_EVENT_LOST;
		event->reply_code = t->reply_code;
		event->failure = t->failure;
	}
	return event->type;
}

int
outbox_transport_sockets(OutboxTransport *t, OutboxSocket *sockets)
{
	return outbox_stream_sockets(t->stream, t->output_start < t->output_end,
								 sockets);
}

uint64
outbox_transport_generation(const OutboxTransport *t)
{
	return outbox_stream_generation(t->stream);
}

static void
say_goodbye(OutboxTransport *t)
{
	amqp_connection_close_t close = {0};

	close.reply_code = AMQP_REPLY_SUCCESS;
	close.reply_text = amqp_cstring_bytes("goodbye");
	queue_method(t, 0, AMQP_CONNECTION_CLOSE_METHOD, &close, METHOD_ROOM);
	send_output(t);
}

void
outbox_transport_close(OutboxTransport *t)
{
	if (t == NULL)
		return;
	Assert(!IsTransactionState());

	if (t->state > STATE_AWAIT_OPEN && t->state < STATE_LOST)
		say_goodbye(t);
	MemoryContextDelete(t->context);
}

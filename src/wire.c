/*-------------------------------------------------------------------------
 *
 * wire.c
 *	  AMQP frames over a stream, in both directions.
 *
 * A wire owns the stream to the broker, a buffer for each direction and
 * librabbitmq's decoder.  Whole frames are queued, and sent when the caller
 * says so; bytes are read, and whole frames taken out of them.
 *
 * librabbitmq is a codec here and nothing else: its own input and output block
 * without a limit in every version, and it calls abort() where it finds itself
 * in the wrong state.  It encodes methods and properties into our output
 * buffer and decodes single methods.  The rest of the input we read ourselves,
 * because a crash here restarts the whole database cluster and the bytes come
 * from the network:
 *
 *	- every frame's header is checked before anything looks into the frame;
 *	- the decoder gets whole method frames only, and callers give it only the
 *	  methods that may come in their present state.  So it never keeps a frame
 *	  in part, and the one table that it ever decodes is that of
 *	  connection.start, whose size is bounded (its recursion is not, before
 *	  librabbitmq 0.14).
 *
 * A wire goes with the memory context that it was opened in; a reset callback
 * frees what is not from palloc.
 *
 *-------------------------------------------------------------------------
 */
#define OUTBOX_WITH_LIBRABBITMQ

#include "postgres.h"

#include "utils/memutils.h"

#include "compat.h"
#include "properties.h"
#include "wire.h"

/* AMQP 0-9-1, sections 2.3.5 and 4.2.3: type, channel, size; end octet */
#define FRAME_HEADER_SIZE	7
#define FRAME_OVERHEAD		8

/* the id of a method, before its arguments */
#define METHOD_ID_SIZE		4

/*
 * The largest frame that we take before the limit is negotiated.  4096 is what
 * the protocol says, RabbitMQ 4.1 takes 8192.
 */
#define LOGIN_FRAME_MAX		16384

/* arguments of basic.publish at their longest: ticket, two strings, bits */
#define PUBLISH_ROOM		(2 + 2 * (1 + OUTBOX_SHORTSTR_MAX) + 1)

/* those of any other method, besides what its caller adds */
#define METHOD_ROOM			4096

#define INPUT_SIZE			(64 * 1024)
#define OUTPUT_SIZE			(64 * 1024)

/* an empty output buffer larger than this goes back to OUTPUT_SIZE */
#define OUTPUT_KEEP			(1024 * 1024)

/* a body larger than this is not copied before it is sent */
#define BODY_KEEP			(64 * 1024)

struct OutboxWire
{
	MemoryContext context;		/* holds this and all that it points to */
	MemoryContextCallback release;

	OutboxStream *stream;
	bool		write_failed;	/* reported as soon as the input is read */
	amqp_connection_state_t decoder;
	bool		decoder_used;	/* since it last gave back its memory */

	uint32		frame_max;		/* bytes */
	int64		last_received;	/* on outbox_clock_ms() */
	int64		last_sent;

	/* bytes start up to end are to be sent; the rest of size is free */
	char	   *output;
	Size		output_start;
	Size		output_end;
	Size		output_size;

	/* and then what is left of a body, which is framed as it is sent */
	const char *body;
	Size		body_rest;

	/* the same for bytes received and not taken yet */
	char	   *input;
	Size		input_start;
	Size		input_end;
	Size		input_size;
};


/* --------
 * The stream below
 * --------
 */

/* The reset callback of the wire's memory context. */
static void
release_wire(void *arg)
{
	OutboxWire *wire = (OutboxWire *) arg;

	/* it may hold a password that the broker has not accepted */
	if (wire->output)
		explicit_bzero(wire->output, wire->output_size);
	if (wire->decoder)
		amqp_destroy_connection(wire->decoder);
}

OutboxWire *
outbox_wire_open(const char *host, int port, const OutboxTlsOptions *tls,
				 const char *key_password)
{
	OutboxWire *wire = palloc0(sizeof(OutboxWire));

	wire->context = CurrentMemoryContext;
	wire->release.func = release_wire;
	wire->release.arg = wire;
	MemoryContextRegisterResetCallback(wire->context, &wire->release);

	wire->frame_max = LOGIN_FRAME_MAX;
	wire->input_size = INPUT_SIZE;
	wire->input = palloc(wire->input_size);
	wire->output_size = OUTPUT_SIZE;
	wire->output = palloc(wire->output_size);

	wire->decoder = amqp_new_connection();
	if (wire->decoder == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory"),
				 errdetail("Failed while creating an AMQP decoder.")));
	wire->stream = outbox_stream_open(host, port, tls, key_password);
	return wire;
}

int
outbox_wire_sockets(OutboxWire *wire, OutboxSocket *sockets)
{
	return outbox_stream_sockets(wire->stream, outbox_wire_pending(wire) > 0,
								 sockets);
}

uint64
outbox_wire_generation(const OutboxWire *wire)
{
	return outbox_stream_generation(wire->stream);
}

long
outbox_wire_timeout(OutboxWire *wire)
{
	/* receive() has a failure to report, which no socket will tell of */
	if (wire->write_failed)
		return 0;
	return outbox_stream_timeout(wire->stream);
}

const OutboxFailure *
outbox_wire_failure(const OutboxWire *wire)
{
	return outbox_stream_failure(wire->stream);
}

void
outbox_wire_report(const OutboxWire *wire, OutboxStreamReport *report)
{
	outbox_stream_report(wire->stream, report);
}

void
outbox_wire_set_frame_max(OutboxWire *wire, uint32 frame_max)
{
	Assert(frame_max >= OUTBOX_FRAME_MIN_SIZE);

	/*
	 * The decoder is not told: it is given nothing near the limit that it
	 * begins with, and amqp_tune_connection() is one of the functions that
	 * may abort().
	 */
	wire->frame_max = frame_max;
}

int64
outbox_wire_last_received(const OutboxWire *wire)
{
	return wire->last_received;
}

int64
outbox_wire_last_sent(const OutboxWire *wire)
{
	return wire->last_sent;
}


/* --------
 * The output queue
 *
 * Only whole frames are ever appended, so its end is a frame's boundary.
 *
 * A large body stays with its owner, and is put into the queue frame by frame
 * when all before it is sent: so it goes to the socket through memory that the
 * processor has at hand, and is never there twice.
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
reserve_output(OutboxWire *wire, Size room)
{
	Size		pending = wire->output_end - wire->output_start;
	Size		size = wire->output_size;

	if (wire->output_size - wire->output_end >= room)
		return;
	if (wire->output_start >= pending)
	{
		memmove(wire->output, wire->output + wire->output_start, pending);
		wire->output_start = 0;
		wire->output_end = pending;
	}
	while (size - wire->output_end < room)
		size *= 2;
	if (size > wire->output_size)
	{
		wire->output = repalloc_huge(wire->output, size);
		wire->output_size = size;
	}
}

/*
 * All is sent.  Keep a buffer of the size that an ordinary load needs, but not
 * that of one huge message for ever.
 */
static void
empty_output(OutboxWire *wire)
{
	wire->output_start = wire->output_end = 0;
	if (wire->output_size > OUTPUT_KEEP + 2 * (Size) wire->frame_max)
	{
		pfree(wire->output);
		wire->output_size = OUTPUT_SIZE;
		wire->output = MemoryContextAlloc(wire->context, wire->output_size);
	}
}

/* The rest of a body takes so many frames. */
static Size
body_frames(const OutboxWire *wire)
{
	Size		piece_max = wire->frame_max - FRAME_OVERHEAD;

	return (wire->body_rest + piece_max - 1) / piece_max;
}

/* Append the next frame of the body. */
static void
put_body_frame(OutboxWire *wire)
{
	Size		piece_max = wire->frame_max - FRAME_OVERHEAD;
	Size		piece = Min(wire->body_rest, piece_max);
	char	   *frame;

	reserve_output(wire, FRAME_OVERHEAD + piece);
	frame = put_frame_header(wire->output + wire->output_end, AMQP_FRAME_BODY,
							 OUTBOX_CHANNEL, (uint32) piece);
	memcpy(frame, wire->body, piece);
	frame[piece] = (char) AMQP_FRAME_END;
	wire->output_end += FRAME_OVERHEAD + piece;
	wire->body += piece;
	wire->body_rest -= piece;
}

void
outbox_wire_keep_body(OutboxWire *wire)
{
	if (wire->body_rest == 0)
		return;
	reserve_output(wire, wire->body_rest + body_frames(wire) * FRAME_OVERHEAD);
	while (wire->body_rest > 0)
		put_body_frame(wire);
}

void
outbox_wire_drop_body(OutboxWire *wire)
{
	wire->body_rest = 0;
}

/* Send once; whether anything went out. */
static bool
send_output(OutboxWire *wire)
{
	ssize_t		n = outbox_stream_write(wire->stream,
										wire->output + wire->output_start,
										wire->output_end - wire->output_start);

	if (n > 0)
		wire->output_start += n;
	else if (n < 0)
	{
		/* the broker may have said why: its last words are read first */
		wire->write_failed = true;
	}
	return n > 0;
}

void
outbox_wire_flush(OutboxWire *wire)
{
	bool		progress = false;

	while (outbox_wire_pending(wire) > 0 && !wire->write_failed)
	{
		if (wire->output_start == wire->output_end)
		{
			wire->output_start = wire->output_end = 0;
			put_body_frame(wire);
		}
		if (!send_output(wire))
			break;
		progress = true;
	}
	if (outbox_wire_pending(wire) == 0)
		empty_output(wire);
	if (progress)
		wire->last_sent = outbox_clock_ms();
}

Size
outbox_wire_pending(const OutboxWire *wire)
{
	Size		pending = wire->output_end - wire->output_start;

	if (wire->body_rest > 0)
		pending += wire->body_rest + body_frames(wire) * FRAME_OVERHEAD;
	return pending;
}

void
outbox_wire_wipe_sent(OutboxWire *wire)
{
	explicit_bzero(wire->output, wire->output_start);
	explicit_bzero(wire->output + wire->output_end,
				   wire->output_size - wire->output_end);
}

OutboxStreamState
outbox_wire_advance(OutboxWire *wire)
{
	OutboxStreamState state = outbox_stream_advance(wire->stream);

	if (state == OUTBOX_STREAM_OPEN)
	{
		wire->last_received = outbox_clock_ms();

		/* AMQP 0-9-1, section 4.2.2 */
		reserve_output(wire, 8);
		memcpy(wire->output + wire->output_end, "AMQP\0\0\11\1", 8);
		wire->output_end += 8;
	}
	return state;
}

/*
 * Append a method frame, for whose arguments room bytes are reserved; 0, or
 * librabbitmq's error.
 */
static inline int
put_method(OutboxWire *wire, uint16 channel, uint32 id, void *method,
		   Size room)
{
	char	   *frame = wire->output + wire->output_end;
	amqp_bytes_t arguments;
	int			len;

	arguments.bytes = frame + FRAME_HEADER_SIZE + METHOD_ID_SIZE;
	arguments.len = room;
	len = amqp_encode_method(id, method, arguments);
	if (len < 0)
		return len;
	frame = put_frame_header(frame, AMQP_FRAME_METHOD, channel,
							 METHOD_ID_SIZE + len);
	frame = put_uint32(frame, id);
	frame[len] = (char) AMQP_FRAME_END;
	wire->output_end += FRAME_OVERHEAD + METHOD_ID_SIZE + len;
	return 0;
}

bool
outbox_wire_queue_method(OutboxWire *wire, uint16 channel, uint32 id,
						 void *method, Size extra, OutboxFailure *failure)
{
	Size		room = METHOD_ROOM + extra;
	int			error;

	outbox_wire_keep_body(wire);
	reserve_output(wire, FRAME_OVERHEAD + METHOD_ID_SIZE + room);
	error = put_method(wire, channel, id, method, room);
	if (error == 0)
		return true;

	outbox_failure_set(failure, ERRCODE_INVALID_PARAMETER_VALUE,
					   amqp_error_string2(error), "could not encode %s",
					   amqp_method_name(id));
	return false;
}

void
outbox_wire_queue_heartbeat(OutboxWire *wire)
{
	char	   *frame;

	outbox_wire_keep_body(wire);
	reserve_output(wire, FRAME_OVERHEAD);
	frame = put_frame_header(wire->output + wire->output_end,
							 AMQP_FRAME_HEARTBEAT, 0, 0);
	*frame = (char) AMQP_FRAME_END;
	wire->output_end += FRAME_OVERHEAD;
}


/* --------
 * Messages
 *
 * This is the hot path: no system call, no clock, and no allocation but for
 * the growth of the buffer.
 * --------
 */

static bool
put_publish(OutboxWire *wire, const OutboxMessage *msg)
{
	amqp_basic_publish_t method = {0};

	method.exchange = amqp_cstring_bytes(msg->exchange);
	method.routing_key = amqp_cstring_bytes(msg->routing_key);
	method.mandatory = msg->mandatory;
	return put_method(wire, OUTBOX_CHANNEL, AMQP_BASIC_PUBLISH_METHOD,
					  &method, PUBLISH_ROOM) == 0;
}

static bool
put_content_header(OutboxWire *wire, const OutboxMessage *msg)
{
	char	   *frame = wire->output + wire->output_end;
	amqp_bytes_t properties;
	int			len;

	/* properties do not travel in more than one frame */
	properties.bytes = frame + FRAME_HEADER_SIZE + OUTBOX_CONTENT_HEADER_SIZE;
	properties.len = wire->frame_max - OUTBOX_HEADER_FRAME_OVERHEAD;
	len = amqp_encode_properties(AMQP_BASIC_CLASS, msg->properties,
								 properties);
	if (len < 0)
		return false;
	frame = put_frame_header(frame, AMQP_FRAME_HEADER, OUTBOX_CHANNEL,
							 OUTBOX_CONTENT_HEADER_SIZE + len);
	frame = put_uint16(frame, AMQP_BASIC_CLASS);
	frame = put_uint16(frame, 0);
	frame = put_uint32(frame, (uint32) ((uint64) msg->body_len >> 32));
	frame = put_uint32(frame, (uint32) msg->body_len);
	frame[len] = (char) AMQP_FRAME_END;
	wire->output_end += OUTBOX_HEADER_FRAME_OVERHEAD + len;
	return true;
}

bool
outbox_wire_queue_message(OutboxWire *wire, const OutboxMessage *msg,
						  OutboxFailure *failure)
{
	Size		start;

	Assert(msg->properties != NULL);

	outbox_wire_keep_body(wire);
	reserve_output(wire, FRAME_OVERHEAD + METHOD_ID_SIZE + PUBLISH_ROOM +
				   wire->frame_max);	/* the content header's frame */

	start = wire->output_end;
	if (!put_publish(wire, msg))
	{
		outbox_failure_set(failure, ERRCODE_INVALID_PARAMETER_VALUE, NULL,
						   "exchange or routing key is longer than %d bytes",
						   OUTBOX_SHORTSTR_MAX);
		return false;
	}
	if (!put_content_header(wire, msg))
	{
		wire->output_end = start;
		outbox_failure_set(failure, ERRCODE_PROGRAM_LIMIT_EXCEEDED, NULL,
						   "headers and properties of the message do not fit into a frame of %u bytes",
						   wire->frame_max);
		return false;
	}
	wire->body = msg->body;
	wire->body_rest = msg->body_len;
	if (wire->body_rest <= BODY_KEEP)
		outbox_wire_keep_body(wire);
	return true;
}


/* --------
 * Input
 * --------
 */

/* Without this every method that is decoded stays in memory. */
static void
release_decoder(OutboxWire *wire)
{
	if (!wire->decoder_used)
		return;
	amqp_maybe_release_buffers(wire->decoder);
	wire->decoder_used = false;
}

ssize_t
outbox_wire_receive(OutboxWire *wire)
{
	ssize_t		n;

	release_decoder(wire);
	if (wire->input_start > 0)
	{
		memmove(wire->input, wire->input + wire->input_start,
				wire->input_end - wire->input_start);
		wire->input_end -= wire->input_start;
		wire->input_start = 0;
	}

	n = outbox_stream_read(wire->stream, wire->input + wire->input_end,
						   wire->input_size - wire->input_end);
	if (n > 0)
	{
		wire->input_end += n;
		wire->last_received = outbox_clock_ms();
		return n;
	}
	return wire->write_failed ? -1 : n;
}

/*
 * Check a frame's header, before anything depends on it.  Returns NULL, or
 * what is wrong.
 */
static const char *
frame_error(const OutboxWire *wire, const OutboxFrame *frame)
{
	if (frame->total > wire->frame_max)
		return "frame larger than agreed";
	if (frame->channel > OUTBOX_CHANNEL_MAX)
		return "frame for a channel that is not open";
	switch (frame->type)
	{
		case AMQP_FRAME_METHOD:
			return frame->len < METHOD_ID_SIZE ?
				"method frame too short" : NULL;
		case AMQP_FRAME_HEADER:
			return frame->channel != OUTBOX_CHANNEL ||
				frame->len < OUTBOX_CONTENT_HEADER_SIZE ?
				"malformed content header frame" : NULL;
		case AMQP_FRAME_BODY:
			return frame->channel != OUTBOX_CHANNEL ?
				"body frame on a channel without messages" : NULL;
		case AMQP_FRAME_HEARTBEAT:
			return frame->channel != 0 || frame->len != 0 ?
				"malformed heartbeat frame" : NULL;
		default:
			return "unknown type of frame";
	}
}

/* The input buffer must be able to hold a frame of the broker. */
static void
enlarge_input(OutboxWire *wire, Size size)
{
	if (size <= wire->input_size)
		return;
	wire->input = repalloc_huge(wire->input, size);
	wire->input_size = size;
}

OutboxFrameResult
outbox_wire_take(OutboxWire *wire, OutboxFrame *frame, OutboxFailure *failure)
{
	char	   *p = wire->input + wire->input_start;
	Size		available = wire->input_end - wire->input_start;
	const char *error;

	/* the protocol header that a broker answers with has just 8 bytes */
	if (available < FRAME_OVERHEAD)
		return OUTBOX_FRAME_NONE;

	frame->type = (uint8) p[0];
	frame->channel = outbox_wire_get_uint16(p + 1);
	frame->len = outbox_wire_get_uint32(p + 3);
	frame->total = frame->len + FRAME_OVERHEAD;
	frame->start = p;
	frame->payload = p + FRAME_HEADER_SIZE;

	error = frame_error(wire, frame);
	if (error)
	{
		outbox_wire_violation(failure, error);
		return OUTBOX_FRAME_BAD_HEADER;
	}
	if (available < frame->total)
	{
		enlarge_input(wire, frame->total);
		return OUTBOX_FRAME_NONE;
	}
	if ((uint8) p[frame->total - 1] != AMQP_FRAME_END)
	{
		outbox_wire_violation(failure, "frame without end octet");
		return OUTBOX_FRAME_BAD_END;
	}
	wire->input_start += frame->total;
	return OUTBOX_FRAME_TAKEN;
}

void *
outbox_wire_decode(OutboxWire *wire, const OutboxFrame *frame,
				   OutboxFailure *failure)
{
	amqp_bytes_t input;
	amqp_frame_t decoded;
	int			n;

	input.bytes = frame->start;
	input.len = frame->total;
	wire->decoder_used = true;
	n = amqp_handle_input(wire->decoder, input, &decoded);
	if (n == (int) frame->total && decoded.frame_type == AMQP_FRAME_METHOD)
		return decoded.payload.method.decoded;

	outbox_wire_violation(failure,
						  n < 0 ? amqp_error_string2(n) : "malformed method");
	return NULL;
}

void
outbox_wire_violation(OutboxFailure *failure, const char *detail)
{
	outbox_failure_set(failure, ERRCODE_PROTOCOL_VIOLATION, detail,
					   "the broker violated the protocol AMQP 0-9-1");
}

void
outbox_wire_unexpected(OutboxFailure *failure, const OutboxFrame *frame)
{
	uint32		id = outbox_wire_get_uint32(frame->payload);
	const char *name = amqp_method_name(id);
	char		detail[OUTBOX_FAILURE_DETAIL_LEN];

	snprintf(detail, sizeof(detail),
			 "unexpected method %s (%u, %u) on channel %u",
			 name ? name : "of unknown name", id >> 16, id & 0xffff,
			 frame->channel);
	outbox_wire_violation(failure, detail);
}

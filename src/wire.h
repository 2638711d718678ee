/*-------------------------------------------------------------------------
 *
 * wire.h
 *	  AMQP frames over a stream, in both directions.
 *
 * For the rooms of the transport only; librabbitmq's structs come and go here
 * as void pointers.  Nothing here waits, and nothing here knows what a frame
 * means or when it may come.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_WIRE_H
#define OUTBOX_WIRE_H

#include "port/pg_bswap.h"

#include "message.h"
#include "stream.h"

/* the channel that messages travel on */
#define OUTBOX_CHANNEL		1

/* and the one to tell the broker what it shall have; more we do not ask for */
#define OUTBOX_ASSERTION_CHANNEL	2
#define OUTBOX_CHANNEL_MAX	OUTBOX_ASSERTION_CHANNEL

/* AMQP 0-9-1, section 1.2, constant frame-min-size */
#define OUTBOX_FRAME_MIN_SIZE	4096

/* class 2, weight 2, body size 8, at the start of a content header */
#define OUTBOX_CONTENT_HEADER_SIZE	12

typedef struct OutboxWire OutboxWire;

/* One whole frame in the input buffer, valid until the next receive(). */
typedef struct OutboxFrame
{
	uint8		type;
	uint16		channel;
	char	   *start;			/* its header */
	Size		total;			/* all of it, in bytes */
	char	   *payload;
	Size		len;			/* of the payload */
} OutboxFrame;

typedef enum OutboxFrameResult
{
	OUTBOX_FRAME_NONE,			/* no whole frame is there: receive() more */
	OUTBOX_FRAME_TAKEN,
	OUTBOX_FRAME_BAD_HEADER,	/* failure; at least 8 bytes at start */
	OUTBOX_FRAME_BAD_END		/* failure */
} OutboxFrameResult;

/*
 * Begin to connect, as outbox_stream_open() does.  The wire, its stream
 * included, goes with CurrentMemoryContext.  May raise an error for lack of
 * memory only.
 */
extern OutboxWire *outbox_wire_open(const char *host, int port,
									const OutboxTlsOptions *tls,
									const char *key_password);

/*
 * Let the stream go on, until it is open; then the protocol header is queued
 * and frames may be.
 */
extern OutboxStreamState outbox_wire_advance(OutboxWire *wire);

/* As outbox_stream_sockets(), _generation(), _timeout(), _failure(), _report(). */
extern int	outbox_wire_sockets(OutboxWire *wire, OutboxSocket *sockets);
extern uint64 outbox_wire_generation(const OutboxWire *wire);
extern long outbox_wire_timeout(OutboxWire *wire);
extern const OutboxFailure *outbox_wire_failure(const OutboxWire *wire);
extern void outbox_wire_report(const OutboxWire *wire,
							   OutboxStreamReport *report);

/* The limit agreed with the broker, for both directions, in bytes. */
extern void outbox_wire_set_frame_max(OutboxWire *wire, uint32 frame_max);

/*
 * Queue a method frame.  The arguments may need 4096 bytes and, for what has
 * no limit of its own, extra more.  False, with the reason in *failure, if
 * they cannot be encoded.
 */
extern bool outbox_wire_queue_method(OutboxWire *wire, uint16 channel,
									 uint32 id, void *method, Size extra,
									 OutboxFailure *failure);

/*
 * Queue a message: basic.publish, content header, body.  False, with the
 * reason in *failure and nothing queued, if it cannot be encoded.  Its body
 * must stay where it is until nothing is pending, or something else is queued,
 * or outbox_wire_keep_body() is called.
 */
extern bool outbox_wire_queue_message(OutboxWire *wire,
									  const OutboxMessage *msg,
									  OutboxFailure *failure);

/* Copy what is left of a body, whose owner may not keep it. */
extern void outbox_wire_keep_body(OutboxWire *wire);

/* Do not send what is left of a body: the connection is given up. */
extern void outbox_wire_drop_body(OutboxWire *wire);

extern void outbox_wire_queue_heartbeat(OutboxWire *wire);

/* Send what is queued, as far as the socket takes it. */
extern void outbox_wire_flush(OutboxWire *wire);

/* Bytes queued and not sent yet. */
extern Size outbox_wire_pending(const OutboxWire *wire);

/* Wipe what was sent out of memory: it held a password. */
extern void outbox_wire_wipe_sent(OutboxWire *wire);

/*
 * Read once: bytes read; 0 for none now; -1 if the stream failed, in either
 * direction, and nothing is left to read (see outbox_wire_failure).
 */
extern ssize_t outbox_wire_receive(OutboxWire *wire);

/* Take the next frame out of the input, if a whole one is there. */
extern OutboxFrameResult outbox_wire_take(OutboxWire *wire,
										  OutboxFrame *frame,
										  OutboxFailure *failure);

/*
 * Decode a method frame, but only one of a method that is expected: see
 * wire.c.  Valid until the next receive().  NULL, with *failure, if malformed;
 * then nothing more can be decoded.
 */
extern void *outbox_wire_decode(OutboxWire *wire, const OutboxFrame *frame,
								OutboxFailure *failure);

/* On outbox_clock_ms(); the first counts from when the stream opened. */
extern int64 outbox_wire_last_received(const OutboxWire *wire);
extern int64 outbox_wire_last_sent(const OutboxWire *wire);

/* The peer does what AMQP 0-9-1 does not allow: detail says what. */
extern void outbox_wire_violation(OutboxFailure *failure, const char *detail);

/* The same for a method that may not come now. */
extern void outbox_wire_unexpected(OutboxFailure *failure,
								   const OutboxFrame *frame);

/* The integers of a frame: big-endian and unaligned. */
static inline uint16
outbox_wire_get_uint16(const char *p)
{
	uint16		value;

	memcpy(&value, p, sizeof(value));
	return pg_ntoh16(value);
}

static inline uint32
outbox_wire_get_uint32(const char *p)
{
	uint32		value;

	memcpy(&value, p, sizeof(value));
	return pg_ntoh32(value);
}

static inline uint64
outbox_wire_get_uint64(const char *p)
{
	uint64		value;

	memcpy(&value, p, sizeof(value));
	return pg_ntoh64(value);
}

#endif							/* OUTBOX_WIRE_H */

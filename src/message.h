/*-------------------------------------------------------------------------
 *
 * message.h
 *	  A message and its outcomes, as C sees them.
 *
 * An OutboxMessage is what the worker carries from the outbox to the broker.
 * Every string in it is UTF-8, whatever the server encoding: fetch.c
 * converts on reading, inside a transaction, so that nobody who holds a
 * message later needs the catalogs.
 *
 * An OutboxFailure says why something of the outside world failed.  It is
 * plain data: network code fills it instead of raising an error, and whoever
 * logs or shows it turns it into an ereport.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_MESSAGE_H
#define OUTBOX_MESSAGE_H

#include "postgres.h"

#include "utils/jsonb.h"
#include "utils/timestamp.h"

/* AMQP 0-9-1, section 4.2.5.3: a short string holds at most 255 bytes */
#define OUTBOX_SHORTSTR_MAX		255

/* the longest text of a failure's message and detail that is kept */
#define OUTBOX_FAILURE_MESSAGE_LEN	256
#define OUTBOX_FAILURE_DETAIL_LEN	512

/* built by properties.c; only the transport looks inside */
struct amqp_basic_properties_t_;

typedef struct OutboxMessage
{
	int64		id;				/* its place in the outbox of its server */
	bool		deferred;		/* read from amqp_outbox.deferred */
	TimestampTz due_at;			/* it was, if deferred */
	TimestampTz enqueued_at;	/* amqp_publish() was called */
	TimestampTz committed_at;	/* its transaction began to commit; 0: not known */
	TimestampTz expires_at;		/* not to be sent after that; 0: none */
	int			attempts;		/* attempts already settled, 0 for a new one */
	bool		possible_duplicate; /* one of them has no known outcome */
	TimestampTz first_attempt_at;	/* 0: there was none */
	const char *ordering_key;	/* NULL: none */
	bool		held;			/* an earlier message of its key is not done */
	const char *unreadable;		/* why; then only id and deferred are set */
	const char *published_by;	/* role, in the database's encoding; NULL: none */

	const char *message_id;
	const char *exchange;		/* "" is AMQP's default exchange */
	const char *routing_key;
	const char *body;			/* not NUL-terminated; NULL: let go */
	Size		body_len;		/* bytes, also then */

	/* the AMQP properties; a null pointer or -1 leaves one out */
	Jsonb	   *headers;
	const char *content_type;
	const char *content_encoding;
	const char *correlation_id;
	const char *reply_to;
	const char *type;
	const char *user_id;
	const char *app_id;
	int64		expiration_ms;	/* at the broker */
	int64		timestamp_s;	/* seconds since 1970-01-01 UTC */
	int			priority;		/* 0..255 */
	bool		persistent;		/* delivery mode 2 instead of 1 */
	bool		mandatory;		/* an unroutable message comes back */

	struct amqp_basic_properties_t_ *properties;
} OutboxMessage;

/* Give a message its body, a copy that it takes over, or free that again. */
static inline void
outbox_message_take_body(OutboxMessage *msg, bytea *body)
{
	msg->body = VARDATA(body);
	msg->body_len = VARSIZE(body) - VARHDRSZ;
}

static inline void
outbox_message_let_body_go(OutboxMessage *msg)
{
	pfree((void *) (msg->body - VARHDRSZ));
	msg->body = NULL;
}

/*
 * Bytes that a message takes in the worker, rather too many than too few.  Its
 * headers are there twice, and as an AMQP table, whose entries are structs,
 * they take up to sixteen times as much as in jsonb.
 */
static inline Size
outbox_message_bytes(const OutboxMessage *msg)
{
	Size		bytes = 512 + (msg->body ? msg->body_len : 0);

	if (msg->headers)
		bytes += 16 * (Size) VARSIZE(msg->headers);
	return bytes;
}

/* What became of one attempt to deliver a message. */
typedef enum OutboxOutcome
{
	OUTBOX_OPEN,				/* not settled yet */
	OUTBOX_DELIVERED,			/* the broker acknowledged it */
	OUTBOX_RETURNED,			/* the broker could not route it */
	OUTBOX_REJECTED,			/* nack, or it closed the channel */
	OUTBOX_HELD					/* not sent, lest it overtake one of its key */
} OutboxOutcome;

/*
 * Why an attempt failed; the names are those of amqp_outbox.dead_reason, in
 * message.c.
 */
typedef enum OutboxReason
{
	OUTBOX_UNROUTABLE,			/* returned */
	OUTBOX_NACKED,
	OUTBOX_NO_EXCHANGE,
	OUTBOX_ACCESS_REFUSED,
	OUTBOX_TOO_LARGE,			/* for a frame, or for the broker */
	OUTBOX_MALFORMED,			/* the broker found fault with it */
	OUTBOX_EXPIRED				/* not sent, because it was too late */
} OutboxReason;

extern const char *outbox_reason_name(OutboxReason reason);

/* What a reply code that closed the channel means for its message. */
extern OutboxReason outbox_reason_of_reply_code(int reply_code);

/* Whether no later attempt can go better. */
extern bool outbox_reason_is_final(OutboxReason reason);

typedef struct OutboxFailure
{
	int			sqlerrcode;		/* as for errcode() */
	char		message[OUTBOX_FAILURE_MESSAGE_LEN];	/* ours, UTF-8 */
	char		detail[OUTBOX_FAILURE_DETAIL_LEN];	/* theirs, valid UTF-8 or
													 * empty */
} OutboxFailure;

/*
 * Copy text of unknown origin as valid UTF-8, cut between characters to fit
 * dst[size], NUL included.  Invalid bytes become "?", and NUL bytes and, if
 * printable, other control characters a space.
 */
extern void outbox_utf8_copy(char *dst, Size size, const char *src, Size len,
							 bool printable);

/* Fill in a failure; detail may be NULL and need not be valid UTF-8. */
extern void outbox_failure_set(OutboxFailure *failure, int sqlerrcode,
							   const char *detail, const char *fmt,...)
			pg_attribute_printf(4, 5);

#endif							/* OUTBOX_MESSAGE_H */

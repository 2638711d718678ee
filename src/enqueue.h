/*-------------------------------------------------------------------------
 *
 * enqueue.h
 *	  Check a message that somebody wants to publish, and buffer it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_ENQUEUE_H
#define OUTBOX_ENQUEUE_H

#include "postgres.h"

#include "utils/timestamp.h"

#include "catalog.h"

/*
 * A message as its publisher describes it.  After outbox_draft_init(), set
 * what there is with the functions below and in the fields.
 *
 * In values, text, bytea and jsonb must be detoasted (packed is good enough)
 * and text is in the database's encoding, but the body is as it is to travel.
 */
typedef struct OutboxDraft
{
	const char *of;				/* for errors: "amqp_publish" */
	const char *what;			/* and what its parts are: "argument" */

	const char *server;			/* NULL: the default one */
	Oid			serverid;		/* if it was chosen before, else InvalidOid */
	Oid			publisher;		/* role; InvalidOid: the current one */
	TimestampTz now;			/* when it is published; 0: now */
	Datum		values[OUTBOX_NBUFFERED_COLUMNS];	/* see catalog.h */
	bool		isnull[OUTBOX_NBUFFERED_COLUMNS];
	const Interval *delay;		/* from now; NULL: none */
	const Interval *ttl;		/* from when it may be sent; NULL: none */

	const char *traceparent;	/* NULL: the setting's, if it is set */
	const char *tracestate;		/* only with traceparent */
	text	   *idempotency_key;	/* NULL: none */

	/* for a message that does not say; NULL: none */
	const char *content_type;
	const char *content_encoding;
} OutboxDraft;

/* of and what must live as long as the draft. */
extern void outbox_draft_init(OutboxDraft *draft, const char *of,
							  const char *what);

static inline void
outbox_draft_set(OutboxDraft *draft, int column, Datum value)
{
	draft->values[column] = value;
	draft->isnull[column] = false;
}

/* Generate the message id now, for content that names it; returns it. */
extern Datum outbox_draft_make_id(OutboxDraft *draft);

/* Text in the database's encoding as a body: UTF-8. */
extern void outbox_draft_set_body_text(OutboxDraft *draft, char *str, int len);

/*
 * What is not of its column's type.  Errors: 22023 for a priority beyond 0 to
 * 255, 22015 for an expiration beyond 0 to 2^32 - 1 ms.
 */
extern void outbox_draft_set_priority(OutboxDraft *draft, int32 priority);
extern void outbox_draft_set_expiration(OutboxDraft *draft,
										const Interval *expiration);

/*
 * Errors of a caller that cannot publish at all: 55000 if amqp_outbox is not
 * preloaded, or during recovery; 25006 in a read-only transaction; 25000 in
 * parallel mode.  Call it before the message is looked at; the command, as
 * "amqp_publish()", is for the errors.
 */
extern void outbox_enqueue_precheck(const char *command);

/*
 * Check the message and put it into the buffer; returns its message id (text),
 * or that of the first message if its idempotency key was used before: then
 * there is nothing to do.  Exchange, routing key and body must be set.  Errors: 22001 and 22023 for
 * what AMQP does not allow, 22008 and 22015 for times, 22021 for text that has
 * no UTF-8, 54000 for what is too large, those of outbox_server_choose(),
 * outbox_claim(), outbox_admit_check(), outbox_admit() and outbox_buffer_put().
 */
extern Datum outbox_enqueue(OutboxDraft *draft);

#endif							/* OUTBOX_ENQUEUE_H */

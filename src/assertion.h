/*-------------------------------------------------------------------------
 *
 * assertion.h
 *	  Telling the broker what it shall have, on a channel of its own.
 *
 * For the transport only.  One item at a time: so it is clear to what the
 * broker answers, and to what it objects.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_ASSERTION_H
#define OUTBOX_ASSERTION_H

#include "topology.h"
#include "wire.h"

struct amqp_connection_close_t_;

typedef enum OutboxAssertionState
{
	OUTBOX_ASSERTION_CLOSED,	/* the channel is not open */
	OUTBOX_ASSERTION_AWAIT_CHANNEL,
	OUTBOX_ASSERTION_AWAIT_ANSWER,
	OUTBOX_ASSERTION_OPEN		/* and nothing is asked */
} OutboxAssertionState;

/* All zero before the first item. */
typedef struct OutboxAssertion
{
	OutboxAssertionState state;
	uint32		method;			/* the one that was sent */
	bool		deletes;		/* and it takes something away */
} OutboxAssertion;

/* Whether an answer is awaited. */
extern bool outbox_assertion_asks(const OutboxAssertion *assertion);

/*
 * Queue what tells the broker of an item.  None may be awaited.  False, with
 * *failure, if it cannot be encoded.
 */
extern bool outbox_assertion_begin(OutboxAssertion *assertion,
								   OutboxWire *wire, const OutboxItem *item,
								   OutboxFailure *failure);

/* May that method, on the assertion's channel, come now? */
extern bool outbox_assertion_expects(const OutboxAssertion *assertion,
									 uint32 id);

/*
 * Take a method that is expected.  True if it is the answer, which is filled
 * in.  The caller answers a channel.close.
 */
extern bool outbox_assertion_answer(OutboxAssertion *assertion, uint32 id,
									void *method, OutboxAnswer *answer);

/*
 * The broker closes the whole connection: is it because of the item?  Then the
 * answer is filled in.
 */
extern bool outbox_assertion_blamed(OutboxAssertion *assertion,
									const struct amqp_connection_close_t_ *close,
									OutboxAnswer *answer);

#endif							/* OUTBOX_ASSERTION_H */

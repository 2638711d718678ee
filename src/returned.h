/*-------------------------------------------------------------------------
 *
 * returned.h
 *	  A message that the broker could not route and sends back.
 *
 * For the transport only.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_RETURNED_H
#define OUTBOX_RETURNED_H

#include "wire.h"

struct amqp_basic_return_t_;

/* What is to come of it; anything but NONE is the middle of a message. */
typedef enum OutboxReturnedState
{
	OUTBOX_RETURNED_NONE,
	OUTBOX_RETURNED_AWAIT_HEADER,
	OUTBOX_RETURNED_AWAIT_BODY
} OutboxReturnedState;

/* All zero before the first one. */
typedef struct OutboxReturned
{
	OutboxReturnedState state;
	uint64		body_left;		/* bytes to come, with AWAIT_BODY */

	/* of the message that came last */
	int			reply_code;
	OutboxFailure failure;
	bool		has_message_id;
	char		message_id[OUTBOX_SHORTSTR_MAX + 1];
	char		exchange[OUTBOX_SHORTSTR_MAX + 1];
	char		routing_key[OUTBOX_SHORTSTR_MAX + 1];
} OutboxReturned;

/* basic.return begins a message; not in the middle of another one. */
extern void outbox_returned_begin(OutboxReturned *returned,
								  const struct amqp_basic_return_t_ *method);

/*
 * A content header or body frame; the state is NONE when the message is
 * complete.  False, with *failure, if the frame does not belong there.
 */
extern bool outbox_returned_content(OutboxReturned *returned,
									const OutboxFrame *frame,
									OutboxFailure *failure);

/* The rest of it will not come. */
extern void outbox_returned_abandon(OutboxReturned *returned);

/*
 * SQLSTATE for what the broker has against a message (AMQP 0-9-1, section
 * 1.2), when it returns it or closes the channel because of it.
 */
extern int	outbox_returned_sqlerrcode(int reply_code);

#endif							/* OUTBOX_RETURNED_H */

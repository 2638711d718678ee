/*-------------------------------------------------------------------------
 *
 * destination.h
 *	  Exchanges that the broker closed the channel for.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_DESTINATION_H
#define OUTBOX_DESTINATION_H

#include "message.h"

/* A destination that is not to be tried now. */
typedef struct OutboxDestination
{
	bool		in_use;
	char		exchange[OUTBOX_SHORTSTR_MAX + 1];
	bool		any_key;		/* or only this routing key */
	char		routing_key[OUTBOX_SHORTSTR_MAX + 1];
	int			failures;		/* in a row */
	TimestampTz not_before;		/* then one message may try */
	int			reply_code;
	char		words[OUTBOX_FAILURE_DETAIL_LEN];	/* the broker's */
} OutboxDestination;

typedef struct OutboxDestinations OutboxDestinations;

extern OutboxDestinations *outbox_destinations_create(MemoryContext context);

/*
 * The broker closed the channel because of this message: if the reason is its
 * destination, nothing is sent there for a while.
 */
extern void outbox_destinations_failed(OutboxDestinations *destinations,
									   const OutboxMessage *msg,
									   int reply_code, const char *words,
									   TimestampTz now);

/*
 * The entry that forbids to send this message now, NULL if none does.  When
 * the pause is over the first message that asks may go, and only that one.
 */
extern const OutboxDestination *outbox_destinations_find(OutboxDestinations *destinations,
														 const OutboxMessage *msg,
														 TimestampTz now);

/* The broker took this message or returned it: its destination is there. */
extern void outbox_destinations_succeeded(OutboxDestinations *destinations,
										  const OutboxMessage *msg);

/* Somebody may have repaired something: try all of them again. */
extern void outbox_destinations_forget(OutboxDestinations *destinations);

#endif							/* OUTBOX_DESTINATION_H */

/*-------------------------------------------------------------------------
 *
 * outcome.h
 *	  What becomes of single messages: tried again, dead, held, delivered late.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_OUTCOME_H
#define OUTBOX_OUTCOME_H

#include "message.h"

/* How an attempt failed, and when the next one is due. */
typedef struct OutboxDeferral
{
	int64		id;
	TimestampTz due_at;			/* 0: never, it is a dead letter */
	TimestampTz attempted_at;
	OutboxReason reason;
	bool		possible_duplicate; /* of the next attempt */
	int			reply_code;		/* 0: none */
	const char *words;			/* the broker's, UTF-8 */
	bool		holds_key;		/* if a dead letter, others of its key wait */
} OutboxDeferral;

/*
 * Messages of the outbox, or deferred ones, failed and are tried again.  One
 * with an ordering key must be the only one.
 */
extern void outbox_outcome_defer(int32 server_key,
								 const OutboxDeferral *deferrals, int n,
								 bool again);

/* A message of the outbox, or a deferred one, is a dead letter. */
extern void outbox_outcome_bury(int32 server_key, const OutboxDeferral *deferral,
								bool deferred);

/*
 * A message cannot be read: what can be of it becomes a dead letter.
 */
extern void outbox_outcome_bury_unreadable(int32 server_key,
										   const OutboxMessage *msg,
										   bool possible_duplicate,
										   bool holds_key, TimestampTz now);

/*
 * A message was not sent because an earlier one of its ordering key is not
 * done: it is put behind that one; or it is due at once, if that one is done by
 * now.
 */
extern void outbox_outcome_hold(int32 server_key, const OutboxMessage *msg,
								bool possible_duplicate, TimestampTz now);

/*
 * A deferred message with a key failed: those of its key that were to follow
 * it at once are put behind it, except those with these n ids.  Those that were
 * due at doubt_due_at, which a former worker may have sent, are possible
 * duplicates from then on; 0: none.
 */
extern void outbox_outcome_hold_behind(int32 server_key,
									   const OutboxMessage *msg,
									   const int64 *except, int n,
									   TimestampTz doubt_due_at,
									   TimestampTz now);

/*
 * A deferred message with a key is done: the next ones of the key become due,
 * not all at once.
 */
extern void outbox_outcome_release(int32 server_key, const char *ordering_key,
								   TimestampTz now);

/* So do all that wait for nothing. */
extern void outbox_outcome_release_orphans(int32 server_key, TimestampTz now);

/* Deferred messages were delivered. */
extern void outbox_outcome_deliver_deferred(int32 server_key, const int64 *ids,
											int n, TimestampTz now);

#endif							/* OUTBOX_OUTCOME_H */

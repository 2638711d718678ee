/*-------------------------------------------------------------------------
 *
 * ordering.h
 *	  Which messages of an ordering key may be in flight together.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_ORDERING_H
#define OUTBOX_ORDERING_H

#include "message.h"

typedef struct OutboxOrdering OutboxOrdering;

/* A key with messages in the ledger. */
typedef struct OutboxKey
{
	char		name[OUTBOX_SHORTSTR_MAX + 1];	/* hash key */
	int			messages;		/* in the ledger */
	int			in_flight;		/* of those */
	int			unproven;		/* of those, to an unproven destination */
	int			failed;			/* in the ledger, to be tried again later */
} OutboxKey;

extern OutboxOrdering *outbox_ordering_create(MemoryContext context);

/* A message of this key comes into the ledger, or leaves it. */
extern OutboxKey *outbox_ordering_enter(OutboxOrdering *ordering,
										const char *name);
extern void outbox_ordering_leave(OutboxOrdering *ordering, OutboxKey *key);

/*
 * Whether the next message of the key may be sent while others of it are in
 * flight; at most key_window (0: any number) are in any case.
 */
extern bool outbox_ordering_may_send(const OutboxKey *key, int key_window);

/* It was sent.  Returns whether its destination is unproven. */
extern bool outbox_ordering_sent(OutboxOrdering *ordering, OutboxKey *key,
								 const OutboxMessage *msg);

/* It was answered: delivered, or not. */
extern void outbox_ordering_answered(OutboxOrdering *ordering, OutboxKey *key,
									 const OutboxMessage *msg, bool unproven,
									 bool delivered);

/* Nothing is in flight any more, and the broker may have changed. */
extern void outbox_ordering_reset(OutboxOrdering *ordering);

#endif							/* OUTBOX_ORDERING_H */

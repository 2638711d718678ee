/*-------------------------------------------------------------------------
 *
 * due.h
 *	  Which deferred messages a worker reads next.
 *
 * Deferred messages are read in the order in which they are due, from the place
 * on before which there are none, because all that were there have gone or have
 * got a later one.  So what they left behind in the index costs nothing, even
 * while an old snapshot keeps it there.  Whoever else puts messages there says
 * so.  A batch is read when the one before it is settled.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_DUE_H
#define OUTBOX_DUE_H

#include "postgres.h"

#include "datatype/timestamp.h"

#include "fetch.h"

typedef struct OutboxDue
{
	TimestampTz next;			/* of the deferred messages; 0: none */
	OutboxPlace floor;			/* there are none before this place */
	OutboxPlace read;			/* the last one that was read */
	int			count;			/* how many were read and are not settled */
} OutboxDue;

/* A worker begins: nothing is known. */
extern void outbox_due_open(OutboxDue *due, TimestampTz now);

/* Whether a batch is to be read now. */
extern bool outbox_due_has(const OutboxDue *due, TimestampTz now);

/* n messages were read up to this place; NULL: it is not known. */
extern void outbox_due_took(OutboxDue *due, int n, const OutboxPlace *place);

/*
 * Where the floor is when so many of those that were read are settled, and may
 * be due again at settled_at at the earliest.
 */
extern OutboxPlace outbox_due_floor(const OutboxDue *due, int settled,
									TimestampTz settled_at);

/* They are: the floor, and when the next one is due (0: none is). */
extern void outbox_due_settled(OutboxDue *due, int settled,
							   const OutboxPlace *floor, TimestampTz next);

/*
 * Somebody else has put messages there, due at this time or later (DT_NOBEGIN:
 * not known).
 */
extern void outbox_due_look(OutboxDue *due, TimestampTz from, TimestampTz now);

#endif							/* OUTBOX_DUE_H */

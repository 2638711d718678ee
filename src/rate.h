/*-------------------------------------------------------------------------
 *
 * rate.h
 *	  How much may be sent per second.
 *
 * A bucket that fills at the rate's speed up to a tenth of a second's worth.
 * What is sent is taken out when it is sent, even if it is more than is in: the
 * next one then waits until that is made up for.  So one message larger than
 * the bucket passes, and the average holds.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_RATE_H
#define OUTBOX_RATE_H

#include "postgres.h"

#include "datatype/timestamp.h"

/* All zero is an empty bucket. */
typedef struct OutboxRate
{
	double		level;
	TimestampTz filled_at;
} OutboxRate;

/* Whether something may be sent; limit is per second, 0: no limit. */
extern bool outbox_rate_allows(OutboxRate *rate, int limit, TimestampTz now);

/* So much was sent. */
extern void outbox_rate_take(OutboxRate *rate, int limit, double amount);

/* Milliseconds until something may be sent; -1: at once. */
extern long outbox_rate_wait(const OutboxRate *rate, int limit,
							 TimestampTz now);

#endif							/* OUTBOX_RATE_H */

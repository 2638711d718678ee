/*-------------------------------------------------------------------------
 *
 * rate.c
 *	  How much may be sent per second.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "rate.h"

/* Seconds of the rate that the bucket holds. */
#define OUTBOX_RATE_BURST	0.1

static double
outbox_rate_level(const OutboxRate *rate, int limit, TimestampTz now)
{
	double		seconds = (double) (now - rate->filled_at) / USECS_PER_SEC;
	double		size = Max(limit * OUTBOX_RATE_BURST, 1);

	/* the clock may have been set back */
	return Min(rate->level + limit * Max(seconds, 0), size);
}

bool
outbox_rate_allows(OutboxRate *rate, int limit, TimestampTz now)
{
	if (limit == 0)
		return true;
	rate->level = outbox_rate_level(rate, limit, now);
	rate->filled_at = now;
	return rate->level > 0;
}

void
outbox_rate_take(OutboxRate *rate, int limit, double amount)
{
	if (limit != 0)
		rate->level -= amount;
}

long
outbox_rate_wait(const OutboxRate *rate, int limit, TimestampTz now)
{
	double		level;

	if (limit == 0)
		return -1;
	level = outbox_rate_level(rate, limit, now);
	return level > 0 ? -1 : (long) ceil((1 - level) * 1000 / limit);
}

/*-------------------------------------------------------------------------
 *
 * clock.c
 *	  When the transactions that took ids began to commit.
 *
 * A message does not say when it was committed: its row is written before.  But
 * transactions take their ids when they begin to commit, so ids ascend in that
 * order, and a few pairs of id and time tell it of all.  Rings of samples, each
 * four times coarser than the one before, reach from 100 microseconds to two
 * hours back in some kilobytes: what is long ago need not be known exactly.
 *
 * Pure: no clock of its own, no shared state.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "clock.h"

static OutboxClockSample *
outbox_clock_sample(const OutboxClock *clock, int level, uint32 n)
{
	return unconstify(OutboxClockSample *,
					  &clock->samples[level][n % OUTBOX_CLOCK_SAMPLES]);
}

void
outbox_clock_note(OutboxClock *clock, int64 first_id, TimestampTz at)
{
	int64		step = OUTBOX_CLOCK_FIRST_US;

	for (int level = 0; level < OUTBOX_CLOCK_LEVELS; level++, step *= 4)
	{
		uint32		n = clock->count[level];

		if (n > 0)
		{
			TimestampTz last = outbox_clock_sample(clock, level, n - 1)->at;

			/* also if somebody has set the system's clock back */
			if (at >= last && at - last < step)
				return;
		}
		*outbox_clock_sample(clock, level, n) = (OutboxClockSample)
		{
			.first_id = first_id,
			.at = at
		};
		/* a count that comes around to 0 would look empty */
		clock->count[level] = n + 1 == 0 ? OUTBOX_CLOCK_SAMPLES : n + 1;
	}
}

TimestampTz
outbox_clock_find(const OutboxClock *clock, int64 id)
{
	for (int level = 0; level < OUTBOX_CLOCK_LEVELS; level++)
	{
		uint32		count = clock->count[level];
		uint32		kept = Min(count, OUTBOX_CLOCK_SAMPLES);

		for (uint32 i = 1; i <= kept; i++)
		{
			const OutboxClockSample *sample =
				outbox_clock_sample(clock, level, count - i);

			if (sample->first_id <= id)
				return sample->at;
		}
	}
	return 0;
}

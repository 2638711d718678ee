/*-------------------------------------------------------------------------
 *
 * measure.c
 *	  How many messages are delivered, and how long that takes.
 *
 * Totals, and the same for the last minute in slots of five seconds.  Times are
 * kept in a histogram with logarithmic buckets, so counting one takes constant
 * time, and a percentile is exact to the width of a bucket.
 *
 * Pure: no clock of its own, no shared state.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "port/pg_bitutils.h"

#include "measure.h"

int64
outbox_measure_limit(int bucket)
{
	int64		octave = (int64) OUTBOX_MEASURE_FIRST_US << (bucket / 2);

	/* times the square root of 2 */
	return bucket % 2 == 0 ? octave : octave * 14142 / 10000;
}

static int
outbox_measure_bucket(int64 us)
{
	int			bucket = 0;

	if (us > OUTBOX_MEASURE_FIRST_US)
		bucket = 2 * pg_leftmost_one_pos64(us / OUTBOX_MEASURE_FIRST_US);
	while (bucket < OUTBOX_MEASURE_BUCKETS - 1 &&
		   us > outbox_measure_limit(bucket))
		bucket++;
	return Min(bucket, OUTBOX_MEASURE_BUCKETS - 1);
}

void
outbox_tally_count(OutboxTally *tally, Size bytes, int64 us)
{
	tally->delivered++;
	tally->bytes += bytes;
	if (us < 0)
		return;
	tally->timed++;
	tally->time_us += us;
	tally->buckets[outbox_measure_bucket(us)]++;
}

/* Within a bucket they are taken to be spread evenly, as Prometheus does. */
double
outbox_tally_percentile(const OutboxTally *tally, double part)
{
	double		wanted = part * tally->timed;
	double		before = 0;

	if (tally->timed == 0)
		return -1;
	for (int i = 0; i < OUTBOX_MEASURE_BUCKETS - 1; i++)
	{
		double		low = i == 0 ? 0 : outbox_measure_limit(i - 1);
		double		here = tally->buckets[i];

		if (here > 0 && before + here >= wanted)
			return low + (outbox_measure_limit(i) - low) *
				Max(wanted - before, 0) / here;
		before += here;
	}
	return outbox_measure_limit(OUTBOX_MEASURE_BUCKETS - 2);
}

static void
outbox_tally_add(OutboxTally *tally, const OutboxTally *more)
{
	tally->delivered += more->delivered;
	tally->bytes += more->bytes;
	tally->timed += more->timed;
	tally->time_us += more->time_us;
	for (int i = 0; i < OUTBOX_MEASURE_BUCKETS; i++)
		tally->buckets[i] += more->buckets[i];
}

static int64
outbox_measure_slot_no(TimestampTz at)
{
	return at / (OUTBOX_MEASURE_SLOT_S * USECS_PER_SEC);
}

void
outbox_measure_begin(OutboxMeasure *measure, TimestampTz now)
{
	memset(measure, 0, sizeof(*measure));
	measure->since = now;
}

void
outbox_measure_add(OutboxMeasure *measure, const OutboxTally *tally,
				   TimestampTz now)
{
	int64		slot_no = outbox_measure_slot_no(now);
	int			i = (int) (slot_no % OUTBOX_MEASURE_SLOTS);

	outbox_tally_add(&measure->total, tally);
	if (measure->slot_no[i] != slot_no)
	{
		measure->slot_no[i] = slot_no;
		memset(&measure->slots[i], 0, sizeof(OutboxTally));
	}
	outbox_tally_add(&measure->slots[i], tally);
}

double
outbox_measure_recent(const OutboxMeasure *measure, TimestampTz now,
					  OutboxTally *recent)
{
	int64		newest = outbox_measure_slot_no(now);
	int64		oldest = newest - OUTBOX_MEASURE_SLOTS + 1;
	TimestampTz begin = oldest * OUTBOX_MEASURE_SLOT_S * USECS_PER_SEC;

	memset(recent, 0, sizeof(*recent));
	for (int i = 0; i < OUTBOX_MEASURE_SLOTS; i++)
	{
		if (measure->slot_no[i] >= oldest && measure->slot_no[i] <= newest)
			outbox_tally_add(recent, &measure->slots[i]);
	}
	/* a rate of the first instants would be wild */
	return Max((now - Max(begin, measure->since)) / (double) USECS_PER_SEC,
			   1.0);
}

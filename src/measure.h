/*-------------------------------------------------------------------------
 *
 * measure.h
 *	  How many messages are delivered, and how long that takes.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_MEASURE_H
#define OUTBOX_MEASURE_H

#include "postgres.h"

#include "datatype/timestamp.h"

/*
 * Two buckets an octave, the first up to 50 us, the last but one up to 10 min;
 * the last one has no end.
 */
#define OUTBOX_MEASURE_BUCKETS		49
#define OUTBOX_MEASURE_FIRST_US		50

/* What is recent: that many slots of so many seconds, the last one unfinished */
#define OUTBOX_MEASURE_SLOTS		13
#define OUTBOX_MEASURE_SLOT_S		5

/* Of some messages. */
typedef struct OutboxTally
{
	int64		delivered;		/* confirmed by the broker */
	int64		bytes;			/* of their bodies */
	int64		timed;			/* those whose time is in the buckets */
	int64		time_us;		/* sum of these times */
	int64		buckets[OUTBOX_MEASURE_BUCKETS];
} OutboxTally;

/* Plain data: it lives in shared memory, and may be copied. */
typedef struct OutboxMeasure
{
	TimestampTz since;
	OutboxTally total;			/* since then */
	int64		slot_no[OUTBOX_MEASURE_SLOTS];	/* of time; 0: unused */
	OutboxTally slots[OUTBOX_MEASURE_SLOTS];
} OutboxMeasure;

/* Upper limit of a bucket, inclusive; the last one has none. */
extern int64 outbox_measure_limit(int bucket);

/* Count a message that took so long (-1: its time is not counted). */
extern void outbox_tally_count(OutboxTally *tally, Size bytes, int64 us);

/* The time within which this part of the messages was confirmed; -1: none was */
extern double outbox_tally_percentile(const OutboxTally *tally, double part);

extern void outbox_measure_begin(OutboxMeasure *measure, TimestampTz now);
extern void outbox_measure_add(OutboxMeasure *measure,
							   const OutboxTally *tally, TimestampTz now);

/* What was counted within the last minute; returns its length in seconds. */
extern double outbox_measure_recent(const OutboxMeasure *measure,
									TimestampTz now, OutboxTally *recent);

#endif							/* OUTBOX_MEASURE_H */

/*-------------------------------------------------------------------------
 *
 * clock.h
 *	  When the transactions that took ids began to commit.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_CLOCK_H
#define OUTBOX_CLOCK_H

#include "postgres.h"

#include "datatype/timestamp.h"

#define OUTBOX_CLOCK_LEVELS		12
#define OUTBOX_CLOCK_SAMPLES	16

/* Level 0 keeps no two samples within this time, each other four times that. */
#define OUTBOX_CLOCK_FIRST_US	100

typedef struct OutboxClockSample
{
	int64		first_id;
	TimestampTz at;
} OutboxClockSample;

/* Plain data: it lives in shared memory, and may be copied; zeros are empty. */
typedef struct OutboxClock
{
	uint32		count[OUTBOX_CLOCK_LEVELS]; /* samples ever noted there */
	OutboxClockSample samples[OUTBOX_CLOCK_LEVELS][OUTBOX_CLOCK_SAMPLES];
} OutboxClock;

/* A transaction takes ids from this one on; ids and times ascend. */
extern void outbox_clock_note(OutboxClock *clock, int64 first_id,
							  TimestampTz at);

/*
 * When, at the earliest, the transaction that took this id did so; too early by
 * at most 100 us or about a third of the time since then.  0: not known, because
 * it is hours ago or from before the clock began.
 */
extern TimestampTz outbox_clock_find(const OutboxClock *clock, int64 id);

#endif							/* OUTBOX_CLOCK_H */

/*-------------------------------------------------------------------------
 *
 * due.c
 *	  Which deferred messages a worker reads next.
 *
 * Pure: no I/O, no clock, no shared state.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "due.h"

void
outbox_due_open(OutboxDue *due, TimestampTz now)
{
	*due = (OutboxDue)
	{
		.next = now,
		.floor.due_at = DT_NOBEGIN,
		.read.due_at = DT_NOBEGIN
	};
}

bool
outbox_due_has(const OutboxDue *due, TimestampTz now)
{
	return due->count == 0 && due->next != 0 && due->next <= now;
}

void
outbox_due_took(OutboxDue *due, int n, const OutboxPlace *place)
{
	due->count += n;
	if (place)
		due->read = *place;
}

OutboxPlace
outbox_due_floor(const OutboxDue *due, int settled, TimestampTz settled_at)
{
	OutboxPlace floor = due->floor;

	/* all that were read are settled, and due at settled_at at the earliest */
	if (settled > 0 && due->count == settled)
		floor = due->read;
	if (floor.due_at >= settled_at)
		floor = (OutboxPlace) {.due_at = settled_at};
	return floor;
}

void
outbox_due_settled(OutboxDue *due, int settled, const OutboxPlace *floor,
				   TimestampTz next)
{
	due->count -= settled;
	due->floor = *floor;
	due->next = next;
}

void
outbox_due_look(OutboxDue *due, TimestampTz from, TimestampTz now)
{
	OutboxPlace place = {.due_at = from};
	TimestampTz due_at = Max(from, now);

	if (due->next == 0 || due_at < due->next)
		due->next = due_at;
	if (from <= due->floor.due_at)
		due->floor = place;
	/* also when those that are on their way are settled */
	if (from <= due->read.due_at)
		due->read = place;
}

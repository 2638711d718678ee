/*-------------------------------------------------------------------------
 *
 * damage.c
 *	  Rows that cannot be read, and how to come past them.
 *
 * Pure: no I/O, no clock, no shared state.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "damage.h"

bool
outbox_damage_is(int sqlerrcode)
{
	return sqlerrcode == ERRCODE_DATA_CORRUPTED ||
		ERRCODE_TO_CATEGORY(sqlerrcode) == ERRCODE_DATA_EXCEPTION ||
		ERRCODE_TO_CATEGORY(sqlerrcode) == ERRCODE_PROGRAM_LIMIT_EXCEEDED;
}

void
outbox_damage_note(OutboxDamage *damage, MemoryContext context,
				   const char *words)
{
	if (damage->words)
		pfree(damage->words);
	damage->words = MemoryContextStrdup(context, words);
}

int64
outbox_damage_end(const OutboxDamage *damage, int64 after, int64 end)
{
	if (damage->id == 0)
		return end;
	return after + 1 + Max((damage->id - after) / 2, 1);
}

bool
outbox_damage_in_outbox(OutboxDamage *damage, int64 after, int64 end)
{
	damage->id = end - 1;
	damage->bury_outbox = damage->id == after + 1;
	return !damage->bury_outbox;
}

void
outbox_damage_passed(OutboxDamage *damage, int64 read_through)
{
	if (read_through < damage->id)
		return;
	damage->bury_outbox = false;
	damage->id = 0;
}

bool
outbox_damage_in_deferred(OutboxDamage *damage)
{
	Assert(!damage->bury_deferred);
	damage->bury_deferred = damage->row_by_row;
	damage->row_by_row = true;
	return !damage->bury_deferred;
}

void
outbox_damage_passed_deferred(OutboxDamage *damage)
{
	damage->row_by_row = damage->bury_deferred = false;
}

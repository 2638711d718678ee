/*-------------------------------------------------------------------------
 *
 * damage.h
 *	  Rows that cannot be read, and how to come past them.
 *
 * When the outbox cannot be read because a row in it is damaged, the ids that
 * were to be read are halved until one is left, which is taken without being
 * read.  (Fewer rows would not do: a merge of the leaves reads the first row of
 * each, and the damaged one may be far behind.)  Deferred messages, which are
 * in one table, are read row by row until the one that fails is the next.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_DAMAGE_H
#define OUTBOX_DAMAGE_H

#include "postgres.h"

typedef struct OutboxDamage
{
	int64		id;				/* a row up to this one is damaged; 0: none */
	bool		bury_outbox;	/* and it is the next one */
	bool		row_by_row;		/* a deferred message is damaged */
	bool		bury_deferred;	/* and it is the next one */
	char	   *words;			/* the error that it gives */
} OutboxDamage;

/*
 * Errors that a row will give whenever it is read: also one that was accepted
 * in a session with another max_stack_depth, or under other rules.
 */
extern bool outbox_damage_is(int sqlerrcode);

/* What the error says is kept in the context. */
extern void outbox_damage_note(OutboxDamage *damage, MemoryContext context,
							   const char *words);

/*
 * The end, exclusive, of the ids to read now that are greater than after; end
 * if nothing is damaged.
 */
extern int64 outbox_damage_end(const OutboxDamage *damage, int64 after,
							   int64 end);

/*
 * Those could not be read.  True: fewer are to be read at once; false: the only
 * one is to be buried.
 */
extern bool outbox_damage_in_outbox(OutboxDamage *damage, int64 after,
									int64 end);

/* What is damaged is at last known, or can be read after all. */
extern void outbox_damage_passed(OutboxDamage *damage, int64 read_through);

/*
 * The same for deferred messages; must not be called again once the next one is
 * to be buried.
 */
extern bool outbox_damage_in_deferred(OutboxDamage *damage);

#endif							/* OUTBOX_DAMAGE_H */

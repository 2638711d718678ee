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

/* Everything through this id was read or buried: perhaps the damaged row, too. */
extern void outbox_damage_passed(OutboxDamage *damage, int64 read_through);

/*
 * Deferred messages could not be read.  True: they are to be read row by row, at
 * once; false: the next one is to be buried.  Not to be called again then.
 */
extern bool outbox_damage_in_deferred(OutboxDamage *damage);

/* That one was buried, or all that are due were read. */
extern void outbox_damage_passed_deferred(OutboxDamage *damage);

#endif							/* OUTBOX_DAMAGE_H */

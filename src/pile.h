/*-------------------------------------------------------------------------
 *
 * pile.h
 *	  Rows in the order in which they came: in memory, then on disk.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_PILE_H
#define OUTBOX_PILE_H

#include "postgres.h"

#include "executor/tuptable.h"

typedef struct OutboxPile OutboxPile;

/*
 * In the current memory context.  Beyond so many kB it goes to a temporary
 * file, which belongs to the resource owner that is current now.
 */
extern OutboxPile *outbox_pile_create(int memory);

/*
 * Add a row of two columns or more; a large one is copied less often if that
 * is known.  Errors of the temporary file, 53400 and the like, leave the pile
 * unusable but for its end.
 */
extern void outbox_pile_add(OutboxPile *pile, TupleDesc tupdesc,
							Datum *values, bool *isnull, bool large);

/* From the first row on again. */
extern void outbox_pile_rewind(OutboxPile *pile);

/*
 * Put the next row into a slot of a minimal tuple, where it stays valid until
 * the next call; false at the end.
 */
extern bool outbox_pile_next(OutboxPile *pile, TupleTableSlot *slot);

/* Give up memory and file. */
extern void outbox_pile_end(OutboxPile *pile);

#endif							/* OUTBOX_PILE_H */

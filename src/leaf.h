/*-------------------------------------------------------------------------
 *
 * leaf.h
 *	  The ring of leaves that outbox, receipt and late are written to.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_LEAF_H
#define OUTBOX_LEAF_H

#include "postgres.h"

/* What the leaves of one number occupy, indexes left out. */
typedef struct OutboxLeafSize
{
	uint64		outbox;			/* bytes, with what is toasted */
	uint64		receipt;		/* bytes */
	uint64		late;			/* bytes */
} OutboxLeafSize;

/*
 * The number of the leaves that are written.  They are not emptied before the
 * current transaction ends.  The counter must be seeded.
 */
extern int	outbox_leaf_hold(Oid outbox_relid);

/*
 * The leaf that was written last, as far as can be told: the last one of the
 * arc of the ring that holds anything; by_rows, if all do.
 */
extern int	outbox_leaf_guess(int by_rows);

/* False if somebody has locked one of them exclusively. */
extern bool outbox_leaf_size(int leaf, OutboxLeafSize *size);

/*
 * Lock the leaves of one number against everybody until the transaction ends,
 * without waiting; false if somebody uses one of them.
 */
extern bool outbox_leaf_lock(int leaf);

/* Empty the leaves of one number, which are locked, as TRUNCATE does. */
extern void outbox_leaf_empty(int leaf);

#endif							/* OUTBOX_LEAF_H */

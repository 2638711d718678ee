/*-------------------------------------------------------------------------
 *
 * flush.h
 *	  Write a transaction's messages into the outbox, at pre-commit.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_FLUSH_H
#define OUTBOX_FLUSH_H

#include "executor/tuptable.h"
#include "nodes/pg_list.h"

typedef struct OutboxFlush OutboxFlush;

/*
 * Begin to write n messages to these servers (OIDs), to the outbox; if some
 * may be scheduled, those that are due later to amqp_outbox.deferred.  Takes
 * the ids, so the horizon stands still until the transaction ends.
 */
extern OutboxFlush *outbox_flush_begin(int64 n, List *servers, bool scheduled);

/*
 * The same for a transaction that is being prepared, to amqp_outbox.deferred:
 * they are due as soon as they are visible.
 */
extern OutboxFlush *outbox_flush_begin_prepared(int64 n, List *servers);

/*
 * Write one message: buffered columns (catalog.h) with the OID of the server in
 * the place of its key and no id, in a slot of a minimal tuple that lacks the
 * nulls at its end.
 */
extern void outbox_flush_add(OutboxFlush *flush, TupleTableSlot *message);

/*
 * Write what is left.  As many messages as promised must have been added.
 * Returns when the first of those is due that are due later; 0: none is.
 */
extern TimestampTz outbox_flush_end(OutboxFlush *flush);

/* Make sure that the id counter of this outbox is set. */
extern void outbox_flush_seed_counter(Oid outbox_relid);

#endif							/* OUTBOX_FLUSH_H */

/*-------------------------------------------------------------------------
 *
 * buffer.h
 *	  The messages of the current transaction, until it commits.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_BUFFER_H
#define OUTBOX_BUFFER_H

#include "postgres.h"

#include "executor/tuptable.h"

/* Once per process, from _PG_init. */
extern void outbox_buffer_install_callbacks(void);

/*
 * Add a message: the columns of a buffered one (catalog.h), of which the
 * server's key and the id are filled in here and at the flush.  Everything in
 * values must be detoasted.  Errors: 55000 if the transaction is about to
 * commit or an earlier error has spoilt the buffer; 53400 and the like if it
 * cannot spill to disk.
 */
extern void outbox_buffer_put(Oid serverid, Datum *values, bool *isnull);

/*
 * Call visit for each message that would be written if the transaction
 * committed now.  The slot has the columns of a buffered message, with the OID
 * of the server in the place of its key and no id.
 */
typedef void (*OutboxBufferVisitor) (TupleTableSlot *message, void *arg);
extern void outbox_buffer_visit(OutboxBufferVisitor visit, void *arg);

#endif							/* OUTBOX_BUFFER_H */

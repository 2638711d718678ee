/*-------------------------------------------------------------------------
 *
 * durable.h
 *	  Whether what was read may leave.
 *
 * A commit that a crash takes back must not have been published.  Other sessions
 * may have committed asynchronously, and a commit that a synchronous standby has
 * not confirmed is visible when the wait for it was cancelled.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_DURABLE_H
#define OUTBOX_DURABLE_H

#include "postgres.h"

#include "access/xlogdefs.h"

typedef struct OutboxDurable
{
	XLogRecPtr	lsn;			/* must be durable */
	bool		known;			/* and is */
} OutboxDurable;

/* A worker starts. */
extern void outbox_durable_init(OutboxDurable *durable);

/* Something is read: what may leave is to be found out anew. */
static inline void
outbox_durable_forget(OutboxDurable *durable)
{
	durable->known = false;
}

/* The WAL must be durable up to there, too; whether it is is not known then. */
extern void outbox_durable_require(OutboxDurable *durable, XLogRecPtr lsn);

/* The end of the last record in the WAL, which can be flushed. */
extern XLogRecPtr outbox_durable_end_of_wal(void);

/*
 * Whether what was read from this relation may leave: what is needed of the WAL
 * is flushed here, and a synchronous standby, if there is to be one, has it.  If
 * it has not, ask again; nothing tells.
 */
extern bool outbox_durable_check(OutboxDurable *durable, Oid outbox_relid);

#endif							/* OUTBOX_DURABLE_H */

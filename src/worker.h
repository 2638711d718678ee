/*-------------------------------------------------------------------------
 *
 * worker.h
 *	  The process that publishes for one server of one database.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_WORKER_H
#define OUTBOX_WORKER_H

#include "postgres.h"

/* What the launcher passes in bgw_extra. */
typedef struct OutboxWorkerArgs
{
	Oid			dboid;
	int			entry;			/* in the registry */
} OutboxWorkerArgs;

/* In place of an entry: look which servers the database has, report, leave. */
#define OUTBOX_SCOUT	(-1)

extern PGDLLEXPORT void outbox_worker_main(Datum arg);

#endif							/* OUTBOX_WORKER_H */

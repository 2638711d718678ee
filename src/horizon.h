/*-------------------------------------------------------------------------
 *
 * horizon.h
 *	  Ids in commit order, and how far they can be read.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_HORIZON_H
#define OUTBOX_HORIZON_H

#include "postgres.h"

#include "access/xlogdefs.h"
#include "datatype/timestamp.h"
#include "nodes/pg_list.h"
#include "storage/latch.h"

#include "clock.h"

/* For shared.c: ask for the memory, and set it up or find it. */
extern void outbox_horizon_request(void);
extern void outbox_horizon_startup(void);

/* Whether the counter of this database and outbox relation is set. */
extern bool outbox_horizon_is_seeded(Oid outbox_relid);

/*
 * Set the counter, and the leaf that is written, unless somebody did already.
 * next_id must be greater than every id in the tables; find it without a lock.
 * Error 53200 if there are more databases than there is room for.
 */
extern void outbox_horizon_seed(Oid outbox_relid, int64 next_id, int leaf);

/* Set the counter, or raise it if it is lower. */
extern void outbox_horizon_raise(Oid outbox_relid, int64 next_id, int leaf);

/*
 * The leaf of the ring that is written, and since when; -1 if the counter is
 * not seeded.  *since may be NULL.
 */
extern int	outbox_horizon_leaf(Oid outbox_relid, TimestampTz *since);

/* From now on that leaf is written. */
extern void outbox_horizon_set_leaf(Oid outbox_relid, int leaf);

/* Launcher: these are all databases there are (OIDs). */
extern void outbox_horizon_forget_databases(const List *databases);

/* A commit in this database that concerns deferred messages ended there. */
extern void outbox_horizon_raise_lsn(XLogRecPtr commit_lsn);

/*
 * Take n consecutive ids for the current transaction, which is registered
 * until outbox_horizon_clear().  The counter must be seeded.  At most once a
 * transaction.
 */
extern int64 outbox_horizon_register(Oid outbox_relid, int64 n);

/*
 * Take n consecutive ids for rows that the horizon does not cover, because
 * they are not read by their ids.  The counter must be seeded.
 */
extern int64 outbox_horizon_take(Oid outbox_relid, int64 n);

/*
 * In the COMMIT or ABORT callback of a transaction: if it took ids, take its
 * registration back, raise the LSN up to which commits must be durable (commit
 * only; else InvalidXLogRecPtr) and wake the workers that waited for it.
 */
extern void outbox_horizon_clear(XLogRecPtr commit_lsn);

/* Whether the current transaction has taken ids; the first of them. */
extern bool outbox_horizon_registered(void);
extern int64 outbox_horizon_first_id(void);

/*
 * For a worker: the id below which every transaction that took an id has
 * ended, 0 if the counter is not seeded.  Take it before the snapshot.  The
 * worker will be woken by the next change above it.
 */
extern int64 outbox_horizon_read(Oid outbox_relid);

/* For a worker: do not be woken before the next outbox_horizon_read(). */
extern void outbox_horizon_ignore(void);

/*
 * For a worker: the LSN that must be flushed before what was read may be
 * published.  Take it after the snapshot.
 */
extern XLogRecPtr outbox_horizon_commit_lsn(Oid outbox_relid);

/* The counter and the horizon, and who holds it below the counter. */
typedef struct OutboxHorizonStatus
{
	int64		next_id;		/* 0: not seeded, and nothing else is set */
	int64		horizon;
	pid_t		holder;			/* the transaction at the horizon; 0: none */
	TimestampTz since;			/* it has taken its ids */
} OutboxHorizonStatus;

extern void outbox_horizon_get_status(Oid outbox_relid,
									  OutboxHorizonStatus *status);

/* A worker begins to listen for ids of its database, until it exits. */
extern void outbox_horizon_listen(Latch *latch);

/* When the transactions that took ids began to commit. */
extern void outbox_horizon_copy_clock(Oid outbox_relid, OutboxClock *clock);

#endif							/* OUTBOX_HORIZON_H */

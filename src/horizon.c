/*-------------------------------------------------------------------------
 *
 * horizon.c
 *	  Ids in commit order, and how far they can be read.
 *
 * A transaction takes the ids of its messages in the last instants before it
 * commits.  Ids are handed out by a counter in shared memory, one for each
 * database (and outbox relation: a new CREATE EXTENSION starts anew).  In the
 * same critical section in which a backend takes a block of ids it registers
 * the first of them in its slot, and the slot is cleared only in the COMMIT or
 * ABORT callback, when everybody can see what became of the transaction.
 *
 * The horizon of a database is the smallest registered id, or, if none is
 * registered, the next id to be taken.  Whoever takes the horizon first and a
 * snapshot afterwards sees every row below the horizon that will ever be
 * there: its transaction was over before the snapshot.
 *
 * The same entry says which leaf of the ring is written (see leaf.c).
 *
 * The counter is not durable.  After a start it is seeded from the tables by
 * whoever comes first; until then there is no horizon.
 *
 * Locking: everything in OutboxHorizonShared is protected by its lock, shared
 * to read, exclusive to change.  Nothing under the lock can fail, allocate or
 * do I/O.  Latches are set after the lock was released.
 *
 * Runs in every backend that publishes and in the workers.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

#include "clock.h"
#include "compat.h"
#include "horizon.h"
#include "settings.h"

/* Databases with an outbox in one cluster; three kilobytes each. */
#define OUTBOX_MAX_DATABASES	256

typedef struct OutboxDatabase
{
	Oid			dboid;			/* InvalidOid: unused */
	Oid			outbox_relid;
	int64		next_id;
	XLogRecPtr	commit_lsn;		/* end of the newest commit that took ids */
	int			leaf;			/* of the ring, which is written */
	TimestampTz leaf_since;
	OutboxClock clock;			/* of the ids taken */
} OutboxDatabase;

/* What the transaction of one backend has taken. */
typedef struct OutboxSlot
{
	int			database;		/* index, -1: nothing taken */
	int64		first_id;
	TimestampTz since;
} OutboxSlot;

/* A worker that wants to be woken. */
typedef struct OutboxListener
{
	Oid			dboid;			/* InvalidOid: unused */
	Latch	   *latch;
	int64		horizon;		/* the last one it read */
} OutboxListener;

typedef struct OutboxHorizonShared
{
	LWLock	   *lock;
	int			nslots;
	OutboxDatabase databases[OUTBOX_MAX_DATABASES];
	int			nlisteners;		/* used ones are among the first of these */
	OutboxSlot	slots[FLEXIBLE_ARRAY_MEMBER];	/* then the listeners */
} OutboxHorizonShared;

static OutboxHorizonShared *shared = NULL;

/* index in databases of the ids this transaction took, or -1 */
static int	my_database = -1;

/* index of this worker's listener, or -1 */
static int	my_listener = -1;

static OutboxListener *
outbox_horizon_listeners(void)
{
	return (OutboxListener *) &shared->slots[shared->nslots];
}

static Size
outbox_horizon_size(void)
{
	Size		size = offsetof(OutboxHorizonShared, slots);

	size = add_size(size, mul_size(MaxBackends, sizeof(OutboxSlot)));
	return add_size(size, mul_size(outbox_max_workers,
								   sizeof(OutboxListener)));
}

void
outbox_horizon_request(void)
{
	RequestAddinShmemSpace(outbox_horizon_size());
	RequestNamedLWLockTranche("amqp_outbox_horizon", 1);
}

void
outbox_horizon_startup(void)
{
	bool		found;

	shared = ShmemInitStruct("amqp_outbox horizon", outbox_horizon_size(),
							 &found);
	if (found)
		return;

	memset(shared, 0, outbox_horizon_size());
	shared->lock = &GetNamedLWLockTranche("amqp_outbox_horizon")->lock;
	shared->nslots = MaxBackends;
	for (int i = 0; i < shared->nslots; i++)
		shared->slots[i].database = -1;
}

/* The index of this database's entry, -1 if there is none.  Under the lock. */
static int
outbox_horizon_find(Oid outbox_relid)
{
	Assert(LWLockHeldByMe(shared->lock));
	for (int i = 0; i < OUTBOX_MAX_DATABASES; i++)
	{
		if (shared->databases[i].dboid == MyDatabaseId &&
			shared->databases[i].outbox_relid == outbox_relid)
			return i;
	}
	return -1;
}

static bool
outbox_horizon_in_use(int database)
{
	for (int i = 0; i < shared->nslots; i++)
	{
		if (shared->slots[i].database == database)
			return true;
	}
	return false;
}

/*
 * An entry for a new counter: an unused one, else that of a former outbox of
 * this database; -1 if there is none.
 */
static int
outbox_horizon_find_room(void)
{
	int			former = -1;

	for (int i = 0; i < OUTBOX_MAX_DATABASES; i++)
	{
		if (!OidIsValid(shared->databases[i].dboid))
			return i;
		if (shared->databases[i].dboid == MyDatabaseId &&
			!outbox_horizon_in_use(i))
			former = i;
	}
	return former;
}

bool
outbox_horizon_is_seeded(Oid outbox_relid)
{
	bool		seeded;

	LWLockAcquire(shared->lock, LW_SHARED);
	seeded = outbox_horizon_find(outbox_relid) >= 0;
	LWLockRelease(shared->lock);
	return seeded;
}

void
outbox_horizon_seed(Oid outbox_relid, int64 next_id, int leaf)
{
	TimestampTz now = GetCurrentTimestamp();
	int			i;

	Assert(next_id > 0);
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	i = outbox_horizon_find(outbox_relid);
	if (i < 0)
	{
		i = outbox_horizon_find_room();
		if (i >= 0)
		{
			OutboxDatabase *database = &shared->databases[i];

			/*
			 * If it was that of a former outbox, the new one may be rolled
			 * back and the former one be here again: its ids and its LSN
			 * must not go back.
			 */
			database->dboid = MyDatabaseId;
			database->outbox_relid = outbox_relid;
			database->next_id = Max(next_id, database->next_id);
			database->leaf = leaf;
			database->leaf_since = now;
		}
	}
	LWLockRelease(shared->lock);

	if (i < 0)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("too many databases use amqp_outbox"),
				 errdetail("There is room for %d in one cluster.",
						   OUTBOX_MAX_DATABASES),
				 errhint("A restart of the server forgets databases that were dropped.")));
}

void
outbox_horizon_raise(Oid outbox_relid, int64 next_id, int leaf)
{
	int			i;

	outbox_horizon_seed(outbox_relid, next_id, leaf);
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	i = outbox_horizon_find(outbox_relid);
	if (i >= 0 && shared->databases[i].next_id < next_id)
		shared->databases[i].next_id = next_id;
	LWLockRelease(shared->lock);
}

int
outbox_horizon_leaf(Oid outbox_relid, TimestampTz *since)
{
	int			leaf = -1;
	int			i;

	LWLockAcquire(shared->lock, LW_SHARED);
	i = outbox_horizon_find(outbox_relid);
	if (i >= 0)
	{
		leaf = shared->databases[i].leaf;
		if (since)
			*since = shared->databases[i].leaf_since;
	}
	LWLockRelease(shared->lock);
	return leaf;
}

void
outbox_horizon_set_leaf(Oid outbox_relid, int leaf)
{
	TimestampTz now = GetCurrentTimestamp();
	int			i;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	i = outbox_horizon_find(outbox_relid);
	if (i >= 0)
	{
		shared->databases[i].leaf = leaf;
		shared->databases[i].leaf_since = now;
	}
	LWLockRelease(shared->lock);
}

void
outbox_horizon_forget_databases(const List *databases)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < OUTBOX_MAX_DATABASES; i++)
	{
		if (OidIsValid(shared->databases[i].dboid) &&
			!list_member_oid(databases, shared->databases[i].dboid) &&
			!outbox_horizon_in_use(i))
			memset(&shared->databases[i], 0, sizeof(OutboxDatabase));
	}
	LWLockRelease(shared->lock);
}

void
outbox_horizon_raise_lsn(XLogRecPtr commit_lsn)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < OUTBOX_MAX_DATABASES; i++)
	{
		if (shared->databases[i].dboid == MyDatabaseId &&
			shared->databases[i].commit_lsn < commit_lsn)
			shared->databases[i].commit_lsn = commit_lsn;
	}
	LWLockRelease(shared->lock);
}

int64
outbox_horizon_register(Oid outbox_relid, int64 n)
{
	OutboxSlot *slot = &shared->slots[OutboxMyProcNumber];
	TimestampTz now = GetCurrentTimestamp();
	int64		first_id = 0;
	int			i;

	Assert(n > 0);
	Assert(my_database < 0 && slot->database < 0);
	Assert(OutboxMyProcNumber < shared->nslots);

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	i = outbox_horizon_find(outbox_relid);
	if (i >= 0)
	{
		first_id = shared->databases[i].next_id;
		shared->databases[i].next_id += n;
		outbox_clock_note(&shared->databases[i].clock, first_id, now);
		slot->first_id = first_id;
		slot->since = now;
		slot->database = i;
		my_database = i;
	}
	LWLockRelease(shared->lock);

	if (i < 0)
		elog(ERROR, "id counter of amqp_outbox is not seeded");
	return first_id;
}

int64
outbox_horizon_take(Oid outbox_relid, int64 n)
{
	int64		first_id = 0;
	int			i;

	Assert(n > 0);
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	i = outbox_horizon_find(outbox_relid);
	if (i >= 0)
	{
		first_id = shared->databases[i].next_id;
		shared->databases[i].next_id += n;
	}
	LWLockRelease(shared->lock);

	if (i < 0)
		elog(ERROR, "id counter of amqp_outbox is not seeded");
	return first_id;
}

bool
outbox_horizon_registered(void)
{
	return my_database >= 0;
}

int64
outbox_horizon_first_id(void)
{
	/* our own slot: nobody else writes it */
	Assert(my_database >= 0);
	return shared->slots[OutboxMyProcNumber].first_id;
}

void
outbox_horizon_clear(XLogRecPtr commit_lsn)
{
	OutboxListener *listeners;
	OutboxDatabase *database;
	OutboxSlot *slot;
	Latch	   *wake[OUTBOX_MAX_WORKERS];
	int			nwake = 0;

	if (my_database < 0)
		return;

	listeners = outbox_horizon_listeners();
	database = &shared->databases[my_database];
	slot = &shared->slots[OutboxMyProcNumber];

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	Assert(slot->database == my_database);
	slot->database = -1;
	if (commit_lsn > database->commit_lsn)
		database->commit_lsn = commit_lsn;

	/*
	 * Wake whoever stopped at a horizon below the last id taken, also after
	 * an abort: this transaction may have been what held the horizon before
	 * another's committed message.
	 */
	for (int i = 0; i < shared->nlisteners; i++)
	{
		if (listeners[i].dboid == MyDatabaseId &&
			listeners[i].horizon < database->next_id)
			wake[nwake++] = listeners[i].latch;
	}
	LWLockRelease(shared->lock);
	my_database = -1;

	while (nwake > 0)
		SetLatch(wake[--nwake]);
}

/* The slot that holds the horizon of a database, -1 if none does. */
static int
outbox_horizon_holder(int database)
{
	int			holder = -1;

	Assert(LWLockHeldByMe(shared->lock));
	for (int i = 0; i < shared->nslots; i++)
	{
		if (shared->slots[i].database == database &&
			(holder < 0 ||
			 shared->slots[i].first_id < shared->slots[holder].first_id))
			holder = i;
	}
	return holder;
}

int64
outbox_horizon_read(Oid outbox_relid)
{
	int64		horizon = 0;
	int			database;

	Assert(my_listener >= 0);
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	database = outbox_horizon_find(outbox_relid);
	if (database >= 0)
	{
		int			holder = outbox_horizon_holder(database);

		horizon = holder < 0 ? shared->databases[database].next_id :
			shared->slots[holder].first_id;
	}
	outbox_horizon_listeners()[my_listener].horizon = horizon;
	LWLockRelease(shared->lock);
	return horizon;
}

void
outbox_horizon_get_status(Oid outbox_relid, OutboxHorizonStatus *status)
{
	int			database;

	memset(status, 0, sizeof(*status));
	LWLockAcquire(shared->lock, LW_SHARED);
	database = outbox_horizon_find(outbox_relid);
	if (database >= 0)
	{
		int			holder = outbox_horizon_holder(database);

		status->next_id = shared->databases[database].next_id;
		status->horizon = status->next_id;
		if (holder >= 0)
		{
			status->horizon = shared->slots[holder].first_id;
			status->since = shared->slots[holder].since;
			status->holder = outbox_proc_pid(holder);
		}
	}
	LWLockRelease(shared->lock);
}

void
outbox_horizon_copy_clock(Oid outbox_relid, OutboxClock *clock)
{
	int			i;

	LWLockAcquire(shared->lock, LW_SHARED);
	i = outbox_horizon_find(outbox_relid);
	if (i >= 0)
		*clock = shared->databases[i].clock;
	LWLockRelease(shared->lock);
	if (i < 0)
		memset(clock, 0, sizeof(*clock));
}

void
outbox_horizon_ignore(void)
{
	Assert(my_listener >= 0);
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	outbox_horizon_listeners()[my_listener].horizon = PG_INT64_MAX;
	LWLockRelease(shared->lock);
}

XLogRecPtr
outbox_horizon_commit_lsn(Oid outbox_relid)
{
	XLogRecPtr	lsn = InvalidXLogRecPtr;
	int			i;

	LWLockAcquire(shared->lock, LW_SHARED);
	i = outbox_horizon_find(outbox_relid);
	if (i >= 0)
		lsn = shared->databases[i].commit_lsn;
	LWLockRelease(shared->lock);
	return lsn;
}

/* A worker ends: its listener is free again. */
static void
outbox_horizon_unlisten(int code, Datum arg)
{
	if (my_listener < 0)
		return;
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	outbox_horizon_listeners()[my_listener].dboid = InvalidOid;
	LWLockRelease(shared->lock);
	my_listener = -1;
}

void
outbox_horizon_listen(Latch *latch)
{
	OutboxListener *listeners = outbox_horizon_listeners();

	before_shmem_exit(outbox_horizon_unlisten, (Datum) 0);
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < outbox_max_workers && my_listener < 0; i++)
	{
		if (OidIsValid(listeners[i].dboid))
			continue;
		listeners[i].latch = latch;
		listeners[i].horizon = 0;
		listeners[i].dboid = MyDatabaseId;
		shared->nlisteners = Max(shared->nlisteners, i + 1);
		my_listener = i;
	}
	LWLockRelease(shared->lock);

	if (my_listener < 0)
		elog(ERROR, "more workers of amqp_outbox than listeners");
}

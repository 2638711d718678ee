/*-------------------------------------------------------------------------
 *
 * registry.c
 *	  Which server of which database has a worker, and how that one is.
 *
 * An entry is made for each server that a scout finds in a database.  The
 * launcher starts a process for each entry that lacks one; the process
 * attaches to the entry and reports in it what it does; everybody may read.
 * An entry is freed when its server is gone and its process too.
 *
 * The registry also holds the launcher's inbox: the databases in which
 * something about servers has changed.
 *
 * Locking: everything in OutboxRegistryShared is protected by its lock, shared
 * to read, exclusive to change.  The fields that a worker reports are written
 * by that worker only.  Nothing under the lock can fail, allocate or do I/O.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/condition_variable.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "registry.h"
#include "settings.h"

/* Databases that can wait for the launcher before it looks at all of them. */
#define OUTBOX_MAX_SCANS	64

/* Holds at the same time; more are not honoured. */
#define OUTBOX_MAX_HOLDS	64

/* Databases share these to wait for receipts. */
#define OUTBOX_RECEIPT_CVS	16

typedef struct OutboxWorkerEntry
{
	bool		in_use;
	bool		wanted;			/* its server exists */
	bool		starting;		/* the launcher asked for a process */
	int			failures;		/* processes that ended before they attached */
	uint32		requests;		/* OUTBOX_REQUEST_... */
	TimestampTz due_from;		/* with OUTBOX_REQUEST_DUE */
	int64		settled_through;	/* newest receipt; 0: not known */
	TimestampTz start_at;		/* not before this time */
	Latch	   *latch;			/* of the process, NULL without one */
	OutboxWorkerStatus status;
	OutboxMeasure measure;
} OutboxWorkerEntry;

typedef struct OutboxRegistryShared
{
	LWLock	   *lock;
	Latch	   *launcher;		/* NULL: none is running */
	Oid			holds[OUTBOX_MAX_HOLDS];	/* InvalidOid: unused */
	bool		starved;		/* a server found no entry */
	bool		scan_all;
	int			nscans;
	Oid			scans[OUTBOX_MAX_SCANS];
	ConditionVariable receipts[OUTBOX_RECEIPT_CVS];
	OutboxWorkerEntry entries[FLEXIBLE_ARRAY_MEMBER];
} OutboxRegistryShared;

static OutboxRegistryShared *shared = NULL;

/* this worker's entry */
static OutboxWorkerEntry *my_entry = NULL;

static Size
outbox_registry_size(void)
{
	return add_size(offsetof(OutboxRegistryShared, entries),
					mul_size(outbox_max_workers, sizeof(OutboxWorkerEntry)));
}

void
outbox_registry_request(void)
{
	RequestAddinShmemSpace(outbox_registry_size());
	RequestNamedLWLockTranche("amqp_outbox_registry", 1);
}

void
outbox_registry_startup(void)
{
	bool		found;

	shared = ShmemInitStruct("amqp_outbox registry", outbox_registry_size(),
							 &found);
	if (found)
		return;

	memset(shared, 0, outbox_registry_size());
	shared->lock = &GetNamedLWLockTranche("amqp_outbox_registry")->lock;
	for (int i = 0; i < OUTBOX_RECEIPT_CVS; i++)
		ConditionVariableInit(&shared->receipts[i]);
}

const char *
outbox_worker_state_name(OutboxWorkerState state)
{
	switch (state)
	{
		case OUTBOX_WORKER_STARTING:
			return "starting";
		case OUTBOX_WORKER_CONNECTING:
			return "connecting";
		case OUTBOX_WORKER_CONNECTED:
			return "connected";
		case OUTBOX_WORKER_BLOCKED:
			return "blocked";
		case OUTBOX_WORKER_WAITING:
			return "waiting";
		case OUTBOX_WORKER_PAUSED:
			return "paused";
		case OUTBOX_WORKER_COPY:
			return "copy";
		case OUTBOX_WORKER_DRAINING:
			return "draining";
		case OUTBOX_WORKER_STOPPED:
			return "stopped";
	}
	return "unknown";
}

static void
outbox_registry_lock(LWLockMode mode)
{
	LWLockAcquire(shared->lock, mode);
}

static void
outbox_registry_unlock(void)
{
	LWLockRelease(shared->lock);
}

static bool
oid_is_member(Oid oid, const Oid *oids, int noids)
{
	for (int i = 0; i < noids; i++)
	{
		if (oids[i] == oid)
			return true;
	}
	return false;
}

static void
outbox_registry_wake_launcher(void)
{
	Assert(LWLockHeldByMe(shared->lock));
	if (shared->launcher)
		SetLatch(shared->launcher);
}

/*
 * Under the lock: ask something of the worker of one server, or of all of a
 * database (InvalidOid).  Returns whether one of them has a process.
 */
static bool
outbox_registry_request_work(Oid dboid, Oid serverid, uint32 request)
{
	bool		heard = false;

	Assert(LWLockHeldByMe(shared->lock));
	for (int i = 0; i < outbox_max_workers; i++)
	{
		OutboxWorkerEntry *entry = &shared->entries[i];

		if (!entry->in_use || entry->status.dboid != dboid ||
			(OidIsValid(serverid) && entry->status.serverid != serverid))
			continue;
		entry->requests |= request;
		if (request & OUTBOX_REQUEST_RELOAD)
			entry->start_at = 0;
		if (entry->latch == NULL)
			continue;
		SetLatch(entry->latch);
		heard = true;
	}
	return heard;
}

/* Put a database into the launcher's inbox.  Under the lock. */
static void
outbox_registry_add_scan(Oid dboid)
{
	Assert(LWLockHeldByMe(shared->lock));
	for (int i = 0; i < shared->nscans; i++)
	{
		if (shared->scans[i] == dboid)
			return;
	}
	if (shared->nscans < OUTBOX_MAX_SCANS)
		shared->scans[shared->nscans++] = dboid;
	else
		shared->scan_all = true;
}

void
outbox_registry_database_changed(Oid dboid)
{
	outbox_registry_lock(LW_EXCLUSIVE);
	outbox_registry_add_scan(dboid);
	outbox_registry_request_work(dboid, InvalidOid, OUTBOX_REQUEST_RELOAD);
	outbox_registry_wake_launcher();
	outbox_registry_unlock();
}

void
outbox_registry_deferred(Oid dboid, TimestampTz due_from)
{
	outbox_registry_lock(LW_EXCLUSIVE);
	for (int i = 0; i < outbox_max_workers; i++)
	{
		OutboxWorkerEntry *entry = &shared->entries[i];

		if (entry->status.dboid == dboid &&
			(!(entry->requests & OUTBOX_REQUEST_DUE) ||
			 due_from < entry->due_from))
			entry->due_from = due_from;
	}
	outbox_registry_request_work(dboid, InvalidOid, OUTBOX_REQUEST_DUE);
	outbox_registry_unlock();
}

void
outbox_registry_topology_changed(Oid dboid, bool everything)
{
	outbox_registry_lock(LW_EXCLUSIVE);
	outbox_registry_request_work(dboid, InvalidOid,
								 everything ? OUTBOX_REQUEST_ASSERT :
								 OUTBOX_REQUEST_TOPOLOGY);
	outbox_registry_unlock();
}

bool
outbox_registry_knows(Oid dboid, const List *servers)
{
	int			known = 0;
	bool		all = true;

	outbox_registry_lock(LW_SHARED);
	for (int i = 0; i < outbox_max_workers; i++)
	{
		OutboxWorkerEntry *entry = &shared->entries[i];

		if (!entry->in_use || entry->status.dboid != dboid)
			continue;
		known++;
		all &= list_member_oid(servers, entry->status.serverid);
	}
	outbox_registry_unlock();
	return all && known == list_length(servers);
}

bool
outbox_registry_ask_key(Oid dboid, Oid serverid)
{
	bool		heard;

	outbox_registry_lock(LW_EXCLUSIVE);
	heard = outbox_registry_request_work(dboid, serverid, OUTBOX_REQUEST_KEY);
	outbox_registry_unlock();
	return heard;
}

/*
 * Holds
 */

static bool
outbox_registry_held_locked(Oid dboid)
{
	Assert(LWLockHeldByMe(shared->lock));
	return oid_is_member(dboid, shared->holds, OUTBOX_MAX_HOLDS);
}

bool
outbox_registry_is_held(Oid dboid)
{
	bool		held;

	outbox_registry_lock(LW_SHARED);
	held = outbox_registry_held_locked(dboid);
	outbox_registry_unlock();
	return held;
}

void
outbox_registry_hold(Oid dboid)
{
	outbox_registry_lock(LW_EXCLUSIVE);
	for (int i = 0; i < OUTBOX_MAX_HOLDS; i++)
	{
		if (OidIsValid(shared->holds[i]))
			continue;
		shared->holds[i] = dboid;
		break;
	}
	outbox_registry_request_work(dboid, InvalidOid, OUTBOX_REQUEST_RELOAD);
	outbox_registry_unlock();
}

/* The database may be gone now, or there may be a new one. */
void
outbox_registry_release(Oid dboid)
{
	outbox_registry_lock(LW_EXCLUSIVE);
	for (int i = 0; i < OUTBOX_MAX_HOLDS; i++)
	{
		if (shared->holds[i] != dboid)
			continue;
		shared->holds[i] = InvalidOid;
		break;
	}
	shared->scan_all = true;
	outbox_registry_wake_launcher();
	outbox_registry_unlock();
}

bool
outbox_registry_has_workers(Oid dboid)
{
	bool		found = false;

	outbox_registry_lock(LW_SHARED);
	for (int i = 0; i < outbox_max_workers && !found; i++)
		found = shared->entries[i].in_use &&
			shared->entries[i].status.dboid == dboid &&
			shared->entries[i].status.pid != 0;
	outbox_registry_unlock();
	return found;
}

bool
outbox_registry_status(int i, OutboxWorkerStatus *status)
{
	OutboxWorkerEntry *entry = &shared->entries[i];
	bool		in_use;

	outbox_registry_lock(LW_SHARED);
	in_use = entry->in_use;
	if (in_use)
		*status = entry->status;
	outbox_registry_unlock();
	return in_use;
}

bool
outbox_registry_measures(int i, OutboxWorkerStatus *status,
						 OutboxMeasure *measure)
{
	OutboxWorkerEntry *entry = &shared->entries[i];
	bool		in_use;

	outbox_registry_lock(LW_SHARED);
	in_use = entry->in_use;
	if (in_use)
	{
		*status = entry->status;
		*measure = entry->measure;
	}
	outbox_registry_unlock();
	return in_use;
}

/*
 * Waiting for receipts
 */

static ConditionVariable *
outbox_registry_receipts(Oid dboid)
{
	return &shared->receipts[dboid % OUTBOX_RECEIPT_CVS];
}

int64
outbox_registry_settled_through(Oid dboid, Oid serverid)
{
	int64		through_id = 0;

	outbox_registry_lock(LW_SHARED);
	for (int i = 0; i < outbox_max_workers; i++)
	{
		OutboxWorkerEntry *entry = &shared->entries[i];

		if (entry->in_use && entry->status.dboid == dboid &&
			entry->status.serverid == serverid)
			through_id = entry->settled_through;
	}
	outbox_registry_unlock();
	return through_id;
}

void
outbox_registry_begin_wait(Oid dboid)
{
	ConditionVariablePrepareToSleep(outbox_registry_receipts(dboid));
}

void
outbox_registry_wait(Oid dboid, long ms)
{
	static uint32 wait_event = 0;

	if (wait_event == 0)
		wait_event = outbox_wait_event("AmqpOutboxConfirm");
	(void) ConditionVariableTimedSleep(outbox_registry_receipts(dboid), ms,
									   wait_event);
}

void
outbox_registry_end_wait(void)
{
	ConditionVariableCancelSleep();
}

/*
 * Scouts
 */

/* Make an entry for a server that has none.  Under the lock. */
static bool
outbox_registry_add(Oid dboid, Oid serverid)
{
	OutboxWorkerEntry *unused = NULL;

	for (int i = 0; i < outbox_max_workers; i++)
	{
		OutboxWorkerEntry *entry = &shared->entries[i];

		if (!entry->in_use)
		{
			if (unused == NULL)
				unused = entry;
		}
		else if (entry->status.dboid == dboid &&
				 entry->status.serverid == serverid)
		{
			entry->wanted = true;
			return true;
		}
	}
	if (unused == NULL)
		return false;

	memset(unused, 0, sizeof(*unused));
	unused->in_use = true;
	unused->wanted = true;
	unused->status.dboid = dboid;
	unused->status.serverid = serverid;
	unused->status.state = OUTBOX_WORKER_STARTING;
	unused->status.since = GetCurrentTimestamp();
	unused->status.disconnected_since = unused->status.since;
	outbox_measure_begin(&unused->measure, unused->status.since);
	return true;
}

/* Free an entry that nobody needs any more.  Under the lock. */
static void
outbox_registry_free_if_unused(OutboxWorkerEntry *entry)
{
	if (entry->wanted || entry->starting || entry->status.pid != 0)
		return;
	entry->in_use = false;
	if (shared->starved)
	{
		shared->starved = false;
		shared->scan_all = true;
		outbox_registry_wake_launcher();
	}
}

/*
 * Launcher: which databases there are; servers of others are gone with them.
 */
void
outbox_registry_forget_databases(const List *databases)
{
	outbox_registry_lock(LW_EXCLUSIVE);
	for (int i = 0; i < outbox_max_workers; i++)
	{
		OutboxWorkerEntry *entry = &shared->entries[i];

		if (!entry->in_use ||
			list_member_oid(databases, entry->status.dboid))
			continue;
		entry->wanted = false;
		outbox_registry_free_if_unused(entry);
	}
	outbox_registry_unlock();
}

int
outbox_registry_report(Oid dboid, const Oid *servers, int nservers)
{
	int			without_room = 0;

	outbox_registry_lock(LW_EXCLUSIVE);
	for (int i = 0; i < outbox_max_workers; i++)
	{
		OutboxWorkerEntry *entry = &shared->entries[i];

		if (!entry->in_use || entry->status.dboid != dboid ||
			oid_is_member(entry->status.serverid, servers, nservers))
			continue;
		entry->wanted = false;
		entry->requests |= OUTBOX_REQUEST_RELOAD;
		if (entry->latch)
			SetLatch(entry->latch);
		outbox_registry_free_if_unused(entry);
	}
	for (int i = 0; i < nservers; i++)
	{
		if (!outbox_registry_add(dboid, servers[i]))
			without_room++;
	}
	if (without_room > 0)
		shared->starved = true;
	outbox_registry_wake_launcher();
	outbox_registry_unlock();
	return without_room;
}

/*
 * Workers
 */

static void
outbox_registry_detach_at_exit(int code, Datum arg)
{
	outbox_registry_detach();
}

bool
outbox_registry_attach(int i, Oid dboid, Oid *serverid)
{
	OutboxWorkerEntry *entry = &shared->entries[i];
	bool		attached = false;

	Assert(my_entry == NULL);
	before_shmem_exit(outbox_registry_detach_at_exit, (Datum) 0);

	outbox_registry_lock(LW_EXCLUSIVE);
	if (entry->in_use && entry->wanted && entry->status.dboid == dboid &&
		entry->status.pid == 0)
	{
		entry->starting = false;
		entry->failures = 0;
		entry->settled_through = 0;
		entry->latch = MyLatch;
		entry->status.pid = MyProcPid;
		entry->status.state = OUTBOX_WORKER_STARTING;
		entry->status.since = GetCurrentTimestamp();
		*serverid = entry->status.serverid;
		my_entry = entry;
		attached = true;
	}
	outbox_registry_unlock();
	return attached;
}

/*
 * Count connections and the time of being blocked, when an entry is about to
 * get this state.  A worker that drains is as connected as it was.
 */
static void
outbox_registry_account(OutboxWorkerEntry *entry, OutboxWorkerState state,
						TimestampTz now)
{
	OutboxWorkerStatus *status = &entry->status;

	Assert(LWLockHeldByMe(shared->lock));
	if (status->state == OUTBOX_WORKER_BLOCKED &&
		state != OUTBOX_WORKER_BLOCKED)
		status->blocked_us += Max(now - status->since, 0);
	switch (state)
	{
		case OUTBOX_WORKER_CONNECTED:
		case OUTBOX_WORKER_BLOCKED:
			status->connections += status->disconnected_since != 0;
			status->disconnected_since = 0;
			break;
		case OUTBOX_WORKER_PAUSED:
			/* it is not meant to be connected */
			status->disconnected_since = 0;
			break;
		case OUTBOX_WORKER_DRAINING:
			break;
		default:
			if (status->disconnected_since == 0)
				status->disconnected_since = now;
			break;
	}
}

void
outbox_registry_detach(void)
{
	TimestampTz start_at;

	if (my_entry == NULL)
		return;

	/* the launcher starts a new process only when this one has ended */
	start_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
										   OUTBOX_RESTART_MS);

	outbox_registry_lock(LW_EXCLUSIVE);
	my_entry->latch = NULL;
	my_entry->start_at = start_at;
	my_entry->status.pid = 0;
	my_entry->status.in_flight = 0;
	my_entry->status.host[0] = '\0';
	outbox_registry_account(my_entry, OUTBOX_WORKER_STOPPED,
							GetCurrentTimestamp());
	my_entry->status.state = OUTBOX_WORKER_STOPPED;
	my_entry->status.since = GetCurrentTimestamp();
	outbox_registry_free_if_unused(my_entry);
	outbox_registry_wake_launcher();
	outbox_registry_unlock();
	my_entry = NULL;
}

void
outbox_registry_set_state(OutboxWorkerState state, const char *host)
{
	outbox_registry_lock(LW_EXCLUSIVE);
	outbox_registry_account(my_entry, state, GetCurrentTimestamp());
	if (my_entry->status.state != state)
		my_entry->status.since = GetCurrentTimestamp();
	my_entry->status.state = state;
	strlcpy(my_entry->status.host, host ? host : "", OUTBOX_HOST_LEN);
	outbox_registry_unlock();
}

/* Without the lock: one aligned word, often written, and only shown. */
void
outbox_registry_set_in_flight(int in_flight)
{
	my_entry->status.in_flight = in_flight;
}

static void
outbox_registry_note_error(OutboxWorkerEntry *entry,
						   const OutboxFailure *failure, TimestampTz now)
{
	Assert(LWLockHeldByMe(shared->lock));
	snprintf(entry->status.last_error, sizeof(entry->status.last_error),
			 "%s%s%s", failure->message, failure->detail[0] ? ": " : "",
			 failure->detail);
	entry->status.last_error_at = now;
}

void
outbox_registry_set_error(const OutboxFailure *failure)
{
	TimestampTz now = GetCurrentTimestamp();

	outbox_registry_lock(LW_EXCLUSIVE);
	outbox_registry_note_error(my_entry, failure, now);
	outbox_registry_unlock();
}

void
outbox_registry_retire(void)
{
	outbox_registry_lock(LW_EXCLUSIVE);
	my_entry->wanted = false;
	outbox_registry_unlock();
}

/*
 * Without the lock: whoever sees a message also sees the change that its
 * session made before, since the message came by a lock that we took.
 */
bool
outbox_registry_has_request(uint32 requests)
{
	/* its own entry: a bit that is just being set is seen the next time */
	return (my_entry->requests & requests) != 0;
}

void
outbox_registry_measured(const OutboxTally *tally, TimestampTz now)
{
	outbox_registry_lock(LW_EXCLUSIVE);
	outbox_measure_add(&my_entry->measure, tally, now);
	outbox_registry_unlock();
}

void
outbox_registry_settled(int64 through_id)
{
	outbox_registry_lock(LW_EXCLUSIVE);
	my_entry->settled_through = through_id;
	outbox_registry_unlock();
	ConditionVariableBroadcast(outbox_registry_receipts(my_entry->status.dboid));
}

uint32
outbox_registry_take_requests(TimestampTz *due_from)
{
	uint32		requests;

	if (!outbox_registry_has_request(~0))
		return 0;
	outbox_registry_lock(LW_EXCLUSIVE);
	requests = my_entry->requests;
	if (requests & OUTBOX_REQUEST_DUE)
		*due_from = my_entry->due_from;
	my_entry->requests = 0;
	outbox_registry_unlock();
	return requests;
}

/*
 * Launcher
 */

void
outbox_registry_set_launcher(Latch *latch)
{
	outbox_registry_lock(LW_EXCLUSIVE);
	shared->launcher = latch;

	/*
	 * What a former launcher was about to start is nobody's business any
	 * more; if it comes late, one of two processes finds the entry taken.
	 */
	for (int i = 0; i < outbox_max_workers; i++)
		shared->entries[i].starting = false;
	outbox_registry_unlock();
}

void
outbox_registry_scan_all(void)
{
	outbox_registry_lock(LW_EXCLUSIVE);
	shared->scan_all = true;
	outbox_registry_unlock();
}

void
outbox_registry_scan(Oid dboid)
{
	outbox_registry_lock(LW_EXCLUSIVE);
	outbox_registry_add_scan(dboid);
	outbox_registry_unlock();
}

bool
outbox_registry_take_scan(Oid *dboid, bool *all)
{
	bool		found;

	outbox_registry_lock(LW_EXCLUSIVE);
	*all = shared->scan_all;
	shared->scan_all = false;
	found = *all;
	if (!found && shared->nscans > 0)
	{
		*dboid = shared->scans[--shared->nscans];
		found = true;
	}
	outbox_registry_unlock();
	return found;
}

bool
outbox_registry_claim_start(int i, Oid *dboid)
{
	OutboxWorkerEntry *entry = &shared->entries[i];
	TimestampTz now = GetCurrentTimestamp();
	bool		claimed = false;

	outbox_registry_lock(LW_EXCLUSIVE);
	if (entry->in_use && entry->wanted && !entry->starting &&
		entry->status.pid == 0 && entry->start_at <= now &&
		!outbox_registry_held_locked(entry->status.dboid))
	{
		entry->starting = true;
		*dboid = entry->status.dboid;
		claimed = true;
	}
	outbox_registry_unlock();
	return claimed;
}

void
outbox_registry_not_running(int i, int retry_ms)
{
	OutboxWorkerEntry *entry = &shared->entries[i];
	TimestampTz now = GetCurrentTimestamp();
	int			pause = retry_ms;

	outbox_registry_lock(LW_EXCLUSIVE);
	if (entry->starting)
		pause = Min(retry_ms << Min(entry->failures++, 10),
					OUTBOX_RESTART_LAST_MS);
	entry->starting = false;
	entry->start_at = TimestampTzPlusMilliseconds(now, pause);
	outbox_registry_free_if_unused(entry);
	outbox_registry_unlock();
}

void
outbox_registry_lacks_process(int i, const OutboxFailure *failure)
{
	OutboxWorkerEntry *entry = &shared->entries[i];
	TimestampTz now = GetCurrentTimestamp();

	outbox_registry_lock(LW_EXCLUSIVE);
	entry->starting = false;
	outbox_registry_note_error(entry, failure, now);
	outbox_registry_free_if_unused(entry);
	outbox_registry_unlock();
}

long
outbox_registry_next_start(void)
{
	TimestampTz now = GetCurrentTimestamp();
	long		next = -1;

	outbox_registry_lock(LW_SHARED);
	for (int i = 0; i < outbox_max_workers; i++)
	{
		OutboxWorkerEntry *entry = &shared->entries[i];
		long		ms;

		if (!entry->in_use || !entry->wanted || entry->starting ||
			entry->status.pid != 0 ||
			outbox_registry_held_locked(entry->status.dboid))
			continue;
		ms = TimestampDifferenceMilliseconds(now, entry->start_at);
		if (next < 0 || ms < next)
			next = ms;
	}
	outbox_registry_unlock();
	return next;
}

/*-------------------------------------------------------------------------
 *
 * launcher.c
 *	  The process that sees to it that every server has its worker.
 *
 * There is one launcher in a cluster.  It is connected to no database, so it
 * sends a scout (worker.c) to look which servers a database has: to every
 * database when it starts, and to one database when somebody committed a
 * statement there that creates, alters or drops servers.  What the scouts find
 * stands in the registry; the launcher starts a worker for each entry that
 * lacks one.
 *
 * One scout runs at a time.  A process that could not be started (there is no
 * free slot among max_worker_processes) is tried again later; a worker that
 * ended is started again.
 *
 * The launcher sleeps without a timeout when there is nothing to start.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "backlog.h"
#include "compat.h"
#include "horizon.h"
#include "launcher.h"
#include "registry.h"
#include "settings.h"
#include "worker.h"

/* A process that could not be started is tried again after this. */
#define OUTBOX_NO_SLOT_MS	10000

typedef struct OutboxLauncher
{
	MemoryContext context;
	List	   *scans;			/* OIDs of databases to send a scout to */
	BackgroundWorkerHandle *scout;	/* NULL: none is running */
	BackgroundWorkerHandle **workers;	/* by entry of the registry */
	bool		out_of_slots;	/* and that was logged */
	TimestampTz retry_at;		/* not before this, if out of slots */
} OutboxLauncher;

static OutboxLauncher *launcher = NULL;

/*
 * Starting processes
 */

static BackgroundWorkerHandle *
outbox_launcher_start_process(Oid dboid, int entry)
{
	BackgroundWorker bgw;
	BackgroundWorkerHandle *handle;
	OutboxWorkerArgs args = {.dboid = dboid,.entry = entry};
	MemoryContext old_context;

	memset(&bgw, 0, sizeof(bgw));
	bgw.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	bgw.bgw_start_time = BgWorkerStart_RecoveryFinished;
	bgw.bgw_restart_time = BGW_NEVER_RESTART;
	bgw.bgw_notify_pid = MyProcPid;
	snprintf(bgw.bgw_library_name, BGW_MAXLEN, "amqp_outbox");
	snprintf(bgw.bgw_function_name, BGW_MAXLEN, "outbox_worker_main");
	snprintf(bgw.bgw_name, BGW_MAXLEN, "amqp_outbox %s",
			 entry == OUTBOX_SCOUT ? "scout" : "worker");
	strlcpy(bgw.bgw_type, bgw.bgw_name, BGW_MAXLEN);
	memcpy(bgw.bgw_extra, &args, sizeof(args));

	old_context = MemoryContextSwitchTo(launcher->context);
	if (!RegisterDynamicBackgroundWorker(&bgw, &handle))
		handle = NULL;
	MemoryContextSwitchTo(old_context);

	if (handle == NULL)
	{
		if (!launcher->out_of_slots)
			ereport(WARNING,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("no free slot for a background worker of amqp_outbox"),
					 errdetail("Some servers are not published to."),
					 errhint("Increase max_worker_processes, which is %d: amqp_outbox needs one for each server and two more.",
							 max_worker_processes)));
		launcher->out_of_slots = true;
		launcher->retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
														 OUTBOX_NO_SLOT_MS);
	}
	else
		launcher->out_of_slots = false;
	return handle;
}

static bool
outbox_launcher_has_ended(BackgroundWorkerHandle *handle)
{
	pid_t		pid;

	return GetBackgroundWorkerPid(handle, &pid) == BGWH_STOPPED;
}

static bool
outbox_launcher_may_start(void)
{
	return outbox_enabled && launcher->retry_at <= GetCurrentTimestamp();
}

/*
 * Scouts
 */

static void
outbox_launcher_add_scan(Oid dboid)
{
	MemoryContext old_context = MemoryContextSwitchTo(launcher->context);

	launcher->scans = list_append_unique_oid(launcher->scans, dboid);
	MemoryContextSwitchTo(old_context);
}

/* Note all databases that can be connected to; forget those that are gone. */
static void
outbox_launcher_scan_databases(void)
{
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;
	List	   *all = NIL;
	uint64		epoch = outbox_backlog_last_epoch();
	ListCell   *lc;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);

		all = lappend_oid(all, form->oid);
		if (form->datallowconn)
			outbox_launcher_add_scan(form->oid);
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	outbox_registry_forget_databases(all);
	outbox_horizon_forget_databases(all);
	outbox_backlog_forget_databases(all, epoch);
	foreach(lc, launcher->scans)
	{
		if (!list_member_oid(all, lfirst_oid(lc)))
			launcher->scans = foreach_delete_current(launcher->scans, lc);
	}
	CommitTransactionCommand();
}

static void
outbox_launcher_take_scans(void)
{
	Oid			dboid;
	bool		all;

	while (outbox_registry_take_scan(&dboid, &all))
	{
		if (all)
			outbox_launcher_scan_databases();
		else
			outbox_launcher_add_scan(dboid);
	}
}

static void
outbox_launcher_send_scout(void)
{
	ListCell   *lc;

	if (launcher->scout && outbox_launcher_has_ended(launcher->scout))
	{
		pfree(launcher->scout);
		launcher->scout = NULL;
		launcher->retry_at = 0; /* its slot is free */
	}
	if (launcher->scout || launcher->scans == NIL ||
		!outbox_launcher_may_start())
		return;

	foreach(lc, launcher->scans)
	{
		Oid			dboid = lfirst_oid(lc);

		/* at its release it is looked at again */
		if (outbox_registry_is_held(dboid))
			continue;
		launcher->scout = outbox_launcher_start_process(dboid, OUTBOX_SCOUT);
		if (launcher->scout)
			launcher->scans = foreach_delete_current(launcher->scans, lc);
		break;
	}
}

/*
 * Workers
 */

static void
outbox_launcher_start_worker(int entry, Oid dboid)
{
	OutboxFailure failure;

	launcher->workers[entry] = outbox_launcher_start_process(dboid, entry);
	if (launcher->workers[entry])
		return;
	outbox_failure_set(&failure, ERRCODE_CONFIGURATION_LIMIT_EXCEEDED, NULL,
					   "no free slot for a background worker");
	outbox_registry_lacks_process(entry, &failure);
}

static void
outbox_launcher_tend_worker(int entry)
{
	Oid			dboid;

	if (launcher->workers[entry] &&
		outbox_launcher_has_ended(launcher->workers[entry]))
	{
		pfree(launcher->workers[entry]);
		launcher->workers[entry] = NULL;
		launcher->retry_at = 0; /* its slot is free */
		outbox_registry_not_running(entry, OUTBOX_RESTART_MS);
	}
	if (launcher->workers[entry] == NULL && outbox_launcher_may_start() &&
		outbox_registry_claim_start(entry, &dboid))
		outbox_launcher_start_worker(entry, dboid);
}

static long
outbox_launcher_timeout(void)
{
	long		timeout = -1;

	if (!outbox_enabled)
		return -1;
	timeout = outbox_registry_next_start();
	if (launcher->out_of_slots &&
		(launcher->scans != NIL || timeout >= 0))
		timeout = Max(timeout,
					  TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
													  launcher->retry_at));
	return timeout;
}

static void
outbox_launcher_cycle(void)
{
	static uint32 wait_event = 0;
	long		timeout;

	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
	outbox_launcher_take_scans();
	outbox_launcher_send_scout();
	for (int i = 0; i < outbox_max_workers; i++)
		outbox_launcher_tend_worker(i);

	if (wait_event == 0)
		wait_event = outbox_wait_event("AmqpOutboxLauncher");
	timeout = outbox_launcher_timeout();
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_EXIT_ON_PM_DEATH |
					 (timeout >= 0 ? WL_TIMEOUT : 0), timeout, wait_event);
	ResetLatch(MyLatch);
}

static void
outbox_launcher_detach(int code, Datum arg)
{
	outbox_registry_set_launcher(NULL);
}

void
outbox_launcher_main(Datum arg)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext,
												  "amqp_outbox launcher",
												  ALLOCSET_DEFAULT_SIZES);

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	pgstat_report_appname("amqp_outbox launcher");

	MemoryContextSwitchTo(context);
	launcher = palloc0(sizeof(OutboxLauncher));
	launcher->context = context;
	launcher->workers = palloc0(outbox_max_workers *
								sizeof(BackgroundWorkerHandle *));
	before_shmem_exit(outbox_launcher_detach, (Datum) 0);
	outbox_registry_set_launcher(MyLatch);
	outbox_registry_scan_all();

	while (!ShutdownRequestPending)
		outbox_launcher_cycle();

	/* not 0: if it was not the whole server, start again */
	proc_exit(1);
}

void
outbox_launcher_register(void)
{
	BackgroundWorker bgw;

	memset(&bgw, 0, sizeof(bgw));
	bgw.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	bgw.bgw_start_time = BgWorkerStart_RecoveryFinished;
	bgw.bgw_restart_time = 1;
	snprintf(bgw.bgw_library_name, BGW_MAXLEN, "amqp_outbox");
	snprintf(bgw.bgw_function_name, BGW_MAXLEN, "outbox_launcher_main");
	snprintf(bgw.bgw_name, BGW_MAXLEN, "amqp_outbox launcher");
	strlcpy(bgw.bgw_type, bgw.bgw_name, BGW_MAXLEN);
	RegisterBackgroundWorker(&bgw);
}

/*-------------------------------------------------------------------------
 *
 * shared.c
 *	  Shared memory, as the server hands it out.
 *
 * What is in it belongs to horizon.c, registry.c and backlog.c, each with a lock
 * of its own; here is only the moment when it comes to be.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"

#include "backlog.h"
#include "horizon.h"
#include "registry.h"
#include "shared.h"

static bool available = false;

static shmem_request_hook_type prev_shmem_request_hook = NULL;
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;

static void
outbox_shared_request(void)
{
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();
	outbox_horizon_request();
	outbox_registry_request();
	outbox_backlog_request();
}

static void
outbox_shared_startup(void)
{
	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	outbox_horizon_startup();
	outbox_registry_startup();
	outbox_backlog_startup();
	LWLockRelease(AddinShmemInitLock);
	available = true;
}

void
outbox_shared_install_hooks(void)
{
	prev_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = outbox_shared_request;
	prev_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = outbox_shared_startup;
}

bool
outbox_shared_is_available(void)
{
	return available;
}

void
outbox_shared_require(void)
{
	if (!available)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("amqp_outbox must be loaded when the server starts"),
				 errhint("Set shared_preload_libraries = 'amqp_outbox' in postgresql.conf and restart the server.")));
}

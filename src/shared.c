/*-------------------------------------------------------------------------
 *
 * shared.c
 *	  The piece of shared memory that amqp_outbox owns.
 *
 * Requests and lays out the memory; what is in it belongs to horizon.c and
 * registry.c, each with one lock of the tranche "amqp_outbox".
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"

#include "horizon.h"
#include "registry.h"
#include "shared.h"

struct OutboxHorizonShared *outbox_horizon_shared = NULL;
struct OutboxRegistryShared *outbox_registry_shared = NULL;

static shmem_request_hook_type prev_shmem_request_hook = NULL;
static shmem_startup_hook_type prev_shmem_startup_hook = NULL;

static void
outbox_shared_request(void)
{
	if (prev_shmem_request_hook)
		prev_shmem_request_hook();

	RequestAddinShmemSpace(outbox_horizon_size());
	RequestAddinShmemSpace(outbox_registry_size());
	RequestNamedLWLockTranche("amqp_outbox", 2);
}

static void
outbox_shared_startup(void)
{
	bool		found;

	if (prev_shmem_startup_hook)
		prev_shmem_startup_hook();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	outbox_horizon_shared = ShmemInitStruct("amqp_outbox horizon",
											outbox_horizon_size(), &found);
	outbox_horizon_init(outbox_horizon_shared, found);
	outbox_registry_shared = ShmemInitStruct("amqp_outbox registry",
											 outbox_registry_size(), &found);
	outbox_registry_init(outbox_registry_shared, found);
	LWLockRelease(AddinShmemInitLock);
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
outbox_shared_available(void)
{
	return outbox_horizon_shared != NULL;
}

void
outbox_shared_require(void)
{
	if (outbox_horizon_shared == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("amqp_outbox must be loaded when the server starts"),
				 errhint("Set shared_preload_libraries = 'amqp_outbox' in postgresql.conf and restart the server.")));
}

/*-------------------------------------------------------------------------
 *
 * prune.c
 *	  Removing what is not needed any more and goes row by row.
 *
 * Runs in the worker, whenever it looks at the ring.  An idempotency key that
 * is too old counts for nothing before it is removed, so there is no hurry.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "prune.h"
#include "store.h"

bool
outbox_prune_keys(const OutboxServer *server)
{
	int32		server_key;
	bool		more = false;

	if (server->idempotency_retention == 0 || !outbox_store_begin())
		return false;
	server_key = outbox_store_server_key(server->name);
	if (server_key != 0)
		more = outbox_store_prune_keys(server_key, GetCurrentTimestamp() -
									   server->idempotency_retention * USECS_PER_SEC);
	outbox_store_commit();
	return more;
}

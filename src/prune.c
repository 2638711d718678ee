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

#include "catalog/pg_type.h"
#include "utils/timestamp.h"

#include "prune.h"
#include "store.h"

/* Idempotency keys that go in one transaction. */
#define OUTBOX_PRUNE_ROWS	1000

static OutboxStatement prune_keys = {
	.sql = "DELETE FROM amqp_outbox.idempotency_key"
	" WHERE server_key = $1 AND key = ANY (ARRAY("
	"SELECT key FROM amqp_outbox.idempotency_key"
	" WHERE server_key = $1 AND claimed_at < $2"
	" ORDER BY server_key, claimed_at"
	" LIMIT " CppAsString2(OUTBOX_PRUNE_ROWS) " FOR UPDATE SKIP LOCKED))",
	.nparams = 2, .types = {INT4OID, TIMESTAMPTZOID}
};

/* Those that were claimed before a time; whether there may be more. */
static bool
outbox_prune_keys_before(int32 server_key, TimestampTz before)
{
	Datum		values[2];

	values[0] = Int32GetDatum(server_key);
	values[1] = TimestampTzGetDatum(before);
	return outbox_store_change(&prune_keys, values, NULL,
							   SPI_OK_DELETE) == OUTBOX_PRUNE_ROWS;
}

bool
outbox_prune_keys(const OutboxServer *server)
{
	int32		server_key;
	bool		more = false;

	if (server->idempotency_retention == 0 || !outbox_store_begin())
		return false;
	server_key = outbox_store_server_key(server->name);
	if (server_key != 0)
		more = outbox_prune_keys_before(server_key, GetCurrentTimestamp() -
										server->idempotency_retention * USECS_PER_SEC);
	outbox_store_commit();
	return more;
}

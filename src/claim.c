/*-------------------------------------------------------------------------
 *
 * claim.c
 *	  Idempotency keys: who publishes first.
 *
 * A key is claimed at the call, by an ordinary row of a table of its own: a
 * rollback, also to a savepoint, takes the claim back, and whoever comes
 * second waits for the first one's end at the primary key, as for any unique
 * value.  (A unique index on the outbox would wait, and fail, inside COMMIT.)
 * Messages without a key do not come here.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_foreign_server.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "claim.h"
#include "option.h"
#include "query.h"
#include "server.h"

#define KEY_IS \
	"k.server_key OPERATOR(pg_catalog.=) $1 AND k.key OPERATOR(pg_catalog.=) $2"

static OutboxQuery claim = {
	"INSERT INTO amqp_outbox.idempotency_key AS k"
	" (server_key, key, message_id, claimed_at) VALUES ($1, $2, $3, $4)"
	" ON CONFLICT (server_key, key) DO NOTHING RETURNING k.message_id",
	4, {INT4OID, TEXTOID, TEXTOID, TIMESTAMPTZOID}, NULL
};

static OutboxQuery first = {
	"SELECT k.message_id, k.claimed_at FROM amqp_outbox.idempotency_key k"
	" WHERE " KEY_IS,
	2, {INT4OID, TEXTOID}, NULL
};

static OutboxQuery claim_again = {
	"UPDATE amqp_outbox.idempotency_key k SET message_id = $3, claimed_at = $4"
	" WHERE " KEY_IS " AND k.claimed_at OPERATOR(pg_catalog.=) $5"
	" RETURNING k.message_id",
	5, {INT4OID, TEXTOID, TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID}, NULL
};

/*
 * The server's stable key.  If there is none, it is made by the server's
 * worker, because whoever makes it keeps others waiting until its transaction
 * ends; only without a worker it is made here.
 */
static int32
outbox_claim_server_key(Oid serverid)
{
	NameData	name;

	if (!outbox_server_await_key(serverid, &name))
	{
		/* in the order of the flush: the server, then its key */
		LockDatabaseObject(ForeignServerRelationId, serverid, 0,
						   AccessShareLock);
		if (!outbox_server_get_name(serverid, &name))
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("the server was dropped by another session")));
	}
	return outbox_catalog_server_key(&name);
}

bool
outbox_claim(Oid serverid, Datum key, TimestampTz now, Datum *message_id)
{
	int			retention = outbox_option_idempotency_retention(serverid);
	Datum		values[5];
	OutboxRow	row;

	values[0] = Int32GetDatum(outbox_claim_server_key(serverid));
	values[1] = key;
	values[2] = *message_id;
	values[3] = TimestampTzGetDatum(now);
	for (;;)
	{
		CHECK_FOR_INTERRUPTS();
		if (outbox_query(&claim, values, &row))
			return true;
		if (!outbox_query(&first, values, &row))
			continue;			/* it was removed in between */
		if (retention == 0 ||
			now - DatumGetTimestampTz(row.values[1]) < retention * USECS_PER_SEC)
		{
			*message_id = row.values[0];
			return false;
		}
		values[4] = row.values[1];
		if (outbox_query(&claim_again, values, &row))
			return true;
	}
}

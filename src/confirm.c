/*-------------------------------------------------------------------------
 *
 * confirm.c
 *	  amqp_wait_for_confirm(): wait until the broker has confirmed a message.
 *
 * Workers broadcast after each receipt.  As long as the receipts have not
 * reached a message of the outbox, that is all there is to look at; then, or
 * if it is a deferred one, the tables say what became of it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "buffer.h"
#include "catalog.h"
#include "compat.h"
#include "query.h"
#include "recent.h"
#include "registry.h"
#include "server.h"
#include "shared.h"

/* What is to be looked at for one message. */
typedef struct OutboxWaited
{
	const char *message_id;
	int32		server_key;
	int64		id;
	Oid			serverid;
	bool		deferred;		/* receipts do not tell of it */
} OutboxWaited;

/*
 * On the servers $2.  Several may have the same id if callers give the ids; the
 * last one counts.
 */
static OutboxQuery look_up = {
	"SELECT m.server_key, m.id, k.server FROM ("
	"SELECT server_key, id FROM amqp_outbox.outbox"
	" WHERE message_id OPERATOR(pg_catalog.=) $1"
	" UNION ALL SELECT server_key, id FROM amqp_outbox.deferred"
	" WHERE message_id OPERATOR(pg_catalog.=) $1"
	" UNION ALL SELECT server_key, id FROM amqp_outbox.dead_letter_item"
	" WHERE message_id OPERATOR(pg_catalog.=) $1"
	" UNION ALL SELECT server_key, id FROM amqp_outbox.late"
	" WHERE message_id OPERATOR(pg_catalog.=) $1"
	") m JOIN amqp_outbox.server_key k"
	" ON k.server_key OPERATOR(pg_catalog.=) m.server_key"
	" WHERE k.server OPERATOR(pg_catalog.=) ANY ($2)"
	" ORDER BY m.id DESC LIMIT 1",
	2, {TEXTOID, NAMEARRAYOID}, NULL
};

#define MESSAGE_IS(table) \
	table ".server_key OPERATOR(pg_catalog.=) $1 AND " \
	table ".id OPERATOR(pg_catalog.=) $2"

static OutboxQuery outcome = {
	"SELECT EXISTS (SELECT FROM amqp_outbox.deferred d WHERE "
	MESSAGE_IS("d") "),"
	" (SELECT b.reason::pg_catalog.text FROM amqp_outbox.dead_letter_item b WHERE "
	MESSAGE_IS("b") "),"
	" (SELECT b.last_error FROM amqp_outbox.dead_letter_item b WHERE "
	MESSAGE_IS("b") "),"
	" (SELECT l.delivered_at IS NOT NULL FROM amqp_outbox.late l WHERE "
	MESSAGE_IS("l") "),"
	" EXISTS (SELECT FROM amqp_outbox.receipt r"
	" WHERE r.server_key OPERATOR(pg_catalog.=) $1"
	" AND r.through_id OPERATOR(pg_catalog.>=) $2)",
	2, {INT4OID, INT8OID}, NULL
};

PG_FUNCTION_INFO_V1(outbox_sql_wait_for_confirm);

static void
outbox_confirm_compare(TupleTableSlot *message, void *arg)
{
	OutboxWaited *waited = arg;
	bool		isnull;
	Datum		id = slot_getattr(message, OUTBOX_COL_MESSAGE_ID + 1, &isnull);

	if (strcmp(TextDatumGetCString(id), waited->message_id) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("message \"%s\" is not committed yet",
						waited->message_id),
				 errdetail("This transaction has published it, and nothing leaves before it commits."),
				 errhint("Commit, and wait in the next transaction.")));
}

/*
 * Names of the servers that the caller may publish to, and so may know of.  Who
 * may not publish at all must not even have the tables searched.
 */
static Datum
outbox_confirm_servers(void)
{
	List	   *servers = outbox_server_list();
	Datum	   *names = palloc((list_length(servers) + 1) * sizeof(Datum));
	int			n = 0;
	ListCell   *lc;

	foreach(lc, servers)
	{
		Name		name = palloc(NAMEDATALEN);

		if (outbox_server_aclcheck(lfirst_oid(lc), GetUserId()) == ACLCHECK_OK &&
			outbox_server_get_name(lfirst_oid(lc), name))
			names[n++] = NameGetDatum(name);
	}
	if (n == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to wait for messages"),
				 errdetail("Who may publish to a server may wait for its messages, and you may publish to none."),
				 errhint("GRANT USAGE ON FOREIGN SERVER ... is the right to publish.")));
	return PointerGetDatum(construct_array(names, n, NAMEOID, NAMEDATALEN,
										   false, TYPALIGN_CHAR));
}

/* Where the message stands; an error if it is not known. */
static void
outbox_confirm_find(OutboxWaited *waited, text *message_id)
{
	const OutboxRecent *recent = outbox_recent_find(PointerGetDatum(message_id));
	Datum		values[2];
	OutboxRow	row;

	waited->message_id = text_to_cstring(message_id);
	if (recent)
	{
		waited->server_key = recent->server_key;
		waited->id = recent->id;
		waited->serverid = recent->serverid;
		return;
	}
	values[0] = PointerGetDatum(message_id);
	values[1] = outbox_confirm_servers();
	if (!outbox_query_latest(&look_up, values, &row))
	{
		outbox_buffer_visit(outbox_confirm_compare, waited);
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("message \"%s\" is not known", waited->message_id),
				 errdetail("It was never published here, or to a server that you may not publish to, or its transaction is not committed, or it was delivered longer ago than amqp_outbox.retention.")));
	}
	waited->server_key = DatumGetInt32(row.values[0]);
	waited->id = DatumGetInt64(row.values[1]);
	waited->serverid =
		get_foreign_server_oid(NameStr(*DatumGetName(row.values[2])), true);
}

/* This session has published it, perhaps when it still might. */
static void
outbox_confirm_check_rights(const OutboxWaited *waited)
{
	NameData	name;

	if (!outbox_server_get_name(waited->serverid, &name))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the server of message \"%s\" does not exist any more",
						waited->message_id)));
	if (outbox_server_aclcheck(waited->serverid, GetUserId()) != ACLCHECK_OK)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_FOREIGN_SERVER, NameStr(name));
}

static void
outbox_confirm_dead(const OutboxWaited *waited, const OutboxRow *row)
{
	ereport(ERROR,
			(errcode(ERRCODE_FDW_ERROR),
			 errmsg("message \"%s\" is a dead letter: %s", waited->message_id,
					TextDatumGetCString(row->values[1])),
			 row->isnull[2] ? 0 :
			 errdetail_internal("%s", TextDatumGetCString(row->values[2])),
			 errhint("amqp_outbox.requeue() sends it again, amqp_outbox.discard() deletes it.")));
}

/* Whether it is confirmed by now; an error if it never will be. */
static bool
outbox_confirm_is_done(OutboxWaited *waited)
{
	Datum		values[2];
	OutboxRow	row;

	if (!waited->deferred &&
		outbox_registry_settled_through(MyDatabaseId, waited->serverid) <
		waited->id)
		return false;

	values[0] = Int32GetDatum(waited->server_key);
	values[1] = Int64GetDatum(waited->id);
	if (!outbox_query_latest(&outcome, values, &row))
		return false;
	waited->deferred = DatumGetBool(row.values[0]);
	if (waited->deferred)
		return false;
	if (!row.isnull[1])
		outbox_confirm_dead(waited, &row);
	if (!row.isnull[3] && !DatumGetBool(row.values[3]))
		ereport(ERROR,
				(errcode(ERRCODE_FDW_ERROR),
				 errmsg("message \"%s\" was discarded", waited->message_id)));
	return !row.isnull[3] || DatumGetBool(row.values[4]);
}

/* Milliseconds that are left; -1: no limit. */
static long
outbox_confirm_left(TimestampTz end)
{
	return end == 0 ? -1 :
		TimestampDifferenceMilliseconds(GetCurrentTimestamp(), end);
}

static bool
outbox_confirm_wait(OutboxWaited *waited, TimestampTz end)
{
	bool		done;
	long		left;

	outbox_registry_begin_wait(MyDatabaseId);
	/* the tables first: there may be no worker, or a new one */
	waited->deferred = true;
	while (!(done = outbox_confirm_is_done(waited)) &&
		   (left = outbox_confirm_left(end)) != 0)
		outbox_registry_wait(MyDatabaseId, left);
	outbox_registry_end_wait();
	return done;
}

Datum
outbox_sql_wait_for_confirm(PG_FUNCTION_ARGS)
{
	OutboxWaited waited = {0};
	TimestampTz end = 0;

	outbox_shared_require();
	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("amqp_wait_for_confirm() cannot be used during recovery"),
				 errhint("Wait on the primary, which publishes.")));
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("argument \"message_id\" of amqp_wait_for_confirm must not be null"),
				 errhint("Pass what amqp_publish() has returned.")));
	if (!PG_ARGISNULL(1))
		end = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
													  TimestampTzGetDatum(GetCurrentTimestamp()),
													  PG_GETARG_DATUM(1)));
	outbox_confirm_find(&waited, PG_GETARG_TEXT_PP(0));
	outbox_confirm_check_rights(&waited);
	PG_RETURN_BOOL(outbox_confirm_wait(&waited, end));
}

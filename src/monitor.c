/*-------------------------------------------------------------------------
 *
 * monitor.c
 *	  What the views show that no table holds, and the operators' functions.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "replication/logicalworker.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

#include "backlog.h"
#include "buffer.h"
#include "catalog.h"
#include "flush.h"
#include "horizon.h"
#include "leaf.h"
#include "registry.h"
#include "server.h"
#include "settings.h"
#include "shared.h"
#include "utility.h"

/* amqp_outbox.uncommitted() leaves the id of the outbox out. */
#define OUTBOX_UNCOMMITTED_COLUMNS	(OUTBOX_NBUFFERED_COLUMNS - 1)
#define OUTBOX_WORKER_COLUMNS		8
#define OUTBOX_HORIZON_COLUMNS		4
#define OUTBOX_BACKLOG_COLUMNS		8

PG_FUNCTION_INFO_V1(outbox_sql_uncommitted);
PG_FUNCTION_INFO_V1(outbox_sql_worker);
PG_FUNCTION_INFO_V1(outbox_sql_horizon);
PG_FUNCTION_INFO_V1(outbox_sql_backlog);
PG_FUNCTION_INFO_V1(outbox_sql_adopt);
PG_FUNCTION_INFO_V1(outbox_sql_ignore_replicated);
PG_FUNCTION_INFO_V1(outbox_sql_leaf);
PG_FUNCTION_INFO_V1(outbox_sql_wake);

static void
outbox_monitor_add_uncommitted(TupleTableSlot *message, void *arg)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) arg;
	NameData	name;

	slot_getallattrs(message);
	if (!outbox_server_get_name(DatumGetObjectId(message->tts_values[OUTBOX_COL_SERVER_KEY]),
								&name))
		namestrcpy(&name, "");

	/* the server's name in the place of the id, which is left out */
	message->tts_values[OUTBOX_COL_ID] = NameGetDatum(&name);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc,
						 message->tts_values + OUTBOX_COL_ID,
						 message->tts_isnull + OUTBOX_COL_ID);
}

Datum
outbox_sql_uncommitted(PG_FUNCTION_ARGS)
{
	InitMaterializedSRF(fcinfo, 0);
	Assert(((ReturnSetInfo *) fcinfo->resultinfo)->setDesc->natts ==
		   OUTBOX_UNCOMMITTED_COLUMNS);
	outbox_buffer_visit(outbox_monitor_add_uncommitted, fcinfo->resultinfo);
	return (Datum) 0;
}

static Datum
outbox_monitor_utf8_text(const char *utf8)
{
	return CStringGetTextDatum(pg_any_to_server(utf8, strlen(utf8), PG_UTF8));
}

static void
outbox_monitor_add_worker(ReturnSetInfo *rsinfo,
						  const OutboxWorkerStatus *status)
{
	Datum		values[OUTBOX_WORKER_COLUMNS];
	bool		isnull[OUTBOX_WORKER_COLUMNS] = {false};

	values[0] = ObjectIdGetDatum(status->serverid);
	values[1] = Int32GetDatum(status->pid);
	isnull[1] = status->pid == 0;
	values[2] = CStringGetTextDatum(outbox_worker_state_name(status->state));
	values[3] = TimestampTzGetDatum(status->since);
	values[4] = outbox_monitor_utf8_text(status->host);
	isnull[4] = status->host[0] == '\0';
	values[5] = Int32GetDatum(status->in_flight);
	values[6] = outbox_monitor_utf8_text(status->last_error);
	values[7] = TimestampTzGetDatum(status->last_error_at);
	isnull[6] = isnull[7] = status->last_error_at == 0;
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, isnull);
}

Datum
outbox_sql_worker(PG_FUNCTION_ARGS)
{
	OutboxWorkerStatus status;

	outbox_shared_require();
	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < outbox_max_workers; i++)
	{
		if (outbox_registry_status(i, &status) &&
			status.dboid == MyDatabaseId)
			outbox_monitor_add_worker((ReturnSetInfo *) fcinfo->resultinfo,
									  &status);
	}
	return (Datum) 0;
}

Datum
outbox_sql_horizon(PG_FUNCTION_ARGS)
{
	Datum		values[OUTBOX_HORIZON_COLUMNS];
	bool		isnull[OUTBOX_HORIZON_COLUMNS];
	OutboxHorizonStatus status;
	TupleDesc	tupdesc;

	outbox_shared_require();
	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	outbox_horizon_get_status(outbox_catalog_relid("outbox"), &status);
	values[0] = Int64GetDatum(status.next_id);
	values[1] = Int64GetDatum(status.horizon);
	isnull[0] = isnull[1] = status.next_id == 0;
	values[2] = Int32GetDatum(status.holder);
	values[3] = TimestampTzGetDatum(status.since);
	isnull[2] = isnull[3] = status.holder == 0;
	return HeapTupleGetDatum(heap_form_tuple(tupdesc, values, isnull));
}

Datum
outbox_sql_backlog(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	OutboxBacklogStatus *status;
	int			n;

	outbox_shared_require();
	InitMaterializedSRF(fcinfo, 0);
	status = outbox_backlog_status(&n);
	for (int i = 0; i < n; i++)
	{
		Datum		values[OUTBOX_BACKLOG_COLUMNS];
		bool		isnull[OUTBOX_BACKLOG_COLUMNS] = {false};
		NameData	name;

		if (!outbox_server_get_name(status[i].serverid, &name))
			continue;			/* its worker is about to leave */
		values[0] = NameGetDatum(&name);
		values[1] = NameGetDatum(&status[i].role);
		isnull[1] = NameStr(status[i].role)[0] == '\0';
		values[2] = Int64GetDatum(status[i].waiting.messages);
		values[3] = Int64GetDatum(status[i].waiting.bytes);
		values[4] = Int64GetDatum(status[i].reserved.messages);
		values[5] = Int64GetDatum(status[i].reserved.bytes);
		values[6] = TimestampTzGetDatum(status[i].counted_at);
		isnull[6] = status[i].counted_at == 0;
		values[7] = BoolGetDatum(status[i].counting);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values,
							 isnull);
	}
	return (Datum) 0;
}

/*
 * A copy's rows came with a restore, perhaps after the counter was set, so it
 * is raised beyond them.  Errors: 42501 for anybody but a superuser.
 */
Datum
outbox_sql_adopt(PG_FUNCTION_ARGS)
{
	int64		next_id;
	int			leaf;

	outbox_shared_require();
	PreventCommandIfReadOnly("amqp_outbox.adopt()");
	if (!superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be superuser to adopt a database's messages")));
	outbox_catalog_adopt();
	next_id = outbox_catalog_next_id(&leaf);
	outbox_horizon_raise(outbox_catalog_relid("outbox"), next_id,
						 outbox_leaf_guess(leaf));
	outbox_utility_note_change();
	PG_RETURN_VOID();
}

/*
 * Is it logical replication that writes, and not a statement of ours within its
 * process, which runs below a trigger there?  A restore may have set
 * session_replication_role, or enabled the trigger for everybody.
 */
static bool
outbox_monitor_is_replicated(void)
{
	return IsLogicalWorker() &&
		DatumGetInt32(DirectFunctionCall1(pg_trigger_depth, (Datum) 0)) <= 1;
}

/*
 * ENABLE REPLICA triggers: a row goes nowhere.  A TRUNCATE can only be refused,
 * and must be, because it would take messages that were published here.
 */
Datum
outbox_sql_ignore_replicated(PG_FUNCTION_ARGS)
{
	TriggerData *data;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("amqp_outbox.ignore_replicated() is a trigger function")));
	data = (TriggerData *) fcinfo->context;
	if (!outbox_monitor_is_replicated())
		return PointerGetDatum(TRIGGER_FIRED_BY_UPDATE(data->tg_event) ?
							   data->tg_newtuple : data->tg_trigtuple);
	if (TRIGGER_FIRED_BY_TRUNCATE(data->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot replicate TRUNCATE to the tables of amqp_outbox"),
				 errhint("Leave them out of the publication, or skip this transaction with ALTER SUBSCRIPTION ... SKIP.")));
	return PointerGetDatum(NULL);
}

Datum
outbox_sql_leaf(PG_FUNCTION_ARGS)
{
	Oid			relid = outbox_catalog_relid("outbox");

	outbox_shared_require();
	outbox_flush_seed_counter(relid);
	PG_RETURN_INT32(outbox_leaf_hold(relid));
}

/* Takes effect at commit, like all that the workers shall hear of. */
Datum
outbox_sql_wake(PG_FUNCTION_ARGS)
{
	outbox_shared_require();
	outbox_utility_note_change();
	outbox_utility_note_topology(true);
	PG_RETURN_VOID();
}

/*-------------------------------------------------------------------------
 *
 * insert.c
 *	  INSERT into amqp_outbox.message, for those who can only insert.
 *
 * A trigger of the view, so that COPY works too.  The row goes the same way as
 * a call of amqp_publish(), with the same checks; whoever inserts needs the
 * right to publish, USAGE on the server, and no other one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/rel.h"

#include "enqueue.h"

/* The columns of the view, in the order of the install script. */
enum OutboxInsertColumn
{
	INSERT_SERVER,
	INSERT_ID,
	INSERT_MESSAGE_ID,
	INSERT_STATUS,
	INSERT_EXCHANGE,
	INSERT_ROUTING_KEY,
	INSERT_BODY,
	INSERT_HEADERS,
	INSERT_CONTENT_TYPE,
	INSERT_CONTENT_ENCODING,
	INSERT_PERSISTENT,
	INSERT_PRIORITY,
	INSERT_CORRELATION_ID,
	INSERT_REPLY_TO,
	INSERT_EXPIRATION,
	INSERT_MESSAGE_TIMESTAMP,
	INSERT_TYPE,
	INSERT_USER_ID,
	INSERT_APP_ID,
	INSERT_MANDATORY,
	INSERT_ORDERING_KEY,
	INSERT_EXPIRES_AT,
	INSERT_ENQUEUED_AT,
	INSERT_DUE_AT,
	INSERT_DELIVERED_AT,
	INSERT_ATTEMPTS,
	INSERT_LAST_ERROR,
	INSERT_BODY_TEXT,
	INSERT_BODY_JSON,
	INSERT_IDEMPOTENCY_KEY,
	INSERT_NCOLUMNS
};

/* What becomes of the columns that need no thought. */
static const struct
{
	int			from;
	int			to;
	bool		toast;
}			copied[] =

{
	{INSERT_MESSAGE_ID, OUTBOX_COL_MESSAGE_ID, true},
	{INSERT_EXCHANGE, OUTBOX_COL_EXCHANGE, true},
	{INSERT_ROUTING_KEY, OUTBOX_COL_ROUTING_KEY, true},
	{INSERT_CONTENT_TYPE, OUTBOX_COL_CONTENT_TYPE, true},
	{INSERT_CONTENT_ENCODING, OUTBOX_COL_CONTENT_ENCODING, true},
	{INSERT_PERSISTENT, OUTBOX_COL_PERSISTENT, false},
	{INSERT_CORRELATION_ID, OUTBOX_COL_CORRELATION_ID, true},
	{INSERT_REPLY_TO, OUTBOX_COL_REPLY_TO, true},
	{INSERT_MESSAGE_TIMESTAMP, OUTBOX_COL_MESSAGE_TIMESTAMP, false},
	{INSERT_TYPE, OUTBOX_COL_TYPE, true},
	{INSERT_USER_ID, OUTBOX_COL_USER_ID, true},
	{INSERT_APP_ID, OUTBOX_COL_APP_ID, true},
	{INSERT_MANDATORY, OUTBOX_COL_MANDATORY, false},
	{INSERT_ORDERING_KEY, OUTBOX_COL_ORDERING_KEY, true},
	{INSERT_EXPIRES_AT, OUTBOX_COL_EXPIRES_AT, false},
	{INSERT_DUE_AT, OUTBOX_BUFFERED_COL_DUE_AT, false},
};

static const int only_read[] = {
	INSERT_ID, INSERT_STATUS, INSERT_ENQUEUED_AT, INSERT_DELIVERED_AT,
	INSERT_ATTEMPTS, INSERT_LAST_ERROR
};

PG_FUNCTION_INFO_V1(outbox_sql_insert_message);

static const char *
outbox_insert_column_name(TupleDesc tupdesc, int column)
{
	return NameStr(TupleDescAttr(tupdesc, column)->attname);
}

static void
outbox_insert_check(TupleDesc tupdesc, const bool *isnull)
{
	static const int required[] = {INSERT_EXCHANGE, INSERT_ROUTING_KEY};
	int			bodies = !isnull[INSERT_BODY] + !isnull[INSERT_BODY_TEXT] +
		!isnull[INSERT_BODY_JSON];

	for (int i = 0; i < (int) lengthof(only_read); i++)
		if (!isnull[only_read[i]])
			ereport(ERROR,
					(errcode(ERRCODE_GENERATED_ALWAYS),
					 errmsg("column \"%s\" of amqp_outbox.message cannot be set",
							outbox_insert_column_name(tupdesc, only_read[i])),
					 errdetail("It says what becomes of the message."),
					 errhint("Leave it out, or insert null.")));
	for (int i = 0; i < (int) lengthof(required); i++)
		if (isnull[required[i]])
			ereport(ERROR,
					(errcode(ERRCODE_NOT_NULL_VIOLATION),
					 errmsg("column \"%s\" of amqp_outbox.message must not be null",
							outbox_insert_column_name(tupdesc, required[i])),
					 errhint("An empty string names the default exchange, or is no routing key.")));
	if (bodies != 1)
		ereport(ERROR,
				(errcode(bodies == 0 ? ERRCODE_NOT_NULL_VIOLATION :
						 ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a row of amqp_outbox.message needs one body"),
				 errhint("Insert one of body (bytea), body_text (text) and body_json (jsonb).")));
}

static void
outbox_insert_body(OutboxDraft *draft, const Datum *values, const bool *isnull)
{
	char	   *str;

	if (!isnull[INSERT_BODY])
	{
		outbox_draft_set(draft, OUTBOX_COL_BODY,
						 PointerGetDatum(PG_DETOAST_DATUM_PACKED(values[INSERT_BODY])));
		draft->content_type = "application/octet-stream";
		return;
	}
	if (!isnull[INSERT_BODY_JSON])
	{
		Jsonb	   *jsonb = DatumGetJsonbP(values[INSERT_BODY_JSON]);

		str = JsonbToCString(NULL, &jsonb->root, VARSIZE(jsonb));
		draft->content_type = "application/json";
	}
	else
	{
		str = TextDatumGetCString(values[INSERT_BODY_TEXT]);
		draft->content_type = "text/plain";
		draft->content_encoding = "UTF-8";
	}
	outbox_draft_set_body_text(draft, str, strlen(str));
}

/* Returns the message id. */
static Datum
outbox_insert_row(TupleDesc tupdesc, const Datum *values, const bool *isnull)
{
	OutboxDraft draft;

	outbox_insert_check(tupdesc, isnull);
	outbox_draft_init(&draft, "amqp_outbox.message", "column");
	for (int i = 0; i < (int) lengthof(copied); i++)
		if (!isnull[copied[i].from])
			outbox_draft_set(&draft, copied[i].to, !copied[i].toast ?
							 values[copied[i].from] :
							 PointerGetDatum(PG_DETOAST_DATUM_PACKED(values[copied[i].from])));
	outbox_insert_body(&draft, values, isnull);
	if (!isnull[INSERT_HEADERS])
		outbox_draft_set(&draft, OUTBOX_COL_HEADERS,
						 JsonbPGetDatum(DatumGetJsonbP(values[INSERT_HEADERS])));
	if (!isnull[INSERT_PRIORITY])
		outbox_draft_set_priority(&draft, DatumGetInt16(values[INSERT_PRIORITY]));
	if (!isnull[INSERT_EXPIRATION])
		outbox_draft_set_expiration(&draft,
									DatumGetIntervalP(values[INSERT_EXPIRATION]));
	if (!isnull[INSERT_IDEMPOTENCY_KEY])
		draft.idempotency_key =
			DatumGetTextPP(values[INSERT_IDEMPOTENCY_KEY]);
	if (!isnull[INSERT_SERVER])
		draft.server = NameStr(*DatumGetName(values[INSERT_SERVER]));
	return outbox_enqueue(&draft);
}

/* The trigger of the view. */
Datum
outbox_sql_insert_message(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	TupleDesc	tupdesc;
	Datum		values[INSERT_NCOLUMNS];
	bool		isnull[INSERT_NCOLUMNS];

	if (!CALLED_AS_TRIGGER(fcinfo) ||
		!TRIGGER_FIRED_INSTEAD(trigger->tg_event) ||
		!TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"insert_message\" is the trigger of amqp_outbox.message")));
	tupdesc = RelationGetDescr(trigger->tg_relation);
	if (tupdesc->natts != INSERT_NCOLUMNS)
		elog(ERROR, "view \"%s\" has an unexpected shape",
			 RelationGetRelationName(trigger->tg_relation));

	outbox_enqueue_precheck("INSERT");
	heap_deform_tuple(trigger->tg_trigtuple, tupdesc, values, isnull);
	values[INSERT_MESSAGE_ID] = outbox_insert_row(tupdesc, values, isnull);
	isnull[INSERT_MESSAGE_ID] = false;
	return PointerGetDatum(heap_form_tuple(tupdesc, values, isnull));
}

/*-------------------------------------------------------------------------
 *
 * publish.c
 *	  amqp_publish(): from the arguments of the SQL function to a message.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "enqueue.h"

/* The arguments of amqp_publish(), in the order of the install script. */
enum OutboxArgument
{
	ARG_EXCHANGE,
	ARG_ROUTING_KEY,
	ARG_BODY,
	ARG_HEADERS,
	ARG_CONTENT_TYPE,
	ARG_CONTENT_ENCODING,
	ARG_PERSISTENT,
	ARG_PRIORITY,
	ARG_CORRELATION_ID,
	ARG_REPLY_TO,
	ARG_EXPIRATION,
	ARG_MESSAGE_ID,
	ARG_MESSAGE_TIMESTAMP,
	ARG_TYPE,
	ARG_USER_ID,
	ARG_APP_ID,
	ARG_MANDATORY,
	ARG_SERVER,
	ARG_ORDERING_KEY,
	ARG_DELAY,
	ARG_DELIVER_AT,
	ARG_TTL,
	ARG_IDEMPOTENCY_KEY,
	ARG_TRACEPARENT,
	ARG_TRACESTATE
};

/* Arguments that go into a column as they are. */
static const struct
{
	int			arg;
	int			column;
}			texts[] =

{
	{ARG_EXCHANGE, OUTBOX_COL_EXCHANGE},
	{ARG_ROUTING_KEY, OUTBOX_COL_ROUTING_KEY},
	{ARG_CONTENT_TYPE, OUTBOX_COL_CONTENT_TYPE},
	{ARG_CONTENT_ENCODING, OUTBOX_COL_CONTENT_ENCODING},
	{ARG_CORRELATION_ID, OUTBOX_COL_CORRELATION_ID},
	{ARG_REPLY_TO, OUTBOX_COL_REPLY_TO},
	{ARG_MESSAGE_ID, OUTBOX_COL_MESSAGE_ID},
	{ARG_TYPE, OUTBOX_COL_TYPE},
	{ARG_USER_ID, OUTBOX_COL_USER_ID},
	{ARG_APP_ID, OUTBOX_COL_APP_ID},
	{ARG_ORDERING_KEY, OUTBOX_COL_ORDERING_KEY},
},			scalars[] =

{
	{ARG_PERSISTENT, OUTBOX_COL_PERSISTENT},
	{ARG_MANDATORY, OUTBOX_COL_MANDATORY},
	{ARG_MESSAGE_TIMESTAMP, OUTBOX_COL_MESSAGE_TIMESTAMP},
	{ARG_DELIVER_AT, OUTBOX_BUFFERED_COL_DUE_AT},
};

PG_FUNCTION_INFO_V1(outbox_sql_publish_jsonb);
PG_FUNCTION_INFO_V1(outbox_sql_publish_json);
PG_FUNCTION_INFO_V1(outbox_sql_publish_text);
PG_FUNCTION_INFO_V1(outbox_sql_publish_bytea);

static void
outbox_publish_require(FunctionCallInfo fcinfo, int arg, const char *name,
					   const char *hint)
{
	if (PG_ARGISNULL(arg))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("argument \"%s\" of amqp_publish must not be null",
						name),
				 errhint("%s", hint)));
}

/* Begin a draft; what can be said before the body is looked at. */
static void
outbox_publish_begin(FunctionCallInfo fcinfo, OutboxDraft *draft)
{
	outbox_enqueue_precheck("amqp_publish()");
	outbox_publish_require(fcinfo, ARG_EXCHANGE, "exchange",
						   "The empty string names the default exchange, which routes to the queue that the routing key names.");
	outbox_publish_require(fcinfo, ARG_ROUTING_KEY, "routing_key",
						   "Pass an empty string for an exchange that ignores it.");
	outbox_publish_require(fcinfo, ARG_BODY, "body",
						   "Pass an empty string for a message without content.");
	outbox_draft_init(draft, "amqp_publish", "argument");
}

/* The other arguments, and off it goes. */
static Datum
outbox_publish(FunctionCallInfo fcinfo, OutboxDraft *draft)
{
	for (int i = 0; i < (int) lengthof(texts); i++)
		if (!PG_ARGISNULL(texts[i].arg))
			outbox_draft_set(draft, texts[i].column,
							 PointerGetDatum(PG_GETARG_TEXT_PP(texts[i].arg)));
	for (int i = 0; i < (int) lengthof(scalars); i++)
		if (!PG_ARGISNULL(scalars[i].arg))
			outbox_draft_set(draft, scalars[i].column,
							 PG_GETARG_DATUM(scalars[i].arg));
	if (!PG_ARGISNULL(ARG_HEADERS))
		outbox_draft_set(draft, OUTBOX_COL_HEADERS,
						 JsonbPGetDatum(PG_GETARG_JSONB_P(ARG_HEADERS)));
	if (!PG_ARGISNULL(ARG_PRIORITY))
		outbox_draft_set_priority(draft, PG_GETARG_INT32(ARG_PRIORITY));
	if (!PG_ARGISNULL(ARG_EXPIRATION))
		outbox_draft_set_expiration(draft,
									PG_GETARG_INTERVAL_P(ARG_EXPIRATION));
	if (!PG_ARGISNULL(ARG_DELAY))
		draft->delay = PG_GETARG_INTERVAL_P(ARG_DELAY);
	if (!PG_ARGISNULL(ARG_TTL))
		draft->ttl = PG_GETARG_INTERVAL_P(ARG_TTL);
	if (!PG_ARGISNULL(ARG_IDEMPOTENCY_KEY))
		draft->idempotency_key = PG_GETARG_TEXT_PP(ARG_IDEMPOTENCY_KEY);
	if (!PG_ARGISNULL(ARG_TRACEPARENT))
		draft->traceparent = text_to_cstring(PG_GETARG_TEXT_PP(ARG_TRACEPARENT));
	if (!PG_ARGISNULL(ARG_TRACESTATE))
		draft->tracestate = text_to_cstring(PG_GETARG_TEXT_PP(ARG_TRACESTATE));
	if (!PG_ARGISNULL(ARG_SERVER))
		draft->server = text_to_cstring(PG_GETARG_TEXT_PP(ARG_SERVER));
	PG_RETURN_DATUM(outbox_enqueue(draft));
}

Datum
outbox_sql_publish_jsonb(PG_FUNCTION_ARGS)
{
	OutboxDraft draft;
	Jsonb	   *jsonb;
	char	   *str;

	outbox_publish_begin(fcinfo, &draft);
	draft.content_type = "application/json";
	jsonb = PG_GETARG_JSONB_P(ARG_BODY);
	str = JsonbToCString(NULL, &jsonb->root, VARSIZE(jsonb));
	outbox_draft_set_body_text(&draft, str, strlen(str));
	return outbox_publish(fcinfo, &draft);
}

static void
outbox_publish_text_body(FunctionCallInfo fcinfo, OutboxDraft *draft)
{
	text	   *t = PG_GETARG_TEXT_PP(ARG_BODY);

	/* in UTF-8 the bytes of a text are the body as they stand */
	if (GetDatabaseEncoding() == PG_UTF8)
		outbox_draft_set(draft, OUTBOX_COL_BODY, PointerGetDatum(t));
	else
	{
		char	   *str = text_to_cstring(t);

		outbox_draft_set_body_text(draft, str, strlen(str));
	}
}

Datum
outbox_sql_publish_json(PG_FUNCTION_ARGS)
{
	OutboxDraft draft;

	outbox_publish_begin(fcinfo, &draft);
	draft.content_type = "application/json";
	outbox_publish_text_body(fcinfo, &draft);
	return outbox_publish(fcinfo, &draft);
}

Datum
outbox_sql_publish_text(PG_FUNCTION_ARGS)
{
	OutboxDraft draft;

	outbox_publish_begin(fcinfo, &draft);
	draft.content_type = "text/plain";
	draft.content_encoding = "UTF-8";
	outbox_publish_text_body(fcinfo, &draft);
	return outbox_publish(fcinfo, &draft);
}

Datum
outbox_sql_publish_bytea(PG_FUNCTION_ARGS)
{
	OutboxDraft draft;

	outbox_publish_begin(fcinfo, &draft);
	draft.content_type = "application/octet-stream";
	outbox_draft_set(&draft, OUTBOX_COL_BODY,
					 PointerGetDatum(PG_GETARG_BYTEA_PP(ARG_BODY)));
	return outbox_publish(fcinfo, &draft);
}

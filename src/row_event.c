/*-------------------------------------------------------------------------
 *
 * row_event.c
 *	  A changed row as a CloudEvent of version 1.0.
 *
 * The AMQP binding of CloudEvents speaks of the application properties of AMQP
 * 1.0; these are what RabbitMQ makes of the headers of AMQP 0-9-1.  Of the two
 * prefixes that the binding allows, it prefers "cloudEvents_", which JMS can
 * name in its selectors, and asks receivers to understand both
 * (amqp-protocol-binding.md, section 3.1.3.1).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "commands/dbcommands.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/jsonb.h"

#include "row_body.h"
#include "row_event.h"

#define OUTBOX_CLOUDEVENT_PREFIX	"cloudEvents_"

/* Replace the control characters, which CloudEvents forbids in its strings. */
static char *
outbox_row_printable(char *str)
{
	for (unsigned char *s = (unsigned char *) str; *s != '\0'; s++)
	{
		if (*s < 0x20 || *s == 0x7f)
			*s = '_';
		else if (GetDatabaseEncoding() == PG_UTF8 && s[0] == 0xc2 &&
				 s[1] >= 0x80 && s[1] < 0xa0)
			s[0] = s[1] = '_';
	}
	return str;
}

/* /database/schema/table; no name changes while the plan is valid. */
static const char *
outbox_row_default_source(OutboxRowPlan *plan)
{
	StringInfoData out;
	MemoryContext old_context;

	if (plan->default_source != NULL)
		return plan->default_source;
	initStringInfo(&out);
	appendStringInfoChar(&out, '/');
	outbox_row_append_uri(&out, get_database_name(MyDatabaseId));
	appendStringInfoChar(&out, '/');
	outbox_row_append_uri(&out, plan->schema);
	appendStringInfoChar(&out, '/');
	outbox_row_append_uri(&out, plan->table);
	old_context = MemoryContextSwitchTo(plan->context);
	plan->default_source = pstrdup(out.data);
	MemoryContextSwitchTo(old_context);
	return plan->default_source;
}

/* Two attributes must be there, so a template must not come out empty. */
static char *
outbox_row_required(Datum value, const char *name)
{
	char	   *str = TextDatumGetCString(value);

	if (*str == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("attribute \"%s\" of the CloudEvent is empty", name),
				 errdetail("Every CloudEvent has one, and the values in the option's template are empty."),
				 errhint("Put text around them, or give the options null_word and empty_word.")));
	return str;
}

void
outbox_row_event(const OutboxRowChange *change, Datum id, const char *key,
				 OutboxCloudEvent *event)
{
	OutboxRowPlan *plan = change->plan;
	char	   *type;

	event->id = TextDatumGetCString(id);
	event->time = outbox_row_time();
	if (plan->source.template != NULL)
		event->source =
			outbox_row_required(outbox_row_text(change, &plan->source,
												OUTBOX_QUOTE_URI),
								"source");
	else
		event->source = outbox_row_default_source(plan);
	if (plan->type.template != NULL)
		type = outbox_row_required(outbox_row_text(change, &plan->type,
												   OUTBOX_QUOTE_NOTHING),
								   "type");
	else
		type = psprintf("%s.%s.%s", plan->schema, plan->table,
						outbox_row_op_names[change->op]);
	event->type = outbox_row_printable(type);
	event->subject = key;
	if (plan->subject.template != NULL)
		event->subject = outbox_row_render(change, plan->subject.template,
										   OUTBOX_QUOTE_NOTHING);
	if (event->subject != NULL)
		event->subject = event->subject[0] == '\0' ? NULL :
			outbox_row_printable(pstrdup(event->subject));
}

static void
outbox_row_push_header(JsonbParseState **state, const char *name,
					   const char *value)
{
	JsonbValue	v;

	if (value == NULL)
		return;
	v.type = jbvString;
	v.val.string.val = psprintf(OUTBOX_CLOUDEVENT_PREFIX "%s", name);
	v.val.string.len = strlen(v.val.string.val);
	pushJsonbValue(state, WJB_KEY, &v);
	v.val.string.val = unconstify(char *, value);
	v.val.string.len = strlen(value);
	pushJsonbValue(state, WJB_VALUE, &v);
}

/* The option's headers and the attributes, which win. */
Datum
outbox_row_event_headers(const OutboxRowChange *change,
						 const OutboxCloudEvent *event)
{
	Jsonb	   *headers = change->plan->options->headers;
	JsonbParseState *state = NULL;

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	if (headers != NULL)
	{
		JsonbIterator *it = JsonbIteratorInit(&headers->root);
		JsonbIteratorToken token;
		JsonbValue	v;

		(void) JsonbIteratorNext(&it, &v, true);
		while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_END_OBJECT)
			pushJsonbValue(&state, token, &v);
	}
	outbox_row_push_header(&state, "specversion", "1.0");
	outbox_row_push_header(&state, "id", event->id);
	outbox_row_push_header(&state, "source", event->source);
	outbox_row_push_header(&state, "type", event->type);
	outbox_row_push_header(&state, "subject", event->subject);
	outbox_row_push_header(&state, "time", event->time);
	return JsonbPGetDatum(JsonbValueToJsonb(pushJsonbValue(&state,
														   WJB_END_OBJECT,
														   NULL)));
}

/* A member that is not the first. */
static void
outbox_row_member(StringInfo out, const char *name, const char *value)
{
	if (value == NULL)
		return;
	appendStringInfo(out, ",\"%s\":", name);
	escape_json(out, value);
}

void
outbox_row_json_event(StringInfo out, const OutboxRowChange *change,
					  const OutboxCloudEvent *event)
{
	appendStringInfoString(out, "{\"specversion\":\"1.0\"");
	outbox_row_member(out, "id", event->id);
	outbox_row_member(out, "source", event->source);
	outbox_row_member(out, "type", event->type);
	outbox_row_member(out, "subject", event->subject);
	outbox_row_member(out, "time", event->time);
	if (change->plan->options->body != OUTBOX_BODY_NONE)
	{
		outbox_row_member(out, "datacontenttype", "application/json");
		appendStringInfoString(out, ",\"data\":");
		outbox_row_json_body(out, change);
	}
	appendStringInfoChar(out, '}');
}

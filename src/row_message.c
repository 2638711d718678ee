/*-------------------------------------------------------------------------
 *
 * row_message.c
 *	  One change of a row as a message.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

#include "enqueue.h"
#include "row_body.h"
#include "row_event.h"
#include "row_message.h"
#include "server.h"

/* In UTF-8 what was written is the bytea, with its length word. */
static void
outbox_row_set_body(OutboxDraft *draft, StringInfo body)
{
	if (GetDatabaseEncoding() == PG_UTF8)
	{
		SET_VARSIZE(body->data, body->len);
		outbox_draft_set(draft, OUTBOX_COL_BODY, PointerGetDatum(body->data));
	}
	else
		outbox_draft_set_body_text(draft, body->data + VARHDRSZ,
								   body->len - VARHDRSZ);
}

static void
outbox_row_set_content(OutboxDraft *draft, const OutboxRowChange *change,
					   const char *key)
{
	const OutboxRowOptions *options = change->plan->options;
	StringInfoData body;
	OutboxCloudEvent event = {0};

	if (options->cloudevents != OUTBOX_CLOUDEVENTS_NONE)
		outbox_row_event(change, outbox_draft_make_id(draft), key, &event);
	if (options->cloudevents == OUTBOX_CLOUDEVENTS_BINARY)
		outbox_draft_set(draft, OUTBOX_COL_HEADERS,
						 outbox_row_event_headers(change, &event));

	initStringInfo(&body);
	appendStringInfoSpaces(&body, VARHDRSZ);
	if (options->content_type != NULL)
		outbox_draft_set(draft, OUTBOX_COL_CONTENT_TYPE,
						 CStringGetTextDatum(options->content_type));
	if (options->cloudevents == OUTBOX_CLOUDEVENTS_STRUCTURED)
	{
		outbox_row_json_event(&body, change, &event);
		draft->content_type = "application/cloudevents+json; charset=UTF-8";
	}
	else if (options->body != OUTBOX_BODY_NONE)
	{
		outbox_row_json_body(&body, change);
		draft->content_type = "application/json";
	}
	outbox_row_set_body(draft, &body);
}

/* What the options say of every message. */
static void
outbox_row_set_properties(OutboxDraft *draft, const OutboxRowChange *change)
{
	OutboxRowPlan *plan = change->plan;
	const OutboxRowOptions *options = plan->options;

	draft->serverid = change->serverid;
	outbox_draft_set(draft, OUTBOX_COL_EXCHANGE,
					 outbox_row_text(change, &plan->exchange,
									 OUTBOX_QUOTE_NOTHING));
	outbox_draft_set(draft, OUTBOX_COL_ROUTING_KEY,
					 outbox_row_text(change, &plan->routing_key,
									 OUTBOX_QUOTE_WORD));
	if (plan->type.template != NULL)
		outbox_draft_set(draft, OUTBOX_COL_TYPE,
						 outbox_row_text(change, &plan->type,
										 OUTBOX_QUOTE_NOTHING));
	if (options->headers != NULL)
		outbox_draft_set(draft, OUTBOX_COL_HEADERS,
						 JsonbPGetDatum(options->headers));
	if (options->app_id != NULL)
		outbox_draft_set(draft, OUTBOX_COL_APP_ID,
						 CStringGetTextDatum(options->app_id));
	if (options->persistent >= 0)
		outbox_draft_set(draft, OUTBOX_COL_PERSISTENT,
						 BoolGetDatum(options->persistent));
	if (options->mandatory >= 0)
		outbox_draft_set(draft, OUTBOX_COL_MANDATORY,
						 BoolGetDatum(options->mandatory));
	if (options->priority >= 0)
		outbox_draft_set_priority(draft, options->priority);
	if (options->expiration != NULL)
		outbox_draft_set_expiration(draft, options->expiration);
}

void
outbox_row_publish(OutboxRowChange *change)
{
	OutboxDraft draft;
	char	   *key;

	if (change->op == OUTBOX_ROW_UPDATE &&
		change->plan->options->skip_unchanged && !outbox_row_changed(change))
		return;

	if (!OidIsValid(change->serverid))
		change->serverid = outbox_server_choose(change->plan->options->server);
	outbox_draft_init(&draft, "amqp_publish_row", "property");
	draft.now = change->now;
	outbox_row_set_properties(&draft, change);
	key = change->plan->nkeys > 0 ? outbox_row_key(change) : NULL;
	if (key != NULL)
		outbox_draft_set(&draft, OUTBOX_COL_ORDERING_KEY,
						 CStringGetTextDatum(key));
	outbox_row_set_content(&draft, change, key);
	(void) outbox_enqueue(&draft);
}

/*-------------------------------------------------------------------------
 *
 * row_body.c
 *	  What is made of a changed row as JSON: bodies.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "utils/date.h"
#include "utils/datetime.h"
#include "utils/datum.h"
#include "utils/json.h"

#include "row_body.h"

static void
outbox_row_json(StringInfo out, const OutboxRowChange *change,
				TupleTableSlot *row)
{
	const OutboxRowPlan *plan = change->plan;
	bool		first = true;

	if (row == NULL)
	{
		appendStringInfoString(out, "null");
		return;
	}
	for (int i = 0; i < plan->ncolumns; i++)
	{
		const OutboxRowColumn *column = &plan->columns[i];

		if (!column->in_body)
			continue;
		outbox_append(out, column->json_name, column->json_name_len);
		if (first)
			out->data[out->len - column->json_name_len] = '{';
		first = false;
		if (row->tts_isnull[i])
			outbox_append(out, "null", 4);
		else
			outbox_json_append(out, column->json, row->tts_values[i]);
	}
	if (first)
		appendStringInfoChar(out, '{');
	appendStringInfoCharMacro(out, '}');
}

/* Whether an UPDATE changed the stored value of a column. */
static bool
outbox_row_differs(const OutboxRowChange *change, int i)
{
	const OutboxRowColumn *column = &change->plan->columns[i];
	TupleTableSlot *old_row = change->old_row;
	TupleTableSlot *new_row = change->new_row;

	if (old_row->tts_isnull[i] || new_row->tts_isnull[i])
		return old_row->tts_isnull[i] != new_row->tts_isnull[i];
	return !datum_image_eq(old_row->tts_values[i], new_row->tts_values[i],
						   column->byval, column->len);
}

bool
outbox_row_changed(const OutboxRowChange *change)
{
	for (int i = 0; i < change->plan->ncolumns; i++)
		if (change->plan->columns[i].watched && outbox_row_differs(change, i))
			return true;
	return false;
}

/* The names of the columns in the body that an UPDATE changed. */
static void
outbox_row_json_changed(StringInfo out, const OutboxRowChange *change)
{
	bool		first = true;

	if (change->op != OUTBOX_ROW_UPDATE)
	{
		appendStringInfoString(out, "null");
		return;
	}
	appendStringInfoChar(out, '[');
	for (int i = 0; i < change->plan->ncolumns; i++)
	{
		const OutboxRowColumn *column = &change->plan->columns[i];

		if (!column->in_body || !outbox_row_differs(change, i))
			continue;
		if (!first)
			appendStringInfoChar(out, ',');
		first = false;
		escape_json(out, column->name);
	}
	appendStringInfoChar(out, ']');
}

const char *
outbox_row_time(void)
{
	static TimestampTz formatted = 0;
	static char result[MAXDATELEN + 1];
	TimestampTz time = GetCurrentStatementStartTimestamp();
	int			utc = 0;

	if (time != formatted || result[0] == '\0')
	{
		JsonEncodeDateTime(result, TimestampTzGetDatum(time), TIMESTAMPTZOID,
						   &utc);
		formatted = time;
	}
	return result;
}

static void
outbox_row_json_envelope(StringInfo out, const OutboxRowChange *change)
{
	appendStringInfo(out, "{\"op\":\"%s\",\"schema\":",
					 outbox_row_op_names[change->op]);
	escape_json(out, change->plan->schema);
	appendStringInfoString(out, ",\"table\":");
	escape_json(out, change->plan->table);
	appendStringInfoString(out, ",\"old\":");
	outbox_row_json(out, change, change->old_row);
	appendStringInfoString(out, ",\"new\":");
	outbox_row_json(out, change, change->new_row);
	appendStringInfoString(out, ",\"changed\":");
	outbox_row_json_changed(out, change);
	/* as to_json(pg_current_xact_id()): too large for some readers' numbers */
	appendStringInfo(out, ",\"txid\":\"" UINT64_FORMAT "\",\"time\":\"%s\"}",
					 U64FromFullTransactionId(GetTopFullTransactionId()),
					 outbox_row_time());
}

void
outbox_row_json_body(StringInfo out, const OutboxRowChange *change)
{
	if (change->plan->options->body == OUTBOX_BODY_ENVELOPE)
		outbox_row_json_envelope(out, change);
	else
		outbox_row_json(out, change, outbox_row_subject(change));
}

/*-------------------------------------------------------------------------
 *
 * row_text.c
 *	  What is made of a changed row as text: routing keys and the like.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"

#include "row_text.h"

/* The text of a column, NULL if it or the row is null. */
static char *
outbox_row_value(const OutboxRowChange *change, TupleTableSlot *row, int column)
{
	if (row == NULL || row->tts_isnull[column])
		return NULL;
	return OutputFunctionCall(change->plan->columns[column].output,
							  row->tts_values[column]);
}

TupleTableSlot *
outbox_row_subject(const OutboxRowChange *change)
{
	return change->op == OUTBOX_ROW_DELETE ? change->old_row : change->new_row;
}

static const char *
outbox_row_part(const OutboxRowChange *change, const OutboxTemplatePart *part)
{
	switch (part->kind)
	{
		case OUTBOX_TEMPLATE_LITERAL:
			break;
		case OUTBOX_TEMPLATE_OP:
			return outbox_row_op_names[change->op];
		case OUTBOX_TEMPLATE_SCHEMA:
			return change->plan->schema;
		case OUTBOX_TEMPLATE_TABLE:
			return change->plan->table;
		case OUTBOX_TEMPLATE_COLUMN:
			return outbox_row_value(change, outbox_row_subject(change),
									part->column);
		case OUTBOX_TEMPLATE_OLD_COLUMN:
			return outbox_row_value(change, change->old_row, part->column);
		case OUTBOX_TEMPLATE_NEW_COLUMN:
			return outbox_row_value(change, change->new_row, part->column);
	}
	return part->text;
}

/* A dot in a value would make two words of it. */
static void
outbox_row_append_word(StringInfo out, const char *value)
{
	int			start = out->len;

	appendStringInfoString(out, value);
	for (char *c = out->data + start; *c != '\0'; c++)
		if (*c == '.')
			*c = '_';
}

/* RFC 3986, section 2.3: what need not be percent-encoded. */
void
outbox_row_append_uri(StringInfo out, const char *value)
{
	value = pg_server_to_any(value, strlen(value), PG_UTF8);
	for (; *value != '\0'; value++)
	{
		unsigned char c = (unsigned char) *value;

		if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
			(c >= '0' && c <= '9') || strchr("-._~", c) != NULL)
			appendStringInfoChar(out, c);
		else
			appendStringInfo(out, "%%%02X", c);
	}
}

static void
outbox_row_append_value(StringInfo out, const OutboxRowOptions *options,
						const char *value, OutboxRowQuoting quoting)
{
	if (value == NULL)
		value = options->null_word;
	else if (*value == '\0')
		value = options->empty_word;

	if (quoting == OUTBOX_QUOTE_WORD && !options->keep_dots)
		outbox_row_append_word(out, value);
	else if (quoting == OUTBOX_QUOTE_URI)
		outbox_row_append_uri(out, value);
	else
		appendStringInfoString(out, value);
}

static void
outbox_row_append_template(StringInfo out, const OutboxRowChange *change,
						   const OutboxTemplate *template,
						   OutboxRowQuoting quoting)
{
	for (int i = 0; i < template->nparts; i++)
	{
		const OutboxTemplatePart *part = &template->parts[i];

		if (part->kind == OUTBOX_TEMPLATE_LITERAL)
			outbox_append(out, part->text, part->len);
		else
			outbox_row_append_value(out, change->plan->options,
									outbox_row_part(change, part), quoting);
	}
}

char *
outbox_row_render(const OutboxRowChange *change, const OutboxTemplate *template,
				  OutboxRowQuoting quoting)
{
	StringInfoData out;

	initStringInfo(&out);
	outbox_row_append_template(&out, change, template, quoting);
	return out.data;
}

Datum
outbox_row_text(const OutboxRowChange *change, OutboxRowText *of,
				OutboxRowQuoting quoting)
{
	StringInfoData out;
	MemoryContext old_context;

	if (of->made[change->op] != NULL)
		return PointerGetDatum(of->made[change->op]);
	initStringInfo(&out);
	appendStringInfoSpaces(&out, VARHDRSZ);
	outbox_row_append_template(&out, change, of->template, quoting);
	SET_VARSIZE(out.data, out.len);
	if (!of->fixed)
		return PointerGetDatum(out.data);

	old_context = MemoryContextSwitchTo(change->plan->context);
	of->made[change->op] = palloc(out.len);
	MemoryContextSwitchTo(old_context);
	memcpy(of->made[change->op], out.data, out.len);
	return PointerGetDatum(of->made[change->op]);
}

char *
outbox_row_key(const OutboxRowChange *change)
{
	const OutboxRowPlan *plan = change->plan;
	TupleTableSlot *row = outbox_row_subject(change);
	StringInfoData out;
	bool		all_null = true;

	if (plan->nkeys == 1)
		return outbox_row_value(change, row, plan->keys[0]);
	initStringInfo(&out);
	for (int i = 0; i < plan->nkeys; i++)
	{
		char	   *value = outbox_row_value(change, row, plan->keys[i]);

		if (i > 0)
			appendStringInfoChar(&out, ':');
		if (value == NULL)
		{
			appendStringInfoString(&out, "\\N");
			continue;
		}
		all_null = false;
		for (; *value != '\0'; value++)
		{
			if (*value == ':' || *value == '\\')
				appendStringInfoChar(&out, '\\');
			appendStringInfoChar(&out, *value);
		}
	}
	return all_null ? NULL : out.data;
}

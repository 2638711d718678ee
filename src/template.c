/*-------------------------------------------------------------------------
 *
 * template.c
 *	  Text with places for values, taken apart.
 *
 * Pure: what a column's name stands for is not known here.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "nodes/pg_list.h"
#include "utils/varlena.h"

#include "compat.h"
#include "template.h"

pg_noreturn static void
outbox_template_fail(const OutboxTemplate *template, char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid %s template \"%s\"", template->what,
					template->source),
			 errdetail_internal("%s", detail),
			 errhint("Write {column}, {old.column}, {new.column}, {op}, {schema} or {table}; {{ and }} stand for braces.")));
}

/* For errors: characters up to there, from 1. */
static int
outbox_template_position(const OutboxTemplate *template, const char *at)
{
	return pg_mbstrlen_with_len(template->source, at - template->source) + 1;
}

static OutboxTemplatePart *
outbox_template_add(OutboxTemplate *template, OutboxTemplateKind kind,
					char *text)
{
	OutboxTemplatePart *part = &template->parts[template->nparts++];

	part->kind = kind;
	part->text = text;
	part->len = text == NULL ? 0 : strlen(text);
	part->column = -1;
	return part;
}

/* The literal that was collected, if any. */
static void
outbox_template_add_literal(OutboxTemplate *template, StringInfo literal)
{
	if (literal->len > 0)
		outbox_template_add(template, OUTBOX_TEMPLATE_LITERAL,
							pstrdup(literal->data));
	resetStringInfo(literal);
}

static void
outbox_template_add_name(OutboxTemplate *template, char *name, bool quoted)
{
	OutboxTemplateKind kind = OUTBOX_TEMPLATE_COLUMN;

	if (!quoted)
	{
		if (strcmp(name, "op") == 0)
			kind = OUTBOX_TEMPLATE_OP;
		else if (strcmp(name, "schema") == 0)
			kind = OUTBOX_TEMPLATE_SCHEMA;
		else if (strcmp(name, "table") == 0)
			kind = OUTBOX_TEMPLATE_TABLE;
	}
	outbox_template_add(template, kind, name);
}

/* What stands between the braces. */
static void
outbox_template_add_place(OutboxTemplate *template, const char *start, int len)
{
	List	   *names;
	bool		quoted = len > 0 && start[0] == '"';

	/* not the copy's owner: the names point into it */
	if (SplitIdentifierString(pnstrdup(start, len), '.', &names))
	{
		if (list_length(names) == 1)
		{
			outbox_template_add_name(template, linitial(names), quoted);
			return;
		}
		if (list_length(names) == 2 && !quoted &&
			strcmp(linitial(names), "old") == 0)
		{
			outbox_template_add(template, OUTBOX_TEMPLATE_OLD_COLUMN,
								lsecond(names));
			return;
		}
		if (list_length(names) == 2 && !quoted &&
			strcmp(linitial(names), "new") == 0)
		{
			outbox_template_add(template, OUTBOX_TEMPLATE_NEW_COLUMN,
								lsecond(names));
			return;
		}
	}
	outbox_template_fail(template,
						 psprintf("\"{%.*s}\" at position %d names no column.",
								  len, start,
								  outbox_template_position(template, start - 1)));
}

/* The brace that closes a place, or NULL; braces in double quotes are none. */
static const char *
outbox_template_end(const char *s)
{
	bool		in_quotes = false;

	for (; *s != '\0'; s++)
	{
		if (*s == '"')
			in_quotes = !in_quotes;
		else if (*s == '}' && !in_quotes)
			return s;
	}
	return NULL;
}

OutboxTemplate *
outbox_template_parse(const char *what, const char *source)
{
	OutboxTemplate *template = palloc0(sizeof(OutboxTemplate));
	const char *s = source;
	StringInfoData literal;

	template->what = what;
	template->source = source;
	/* every part takes at least one character */
	template->parts = palloc0((strlen(source) + 1) *
							  sizeof(OutboxTemplatePart));
	initStringInfo(&literal);

	while (*s != '\0')
	{
		const char *end;

		if ((*s != '{' && *s != '}') || s[1] == *s)
		{
			if (*s == '{' || *s == '}')
				s++;
			appendStringInfoChar(&literal, *s++);
			continue;
		}
		if (*s == '}')
			outbox_template_fail(template,
								 psprintf("The \"}\" at position %d has no \"{\".",
										  outbox_template_position(template, s)));
		end = outbox_template_end(s + 1);
		if (end == NULL)
			outbox_template_fail(template,
								 psprintf("The \"{\" at position %d is not closed.",
										  outbox_template_position(template, s)));
		outbox_template_add_literal(template, &literal);
		outbox_template_add_place(template, s + 1, end - s - 1);
		s = end + 1;
	}
	outbox_template_add_literal(template, &literal);
	pfree(literal.data);
	return template;
}

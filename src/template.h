/*-------------------------------------------------------------------------
 *
 * template.h
 *	  Text with places for values, such as 'plant.{plant_id}.order.{op}'.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_TEMPLATE_H
#define OUTBOX_TEMPLATE_H

#include "postgres.h"

typedef enum OutboxTemplateKind
{
	OUTBOX_TEMPLATE_LITERAL,
	OUTBOX_TEMPLATE_OP,			/* {op}: insert, update, delete, truncate */
	OUTBOX_TEMPLATE_SCHEMA,		/* {schema} of the table */
	OUTBOX_TEMPLATE_TABLE,		/* {table} */
	OUTBOX_TEMPLATE_COLUMN,		/* {column}: of the new row, at DELETE the old */
	OUTBOX_TEMPLATE_OLD_COLUMN, /* {old.column} */
	OUTBOX_TEMPLATE_NEW_COLUMN	/* {new.column} */
} OutboxTemplateKind;

typedef struct OutboxTemplatePart
{
	OutboxTemplateKind kind;
	char	   *text;			/* the literal, or the column's name */
	int			len;			/* of the literal, bytes */
	int			column;			/* for whoever knows the table; -1 */
} OutboxTemplatePart;

typedef struct OutboxTemplate
{
	const char *what;			/* for errors: "routing key" */
	const char *source;			/* as it was written */
	int			nparts;
	OutboxTemplatePart *parts;
} OutboxTemplate;

/*
 * Take a template apart.  Column names are written as in SQL: folded to lower
 * case unless in double quotes; a quoted name is never one of op, schema,
 * table.  "{{" and "}}" are braces.  Error 22023 for anything else.
 *
 * The result is palloc'd; what and source must live as long.
 */
extern OutboxTemplate *outbox_template_parse(const char *what,
											 const char *source);

#endif							/* OUTBOX_TEMPLATE_H */

/*-------------------------------------------------------------------------
 *
 * row_plan.h
 *	  What a trigger of amqp_publish_row() amounts to, kept between calls.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_ROW_PLAN_H
#define OUTBOX_ROW_PLAN_H

#include "postgres.h"

#include "commands/trigger.h"
#include "fmgr.h"

#include "row_option.h"
#include "template.h"

typedef enum OutboxRowOp
{
	OUTBOX_ROW_INSERT,
	OUTBOX_ROW_UPDATE,
	OUTBOX_ROW_DELETE,
	OUTBOX_ROW_TRUNCATE,
	OUTBOX_ROW_NOPS
} OutboxRowOp;

/* insert, update, delete, truncate */
extern const char *const outbox_row_op_names[OUTBOX_ROW_NOPS];

typedef struct OutboxRowColumn
{
	const char *name;			/* NULL: dropped, or computed when it is read */
	const char *json_name;		/* as the beginning of a member: ,"name": */
	int			json_name_len;
	bool		in_body;
	bool		watched;		/* a change of it is a change of the message */
	bool		byval;
	int16		len;
	OutboxJsonType *json;		/* set if in_body */
	FmgrInfo   *output;			/* set if a template or the key names it */
} OutboxRowColumn;

/* A text that is the same for every row is made once for each operation. */
typedef struct OutboxRowText
{
	OutboxTemplate *template;	/* NULL: none was given */
	bool		fixed;
	text	   *made[OUTBOX_ROW_NOPS];
} OutboxRowText;

typedef struct OutboxRowPlan
{
	bool		valid;
	MemoryContext context;		/* of all that follows */
	Oid			relid;
	Oid			rootid;			/* the topmost partitioned table, or relid */

	/* the table as messages name it, and as errors do */
	const char *schema;
	const char *table;
	const char *quoted;

	OutboxRowOptions *options;
	OutboxRowText exchange;
	OutboxRowText routing_key;
	OutboxRowText type;
	OutboxRowText source;
	char	   *default_source; /* of a CloudEvent; NULL: not made yet */
	OutboxRowText subject;
	int			ncolumns;
	OutboxRowColumn *columns;
	int			nkeys;
	int		   *keys;			/* columns of the key, from 0 */
	bool		needs_old;		/* an UPDATE needs the old row, too */
} OutboxRowPlan;

/*
 * The plan of a trigger, made anew if the trigger, its table or what they
 * depend on has changed.  It stays as it is to the end of the transaction.
 * *option is the option that is being read, for the context of errors.
 *
 * Errors: 22023 for what is wrong with the arguments of the trigger, 42703 for
 * a column that the table does not have, 0A000 for one that has no value in a
 * trigger.
 */
extern OutboxRowPlan *outbox_row_plan(TriggerData *trigger,
									  const char **option);

#endif							/* OUTBOX_ROW_PLAN_H */

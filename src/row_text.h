/*-------------------------------------------------------------------------
 *
 * row_text.h
 *	  What is made of a changed row as text: routing keys and the like.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_ROW_TEXT_H
#define OUTBOX_ROW_TEXT_H

#include "postgres.h"

#include "executor/tuptable.h"
#include "lib/stringinfo.h"
#include "utils/timestamp.h"

#include "row_plan.h"

/*
 * One change.  A row that there is not, or that nobody needs, is NULL; of the
 * others all columns have been fetched (slot_getallattrs()).
 */
typedef struct OutboxRowChange
{
	OutboxRowPlan *plan;
	Oid			serverid;		/* chosen with the first message */
	TimestampTz now;			/* when the trigger was called */
	OutboxRowOp op;
	TupleTableSlot *old_row;
	TupleTableSlot *new_row;
} OutboxRowChange;

/* What is done with values in a template. */
typedef enum OutboxRowQuoting
{
	OUTBOX_QUOTE_NOTHING,
	OUTBOX_QUOTE_WORD,			/* a word of a routing key */
	OUTBOX_QUOTE_URI			/* a part of a URI */
} OutboxRowQuoting;

/* The row that the change is about: the new one, at DELETE the old. */
extern TupleTableSlot *outbox_row_subject(const OutboxRowChange *change);

/* A template filled in, as text and as a string. */
extern Datum outbox_row_text(const OutboxRowChange *change, OutboxRowText *of,
							 OutboxRowQuoting quoting);
extern char *outbox_row_render(const OutboxRowChange *change,
							   const OutboxTemplate *template,
							   OutboxRowQuoting quoting);

/*
 * The key, or NULL if there is none or all its columns are null.  The text of
 * one column is the key as it is; of several the texts are joined by ":", with
 * a backslash before each ":" and backslash in them, and \N for a null: so
 * different values are different keys.
 */
extern char *outbox_row_key(const OutboxRowChange *change);

/* Append a string, percent-encoded as a part of a URI. */
extern void outbox_row_append_uri(StringInfo out, const char *value);

#endif							/* OUTBOX_ROW_TEXT_H */

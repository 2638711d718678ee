/*-------------------------------------------------------------------------
 *
 * row.h
 *	  amqp_publish_row(): the trigger function, for rows and statements.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_ROW_H
#define OUTBOX_ROW_H

#include "postgres.h"

#include "utils/rel.h"

/* What PG_FUNCTION_INFO_V1 exports. */
#define OUTBOX_ROW_FUNCTION		"outbox_sql_publish_row"

/*
 * Look at a trigger of this function without firing it.  The same errors as
 * when it fires, as far as they do not depend on the row: those of
 * outbox_row_plan(), and 39P01 for a trigger that cannot work.
 */
extern void outbox_row_check(Relation rel, Trigger *trigger);

#endif							/* OUTBOX_ROW_H */

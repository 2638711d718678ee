/*-------------------------------------------------------------------------
 *
 * query.h
 *	  SQL that a user's session runs on our tables.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_QUERY_H
#define OUTBOX_QUERY_H

#include "postgres.h"

#define OUTBOX_QUERY_MAX_PARAMS		6
#define OUTBOX_QUERY_MAX_COLUMNS	20

/* Names and operators in it must be qualified. */
typedef struct OutboxQuery
{
	const char *sql;
	int			nparams;
	Oid			types[OUTBOX_QUERY_MAX_PARAMS];
	void	   *plan;			/* NULL before the first run */
} OutboxQuery;

typedef struct OutboxRow
{
	Datum		values[OUTBOX_QUERY_MAX_COLUMNS];
	bool		isnull[OUTBOX_QUERY_MAX_COLUMNS];
} OutboxRow;

/*
 * Run a statement as the owner of our tables; true if it gave a row, of which
 * the first is in *row, in CurrentMemoryContext.  It sees what the transaction
 * sees, and what the transaction did.
 */
extern bool outbox_query(OutboxQuery *query, Datum *values, OutboxRow *row);

/* The same for a SELECT; it sees all that is committed by now. */
extern bool outbox_query_latest(OutboxQuery *query, Datum *values,
								OutboxRow *row);

/*
 * Run a statement and visit each row of its result, a few at a time; a visit's
 * memory goes after it, and it is called as the owner of our tables.  In nulls,
 * 'n' says that the parameter at its place is null.
 */
typedef void (*OutboxRowVisitor) (const OutboxRow *row, void *arg);
extern void outbox_query_each(OutboxQuery *query, Datum *values,
							  const char *nulls, OutboxRowVisitor visit,
							  void *arg);

#endif							/* OUTBOX_QUERY_H */

/*-------------------------------------------------------------------------
 *
 * query.c
 *	  SQL that a user's session runs on our tables.
 *
 * The user has no rights on them, and must not be able to change what a
 * statement means: it runs as the tables' owner, under
 * SECURITY_RESTRICTED_OPERATION, and all names in it are qualified.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/datum.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "catalog.h"
#include "query.h"

/* Rows that are fetched at a time. */
#define OUTBOX_QUERY_ROWS	256

static void
outbox_query_prepare(OutboxQuery *query)
{
	SPIPlanPtr	plan = SPI_prepare(query->sql, query->nparams, query->types);

	if (plan == NULL || SPI_keepplan(plan) != 0)
		elog(ERROR, "could not prepare \"%s\": %s", query->sql,
			 SPI_result_code_string(SPI_result));
	query->plan = plan;
}

/* Who was the user before, to be set back. */
typedef struct OutboxQueryUser
{
	Oid			user;
	int			sec_context;
} OutboxQueryUser;

static void
outbox_query_enter(OutboxQuery *query, OutboxQueryUser *before)
{
	/* an error sets this back, with the (sub)transaction that it ends */
	GetUserIdAndSecContext(&before->user, &before->sec_context);
	SetUserIdAndSecContext(outbox_catalog_owner(),
						   before->sec_context | SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_RESTRICTED_OPERATION);
	SPI_connect();
	if (query->plan == NULL)
		outbox_query_prepare(query);
}

static void
outbox_query_leave(const OutboxQueryUser *before)
{
	SPI_finish();
	SetUserIdAndSecContext(before->user, before->sec_context);
}

/* Row i of the last result; its values stay in it unless context is given. */
static void
outbox_query_get_row(OutboxRow *row, uint64 i, MemoryContext context)
{
	TupleDesc	tupdesc = SPI_tuptable->tupdesc;
	MemoryContext old_context = CurrentMemoryContext;

	Assert(tupdesc->natts <= OUTBOX_QUERY_MAX_COLUMNS);
	for (int c = 0; c < tupdesc->natts; c++)
	{
		Form_pg_attribute attr = TupleDescAttr(tupdesc, c);

		row->values[c] = SPI_getbinval(SPI_tuptable->vals[i], tupdesc, c + 1,
									   &row->isnull[c]);
		if (context == NULL || row->isnull[c])
			continue;
		MemoryContextSwitchTo(context);
		row->values[c] = datumCopy(row->values[c], attr->attbyval,
								   attr->attlen);
		MemoryContextSwitchTo(old_context);
	}
}

static bool
outbox_query_run(OutboxQuery *query, Datum *values, Snapshot snapshot,
				 OutboxRow *row)
{
	MemoryContext context = CurrentMemoryContext;
	OutboxQueryUser before;
	int			result;
	bool		found;

	outbox_query_enter(query, &before);
	/* to the end: triggers of the statement fire there */
	result = snapshot ?
		SPI_execute_snapshot(query->plan, values, NULL, snapshot,
							 InvalidSnapshot, true, false, 1) :
		SPI_execute_plan(query->plan, values, NULL, false, 0);
	if (result < 0)
		elog(ERROR, "could not execute \"%s\": %s", query->sql,
			 SPI_result_code_string(result));
	found = SPI_processed > 0;
	if (found)
		outbox_query_get_row(row, 0, context);
	outbox_query_leave(&before);
	return found;
}

bool
outbox_query(OutboxQuery *query, Datum *values, OutboxRow *row)
{
	return outbox_query_run(query, values, InvalidSnapshot, row);
}

bool
outbox_query_latest(OutboxQuery *query, Datum *values, OutboxRow *row)
{
	return outbox_query_run(query, values, GetLatestSnapshot(), row);
}

void
outbox_query_each(OutboxQuery *query, Datum *values, const char *nulls,
				  OutboxRowVisitor visit, void *arg)
{
	OutboxQueryUser before;
	MemoryContext context;
	Portal		portal;

	outbox_query_enter(query, &before);
	context = AllocSetContextCreate(CurrentMemoryContext, "amqp_outbox row",
									ALLOCSET_DEFAULT_SIZES);
	portal = SPI_cursor_open(NULL, query->plan, values, nulls, false);
	for (;;)
	{
		SPITupleTable *tuples;
		uint64		n;

		SPI_cursor_fetch(portal, true, OUTBOX_QUERY_ROWS);
		tuples = SPI_tuptable;
		n = SPI_processed;
		for (uint64 i = 0; i < n; i++)
		{
			MemoryContext old_context;
			OutboxRow	row;

			CHECK_FOR_INTERRUPTS();
			SPI_tuptable = tuples;
			outbox_query_get_row(&row, i, NULL);
			old_context = MemoryContextSwitchTo(context);
			visit(&row, arg);
			MemoryContextSwitchTo(old_context);
			MemoryContextReset(context);
		}
		SPI_freetuptable(tuples);
		if (n == 0)
			break;
	}
	SPI_cursor_close(portal);
	outbox_query_leave(&before);
}

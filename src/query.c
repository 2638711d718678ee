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
#include "utils/snapmgr.h"

#include "catalog.h"
#include "query.h"

static void
outbox_query_prepare(OutboxQuery *query)
{
	SPIPlanPtr	plan = SPI_prepare(query->sql, query->nparams, query->types);

	if (plan == NULL || SPI_keepplan(plan) != 0)
		elog(ERROR, "could not prepare \"%s\": %s", query->sql,
			 SPI_result_code_string(SPI_result));
	query->plan = plan;
}

static void
outbox_query_copy_row(OutboxRow *row, MemoryContext context)
{
	TupleDesc	tupdesc = SPI_tuptable->tupdesc;
	MemoryContext old_context;

	Assert(tupdesc->natts <= OUTBOX_QUERY_MAX_COLUMNS);
	old_context = MemoryContextSwitchTo(context);
	for (int i = 0; i < tupdesc->natts; i++)
	{
		Form_pg_attribute attr = TupleDescAttr(tupdesc, i);
		Datum		value = SPI_getbinval(SPI_tuptable->vals[0], tupdesc,
										  i + 1, &row->isnull[i]);

		if (!row->isnull[i])
			row->values[i] = datumCopy(value, attr->attbyval, attr->attlen);
	}
	MemoryContextSwitchTo(old_context);
}

static bool
outbox_query_run(OutboxQuery *query, Datum *values, Snapshot snapshot,
				 OutboxRow *row)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			user;
	int			sec_context;
	int			result;
	bool		found;

	/* an error sets this back, with the (sub)transaction that it ends */
	GetUserIdAndSecContext(&user, &sec_context);
	SetUserIdAndSecContext(outbox_catalog_owner(outbox_catalog_relid("outbox")),
						   sec_context | SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_RESTRICTED_OPERATION);
	SPI_connect();
	if (query->plan == NULL)
		outbox_query_prepare(query);
	result = snapshot ?
		SPI_execute_snapshot(query->plan, values, NULL, snapshot,
							 InvalidSnapshot, true, false, 1) :
		SPI_execute_plan(query->plan, values, NULL, false, 1);
	if (result < 0)
		elog(ERROR, "could not execute \"%s\": %s", query->sql,
			 SPI_result_code_string(result));
	found = SPI_processed > 0;
	if (found)
		outbox_query_copy_row(row, context);
	SPI_finish();
	SetUserIdAndSecContext(user, sec_context);
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

/*-------------------------------------------------------------------------
 *
 * store.c
 *	  The transactions of the worker, and how it runs SQL.
 *
 * Statements are constants with typed parameters, and stand beside their
 * users; their plans are kept for the life of the process.  Settings are pinned
 * and names are qualified, and the transaction acts as the owner of the tables
 * under SECURITY_RESTRICTED_OPERATION, so that nothing that a user of the
 * database can create or set changes what they do.
 *
 * Reads must cost the same whatever the statistics say about the tables: the
 * planner is left with nothing but the index.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"

#include "catalog.h"
#include "leaf.h"
#include "store.h"

static OutboxStatement find_identity = {
	.sql = "SELECT bool_and(system_identifier = $1 AND database_oid = $2),"
	" bool_or(adopted)"
	" FROM amqp_outbox.identity",
	.nparams = 2, .types = {INT8OID, OIDOID}
};

static OutboxStatement find_server_key = {
	.sql = "SELECT server_key FROM amqp_outbox.server_key WHERE server = $1",
	.nparams = 1, .types = {NAMEOID}
};

/* The leaf that the current transaction writes to, -1: not chosen yet. */
static int	my_leaf = -1;

void
outbox_store_pin_settings(void)
{
	static const char *const pinned[][2] = {
		/* whose rights, whose names */
		{"role", "none"},
		{"search_path", "pg_catalog, pg_temp"},
		{"row_security", "off"},
		/* which rows, and whether they can be written */
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_read_only", "off"},
		{"default_transaction_deferrable", "off"},
		{"session_replication_role", "origin"},
		{"synchronous_commit", "off"},
		/* nothing ends a statement, but that it waits for a lock */
		{"statement_timeout", "0"},
		{"transaction_timeout", "0"},
		{"lock_timeout", "1s"},
		{"idle_in_transaction_session_timeout", "0"},
		/* the planner is left with nothing but the index */
		{"enable_hashjoin", "off"},
		{"enable_mergejoin", "off"},
		{"enable_seqscan", "off"},
		{"enable_bitmapscan", "off"},
		{"enable_sort", "off"},
		{"enable_indexscan", "on"},
		{"enable_indexonlyscan", "on"},
		{"enable_nestloop", "on"},
		{"jit", "off"},
		{"plan_cache_mode", "force_generic_plan"},
		{"max_parallel_workers_per_gather", "0"},
		/* nobody but a superuser fills the log */
		{"debug_print_parse", "off"},
		{"debug_print_rewritten", "off"},
		{"debug_print_plan", "off"},
		{"trace_sort", "off"},
	};

	/* not every version has all of them */
	for (int i = 0; i < (int) lengthof(pinned); i++)
	{
		if (GetConfigOption(pinned[i][0], true, false) != NULL)
			SetConfigOption(pinned[i][0], pinned[i][1], PGC_SUSET,
							PGC_S_OVERRIDE);
	}
}

/*
 * Brackets
 */

/*
 * The process belongs to the outbox that it saw first: what it knows must not
 * be written into the tables of an extension that was created anew.
 */
bool
outbox_store_begin(void)
{
	static Oid	own_outbox = InvalidOid;
	static Oid	own_extension = InvalidOid;
	Oid			relid;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	my_leaf = -1;
	if (!OidIsValid(own_extension))
		own_extension = get_extension_oid(OUTBOX_EXTENSION, true);

	/*
	 * DROP EXTENSION begins with this lock as well: waiting for it later, with
	 * locks on some of the tables that it has not come to yet, would be a
	 * deadlock.
	 */
	if (OidIsValid(own_extension))
		LockDatabaseObject(ExtensionRelationId, own_extension, 0,
						   AccessShareLock);
	relid = outbox_catalog_relid_if_exists("outbox");
	if (!OidIsValid(own_outbox))
		own_outbox = relid;
	if (!OidIsValid(relid) || relid != own_outbox)
	{
		CommitTransactionCommand();
		return false;
	}
	SetUserIdAndSecContext(outbox_catalog_owner(),
						   SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_RESTRICTED_OPERATION);
	PushActiveSnapshot(GetTransactionSnapshot());

	/*
	 * Whoever sees a message must know what its session had altered before
	 * it committed the message.
	 */
	AcceptInvalidationMessages();
	SPI_connect();
	return true;
}

void
outbox_store_commit(void)
{
	SPI_finish();
	PopActiveSnapshot();
	SetUserIdAndSecContext(GetSessionUserId(), 0);
	CommitTransactionCommand();
	pgstat_report_stat(false);
}

bool
outbox_store_was_promoted(void)
{
	return GetWALInsertionTimeLine() > 1;
}

Oid
outbox_store_outbox(void)
{
	return outbox_catalog_relid("outbox");
}

/*
 * Running statements
 */

static SPIPlanPtr
outbox_store_prepare(const OutboxStatement *statement, int leaf)
{
	const char *place = strstr(statement->sql, "%d");
	const char *sql = statement->sql;
	SPIPlanPtr	plan;

	if (place != NULL)
		sql = psprintf("%.*s%d%s", (int) (place - sql), sql, leaf, place + 2);
	plan = SPI_prepare(sql, statement->nparams, (Oid *) statement->types);
	if (plan == NULL || SPI_keepplan(plan) != 0)
		elog(ERROR, "could not prepare \"%s\": %s", sql,
			 SPI_result_code_string(SPI_result));
	return plan;
}

/* read_only: in the snapshot of the transaction */
static uint64
outbox_store_execute(OutboxStatement *statement, int leaf, Datum *values,
					 const char *nulls, int expected, bool read_only,
					 long max_rows)
{
	int			result;

	Assert(max_rows > 0 || expected != SPI_OK_SELECT);	/* 0: no limit */
	if (statement->plans[leaf] == NULL)
		statement->plans[leaf] = outbox_store_prepare(statement, leaf);
	result = SPI_execute_plan(statement->plans[leaf], values, nulls, read_only,
							  max_rows);
	if (result != expected)
		elog(ERROR, "could not execute \"%s\": %s", statement->sql,
			 SPI_result_code_string(result));
	return SPI_processed;
}

uint64
outbox_store_select(OutboxStatement *statement, Datum *values, long max_rows)
{
	return outbox_store_execute(statement, 0, values, NULL, SPI_OK_SELECT,
								true, max_rows);
}

uint64
outbox_store_select_now(OutboxStatement *statement, int leaf, Datum *values,
						long max_rows)
{
	return outbox_store_execute(statement, leaf, values, NULL, SPI_OK_SELECT,
								false, max_rows);
}

uint64
outbox_store_change(OutboxStatement *statement, Datum *values,
					const char *nulls, int expected)
{
	return outbox_store_execute(statement, 0, values, nulls, expected, false,
								0);
}

uint64
outbox_store_append(OutboxStatement *statement, Datum *values)
{
	if (my_leaf < 0)
		my_leaf = outbox_leaf_hold(outbox_store_outbox());
	return outbox_store_execute(statement, my_leaf, values, NULL,
								SPI_OK_INSERT, false, 0);
}

Datum
outbox_store_column(int row, int column)
{
	bool		isnull;
	Datum		datum = SPI_getbinval(SPI_tuptable->vals[row],
									  SPI_tuptable->tupdesc, column, &isnull);

	if (isnull)
		elog(ERROR, "unexpected null in column %d", column);
	return datum;
}

char *
outbox_store_string(int row, int column)
{
	return SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column);
}

void
outbox_store_row(int row, Datum *values, bool *isnull)
{
	heap_deform_tuple(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, values,
					  isnull);
}

void
outbox_store_free(void)
{
	SPI_freetuptable(SPI_tuptable);
}

/*
 * What several rooms need
 */

Datum
outbox_store_array(Datum *datums, int n, Oid type)
{
	int16		len;
	bool		byval;
	char		align;

	get_typlenbyvalalign(type, &len, &byval, &align);
	return PointerGetDatum(construct_array(datums, n, type, len, byval,
										   align));
}

Datum
outbox_store_text(const char *utf8)
{
	return CStringGetTextDatum(pg_any_to_server(utf8, strlen(utf8), PG_UTF8));
}

/*
 * An encoding conversion may fail, and a word of the broker must never keep a
 * message from being settled.
 */
Datum
outbox_store_foreign_text(const char *utf8)
{
	char	   *copy = pstrdup(utf8);

	if (GetDatabaseEncoding() != PG_UTF8)
	{
		for (char *c = copy; *c; c++)
		{
			if (IS_HIGHBIT_SET(*c))
				*c = '?';
		}
	}
	return CStringGetTextDatum(copy);
}

OutboxIdentity
outbox_store_identity(void)
{
	Datum		values[2];
	Datum		own;
	bool		isnull;

	values[0] = Int64GetDatum(outbox_catalog_system_identifier());
	values[1] = ObjectIdGetDatum(MyDatabaseId);
	outbox_store_select(&find_identity, values, 1);
	own = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
						&isnull);
	if (isnull)
		return OUTBOX_IDENTITY_NONE;
	if (!DatumGetBool(own))
		return OUTBOX_IDENTITY_COPY;
	return DatumGetBool(outbox_store_column(0, 2)) ?
		OUTBOX_IDENTITY_ADOPTED : OUTBOX_IDENTITY_OWN;
}

int32
outbox_store_server_key(const char *server_name)
{
	NameData	name;
	Datum		values[1];

	namestrcpy(&name, server_name);
	values[0] = NameGetDatum(&name);
	if (outbox_store_select(&find_server_key, values, 1) == 0)
		return 0;
	return DatumGetInt32(outbox_store_column(0, 1));
}

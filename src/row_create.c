/*-------------------------------------------------------------------------
 *
 * row_create.c
 *	  CREATE TRIGGER ... amqp_publish_row(...) is checked at once.
 *
 * Otherwise whoever creates it would not hear of a wrong argument, but whoever
 * changes the table, and that only when it happens.  It is checked when it
 * fires as well: its table may change, and a session may not have preloaded us.
 *
 * Runs in sessions.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_language.h"
#include "catalog/pg_proc.h"
#include "commands/trigger.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "row.h"
#include "row_create.h"

static ProcessUtility_hook_type prev_ProcessUtility = NULL;

/* Whether it is our trigger function, whatever somebody has called it. */
static bool
outbox_row_create_is_ours(Oid function)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	bool		ours = false;
	bool		isnull;
	Datum		source;

	if (!HeapTupleIsValid(tuple))
		return false;
	source = SysCacheGetAttr(PROCOID, tuple, Anum_pg_proc_prosrc, &isnull);
	if (((Form_pg_proc) GETSTRUCT(tuple))->prolang == ClanguageId && !isnull)
		ours = strcmp(TextDatumGetCString(source), OUTBOX_ROW_FUNCTION) == 0;
	ReleaseSysCache(tuple);
	return ours;
}

static void
outbox_row_create_check(const CreateTrigStmt *stmt)
{
	Oid			relid = RangeVarGetRelid(stmt->relation, NoLock, true);
	Relation	rel;
	TriggerDesc *triggers;

	if (!OidIsValid(relid))
		return;
	/* its lock is held, and what it has made becomes visible */
	CommandCounterIncrement();
	rel = relation_open(relid, NoLock);
	/* as the executor does it: the relation's own may be replaced any time */
	triggers = CopyTriggerDesc(rel->trigdesc);
	for (int i = 0; triggers && i < triggers->numtriggers; i++)
	{
		Trigger    *trigger = &triggers->triggers[i];

		if (strcmp(trigger->tgname, stmt->trigname) == 0 &&
			outbox_row_create_is_ours(trigger->tgfoid))
			outbox_row_check(rel, trigger);
	}
	relation_close(rel, NoLock);
}

static void
outbox_row_create_process(PlannedStmt *pstmt, const char *queryString,
						  bool readOnlyTree, ProcessUtilityContext context,
						  ParamListInfo params, QueryEnvironment *queryEnv,
						  DestReceiver *dest, QueryCompletion *qc)
{
	if (prev_ProcessUtility)
		prev_ProcessUtility(pstmt, queryString, readOnlyTree, context, params,
							queryEnv, dest, qc);
	else
		standard_ProcessUtility(pstmt, queryString, readOnlyTree, context,
								params, queryEnv, dest, qc);
	if (IsA(pstmt->utilityStmt, CreateTrigStmt) && !IsBinaryUpgrade)
		outbox_row_create_check((CreateTrigStmt *) pstmt->utilityStmt);
}

void
outbox_row_create_install_hook(void)
{
	prev_ProcessUtility = ProcessUtility_hook;
	ProcessUtility_hook = outbox_row_create_process;
}

/*-------------------------------------------------------------------------
 *
 * utility.c
 *	  Statements that launcher and workers must hear of.
 *
 * A utility hook notes statements that change servers or user mappings; the
 * end of their transaction tells launcher and workers.
 *
 * Statements that need a database for themselves (DROP DATABASE, CREATE
 * DATABASE from it, RENAME, SET TABLESPACE) put a hold on it: its workers
 * leave, the hook waits for that, and none is started before the transaction
 * of the statement has ended, however it ends.
 *
 * A server with undelivered messages cannot be dropped, by whatever statement,
 * but together with the extension.  What was declared for its broker goes with
 * it.  Nobody but the owner of our tables has triggers on them, and nobody but
 * that of the extension drops it, also by dropping the schema it is in.
 *
 * Runs in every backend.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_trigger.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "catalog.h"
#include "compat.h"
#include "horizon.h"
#include "option.h"
#include "permission.h"
#include "registry.h"
#include "server.h"
#include "settings.h"
#include "topology.h"
#include "utility.h"

/* How long workers may take to leave beyond their drain timeout. */
#define OUTBOX_LEAVE_MS		2000

static ProcessUtility_hook_type prev_ProcessUtility = NULL;
static object_access_hook_type prev_object_access_hook = NULL;

/* a statement of this transaction may have changed servers */
static bool servers_changed = false;

/* this transaction changed what brokers shall have; asks to assert all of it */
static bool topology_changed = false;
static bool topology_asked = false;

/* a prepared transaction was committed */
static bool prepared_committed = false;

/* the extension is being dropped, and its tables with it */
static bool dropping_extension = false;

/* the database that this transaction has a hold on */
static Oid	held_database = InvalidOid;

void
outbox_utility_note_change(void)
{
	servers_changed = true;
}

void
outbox_utility_note_topology(bool everything)
{
	if (everything)
		topology_asked = true;
	else
		topology_changed = true;
}

/* Might the statement create, change or remove servers or user mappings? */
static bool
outbox_statement_concerns_servers(Node *parsetree)
{
	switch (nodeTag(parsetree))
	{
		case T_CreateForeignServerStmt:
		case T_AlterForeignServerStmt:
		case T_CreateUserMappingStmt:
		case T_AlterUserMappingStmt:
		case T_DropUserMappingStmt:
		case T_CreateFdwStmt:
		case T_AlterFdwStmt:
		case T_CreateExtensionStmt:
		case T_AlterExtensionStmt:
		case T_DropOwnedStmt:
		case T_ReassignOwnedStmt:
			return true;
		case T_RenameStmt:
			return ((RenameStmt *) parsetree)->renameType == OBJECT_FOREIGN_SERVER;
		case T_AlterOwnerStmt:
			return ((AlterOwnerStmt *) parsetree)->objectType == OBJECT_FOREIGN_SERVER;
		case T_DropStmt:
			switch (((DropStmt *) parsetree)->removeType)
			{
				case OBJECT_FOREIGN_SERVER:
				case OBJECT_FDW:
				case OBJECT_EXTENSION:
				case OBJECT_SCHEMA:
					return true;
				default:
					return false;
			}
		default:
			return false;
	}
}

/*
 * Databases for oneself
 */

static const char *
outbox_utility_option(List *options, const char *name)
{
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);

		if (strcmp(def->defname, name) == 0 && def->arg)
			return defGetString(def);
	}
	return NULL;
}

/* The database that the statement needs for itself, or NULL. */
static const char *
outbox_statement_database(Node *parsetree)
{
	const char *template;

	switch (nodeTag(parsetree))
	{
		case T_DropdbStmt:
			return ((DropdbStmt *) parsetree)->dbname;
		case T_CreatedbStmt:
			template = outbox_utility_option(((CreatedbStmt *) parsetree)->options,
											 "template");
			return template ? template : "template1";
		case T_RenameStmt:
			return ((RenameStmt *) parsetree)->renameType == OBJECT_DATABASE ?
				((RenameStmt *) parsetree)->subname : NULL;
		case T_AlterDatabaseStmt:
			return outbox_utility_option(((AlterDatabaseStmt *) parsetree)->options,
										 "tablespace") ?
				((AlterDatabaseStmt *) parsetree)->dbname : NULL;
		default:
			return NULL;
	}
}

/* The role's attribute CREATEDB, which superusers need not have. */
static bool
outbox_utility_has_createdb(void)
{
	HeapTuple	tuple = SearchSysCache1(AUTHOID,
										ObjectIdGetDatum(GetUserId()));
	bool		createdb;

	if (!HeapTupleIsValid(tuple))
		return false;
	createdb = ((Form_pg_authid) GETSTRUCT(tuple))->rolcreatedb;
	ReleaseSysCache(tuple);
	return createdb;
}

/*
 * Whether the statement can succeed as far as rights are concerned: nobody
 * else is to stop workers.  (A template may be copied by whoever may create
 * databases.)
 */
static bool
outbox_utility_may_hold(Oid dboid, Node *parsetree)
{
	HeapTuple	tuple;
	bool		may_copy;

	if (outbox_owns_database(dboid, GetUserId()))
		return true;
	if (!IsA(parsetree, CreatedbStmt) || !outbox_utility_has_createdb())
		return false;
	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(dboid));
	if (!HeapTupleIsValid(tuple))
		return false;
	may_copy = ((Form_pg_database) GETSTRUCT(tuple))->datistemplate;
	ReleaseSysCache(tuple);
	return may_copy;
}

static void
outbox_utility_hold(Node *parsetree)
{
	const char *database = outbox_statement_database(parsetree);
	Oid			dboid = database ? get_database_oid(database, true) : InvalidOid;
	TimestampTz give_up =
		TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
									outbox_drain_timeout + OUTBOX_LEAVE_MS);

	if (!OidIsValid(dboid) || OidIsValid(held_database) ||
		!outbox_utility_may_hold(dboid, parsetree))
		return;
	held_database = dboid;
	outbox_registry_hold(dboid);

	/* if they do not leave in time, the statement will say who is connected */
	while (outbox_registry_has_workers(dboid) &&
		   GetCurrentTimestamp() < give_up)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT |
						 WL_EXIT_ON_PM_DEATH, 10, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * Servers
 */

/* A server with undelivered messages stays. */
static void
outbox_utility_drop_server(Oid serverid)
{
	NameData	name;

	if (dropping_extension ||
		!outbox_server_get_name(serverid, &name) ||
		!outbox_server_is_ours(NameStr(name)))
		return;
	if (outbox_catalog_has_undelivered(NameStr(name)))
		ereport(ERROR,
				(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
				 errmsg("cannot drop server \"%s\" because messages to it are not delivered",
						NameStr(name)),
				 errhint("Let them be delivered (ALTER SERVER can name another broker), or let the owner of extension amqp_outbox delete them from amqp_outbox.outbox and amqp_outbox.deferred.")));
	outbox_topology_forget_server(NameStr(name));
	outbox_permission_forget_server(NameStr(name));
}

/*
 * DROP SCHEMA ... CASCADE asks for no right on what is in the schema.  That of
 * amqp_publish() often is public, which is the database owner's; our tables are
 * not, nor the messages in them.
 */
static void
outbox_utility_drop_extension(Oid extension)
{
	if (extension != get_extension_oid(OUTBOX_EXTENSION, true) ||
		outbox_owns_extension(extension, GetUserId()))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("must be owner of extension %s", OUTBOX_EXTENSION),
			 errdetail("Its tables, and the messages in them, would go with the schema."),
			 errhint("Let a superuser drop the extension first.")));
}

/*
 * Triggers
 */

/* The table of a trigger that is just being created. */
static Oid
outbox_utility_trigger_table(Oid trigger)
{
	Relation	rel = table_open(TriggerRelationId, AccessShareLock);
	Oid			relid = InvalidOid;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, Anum_pg_trigger_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(trigger));
	scan = systable_beginscan(rel, TriggerOidIndexId, true, SnapshotSelf, 1,
							  &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		relid = ((Form_pg_trigger) GETSTRUCT(tuple))->tgrelid;
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return relid;
}

/*
 * The right TRIGGER, or REFERENCES, is soon given with ALL.  On our tables it
 * would be the right to run code as their owner, a superuser, because that is
 * who writes to them; on the view amqp_outbox.message, as whoever publishes.
 */
static void
outbox_utility_create_trigger(Oid trigger)
{
	Oid			relid = outbox_utility_trigger_table(trigger);
	Oid			schema = get_namespace_oid(OUTBOX_SCHEMA, true);

	if (!OidIsValid(schema) || get_rel_namespace(relid) != schema ||
		outbox_owns_relation(relid, GetUserId()))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied to create a trigger on \"%s.%s\"",
					OUTBOX_SCHEMA, get_rel_name(relid)),
			 errdetail("Triggers, also those of foreign keys, run with the rights of whoever uses the table or view."),
			 errhint("Only its owner may create them.")));
}

static void
outbox_utility_object_access(ObjectAccessType access, Oid classId,
							 Oid objectId, int subId, void *arg)
{
	if (prev_object_access_hook)
		prev_object_access_hook(access, classId, objectId, subId, arg);

	if (access == OAT_DROP && classId == ForeignServerRelationId)
		outbox_utility_drop_server(objectId);
	else if (access == OAT_DROP && classId == ExtensionRelationId)
		outbox_utility_drop_extension(objectId);
	else if (access == OAT_POST_CREATE && classId == TriggerRelationId)
		outbox_utility_create_trigger(objectId);
}

/* The schema of CREATE EXTENSION; InvalidOid if there is none. */
static Oid
outbox_utility_extension_schema(void)
{
	Oid			extension = get_extension_oid(OUTBOX_EXTENSION, true);
	Relation	rel = table_open(ExtensionRelationId, AccessShareLock);
	Oid			schema = InvalidOid;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, Anum_pg_extension_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(extension));
	scan = systable_beginscan(rel, ExtensionOidIndexId, true, NULL, 1, &key);
	if (HeapTupleIsValid(tuple = systable_getnext(scan)))
		schema = ((Form_pg_extension) GETSTRUCT(tuple))->extnamespace;
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return schema;
}

/*
 * DROP EXTENSION ... CASCADE, and that of a schema it is in, says that the
 * messages may go as well.
 */
static bool
outbox_statement_drops_extension(Node *parsetree)
{
	DropStmt   *stmt = (DropStmt *) parsetree;
	Oid			schema;
	ListCell   *lc;

	if (!IsA(parsetree, DropStmt) ||
		(stmt->removeType != OBJECT_EXTENSION &&
		 stmt->removeType != OBJECT_SCHEMA))
		return false;
	schema = outbox_utility_extension_schema();
	foreach(lc, stmt->objects)
	{
		const char *name = strVal(lfirst(lc));

		/* our own schema is named like the extension */
		if (strcmp(name, OUTBOX_EXTENSION) == 0 ||
			(stmt->removeType == OBJECT_SCHEMA && OidIsValid(schema) &&
			 schema == get_namespace_oid(name, true)))
			return true;
	}
	return false;
}

/* If the statement renames a server, a copy of it; else NULL. */
static RenameStmt *
outbox_statement_copy_rename(Node *parsetree)
{
	if (!IsA(parsetree, RenameStmt) ||
		((RenameStmt *) parsetree)->renameType != OBJECT_FOREIGN_SERVER)
		return NULL;
	return copyObject((RenameStmt *) parsetree);
}

/* The name that the statement gives to a server that has another or none. */
static char *
outbox_statement_new_server(Node *parsetree)
{
	char	   *name;

	if (IsA(parsetree, CreateForeignServerStmt))
		name = ((CreateForeignServerStmt *) parsetree)->servername;
	else if (IsA(parsetree, RenameStmt) &&
			 ((RenameStmt *) parsetree)->renameType == OBJECT_FOREIGN_SERVER)
		name = ((RenameStmt *) parsetree)->newname;
	else
		return NULL;
	/* IF NOT EXISTS */
	return OidIsValid(get_foreign_server_oid(name, true)) ? NULL : pstrdup(name);
}

/*
 * Messages go with the name of their server.  Those of one that was dropped are
 * not for whoever takes its name next: he could have them sent to his broker.
 */
static void
outbox_utility_check_name(const char *name)
{
	if (superuser() || !outbox_server_is_ours(name) ||
		!outbox_catalog_has_stored(name))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied to name a server \"%s\"", name),
			 errdetail("Messages of a former server \"%s\" are still stored.",
					   name),
			 errhint("Choose another name, or let a superuser create the server and give it to you.")));
}

/* A server that was renamed keeps its messages. */
static void
outbox_utility_after_rename(const RenameStmt *stmt)
{
	if (outbox_server_is_ours(stmt->newname))
		outbox_catalog_rename_server(strVal(stmt->object), stmt->newname);
}

static bool
outbox_statement_commits_prepared(Node *parsetree)
{
	return IsA(parsetree, TransactionStmt) &&
		((TransactionStmt *) parsetree)->kind == TRANS_STMT_COMMIT_PREPARED;
}

/*
 * A prepared transaction was committed.  It may have brought messages, and
 * servers; altered ones the workers hear of by invalidations.
 */
static void
outbox_utility_after_commit_prepared(void)
{
	if (!outbox_registry_knows(MyDatabaseId, outbox_server_list()))
		outbox_utility_note_change();
}

/* The options of the server or user mapping that the statement alters. */
static List *
outbox_statement_former_options(Node *parsetree)
{
	AlterUserMappingStmt *mapping = (AlterUserMappingStmt *) parsetree;
	bool		public;
	Oid			userid;

	if (IsA(parsetree, AlterForeignServerStmt))
		return outbox_option_of_server(((AlterForeignServerStmt *) parsetree)->servername);
	if (!IsA(parsetree, AlterUserMappingStmt))
		return NIL;
	public = mapping->user->roletype == ROLESPEC_PUBLIC;
	userid = public ? InvalidOid : get_rolespec_oid(mapping->user, true);
	return public || OidIsValid(userid) ?
		outbox_option_of_mapping(mapping->servername, userid) : NIL;
}

/* Whoever stands next in line, or the standard. */
static void
outbox_utility_pass_on(PlannedStmt *pstmt, const char *queryString,
					   bool readOnlyTree, ProcessUtilityContext context,
					   ParamListInfo params, QueryEnvironment *queryEnv,
					   DestReceiver *dest, QueryCompletion *qc)
{
	bool		was_dropping = dropping_extension;
	List	   *former =
		outbox_option_set_former(outbox_statement_former_options(pstmt->utilityStmt));

	PG_TRY();
	{
		/* also false, for a statement that an event trigger runs */
		dropping_extension =
			outbox_statement_drops_extension(pstmt->utilityStmt);
		if (prev_ProcessUtility)
			prev_ProcessUtility(pstmt, queryString, readOnlyTree, context,
								params, queryEnv, dest, qc);
		else
			standard_ProcessUtility(pstmt, queryString, readOnlyTree, context,
									params, queryEnv, dest, qc);
	}
	PG_FINALLY();
	{
		dropping_extension = was_dropping;
		(void) outbox_option_set_former(former);
	}
	PG_END_TRY();
}

static void
outbox_utility_process(PlannedStmt *pstmt, const char *queryString,
					   bool readOnlyTree, ProcessUtilityContext context,
					   ParamListInfo params, QueryEnvironment *queryEnv,
					   DestReceiver *dest, QueryCompletion *qc)
{
	/* the statement may be gone when it has been executed */
	RenameStmt *rename = outbox_statement_copy_rename(pstmt->utilityStmt);
	char	   *new_server = outbox_statement_new_server(pstmt->utilityStmt);
	bool		commits_prepared =
		outbox_statement_commits_prepared(pstmt->utilityStmt);

	if (outbox_statement_concerns_servers(pstmt->utilityStmt))
		outbox_utility_note_change();
	/* also if it fails: by then it may be committed */
	prepared_committed |= commits_prepared;
	/* these statements refuse to run in a block, and so do not need a hold */
	if (context == PROCESS_UTILITY_TOPLEVEL && !IsTransactionBlock())
		outbox_utility_hold(pstmt->utilityStmt);

	outbox_utility_pass_on(pstmt, queryString, readOnlyTree, context, params,
						   queryEnv, dest, qc);

	if (new_server)
		outbox_utility_check_name(new_server);
	if (rename)
		outbox_utility_after_rename(rename);
	if (commits_prepared)
		outbox_utility_after_commit_prepared();
}

/*
 * Tell of changes at the very end of the transaction: its COMMIT callbacks run
 * before the invalidation messages are sent, and a worker that is woken before
 * them would load the options that it has.
 */
static void
outbox_utility_transaction_ended(ResourceReleasePhase phase, bool isCommit,
								  bool isTopLevel, void *arg)
{
	if (!isTopLevel || phase != RESOURCE_RELEASE_AFTER_LOCKS)
		return;
	if (OidIsValid(held_database))
		outbox_registry_release(held_database);
	held_database = InvalidOid;
	if (servers_changed && isCommit)
		outbox_horizon_raise_lsn(XactLastCommitEnd);
	if (prepared_committed)
	{
		outbox_registry_deferred(MyDatabaseId, DT_NOBEGIN);
		outbox_registry_topology_changed(MyDatabaseId, false);
	}
	if (servers_changed && isCommit)
		outbox_registry_database_changed(MyDatabaseId);
	servers_changed = false;
	prepared_committed = false;
}

/*
 * Topology is read from tables, so the workers may hear of it as soon as the
 * transaction is visible.  They must hear before they see its messages, which
 * wait for what they are for: the callback that makes those visible was
 * registered before this one, and so is called after it.
 */
static void
outbox_utility_xact_callback(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_COMMIT:
			if (topology_changed)
				outbox_registry_topology_changed(MyDatabaseId, false);
			if (topology_asked)
				outbox_registry_topology_changed(MyDatabaseId, true);
			/* FALLTHROUGH */
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			topology_changed = false;
			topology_asked = false;
			break;
		default:
			break;
	}
}

void
outbox_utility_install_hooks(void)
{
	prev_ProcessUtility = ProcessUtility_hook;
	ProcessUtility_hook = outbox_utility_process;
	prev_object_access_hook = object_access_hook;
	object_access_hook = outbox_utility_object_access;
	RegisterXactCallback(outbox_utility_xact_callback, NULL);
	RegisterResourceReleaseCallback(outbox_utility_transaction_ended, NULL);
}

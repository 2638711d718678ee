/*-------------------------------------------------------------------------
 *
 * server.c
 *	  To which server a message goes, and whether the caller may send there.
 *
 * Runs at every amqp_publish(): a named server costs two syscache look-ups,
 * and which server is the only one is remembered until servers change.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_foreign_server.h"
#include "foreign/foreign.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/inval.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "catalog.h"
#include "compat.h"
#include "registry.h"
#include "server.h"
#include "settings.h"

/* How long to wait for a worker to make a server's key. */
#define OUTBOX_KEY_MS		2000

/* the only server, if only_server_valid; InvalidOid: none or several */
static Oid	only_server = InvalidOid;
static bool only_server_valid = false;

static void
outbox_server_invalidate(Datum arg, int cacheid, uint32 hashvalue)
{
	only_server_valid = false;
}

List *
outbox_server_list(void)
{
	Oid			fdwid = get_foreign_data_wrapper_oid(OUTBOX_EXTENSION, true);
	List	   *result = NIL;
	Relation	rel;
	Relation	index;
	SysScanDesc scan;
	HeapTuple	tuple;

	if (!OidIsValid(fdwid))
		return NIL;

	rel = table_open(ForeignServerRelationId, AccessShareLock);
	index = index_open(ForeignServerNameIndexId, AccessShareLock);
	scan = systable_beginscan_ordered(rel, index, NULL, 0, NULL);
	while (HeapTupleIsValid(tuple = systable_getnext_ordered(scan,
															 ForwardScanDirection)))
	{
		Form_pg_foreign_server form =
			(Form_pg_foreign_server) GETSTRUCT(tuple);

		if (form->srvfdw == fdwid)
			result = lappend_oid(result, form->oid);
	}
	systable_endscan_ordered(scan);
	index_close(index, AccessShareLock);
	table_close(rel, AccessShareLock);
	return result;
}

bool
outbox_server_get_name(Oid serverid, NameData *name)
{
	HeapTuple	tuple = SearchSysCache1(FOREIGNSERVEROID,
										ObjectIdGetDatum(serverid));

	if (!HeapTupleIsValid(tuple))
		return false;
	*name = ((Form_pg_foreign_server) GETSTRUCT(tuple))->srvname;
	ReleaseSysCache(tuple);
	return true;
}

/* For an error's detail: the names of our servers. */
static char *
outbox_server_names(List *servers)
{
	StringInfoData names;
	ListCell   *lc;

	initStringInfo(&names);
	foreach(lc, servers)
		appendStringInfo(&names, "%s\"%s\"", names.len > 0 ? ", " : "",
						 GetForeignServer(lfirst_oid(lc))->servername);
	return names.data;
}

static Oid
outbox_server_only(void)
{
	static bool registered = false;
	List	   *servers;

	if (only_server_valid)
		return only_server;
	if (!registered)
	{
		CacheRegisterSyscacheCallback(FOREIGNSERVEROID,
									  outbox_server_invalidate, (Datum) 0);
		CacheRegisterSyscacheCallback(FOREIGNDATAWRAPPEROID,
									  outbox_server_invalidate, (Datum) 0);
		registered = true;
	}

	servers = outbox_server_list();
	if (servers == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("there is no server to publish to"),
				 errhint("CREATE SERVER ... FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://...') makes one.")));
	if (list_length(servers) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_AMBIGUOUS_PARAMETER),
				 errmsg("there is more than one server to publish to"),
				 errdetail("Servers are: %s.", outbox_server_names(servers)),
				 errhint("Name one with server => '...', or set amqp_outbox.default_server.")));
	only_server = linitial_oid(servers);
	only_server_valid = true;
	list_free(servers);
	return only_server;
}

/* OID of a server, InvalidOid if there is none; *ours: it is of our wrapper. */
static Oid
outbox_server_look_up(const char *name, bool *ours)
{
	HeapTuple	tuple = SearchSysCache1(FOREIGNSERVERNAME,
										CStringGetDatum(name));
	Form_pg_foreign_server form;
	Oid			serverid;

	if (!HeapTupleIsValid(tuple))
		return InvalidOid;
	form = (Form_pg_foreign_server) GETSTRUCT(tuple);
	serverid = form->oid;
	*ours = form->srvfdw == get_foreign_data_wrapper_oid(OUTBOX_EXTENSION, true);
	ReleaseSysCache(tuple);
	return serverid;
}

bool
outbox_server_is_ours(const char *name)
{
	bool		ours = false;

	return OidIsValid(outbox_server_look_up(name, &ours)) && ours;
}

static Oid
outbox_server_by_name(const char *name)
{
	bool		ours = false;
	Oid			serverid = outbox_server_look_up(name, &ours);

	if (!OidIsValid(serverid))
	{
		List	   *servers = outbox_server_list();

		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("server \"%s\" does not exist", name),
				 servers != NIL
				 ? errdetail("Servers are: %s.", outbox_server_names(servers))
				 : errdetail("There is no server of amqp_outbox."),
				 servers != NIL
				 ? 0
				 : errhint("CREATE SERVER ... FOREIGN DATA WRAPPER amqp_outbox OPTIONS (uri 'amqp://...') makes one.")));
	}
	if (!ours)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("server \"%s\" is not a server of amqp_outbox", name),
				 errdetail("It belongs to another foreign-data wrapper.")));
	return serverid;
}

Oid
outbox_server_of_owner(const char *name)
{
	Oid			serverid = outbox_server_by_name(name);

	if (!outbox_owns_server(serverid, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_FOREIGN_SERVER, name);
	return serverid;
}

Oid
outbox_server_choose(const char *name)
{
	Oid			serverid;
	AclResult	aclresult;

	if (name == NULL && outbox_default_server[0] != '\0')
		name = outbox_default_server;
	serverid = name ? outbox_server_by_name(name) : outbox_server_only();

	aclresult = outbox_server_aclcheck(serverid, GetUserId());
	if (aclresult != ACLCHECK_OK)
		aclcheck_error(aclresult, OBJECT_FOREIGN_SERVER,
					   GetForeignServer(serverid)->servername);
	return serverid;
}

bool
outbox_server_await_key(Oid serverid, NameData *name)
{
	TimestampTz give_up =
		TimestampTzPlusMilliseconds(GetCurrentTimestamp(), OUTBOX_KEY_MS);

	while (outbox_server_get_name(serverid, name))
	{
		if (outbox_catalog_has_server_key(name))
			return true;
		if (GetCurrentTimestamp() >= give_up ||
			!outbox_registry_ask_key(MyDatabaseId, serverid))
			return false;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT |
						 WL_EXIT_ON_PM_DEATH, 10, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	return false;
}

int32
outbox_server_lock_key_of_owner(const char *name)
{
	NameData	server;
	Oid			serverid;
	Oid			locked = InvalidOid;

	/* once it is locked, look again: it may have been renamed meanwhile */
	while ((serverid = outbox_server_of_owner(name)) != locked)
	{
		LockDatabaseObject(ForeignServerRelationId, serverid, 0,
						   AccessShareLock);
		locked = serverid;
	}

	if (!outbox_server_await_key(serverid, &server))
		ereport(DEBUG1,
				(errmsg_internal("no worker makes the key of server \"%s\"",
								 NameStr(server))));
	return outbox_catalog_server_key(&server);
}

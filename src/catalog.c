/*-------------------------------------------------------------------------
 *
 * catalog.c
 *	  The extension's own tables, as sessions that publish see them.
 *
 * What a publishing transaction needs besides the outbox itself: the stable
 * keys of servers, the identity of the database, the largest id for the
 * counter.  Plain scans and inserts, no SPI: this runs inside COMMIT of any
 * session, whatever its settings and rights are.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xlog.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/pg_depend.h"
#include "catalog/pg_extension.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "catalog.h"

/* Attributes of the small tables, in the order of the install script. */
#define Anum_server_key_server_key	1
#define Anum_server_key_server		2
#define Natts_server_key			2
#define Natts_identity				3

typedef struct OutboxKeyEntry
{
	NameData	server;			/* hash key */
	int32		key;
} OutboxKeyEntry;

/* committed keys; valid for one incarnation of the table */
static HTAB *key_cache = NULL;
static Oid	key_cache_relid = InvalidOid;

/*
 * Tables and views that all had the same owner when they were looked at, and
 * that nothing has happened to since then.
 */
static List *owned_relids = NIL;
static Oid	checked_owner = InvalidOid;
static bool owner_is_checked = false;
static uint64 owner_changes = 0;	/* invalidations so far */

/* the identity table that was seen to hold a committed row */
static Oid	identity_seen_relid = InvalidOid;

/*
 * OIDs of our tables
 *
 * A transaction asks for six of them, and two look-ups in PostgreSQL's caches
 * cost more than an entry of a short list.
 */

#define OUTBOX_RELIDS			16
#define OUTBOX_RELID_NAME_LEN	32

static struct
{
	char		relname[OUTBOX_RELID_NAME_LEN];
	Oid			relid;
}			relids[OUTBOX_RELIDS];
static int	nrelids = 0;

static void
outbox_catalog_forget_relids(Datum arg, int cacheid, uint32 hashvalue)
{
	nrelids = 0;
}

/* From now on a change of the catalogs is heard of. */
static void
outbox_catalog_watch_relids(void)
{
	static bool registered = false;

	if (registered)
		return;
	CacheRegisterSyscacheCallback(NAMESPACENAME, outbox_catalog_forget_relids,
								  (Datum) 0);
	CacheRegisterSyscacheCallback(RELNAMENSP, outbox_catalog_forget_relids,
								  (Datum) 0);
	registered = true;
}

static Oid
outbox_catalog_look_up(const char *relname)
{
	Oid			nspoid = get_namespace_oid(OUTBOX_SCHEMA, true);

	if (!OidIsValid(nspoid))
		return InvalidOid;
	return get_relname_relid(relname, nspoid);
}

Oid
outbox_catalog_relid_if_exists(const char *relname)
{
	Oid			relid;

	for (int i = 0; i < nrelids; i++)
		if (strcmp(relids[i].relname, relname) == 0)
			return relids[i].relid;

	outbox_catalog_watch_relids();
	relid = outbox_catalog_look_up(relname);
	if (OidIsValid(relid) && nrelids < OUTBOX_RELIDS &&
		strlen(relname) < OUTBOX_RELID_NAME_LEN)
	{
		strcpy(relids[nrelids].relname, relname);
		relids[nrelids++].relid = relid;
	}
	return relid;
}

Oid
outbox_catalog_relid(const char *relname)
{
	Oid			relid = outbox_catalog_relid_if_exists(relname);

	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table \"%s.%s\" does not exist", OUTBOX_SCHEMA,
						relname),
				 errhint("CREATE EXTENSION amqp_outbox makes it.")));
	return relid;
}

/*
 * The owner
 */

static Oid
outbox_catalog_relation_owner(Oid relid)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", relid);
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}

static void
outbox_catalog_forget_owner(Datum arg, Oid relid)
{
	if (relid != InvalidOid && !list_member_oid(owned_relids, relid))
		return;
	owner_is_checked = false;
	owner_changes++;
}

/* OIDs of all tables and views of the extension, for the process's life. */
static List *
outbox_catalog_members(void)
{
	Relation	rel = table_open(DependRelationId, AccessShareLock);
	List	   *members = NIL;
	ScanKeyData key[2];
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key[0], Anum_pg_depend_refclassid, BTEqualStrategyNumber,
				F_OIDEQ, ObjectIdGetDatum(ExtensionRelationId));
	ScanKeyInit(&key[1], Anum_pg_depend_refobjid, BTEqualStrategyNumber,
				F_OIDEQ,
				ObjectIdGetDatum(get_extension_oid(OUTBOX_EXTENSION, false)));
	scan = systable_beginscan(rel, DependReferenceIndexId, true, NULL, 2, key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_depend form = (Form_pg_depend) GETSTRUCT(tuple);
		MemoryContext old_context;

		if (form->classid != RelationRelationId ||
			form->deptype != DEPENDENCY_EXTENSION)
			continue;
		old_context = MemoryContextSwitchTo(TopMemoryContext);
		members = lappend_oid(members, form->objid);
		MemoryContextSwitchTo(old_context);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return members;
}

static void
outbox_catalog_check_owner(Oid owner)
{
	static bool registered = false;
	List	   *former = owned_relids;
	uint64		changes;
	ListCell   *lc;

	owner_is_checked = false;
	if (!registered)
		CacheRegisterRelcacheCallback(outbox_catalog_forget_owner, (Datum) 0);
	registered = true;
	owned_relids = outbox_catalog_members();
	list_free(former);
	changes = owner_changes;
	foreach(lc, owned_relids)
	{
		if (outbox_catalog_relation_owner(lfirst_oid(lc)) == owner)
			continue;
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("\"%s.%s\" and \"%s.outbox\" have different owners",
						OUTBOX_SCHEMA, get_rel_name(lfirst_oid(lc)),
						OUTBOX_SCHEMA),
				 errdetail("The owner of a table or view can have code run with the rights of whoever uses it."),
				 errhint("Let all tables and views of amqp_outbox have one owner: ALTER TABLE ... OWNER TO ....")));
	}
	/* unless something happened to them in the meantime */
	owner_is_checked = changes == owner_changes;
}

Oid
outbox_catalog_owner(void)
{
	Oid			owner =
		outbox_catalog_relation_owner(outbox_catalog_relid("outbox"));

	if (!owner_is_checked || owner != checked_owner)
		outbox_catalog_check_owner(owner);
	checked_owner = owner;
	return owner;
}

Oid
outbox_catalog_leaf_relid(const char *relname, int leaf)
{
	char		name[NAMEDATALEN];
	int			len = strlen(relname);

	StaticAssertStmt(OUTBOX_NLEAVES <= 10, "a leaf's number has one digit");
	Assert(leaf >= 0 && leaf < OUTBOX_NLEAVES);
	memcpy(name, relname, len);
	name[len] = '_';
	name[len + 1] = '0' + leaf;
	name[len + 2] = '\0';
	return outbox_catalog_relid(name);
}

int64
outbox_catalog_system_identifier(void)
{
	return (int64) GetSystemIdentifier();
}

/*
 * Keys of servers
 */

static void
outbox_catalog_forget_keys(Datum arg, Oid relid)
{
	if (relid == key_cache_relid || relid == InvalidOid)
		key_cache_relid = InvalidOid;
}

static void
outbox_catalog_open_key_cache(Oid relid)
{
	static bool registered = false;
	HASHCTL		ctl = {
		.keysize = sizeof(NameData),
		.entrysize = sizeof(OutboxKeyEntry)
	};

	if (key_cache && key_cache_relid == relid)
		return;
	if (!registered)
	{
		CacheRegisterRelcacheCallback(outbox_catalog_forget_keys, (Datum) 0);
		registered = true;
	}
	if (key_cache)
		hash_destroy(key_cache);
	key_cache = NULL;
	key_cache = hash_create("amqp_outbox server keys", 8, &ctl,
							HASH_ELEM | HASH_BLOBS);
	key_cache_relid = relid;
}

/* The row of a server, as a copy; NULL if there is none. */
static HeapTuple
outbox_catalog_find_row(Relation rel, const NameData *server)
{
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, Anum_server_key_server, BTEqualStrategyNumber, F_NAMEEQ,
				NameGetDatum(server));
	scan = systable_beginscan(rel,
							  outbox_catalog_relid("server_key_server_key"),
							  true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		tuple = heap_copytuple(tuple);
	systable_endscan(scan);
	return tuple;
}

/* The key of a server; 0 if it has none. */
static int32
outbox_catalog_find_key(Relation rel, const NameData *server)
{
	HeapTuple	tuple = outbox_catalog_find_row(rel, server);
	int32		server_key;
	bool		isnull;

	if (!HeapTupleIsValid(tuple))
		return 0;
	server_key = DatumGetInt32(heap_getattr(tuple, Anum_server_key_server_key,
											RelationGetDescr(rel), &isnull));
	heap_freetuple(tuple);
	return server_key;
}

static int32
outbox_catalog_largest_key(Relation rel)
{
	SysScanDesc scan;
	HeapTuple	tuple;
	int32		largest = 0;
	bool		isnull;

	scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
		largest = Max(largest,
					  DatumGetInt32(heap_getattr(tuple,
												 Anum_server_key_server_key,
												 RelationGetDescr(rel),
												 &isnull)));
	systable_endscan(scan);
	return largest;
}

/*
 * Make a key.  Serialized by a lock that is held to the end of the
 * transaction, which is about to commit: only the first message ever to a
 * server comes here, or what is declared for it when it has no worker yet.  It is the first strong lock on the table, so that two
 * of us cannot wait for each other.
 */
static int32
outbox_catalog_make_key(Oid relid, const NameData *server)
{
	Relation	rel = table_open(relid, ShareRowExclusiveLock);
	int32		server_key = outbox_catalog_find_key(rel, server);

	if (server_key == 0)
	{
		Datum		values[Natts_server_key];
		bool		nulls[Natts_server_key] = {false};
		HeapTuple	tuple;

		server_key = outbox_catalog_largest_key(rel) + 1;
		values[0] = Int32GetDatum(server_key);
		values[1] = NameGetDatum(server);
		tuple = heap_form_tuple(RelationGetDescr(rel), values, nulls);
		CatalogTupleInsert(rel, tuple);
		heap_freetuple(tuple);

		/* if this is rolled back, it must not be remembered either */
		CacheInvalidateRelcache(rel);
		CommandCounterIncrement();
	}
	table_close(rel, NoLock);
	return server_key;
}

int32
outbox_catalog_server_key(const NameData *server)
{
	Oid			relid = outbox_catalog_relid("server_key");
	OutboxKeyEntry *entry;
	Relation	rel;
	int32		server_key;

	outbox_catalog_open_key_cache(relid);
	entry = hash_search(key_cache, server, HASH_FIND, NULL);
	if (entry)
		return entry->key;

	rel = table_open(relid, AccessShareLock);
	server_key = outbox_catalog_find_key(rel, server);
	table_close(rel, AccessShareLock);
	if (server_key == 0)
		return outbox_catalog_make_key(relid, server);

	entry = hash_search(key_cache, server, HASH_ENTER, NULL);
	entry->key = server_key;
	return server_key;
}

bool
outbox_catalog_has_server_key(const NameData *server)
{
	Relation	rel = table_open(outbox_catalog_relid("server_key"),
								 AccessShareLock);
	bool		found = outbox_catalog_find_key(rel, server) != 0;

	table_close(rel, AccessShareLock);
	return found;
}

void
outbox_catalog_rename_server(const char *old_name, const char *new_name)
{
	Oid			relid = outbox_catalog_relid_if_exists("server_key");
	NameData	old_server;
	NameData	new_server;
	Relation	rel;
	HeapTuple	tuple;

	if (!OidIsValid(relid))
		return;
	namestrcpy(&old_server, old_name);
	namestrcpy(&new_server, new_name);

	rel = table_open(relid, ShareRowExclusiveLock);
	tuple = outbox_catalog_find_row(rel, &old_server);
	if (HeapTupleIsValid(tuple))
	{
		Datum		values[Natts_server_key] = {0};
		bool		nulls[Natts_server_key] = {false};
		bool		replace[Natts_server_key] = {false, true};

		if (outbox_catalog_find_key(rel, &new_server) != 0)
			ereport(ERROR,
					(errcode(ERRCODE_DUPLICATE_OBJECT),
					 errmsg("cannot rename server \"%s\" to \"%s\"",
							old_name, new_name),
					 errdetail("Messages of a former server \"%s\" are still stored.",
							   new_name),
					 errhint("Choose another name.")));
		values[Anum_server_key_server - 1] = NameGetDatum(&new_server);
		tuple = heap_modify_tuple(tuple, RelationGetDescr(rel), values, nulls,
								  replace);
		CatalogTupleUpdate(rel, &tuple->t_self, tuple);
		CacheInvalidateRelcache(rel);
		CommandCounterIncrement();
	}
	table_close(rel, NoLock);
}

/*
 * Identity
 */

static void
outbox_catalog_insert_identity(Relation rel, bool adopted)
{
	Datum		values[Natts_identity];
	bool		nulls[Natts_identity] = {false};
	HeapTuple	tuple;

	values[0] = Int64GetDatum(outbox_catalog_system_identifier());
	values[1] = ObjectIdGetDatum(MyDatabaseId);
	values[2] = BoolGetDatum(adopted);
	tuple = heap_form_tuple(RelationGetDescr(rel), values, nulls);
	CatalogTupleInsert(rel, tuple);
	heap_freetuple(tuple);
}

/*
 * Two first messages at the same time may both write a row; they are equal,
 * and the table has no unique index that could make one wait for the other.
 */
void
outbox_catalog_claim_identity(void)
{
	Oid			relid = outbox_catalog_relid("identity");
	Relation	rel;
	SysScanDesc scan;
	HeapTuple	tuple;

	if (identity_seen_relid == relid)
		return;

	rel = table_open(relid, RowExclusiveLock);
	scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	tuple = systable_getnext(scan);
	if (!HeapTupleIsValid(tuple))
		outbox_catalog_insert_identity(rel, false);
	/* our own may yet be rolled back */
	else if (!TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(tuple->t_data)))
		identity_seen_relid = relid;
	systable_endscan(scan);
	table_close(rel, NoLock);
}

void
outbox_catalog_adopt(void)
{
	Relation	rel = table_open(outbox_catalog_relid("identity"),
								 ShareRowExclusiveLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0,
										  NULL);
	HeapTuple	tuple;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
		CatalogTupleDelete(rel, &tuple->t_self);
	systable_endscan(scan);
	outbox_catalog_insert_identity(rel, true);
	table_close(rel, NoLock);
}

/*
 * The counter's seed
 */

/*
 * The largest id of one server in one table; the index leads with both.  Any
 * row counts, also that of a prepared transaction.
 */
static int64
outbox_catalog_largest_id(Relation rel, Relation index, int32 server_key,
						  Snapshot snapshot)
{
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	int64		largest = 0;
	bool		isnull;

	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(server_key));
	scan = systable_beginscan_ordered(rel, index, snapshot, 1, &key);
	tuple = systable_getnext_ordered(scan, BackwardScanDirection);
	if (HeapTupleIsValid(tuple))
		largest = DatumGetInt64(heap_getattr(tuple, 2, RelationGetDescr(rel),
											 &isnull));
	systable_endscan_ordered(scan);
	return largest;
}

/* The largest id of these servers in a table, which has the usual key. */
static int64
outbox_catalog_largest_in(const char *relname, const List *server_keys,
						  Snapshot snapshot)
{
	char	   *indexname = psprintf("%s_pkey", relname);
	Relation	rel = table_open(outbox_catalog_relid(relname),
								 AccessShareLock);
	Relation	index = index_open(outbox_catalog_relid(indexname),
								   AccessShareLock);
	int64		largest = 0;
	ListCell   *lc;

	foreach(lc, server_keys)
		largest = Max(largest,
					  outbox_catalog_largest_id(rel, index, lfirst_int(lc),
												snapshot));
	index_close(index, AccessShareLock);
	table_close(rel, AccessShareLock);
	pfree(indexname);
	return largest;
}

/*
 * The same in all leaves of a table; *leaf is set to the one that has it, if
 * it is larger than *largest, which is raised.
 */
static void
outbox_catalog_raise_largest(const char *relname, const List *server_keys,
							 Snapshot snapshot, int64 *largest, int *leaf)
{
	for (int i = 0; i < OUTBOX_NLEAVES; i++)
	{
		char	   *name = psprintf("%s_%d", relname, i);
		int64		id = outbox_catalog_largest_in(name, server_keys, snapshot);

		pfree(name);
		if (id <= *largest)
			continue;
		*largest = id;
		*leaf = i;
	}
}

/* The key of a server in a list, NIL if it has none. */
static List *
outbox_catalog_key_of(const char *server_name)
{
	Oid			relid = outbox_catalog_relid_if_exists("server_key");
	NameData	server;
	Relation	rel;
	int32		server_key;

	if (!OidIsValid(relid))
		return NIL;
	namestrcpy(&server, server_name);
	rel = table_open(relid, AccessShareLock);
	server_key = outbox_catalog_find_key(rel, &server);
	table_close(rel, AccessShareLock);
	return server_key == 0 ? NIL : list_make1_int(server_key);
}

bool
outbox_catalog_has_undelivered(const char *server_name)
{
	List	   *server_keys = outbox_catalog_key_of(server_name);
	int64		written = 0;
	int64		settled = 0;
	int			leaf;

	if (server_keys == NIL)
		return false;
	outbox_catalog_raise_largest("outbox", server_keys, NULL, &written, &leaf);
	outbox_catalog_raise_largest("receipt", server_keys, NULL, &settled, &leaf);
	return written > settled ||
		outbox_catalog_largest_in("deferred", server_keys, NULL) > 0;
}

bool
outbox_catalog_has_stored(const char *server_name)
{
	List	   *server_keys = outbox_catalog_key_of(server_name);
	int64		largest = 0;
	int			leaf;

	if (server_keys == NIL)
		return false;
	outbox_catalog_raise_largest("outbox", server_keys, NULL, &largest, &leaf);
	outbox_catalog_raise_largest("late", server_keys, NULL, &largest, &leaf);
	return largest > 0 ||
		outbox_catalog_largest_in("deferred", server_keys, NULL) > 0 ||
		outbox_catalog_largest_in("dead_letter_item", server_keys, NULL) > 0;
}

static List *
outbox_catalog_server_keys(Snapshot snapshot)
{
	List	   *server_keys = NIL;
	Relation	rel = table_open(outbox_catalog_relid("server_key"),
								 AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, snapshot,
										  0, NULL);
	HeapTuple	tuple;
	bool		isnull;

	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
		server_keys = lappend_int(server_keys,
								  DatumGetInt32(heap_getattr(tuple,
															 Anum_server_key_server_key,
															 RelationGetDescr(rel),
															 &isnull)));
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return server_keys;
}

int
outbox_catalog_server_count(void)
{
	List	   *server_keys = outbox_catalog_server_keys(NULL);
	int			n = list_length(server_keys);

	list_free(server_keys);
	return n;
}

/*
 * Any row counts, also one of a prepared transaction, of a server whose key
 * that transaction made.  A receipt may stand in
 * a later leaf than the message that it settles, but not in an earlier one.
 */
int64
outbox_catalog_next_id(int *leaf)
{
	List	   *server_keys = outbox_catalog_server_keys(SnapshotAny);
	int64		largest = 0;
	int			ignored;

	*leaf = 0;
	outbox_catalog_raise_largest("receipt", server_keys, SnapshotAny,
								 &largest, leaf);
	outbox_catalog_raise_largest("outbox", server_keys, SnapshotAny,
								 &largest, leaf);
	outbox_catalog_raise_largest("late", server_keys, SnapshotAny,
								 &largest, &ignored);
	largest = Max(largest, outbox_catalog_largest_in("deferred", server_keys,
													 SnapshotAny));
	largest = Max(largest, outbox_catalog_largest_in("dead_letter_item", server_keys,
													 SnapshotAny));
	list_free(server_keys);
	return largest + 1;
}

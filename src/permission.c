/*-------------------------------------------------------------------------
 *
 * permission.c
 *	  What roles may publish to a server that has an allow list.
 *
 * Runs at every amqp_publish() to such a server, so what a role may is
 * remembered by the session until something changes that it depends on: the
 * list (whose table is invalidated like the definition of a table), servers,
 * roles, memberships.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_type.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "catalog.h"
#include "compat.h"
#include "pattern.h"
#include "permission.h"
#include "query.h"

#define OUTBOX_ALLOWED_TABLE	"allowed_item"
#define Anum_allowed_item_server_key	1

/* A dropped role is nobody's: pg_has_role() knows that. */
static OutboxQuery allowed = {
	"SELECT pg_catalog.array_agg(a.exchange),"
	" pg_catalog.array_agg(a.routing_key)"
	" FROM amqp_outbox.allowed_item a JOIN amqp_outbox.server_key k"
	" ON k.server_key OPERATOR(pg_catalog.=) a.server_key"
	" WHERE k.server OPERATOR(pg_catalog.=) $1"
	" AND (a.role OPERATOR(pg_catalog.=) 0::pg_catalog.oid"
	" OR pg_catalog.pg_has_role($2, a.role, 'USAGE'))",
	2, {NAMEOID, OIDOID}, NULL
};

typedef struct OutboxPermissionKey
{
	Oid			serverid;
	Oid			roleid;
} OutboxPermissionKey;

typedef struct OutboxPermission
{
	OutboxPermissionKey key;
	bool		everything;
	int			n;
	Datum	   *exchanges;		/* text, patterns */
	Datum	   *routing_keys;
} OutboxPermission;

static HTAB *permissions = NULL;
static MemoryContext permissions_context = NULL;
static Oid	allowed_relid = InvalidOid;
static uint64 changes = 0;		/* invalidations so far */

/*
 * What is remembered
 */

static void
outbox_permission_table_changed(Datum arg, Oid relid)
{
	if (relid == InvalidOid || relid == allowed_relid)
		changes++;
}

static void
outbox_permission_role_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	changes++;
}

static void
outbox_permission_register(void)
{
	/* the owner of the database is a member of pg_database_owner */
	static const int caches[] = {FOREIGNSERVEROID, AUTHOID, AUTHMEMROLEMEM,
	DATABASEOID};
	static bool registered = false;

	if (registered)
		return;
	for (int i = 0; i < (int) lengthof(caches); i++)
		CacheRegisterSyscacheCallback(caches[i],
									  outbox_permission_role_changed,
									  (Datum) 0);
	CacheRegisterRelcacheCallback(outbox_permission_table_changed, (Datum) 0);
	registered = true;
}

/* An empty memory, if something has changed since it was filled. */
static void
outbox_permission_open(void)
{
	static uint64 filled = 0;	/* after so many changes */
	HASHCTL		ctl = {
		.keysize = sizeof(OutboxPermissionKey),
		.entrysize = sizeof(OutboxPermission)
	};

	if (permissions && filled == changes)
		return;
	outbox_permission_register();
	permissions = NULL;
	if (permissions_context)
		MemoryContextReset(permissions_context);
	else
		permissions_context = AllocSetContextCreate(TopMemoryContext,
													"amqp_outbox permissions",
													ALLOCSET_SMALL_SIZES);
	ctl.hcxt = permissions_context;
	filled = changes;
	permissions = hash_create("amqp_outbox permissions", 16, &ctl,
							  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/* The elements of an array, as long as the memory lasts. */
static Datum *
outbox_permission_texts(Datum array, int *n)
{
	MemoryContext old_context = MemoryContextSwitchTo(permissions_context);
	Datum	   *elements;

	deconstruct_array(DatumGetArrayTypePCopy(array), TEXTOID, -1, false,
					  TYPALIGN_INT, &elements, NULL, n);
	MemoryContextSwitchTo(old_context);
	return elements;
}

static void
outbox_permission_load(OutboxPermission *permission)
{
	ForeignServer *server = GetForeignServer(permission->key.serverid);
	NameData	name;
	Datum		values[2];
	OutboxRow	row;

	permission->n = 0;
	permission->everything =
		outbox_owns_server(permission->key.serverid, permission->key.roleid);
	if (permission->everything)
		return;
	allowed_relid = outbox_catalog_relid(OUTBOX_ALLOWED_TABLE);
	namestrcpy(&name, server->servername);
	values[0] = NameGetDatum(&name);
	values[1] = ObjectIdGetDatum(permission->key.roleid);
	if (!outbox_query_latest(&allowed, values, &row) || row.isnull[0])
		return;
	permission->exchanges = outbox_permission_texts(row.values[0],
													&permission->n);
	permission->routing_keys = outbox_permission_texts(row.values[1],
													   &permission->n);
}

static const OutboxPermission *
outbox_permission_of(Oid serverid, Oid roleid)
{
	static OutboxPermission permission;
	OutboxPermission *found;
	uint64		before;

	outbox_permission_open();
	memset(&permission, 0, sizeof(permission));
	permission.key.serverid = serverid;
	permission.key.roleid = roleid;
	found = hash_search(permissions, &permission.key, HASH_FIND, NULL);
	if (found)
		return found;
	before = changes;
	outbox_permission_load(&permission);
	/* unless something changed in the meantime, perhaps after our look */
	if (before == changes)
		*(OutboxPermission *) hash_search(permissions, &permission.key,
										  HASH_ENTER, NULL) = permission;
	return &permission;
}

/*
 * Looking at a message
 */

static bool
outbox_permission_matches(Datum pattern, const char *str, Size len)
{
	const text *t = DatumGetTextPP(pattern);

	return outbox_pattern_matches(VARDATA_ANY(t), VARSIZE_ANY_EXHDR(t), str,
								  len);
}

static bool
outbox_permission_covers(const OutboxPermission *permission,
						 const text *exchange, const char *routing_key,
						 Size len)
{
	for (int i = 0; i < permission->n; i++)
	{
		if (outbox_permission_matches(permission->exchanges[i],
									  VARDATA_ANY(exchange),
									  VARSIZE_ANY_EXHDR(exchange)) &&
			outbox_permission_matches(permission->routing_keys[i],
									  routing_key, len))
			return true;
	}
	return false;
}

static void
outbox_permission_one(const OutboxPermission *permission,
					  const text *exchange, const char *routing_key, Size len,
					  const char *header)
{
	const OutboxPermissionKey *key = &permission->key;

	if (outbox_permission_covers(permission, exchange, routing_key, len))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("role \"%s\" may not publish to exchange \"%s\" of server \"%s\" with routing key \"%s\"",
					GetUserNameFromId(key->roleid, false),
					text_to_cstring(exchange),
					GetForeignServer(key->serverid)->servername,
					pnstrdup(routing_key, len)),
			 header == NULL
			 ? errdetail("The server has an allow list, and no entry for the role covers this.")
			 : errdetail("The server has an allow list, and no entry for the role covers this routing key of the header \"%s\".",
						 header),
			 errhint("The server's owner can allow it with amqp_outbox.allow(server, role, exchange, routing_key).")));
}

/* Whatever text a header holds: the broker takes it from an array. */
static void
outbox_permission_header(const OutboxPermission *permission,
						 const text *exchange, Jsonb *headers,
						 const char *header)
{
	JsonbValue	value;
	JsonbValue *found;
	JsonbIterator *iterator;
	JsonbIteratorToken token;

	if (!JB_ROOT_IS_OBJECT(headers))
		return;
	found = getKeyJsonValueFromContainer(&headers->root, header,
										 strlen(header), NULL);
	if (found == NULL || found->type != jbvBinary)
		return;
	iterator = JsonbIteratorInit(found->val.binary.data);
	while ((token = JsonbIteratorNext(&iterator, &value, false)) != WJB_DONE)
	{
		if ((token == WJB_ELEM || token == WJB_VALUE) &&
			value.type == jbvString)
			outbox_permission_one(permission, exchange, value.val.string.val,
								  value.val.string.len, header);
	}
}

void
outbox_permission_require(Oid serverid, Oid roleid, const text *exchange,
						  const text *routing_key, Jsonb *headers)
{
	const OutboxPermission *permission = outbox_permission_of(serverid, roleid);

	if (permission->everything)
		return;
	outbox_permission_one(permission, exchange, VARDATA_ANY(routing_key),
						  VARSIZE_ANY_EXHDR(routing_key), NULL);
	if (headers == NULL)
		return;
	outbox_permission_header(permission, exchange, headers, "CC");
	outbox_permission_header(permission, exchange, headers, "BCC");
}

/*
 * Changes
 */

void
outbox_permission_note_change(void)
{
	CacheInvalidateRelcacheByRelid(outbox_catalog_relid(OUTBOX_ALLOWED_TABLE));
}

/* By a plain scan, because whoever drops a server need not have any right. */
void
outbox_permission_forget_server(const char *server_name)
{
	NameData	name;
	Relation	rel;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	namestrcpy(&name, server_name);
	if (!OidIsValid(outbox_catalog_relid_if_exists(OUTBOX_ALLOWED_TABLE)) ||
		!outbox_catalog_has_server_key(&name))
		return;
	rel = table_open(outbox_catalog_relid(OUTBOX_ALLOWED_TABLE),
					 RowExclusiveLock);
	ScanKeyInit(&key, Anum_allowed_item_server_key, BTEqualStrategyNumber,
				F_INT4EQ, Int32GetDatum(outbox_catalog_server_key(&name)));
	scan = systable_beginscan(rel, InvalidOid, false, NULL, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
		CatalogTupleDelete(rel, &tuple->t_self);
	systable_endscan(scan);
	table_close(rel, NoLock);
	outbox_permission_note_change();
}

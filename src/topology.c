/*-------------------------------------------------------------------------
 *
 * topology.c
 *	  What the broker shall have, as the tables have it.
 *
 * Every SQL statement about it: those of the sessions that declare something,
 * and those of the worker, which asserts it.  The two meet in the tables only.
 * amqp_outbox.topology_item is written by sessions, but for what the worker has
 * deleted at the broker; amqp_outbox.topology_state by the worker, but that a
 * session takes away what does not hold any more.  A definition that changes
 * gets a new id, so an answer to the old one is never taken for one to the new.
 *
 * The worker never waits for a row that a session has locked: it skips it, and
 * is woken when that session commits.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"

#include "catalog.h"
#include "properties.h"
#include "store.h"
#include "topology.h"

/* Attributes of the tables, in the order of the install script. */
#define Anum_topology_item_id			1
#define Anum_topology_item_server_key	2
#define Anum_topology_state_item_id		1

/* Whether row "i" is item $2 to $6 of server $1. */
#define OUTBOX_SAME_ITEM \
	"i.server_key = $1 AND i.kind = $2::amqp_outbox.topology_kind" \
	" AND i.name = $3 AND i.source = $4 AND i.routing_key = $5" \
	" AND (i.source = '' OR i.arguments::text = $6::text)"

/*
 * Columns of a definition.  1 and 1.0 are equal for jsonb, but not as text, nor
 * in AMQP.
 */
#define OUTBOX_DEFINITION(row, cast) \
	row "type, " row "durable, " row "auto_delete, " row "internal, " \
	row "wanted, " row "arguments" cast

#define OUTBOX_SQL_DECLARE \
	"INSERT INTO amqp_outbox.topology_item AS i (item_id, server_key, kind," \
	" name, source, routing_key, arguments, type, durable, auto_delete," \
	" internal, wanted, if_unused, if_empty)" \
	" VALUES (gen_random_uuid(), $1, $2::amqp_outbox.topology_kind," \
	" $3, $4, $5, $6, $7, $8, $9, $10, true, false, false)" \
	" ON CONFLICT (server_key, kind, name, source, routing_key," \
	" (CASE WHEN source = '' THEN 0" \
	" ELSE hashtextextended(arguments::text COLLATE \"C\", 0) END))" \
	" DO UPDATE SET item_id = excluded.item_id," \
	" (" OUTBOX_DEFINITION("", "") ", if_unused, if_empty) =" \
	" ROW(" OUTBOX_DEFINITION("excluded.", "") ", false, false)" \
	" WHERE (" OUTBOX_DEFINITION("i.", "::text") ") IS DISTINCT FROM" \
	" (" OUTBOX_DEFINITION("excluded.", "::text") ")"

#define OUTBOX_SQL_UNDECLARE \
	"DELETE FROM amqp_outbox.topology_item i WHERE " OUTBOX_SAME_ITEM

#define OUTBOX_SQL_DELETE \
	"UPDATE amqp_outbox.topology_item i SET item_id = gen_random_uuid()," \
	" wanted = false, if_unused = $7, if_empty = $8" \
	" WHERE " OUTBOX_SAME_ITEM

#define OUTBOX_SQL_FIND \
	"SELECT i.type FROM amqp_outbox.topology_item i WHERE " OUTBOX_SAME_ITEM \
	" FOR UPDATE"

/*
 * What the broker said to a definition that is gone; and its refusals of this
 * item and of bindings that name it, which are tried again.
 */
#define OUTBOX_SQL_FORGET \
	"DELETE FROM amqp_outbox.topology_state s WHERE NOT EXISTS" \
	" (SELECT FROM amqp_outbox.topology_item i WHERE i.item_id = s.item_id)" \
	" OR (NOT s.asserted AND EXISTS" \
	" (SELECT FROM amqp_outbox.topology_item i WHERE i.item_id = s.item_id" \
	" AND i.server_key = $1 AND (" OUTBOX_SAME_ITEM \
	" OR (i.source <> '' AND (i.source = $3 OR i.name = $3)))))"

/* $3: the name of an exchange ($2), else of a queue */
#define OUTBOX_SQL_BINDING_OF \
	"SELECT i.kind::text, i.name, i.source FROM amqp_outbox.topology_item i" \
	" WHERE i.server_key = $1 AND i.wanted AND CASE i.kind" \
	" WHEN 'exchange binding' THEN $2 AND (i.name = $3 OR i.source = $3)" \
	" WHEN 'queue binding' THEN CASE WHEN $2 THEN i.source = $3" \
	" ELSE i.name = $3 END ELSE false END" \
	" ORDER BY 1, 2, 3 LIMIT 1"

/*
 * What is to go goes first, bindings before what they bind; what is to be comes
 * in the opposite order.
 */
#define OUTBOX_SQL_READ \
	"SELECT i.item_id, i.kind::text, i.name, i.source, i.routing_key, i.type," \
	" i.durable, i.auto_delete, i.internal, i.wanted, i.if_unused, i.if_empty," \
	" i.arguments, s.asserted" \
	" FROM amqp_outbox.server_key k" \
	" JOIN amqp_outbox.topology_item i ON i.server_key = k.server_key" \
	" LEFT JOIN amqp_outbox.topology_state s ON s.item_id = i.item_id" \
	" WHERE k.server = $1" \
	" AND (s.item_id IS NULL OR $2 OR ($3 AND NOT s.closes_connection))" \
	" ORDER BY i.wanted, CASE WHEN i.wanted THEN i.kind END, i.kind DESC," \
	" i.name, i.source, i.routing_key"

#define OUTBOX_SQL_WRITE_NEW \
	"INSERT INTO amqp_outbox.topology_state (item_id, asserted, reply_code," \
	" last_error, closes_connection, since)" \
	" SELECT i.item_id, $2, $3, $4, $5, clock_timestamp()" \
	" FROM amqp_outbox.topology_item i WHERE i.item_id = $1" \
	" ON CONFLICT DO NOTHING"

#define OUTBOX_SQL_WRITE_OTHER \
	"UPDATE amqp_outbox.topology_state SET asserted = $2, reply_code = $3," \
	" last_error = $4, closes_connection = $5, since = clock_timestamp()" \
	" WHERE item_id = (SELECT s.item_id FROM amqp_outbox.topology_state s" \
	" WHERE s.item_id = $1" \
	" AND (s.asserted, s.reply_code, s.last_error, s.closes_connection)" \
	" IS DISTINCT FROM ($2, $3, $4, $5) FOR UPDATE SKIP LOCKED)"

#define OUTBOX_SQL_DELETED \
	"WITH gone AS (DELETE FROM amqp_outbox.topology_item WHERE item_id =" \
	" (SELECT i.item_id FROM amqp_outbox.topology_item i" \
	" WHERE i.item_id = $1 AND NOT i.wanted FOR UPDATE SKIP LOCKED)" \
	" RETURNING item_id)" \
	" DELETE FROM amqp_outbox.topology_state WHERE item_id =" \
	" (SELECT s.item_id FROM amqp_outbox.topology_state s JOIN gone g" \
	" ON g.item_id = s.item_id FOR UPDATE OF s SKIP LOCKED)"

static const char *const kind_names[] = {
	[OUTBOX_ITEM_EXCHANGE] = "exchange",
	[OUTBOX_ITEM_QUEUE] = "queue",
	[OUTBOX_ITEM_EXCHANGE_BINDING] = "exchange binding",
	[OUTBOX_ITEM_QUEUE_BINDING] = "queue binding"
};

static char *
outbox_topology_describe_binding(const char *kind, const char *source,
								 const char *name)
{
	return psprintf("%s from \"%s\" to \"%s\"", kind, source, name);
}

char *
outbox_topology_describe(const OutboxItem *item)
{
	const char *kind = kind_names[item->kind];

	if (item->kind == OUTBOX_ITEM_EXCHANGE || item->kind == OUTBOX_ITEM_QUEUE)
		return psprintf("%s \"%s\"", kind, item->name);
	return outbox_topology_describe_binding(kind, item->source, item->name);
}

/*
 * Sessions
 */

/* Parameters $1 to $6 of OUTBOX_SAME_ITEM. */
#define OUTBOX_NIDENTITY	6

static Oid	identity_types[] = {INT4OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID,
	JSONBOID, InvalidOid, InvalidOid, InvalidOid, InvalidOid};

static void
outbox_topology_identify(int32 server_key, const OutboxItem *item,
						 Datum *values)
{
	values[0] = Int32GetDatum(server_key);
	values[1] = CStringGetTextDatum(kind_names[item->kind]);
	values[2] = CStringGetTextDatum(item->name);
	values[3] = CStringGetTextDatum(item->source);
	values[4] = CStringGetTextDatum(item->routing_key);
	values[5] = item->arguments ? JsonbPGetDatum(item->arguments) :
		DirectFunctionCall1(jsonb_in, CStringGetDatum("{}"));
}

static uint64
outbox_topology_execute(const char *sql, int nparams, Oid *types,
						Datum *values, const char *nulls)
{
	int			result = SPI_execute_with_args(sql, nparams, types, values,
											   nulls, false, 0);

	if (result < 0)
		elog(ERROR, "could not execute \"%s\": %s", sql,
			 SPI_result_code_string(result));
	return SPI_processed;
}

/*
 * The tables' owner is who may write to them; an error restores the user with
 * the transaction's or subtransaction's end.
 */
static void
outbox_topology_enter(Oid *user, int *context)
{
	GetUserIdAndSecContext(user, context);
	SetUserIdAndSecContext(outbox_catalog_owner(),
						   *context | SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_RESTRICTED_OPERATION);
	SPI_connect();
}

static void
outbox_topology_leave(Oid user, int context)
{
	SPI_finish();
	SetUserIdAndSecContext(user, context);
}

static uint64
outbox_topology_change(const char *sql, int nparams, Oid *types,
					   Datum *values, const char *nulls)
{
	Oid			user;
	int			context;
	uint64		changed;

	outbox_topology_enter(&user, &context);
	changed = outbox_topology_execute(sql, nparams, types, values, nulls);
	outbox_topology_execute(OUTBOX_SQL_FORGET, OUTBOX_NIDENTITY,
							identity_types, values, NULL);
	outbox_topology_leave(user, context);
	return changed;
}

void
outbox_topology_declare(int32 server_key, const OutboxItem *item)
{
	Datum		values[OUTBOX_NIDENTITY + 4];
	char		nulls[OUTBOX_NIDENTITY + 4];
	Oid			types[OUTBOX_NIDENTITY + 4];

	memcpy(types, identity_types, sizeof(types));
	types[6] = TEXTOID;
	types[7] = types[8] = types[9] = BOOLOID;
	memset(nulls, ' ', sizeof(nulls));
	outbox_topology_identify(server_key, item, values);
	if (item->type)
		values[6] = CStringGetTextDatum(item->type);
	else
		nulls[6] = 'n';
	values[7] = BoolGetDatum(item->durable);
	values[8] = BoolGetDatum(item->auto_delete);
	values[9] = BoolGetDatum(item->internal);
	outbox_topology_change(OUTBOX_SQL_DECLARE, lengthof(types), types, values,
						   nulls);
}

bool
outbox_topology_undeclare(int32 server_key, const OutboxItem *item)
{
	Datum		values[OUTBOX_NIDENTITY];

	outbox_topology_identify(server_key, item, values);
	return outbox_topology_change(OUTBOX_SQL_UNDECLARE, OUTBOX_NIDENTITY,
								  identity_types, values, NULL) > 0;
}

bool
outbox_topology_delete(int32 server_key, const OutboxItem *item)
{
	Datum		values[OUTBOX_NIDENTITY + 2];
	Oid			types[OUTBOX_NIDENTITY + 2];

	memcpy(types, identity_types, sizeof(types));
	types[6] = types[7] = BOOLOID;
	outbox_topology_identify(server_key, item, values);
	values[6] = BoolGetDatum(item->if_unused);
	values[7] = BoolGetDatum(item->if_empty);
	return outbox_topology_change(OUTBOX_SQL_DELETE, lengthof(types), types,
								  values, NULL) > 0;
}

bool
outbox_topology_find(int32 server_key, const OutboxItem *item, char **type)
{
	MemoryContext old_context = CurrentMemoryContext;
	Datum		values[OUTBOX_NIDENTITY];
	Oid			user;
	int			context;
	bool		found;

	*type = NULL;
	outbox_topology_identify(server_key, item, values);
	outbox_topology_enter(&user, &context);
	found = outbox_topology_execute(OUTBOX_SQL_FIND, OUTBOX_NIDENTITY,
									identity_types, values, NULL) > 0;
	if (found)
	{
		char	   *value = SPI_getvalue(SPI_tuptable->vals[0],
										 SPI_tuptable->tupdesc, 1);

		if (value)
			*type = MemoryContextStrdup(old_context, value);
	}
	outbox_topology_leave(user, context);
	return found;
}

char *
outbox_topology_binding_of(int32 server_key, const OutboxItem *item)
{
	MemoryContext old_context = CurrentMemoryContext;
	Oid			types[] = {INT4OID, BOOLOID, TEXTOID};
	Datum		values[3];
	char	   *columns[3];
	char	   *binding = NULL;
	Oid			user;
	int			context;

	values[0] = Int32GetDatum(server_key);
	values[1] = BoolGetDatum(item->kind == OUTBOX_ITEM_EXCHANGE);
	values[2] = CStringGetTextDatum(item->name);
	outbox_topology_enter(&user, &context);
	if (outbox_topology_execute(OUTBOX_SQL_BINDING_OF, lengthof(types), types,
								values, NULL) > 0)
	{
		for (int i = 0; i < (int) lengthof(columns); i++)
			columns[i] = SPI_getvalue(SPI_tuptable->vals[0],
									  SPI_tuptable->tupdesc, i + 1);
		binding = outbox_topology_describe_binding(columns[0], columns[2],
												   columns[1]);
		binding = MemoryContextStrdup(old_context, binding);
	}
	outbox_topology_leave(user, context);
	return binding;
}

/*
 * A server is dropped
 *
 * By plain scans, because whoever drops a server need not have any right on
 * our tables, and whatever his settings are.
 */

static void
outbox_topology_forget_state(Relation rel, Datum item_id)
{
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, Anum_topology_state_item_id, BTEqualStrategyNumber,
				F_UUID_EQ, item_id);
	scan = systable_beginscan(rel, outbox_catalog_relid("topology_state_pkey"),
							  true, NULL, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
		CatalogTupleDelete(rel, &tuple->t_self);
	systable_endscan(scan);
}

void
outbox_topology_forget_server(const char *server_name)
{
	NameData	name;
	Relation	items;
	Relation	states;
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		isnull;

	namestrcpy(&name, server_name);
	if (!OidIsValid(outbox_catalog_relid_if_exists("topology_item")) ||
		!outbox_catalog_has_server_key(&name))
		return;
	items = table_open(outbox_catalog_relid("topology_item"),
					   RowExclusiveLock);
	states = table_open(outbox_catalog_relid("topology_state"),
						RowExclusiveLock);
	ScanKeyInit(&key, Anum_topology_item_server_key, BTEqualStrategyNumber,
				F_INT4EQ, Int32GetDatum(outbox_catalog_server_key(&name)));
	scan = systable_beginscan(items, InvalidOid, false, NULL, 1, &key);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		outbox_topology_forget_state(states,
									 heap_getattr(tuple, Anum_topology_item_id,
												  RelationGetDescr(items),
												  &isnull));
		CatalogTupleDelete(items, &tuple->t_self);
	}
	systable_endscan(scan);
	table_close(states, NoLock);
	table_close(items, NoLock);
}

/*
 * The worker
 */

/* A column of a row of the last result as UTF-8, NULL if it is null. */
static const char *
outbox_topology_text(int row, int column)
{
	char	   *str = SPI_getvalue(SPI_tuptable->vals[row],
								   SPI_tuptable->tupdesc, column);

	return str ? pg_server_to_any(str, strlen(str), PG_UTF8) : NULL;
}

static Datum
outbox_topology_datum(int row, int column, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
						 column, isnull);
}

static bool
outbox_topology_bool(int row, int column)
{
	bool		isnull;
	Datum		datum = outbox_topology_datum(row, column, &isnull);

	return !isnull && DatumGetBool(datum);
}

static OutboxItemKind
outbox_topology_kind(const char *name)
{
	for (int i = 0; i < (int) lengthof(kind_names); i++)
	{
		if (strcmp(name, kind_names[i]) == 0)
			return i;
	}
	elog(ERROR, "unexpected kind of topology \"%s\"", name);
	return 0;					/* keep the compiler quiet */
}

/* Columns as in OUTBOX_SQL_READ. */
static void
outbox_topology_form_item(int row, OutboxItem *item)
{
	bool		isnull;
	Jsonb	   *arguments;
	Size		size;

	memset(item, 0, sizeof(*item));
	item->id = *DatumGetUUIDP(outbox_topology_datum(row, 1, &isnull));
	item->kind = outbox_topology_kind(outbox_topology_text(row, 2));
	item->name = outbox_topology_text(row, 3);
	item->source = outbox_topology_text(row, 4);
	item->routing_key = outbox_topology_text(row, 5);
	item->type = outbox_topology_text(row, 6);
	item->durable = outbox_topology_bool(row, 7);
	item->auto_delete = outbox_topology_bool(row, 8);
	item->internal = outbox_topology_bool(row, 9);
	item->wanted = outbox_topology_bool(row, 10);
	item->if_unused = outbox_topology_bool(row, 11);
	item->if_empty = outbox_topology_bool(row, 12);

	/* the table points into the copy */
	arguments = DatumGetJsonbPCopy(outbox_topology_datum(row, 13, &isnull));
	item->table = outbox_properties_build_arguments(arguments, &size);
	if (size > OUTBOX_ARGUMENTS_MAX)
		elog(ERROR, "arguments of %s are too large",
			 outbox_topology_describe(item));
	outbox_topology_datum(row, 14, &isnull);
	item->has_state = !isnull;
	item->was_asserted = outbox_topology_bool(row, 14);
}

/*
 * Whoever declares something writes the identity; items without one are being
 * restored right now.
 */
static bool
outbox_topology_is_own(void)
{
	OutboxIdentity identity = outbox_store_identity();

	return identity == OUTBOX_IDENTITY_OWN ||
		identity == OUTBOX_IDENTITY_ADOPTED;
}

int
outbox_topology_read(MemoryContext context, const char *server_name,
					 OutboxItemChoice choice, OutboxItem **items)
{
	Oid			types[] = {NAMEOID, BOOLOID, BOOLOID};
	Datum		values[3];
	NameData	name;
	MemoryContext old_context;
	int			n;

	if (!outbox_topology_is_own())
		return 0;
	namestrcpy(&name, server_name);
	values[0] = NameGetDatum(&name);
	values[1] = BoolGetDatum(choice == OUTBOX_ITEMS_ALL);
	values[2] = BoolGetDatum(choice == OUTBOX_ITEMS_HARMLESS);
	n = (int) outbox_topology_execute(OUTBOX_SQL_READ, lengthof(types), types,
									  values, NULL);

	old_context = MemoryContextSwitchTo(context);
	*items = palloc((n + 1) * sizeof(OutboxItem));
	for (int i = 0; i < n; i++)
		outbox_topology_form_item(i, *items + i);
	MemoryContextSwitchTo(old_context);
	return n;
}

void
outbox_topology_write(const OutboxItem *item, const OutboxAnswer *answer)
{
	Oid			types[] = {UUIDOID, BOOLOID, INT4OID, TEXTOID, BOOLOID};
	Datum		values[5];
	char		nulls[5];

	values[0] = UUIDPGetDatum(&item->id);
	if (answer->done && !item->wanted)
	{
		outbox_topology_execute(OUTBOX_SQL_DELETED, 1, types, values, NULL);
		return;
	}
	if (answer->done && item->was_asserted)
		return;

	memset(nulls, ' ', sizeof(nulls));
	values[1] = BoolGetDatum(answer->done);
	values[2] = Int32GetDatum(answer->reply_code);
	values[3] = outbox_store_foreign_text(answer->words);
	values[4] = BoolGetDatum(answer->closes_connection);
	if (answer->reply_code == 0)
		nulls[2] = 'n';
	if (answer->done)
		nulls[3] = 'n';
	outbox_topology_execute(item->has_state ? OUTBOX_SQL_WRITE_OTHER :
							OUTBOX_SQL_WRITE_NEW, lengthof(types), types,
							values, nulls);
}

/*-------------------------------------------------------------------------
 *
 * flush.c
 *	  Write a transaction's messages into the outbox, at pre-commit.
 *
 * Everything that may wait or read comes before the ids are taken: from then
 * on the horizon of the database stands still until this transaction ends.
 * Rows are inserted in batches, without triggers and without the executor.
 *
 * A transaction that is being prepared may wait for days, and somebody else
 * will commit it.  It must not hold the horizon: its messages go to
 * amqp_outbox.deferred, where they become visible with COMMIT PREPARED.  So do
 * messages that are to be sent later.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "catalog/indexing.h"
#include "catalog/pg_foreign_server.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/execnodes.h"
#include "storage/lmgr.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "backlog.h"
#include "catalog.h"
#include "flush.h"
#include "horizon.h"
#include "leaf.h"
#include "recent.h"
#include "server.h"

/* A batch is written when it holds this many rows or bytes. */
#define OUTBOX_BATCH_ROWS	128
#define OUTBOX_BATCH_BYTES	(256 * 1024)

/* How a row of the outbox begins: none of these columns is null. */
typedef struct OutboxFlushKey
{
	int32		server_key;		/* the server's OID in what was buffered */
	int64		id;
	char		message_id[FLEXIBLE_ARRAY_MEMBER];	/* text */
} OutboxFlushKey;

typedef struct OutboxFlushServer
{
	Oid			serverid;
	int32		key;
} OutboxFlushServer;

/* A table that is written, and a batch of rows for it. */
typedef struct OutboxFlushTable
{
	Relation	rel;			/* NULL: nothing is written there */
	CatalogIndexState indexes;
	EState	   *estate;			/* for predicates and expressions of indexes */
	ExprState **predicates;		/* of the indexes; NULL: none */
	MemoryContext batch_context;	/* copies of the rows of a batch */
	int			nslots;			/* made so far */
	int			nrows;			/* in the batch */
	Size		nbytes;
	TupleTableSlot *slots[OUTBOX_BATCH_ROWS];
} OutboxFlushTable;

struct OutboxFlush
{
	OutboxFlushTable outbox;	/* a leaf of it; none in a prepared transaction */
	OutboxFlushTable deferred;
	TimestampTz now;			/* what is due later is deferred */
	TimestampTz due_from;		/* of those, the first; 0: none */
	int			nservers;
	OutboxFlushServer *servers;
	int64		next_id;
	int64		end_id;
	bool		noted;			/* backlogs are limited */
};

void
outbox_flush_seed_counter(Oid outbox_relid)
{
	int			leaf;
	int64		next_id;

	if (outbox_horizon_is_seeded(outbox_relid))
		return;
	next_id = outbox_catalog_next_id(&leaf);
	outbox_horizon_seed(outbox_relid, next_id, outbox_leaf_guess(leaf));
}

/* Stable keys of the servers, except those that were dropped meanwhile. */
static void
outbox_flush_map_servers(OutboxFlush *flush, List *servers)
{
	ListCell   *lc;

	flush->servers = palloc(list_length(servers) * sizeof(OutboxFlushServer));

	/*
	 * No DROP or RENAME between this look and the end of our commit.  All
	 * before the first key, which may need a lock that a RENAME has.
	 */
	foreach(lc, servers)
		LockDatabaseObject(ForeignServerRelationId, lfirst_oid(lc), 0,
						   AccessShareLock);
	foreach(lc, servers)
	{
		OutboxFlushServer *map = &flush->servers[flush->nservers];
		NameData	name;

		if (!outbox_server_get_name(lfirst_oid(lc), &name))
			continue;
		map->serverid = lfirst_oid(lc);
		map->key = outbox_catalog_server_key(&name);
		flush->nservers++;
	}
}

static int32
outbox_flush_server_key(OutboxFlush *flush, Oid serverid)
{
	for (int i = 0; i < flush->nservers; i++)
	{
		if (flush->servers[i].serverid == serverid)
			return flush->servers[i].key;
	}
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("a server that this transaction published to was dropped"),
			 errhint("Publish to another server and commit again.")));
	return 0;					/* keep the compiler quiet */
}

/*
 * The first message ever to a server needs a key for it, and whoever makes one
 * keeps others waiting until its transaction ends.  A prepared transaction may
 * take its time, so the server's worker makes it.
 */
static void
outbox_flush_await_keys(List *servers)
{
	ListCell   *lc;

	foreach(lc, servers)
	{
		NameData	name;

		if (!outbox_server_await_key(lfirst_oid(lc), &name) &&
			outbox_server_get_name(lfirst_oid(lc), &name))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("cannot prepare a transaction with the first messages to server \"%s\"",
							NameStr(name)),
					 errdetail("No worker of the server was there to prepare for them."),
					 errhint("Publish to it in an ordinary transaction once, or wait until amqp_outbox.server_status shows its worker.")));
	}
}

static void
outbox_flush_open(OutboxFlushTable *table, Oid relid, LOCKMODE lockmode,
				  int ncolumns)
{
	ResultRelInfo *indexes;

	table->batch_context = AllocSetContextCreate(CurrentMemoryContext,
												 "amqp_outbox flush batch",
												 ALLOCSET_DEFAULT_SIZES);
	table->rel = table_open(relid, lockmode);
	if (RelationGetNumberOfAttributes(table->rel) != ncolumns)
		elog(ERROR, "table \"%s\" has an unexpected shape",
			 RelationGetRelationName(table->rel));
	table->indexes = indexes = CatalogOpenIndexes(table->rel);
	table->predicates = palloc0(indexes->ri_NumIndices * sizeof(ExprState *));
	for (int i = 0; i < indexes->ri_NumIndices; i++)
	{
		IndexInfo  *info = indexes->ri_IndexRelationInfo[i];

		if (info->ii_Predicate == NIL && info->ii_Expressions == NIL)
			continue;
		if (table->estate == NULL)
			table->estate = CreateExecutorState();
		if (info->ii_Predicate != NIL)
			table->predicates[i] = ExecPrepareQual(info->ii_Predicate,
												   table->estate);
	}
}

static void
outbox_flush_open_deferred(OutboxFlush *flush)
{
	outbox_flush_open(&flush->deferred, outbox_catalog_relid("deferred"),
					  RowExclusiveLock,
					  OUTBOX_NCOLUMNS + OUTBOX_NATTEMPT_COLUMNS);
}

static OutboxFlush *
outbox_flush_create(List *servers)
{
	OutboxFlush *flush = palloc0(sizeof(OutboxFlush));

	flush->now = GetCurrentTimestamp();

	/* TOAST wants a snapshot, and at pre-commit there is none. */
	PushActiveSnapshot(GetTransactionSnapshot());
	outbox_flush_map_servers(flush, servers);
	outbox_catalog_claim_identity();
	return flush;
}

OutboxFlush *
outbox_flush_begin(int64 n, List *servers, bool scheduled)
{
	OutboxFlush *flush = outbox_flush_create(servers);
	Oid			relid = outbox_catalog_relid("outbox");
	int			leaf;

	outbox_flush_seed_counter(relid);
	leaf = outbox_leaf_hold(relid);
	outbox_flush_open(&flush->outbox, outbox_catalog_leaf_relid("outbox", leaf),
					  NoLock, OUTBOX_NCOLUMNS);
	if (scheduled)
		outbox_flush_open_deferred(flush);
	flush->next_id = outbox_horizon_register(relid, n);
	flush->end_id = flush->next_id + n;
	/* now that the ids are taken: see there */
	flush->noted = outbox_backlog_is_used();
	return flush;
}

OutboxFlush *
outbox_flush_begin_prepared(int64 n, List *servers)
{
	OutboxFlush *flush;
	Oid			relid = outbox_catalog_relid("outbox");

	outbox_flush_await_keys(servers);
	flush = outbox_flush_create(servers);
	outbox_flush_seed_counter(relid);
	outbox_flush_open_deferred(flush);
	flush->next_id = outbox_horizon_take(relid, n);
	flush->end_id = flush->next_id + n;
	return flush;
}

static bool
outbox_flush_satisfies(OutboxFlushTable *table, ExprState *predicate)
{
	return predicate == NULL ||
		ExecQual(predicate, GetPerTupleExprContext(table->estate));
}

/*
 * Index one row.  Its place is in the slot, not in the slot's tuple: what went
 * into the table may be a toasted copy of that.
 */
static void
outbox_flush_index(OutboxFlushTable *table, TupleTableSlot *slot)
{
	ResultRelInfo *indexes = table->indexes;

	Assert(ItemPointerIsValid(&slot->tts_tid));
	if (table->estate)
		GetPerTupleExprContext(table->estate)->ecxt_scantuple = slot;
	for (int i = 0; i < indexes->ri_NumIndices; i++)
	{
		Relation	index = indexes->ri_IndexRelationDescs[i];
		IndexInfo  *info = indexes->ri_IndexRelationInfo[i];
		Datum		values[INDEX_MAX_KEYS];
		bool		isnull[INDEX_MAX_KEYS];

		/* whoever builds it concurrently will find the row */
		if (!info->ii_ReadyForInserts ||
			!outbox_flush_satisfies(table, table->predicates[i]))
			continue;
		FormIndexDatum(info, slot, table->estate, values, isnull);
		index_insert(index, values, isnull, &slot->tts_tid, table->rel,
					 index->rd_index->indisunique ? UNIQUE_CHECK_YES :
					 UNIQUE_CHECK_NO,
					 false, info);
	}
	if (table->estate)
		ResetPerTupleExprContext(table->estate);
}

static void
outbox_flush_write(OutboxFlushTable *table)
{
	MemoryContext old_context;

	if (table->nrows == 0)
		return;

	old_context = MemoryContextSwitchTo(table->batch_context);
	table_multi_insert(table->rel, table->slots, table->nrows,
					   GetCurrentCommandId(true), 0, NULL);
	for (int i = 0; i < table->nrows; i++)
		outbox_flush_index(table, table->slots[i]);
	MemoryContextSwitchTo(old_context);

	for (int i = 0; i < table->nrows; i++)
		ExecClearTuple(table->slots[i]);
	MemoryContextReset(table->batch_context);
	table->nrows = 0;
	table->nbytes = 0;
}

/* An empty slot of the batch. */
static TupleTableSlot *
outbox_flush_next_slot(OutboxFlushTable *table)
{
	if (table->nrows == table->nslots)
		table->slots[table->nslots++] =
			MakeSingleTupleTableSlot(RelationGetDescr(table->rel),
									 &TTSOpsHeapTuple);
	return table->slots[table->nrows];
}

/* The rest of a row of amqp_outbox.deferred that nobody has tried to send. */
static void
outbox_flush_add_attempts(Datum *values, bool *isnull, TimestampTz due_at)
{
	memset(isnull, true, OUTBOX_NATTEMPT_COLUMNS * sizeof(bool));
	values[OUTBOX_ATTEMPT_COL_DUE_AT] = TimestampTzGetDatum(due_at);
	isnull[OUTBOX_ATTEMPT_COL_DUE_AT] = false;
	values[OUTBOX_ATTEMPT_COL_ATTEMPTS] = Int32GetDatum(0);
	isnull[OUTBOX_ATTEMPT_COL_ATTEMPTS] = false;
	values[OUTBOX_ATTEMPT_COL_POSSIBLE_DUPLICATE] = BoolGetDatum(false);
	isnull[OUTBOX_ATTEMPT_COL_POSSIBLE_DUPLICATE] = false;
}

/*
 * Which table a message goes to: what is due later is deferred, and all of a
 * prepared transaction is.
 */
static OutboxFlushTable *
outbox_flush_table(OutboxFlush *flush, TimestampTz due_at)
{
	if (flush->outbox.rel == NULL)
		return &flush->deferred;
	if (due_at <= flush->now)
		return &flush->outbox;
	if (flush->due_from == 0 || due_at < flush->due_from)
		flush->due_from = due_at;
	return &flush->deferred;
}

/* Takes the next id; returns the server's key. */
static int32
outbox_flush_take_id(OutboxFlush *flush, Oid serverid, Datum message_id)
{
	int32		server_key = outbox_flush_server_key(flush, serverid);

	Assert(flush->next_id < flush->end_id);
	/* what is prepared is not this session's any more; only the last count */
	if (flush->outbox.rel != NULL &&
		flush->end_id - flush->next_id <= OUTBOX_RECENT_SIZE)
		outbox_recent_note(message_id, serverid, server_key, flush->next_id);
	flush->next_id++;
	return server_key;
}

/* The tuple is in the table's batch context. */
static void
outbox_flush_add_tuple(OutboxFlushTable *table, HeapTuple tuple)
{
	ExecStoreHeapTuple(tuple, outbox_flush_next_slot(table), false);
	table->nrows++;
	table->nbytes += tuple->t_len;
	if (table->nrows == OUTBOX_BATCH_ROWS ||
		table->nbytes >= OUTBOX_BATCH_BYTES)
		outbox_flush_write(table);
}

/*
 * A message that need not wait: what was buffered is the row already, but for
 * its key.
 */
static void
outbox_flush_add_buffered(OutboxFlush *flush, MinimalTuple message)
{
	OutboxFlushTable *table = &flush->outbox;
	MemoryContext old_context = MemoryContextSwitchTo(table->batch_context);
	HeapTuple	tuple = heap_tuple_from_minimal_tuple(message);
	OutboxFlushKey *key = (OutboxFlushKey *)
		((char *) tuple->t_data + tuple->t_data->t_hoff);

	MemoryContextSwitchTo(old_context);
	key->id = flush->next_id;
	key->server_key = outbox_flush_take_id(flush, (Oid) key->server_key,
										   PointerGetDatum(key->message_id));
	outbox_flush_add_tuple(table, tuple);
}

/* A message that may have to wait, or is being prepared. */
static void
outbox_flush_add_slot(OutboxFlush *flush, TupleTableSlot *message)
{
	Datum		values[OUTBOX_NCOLUMNS + OUTBOX_NATTEMPT_COLUMNS];
	bool		isnull[OUTBOX_NCOLUMNS + OUTBOX_NATTEMPT_COLUMNS];
	OutboxFlushTable *table;
	TimestampTz due_at;
	MemoryContext old_context;
	HeapTuple	tuple;

	slot_getallattrs(message);
	memcpy(values, message->tts_values, OUTBOX_NCOLUMNS * sizeof(Datum));
	memcpy(isnull, message->tts_isnull, OUTBOX_NCOLUMNS * sizeof(bool));
	values[OUTBOX_COL_ID] = Int64GetDatum(flush->next_id);
	values[OUTBOX_COL_SERVER_KEY] =
		Int32GetDatum(outbox_flush_take_id(flush,
										   DatumGetObjectId(values[OUTBOX_COL_SERVER_KEY]),
										   values[OUTBOX_COL_MESSAGE_ID]));
	due_at = DatumGetTimestampTz(message->tts_isnull[OUTBOX_BUFFERED_COL_DUE_AT] ?
								 values[OUTBOX_COL_ENQUEUED_AT] :
								 message->tts_values[OUTBOX_BUFFERED_COL_DUE_AT]);
	table = outbox_flush_table(flush, due_at);
	if (table == &flush->deferred)
		outbox_flush_add_attempts(values + OUTBOX_NCOLUMNS,
								  isnull + OUTBOX_NCOLUMNS, due_at);

	old_context = MemoryContextSwitchTo(table->batch_context);
	tuple = heap_form_tuple(RelationGetDescr(table->rel), values, isnull);
	MemoryContextSwitchTo(old_context);
	outbox_flush_add_tuple(table, tuple);
}

static void
outbox_flush_note(TupleTableSlot *message)
{
	bool		isnull;
	Datum		serverid = slot_getattr(message, OUTBOX_COL_SERVER_KEY + 1,
										&isnull);
	Datum		body = slot_getattr(message, OUTBOX_COL_BODY + 1, &isnull);
	Datum		headers;
	Datum		role;
	bool		no_headers;
	int64		bytes;

	headers = slot_getattr(message, OUTBOX_COL_HEADERS + 1, &no_headers);
	role = slot_getattr(message, OUTBOX_COL_PUBLISHED_BY + 1, &isnull);
	bytes = outbox_backlog_bytes(VARSIZE_ANY_EXHDR(DatumGetPointer(body)),
								 no_headers ? NULL : DatumGetPointer(headers));

	outbox_backlog_note(DatumGetObjectId(serverid),
						isnull ? NULL : DatumGetTextPP(role), bytes);
}

void
outbox_flush_add(OutboxFlush *flush, TupleTableSlot *message)
{
	bool		must_free;
	MinimalTuple tuple = ExecFetchSlotMinimalTuple(message, &must_free);

	Assert(!must_free);
	if (flush->noted)
		outbox_flush_note(message);
	/* the due time is the last column, and left out if it is null */
	if (flush->outbox.rel != NULL &&
		HeapTupleHeaderGetNatts(tuple) <= OUTBOX_BUFFERED_COL_DUE_AT)
		outbox_flush_add_buffered(flush, tuple);
	else
		outbox_flush_add_slot(flush, message);
}

static void
outbox_flush_close(OutboxFlushTable *table)
{
	if (table->rel == NULL)
		return;
	outbox_flush_write(table);
	for (int i = 0; i < table->nslots; i++)
		ExecDropSingleTupleTableSlot(table->slots[i]);
	if (table->estate)
		FreeExecutorState(table->estate);
	CatalogCloseIndexes(table->indexes);
	table_close(table->rel, NoLock);
}

TimestampTz
outbox_flush_end(OutboxFlush *flush)
{
	Assert(flush->next_id == flush->end_id);
	outbox_flush_close(&flush->outbox);
	outbox_flush_close(&flush->deferred);
	PopActiveSnapshot();
	return flush->due_from;
}

/*-------------------------------------------------------------------------
 *
 * flush.c
 *	  Write a transaction's messages into the outbox, at pre-commit.
 *
 * Everything that may wait or read comes before the ids are taken: from then
 * on the horizon of the database stands still until this transaction ends.
 * Rows are inserted in batches, without triggers and without the executor.
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
#include "nodes/execnodes.h"
#include "storage/lmgr.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "catalog.h"
#include "flush.h"
#include "horizon.h"
#include "leaf.h"
#include "server.h"

/* A batch is written when it holds this many rows or bytes. */
#define OUTBOX_BATCH_ROWS	128
#define OUTBOX_BATCH_BYTES	(256 * 1024)

typedef struct OutboxFlushServer
{
	Oid			serverid;
	int32		key;
} OutboxFlushServer;

struct OutboxFlush
{
	Relation	rel;
	CatalogIndexState indexes;
	int			nservers;
	OutboxFlushServer *servers;
	int64		next_id;
	int64		end_id;
	MemoryContext batch_context;	/* copies of the rows of a batch */
	int			nslots;			/* made so far */
	int			nrows;			/* in the batch */
	Size		nbytes;
	TupleTableSlot *slots[OUTBOX_BATCH_ROWS];
};

void
outbox_flush_seed_counter(Oid outbox_relid)
{
	int			leaf;
	int64		next_id;

	if (outbox_horizon_is_seeded(outbox_relid))
		return;
	next_id = outbox_catalog_next_id(&leaf);
	outbox_horizon_seed(outbox_relid, next_id, leaf);
}

/* Stable keys of the servers, except those that were dropped meanwhile. */
static void
outbox_flush_map_servers(OutboxFlush *flush, List *servers)
{
	ListCell   *lc;

	flush->servers = palloc(list_length(servers) * sizeof(OutboxFlushServer));
	foreach(lc, servers)
	{
		OutboxFlushServer *map = &flush->servers[flush->nservers];
		NameData	name;

		/* no DROP or RENAME between this look and the end of our commit */
		LockDatabaseObject(ForeignServerRelationId, lfirst_oid(lc), 0,
						   AccessShareLock);
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

OutboxFlush *
outbox_flush_begin(int64 n, List *servers)
{
	OutboxFlush *flush = palloc0(sizeof(OutboxFlush));
	Oid			relid = outbox_catalog_relid("outbox");
	int			leaf;

	flush->batch_context = AllocSetContextCreate(CurrentMemoryContext,
												 "amqp_outbox flush batch",
												 ALLOCSET_DEFAULT_SIZES);

	/* TOAST wants a snapshot, and at pre-commit there is none. */
	PushActiveSnapshot(GetTransactionSnapshot());
	outbox_flush_map_servers(flush, servers);
	outbox_catalog_claim_identity();
	outbox_flush_seed_counter(relid);
	leaf = outbox_leaf_hold(relid);
	flush->rel = table_open(outbox_catalog_leaf_relid("outbox", leaf), NoLock);
	if (RelationGetNumberOfAttributes(flush->rel) != OUTBOX_NCOLUMNS)
		elog(ERROR, "table \"%s\" has an unexpected shape",
			 RelationGetRelationName(flush->rel));
	flush->indexes = CatalogOpenIndexes(flush->rel);

	flush->next_id = outbox_horizon_register(relid, n);
	flush->end_id = flush->next_id + n;
	return flush;
}

/*
 * Index one row.  Its place is in the slot, not in the slot's tuple: what went
 * into the table may be a toasted copy of that.
 */
static void
outbox_flush_index(OutboxFlush *flush, TupleTableSlot *slot)
{
	ResultRelInfo *indexes = flush->indexes;

	Assert(ItemPointerIsValid(&slot->tts_tid));
	for (int i = 0; i < indexes->ri_NumIndices; i++)
	{
		Relation	index = indexes->ri_IndexRelationDescs[i];
		IndexInfo  *info = indexes->ri_IndexRelationInfo[i];
		Datum		values[INDEX_MAX_KEYS];
		bool		isnull[INDEX_MAX_KEYS];

		FormIndexDatum(info, slot, NULL, values, isnull);
		index_insert(index, values, isnull, &slot->tts_tid, flush->rel,
					 index->rd_index->indisunique ? UNIQUE_CHECK_YES :
					 UNIQUE_CHECK_NO,
					 false, info);
	}
}

static void
outbox_flush_write(OutboxFlush *flush)
{
	MemoryContext old_context;

	if (flush->nrows == 0)
		return;

	old_context = MemoryContextSwitchTo(flush->batch_context);
	table_multi_insert(flush->rel, flush->slots, flush->nrows,
					   GetCurrentCommandId(true), 0, NULL);
	for (int i = 0; i < flush->nrows; i++)
		outbox_flush_index(flush, flush->slots[i]);
	MemoryContextSwitchTo(old_context);

	for (int i = 0; i < flush->nrows; i++)
		ExecClearTuple(flush->slots[i]);
	MemoryContextReset(flush->batch_context);
	flush->nrows = 0;
	flush->nbytes = 0;
}

/* An empty slot of the batch. */
static TupleTableSlot *
outbox_flush_next_slot(OutboxFlush *flush)
{
	if (flush->nrows == flush->nslots)
		flush->slots[flush->nslots++] =
			MakeSingleTupleTableSlot(RelationGetDescr(flush->rel),
									 &TTSOpsHeapTuple);
	return flush->slots[flush->nrows];
}

void
outbox_flush_add(OutboxFlush *flush, TupleTableSlot *message)
{
	TupleTableSlot *slot = outbox_flush_next_slot(flush);
	MemoryContext old_context;
	HeapTuple	tuple;

	Assert(flush->next_id < flush->end_id);
	slot_getallattrs(message);
	message->tts_values[OUTBOX_COL_SERVER_KEY] =
		Int32GetDatum(outbox_flush_server_key(flush,
											  DatumGetObjectId(message->tts_values[OUTBOX_COL_SERVER_KEY])));
	message->tts_values[OUTBOX_COL_ID] = Int64GetDatum(flush->next_id++);

	old_context = MemoryContextSwitchTo(flush->batch_context);
	tuple = heap_form_tuple(RelationGetDescr(flush->rel),
							message->tts_values, message->tts_isnull);
	MemoryContextSwitchTo(old_context);
	ExecStoreHeapTuple(tuple, slot, false);

	flush->nrows++;
	flush->nbytes += tuple->t_len;
	if (flush->nrows == OUTBOX_BATCH_ROWS ||
		flush->nbytes >= OUTBOX_BATCH_BYTES)
		outbox_flush_write(flush);
}

void
outbox_flush_end(OutboxFlush *flush)
{
	outbox_flush_write(flush);
	Assert(flush->next_id == flush->end_id);

	for (int i = 0; i < flush->nslots; i++)
		ExecDropSingleTupleTableSlot(flush->slots[i]);
	CatalogCloseIndexes(flush->indexes);
	table_close(flush->rel, NoLock);
	PopActiveSnapshot();
}

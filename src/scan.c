/*-------------------------------------------------------------------------
 *
 * scan.c
 *	  The rows of the outbox in the order of their ids.
 *
 * A row stands in one of the outbox's leaves, mostly in the one that was
 * written when its transaction committed.  So the primary keys of the leaves
 * are gone through side by side, and the smallest id is the next.
 *
 * Where an id follows directly upon the one before, no other leaf can hold
 * anything between them: as long as that goes on in the leaf that is written,
 * the others are not even opened.  Ids of other servers and of transactions
 * that were rolled back leave gaps.
 *
 * PostgreSQL's executor would do the same; but to start a statement costs it
 * more than to read some rows, and latency is mostly about single ones.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "horizon.h"
#include "scan.h"

/* A leaf and its next row. */
typedef struct OutboxLeafScan
{
	Relation	table;			/* NULL: not opened */
	Relation	index;
	SysScanDesc rows;
	HeapTuple	tuple;			/* NULL: there are no more */
	int64		id;
} OutboxLeafScan;

struct OutboxScan
{
	int32		server_key;
	int64		after;			/* what is next is beyond this id */
	int64		before;
	int			written;		/* the leaf to begin with */
	bool		merging;		/* all leaves are open */
	OutboxLeafScan *taken;		/* whose row was given out; NULL: none */
	OutboxLeafScan leaves[OUTBOX_NLEAVES];
};

OutboxScan *
outbox_scan_begin(Oid outbox_relid, int32 server_key, int64 after,
				  int64 before)
{
	OutboxScan *scan = palloc0(sizeof(OutboxScan));

	scan->server_key = server_key;
	scan->after = after;
	scan->before = before;
	scan->written = Max(outbox_horizon_leaf(outbox_relid, NULL), 0);
	return scan;
}

static void
outbox_scan_advance(OutboxLeafScan *leaf)
{
	bool		isnull;

	leaf->tuple = systable_getnext_ordered(leaf->rows, ForwardScanDirection);
	if (leaf->tuple != NULL)
		leaf->id = DatumGetInt64(heap_getattr(leaf->tuple, OUTBOX_COL_ID + 1,
											  RelationGetDescr(leaf->table),
											  &isnull));
}

static void
outbox_scan_open(OutboxScan *scan, int leaf_no)
{
	OutboxLeafScan *leaf = &scan->leaves[leaf_no];
	ScanKeyData keys[3];
	Oid			index;

	leaf->table = table_open(outbox_catalog_leaf_relid("outbox", leaf_no),
							 AccessShareLock);
	index = outbox_primary_key_index(leaf->table);
	if (!OidIsValid(index) ||
		RelationGetNumberOfAttributes(leaf->table) != OUTBOX_NCOLUMNS)
		elog(ERROR, "table \"%s\" has an unexpected shape",
			 RelationGetRelationName(leaf->table));
	leaf->index = index_open(index, AccessShareLock);
	ScanKeyInit(&keys[0], OUTBOX_COL_SERVER_KEY + 1, BTEqualStrategyNumber,
				F_INT4EQ, Int32GetDatum(scan->server_key));
	ScanKeyInit(&keys[1], OUTBOX_COL_ID + 1, BTGreaterStrategyNumber,
				F_INT8GT, Int64GetDatum(scan->after));
	ScanKeyInit(&keys[2], OUTBOX_COL_ID + 1, BTLessStrategyNumber,
				F_INT8LT, Int64GetDatum(scan->before));
	leaf->rows = systable_beginscan_ordered(leaf->table, leaf->index,
											GetActiveSnapshot(),
											lengthof(keys), keys);
	outbox_scan_advance(leaf);
}

/* All leaves, from the present place on. */
static void
outbox_scan_merge(OutboxScan *scan)
{
	for (int i = 0; i < OUTBOX_NLEAVES; i++)
		if (scan->leaves[i].table == NULL)
			outbox_scan_open(scan, i);
	scan->merging = true;
}

/* The leaf that holds the next row; NULL: there is none. */
static OutboxLeafScan *
outbox_scan_find(OutboxScan *scan)
{
	OutboxLeafScan *first = &scan->leaves[scan->written];

	if (first->table == NULL)
		outbox_scan_open(scan, scan->written);
	if (!scan->merging)
	{
		int64		id = first->tuple ? first->id : scan->before;

		if (id == scan->after + 1)
			return first->tuple ? first : NULL;
		outbox_scan_merge(scan);
	}
	first = NULL;
	for (int i = 0; i < OUTBOX_NLEAVES; i++)
	{
		OutboxLeafScan *leaf = &scan->leaves[i];

		if (leaf->tuple != NULL && (first == NULL || leaf->id < first->id))
			first = leaf;
	}
	return first;
}

bool
outbox_scan_next(OutboxScan *scan, Datum *values, bool *isnull)
{
	if (scan->taken)
		outbox_scan_advance(scan->taken);
	scan->taken = outbox_scan_find(scan);
	if (scan->taken == NULL)
		return false;
	scan->after = scan->taken->id;
	heap_deform_tuple(scan->taken->tuple, RelationGetDescr(scan->taken->table),
					  values, isnull);
	return true;
}

/* Locks are kept until the transaction ends, as a query's are. */
void
outbox_scan_end(OutboxScan *scan)
{
	for (int i = 0; i < OUTBOX_NLEAVES; i++)
	{
		OutboxLeafScan *leaf = &scan->leaves[i];

		if (leaf->table == NULL)
			continue;
		systable_endscan_ordered(leaf->rows);
		index_close(leaf->index, NoLock);
		table_close(leaf->table, NoLock);
	}
}

/*-------------------------------------------------------------------------
 *
 * leaf.c
 *	  The ring of leaves that outbox, receipt and late are written to.
 *
 * Leaves of the same number belong together: outbox_2, receipt_2 and late_2.
 * One number is written at a time, by everybody; which one that is stands in
 * shared memory (horizon.c).  Whoever writes holds a RowExclusiveLock on the
 * outbox leaf of that number until its transaction ends, and looks again after
 * it has the lock: so nobody ever writes to leaves that are being emptied, and
 * those that a slow transaction writes to are not emptied before it ends, even
 * if by then others are written.
 *
 * Emptying gives each table a new file in the transaction, as TRUNCATE does,
 * but tells nothing to logical decoding: subscribers of a publication FOR ALL
 * TABLES have an outbox of their own.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/table.h"
#include "catalog/index.h"
#include "commands/tablecmds.h"
#include "pgstat.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/predicate.h"
#include "utils/rel.h"
#include "utils/relcache.h"

#include "catalog.h"
#include "compat.h"
#include "horizon.h"
#include "leaf.h"

static const char *const tables[] = {"outbox", "receipt", "late"};

int
outbox_leaf_hold(Oid outbox_relid)
{
	for (;;)
	{
		int			leaf = outbox_horizon_leaf(outbox_relid, NULL);
		Oid			relid = outbox_catalog_leaf_relid("outbox", leaf);

		LockRelationOid(relid, RowExclusiveLock);
		if (outbox_horizon_leaf(outbox_relid, NULL) == leaf)
			return leaf;
		UnlockRelationOid(relid, RowExclusiveLock);
	}
}

/* Bytes of a table and what is toasted; false if it cannot be locked. */
static bool
outbox_leaf_table_size(Oid relid, uint64 *bytes)
{
	Relation	rel;
	Oid			toast_relid;
	BlockNumber blocks;

	if (!ConditionalLockRelationOid(relid, AccessShareLock))
		return false;
	rel = relation_open(relid, NoLock);
	blocks = RelationGetNumberOfBlocks(rel);
	toast_relid = rel->rd_rel->reltoastrelid;
	relation_close(rel, AccessShareLock);
	*bytes = (uint64) blocks * BLCKSZ;

	if (OidIsValid(toast_relid))
	{
		uint64		toast_bytes;

		if (!outbox_leaf_table_size(toast_relid, &toast_bytes))
			return false;
		*bytes += toast_bytes;
	}
	return true;
}

bool
outbox_leaf_size(int leaf, OutboxLeafSize *size)
{
	uint64	   *bytes[] = {&size->outbox, &size->receipt, &size->late};

	for (int i = 0; i < (int) lengthof(tables); i++)
	{
		if (!outbox_leaf_table_size(outbox_catalog_leaf_relid(tables[i], leaf),
									bytes[i]))
			return false;
	}
	return true;
}

static bool
outbox_leaf_is_used(int leaf)
{
	OutboxLeafSize size;

	return !outbox_leaf_size(leaf, &size) ||
		size.outbox > 0 || size.receipt > 0 || size.late > 0;
}

int
outbox_leaf_guess(int by_rows)
{
	bool		used[OUTBOX_NLEAVES];

	for (int i = 0; i < OUTBOX_NLEAVES; i++)
		used[i] = outbox_leaf_is_used(i);
	for (int i = 0; i < OUTBOX_NLEAVES; i++)
	{
		if (used[i] && !used[(i + 1) % OUTBOX_NLEAVES])
			return i;
	}
	return by_rows;
}

/* With what is toasted: autovacuum may be busy with that alone. */
static bool
outbox_leaf_lock_table(Oid relid)
{
	Oid			toast_relid;
	Relation	rel;

	if (!ConditionalLockRelationOid(relid, AccessExclusiveLock))
		return false;
	rel = relation_open(relid, NoLock);
	toast_relid = rel->rd_rel->reltoastrelid;
	relation_close(rel, NoLock);
	return !OidIsValid(toast_relid) ||
		ConditionalLockRelationOid(toast_relid, AccessExclusiveLock);
}

bool
outbox_leaf_lock(int leaf)
{
	for (int i = 0; i < (int) lengthof(tables); i++)
	{
		if (!outbox_leaf_lock_table(outbox_catalog_leaf_relid(tables[i], leaf)))
			return false;
	}
	return true;
}

static void
outbox_leaf_empty_table(Oid relid)
{
	ReindexParams params = {0};
	Relation	rel = table_open(relid, NoLock);
	Oid			toast_relid = rel->rd_rel->reltoastrelid;

	Assert(CheckRelationLockedByMe(rel, AccessExclusiveLock, false));
	CheckTableNotInUse(rel, "TRUNCATE");
	CheckTableForSerializableConflictIn(rel);
	outbox_new_file(rel);
	if (OidIsValid(toast_relid))
	{
		Relation	toast = relation_open(toast_relid, NoLock);

		outbox_new_file(toast);
		table_close(toast, NoLock);
	}
	pgstat_count_truncate(rel);
	table_close(rel, NoLock);
	outbox_reindex_relation(relid, REINDEX_REL_PROCESS_TOAST, &params);
}

void
outbox_leaf_empty(int leaf)
{
	for (int i = 0; i < (int) lengthof(tables); i++)
		outbox_leaf_empty_table(outbox_catalog_leaf_relid(tables[i], leaf));
}

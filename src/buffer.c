/*-------------------------------------------------------------------------
 *
 * buffer.c
 *	  The messages of the current transaction, until it commits.
 *
 * amqp_publish() puts messages on a pile that belongs to the top transaction
 * and spills to disk beyond a few work_mem.  At pre-commit they go
 * into the outbox (flush.c), as NOTIFY does with its queue: a transaction that
 * rolls back writes nothing, and one that runs for an hour holds up nobody.
 *
 * A subtransaction that rolls back takes its messages with it.  For each open
 * subtransaction that has put something we remember its first message; what
 * an aborted one dropped is a range of message numbers that the flush skips.
 * The number of subtransactions is the only thing that memory grows with.
 *
 * A pile that fails in a put is corrupt even if somebody catches the
 * error; then the buffer is spoilt and the transaction can only roll back.
 *
 * Runs in every backend that publishes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"

#include "backlog.h"
#include "buffer.h"
#include "catalog.h"
#include "flush.h"
#include "horizon.h"
#include "pile.h"
#include "recent.h"
#include "registry.h"

/*
 * The memory of the buffer, in work_mem: a transaction has one of it, not one
 * for each node of each plan, and a file costs half as much again for a message.
 */
#define OUTBOX_BUFFER_WORK_MEMS		4

/* A body of more bytes is put away by itself. */
#define OUTBOX_BUFFER_LARGE			4096

/* An open subtransaction that has put messages. */
typedef struct OutboxLevel
{
	int			nest_level;		/* as GetCurrentTransactionNestLevel() */
	int64		first;			/* number of its first message */
} OutboxLevel;

/* Messages that were rolled back to a savepoint. */
typedef struct OutboxRange
{
	int64		first;
	int64		end;			/* one past the last */
} OutboxRange;

typedef struct OutboxBuffer
{
	MemoryContext context;		/* below TopTransactionContext */
	TupleDesc	tupdesc;		/* of buffered messages */
	OutboxPile *pile;
	int64		count;			/* messages put, dropped ones too */
	int64		dropped;
	List	   *servers;		/* OIDs */
	bool		scheduled;		/* one or more had a due time */
	TimestampTz due_from;		/* of those written to be sent later; 0: none */
	bool		spoilt;
	bool		flushed;

	OutboxLevel *levels;		/* ascending in both fields */
	int			nlevels;
	int			levels_size;
	OutboxRange *ranges;		/* ascending, disjoint */
	int			nranges;
	int			ranges_size;
} OutboxBuffer;

static OutboxBuffer *buffer = NULL;

/*
 * Its messages are being written or have been, or it had none: whoever publishes
 * now is too late, and hears it.
 */
static bool committing = false;

/*
 * The columns of buffered messages: those of the outbox and the due time, and
 * the same without the last ones, by their number.  Remembered for the life of
 * the session.
 */
static TupleDesc tupdescs[OUTBOX_NBUFFERED_COLUMNS + 1];

/* All columns. */
static TupleDesc
outbox_buffer_tupdesc(void)
{
	static Oid	tupdesc_relid = InvalidOid;
	Oid			relid = outbox_catalog_relid("outbox");
	TupleDesc	tupdesc;
	MemoryContext old_context;
	Relation	rel;

	if (relid == tupdesc_relid)
		return tupdescs[OUTBOX_NBUFFERED_COLUMNS];

	rel = table_open(relid, AccessShareLock);
	if (RelationGetNumberOfAttributes(rel) != OUTBOX_NCOLUMNS)
		elog(ERROR, "table \"%s\" has an unexpected shape",
			 RelationGetRelationName(rel));
	old_context = MemoryContextSwitchTo(TopMemoryContext);
	tupdesc = CreateTemplateTupleDesc(OUTBOX_NBUFFERED_COLUMNS);
	for (int i = 1; i <= OUTBOX_NCOLUMNS; i++)
		TupleDescCopyEntry(tupdesc, i, RelationGetDescr(rel), i);
	TupleDescInitEntry(tupdesc, OUTBOX_BUFFERED_COL_DUE_AT + 1, "due_at",
					   TIMESTAMPTZOID, -1, 0);
	MemoryContextSwitchTo(old_context);
	table_close(rel, AccessShareLock);
	memset(tupdescs, 0, sizeof(tupdescs));
	tupdescs[OUTBOX_NBUFFERED_COLUMNS] = tupdesc;
	tupdesc_relid = relid;
	return tupdesc;
}

/*
 * Without the nulls at the end of a message; most have many.  As in rows that
 * are older than a column of their table, what is not there is null.
 */
static TupleDesc
outbox_buffer_short_tupdesc(const bool *isnull)
{
	int			n = OUTBOX_NBUFFERED_COLUMNS;
	TupleDesc	all = tupdescs[OUTBOX_NBUFFERED_COLUMNS];
	TupleDesc	tupdesc;
	MemoryContext old_context;

	while (isnull[n - 1])
		n--;
	if (tupdescs[n] != NULL)
		return tupdescs[n];

	old_context = MemoryContextSwitchTo(TopMemoryContext);
	tupdesc = CreateTemplateTupleDesc(n);
	for (int i = 1; i <= n; i++)
		TupleDescCopyEntry(tupdesc, i, all, i);
	MemoryContextSwitchTo(old_context);
	tupdescs[n] = tupdesc;
	return tupdesc;
}

/* In kB. */
static int
outbox_buffer_memory(void)
{
	return Min(work_mem, MAX_KILOBYTES / OUTBOX_BUFFER_WORK_MEMS) *
		OUTBOX_BUFFER_WORK_MEMS;
}

static void
outbox_buffer_create(void)
{
	TupleDesc	tupdesc = outbox_buffer_tupdesc();
	MemoryContext context = AllocSetContextCreate(TopTransactionContext,
												  "amqp_outbox buffer",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old_context = MemoryContextSwitchTo(context);
	OutboxBuffer *new_buffer = palloc0(sizeof(OutboxBuffer));

	new_buffer->context = context;
	new_buffer->tupdesc = tupdesc;
	new_buffer->pile = outbox_pile_create(outbox_buffer_memory());
	MemoryContextSwitchTo(old_context);
	buffer = new_buffer;
}

/* Make sure that an array has room for one more. */
static void *
outbox_buffer_grow(void *array, int n, int *size, Size element)
{
	if (n < *size)
		return array;
	*size = *size ? *size * 2 : 16;
	if (array == NULL)
		return MemoryContextAlloc(buffer->context, *size * element);
	return repalloc_huge(array, *size * element);
}

/*
 * Remember at which message the current subtransaction began.  Room for the
 * range that its rollback would make is taken now: an abort must not fail for
 * lack of memory.
 */
static void
outbox_buffer_note_level(void)
{
	int			nest_level = GetCurrentTransactionNestLevel();

	if (nest_level == 1 ||
		(buffer->nlevels > 0 &&
		 buffer->levels[buffer->nlevels - 1].nest_level == nest_level))
		return;

	Assert(buffer->nlevels == 0 ||
		   buffer->levels[buffer->nlevels - 1].nest_level < nest_level);
	buffer->levels = outbox_buffer_grow(buffer->levels, buffer->nlevels,
										&buffer->levels_size,
										sizeof(OutboxLevel));
	buffer->ranges = outbox_buffer_grow(buffer->ranges,
										buffer->nranges + buffer->nlevels,
										&buffer->ranges_size,
										sizeof(OutboxRange));
	buffer->levels[buffer->nlevels++] = (OutboxLevel)
	{
		.nest_level = nest_level,.first = buffer->count
	};
}

static void
outbox_buffer_check_usable(void)
{
	if (committing)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot publish while the transaction is being committed")));
	if (buffer->spoilt)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("messages of this transaction were lost by an earlier error"),
				 errhint("Roll the transaction back.")));
}

void
outbox_buffer_put(Oid serverid, Datum *values, bool *isnull)
{
	ResourceOwner old_owner = CurrentResourceOwner;
	MemoryContext old_context;
	TupleDesc	tupdesc;
	Pointer		body = DatumGetPointer(values[OUTBOX_COL_BODY]);

	/*
	 * Temporary files must live as long as the transaction, not as the portal
	 * or subtransaction that happens to be the first to need one.
	 */
	CurrentResourceOwner = TopTransactionResourceOwner;
	if (buffer == NULL)
		outbox_buffer_create();
	outbox_buffer_check_usable();
	outbox_buffer_note_level();

	old_context = MemoryContextSwitchTo(buffer->context);
	buffer->servers = list_append_unique_oid(buffer->servers, serverid);
	MemoryContextSwitchTo(old_context);

	values[OUTBOX_COL_SERVER_KEY] = ObjectIdGetDatum(serverid);
	isnull[OUTBOX_COL_SERVER_KEY] = false;
	values[OUTBOX_COL_ID] = Int64GetDatum(0);
	isnull[OUTBOX_COL_ID] = false;
	buffer->scheduled |= !isnull[OUTBOX_BUFFERED_COL_DUE_AT];

	tupdesc = outbox_buffer_short_tupdesc(isnull);
	buffer->spoilt = true;
	outbox_pile_add(buffer->pile, tupdesc, values, isnull,
					VARSIZE_ANY(body) > OUTBOX_BUFFER_LARGE);
	buffer->spoilt = false;
	buffer->count++;
	CurrentResourceOwner = old_owner;
}

void
outbox_buffer_visit(OutboxBufferVisitor visit, void *arg)
{
	TupleTableSlot *slot;
	int			range = 0;

	if (buffer == NULL || buffer->spoilt || buffer->flushed)
		return;

	slot = MakeSingleTupleTableSlot(buffer->tupdesc, &TTSOpsMinimalTuple);
	outbox_pile_rewind(buffer->pile);
	for (int64 i = 0; i < buffer->count; i++)
	{
		if (!outbox_pile_next(buffer->pile, slot))
			elog(ERROR, "buffer of amqp_outbox ends early");
		while (range < buffer->nranges && buffer->ranges[range].end <= i)
			range++;
		if (range < buffer->nranges && buffer->ranges[range].first <= i)
			continue;
		CHECK_FOR_INTERRUPTS();
		visit(slot, arg);
	}
	ExecDropSingleTupleTableSlot(slot);
}

/*
 * Subtransactions
 */

static void
outbox_buffer_drop_from(int64 first)
{
	OutboxRange *ranges = buffer->ranges;
	int			n = buffer->nranges;

	/* swallow what inner subtransactions dropped since */
	while (n > 0 && ranges[n - 1].end >= first)
	{
		first = Min(first, ranges[n - 1].first);
		buffer->dropped -= ranges[n - 1].end - ranges[n - 1].first;
		n--;
	}
	Assert(n < buffer->ranges_size);
	ranges[n] = (OutboxRange)
	{
		.first = first,.end = buffer->count
	};
	buffer->nranges = n + 1;
	buffer->dropped += buffer->count - first;
}

static void
outbox_buffer_subxact_aborted(int nest_level)
{
	int64		first = buffer->count;

	while (buffer->nlevels > 0 &&
		   buffer->levels[buffer->nlevels - 1].nest_level >= nest_level)
		first = buffer->levels[--buffer->nlevels].first;
	if (first < buffer->count)
		outbox_buffer_drop_from(first);
}

/* What the subtransaction put is now its parent's. */
static void
outbox_buffer_subxact_committed(int nest_level)
{
	OutboxLevel *level;
	int			parent = nest_level - 1;

	if (buffer->nlevels == 0)
		return;
	level = &buffer->levels[buffer->nlevels - 1];
	if (level->nest_level < nest_level)
		return;
	Assert(level->nest_level == nest_level);

	if (parent == 1 ||
		(buffer->nlevels > 1 && level[-1].nest_level == parent))
		buffer->nlevels--;
	else
		level->nest_level = parent;
}

static void
outbox_buffer_subxact_callback(SubXactEvent event, SubTransactionId mySubid,
							   SubTransactionId parentSubid, void *arg)
{
	if (event == SUBXACT_EVENT_COMMIT_SUB)
		outbox_backlog_subxact_committed(GetCurrentTransactionNestLevel());
	else if (event == SUBXACT_EVENT_ABORT_SUB)
		outbox_backlog_subxact_aborted(GetCurrentTransactionNestLevel());
	if (buffer == NULL)
		return;
	if (event == SUBXACT_EVENT_COMMIT_SUB)
		outbox_buffer_subxact_committed(GetCurrentTransactionNestLevel());
	else if (event == SUBXACT_EVENT_ABORT_SUB)
		outbox_buffer_subxact_aborted(GetCurrentTransactionNestLevel());
}

/*
 * The end of the transaction
 */

static void
outbox_buffer_add_to_flush(TupleTableSlot *message, void *arg)
{
	outbox_flush_add((OutboxFlush *) arg, message);
}

/* Write the messages, at pre-commit or when the transaction is prepared. */
static void
outbox_buffer_flush(bool prepare)
{
	MemoryContext old_context;
	OutboxFlush *flush;
	int64		n;

	if (buffer)
		outbox_buffer_check_usable();
	/* the predicate of an index may call anything */
	committing = true;
	if (buffer == NULL)
		return;

	old_context = MemoryContextSwitchTo(buffer->context);
	n = buffer->count - buffer->dropped;
	if (n > 0)
	{
		/* locks on several servers are always taken in one order */
		list_sort(buffer->servers, list_oid_cmp);
		flush = prepare ? outbox_flush_begin_prepared(n, buffer->servers) :
			outbox_flush_begin(n, buffer->servers, buffer->scheduled);
		outbox_buffer_visit(outbox_buffer_add_to_flush, flush);
		buffer->due_from = outbox_flush_end(flush);
	}
	outbox_pile_end(buffer->pile);
	buffer->pile = NULL;
	buffer->flushed = true;
	MemoryContextSwitchTo(old_context);
}

static void
outbox_buffer_xact_callback(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			outbox_buffer_flush(false);
			break;
		case XACT_EVENT_PRE_PREPARE:
			outbox_buffer_flush(true);
			break;
		case XACT_EVENT_COMMIT:
			committing = false;
			outbox_backlog_end(true);
			outbox_horizon_clear(XactLastCommitEnd);
			if (buffer && buffer->due_from != 0)
				outbox_registry_deferred(MyDatabaseId, buffer->due_from);
			buffer = NULL;
			break;
		case XACT_EVENT_ABORT:
			if (outbox_horizon_registered())
				outbox_recent_forget();
			/* FALLTHROUGH */
		case XACT_EVENT_PREPARE:
			committing = false;
			/* memory and files go with the transaction */
			buffer = NULL;
			outbox_backlog_end(false);
			outbox_horizon_clear(InvalidXLogRecPtr);
			break;
		case XACT_EVENT_PARALLEL_PRE_COMMIT:
		case XACT_EVENT_PARALLEL_COMMIT:
		case XACT_EVENT_PARALLEL_ABORT:
			/* publishing is refused in parallel mode */
			break;
	}
}

void
outbox_buffer_install_callbacks(void)
{
	RegisterXactCallback(outbox_buffer_xact_callback, NULL);
	RegisterSubXactCallback(outbox_buffer_subxact_callback, NULL);
}

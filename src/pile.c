/*-------------------------------------------------------------------------
 *
 * pile.c
 *	  Rows in the order in which they came: in memory, then on disk.
 *
 * A tuplestore holds each row in memory of its own, rounded up to the next
 * power of two, and fetching that memory costs more than making the row.  So
 * rows are collected in packs, and a pack that is full becomes a row of the
 * tuplestore.  A pile of a few rows has no tuplestore at all.
 *
 * What the tuplestore holds is either a pack, a row of one column, or a large
 * row that came by itself, which has more.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "utils/resowner.h"
#include "utils/tuplestore.h"

#include "compat.h"
#include "pile.h"

/* Bytes of the first pack, and of all packs if there are several. */
#define OUTBOX_PACK_FIRST	2048
#define OUTBOX_PACK_SIZE	(32 * 1024)

/* Below that a bytea would get a short header, and be out of alignment. */
#define OUTBOX_PACK_MIN		256

/* A bytea of minimal tuples, each aligned. */
typedef struct OutboxPack
{
	int32		vl_len_;
	int32		used;			/* bytes, of this, too */
	char		tuples[FLEXIBLE_ARRAY_MEMBER];
} OutboxPack;

#define OUTBOX_PACK_EMPTY	((int) offsetof(OutboxPack, tuples))

struct OutboxPile
{
	MemoryContext context;
	ResourceOwner owner;
	int			memory;			/* kB */

	OutboxPack *last;			/* which is being filled */
	int			size;			/* of its memory, bytes */

	Tuplestorestate *store;		/* what came before; NULL: nothing did */
	TupleDesc	pack_tupdesc;
	TupleTableSlot *fetched;	/* of the store */

	OutboxPack *pack;			/* being read; NULL: read on in the store */
	int			offset;			/* of the next tuple in it */
	bool		at_last;		/* it is the last one */
};

OutboxPile *
outbox_pile_create(int memory)
{
	OutboxPile *pile = palloc0(sizeof(OutboxPile));

	pile->context = CurrentMemoryContext;
	pile->owner = CurrentResourceOwner;
	pile->memory = memory;
	pile->size = OUTBOX_PACK_FIRST;
	pile->last = palloc(pile->size);
	pile->last->used = OUTBOX_PACK_EMPTY;
	return pile;
}

/*
 * Adding
 */

static void
outbox_pile_open_store(OutboxPile *pile)
{
	MemoryContext old_context = MemoryContextSwitchTo(pile->context);
	ResourceOwner old_owner = CurrentResourceOwner;

	CurrentResourceOwner = pile->owner;
	pile->store = tuplestore_begin_heap(false, false, pile->memory);
	CurrentResourceOwner = old_owner;
	pile->pack_tupdesc = CreateTemplateTupleDesc(1);
	TupleDescInitEntry(pile->pack_tupdesc, 1, "pack", BYTEAOID, -1, 0);
	pile->fetched = MakeSingleTupleTableSlot(pile->pack_tupdesc,
											 &TTSOpsMinimalTuple);
	MemoryContextSwitchTo(old_context);
}

/* Put the last pack away, if there is something in it. */
static void
outbox_pile_close_pack(OutboxPile *pile)
{
	Datum		value = PointerGetDatum(pile->last);
	bool		isnull = false;

	if (pile->store == NULL)
		outbox_pile_open_store(pile);
	if (pile->last->used == OUTBOX_PACK_EMPTY)
		return;
	SET_VARSIZE(pile->last, Max(pile->last->used, OUTBOX_PACK_MIN));
	tuplestore_putvalues(pile->store, pile->pack_tupdesc, &value, &isnull);
	pile->last->used = OUTBOX_PACK_EMPTY;
}

/* Make room for so many bytes in the last pack; false if it cannot be. */
static bool
outbox_pile_make_room(OutboxPile *pile, int len)
{
	if (len <= pile->size - pile->last->used)
		return true;
	if (len > OUTBOX_PACK_SIZE - OUTBOX_PACK_EMPTY)
		return false;
	if (pile->size == OUTBOX_PACK_SIZE)
		outbox_pile_close_pack(pile);
	else
	{
		pile->last = repalloc(pile->last, OUTBOX_PACK_SIZE);
		pile->size = OUTBOX_PACK_SIZE;
		if (len > pile->size - pile->last->used)
			outbox_pile_close_pack(pile);
	}
	return true;
}

void
outbox_pile_add(OutboxPile *pile, TupleDesc tupdesc, Datum *values,
				bool *isnull, bool large)
{
	Assert(tupdesc->natts > 1);
	if (!large)
	{
		MinimalTuple tuple = outbox_form_minimal_tuple(tupdesc, values, isnull);
		int			len = MAXALIGN(tuple->t_len);
		bool		fits = outbox_pile_make_room(pile, len);

		if (fits)
		{
			memcpy((char *) pile->last + pile->last->used, tuple, tuple->t_len);
			pile->last->used += len;
		}
		pfree(tuple);
		if (fits)
			return;
	}
	outbox_pile_close_pack(pile);
	tuplestore_putvalues(pile->store, tupdesc, values, isnull);
}

/*
 * Reading
 */

void
outbox_pile_rewind(OutboxPile *pile)
{
	if (pile->store != NULL)
		tuplestore_rescan(pile->store);
	pile->pack = NULL;
	pile->at_last = false;
}

static void
outbox_pile_open_pack(OutboxPile *pile, OutboxPack *pack)
{
	pile->pack = pack;
	pile->offset = OUTBOX_PACK_EMPTY;
}

/* The next tuple of the pack that is open. */
static bool
outbox_pile_next_of_pack(OutboxPile *pile, TupleTableSlot *slot)
{
	MinimalTuple tuple = (MinimalTuple) ((char *) pile->pack + pile->offset);

	if (pile->offset == pile->pack->used)
		return false;
	ExecStoreMinimalTuple(tuple, slot, false);
	pile->offset += MAXALIGN(tuple->t_len);
	return true;
}

bool
outbox_pile_next(OutboxPile *pile, TupleTableSlot *slot)
{
	MinimalTuple tuple;
	bool		must_free;

	for (;;)
	{
		if (pile->pack != NULL && outbox_pile_next_of_pack(pile, slot))
			return true;
		if (pile->at_last)
			return false;
		if (pile->store == NULL ||
			!tuplestore_gettupleslot(pile->store, true, false, pile->fetched))
		{
			outbox_pile_open_pack(pile, pile->last);
			pile->at_last = true;
			continue;
		}
		tuple = ExecFetchSlotMinimalTuple(pile->fetched, &must_free);
		Assert(!must_free);
		if (HeapTupleHeaderGetNatts(tuple) > 1)
		{
			pile->pack = NULL;
			ExecStoreMinimalTuple(tuple, slot, false);
			return true;
		}
		outbox_pile_open_pack(pile, (OutboxPack *)
							  ((char *) tuple + tuple->t_hoff -
							   MINIMAL_TUPLE_OFFSET));
	}
}

void
outbox_pile_end(OutboxPile *pile)
{
	if (pile->store != NULL)
	{
		ExecDropSingleTupleTableSlot(pile->fetched);
		tuplestore_end(pile->store);
	}
	pfree(pile->last);
	pfree(pile);
}

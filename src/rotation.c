/*-------------------------------------------------------------------------
 *
 * rotation.c
 *	  When the ring of leaves turns, and when its oldest leaf is emptied.
 *
 * Nothing in outbox, receipt and late is ever updated or deleted, so nothing
 * there needs a vacuum; instead a leaf goes as a whole, the oldest first.
 *
 *		oldest ... settled, kept ... not settled ... written | empty ...
 *		   | emptied when settled and							^
 *		   | past amqp_outbox.retention							| next
 *
 * The ring turns when the leaf that is written is large or old and the next
 * one is empty.  If it is not, the present one is written on, and the log says
 * what holds the oldest one.
 *
 * A leaf may be emptied when, seen with its tables locked, each message in it
 * is settled by a receipt older than the retention, and when none of its
 * receipts is the newest of its server.  Those are first copied to the leaf
 * that is written, in a transaction of their own a while before: somebody who
 * reads receipts with an older snapshot (pg_dump) finds the copy where the
 * original is gone.  Leaves go in the order of their age because what is said
 * of a message in a receipt or in late stands in its leaf or in a later one.
 *
 * Runs in the workers, in one at a time.  No lock is waited for.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "storage/lmgr.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "horizon.h"
#include "leaf.h"
#include "receipt.h"
#include "rotation.h"
#include "settings.h"
#include "store.h"

/* A leaf is written for so long at least, unless it is large. */
#define OUTBOX_LEAF_MIN_MS		5000

/* The ring is looked at in such intervals while there is something in it. */
#define OUTBOX_LOOK_MIN_MS		1000
#define OUTBOX_LOOK_MAX_MS		60000

/* Newest receipts of so many servers fit into a page. */
#define OUTBOX_RECEIPTS_PER_PAGE	32

typedef struct OutboxRing
{
	int			written;		/* number of the leaf */
	TimestampTz since;			/* it is */
	OutboxLeafSize sizes[OUTBOX_NLEAVES];
} OutboxRing;

/* Where the newest receipts are kept there is always something. */
static bool
outbox_ring_is_used(const OutboxLeafSize *size)
{
	uint64		pages = 1 + outbox_catalog_server_count() /
		OUTBOX_RECEIPTS_PER_PAGE;

	return size->outbox > 0 || size->late > 0 ||
		size->receipt > pages * BLCKSZ;
}

static bool
outbox_ring_is_empty(const OutboxRing *ring, int distance)
{
	const OutboxLeafSize *size =
		&ring->sizes[(ring->written + distance) % OUTBOX_NLEAVES];

	return size->outbox == 0 && size->late == 0 && size->receipt == 0;
}

static bool
outbox_ring_load(OutboxRing *ring)
{
	ring->written = outbox_horizon_leaf(outbox_store_outbox(), &ring->since);
	if (ring->written < 0)
		return false;
	for (int i = 0; i < OUTBOX_NLEAVES; i++)
	{
		if (!outbox_leaf_size(i, &ring->sizes[i]))
			return false;
	}
	return true;
}

/* How far the oldest used leaf is from the one that is written; 0: none. */
static int
outbox_ring_oldest(const OutboxRing *ring)
{
	for (int i = 1; i < OUTBOX_NLEAVES; i++)
	{
		if (!outbox_ring_is_empty(ring, i))
			return i;
	}
	return 0;
}

/*
 * Turning
 */

/* Is the leaf that is written large or old? */
static bool
outbox_rotation_is_time(const OutboxRing *ring, TimestampTz now)
{
	const OutboxLeafSize *size = &ring->sizes[ring->written];
	int64		age_ms = (now - ring->since) / 1000;

	if (!outbox_ring_is_used(size))
		return false;
	if (age_ms >= Max(outbox_retention * INT64CONST(500), OUTBOX_LEAF_MIN_MS))
		return true;
	/* the last free one is for when age asks for it */
	return size->outbox + size->receipt + size->late >=
		outbox_rotation_size * UINT64CONST(1048576) &&
		outbox_ring_is_empty(ring, 2);
}

/* The ring cannot turn: say so once, with the reason. */
static void
outbox_rotation_complain(const OutboxRing *ring, const char *reason)
{
	static TimestampTz told = 0;	/* about the leaf written since then */

	if (told == ring->since)
		return;
	told = ring->since;
	ereport(LOG,
			(errmsg("the outbox grows, because its oldest leaf cannot be emptied"),
			 errdetail_internal("%s", reason)));
}

static bool
outbox_rotation_turn(const OutboxRing *ring, const char *reason, TimestampTz now)
{
	if (!outbox_rotation_is_time(ring, now))
		return false;
	if (!outbox_ring_is_empty(ring, 1))
	{
		outbox_rotation_complain(ring, reason);
		return false;
	}
	outbox_horizon_set_leaf(outbox_store_outbox(),
							(ring->written + 1) % OUTBOX_NLEAVES);
	return true;
}

/*
 * Emptying
 */

/* Could it go if nobody used it?  *reason: why not. */
static bool
outbox_rotation_is_over(int leaf, TimestampTz now, const char **reason)
{
	TimestampTz since;
	char	   *server;

	if (!outbox_receipt_leaf_settled(leaf, &since, &server))
	{
		*reason = psprintf("Messages to server \"%s\" in it are not delivered yet.",
						   server);
		return false;
	}
	if (!TIMESTAMP_IS_NOBEGIN(since) &&
		(now - since) / USECS_PER_SEC < outbox_retention)
	{
		*reason = "Its messages are not older than amqp_outbox.retention yet.";
		return false;
	}
	return true;
}

/* Empty a leaf or prepare it; returns whether that went on. */
static bool
outbox_rotation_empty(int leaf, TimestampTz now, const char **reason)
{
	if (!outbox_rotation_is_over(leaf, now, reason))
		return false;
	if (outbox_receipt_carry(leaf) > 0)
		return true;			/* and the rest another time */

	*reason = "It is being used by another session.";
	if (!outbox_leaf_lock(leaf))
		return false;
	/* only now nothing can come in */
	if (!outbox_rotation_is_over(leaf, now, reason) ||
		outbox_receipt_carry(leaf) > 0)
		return false;
	outbox_leaf_empty(leaf);
	return true;
}

/* In a transaction: one step; returns whether there was one to take. */
static bool
outbox_rotation_step(const OutboxRing *ring, TimestampTz now)
{
	const char *reason = "";
	int			oldest = outbox_ring_oldest(ring);
	bool		moved = false;

	if (oldest > 0)
		moved = outbox_rotation_empty((ring->written + oldest) % OUTBOX_NLEAVES,
									  now, &reason);
	return outbox_rotation_turn(ring, reason, now) || moved;
}

TimestampTz
outbox_rotation_look(TimestampTz now)
{
	int64		pause = Min(Max(outbox_retention * INT64CONST(100),
								OUTBOX_LOOK_MIN_MS), OUTBOX_LOOK_MAX_MS);
	OutboxIdentity identity;
	OutboxRing	ring;
	bool		used = true;

	if (!outbox_store_begin())
		return 0;
	identity = outbox_store_identity();
	if (identity != OUTBOX_IDENTITY_OWN && identity != OUTBOX_IDENTITY_ADOPTED)
		used = false;
	else if (ConditionalLockRelationOid(outbox_store_outbox(),
										ShareUpdateExclusiveLock) &&
			 outbox_ring_load(&ring))
	{
		used = outbox_ring_oldest(&ring) > 0 ||
			outbox_ring_is_used(&ring.sizes[ring.written]);
		if (outbox_rotation_step(&ring, now))
			pause = OUTBOX_LOOK_MIN_MS;
	}
	outbox_store_commit();
	return used ? TimestampTzPlusMilliseconds(now, pause) : 0;
}

/*-------------------------------------------------------------------------
 *
 * ordering.c
 *	  Which messages of an ordering key may be in flight together.
 *
 * The broker takes messages of one channel in their order, but it does not
 * stop at one that fails: what is in flight behind it goes past it.  Thousands
 * of a key can be in flight only because a message that goes where others
 * have just arrived (same exchange, same routing key) will hardly fail.  So a
 * destination is proven by a message that was delivered there on this
 * connection, and unproven again by one that was not; and behind a message to
 * an unproven destination the others of its key wait until it is answered.
 *
 * What remains is a message that fails although the one before it, to the same
 * destination, did not: a queue that fills up and rejects, or is deleted, at
 * that moment.  The server's option key_window bounds how many can overtake it.
 *
 * Pure: no I/O, no clock, no shared state.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "ordering.h"

/* Proven destinations that are remembered; beyond, all are proven anew. */
#define OUTBOX_MAX_PROVEN	4096

struct OutboxOrdering
{
	MemoryContext context;
	HTAB	   *keys;			/* OutboxKey */
	HTAB	   *proven;			/* hash values of destinations */
};

static void
outbox_ordering_forget_proven(OutboxOrdering *ordering)
{
	HASHCTL		ctl = {
		.keysize = sizeof(uint64),
		.entrysize = sizeof(uint64),
		.hcxt = ordering->context
	};

	if (ordering->proven)
	{
		if (hash_get_num_entries(ordering->proven) == 0)
			return;
		hash_destroy(ordering->proven);
		ordering->proven = NULL;
	}
	ordering->proven = hash_create("amqp_outbox proven destinations", 64, &ctl,
								   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

OutboxOrdering *
outbox_ordering_create(MemoryContext context)
{
	OutboxOrdering *ordering = MemoryContextAllocZero(context,
													  sizeof(OutboxOrdering));
	HASHCTL		ctl = {
		.keysize = OUTBOX_SHORTSTR_MAX + 1,
		.entrysize = sizeof(OutboxKey),
		.hcxt = context
	};

	ordering->context = context;
	ordering->keys = hash_create("amqp_outbox ordering keys", 64, &ctl,
								 HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	outbox_ordering_forget_proven(ordering);
	return ordering;
}

OutboxKey *
outbox_ordering_enter(OutboxOrdering *ordering, const char *name)
{
	OutboxKey  *key;
	bool		found;

	key = hash_search(ordering->keys, name, HASH_ENTER, &found);
	if (!found)
		key->messages = key->in_flight = key->unproven = key->failed = 0;
	key->messages++;
	return key;
}

void
outbox_ordering_leave(OutboxOrdering *ordering, OutboxKey *key)
{
	Assert(key->messages > 0);
	if (--key->messages == 0)
		hash_search(ordering->keys, key->name, HASH_REMOVE, NULL);
}

bool
outbox_ordering_may_send(const OutboxKey *key, int key_window)
{
	return key->unproven == 0 &&
		(key_window == 0 || key->in_flight < key_window);
}

static uint64
outbox_ordering_destination(const OutboxMessage *msg)
{
	uint64		exchange = hash_bytes_extended((const unsigned char *) msg->exchange,
											   strlen(msg->exchange), 0);

	return hash_bytes_extended((const unsigned char *) msg->routing_key,
							   strlen(msg->routing_key), exchange);
}

bool
outbox_ordering_sent(OutboxOrdering *ordering, OutboxKey *key,
					 const OutboxMessage *msg)
{
	uint64		destination = outbox_ordering_destination(msg);
	bool		proven;

	proven = hash_search(ordering->proven, &destination, HASH_FIND,
						 NULL) != NULL;
	key->in_flight++;
	key->unproven += !proven;
	return !proven;
}

void
outbox_ordering_answered(OutboxOrdering *ordering, OutboxKey *key,
						 const OutboxMessage *msg, bool unproven,
						 bool delivered)
{
	uint64		destination;

	Assert(key->in_flight > 0);
	key->in_flight--;
	key->unproven -= unproven;
	if (delivered && !unproven)
		return;

	destination = outbox_ordering_destination(msg);
	if (!delivered)
		hash_search(ordering->proven, &destination, HASH_REMOVE, NULL);
	else
	{
		if (hash_get_num_entries(ordering->proven) >= OUTBOX_MAX_PROVEN)
			outbox_ordering_forget_proven(ordering);
		hash_search(ordering->proven, &destination, HASH_ENTER, NULL);
	}
}

void
outbox_ordering_reset(OutboxOrdering *ordering)
{
	HASH_SEQ_STATUS seq;
	OutboxKey  *key;

	hash_seq_init(&seq, ordering->keys);
	while ((key = hash_seq_search(&seq)) != NULL)
		key->in_flight = key->unproven = 0;
	outbox_ordering_forget_proven(ordering);
}

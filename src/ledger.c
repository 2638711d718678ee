/*-------------------------------------------------------------------------
 *
 * ledger.c
 *	  Messages between being read and being settled.
 *
 * A ring with pointers that count messages since the start:
 *
 *	  removed ......... scan ......... added
 *		 | in flight, or  | to be sent   |
 *		 | settled        |              |
 *
 * Messages are sent in this order, except those that wait for another one of
 * their ordering key: they are passed over, and looked at again from the first
 * of them on when a message with a key is answered.  When a message fails,
 * those of its key behind it that are not yet sent fail with it: they are
 * HELD, to be put behind it in amqp_outbox.deferred.
 *
 * Delivery tags belong to a channel and count what was sent on it, so a
 * second ring leads from a tag to its message.  Acknowledgements come in any
 * order; "multiple" means all open ones up to a tag, and every tag is visited
 * once on the way up, so the cost is one step for each message.
 *
 * A large body is let go as soon as it is sent, that is when the next message is,
 * or when its message has an outcome: it would be the most of the memory that a
 * worker needs, and of no use to the processor's cache.  Should the message have
 * to be sent again, its body is read again.  Only deferred messages keep theirs:
 * somebody may have deleted the row.
 *
 * Pure: no I/O, no clock, no shared state.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "ledger.h"

/* A smaller body is kept until its message is settled. */
#define OUTBOX_BODY_KEEP	(64 * 1024)

struct OutboxLedger
{
	uint64		removed;
	uint64		scan;
	uint64		added;
	uint64		passed_over;	/* the first one that waits; else >= scan */
	uint64		current;		/* the one outbox_ledger_next() gave */
	int			unsent;
	int			key_window;		/* of the last outbox_ledger_next() */
	int			settled;		/* of those from removed on, without a gap */
	int			in_flight;		/* sent, confirm outstanding */
	Size		bytes;
	Size		large;			/* of those, bodies to be let go when sent */
	uint64		first_open_tag; /* every tag below has an answer */
	uint64		last_tag;
	uint32		mask;			/* size - 1 */
	OutboxEntry *entries;
	uint64	   *tags;			/* position of the message with a tag */
	OutboxOrdering *ordering;
};

OutboxLedger *
outbox_ledger_create(MemoryContext context, int size)
{
	OutboxLedger *ledger = MemoryContextAllocZero(context,
												  sizeof(OutboxLedger));

	Assert((size & (size - 1)) == 0);
	ledger->mask = size - 1;
	ledger->entries = MemoryContextAllocZero(context,
											 size * sizeof(OutboxEntry));
	ledger->tags = MemoryContextAllocZero(context, size * sizeof(uint64));
	ledger->first_open_tag = 1;
	ledger->passed_over = PG_UINT64_MAX;
	ledger->ordering = outbox_ordering_create(context);
	return ledger;
}

static OutboxEntry *
outbox_ledger_at(OutboxLedger *ledger, uint64 position)
{
	Assert(position >= ledger->removed && position < ledger->added);
	return &ledger->entries[position & ledger->mask];
}

int
outbox_ledger_room(const OutboxLedger *ledger)
{
	return (int) (ledger->mask + 1 - (ledger->added - ledger->removed));
}

Size
outbox_ledger_bytes(const OutboxLedger *ledger)
{
	return ledger->bytes;
}

Size
outbox_ledger_large_bytes(const OutboxLedger *ledger)
{
	return ledger->large;
}

int
outbox_ledger_in_flight(const OutboxLedger *ledger)
{
	return ledger->in_flight;
}

int
outbox_ledger_unpublished(const OutboxLedger *ledger)
{
	return ledger->unsent;
}

/* Bytes of a body that is here, and let go when it is sent; else 0. */
static Size
outbox_message_large_bytes(const OutboxMessage *msg)
{
	return msg->body && msg->body_len > OUTBOX_BODY_KEEP && !msg->deferred ?
		msg->body_len : 0;
}

/*
 * Outcomes
 */

/* Nobody has any use for the body, or it can be read again. */
static void
outbox_ledger_let_body_go(OutboxLedger *ledger, OutboxEntry *entry)
{
	OutboxMessage *msg = entry->message;

	if (outbox_message_large_bytes(msg) == 0)
		return;
	outbox_message_let_body_go(msg);
	ledger->bytes -= msg->body_len;
	ledger->large -= msg->body_len;
}

static void
outbox_ledger_explain(OutboxLedger *ledger, OutboxEntry *entry,
					  OutboxOutcome outcome, OutboxReason reason,
					  int reply_code, const char *words)
{
	outbox_ledger_let_body_go(ledger, entry);
	entry->outcome = outcome;
	entry->reason = reason;
	entry->reply_code = reply_code;
	entry->words = MemoryContextStrdup(entry->batch, words);
}

/* Others of its key, behind it, must not go past it. */
static void
outbox_ledger_hold(OutboxLedger *ledger, OutboxEntry *entry)
{
	outbox_ledger_let_body_go(ledger, entry);
	entry->outcome = OUTBOX_HELD;
	entry->failed = true;
	entry->key->failed++;
}

/* An entry failed: so do those of its key behind it that are not sent. */
static void
outbox_ledger_hold_behind(OutboxLedger *ledger, uint64 position)
{
	OutboxEntry *first = outbox_ledger_at(ledger, position);
	OutboxKey  *key = first->key;
	int			left;

	if (key == NULL)
		return;
	first->failed = true;
	left = key->messages - ++key->failed;
	for (uint64 p = position + 1; p < ledger->added && left > 0; p++)
	{
		OutboxEntry *entry = outbox_ledger_at(ledger, p);

		if (entry->key != key || entry->outcome != OUTBOX_OPEN ||
			entry->tag != 0)
			continue;
		outbox_ledger_hold(ledger, entry);
		ledger->unsent--;
		left--;
	}
}

/* The broker answered, for better or worse: others of the key may go on. */
static void
outbox_ledger_answered(OutboxLedger *ledger, OutboxEntry *entry,
					   bool delivered)
{
	if (!entry->awaited)
		return;
	entry->awaited = false;
	outbox_ordering_answered(ledger->ordering, entry->key, entry->message,
							 entry->unproven, delivered);
	ledger->scan = Min(ledger->scan, ledger->passed_over);
	ledger->passed_over = PG_UINT64_MAX;
}

/*
 * Coming in and being sent
 */

/*
 * Has an earlier message of the entry's key failed?  All that come from the
 * outbox are later than what is here.  A deferred one may be the one that the
 * others wait for.
 */
static bool
outbox_ledger_has_failed_before(OutboxLedger *ledger, const OutboxEntry *entry)
{
	if (entry->key->failed == 0 || !entry->message->deferred)
		return entry->key->failed > 0;
	for (uint64 p = ledger->removed; p < ledger->added; p++)
	{
		const OutboxEntry *other = outbox_ledger_at(ledger, p);

		if (other->key == entry->key && other->failed &&
			other->message->id < entry->message->id)
			return true;
	}
	return false;
}

static void
outbox_ledger_add_one(OutboxLedger *ledger, OutboxEntry *entry)
{
	const OutboxMessage *msg = entry->message;

	ledger->bytes += outbox_message_bytes(msg);
	ledger->large += outbox_message_large_bytes(msg);
	ledger->added++;
	if (msg->unreadable)
	{
		outbox_ledger_explain(ledger, entry, OUTBOX_REJECTED,
							  OUTBOX_MALFORMED, 0, msg->unreadable);
		return;
	}
	ledger->unsent++;
	if (msg->ordering_key == NULL)
		return;
	entry->key = outbox_ordering_enter(ledger->ordering, msg->ordering_key);
	if (!msg->held && !outbox_ledger_has_failed_before(ledger, entry))
		return;
	outbox_ledger_hold(ledger, entry);
	ledger->unsent--;
}

void
outbox_ledger_add(OutboxLedger *ledger, OutboxMessage **messages, int n,
				  MemoryContext batch)
{
	Assert(n > 0 && n <= outbox_ledger_room(ledger));
	for (int i = 0; i < n; i++)
	{
		OutboxEntry *entry = &ledger->entries[ledger->added & ledger->mask];

		*entry = (OutboxEntry)
		{
			.message = messages[i],
			.batch = batch,
			.last_of_batch = (i == n - 1),
			.outcome = OUTBOX_OPEN
		};
		outbox_ledger_add_one(ledger, entry);
	}
}

OutboxEntry *
outbox_ledger_next(OutboxLedger *ledger, int key_window)
{
	/* those that waited by another rule come before those behind them */
	if (key_window != ledger->key_window)
	{
		ledger->scan = Min(ledger->scan, ledger->passed_over);
		ledger->passed_over = PG_UINT64_MAX;
		ledger->key_window = key_window;
	}
	while (ledger->scan < ledger->added)
	{
		OutboxEntry *entry = outbox_ledger_at(ledger, ledger->scan);

		ledger->current = ledger->scan++;
		if (entry->outcome != OUTBOX_OPEN || entry->tag != 0)
			continue;
		if (entry->key == NULL ||
			outbox_ordering_may_send(entry->key, key_window))
			return entry;
		ledger->passed_over = Min(ledger->passed_over, ledger->current);
	}
	return NULL;
}

/* What was sent with this tag is out of our hands. */
static void
outbox_ledger_sent_before(OutboxLedger *ledger, uint64 tag)
{
	uint64		position = ledger->tags[tag & ledger->mask];

	if (position >= ledger->removed)
		outbox_ledger_let_body_go(ledger, outbox_ledger_at(ledger, position));
}

void
outbox_ledger_body_again(OutboxLedger *ledger)
{
	Size		len = outbox_ledger_at(ledger,
									   ledger->current)->message->body_len;

	ledger->bytes += len;
	ledger->large += len;
}

void
outbox_ledger_put_back(OutboxLedger *ledger)
{
	ledger->scan = Min(ledger->scan, ledger->current);
}

void
outbox_ledger_sent(OutboxLedger *ledger, uint64 tag, TimestampTz now)
{
	OutboxEntry *entry = outbox_ledger_at(ledger, ledger->current);

	Assert(tag == ledger->last_tag + 1);
	entry->tag = tag;
	entry->sent_at = now;
	ledger->last_tag = tag;
	ledger->tags[tag & ledger->mask] = ledger->current;
	ledger->unsent--;
	ledger->in_flight++;
	/* the transport has use for the body of the newest one only */
	if (tag > 1)
		outbox_ledger_sent_before(ledger, tag - 1);
	if (entry->key == NULL)
		return;
	entry->awaited = true;
	entry->unproven = outbox_ordering_sent(ledger->ordering, entry->key,
										   entry->message);
}

/* The current one is not sent, or not now. */
static void
outbox_ledger_give_up(OutboxLedger *ledger, OutboxReason reason,
					  int reply_code, const char *words)
{
	outbox_ledger_explain(ledger, outbox_ledger_at(ledger, ledger->current),
						  OUTBOX_REJECTED, reason, reply_code, words);
	ledger->unsent--;
	outbox_ledger_hold_behind(ledger, ledger->current);
}

void
outbox_ledger_refused(OutboxLedger *ledger, const char *words)
{
	outbox_ledger_give_up(ledger, OUTBOX_TOO_LARGE, 0, words);
}

void
outbox_ledger_unreadable(OutboxLedger *ledger, const char *words)
{
	OutboxEntry *entry = outbox_ledger_at(ledger, ledger->current);

	entry->message->unreadable = MemoryContextStrdup(entry->batch, words);
	outbox_ledger_give_up(ledger, OUTBOX_MALFORMED, 0, words);
}

void
outbox_ledger_expired(OutboxLedger *ledger)
{
	outbox_ledger_give_up(ledger, OUTBOX_EXPIRED, 0,
						  "not delivered within its ttl");
}

void
outbox_ledger_skipped(OutboxLedger *ledger, int reply_code,
					  const char *words, TimestampTz not_before)
{
	outbox_ledger_at(ledger, ledger->current)->not_before = not_before;
	outbox_ledger_give_up(ledger, outbox_reason_of_reply_code(reply_code),
						  reply_code, words);
}

/*
 * The broker's answers
 */

/* The broker answered one tag; a second answer changes nothing. */
static void
outbox_ledger_answer(OutboxLedger *ledger, uint64 tag, bool ack,
					 TimestampTz now)
{
	uint64		position = ledger->tags[tag & ledger->mask];
	OutboxEntry *entry;

	if (position < ledger->removed)
		return;
	entry = outbox_ledger_at(ledger, position);
	if (entry->tag != tag)
		return;

	entry->tag = 0;
	entry->answered_at = now;
	ledger->in_flight--;
	if (entry->outcome != OUTBOX_OPEN)
		return;					/* it was returned before */
	outbox_ledger_answered(ledger, entry, ack);
	if (ack)
	{
		outbox_ledger_let_body_go(ledger, entry);
		entry->outcome = OUTBOX_DELIVERED;
		return;
	}
	/* one of several queues may have taken it */
	entry->doubtful = true;
	outbox_ledger_explain(ledger, entry, OUTBOX_REJECTED, OUTBOX_NACKED, 0,
						  "the broker did not take the message (basic.nack)");
	outbox_ledger_hold_behind(ledger, position);
}

bool
outbox_ledger_confirm(OutboxLedger *ledger, uint64 tag, bool multiple,
					  bool ack, TimestampTz now)
{
	/*
	 * AMQP 0-9-1, basic.ack: tag 0 with multiple means all so far.  By itself
	 * it is no message's, and here that of all that were not sent.
	 */
	if (tag == 0 && !multiple)
		return false;
	if (tag == 0)
		tag = ledger->last_tag;
	if (tag > ledger->last_tag)
		return false;

	if (!multiple)
		outbox_ledger_answer(ledger, tag, ack, now);
	else
	{
		for (uint64 t = ledger->first_open_tag; t <= tag; t++)
			outbox_ledger_answer(ledger, t, ack, now);
		ledger->first_open_tag = Max(ledger->first_open_tag, tag + 1);
	}
	return true;
}

bool
outbox_ledger_return(OutboxLedger *ledger, const char *message_id,
					 const char *exchange, const char *routing_key,
					 int reply_code, const char *words, bool accepted)
{
	if (message_id == NULL)
		return false;			/* we never send one without */

	/*
	 * A return carries no delivery tag.  Returns come in the order of
	 * publishing, so it is the first of those in flight that looks like it
	 * and was not returned yet.
	 */
	for (uint64 p = ledger->removed; p < ledger->added; p++)
	{
		OutboxEntry *entry = outbox_ledger_at(ledger, p);

		if (entry->tag == 0 || entry->outcome != OUTBOX_OPEN ||
			strcmp(entry->message->message_id, message_id) != 0 ||
			strcmp(entry->message->routing_key, routing_key) != 0 ||
			strcmp(entry->message->exchange, exchange) != 0)
			continue;
		outbox_ledger_explain(ledger, entry, OUTBOX_RETURNED,
							  OUTBOX_UNROUTABLE, reply_code, words);
		entry->accepted = accepted;
		outbox_ledger_answered(ledger, entry, accepted);
		if (!accepted)
			outbox_ledger_hold_behind(ledger, p);
		return true;
	}
	return false;
}

OutboxEntry *
outbox_ledger_sole(OutboxLedger *ledger)
{
	if (ledger->in_flight != 1)
		return NULL;
	for (uint64 p = ledger->removed; p < ledger->added; p++)
	{
		OutboxEntry *entry = outbox_ledger_at(ledger, p);

		if (entry->tag != 0)
			return entry->outcome == OUTBOX_OPEN ? entry : NULL;
	}
	return NULL;
}

static uint64
outbox_ledger_position(const OutboxLedger *ledger, const OutboxEntry *entry)
{
	uint64		index = entry - ledger->entries;

	return ledger->removed + ((index - ledger->removed) & ledger->mask);
}

void
outbox_ledger_reject(OutboxLedger *ledger, OutboxEntry *entry, int reply_code,
					 const char *words)
{
	Assert(entry->tag != 0);
	entry->tag = 0;
	ledger->in_flight--;
	outbox_ledger_answered(ledger, entry, false);
	outbox_ledger_explain(ledger, entry, OUTBOX_REJECTED,
						  outbox_reason_of_reply_code(reply_code), reply_code,
						  words);
	outbox_ledger_hold_behind(ledger, outbox_ledger_position(ledger, entry));
}

int
outbox_ledger_forget_tags(OutboxLedger *ledger)
{
	uint64		p = ledger->removed + ledger->settled;
	int			open = 0;
	int			again = 0;

	ledger->scan = p;
	ledger->passed_over = PG_UINT64_MAX;
	for (; p < ledger->added; p++)
	{
		OutboxEntry *entry = outbox_ledger_at(ledger, p);

		open += entry->outcome == OUTBOX_OPEN;
		if (entry->outcome == OUTBOX_OPEN && entry->tag != 0)
		{
			entry->doubtful = true;
			ledger->unsent++;
			again = open;
		}
		entry->tag = 0;
		entry->awaited = false;
	}
	outbox_ordering_reset(ledger->ordering);
	ledger->in_flight = 0;
	ledger->last_tag = 0;
	ledger->first_open_tag = 1;
	return again;
}

bool
outbox_ledger_in_doubt(OutboxLedger *ledger)
{
	for (uint64 p = ledger->removed; p < ledger->added; p++)
	{
		OutboxEntry *entry = outbox_ledger_at(ledger, p);

		/* one that waits keeps those behind it from being settled */
		if ((entry->outcome == OUTBOX_OPEN && entry->tag != 0) ||
			entry->outcome == OUTBOX_DELIVERED ||
			entry->doubtful || entry->message->possible_duplicate)
			return true;
	}
	return false;
}

TimestampTz
outbox_ledger_oldest_sent(const OutboxLedger *ledger)
{
	if (ledger->in_flight == 0)
		return 0;
	for (uint64 p = ledger->removed + ledger->settled; p < ledger->added; p++)
	{
		const OutboxEntry *entry = &ledger->entries[p & ledger->mask];

		if (entry->tag != 0)
			return entry->sent_at;
	}
	return 0;
}

int
outbox_ledger_settled(OutboxLedger *ledger)
{
	while (ledger->removed + ledger->settled < ledger->added &&
		   outbox_ledger_at(ledger,
							ledger->removed + ledger->settled)->outcome != OUTBOX_OPEN)
		ledger->settled++;
	return ledger->settled;
}

int
outbox_ledger_deferred_ids(OutboxLedger *ledger, const OutboxKey *key,
						   int64 *ids)
{
	int			n = 0;

	for (uint64 p = ledger->removed; p < ledger->added; p++)
	{
		const OutboxEntry *entry = outbox_ledger_at(ledger, p);

		if (entry->key == key && entry->message->deferred)
			ids[n++] = entry->message->id;
	}
	return n;
}

OutboxEntry *
outbox_ledger_get(OutboxLedger *ledger, int i)
{
	return outbox_ledger_at(ledger, ledger->removed + i);
}

void
outbox_ledger_remove(OutboxLedger *ledger, int n)
{
	Assert(n <= ledger->settled);
	for (int i = 0; i < n; i++)
	{
		OutboxEntry *entry = outbox_ledger_at(ledger, ledger->removed);

		/* a returned message whose confirm is still to come */
		if (entry->tag != 0)
			ledger->in_flight--;
		if (entry->key)
		{
			entry->key->failed -= entry->failed;
			outbox_ordering_leave(ledger->ordering, entry->key);
		}
		ledger->bytes -= outbox_message_bytes(entry->message);
		ledger->large -= outbox_message_large_bytes(entry->message);
		if (entry->last_of_batch)
			MemoryContextDelete(entry->batch);
		entry->message = NULL;
		ledger->removed++;
	}
	ledger->settled -= n;
	ledger->scan = Max(ledger->scan, ledger->removed);
}

/*-------------------------------------------------------------------------
 *
 * reader.c
 *	  What is read from the tables: new messages, those that are due, bodies.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "horizon.h"
#include "outcome.h"
#include "properties.h"
#include "reader.h"
#include "settings.h"
#include "store.h"

/* Rows of one reading transaction, and when it is worth while to begin one. */
#define OUTBOX_READ_ROWS		1024
#define OUTBOX_READ_MIN_ROOM	512

/* And bytes: the socket must not run dry while large ones are read. */
#define OUTBOX_READ_BYTES		(2 * 1024 * 1024)

/* Large bodies wait to be sent up to so many bytes: more would only be cold. */
#define OUTBOX_READ_LARGE		(4 * OUTBOX_READ_BYTES)

/*
 * A look at the outbox for each commit costs more than the message where there
 * are many.  When so many messages came in so many ms, and the last look found
 * few, commits do not wake us for a while; what came meanwhile is read together.
 * Below that rate nothing waits.
 */
#define OUTBOX_RUSH_MS			32
#define OUTBOX_RUSH_MESSAGES	96
#define OUTBOX_RUSH_FEW			64
#define OUTBOX_REST_MS			1

/* Deferred messages of one batch; less than OUTBOX_READ_MIN_ROOM. */
#define OUTBOX_DUE_ROWS			256

/* When even the id of a deferred message cannot be read. */
#define OUTBOX_DAMAGED_MS		60000

OutboxReader *
outbox_reader_create(MemoryContext context, OutboxLedger *ledger)
{
	OutboxReader *reader = MemoryContextAllocZero(context,
												  sizeof(OutboxReader));

	reader->context = context;
	reader->ledger = ledger;
	reader->batch = MemoryContextAlloc(context, OUTBOX_READ_ROWS *
									   sizeof(OutboxMessage *));
	outbox_durable_init(&reader->durable);
	return reader;
}

void
outbox_reader_open(OutboxReader *reader, int32 server_key,
				   int64 settled_through, bool in_doubt)
{
	TimestampTz now = GetCurrentTimestamp();

	reader->server_key = server_key;
	reader->read_through = settled_through;
	/* the deferred messages are in doubt until they were looked at */
	if (in_doubt)
	{
		reader->doubt.through_id = outbox_horizon_read(reader->outbox) - 1;
		reader->doubt.due_at = now;
	}
	reader->orphans = true;
	outbox_due_open(&reader->due, now);
}

/*
 * Room
 */

/* What may be held of messages, in bytes. */
static Size
outbox_reader_read_ahead(void)
{
	return (Size) outbox_read_ahead * 1024 * 1024;
}

/* Room for bodies; at least one message is always read. */
static Size
outbox_reader_room_bytes(const OutboxReader *reader)
{
	Size		used = outbox_ledger_bytes(reader->ledger);
	Size		limit = outbox_reader_read_ahead();

	return used < limit ? Min(limit - used, OUTBOX_READ_BYTES) : 0;
}

bool
outbox_reader_has_room(const OutboxReader *reader)
{
	return outbox_ledger_room(reader->ledger) >= OUTBOX_READ_MIN_ROOM &&
		outbox_reader_room_bytes(reader) >=
		Min(outbox_reader_read_ahead() / 2, OUTBOX_READ_BYTES) &&
		(outbox_ledger_large_bytes(reader->ledger) < OUTBOX_READ_LARGE ||
		 outbox_ledger_unpublished(reader->ledger) == 0) &&
		outbox_ledger_unpublished(reader->ledger) < OUTBOX_READ_ROWS;
}

/*
 * Many messages at once
 */

/* Count n messages that were read, and find out whether to rest after them. */
static void
outbox_reader_note_rush(OutboxReader *reader, int n, TimestampTz now)
{
	int64		elapsed = now - reader->rush.began;

	if (elapsed < 0 || elapsed >= OUTBOX_RUSH_MS * 1000)
	{
		/* a count that ended long ago says nothing */
		reader->rush.many = reader->rush.count >= OUTBOX_RUSH_MESSAGES &&
			elapsed >= 0 && elapsed < 2 * OUTBOX_RUSH_MS * 1000;
		reader->rush.began = now;
		reader->rush.count = 0;
	}
	reader->rush.count += n;
	if (!reader->rush.many || n == 0 || n > OUTBOX_RUSH_FEW)
		return;
	reader->rush.rest_until = TimestampTzPlusMilliseconds(now, OUTBOX_REST_MS);
	outbox_horizon_ignore();
}

/* Milliseconds until something is read again, also if the clock was set back. */
static long
outbox_reader_rest(const OutboxReader *reader, TimestampTz now)
{
	long		ms = reader->rush.rest_until == 0 ? 0 :
		TimestampDifferenceMilliseconds(now, reader->rush.rest_until);

	return ms > OUTBOX_REST_MS ? 0 : ms;
}

TimestampTz
outbox_reader_next_read(const OutboxReader *reader)
{
	TimestampTz now = GetCurrentTimestamp();

	if (reader->rush.rest_until == 0)
		return 0;
	return TimestampTzPlusMilliseconds(now, outbox_reader_rest(reader, now));
}

/*
 * Batches
 */

/* In a transaction: build the rest of each message and put it on its way. */
static void
outbox_reader_take(OutboxReader *reader, int n, MemoryContext batch)
{
	MemoryContext old_context = MemoryContextSwitchTo(batch);

	for (int i = 0; i < n; i++)
		outbox_properties_build(reader->batch[i]);
	MemoryContextSwitchTo(old_context);
	MemoryContextSetParent(batch, reader->context);
	outbox_ledger_add(reader->ledger, reader->batch, n, batch);
}

/* Goes with the transaction unless its messages are taken. */
static MemoryContext
outbox_reader_new_batch(void)
{
	return AllocSetContextCreate(CurrentMemoryContext, "amqp_outbox batch",
								 ALLOCSET_DEFAULT_SIZES);
}

/* Take the row with this id, which cannot be read; 0: it is gone. */
static void
outbox_reader_take_damaged(OutboxReader *reader, int64 id,
						   bool deferred, MemoryContext batch)
{
	OutboxMessage *msg;

	if (id == 0)
		return;
	msg = MemoryContextAllocZero(batch, sizeof(OutboxMessage));
	msg->id = id;
	msg->deferred = deferred;
	msg->possible_duplicate = !deferred && id <= reader->doubt.through_id;
	msg->message_id = msg->exchange = msg->routing_key = msg->body = "";
	msg->unreadable = MemoryContextStrdup(batch, reader->damage.words);
	reader->batch[0] = msg;
	MemoryContextSetParent(batch, reader->context);
	outbox_ledger_add(reader->ledger, reader->batch, 1, batch);
	if (deferred)
		outbox_due_took(&reader->due, 1, NULL);
}

/* Find out when the n messages of the batch were committed. */
static void
outbox_reader_date_batch(OutboxReader *reader, int n)
{
	OutboxClock clock;

	outbox_horizon_copy_clock(reader->outbox, &clock);
	for (int i = 0; i < n; i++)
	{
		OutboxMessage *msg = reader->batch[i];

		msg->committed_at = Max(outbox_clock_find(&clock, msg->id),
								msg->enqueued_at);
	}
}

/* Read the outbox below the horizon; returns how many messages there were. */
static int
outbox_reader_read_outbox(OutboxReader *reader, const OutboxServer *server)
{
	MemoryContext batch = outbox_reader_new_batch();
	int			max_rows = Min(OUTBOX_READ_ROWS,
							   outbox_ledger_room(reader->ledger));
	int64		end = outbox_damage_end(&reader->damage, reader->read_through,
										reader->horizon);
	bool		complete;
	int			n;

	if (reader->damage.bury_outbox)
	{
		outbox_reader_take_damaged(reader, ++reader->read_through, false,
								   batch);
		outbox_damage_passed(&reader->damage, reader->read_through);
		return 1;
	}
	reader->reading = OUTBOX_READING_OUTBOX;
	reader->read_end = end;
	n = outbox_fetch(batch, reader->server_key,
					 reader->read_through, end, max_rows,
					 outbox_reader_room_bytes(reader), server,
					 &reader->doubt, reader->batch, &complete);
	Assert(n == 0 || reader->batch[n - 1]->id < reader->horizon);
	if (n > 0)
	{
		outbox_reader_date_batch(reader, n);
		outbox_reader_take(reader, n, batch);
		reader->read_through = reader->batch[n - 1]->id;
	}
	if (complete)
		reader->read_through = end - 1;
	outbox_damage_passed(&reader->damage, reader->read_through);
	reader->reading = OUTBOX_READING_NOTHING;
	return n;
}

/* Read deferred messages that are due. */
static void
outbox_reader_read_due(OutboxReader *reader, TimestampTz now,
					   const OutboxServer *server)
{
	MemoryContext batch = outbox_reader_new_batch();
	int			max_rows = reader->damage.row_by_row ? 1 :
		Min(OUTBOX_DUE_ROWS, outbox_ledger_room(reader->ledger));
	int			n;

	reader->reading = OUTBOX_READING_DEFERRED;
	if (reader->damage.bury_deferred)
	{
		int64		id = outbox_fetch_next_due_id(reader->server_key,
												  &reader->due.floor, now);

		reader->reading = OUTBOX_READING_NOTHING;
		outbox_reader_take_damaged(reader, id, true, batch);
		outbox_damage_passed_deferred(&reader->damage);
		return;
	}
	n = outbox_fetch_due(batch, reader->server_key,
						 &reader->due.floor, now, max_rows,
						 outbox_reader_room_bytes(reader), server,
						 &reader->doubt, reader->batch);
	if (n > 0)
	{
		const OutboxMessage *last = reader->batch[n - 1];
		OutboxPlace place = {.due_at = last->due_at, .id = last->id};

		outbox_reader_take(reader, n, batch);
		outbox_due_took(&reader->due, n, &place);
		/* what is visible may not be durable, and has no horizon */
		outbox_durable_require(&reader->durable, outbox_durable_end_of_wal());
	}
	reader->reading = OUTBOX_READING_NOTHING;
	if (n == 0)
	{
		outbox_damage_passed_deferred(&reader->damage);
		reader->due.next = outbox_fetch_next_due(reader->server_key,
												 &reader->due.floor);
	}
}

/*
 * Reading
 */

OutboxReadResult
outbox_reader_look(OutboxReader *reader, TimestampTz now)
{
	if (!outbox_reader_has_room(reader))
	{
		/* commits need not wake us as long as the broker is away or busy */
		if (!reader->full)
			outbox_horizon_ignore();
		reader->full = true;
		/* the end of a rest need not wake us either */
		reader->rush.rest_until = 0;
		return OUTBOX_READ_FULL;
	}
	reader->full = false;
	if (outbox_reader_rest(reader, now) > 0)
		return OUTBOX_READ_NOTHING;
	reader->rush.rest_until = 0;
	/* the horizon first, the snapshot afterwards: see horizon.c */
	reader->horizon = OidIsValid(reader->outbox) ?
		outbox_horizon_read(reader->outbox) : 0;
	if (reader->server_key != 0 &&
		reader->horizon <= reader->read_through + 1 &&
		!outbox_due_has(&reader->due, now) && !reader->orphans)
		return OUTBOX_READ_NOTHING;
	reader->new_messages = 0;
	return OUTBOX_READ_SOME;
}

void
outbox_reader_read(OutboxReader *reader, const OutboxServer *server,
				   TimestampTz now)
{
	OutboxServer current = *server;

	outbox_option_message_defaults(server->serverid, &current.persistent,
								   &current.mandatory);
	if (reader->orphans)
	{
		outbox_outcome_release_orphans(reader->server_key, now);
		outbox_reader_look_for_due(reader, DT_NOBEGIN);
	}
	/*
	 * First, because a backlog in the outbox takes all the room there is; what
	 * is due never does.
	 */
	if (outbox_due_has(&reader->due, now))
		outbox_reader_read_due(reader, now, &current);
	if (reader->horizon > reader->read_through + 1 &&
		outbox_reader_room_bytes(reader) > 0)
		reader->new_messages = outbox_reader_read_outbox(reader, &current);
}

void
outbox_reader_committed(OutboxReader *reader, TimestampTz now)
{
	outbox_reader_note_rush(reader, reader->new_messages, now);
	if (reader->server_key != 0)
		reader->orphans = false;
}

bool
outbox_reader_read_body(OutboxReader *reader, OutboxEntry *entry)
{
	const char *gone = "the row of the message is gone";

	/* an error of the first and of the last step puts the message back as well */
	reader->reading = OUTBOX_READING_AROUND;
	if (!outbox_store_begin())
	{
		reader->reading = OUTBOX_READING_NOTHING;
		outbox_ledger_put_back(reader->ledger);
		return false;
	}
	reader->reading = OUTBOX_READING_BODY;
	if (outbox_fetch_body(entry->batch, reader->server_key, entry->message))
		outbox_ledger_body_again(reader->ledger);
	else
		outbox_ledger_unreadable(reader->ledger, gone);
	reader->reading = OUTBOX_READING_AROUND;
	outbox_store_commit();
	reader->reading = OUTBOX_READING_NOTHING;
	return true;
}

/*
 * Errors
 */

/* Reading a body once more failed. */
static bool
outbox_reader_recover_body(OutboxReader *reader, bool damage,
						   const char *message)
{
	if (damage)
		outbox_ledger_unreadable(reader->ledger, message);
	else
		outbox_ledger_put_back(reader->ledger);
	return damage;
}

/* And reading deferred messages, because of one that is damaged. */
static bool
outbox_reader_recover_deferred(OutboxReader *reader)
{
	if (!reader->damage.bury_deferred)
		return outbox_damage_in_deferred(&reader->damage);
	/* not even its id can be read: leave the others alone for a while */
	reader->due.next = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												   OUTBOX_DAMAGED_MS);
	return false;
}

bool
outbox_reader_recover(OutboxReader *reader, int sqlerrcode,
					  const char *message)
{
	OutboxReading reading = reader->reading;
	bool		damage = outbox_damage_is(sqlerrcode);

	reader->reading = OUTBOX_READING_NOTHING;
	if (reading == OUTBOX_READING_BODY || reading == OUTBOX_READING_AROUND)
		return outbox_reader_recover_body(reader,
										  damage && reading == OUTBOX_READING_BODY,
										  message);
	if (reading == OUTBOX_READING_NOTHING || !damage)
		return false;
	outbox_damage_note(&reader->damage, reader->context, message);
	if (reading == OUTBOX_READING_DEFERRED)
		return outbox_reader_recover_deferred(reader);
	return outbox_damage_in_outbox(&reader->damage, reader->read_through,
								   reader->read_end);
}

/*
 * What others say and ask
 */

void
outbox_reader_look_for_due(OutboxReader *reader, TimestampTz from)
{
	if (reader->server_key != 0)
		outbox_due_look(&reader->due, from, GetCurrentTimestamp());
}

TimestampTz
outbox_reader_next_due(const OutboxReader *reader)
{
	return reader->due.count == 0 && outbox_reader_has_room(reader) ?
		reader->due.next : 0;
}

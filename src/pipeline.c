/*-------------------------------------------------------------------------
 *
 * pipeline.c
 *	  From the outbox to the broker and back: read, publish, settle.
 *
 * Messages are read in id order below the horizon, in short transactions;
 * published once their commits are known to be durable; and settled, as the
 * broker answers, with receipts.  A receipt says that everything through an
 * id has an outcome; messages that failed move to amqp_outbox.deferred in the
 * transaction of the receipt that passes them, and never before it, so that a
 * crash cannot send a message on both ways.
 *
 * Messages that are due in amqp_outbox.deferred travel through the same
 * ledger, a batch at a time; they have their own rows and no part in the
 * receipts' through id.
 *
 * Runs in the worker.  The three steps are separate so that no transaction is
 * ever open while anything of the network is awaited.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "miscadmin.h"
#include "replication/syncrep.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "storage/lwlock.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "census.h"
#include "destination.h"
#include "fetch.h"
#include "flush.h"
#include "horizon.h"
#include "ledger.h"
#include "measure.h"
#include "outcome.h"
#include "pipeline.h"
#include "properties.h"
#include "rate.h"
#include "receipt.h"
#include "registry.h"
#include "settings.h"
#include "settlement.h"
#include "store.h"

/* Messages between being read and being settled, at the most. */
#define OUTBOX_LEDGER_SIZE		4096

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

/* Bytes queued in the transport beyond which nothing is added. */
#define OUTBOX_SEND_BYTES		(256 * 1024)

/* Receipts: at most one in so many ms, unless so many messages wait for it. */
#define OUTBOX_RECEIPT_MS		20
#define OUTBOX_RECEIPT_ROWS		2048

/* When even the id of a deferred message cannot be read. */
#define OUTBOX_DAMAGED_MS		60000

/* How often to look whether a synchronous standby has caught up. */
#define OUTBOX_STANDBY_MS		20

typedef enum OutboxReading
{
	OUTBOX_READING_NOTHING,
	OUTBOX_READING_OUTBOX,
	OUTBOX_READING_DEFERRED,
	OUTBOX_READING_BODY			/* once more */
} OutboxReading;

struct OutboxPipeline
{
	MemoryContext context;
	char	   *server_name;
	Oid			outbox;			/* relation, InvalidOid before the first read */
	int32		server_key;		/* 0: nothing was ever published */
	OutboxLedger *ledger;
	OutboxMessage **batch;		/* of the reading transaction */

	int64		read_through;	/* everything through this id was read */
	OutboxReceipt receipt;		/* the newest one written */
	OutboxDoubt doubt;			/* what a former worker may have sent */
	bool		may_have_sent;	/* and a receipt that is not clean says so */
	TimestampTz receipt_due;	/* 0: nothing to write */

	XLogRecPtr	durable_lsn;	/* must be durable before publishing */
	bool		durable;		/* and is */
	bool		full;			/* commits do not wake us */

	TimestampTz rush_began;		/* of the present count */
	int			rush_count;		/* messages read since */
	bool		rush;			/* there were many in the count before */
	TimestampTz rest_until;		/* nothing is read before; 0: no rest */

	TimestampTz next_due;		/* of the deferred messages; 0: none */
	OutboxPlace due_floor;		/* there are none before this place */
	OutboxPlace due_read;		/* the last one that was read */
	int			deferred;		/* how many of them are in the ledger */
	bool		orphans;		/* some may wait behind a message that is gone */

	OutboxReading reading;		/* what a transaction is reading right now */
	int64		read_end;		/* and up to which id, exclusive */
	int64		damaged_id;		/* a row up to this one is damaged; 0: none */
	bool		bury_outbox;	/* and it is the next one */
	bool		row_by_row;		/* a deferred message is damaged */
	bool		bury_deferred;	/* and it is the next one */
	char	   *damage;			/* the error that it gives */

	OutboxCensus *census;
	int			suspects;		/* to be sent one at a time, see below */
	OutboxRate	rate;			/* messages */
	OutboxRate	rate_bytes;
	OutboxDestinations *destinations;	/* not to be sent to */
};

OutboxPipeline *
outbox_pipeline_create(const char *server_name)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "amqp_outbox pipeline",
												  ALLOCSET_DEFAULT_SIZES);
	OutboxPipeline *pipeline = MemoryContextAllocZero(context,
													  sizeof(OutboxPipeline));

	pipeline->context = context;
	pipeline->server_name = MemoryContextStrdup(context, server_name);
	pipeline->ledger = outbox_ledger_create(context, OUTBOX_LEDGER_SIZE);
	pipeline->destinations = outbox_destinations_create(context);
	pipeline->census = outbox_census_create(context);
	pipeline->batch = MemoryContextAlloc(context, OUTBOX_READ_ROWS *
										 sizeof(OutboxMessage *));

	/*
	 * What a crash left visible is on our disk, but perhaps not on a
	 * synchronous standby.  Later commits are noted in shared memory.
	 */
	pipeline->durable_lsn = GetFlushRecPtr(NULL);
	return pipeline;
}

/*
 * Reading
 */

/*
 * Find out where to go on.  Until the first message to this server commits
 * there is no key, and until then nothing to find out.
 */
static OutboxReadResult
outbox_pipeline_open(OutboxPipeline *pipeline)
{
	OutboxIdentity identity = outbox_store_identity();

	pipeline->outbox = outbox_store_outbox();
	switch (identity)
	{
		case OUTBOX_IDENTITY_COPY:
			return OUTBOX_READ_COPY;
		case OUTBOX_IDENTITY_NONE:
			return OUTBOX_READ_NOTHING;
		case OUTBOX_IDENTITY_OWN:
		case OUTBOX_IDENTITY_ADOPTED:
			break;
	}

	/* not before: a restore may be filling the tables */
	outbox_flush_seed_counter(pipeline->outbox);

	pipeline->server_key = outbox_store_server_key(pipeline->server_name);
	if (pipeline->server_key == 0)
		return OUTBOX_READ_NOTHING;
	outbox_receipt_newest(pipeline->server_key, &pipeline->receipt);
	pipeline->read_through = pipeline->receipt.through_id;
	/* its writer may have died before it could say so */
	outbox_registry_settled(pipeline->receipt.through_id);
	if (pipeline->receipt.receipt_no > 0 ? !pipeline->receipt.clean :
		(identity == OUTBOX_IDENTITY_ADOPTED || outbox_store_was_promoted()))
	{
		pipeline->doubt.through_id =
			outbox_horizon_read(pipeline->outbox) - 1;
		pipeline->doubt.due_at = GetCurrentTimestamp();
		pipeline->may_have_sent = true;
	}
	pipeline->orphans = true;
	pipeline->next_due = GetCurrentTimestamp();
	pipeline->due_floor.due_at = DT_NOBEGIN;
	return OUTBOX_READ_SOME;
}

void
outbox_pipeline_count(OutboxPipeline *pipeline, const OutboxServer *server)
{
	outbox_census_take(pipeline->census, server, pipeline->outbox,
					   pipeline->server_key, pipeline->receipt.through_id);
}

TimestampTz
outbox_pipeline_next_count(const OutboxPipeline *pipeline)
{
	return pipeline->server_key == 0 ? 0 :
		outbox_census_next(pipeline->census);
}

/* In a transaction: build the rest of each message and put it on its way. */
static void
outbox_pipeline_take(OutboxPipeline *pipeline, int n, MemoryContext batch)
{
	MemoryContext old_context = MemoryContextSwitchTo(batch);

	for (int i = 0; i < n; i++)
		outbox_properties_build(pipeline->batch[i]);
	MemoryContextSwitchTo(old_context);
	MemoryContextSetParent(batch, pipeline->context);
	outbox_ledger_add(pipeline->ledger, pipeline->batch, n, batch);
}

/* Goes with the transaction unless its messages are taken. */
static MemoryContext
outbox_pipeline_new_batch(void)
{
	return AllocSetContextCreate(CurrentMemoryContext, "amqp_outbox batch",
								 ALLOCSET_DEFAULT_SIZES);
}

/* What may be held of messages, in bytes. */
static Size
outbox_pipeline_read_ahead(void)
{
	return (Size) outbox_read_ahead * 1024 * 1024;
}

/* Room for bodies; at least one message is always read. */
static Size
outbox_pipeline_room_bytes(const OutboxPipeline *pipeline)
{
	Size		used = outbox_ledger_bytes(pipeline->ledger);
	Size		limit = outbox_pipeline_read_ahead();

	return used < limit ? Min(limit - used, OUTBOX_READ_BYTES) : 0;
}

/*
 * Damaged rows
 *
 * When the outbox cannot be read because a row in it is damaged, the ids that
 * were to be read are halved until one is left, which is taken without being
 * read.  (Fewer rows would not do: a merge of the leaves reads the first row of
 * each, and the damaged one may be far behind.)  Deferred messages, which are
 * in one table, are read row by row until the one that fails is the next.
 */

/* Take the row with this id, which cannot be read; 0: it is gone. */
static void
outbox_pipeline_take_damaged(OutboxPipeline *pipeline, int64 id,
							 bool deferred, MemoryContext batch)
{
	OutboxMessage *msg;

	if (id == 0)
		return;
	msg = MemoryContextAllocZero(batch, sizeof(OutboxMessage));
	msg->id = id;
	msg->deferred = deferred;
	msg->possible_duplicate = !deferred && id <= pipeline->doubt.through_id;
	msg->message_id = msg->exchange = msg->routing_key = msg->body = "";
	msg->unreadable = MemoryContextStrdup(batch, pipeline->damage);
	pipeline->batch[0] = msg;
	MemoryContextSetParent(batch, pipeline->context);
	outbox_ledger_add(pipeline->ledger, pipeline->batch, 1, batch);
	pipeline->deferred += deferred;
}

/* The end of the ids to read now. */
static int64
outbox_pipeline_read_end(const OutboxPipeline *pipeline, int64 horizon)
{
	int64		after = pipeline->read_through;

	if (pipeline->damaged_id == 0)
		return horizon;
	return after + 1 + Max((pipeline->damaged_id - after) / 2, 1);
}

/*
 * Errors that a row will give whenever it is read: also one that was accepted
 * in a session with another max_stack_depth, or under other rules.
 */
static bool
outbox_pipeline_is_damage(int sqlerrcode)
{
	return sqlerrcode == ERRCODE_DATA_CORRUPTED ||
		ERRCODE_TO_CATEGORY(sqlerrcode) == ERRCODE_DATA_EXCEPTION ||
		ERRCODE_TO_CATEGORY(sqlerrcode) == ERRCODE_PROGRAM_LIMIT_EXCEEDED;
}

bool
outbox_pipeline_recover(OutboxPipeline *pipeline, int sqlerrcode,
						const char *message)
{
	OutboxReading reading = pipeline->reading;
	bool		damage = outbox_pipeline_is_damage(sqlerrcode);

	pipeline->reading = OUTBOX_READING_NOTHING;
	if (reading == OUTBOX_READING_BODY && damage)
		outbox_ledger_unreadable(pipeline->ledger, message);
	else if (reading == OUTBOX_READING_BODY)
		outbox_ledger_put_back(pipeline->ledger);
	if (reading == OUTBOX_READING_BODY)
		return damage;
	if (reading == OUTBOX_READING_NOTHING || !damage)
		return false;
	if (pipeline->damage)
		pfree(pipeline->damage);
	pipeline->damage = MemoryContextStrdup(pipeline->context, message);

	if (reading == OUTBOX_READING_OUTBOX)
	{
		int64		last = pipeline->read_end - 1;

		pipeline->bury_outbox = last == pipeline->read_through + 1;
		pipeline->damaged_id = last;
		return !pipeline->bury_outbox;
	}
	if (pipeline->bury_deferred)
	{
		/* not even its id can be read: leave the others alone for a while */
		pipeline->next_due =
			TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
										OUTBOX_DAMAGED_MS);
		return false;
	}
	pipeline->bury_deferred = pipeline->row_by_row;
	pipeline->row_by_row = true;
	return !pipeline->bury_deferred;
}

/* Find out when the n messages of the batch were committed. */
static void
outbox_pipeline_date_batch(OutboxPipeline *pipeline, int n)
{
	OutboxClock clock;

	outbox_horizon_copy_clock(pipeline->outbox, &clock);
	for (int i = 0; i < n; i++)
	{
		OutboxMessage *msg = pipeline->batch[i];

		msg->committed_at = Max(outbox_clock_find(&clock, msg->id),
								msg->enqueued_at);
	}
}

/* Read the outbox below the horizon; returns how many messages there were. */
static int
outbox_pipeline_read_outbox(OutboxPipeline *pipeline, int64 horizon,
							const OutboxServer *server)
{
	MemoryContext batch = outbox_pipeline_new_batch();
	int			max_rows = Min(OUTBOX_READ_ROWS,
							   outbox_ledger_room(pipeline->ledger));
	int64		end = outbox_pipeline_read_end(pipeline, horizon);
	bool		complete;
	int			n;

	if (pipeline->bury_outbox)
	{
		outbox_pipeline_take_damaged(pipeline, ++pipeline->read_through, false,
									 batch);
		pipeline->bury_outbox = false;
		pipeline->damaged_id = 0;
		return 1;
	}
	pipeline->reading = OUTBOX_READING_OUTBOX;
	pipeline->read_end = end;
	n = outbox_fetch(batch, pipeline->server_key,
					 pipeline->read_through, end, max_rows,
					 outbox_pipeline_room_bytes(pipeline), server,
					 &pipeline->doubt, pipeline->batch, &complete);
	Assert(n == 0 || pipeline->batch[n - 1]->id < horizon);
	if (n > 0)
	{
		outbox_pipeline_date_batch(pipeline, n);
		outbox_pipeline_take(pipeline, n, batch);
		pipeline->read_through = pipeline->batch[n - 1]->id;
	}
	if (complete)
		pipeline->read_through = end - 1;
	if (pipeline->read_through >= pipeline->damaged_id)
		pipeline->damaged_id = 0;	/* it can be read after all */
	pipeline->reading = OUTBOX_READING_NOTHING;
	return n;
}

/*
 * Deferred messages are read in the order in which they are due, from the place
 * on before which there are none, because all that were there have gone or have
 * got a later one.  So what they left behind in the index costs nothing, even
 * while an old snapshot keeps it there.  Whoever else puts messages there says
 * so.
 */
static OutboxPlace
outbox_pipeline_due_floor(const OutboxPipeline *pipeline, int settled,
						  TimestampTz settled_at)
{
	OutboxPlace floor = pipeline->due_floor;

	/* all that were read are settled, and due at settled_at at the earliest */
	if (settled > 0 && pipeline->deferred == settled)
		floor = pipeline->due_read;
	if (floor.due_at >= settled_at)
		floor = (OutboxPlace) {.due_at = settled_at};
	return floor;
}

/* The end of the last record in the WAL, which can be flushed. */
static XLogRecPtr
outbox_pipeline_end_of_wal(void)
{
	XLogRecPtr	lsn = GetXLogInsertRecPtr();

	/* where a page begins, its header is yet to be written */
	if (lsn % XLOG_BLCKSZ == SizeOfXLogShortPHD)
		lsn -= SizeOfXLogShortPHD;
	else if (lsn % wal_segment_size == SizeOfXLogLongPHD)
		lsn -= SizeOfXLogLongPHD;
	return lsn;
}

/* Read deferred messages that are due. */
static void
outbox_pipeline_read_due(OutboxPipeline *pipeline, TimestampTz now,
						 const OutboxServer *server)
{
	MemoryContext batch = outbox_pipeline_new_batch();
	int			max_rows = pipeline->row_by_row ? 1 :
		Min(OUTBOX_DUE_ROWS, outbox_ledger_room(pipeline->ledger));
	int			n;

	pipeline->reading = OUTBOX_READING_DEFERRED;
	if (pipeline->bury_deferred)
	{
		int64		id = outbox_fetch_next_due_id(pipeline->server_key,
												  &pipeline->due_floor, now);

		pipeline->reading = OUTBOX_READING_NOTHING;
		outbox_pipeline_take_damaged(pipeline, id, true, batch);
		pipeline->row_by_row = pipeline->bury_deferred = false;
		return;
	}
	n = outbox_fetch_due(batch, pipeline->server_key,
						 &pipeline->due_floor, now, max_rows,
						 outbox_pipeline_room_bytes(pipeline), server,
						 &pipeline->doubt, pipeline->batch);
	if (n > 0)
	{
		outbox_pipeline_take(pipeline, n, batch);
		pipeline->due_read.due_at = pipeline->batch[n - 1]->due_at;
		pipeline->due_read.id = pipeline->batch[n - 1]->id;
	}
	pipeline->reading = OUTBOX_READING_NOTHING;
	pipeline->deferred += n;

	/* what is visible may not be durable, and has no horizon */
	if (n > 0)
		pipeline->durable_lsn = Max(pipeline->durable_lsn,
									outbox_pipeline_end_of_wal());
	if (n == 0)
	{
		pipeline->row_by_row = false;
		pipeline->next_due = outbox_fetch_next_due(pipeline->server_key,
												   &pipeline->due_floor);
	}
}

static bool
outbox_pipeline_has_due(const OutboxPipeline *pipeline, TimestampTz now)
{
	return pipeline->deferred == 0 && pipeline->next_due != 0 &&
		pipeline->next_due <= now;
}

bool
outbox_pipeline_has_room(const OutboxPipeline *pipeline)
{
	return outbox_ledger_room(pipeline->ledger) >= OUTBOX_READ_MIN_ROOM &&
		outbox_pipeline_room_bytes(pipeline) >=
		Min(outbox_pipeline_read_ahead() / 2, OUTBOX_READ_BYTES) &&
		(outbox_ledger_large_bytes(pipeline->ledger) < OUTBOX_READ_LARGE ||
		 outbox_ledger_unpublished(pipeline->ledger) == 0) &&
		outbox_ledger_unpublished(pipeline->ledger) < OUTBOX_READ_ROWS;
}

/* Count n messages that were read, and find out whether to rest after them. */
static void
outbox_pipeline_note_rush(OutboxPipeline *pipeline, int n, TimestampTz now)
{
	int64		elapsed = now - pipeline->rush_began;

	if (elapsed < 0 || elapsed >= OUTBOX_RUSH_MS * 1000)
	{
		/* a count that ended long ago says nothing */
		pipeline->rush = pipeline->rush_count >= OUTBOX_RUSH_MESSAGES &&
			elapsed >= 0 && elapsed < 2 * OUTBOX_RUSH_MS * 1000;
		pipeline->rush_began = now;
		pipeline->rush_count = 0;
	}
	pipeline->rush_count += n;
	if (!pipeline->rush || n == 0 || n > OUTBOX_RUSH_FEW)
		return;
	pipeline->rest_until = TimestampTzPlusMilliseconds(now, OUTBOX_REST_MS);
	outbox_horizon_ignore();
}

/* Milliseconds until something is read again, also if the clock was set back. */
static long
outbox_pipeline_rest(const OutboxPipeline *pipeline, TimestampTz now)
{
	long		ms = pipeline->rest_until == 0 ? 0 :
		TimestampDifferenceMilliseconds(now, pipeline->rest_until);

	return ms > OUTBOX_REST_MS ? 0 : ms;
}

TimestampTz
outbox_pipeline_next_read(const OutboxPipeline *pipeline)
{
	TimestampTz now = GetCurrentTimestamp();

	if (pipeline->rest_until == 0)
		return 0;
	return TimestampTzPlusMilliseconds(now, outbox_pipeline_rest(pipeline, now));
}

OutboxReadResult
outbox_pipeline_read(OutboxPipeline *pipeline, const OutboxServer *server)
{
	OutboxReadResult result = OUTBOX_READ_SOME;
	OutboxServer current = *server;
	TimestampTz now;
	int64		horizon;
	int			n = 0;

	if (!outbox_pipeline_has_room(pipeline))
	{
		/* commits need not wake us as long as the broker is away or busy */
		if (!pipeline->full)
			outbox_horizon_ignore();
		pipeline->full = true;
		/* the end of a rest need not wake us either */
		pipeline->rest_until = 0;
		return OUTBOX_READ_FULL;
	}
	pipeline->full = false;
	now = GetCurrentTimestamp();
	if (outbox_pipeline_rest(pipeline, now) > 0)
		return OUTBOX_READ_NOTHING;
	pipeline->rest_until = 0;
	/* the horizon first, the snapshot afterwards: see horizon.c */
	horizon = OidIsValid(pipeline->outbox) ?
		outbox_horizon_read(pipeline->outbox) : 0;
	if (pipeline->server_key != 0 && horizon <= pipeline->read_through + 1 &&
		!outbox_pipeline_has_due(pipeline, now) && !pipeline->orphans)
		return OUTBOX_READ_NOTHING;

	if (!outbox_store_begin())
		return OUTBOX_READ_GONE;
	pipeline->durable = false;
	if (pipeline->server_key == 0)
		result = outbox_pipeline_open(pipeline);
	outbox_option_message_defaults(server->serverid, &current.persistent,
								   &current.mandatory);
	if (pipeline->server_key != 0 && pipeline->orphans)
	{
		outbox_outcome_release_orphans(pipeline->server_key, now);
		outbox_pipeline_look_for_due(pipeline, DT_NOBEGIN);
	}
	/*
	 * First, because a backlog in the outbox takes all the room there is; what
	 * is due never does.
	 */
	if (pipeline->server_key != 0 && outbox_pipeline_has_due(pipeline, now))
		outbox_pipeline_read_due(pipeline, now, &current);
	if (pipeline->server_key != 0 && horizon > pipeline->read_through + 1 &&
		outbox_pipeline_room_bytes(pipeline) > 0)
		n = outbox_pipeline_read_outbox(pipeline, horizon, &current);
	outbox_store_commit();
	outbox_pipeline_note_rush(pipeline, n, now);

	if (pipeline->server_key != 0)
		pipeline->orphans = false;
	return result;
}

/*
 * Publishing
 */

/*
 * Whether what was read may leave: a commit that a crash takes back must not
 * have been published.  Other sessions may have committed asynchronously, and
 * a commit that a synchronous standby has not confirmed is visible when the
 * wait for it was cancelled.
 */
static bool
outbox_pipeline_is_durable(OutboxPipeline *pipeline)
{
	XLogRecPtr	lsn;

	if (pipeline->durable)
		return true;

	lsn = outbox_horizon_commit_lsn(pipeline->outbox);
	pipeline->durable_lsn = Max(pipeline->durable_lsn, lsn);
	XLogFlush(pipeline->durable_lsn);
	if (max_wal_senders > 0 &&
		SyncRepStandbyNames != NULL && SyncRepStandbyNames[0] != '\0')
	{
		XLogRecPtr	confirmed;

		LWLockAcquire(SyncRepLock, LW_SHARED);
		confirmed = WalSndCtl->lsn[SYNC_REP_WAIT_FLUSH];
		LWLockRelease(SyncRepLock);
		if (confirmed < pipeline->durable_lsn)
			return false;
	}
	pipeline->durable = true;
	return true;
}

/*
 * Before this worker sends its first message a receipt says so, durably, also
 * on a synchronous standby: if it crashes, its successor must not believe the
 * clean receipt of its predecessor.  Runs a transaction.
 */
static bool
outbox_pipeline_announce(OutboxPipeline *pipeline)
{
	OutboxReceipt receipt = pipeline->receipt;

	receipt.receipt_no++;
	receipt.settled_at = GetCurrentTimestamp();
	receipt.clean = false;
	if (!outbox_store_begin())
		return false;
	outbox_receipt_write(pipeline->server_key, &receipt);
	outbox_store_commit();
	pipeline->durable_lsn = Max(pipeline->durable_lsn, XactLastCommitEnd);
	pipeline->receipt = receipt;
	pipeline->may_have_sent = true;
	return true;
}

/* A receipt is due soon if there is something to write into it. */
static void
outbox_pipeline_schedule_receipt(OutboxPipeline *pipeline)
{
	if (pipeline->receipt_due == 0 &&
		outbox_ledger_settled(pipeline->ledger) > 0)
		pipeline->receipt_due =
			TimestampTzPlusMilliseconds(pipeline->receipt.settled_at,
										OUTBOX_RECEIPT_MS);
}

/*
 * The next message is to be sent again, and has let its body go.  Runs a
 * transaction.  False: nothing can be read any more.
 */
static bool
outbox_pipeline_read_body(OutboxPipeline *pipeline, OutboxEntry *entry)
{
	/* an error of the first step puts the message back as well */
	pipeline->reading = OUTBOX_READING_BODY;
	if (!outbox_store_begin())
	{
		pipeline->reading = OUTBOX_READING_NOTHING;
		outbox_ledger_put_back(pipeline->ledger);
		return false;
	}
	if (outbox_fetch_body(entry->batch, pipeline->server_key, entry->message))
		outbox_ledger_body_again(pipeline->ledger);
	else
		outbox_ledger_unreadable(pipeline->ledger,
								 "the row of the message is gone");
	outbox_store_commit();
	pipeline->reading = OUTBOX_READING_NOTHING;
	return true;
}

/* Is the next message not sent at all, or not now?  Then it is done with. */
static bool
outbox_pipeline_pass_over(OutboxPipeline *pipeline, const OutboxEntry *entry,
						  TimestampTz now)
{
	const OutboxDestination *forbidden;

	if (entry->message->expires_at != 0 && entry->message->expires_at <= now)
	{
		outbox_ledger_expired(pipeline->ledger);
		return true;
	}
	forbidden = outbox_destinations_find(pipeline->destinations,
										 entry->message, now);
	if (forbidden)
		outbox_ledger_skipped(pipeline->ledger, forbidden->reply_code,
							  forbidden->words, forbidden->not_before);
	return forbidden != NULL;
}

/* Returns whether it was sent. */
static bool
outbox_pipeline_send(OutboxPipeline *pipeline, OutboxEntry *entry,
					 OutboxTransport *transport, TimestampTz now)
{
	OutboxFailure failure;
	uint64		tag;

	if (entry->doubtful)
		outbox_properties_mark_duplicate(entry->message);
	outbox_properties_set_expiration(entry->message, now);
	tag = outbox_transport_publish(transport, entry->message, &failure);
	if (tag != 0)
		outbox_ledger_sent(pipeline->ledger, tag, now);
	else
		outbox_ledger_refused(pipeline->ledger, failure.message);
	return tag != 0;
}

bool
outbox_pipeline_publish(OutboxPipeline *pipeline, const OutboxServer *server,
						OutboxTransport *transport)
{
	int			window = pipeline->suspects > 0 ? 1 : server->window;
	bool		more = false;
	TimestampTz now;
	OutboxEntry *entry;

	if (outbox_ledger_unpublished(pipeline->ledger) == 0)
		return false;
	if (!pipeline->may_have_sent && !outbox_pipeline_announce(pipeline))
		return false;
	if (!outbox_pipeline_is_durable(pipeline))
		return false;

	now = GetCurrentTimestamp();
	while (outbox_ledger_in_flight(pipeline->ledger) < window &&
		   outbox_rate_allows(&pipeline->rate, server->rate_limit, now) &&
		   outbox_rate_allows(&pipeline->rate_bytes, server->rate_limit_bytes,
							  now) &&
		   !(more = outbox_transport_pending(transport) >= OUTBOX_SEND_BYTES) &&
		   (entry = outbox_ledger_next(pipeline->ledger,
									   server->key_window)) != NULL)
	{
		/* first, because then its body need not be read again */
		bool		passed = outbox_pipeline_pass_over(pipeline, entry, now);

		if (!passed && entry->message->body == NULL &&
			!outbox_pipeline_read_body(pipeline, entry))
			break;
		if (entry->outcome == OUTBOX_OPEN &&
			outbox_pipeline_send(pipeline, entry, transport, now))
		{
			outbox_rate_take(&pipeline->rate, server->rate_limit, 1);
			outbox_rate_take(&pipeline->rate_bytes, server->rate_limit_bytes,
							 entry->message->body_len);
		}
		if (pipeline->suspects > 0 && --pipeline->suspects == 0)
			window = server->window;
	}
	outbox_pipeline_schedule_receipt(pipeline);
	return more;
}

/*
 * Settling
 */

/*
 * The broker closed the channel because of one message, does not say which,
 * and forgot the confirms of all others.  So all of them are sent again, one
 * at a time; the one that is alone in flight when it closes the channel again
 * is the culprit.  Others to the same destination are then not even sent.
 */
static void
outbox_pipeline_channel_closed(OutboxPipeline *pipeline,
							   const OutboxEvent *event)
{
	OutboxEntry *culprit = outbox_ledger_sole(pipeline->ledger);
	int			again;

	if (culprit)
	{
		outbox_ledger_reject(pipeline->ledger, culprit, event->reply_code,
							 event->failure.detail);
		outbox_destinations_failed(pipeline->destinations, culprit->message,
								   event->reply_code, event->failure.detail,
								   GetCurrentTimestamp());
	}
	again = outbox_ledger_forget_tags(pipeline->ledger);
	pipeline->suspects = Max(pipeline->suspects, again);
}

bool
outbox_pipeline_event(OutboxPipeline *pipeline, const OutboxServer *server,
					  const OutboxEvent *event)
{
	bool		plausible = true;

	switch (event->type)
	{
		case OUTBOX_EVENT_CONFIRM:
			plausible = outbox_ledger_confirm(pipeline->ledger, event->tag,
											  event->multiple, event->ack,
											  GetCurrentTimestamp());
			break;
		case OUTBOX_EVENT_RETURN:
			plausible = outbox_ledger_return(pipeline->ledger,
											 event->message_id,
											 event->exchange,
											 event->routing_key,
											 event->reply_code,
											 event->failure.detail,
											 server->unroutable == OUTBOX_UNROUTABLE_ACCEPT);
			break;
		case OUTBOX_EVENT_CHANNEL_CLOSED:
			outbox_pipeline_channel_closed(pipeline, event);
			break;
		default:
			Assert(false);
	}
	outbox_pipeline_schedule_receipt(pipeline);
	return plausible;
}

void
outbox_pipeline_disconnected(OutboxPipeline *pipeline)
{
	outbox_ledger_forget_tags(pipeline->ledger);
	pipeline->suspects = 0;
}

/* Which of the n oldest messages show that their exchange is there? */
static void
outbox_pipeline_learn(OutboxPipeline *pipeline, int n)
{
	for (int i = 0; i < n; i++)
	{
		OutboxEntry *entry = outbox_ledger_get(pipeline->ledger, i);

		if (entry->outcome == OUTBOX_DELIVERED ||
			entry->outcome == OUTBOX_RETURNED)
			outbox_destinations_succeeded(pipeline->destinations,
										  entry->message);
	}
}

/*
 * Count which of the n oldest messages were delivered.  Those that came from
 * amqp_outbox.deferred have no time that counts: they were to wait.
 */
static void
outbox_pipeline_measure(OutboxPipeline *pipeline, int n, TimestampTz now)
{
	OutboxTally tally = {0};

	for (int i = 0; i < n; i++)
	{
		const OutboxEntry *entry = outbox_ledger_get(pipeline->ledger, i);
		const OutboxMessage *msg = entry->message;

		if (entry->outcome == OUTBOX_DELIVERED)
			outbox_tally_count(&tally, msg->body_len,
							   msg->committed_at == 0 ? -1 :
							   Max(entry->answered_at - msg->committed_at, 0));
	}
	if (tally.delivered > 0)
		outbox_registry_measured(&tally, now);
}

/* The transaction of a receipt over the n oldest messages. */
static void
outbox_pipeline_write_receipt(OutboxPipeline *pipeline,
							  const OutboxServer *server, int n, bool clean)
{
	OutboxReceipt receipt = pipeline->receipt;
	OutboxPlace due_floor;
	TimestampTz next_due;
	int			deferred;

	receipt.receipt_no++;
	receipt.settled_at = GetCurrentTimestamp();
	/* what was only held was never sent */
	receipt.clean = clean || !pipeline->may_have_sent;
	outbox_census_begin_receipt(pipeline->census);
	if (!outbox_store_begin())
		return;
	deferred = outbox_settlement_write(pipeline->ledger, n, server,
									   pipeline->server_key,
									   pipeline->doubt.due_at, &receipt,
									   pipeline->census);
	outbox_receipt_write(pipeline->server_key, &receipt);
	due_floor = outbox_pipeline_due_floor(pipeline, deferred,
										  receipt.settled_at);
	next_due = outbox_fetch_next_due(pipeline->server_key, &due_floor);
	outbox_store_commit();

	outbox_census_end_receipt(pipeline->census, server->serverid);
	outbox_registry_settled(receipt.through_id);
	pipeline->receipt = receipt;
	pipeline->deferred -= deferred;
	pipeline->due_floor = due_floor;
	pipeline->next_due = next_due;
	outbox_pipeline_learn(pipeline, n);
	outbox_pipeline_measure(pipeline, n, receipt.settled_at);
	outbox_ledger_remove(pipeline->ledger, n);
}

/* Milliseconds until the receipt is due, also if the clock was set back. */
static long
outbox_pipeline_receipt_wait(const OutboxPipeline *pipeline)
{
	long		ms = TimestampDifferenceMilliseconds(GetCurrentTimestamp(),
													 pipeline->receipt_due);

	return ms > OUTBOX_RECEIPT_MS ? 0 : ms;
}

void
outbox_pipeline_settle(OutboxPipeline *pipeline, const OutboxServer *server,
					   bool now)
{
	int			n = outbox_ledger_settled(pipeline->ledger);

	if (n == 0)
		return;
	if (!now && n < OUTBOX_RECEIPT_ROWS &&
		outbox_pipeline_receipt_wait(pipeline) > 0)
		return;

	outbox_pipeline_write_receipt(pipeline, server, n, false);
	pipeline->receipt_due = 0;
}

/*
 * Is there a message that this worker or a former one may have sent and that
 * has no outcome?
 */
static bool
outbox_pipeline_in_doubt(const OutboxPipeline *pipeline)
{
	return outbox_ledger_in_doubt(pipeline->ledger) ||
		pipeline->read_through < pipeline->doubt.through_id ||
		(pipeline->next_due != 0 &&
		 pipeline->next_due <= pipeline->doubt.due_at);
}

void
outbox_pipeline_finish(OutboxPipeline *pipeline, const OutboxServer *server)
{
	outbox_pipeline_settle(pipeline, server, true);
	if (!pipeline->may_have_sent || outbox_pipeline_in_doubt(pipeline))
		return;
	outbox_pipeline_write_receipt(pipeline, server, 0, true);
	XLogFlush(XactLastCommitEnd);
}

void
outbox_pipeline_look_for_due(OutboxPipeline *pipeline, TimestampTz from)
{
	OutboxPlace place = {.due_at = from};
	TimestampTz due = Max(from, GetCurrentTimestamp());

	if (pipeline->server_key != 0 &&
		(pipeline->next_due == 0 || due < pipeline->next_due))
		pipeline->next_due = due;
	if (from <= pipeline->due_floor.due_at)
		pipeline->due_floor = place;
	/* also when those that are on their way are settled */
	if (from <= pipeline->due_read.due_at)
		pipeline->due_read = place;
	/* and nobody has added those to the backlog; at first, not even counted it */
	if (TIMESTAMP_IS_NOBEGIN(from))
		outbox_census_want(pipeline->census);
}

void
outbox_pipeline_look_again(OutboxPipeline *pipeline)
{
	outbox_destinations_forget(pipeline->destinations);
	pipeline->orphans = true;
	outbox_pipeline_look_for_due(pipeline, DT_NOBEGIN);
}

int64
outbox_pipeline_receipt_no(const OutboxPipeline *pipeline)
{
	return pipeline->receipt.receipt_no;
}

int
outbox_pipeline_in_flight(const OutboxPipeline *pipeline)
{
	return outbox_ledger_in_flight(pipeline->ledger);
}

TimestampTz
outbox_pipeline_oldest_sent(const OutboxPipeline *pipeline)
{
	return outbox_ledger_oldest_sent(pipeline->ledger);
}

static long
outbox_sooner(long a, long b)
{
	if (a < 0)
		return b;
	return b < 0 ? a : Min(a, b);
}

long
outbox_pipeline_timeout(const OutboxPipeline *pipeline,
						const OutboxServer *server, bool publishing)
{
	TimestampTz now = GetCurrentTimestamp();
	long		ms = -1;

	if (pipeline->receipt_due != 0)
		ms = outbox_sooner(ms, outbox_pipeline_receipt_wait(pipeline));
	if (!publishing)
		return ms;
	if (pipeline->next_due != 0 && pipeline->deferred == 0 &&
		outbox_pipeline_has_room(pipeline))
		ms = outbox_sooner(ms, TimestampDifferenceMilliseconds(now, pipeline->next_due));
	if (outbox_ledger_unpublished(pipeline->ledger) == 0)
		return ms;
	if (!pipeline->durable)
		ms = outbox_sooner(ms, OUTBOX_STANDBY_MS);
	ms = outbox_sooner(ms, outbox_rate_wait(&pipeline->rate,
											server->rate_limit, now));
	ms = outbox_sooner(ms, outbox_rate_wait(&pipeline->rate_bytes,
											server->rate_limit_bytes, now));
	return ms;
}

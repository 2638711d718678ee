/*-------------------------------------------------------------------------
 *
 * pipeline.c
 *	  From the outbox to the broker and back: read, publish, settle.
 *
 * Messages are read as reader.h says; published once their commits are known to
 * be durable; and settled, as the broker answers, with receipts.  A receipt says
 * that everything through an id has an outcome; messages that failed move to
 * amqp_outbox.deferred in the transaction of the receipt that passes them, and
 * never before it, so that a crash cannot send a message on both ways.
 *
 * Runs in the worker.  The three steps are separate so that no transaction is
 * ever open while anything of the network is awaited.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "census.h"
#include "destination.h"
#include "fetch.h"
#include "flush.h"
#include "ledger.h"
#include "measure.h"
#include "pipeline.h"
#include "properties.h"
#include "rate.h"
#include "reader.h"
#include "receipt.h"
#include "registry.h"
#include "settlement.h"
#include "store.h"

/* Messages between being read and being settled, at the most. */
#define OUTBOX_LEDGER_SIZE		4096

/* Bytes queued in the transport beyond which nothing is added. */
#define OUTBOX_SEND_BYTES		(256 * 1024)

/* Receipts: at most one in so many ms, unless so many messages wait for it. */
#define OUTBOX_RECEIPT_MS		20
#define OUTBOX_RECEIPT_ROWS		2048

/* How often to look whether a synchronous standby has caught up. */
#define OUTBOX_STANDBY_MS		20

struct OutboxPipeline
{
	char	   *server_name;
	OutboxLedger *ledger;
	OutboxReader *reader;

	OutboxReceipt receipt;		/* the newest one written */
	bool		may_have_sent;	/* and a receipt that is not clean says so */
	TimestampTz receipt_due;	/* 0: nothing to write */

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

	pipeline->server_name = MemoryContextStrdup(context, server_name);
	pipeline->ledger = outbox_ledger_create(context, OUTBOX_LEDGER_SIZE);
	pipeline->reader = outbox_reader_create(context, pipeline->ledger);
	pipeline->destinations = outbox_destinations_create(context);
	pipeline->census = outbox_census_create(context);
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
	OutboxReader *reader = pipeline->reader;
	OutboxIdentity identity = outbox_store_identity();
	int32		server_key;

	reader->outbox = outbox_store_outbox();
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
	outbox_flush_seed_counter(reader->outbox);

	server_key = outbox_store_server_key(pipeline->server_name);
	if (server_key == 0)
		return OUTBOX_READ_NOTHING;
	outbox_receipt_newest(server_key, &pipeline->receipt);
	/* its writer may have died before it could say so */
	outbox_registry_settled(pipeline->receipt.through_id);
	pipeline->may_have_sent = pipeline->receipt.receipt_no > 0 ?
		!pipeline->receipt.clean :
		(identity == OUTBOX_IDENTITY_ADOPTED || outbox_store_was_promoted());
	outbox_reader_open(reader, server_key, pipeline->receipt.through_id,
					   pipeline->may_have_sent);
	return OUTBOX_READ_SOME;
}

void
outbox_pipeline_count(OutboxPipeline *pipeline, const OutboxServer *server)
{
	outbox_census_take(pipeline->census, server, pipeline->reader->outbox,
					   pipeline->reader->server_key,
					   pipeline->receipt.through_id);
}

TimestampTz
outbox_pipeline_next_count(const OutboxPipeline *pipeline)
{
	return pipeline->reader->server_key == 0 ? 0 :
		outbox_census_next(pipeline->census);
}

bool
outbox_pipeline_has_room(const OutboxPipeline *pipeline)
{
	return outbox_reader_has_room(pipeline->reader);
}

TimestampTz
outbox_pipeline_next_read(const OutboxPipeline *pipeline)
{
	return outbox_reader_next_read(pipeline->reader);
}

bool
outbox_pipeline_recover(OutboxPipeline *pipeline, int sqlerrcode,
						const char *message)
{
	return outbox_reader_recover(pipeline->reader, sqlerrcode, message);
}

OutboxReadResult
outbox_pipeline_read(OutboxPipeline *pipeline, const OutboxServer *server)
{
	OutboxReader *reader = pipeline->reader;
	TimestampTz now = GetCurrentTimestamp();
	OutboxReadResult result = outbox_reader_look(reader, now);

	if (result != OUTBOX_READ_SOME)
		return result;
	if (!outbox_store_begin())
		return OUTBOX_READ_GONE;
	outbox_durable_forget(&reader->durable);
	if (reader->server_key == 0)
		result = outbox_pipeline_open(pipeline);
	/* then nobody knows yet how many there are */
	if (reader->server_key != 0 && reader->orphans)
		outbox_census_want(pipeline->census);
	if (reader->server_key != 0)
		outbox_reader_read(reader, server, now);
	outbox_store_commit();
	outbox_reader_committed(reader, now);
	return result;
}

/*
 * Publishing
 */

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
	outbox_receipt_write(pipeline->reader->server_key, &receipt);
	outbox_store_commit();
	outbox_durable_require(&pipeline->reader->durable, XactLastCommitEnd);
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
	if (!outbox_durable_check(&pipeline->reader->durable,
							  pipeline->reader->outbox))
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
			!outbox_reader_read_body(pipeline->reader, entry))
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
	OutboxReader *reader = pipeline->reader;
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
									   reader->server_key,
									   reader->doubt.due_at, &receipt,
									   pipeline->census);
	outbox_receipt_write(reader->server_key, &receipt);
	due_floor = outbox_due_floor(&reader->due, deferred, receipt.settled_at);
	next_due = outbox_fetch_next_due(reader->server_key, &due_floor);
	outbox_store_commit();

	outbox_census_end_receipt(pipeline->census, server->serverid);
	outbox_registry_settled(receipt.through_id);
	pipeline->receipt = receipt;
	outbox_due_settled(&reader->due, deferred, &due_floor, next_due);
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
	const OutboxReader *reader = pipeline->reader;

	return outbox_ledger_in_doubt(pipeline->ledger) ||
		reader->read_through < reader->doubt.through_id ||
		(reader->due.next != 0 && reader->due.next <= reader->doubt.due_at);
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
	outbox_reader_look_for_due(pipeline->reader, from);
	/* and nobody has added those to the backlog; at first, not even counted it */
	if (TIMESTAMP_IS_NOBEGIN(from))
		outbox_census_want(pipeline->census);
}

void
outbox_pipeline_look_again(OutboxPipeline *pipeline)
{
	outbox_destinations_forget(pipeline->destinations);
	pipeline->reader->orphans = true;
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
	TimestampTz next_due = outbox_reader_next_due(pipeline->reader);
	long		ms = -1;

	if (pipeline->receipt_due != 0)
		ms = outbox_sooner(ms, outbox_pipeline_receipt_wait(pipeline));
	if (!publishing)
		return ms;
	if (next_due != 0)
		ms = outbox_sooner(ms, TimestampDifferenceMilliseconds(now, next_due));
	if (outbox_ledger_unpublished(pipeline->ledger) == 0)
		return ms;
	if (!pipeline->reader->durable.known)
		ms = outbox_sooner(ms, OUTBOX_STANDBY_MS);
	ms = outbox_sooner(ms, outbox_rate_wait(&pipeline->rate,
											server->rate_limit, now));
	ms = outbox_sooner(ms, outbox_rate_wait(&pipeline->rate_bytes,
											server->rate_limit_bytes, now));
	return ms;
}

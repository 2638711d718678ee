/*-------------------------------------------------------------------------
 *
 * settlement.c
 *	  What becomes of messages that have an outcome.
 *
 * Delivered messages of the outbox need no word of their own: the receipt says
 * it.  One that failed is tried again by a clock of its own, or becomes a dead
 * letter; one that was held back goes behind the one that it waits for.
 *
 * An exchange that is missing may make a hundred thousand messages fail beside
 * as many that do not.  So what can be written for many messages by one
 * statement is collected.  Messages with an ordering key that failed are not:
 * what is written for one depends on what was written for those before it.
 *
 * Runs in the worker, in the transaction of the receipt.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "common/pg_prng.h"
#include "nodes/pg_list.h"
#include "utils/timestamp.h"

#include "outcome.h"
#include "settlement.h"

/* Backoff of a deferred message: doubles from the first to the last. */
#define OUTBOX_BACKOFF_FIRST_MS INT64CONST(1000)
#define OUTBOX_BACKOFF_LAST_MS	(5 * 60 * 1000)

typedef struct OutboxSettlement
{
	const OutboxServer *server;
	int32		server_key;
	OutboxLedger *ledger;
	OutboxReceipt *receipt;
	OutboxCensus *census;
	TimestampTz doubt_due_at;
	TimestampTz now;

	/* collected */
	int			nfirst;
	OutboxDeferral *first;		/* of the outbox, to be tried again */
	int			nagain;
	OutboxDeferral *again;		/* deferred ones, to be tried again */
	int			ndelivered;
	int64	   *delivered;		/* deferred ones */
	bool		orphans;		/* some may wait for what is gone */
} OutboxSettlement;

/* Twice the pause of the attempt before, and a fifth more or less. */
static TimestampTz
outbox_settlement_backoff(int attempts, TimestampTz now)
{
	double		ms = Min(OUTBOX_BACKOFF_FIRST_MS << Min(attempts, 20),
						 OUTBOX_BACKOFF_LAST_MS);

	ms *= 0.8 + 0.4 * pg_prng_double(&pg_global_prng_state);
	return now + (TimestampTz) (ms * 1000);
}

/* When a failed message is tried again; 0: not any more. */
static TimestampTz
outbox_settlement_next_attempt(const OutboxServer *server,
							   const OutboxEntry *entry, TimestampTz now)
{
	const OutboxMessage *msg = entry->message;
	TimestampTz next;

	if (outbox_reason_is_final(entry->reason) ||
		msg->attempts + 1 >= server->max_attempts ||
		(entry->outcome == OUTBOX_RETURNED &&
		 server->unroutable == OUTBOX_UNROUTABLE_DEAD_LETTER) ||
		(server->max_age > 0 && msg->first_attempt_at != 0 &&
		 TimestampDifferenceExceeds(msg->first_attempt_at, now,
									Min(server->max_age, INT_MAX / 1000) * 1000)))
		return 0;
	next = Max(outbox_settlement_backoff(msg->attempts, now),
			   entry->not_before);
	/* once its time is over, it need not wait to be told so */
	if (msg->expires_at != 0)
		next = Max(Min(next, msg->expires_at), now);
	return next;
}

static void
outbox_settlement_bury(OutboxSettlement *settlement, const OutboxEntry *entry,
					   const OutboxDeferral *deferral)
{
	const OutboxMessage *msg = entry->message;

	outbox_outcome_bury(settlement->server_key, deferral, msg->deferred);
	outbox_census_gone(settlement->census, settlement->server, msg);
	ereport(LOG,
			(errmsg("message \"%s\" to server \"%s\" is a dead letter: %s",
					msg->message_id, settlement->server->name,
					outbox_reason_name(entry->reason)),
			 errdetail_internal("%s", entry->words)));
}

/*
 * A deferred message with a key failed.  Those of its key that are on their way
 * have their own outcomes; the others that were to follow go behind it.
 */
static void
outbox_settlement_hold_behind(OutboxSettlement *settlement,
							  const OutboxEntry *entry)
{
	int64	   *ids = palloc(entry->key->messages * sizeof(int64));
	int			n = outbox_ledger_deferred_ids(settlement->ledger, entry->key,
											   ids);

	outbox_outcome_hold_behind(settlement->server_key, entry->message, ids, n,
							   settlement->doubt_due_at, settlement->now);
	pfree(ids);
}

/* Write down that one attempt failed. */
static void
outbox_settlement_failure(OutboxSettlement *settlement,
						  const OutboxEntry *entry)
{
	const OutboxMessage *msg = entry->message;
	OutboxDeferral deferral = {
		.id = msg->id,
		.due_at = outbox_settlement_next_attempt(settlement->server, entry,
												 settlement->now),
		.attempted_at = settlement->now,
		.reason = entry->reason,
		.possible_duplicate = msg->possible_duplicate || entry->doubtful,
		.reply_code = entry->reply_code,
		.words = entry->words,
		.holds_key = settlement->server->dead_letter_holds_key
	};

	if (deferral.due_at == 0)
		outbox_settlement_bury(settlement, entry, &deferral);
	else if (msg->ordering_key == NULL && !msg->deferred)
		settlement->first[settlement->nfirst++] = deferral;
	else if (msg->ordering_key == NULL)
		settlement->again[settlement->nagain++] = deferral;
	else
	{
		outbox_outcome_defer(settlement->server_key, &deferral, 1,
							 msg->deferred);
		if (msg->deferred)
			outbox_settlement_hold_behind(settlement, entry);
	}
}

static void
outbox_settlement_unreadable(OutboxSettlement *settlement,
							 const OutboxEntry *entry)
{
	const OutboxMessage *msg = entry->message;

	outbox_outcome_bury_unreadable(settlement->server_key, msg,
								   msg->possible_duplicate || entry->doubtful,
								   settlement->server->dead_letter_holds_key,
								   settlement->now);
	outbox_census_gone(settlement->census, settlement->server, msg);
	/* its key could not be read, and others may have waited for it */
	settlement->orphans |= msg->deferred;
	ereport(LOG,
			(errmsg("message " INT64_FORMAT " to server \"%s\" is a dead letter, because it cannot be read",
					msg->id, settlement->server->name),
			 errdetail_internal("%s", msg->unreadable)));
}

/* Count one outcome; true if it means that the message is delivered. */
static bool
outbox_settlement_count(OutboxSettlement *settlement, const OutboxEntry *entry)
{
	OutboxReceipt *receipt = settlement->receipt;

	switch (entry->outcome)
	{
		case OUTBOX_DELIVERED:
			receipt->delivered++;
			return true;
		case OUTBOX_RETURNED:
			receipt->returned++;
			receipt->accepted += entry->accepted;
			return entry->accepted;
		case OUTBOX_REJECTED:
			receipt->rejected += entry->reason != OUTBOX_EXPIRED;
			return false;
		case OUTBOX_HELD:
			return false;
		case OUTBOX_OPEN:
			break;
	}
	elog(ERROR, "message " INT64_FORMAT " has no outcome", entry->message->id);
}

static void
outbox_settlement_one(OutboxSettlement *settlement, const OutboxEntry *entry)
{
	const OutboxMessage *msg = entry->message;
	bool		delivered = outbox_settlement_count(settlement, entry);

	if (!msg->deferred)
		settlement->receipt->through_id = msg->id;

	if (delivered)
		outbox_census_gone(settlement->census, settlement->server, msg);
	if (delivered && msg->deferred)
		settlement->delivered[settlement->ndelivered++] = msg->id;
	else if (entry->outcome == OUTBOX_HELD)
		outbox_outcome_hold(settlement->server_key, msg,
							msg->possible_duplicate || entry->doubtful,
							settlement->now);
	else if (msg->unreadable)
		outbox_settlement_unreadable(settlement, entry);
	else if (!delivered)
		outbox_settlement_failure(settlement, entry);
}

/* Let those go on that waited behind one of the n oldest messages. */
static void
outbox_settlement_release(OutboxSettlement *settlement, int n)
{
	List	   *keys = NIL;
	ListCell   *lc;

	for (int i = 0; i < n; i++)
	{
		OutboxEntry *entry = outbox_ledger_get(settlement->ledger, i);

		if (entry->key && entry->message->deferred &&
			entry->outcome != OUTBOX_HELD)
			keys = list_append_unique_ptr(keys, entry->key);
	}
	foreach(lc, keys)
		outbox_outcome_release(settlement->server_key,
							   ((OutboxKey *) lfirst(lc))->name,
							   settlement->now);
	list_free(keys);
}

int
outbox_settlement_write(OutboxLedger *ledger, int n,
						const OutboxServer *server, int32 server_key,
						TimestampTz doubt_due_at,
						OutboxReceipt *receipt, OutboxCensus *census)
{
	OutboxSettlement settlement = {
		.server = server,
		.server_key = server_key,
		.ledger = ledger,
		.receipt = receipt,
		.census = census,
		.doubt_due_at = doubt_due_at,
		.now = receipt->settled_at
	};
	int			deferred = 0;

	if (n == 0)
		return 0;
	settlement.first = palloc(n * sizeof(OutboxDeferral));
	settlement.again = palloc(n * sizeof(OutboxDeferral));
	settlement.delivered = palloc(n * sizeof(int64));
	for (int i = 0; i < n; i++)
	{
		OutboxEntry *entry = outbox_ledger_get(ledger, i);

		outbox_settlement_one(&settlement, entry);
		deferred += entry->message->deferred;
	}
	outbox_outcome_defer(server_key, settlement.first, settlement.nfirst, false);
	outbox_outcome_defer(server_key, settlement.again, settlement.nagain, true);
	outbox_outcome_deliver_deferred(server_key, settlement.delivered,
									settlement.ndelivered, settlement.now);
	if (deferred > 0)
		outbox_settlement_release(&settlement, n);
	if (settlement.orphans)
		outbox_outcome_release_orphans(server_key, settlement.now);
	pfree(settlement.first);
	pfree(settlement.again);
	pfree(settlement.delivered);
	return deferred;
}

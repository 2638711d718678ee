/*-------------------------------------------------------------------------
 *
 * ledger.h
 *	  Messages between being read and being settled.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_LEDGER_H
#define OUTBOX_LEDGER_H

#include "message.h"
#include "ordering.h"

typedef struct OutboxLedger OutboxLedger;

/* One message on its way. */
typedef struct OutboxEntry
{
	OutboxMessage *message;
	MemoryContext batch;		/* what its reading allocated */
	bool		last_of_batch;	/* whoever removes it deletes the context */
	uint64		tag;			/* of its newest attempt, 0: not sent */
	TimestampTz sent_at;
	TimestampTz answered_at;	/* by a confirm */
	bool		doubtful;		/* may have reached a queue, and has no ack */
	OutboxOutcome outcome;
	OutboxReason reason;		/* if returned or rejected */
	int			reply_code;		/* the same; 0: none */
	char	   *words;			/* the broker's; in the batch's context */
	TimestampTz not_before;		/* of the next attempt; 0: no matter */
	bool		accepted;		/* returned, and that is as good as delivered */

	OutboxKey  *key;			/* NULL: it has no ordering key */
	bool		failed;			/* counted in the key's */
	bool		awaited;		/* counted in the key's in_flight */
	bool		unproven;		/* counted in the key's */
} OutboxEntry;

/* An empty ledger with room for this many messages (a power of two). */
extern OutboxLedger *outbox_ledger_create(MemoryContext context, int size);

extern int	outbox_ledger_room(const OutboxLedger *ledger);
extern Size outbox_ledger_bytes(const OutboxLedger *ledger);

/* Those of bodies that are let go as soon as they are sent. */
extern Size outbox_ledger_large_bytes(const OutboxLedger *ledger);
extern int	outbox_ledger_in_flight(const OutboxLedger *ledger);
extern int	outbox_ledger_unpublished(const OutboxLedger *ledger);

/* Take over the messages of one batch and the context they live in. */
extern void outbox_ledger_add(OutboxLedger *ledger, OutboxMessage **messages,
							  int n, MemoryContext batch);

/*
 * The next one to send, NULL if there is none.  It must be sent, refused,
 * skipped or put back before the next call.
 */
extern OutboxEntry *outbox_ledger_next(OutboxLedger *ledger, int key_window);

/*
 * If that one was sent before it may have let its body go.  It has got it again;
 * or its row cannot be read any more; or nothing can be read now.
 */
extern void outbox_ledger_body_again(OutboxLedger *ledger);
extern void outbox_ledger_unreadable(OutboxLedger *ledger, const char *words);
extern void outbox_ledger_put_back(OutboxLedger *ledger);

/*
 * That one was sent with this tag, or is too large to be sent at all.  Tags
 * ascend by one from 1, anew after outbox_ledger_forget_tags().  The one that
 * was sent before may let its body go.
 */
extern void outbox_ledger_sent(OutboxLedger *ledger, uint64 tag,
							   TimestampTz now);
extern void outbox_ledger_refused(OutboxLedger *ledger, const char *words);

/* That one is not sent any more, because its time is over. */
extern void outbox_ledger_expired(OutboxLedger *ledger);

/* That one is not sent now, for a reason that the broker gave before. */
extern void outbox_ledger_skipped(OutboxLedger *ledger, int reply_code,
								  const char *words, TimestampTz not_before);

/*
 * The broker's answers.  Both are false if they are about a message that was
 * not sent: then the broker cannot be trusted.  accepted: a returned message
 * is not to be tried again.
 */
extern bool outbox_ledger_confirm(OutboxLedger *ledger, uint64 tag,
								  bool multiple, bool ack, TimestampTz now);
extern bool outbox_ledger_return(OutboxLedger *ledger, const char *message_id,
								 const char *exchange,
								 const char *routing_key, int reply_code,
								 const char *words, bool accepted);

/* The only message in flight, NULL if there are none or several. */
extern OutboxEntry *outbox_ledger_sole(OutboxLedger *ledger);
extern void outbox_ledger_reject(OutboxLedger *ledger, OutboxEntry *entry,
								 int reply_code, const char *words);

/*
 * The channel is gone: all that was sent and has no outcome will be sent
 * again.  They are among the next ones to be sent; returns how many those are.
 */
extern int	outbox_ledger_forget_tags(OutboxLedger *ledger);

/* Whether a message was sent, perhaps long ago, and has no known outcome. */
extern bool outbox_ledger_in_doubt(OutboxLedger *ledger);

/* When the oldest message in flight was sent; 0 if none is in flight. */
extern TimestampTz outbox_ledger_oldest_sent(const OutboxLedger *ledger);

/* How many of the oldest messages have an outcome, without a gap. */
extern int	outbox_ledger_settled(OutboxLedger *ledger);

/* Ids of the deferred messages of a key, at most key->messages; how many. */
extern int	outbox_ledger_deferred_ids(OutboxLedger *ledger,
									   const OutboxKey *key, int64 *ids);

/* The i-th oldest message. */
extern OutboxEntry *outbox_ledger_get(OutboxLedger *ledger, int i);

/* Remove the n oldest messages and free what they occupied. */
extern void outbox_ledger_remove(OutboxLedger *ledger, int n);


#endif							/* OUTBOX_LEDGER_H */

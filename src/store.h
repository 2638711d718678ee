/*-------------------------------------------------------------------------
 *
 * store.h
 *	  Every SQL statement of the worker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_STORE_H
#define OUTBOX_STORE_H

#include "backlog.h"
#include "message.h"
#include "option.h"

/* A row of amqp_outbox.receipt; the counts are totals. */
typedef struct OutboxReceipt
{
	int64		through_id;
	int64		receipt_no;		/* 0: there is none yet */
	TimestampTz settled_at;
	int64		delivered;
	int64		returned;
	int64		rejected;
	int64		accepted;		/* returned, and delivered by policy */
	bool		clean;			/* nothing was in doubt, and nothing sent since */
} OutboxReceipt;

/* How an attempt failed, and when the next one is due. */
typedef struct OutboxDeferral
{
	int64		id;
	TimestampTz due_at;			/* 0: never, it is a dead letter */
	TimestampTz attempted_at;
	OutboxReason reason;
	bool		possible_duplicate; /* of the next attempt */
	int			reply_code;		/* 0: none */
	const char *words;			/* the broker's, UTF-8 */
	bool		holds_key;		/* if a dead letter, others of its key wait */
} OutboxDeferral;

/*
 * What a worker that did not end cleanly may have sent before: messages of the
 * outbox through this id, and deferred ones that were due at this time.
 */
typedef struct OutboxDoubt
{
	int64		through_id;		/* 0: none */
	TimestampTz due_at;
} OutboxDoubt;

/* A place in the order in which deferred messages are due. */
typedef struct OutboxPlace
{
	TimestampTz due_at;
	int64		id;
} OutboxPlace;

typedef enum OutboxIdentity
{
	OUTBOX_IDENTITY_OWN,
	OUTBOX_IDENTITY_ADOPTED,	/* own, but once another's */
	OUTBOX_IDENTITY_NONE,		/* nothing was ever published here */
	OUTBOX_IDENTITY_COPY		/* the tables belong to another database */
} OutboxIdentity;

/*
 * Pin whatever settings could change what the statements mean or do: the owner
 * of the database, who need not be a superuser, may have set them for all
 * sessions in it (ALTER DATABASE ... SET), and so for ours.
 */
extern void outbox_store_pin_settings(void);

/*
 * Begin a transaction with a snapshot of its own, as the owner of the tables;
 * false, without a transaction, if the extension is not in this database, or
 * is another one than at the first call.
 * All other functions need it.  Errors fly; AbortCurrentTransaction() ends it.
 */
extern bool outbox_store_begin(void);
extern void outbox_store_commit(void);

/* Whether this cluster was once a standby, or was recovered to a point. */
extern bool outbox_store_was_promoted(void);

/* Text from outside (UTF-8) as the database can hold it, of SQL type text. */
extern Datum outbox_store_foreign_text(const char *utf8);

/* The outbox of this database. */
extern Oid	outbox_store_outbox(void);

extern OutboxIdentity outbox_store_identity(void);

/* The stable key of a server; 0 if nothing was ever published to it. */
extern int32 outbox_store_server_key(const char *server_name);

/* The newest receipt; all zero if there is none. */
extern void outbox_store_newest_receipt(int32 server_key,
										OutboxReceipt *receipt);

/*
 * The next messages with after < id < before, in id order, at most max_rows
 * and, beyond the first, max_bytes of bodies.  They and all they point to are
 * allocated in the context; persistent and mandatory follow the server where a
 * message does not say; doubt says which are possible duplicates.  Returns how
 * many; *complete says whether there are no more in that interval.
 */
extern int	outbox_store_read(MemoryContext context, int32 server_key,
							  int64 after, int64 before, int max_rows,
							  Size max_bytes, const OutboxServer *server,
							  const OutboxDoubt *doubt,
							  OutboxMessage **messages, bool *complete);

/* The same for deferred messages that are due, from a place on. */
extern int	outbox_store_read_due(MemoryContext context, int32 server_key,
								  const OutboxPlace *from, TimestampTz now,
								  int max_rows,
								  Size max_bytes, const OutboxServer *server,
								  const OutboxDoubt *doubt,
								  OutboxMessage **messages);

/*
 * The first of those messages, without looking at anything but its id; 0 if
 * there is none.
 */
extern int64 outbox_store_next_due_id(int32 server_key,
									  const OutboxPlace *from,
									  TimestampTz now);

/* When the next deferred message is due, from a place on; 0 if none is. */
extern TimestampTz outbox_store_next_due(int32 server_key,
										 const OutboxPlace *from);

extern void outbox_store_write_receipt(int32 server_key,
									   const OutboxReceipt *receipt);

/*
 * Messages of the outbox, or deferred ones, failed and are tried again.  One
 * with an ordering key must be the only one.
 */
extern void outbox_store_defer(int32 server_key,
							   const OutboxDeferral *deferrals, int n,
							   bool again);

/* A message of the outbox, or a deferred one, is a dead letter. */
extern void outbox_store_bury(int32 server_key, const OutboxDeferral *deferral,
							  bool deferred);

/*
 * A message was not sent because an earlier one of its ordering key is not
 * done: it is put behind that one; or it is due at once, if that one is done by
 * now.
 */
extern void outbox_store_hold(int32 server_key, const OutboxMessage *msg,
							  bool possible_duplicate, TimestampTz now);

/*
 * A deferred message with a key failed: those of its key that were to follow
 * it at once are put behind it, except those with these n ids.
 */
extern void outbox_store_hold_behind(int32 server_key,
									 const OutboxMessage *msg,
									 const int64 *except, int n,
									 TimestampTz now);

/*
 * A deferred message with a key is done: the next ones of the key become due,
 * not all at once.
 */
extern void outbox_store_release(int32 server_key, const char *ordering_key,
								 TimestampTz now);

/* So do all that wait for nothing. */
extern void outbox_store_release_orphans(int32 server_key, TimestampTz now);

/*
 * A message cannot be read: what can be of it becomes a dead letter.
 */
extern void outbox_store_bury_unreadable(int32 server_key, int64 id,
										 bool deferred, const char *words,
										 bool holds_key, TimestampTz now);

/* Deferred messages were delivered. */
extern void outbox_store_deliver_deferred(int32 server_key, const int64 *ids,
										  int n, TimestampTz now);

/*
 * Remove idempotency keys that were claimed before a time, a thousand at most;
 * whether there may be more.  One that is being claimed anew is left alone.
 */
extern bool outbox_store_prune_keys(int32 server_key, TimestampTz before);

/*
 * Add up what waits, by the roles that published it (server OIDs are left out):
 * messages of the outbox with after < id < before, and deferred ones with
 * id < before.
 */
extern void outbox_store_backlog(int32 server_key, int64 after, int64 before,
								 OutboxBacklogSums *sums);

/*
 * Whether every message in a leaf of the outbox is settled, and since when
 * (DT_NOBEGIN: there is none); if not, a server that it waits for.
 */
extern bool outbox_store_leaf_settled(int leaf, TimestampTz *since,
									  char **server);

/*
 * Copy those of a leaf's receipts that are the newest of their server to the
 * leaf that is written.  Returns how many.
 */
extern int	outbox_store_carry_receipts(int leaf);

#endif							/* OUTBOX_STORE_H */

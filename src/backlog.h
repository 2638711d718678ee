/*-------------------------------------------------------------------------
 *
 * backlog.h
 *	  How much waits for the broker of a server, where that is limited.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_BACKLOG_H
#define OUTBOX_BACKLOG_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"

#include "compat.h"

typedef enum OutboxBacklogAction
{
	OUTBOX_BACKLOG_REFUSE,
	OUTBOX_BACKLOG_WARN
} OutboxBacklogAction;

/* A server's options; 0: no limit. */
typedef struct OutboxBacklogLimits
{
	int			messages;		/* of all roles together */
	int64		bytes;			/* of bodies and headers */
	int			role_messages;	/* of each role that publishes */
	int64		role_bytes;
	OutboxBacklogAction action;
} OutboxBacklogLimits;

static inline bool
outbox_backlog_limits_roles(const OutboxBacklogLimits *limits)
{
	return limits->role_messages > 0 || limits->role_bytes > 0;
}

static inline bool
outbox_backlog_is_limited(const OutboxBacklogLimits *limits)
{
	return limits->messages > 0 || limits->bytes > 0 ||
		outbox_backlog_limits_roles(limits);
}

typedef struct OutboxQuantity
{
	int64		messages;
	int64		bytes;			/* see outbox_backlog_bytes() */
} OutboxQuantity;

/*
 * What a message counts for: its body, and its headers as jsonb (NULL: none),
 * which may be as large.  What else it has is short.
 */
static inline int64
outbox_backlog_bytes(Size body_len, const void *headers)
{
	return (int64) body_len + (headers ? VARSIZE_ANY_EXHDR(headers) : 0);
}

/* For shared.c: ask for the memory, and set it up or find it. */
extern void outbox_backlog_request(void);
extern void outbox_backlog_startup(void);

/*
 * The transaction that publishes
 */

/* Which limit a message exceeds. */
typedef struct OutboxBacklogExcess
{
	bool		of_role;
	bool		in_bytes;
	int64		waiting;		/* messages or bytes, this one left out */
	int64		limit;
	bool		first;			/* of this transaction */
} OutboxBacklogExcess;

/*
 * Reserve room for a message with so many bytes; role is NULL where
 * roles have no limits.  False if a limit is exceeded, with *excess; then
 * nothing is reserved, unless the limits only warn.
 */
extern bool outbox_backlog_reserve(Oid serverid, const char *role,
								   int64 bytes,
								   const OutboxBacklogLimits *limits,
								   OutboxBacklogExcess *excess);

/* Whether what is written must be noted; once its ids are taken. */
extern bool outbox_backlog_is_used(void);

/* A message is being written; role as in its row, NULL for a null. */
extern void outbox_backlog_note(Oid serverid, const text *role, int64 bytes);

/* A subtransaction at this nesting level ends. */
extern void outbox_backlog_subxact_aborted(int nest_level);
extern void outbox_backlog_subxact_committed(int nest_level);

/*
 * In the COMMIT, ABORT or PREPARE callback: take the reservations back; what a
 * commit has written waits from now on.  Before outbox_horizon_clear().
 */
extern void outbox_backlog_end(bool committed);

/*
 * The server's worker
 */

/* Messages of a role to a server; role "" is nobody's. */
typedef struct OutboxBacklogSum
{
	Oid			serverid;
	NameData	role;
	OutboxQuantity all;
	OutboxQuantity fresh;		/* of them, those not below counted_from */
} OutboxBacklogSum;

typedef struct OutboxBacklogSums
{
	MemoryContext context;
	int			n;
	int			size;
	OutboxBacklogSum *sums;
} OutboxBacklogSums;

/* The sum of a server and role (of so many bytes), made if there is none. */
extern OutboxBacklogSum *outbox_backlog_sum(OutboxBacklogSums *sums,
											Oid serverid, const char *role,
											Size len);

static inline void
outbox_quantity_add(OutboxQuantity *quantity, int64 messages, int64 bytes)
{
	quantity->messages += messages;
	quantity->bytes += bytes;
}

/*
 * Begin to count a server's messages.  Returns counted_from: once the horizon
 * has reached it, count what waits with ids below it.
 */
extern int64 outbox_backlog_begin_count(Oid serverid, Oid outbox_relid);

/* They were counted. */
extern void outbox_backlog_counted(Oid serverid,
								   const OutboxBacklogSums *counted);

/* A receipt was written: these do not wait any more. */
extern void outbox_backlog_settled(Oid serverid,
								   const OutboxBacklogSums *gone);

/*
 * Forget a server; in a database all but these; all but those of these
 * databases (OIDs).  A list tells nothing about what was created while it was
 * made: take the epoch before.
 */
extern void outbox_backlog_forget(Oid serverid);
extern uint64 outbox_backlog_last_epoch(void);
extern void outbox_backlog_keep_servers(Oid dboid, const Oid *servers, int n,
										uint64 epoch);
extern void outbox_backlog_forget_databases(const List *databases,
											uint64 epoch);

/*
 * Whoever wants to see it
 */

typedef struct OutboxBacklogStatus
{
	Oid			serverid;
	NameData	role;			/* "" is the server's total */
	OutboxQuantity waiting;		/* committed, and not settled */
	OutboxQuantity reserved;	/* of open transactions */
	TimestampTz counted_at;		/* by the worker; 0: not yet */
	bool		counting;		/* it has begun to count anew */
} OutboxBacklogStatus;

/* Those of this database, palloc'd; *n is how many. */
extern OutboxBacklogStatus *outbox_backlog_status(int *n);

#endif							/* OUTBOX_BACKLOG_H */

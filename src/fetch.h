/*-------------------------------------------------------------------------
 *
 * fetch.h
 *	  Messages as the worker reads them, from the outbox and of the deferred.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_FETCH_H
#define OUTBOX_FETCH_H

#include "message.h"
#include "option.h"

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

/*
 * The next messages with after < id < before, in id order, at most max_rows
 * and, beyond the first, max_bytes of bodies.  They and all they point to are
 * allocated in the context; persistent and mandatory follow the server where a
 * message does not say; doubt says which are possible duplicates.  Returns how
 * many; *complete says whether there are no more in that interval.
 */
extern int	outbox_fetch(MemoryContext context, int32 server_key,
						 int64 after, int64 before, int max_rows,
						 Size max_bytes, const OutboxServer *server,
						 const OutboxDoubt *doubt,
						 OutboxMessage **messages, bool *complete);

/*
 * Give a message of the outbox that has let its body go a copy of it, allocated
 * in the context.  False: its row is gone.
 */
extern bool outbox_fetch_body(MemoryContext context, int32 server_key,
							  OutboxMessage *msg);

/* The same as outbox_fetch() for deferred messages that are due, from a place on. */
extern int	outbox_fetch_due(MemoryContext context, int32 server_key,
							 const OutboxPlace *from, TimestampTz now,
							 int max_rows,
							 Size max_bytes, const OutboxServer *server,
							 const OutboxDoubt *doubt,
							 OutboxMessage **messages);

/*
 * The first of those messages, without looking at anything but its id; 0 if
 * there is none.
 */
extern int64 outbox_fetch_next_due_id(int32 server_key,
									  const OutboxPlace *from,
									  TimestampTz now);

/* When the next deferred message is due, from a place on; 0 if none is. */
extern TimestampTz outbox_fetch_next_due(int32 server_key,
										 const OutboxPlace *from);

#endif							/* OUTBOX_FETCH_H */

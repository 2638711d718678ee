/*-------------------------------------------------------------------------
 *
 * recent.h
 *	  Where the messages stand that this session has published lately.
 *
 * amqp_wait_for_confirm() finds them by it without searching the tables.
 * Older messages are forgotten.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_RECENT_H
#define OUTBOX_RECENT_H

#include "postgres.h"

/* How many messages are remembered. */
#define OUTBOX_RECENT_SIZE	4096

typedef struct OutboxRecent
{
	uint64		hash;			/* of the message id; id = 0: unused */
	int64		id;
	Oid			serverid;
	int32		server_key;
} OutboxRecent;

/* The message with this message id (text) is being written. */
extern void outbox_recent_note(Datum message_id, Oid serverid,
							   int32 server_key, int64 id);

/* The transaction that has written messages fails: forget everything. */
extern void outbox_recent_forget(void);

/* Where it may stand; NULL if it is not known. */
extern const OutboxRecent *outbox_recent_find(Datum message_id);

#endif							/* OUTBOX_RECENT_H */

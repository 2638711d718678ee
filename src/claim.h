/*-------------------------------------------------------------------------
 *
 * claim.h
 *	  Idempotency keys: who publishes first.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_CLAIM_H
#define OUTBOX_CLAIM_H

#include "postgres.h"

#include "datatype/timestamp.h"

/*
 * Claim an idempotency key (text) of a server for a message.  True if nobody
 * had claimed it within the server's idempotency_retention; else false, and
 * *message_id (text) is that of the first message.
 *
 * While another transaction that has claimed the key is open, this waits for
 * its end.  Error 40001 if that one commits and this one's isolation level
 * does not let it see so.
 */
extern bool outbox_claim(Oid serverid, Datum key, TimestampTz now,
						 Datum *message_id);

#endif							/* OUTBOX_CLAIM_H */

/*-------------------------------------------------------------------------
 *
 * settlement.h
 *	  What becomes of messages that have an outcome.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_SETTLEMENT_H
#define OUTBOX_SETTLEMENT_H

#include "census.h"
#include "ledger.h"
#include "option.h"
#include "receipt.h"

/*
 * In a transaction of the store: write down what became of the n oldest
 * messages of the ledger, except the receipt itself, which is brought up to
 * date, and for the census what does not wait any more.  Deferred messages that
 * were due at doubt_due_at may have been sent by a former worker (0: none).
 * Returns how many of them were deferred ones.
 */
extern int	outbox_settlement_write(OutboxLedger *ledger, int n,
									const OutboxServer *server,
									int32 server_key,
									TimestampTz doubt_due_at,
									OutboxReceipt *receipt,
									OutboxCensus *census);

#endif							/* OUTBOX_SETTLEMENT_H */

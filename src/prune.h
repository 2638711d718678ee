/*-------------------------------------------------------------------------
 *
 * prune.h
 *	  Removing what is not needed any more and goes row by row.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_PRUNE_H
#define OUTBOX_PRUNE_H

#include "option.h"

/*
 * Remove idempotency keys of a server that are older than its retention, a
 * thousand at most.  Returns whether there may be more.  Runs a transaction.
 */
extern bool outbox_prune_keys(const OutboxServer *server);

#endif							/* OUTBOX_PRUNE_H */

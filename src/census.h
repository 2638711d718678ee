/*-------------------------------------------------------------------------
 *
 * census.h
 *	  The worker keeps its server's backlog counted, where it is limited.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_CENSUS_H
#define OUTBOX_CENSUS_H

#include "message.h"
#include "option.h"

typedef struct OutboxCensus OutboxCensus;

/* One that nobody wants yet. */
extern OutboxCensus *outbox_census_create(MemoryContext context);

/* What is known may be wrong: count anew. */
extern void outbox_census_want(OutboxCensus *census);

/*
 * Take a step, if one is due; through_id is that of the newest receipt.  Runs
 * a transaction if need be.  Nothing happens while server_key is 0.
 */
extern void outbox_census_take(OutboxCensus *census,
							   const OutboxServer *server, Oid outbox_relid,
							   int32 server_key, int64 through_id);

/* When the next step is due; 0: none is. */
extern TimestampTz outbox_census_next(const OutboxCensus *census);

/*
 * Around the transaction of a receipt; and in it, for each message that does
 * not wait any more.
 */
extern void outbox_census_begin_receipt(OutboxCensus *census);
extern void outbox_census_gone(OutboxCensus *census,
							   const OutboxServer *server,
							   const OutboxMessage *msg);
extern void outbox_census_end_receipt(OutboxCensus *census, Oid serverid);

#endif							/* OUTBOX_CENSUS_H */

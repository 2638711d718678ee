/*-------------------------------------------------------------------------
 *
 * receipt.h
 *	  Receipts: what the worker writes down of what is settled.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_RECEIPT_H
#define OUTBOX_RECEIPT_H

#include "postgres.h"

#include "utils/timestamp.h"

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

/* The newest receipt; all zero if there is none. */
extern void outbox_receipt_newest(int32 server_key,
								  OutboxReceipt *receipt);

extern void outbox_receipt_write(int32 server_key,
								 const OutboxReceipt *receipt);

/*
 * Whether every message in a leaf of the outbox is settled, and since when
 * (DT_NOBEGIN: there is none); if not, a server that it waits for.
 */
extern bool outbox_receipt_leaf_settled(int leaf, TimestampTz *since,
										char **server);

/*
 * Copy those of a leaf's receipts that are the newest of their server to the
 * leaf that is written.  Returns how many.
 */
extern int	outbox_receipt_carry(int leaf);

#endif							/* OUTBOX_RECEIPT_H */

/*-------------------------------------------------------------------------
 *
 * scan.h
 *	  The rows of the outbox in the order of their ids.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_SCAN_H
#define OUTBOX_SCAN_H

#include "access/htup.h"
#include "access/tupdesc.h"

#include "catalog.h"

typedef struct OutboxScan OutboxScan;

/*
 * Begin with the messages of a server with after < id < before that the active
 * snapshot sees.  Goes with CurrentMemoryContext and, on an error, with the
 * transaction; end it before the transaction ends.
 */
extern OutboxScan *outbox_scan_begin(Oid outbox_relid, int32 server_key,
									 int64 after, int64 before);

/*
 * Take the next row apart: its columns, as enum OutboxColumn numbers them, may
 * still be toasted, and are good until the next call.  False: there is none.
 */
extern bool outbox_scan_next(OutboxScan *scan, Datum *values, bool *isnull);

extern void outbox_scan_end(OutboxScan *scan);

#endif							/* OUTBOX_SCAN_H */

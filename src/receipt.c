/*-------------------------------------------------------------------------
 *
 * receipt.c
 *	  Receipts: what the worker writes down of what is settled.
 *
 * Runs in the worker, in a transaction of store.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "miscadmin.h"

#include "catalog.h"
#include "receipt.h"
#include "store.h"

/* The columns of amqp_outbox.receipt. */
#define OUTBOX_RECEIPT_COLUMNS \
	"server_key, through_id, receipt_no, settled_at, delivered, returned," \
	" rejected, accepted, clean, incarnation"

static OutboxStatement newest_receipt = {
	.sql = "SELECT through_id, receipt_no, settled_at, delivered, returned,"
	" rejected, accepted, clean AND incarnation = $2"
	" FROM amqp_outbox.receipt WHERE server_key = $1"
	" ORDER BY server_key DESC, through_id DESC, receipt_no DESC LIMIT 1",
	.nparams = 2, .types = {INT4OID, INT8OID}
};

static OutboxStatement write_receipt = {
	.sql = "INSERT INTO amqp_outbox.receipt_%d (" OUTBOX_RECEIPT_COLUMNS ")"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
	.nparams = 10,
	.types = {INT4OID, INT8OID, INT8OID, TIMESTAMPTZOID, INT8OID, INT8OID,
		INT8OID, INT8OID, BOOLOID, INT8OID}
};

/* Is every message of the leaf settled, and since when? */
static OutboxStatement leaf_settled = {
	.sql = "SELECT COALESCE(bool_and(r.settled_at IS NOT NULL), true),"
	" max(r.settled_at), min(k.server) FILTER (WHERE r.settled_at IS NULL)"
	" FROM amqp_outbox.server_key k"
	" CROSS JOIN LATERAL (SELECT id FROM amqp_outbox.outbox_%d"
	" WHERE server_key = k.server_key"
	" ORDER BY server_key DESC, id DESC LIMIT 1) o"
	" LEFT JOIN LATERAL (SELECT settled_at FROM amqp_outbox.receipt"
	" WHERE server_key = k.server_key AND through_id >= o.id"
	" ORDER BY server_key, through_id, receipt_no LIMIT 1) r ON true",
	.nparams = 0
};

/* Of the servers whose newest receipt stands in leaf $1 */
static OutboxStatement carry_receipts = {
	.sql = "INSERT INTO amqp_outbox.receipt_%d (" OUTBOX_RECEIPT_COLUMNS ")"
	" SELECT r.server_key, through_id, receipt_no, settled_at, delivered,"
	" returned, rejected, accepted, clean, incarnation"
	" FROM amqp_outbox.server_key k"
	" CROSS JOIN LATERAL (SELECT *, tableoid AS leaf"
	" FROM amqp_outbox.receipt WHERE server_key = k.server_key"
	" ORDER BY server_key DESC, through_id DESC, receipt_no DESC LIMIT 1) r"
	" WHERE r.leaf = $1 ON CONFLICT DO NOTHING",
	.nparams = 1, .types = {OIDOID}
};

/*
 * A clean receipt says nothing about what others did after it: a former primary
 * of which this is a promoted standby, the database of which this is a copy.
 * So it holds only where, and on the timeline on which, it was written.
 */
static int64
outbox_receipt_incarnation(void)
{
	uint64		place = hash_combine64(MyDatabaseId, GetWALInsertionTimeLine());

	return (int64) hash_combine64(outbox_catalog_system_identifier(), place);
}

void
outbox_receipt_newest(int32 server_key, OutboxReceipt *receipt)
{
	Datum		values[2];

	memset(receipt, 0, sizeof(*receipt));
	values[0] = Int32GetDatum(server_key);
	values[1] = Int64GetDatum(outbox_receipt_incarnation());
	if (outbox_store_select(&newest_receipt, values, 1) == 0)
		return;
	receipt->through_id = DatumGetInt64(outbox_store_column(0, 1));
	receipt->receipt_no = DatumGetInt64(outbox_store_column(0, 2));
	receipt->settled_at = DatumGetTimestampTz(outbox_store_column(0, 3));
	receipt->delivered = DatumGetInt64(outbox_store_column(0, 4));
	receipt->returned = DatumGetInt64(outbox_store_column(0, 5));
	receipt->rejected = DatumGetInt64(outbox_store_column(0, 6));
	receipt->accepted = DatumGetInt64(outbox_store_column(0, 7));
	receipt->clean = DatumGetBool(outbox_store_column(0, 8));
}

void
outbox_receipt_write(int32 server_key, const OutboxReceipt *receipt)
{
	Datum		values[10];

	values[0] = Int32GetDatum(server_key);
	values[1] = Int64GetDatum(receipt->through_id);
	values[2] = Int64GetDatum(receipt->receipt_no);
	values[3] = TimestampTzGetDatum(receipt->settled_at);
	values[4] = Int64GetDatum(receipt->delivered);
	values[5] = Int64GetDatum(receipt->returned);
	values[6] = Int64GetDatum(receipt->rejected);
	values[7] = Int64GetDatum(receipt->accepted);
	values[8] = BoolGetDatum(receipt->clean);
	values[9] = Int64GetDatum(outbox_receipt_incarnation());
	outbox_store_append(&write_receipt, values);
}

bool
outbox_receipt_leaf_settled(int leaf, TimestampTz *since, char **server)
{
	Datum		values[3];
	bool		isnull[3];

	outbox_store_select_now(&leaf_settled, leaf, NULL, 1);
	outbox_store_row(0, values, isnull);
	*since = isnull[1] ? DT_NOBEGIN : DatumGetTimestampTz(values[1]);
	*server = outbox_store_string(0, 3);
	return DatumGetBool(values[0]);
}

int
outbox_receipt_carry(int leaf)
{
	Datum		values[1];

	values[0] = ObjectIdGetDatum(outbox_catalog_leaf_relid("receipt", leaf));
	return (int) outbox_store_append(&carry_receipts, values);
}

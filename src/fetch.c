/*-------------------------------------------------------------------------
 *
 * fetch.c
 *	  Messages as the worker reads them, from the outbox and of the deferred.
 *
 * What is read is copied, converted to UTF-8 and detoasted in the transaction
 * that reads it, so that nobody who holds a message later needs the database.
 *
 * Runs in the worker, in a transaction of store.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

#include "catalog.h"
#include "fetch.h"
#include "scan.h"
#include "store.h"

/* Which of these messages, by their number from 1, wait for an earlier one? */
static OutboxStatement find_held = {
	.sql = "SELECT m.n FROM (SELECT $1 AS server_key, u.id, u.ordering_key, u.n"
	" FROM unnest($2, $3) WITH ORDINALITY AS u (id, ordering_key, n)) m"
	" WHERE " OUTBOX_HAS_EARLIER(""),
	.nparams = 3, .types = {INT4OID, INT8ARRAYOID, TEXTARRAYOID}
};

/*
 * Followed by the attempts, whether it is a possible duplicate, the first
 * attempt, whether it is held, and when it was due.  Earlier ones of a key that
 * are due before it come before it here, too.
 */
static OutboxStatement read_due = {
	.sql = "SELECT " OUTBOX_COLUMNS ", attempts,"
	" possible_duplicate OR due_at <= $3, first_attempt_at, "
	OUTBOX_HAS_EARLIER(" AND e.due_at > m.due_at") ", due_at"
	" FROM amqp_outbox.deferred m"
	" WHERE server_key = $1 AND due_at <= $2 AND (due_at, id) >= ($4, $5)"
	" ORDER BY server_key, due_at, id",
	.nparams = 5,
	.types = {INT4OID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID}
};

static OutboxStatement next_due = {
	.sql = "SELECT due_at FROM amqp_outbox.deferred"
	" WHERE server_key = $1 AND due_at < 'infinity'"
	" AND (due_at, id) >= ($2, $3)"
	" ORDER BY server_key, due_at, id LIMIT 1",
	.nparams = 3, .types = {INT4OID, TIMESTAMPTZOID, INT8OID}
};

/* Around a row that is damaged. */
static OutboxStatement next_due_id = {
	.sql = "SELECT id FROM amqp_outbox.deferred"
	" WHERE server_key = $1 AND due_at <= $2 AND (due_at, id) >= ($3, $4)"
	" ORDER BY server_key, due_at, id LIMIT 1",
	.nparams = 4, .types = {INT4OID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID}
};

/*
 * One message
 */

/* A text column as UTF-8, NULL if it is null. */
static const char *
outbox_fetch_text(const Datum *values, const bool *isnull, int column)
{
	char	   *str;

	if (isnull[column])
		return NULL;
	str = TextDatumGetCString(values[column]);
	return pg_server_to_any(str, strlen(str), PG_UTF8);
}

/* The message of a row, in CurrentMemoryContext. */
static OutboxMessage *
outbox_fetch_form(const Datum *values, const bool *isnull,
				  const OutboxServer *server)
{
	OutboxMessage *msg = palloc0(sizeof(OutboxMessage));

	msg->id = DatumGetInt64(values[OUTBOX_COL_ID]);
	msg->enqueued_at = DatumGetTimestampTz(values[OUTBOX_COL_ENQUEUED_AT]);
	msg->ordering_key = outbox_fetch_text(values, isnull,
										  OUTBOX_COL_ORDERING_KEY);
	/* it is compared here, and does not travel */
	if (!isnull[OUTBOX_COL_PUBLISHED_BY])
		msg->published_by =
			TextDatumGetCString(values[OUTBOX_COL_PUBLISHED_BY]);
	msg->message_id = outbox_fetch_text(values, isnull, OUTBOX_COL_MESSAGE_ID);
	msg->exchange = outbox_fetch_text(values, isnull, OUTBOX_COL_EXCHANGE);
	msg->routing_key = outbox_fetch_text(values, isnull,
										 OUTBOX_COL_ROUTING_KEY);
	outbox_message_take_body(msg, DatumGetByteaPCopy(values[OUTBOX_COL_BODY]));
	if (!isnull[OUTBOX_COL_HEADERS])
		msg->headers = DatumGetJsonbPCopy(values[OUTBOX_COL_HEADERS]);
	msg->content_type = outbox_fetch_text(values, isnull,
										  OUTBOX_COL_CONTENT_TYPE);
	msg->content_encoding = outbox_fetch_text(values, isnull,
											  OUTBOX_COL_CONTENT_ENCODING);
	msg->correlation_id = outbox_fetch_text(values, isnull,
											OUTBOX_COL_CORRELATION_ID);
	msg->reply_to = outbox_fetch_text(values, isnull, OUTBOX_COL_REPLY_TO);
	msg->type = outbox_fetch_text(values, isnull, OUTBOX_COL_TYPE);
	msg->user_id = outbox_fetch_text(values, isnull, OUTBOX_COL_USER_ID);
	msg->app_id = outbox_fetch_text(values, isnull, OUTBOX_COL_APP_ID);
	msg->expiration_ms = isnull[OUTBOX_COL_EXPIRATION_MS] ? -1 :
		DatumGetInt64(values[OUTBOX_COL_EXPIRATION_MS]);
	msg->expires_at = isnull[OUTBOX_COL_EXPIRES_AT] ? 0 :
		DatumGetTimestampTz(values[OUTBOX_COL_EXPIRES_AT]);
	msg->timestamp_s = isnull[OUTBOX_COL_MESSAGE_TIMESTAMP] ? -1 :
		timestamptz_to_time_t(DatumGetTimestampTz(values[OUTBOX_COL_MESSAGE_TIMESTAMP]));
	msg->priority = isnull[OUTBOX_COL_PRIORITY] ? -1 :
		DatumGetInt16(values[OUTBOX_COL_PRIORITY]);
	msg->persistent = isnull[OUTBOX_COL_PERSISTENT] ? server->persistent :
		DatumGetBool(values[OUTBOX_COL_PERSISTENT]);
	msg->mandatory = isnull[OUTBOX_COL_MANDATORY] ? server->mandatory :
		DatumGetBool(values[OUTBOX_COL_MANDATORY]);
	return msg;
}

/*
 * The outbox
 */

/* Messages with an ordering key, and the keys as they are stored. */
typedef struct OutboxKeyed
{
	int			n;
	OutboxMessage **messages;	/* NULL: there is none yet */
	Datum	   *ids;
	Datum	   *keys;
} OutboxKeyed;

static void
outbox_fetch_note_key(OutboxKeyed *keyed, OutboxMessage *msg, Datum key,
					  int max_rows)
{
	if (keyed->messages == NULL)
	{
		keyed->messages = palloc(max_rows * sizeof(OutboxMessage *));
		keyed->ids = palloc(max_rows * sizeof(Datum));
		keyed->keys = palloc(max_rows * sizeof(Datum));
	}
	keyed->messages[keyed->n] = msg;
	keyed->ids[keyed->n] = Int64GetDatum(msg->id);
	keyed->keys[keyed->n++] = PointerGetDatum(DatumGetTextPCopy(key));
}

/* Those are held if an earlier message of their key is not done. */
static void
outbox_fetch_find_held(int32 server_key, const OutboxKeyed *keyed)
{
	Datum		values[3];
	uint64		found;

	if (keyed->n == 0)
		return;
	values[0] = Int32GetDatum(server_key);
	values[1] = outbox_store_array(keyed->ids, keyed->n, INT8OID);
	values[2] = outbox_store_array(keyed->keys, keyed->n, TEXTOID);
	found = outbox_store_select(&find_held, values, keyed->n);
	for (uint64 i = 0; i < found; i++)
	{
		int64		number = DatumGetInt64(outbox_store_column((int) i, 1));

		keyed->messages[number - 1]->held = true;
	}
	outbox_store_free();
}

int
outbox_fetch(MemoryContext context, int32 server_key, int64 after,
			 int64 before, int max_rows, Size max_bytes,
			 const OutboxServer *server, const OutboxDoubt *doubt,
			 OutboxMessage **messages, bool *complete)
{
	OutboxScan *scan = outbox_scan_begin(outbox_store_outbox(), server_key,
										 after, before);
	Datum		values[OUTBOX_NCOLUMNS];
	bool		isnull[OUTBOX_NCOLUMNS];
	OutboxKeyed keyed = {0};
	Size		bytes = 0;
	int			n = 0;

	*complete = false;
	while (n < max_rows && (n == 0 || bytes < max_bytes))
	{
		MemoryContext old_context;

		if (!outbox_scan_next(scan, values, isnull))
		{
			*complete = true;
			break;
		}
		old_context = MemoryContextSwitchTo(context);
		messages[n] = outbox_fetch_form(values, isnull, server);
		MemoryContextSwitchTo(old_context);
		messages[n]->possible_duplicate =
			messages[n]->id <= doubt->through_id;
		if (!isnull[OUTBOX_COL_ORDERING_KEY])
			outbox_fetch_note_key(&keyed, messages[n],
								  values[OUTBOX_COL_ORDERING_KEY], max_rows);
		bytes += outbox_message_bytes(messages[n++]);
	}
	outbox_scan_end(scan);
	outbox_fetch_find_held(server_key, &keyed);
	return n;
}

bool
outbox_fetch_body(MemoryContext context, int32 server_key, OutboxMessage *msg)
{
	OutboxScan *scan = outbox_scan_begin(outbox_store_outbox(), server_key,
										 msg->id - 1, msg->id + 1);
	Datum		values[OUTBOX_NCOLUMNS];
	bool		isnull[OUTBOX_NCOLUMNS];
	bool		found = outbox_scan_next(scan, values, isnull);

	if (found)
	{
		MemoryContext old_context = MemoryContextSwitchTo(context);

		outbox_message_take_body(msg,
								 DatumGetByteaPCopy(values[OUTBOX_COL_BODY]));
		MemoryContextSwitchTo(old_context);
	}
	outbox_scan_end(scan);
	return found;
}

/*
 * Deferred messages
 */

/* From a row of read_due, the last result. */
static OutboxMessage *
outbox_fetch_form_due(int row, const OutboxServer *server)
{
	Datum		values[OUTBOX_NCOLUMNS + 5];
	bool		isnull[OUTBOX_NCOLUMNS + 5];
	OutboxMessage *msg;

	outbox_store_row(row, values, isnull);
	msg = outbox_fetch_form(values, isnull, server);
	msg->deferred = true;
	msg->attempts = DatumGetInt32(values[OUTBOX_NCOLUMNS]);
	msg->possible_duplicate = DatumGetBool(values[OUTBOX_NCOLUMNS + 1]);
	msg->first_attempt_at = isnull[OUTBOX_NCOLUMNS + 2] ? 0 :
		DatumGetTimestampTz(values[OUTBOX_NCOLUMNS + 2]);
	msg->held = DatumGetBool(values[OUTBOX_NCOLUMNS + 3]);
	msg->due_at = DatumGetTimestampTz(values[OUTBOX_NCOLUMNS + 4]);
	return msg;
}

/* Large bodies are still TOAST pointers in the result, so that it is small. */
int
outbox_fetch_due(MemoryContext context, int32 server_key,
				 const OutboxPlace *from, TimestampTz now, int max_rows,
				 Size max_bytes, const OutboxServer *server,
				 const OutboxDoubt *doubt, OutboxMessage **messages)
{
	MemoryContext old_context;
	Datum		values[5];
	uint64		found;
	Size		bytes = 0;
	int			n = 0;

	values[0] = Int32GetDatum(server_key);
	values[1] = TimestampTzGetDatum(now);
	values[2] = TimestampTzGetDatum(doubt->due_at);
	values[3] = TimestampTzGetDatum(from->due_at);
	values[4] = Int64GetDatum(from->id);
	found = outbox_store_select(&read_due, values, max_rows);
	old_context = MemoryContextSwitchTo(context);
	while ((uint64) n < found && (n == 0 || bytes < max_bytes))
	{
		messages[n] = outbox_fetch_form_due(n, server);
		bytes += outbox_message_bytes(messages[n++]);
	}
	MemoryContextSwitchTo(old_context);
	outbox_store_free();
	return n;
}

int64
outbox_fetch_next_due_id(int32 server_key, const OutboxPlace *from,
						 TimestampTz now)
{
	Datum		values[4];

	values[0] = Int32GetDatum(server_key);
	values[1] = TimestampTzGetDatum(now);
	values[2] = TimestampTzGetDatum(from->due_at);
	values[3] = Int64GetDatum(from->id);
	if (outbox_store_select(&next_due_id, values, 1) == 0)
		return 0;
	return DatumGetInt64(outbox_store_column(0, 1));
}

TimestampTz
outbox_fetch_next_due(int32 server_key, const OutboxPlace *from)
{
	Datum		values[3];

	values[0] = Int32GetDatum(server_key);
	values[1] = TimestampTzGetDatum(from->due_at);
	values[2] = Int64GetDatum(from->id);
	if (outbox_store_select_now(&next_due, 0, values, 1) == 0)
		return 0;
	return DatumGetTimestampTz(outbox_store_column(0, 1));
}

/*-------------------------------------------------------------------------
 *
 * outcome.c
 *	  What becomes of single messages: tried again, dead, held, delivered late.
 *
 * Runs in the worker, in the transaction of a receipt.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/resowner.h"

#include "outcome.h"
#include "store.h"

/* Messages of one ordering key that become due together. */
#define OUTBOX_RELEASE_ROWS	"256"

/* Columns of amqp_outbox.deferred and amqp_outbox.dead_letter_item that follow. */
#define OUTBOX_ATTEMPT_COLUMNS \
	"attempts, first_attempt_at, last_attempt_at, possible_duplicate," \
	" reply_code, last_error"

/* What can be read of a row whose large values are damaged; and the rest. */
#define OUTBOX_READABLE_COLUMNS \
	"server_key, id, message_id, enqueued_at, exchange, routing_key," \
	" content_type, content_encoding, persistent, priority, correlation_id," \
	" reply_to, expiration_ms, message_timestamp, type, user_id, app_id," \
	" mandatory, ordering_key, expires_at, published_by"
#define OUTBOX_MALFORMED_COLUMNS \
	" reason, attempts, first_attempt_at, last_attempt_at," \
	" possible_duplicate, last_error, holds_key"
#define OUTBOX_MALFORMED_VALUES \
	" 'malformed', 0, $3, $3, $6, $4, $5"
#define OUTBOX_UNREADABLE_COLUMNS	" body," OUTBOX_MALFORMED_COLUMNS
#define OUTBOX_UNREADABLE_VALUES	" ''," OUTBOX_MALFORMED_VALUES

/* Many deferrals, as parameters $3 to $7. */
#define OUTBOX_DEFERRALS \
	"unnest($3, $4, $5, $6, $7) AS u (message, due, doubt, code, words)"

/* When row "m" is due if nothing were before it. */
#define OUTBOX_DUE(due) \
	"CASE WHEN " OUTBOX_HAS_EARLIER("") \
	" THEN 'infinity' ELSE " due " END"

static OutboxStatement defer = {
	.sql = "INSERT INTO amqp_outbox.deferred (" OUTBOX_COLUMNS ", due_at, "
	OUTBOX_ATTEMPT_COLUMNS ")"
	" SELECT " OUTBOX_COLUMNS ", " OUTBOX_DUE("u.due") ", 1, $2, $2,"
	" u.doubt, NULLIF(u.code, 0), u.words"
	" FROM " OUTBOX_DEFERRALS " JOIN amqp_outbox.outbox m"
	" ON m.server_key = $1 AND m.id = u.message",
	.nparams = 7,
	.types = {INT4OID, TIMESTAMPTZOID, INT8ARRAYOID, TIMESTAMPTZARRAYOID,
		BOOLARRAYOID, INT4ARRAYOID, TEXTARRAYOID}
};

static OutboxStatement defer_again = {
	.sql = "UPDATE amqp_outbox.deferred m SET due_at = " OUTBOX_DUE("u.due")
	", attempts = attempts + 1,"
	" first_attempt_at = COALESCE(first_attempt_at, $2),"
	" last_attempt_at = $2, possible_duplicate = u.doubt,"
	" reply_code = NULLIF(u.code, 0), last_error = u.words"
	" FROM " OUTBOX_DEFERRALS
	" WHERE m.server_key = $1 AND m.id = u.message",
	.nparams = 7,
	.types = {INT4OID, TIMESTAMPTZOID, INT8ARRAYOID, TIMESTAMPTZARRAYOID,
		BOOLARRAYOID, INT4ARRAYOID, TEXTARRAYOID}
};

/* A message that was not sent, lest it overtake one of its key */
static OutboxStatement hold = {
	.sql = "INSERT INTO amqp_outbox.deferred (" OUTBOX_COLUMNS ", due_at,"
	" attempts, possible_duplicate)"
	" SELECT " OUTBOX_COLUMNS ", " OUTBOX_DUE("$3") ", 0, $4"
	" FROM amqp_outbox.outbox m WHERE server_key = $1 AND id = $2",
	.nparams = 4, .types = {INT4OID, INT8OID, TIMESTAMPTZOID, BOOLOID}
};

static OutboxStatement hold_again = {
	.sql = "UPDATE amqp_outbox.deferred m SET due_at = " OUTBOX_DUE("$3")
	", possible_duplicate = $4 WHERE server_key = $1 AND id = $2",
	.nparams = 4, .types = {INT4OID, INT8OID, TIMESTAMPTZOID, BOOLOID}
};

/*
 * Those of the key that were to follow message $2 at once.  When they were due
 * tells which of them a former worker may have sent, and that is forgotten here.
 */
static OutboxStatement hold_behind = {
	.sql = "UPDATE amqp_outbox.deferred SET due_at = 'infinity',"
	" possible_duplicate = possible_duplicate OR due_at <= $6"
	" WHERE server_key = $1 AND id > $2 AND ordering_key = $3"
	" AND due_at <= $4 AND id <> ALL ($5)",
	.nparams = 6,
	.types = {INT4OID, INT8OID, TEXTOID, TIMESTAMPTZOID, INT8ARRAYOID,
		TIMESTAMPTZOID}
};

/* The next ones of a key, if nothing of it is on its way before them */
static OutboxStatement release = {
	.sql = "UPDATE amqp_outbox.deferred m SET due_at = $3"
	" WHERE server_key = $1 AND due_at = 'infinity' AND id = ANY (ARRAY("
	"SELECT id FROM amqp_outbox.deferred"
	" WHERE server_key = $1 AND ordering_key = $2"
	" ORDER BY server_key, ordering_key, id LIMIT " OUTBOX_RELEASE_ROWS "))"
	" AND NOT " OUTBOX_HAS_EARLIER(" AND e.due_at < 'infinity'"),
	.nparams = 3, .types = {INT4OID, TEXTOID, TIMESTAMPTZOID}
};

/* Those that waited for something that somebody has deleted */
static OutboxStatement release_orphans = {
	.sql = "UPDATE amqp_outbox.deferred m SET due_at = $2"
	" WHERE server_key = $1 AND due_at = 'infinity'"
	" AND NOT " OUTBOX_HAS_EARLIER(""),
	.nparams = 2, .types = {INT4OID, TIMESTAMPTZOID}
};

static OutboxStatement bury = {
	.sql = "INSERT INTO amqp_outbox.dead_letter_item (" OUTBOX_COLUMNS ", reason, "
	OUTBOX_ATTEMPT_COLUMNS ", holds_key)"
	" SELECT " OUTBOX_COLUMNS ", $3::amqp_outbox.dead_reason, $9, $4, $4,"
	" $5, $6, $7, $8 AND ordering_key IS NOT NULL"
	" FROM amqp_outbox.outbox WHERE server_key = $1 AND id = $2",
	.nparams = 9,
	.types = {INT4OID, INT8OID, TEXTOID, TIMESTAMPTZOID, BOOLOID, INT4OID,
		TEXTOID, BOOLOID, INT4OID}
};

static OutboxStatement bury_deferred = {
	.sql = "WITH gone AS (DELETE FROM amqp_outbox.deferred"
	" WHERE server_key = $1 AND id = $2 RETURNING *)"
	" INSERT INTO amqp_outbox.dead_letter_item (" OUTBOX_COLUMNS ", reason, "
	OUTBOX_ATTEMPT_COLUMNS ", holds_key)"
	" SELECT " OUTBOX_COLUMNS ", $3::amqp_outbox.dead_reason,"
	" attempts + $9, COALESCE(first_attempt_at, $4), $4, $5, $6, $7,"
	" $8 AND ordering_key IS NOT NULL FROM gone",
	.nparams = 9,
	.types = {INT4OID, INT8OID, TEXTOID, TIMESTAMPTZOID, BOOLOID, INT4OID,
		TEXTOID, BOOLOID, INT4OID}
};

static OutboxStatement deliver_deferred = {
	.sql = "WITH gone AS (DELETE FROM amqp_outbox.deferred"
	" WHERE server_key = $1 AND id = ANY ($2) RETURNING *)"
	" INSERT INTO amqp_outbox.late_%d (" OUTBOX_COLUMNS
	", delivered_at, attempts)"
	" SELECT " OUTBOX_COLUMNS ", $3, attempts + 1 FROM gone",
	.nparams = 3, .types = {INT4OID, INT8ARRAYOID, TIMESTAMPTZOID}
};

/* A row that cannot be read becomes a dead letter with these of its columns. */
#define OUTBOX_BURY_MALFORMED(columns, malformed, values) \
	" INSERT INTO amqp_outbox.dead_letter_item (" columns "," malformed ")" \
	" SELECT " columns "," values " AND ordering_key IS NOT NULL FROM "
#define OUTBOX_OF_OUTBOX \
	"amqp_outbox.outbox WHERE server_key = $1 AND id = $2"
#define OUTBOX_GONE(columns) \
	"WITH gone AS (DELETE FROM amqp_outbox.deferred" \
	" WHERE server_key = $1 AND id = $2 RETURNING " columns ")"
#define OUTBOX_MALFORMED_TYPES \
	{INT4OID, INT8OID, TIMESTAMPTZOID, TEXTOID, BOOLOID, BOOLOID}

static OutboxStatement bury_whole = {
	.sql = OUTBOX_BURY_MALFORMED(OUTBOX_COLUMNS, OUTBOX_MALFORMED_COLUMNS,
								 OUTBOX_MALFORMED_VALUES) OUTBOX_OF_OUTBOX,
	.nparams = 6, .types = OUTBOX_MALFORMED_TYPES
};

static OutboxStatement bury_deferred_whole = {
	.sql = OUTBOX_GONE(OUTBOX_COLUMNS)
	OUTBOX_BURY_MALFORMED(OUTBOX_COLUMNS, OUTBOX_MALFORMED_COLUMNS,
						  OUTBOX_MALFORMED_VALUES) "gone",
	.nparams = 6, .types = OUTBOX_MALFORMED_TYPES
};

static OutboxStatement bury_readable = {
	.sql = OUTBOX_BURY_MALFORMED(OUTBOX_READABLE_COLUMNS,
								 OUTBOX_UNREADABLE_COLUMNS,
								 OUTBOX_UNREADABLE_VALUES) OUTBOX_OF_OUTBOX,
	.nparams = 6, .types = OUTBOX_MALFORMED_TYPES
};

static OutboxStatement bury_deferred_readable = {
	.sql = OUTBOX_GONE(OUTBOX_READABLE_COLUMNS)
	OUTBOX_BURY_MALFORMED(OUTBOX_READABLE_COLUMNS, OUTBOX_UNREADABLE_COLUMNS,
						  OUTBOX_UNREADABLE_VALUES) "gone",
	.nparams = 6, .types = OUTBOX_MALFORMED_TYPES
};

/* Nothing but the id can be read. */
#define OUTBOX_BURY_ID(id) \
	" INSERT INTO amqp_outbox.dead_letter_item (server_key, id, message_id," \
	" enqueued_at, exchange, routing_key," OUTBOX_UNREADABLE_COLUMNS ")" \
	" SELECT $1, " id ", '', $3, '', ''," OUTBOX_UNREADABLE_VALUES " AND false"

static OutboxStatement bury_id = {
	.sql = OUTBOX_BURY_ID("$2"),
	.nparams = 6, .types = OUTBOX_MALFORMED_TYPES
};

static OutboxStatement bury_deferred_id = {
	.sql = OUTBOX_GONE("id") OUTBOX_BURY_ID("id") " FROM gone",
	.nparams = 6, .types = OUTBOX_MALFORMED_TYPES
};

static Datum
outbox_outcome_ids(const int64 *ids, int n)
{
	Datum	   *datums = palloc(n * sizeof(Datum));

	for (int i = 0; i < n; i++)
		datums[i] = Int64GetDatum(ids[i]);
	return outbox_store_array(datums, n, INT8OID);
}

void
outbox_outcome_defer(int32 server_key, const OutboxDeferral *deferrals, int n,
					 bool again)
{
	Datum		values[7];
	Datum	   *columns[5];
	uint64		written;

	if (n == 0)
		return;
	for (int c = 0; c < (int) lengthof(columns); c++)
		columns[c] = palloc(n * sizeof(Datum));
	for (int i = 0; i < n; i++)
	{
		columns[0][i] = Int64GetDatum(deferrals[i].id);
		columns[1][i] = TimestampTzGetDatum(deferrals[i].due_at);
		columns[2][i] = BoolGetDatum(deferrals[i].possible_duplicate);
		columns[3][i] = Int32GetDatum(deferrals[i].reply_code);
		columns[4][i] = outbox_store_foreign_text(deferrals[i].words);
	}
	values[0] = Int32GetDatum(server_key);
	values[1] = TimestampTzGetDatum(deferrals[0].attempted_at);
	values[2] = outbox_store_array(columns[0], n, INT8OID);
	values[3] = outbox_store_array(columns[1], n, TIMESTAMPTZOID);
	values[4] = outbox_store_array(columns[2], n, BOOLOID);
	values[5] = outbox_store_array(columns[3], n, INT4OID);
	values[6] = outbox_store_array(columns[4], n, TEXTOID);
	written = again ?
		outbox_store_change(&defer_again, values, NULL, SPI_OK_UPDATE) :
		outbox_store_change(&defer, values, NULL, SPI_OK_INSERT);
	if (written != (uint64) n)
		elog(WARNING, "of %d messages to be deferred " UINT64_FORMAT " are there",
			 n, written);
}

void
outbox_outcome_bury(int32 server_key, const OutboxDeferral *deferral,
					bool deferred)
{
	Datum		values[9];
	char		nulls[9] = {' ', ' ', ' ', ' ', ' ', ' ', ' ', ' ', ' '};

	values[0] = Int32GetDatum(server_key);
	values[1] = Int64GetDatum(deferral->id);
	values[2] = CStringGetTextDatum(outbox_reason_name(deferral->reason));
	values[3] = TimestampTzGetDatum(deferral->attempted_at);
	values[4] = BoolGetDatum(deferral->possible_duplicate);
	values[5] = Int32GetDatum(deferral->reply_code);
	if (deferral->reply_code == 0)
		nulls[5] = 'n';
	values[6] = outbox_store_foreign_text(deferral->words);
	values[7] = BoolGetDatum(deferral->holds_key);
	values[8] = Int32GetDatum(deferral->reason != OUTBOX_EXPIRED);
	if (outbox_store_change(deferred ? &bury_deferred :
							&bury, values, nulls, SPI_OK_INSERT) != 1)
		elog(WARNING, "message " INT64_FORMAT " to be buried is not there",
			 deferral->id);
}

/* With words that the database gave us.  False: there is no such row. */
static bool
outbox_outcome_bury_as(OutboxStatement *statement, int32 server_key,
					   const OutboxMessage *msg, bool possible_duplicate,
					   bool holds_key, TimestampTz now)
{
	Datum		values[6];

	values[0] = Int32GetDatum(server_key);
	values[1] = Int64GetDatum(msg->id);
	values[2] = TimestampTzGetDatum(now);
	values[3] = CStringGetTextDatum(msg->unreadable);
	values[4] = BoolGetDatum(holds_key);
	values[5] = BoolGetDatum(possible_duplicate);
	return outbox_store_change(statement, values, NULL, SPI_OK_INSERT) == 1;
}

/* The same in a subtransaction; false also if it fails. */
static bool
outbox_outcome_try_bury_as(OutboxStatement *statement, int32 server_key,
						   const OutboxMessage *msg, bool possible_duplicate,
						   bool holds_key, TimestampTz now)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool done = false;

	BeginInternalSubTransaction(NULL);
	PG_TRY();
	{
		bool		found = outbox_outcome_bury_as(statement, server_key, msg,
												   possible_duplicate,
												   holds_key, now);

		ReleaseCurrentSubTransaction();
		done = found;
	}
	PG_CATCH();
	{
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return done;
}

/*
 * With all that it holds: perhaps it can be read and only not be built.  Else
 * without large values; and not even the rest of the row may be readable.
 */
void
outbox_outcome_bury_unreadable(int32 server_key, const OutboxMessage *msg,
							   bool possible_duplicate, bool holds_key,
							   TimestampTz now)
{
	if (!outbox_outcome_try_bury_as(msg->deferred ? &bury_deferred_whole :
									&bury_whole,
									server_key, msg, possible_duplicate,
									holds_key, now) &&
		!outbox_outcome_try_bury_as(msg->deferred ? &bury_deferred_readable :
									&bury_readable,
									server_key, msg, possible_duplicate,
									holds_key, now))
		outbox_outcome_bury_as(msg->deferred ? &bury_deferred_id : &bury_id,
							   server_key, msg, possible_duplicate,
							   holds_key, now);
}

void
outbox_outcome_hold(int32 server_key, const OutboxMessage *msg,
					bool possible_duplicate, TimestampTz now)
{
	Datum		values[4];

	values[0] = Int32GetDatum(server_key);
	values[1] = Int64GetDatum(msg->id);
	values[2] = TimestampTzGetDatum(now);
	values[3] = BoolGetDatum(possible_duplicate);
	if (msg->deferred)
		outbox_store_change(&hold_again, values, NULL, SPI_OK_UPDATE);
	else
		outbox_store_change(&hold, values, NULL, SPI_OK_INSERT);
}

void
outbox_outcome_hold_behind(int32 server_key, const OutboxMessage *msg,
						   const int64 *except, int n,
						   TimestampTz doubt_due_at, TimestampTz now)
{
	Datum		values[6];

	values[0] = Int32GetDatum(server_key);
	values[1] = Int64GetDatum(msg->id);
	values[2] = outbox_store_text(msg->ordering_key);
	values[3] = TimestampTzGetDatum(now);
	values[4] = outbox_outcome_ids(except, n);
	values[5] = TimestampTzGetDatum(doubt_due_at);
	outbox_store_change(&hold_behind, values, NULL, SPI_OK_UPDATE);
}

void
outbox_outcome_release(int32 server_key, const char *ordering_key,
					   TimestampTz now)
{
	Datum		values[3];

	values[0] = Int32GetDatum(server_key);
	values[1] = outbox_store_text(ordering_key);
	values[2] = TimestampTzGetDatum(now);
	outbox_store_change(&release, values, NULL, SPI_OK_UPDATE);
}

void
outbox_outcome_release_orphans(int32 server_key, TimestampTz now)
{
	Datum		values[2];

	values[0] = Int32GetDatum(server_key);
	values[1] = TimestampTzGetDatum(now);
	outbox_store_change(&release_orphans, values, NULL, SPI_OK_UPDATE);
}

void
outbox_outcome_deliver_deferred(int32 server_key, const int64 *ids, int n,
								TimestampTz now)
{
	Datum		values[3];

	if (n == 0)
		return;
	values[0] = Int32GetDatum(server_key);
	values[1] = outbox_outcome_ids(ids, n);
	values[2] = TimestampTzGetDatum(now);
	outbox_store_append(&deliver_deferred, values);
}

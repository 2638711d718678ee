/*-------------------------------------------------------------------------
 *
 * store.c
 *	  Every SQL statement of the worker.
 *
 * Statements are constants with typed parameters; their plans are kept for
 * the life of the process.  Settings are pinned and names are qualified, and
 * the transaction acts as the owner of the tables under
 * SECURITY_RESTRICTED_OPERATION, so that nothing that a user of the database
 * can create or set changes what they do.
 *
 * Reads must cost the same whatever the statistics say about the tables: the
 * planner is left with nothing but the index.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "horizon.h"
#include "leaf.h"
#include "store.h"

#define OUTBOX_MAX_PARAMS	10

/* Messages of one ordering key that become due together. */
#define OUTBOX_RELEASE_ROWS	"256"

/*
 * So few messages are looked for in one leaf first; and after as many failures
 * that is tried once in 2 to the power of them.
 */
#define OUTBOX_FEW_IDS			32
#define OUTBOX_LEAF_FAILURES	10

/* Idempotency keys that go in one transaction. */
#define OUTBOX_PRUNE_ROWS	1000

/* The columns of enum OutboxColumn. */
#define OUTBOX_COLUMNS \
	"server_key, id, message_id, enqueued_at, exchange, routing_key, body," \
	" headers, content_type, content_encoding, persistent, priority," \
	" correlation_id, reply_to, expiration_ms, message_timestamp, type," \
	" user_id, app_id, mandatory, ordering_key, expires_at, published_by"

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
	" 'malformed', 0, $3, $3, false, $4, $5"
#define OUTBOX_UNREADABLE_COLUMNS	" body," OUTBOX_MALFORMED_COLUMNS
#define OUTBOX_UNREADABLE_VALUES	" ''," OUTBOX_MALFORMED_VALUES

/*
 * Whether an earlier message of the key of row "m" is not done: it waits in
 * amqp_outbox.deferred (under a further condition), or is a dead letter that
 * holds its key.
 */
#define OUTBOX_HAS_EARLIER(condition) \
	"(m.ordering_key IS NOT NULL AND (" \
	"EXISTS (SELECT FROM amqp_outbox.deferred e" \
	" WHERE e.server_key = m.server_key AND e.ordering_key = m.ordering_key" \
	" AND e.id < m.id" condition ") OR " \
	"EXISTS (SELECT FROM amqp_outbox.dead_letter_item h" \
	" WHERE h.server_key = m.server_key AND h.ordering_key = m.ordering_key" \
	" AND h.holds_key AND h.id < m.id)))"

/* Many deferrals, as parameters $3 to $7. */
#define OUTBOX_DEFERRALS \
	"unnest($3, $4, $5, $6, $7) AS u (message, due, doubt, code, words)"

/* When row "m" is due if nothing were before it. */
#define OUTBOX_DUE(due) \
	"CASE WHEN " OUTBOX_HAS_EARLIER("") \
	" THEN 'infinity' ELSE " due " END"

/* The columns of amqp_outbox.receipt. */
#define OUTBOX_RECEIPT_COLUMNS \
	"server_key, through_id, receipt_no, settled_at, delivered, returned," \
	" rejected, accepted, clean, incarnation"

typedef enum OutboxStatementId
{
	STATEMENT_IDENTITY,
	STATEMENT_SERVER_KEY,
	STATEMENT_NEWEST_RECEIPT,
	STATEMENT_READ,
	STATEMENT_READ_LEAF,
	STATEMENT_READ_KEYED,
	STATEMENT_READ_DUE,
	STATEMENT_NEXT_DUE,
	STATEMENT_WRITE_RECEIPT,
	STATEMENT_DEFER,
	STATEMENT_DEFER_AGAIN,
	STATEMENT_HOLD,
	STATEMENT_HOLD_AGAIN,
	STATEMENT_HOLD_BEHIND,
	STATEMENT_RELEASE,
	STATEMENT_RELEASE_ORPHANS,
	STATEMENT_BURY,
	STATEMENT_BURY_DEFERRED,
	STATEMENT_DELIVER_DEFERRED,
	STATEMENT_NEXT_DUE_ID,
	STATEMENT_BURY_WHOLE,
	STATEMENT_BURY_DEFERRED_WHOLE,
	STATEMENT_BURY_READABLE,
	STATEMENT_BURY_DEFERRED_READABLE,
	STATEMENT_BURY_ID,
	STATEMENT_BURY_DEFERRED_ID,
	STATEMENT_LEAF_SETTLED,
	STATEMENT_CARRY_RECEIPTS,
	STATEMENT_PRUNE_KEYS,
	STATEMENT_BACKLOG,
	NSTATEMENTS
} OutboxStatementId;

/* Where the SQL says "%d", the number of a leaf stands. */
typedef struct OutboxStatement
{
	const char *sql;
	int			nparams;
	Oid			types[OUTBOX_MAX_PARAMS];
} OutboxStatement;

static const OutboxStatement statements[NSTATEMENTS] = {
	[STATEMENT_PRUNE_KEYS] = {
		"DELETE FROM amqp_outbox.idempotency_key"
		" WHERE server_key = $1 AND key = ANY (ARRAY("
		"SELECT key FROM amqp_outbox.idempotency_key"
		" WHERE server_key = $1 AND claimed_at < $2"
		" ORDER BY server_key, claimed_at"
		" LIMIT " CppAsString2(OUTBOX_PRUNE_ROWS) " FOR UPDATE SKIP LOCKED))",
		2, {INT4OID, TIMESTAMPTZOID}
	},
	[STATEMENT_IDENTITY] = {
		"SELECT bool_and(system_identifier = $1 AND database_oid = $2),"
		" bool_or(adopted)"
		" FROM amqp_outbox.identity",
		2, {INT8OID, OIDOID}
	},
	[STATEMENT_SERVER_KEY] = {
		"SELECT server_key FROM amqp_outbox.server_key WHERE server = $1",
		1, {NAMEOID}
	},
	[STATEMENT_NEWEST_RECEIPT] = {
		"SELECT through_id, receipt_no, settled_at, delivered, returned,"
		" rejected, accepted, clean AND incarnation = $2"
		" FROM amqp_outbox.receipt WHERE server_key = $1"
		" ORDER BY server_key DESC, through_id DESC, receipt_no DESC LIMIT 1",
		2, {INT4OID, INT8OID}
	},
	/* good for messages without a key; cheaper to start, for single ones */
	[STATEMENT_READ] = {
		"SELECT " OUTBOX_COLUMNS ", 0, id <= $4, NULL::timestamptz,"
		" false, NULL::timestamptz"
		" FROM amqp_outbox.outbox m"
		" WHERE server_key = $1 AND id > $2 AND id < $3"
		" ORDER BY server_key, id",
		4, {INT4OID, INT8OID, INT8OID, INT8OID}
	},
	/* the same, of one leaf: cheaper still to start */
	[STATEMENT_READ_LEAF] = {
		"SELECT " OUTBOX_COLUMNS ", 0, id <= $4, NULL::timestamptz,"
		" false, NULL::timestamptz"
		" FROM amqp_outbox.outbox_%d m"
		" WHERE server_key = $1 AND id > $2 AND id < $3"
		" ORDER BY server_key, id",
		4, {INT4OID, INT8OID, INT8OID, INT8OID}
	},
	[STATEMENT_READ_KEYED] = {
		"SELECT " OUTBOX_COLUMNS ", 0, id <= $4, NULL::timestamptz, "
		OUTBOX_HAS_EARLIER("") ", NULL::timestamptz"
		" FROM amqp_outbox.outbox m"
		" WHERE server_key = $1 AND id > $2 AND id < $3"
		" ORDER BY server_key, id",
		4, {INT4OID, INT8OID, INT8OID, INT8OID}
	},
	/* earlier ones of a key that are due before it come before it here, too */
	[STATEMENT_READ_DUE] = {
		"SELECT " OUTBOX_COLUMNS ", attempts,"
		" possible_duplicate OR due_at <= $3, first_attempt_at, "
		OUTBOX_HAS_EARLIER(" AND e.due_at > m.due_at") ", due_at"
		" FROM amqp_outbox.deferred m"
		" WHERE server_key = $1 AND due_at <= $2 AND (due_at, id) >= ($4, $5)"
		" ORDER BY server_key, due_at, id",
		5, {INT4OID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID}
	},
	[STATEMENT_NEXT_DUE] = {
		"SELECT due_at FROM amqp_outbox.deferred"
		" WHERE server_key = $1 AND due_at < 'infinity'"
		" AND (due_at, id) >= ($2, $3)"
		" ORDER BY server_key, due_at, id LIMIT 1",
		3, {INT4OID, TIMESTAMPTZOID, INT8OID}
	},
	[STATEMENT_WRITE_RECEIPT] = {
		"INSERT INTO amqp_outbox.receipt_%d (" OUTBOX_RECEIPT_COLUMNS ")"
		" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
		10, {INT4OID, INT8OID, INT8OID, TIMESTAMPTZOID, INT8OID, INT8OID,
			INT8OID, INT8OID, BOOLOID, INT8OID}
	},
	[STATEMENT_DEFER] = {
		"INSERT INTO amqp_outbox.deferred (" OUTBOX_COLUMNS ", due_at, "
		OUTBOX_ATTEMPT_COLUMNS ")"
		" SELECT " OUTBOX_COLUMNS ", " OUTBOX_DUE("u.due") ", 1, $2, $2,"
		" u.doubt, NULLIF(u.code, 0), u.words"
		" FROM " OUTBOX_DEFERRALS " JOIN amqp_outbox.outbox m"
		" ON m.server_key = $1 AND m.id = u.message",
		7, {INT4OID, TIMESTAMPTZOID, INT8ARRAYOID, TIMESTAMPTZARRAYOID,
			BOOLARRAYOID, INT4ARRAYOID, TEXTARRAYOID}
	},
	[STATEMENT_DEFER_AGAIN] = {
		"UPDATE amqp_outbox.deferred m SET due_at = " OUTBOX_DUE("u.due")
		", attempts = attempts + 1,"
		" first_attempt_at = COALESCE(first_attempt_at, $2),"
		" last_attempt_at = $2, possible_duplicate = u.doubt,"
		" reply_code = NULLIF(u.code, 0), last_error = u.words"
		" FROM " OUTBOX_DEFERRALS
		" WHERE m.server_key = $1 AND m.id = u.message",
		7, {INT4OID, TIMESTAMPTZOID, INT8ARRAYOID, TIMESTAMPTZARRAYOID,
			BOOLARRAYOID, INT4ARRAYOID, TEXTARRAYOID}
	},
	/* a message that was not sent, lest it overtake one of its key */
	[STATEMENT_HOLD] = {
		"INSERT INTO amqp_outbox.deferred (" OUTBOX_COLUMNS ", due_at,"
		" attempts, possible_duplicate)"
		" SELECT " OUTBOX_COLUMNS ", " OUTBOX_DUE("$3") ", 0, $4"
		" FROM amqp_outbox.outbox m WHERE server_key = $1 AND id = $2",
		4, {INT4OID, INT8OID, TIMESTAMPTZOID, BOOLOID}
	},
	[STATEMENT_HOLD_AGAIN] = {
		"UPDATE amqp_outbox.deferred m SET due_at = " OUTBOX_DUE("$3")
		", possible_duplicate = $4 WHERE server_key = $1 AND id = $2",
		4, {INT4OID, INT8OID, TIMESTAMPTZOID, BOOLOID}
	},
	/* those of the key that were to follow message $2 at once */
	[STATEMENT_HOLD_BEHIND] = {
		"UPDATE amqp_outbox.deferred SET due_at = 'infinity'"
		" WHERE server_key = $1 AND id > $2 AND ordering_key = $3"
		" AND due_at <= $4 AND id <> ALL ($5)",
		5, {INT4OID, INT8OID, TEXTOID, TIMESTAMPTZOID, INT8ARRAYOID}
	},
	/* the next ones of a key, if nothing of it is on its way before them */
	[STATEMENT_RELEASE] = {
		"UPDATE amqp_outbox.deferred m SET due_at = $3"
		" WHERE server_key = $1 AND due_at = 'infinity' AND id = ANY (ARRAY("
		"SELECT id FROM amqp_outbox.deferred"
		" WHERE server_key = $1 AND ordering_key = $2"
		" ORDER BY server_key, ordering_key, id LIMIT " OUTBOX_RELEASE_ROWS "))"
		" AND NOT " OUTBOX_HAS_EARLIER(" AND e.due_at < 'infinity'"),
		3, {INT4OID, TEXTOID, TIMESTAMPTZOID}
	},
	/* those that waited for something that somebody has deleted */
	[STATEMENT_RELEASE_ORPHANS] = {
		"UPDATE amqp_outbox.deferred m SET due_at = $2"
		" WHERE server_key = $1 AND due_at = 'infinity'"
		" AND NOT " OUTBOX_HAS_EARLIER(""),
		2, {INT4OID, TIMESTAMPTZOID}
	},
	[STATEMENT_BURY] = {
		"INSERT INTO amqp_outbox.dead_letter_item (" OUTBOX_COLUMNS ", reason, "
		OUTBOX_ATTEMPT_COLUMNS ", holds_key)"
		" SELECT " OUTBOX_COLUMNS ", $3::amqp_outbox.dead_reason, $9, $4, $4,"
		" $5, $6, $7, $8 AND ordering_key IS NOT NULL"
		" FROM amqp_outbox.outbox WHERE server_key = $1 AND id = $2",
		9, {INT4OID, INT8OID, TEXTOID, TIMESTAMPTZOID, BOOLOID, INT4OID,
			TEXTOID, BOOLOID, INT4OID}
	},
	[STATEMENT_BURY_DEFERRED] = {
		"WITH gone AS (DELETE FROM amqp_outbox.deferred"
		" WHERE server_key = $1 AND id = $2 RETURNING *)"
		" INSERT INTO amqp_outbox.dead_letter_item (" OUTBOX_COLUMNS ", reason, "
		OUTBOX_ATTEMPT_COLUMNS ", holds_key)"
		" SELECT " OUTBOX_COLUMNS ", $3::amqp_outbox.dead_reason,"
		" attempts + $9, COALESCE(first_attempt_at, $4), $4, $5, $6, $7,"
		" $8 AND ordering_key IS NOT NULL FROM gone",
		9, {INT4OID, INT8OID, TEXTOID, TIMESTAMPTZOID, BOOLOID, INT4OID,
			TEXTOID, BOOLOID, INT4OID}
	},
	[STATEMENT_DELIVER_DEFERRED] = {
		"WITH gone AS (DELETE FROM amqp_outbox.deferred"
		" WHERE server_key = $1 AND id = ANY ($2) RETURNING *)"
		" INSERT INTO amqp_outbox.late_%d (" OUTBOX_COLUMNS
		", delivered_at, attempts)"
		" SELECT " OUTBOX_COLUMNS ", $3, attempts + 1 FROM gone",
		3, {INT4OID, INT8ARRAYOID, TIMESTAMPTZOID}
	},
	/* around a row that is damaged */
	[STATEMENT_NEXT_DUE_ID] = {
		"SELECT id FROM amqp_outbox.deferred"
		" WHERE server_key = $1 AND due_at <= $2 AND (due_at, id) >= ($3, $4)"
		" ORDER BY server_key, due_at, id LIMIT 1",
		4, {INT4OID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID}
	},
	[STATEMENT_BURY_WHOLE] = {
		"INSERT INTO amqp_outbox.dead_letter_item (" OUTBOX_COLUMNS ","
		OUTBOX_MALFORMED_COLUMNS ")"
		" SELECT " OUTBOX_COLUMNS "," OUTBOX_MALFORMED_VALUES
		" AND ordering_key IS NOT NULL"
		" FROM amqp_outbox.outbox WHERE server_key = $1 AND id = $2",
		5, {INT4OID, INT8OID, TIMESTAMPTZOID, TEXTOID, BOOLOID}
	},
	[STATEMENT_BURY_DEFERRED_WHOLE] = {
		"WITH gone AS (DELETE FROM amqp_outbox.deferred"
		" WHERE server_key = $1 AND id = $2 RETURNING " OUTBOX_COLUMNS ")"
		" INSERT INTO amqp_outbox.dead_letter_item (" OUTBOX_COLUMNS ","
		OUTBOX_MALFORMED_COLUMNS ")"
		" SELECT " OUTBOX_COLUMNS "," OUTBOX_MALFORMED_VALUES
		" AND ordering_key IS NOT NULL FROM gone",
		5, {INT4OID, INT8OID, TIMESTAMPTZOID, TEXTOID, BOOLOID}
	},
	[STATEMENT_BURY_READABLE] = {
		"INSERT INTO amqp_outbox.dead_letter_item (" OUTBOX_READABLE_COLUMNS ","
		OUTBOX_UNREADABLE_COLUMNS ")"
		" SELECT " OUTBOX_READABLE_COLUMNS "," OUTBOX_UNREADABLE_VALUES
		" AND ordering_key IS NOT NULL"
		" FROM amqp_outbox.outbox WHERE server_key = $1 AND id = $2",
		5, {INT4OID, INT8OID, TIMESTAMPTZOID, TEXTOID, BOOLOID}
	},
	[STATEMENT_BURY_DEFERRED_READABLE] = {
		"WITH gone AS (DELETE FROM amqp_outbox.deferred"
		" WHERE server_key = $1 AND id = $2 RETURNING " OUTBOX_READABLE_COLUMNS ")"
		" INSERT INTO amqp_outbox.dead_letter_item (" OUTBOX_READABLE_COLUMNS ","
		OUTBOX_UNREADABLE_COLUMNS ")"
		" SELECT " OUTBOX_READABLE_COLUMNS "," OUTBOX_UNREADABLE_VALUES
		" AND ordering_key IS NOT NULL FROM gone",
		5, {INT4OID, INT8OID, TIMESTAMPTZOID, TEXTOID, BOOLOID}
	},
	[STATEMENT_BURY_ID] = {
		"INSERT INTO amqp_outbox.dead_letter_item (server_key, id, message_id,"
		" enqueued_at, exchange, routing_key," OUTBOX_UNREADABLE_COLUMNS ")"
		" SELECT $1, $2, '', $3, '', ''," OUTBOX_UNREADABLE_VALUES " AND false",
		5, {INT4OID, INT8OID, TIMESTAMPTZOID, TEXTOID, BOOLOID}
	},
	[STATEMENT_BURY_DEFERRED_ID] = {
		"WITH gone AS (DELETE FROM amqp_outbox.deferred"
		" WHERE server_key = $1 AND id = $2 RETURNING id)"
		" INSERT INTO amqp_outbox.dead_letter_item (server_key, id, message_id,"
		" enqueued_at, exchange, routing_key," OUTBOX_UNREADABLE_COLUMNS ")"
		" SELECT $1, id, '', $3, '', ''," OUTBOX_UNREADABLE_VALUES
		" AND false FROM gone",
		5, {INT4OID, INT8OID, TIMESTAMPTZOID, TEXTOID, BOOLOID}
	},
	/* is every message of the leaf settled, and since when? */
	[STATEMENT_LEAF_SETTLED] = {
		"SELECT COALESCE(bool_and(r.settled_at IS NOT NULL), true),"
		" max(r.settled_at), min(k.server) FILTER (WHERE r.settled_at IS NULL)"
		" FROM amqp_outbox.server_key k"
		" CROSS JOIN LATERAL (SELECT id FROM amqp_outbox.outbox_%d"
		" WHERE server_key = k.server_key"
		" ORDER BY server_key DESC, id DESC LIMIT 1) o"
		" LEFT JOIN LATERAL (SELECT settled_at FROM amqp_outbox.receipt"
		" WHERE server_key = k.server_key AND through_id >= o.id"
		" ORDER BY server_key, through_id, receipt_no LIMIT 1) r ON true",
		0, {InvalidOid}
	},
	/* of the servers whose newest receipt stands in leaf $1 */
	[STATEMENT_CARRY_RECEIPTS] = {
		"INSERT INTO amqp_outbox.receipt_%d (" OUTBOX_RECEIPT_COLUMNS ")"
		" SELECT r.server_key, through_id, receipt_no, settled_at, delivered,"
		" returned, rejected, accepted, clean, incarnation"
		" FROM amqp_outbox.server_key k"
		" CROSS JOIN LATERAL (SELECT *, tableoid AS leaf"
		" FROM amqp_outbox.receipt WHERE server_key = k.server_key"
		" ORDER BY server_key DESC, through_id DESC, receipt_no DESC LIMIT 1) r"
		" WHERE r.leaf = $1 ON CONFLICT DO NOTHING",
		1, {OIDOID}
	},
	/* what waits: beyond the newest receipt $2 in the outbox, below $3 */
	[STATEMENT_BACKLOG] = {
		"SELECT published_by, count(*), sum(octet_length(body)"
		/* as a value of its own it is not compressed, and has a header of 4 */
		" + coalesce(pg_column_size(headers || '{}') - 4, 0))"
		" FROM (SELECT published_by, body, headers FROM amqp_outbox.outbox"
		" WHERE server_key = $1 AND id > $2 AND id < $3"
		" UNION ALL SELECT published_by, body, headers FROM amqp_outbox.deferred"
		" WHERE server_key = $1 AND id < $3) m GROUP BY published_by",
		3, {INT4OID, INT8OID, INT8OID}
	},
};

static SPIPlanPtr plans[NSTATEMENTS][OUTBOX_NLEAVES];

/* The leaf that the current transaction writes to, -1: not chosen yet. */
static int	my_leaf = -1;

void
outbox_store_pin_settings(void)
{
	static const char *const pinned[][2] = {
		/* whose rights, whose names */
		{"role", "none"},
		{"search_path", "pg_catalog, pg_temp"},
		{"row_security", "off"},
		/* which rows, and whether they can be written */
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_read_only", "off"},
		{"default_transaction_deferrable", "off"},
		{"session_replication_role", "origin"},
		{"synchronous_commit", "off"},
		/* nothing ends a statement, but that it waits for a lock */
		{"statement_timeout", "0"},
		{"transaction_timeout", "0"},
		{"lock_timeout", "1s"},
		{"idle_in_transaction_session_timeout", "0"},
		/* the planner is left with nothing but the index */
		{"enable_hashjoin", "off"},
		{"enable_mergejoin", "off"},
		{"enable_seqscan", "off"},
		{"enable_bitmapscan", "off"},
		{"enable_sort", "off"},
		{"enable_indexscan", "on"},
		{"enable_indexonlyscan", "on"},
		{"enable_nestloop", "on"},
		{"jit", "off"},
		{"plan_cache_mode", "force_generic_plan"},
		{"max_parallel_workers_per_gather", "0"},
		/* nobody but a superuser fills the log */
		{"debug_print_parse", "off"},
		{"debug_print_rewritten", "off"},
		{"debug_print_plan", "off"},
		{"trace_sort", "off"},
	};

	/* not every version has all of them */
	for (int i = 0; i < (int) lengthof(pinned); i++)
	{
		if (GetConfigOption(pinned[i][0], true, false) != NULL)
			SetConfigOption(pinned[i][0], pinned[i][1], PGC_SUSET,
							PGC_S_OVERRIDE);
	}
}

/*
 * Brackets
 */

/*
 * The process belongs to the outbox that it saw first: what it knows must not
 * be written into the tables of an extension that was created anew.
 */
bool
outbox_store_begin(void)
{
	static Oid	own_outbox = InvalidOid;
	static Oid	own_extension = InvalidOid;
	Oid			relid;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	my_leaf = -1;
	if (!OidIsValid(own_extension))
		own_extension = get_extension_oid(OUTBOX_EXTENSION, true);

	/*
	 * DROP EXTENSION begins with this lock as well: waiting for it later, with
	 * locks on some of the tables that it has not come to yet, would be a
	 * deadlock.
	 */
	if (OidIsValid(own_extension))
		LockDatabaseObject(ExtensionRelationId, own_extension, 0,
						   AccessShareLock);
	relid = outbox_catalog_relid_if_exists("outbox");
	if (!OidIsValid(own_outbox))
		own_outbox = relid;
	if (!OidIsValid(relid) || relid != own_outbox)
	{
		CommitTransactionCommand();
		return false;
	}
	SetUserIdAndSecContext(outbox_catalog_owner(),
						   SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_RESTRICTED_OPERATION);
	PushActiveSnapshot(GetTransactionSnapshot());

	/*
	 * Whoever sees a message must know what its session had altered before
	 * it committed the message.
	 */
	AcceptInvalidationMessages();
	SPI_connect();
	return true;
}

void
outbox_store_commit(void)
{
	SPI_finish();
	PopActiveSnapshot();
	SetUserIdAndSecContext(GetSessionUserId(), 0);
	CommitTransactionCommand();
	pgstat_report_stat(false);
}

bool
outbox_store_was_promoted(void)
{
	return GetWALInsertionTimeLine() > 1;
}

Oid
outbox_store_outbox(void)
{
	return outbox_catalog_relid("outbox");
}

/*
 * Running statements
 */

static SPIPlanPtr
outbox_store_prepare(const OutboxStatement *statement, int leaf)
{
	const char *place = strstr(statement->sql, "%d");
	const char *sql = statement->sql;
	SPIPlanPtr	plan;

	if (place != NULL)
		sql = psprintf("%.*s%d%s", (int) (place - sql), sql, leaf, place + 2);
	plan = SPI_prepare(sql, statement->nparams, (Oid *) statement->types);
	if (plan == NULL || SPI_keepplan(plan) != 0)
		elog(ERROR, "could not prepare \"%s\": %s", sql,
			 SPI_result_code_string(SPI_result));
	return plan;
}

/* Of a statement that names a leaf, the one for that leaf. */
static uint64
outbox_store_execute_leaf(OutboxStatementId id, int leaf, Datum *values,
						  const char *nulls, int expected, bool read_only,
						  long max_rows)
{
	int			result;

	Assert(max_rows > 0 || expected != SPI_OK_SELECT);	/* 0: no limit */
	if (plans[id][leaf] == NULL)
		plans[id][leaf] = outbox_store_prepare(&statements[id], leaf);
	result = SPI_execute_plan(plans[id][leaf], values, nulls, read_only,
							  max_rows);
	if (result != expected)
		elog(ERROR, "could not execute \"%s\": %s", statements[id].sql,
			 SPI_result_code_string(result));
	return SPI_processed;
}

static uint64
outbox_store_execute(OutboxStatementId id, Datum *values, const char *nulls,
					 int expected, long max_rows)
{
	bool		read_only = expected == SPI_OK_SELECT &&
		id != STATEMENT_NEXT_DUE;	/* which sees what was just deferred */

	return outbox_store_execute_leaf(id, 0, values, nulls, expected,
									 read_only, max_rows);
}

/* For a statement that writes to the ring. */
static int
outbox_store_append(OutboxStatementId id, Datum *values)
{
	if (my_leaf < 0)
		my_leaf = outbox_leaf_hold(outbox_store_outbox());
	return (int) outbox_store_execute_leaf(id, my_leaf, values, NULL,
										   SPI_OK_INSERT, false, 0);
}

/* A column of a row of the last result that cannot be null. */
static Datum
outbox_store_column(int row, int column)
{
	bool		isnull;
	Datum		datum = SPI_getbinval(SPI_tuptable->vals[row],
									  SPI_tuptable->tupdesc, column, &isnull);

	if (isnull)
		elog(ERROR, "unexpected null in column %d", column);
	return datum;
}

OutboxIdentity
outbox_store_identity(void)
{
	Datum		values[2];
	Datum		own;
	bool		isnull;

	values[0] = Int64GetDatum(outbox_catalog_system_identifier());
	values[1] = ObjectIdGetDatum(MyDatabaseId);
	outbox_store_execute(STATEMENT_IDENTITY, values, NULL, SPI_OK_SELECT, 1);
	own = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1,
						&isnull);
	if (isnull)
		return OUTBOX_IDENTITY_NONE;
	if (!DatumGetBool(own))
		return OUTBOX_IDENTITY_COPY;
	return DatumGetBool(outbox_store_column(0, 2)) ?
		OUTBOX_IDENTITY_ADOPTED : OUTBOX_IDENTITY_OWN;
}

int32
outbox_store_server_key(const char *server_name)
{
	NameData	name;
	Datum		values[1];

	namestrcpy(&name, server_name);
	values[0] = NameGetDatum(&name);
	if (outbox_store_execute(STATEMENT_SERVER_KEY, values, NULL,
							 SPI_OK_SELECT, 1) == 0)
		return 0;
	return DatumGetInt32(outbox_store_column(0, 1));
}

/*
 * A clean receipt says nothing about what others did after it: a former primary
 * of which this is a promoted standby, the database of which this is a copy.
 * So it holds only where, and on the timeline on which, it was written.
 */
static int64
outbox_store_incarnation(void)
{
	uint64		place = hash_combine64(MyDatabaseId, GetWALInsertionTimeLine());

	return (int64) hash_combine64(outbox_catalog_system_identifier(), place);
}

void
outbox_store_newest_receipt(int32 server_key, OutboxReceipt *receipt)
{
	Datum		values[2];

	memset(receipt, 0, sizeof(*receipt));
	values[0] = Int32GetDatum(server_key);
	values[1] = Int64GetDatum(outbox_store_incarnation());
	if (outbox_store_execute(STATEMENT_NEWEST_RECEIPT, values, NULL,
							 SPI_OK_SELECT, 1) == 0)
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

/*
 * Reading messages
 */

/* A text column as UTF-8, NULL if it is null. */
static const char *
outbox_store_get_text(const Datum *values, const bool *isnull, int column)
{
	char	   *str;

	if (isnull[column])
		return NULL;
	str = TextDatumGetCString(values[column]);
	return pg_server_to_any(str, strlen(str), PG_UTF8);
}

static OutboxMessage *
outbox_store_form_message(HeapTuple tuple, TupleDesc tupdesc,
						  const OutboxServer *server)
{
	OutboxMessage *msg = palloc0(sizeof(OutboxMessage));
	/*
	 * and the attempts, whether it is a possible duplicate, the first attempt,
	 * whether it is held, when it was due
	 */
	Datum		values[OUTBOX_NCOLUMNS + 5];
	bool		isnull[OUTBOX_NCOLUMNS + 5];
	bytea	   *body;

	heap_deform_tuple(tuple, tupdesc, values, isnull);
	msg->id = DatumGetInt64(values[OUTBOX_COL_ID]);
	msg->enqueued_at = DatumGetTimestampTz(values[OUTBOX_COL_ENQUEUED_AT]);
	msg->attempts = DatumGetInt32(values[OUTBOX_NCOLUMNS]);
	msg->possible_duplicate = DatumGetBool(values[OUTBOX_NCOLUMNS + 1]);
	msg->first_attempt_at = isnull[OUTBOX_NCOLUMNS + 2] ? 0 :
		DatumGetTimestampTz(values[OUTBOX_NCOLUMNS + 2]);
	msg->held = DatumGetBool(values[OUTBOX_NCOLUMNS + 3]);
	msg->due_at = isnull[OUTBOX_NCOLUMNS + 4] ? 0 :
		DatumGetTimestampTz(values[OUTBOX_NCOLUMNS + 4]);
	msg->ordering_key = outbox_store_get_text(values, isnull,
											  OUTBOX_COL_ORDERING_KEY);
	/* it is compared here, and does not travel */
	if (!isnull[OUTBOX_COL_PUBLISHED_BY])
		msg->published_by =
			TextDatumGetCString(values[OUTBOX_COL_PUBLISHED_BY]);
	msg->message_id = outbox_store_get_text(values, isnull,
											OUTBOX_COL_MESSAGE_ID);
	msg->exchange = outbox_store_get_text(values, isnull, OUTBOX_COL_EXCHANGE);
	msg->routing_key = outbox_store_get_text(values, isnull,
											 OUTBOX_COL_ROUTING_KEY);
	body = DatumGetByteaPCopy(values[OUTBOX_COL_BODY]);
	msg->body = VARDATA(body);
	msg->body_len = VARSIZE(body) - VARHDRSZ;
	if (!isnull[OUTBOX_COL_HEADERS])
		msg->headers = DatumGetJsonbPCopy(values[OUTBOX_COL_HEADERS]);
	msg->content_type = outbox_store_get_text(values, isnull,
											  OUTBOX_COL_CONTENT_TYPE);
	msg->content_encoding = outbox_store_get_text(values, isnull,
												  OUTBOX_COL_CONTENT_ENCODING);
	msg->correlation_id = outbox_store_get_text(values, isnull,
												OUTBOX_COL_CORRELATION_ID);
	msg->reply_to = outbox_store_get_text(values, isnull, OUTBOX_COL_REPLY_TO);
	msg->type = outbox_store_get_text(values, isnull, OUTBOX_COL_TYPE);
	msg->user_id = outbox_store_get_text(values, isnull, OUTBOX_COL_USER_ID);
	msg->app_id = outbox_store_get_text(values, isnull, OUTBOX_COL_APP_ID);
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
 * Form messages from the rows of the last result until one exceeds the bytes, as
 * outbox_message_bytes() counts them.
 * Large bodies are still TOAST pointers in the result, so that it is small.
 */
static int
outbox_store_form_messages(MemoryContext context, Size max_bytes,
						   const OutboxServer *server, bool deferred,
						   OutboxMessage **messages)
{
	MemoryContext old_context = MemoryContextSwitchTo(context);
	Size		bytes = 0;
	int			n = 0;

	while ((uint64) n < SPI_processed && (n == 0 || bytes < max_bytes))
	{
		OutboxMessage *msg = outbox_store_form_message(SPI_tuptable->vals[n],
													   SPI_tuptable->tupdesc,
													   server);

		msg->deferred = deferred;
		bytes += outbox_message_bytes(msg);
		messages[n++] = msg;
	}
	MemoryContextSwitchTo(old_context);
	return n;
}

/* Whether a message of the last result has an ordering key. */
static bool
outbox_store_result_has_keys(void)
{
	for (uint64 i = 0; i < SPI_processed; i++)
		if (!heap_attisnull(SPI_tuptable->vals[i], OUTBOX_COL_ORDERING_KEY + 1,
							SPI_tuptable->tupdesc))
			return true;
	return false;
}

/*
 * Try to read few messages from the leaf that is written alone, which costs a
 * quarter of going through all of them in order.  Where each id between $2 and $3
 * is there, nothing can be elsewhere.  Else (ids of other servers, transactions
 * that were rolled back or that began before the ring turned) everything is to
 * be read; and where that goes on, this is tried ever more seldom.
 */
static bool
outbox_store_read_leaf(Datum *values, int max_rows)
{
	static int	failures = 0;	/* in a row */
	static int	skip = 0;		/* so many reads before the next try */
	int64		ids = DatumGetInt64(values[2]) - DatumGetInt64(values[1]) - 1;

	if (ids > OUTBOX_FEW_IDS)
		return false;
	if (skip > 0)
	{
		skip--;
		return false;
	}
	outbox_store_execute_leaf(STATEMENT_READ_LEAF,
							  outbox_horizon_leaf(outbox_store_outbox(), NULL),
							  values, NULL, SPI_OK_SELECT, true, max_rows);
	if (SPI_processed == (uint64) ids && !outbox_store_result_has_keys())
	{
		failures = 0;
		return true;
	}
	SPI_freetuptable(SPI_tuptable);
	failures = Min(failures + 1, OUTBOX_LEAF_FAILURES);
	skip = (1 << failures) - 1;
	return false;
}

/* Leaves the result with SPI.  What has keys is likely to go on having them. */
static uint64
outbox_store_execute_read(Datum *values, int max_rows)
{
	static bool keyed = false;
	uint64		found;

	if (!keyed)
	{
		if (outbox_store_read_leaf(values, max_rows))
			return SPI_processed;
		found = outbox_store_execute(STATEMENT_READ, values, NULL,
									 SPI_OK_SELECT, max_rows);
		if (!outbox_store_result_has_keys())
			return found;
		SPI_freetuptable(SPI_tuptable);
	}
	found = outbox_store_execute(STATEMENT_READ_KEYED, values, NULL,
								 SPI_OK_SELECT, max_rows);
	keyed = outbox_store_result_has_keys();
	return found;
}

int
outbox_store_read(MemoryContext context, int32 server_key, int64 after,
				  int64 before, int max_rows, Size max_bytes,
				  const OutboxServer *server, const OutboxDoubt *doubt,
				  OutboxMessage **messages, bool *complete)
{
	Datum		values[4];
	uint64		found;
	int			n;

	values[0] = Int32GetDatum(server_key);
	values[1] = Int64GetDatum(after);
	values[2] = Int64GetDatum(before);
	values[3] = Int64GetDatum(doubt->through_id);
	found = outbox_store_execute_read(values, max_rows);
	n = outbox_store_form_messages(context, max_bytes, server, false,
								   messages);
	*complete = found < (uint64) max_rows && (uint64) n == found;
	SPI_freetuptable(SPI_tuptable);
	return n;
}

int
outbox_store_read_due(MemoryContext context, int32 server_key,
					  const OutboxPlace *from, TimestampTz now, int max_rows,
					  Size max_bytes,
					  const OutboxServer *server, const OutboxDoubt *doubt,
					  OutboxMessage **messages)
{
	Datum		values[5];
	int			n;

	values[0] = Int32GetDatum(server_key);
	values[1] = TimestampTzGetDatum(now);
	values[2] = TimestampTzGetDatum(doubt->due_at);
	values[3] = TimestampTzGetDatum(from->due_at);
	values[4] = Int64GetDatum(from->id);
	outbox_store_execute(STATEMENT_READ_DUE, values, NULL, SPI_OK_SELECT,
						 max_rows);
	n = outbox_store_form_messages(context, max_bytes, server, true, messages);
	SPI_freetuptable(SPI_tuptable);
	return n;
}

int64
outbox_store_next_due_id(int32 server_key, const OutboxPlace *from,
						 TimestampTz now)
{
	Datum		values[4];

	values[0] = Int32GetDatum(server_key);
	values[1] = TimestampTzGetDatum(now);
	values[2] = TimestampTzGetDatum(from->due_at);
	values[3] = Int64GetDatum(from->id);
	if (outbox_store_execute(STATEMENT_NEXT_DUE_ID, values, NULL,
							 SPI_OK_SELECT, 1) == 0)
		return 0;
	return DatumGetInt64(outbox_store_column(0, 1));
}

TimestampTz
outbox_store_next_due(int32 server_key, const OutboxPlace *from)
{
	Datum		values[3];

	values[0] = Int32GetDatum(server_key);
	values[1] = TimestampTzGetDatum(from->due_at);
	values[2] = Int64GetDatum(from->id);
	if (outbox_store_execute(STATEMENT_NEXT_DUE, values, NULL, SPI_OK_SELECT,
							 1) == 0)
		return 0;
	return DatumGetTimestampTz(outbox_store_column(0, 1));
}

/*
 * Writing outcomes
 */

void
outbox_store_write_receipt(int32 server_key, const OutboxReceipt *receipt)
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
	values[9] = Int64GetDatum(outbox_store_incarnation());
	outbox_store_append(STATEMENT_WRITE_RECEIPT, values);
}

/*
 * An encoding conversion may fail, and a word of the broker must never keep a
 * message from being settled.
 */
Datum
outbox_store_foreign_text(const char *utf8)
{
	char	   *copy = pstrdup(utf8);

	if (GetDatabaseEncoding() != PG_UTF8)
	{
		for (char *c = copy; *c; c++)
		{
			if (IS_HIGHBIT_SET(*c))
				*c = '?';
		}
	}
	return CStringGetTextDatum(copy);
}

/* An array of n datums of a type that is 8 bytes long, or 4, or 1. */
static Datum
outbox_store_array(Datum *datums, int n, Oid type)
{
	int16		len;
	bool		byval;
	char		align;

	get_typlenbyvalalign(type, &len, &byval, &align);
	return PointerGetDatum(construct_array(datums, n, type, len, byval,
										   align));
}

static Datum
outbox_store_ids(const int64 *ids, int n)
{
	Datum	   *datums = palloc(n * sizeof(Datum));

	for (int i = 0; i < n; i++)
		datums[i] = Int64GetDatum(ids[i]);
	return outbox_store_array(datums, n, INT8OID);
}

void
outbox_store_defer(int32 server_key, const OutboxDeferral *deferrals, int n,
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
		outbox_store_execute(STATEMENT_DEFER_AGAIN, values, NULL,
							 SPI_OK_UPDATE, 0) :
		outbox_store_execute(STATEMENT_DEFER, values, NULL, SPI_OK_INSERT, 0);
	if (written != (uint64) n)
		elog(WARNING, "of %d messages to be deferred " UINT64_FORMAT " are there",
			 n, written);
}

void
outbox_store_bury(int32 server_key, const OutboxDeferral *deferral,
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
	if (outbox_store_execute(deferred ? STATEMENT_BURY_DEFERRED :
							 STATEMENT_BURY, values, nulls, SPI_OK_INSERT,
							 0) != 1)
		elog(WARNING, "message " INT64_FORMAT " to be buried is not there",
			 deferral->id);
}

/* Text that the database gave us. */
static void
outbox_store_bury_as(OutboxStatementId statement, int32 server_key, int64 id,
					 const char *words, bool holds_key, TimestampTz now)
{
	Datum		values[5];

	values[0] = Int32GetDatum(server_key);
	values[1] = Int64GetDatum(id);
	values[2] = TimestampTzGetDatum(now);
	values[3] = CStringGetTextDatum(words);
	values[4] = BoolGetDatum(holds_key);
	outbox_store_execute(statement, values, NULL, SPI_OK_INSERT, 0);
}

/* The same in a subtransaction; false if it fails. */
static bool
outbox_store_try_bury_as(OutboxStatementId statement, int32 server_key,
						 int64 id, const char *words, bool holds_key,
						 TimestampTz now)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool done = false;

	BeginInternalSubTransaction(NULL);
	PG_TRY();
	{
		outbox_store_bury_as(statement, server_key, id, words, holds_key, now);
		ReleaseCurrentSubTransaction();
		done = true;
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
outbox_store_bury_unreadable(int32 server_key, int64 id, bool deferred,
							 const char *words, bool holds_key,
							 TimestampTz now)
{
	if (!outbox_store_try_bury_as(deferred ? STATEMENT_BURY_DEFERRED_WHOLE :
								  STATEMENT_BURY_WHOLE,
								  server_key, id, words, holds_key, now) &&
		!outbox_store_try_bury_as(deferred ? STATEMENT_BURY_DEFERRED_READABLE :
								  STATEMENT_BURY_READABLE,
								  server_key, id, words, holds_key, now))
		outbox_store_bury_as(deferred ? STATEMENT_BURY_DEFERRED_ID :
							 STATEMENT_BURY_ID, server_key, id, words,
							 holds_key, now);
}

/*
 * Ordering keys
 */

void
outbox_store_hold(int32 server_key, const OutboxMessage *msg,
				  bool possible_duplicate, TimestampTz now)
{
	Datum		values[4];

	values[0] = Int32GetDatum(server_key);
	values[1] = Int64GetDatum(msg->id);
	values[2] = TimestampTzGetDatum(now);
	values[3] = BoolGetDatum(possible_duplicate);
	if (msg->deferred)
		outbox_store_execute(STATEMENT_HOLD_AGAIN, values, NULL,
							 SPI_OK_UPDATE, 0);
	else
		outbox_store_execute(STATEMENT_HOLD, values, NULL, SPI_OK_INSERT, 0);
}

/* A key as the database holds it. */
static Datum
outbox_store_key(const char *utf8)
{
	return CStringGetTextDatum(pg_any_to_server(utf8, strlen(utf8), PG_UTF8));
}

void
outbox_store_hold_behind(int32 server_key, const OutboxMessage *msg,
						 const int64 *except, int n, TimestampTz now)
{
	Datum		values[5];

	values[0] = Int32GetDatum(server_key);
	values[1] = Int64GetDatum(msg->id);
	values[2] = outbox_store_key(msg->ordering_key);
	values[3] = TimestampTzGetDatum(now);
	values[4] = outbox_store_ids(except, n);
	outbox_store_execute(STATEMENT_HOLD_BEHIND, values, NULL, SPI_OK_UPDATE, 0);
}

void
outbox_store_release(int32 server_key, const char *ordering_key,
					 TimestampTz now)
{
	Datum		values[3];

	values[0] = Int32GetDatum(server_key);
	values[1] = outbox_store_key(ordering_key);
	values[2] = TimestampTzGetDatum(now);
	outbox_store_execute(STATEMENT_RELEASE, values, NULL, SPI_OK_UPDATE, 0);
}

void
outbox_store_release_orphans(int32 server_key, TimestampTz now)
{
	Datum		values[2];

	values[0] = Int32GetDatum(server_key);
	values[1] = TimestampTzGetDatum(now);
	outbox_store_execute(STATEMENT_RELEASE_ORPHANS, values, NULL,
						 SPI_OK_UPDATE, 0);
}

void
outbox_store_deliver_deferred(int32 server_key, const int64 *ids, int n,
							  TimestampTz now)
{
	Datum		values[3];

	if (n == 0)
		return;
	values[0] = Int32GetDatum(server_key);
	values[1] = outbox_store_ids(ids, n);
	values[2] = TimestampTzGetDatum(now);
	outbox_store_append(STATEMENT_DELIVER_DEFERRED, values);
}

bool
outbox_store_prune_keys(int32 server_key, TimestampTz before)
{
	Datum		values[2];

	values[0] = Int32GetDatum(server_key);
	values[1] = TimestampTzGetDatum(before);
	return outbox_store_execute(STATEMENT_PRUNE_KEYS, values, NULL,
								SPI_OK_DELETE, 0) == OUTBOX_PRUNE_ROWS;
}

void
outbox_store_backlog(int32 server_key, int64 after, int64 before,
					 OutboxBacklogSums *sums)
{
	Datum		values[3];
	uint64		n;

	values[0] = Int32GetDatum(server_key);
	values[1] = Int64GetDatum(after);
	values[2] = Int64GetDatum(before);
	n = outbox_store_execute(STATEMENT_BACKLOG, values, NULL, SPI_OK_SELECT,
							 INT_MAX);
	for (uint64 i = 0; i < n; i++)
	{
		char	   *role = SPI_getvalue(SPI_tuptable->vals[i],
										SPI_tuptable->tupdesc, 1);
		OutboxBacklogSum *sum =
			outbox_backlog_sum(sums, InvalidOid, role ? role : "",
							   role ? Min(strlen(role), NAMEDATALEN - 1) : 0);

		outbox_quantity_add(&sum->all, DatumGetInt64(outbox_store_column(i, 2)),
							DatumGetInt64(outbox_store_column(i, 3)));
	}
}

/*
 * Emptying a leaf of the ring
 */

bool
outbox_store_leaf_settled(int leaf, TimestampTz *since, char **server)
{
	bool		settled;
	bool		isnull;
	Datum		datum;

	outbox_store_execute_leaf(STATEMENT_LEAF_SETTLED, leaf, NULL, NULL,
							  SPI_OK_SELECT, false, 1);
	settled = DatumGetBool(outbox_store_column(0, 1));
	datum = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2,
						  &isnull);
	*since = isnull ? DT_NOBEGIN : DatumGetTimestampTz(datum);
	*server = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 3);
	return settled;
}

int
outbox_store_carry_receipts(int leaf)
{
	Datum		values[1];

	values[0] = ObjectIdGetDatum(outbox_catalog_leaf_relid("receipt", leaf));
	return outbox_store_append(STATEMENT_CARRY_RECEIPTS, values);
}

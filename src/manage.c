/*-------------------------------------------------------------------------
 *
 * manage.c
 *	  What the owner of a server does to its messages: requeue(), discard(),
 *	  replay().
 *
 * Who calls these has no rights on the tables.  The statements run as the
 * tables' owner, and are about messages of servers that the caller owns, and
 * of no others.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_foreign_server.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "foreign/foreign.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "compat.h"
#include "enqueue.h"
#include "flush.h"
#include "leaf.h"
#include "query.h"
#include "server.h"
#include "shared.h"
#include "utility.h"

/* The header of a message that is sent again because somebody asked for it. */
#define OUTBOX_REPLAY_HEADER	"x-replay"

#define EQUALS(column, n) \
	" AND ($" #n " IS NULL OR " column " OPERATOR(pg_catalog.=) $" #n ")"

/* Dead letters: $1 names of servers, $2 to $5 what the caller asked for. */
#define DEAD_LETTERS \
	" FROM amqp_outbox.dead_letter_item d WHERE d.server_key OPERATOR(pg_catalog.=)" \
	" ANY (ARRAY(SELECT k.server_key FROM amqp_outbox.server_key k" \
	" WHERE k.server OPERATOR(pg_catalog.=) ANY ($1)))" \
	EQUALS("d.id", 2) EQUALS("d.message_id", 3) \
	" AND ($4 IS NULL OR d.reason::pg_catalog.text OPERATOR(pg_catalog.=) $4)" \
	EQUALS("d.exchange", 5)

#define COLUMNS(g) \
	g "server_key, " g "id, " g "message_id, " g "enqueued_at, " g "exchange, " \
	g "routing_key, " g "body, " g "headers, " g "content_type, " \
	g "content_encoding, " g "persistent, " g "priority, " g "correlation_id, " \
	g "reply_to, " g "expiration_ms, " g "message_timestamp, " g "type, " \
	g "user_id, " g "app_id, " g "mandatory, " g "ordering_key, "

#define TAKEN \
	" SELECT k.server, g.id, g.message_id FROM gone g" \
	" JOIN amqp_outbox.server_key k" \
	" ON k.server_key OPERATOR(pg_catalog.=) g.server_key"

#define DEAD_LETTER_TYPES \
	5, {NAMEARRAYOID, INT8OID, TEXTOID, TEXTOID, TEXTOID}, NULL

static OutboxQuery requeue = {
	"WITH gone AS (DELETE" DEAD_LETTERS " RETURNING d.*), back AS ("
	"INSERT INTO amqp_outbox.deferred (" COLUMNS("") "expires_at,"
	" published_by, due_at,"
	" attempts, first_attempt_at, last_attempt_at, possible_duplicate,"
	" reply_code, last_error)"
	" SELECT " COLUMNS("g.")
	" CASE WHEN g.reason::pg_catalog.text OPERATOR(pg_catalog.<>) 'expired'"
	" THEN g.expires_at END, g.published_by, pg_catalog.now(), 0, pg_catalog.now(),"
	" g.last_attempt_at, g.possible_duplicate, g.reply_code, g.last_error"
	" FROM gone g)" TAKEN,
	DEAD_LETTER_TYPES
};

#define DISCARD(leaf) { \
	"WITH gone AS (DELETE" DEAD_LETTERS " RETURNING d.*), noted AS (" \
	"INSERT INTO amqp_outbox.late_" #leaf " (" COLUMNS("") "expires_at," \
	" published_by, delivered_at, attempts)" \
	" SELECT " COLUMNS("g.") " g.expires_at, g.published_by, NULL, g.attempts FROM gone g)" \
	TAKEN, \
	DEAD_LETTER_TYPES \
}

static OutboxQuery discard[OUTBOX_NLEAVES] = {
	DISCARD(0), DISCARD(1), DISCARD(2), DISCARD(3)
};

/* What replay() reads of a message, in the order of its statement. */
enum OutboxReplayColumn
{
	REPLAY_MESSAGE_ID,
	REPLAY_EXCHANGE,
	REPLAY_ROUTING_KEY,
	REPLAY_BODY,
	REPLAY_HEADERS,
	REPLAY_CONTENT_TYPE,
	REPLAY_CONTENT_ENCODING,
	REPLAY_PERSISTENT,
	REPLAY_PRIORITY,
	REPLAY_CORRELATION_ID,
	REPLAY_REPLY_TO,
	REPLAY_EXPIRATION,
	REPLAY_MESSAGE_TIMESTAMP,
	REPLAY_TYPE,
	REPLAY_USER_ID,
	REPLAY_APP_ID,
	REPLAY_MANDATORY,
	REPLAY_ORDERING_KEY,
	REPLAY_NCOLUMNS
};

static const struct
{
	int			from;
	int			to;
}			replayed[] =

{
	{REPLAY_MESSAGE_ID, OUTBOX_COL_MESSAGE_ID},
	{REPLAY_EXCHANGE, OUTBOX_COL_EXCHANGE},
	{REPLAY_ROUTING_KEY, OUTBOX_COL_ROUTING_KEY},
	{REPLAY_CONTENT_TYPE, OUTBOX_COL_CONTENT_TYPE},
	{REPLAY_CONTENT_ENCODING, OUTBOX_COL_CONTENT_ENCODING},
	{REPLAY_PERSISTENT, OUTBOX_COL_PERSISTENT},
	{REPLAY_PRIORITY, OUTBOX_COL_PRIORITY},
	{REPLAY_CORRELATION_ID, OUTBOX_COL_CORRELATION_ID},
	{REPLAY_REPLY_TO, OUTBOX_COL_REPLY_TO},
	{REPLAY_MESSAGE_TIMESTAMP, OUTBOX_COL_MESSAGE_TIMESTAMP},
	{REPLAY_TYPE, OUTBOX_COL_TYPE},
	{REPLAY_USER_ID, OUTBOX_COL_USER_ID},
	{REPLAY_APP_ID, OUTBOX_COL_APP_ID},
	{REPLAY_MANDATORY, OUTBOX_COL_MANDATORY},
	{REPLAY_ORDERING_KEY, OUTBOX_COL_ORDERING_KEY},
};

static OutboxQuery replay = {
	"SELECT m.message_id, m.exchange, m.routing_key, m.body, m.headers,"
	" m.content_type, m.content_encoding, m.persistent, m.priority,"
	" m.correlation_id, m.reply_to, m.expiration, m.message_timestamp, m.type,"
	" m.user_id, m.app_id, m.mandatory, m.ordering_key"
	" FROM amqp_outbox.message m"
	" WHERE m.status OPERATOR(pg_catalog.=) 'delivered'"
	" AND m.server OPERATOR(pg_catalog.=) $1"
	" AND ($2 IS NULL OR m.delivered_at OPERATOR(pg_catalog.>=) $2)"
	" AND ($3 IS NULL OR m.delivered_at OPERATOR(pg_catalog.<) $3)"
	EQUALS("m.id", 4) EQUALS("m.message_id", 5) EQUALS("m.routing_key", 6)
	" ORDER BY m.id",
	6, {NAMEOID, TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID, TEXTOID, TEXTOID},
	NULL
};

PG_FUNCTION_INFO_V1(outbox_sql_requeue);
PG_FUNCTION_INFO_V1(outbox_sql_discard);
PG_FUNCTION_INFO_V1(outbox_sql_replay);

/* Names of the server in argument 0, or of all that the caller owns. */
static Datum
outbox_manage_servers(FunctionCallInfo fcinfo)
{
	List	   *servers = PG_ARGISNULL(0) ? outbox_server_list() :
		list_make1_oid(outbox_server_of_owner(NameStr(*PG_GETARG_NAME(0))));
	Datum	   *names = palloc(Max(list_length(servers), 1) * sizeof(Datum));
	int			n = 0;
	ListCell   *lc;

	foreach(lc, servers)
	{
		Name		name = palloc(NAMEDATALEN);

		if (outbox_owns_server(lfirst_oid(lc), GetUserId()) &&
			outbox_server_get_name(lfirst_oid(lc), name))
			names[n++] = NameGetDatum(name);
	}
	return PointerGetDatum(construct_array(names, n, NAMEOID, NAMEDATALEN,
										   false, TYPALIGN_CHAR));
}

/*
 * Dead letters
 */

static void
outbox_manage_add_result(const OutboxRow *row, void *arg)
{
	ReturnSetInfo *rsinfo = arg;
	Datum		values[3];
	bool		isnull[3] = {false};

	memcpy(values, row->values, sizeof(values));
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, isnull);
}

static void
outbox_manage_dead_letters(FunctionCallInfo fcinfo, OutboxQuery *query)
{
	Datum		values[5];
	char		nulls[6] = "     ";

	InitMaterializedSRF(fcinfo, 0);
	values[0] = outbox_manage_servers(fcinfo);
	for (int i = 1; i < 5; i++)
	{
		values[i] = fcinfo->args[i].value;
		if (PG_ARGISNULL(i))
			nulls[i] = 'n';
	}
	if (!PG_ARGISNULL(3))
		values[3] = CStringGetTextDatum(OidOutputFunctionCall(F_ENUM_OUT,
															  values[3]));
	outbox_query_each(query, values, nulls, outbox_manage_add_result,
					  fcinfo->resultinfo);
	/* others of a key may have waited for it */
	outbox_utility_note_change();
}

Datum
outbox_sql_requeue(PG_FUNCTION_ARGS)
{
	outbox_enqueue_precheck("requeue()");
	outbox_manage_dead_letters(fcinfo, &requeue);
	return (Datum) 0;
}

Datum
outbox_sql_discard(PG_FUNCTION_ARGS)
{
	Oid			relid = outbox_catalog_relid("outbox");

	outbox_enqueue_precheck("discard()");
	outbox_flush_seed_counter(relid);
	outbox_manage_dead_letters(fcinfo, &discard[outbox_leaf_hold(relid)]);
	return (Datum) 0;
}

/*
 * Replay
 */

typedef struct OutboxReplay
{
	Oid			serverid;
	Oid			caller;			/* the statement runs as the tables' owner */
	int64		count;
} OutboxReplay;

/* The headers of a message with the mark. */
static Datum
outbox_manage_mark(const OutboxRow *row)
{
	Datum		mark = DirectFunctionCall1(jsonb_in,
										   CStringGetDatum("{\"" OUTBOX_REPLAY_HEADER "\": true}"));

	return row->isnull[REPLAY_HEADERS] ? mark :
		DirectFunctionCall2(jsonb_concat, row->values[REPLAY_HEADERS], mark);
}

static void
outbox_manage_replay_one(const OutboxRow *row, void *arg)
{
	OutboxReplay *state = arg;
	OutboxDraft draft;

	outbox_draft_init(&draft, "amqp_outbox.message", "column");
	draft.serverid = state->serverid;
	draft.publisher = state->caller;
	for (int i = 0; i < (int) lengthof(replayed); i++)
		if (!row->isnull[replayed[i].from])
			outbox_draft_set(&draft, replayed[i].to,
							 row->values[replayed[i].from]);
	outbox_draft_set(&draft, OUTBOX_COL_BODY,
					 PointerGetDatum(PG_DETOAST_DATUM_PACKED(row->values[REPLAY_BODY])));
	outbox_draft_set(&draft, OUTBOX_COL_HEADERS, outbox_manage_mark(row));
	if (!row->isnull[REPLAY_PRIORITY])
		outbox_draft_set_priority(&draft,
								  DatumGetInt16(row->values[REPLAY_PRIORITY]));
	if (!row->isnull[REPLAY_EXPIRATION])
		outbox_draft_set_expiration(&draft,
									DatumGetIntervalP(row->values[REPLAY_EXPIRATION]));
	outbox_enqueue(&draft);
	state->count++;
}

Datum
outbox_sql_replay(PG_FUNCTION_ARGS)
{
	OutboxReplay state = {0};
	Datum		values[6];
	char		nulls[7] = "      ";
	bool		given = false;

	outbox_enqueue_precheck("replay()");
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("argument \"server\" of replay must not be null")));
	for (int i = 0; i < 6; i++)
	{
		values[i] = fcinfo->args[i].value;
		if (PG_ARGISNULL(i))
			nulls[i] = 'n';
		else
			given |= i > 0;
	}
	if (!given)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("replay needs to know what to send again"),
				 errhint("Give delivered_since, delivered_before, id, message_id or routing_key.")));
	state.serverid = outbox_server_of_owner(NameStr(*PG_GETARG_NAME(0)));
	state.caller = GetUserId();
	outbox_query_each(&replay, values, nulls, outbox_manage_replay_one, &state);
	PG_RETURN_INT64(state.count);
}

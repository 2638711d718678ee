/*-------------------------------------------------------------------------
 *
 * checkup.c
 *	  amqp_outbox.doctor(): examine the way to a server's broker.
 *
 * What this cluster and this database can say is looked up here, in the
 * session's transaction: configuration, worker, identity, what is declared.
 * The rest is asked of the broker by a process of its own (doctor.c), which
 * gets all that it needs in a chart.  The session sleeps until that is closed,
 * and no longer than the doctor may take.
 *
 * A session that is cancelled, terminated or fails lets go of the chart, and a
 * callback of that stops the doctor.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "catalog.h"
#include "doctor.h"
#include "query.h"
#include "registry.h"
#include "server.h"
#include "settings.h"
#include "shared.h"
#include "store.h"
#include "stream.h"

/* The end of a process that could not tell is noticed that late. */
#define OUTBOX_CHECKUP_LOOK_MS	1000

/* A checkup asks about so many exchanges and queues. */
#define OUTBOX_CHECKUP_DECLARED	"1000"

#define OUTBOX_CHECKUP_COLUMNS	5

typedef struct OutboxCheckup
{
	ReturnSetInfo *rsinfo;
	OutboxServer *server;
	OutboxOrder order;
} OutboxCheckup;

static OutboxQuery identity = {
	"SELECT pg_catalog.bool_and(system_identifier OPERATOR(pg_catalog.=) $1"
	" AND database_oid OPERATOR(pg_catalog.=) $2) FROM amqp_outbox.identity",
	2, {INT8OID, OIDOID}, NULL
};

static OutboxQuery declared = {
	"SELECT pg_catalog.array_agg(d.kind), pg_catalog.array_agg(d.name) FROM ("
	"SELECT CASE WHEN i.kind OPERATOR(pg_catalog.=) 'queue' THEN 'q'"
	" WHEN i.internal THEN 'i' ELSE 'e' END::pg_catalog.text AS kind, i.name"
	" FROM amqp_outbox.topology_item i JOIN amqp_outbox.server_key k"
	" ON k.server_key OPERATOR(pg_catalog.=) i.server_key"
	" WHERE k.server OPERATOR(pg_catalog.=) $1 AND i.wanted"
	" AND i.source OPERATOR(pg_catalog.=) ''"
	" ORDER BY i.kind, i.name LIMIT " OUTBOX_CHECKUP_DECLARED ") d",
	1, {NAMEOID}, NULL
};

/* What the broker has refused to the worker, one of that many. */
static OutboxQuery refused = {
	"SELECT i.kind::pg_catalog.text, i.name, s.last_error,"
	" pg_catalog.count(*) OVER ()"
	" FROM amqp_outbox.topology_item i JOIN amqp_outbox.server_key k"
	" ON k.server_key OPERATOR(pg_catalog.=) i.server_key"
	" JOIN amqp_outbox.topology_state s"
	" ON s.item_id OPERATOR(pg_catalog.=) i.item_id"
	" WHERE k.server OPERATOR(pg_catalog.=) $1 AND NOT s.asserted"
	" ORDER BY s.since, i.name LIMIT 1",
	1, {NAMEOID}, NULL
};

PG_FUNCTION_INFO_V1(outbox_sql_doctor);

static char *
outbox_checkup_utf8(const char *str)
{
	return pg_server_to_any(str, strlen(str), PG_UTF8);
}

/*
 * Rows
 */

static Datum
outbox_checkup_host(const OutboxServer *server, int host_no)
{
	const OutboxHost *host = &server->hosts[host_no];

	return CStringGetTextDatum(psprintf(strchr(host->name, ':') ? "[%s]:%d" :
										"%s:%d", host->name, host->port));
}

static void
outbox_checkup_put(const OutboxCheckup *checkup, const OutboxFinding *finding)
{
	TupleDesc	tupdesc = checkup->rsinfo->setDesc;
	Oid			result_type = TupleDescAttr(tupdesc, 2)->atttypid;
	const char *result = outbox_check_result_name(finding->result);
	Datum		values[OUTBOX_CHECKUP_COLUMNS];
	bool		isnull[OUTBOX_CHECKUP_COLUMNS] = {false};

	Assert(tupdesc->natts == OUTBOX_CHECKUP_COLUMNS);
	values[0] = CStringGetTextDatum(outbox_check_name(finding->check));
	isnull[1] = finding->host_no == OUTBOX_NO_HOST;
	if (!isnull[1])
		values[1] = outbox_checkup_host(checkup->server, finding->host_no);
	values[2] = DirectFunctionCall2(enum_in, CStringGetDatum(result),
									ObjectIdGetDatum(result_type));
	values[3] = outbox_store_foreign_text(finding->finding);
	isnull[4] = finding->what_to_do[0] == '\0';
	values[4] = outbox_store_foreign_text(finding->what_to_do);
	tuplestore_putvalues(checkup->rsinfo->setResult, tupdesc, values, isnull);
}

static void
outbox_checkup_tell(const OutboxCheckup *checkup, OutboxCheck check,
					OutboxCheckResult result, const char *what_to_do,
					const char *text)
{
	OutboxFinding finding;

	outbox_finding_set(&finding, check, result, OUTBOX_NO_HOST, what_to_do,
					   "%s", text);
	outbox_checkup_put(checkup, &finding);
}

static void
outbox_checkup_ok(const OutboxCheckup *checkup, OutboxCheck check,
				  const char *text)
{
	outbox_checkup_tell(checkup, check, OUTBOX_CHECK_OK, NULL, text);
}

/*
 * This cluster and this database
 */

/* False: there is nothing else to look at. */
static bool
outbox_checkup_preload(const OutboxCheckup *checkup)
{
	if (!outbox_shared_is_available())
	{
		outbox_checkup_tell(checkup, OUTBOX_CHECK_PRELOAD, OUTBOX_CHECK_ERROR,
							"Set shared_preload_libraries = 'amqp_outbox' in postgresql.conf and restart the server.",
							"amqp_outbox was not loaded when the server started");
		return false;
	}
	if (outbox_enabled)
		outbox_checkup_ok(checkup, OUTBOX_CHECK_PRELOAD,
						  "amqp_outbox is loaded and enabled");
	else
		outbox_checkup_tell(checkup, OUTBOX_CHECK_PRELOAD,
							OUTBOX_CHECK_WARNING,
							"If this cluster is to publish, set amqp_outbox.enabled = on and reload the configuration.",
							"amqp_outbox is loaded, and amqp_outbox.enabled is off: nothing is published");
	return true;
}

static bool
outbox_checkup_find_worker(Oid serverid, OutboxWorkerStatus *status,
						   int *in_use)
{
	OutboxWorkerStatus entry;
	bool		found = false;

	*in_use = 0;
	for (int i = 0; i < outbox_max_workers; i++)
	{
		if (!outbox_registry_status(i, &entry))
			continue;
		(*in_use)++;
		if (entry.dboid != MyDatabaseId || entry.serverid != serverid)
			continue;
		*status = entry;
		found = true;
	}
	return found;
}

/* There is no entry for the server. */
static void
outbox_checkup_without_entry(const OutboxCheckup *checkup, int in_use)
{
	if (RecoveryInProgress())
		outbox_checkup_ok(checkup, OUTBOX_CHECK_WORKER,
						  "none, because this cluster is a standby; it starts at the promotion");
	else if (in_use == outbox_max_workers)
		outbox_checkup_tell(checkup, OUTBOX_CHECK_WORKER, OUTBOX_CHECK_ERROR,
							"Increase amqp_outbox.max_workers, and max_worker_processes with it, and restart the server.",
							psprintf("the server has no worker, because there are more than %d servers (amqp_outbox.max_workers) in all databases",
									 outbox_max_workers));
	else
		outbox_checkup_tell(checkup, OUTBOX_CHECK_WORKER,
							OUTBOX_CHECK_WARNING,
							"If the server was created or amqp_outbox enabled just now, wait a moment; if not, see the server's log for what the launcher says.",
							"the server has no worker yet");
}

static const char *
outbox_checkup_last_error(const OutboxWorkerStatus *status)
{
	if (status->last_error_at == 0)
		return "";
	return psprintf("; last error, at %s: %s",
					timestamptz_to_str(status->last_error_at),
					status->last_error);
}

static void
outbox_checkup_worker(const OutboxCheckup *checkup)
{
	OutboxWorkerStatus status;
	int			in_use;
	char	   *text;

	if (!outbox_checkup_find_worker(checkup->server->serverid, &status,
									&in_use))
	{
		outbox_checkup_without_entry(checkup, in_use);
		return;
	}
	text = psprintf("the server's worker is %s%s",
					outbox_worker_state_name(status.state),
					outbox_checkup_last_error(&status));
	if (status.pid == 0)
		outbox_checkup_tell(checkup, OUTBOX_CHECK_WORKER, OUTBOX_CHECK_ERROR,
							"If no slot is free, increase max_worker_processes and restart the server; if not, see the server's log.",
							psprintf("the server has no process now%s",
									 outbox_checkup_last_error(&status)));
	else if (status.state == OUTBOX_WORKER_CONNECTED)
		outbox_checkup_ok(checkup, OUTBOX_CHECK_WORKER, text);
	else
		outbox_checkup_tell(checkup, OUTBOX_CHECK_WORKER,
							OUTBOX_CHECK_WARNING,
							"See the checks below, which tell what keeps it from publishing.",
							text);
}

static void
outbox_checkup_identity(const OutboxCheckup *checkup)
{
	Datum		values[2];
	OutboxRow	row;

	values[0] = Int64GetDatum(outbox_catalog_system_identifier());
	values[1] = ObjectIdGetDatum(MyDatabaseId);
	if (!outbox_query(&identity, values, &row) || row.isnull[0])
		outbox_checkup_ok(checkup, OUTBOX_CHECK_IDENTITY,
						  "nothing was published in this database yet");
	else if (DatumGetBool(row.values[0]))
		outbox_checkup_ok(checkup, OUTBOX_CHECK_IDENTITY,
						  "this database owns its messages");
	else
		outbox_checkup_tell(checkup, OUTBOX_CHECK_IDENTITY, OUTBOX_CHECK_ERROR,
							"If this copy is to publish its messages from now on, run SELECT amqp_outbox.adopt().",
							"this database is a copy: nothing is published");
}

static void
outbox_checkup_refused(const OutboxCheckup *checkup)
{
	Datum		values[1];
	NameData	name;
	OutboxRow	row;
	char	   *finding;

	namestrcpy(&name, checkup->server->name);
	values[0] = NameGetDatum(&name);
	if (!outbox_query(&refused, values, &row))
		return;
	finding = psprintf("refused to the worker: %s \"%s\"%s%s; all that is refused: " INT64_FORMAT,
					   TextDatumGetCString(row.values[0]),
					   TextDatumGetCString(row.values[1]),
					   row.isnull[2] ? "" : ": ",
					   row.isnull[2] ? "" : TextDatumGetCString(row.values[2]),
					   DatumGetInt64(row.values[3]));
	outbox_checkup_tell(checkup, OUTBOX_CHECK_TOPOLOGY, OUTBOX_CHECK_ERROR,
						"See amqp_outbox.topology.",
						outbox_checkup_utf8(finding));
}

/*
 * The order
 */

static void
outbox_checkup_read_declared(OutboxCheckup *checkup)
{
	OutboxOrder *order = &checkup->order;
	Datum		values[1];
	Datum	   *kinds;
	Datum	   *names;
	NameData	name;
	OutboxRow	row;

	namestrcpy(&name, checkup->server->name);
	values[0] = NameGetDatum(&name);
	if (!outbox_query(&declared, values, &row) || row.isnull[0])
		return;
	deconstruct_array(DatumGetArrayTypeP(row.values[0]), TEXTOID, -1, false,
					  TYPALIGN_INT, &kinds, NULL, &order->ndeclared);
	deconstruct_array(DatumGetArrayTypeP(row.values[1]), TEXTOID, -1, false,
					  TYPALIGN_INT, &names, NULL, &order->ndeclared);
	order->declared = palloc(order->ndeclared * sizeof(OutboxDeclared));
	for (int i = 0; i < order->ndeclared; i++)
	{
		order->declared[i].kind = TextDatumGetCString(kinds[i])[0];
		order->declared[i].name =
			outbox_checkup_utf8(TextDatumGetCString(names[i]));
	}
}

static char *
outbox_checkup_probe_exchange(text *argument)
{
	char	   *utf8 = outbox_checkup_utf8(text_to_cstring(argument));

	if (strlen(utf8) > OUTBOX_SHORTSTR_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_STRING_DATA_RIGHT_TRUNCATION),
				 errmsg("argument \"%s\" of %s is too long", "probe_exchange",
						"amqp_outbox.doctor"),
				 errdetail("It has %zu bytes in UTF-8; AMQP allows %d.",
						   strlen(utf8), OUTBOX_SHORTSTR_MAX),
				 errhint("Shorten it.")));
	if (strpbrk(utf8, "\r\n") != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" of %s must not contain line ends",
						"probe_exchange", "amqp_outbox.doctor"),
				 errdetail("The broker would take them out."),
				 errhint("Leave them out.")));
	return utf8;
}

/* User, password and so on; false if there can be no login. */
static bool
outbox_checkup_credentials(OutboxCheckup *checkup)
{
	OutboxFailure failure;
	const char *what_to_do;

	if (outbox_credentials_read(checkup->server, &checkup->order.credentials,
								&failure))
		return true;
	if (failure.sqlerrcode == ERRCODE_UNDEFINED_OBJECT)
		what_to_do = "CREATE USER MAPPING FOR PUBLIC SERVER ... OPTIONS (user '...', password '...') makes one.";
	else if (failure.sqlerrcode == ERRCODE_INSUFFICIENT_PRIVILEGE)
		what_to_do = "Give the server's owner a user mapping with a user and a password of his own, or give the server to a superuser.";
	else if (failure.sqlerrcode == ERRCODE_CONFIG_FILE_ERROR)
		what_to_do = "Correct the option of the user mapping that names the file, or the file's permissions; the server process must be able to read the file.";
	else
		what_to_do = "See to it that the file gets a new token in time.";
	outbox_checkup_tell(checkup, OUTBOX_CHECK_LOGIN, OUTBOX_CHECK_ERROR,
						what_to_do,
						psprintf("%s%s%s", failure.message,
								 failure.detail[0] ? ": " : "",
								 failure.detail));
	return false;
}

/*
 * The doctor
 */

/* The session lets go of the chart, whatever the reason. */
static void
outbox_checkup_detach(dsm_segment *segment, Datum arg)
{
	outbox_chart_wipe(dsm_segment_address(segment));
	TerminateBackgroundWorker((BackgroundWorkerHandle *) DatumGetPointer(arg));
}

/* True once the chart is closed; false if the doctor does not get that far. */
static bool
outbox_checkup_await(OutboxChart *chart, BackgroundWorkerHandle *handle,
					 long limit_ms)
{
	int64		deadline = outbox_clock_ms() + limit_ms;
	int64		left;
	pid_t		pid;

	while ((left = deadline - outbox_clock_ms()) > 0)
	{
		CHECK_FOR_INTERRUPTS();
		if (outbox_chart_wait(chart, Min(left, OUTBOX_CHECKUP_LOOK_MS)))
			return true;
		if (GetBackgroundWorkerPid(handle, &pid) == BGWH_STOPPED)
			break;
	}
	return false;
}

static void
outbox_checkup_put_findings(const OutboxCheckup *checkup, OutboxChart *chart)
{
	const OutboxFinding *findings;
	int			n = outbox_chart_findings(chart, &findings);

	for (int i = 0; i < n; i++)
		outbox_checkup_put(checkup, &findings[i]);
	if (!outbox_chart_is_complete(chart))
		outbox_checkup_tell(checkup, OUTBOX_CHECK_WORKER_SLOTS,
							OUTBOX_CHECK_ERROR,
							"See the server's log; then call the function again.",
							"the process that examines the broker did not come to an end");
}

static void
outbox_checkup_call_doctor(OutboxCheckup *checkup)
{
	dsm_segment *segment = outbox_chart_create(&checkup->order);
	OutboxChart *chart = dsm_segment_address(segment);
	BackgroundWorkerHandle *handle;
	MemoryContext old_context;

	/* it outlives whatever is aborted, until the segment is let go of */
	old_context = MemoryContextSwitchTo(TopTransactionContext);
	handle = outbox_doctor_start(segment);
	MemoryContextSwitchTo(old_context);
	if (handle == NULL)
	{
		outbox_chart_wipe(chart);
		outbox_checkup_tell(checkup, OUTBOX_CHECK_WORKER_SLOTS,
							OUTBOX_CHECK_ERROR,
							"Increase max_worker_processes and restart the server: amqp_outbox needs one for each server and two more.",
							psprintf("no process can be started to examine the broker, because all of max_worker_processes (%d) are in use",
									 max_worker_processes));
	}
	else
	{
		on_dsm_detach(segment, outbox_checkup_detach, PointerGetDatum(handle));
		outbox_checkup_ok(checkup, OUTBOX_CHECK_WORKER_SLOTS,
						  psprintf("a slot is free among max_worker_processes (%d)",
								   max_worker_processes));
		/* and free again, for whoever calls the next one */
		if (outbox_checkup_await(chart, handle,
								 outbox_doctor_limit_ms(checkup->server)))
			(void) WaitForBackgroundWorkerShutdown(handle);
		outbox_checkup_put_findings(checkup, chart);
	}
	dsm_detach(segment);
}

static void
outbox_checkup_examine_broker(OutboxCheckup *checkup)
{
	if (!outbox_checkup_credentials(checkup))
		return;
	checkup->order.server = *checkup->server;
	checkup->order.connection_name = "amqp_outbox doctor";
	outbox_checkup_read_declared(checkup);
	outbox_checkup_call_doctor(checkup);
	outbox_credentials_forget(&checkup->order.credentials);
}

/*
 * SQL
 */

Datum
outbox_sql_doctor(PG_FUNCTION_ARGS)
{
	OutboxCheckup checkup = {0};
	Oid			serverid;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("argument \"%s\" of %s must not be null", "server",
						"amqp_outbox.doctor"),
				 errhint("Name a server; SELECT server FROM amqp_outbox.server_status shows them.")));
	serverid = outbox_server_of_owner(NameStr(*PG_GETARG_NAME(0)));
	if (!PG_ARGISNULL(1))
		checkup.order.probe_exchange =
			outbox_checkup_probe_exchange(PG_GETARG_TEXT_PP(1));
	checkup.server = outbox_option_load(serverid);
	InitMaterializedSRF(fcinfo, 0);
	checkup.rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	if (!outbox_checkup_preload(&checkup))
		return (Datum) 0;
	outbox_checkup_worker(&checkup);
	outbox_checkup_identity(&checkup);
	outbox_checkup_refused(&checkup);
	outbox_checkup_examine_broker(&checkup);
	return (Datum) 0;
}

/*-------------------------------------------------------------------------
 *
 * watch.c
 *	  What the workers have counted, and when it is too much, for SQL.
 *
 * Who may call these functions is the matter of GRANT alone.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "foreign/foreign.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "health.h"
#include "measure.h"
#include "registry.h"
#include "settings.h"
#include "shared.h"

#define OUTBOX_MEASURES_COLUMNS		12
#define OUTBOX_LATENCY_COLUMNS		3
#define OUTBOX_THRESHOLD_COLUMNS	4

PG_FUNCTION_INFO_V1(outbox_sql_measures);
PG_FUNCTION_INFO_V1(outbox_sql_latency);
PG_FUNCTION_INFO_V1(outbox_sql_health_threshold);

static Datum
outbox_watch_interval(int64 us)
{
	Interval   *interval = palloc0(sizeof(Interval));

	interval->time = us;
	return IntervalPGetDatum(interval);
}

/* As of now, also for a worker that is blocked at the moment. */
static int64
outbox_watch_blocked_us(const OutboxWorkerStatus *status, TimestampTz now)
{
	if (status->state != OUTBOX_WORKER_BLOCKED)
		return status->blocked_us;
	return status->blocked_us + Max(now - status->since, 0);
}

static void
outbox_watch_add_measures(ReturnSetInfo *rsinfo,
						  const OutboxWorkerStatus *status,
						  const OutboxMeasure *measure)
{
	TimestampTz now = GetCurrentTimestamp();
	OutboxTally recent;
	double		seconds = outbox_measure_recent(measure, now, &recent);
	Datum		values[OUTBOX_MEASURES_COLUMNS];
	bool		isnull[OUTBOX_MEASURES_COLUMNS] = {false};

	values[0] = ObjectIdGetDatum(status->serverid);
	values[1] = TimestampTzGetDatum(measure->since);
	values[2] = Float8GetDatum(recent.delivered / seconds);
	values[3] = Float8GetDatum(recent.bytes / seconds);
	values[4] = Int64GetDatum(measure->total.bytes);
	values[5] = outbox_watch_interval(outbox_tally_percentile(&recent, 0.50));
	values[6] = outbox_watch_interval(outbox_tally_percentile(&recent, 0.99));
	isnull[5] = isnull[6] = recent.timed == 0;
	values[7] = Int64GetDatum(measure->total.timed);
	values[8] = outbox_watch_interval(measure->total.time_us);
	values[9] = outbox_watch_interval(outbox_watch_blocked_us(status, now));
	values[10] = Int64GetDatum(status->connections);
	values[11] = TimestampTzGetDatum(status->disconnected_since);
	isnull[11] = status->disconnected_since == 0;
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, isnull);
}

Datum
outbox_sql_measures(PG_FUNCTION_ARGS)
{
	OutboxWorkerStatus status;
	OutboxMeasure measure;

	outbox_shared_require();
	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < outbox_max_workers; i++)
	{
		if (outbox_registry_measures(i, &status, &measure) &&
			status.dboid == MyDatabaseId)
			outbox_watch_add_measures((ReturnSetInfo *) fcinfo->resultinfo,
									  &status, &measure);
	}
	return (Datum) 0;
}

static void
outbox_watch_add_latency(ReturnSetInfo *rsinfo, const OutboxTally *tally)
{
	int64		total = 0;

	for (int i = 0; i < OUTBOX_MEASURE_BUCKETS; i++)
	{
		Datum		values[OUTBOX_LATENCY_COLUMNS];
		bool		isnull[OUTBOX_LATENCY_COLUMNS] = {false};

		total += tally->buckets[i];
		values[0] = outbox_watch_interval(outbox_measure_limit(i));
		isnull[0] = i == OUTBOX_MEASURE_BUCKETS - 1;
		values[1] = Int64GetDatum(tally->buckets[i]);
		values[2] = Int64GetDatum(total);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values,
							 isnull);
	}
}

/* Errors: 42704 for an unknown server.  No rows if it was never seen. */
Datum
outbox_sql_latency(PG_FUNCTION_ARGS)
{
	Oid			serverid = get_foreign_server_oid(NameStr(*PG_GETARG_NAME(0)),
												  false);
	OutboxWorkerStatus status;
	OutboxMeasure measure;

	outbox_shared_require();
	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < outbox_max_workers; i++)
	{
		if (outbox_registry_measures(i, &status, &measure) &&
			status.dboid == MyDatabaseId && status.serverid == serverid)
			outbox_watch_add_latency((ReturnSetInfo *) fcinfo->resultinfo,
									 &measure.total);
	}
	return (Datum) 0;
}

Datum
outbox_sql_health_threshold(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	for (const OutboxHealthRule *rule = outbox_health_rules; rule->name; rule++)
	{
		Datum		values[OUTBOX_THRESHOLD_COLUMNS];
		bool		isnull[OUTBOX_THRESHOLD_COLUMNS] = {false};

		values[0] = CStringGetTextDatum(rule->name);
		values[1] = CStringGetTextDatum(rule->unit);
		values[2] = Float8GetDatum(rule->warning * rule->factor);
		values[3] = Float8GetDatum(rule->critical * rule->factor);
		isnull[2] = rule->warning == 0;
		isnull[3] = rule->critical == 0;
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values,
							 isnull);
	}
	return (Datum) 0;
}

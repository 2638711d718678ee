/*-------------------------------------------------------------------------
 *
 * census.c
 *	  The worker keeps its server's backlog counted, where it is limited.
 *
 * Why nothing is counted twice or left out is told in backlog.c.  A census
 * begins, waits until the horizon has come to where it began, and counts in
 * one transaction; between these steps messages are delivered as ever.  What
 * asks for another one (a prepared transaction that was committed, say) may come
 * often: from the end of one census to the next passes ten times what it took,
 * or a second.
 *
 * Runs in the worker.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "catalog/pg_type.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "backlog.h"
#include "census.h"
#include "horizon.h"
#include "store.h"

/* How often to look whether the horizon is there. */
#define OUTBOX_CENSUS_WAIT_MS	20

/* From one census to the next, and after an error. */
#define OUTBOX_CENSUS_PAUSE_MS	1000
#define OUTBOX_CENSUS_ERROR_MS	60000

struct OutboxCensus
{
	bool		wanted;
	bool		begun;
	int64		from;			/* the census counts ids below it */
	TimestampTz next_at;		/* no step before */
	OutboxBacklogSums counted;
	OutboxBacklogSums gone;		/* of a receipt */
};

OutboxCensus *
outbox_census_create(MemoryContext context)
{
	OutboxCensus *census = MemoryContextAllocZero(context,
												  sizeof(OutboxCensus));

	census->counted.context = census->gone.context = context;
	return census;
}

/* One that has begun leaves out what has come from elsewhere since. */
void
outbox_census_want(OutboxCensus *census)
{
	census->wanted = true;
	census->begun = false;
}

/* What waits: beyond the newest receipt $2 in the outbox, below $3 */
static OutboxStatement sum_backlog = {
	.sql = "SELECT published_by, count(*), sum(octet_length(body)"
	/* as a value of its own it is not compressed, and has a header of 4 */
	" + coalesce(pg_column_size(headers || '{}') - 4, 0))"
	" FROM (SELECT published_by, body, headers FROM amqp_outbox.outbox"
	" WHERE server_key = $1 AND id > $2 AND id < $3"
	" UNION ALL SELECT published_by, body, headers FROM amqp_outbox.deferred"
	" WHERE server_key = $1 AND id < $3) m GROUP BY published_by",
	.nparams = 3, .types = {INT4OID, INT8OID, INT8OID}
};

/*
 * Add up what waits, by the roles that published it (server OIDs are left out):
 * messages of the outbox with after < id < before, and deferred ones with
 * id < before.
 */
static void
outbox_census_sum(int32 server_key, int64 after, int64 before,
				  OutboxBacklogSums *sums)
{
	Datum		values[3];
	uint64		n;

	values[0] = Int32GetDatum(server_key);
	values[1] = Int64GetDatum(after);
	values[2] = Int64GetDatum(before);
	n = outbox_store_select(&sum_backlog, values, INT_MAX);
	for (uint64 i = 0; i < n; i++)
	{
		char	   *role = outbox_store_string((int) i, 1);
		OutboxBacklogSum *sum =
			outbox_backlog_sum(sums, InvalidOid, role ? role : "",
							   role ? Min(strlen(role), NAMEDATALEN - 1) : 0);

		outbox_quantity_add(&sum->all, DatumGetInt64(outbox_store_column(i, 2)),
							DatumGetInt64(outbox_store_column(i, 3)));
	}
}

/* In one snapshot, which is taken after the horizon was looked at. */
static void
outbox_census_count(OutboxCensus *census, Oid serverid, int32 server_key,
					int64 through_id)
{
	TimestampTz began = GetCurrentTimestamp();
	TimestampTz now;
	int64		pause;

	/* an error of this must not be one of delivery */
	census->next_at = TimestampTzPlusMilliseconds(began,
												  OUTBOX_CENSUS_ERROR_MS);
	census->counted.n = 0;
	if (!outbox_store_begin())
		return;
	outbox_census_sum(server_key, through_id, census->from,
					  &census->counted);
	outbox_store_commit();
	outbox_backlog_counted(serverid, &census->counted);

	census->wanted = census->begun = false;
	now = GetCurrentTimestamp();
	pause = Max((now - began) / 100, OUTBOX_CENSUS_PAUSE_MS);
	census->next_at = TimestampTzPlusMilliseconds(now, pause);
}

void
outbox_census_take(OutboxCensus *census, const OutboxServer *server,
				   Oid outbox_relid, int32 server_key, int64 through_id)
{
	TimestampTz now;
	OutboxHorizonStatus horizon;

	if (!census->wanted || server_key == 0)
		return;
	if (!outbox_backlog_is_limited(&server->admission.backlog))
	{
		outbox_backlog_forget(server->serverid);
		census->wanted = census->begun = false;
		return;
	}
	now = GetCurrentTimestamp();
	if (now < census->next_at)
		return;
	if (!census->begun)
		census->from = outbox_backlog_begin_count(server->serverid,
												  outbox_relid);
	census->begun = true;
	/* the horizon first, the snapshot afterwards: see horizon.c */
	outbox_horizon_get_status(outbox_relid, &horizon);
	if (horizon.horizon < census->from)
	{
		census->next_at = TimestampTzPlusMilliseconds(now,
													  OUTBOX_CENSUS_WAIT_MS);
		return;
	}
	outbox_census_count(census, server->serverid, server_key, through_id);
}

TimestampTz
outbox_census_next(const OutboxCensus *census)
{
	/* 0 is no time to wait for, and in the past */
	return census->wanted ? Max(census->next_at, 1) : 0;
}

void
outbox_census_begin_receipt(OutboxCensus *census)
{
	census->gone.n = 0;
}

void
outbox_census_gone(OutboxCensus *census, const OutboxServer *server,
				   const OutboxMessage *msg)
{
	int64		bytes = outbox_backlog_bytes(msg->body_len, msg->headers);
	OutboxBacklogSum *sum;

	if (!outbox_backlog_is_limited(&server->admission.backlog))
		return;
	if (msg->unreadable)
	{
		/* nobody knows whose it was, or how large */
		outbox_census_want(census);
		return;
	}
	sum = outbox_backlog_sum(&census->gone, server->serverid,
							 msg->published_by ? msg->published_by : "",
							 msg->published_by ? strlen(msg->published_by) : 0);
	outbox_quantity_add(&sum->all, 1, bytes);
	if (census->begun && msg->id >= census->from)
		outbox_quantity_add(&sum->fresh, 1, bytes);
}

void
outbox_census_end_receipt(OutboxCensus *census, Oid serverid)
{
	outbox_backlog_settled(serverid, &census->gone);
}

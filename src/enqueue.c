/*-------------------------------------------------------------------------
 *
 * enqueue.c
 *	  Check a message that somebody wants to publish, and buffer it.
 *
 * Everything that AMQP limits is checked here, at the call, so that whoever
 * made the mistake hears of it: once a message is committed, nobody is there
 * any more who could correct it.
 *
 * Limits come from AMQP 0-9-1 (sections 1.8.3 and 4.2.5) and from RabbitMQ's
 * reading of it (expiration: 32 bits of milliseconds).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

#include "admit.h"
#include "backlog.h"
#include "buffer.h"
#include "claim.h"
#include "enqueue.h"
#include "message.h"
#include "option.h"
#include "properties.h"
#include "server.h"
#include "settings.h"
#include "shared.h"
#include "trace.h"

/* What travels as AMQP short strings; but ordering_key, which does not. */
static const struct
{
	int			column;
	const char *name;
}			short_strings[] =

{
	{OUTBOX_COL_EXCHANGE, "exchange"},
	{OUTBOX_COL_ROUTING_KEY, "routing_key"},
	{OUTBOX_COL_CONTENT_TYPE, "content_type"},
	{OUTBOX_COL_CONTENT_ENCODING, "content_encoding"},
	{OUTBOX_COL_CORRELATION_ID, "correlation_id"},
	{OUTBOX_COL_REPLY_TO, "reply_to"},
	{OUTBOX_COL_MESSAGE_ID, "message_id"},
	{OUTBOX_COL_TYPE, "type"},
	{OUTBOX_COL_USER_ID, "user_id"},
	{OUTBOX_COL_APP_ID, "app_id"},
};

/*
 * Bytes of properties besides headers and short strings: flags 2, delivery
 * mode 1, priority 1, timestamp 8, expiration 11; and 24 for the header that
 * marks a possible duplicate.
 */
#define OUTBOX_OTHER_PROPERTIES		(2 + 1 + 1 + 8 + 11 + 24)

/* What defaults add to the short strings: an id, a content type. */
#define OUTBOX_DEFAULT_PROPERTIES	128

void
outbox_draft_init(OutboxDraft *draft, const char *of, const char *what)
{
	draft->of = of;
	draft->what = what;
	draft->server = NULL;
	draft->serverid = InvalidOid;
	draft->publisher = InvalidOid;
	draft->now = 0;
	draft->delay = NULL;
	draft->ttl = NULL;
	draft->traceparent = NULL;
	draft->tracestate = NULL;
	draft->idempotency_key = NULL;
	memset(draft->isnull, true, sizeof(draft->isnull));
	draft->content_type = NULL;
	draft->content_encoding = NULL;
}

void
outbox_enqueue_precheck(const char *command)
{
	outbox_shared_require();
	PreventCommandIfReadOnly(command);
	PreventCommandIfParallelMode(command);
	PreventCommandDuringRecovery(command);
}

/*
 * Text
 */

/*
 * Text as UTF-8; *utf8_len is its length in bytes.  Fails for what has no UTF-8.
 */
static char *
outbox_enqueue_utf8(const OutboxDraft *draft, char *str, int len,
					const char *name, int *utf8_len)
{
	char	   *utf8;

	if (GetDatabaseEncoding() == PG_UTF8)
	{
		*utf8_len = len;
		return str;
	}
	if (GetDatabaseEncoding() == PG_SQL_ASCII)
	{
		if (!pg_verify_mbstr(PG_UTF8, str, len, true))
			ereport(ERROR,
					(errcode(ERRCODE_CHARACTER_NOT_IN_REPERTOIRE),
					 errmsg("%s \"%s\" is not valid UTF-8", draft->what, name),
					 errdetail("AMQP text is UTF-8, and the encoding SQL_ASCII of this database cannot be converted to it."),
					 errhint("Pass UTF-8, or a body of type bytea.")));
		*utf8_len = len;
		return str;
	}
	utf8 = pg_server_to_any(str, len, PG_UTF8);
	*utf8_len = utf8 == str ? len : (int) strlen(utf8);
	return utf8;
}

/* Length in bytes of a text value as UTF-8. */
static int
outbox_enqueue_utf8_length(const OutboxDraft *draft, Datum value,
						   const char *name)
{
	text	   *t = (text *) DatumGetPointer(value);
	char	   *str;
	int			len;

	if (GetDatabaseEncoding() == PG_UTF8)
		return VARSIZE_ANY_EXHDR(t);
	str = text_to_cstring(t);
	(void) outbox_enqueue_utf8(draft, str, strlen(str), name, &len);
	return len;
}

void
outbox_draft_set_body_text(OutboxDraft *draft, char *str, int len)
{
	char	   *utf8 = outbox_enqueue_utf8(draft, str, len, "body", &len);
	bytea	   *body = palloc(VARHDRSZ + len);

	SET_VARSIZE(body, VARHDRSZ + len);
	memcpy(VARDATA(body), utf8, len);
	outbox_draft_set(draft, OUTBOX_COL_BODY, PointerGetDatum(body));
}

/*
 * Checks, part by part
 */

/* Returns the length in UTF-8. */
static int
outbox_enqueue_check_length(const OutboxDraft *draft, Datum value,
							const char *name, const char *limit,
							const char *hint)
{
	int			len = outbox_enqueue_utf8_length(draft, value, name);

	if (len > OUTBOX_SHORTSTR_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_STRING_DATA_RIGHT_TRUNCATION),
				 errmsg("%s \"%s\" of %s is too long", draft->what, name,
						draft->of),
				 errdetail("It has %d bytes in UTF-8; %s %d.", len, limit,
						   OUTBOX_SHORTSTR_MAX),
				 errhint("%s", hint)));
	return len;
}

/* Returns the bytes that the short strings need on the wire. */
static Size
outbox_enqueue_short_strings(const OutboxDraft *draft)
{
	Size		total = 0;

	for (int i = 0; i < (int) lengthof(short_strings); i++)
	{
		int			column = short_strings[i].column;

		if (draft->isnull[column])
			continue;
		total += 1 +
			outbox_enqueue_check_length(draft, draft->values[column],
										short_strings[i].name, "AMQP allows",
										"Shorten it, or send the text in the body or in a header.");
	}
	return total;
}

/* Both do not travel, but are compared in places of a fixed size. */
static void
outbox_enqueue_keys(const OutboxDraft *draft)
{
	const char *hint = "Use the key of what the messages are about, or a hash of it.";

	if (!draft->isnull[OUTBOX_COL_ORDERING_KEY])
		outbox_enqueue_check_length(draft,
									draft->values[OUTBOX_COL_ORDERING_KEY],
									"ordering_key", "the limit is", hint);
	if (draft->idempotency_key)
		outbox_enqueue_check_length(draft,
									PointerGetDatum(draft->idempotency_key),
									"idempotency_key", "the limit is", hint);
}

void
outbox_draft_set_priority(OutboxDraft *draft, int32 priority)
{
	if (priority < 0 || priority > 255)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("priority %d is out of range", priority),
				 errhint("AMQP priorities go from 0 to 255.")));
	outbox_draft_set(draft, OUTBOX_COL_PRIORITY,
					 Int16GetDatum((int16) priority));
}

/* Months count as 30 days, as they do in extract(epoch). */
static double
outbox_interval_ms(const Interval *interval)
{
	return ((double) interval->month * DAYS_PER_MONTH + interval->day) *
		SECS_PER_DAY * 1000.0 + (double) (interval->time / 1000);
}

void
outbox_draft_set_expiration(OutboxDraft *draft, const Interval *expiration)
{
	double		ms = outbox_interval_ms(expiration);

	if (ms < 0 || ms > OUTBOX_EXPIRATION_MAX_MS)
		ereport(ERROR,
				(errcode(ERRCODE_INTERVAL_FIELD_OVERFLOW),
				 errmsg("expiration is out of range"),
				 errhint("It must be from 0 to " INT64_FORMAT " milliseconds, about 49 days.",
						 OUTBOX_EXPIRATION_MAX_MS)));
	outbox_draft_set(draft, OUTBOX_COL_EXPIRATION_MS,
					 Int64GetDatum((int64) ms));
}

static void
outbox_enqueue_timestamp(const OutboxDraft *draft)
{
	TimestampTz timestamp;

	if (draft->isnull[OUTBOX_COL_MESSAGE_TIMESTAMP])
		return;
	timestamp = DatumGetTimestampTz(draft->values[OUTBOX_COL_MESSAGE_TIMESTAMP]);
	if (TIMESTAMP_NOT_FINITE(timestamp) ||
		timestamp < time_t_to_timestamptz(0))
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("message_timestamp is out of range"),
				 errhint("AMQP counts seconds since 1970-01-01 00:00:00 UTC.")));
}

/*
 * A time after another one.  Errors 22015 unless the interval lies between 0,
 * or just above it, and infinity.
 */
static TimestampTz
outbox_enqueue_after(TimestampTz from, const Interval *interval,
					 const char *name, bool positive)
{
	TimestampTz result =
		DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
												TimestampTzGetDatum(from),
												IntervalPGetDatum(interval)));

	if (TIMESTAMP_NOT_FINITE(result) || result < from ||
		(positive && result == from))
		ereport(ERROR,
				(errcode(ERRCODE_INTERVAL_FIELD_OVERFLOW),
				 errmsg("%s is out of range", name),
				 errhint(positive ? "It must be an interval greater than 0." :
						 "It must be an interval of at least 0.")));
	return result;
}

static void
outbox_enqueue_check_finite(const OutboxDraft *draft, int column,
							const char *name)
{
	if (!draft->isnull[column] &&
		TIMESTAMP_NOT_FINITE(DatumGetTimestampTz(draft->values[column])))
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("%s must be finite", name),
				 errhint("Leave it out for no such time.")));
}

/* When it may be sent, and when it need not be sent any more. */
static void
outbox_enqueue_times(OutboxDraft *draft, TimestampTz now)
{
	int			due_at = OUTBOX_BUFFERED_COL_DUE_AT;
	TimestampTz from = now;

	if (draft->delay && !draft->isnull[due_at])
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("delay and deliver_at exclude each other"),
				 errhint("Say in one way when the message may be sent.")));
	if (draft->delay)
		outbox_draft_set(draft, due_at,
						 TimestampTzGetDatum(outbox_enqueue_after(now, draft->delay, "delay",
																  false)));
	outbox_enqueue_check_finite(draft, due_at, "deliver_at");
	if (!draft->isnull[due_at])
		from = Max(from, DatumGetTimestampTz(draft->values[due_at]));
	if (draft->ttl)
		outbox_draft_set(draft, OUTBOX_COL_EXPIRES_AT,
						 TimestampTzGetDatum(outbox_enqueue_after(from, draft->ttl, "ttl",
																  true)));
	outbox_enqueue_check_finite(draft, OUTBOX_COL_EXPIRES_AT, "expires_at");
}

static void
outbox_enqueue_check_trace(const OutboxDraft *draft)
{
	if (draft->traceparent && !outbox_trace_is_parent(draft->traceparent))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("traceparent is not a W3C trace context: \"%s\"",
						draft->traceparent),
				 errhint("Its form is %s.", OUTBOX_TRACEPARENT_FORM)));
	if (draft->tracestate && !draft->traceparent)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("tracestate needs a traceparent"),
				 errhint("Give both, or none of them.")));
	if (draft->tracestate && !outbox_trace_is_state(draft->tracestate))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("tracestate is not a W3C trace state: \"%s\"",
						draft->tracestate),
				 errhint("Its form is %s.", OUTBOX_TRACESTATE_FORM)));
}

static const char *
outbox_nonempty(const char *s)
{
	return s && s[0] ? s : NULL;
}

/* The trace context travels in the headers. */
static void
outbox_enqueue_trace(OutboxDraft *draft)
{
	const char *parent = draft->traceparent ? draft->traceparent :
		outbox_nonempty(outbox_traceparent);
	const char *state = draft->traceparent ? draft->tracestate :
		outbox_nonempty(outbox_tracestate);
	int			column = OUTBOX_COL_HEADERS;

	outbox_enqueue_check_trace(draft);
	if (parent)
		outbox_draft_set(draft, column,
						 JsonbPGetDatum(outbox_trace_add(draft->isnull[column] ? NULL :
														 DatumGetJsonbP(draft->values[column]),
														 parent, state)));
}

/* Headers, and whether all properties fit into one frame of that server. */
static void
outbox_enqueue_headers(const OutboxDraft *draft, Size short_strings_size,
					   Oid serverid)
{
	Jsonb	   *headers;
	Size		size;
	Size		limit;

	if (draft->isnull[OUTBOX_COL_HEADERS])
		return;
	headers = DatumGetJsonbP(draft->values[OUTBOX_COL_HEADERS]);
	size = outbox_properties_check_headers(headers) + short_strings_size +
		OUTBOX_DEFAULT_PROPERTIES + OUTBOX_OTHER_PROPERTIES;
	limit = outbox_option_frame_max(serverid) - OUTBOX_HEADER_FRAME_OVERHEAD;
	if (size > limit)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("headers and properties are too large"),
				 errdetail("They need %zu bytes; the server's frame_max leaves %zu.",
						   size, limit),
				 errhint("Put large values into the body.")));
}

static void
outbox_enqueue_body(const OutboxDraft *draft)
{
	Size		len = VARSIZE_ANY_EXHDR(DatumGetPointer(draft->values[OUTBOX_COL_BODY]));

	if (len > (Size) outbox_max_message_size)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("body is too large"),
				 errdetail("It has %zu bytes; amqp_outbox.max_message_size allows %d.",
						   len, outbox_max_message_size),
				 errhint("Raise the setting only if the broker's own max_message_size allows it.")));
}

static void
outbox_enqueue_default_text(OutboxDraft *draft, int column, const char *value)
{
	if (draft->isnull[column] && value != NULL)
		outbox_draft_set(draft, column, CStringGetTextDatum(value));
}

/*
 * Message ids
 */

/*
 * Eight random bytes.  Fetched many at a time: a call of the random generator
 * costs as much as the rest of amqp_publish().  No process inherits the pool,
 * since the postmaster does not publish.
 */
static void
outbox_enqueue_random(uint8 *bytes)
{
	static uint8 pool[4096];
	static Size used = sizeof(pool);	/* from the start of the pool */

	if (used == sizeof(pool))
	{
		if (!pg_strong_random(pool, sizeof(pool)))
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR),
					 errmsg("could not generate random values")));
		used = 0;
	}
	memcpy(bytes, pool + used, 8);
	memset(pool + used, 0, 8);
	used += 8;
}

/*
 * A UUID of version 7 (RFC 9562, section 5.7): 48 bits of milliseconds, 12
 * bits of the fraction of a millisecond, 62 random bits.
 */
static Datum
outbox_enqueue_new_id(TimestampTz now)
{
	static const char digits[] = "0123456789abcdef";
	static const char form[] = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx";
	static const uint8 places[16] = {0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26,
	28, 30, 32, 34};
	uint64		us = now + (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) *
		USECS_PER_DAY;
	uint64		ms = us / 1000;
	uint32		fraction = (uint32) (us % 1000) * 4096 / 1000;
	uint8		uuid[16];
	text	   *result = palloc(VARHDRSZ + sizeof(form) - 1);
	char	   *s = VARDATA(result);

	for (int i = 0; i < 6; i++)
		uuid[i] = (uint8) (ms >> (40 - 8 * i));
	uuid[6] = 0x70 | (fraction >> 8);
	uuid[7] = (uint8) fraction;
	outbox_enqueue_random(uuid + 8);
	uuid[8] = 0x80 | (uuid[8] & 0x3f);

	SET_VARSIZE(result, VARHDRSZ + sizeof(form) - 1);
	memcpy(s, form, sizeof(form) - 1);
	for (int i = 0; i < 16; i++)
	{
		s[places[i]] = digits[uuid[i] >> 4];
		s[places[i] + 1] = digits[uuid[i] & 0x0f];
	}
	return PointerGetDatum(result);
}

Datum
outbox_draft_make_id(OutboxDraft *draft)
{
	Datum		id = outbox_enqueue_new_id(draft->now != 0 ? draft->now :
										   GetCurrentTimestamp());

	outbox_draft_set(draft, OUTBOX_COL_MESSAGE_ID, id);
	return id;
}

static void
outbox_enqueue_message_id(OutboxDraft *draft, TimestampTz now)
{
	if (draft->isnull[OUTBOX_COL_MESSAGE_ID])
		outbox_draft_set(draft, OUTBOX_COL_MESSAGE_ID,
						 outbox_enqueue_new_id(now));
	else if (VARSIZE_ANY_EXHDR(DatumGetPointer(draft->values[OUTBOX_COL_MESSAGE_ID])) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("message_id must not be empty"),
				 errhint("Leave it out to have one generated.")));
}

static Oid
outbox_enqueue_publisher(const OutboxDraft *draft)
{
	return OidIsValid(draft->publisher) ? draft->publisher : GetUserId();
}

/* May it be published? */
static void
outbox_enqueue_check(const OutboxDraft *draft, Oid serverid)
{
	const Datum *values = draft->values;

	outbox_admit_check(serverid, outbox_enqueue_publisher(draft),
					   (text *) DatumGetPointer(values[OUTBOX_COL_EXCHANGE]),
					   (text *) DatumGetPointer(values[OUTBOX_COL_ROUTING_KEY]),
					   draft->isnull[OUTBOX_COL_HEADERS] ? NULL :
					   DatumGetJsonbP(values[OUTBOX_COL_HEADERS]));
}

/* Is there room for it? */
static void
outbox_enqueue_admit(OutboxDraft *draft, Oid serverid)
{
	Size		len = VARSIZE_ANY_EXHDR(DatumGetPointer(draft->values[OUTBOX_COL_BODY]));
	const void *headers = draft->isnull[OUTBOX_COL_HEADERS] ? NULL :
		DatumGetPointer(draft->values[OUTBOX_COL_HEADERS]);
	const char *role = outbox_admit(serverid, outbox_enqueue_publisher(draft),
									outbox_backlog_bytes(len, headers));

	outbox_enqueue_default_text(draft, OUTBOX_COL_PUBLISHED_BY, role);
}

Datum
outbox_enqueue(OutboxDraft *draft)
{
	TimestampTz now = draft->now != 0 ? draft->now : GetCurrentTimestamp();
	Oid			serverid = draft->serverid;
	Size		size;

	if (!OidIsValid(serverid))
		serverid = outbox_server_choose(draft->server);

	outbox_enqueue_body(draft);
	size = outbox_enqueue_short_strings(draft);
	outbox_enqueue_message_id(draft, now);
	outbox_enqueue_default_text(draft, OUTBOX_COL_CONTENT_TYPE,
								draft->content_type);
	outbox_enqueue_default_text(draft, OUTBOX_COL_CONTENT_ENCODING,
								draft->content_encoding);
	outbox_enqueue_keys(draft);
	outbox_enqueue_timestamp(draft);
	outbox_enqueue_times(draft, now);
	outbox_enqueue_trace(draft);
	outbox_enqueue_headers(draft, size, serverid);
	outbox_draft_set(draft, OUTBOX_COL_ENQUEUED_AT, TimestampTzGetDatum(now));
	outbox_enqueue_check(draft, serverid);

	if (draft->idempotency_key &&
		!outbox_claim(serverid, PointerGetDatum(draft->idempotency_key), now,
					  &draft->values[OUTBOX_COL_MESSAGE_ID]))
		return draft->values[OUTBOX_COL_MESSAGE_ID];
	outbox_enqueue_admit(draft, serverid);
	outbox_buffer_put(serverid, draft->values, draft->isnull);
	return draft->values[OUTBOX_COL_MESSAGE_ID];
}

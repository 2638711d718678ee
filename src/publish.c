/*-------------------------------------------------------------------------
 *
 * publish.c
 *	  amqp_publish(): check a message and put it into the buffer.
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
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "buffer.h"
#include "catalog.h"
#include "message.h"
#include "option.h"
#include "properties.h"
#include "server.h"
#include "settings.h"
#include "shared.h"

/* The arguments of amqp_publish(), in the order of the install script. */
enum OutboxArgument
{
	ARG_EXCHANGE,
	ARG_ROUTING_KEY,
	ARG_BODY,
	ARG_HEADERS,
	ARG_CONTENT_TYPE,
	ARG_CONTENT_ENCODING,
	ARG_PERSISTENT,
	ARG_PRIORITY,
	ARG_CORRELATION_ID,
	ARG_REPLY_TO,
	ARG_EXPIRATION,
	ARG_MESSAGE_ID,
	ARG_MESSAGE_TIMESTAMP,
	ARG_TYPE,
	ARG_USER_ID,
	ARG_APP_ID,
	ARG_MANDATORY,
	ARG_SERVER,
	ARG_ORDERING_KEY
};

/* Arguments that travel as AMQP short strings. */
static const struct
{
	int			arg;
	int			column;
	const char *name;
}			short_strings[] =

{
	{ARG_EXCHANGE, OUTBOX_COL_EXCHANGE, "exchange"},
	{ARG_ROUTING_KEY, OUTBOX_COL_ROUTING_KEY, "routing_key"},
	{ARG_CONTENT_TYPE, OUTBOX_COL_CONTENT_TYPE, "content_type"},
	{ARG_CONTENT_ENCODING, OUTBOX_COL_CONTENT_ENCODING, "content_encoding"},
	{ARG_CORRELATION_ID, OUTBOX_COL_CORRELATION_ID, "correlation_id"},
	{ARG_REPLY_TO, OUTBOX_COL_REPLY_TO, "reply_to"},
	{ARG_MESSAGE_ID, OUTBOX_COL_MESSAGE_ID, "message_id"},
	{ARG_TYPE, OUTBOX_COL_TYPE, "type"},
	{ARG_USER_ID, OUTBOX_COL_USER_ID, "user_id"},
	{ARG_APP_ID, OUTBOX_COL_APP_ID, "app_id"},
};

/*
 * Bytes of properties besides headers and short strings: flags 2, delivery
 * mode 1, priority 1, timestamp 8, expiration 11; and 24 for the header that
 * marks a possible duplicate.
 */
#define OUTBOX_OTHER_PROPERTIES		(2 + 1 + 1 + 8 + 11 + 24)

/* RabbitMQ takes an expiration of up to 2^32 - 1 ms. */
#define OUTBOX_EXPIRATION_MAX		INT64CONST(4294967295)

/* What the four forms of the function make of their body. */
typedef struct OutboxBody
{
	Datum		bytes;			/* bytea */
	const char *content_type;
	const char *content_encoding;	/* NULL: none */
} OutboxBody;

PG_FUNCTION_INFO_V1(outbox_sql_publish_jsonb);
PG_FUNCTION_INFO_V1(outbox_sql_publish_json);
PG_FUNCTION_INFO_V1(outbox_sql_publish_text);
PG_FUNCTION_INFO_V1(outbox_sql_publish_bytea);

/*
 * Text
 */

/*
 * Text as UTF-8; *len is its length in bytes.  Fails for what has no UTF-8.
 */
static char *
outbox_publish_utf8(char *str, int len, const char *name, int *utf8_len)
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
					 errmsg("argument \"%s\" is not valid UTF-8", name),
					 errdetail("AMQP text is UTF-8, and the encoding SQL_ASCII of this database cannot be converted to it."),
					 errhint("Pass UTF-8, or a body of type bytea.")));
		*utf8_len = len;
		return str;
	}
	utf8 = pg_server_to_any(str, len, PG_UTF8);
	*utf8_len = utf8 == str ? len : (int) strlen(utf8);
	return utf8;
}

/* Length in bytes of a text argument as UTF-8. */
static int
outbox_publish_utf8_length(Datum value, const char *name)
{
	text	   *t = (text *) DatumGetPointer(value);
	char	   *str;
	int			len;

	if (GetDatabaseEncoding() == PG_UTF8)
		return VARSIZE_ANY_EXHDR(t);
	str = text_to_cstring(t);
	(void) outbox_publish_utf8(str, strlen(str), name, &len);
	return len;
}

static Datum
outbox_publish_bytes(char *str, int len, const char *name)
{
	char	   *utf8 = outbox_publish_utf8(str, len, name, &len);
	bytea	   *result = palloc(VARHDRSZ + len);

	SET_VARSIZE(result, VARHDRSZ + len);
	memcpy(VARDATA(result), utf8, len);
	return PointerGetDatum(result);
}

/*
 * Checks, argument by argument
 */

static void
outbox_publish_require(FunctionCallInfo fcinfo, int arg, const char *name,
					   const char *hint)
{
	if (PG_ARGISNULL(arg))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("argument \"%s\" of amqp_publish must not be null",
						name),
				 errhint("%s", hint)));
}

/* Take over the short strings; returns the bytes that they need on the wire. */
static Size
outbox_publish_short_strings(FunctionCallInfo fcinfo, Datum *values,
							 bool *isnull)
{
	Size		total = 0;

	for (int i = 0; i < (int) lengthof(short_strings); i++)
	{
		int			arg = short_strings[i].arg;
		int			column = short_strings[i].column;
		int			len;

		isnull[column] = PG_ARGISNULL(arg);
		if (isnull[column])
			continue;
		values[column] = PointerGetDatum(PG_GETARG_TEXT_PP(arg));
		len = outbox_publish_utf8_length(values[column],
										 short_strings[i].name);
		if (len > OUTBOX_SHORTSTR_MAX)
			ereport(ERROR,
					(errcode(ERRCODE_STRING_DATA_RIGHT_TRUNCATION),
					 errmsg("argument \"%s\" of amqp_publish is too long",
							short_strings[i].name),
					 errdetail("It has %d bytes in UTF-8; AMQP allows %d.",
							   len, OUTBOX_SHORTSTR_MAX),
					 errhint("Shorten it, or send the text in the body or in a header.")));
		total += 1 + len;
	}
	return total;
}

/* It does not travel, but it is compared in places of a fixed size. */
static void
outbox_publish_ordering_key(FunctionCallInfo fcinfo, Datum *values,
							bool *isnull)
{
	Datum		key;
	int			len;

	isnull[OUTBOX_COL_ORDERING_KEY] = PG_ARGISNULL(ARG_ORDERING_KEY);
	if (isnull[OUTBOX_COL_ORDERING_KEY])
		return;
	key = PointerGetDatum(PG_GETARG_TEXT_PP(ARG_ORDERING_KEY));
	len = outbox_publish_utf8_length(key, "ordering_key");
	if (len > OUTBOX_SHORTSTR_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_STRING_DATA_RIGHT_TRUNCATION),
				 errmsg("argument \"ordering_key\" of amqp_publish is too long"),
				 errdetail("It has %d bytes in UTF-8; %d are allowed.",
						   len, OUTBOX_SHORTSTR_MAX),
				 errhint("Use the key of what the messages are about, or a hash of it.")));
	values[OUTBOX_COL_ORDERING_KEY] = key;
}

static void
outbox_publish_priority(FunctionCallInfo fcinfo, Datum *values, bool *isnull)
{
	int32		priority;

	isnull[OUTBOX_COL_PRIORITY] = PG_ARGISNULL(ARG_PRIORITY);
	if (isnull[OUTBOX_COL_PRIORITY])
		return;
	priority = PG_GETARG_INT32(ARG_PRIORITY);
	if (priority < 0 || priority > 255)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("priority %d is out of range", priority),
				 errhint("AMQP priorities go from 0 to 255.")));
	values[OUTBOX_COL_PRIORITY] = Int16GetDatum((int16) priority);
}

static void
outbox_publish_expiration(FunctionCallInfo fcinfo, Datum *values,
						  bool *isnull)
{
	Interval   *interval;
	double		ms;

	isnull[OUTBOX_COL_EXPIRATION_MS] = PG_ARGISNULL(ARG_EXPIRATION);
	if (isnull[OUTBOX_COL_EXPIRATION_MS])
		return;
	interval = PG_GETARG_INTERVAL_P(ARG_EXPIRATION);
	ms = ((double) interval->month * DAYS_PER_MONTH + interval->day) *
		SECS_PER_DAY * 1000.0 + (double) (interval->time / 1000);
	if (ms < 0 || ms > OUTBOX_EXPIRATION_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INTERVAL_FIELD_OVERFLOW),
				 errmsg("expiration is out of range"),
				 errhint("It must be from 0 to " INT64_FORMAT " milliseconds, about 49 days.",
						 OUTBOX_EXPIRATION_MAX)));
	values[OUTBOX_COL_EXPIRATION_MS] = Int64GetDatum((int64) ms);
}

static void
outbox_publish_timestamp(FunctionCallInfo fcinfo, Datum *values, bool *isnull)
{
	TimestampTz timestamp;

	isnull[OUTBOX_COL_MESSAGE_TIMESTAMP] = PG_ARGISNULL(ARG_MESSAGE_TIMESTAMP);
	if (isnull[OUTBOX_COL_MESSAGE_TIMESTAMP])
		return;
	timestamp = PG_GETARG_TIMESTAMPTZ(ARG_MESSAGE_TIMESTAMP);
	if (TIMESTAMP_NOT_FINITE(timestamp) ||
		timestamp < time_t_to_timestamptz(0))
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("message_timestamp is out of range"),
				 errhint("AMQP counts seconds since 1970-01-01 00:00:00 UTC.")));
	values[OUTBOX_COL_MESSAGE_TIMESTAMP] = TimestampTzGetDatum(timestamp);
}

/* Headers, and whether all properties fit into one frame of that server. */
static void
outbox_publish_headers(FunctionCallInfo fcinfo, Datum *values, bool *isnull,
					   Size short_strings_size, Oid serverid)
{
	Jsonb	   *headers;
	Size		size;
	Size		limit;

	isnull[OUTBOX_COL_HEADERS] = PG_ARGISNULL(ARG_HEADERS);
	if (isnull[OUTBOX_COL_HEADERS])
		return;
	headers = PG_GETARG_JSONB_P(ARG_HEADERS);
	size = outbox_properties_check_headers(headers) + short_strings_size +
		OUTBOX_OTHER_PROPERTIES;
	limit = outbox_option_frame_max(serverid) - OUTBOX_HEADER_FRAME_OVERHEAD;
	if (size > limit)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("headers and properties are too large"),
				 errdetail("They need %zu bytes; the server's frame_max leaves %zu.",
						   size, limit),
				 errhint("Put large values into the body.")));
	values[OUTBOX_COL_HEADERS] = JsonbPGetDatum(headers);
}

static void
outbox_publish_boolean(FunctionCallInfo fcinfo, int arg, int column,
					   Datum *values, bool *isnull)
{
	isnull[column] = PG_ARGISNULL(arg);
	if (!isnull[column])
		values[column] = BoolGetDatum(PG_GETARG_BOOL(arg));
}

static void
outbox_publish_default_text(const char *value, int column, Datum *values,
							bool *isnull)
{
	if (!isnull[column] || value == NULL)
		return;
	values[column] = CStringGetTextDatum(value);
	isnull[column] = false;
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
outbox_publish_random(uint8 *bytes)
{
	static uint8 pool[512];
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
outbox_publish_new_id(TimestampTz now)
{
	static const char digits[] = "0123456789abcdef";
	uint64		us = now + (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) *
		USECS_PER_DAY;
	uint64		ms = us / 1000;
	uint32		fraction = (uint32) (us % 1000) * 4096 / 1000;
	uint8		uuid[16];
	char		str[37];
	char	   *s = str;

	for (int i = 0; i < 6; i++)
		uuid[i] = (uint8) (ms >> (40 - 8 * i));
	uuid[6] = 0x70 | (fraction >> 8);
	uuid[7] = (uint8) fraction;
	outbox_publish_random(uuid + 8);
	uuid[8] = 0x80 | (uuid[8] & 0x3f);

	for (int i = 0; i < 16; i++)
	{
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*s++ = '-';
		*s++ = digits[uuid[i] >> 4];
		*s++ = digits[uuid[i] & 0x0f];
	}
	*s = '\0';
	return CStringGetTextDatum(str);
}

static void
outbox_publish_message_id(TimestampTz now, Datum *values, bool *isnull)
{
	if (isnull[OUTBOX_COL_MESSAGE_ID])
	{
		values[OUTBOX_COL_MESSAGE_ID] = outbox_publish_new_id(now);
		isnull[OUTBOX_COL_MESSAGE_ID] = false;
	}
	else if (VARSIZE_ANY_EXHDR(DatumGetPointer(values[OUTBOX_COL_MESSAGE_ID])) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("message_id must not be empty"),
				 errhint("Leave it out to have one generated.")));
}

/*
 * The function
 */

static void
outbox_publish_check_body(const OutboxBody *body)
{
	Size		len = VARSIZE_ANY_EXHDR(DatumGetPointer(body->bytes));

	if (len > (Size) outbox_max_message_size)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("body is too large"),
				 errdetail("It has %zu bytes; amqp_outbox.max_message_size allows %d.",
						   len, outbox_max_message_size),
				 errhint("Raise the setting only if the broker's own max_message_size allows it.")));
}

/* What can be said before the body is looked at. */
static void
outbox_publish_precheck(FunctionCallInfo fcinfo)
{
	outbox_shared_require();
	PreventCommandIfReadOnly("amqp_publish()");
	PreventCommandIfParallelMode("amqp_publish()");
	PreventCommandDuringRecovery("amqp_publish()");

	outbox_publish_require(fcinfo, ARG_EXCHANGE, "exchange",
						   "The empty string names the default exchange, which routes to the queue that the routing key names.");
	outbox_publish_require(fcinfo, ARG_ROUTING_KEY, "routing_key",
						   "Pass an empty string for an exchange that ignores it.");
	outbox_publish_require(fcinfo, ARG_BODY, "body",
						   "Pass an empty string for a message without content.");
}

static Datum
outbox_publish(FunctionCallInfo fcinfo, const OutboxBody *body)
{
	Datum		values[OUTBOX_NCOLUMNS];
	bool		isnull[OUTBOX_NCOLUMNS];
	TimestampTz now = GetCurrentTimestamp();
	Size		size;
	Oid			serverid;

	serverid = outbox_server_choose(PG_ARGISNULL(ARG_SERVER) ? NULL :
									text_to_cstring(PG_GETARG_TEXT_PP(ARG_SERVER)));
	outbox_publish_check_body(body);
	values[OUTBOX_COL_BODY] = body->bytes;
	isnull[OUTBOX_COL_BODY] = false;

	size = outbox_publish_short_strings(fcinfo, values, isnull);
	outbox_publish_message_id(now, values, isnull);
	outbox_publish_default_text(body->content_type, OUTBOX_COL_CONTENT_TYPE,
								values, isnull);
	outbox_publish_default_text(body->content_encoding,
								OUTBOX_COL_CONTENT_ENCODING, values, isnull);
	outbox_publish_ordering_key(fcinfo, values, isnull);
	outbox_publish_priority(fcinfo, values, isnull);
	outbox_publish_expiration(fcinfo, values, isnull);
	outbox_publish_timestamp(fcinfo, values, isnull);
	outbox_publish_boolean(fcinfo, ARG_PERSISTENT, OUTBOX_COL_PERSISTENT,
						   values, isnull);
	outbox_publish_boolean(fcinfo, ARG_MANDATORY, OUTBOX_COL_MANDATORY,
						   values, isnull);
	/* generated id and defaults are not in size, but small: see the limit */
	outbox_publish_headers(fcinfo, values, isnull, size + 128, serverid);
	values[OUTBOX_COL_ENQUEUED_AT] = TimestampTzGetDatum(now);
	isnull[OUTBOX_COL_ENQUEUED_AT] = false;

	outbox_buffer_put(serverid, values, isnull);
	PG_RETURN_DATUM(values[OUTBOX_COL_MESSAGE_ID]);
}

Datum
outbox_sql_publish_jsonb(PG_FUNCTION_ARGS)
{
	OutboxBody	body = {.content_type = "application/json"};
	Jsonb	   *jsonb;
	char	   *str;

	outbox_publish_precheck(fcinfo);
	jsonb = PG_GETARG_JSONB_P(ARG_BODY);
	str = JsonbToCString(NULL, &jsonb->root, VARSIZE(jsonb));
	body.bytes = outbox_publish_bytes(str, strlen(str), "body");
	return outbox_publish(fcinfo, &body);
}

static Datum
outbox_publish_text_body(FunctionCallInfo fcinfo, OutboxBody *body)
{
	text	   *t;

	outbox_publish_precheck(fcinfo);
	t = PG_GETARG_TEXT_PP(ARG_BODY);
	/* in UTF-8 the bytes of a text are the body as they stand */
	if (GetDatabaseEncoding() == PG_UTF8)
		body->bytes = PointerGetDatum(t);
	else
	{
		char	   *str = text_to_cstring(t);

		body->bytes = outbox_publish_bytes(str, strlen(str), "body");
	}
	return outbox_publish(fcinfo, body);
}

Datum
outbox_sql_publish_json(PG_FUNCTION_ARGS)
{
	OutboxBody	body = {.content_type = "application/json"};

	return outbox_publish_text_body(fcinfo, &body);
}

Datum
outbox_sql_publish_text(PG_FUNCTION_ARGS)
{
	OutboxBody	body = {
		.content_type = "text/plain",
		.content_encoding = "UTF-8"
	};

	return outbox_publish_text_body(fcinfo, &body);
}

Datum
outbox_sql_publish_bytea(PG_FUNCTION_ARGS)
{
	OutboxBody	body = {.content_type = "application/octet-stream"};

	outbox_publish_precheck(fcinfo);
	body.bytes = PointerGetDatum(PG_GETARG_BYTEA_PP(ARG_BODY));
	return outbox_publish(fcinfo, &body);
}

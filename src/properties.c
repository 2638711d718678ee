/*-------------------------------------------------------------------------
 *
 * properties.c
 *	  From a message to AMQP properties and the header table.
 *
 * Headers come as a JSON object and leave as an AMQP table:
 *
 *		integer in digits or exponent	'l'	64 bits, signed
 *		any other number				'd'	double
 *		true, false						't'
 *		null							'V'
 *		string							'S'	UTF-8
 *		object							'F'	table
 *		array							'A'
 *
 * The same code checks the headers of a call in the caller's backend and
 * builds those of a message in the worker, so what passed the check can be
 * sent.  librabbitmq checks next to nothing: a name of 256 bytes goes out with
 * its length cut to 0, and the broker closes the whole connection without a
 * word about the message.
 *
 *-------------------------------------------------------------------------
 */
#define OUTBOX_WITH_LIBRABBITMQ

#include "postgres.h"

#include <math.h>

#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/numeric.h"

#include "compat.h"
#include "properties.h"

/* of OUTBOX_EXPIRATION_MAX_MS */
#define OUTBOX_EXPIRATION_DIGITS	10

/*
 * Bytes that the encoding needs (AMQP 0-9-1, section 4.2.5): the length word
 * of a table, array or string, the type octet of a value, the length octet of
 * a name.
 */
#define LENGTH_WORD		4
#define TYPE_OCTET		1
#define LENGTH_OCTET	1

typedef struct TableBuild
{
	const char *noun;			/* for errors: what an entry is */
	Size		size;			/* bytes that the encoding needs so far */
} TableBuild;

static amqp_table_t build_table(JsonbContainer *object, int spare,
								TableBuild *build);
static amqp_field_value_t build_value(const JsonbValue *value,
									  TableBuild *build);


/*
 * A string of the server's encoding in UTF-8.  With SQL_ASCII there is no
 * conversion, and what is not UTF-8 raises an error.
 */
static amqp_bytes_t
utf8_bytes(const char *s, int len)
{
	char	   *converted = pg_server_to_any(s, len, PG_UTF8);
	amqp_bytes_t bytes;

	bytes.bytes = converted;
	bytes.len = converted == s ? (Size) len : strlen(converted);
	return bytes;
}

static amqp_bytes_t
entry_name(const JsonbValue *key, const char *noun)
{
	amqp_bytes_t name = utf8_bytes(key->val.string.val, key->val.string.len);

	if (name.len == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s name must not be empty", noun),
				 errhint("Give every %s, and every member of a nested object, a name.",
						 noun)));
	if (name.len > OUTBOX_SHORTSTR_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s name \"%.*s...\" is too long", noun,
						pg_mbcliplen(key->val.string.val,
									 key->val.string.len, 40),
						key->val.string.val),
				 errdetail("It has %zu bytes in UTF-8; AMQP allows %d.",
						   name.len, OUTBOX_SHORTSTR_MAX),
				 errhint("Move the text into the %s's value.", noun)));
	return name;
}

static void
build_integer(const char *digits, const char *noun, amqp_field_value_t *field)
{
	char	   *end;

	errno = 0;
	field->kind = AMQP_FIELD_KIND_I64;
	field->value.i64 = strtoi64(digits, &end, 10);
	Assert(*end == '\0');
	if (errno == ERANGE)
		ereport(ERROR,
				(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
				 errmsg("%s value is out of range for an integer of 64 bits",
						noun),
				 errdetail("The number begins with \"%.40s\".", digits),
				 errhint("Write the number as a string, or without exponent and with a decimal point to send it as a double.")));
}

static void
build_double(const char *digits, const char *noun, amqp_field_value_t *field)
{
	double		value;

	errno = 0;
	value = strtod(digits, NULL);
	/* ERANGE with anything else is a denormal number, which can be sent */
	if (errno == ERANGE && (value == 0.0 || isinf(value)))
		ereport(ERROR,
				(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
				 errmsg("%s value is out of range for a double", noun),
				 errdetail("The number begins with \"%.40s\".", digits),
				 errhint("Write the number as a string.")));
	field->kind = AMQP_FIELD_KIND_F64;
	field->value.f64 = value;
}

/*
 * jsonb keeps a number as it was written: 1.0 has a scale of 1 and is meant
 * as a fraction, 1 and 1e3 have none.
 */
static void
build_number(Numeric number, const char *noun, amqp_field_value_t *field)
{
	Datum		datum = NumericGetDatum(number);
	char	   *digits = DatumGetCString(DirectFunctionCall1(numeric_out,
															 datum));

	if (DatumGetInt32(DirectFunctionCall1(numeric_scale, datum)) == 0)
		build_integer(digits, noun, field);
	else
		build_double(digits, noun, field);
}

static amqp_array_t
build_array(JsonbContainer *container, TableBuild *build)
{
	amqp_array_t array = {0};
	JsonbIterator *it = JsonbIteratorInit(container);
	JsonbValue	value;
	JsonbIteratorToken token;

	array.entries = palloc(JsonContainerSize(container) *
						   sizeof(amqp_field_value_t));
	build->size += LENGTH_WORD;
	while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE)
	{
		if (token == WJB_ELEM)
			array.entries[array.num_entries++] = build_value(&value, build);
	}
	return array;
}

static amqp_field_value_t
build_value(const JsonbValue *value, TableBuild *build)
{
	amqp_field_value_t field = {0};

	/* as deep as the JSON value, which its writer chose */
	check_stack_depth();

	build->size += TYPE_OCTET;
	switch (value->type)
	{
		case jbvNull:
			field.kind = AMQP_FIELD_KIND_VOID;
			break;
		case jbvBool:
			field.kind = AMQP_FIELD_KIND_BOOLEAN;
			field.value.boolean = value->val.boolean;
			build->size += 1;
			break;
		case jbvNumeric:
			build_number(value->val.numeric, build->noun, &field);
			build->size += 8;
			break;
		case jbvString:
			field.kind = AMQP_FIELD_KIND_UTF8;
			field.value.bytes = utf8_bytes(value->val.string.val,
										   value->val.string.len);
			build->size += LENGTH_WORD + field.value.bytes.len;
			break;
		case jbvBinary:
			if (JsonContainerIsObject(value->val.binary.data))
			{
				field.kind = AMQP_FIELD_KIND_TABLE;
				field.value.table = build_table(value->val.binary.data, 0,
												build);
			}
			else
			{
				field.kind = AMQP_FIELD_KIND_ARRAY;
				field.value.array = build_array(value->val.binary.data, build);
			}
			break;
		default:
			elog(ERROR, "unexpected type of JSON value: %d",
				 (int) value->type);
	}
	return field;
}

/* An object as a table with room for spare entries more. */
static amqp_table_t
build_table(JsonbContainer *object, int spare, TableBuild *build)
{
	amqp_table_t table = {0};
	JsonbIterator *it = JsonbIteratorInit(object);
	JsonbValue	value;
	JsonbIteratorToken token;

	table.entries = palloc((JsonContainerSize(object) + spare) *
						   sizeof(amqp_table_entry_t));
	build->size += LENGTH_WORD;
	while ((token = JsonbIteratorNext(&it, &value, true)) != WJB_DONE)
	{
		amqp_table_entry_t *entry = &table.entries[table.num_entries];

		if (token == WJB_KEY)
		{
			entry->key = entry_name(&value, build->noun);
			build->size += LENGTH_OCTET + entry->key.len;
		}
		else if (token == WJB_VALUE)
		{
			entry->value = build_value(&value, build);
			table.num_entries++;
		}
	}
	return table;
}

static bool
is_string_array(const amqp_field_value_t *field)
{
	if (field->kind != AMQP_FIELD_KIND_ARRAY)
		return false;
	for (int i = 0; i < field->value.array.num_entries; i++)
	{
		if (field->value.array.entries[i].kind != AMQP_FIELD_KIND_UTF8)
			return false;
	}
	return true;
}

/*
 * RabbitMQ routes a message also by the headers CC and BCC, and closes the
 * channel (406) if they are anything but arrays of strings, see
 * https://www.rabbitmq.com/docs/sender-selected.
 */
static void
check_carbon_copies(const amqp_table_t *table)
{
	for (int i = 0; i < table->num_entries; i++)
	{
		const amqp_table_entry_t *entry = &table->entries[i];
		amqp_bytes_t name = entry->key;

		if (!(name.len == 2 && memcmp(name.bytes, "CC", 2) == 0) &&
			!(name.len == 3 && memcmp(name.bytes, "BCC", 3) == 0))
			continue;
		if (!is_string_array(&entry->value))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("header \"%.*s\" must be an array of strings",
							(int) name.len, (char *) name.bytes),
					 errdetail("The broker takes it for a list of further routing keys."),
					 errhint("Write it like {\"%.*s\": [\"first key\", \"second key\"]}.",
							 (int) name.len, (char *) name.bytes)));
	}
}

static void
check_reserved_name(const amqp_table_t *table)
{
	for (int i = 0; i < table->num_entries; i++)
	{
		amqp_bytes_t name = table->entries[i].key;

		if (name.len == strlen(OUTBOX_DUPLICATE_HEADER) &&
			memcmp(name.bytes, OUTBOX_DUPLICATE_HEADER, name.len) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_RESERVED_NAME),
					 errmsg("header name \"%s\" is reserved",
							OUTBOX_DUPLICATE_HEADER),
					 errdetail("It marks messages that may have been sent before."),
					 errhint("Choose another name.")));
	}
}

static amqp_table_t
build_headers(Jsonb *headers, Size *size)
{
	TableBuild	build = {.noun = "header"};
	amqp_table_t table;

	if (!JB_ROOT_IS_OBJECT(headers))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("headers must be a JSON object"),
				 errhint("Write them like {\"name\": \"value\"}.")));

	/* one to spare: a message sent again gets a header more */
	table = build_table(&headers->root, 1, &build);
	*size = build.size;
	check_carbon_copies(&table);
	check_reserved_name(&table);
	return table;
}

Size
outbox_properties_check_headers(Jsonb *headers)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "amqp_outbox header check",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old_context = MemoryContextSwitchTo(context);
	Size		size = 0;

	(void) build_headers(headers, &size);

	MemoryContextSwitchTo(old_context);
	MemoryContextDelete(context);
	return size;
}

amqp_table_t *
outbox_properties_build_arguments(Jsonb *arguments, Size *size)
{
	amqp_table_t *table = palloc(sizeof(amqp_table_t));
	TableBuild	build = {.noun = "argument"};

	if (!JB_ROOT_IS_OBJECT(arguments))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("arguments must be a JSON object"),
				 errhint("Write them like {\"x-message-ttl\": 60000}.")));
	*table = build_table(&arguments->root, 0, &build);
	*size = build.size;
	return table;
}

/* Set a short string, and its flag, unless s is NULL. */
static void
set_property(amqp_basic_properties_t *properties, amqp_flags_t flag,
			 amqp_bytes_t *property, const char *s)
{
	if (s == NULL)
		return;
	*property = amqp_cstring_bytes(s);
	properties->_flags |= flag;
}

static void
set_headers(amqp_basic_properties_t *properties, Jsonb *headers)
{
	Size		size = 0;

	if (headers == NULL)
	{
		properties->headers.entries = palloc(sizeof(amqp_table_entry_t));
		return;
	}
	properties->headers = build_headers(headers, &size);
	properties->_flags |= AMQP_BASIC_HEADERS_FLAG;
}

/* Into the spare entry. */
static void
append_duplicate_header(amqp_basic_properties_t *properties)
{
	amqp_table_t *headers = &properties->headers;

	headers->entries[headers->num_entries++] = (amqp_table_entry_t)
	{
		.key = amqp_cstring_bytes(OUTBOX_DUPLICATE_HEADER),
		.value = {.kind = AMQP_FIELD_KIND_BOOLEAN,.value.boolean = 1}
	};
	properties->_flags |= AMQP_BASIC_HEADERS_FLAG;
}

void
outbox_properties_build(OutboxMessage *msg)
{
	amqp_basic_properties_t *p = palloc0(sizeof(amqp_basic_properties_t));

	p->_flags = AMQP_BASIC_DELIVERY_MODE_FLAG;
	p->delivery_mode = msg->persistent ? 2 : 1;

	set_headers(p, msg->headers);
	set_property(p, AMQP_BASIC_MESSAGE_ID_FLAG, &p->message_id,
				 msg->message_id);
	set_property(p, AMQP_BASIC_CONTENT_TYPE_FLAG, &p->content_type,
				 msg->content_type);
	set_property(p, AMQP_BASIC_CONTENT_ENCODING_FLAG, &p->content_encoding,
				 msg->content_encoding);
	set_property(p, AMQP_BASIC_CORRELATION_ID_FLAG, &p->correlation_id,
				 msg->correlation_id);
	set_property(p, AMQP_BASIC_REPLY_TO_FLAG, &p->reply_to, msg->reply_to);
	set_property(p, AMQP_BASIC_TYPE_FLAG, &p->type, msg->type);
	set_property(p, AMQP_BASIC_USER_ID_FLAG, &p->user_id, msg->user_id);
	set_property(p, AMQP_BASIC_APP_ID_FLAG, &p->app_id, msg->app_id);

	/* milliseconds, in digits: RabbitMQ closes the channel on anything else */
	if (msg->expires_at != 0)
		set_property(p, AMQP_BASIC_EXPIRATION_FLAG, &p->expiration,
					 palloc0(OUTBOX_EXPIRATION_DIGITS + 1));
	else if (msg->expiration_ms >= 0)
		set_property(p, AMQP_BASIC_EXPIRATION_FLAG, &p->expiration,
					 psprintf(INT64_FORMAT, msg->expiration_ms));
	if (msg->timestamp_s >= 0)
	{
		p->timestamp = (uint64) msg->timestamp_s;
		p->_flags |= AMQP_BASIC_TIMESTAMP_FLAG;
	}
	if (msg->priority >= 0)
	{
		p->priority = (uint8) msg->priority;
		p->_flags |= AMQP_BASIC_PRIORITY_FLAG;
	}
	msg->properties = p;
	if (msg->possible_duplicate)
		append_duplicate_header(p);
}

void
outbox_properties_set_expiration(OutboxMessage *msg, TimestampTz now)
{
	amqp_bytes_t *expiration = &msg->properties->expiration;
	int64		ms;

	if (msg->expires_at == 0)
		return;
	ms = Min(TimestampDifferenceMilliseconds(now, msg->expires_at),
			 OUTBOX_EXPIRATION_MAX_MS);
	if (msg->expiration_ms >= 0)
		ms = Min(ms, msg->expiration_ms);
	expiration->len = snprintf(expiration->bytes, OUTBOX_EXPIRATION_DIGITS + 1,
							   INT64_FORMAT, ms);
}

void
outbox_properties_mark_duplicate(OutboxMessage *msg)
{
	if (msg->possible_duplicate)
		return;
	msg->possible_duplicate = true;
	append_duplicate_header(msg->properties);
}

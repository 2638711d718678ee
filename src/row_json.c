/*-------------------------------------------------------------------------
 *
 * row_json.c
 *	  Values as JSON, many of one type.
 *
 * What to_json() writes, it writes after it has looked up everything about the
 * type again, for each value.  Here that is done once for many values, and
 * there is a choice for numeric and bytea, which to_json() does not offer.
 * Escaping, dates and numbers are PostgreSQL's own functions.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>

#include "access/htup_details.h"
#include "access/transam.h"
#include "catalog/pg_type.h"
#include "common/base64.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "parser/parse_coerce.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/datetime.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/typcache.h"

#include "row_json.h"

typedef enum OutboxJsonKind
{
	OUTBOX_JSON_TEXT,			/* the text of the output function, as string */
	OUTBOX_JSON_STRING,			/* text, varchar: the same, without calling it */
	OUTBOX_JSON_NUMBER,			/* that text as number, if JSON can say it */
	OUTBOX_JSON_INT4,
	OUTBOX_JSON_INT8,
	OUTBOX_JSON_BOOL,
	OUTBOX_JSON_DATETIME,
	OUTBOX_JSON_JSON,
	OUTBOX_JSON_JSONB,
	OUTBOX_JSON_BYTEA,
	OUTBOX_JSON_CAST,			/* by a function to json */
	OUTBOX_JSON_ARRAY,
	OUTBOX_JSON_COMPOSITE
} OutboxJsonKind;

struct OutboxJsonType
{
	OutboxJsonKind kind;
	Oid			typid;			/* as declared: may be a domain */
	Oid			basetype;
	const OutboxJsonStyle *style;
	MemoryContext context;
	FmgrInfo	function;		/* output function, or the cast */
	OutboxJsonType *element;	/* of an array */
	int16		elem_len;
	bool		elem_byval;
	char		elem_align;
	int			nfields;		/* of a composite type, so far */
	OutboxJsonType **fields;

	/*
	 * The last date or time: rows that are written together often have the
	 * same, and writing one costs as much as all other columns.
	 */
	int			datetime_len;	/* 0: there was none */
	int64		datetime_value;
	pg_tz	   *datetime_zone;	/* the session's, when it was written */
	char		datetime[MAXDATELEN + 3];	/* in quotes */
};

/* Where an array is being written. */
typedef struct OutboxJsonArray
{
	OutboxJsonType *element;
	int			ndim;
	int		   *dims;
	Datum	   *values;
	bool	   *nulls;
	int			next;			/* value to be written next */
} OutboxJsonArray;

/* A type that is neither known by its OID nor an array nor composite. */
static void
outbox_json_other_type(OutboxJsonType *type)
{
	Oid			function = InvalidOid;
	bool		varlena;

	type->kind = OUTBOX_JSON_TEXT;
	/* types that came with initdb have no cast that counts, as in to_json() */
	if (type->basetype >= FirstNormalObjectId &&
		find_coercion_pathway(JSONOID, type->basetype, COERCION_EXPLICIT,
							  &function) == COERCION_PATH_FUNC)
		type->kind = OUTBOX_JSON_CAST;
	else
		getTypeOutputInfo(type->basetype, &function, &varlena);
	fmgr_info_cxt(function, &type->function, type->context);
}

static void
outbox_json_number_type(OutboxJsonType *type)
{
	outbox_json_other_type(type);
	if (type->basetype != NUMERICOID || !type->style->numeric_text)
		type->kind = OUTBOX_JSON_NUMBER;
}

static void
outbox_json_array_type(OutboxJsonType *type, Oid element)
{
	type->kind = OUTBOX_JSON_ARRAY;
	type->element = outbox_json_type(element, type->style);
	get_typlenbyvalalign(element, &type->elem_len, &type->elem_byval,
						 &type->elem_align);
}

/* The kinds are those of json_categorize_type() in PostgreSQL. */
OutboxJsonType *
outbox_json_type(Oid typid, const OutboxJsonStyle *style)
{
	OutboxJsonType *type = palloc0(sizeof(OutboxJsonType));
	Oid			element;

	type->typid = typid;
	type->basetype = getBaseType(typid);
	type->style = style;
	type->context = CurrentMemoryContext;
	switch (type->basetype)
	{
		case BOOLOID:
			type->kind = OUTBOX_JSON_BOOL;
			break;
		case INT4OID:
			type->kind = OUTBOX_JSON_INT4;
			break;
		case INT8OID:
			type->kind = OUTBOX_JSON_INT8;
			break;
		case INT2OID:
		case FLOAT4OID:
		case FLOAT8OID:
		case NUMERICOID:
			outbox_json_number_type(type);
			break;
		case TEXTOID:
		case VARCHAROID:
			type->kind = OUTBOX_JSON_STRING;
			break;
		case DATEOID:
		case TIMESTAMPOID:
		case TIMESTAMPTZOID:
			type->kind = OUTBOX_JSON_DATETIME;
			break;
		case JSONOID:
			type->kind = OUTBOX_JSON_JSON;
			break;
		case JSONBOID:
			type->kind = OUTBOX_JSON_JSONB;
			break;
		case BYTEAOID:
			type->kind = OUTBOX_JSON_BYTEA;
			break;
		default:
			element = get_element_type(type->basetype);
			if (OidIsValid(element))
				outbox_json_array_type(type, element);
			else if (type_is_rowtype(type->basetype))
				type->kind = OUTBOX_JSON_COMPOSITE;
			else
				outbox_json_other_type(type);
	}
	return type;
}

static void
outbox_json_bytea(StringInfo out, Datum value, bool base64)
{
	bytea	   *bytes = DatumGetByteaPP(value);
	int			len = VARSIZE_ANY_EXHDR(bytes);
	int			room = base64 ? pg_b64_enc_len(len) : len * 2;

	appendStringInfoString(out, base64 ? "\"" : "\"\\\\x");
	enlargeStringInfo(out, room + 1);
	if (base64)
		room = pg_b64_encode((void *) VARDATA_ANY(bytes), len,
							 out->data + out->len, room);
	else
		hex_encode(VARDATA_ANY(bytes), len, out->data + out->len);
	out->len += room;
	out->data[out->len] = '\0';
	appendStringInfoChar(out, '"');
}

static void
outbox_json_number(StringInfo out, char *digits)
{
	/* NaN and infinities are numbers of PostgreSQL, but not of JSON */
	if (isdigit((unsigned char) digits[digits[0] == '-' ? 1 : 0]))
		outbox_append(out, digits, strlen(digits));
	else
		escape_json(out, digits);
}

static void
outbox_json_datetime(StringInfo out, OutboxJsonType *type, Datum value)
{
	int64		number = type->basetype == DATEOID ? DatumGetDateADT(value) :
		DatumGetTimestamp(value);

	if (type->datetime_len == 0 || type->datetime_value != number ||
		type->datetime_zone != session_timezone)
	{
		type->datetime_len = 0;
		type->datetime[0] = '"';
		JsonEncodeDateTime(type->datetime + 1, value, type->basetype, NULL);
		strcat(type->datetime + 1, "\"");
		type->datetime_value = number;
		type->datetime_zone = session_timezone;
		type->datetime_len = strlen(type->datetime);
	}
	outbox_append(out, type->datetime, type->datetime_len);
}

/* Most strings have nothing in them to escape. */
static void
outbox_json_string(StringInfo out, text *t)
{
	const unsigned char *str = (const unsigned char *) VARDATA_ANY(t);
	int			len = VARSIZE_ANY_EXHDR(t);

	for (int i = 0; i < len; i++)
	{
		if (str[i] < ' ' || str[i] == '"' || str[i] == '\\')
		{
			escape_json(out, text_to_cstring(t));
			return;
		}
	}
	appendStringInfoCharMacro(out, '"');
	outbox_append(out, (const char *) str, len);
	appendStringInfoCharMacro(out, '"');
}

static void
outbox_json_text(StringInfo out, text *t)
{
	appendBinaryStringInfo(out, VARDATA_ANY(t), VARSIZE_ANY_EXHDR(t));
}

/* One dimension of an array, and those within it. */
static void
outbox_json_dimension(StringInfo out, OutboxJsonArray *array, int dim)
{
	appendStringInfoChar(out, '[');
	for (int i = 0; i < array->dims[dim]; i++)
	{
		if (i > 0)
			appendStringInfoChar(out, ',');
		if (dim + 1 < array->ndim)
			outbox_json_dimension(out, array, dim + 1);
		else
		{
			int			n = array->next++;

			if (array->nulls[n])
				appendStringInfoString(out, "null");
			else
				outbox_json_append(out, array->element, array->values[n]);
		}
	}
	appendStringInfoChar(out, ']');
}

static void
outbox_json_array(StringInfo out, OutboxJsonType *type, Datum value)
{
	ArrayType  *v = DatumGetArrayTypeP(value);
	OutboxJsonArray array;
	int			n;

	/* as deep as arrays of composite types of arrays go */
	check_stack_depth();
	if (ArrayGetNItems(ARR_NDIM(v), ARR_DIMS(v)) <= 0)
	{
		appendStringInfoString(out, "[]");
		return;
	}
	array.element = type->element;
	array.ndim = ARR_NDIM(v);
	array.dims = ARR_DIMS(v);
	array.next = 0;
	deconstruct_array(v, ARR_ELEMTYPE(v), type->elem_len, type->elem_byval,
					  type->elem_align, &array.values, &array.nulls, &n);
	outbox_json_dimension(out, &array, 0);
}

/*
 * How the field of a composite type is written.  ALTER TYPE may have changed
 * the type, so what is kept is compared with the field.
 */
static OutboxJsonType *
outbox_json_field(OutboxJsonType *type, TupleDesc tupdesc, int i)
{
	Oid			typid = TupleDescAttr(tupdesc, i)->atttypid;
	MemoryContext old_context;

	if (i < type->nfields && type->fields[i] != NULL &&
		type->fields[i]->typid == typid)
		return type->fields[i];

	old_context = MemoryContextSwitchTo(type->context);
	if (i >= type->nfields)
	{
		OutboxJsonType **fields = palloc0(tupdesc->natts *
										  sizeof(OutboxJsonType *));

		if (type->nfields > 0)
			memcpy(fields, type->fields,
				   type->nfields * sizeof(OutboxJsonType *));
		type->fields = fields;
		type->nfields = tupdesc->natts;
	}
	type->fields[i] = outbox_json_type(typid, type->style);
	MemoryContextSwitchTo(old_context);
	return type->fields[i];
}

static void
outbox_json_composite(StringInfo out, OutboxJsonType *type, Datum value)
{
	HeapTupleHeader header = DatumGetHeapTupleHeader(value);
	TupleDesc	tupdesc = lookup_rowtype_tupdesc(HeapTupleHeaderGetTypeId(header),
												 HeapTupleHeaderGetTypMod(header));
	HeapTupleData tuple;
	bool		first = true;

	check_stack_depth();
	tuple.t_len = HeapTupleHeaderGetDatumLength(header);
	tuple.t_data = header;
	appendStringInfoChar(out, '{');
	for (int i = 0; i < tupdesc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(tupdesc, i);
		Datum		field;
		bool		isnull;

		if (att->attisdropped)
			continue;
		if (!first)
			appendStringInfoChar(out, ',');
		first = false;
		escape_json(out, NameStr(att->attname));
		appendStringInfoChar(out, ':');
		field = heap_getattr(&tuple, i + 1, tupdesc, &isnull);
		if (isnull)
			appendStringInfoString(out, "null");
		else
			outbox_json_append(out, outbox_json_field(type, tupdesc, i), field);
	}
	appendStringInfoChar(out, '}');
	ReleaseTupleDesc(tupdesc);
}

static void
outbox_json_jsonb(StringInfo out, Datum value)
{
	Jsonb	   *jsonb = DatumGetJsonbP(value);

	(void) JsonbToCString(out, &jsonb->root, VARSIZE(jsonb));
}

static void
outbox_json_int8(StringInfo out, int64 value)
{
	char		digits[MAXINT8LEN + 1];

	outbox_append(out, digits, pg_lltoa(value, digits));
}

void
outbox_json_append(StringInfo out, OutboxJsonType *type, Datum value)
{
	switch (type->kind)
	{
		case OUTBOX_JSON_TEXT:
			escape_json(out, OutputFunctionCall(&type->function, value));
			break;
		case OUTBOX_JSON_STRING:
			outbox_json_string(out, DatumGetTextPP(value));
			break;
		case OUTBOX_JSON_NUMBER:
			outbox_json_number(out,
							   OutputFunctionCall(&type->function, value));
			break;
		case OUTBOX_JSON_INT4:
			outbox_json_int8(out, DatumGetInt32(value));
			break;
		case OUTBOX_JSON_INT8:
			outbox_json_int8(out, DatumGetInt64(value));
			break;
		case OUTBOX_JSON_BOOL:
			if (DatumGetBool(value))
				outbox_append(out, "true", 4);
			else
				outbox_append(out, "false", 5);
			break;
		case OUTBOX_JSON_DATETIME:
			outbox_json_datetime(out, type, value);
			break;
		case OUTBOX_JSON_JSON:
			outbox_json_text(out, DatumGetTextPP(value));
			break;
		case OUTBOX_JSON_JSONB:
			outbox_json_jsonb(out, value);
			break;
		case OUTBOX_JSON_BYTEA:
			outbox_json_bytea(out, value, type->style->bytea_base64);
			break;
		case OUTBOX_JSON_CAST:
			outbox_json_text(out,
							 DatumGetTextPP(FunctionCall1(&type->function,
														  value)));
			break;
		case OUTBOX_JSON_ARRAY:
			outbox_json_array(out, type, value);
			break;
		case OUTBOX_JSON_COMPOSITE:
			outbox_json_composite(out, type, value);
			break;
	}
}

/*-------------------------------------------------------------------------
 *
 * row_json.h
 *	  Values as JSON, many of one type.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_ROW_JSON_H
#define OUTBOX_ROW_JSON_H

#include "postgres.h"

#include "lib/stringinfo.h"

typedef struct OutboxJsonStyle
{
	/* 0 or 1 */
	int			numeric_text;	/* numeric as a string, not as a number */
	int			bytea_base64;	/* bytea as base64, not as \x and hex */
} OutboxJsonStyle;

/* How values of one type are written; keeps what was looked up. */
typedef struct OutboxJsonType OutboxJsonType;

/*
 * Allocated in the current memory context, which must live as long as it and
 * in which it may grow.  Good until the casts to json change.
 */
extern OutboxJsonType *outbox_json_type(Oid typid,
										const OutboxJsonStyle *style);

/*
 * Append a value (not a null) as to_json() writes it, but for the style; at
 * any depth of arrays and composite types.
 */
extern void outbox_json_append(StringInfo out, OutboxJsonType *type,
							   Datum value);

/*
 * appendBinaryStringInfo() for the few bytes that most values are, of which a
 * call would be the greater part.
 */
static inline void
outbox_append(StringInfo out, const char *data, int len)
{
	if (unlikely(out->len + len >= out->maxlen))
		enlargeStringInfo(out, len);
	memcpy(out->data + out->len, data, len);
	out->len += len;
	out->data[out->len] = '\0';
}

#endif							/* OUTBOX_ROW_JSON_H */

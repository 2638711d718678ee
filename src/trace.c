/*-------------------------------------------------------------------------
 *
 * trace.c
 *	  W3C trace context: where a message comes from.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "utils/fmgrprotos.h"

#include "trace.h"

#define OUTBOX_TRACESTATE_MAX	512

/* Lower-case hexadecimal digits, not all of them 0 if nonzero; moves s on. */
static bool
outbox_trace_hex(const char **s, int n, bool nonzero)
{
	bool		zero = true;

	for (int i = 0; i < n; i++, (*s)++)
	{
		if (!((**s >= '0' && **s <= '9') || (**s >= 'a' && **s <= 'f')))
			return false;
		zero &= **s == '0';
	}
	return !nonzero || !zero;
}

bool
outbox_trace_is_parent(const char *s)
{
	const char *version = s;

	if (!outbox_trace_hex(&s, 2, false) || *s++ != '-' ||
		!outbox_trace_hex(&s, 32, true) || *s++ != '-' ||
		!outbox_trace_hex(&s, 16, true) || *s++ != '-' ||
		!outbox_trace_hex(&s, 2, false))
		return false;
	if (strncmp(version, "ff", 2) == 0)
		return false;
	/* later versions may append more */
	return *s == '\0' || (*s == '-' && strncmp(version, "00", 2) != 0);
}

bool
outbox_trace_is_state(const char *s)
{
	Size		len = strlen(s);

	if (len > OUTBOX_TRACESTATE_MAX)
		return false;
	for (Size i = 0; i < len; i++)
	{
		if (s[i] < 0x20 || s[i] > 0x7e)
			return false;
	}
	return true;
}

static void
outbox_trace_push(JsonbParseState **state, const char *name, const char *value)
{
	JsonbValue	v = {.type = jbvString};

	v.val.string.val = (char *) name;
	v.val.string.len = strlen(name);
	pushJsonbValue(state, WJB_KEY, &v);
	v.val.string.val = (char *) value;
	v.val.string.len = strlen(value);
	pushJsonbValue(state, WJB_VALUE, &v);
}

static bool
outbox_trace_has(Jsonb *headers, const char *name)
{
	JsonbValue	value;

	return headers != NULL && JB_ROOT_IS_OBJECT(headers) &&
		getKeyJsonValueFromContainer(&headers->root, name, strlen(name),
									 &value) != NULL;
}

Jsonb *
outbox_trace_add(Jsonb *headers, const char *parent, const char *state)
{
	JsonbParseState *parse_state = NULL;
	Jsonb	   *trace;

	if (outbox_trace_has(headers, OUTBOX_TRACEPARENT))
		return headers;
	pushJsonbValue(&parse_state, WJB_BEGIN_OBJECT, NULL);
	outbox_trace_push(&parse_state, OUTBOX_TRACEPARENT, parent);
	if (state)
		outbox_trace_push(&parse_state, OUTBOX_TRACESTATE, state);
	trace = JsonbValueToJsonb(pushJsonbValue(&parse_state, WJB_END_OBJECT,
											 NULL));
	if (headers == NULL || !JB_ROOT_IS_OBJECT(headers))
		return headers ? headers : trace;
	/* where both have one, the right one stays */
	return DatumGetJsonbP(DirectFunctionCall2(jsonb_concat,
											  JsonbPGetDatum(trace),
											  JsonbPGetDatum(headers)));
}

/*-------------------------------------------------------------------------
 *
 * trace.c
 *	  Fuzzes what takes a W3C trace context: traceparent or tracestate.
 *
 *-------------------------------------------------------------------------
 */
#include "backend.h"

#include "mb/pg_wchar.h"

#include "trace.h"

typedef struct Input
{
	const uint8 *data;
	size_t		size;
} Input;

static void
run(void *arg)
{
	Input	   *input = arg;
	char	   *s = fuzz_string(input->data, input->size);

	/* what is accepted travels as a header: no control characters, ASCII */
	if (outbox_trace_is_parent(s))
	{
		fuzz_check(strlen(s) >= 55);
		fuzz_check(strspn(s, "0123456789abcdef-") >= 55);
	}
	if (outbox_trace_is_state(s))
		fuzz_check(strlen(s) <= 512 && pg_verifymbstr(s, strlen(s), true));
}

int
LLVMFuzzerTestOneInput(const uint8 *data, size_t size)
{
	Input		input = {data, size};

	fuzz_check(fuzz_run(run, &input));
	return 0;
}

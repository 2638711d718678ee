/*-------------------------------------------------------------------------
 *
 * token.c
 *	  Fuzzes what reads the end of a JSON Web Token.
 *
 *-------------------------------------------------------------------------
 */
#include "backend.h"

#include "token.h"

typedef struct Input
{
	const uint8 *data;
	size_t		size;
} Input;

static void
run(void *arg)
{
	Input	   *input = arg;
	int64		expiry;

	(void) outbox_token_expiry(fuzz_string(input->data, input->size), &expiry);
}

int
LLVMFuzzerTestOneInput(const uint8 *data, size_t size)
{
	Input		input = {data, size};

	fuzz_check(fuzz_run(run, &input));
	return 0;
}

/*-------------------------------------------------------------------------
 *
 * template.c
 *	  Fuzzes what takes a template of amqp_publish_row() apart.
 *
 *-------------------------------------------------------------------------
 */
#include "backend.h"

#include "template.h"

typedef struct Input
{
	const uint8 *data;
	size_t		size;
} Input;

static void
run(void *arg)
{
	Input	   *input = arg;
	char	   *source = fuzz_string(input->data, input->size);
	OutboxTemplate *template = outbox_template_parse("routing key", source);
	Size		len = 0;

	fuzz_check(template->nparts >= 0 &&
			   (Size) template->nparts <= strlen(source));
	for (int i = 0; i < template->nparts; i++)
	{
		const OutboxTemplatePart *part = &template->parts[i];

		fuzz_check(part->kind >= OUTBOX_TEMPLATE_LITERAL &&
				   part->kind <= OUTBOX_TEMPLATE_NEW_COLUMN);
		fuzz_check(part->text != NULL &&
				   (Size) part->len == strlen(part->text));
		len += part->len;
	}
	fuzz_check(len <= strlen(source));
}

int
LLVMFuzzerTestOneInput(const uint8 *data, size_t size)
{
	Input		input = {data, size};

	(void) fuzz_run(run, &input);
	return 0;
}

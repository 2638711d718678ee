/*-------------------------------------------------------------------------
 *
 * returned.c
 *	  A message that the broker could not route and sends back.
 *
 * It comes as basic.return, a content header and, unless it is empty, body
 * frames; frames of channel 0 may come between them, and no others.  Which
 * message it is only its message-id tells, there is no delivery tag.  So that
 * is looked for in the content header, by a parser that trusts nothing, and
 * the rest is stepped over: we have the message ourselves.
 *
 *-------------------------------------------------------------------------
 */
#define OUTBOX_WITH_LIBRABBITMQ

#include "postgres.h"

#include "compat.h"
#include "returned.h"

int
outbox_returned_sqlerrcode(int reply_code)
{
	switch (reply_code)
	{
		case AMQP_CONTENT_TOO_LARGE:
			return ERRCODE_PROGRAM_LIMIT_EXCEEDED;
		case AMQP_NO_ROUTE:
		case AMQP_NOT_FOUND:
			return ERRCODE_UNDEFINED_OBJECT;
		case AMQP_ACCESS_REFUSED:
			return ERRCODE_INSUFFICIENT_PRIVILEGE;
		case AMQP_RESOURCE_LOCKED:
			return ERRCODE_OBJECT_IN_USE;
		case AMQP_PRECONDITION_FAILED:
			return ERRCODE_INVALID_PARAMETER_VALUE;
		case AMQP_RESOURCE_ERROR:
			return ERRCODE_INSUFFICIENT_RESOURCES;
		default:
			return ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
	}
}

void
outbox_returned_begin(OutboxReturned *returned, const amqp_basic_return_t *ret)
{
	char		text[OUTBOX_SHORTSTR_MAX + 1];

	Assert(returned->state == OUTBOX_RETURNED_NONE);
	returned->state = OUTBOX_RETURNED_AWAIT_HEADER;
	returned->reply_code = ret->reply_code;
	outbox_utf8_copy(text, sizeof(text), ret->reply_text.bytes,
					 ret->reply_text.len, true);
	outbox_failure_set(&returned->failure,
					   outbox_returned_sqlerrcode(ret->reply_code), text,
					   "message returned by the broker (code %d)",
					   ret->reply_code);
	outbox_utf8_copy(returned->exchange, sizeof(returned->exchange),
					 ret->exchange.bytes, ret->exchange.len, false);
	outbox_utf8_copy(returned->routing_key, sizeof(returned->routing_key),
					 ret->routing_key.bytes, ret->routing_key.len, false);
}

/* Step over one property; false if it does not end before end. */
static bool
skip_property(const char **p, const char *end, char kind)
{
	Size		left = end - *p;
	Size		len;

	switch (kind)
	{
		case 'o':				/* octet */
			len = 1;
			break;
		case 's':				/* short string */
			if (left < 1)
				return false;
			len = 1 + (Size) (uint8) **p;
			break;
		default:				/* table */
			if (left < 4)
				return false;
			len = 4 + (Size) outbox_wire_get_uint32(*p);
			break;
	}
	if (left < len)
		return false;
	*p += len;
	return true;
}

/*
 * Find the message-id among the properties (AMQP 0-9-1, section 4.2.6.1): flag
 * words, then the values of the properties whose flag is set, in this order.
 * Returns false if they are malformed.
 */
static bool
find_message_id(OutboxReturned *returned, const char *p, const char *end)
{
	static const struct
	{
		uint16		flag;
		char		kind;
	}			before[] = {
		{AMQP_BASIC_CONTENT_TYPE_FLAG, 's'},
		{AMQP_BASIC_CONTENT_ENCODING_FLAG, 's'},
		{AMQP_BASIC_HEADERS_FLAG, 't'},
		{AMQP_BASIC_DELIVERY_MODE_FLAG, 'o'},
		{AMQP_BASIC_PRIORITY_FLAG, 'o'},
		{AMQP_BASIC_CORRELATION_ID_FLAG, 's'},
		{AMQP_BASIC_REPLY_TO_FLAG, 's'},
		{AMQP_BASIC_EXPIRATION_FLAG, 's'},
	};
	uint16		flags;
	uint16		word;

	if (end - p < 2)
		return false;
	flags = word = outbox_wire_get_uint16(p);
	p += 2;
	while (word & 1)			/* another word of flags follows */
	{
		if (end - p < 2)
			return false;
		word = outbox_wire_get_uint16(p);
		p += 2;
	}

	for (int i = 0; i < (int) lengthof(before); i++)
	{
		if ((flags & before[i].flag) &&
			!skip_property(&p, end, before[i].kind))
			return false;
	}
	returned->has_message_id = (flags & AMQP_BASIC_MESSAGE_ID_FLAG) != 0;
	if (returned->has_message_id)
	{
		const char *value = p + 1;

		if (!skip_property(&p, end, 's'))
			return false;
		outbox_utf8_copy(returned->message_id, sizeof(returned->message_id),
						 value, p - value, false);
	}
	return true;
}

static bool
take_header(OutboxReturned *returned, const OutboxFrame *frame,
			OutboxFailure *failure)
{
	const char *p = frame->payload;

	if (returned->state != OUTBOX_RETURNED_AWAIT_HEADER)
	{
		outbox_wire_violation(failure,
							  "content header without a returned message");
		return false;
	}
	if (outbox_wire_get_uint16(p) != AMQP_BASIC_CLASS ||
		!find_message_id(returned, p + OUTBOX_CONTENT_HEADER_SIZE,
						 p + frame->len))
	{
		outbox_wire_violation(failure,
							  "malformed properties of a returned message");
		return false;
	}
	returned->body_left = outbox_wire_get_uint64(p + 4);
	returned->state = returned->body_left > 0 ?
		OUTBOX_RETURNED_AWAIT_BODY : OUTBOX_RETURNED_NONE;
	return true;
}

static bool
take_body(OutboxReturned *returned, const OutboxFrame *frame,
		  OutboxFailure *failure)
{
	if (returned->state != OUTBOX_RETURNED_AWAIT_BODY ||
		frame->len > returned->body_left)
	{
		outbox_wire_violation(failure,
							  "body frame that belongs to no message");
		return false;
	}
	returned->body_left -= frame->len;
	if (returned->body_left == 0)
		returned->state = OUTBOX_RETURNED_NONE;
	return true;
}

bool
outbox_returned_content(OutboxReturned *returned, const OutboxFrame *frame,
						OutboxFailure *failure)
{
	return frame->type == AMQP_FRAME_HEADER ?
		take_header(returned, frame, failure) :
		take_body(returned, frame, failure);
}

void
outbox_returned_abandon(OutboxReturned *returned)
{
	returned->state = OUTBOX_RETURNED_NONE;
}

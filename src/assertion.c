/*-------------------------------------------------------------------------
 *
 * assertion.c
 *	  Telling the broker what it shall have, on a channel of its own.
 *
 * The broker answers what it does not like by closing the channel, and forgets
 * the confirms of whatever was published there; so this is not the channel that
 * messages travel on.  Its states:
 *
 *	CLOSED --begin: channel.open, the item's method--> AWAIT_CHANNEL
 *	--channel.open-ok--> AWAIT_ANSWER --the method's ok--> OPEN
 *	--begin: the item's method--> AWAIT_ANSWER ...
 *
 * and from any but CLOSED back there by channel.close, which is an answer too.
 * The channel stays open as long as the connection.
 *
 * Some of what it does not like makes RabbitMQ close the connection: an unknown
 * type of exchange (503), what is not implemented (540), and a channel more
 * than it allows (530).
 *
 *-------------------------------------------------------------------------
 */
#define OUTBOX_WITH_LIBRABBITMQ

#include "postgres.h"

#include "assertion.h"
#include "compat.h"

bool
outbox_assertion_asks(const OutboxAssertion *assertion)
{
	return assertion->state == OUTBOX_ASSERTION_AWAIT_CHANNEL ||
		assertion->state == OUTBOX_ASSERTION_AWAIT_ANSWER;
}

/*
 * Items as methods
 */

typedef union ItemMethod
{
	amqp_exchange_declare_t exchange_declare;
	amqp_exchange_delete_t exchange_delete;
	amqp_exchange_bind_t exchange_bind;
	amqp_exchange_unbind_t exchange_unbind;
	amqp_queue_declare_t queue_declare;
	amqp_queue_delete_t queue_delete;
	amqp_queue_bind_t queue_bind;
	amqp_queue_unbind_t queue_unbind;
} ItemMethod;

static uint32
exchange_method(const OutboxItem *item, ItemMethod *method)
{
	if (!item->wanted)
	{
		method->exchange_delete.exchange = amqp_cstring_bytes(item->name);
		method->exchange_delete.if_unused = item->if_unused;
		return AMQP_EXCHANGE_DELETE_METHOD;
	}
	method->exchange_declare.exchange = amqp_cstring_bytes(item->name);
	method->exchange_declare.passive = item->passive;
	if (item->passive)
		return AMQP_EXCHANGE_DECLARE_METHOD;
	method->exchange_declare.type = amqp_cstring_bytes(item->type);
	method->exchange_declare.durable = item->durable;
	method->exchange_declare.auto_delete = item->auto_delete;
	method->exchange_declare.internal = item->internal;
	method->exchange_declare.arguments = *item->table;
	return AMQP_EXCHANGE_DECLARE_METHOD;
}

/*
 * The type of a queue is one of its arguments, see
 * https://www.rabbitmq.com/docs/queues#optional-arguments.  entries has room
 * for one more than the item has.
 */
static uint32
queue_method(const OutboxItem *item, ItemMethod *method,
			 amqp_table_entry_t *entries)
{
	amqp_table_t *arguments = &method->queue_declare.arguments;

	if (!item->wanted)
	{
		method->queue_delete.queue = amqp_cstring_bytes(item->name);
		method->queue_delete.if_unused = item->if_unused;
		method->queue_delete.if_empty = item->if_empty;
		return AMQP_QUEUE_DELETE_METHOD;
	}
	method->queue_declare.queue = amqp_cstring_bytes(item->name);
	method->queue_declare.passive = item->passive;
	if (item->passive)
		return AMQP_QUEUE_DECLARE_METHOD;
	method->queue_declare.durable = item->durable;
	method->queue_declare.auto_delete = item->auto_delete;
	arguments->entries = entries;
	arguments->num_entries = item->table->num_entries;
	memcpy(entries, item->table->entries,
		   item->table->num_entries * sizeof(amqp_table_entry_t));
	if (item->type)
	{
		amqp_table_entry_t *entry = &entries[arguments->num_entries++];

		entry->key = amqp_cstring_bytes("x-queue-type");
		entry->value.kind = AMQP_FIELD_KIND_UTF8;
		entry->value.value.bytes = amqp_cstring_bytes(item->type);
	}
	return AMQP_QUEUE_DECLARE_METHOD;
}

/* bind and unbind have the same fields, and so one for both would do */
static uint32
exchange_binding_method(const OutboxItem *item, ItemMethod *method)
{
	if (!item->wanted)
	{
		method->exchange_unbind.destination = amqp_cstring_bytes(item->name);
		method->exchange_unbind.source = amqp_cstring_bytes(item->source);
		method->exchange_unbind.routing_key =
			amqp_cstring_bytes(item->routing_key);
		method->exchange_unbind.arguments = *item->table;
		return AMQP_EXCHANGE_UNBIND_METHOD;
	}
	method->exchange_bind.destination = amqp_cstring_bytes(item->name);
	method->exchange_bind.source = amqp_cstring_bytes(item->source);
	method->exchange_bind.routing_key = amqp_cstring_bytes(item->routing_key);
	method->exchange_bind.arguments = *item->table;
	return AMQP_EXCHANGE_BIND_METHOD;
}

static uint32
queue_binding_method(const OutboxItem *item, ItemMethod *method)
{
	if (!item->wanted)
	{
		method->queue_unbind.queue = amqp_cstring_bytes(item->name);
		method->queue_unbind.exchange = amqp_cstring_bytes(item->source);
		method->queue_unbind.routing_key =
			amqp_cstring_bytes(item->routing_key);
		method->queue_unbind.arguments = *item->table;
		return AMQP_QUEUE_UNBIND_METHOD;
	}
	method->queue_bind.queue = amqp_cstring_bytes(item->name);
	method->queue_bind.exchange = amqp_cstring_bytes(item->source);
	method->queue_bind.routing_key = amqp_cstring_bytes(item->routing_key);
	method->queue_bind.arguments = *item->table;
	return AMQP_QUEUE_BIND_METHOD;
}

static uint32
item_method(const OutboxItem *item, ItemMethod *method,
			amqp_table_entry_t *entries)
{
	memset(method, 0, sizeof(*method));
	switch (item->kind)
	{
		case OUTBOX_ITEM_EXCHANGE:
			return exchange_method(item, method);
		case OUTBOX_ITEM_QUEUE:
			return queue_method(item, method, entries);
		case OUTBOX_ITEM_EXCHANGE_BINDING:
			return exchange_binding_method(item, method);
		case OUTBOX_ITEM_QUEUE_BINDING:
			return queue_binding_method(item, method);
	}
	Assert(false);
	return 0;
}

bool
outbox_assertion_begin(OutboxAssertion *assertion, OutboxWire *wire,
					   const OutboxItem *item, OutboxFailure *failure)
{
	amqp_channel_open_t open = {0};
	int			num_entries = item->table ? item->table->num_entries : 0;
	amqp_table_entry_t *entries =
		palloc((num_entries + 1) * sizeof(amqp_table_entry_t));
	ItemMethod	method;
	bool		queued = true;

	Assert(!outbox_assertion_asks(assertion));
	assertion->method = item_method(item, &method, entries);
	assertion->deletes = !item->wanted;
	if (assertion->state == OUTBOX_ASSERTION_CLOSED)
	{
		assertion->state = OUTBOX_ASSERTION_AWAIT_CHANNEL;
		queued = outbox_wire_queue_method(wire, OUTBOX_ASSERTION_CHANNEL,
										  AMQP_CHANNEL_OPEN_METHOD, &open, 0,
										  failure);
	}
	else
		assertion->state = OUTBOX_ASSERTION_AWAIT_ANSWER;
	queued = queued &&
		outbox_wire_queue_method(wire, OUTBOX_ASSERTION_CHANNEL,
								 assertion->method, &method,
								 OUTBOX_ARGUMENTS_MAX, failure);
	pfree(entries);
	return queued;
}

/*
 * Answers
 */

/* The methods' numbers are no rule: that of exchange.unbind-ok is its own. */
static uint32
answer_of(uint32 method)
{
	switch (method)
	{
		case AMQP_EXCHANGE_DECLARE_METHOD:
			return AMQP_EXCHANGE_DECLARE_OK_METHOD;
		case AMQP_EXCHANGE_DELETE_METHOD:
			return AMQP_EXCHANGE_DELETE_OK_METHOD;
		case AMQP_EXCHANGE_BIND_METHOD:
			return AMQP_EXCHANGE_BIND_OK_METHOD;
		case AMQP_EXCHANGE_UNBIND_METHOD:
			return AMQP_EXCHANGE_UNBIND_OK_METHOD;
		case AMQP_QUEUE_DECLARE_METHOD:
			return AMQP_QUEUE_DECLARE_OK_METHOD;
		case AMQP_QUEUE_DELETE_METHOD:
			return AMQP_QUEUE_DELETE_OK_METHOD;
		case AMQP_QUEUE_BIND_METHOD:
			return AMQP_QUEUE_BIND_OK_METHOD;
		default:
			Assert(method == AMQP_QUEUE_UNBIND_METHOD);
			return AMQP_QUEUE_UNBIND_OK_METHOD;
	}
}

bool
outbox_assertion_expects(const OutboxAssertion *assertion, uint32 id)
{
	switch (id)
	{
		case AMQP_CHANNEL_CLOSE_METHOD:
			return assertion->state != OUTBOX_ASSERTION_CLOSED;
		case AMQP_CHANNEL_OPEN_OK_METHOD:
			return assertion->state == OUTBOX_ASSERTION_AWAIT_CHANNEL;
		default:
			return assertion->state == OUTBOX_ASSERTION_AWAIT_ANSWER &&
				id == answer_of(assertion->method);
	}
}

static void
refuse(OutboxAnswer *answer, int reply_code, const amqp_bytes_t *words)
{
	answer->done = false;
	answer->reply_code = reply_code;
	outbox_utf8_copy(answer->words, sizeof(answer->words), words->bytes,
					 words->len, true);
}

/*
 * What was asked for is not to be had.  To delete what is not there is no
 * failure: RabbitMQ says so itself, but AMQP 0-9-1 has other brokers refuse
 * (queue.delete, rule "not-found").
 */
static bool
answer_close(OutboxAssertion *assertion, const amqp_channel_close_t *close,
			 OutboxAnswer *answer)
{
	bool		asked = outbox_assertion_asks(assertion);

	assertion->state = OUTBOX_ASSERTION_CLOSED;
	refuse(answer, close->reply_code, &close->reply_text);
	if (assertion->deletes && close->reply_code == AMQP_NOT_FOUND)
		answer->done = true;
	return asked;
}

bool
outbox_assertion_answer(OutboxAssertion *assertion, uint32 id, void *method,
						OutboxAnswer *answer)
{
	Assert(outbox_assertion_expects(assertion, id));

	memset(answer, 0, sizeof(*answer));
	switch (id)
	{
		case AMQP_CHANNEL_CLOSE_METHOD:
			return answer_close(assertion, method, answer);
		case AMQP_CHANNEL_OPEN_OK_METHOD:
			assertion->state = OUTBOX_ASSERTION_AWAIT_ANSWER;
			return false;
		default:
			assertion->state = OUTBOX_ASSERTION_OPEN;
			answer->done = true;
			return true;
	}
}

/*
 * RabbitMQ names the method that it objects to; but it names none when it
 * objects to another channel (530), or fails itself (541).  Codes below 500
 * are not about what we said.
 */
bool
outbox_assertion_blamed(OutboxAssertion *assertion,
						const amqp_connection_close_t *close,
						OutboxAnswer *answer)
{
	uint32		blamed = (uint32) close->class_id << 16 | close->method_id;

	if (!outbox_assertion_asks(assertion))
		return false;
	if (blamed != assertion->method &&
		blamed != AMQP_CHANNEL_OPEN_METHOD &&
		(blamed != 0 || close->reply_code < 500))
		return false;

	memset(answer, 0, sizeof(*answer));
	refuse(answer, close->reply_code, &close->reply_text);
	answer->closes_connection = true;
	answer->no_channel = blamed != assertion->method &&
		assertion->state == OUTBOX_ASSERTION_AWAIT_CHANNEL;
	return true;
}

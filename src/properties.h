/*-------------------------------------------------------------------------
 *
 * properties.h
 *	  From a message to AMQP properties and the header table.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_PROPERTIES_H
#define OUTBOX_PROPERTIES_H

#include "message.h"

struct amqp_table_t_;

/*
 * Bytes that a content header frame needs besides its properties: 7 of frame
 * header, 12 of class, weight and body size, 1 of frame end (AMQP 0-9-1,
 * sections 2.3.5 and 4.2.6.1).
 */
#define OUTBOX_HEADER_FRAME_OVERHEAD	20

/*
 * Check headers as the caller of amqp_publish() gave them; raises an error if
 * they cannot travel as an AMQP table.  Returns the encoded size of the table
 * in bytes, its length word included.  In a transaction.
 */
extern Size outbox_properties_check_headers(Jsonb *headers);

/*
 * The arguments of an exchange, a queue or a binding as an AMQP table, in
 * CurrentMemoryContext, with the same rules and errors.  Sets *size as above.
 * In a transaction.
 */
extern struct amqp_table_t_ *outbox_properties_build_arguments(Jsonb *arguments,
															   Size *size);

/*
 * Build msg->properties from the other fields, in CurrentMemoryContext; the
 * result points into the message's strings.  In a transaction (header strings
 * may need an encoding conversion).
 */
extern void outbox_properties_build(OutboxMessage *msg);

/*
 * The header of an attempt that follows one whose outcome is unknown, a
 * boolean; callers of amqp_publish() cannot set it.
 */
#define OUTBOX_DUPLICATE_HEADER		"x-possible-duplicate"

/* RabbitMQ takes an expiration of up to 2^32 - 1 ms. */
#define OUTBOX_EXPIRATION_MAX_MS	INT64CONST(4294967295)

/*
 * A message that was built before is about to be sent: if its time ends, what
 * remains of it is how long it may stay in a queue.
 */
extern void outbox_properties_set_expiration(OutboxMessage *msg,
											 TimestampTz now);

/* Mark a message that was built before as a possible duplicate. */
extern void outbox_properties_mark_duplicate(OutboxMessage *msg);

#endif							/* OUTBOX_PROPERTIES_H */

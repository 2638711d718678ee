/*-------------------------------------------------------------------------
 *
 * row_message.h
 *	  One change of a row as a message.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_ROW_MESSAGE_H
#define OUTBOX_ROW_MESSAGE_H

#include "postgres.h"

#include "row_text.h"

/*
 * Publish a change, unless the trigger's options say that it is not worth it.
 * Leaves garbage in the current memory context.  Errors: those of
 * outbox_enqueue(), and those of the functions that write values.
 */
extern void outbox_row_publish(OutboxRowChange *change);

#endif							/* OUTBOX_ROW_MESSAGE_H */

/*-------------------------------------------------------------------------
 *
 * row_event.h
 *	  A changed row as a CloudEvent.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_ROW_EVENT_H
#define OUTBOX_ROW_EVENT_H

#include "postgres.h"

#include "row_text.h"

/* Attributes, in the database's encoding; NULL: not set. */
typedef struct OutboxCloudEvent
{
	const char *id;
	const char *source;
	const char *type;
	const char *subject;
	const char *time;
} OutboxCloudEvent;

/* The attributes of a change; id is the message's, key may be NULL. */
extern void outbox_row_event(const OutboxRowChange *change, Datum id,
							 const char *key, OutboxCloudEvent *event);

/* Binary mode: a jsonb of the trigger's headers and the attributes. */
extern Datum outbox_row_event_headers(const OutboxRowChange *change,
									  const OutboxCloudEvent *event);

/* Structured mode: append the attributes and the data. */
extern void outbox_row_json_event(StringInfo out, const OutboxRowChange *change,
								  const OutboxCloudEvent *event);

#endif							/* OUTBOX_ROW_EVENT_H */

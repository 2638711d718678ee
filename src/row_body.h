/*-------------------------------------------------------------------------
 *
 * row_body.h
 *	  What is made of a changed row as JSON: bodies.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_ROW_BODY_H
#define OUTBOX_ROW_BODY_H

#include "postgres.h"

#include "row_text.h"

/* Append the row or the envelope, as the trigger's options say. */
extern void outbox_row_json_body(StringInfo out, const OutboxRowChange *change);

/* Whether an UPDATE changed anything that the message tells. */
extern bool outbox_row_changed(const OutboxRowChange *change);

/*
 * When the client's statement came, in UTC: it does not depend on when the
 * transaction commits.  RFC 3339.  Good until the next call.
 */
extern const char *outbox_row_time(void);

#endif							/* OUTBOX_ROW_BODY_H */

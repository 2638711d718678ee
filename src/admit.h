/*-------------------------------------------------------------------------
 *
 * admit.h
 *	  Whether a message may be published.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_ADMIT_H
#define OUTBOX_ADMIT_H

#include "postgres.h"

#include "utils/jsonb.h"

#include "option.h"

/*
 * What messages to a server are looked at for, NULL if for nothing.  Remembered
 * until servers change.  Needs a transaction; valid until the next call.
 */
extern const OutboxAdmission *outbox_admit_rules(Oid serverid);

/*
 * Error 42501 if the server has an allow list that does not let the role
 * publish this; headers may be NULL.
 */
extern void outbox_admit_check(Oid serverid, Oid roleid, const text *exchange,
							   const text *routing_key, Jsonb *headers);

/*
 * Reserve room for a message with so many bytes, until the transaction
 * ends.  Returns the name of the role if its row must tell it, else NULL.  Error
 * 53400 if a limit is exceeded, or the first time in a transaction a warning, as
 * the server's backlog_action says.
 */
extern const char *outbox_admit(Oid serverid, Oid roleid, int64 bytes);

#endif							/* OUTBOX_ADMIT_H */

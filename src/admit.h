/*-------------------------------------------------------------------------
 *
 * admit.h
 *	  Whether the backlog of a server has room for a message.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_ADMIT_H
#define OUTBOX_ADMIT_H

#include "postgres.h"

/*
 * Reserve room for a message with so many bytes of body, until the transaction
 * ends.  Returns the name of the role if its row must tell it, else NULL.  Error
 * 53400 if a limit is exceeded, or the first time in a transaction a warning, as
 * the server's backlog_action says.
 */
extern const char *outbox_admit(Oid serverid, Oid roleid, int64 bytes);

#endif							/* OUTBOX_ADMIT_H */

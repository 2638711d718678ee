/*-------------------------------------------------------------------------
 *
 * permission.h
 *	  What roles may publish to a server that has an allow list.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_PERMISSION_H
#define OUTBOX_PERMISSION_H

#include "postgres.h"

#include "utils/jsonb.h"

/*
 * A server has an allow list if its option allow_list says so.  Then a role may
 * publish what an entry allows that is its own, PUBLIC's, or of a role whose
 * rights it has; the server's owner and superusers may publish anything.  Error
 * 42501 for all else.
 *
 * RabbitMQ takes further routing keys from the headers CC and BCC, so these
 * must be allowed as well; headers may be NULL.  Needs a transaction.
 */
extern void outbox_permission_require(Oid serverid, Oid roleid,
									  const text *exchange,
									  const text *routing_key,
									  Jsonb *headers);

/* A server is dropped: its entries go. */
extern void outbox_permission_forget_server(const char *server_name);

/* The entries have changed; every session looks at them anew. */
extern void outbox_permission_note_change(void);

#endif							/* OUTBOX_PERMISSION_H */

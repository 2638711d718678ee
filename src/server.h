/*-------------------------------------------------------------------------
 *
 * server.h
 *	  To which server a message goes, and whether the caller may send there.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_SERVER_H
#define OUTBOX_SERVER_H

#include "postgres.h"

#include "nodes/pg_list.h"

/*
 * The server of that name, or the default one if name is NULL.  Errors: 42704
 * if there is none, 42P08 if there are several and none is the default, 42809
 * if it is a server of another wrapper, 42501 without USAGE.
 */
extern Oid	outbox_server_choose(const char *name);

/*
 * The server of that name, for its owner.  The same errors, but 42501 for
 * anybody else.
 */
extern Oid	outbox_server_of_owner(const char *name);

/* The name of a server; false if it does not exist any more. */
extern bool outbox_server_get_name(Oid serverid, NameData *name);

/*
 * Wait until a server has a stable key that everybody sees, made by its worker;
 * its name is in *name.  False if the server does not exist any more, or if no
 * worker was there in time to make the key.
 */
extern bool outbox_server_await_key(Oid serverid, NameData *name);

/*
 * The stable key of a server for its owner, made if it has none, and no DROP or
 * RENAME of the server until the transaction ends.  The same errors.
 */
extern int32 outbox_server_lock_key_of_owner(const char *name);

/* Whether a server of that name exists and is ours. */
extern bool outbox_server_is_ours(const char *name);

/* OIDs of all our servers in this database, by name; NIL without any. */
extern List *outbox_server_list(void);

#endif							/* OUTBOX_SERVER_H */

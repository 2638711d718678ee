/*-------------------------------------------------------------------------
 *
 * catalog.h
 *	  The extension's own tables, as sessions that publish see them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_CATALOG_H
#define OUTBOX_CATALOG_H

#include "postgres.h"

#include "utils/rel.h"

#define OUTBOX_EXTENSION	"amqp_outbox"
#define OUTBOX_SCHEMA		"amqp_outbox"

/* Leaves of each of the tables outbox, receipt and late: outbox_0 ... */
#define OUTBOX_NLEAVES		4

/* Columns of amqp_outbox.outbox, in the order of the install script. */
enum OutboxColumn
{
	OUTBOX_COL_SERVER_KEY,
	OUTBOX_COL_ID,
	OUTBOX_COL_MESSAGE_ID,
	OUTBOX_COL_ENQUEUED_AT,
	OUTBOX_COL_EXCHANGE,
	OUTBOX_COL_ROUTING_KEY,
	OUTBOX_COL_BODY,
	OUTBOX_COL_CONTENT_TYPE,
	OUTBOX_COL_HEADERS,
	OUTBOX_COL_CONTENT_ENCODING,
	OUTBOX_COL_PERSISTENT,
	OUTBOX_COL_PRIORITY,
	OUTBOX_COL_CORRELATION_ID,
	OUTBOX_COL_REPLY_TO,
	OUTBOX_COL_EXPIRATION_MS,
	OUTBOX_COL_MESSAGE_TIMESTAMP,
	OUTBOX_COL_TYPE,
	OUTBOX_COL_USER_ID,
	OUTBOX_COL_APP_ID,
	OUTBOX_COL_MANDATORY,
	OUTBOX_COL_ORDERING_KEY,
	OUTBOX_COL_EXPIRES_AT,
	OUTBOX_COL_PUBLISHED_BY,
	OUTBOX_NCOLUMNS
};

/* A buffered message has one more: null, or not to be sent before that time. */
enum OutboxBufferedColumn
{
	OUTBOX_BUFFERED_COL_DUE_AT = OUTBOX_NCOLUMNS,
	OUTBOX_NBUFFERED_COLUMNS
};

/* Columns of amqp_outbox.deferred behind those of the outbox. */
enum OutboxAttemptColumn
{
	OUTBOX_ATTEMPT_COL_DUE_AT,
	OUTBOX_ATTEMPT_COL_ATTEMPTS,
	OUTBOX_ATTEMPT_COL_FIRST_ATTEMPT_AT,
	OUTBOX_ATTEMPT_COL_LAST_ATTEMPT_AT,
	OUTBOX_ATTEMPT_COL_POSSIBLE_DUPLICATE,
	OUTBOX_ATTEMPT_COL_REPLY_CODE,
	OUTBOX_ATTEMPT_COL_LAST_ERROR,
	OUTBOX_NATTEMPT_COLUMNS
};

/*
 * OID of a table of ours; an error that says what is missing if the extension
 * is not (or no longer) in this database.
 */
extern Oid	outbox_catalog_relid(const char *relname);

/* The same, but InvalidOid instead of an error. */
extern Oid	outbox_catalog_relid_if_exists(const char *relname);

/*
 * The role that statements on our tables run as: their owner.  Error 42501
 * unless all of them, and our views, have the same one: who owns a table or a
 * view can have it run code of his in whatever uses it.
 */
extern Oid	outbox_catalog_owner(void);

/* OID of one leaf of outbox, receipt or late. */
extern Oid	outbox_catalog_leaf_relid(const char *relname, int leaf);

/*
 * The stable key of a server, made if it has none; making one waits for other
 * transactions that make one.  Committed keys are remembered.
 */
extern int32 outbox_catalog_server_key(const NameData *server);

/* Whether a server has a key that everybody sees. */
extern bool outbox_catalog_has_server_key(const NameData *server);

/*
 * A server was renamed: its key, and so its messages, go with the name.  Error
 * 42710 if messages of a former server of the new name are still stored.
 */
extern void outbox_catalog_rename_server(const char *old_name,
										 const char *new_name);

/* Whether messages to a server are neither delivered nor dead letters. */
extern bool outbox_catalog_has_undelivered(const char *server_name);

/* Whether messages of a server of that name are stored, in whatever state. */
extern bool outbox_catalog_has_stored(const char *server_name);

/* Write this database's identity unless the table holds one. */
extern void outbox_catalog_claim_identity(void);

/* Make this database's identity the only one in the table. */
extern void outbox_catalog_adopt(void);

/*
 * One past the largest id in all tables, and the leaf that was written last as
 * far as can be told from the rows.
 */
extern int64 outbox_catalog_next_id(int *leaf);

/* How many servers have a stable key. */
extern int	outbox_catalog_server_count(void);

/* The system identifier as the tables hold it. */
extern int64 outbox_catalog_system_identifier(void);

#endif							/* OUTBOX_CATALOG_H */

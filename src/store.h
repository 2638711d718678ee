/*-------------------------------------------------------------------------
 *
 * store.h
 *	  The transactions of the worker, and how it runs SQL.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_STORE_H
#define OUTBOX_STORE_H

#include "postgres.h"

#include "executor/spi.h"

#include "catalog.h"

#define OUTBOX_MAX_PARAMS	10

/*
 * A statement with typed parameters, static; its plans are kept for the life of
 * the process.  Where it says "%d", the number of a leaf stands.
 */
typedef struct OutboxStatement
{
	const char *sql;
	int			nparams;
	Oid			types[OUTBOX_MAX_PARAMS];
	SPIPlanPtr	plans[OUTBOX_NLEAVES];	/* of one that names no leaf, the first */
} OutboxStatement;

/* The columns of enum OutboxColumn. */
#define OUTBOX_COLUMNS \
	"server_key, id, message_id, enqueued_at, exchange, routing_key, body," \
	" content_type, headers, content_encoding, persistent, priority," \
	" correlation_id, reply_to, expiration_ms, message_timestamp, type," \
	" user_id, app_id, mandatory, ordering_key, expires_at, published_by"

/*
 * Whether an earlier message of the key of row "m" is not done: it waits in
 * amqp_outbox.deferred (under a further condition), or is a dead letter that
 * holds its key.
 */
#define OUTBOX_HAS_EARLIER(condition) \
	"(m.ordering_key IS NOT NULL AND (" \
	"EXISTS (SELECT FROM amqp_outbox.deferred e" \
	" WHERE e.server_key = m.server_key AND e.ordering_key = m.ordering_key" \
	" AND e.id < m.id" condition ") OR " \
	"EXISTS (SELECT FROM amqp_outbox.dead_letter_item h" \
	" WHERE h.server_key = m.server_key AND h.ordering_key = m.ordering_key" \
	" AND h.holds_key AND h.id < m.id)))"

typedef enum OutboxIdentity
{
	OUTBOX_IDENTITY_OWN,
	OUTBOX_IDENTITY_ADOPTED,	/* own, but once another's */
	OUTBOX_IDENTITY_NONE,		/* nothing was ever published here */
	OUTBOX_IDENTITY_COPY		/* the tables belong to another database */
} OutboxIdentity;

/*
 * Pin whatever settings could change what the statements mean or do: the owner
 * of the database, who need not be a superuser, may have set them for all
 * sessions in it (ALTER DATABASE ... SET), and so for ours.
 */
extern void outbox_store_pin_settings(void);

/*
 * Begin a transaction with a snapshot of its own, as the owner of the tables;
 * false, without a transaction, if the extension is not in this database, or
 * is another one than at the first call.
 * All other functions need it.  Errors fly; AbortCurrentTransaction() ends it.
 */
extern bool outbox_store_begin(void);
extern void outbox_store_commit(void);

/*
 * Run a SELECT in the snapshot of the transaction; returns how many rows there
 * are, max_rows (at least 1) at the most.  They are the last result, until the
 * next statement.
 */
extern uint64 outbox_store_select(OutboxStatement *statement, Datum *values,
								  long max_rows);

/*
 * The same in a new snapshot, which sees what this transaction has written; of
 * a statement that names a leaf, for that leaf, else 0.
 */
extern uint64 outbox_store_select_now(OutboxStatement *statement, int leaf,
									  Datum *values, long max_rows);

/*
 * Run any other statement; expected is one of the codes SPI_OK_....  nulls: a
 * character for each parameter, 'n' if it is null; NULL: none is.  Returns how
 * many rows it changed.
 */
extern uint64 outbox_store_change(OutboxStatement *statement, Datum *values,
								  const char *nulls, int expected);

/* An INSERT into the leaf that is written. */
extern uint64 outbox_store_append(OutboxStatement *statement, Datum *values);

/* A column, from 1 on, of a row of the last result that cannot be null. */
extern Datum outbox_store_column(int row, int column);

/* The same as text, NULL if it is null. */
extern char *outbox_store_string(int row, int column);

/* All columns of a row of the last result. */
extern void outbox_store_row(int row, Datum *values, bool *isnull);

/* Free the memory of the last result, before the transaction does. */
extern void outbox_store_free(void);

/* An array of n datums of a type. */
extern Datum outbox_store_array(Datum *datums, int n, Oid type);

/* Text of ours (UTF-8) as the database holds it, of SQL type text. */
extern Datum outbox_store_text(const char *utf8);

/* Text from outside (UTF-8) as the database can hold it, of SQL type text. */
extern Datum outbox_store_foreign_text(const char *utf8);

/* Whether this cluster was once a standby, or was recovered to a point. */
extern bool outbox_store_was_promoted(void);

/* The outbox of this database. */
extern Oid	outbox_store_outbox(void);

extern OutboxIdentity outbox_store_identity(void);

/* The stable key of a server; 0 if nothing was ever published to it. */
extern int32 outbox_store_server_key(const char *server_name);

#endif							/* OUTBOX_STORE_H */

/*-------------------------------------------------------------------------
 *
 * reader.h
 *	  What is read from the tables: new messages, those that are due, bodies.
 *
 * Messages are read in id order below the horizon, in short transactions, and put
 * into the ledger.  Those that are due in amqp_outbox.deferred travel through the
 * same ledger, a batch at a time; they have their own rows and no part in the
 * receipts' through id.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_READER_H
#define OUTBOX_READER_H

#include "postgres.h"

#include "damage.h"
#include "due.h"
#include "durable.h"
#include "fetch.h"
#include "ledger.h"
#include "option.h"

typedef enum OutboxReadResult
{
	OUTBOX_READ_NOTHING,		/* wait for the latch */
	OUTBOX_READ_SOME,			/* perhaps there is more */
	OUTBOX_READ_FULL,			/* there is no room to read into */
	OUTBOX_READ_COPY,			/* the tables belong to another database */
	OUTBOX_READ_GONE			/* the extension is not here any more */
} OutboxReadResult;

typedef enum OutboxReading
{
	OUTBOX_READING_NOTHING,
	OUTBOX_READING_OUTBOX,
	OUTBOX_READING_DEFERRED,
	OUTBOX_READING_BODY,		/* once more */
	OUTBOX_READING_AROUND		/* the transaction of that begins or ends */
} OutboxReading;

/*
 * When many messages come, commits do not wake us for a while; what came
 * meanwhile is read together.
 */
typedef struct OutboxRush
{
	TimestampTz began;			/* of the present count */
	int			count;			/* messages read since */
	bool		many;			/* there were many in the count before */
	TimestampTz rest_until;		/* nothing is read before; 0: no rest */
} OutboxRush;

/*
 * The first part is for the pipeline, too, which sets the relation and says when
 * orphans are to be looked for.
 */
typedef struct OutboxReader
{
	Oid			outbox;			/* relation, InvalidOid before it is known */
	int32		server_key;		/* 0: nothing was ever published */
	int64		read_through;	/* everything through this id was read */
	OutboxDoubt doubt;			/* what a former worker may have sent */
	OutboxDue	due;
	OutboxDurable durable;
	bool		orphans;		/* some may wait behind a message that is gone */

	MemoryContext context;
	OutboxLedger *ledger;
	OutboxMessage **batch;		/* of the reading transaction */
	int64		horizon;		/* to read before */
	int			new_messages;	/* of the outbox, read in this transaction */
	bool		full;			/* commits do not wake us */
	OutboxRush	rush;
	OutboxReading reading;		/* what a transaction is reading right now */
	int64		read_end;		/* and up to which id, exclusive */
	OutboxDamage damage;
} OutboxReader;

/* A reader into that ledger, which keeps what it needs in the context. */
extern OutboxReader *outbox_reader_create(MemoryContext context,
										  OutboxLedger *ledger);

/*
 * In a transaction: the server has a key, and what is settled is known.  in_doubt
 * says whether a former worker may have sent more than that.
 */
extern void outbox_reader_open(OutboxReader *reader, int32 server_key,
							   int64 settled_through, bool in_doubt);

/* Whether there is room for more. */
extern bool outbox_reader_has_room(const OutboxReader *reader);

/*
 * Whether to read now (SOME).  Then in a transaction read(), if the server has a
 * key; and after that has committed, committed().
 */
extern OutboxReadResult outbox_reader_look(OutboxReader *reader,
										   TimestampTz now);
extern void outbox_reader_read(OutboxReader *reader,
							   const OutboxServer *server, TimestampTz now);
extern void outbox_reader_committed(OutboxReader *reader, TimestampTz now);

/*
 * The ledger's next message is to be sent again, and has let its body go: it has
 * it again, or its row cannot be read.  Runs a transaction.  False: nothing can
 * be read any more.
 */
extern bool outbox_reader_read_body(OutboxReader *reader, OutboxEntry *entry);

/*
 * After an error that ended a transaction: if it was reading that failed, and
 * for a row that is damaged, go nearer to that row, and in the end past it; it
 * becomes a dead letter.  True if that is to go on at once.
 */
extern bool outbox_reader_recover(OutboxReader *reader, int sqlerrcode,
								  const char *message);

/* See outbox_due_look(). */
extern void outbox_reader_look_for_due(OutboxReader *reader, TimestampTz from);

/* When something is read again, where commits do not wake us; 0: they do. */
extern TimestampTz outbox_reader_next_read(const OutboxReader *reader);

/*
 * When deferred messages are to be read; 0: there are none, or no room for them,
 * or those before them are not settled.
 */
extern TimestampTz outbox_reader_next_due(const OutboxReader *reader);

#endif							/* OUTBOX_READER_H */

/*-------------------------------------------------------------------------
 *
 * topology.h
 *	  What the broker shall have, as the tables have it.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_TOPOLOGY_H
#define OUTBOX_TOPOLOGY_H

#include "message.h"
#include "utils/uuid.h"

struct amqp_table_t_;

/* Bytes of an item's arguments, as AMQP encodes them, at the most. */
#define OUTBOX_ARGUMENTS_MAX	4096

/* The names are those of amqp_outbox.topology_kind, in topology.c. */
typedef enum OutboxItemKind
{
	OUTBOX_ITEM_EXCHANGE,
	OUTBOX_ITEM_QUEUE,
	OUTBOX_ITEM_EXCHANGE_BINDING,
	OUTBOX_ITEM_QUEUE_BINDING
} OutboxItemKind;

/*
 * A row of amqp_outbox.topology_item.  Text is in the database's encoding where
 * a session declares it, and UTF-8 where the worker has read it.
 */
typedef struct OutboxItem
{
	pg_uuid_t	id;				/* of this definition */
	OutboxItemKind kind;
	const char *name;			/* of a binding: where messages go to */
	const char *source;			/* of a binding; else empty */
	const char *routing_key;	/* the same */
	const char *type;			/* NULL: the broker's default, or a binding */
	bool		durable;
	bool		auto_delete;
	bool		internal;
	bool		wanted;			/* false: to be deleted at the broker */
	bool		if_unused;		/* but only then */
	bool		if_empty;
	Jsonb	   *arguments;		/* NULL: none; not set by the worker */

	/* set by the worker: */
	bool		passive;		/* only ask whether the broker has it, by name */
	struct amqp_table_t_ *table;	/* the arguments, as they travel; NULL if
									 * passive */
	bool		has_state;		/* the broker said something to it before */
	bool		was_asserted;	/* and that was yes */
} OutboxItem;

/* What the broker says to an item. */
typedef struct OutboxAnswer
{
	bool		done;			/* it has it so, or has deleted it */
	bool		closes_connection;	/* it closed not only the channel */
	bool		no_channel;		/* and so it will for any other item */
	int			reply_code;		/* if not done; 0: none */
	char		words[OUTBOX_FAILURE_DETAIL_LEN];
} OutboxAnswer;

typedef enum OutboxItemChoice
{
	OUTBOX_ITEMS_NEW,			/* to which the broker has said nothing */
	OUTBOX_ITEMS_HARMLESS,		/* all but those that close the connection */
	OUTBOX_ITEMS_ALL
} OutboxItemChoice;

/* "queue \"q\"" and the like, for messages; palloc'd. */
extern char *outbox_topology_describe(const OutboxItem *item);

/*
 * Sessions.  Every statement runs as the owner of the tables; the caller has
 * pinned search_path and checked everything.
 *
 * Declare: what is equal stays, but is tried again if it is a conflict.
 * Undeclare and delete return whether the item was there; delete leaves it to
 * the worker.  Find: whether it is there, and its type (palloc'd, or NULL).
 */
extern void outbox_topology_declare(int32 server_key, const OutboxItem *item);
extern bool outbox_topology_undeclare(int32 server_key,
									  const OutboxItem *item);
extern bool outbox_topology_delete(int32 server_key, const OutboxItem *item);
extern bool outbox_topology_find(int32 server_key, const OutboxItem *item,
								 char **type);

/*
 * A binding of this exchange or queue that is declared, for messages
 * (palloc'd); NULL if there is none.
 */
extern char *outbox_topology_binding_of(int32 server_key,
										const OutboxItem *item);

/* A server is being dropped: so is its topology. */
extern void outbox_topology_forget_server(const char *server_name);

/*
 * The worker, between outbox_store_begin() and outbox_store_commit().
 *
 * Read the items of a server in the order in which they are to be asserted,
 * into the context.  None if the tables are not known to be this database's.
 */
extern int	outbox_topology_read(MemoryContext context,
								 const char *server_name,
								 OutboxItemChoice choice, OutboxItem **items);

/*
 * Write down an answer, if it is another one than before.  Where a session has
 * the row locked, it is about to change the item, and nothing is written.
 */
extern void outbox_topology_write(const OutboxItem *item,
								  const OutboxAnswer *answer);

#endif							/* OUTBOX_TOPOLOGY_H */

/*-------------------------------------------------------------------------
 *
 * keeper.c
 *	  Keeps what the broker has in line with the topology that is declared.
 *
 * At every connection, and when something was declared, what is to be asserted
 * is read in one short transaction, told to the broker item by item, and what
 * the broker said written down in another: no transaction is open while the
 * broker is awaited.  An item that the broker refuses is written down with its
 * words and left alone until the next connection, or until somebody changes
 * something; the others go on.  One that makes it close the connection is not
 * even tried at the next connection, lest that goes on for ever.
 *
 * Messages wait until all of it is asserted, so that the first ones find their
 * queues.  But they do not wait for a broker that does not answer: after
 * connect_timeout without an answer they go, and the answer may come later.
 *
 * Runs in the worker.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "utils/memutils.h"

#include "keeper.h"
#include "store.h"

/* After an error of our own SQL here. */
#define OUTBOX_KEEPER_ERROR_MS		60000

struct OutboxKeeper
{
	MemoryContext context;
	MemoryContext items_context;	/* holds what was read; NULL: nothing */
	OutboxItem *items;
	OutboxAnswer *answers;		/* of the first nanswers items */
	int			nitems;
	int			nanswers;
	int			nwritten;		/* answers that are written down */
	bool		asked;			/* the next item is told, its answer awaited */

	bool		connected;
	bool		due;			/* items are to be read */
	OutboxItemChoice choice;	/* which */
	TimestampTz hold_until;		/* messages wait for us; 0: they do not */
	TimestampTz read_at;		/* not before, because of an error; or 0 */
};

OutboxKeeper *
outbox_keeper_create(void)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "amqp_outbox keeper",
												  ALLOCSET_SMALL_SIZES);
	OutboxKeeper *keeper = MemoryContextAllocZero(context,
												  sizeof(OutboxKeeper));

	keeper->context = context;
	return keeper;
}

/*
 * What is to be done
 */

static void
outbox_keeper_hold(OutboxKeeper *keeper, const OutboxServer *server,
				   TimestampTz now)
{
	keeper->hold_until =
		TimestampTzPlusMilliseconds(now,
									server->connect_timeout * INT64CONST(1000));
}

static void
outbox_keeper_ask_for(OutboxKeeper *keeper, const OutboxServer *server,
					  OutboxItemChoice choice, TimestampTz now)
{
	keeper->choice = keeper->due ? Max(keeper->choice, choice) : choice;
	keeper->due = true;
	keeper->read_at = 0;
	outbox_keeper_hold(keeper, server, now);
}

void
outbox_keeper_connected(OutboxKeeper *keeper, const OutboxServer *server,
						TimestampTz now)
{
	keeper->connected = true;
	outbox_keeper_ask_for(keeper, server, OUTBOX_ITEMS_HARMLESS, now);
}

void
outbox_keeper_look(OutboxKeeper *keeper, const OutboxServer *server,
				   bool everything, TimestampTz now)
{
	outbox_keeper_ask_for(keeper, server, everything ? OUTBOX_ITEMS_ALL :
						  OUTBOX_ITEMS_NEW, now);
}

/* What has no answer yet is read again at the next connection. */
void
outbox_keeper_disconnected(OutboxKeeper *keeper)
{
	keeper->connected = false;
	keeper->nitems = keeper->nanswers;
	keeper->asked = false;
}

/* Nothing is left of what was read. */
static bool
outbox_keeper_is_idle(const OutboxKeeper *keeper)
{
	return keeper->nanswers == keeper->nitems &&
		keeper->nwritten == keeper->nanswers;
}

bool
outbox_keeper_holds(const OutboxKeeper *keeper, TimestampTz now)
{
	return (keeper->due || !outbox_keeper_is_idle(keeper)) &&
		now < keeper->hold_until;
}

/* Answers are written all at once, but not long after they came. */
static bool
outbox_keeper_has_to_write(const OutboxKeeper *keeper)
{
	return keeper->nwritten < keeper->nanswers &&
		(keeper->nanswers == keeper->nitems || keeper->hold_until == 0);
}

static bool
outbox_keeper_has_to_read(const OutboxKeeper *keeper)
{
	return keeper->connected && keeper->due && outbox_keeper_is_idle(keeper);
}

TimestampTz
outbox_keeper_next(const OutboxKeeper *keeper)
{
	if (outbox_keeper_has_to_write(keeper) ||
		outbox_keeper_has_to_read(keeper))
		return Max(keeper->read_at, 1);
	return keeper->asked ? keeper->hold_until : 0;
}

/*
 * Answers
 */

static int
outbox_keeper_sqlerrcode(const OutboxAnswer *answer)
{
	switch (answer->reply_code)
	{
		case 403:
			return ERRCODE_INSUFFICIENT_PRIVILEGE;
		case 404:
			return ERRCODE_UNDEFINED_OBJECT;
		case 405:
			return ERRCODE_OBJECT_IN_USE;
		default:
			return ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
	}
}

/* A refusal is news only once; the view shows it as long as it stands. */
static void
outbox_keeper_log(const OutboxItem *item, const OutboxServer *server,
				  const OutboxAnswer *answer)
{
	char	   *what;

	if (answer->done || (item->has_state && !item->was_asserted))
		return;
	what = outbox_topology_describe(item);
	ereport(LOG,
			(errcode(outbox_keeper_sqlerrcode(answer)),
			 errmsg("server \"%s\": could not %s %s", server->name,
					item->wanted ? "assert" : "delete", what),
			 errdetail_internal("%s", answer->words),
			 errhint("See amqp_outbox.topology.")));
	pfree(what);
}

/* The next item is answered. */
static void
outbox_keeper_note(OutboxKeeper *keeper, const OutboxServer *server,
				   const OutboxAnswer *answer)
{
	outbox_keeper_log(&keeper->items[keeper->nanswers], server, answer);
	keeper->answers[keeper->nanswers++] = *answer;
	keeper->asked = false;
}

void
outbox_keeper_event(OutboxKeeper *keeper, const OutboxServer *server,
					const OutboxEvent *event, TimestampTz now)
{
	if (!keeper->asked ||
		(event->type == OUTBOX_EVENT_LOST && !event->answer.closes_connection))
		return;
	do
	{
		outbox_keeper_note(keeper, server, &event->answer);
	} while (event->answer.no_channel && keeper->nanswers < keeper->nitems);

	/* a broker that answers gets more time, but not messages that went on */
	if (keeper->hold_until != 0)
		outbox_keeper_hold(keeper, server, now);
}

/*
 * Transactions
 */

static void
outbox_keeper_write(OutboxKeeper *keeper)
{
	if (outbox_store_begin())
	{
		for (int i = keeper->nwritten; i < keeper->nanswers; i++)
			outbox_topology_write(&keeper->items[i], &keeper->answers[i]);
		outbox_store_commit();
	}
	keeper->nwritten = keeper->nanswers;
}

static void
outbox_keeper_read(OutboxKeeper *keeper, const OutboxServer *server)
{
	MemoryContext context;
	OutboxItemChoice choice = keeper->choice;

	if (keeper->items_context)
		MemoryContextDelete(keeper->items_context);
	keeper->items_context = context =
		AllocSetContextCreate(keeper->context, "amqp_outbox topology",
							  ALLOCSET_DEFAULT_SIZES);
	keeper->nitems = keeper->nanswers = keeper->nwritten = 0;
	if (outbox_store_begin())
	{
		keeper->nitems = outbox_topology_read(context, server->name, choice,
											  &keeper->items);
		outbox_store_commit();
	}
	keeper->answers = MemoryContextAllocZero(context, (keeper->nitems + 1) *
											 sizeof(OutboxAnswer));
	keeper->due = false;
	keeper->read_at = 0;
}

/*
 * An error in here must not keep messages from being sent for longer than a
 * broker that does not answer; later it is tried now and then.
 */
static void
outbox_keeper_run_sql(OutboxKeeper *keeper, const OutboxServer *server,
					  TimestampTz now)
{
	if (now < keeper->read_at)
		return;
	if (keeper->hold_until == 0)
		keeper->read_at =
			TimestampTzPlusMilliseconds(now, OUTBOX_KEEPER_ERROR_MS);
	if (outbox_keeper_has_to_write(keeper))
		outbox_keeper_write(keeper);
	if (outbox_keeper_has_to_read(keeper))
		outbox_keeper_read(keeper, server);
	keeper->read_at = 0;
}

/*
 * The broker
 */

/* Tell it of the next items, until there is one whose answer is awaited. */
static void
outbox_keeper_tell(OutboxKeeper *keeper, const OutboxServer *server,
				   OutboxTransport *transport)
{
	OutboxAnswer answer;

	while (!keeper->asked && keeper->nanswers < keeper->nitems)
	{
		keeper->asked = outbox_transport_assert(transport,
												&keeper->items[keeper->nanswers],
												&answer);
		if (!keeper->asked)
			outbox_keeper_note(keeper, server, &answer);
	}
}

/* The time for an answer is over. */
static void
outbox_keeper_stop_waiting(OutboxKeeper *keeper, const OutboxServer *server)
{
	char	   *what;

	keeper->hold_until = 0;
	if (!keeper->asked)
		return;
	what = outbox_topology_describe(&keeper->items[keeper->nanswers]);
	ereport(LOG,
			(errcode(ERRCODE_CONNECTION_FAILURE),
			 errmsg("server \"%s\": the broker does not answer to the declaration of %s",
					server->name, what),
			 errdetail("Messages are sent meanwhile.")));
	pfree(what);
}

void
outbox_keeper_work(OutboxKeeper *keeper, const OutboxServer *server,
				   OutboxTransport *transport, TimestampTz now)
{
	if (keeper->hold_until != 0 && now >= keeper->hold_until)
		outbox_keeper_stop_waiting(keeper, server);
	outbox_keeper_run_sql(keeper, server, now);
	if (transport != NULL)
		outbox_keeper_tell(keeper, server, transport);
	if (!keeper->due && outbox_keeper_is_idle(keeper))
		keeper->hold_until = 0;
}

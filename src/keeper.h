/*-------------------------------------------------------------------------
 *
 * keeper.h
 *	  Keeps what the broker has in line with the topology that is declared.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_KEEPER_H
#define OUTBOX_KEEPER_H

#include "topology.h"
#include "transport.h"

typedef struct OutboxKeeper OutboxKeeper;

/* Lives in a child of CurrentMemoryContext. */
extern OutboxKeeper *outbox_keeper_create(void);

/* A new connection is ready: everything is to be asserted. */
extern void outbox_keeper_connected(OutboxKeeper *keeper,
									const OutboxServer *server,
									TimestampTz now);
extern void outbox_keeper_disconnected(OutboxKeeper *keeper);

/*
 * Somebody declared something, or (everything) asked to try again what the
 * broker has refused.
 */
extern void outbox_keeper_look(OutboxKeeper *keeper,
							   const OutboxServer *server, bool everything,
							   TimestampTz now);

/* An event ASSERTED, or LOST. */
extern void outbox_keeper_event(OutboxKeeper *keeper,
								const OutboxServer *server,
								const OutboxEvent *event, TimestampTz now);

/*
 * Go on: write down answers, read what is to be asserted, tell the broker.
 * The transport is that of the connection, NULL if there is none.  Runs
 * transactions if need be.
 */
extern void outbox_keeper_work(OutboxKeeper *keeper,
							   const OutboxServer *server,
							   OutboxTransport *transport, TimestampTz now);

/*
 * Are messages to wait, because what they are for may not be there yet?  Not
 * for longer than connect_timeout without an answer.
 */
extern bool outbox_keeper_holds(const OutboxKeeper *keeper, TimestampTz now);

/* When to call work() without an event; 0: there is nothing to do. */
extern TimestampTz outbox_keeper_next(const OutboxKeeper *keeper);

#endif							/* OUTBOX_KEEPER_H */

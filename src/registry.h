/*-------------------------------------------------------------------------
 *
 * registry.h
 *	  Which server of which database has a worker, and how that one is.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_REGISTRY_H
#define OUTBOX_REGISTRY_H

#include "measure.h"
#include "message.h"
#include "nodes/pg_list.h"
#include "storage/latch.h"

/* For shared.c: ask for the memory, and set it up or find it. */
extern void outbox_registry_request(void);
extern void outbox_registry_startup(void);

/* What a worker is doing, as amqp_outbox.server_status shows it. */
typedef enum OutboxWorkerState
{
	OUTBOX_WORKER_STARTING,
	OUTBOX_WORKER_CONNECTING,
	OUTBOX_WORKER_CONNECTED,
	OUTBOX_WORKER_BLOCKED,		/* by the broker: connection.blocked */
	OUTBOX_WORKER_WAITING,		/* before the next attempt to connect */
	OUTBOX_WORKER_PAUSED,		/* by the server's option */
	OUTBOX_WORKER_COPY,			/* the database is a copy, not adopted */
	OUTBOX_WORKER_DRAINING,		/* waits for confirms before it stops */
	OUTBOX_WORKER_STOPPED
} OutboxWorkerState;

extern const char *outbox_worker_state_name(OutboxWorkerState state);

/* A worker that ended is started again after this time; it grows if in vain. */
#define OUTBOX_RESTART_MS		1000
#define OUTBOX_RESTART_LAST_MS	60000

#define OUTBOX_HOST_LEN		262	/* a DNS name, a colon, a port */

/* A copy of one entry, for whoever shows it. */
typedef struct OutboxWorkerStatus
{
	Oid			dboid;
	Oid			serverid;
	pid_t		pid;			/* 0: no process */
	OutboxWorkerState state;
	TimestampTz since;			/* of the state */
	char		host[OUTBOX_HOST_LEN];
	int			in_flight;
	char		last_error[OUTBOX_FAILURE_MESSAGE_LEN +
						   OUTBOX_FAILURE_DETAIL_LEN];
	TimestampTz last_error_at;	/* 0: none */
	TimestampTz disconnected_since; /* 0: connected */
	int64		connections;	/* made so far */
	int64		blocked_us;		/* so far, but for the current state */
} OutboxWorkerStatus;

/*
 * Backends: something about servers of this database has changed and is
 * committed.  The launcher looks at the database, its workers at their server.
 */
extern void outbox_registry_database_changed(Oid dboid);

/*
 * Backends: messages were committed into amqp_outbox.deferred, due at this time
 * or later (DT_NOBEGIN: not known).  Workers look for them.
 */
extern void outbox_registry_deferred(Oid dboid, TimestampTz due_from);

/*
 * Backends: topology of a server of this database was declared or taken back,
 * or (everything) what brokers refused is to be tried again.
 */
extern void outbox_registry_topology_changed(Oid dboid, bool everything);

/* Whether there is an entry for each of these servers (OIDs) and no other. */
extern bool outbox_registry_knows(Oid dboid, const List *servers);

/*
 * Backends: ask a server's worker to make the server's key in a transaction of
 * its own; false if it has none.
 */
extern bool outbox_registry_ask_key(Oid dboid, Oid serverid);

/*
 * Backends: a database is needed without any other session.  Its workers leave
 * and none is started until it is released; holds of several backends add up.
 */
extern void outbox_registry_hold(Oid dboid);
extern void outbox_registry_release(Oid dboid);
extern bool outbox_registry_is_held(Oid dboid);
extern bool outbox_registry_has_workers(Oid dboid);

/*
 * Backends: the newest receipt of a server, as its worker has told since it
 * started; 0: nothing is known.
 */
extern int64 outbox_registry_settled_through(Oid dboid, Oid serverid);

/*
 * Backends: wait for the next receipt of any server of a database, ms at the
 * most (-1: no limit).  Look at what is waited for between begin and wait, so
 * that no receipt is missed.
 */
extern void outbox_registry_begin_wait(Oid dboid);
extern void outbox_registry_wait(Oid dboid, long ms);
extern void outbox_registry_end_wait(void);

/* A copy of entry i; false if it is not in use.  i < outbox_max_workers. */
extern bool outbox_registry_status(int i, OutboxWorkerStatus *status);

/* The same with what was counted since there is this entry. */
extern bool outbox_registry_measures(int i, OutboxWorkerStatus *status,
									 OutboxMeasure *measure);

/* Scouts: the servers that exist in a database; returns how many had no room */
extern int	outbox_registry_report(Oid dboid, const Oid *servers, int nservers);

/*
 * Workers: take or give back entry i; attach is false if there is nothing to
 * do (any more).  The rest is about the own entry.
 */
extern bool outbox_registry_attach(int i, Oid dboid, Oid *serverid);
extern void outbox_registry_detach(void);
extern void outbox_registry_set_state(OutboxWorkerState state,
									  const char *host);
extern void outbox_registry_set_in_flight(int in_flight);
extern void outbox_registry_set_error(const OutboxFailure *failure);

/* These were delivered; the receipt is committed. */
extern void outbox_registry_measured(const OutboxTally *tally, TimestampTz now);

/* A receipt through this id is committed; wakes those who wait for one. */
extern void outbox_registry_settled(int64 through_id);

/* The server is gone: no worker is to be started for it again. */
extern void outbox_registry_retire(void);

/*
 * What others have asked of this worker since it last took these bits; "has"
 * leaves them there.  With REQUEST_DUE, *due_from is when the first of the new
 * messages is due, else it is left alone.
 */
#define OUTBOX_REQUEST_RELOAD	0x01	/* servers of this database changed */
#define OUTBOX_REQUEST_DUE		0x02	/* there are new deferred messages */
#define OUTBOX_REQUEST_KEY		0x04	/* make the server's key */
#define OUTBOX_REQUEST_TOPOLOGY	0x08	/* there is something to assert */
#define OUTBOX_REQUEST_ASSERT	0x10	/* assert all of it */
extern uint32 outbox_registry_take_requests(TimestampTz *due_from);
extern bool outbox_registry_has_request(uint32 requests);

/*
 * Launcher only.
 */
extern void outbox_registry_set_launcher(Latch *latch);

/* Look at every database, or at one; take the next one to look at. */
extern void outbox_registry_scan_all(void);
extern void outbox_registry_scan(Oid dboid);

/* These are all databases there are (OIDs): forget what was in others. */
extern void outbox_registry_forget_databases(const List *databases);
extern bool outbox_registry_take_scan(Oid *dboid, bool *all);

/* Is entry i in need of a process?  Marks it as being started. */
extern bool outbox_registry_claim_start(int i, Oid *dboid);

/* The process for entry i ended. */
extern void outbox_registry_not_running(int i, int retry_ms);

/* There is none to be had for entry i; it stays in need of one. */
extern void outbox_registry_lacks_process(int i,
										  const OutboxFailure *failure);

/* Milliseconds until the next entry wants a process; -1: none does. */
extern long outbox_registry_next_start(void);

#endif							/* OUTBOX_REGISTRY_H */

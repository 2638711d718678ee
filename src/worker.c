/*-------------------------------------------------------------------------
 *
 * worker.c
 *	  The process that publishes for one server of one database.
 *
 * Started by the launcher for an entry of the registry.  The loop has one
 * shape: look at requests from outside, do what the connection needs, move
 * messages through the pipeline, wait.  Everything is waited for in one place:
 * the latch (set by commits, by changes of servers, by signals), the sockets
 * of the transport, and the next clock of anybody.
 *
 *		STARTING --> CONNECTING --> CONNECTED <--> BLOCKED
 *						^  |			|			  |
 *						|  v			v			  v
 *					   WAITING <------ connection lost
 *
 * and from anywhere DRAINING, when the process is to stop or the connection's
 * options have changed: nothing new is published, what is in flight is waited
 * for, a while.  COPY is the state of a worker whose database was copied.
 *
 * SIGTERM only sets a flag, so that a stop can drain; nothing here waits for
 * anything but in that one place, so the flag is seen at once.
 *
 * The same entry point serves the short-lived processes of scout.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/dbcommands.h"
#include "commands/extension.h"
#include "common/pg_prng.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/procsignal.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "compat.h"
#include "credential.h"
#include "horizon.h"
#include "keeper.h"
#include "option.h"
#include "pipeline.h"
#include "prune.h"
#include "registry.h"
#include "rotation.h"
#include "scout.h"
#include "settings.h"
#include "store.h"
#include "transport.h"
#include "worker.h"

/* Pauses between attempts to connect: doubling from the first to the last. */
#define OUTBOX_CONNECT_FIRST_MS		250
#define OUTBOX_CONNECT_LAST_MS		5000

/* The same after an error of our own SQL. */
#define OUTBOX_ERROR_FIRST_MS		500
#define OUTBOX_ERROR_LAST_MS		30000

/* A connection that was up for so long was a good one. */
#define OUTBOX_GOOD_CONNECTION_MS	10000

/* After the first message, the ring is looked at. */
#define OUTBOX_ROTATION_DELAY_MS	1000

/* And after an error in that not so soon. */
#define OUTBOX_ROTATION_ERROR_MS	60000

/* So long before a token expires a newer one is looked for, and how often. */
#define OUTBOX_RENEWAL_LEAD_MS		INT64CONST(60000)
#define OUTBOX_RENEWAL_LOOK_MS		1000

/* How often an unchanged failure is logged again, and a different one. */
#define OUTBOX_REMINDER_MS			(60 * 60 * 1000)
#define OUTBOX_LOG_PAUSE_MS			1000

typedef struct OutboxWorker
{
	MemoryContext context;		/* for the life of the process */
	char	   *database;
	Oid			serverid;
	MemoryContext server_context;
	OutboxServer *server;
	OutboxPipeline *pipeline;
	OutboxKeeper *keeper;

	OutboxTransport *transport; /* NULL: not connected */
	bool		ready;			/* the transport takes messages */
	bool		announced;		/* and that was logged */
	bool		blocked;		/* the broker asked for a pause */
	TimestampTz ready_since;
	TimestampTz confirm_clock;	/* confirms are not late before this */
	Size		unsent;			/* bytes that the transport holds, lately */
	int			host_no;		/* of the current or next connection */
	int			failures;		/* to connect, in a row */
	TimestampTz retry_at;		/* next attempt to connect */
	TimestampTz expires_at;		/* of the token that we logged in with; 0:
								 * not known */
	TimestampTz renew_at;		/* look for a newer one; 0: no need */

	bool		stopping;		/* leave when drained */
	bool		reconnecting;	/* connect anew when drained */
	TimestampTz drain_until;

	uint32		requests;		/* OUTBOX_REQUEST_..., not yet served */
	TimestampTz due_from;		/* of OUTBOX_REQUEST_DUE; DT_NOEND without */
	bool		invalidated;	/* options may have changed */
	bool		roles_changed;	/* some role; perhaps the server's owner */
	OutboxReadResult read;		/* what the last read found */
	bool		sending;		/* perhaps the last turn left more to send */
	bool		copy;			/* the database is a copy */
	int			errors;			/* of our own SQL, in a row */
	TimestampTz sql_retry_at;	/* no transaction before this; 0: now */

	TimestampTz rotate_at;		/* look at the ring; 0: nothing is in it */
	int64		rotated_receipt;	/* the newest one when we last looked */

	OutboxFailure logged;		/* the last failure that was logged */
	TimestampTz logged_at;
	int			unlogged;		/* equal ones since */

	WaitEventSet *set;			/* NULL: to be built */
	uint64		set_generation; /* of the transport's sockets in it */
	int			nsockets;
	OutboxSocket sockets[OUTBOX_STREAM_MAX_SOCKETS];
} OutboxWorker;

static OutboxWorker *worker = NULL;

/*
 * What others see of us
 */

static char *
outbox_worker_host(void)
{
	OutboxHost *host = &worker->server->hosts[worker->host_no];

	return psprintf(strchr(host->name, ':') ? "[%s]:%d" : "%s:%d",
					host->name, host->port);
}

static void
outbox_worker_set_state(OutboxWorkerState state)
{
	MemoryContext old_context = MemoryContextSwitchTo(worker->context);
	char	   *host = outbox_worker_host();
	char	   *activity = psprintf("server \"%s\": %s%s%s",
									worker->server->name,
									outbox_worker_state_name(state),
									worker->transport ? ", broker " : "",
									worker->transport ? host : "");

	outbox_registry_set_state(state, worker->transport ? host : NULL);
	pgstat_report_activity(STATE_IDLE, activity);
	pfree(activity);
	pfree(host);
	MemoryContextSwitchTo(old_context);
}

/*
 * Log a failure when it differs from the one before, else only now and then;
 * and never one right after the other, lest a message that fails in turn with
 * another fills the log.  The status shows the newest in any case.
 */
static void
outbox_worker_log_failure(const OutboxFailure *failure)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		same = strcmp(failure->message, worker->logged.message) == 0 &&
		strcmp(failure->detail, worker->logged.detail) == 0;

	outbox_registry_set_error(failure);
	if (!TimestampDifferenceExceeds(worker->logged_at, now,
									same ? OUTBOX_REMINDER_MS :
									OUTBOX_LOG_PAUSE_MS))
	{
		worker->unlogged++;
		return;
	}

	ereport(LOG,
			(errcode(failure->sqlerrcode),
			 errmsg("server \"%s\": %s", worker->server->name,
					failure->message),
			 failure->detail[0] ? errdetail_internal("%s", failure->detail) : 0,
			 worker->unlogged > 0
			 ? errhint("%d failures since the last message were not logged.",
					   worker->unlogged) : 0));
	worker->logged = *failure;
	worker->logged_at = now;
	worker->unlogged = 0;
}

/*
 * Connecting
 */

static int
outbox_worker_backoff_ms(int failures, int first_ms, int last_ms)
{
	int			ms = Min(first_ms << Min(failures, 10), last_ms);

	return (int) (ms * (0.75 + 0.5 * pg_prng_double(&pg_global_prng_state)));
}

static void
outbox_worker_disconnect(void)
{
	OutboxTransport *transport = worker->transport;

	/* an error in saying goodbye must not have it said again */
	worker->transport = NULL;
	outbox_transport_close(transport);
	worker->ready = false;
	worker->announced = false;
	worker->blocked = false;
	if (worker->set)
		FreeWaitEventSet(worker->set);
	worker->set = NULL;
	if (worker->pipeline)
		outbox_pipeline_disconnected(worker->pipeline);
	if (worker->keeper)
		outbox_keeper_disconnected(worker->keeper);
}

/* The connection is lost or could not be made: pause, then the next host. */
static void
outbox_worker_connection_failed(const OutboxFailure *failure)
{
	TimestampTz now = GetCurrentTimestamp();
	int			pause;

	if (worker->ready &&
		TimestampDifferenceExceeds(worker->ready_since, now,
								   OUTBOX_GOOD_CONNECTION_MS))
	{
		worker->failures = 0;
		worker->logged.message[0] = '\0';
	}
	outbox_worker_log_failure(failure);
	outbox_worker_disconnect();

	/* a round through all hosts counts as one failure */
	pause = outbox_worker_backoff_ms(worker->failures / worker->server->nhosts,
									 OUTBOX_CONNECT_FIRST_MS,
									 OUTBOX_CONNECT_LAST_MS);
	worker->failures++;
	worker->host_no = (worker->host_no + 1) % worker->server->nhosts;
	worker->retry_at = TimestampTzPlusMilliseconds(now, pause);
	if (!worker->stopping)
		outbox_worker_set_state(OUTBOX_WORKER_WAITING);
}

/*
 * When to look for a newer token: in the last tenth of the time that this one
 * has left, but not too early.
 */
static TimestampTz
outbox_worker_renewal(TimestampTz now)
{
	int64		left_ms = (worker->expires_at - now) / 1000;

	if (worker->expires_at == 0)
		return 0;
	return worker->expires_at -
		Min(left_ms / 10, OUTBOX_RENEWAL_LEAD_MS) * INT64CONST(1000);
}

static void
outbox_worker_connect(void)
{
	OutboxServer *server = worker->server;
	OutboxCredentials credentials;
	OutboxFailure failure;
	char	   *connection_name;

	/*
	 * A right may have been granted since then.  Of that we hear in a
	 * transaction only, and may have no other reason for one.
	 */
	if (server->refusal)
	{
		StartTransactionCommand();
		CommitTransactionCommand();
		if (worker->invalidated || worker->roles_changed)
			return;				/* and load the options first */
	}
	if (!outbox_credentials_read(server, &credentials, &failure))
	{
		outbox_worker_connection_failed(&failure);
		return;
	}
	worker->expires_at = credentials.expires_at;
	worker->renew_at = outbox_worker_renewal(GetCurrentTimestamp());
	connection_name = psprintf("amqp_outbox %s/%s", worker->database,
							   server->name);
	worker->transport = outbox_transport_start(server, worker->host_no,
											   &credentials, connection_name);
	pfree(connection_name);
	outbox_credentials_forget(&credentials);
	outbox_worker_set_state(OUTBOX_WORKER_CONNECTING);
}

/*
 * Events
 */

static void
outbox_worker_ready(void)
{
	worker->ready = true;
	worker->ready_since = GetCurrentTimestamp();
	worker->confirm_clock = worker->ready_since;
	if (!worker->announced)
	{
		char	   *host = outbox_worker_host();

		ereport(LOG,
				(errmsg("server \"%s\": connected to broker %s",
						worker->server->name, host)));
		pfree(host);
		worker->announced = true;
		outbox_keeper_connected(worker->keeper, worker->server,
								worker->ready_since);
	}
	if (!worker->stopping && !worker->reconnecting)
		outbox_worker_set_state(OUTBOX_WORKER_CONNECTED);
}

static void
outbox_worker_blocked(bool blocked, const OutboxFailure *failure)
{
	worker->blocked = blocked;
	worker->confirm_clock = GetCurrentTimestamp();
	if (blocked)
		outbox_worker_log_failure(failure);
	if (!worker->stopping && !worker->reconnecting)
		outbox_worker_set_state(blocked ? OUTBOX_WORKER_BLOCKED :
								OUTBOX_WORKER_CONNECTED);
}

static void
outbox_worker_handle_event(OutboxEvent *event)
{
	OutboxFailure failure;

	switch (event->type)
	{
		case OUTBOX_EVENT_NONE:
			break;
		case OUTBOX_EVENT_READY:
			outbox_worker_ready();
			break;
		case OUTBOX_EVENT_CHANNEL_CLOSED:
			outbox_worker_log_failure(&event->failure);
			worker->ready = false;
			/* FALLTHROUGH */
		case OUTBOX_EVENT_CONFIRM:
		case OUTBOX_EVENT_RETURN:
			if (outbox_pipeline_event(worker->pipeline, worker->server, event))
				break;
			outbox_failure_set(&failure, ERRCODE_PROTOCOL_VIOLATION, NULL,
							   "the broker answered a message that it was not sent");
			outbox_worker_connection_failed(&failure);
			break;
		case OUTBOX_EVENT_ASSERTED:
			outbox_keeper_event(worker->keeper, worker->server, event,
								GetCurrentTimestamp());
			break;
		case OUTBOX_EVENT_BLOCKED:
			outbox_worker_blocked(true, &event->failure);
			break;
		case OUTBOX_EVENT_UNBLOCKED:
			outbox_worker_blocked(false, NULL);
			break;
		case OUTBOX_EVENT_LOST:
			outbox_keeper_event(worker->keeper, worker->server, event,
								GetCurrentTimestamp());
			outbox_worker_connection_failed(&event->failure);
			break;
	}
}

/* When the confirm that is waited for longest is overdue; 0: none is. */
static TimestampTz
outbox_worker_confirm_deadline(void)
{
	TimestampTz sent = outbox_pipeline_oldest_sent(worker->pipeline);

	if (sent == 0 || worker->blocked || !worker->ready)
		return 0;
	sent = Max(sent, worker->confirm_clock);
	return TimestampTzPlusMilliseconds(sent,
									   worker->server->confirm_timeout * INT64CONST(1000));
}

static void
outbox_worker_check_confirms(TimestampTz now)
{
	TimestampTz deadline = outbox_worker_confirm_deadline();
	OutboxFailure failure;

	if (deadline == 0 || now < deadline)
		return;
	outbox_failure_set(&failure, ERRCODE_CONNECTION_FAILURE, NULL,
					   "the broker did not confirm a message within %d s",
					   worker->server->confirm_timeout);
	outbox_worker_connection_failed(&failure);
}

/* Do what the connection needs and hear what the broker says. */
static void
outbox_worker_drive_connection(TimestampTz now)
{
	OutboxEvent event;

	if (worker->transport == NULL)
	{
		if (worker->stopping || worker->copy || worker->server->paused ||
			now < worker->retry_at)
			return;
		outbox_worker_connect();
	}
	while (worker->transport != NULL &&
		   outbox_transport_next_event(worker->transport,
									   &event) != OUTBOX_EVENT_NONE)
		outbox_worker_handle_event(&event);
	if (worker->transport != NULL)
		outbox_worker_check_confirms(now);
}

/*
 * Moving messages
 */

static bool
outbox_worker_draining(void)
{
	return worker->stopping || worker->reconnecting;
}

static void
outbox_worker_leave(void)
{
	outbox_registry_retire();
	worker->stopping = true;
	worker->drain_until = 0;
}

static void
outbox_worker_read(void)
{
	OutboxReadResult result = outbox_pipeline_read(worker->pipeline,
												   worker->server);

	worker->read = result;
	switch (result)
	{
		case OUTBOX_READ_NOTHING:
		case OUTBOX_READ_SOME:
		case OUTBOX_READ_FULL:
			break;
		case OUTBOX_READ_COPY:
			if (worker->copy)
				break;
			worker->copy = true;
			outbox_worker_disconnect();
			outbox_worker_set_state(OUTBOX_WORKER_COPY);
			ereport(LOG,
					(errmsg("server \"%s\": nothing is published, because this database is a copy",
							worker->server->name),
					 errhint("If this copy is to publish its messages from now on, run SELECT amqp_outbox.adopt().")));
			break;
		case OUTBOX_READ_GONE:
			outbox_worker_leave();
			break;
	}
}

/* While there is something in the outbox, look whether it can go. */
static void
outbox_worker_rotate(TimestampTz now)
{
	int64		receipt_no = outbox_pipeline_receipt_no(worker->pipeline);

	if (worker->rotate_at == 0 &&
		(worker->read != OUTBOX_READ_NOTHING ||
		 receipt_no != worker->rotated_receipt))
		worker->rotate_at = TimestampTzPlusMilliseconds(now,
														OUTBOX_ROTATION_DELAY_MS);
	if (worker->rotate_at == 0 || now < worker->rotate_at)
		return;
	worker->rotated_receipt = receipt_no;

	/* an error there must not be one of delivery */
	worker->rotate_at = TimestampTzPlusMilliseconds(now,
													OUTBOX_ROTATION_ERROR_MS);
	worker->rotate_at = outbox_rotation_look(now);
	if (outbox_prune_keys(worker->server))
		worker->rotate_at = now;
}

/*
 * One turn adds what the transport may queue, or one message that is larger, so
 * that nothing else has to wait for long.  Where the socket takes all of that
 * there is room for more, and no event would tell.
 */
static void
outbox_worker_publish(void)
{
	bool		more = outbox_pipeline_publish(worker->pipeline, worker->server,
										   worker->transport);

	outbox_transport_flush(worker->transport);
	worker->sending = more && outbox_transport_pending(worker->transport) == 0;
}

/*
 * On a slow line a large message takes longer to be sent than a confirm may
 * take; so the time for confirms begins when nothing more goes out.
 */
static void
outbox_worker_note_sending(TimestampTz now)
{
	Size		unsent = outbox_transport_pending(worker->transport);

	if (unsent != worker->unsent)
		worker->confirm_clock = now;
	worker->unsent = unsent;
}

/* Whether messages may be sent right now. */
static bool
outbox_worker_may_publish(TimestampTz now)
{
	/*
	 * What was just read may be meant for a server that is altered, or for
	 * something that is to be declared first.
	 */
	return worker->ready && !worker->blocked && !outbox_worker_draining() &&
		!outbox_registry_has_request(OUTBOX_REQUEST_RELOAD |
									 OUTBOX_REQUEST_TOPOLOGY) &&
		!outbox_keeper_holds(worker->keeper, now);
}

/* What the broker shall have, once the channel of the messages is open. */
static void
outbox_worker_assert(TimestampTz now)
{
	outbox_keeper_work(worker->keeper, worker->server,
					   worker->announced ? worker->transport : NULL, now);
}

static void
outbox_worker_move_messages(TimestampTz now)
{
	bool		may_run_sql = now >= worker->sql_retry_at;
	bool		sending = worker->sending;

	worker->sending = false;
	if (!sending)
		worker->read = OUTBOX_READ_NOTHING;
	/* what is here is sent first, while the processor's cache has it */
	if (!sending && !outbox_worker_draining() && may_run_sql)
		outbox_worker_read();

	if (!outbox_worker_draining() && may_run_sql)
		outbox_pipeline_count(worker->pipeline, worker->server);

	if (!outbox_worker_draining() && may_run_sql)
		outbox_worker_assert(now);

	/* the first message needs a receipt before it */
	if (may_run_sql && outbox_worker_may_publish(now))
		outbox_worker_publish();
	if (worker->transport != NULL)
	{
		outbox_transport_flush(worker->transport);
		outbox_worker_note_sending(now);
	}
	if (may_run_sql)
	{
		outbox_pipeline_settle(worker->pipeline, worker->server, false);
		worker->errors = 0;
		worker->sql_retry_at = 0;
		if (!outbox_worker_draining())
			outbox_worker_rotate(now);
	}
	outbox_registry_set_in_flight(outbox_pipeline_in_flight(worker->pipeline));
}

/*
 * Requests from outside
 */

static void
outbox_worker_begin_drain(TimestampTz now)
{
	worker->drain_until =
		TimestampTzPlusMilliseconds(now, outbox_drain_timeout);
	outbox_worker_set_state(OUTBOX_WORKER_DRAINING);
}

/* The options as they are now, in a context of their own; NULL: server gone */
static OutboxServer *
outbox_worker_load_server(MemoryContext *context)
{
	MemoryContext old_context;
	OutboxServer *server = NULL;

	StartTransactionCommand();
	*context = AllocSetContextCreate(TopTransactionContext,
									 "amqp_outbox server",
									 ALLOCSET_SMALL_SIZES);
	old_context = MemoryContextSwitchTo(*context);
	if (OidIsValid(get_extension_oid(OUTBOX_EXTENSION, true)))
		server = outbox_option_load(worker->serverid);
	MemoryContextSwitchTo(old_context);
	if (server)
		MemoryContextSetParent(*context, worker->context);
	CommitTransactionCommand();
	return server;
}

/* Something about servers or user mappings of this database has changed. */
static void
outbox_worker_reload(TimestampTz now)
{
	MemoryContext context;
	OutboxServer *server = outbox_worker_load_server(&context);

	if (server == NULL)
	{
		outbox_worker_leave();
		return;
	}
	if (strcmp(server->name, worker->server->name) != 0)
		worker->stopping = true;	/* another one starts with the new name */
	else if (!outbox_option_same_connection(server, worker->server) ||
			 (!worker->ready &&
			  server->connect_timeout != worker->server->connect_timeout))
		worker->reconnecting = true;	/* also one that is being made */

	MemoryContextDelete(worker->server_context);
	worker->server_context = context;
	worker->server = server;
	if (worker->host_no >= server->nhosts || worker->reconnecting)
		worker->host_no = 0;
	worker->failures = 0;
	worker->logged.message[0] = '\0';	/* with other options it is news again */
	worker->retry_at = 0;
	worker->copy = false;
	worker->rotate_at = now;	/* by another retention, perhaps */
	outbox_pipeline_look_again(worker->pipeline);
	if (outbox_worker_draining())
		outbox_worker_begin_drain(now);
}

/* A prepared transaction is to be the first to publish to this server. */
static void
outbox_worker_make_key(void)
{
	NameData	name;

	namestrcpy(&name, worker->server->name);
	StartTransactionCommand();
	if (OidIsValid(outbox_catalog_relid_if_exists("server_key")))
		outbox_catalog_server_key(&name);
	CommitTransactionCommand();
}

/*
 * The token expires soon.  If there is a newer one we log in with it, in good
 * order; if not, the connection lasts as long as the broker lets it.
 */
static void
outbox_worker_renew(TimestampTz now)
{
	OutboxCredentials credentials;
	OutboxFailure failure;
	TimestampTz expires_at;

	if (worker->transport == NULL || worker->renew_at == 0 ||
		now < worker->renew_at || outbox_worker_draining())
		return;
	worker->renew_at = TimestampTzPlusMilliseconds(now,
												   OUTBOX_RENEWAL_LOOK_MS);
	if (!outbox_credentials_read(worker->server, &credentials, &failure))
	{
		outbox_worker_log_failure(&failure);
		return;
	}
	expires_at = credentials.expires_at;
	outbox_credentials_forget(&credentials);
	if (expires_at > worker->expires_at || expires_at == 0)
	{
		worker->reconnecting = true;
		outbox_worker_begin_drain(now);
		return;
	}
	outbox_failure_set(&failure, ERRCODE_INVALID_PASSWORD,
					   "Write a new one into the file before.",
					   "the token in file \"%s\" expires at %s",
					   worker->server->token_file,
					   timestamptz_to_str(expires_at));
	outbox_worker_log_failure(&failure);
}

/*
 * Whether credentials may be used now that might not, or the other way round.
 * In a busy cluster roles change all the time: that alone is no reason to begin
 * anew, with all that a reload forgets.
 */
static bool
outbox_worker_owner_changed(void)
{
	MemoryContext context;
	OutboxServer *server;
	bool		changed;

	server = outbox_worker_load_server(&context);
	if (server == NULL)
		return true;
	changed = (server->refusal == NULL) != (worker->server->refusal == NULL) ||
		(server->refusal && strcmp(server->refusal, worker->server->refusal) != 0);
	MemoryContextDelete(context);
	return changed;
}

static void
outbox_worker_serve(TimestampTz now)
{
	bool		invalidated = worker->invalidated;
	bool		roles_changed = worker->roles_changed;

	/* an invalidation that no statement told us of; the next may come any time */
	worker->invalidated = worker->roles_changed = false;
	if (invalidated || (roles_changed && outbox_worker_owner_changed()))
		worker->requests |= OUTBOX_REQUEST_RELOAD;

	if (worker->requests & OUTBOX_REQUEST_RELOAD)
		outbox_worker_reload(now);
	worker->requests &= ~OUTBOX_REQUEST_RELOAD;
	if (worker->stopping)
		return;
	if (worker->requests & (OUTBOX_REQUEST_TOPOLOGY | OUTBOX_REQUEST_ASSERT))
		outbox_keeper_look(worker->keeper, worker->server,
						   (worker->requests & OUTBOX_REQUEST_ASSERT) != 0,
						   now);
	worker->requests &= ~(OUTBOX_REQUEST_TOPOLOGY | OUTBOX_REQUEST_ASSERT);
	if (worker->requests & OUTBOX_REQUEST_KEY)
		outbox_worker_make_key();
	worker->requests &= ~OUTBOX_REQUEST_KEY;
	if (worker->requests & OUTBOX_REQUEST_DUE)
		outbox_pipeline_look_for_due(worker->pipeline, worker->due_from);
	worker->requests &= ~OUTBOX_REQUEST_DUE;
	worker->due_from = DT_NOEND;
	if (worker->server->paused)
		outbox_worker_set_state(OUTBOX_WORKER_PAUSED);
}

static void
outbox_worker_check_requests(TimestampTz now)
{
	TimestampTz due_from = DT_NOEND;

	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
		worker->rotate_at = now;	/* by another retention, perhaps */
	}
	if (!worker->stopping && (ShutdownRequestPending || !outbox_enabled))
	{
		worker->stopping = true;
		outbox_worker_begin_drain(now);
	}
	worker->requests |= outbox_registry_take_requests(&due_from);
	worker->due_from = Min(worker->due_from, due_from);
	if (!worker->stopping && (worker->requests & OUTBOX_REQUEST_RELOAD) &&
		outbox_registry_is_held(MyDatabaseId))
	{
		worker->stopping = true;
		outbox_worker_begin_drain(now);
	}
	if (!worker->stopping && now >= worker->sql_retry_at)
		outbox_worker_serve(now);
	outbox_worker_renew(now);
}

/* Drained, or waited long enough? */
static void
outbox_worker_check_drained(TimestampTz now)
{
	if (!outbox_worker_draining() ||
		(!worker->stopping && now < worker->sql_retry_at))
		return;
	if (worker->transport != NULL && now < worker->drain_until &&
		outbox_pipeline_in_flight(worker->pipeline) > 0)
		return;

	if (worker->stopping)
	{
		outbox_pipeline_finish(worker->pipeline, worker->server);
		outbox_worker_disconnect();
		proc_exit(0);
	}
	outbox_pipeline_settle(worker->pipeline, worker->server, true);
	outbox_worker_disconnect();
	worker->reconnecting = false;
	worker->retry_at = 0;
	outbox_worker_set_state(worker->server->paused ? OUTBOX_WORKER_PAUSED :
							OUTBOX_WORKER_WAITING);
}

/*
 * Waiting
 */

static void
outbox_worker_build_wait_set(void)
{
	WaitEventSet *set = outbox_create_wait_event_set(worker->context,
													 worker->nsockets + 2);

	AddWaitEventToSet(set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	for (int i = 0; i < worker->nsockets; i++)
		AddWaitEventToSet(set, worker->sockets[i].events,
						  worker->sockets[i].fd, NULL, NULL);
	worker->set = set;
}

/* Bring the set up to date with what the transport waits for. */
static void
outbox_worker_update_wait_set(void)
{
	OutboxSocket sockets[OUTBOX_STREAM_MAX_SOCKETS];
	uint64		generation = 0;
	int			n = 0;

	if (worker->transport != NULL)
	{
		n = outbox_transport_sockets(worker->transport, sockets);
		generation = outbox_transport_generation(worker->transport);
	}
	if (worker->set != NULL && (generation != worker->set_generation ||
								n != worker->nsockets))
	{
		FreeWaitEventSet(worker->set);
		worker->set = NULL;
	}
	if (worker->set == NULL)
	{
		memcpy(worker->sockets, sockets, n * sizeof(OutboxSocket));
		worker->nsockets = n;
		worker->set_generation = generation;
		outbox_worker_build_wait_set();
		return;
	}
	for (int i = 0; i < n; i++)
	{
		Assert(sockets[i].fd == worker->sockets[i].fd);
		if (sockets[i].events == worker->sockets[i].events)
			continue;
		ModifyWaitEvent(worker->set, i + 2, sockets[i].events, NULL);
		worker->sockets[i].events = sockets[i].events;
	}
}

static long
outbox_worker_until(TimestampTz when, TimestampTz now, long timeout)
{
	long		ms;

	if (when == 0)
		return timeout;
	ms = TimestampDifferenceMilliseconds(now, when);
	return timeout < 0 ? ms : Min(timeout, ms);
}

/* Milliseconds until something is to be done without being woken; -1: never */
static long
outbox_worker_timeout(TimestampTz now)
{
	long		timeout = -1;
	long		ms;

	if (worker->transport == NULL)
	{
		if (!worker->copy && !worker->stopping && !worker->server->paused)
			timeout = outbox_worker_until(Max(worker->retry_at, 1), now, timeout);
	}
	else
	{
		timeout = outbox_transport_timeout(worker->transport);
		timeout = outbox_worker_until(outbox_worker_confirm_deadline(), now,
									  timeout);
		if (!outbox_worker_draining())
			timeout = outbox_worker_until(worker->renew_at, now, timeout);
	}
	if (worker->stopping)
		timeout = outbox_worker_until(Max(worker->drain_until, 1), now,
									  timeout);
	else if (worker->reconnecting)
		timeout = outbox_worker_until(Max(worker->drain_until,
										  worker->sql_retry_at), now,
									  timeout);
	if (worker->sql_retry_at != 0)
		return outbox_worker_until(worker->sql_retry_at, now, timeout);
	if (!outbox_worker_draining())
	{
		timeout = outbox_worker_until(worker->rotate_at, now, timeout);
		timeout = outbox_worker_until(outbox_pipeline_next_count(worker->pipeline),
									  now, timeout);
		timeout = outbox_worker_until(outbox_pipeline_next_read(worker->pipeline),
									  now, timeout);
		timeout = outbox_worker_until(outbox_keeper_next(worker->keeper), now,
									  timeout);
	}

	ms = outbox_pipeline_timeout(worker->pipeline, worker->server,
								 worker->ready &&
								 !worker->blocked &&
								 !outbox_worker_draining() &&
								 !outbox_keeper_holds(worker->keeper, now));
	return timeout < 0 ? ms : ms < 0 ? timeout : Min(timeout, ms);
}

static void
outbox_worker_wait(void)
{
	static uint32 wait_event = 0;
	WaitEvent	events[OUTBOX_STREAM_MAX_SOCKETS + 2];
	TimestampTz now = GetCurrentTimestamp();
	long		timeout;

	Assert(!IsTransactionState());
	if (wait_event == 0)
		wait_event = outbox_wait_event("AmqpOutboxWorker");

	outbox_worker_update_wait_set();
	timeout = outbox_worker_timeout(now);

	/* before a long sleep let the statistics know what we did */
	if (timeout < 0 || timeout > 1000)
		pgstat_report_stat(true);

	WaitEventSetWait(worker->set, timeout, events, lengthof(events),
					 wait_event);
	ResetLatch(MyLatch);
}

/*
 * The loop
 */

/* Is there more to read, also because settling has just made room? */
static bool
outbox_worker_can_read(void)
{
	return worker->read == OUTBOX_READ_SOME ||
		(worker->read == OUTBOX_READ_FULL &&
		 outbox_pipeline_has_room(worker->pipeline));
}

static void
outbox_worker_cycle(void)
{
	TimestampTz now = GetCurrentTimestamp();

	outbox_worker_check_requests(now);
	outbox_worker_drive_connection(now);
	outbox_worker_move_messages(now);
	outbox_worker_check_drained(now);

	if (!worker->sending && !outbox_worker_can_read())
		outbox_worker_wait();
}

/* An error of our own: report it, clean up, and do not try again at once. */
static void
outbox_worker_recover(void)
{
	bool		in_transaction = IsTransactionState();
	OutboxFailure failure;
	ErrorData  *error;
	TimestampTz now;
	bool		nearer;
	int			pause = 0;

	HOLD_INTERRUPTS();
	MemoryContextSwitchTo(worker->context);
	error = CopyErrorData();
	outbox_failure_set(&failure, error->sqlerrcode, error->detail, "%s",
					   error->message);
	nearer = outbox_pipeline_recover(worker->pipeline, error->sqlerrcode,
									 error->message);
	FreeErrorData(error);
	EmitErrorReport();
	AbortCurrentTransaction();
	FlushErrorState();
	LWLockReleaseAll();
	MemoryContextSwitchTo(worker->context);

	/* an error outside of SQL leaves the connection in an unknown state */
	if (!in_transaction)
		outbox_worker_disconnect();
	outbox_registry_set_error(&failure);
	if (!nearer)
		pause = outbox_worker_backoff_ms(worker->errors++,
										 OUTBOX_ERROR_FIRST_MS,
										 OUTBOX_ERROR_LAST_MS);
	now = GetCurrentTimestamp();
	worker->sql_retry_at = TimestampTzPlusMilliseconds(now, pause);
	worker->retry_at = Max(worker->retry_at, worker->sql_retry_at);
	RESUME_INTERRUPTS();
}

static void
outbox_worker_error_context(void *arg)
{
	errcontext("amqp_outbox worker for server \"%s\"", worker->server->name);
}

static void
outbox_worker_loop(void)
{
	sigjmp_buf	local_sigjmp_buf;
	ErrorContextCallback context = {.callback = outbox_worker_error_context};

	error_context_stack = &context;
	if (sigsetjmp(local_sigjmp_buf, 1) != 0)
	{
		error_context_stack = &context;
		outbox_worker_recover();
		if (worker->stopping)
			proc_exit(1);
	}
	PG_exception_stack = &local_sigjmp_buf;
	for (;;)
		outbox_worker_cycle();
}

/*
 * Entry point
 */

static void
outbox_worker_note_invalidation(Datum arg, int cacheid, uint32 hashvalue)
{
	if (cacheid == AUTHOID || cacheid == AUTHMEMROLEMEM)
		worker->roles_changed = true;
	else
		worker->invalidated = true;
}

static void
outbox_worker_init(Oid serverid)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext,
												  "amqp_outbox worker",
												  ALLOCSET_DEFAULT_SIZES);

	MemoryContextSwitchTo(context);
	worker = palloc0(sizeof(OutboxWorker));
	worker->context = context;
	worker->serverid = serverid;
	outbox_horizon_listen(MyLatch);
	CacheRegisterSyscacheCallback(FOREIGNSERVEROID,
								  outbox_worker_note_invalidation, (Datum) 0);
	CacheRegisterSyscacheCallback(USERMAPPINGOID,
								  outbox_worker_note_invalidation, (Datum) 0);
	/* what the server's owner may do */
	CacheRegisterSyscacheCallback(AUTHOID,
								  outbox_worker_note_invalidation, (Datum) 0);
	CacheRegisterSyscacheCallback(AUTHMEMROLEMEM,
								  outbox_worker_note_invalidation, (Datum) 0);

	StartTransactionCommand();
	worker->database = MemoryContextStrdup(context,
										   get_database_name(MyDatabaseId));
	CommitTransactionCommand();
	worker->server = outbox_worker_load_server(&worker->server_context);
	if (worker->server == NULL)
	{
		outbox_registry_retire();
		proc_exit(0);
	}
	MemoryContextSwitchTo(context);
	worker->pipeline = outbox_pipeline_create(worker->server->name);
	worker->keeper = outbox_keeper_create();
	worker->rotate_at = GetCurrentTimestamp();
	worker->due_from = DT_NOEND;
}

void
outbox_worker_main(Datum arg)
{
	OutboxWorkerArgs args;
	Oid			serverid;

	memcpy(&args, MyBgworkerEntry->bgw_extra, sizeof(args));
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(args.dboid, InvalidOid, 0);
	outbox_store_pin_settings();

	if (args.entry == OUTBOX_SCOUT)
	{
		outbox_scout_look(args.dboid);
		proc_exit(0);
	}
	if (!outbox_registry_attach(args.entry, args.dboid, &serverid))
		proc_exit(0);
	outbox_worker_init(serverid);
	outbox_worker_loop();
}

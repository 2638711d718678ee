/*-------------------------------------------------------------------------
 *
 * settings.c
 *	  The configuration parameters of amqp_outbox.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "miscadmin.h"
#include "utils/guc.h"

#include "health.h"
#include "settings.h"
#include "trace.h"

bool		outbox_enabled = true;
char	   *outbox_default_server = NULL;
int			outbox_drain_timeout = 2000;
int			outbox_max_message_size = 16 * 1024 * 1024;
int			outbox_max_workers = 32;
int			outbox_read_ahead = 64;
int			outbox_retention = 60 * 60;
int			outbox_rotation_size = 256;
int			outbox_inbox_retention = 7 * 24 * 60 * 60;
char	   *outbox_traceparent = NULL;
char	   *outbox_tracestate = NULL;

static bool
outbox_check_traceparent(char **value, void **extra, GucSource source)
{
	if ((*value)[0] == '\0' || outbox_trace_is_parent(*value))
		return true;
	GUC_check_errdetail("It is not a W3C traceparent: %s.",
						OUTBOX_TRACEPARENT_FORM);
	return false;
}

static bool
outbox_check_tracestate(char **value, void **extra, GucSource source)
{
	if (outbox_trace_is_state(*value))
		return true;
	GUC_check_errdetail("It is not a W3C tracestate: %s.",
						OUTBOX_TRACESTATE_FORM);
	return false;
}

void
outbox_settings_define(void)
{
	DefineCustomStringVariable("amqp_outbox.default_server",
							   "Server to which amqp_publish() publishes when no server is named.",
							   "If this is empty and there is exactly one server, that one is used.",
							   &outbox_default_server,
							   "",
							   PGC_USERSET,
							   0,
							   NULL, NULL, NULL);

	DefineCustomIntVariable("amqp_outbox.drain_timeout",
							"How long a worker that is to stop waits for the broker's outstanding confirms.",
							"What is not confirmed by then is published again at the next start.",
							&outbox_drain_timeout,
							2000,
							0, 60000,
							PGC_SIGHUP,
							GUC_UNIT_MS,
							NULL, NULL, NULL);

	DefineCustomBoolVariable("amqp_outbox.enabled",
							 "Whether this cluster publishes to brokers.",
							 "When off, messages are collected and no worker runs: for a copy that is to stay silent.",
							 &outbox_enabled,
							 true,
							 PGC_SIGHUP,
							 0,
							 NULL, NULL, NULL);

	outbox_health_define();

	DefineCustomIntVariable("amqp_outbox.inbox_retention",
							"How long amqp_inbox_accept() remembers a message at the least.",
							"Longer than a message may come again: by its broker, or by a publisher whose broker was away.",
							&outbox_inbox_retention,
							7 * 24 * 60 * 60,
							0, INT_MAX / 2,
							PGC_SUSET,
							GUC_UNIT_S,
							NULL, NULL, NULL);

	DefineCustomIntVariable("amqp_outbox.max_message_size",
							"Largest body that amqp_publish() takes.",
							"RabbitMQ refuses bodies above its own max_message_size, 16 MiB by default since 4.0.",
							&outbox_max_message_size,
							16 * 1024 * 1024,
							1, 512 * 1024 * 1024,
							PGC_SUSET,
							GUC_UNIT_BYTE,
							NULL, NULL, NULL);

	if (process_shared_preload_libraries_in_progress)
		DefineCustomIntVariable("amqp_outbox.max_workers",
								"Largest number of servers, over all databases, that are published to.",
								"Each takes one of max_worker_processes.",
								&outbox_max_workers,
								32,
								1, OUTBOX_MAX_WORKERS,
								PGC_POSTMASTER,
								0,
								NULL, NULL, NULL);

	DefineCustomIntVariable("amqp_outbox.read_ahead",
							"Memory of a worker for messages that it has read.",
							"Bodies above 64 kB count until they are sent, all else until it is settled. The last message may exceed it, however large.",
							&outbox_read_ahead,
							64,
							1, Min(4096, MAX_KILOBYTES / 1024),
							PGC_SIGHUP,
							GUC_UNIT_MB,
							NULL, NULL, NULL);

	DefineCustomIntVariable("amqp_outbox.retention",
							"How long delivered messages are kept at the least.",
							"They go with the leaf of the outbox they are in, when all in it are that old.",
							&outbox_retention,
							60 * 60,
							0, INT_MAX / 2,
							PGC_SIGHUP,
							GUC_UNIT_S,
							NULL, NULL, NULL);

	DefineCustomIntVariable("amqp_outbox.rotation_size",
							"Size beyond which no more messages are written to a leaf of the outbox, if others are free.",
							"Age closes a leaf too: half of amqp_outbox.retention.",
							&outbox_rotation_size,
							256,
							1, INT_MAX / 1024,
							PGC_SIGHUP,
							GUC_UNIT_MB,
							NULL, NULL, NULL);

	DefineCustomStringVariable("amqp_outbox.traceparent",
							   "W3C trace context that travels with the messages of this session.",
							   "A header of this name; SET LOCAL sets it for a transaction.",
							   &outbox_traceparent,
							   "",
							   PGC_USERSET,
							   0,
							   outbox_check_traceparent, NULL, NULL);

	DefineCustomStringVariable("amqp_outbox.tracestate",
							   "What vendors add to amqp_outbox.traceparent.",
							   NULL,
							   &outbox_tracestate,
							   "",
							   PGC_USERSET,
							   0,
							   outbox_check_tracestate, NULL, NULL);

	MarkGUCPrefixReserved("amqp_outbox");
}

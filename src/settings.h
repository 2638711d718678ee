/*-------------------------------------------------------------------------
 *
 * settings.h
 *	  The configuration parameters of amqp_outbox.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_SETTINGS_H
#define OUTBOX_SETTINGS_H

#include "postgres.h"

/* upper limit of amqp_outbox.max_workers */
#define OUTBOX_MAX_WORKERS	1000

extern bool outbox_enabled;
extern char *outbox_default_server;
extern int	outbox_drain_timeout;	/* milliseconds */
extern int	outbox_max_message_size;	/* bytes */
extern int	outbox_max_workers;
extern int	outbox_read_ahead;	/* MB */
extern int	outbox_retention;	/* seconds */
extern int	outbox_rotation_size;	/* MB */
extern int	outbox_inbox_retention; /* seconds */
extern char *outbox_traceparent;	/* empty: none */
extern char *outbox_tracestate; /* the same */

extern void outbox_settings_define(void);

#endif							/* OUTBOX_SETTINGS_H */

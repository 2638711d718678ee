/*-------------------------------------------------------------------------
 *
 * target.h
 *	  Where a broker is, as users write it: URIs and lists of hosts.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_TARGET_H
#define OUTBOX_TARGET_H

#include "postgres.h"

typedef struct OutboxHost
{
	char	   *name;			/* host name or address, without brackets */
	int			port;
} OutboxHost;

/* The part of a description that a URI and single options can both give. */
typedef struct OutboxTarget
{
	char	   *hosts;			/* comma list, NULL if not given */
	int			port;			/* 0 if not given */
	char	   *vhost;			/* NULL if not given */
	int			tls;			/* -1 if not given */
} OutboxTarget;

/*
 * Take a URI apart: "amqp://hosts/vhost", or "amqps://..." for TLS.  Error HV024
 * for what is none, and for one with a user, a password or parameters; it never
 * repeats the value.
 */
extern void outbox_target_parse_uri(const char *uri, OutboxTarget *target);

/*
 * The elements of a comma list of name, name:port, [address] or [address]:port;
 * palloc'd, *nhosts is at least 1.  The same error for what is none.
 */
extern OutboxHost *outbox_target_parse_hosts(const char *hosts,
											 int default_port, int *nhosts);

#endif							/* OUTBOX_TARGET_H */

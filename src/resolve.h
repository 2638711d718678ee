/*-------------------------------------------------------------------------
 *
 * resolve.h
 *	  The addresses of a host, without blocking.
 *
 * For the stream only.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_RESOLVE_H
#define OUTBOX_RESOLVE_H

#include <sys/socket.h>

#include "message.h"

/* more sockets than are ever waited for together (c-ares has at most 16) */
#define OUTBOX_STREAM_MAX_SOCKETS	16

/* A socket to wait for: events are WL_SOCKET_READABLE, WL_SOCKET_WRITEABLE. */
typedef struct OutboxSocket
{
	pgsocket	fd;
	uint32		events;
} OutboxSocket;

/* One address of a host, with the port. */
typedef struct OutboxAddress
{
	struct sockaddr_storage addr;
	socklen_t	len;
} OutboxAddress;

/* Whether it is of this machine, and of no other that it could be taken for. */
extern bool outbox_address_is_loopback(const OutboxAddress *address);

/* an IPv6 address with a scope, and a NUL */
#define OUTBOX_ADDRESS_LEN	64

/* As text without the port, never empty; cannot block. */
extern void outbox_address_print(const OutboxAddress *address, char *dst,
								 Size size);

typedef enum OutboxResolverState
{
	OUTBOX_RESOLVER_ASKING,
	OUTBOX_RESOLVER_DONE,		/* there is an address at least */
	OUTBOX_RESOLVER_FAILED
} OutboxResolverState;

typedef struct OutboxResolver OutboxResolver;

/*
 * Begin to resolve; an IP address is DONE at once.  The resolver is made in
 * CurrentMemoryContext.  Whoever owns that calls outbox_resolver_stop() before
 * it goes, and may any time before; the addresses stay.
 */
extern OutboxResolver *outbox_resolver_start(const char *host, int port);
extern void outbox_resolver_stop(OutboxResolver *resolver);

/* Go on as far as possible without waiting. */
extern OutboxResolverState outbox_resolver_advance(OutboxResolver *resolver);

/* Once DONE; valid as long as the memory context. */
extern int	outbox_resolver_addresses(const OutboxResolver *resolver,
									  const OutboxAddress **addresses);

/* Whether the host is an IP address and not a name. */
extern bool outbox_resolver_is_numeric(const OutboxResolver *resolver);

/* Once FAILED. */
extern const OutboxFailure *outbox_resolver_failure(const OutboxResolver *resolver);

/* As outbox_stream_sockets(), _generation() and _timeout(), while ASKING. */
extern int	outbox_resolver_sockets(const OutboxResolver *resolver,
									OutboxSocket *sockets);
extern uint64 outbox_resolver_generation(const OutboxResolver *resolver);
extern long outbox_resolver_timeout(const OutboxResolver *resolver);

/* A number that no set of sockets of this process has had. */
extern uint64 outbox_next_generation(void);

#endif							/* OUTBOX_RESOLVE_H */

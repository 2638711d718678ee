/*-------------------------------------------------------------------------
 *
 * resolve.c
 *	  The addresses of a host, without blocking: c-ares asks the name servers.
 *
 * Code that c-ares calls back must not allocate or raise errors: a longjmp
 * through a foreign library leaves it in pieces.  It only notes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ares.h>
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>

#include "storage/latch.h"

#include "resolve.h"

struct OutboxResolver
{
	MemoryContext context;		/* that it was made in */
	char	   *host;
	int			port;
	OutboxFailure failure;
	uint64		generation;

	OutboxAddress *addresses;
	int			naddresses;
	bool		numeric;		/* host is an IP address, not a name */

	ares_channel channel;		/* or NULL */
	bool		answered;		/* set by the callback, with the next two */
	int			answer_status;
	struct ares_addrinfo *answer;
	OutboxSocket lookups[OUTBOX_STREAM_MAX_SOCKETS];
	int			nlookups;
};


/* --------
 * Addresses
 * --------
 */

bool
outbox_address_is_loopback(const OutboxAddress *address)
{
	const struct in6_addr *ip;
	uint32		mapped;

	if (address->addr.ss_family == AF_INET)
		return ntohl(((const struct sockaddr_in *) &address->addr)->sin_addr.s_addr) >>
			24 == IN_LOOPBACKNET;
	ip = &((const struct sockaddr_in6 *) &address->addr)->sin6_addr;
	if (!IN6_IS_ADDR_V4MAPPED(ip))
		return IN6_IS_ADDR_LOOPBACK(ip);
	memcpy(&mapped, &ip->s6_addr[12], sizeof(mapped));
	return ntohl(mapped) >> 24 == IN_LOOPBACKNET;
}

void
outbox_address_print(const OutboxAddress *address, char *dst, Size size)
{
	/* with NI_NUMERICHOST this only prints */
	if (getnameinfo((const struct sockaddr *) &address->addr, address->len,
					dst, size, NULL, 0, NI_NUMERICHOST) != 0)
		strlcpy(dst, "unknown address", size);
}

static void
add_address(OutboxResolver *resolver, const struct sockaddr *addr,
			socklen_t len)
{
	OutboxAddress *address = &resolver->addresses[resolver->naddresses];

	if (len > sizeof(address->addr))
		return;
	memcpy(&address->addr, addr, len);
	address->len = len;
	if (addr->sa_family == AF_INET)
		((struct sockaddr_in *) &address->addr)->sin_port =
			htons((uint16) resolver->port);
	else if (addr->sa_family == AF_INET6)
		((struct sockaddr_in6 *) &address->addr)->sin6_port =
			htons((uint16) resolver->port);
	else
		return;
	resolver->naddresses++;
}


/* --------
 * Asking
 * --------
 */

uint64
outbox_next_generation(void)
{
	static uint64 last_generation = 0;

	return ++last_generation;
}

/*
 * c-ares opened or closed a socket, or waits for something else of it.
 * Neither direction is how it announces that the socket is about to close.
 */
static void
lookup_socket_changed(void *arg, ares_socket_t fd, int readable, int writable)
{
	OutboxResolver *resolver = (OutboxResolver *) arg;
	uint32		events = 0;
	int			i;

	if (readable)
		events |= WL_SOCKET_READABLE;
	if (writable)
		events |= WL_SOCKET_WRITEABLE;

	for (i = 0; i < resolver->nlookups; i++)
	{
		if (resolver->lookups[i].fd == fd)
			break;
	}

	if (events == 0)
	{
		if (i < resolver->nlookups)
			resolver->lookups[i] = resolver->lookups[--resolver->nlookups];
		resolver->generation = outbox_next_generation();
		return;
	}
	if (i == resolver->nlookups)
	{
		/* one too many is only slow: c-ares asks again after its timeout */
		if (i == OUTBOX_STREAM_MAX_SOCKETS)
			return;
		resolver->nlookups++;
		resolver->generation = outbox_next_generation();
	}
	resolver->lookups[i].fd = fd;
	resolver->lookups[i].events = events;
}

/*
 * c-ares has the answer.  It may say so from within ares_getaddrinfo() (a
 * name found in /etc/hosts) or ares_destroy() (there is none).
 */
static void
lookup_answered(void *arg, int status, int timeouts,
				struct ares_addrinfo *answer)
{
	OutboxResolver *resolver = (OutboxResolver *) arg;

	resolver->answered = true;
	resolver->answer_status = status;
	resolver->answer = answer;
}

/*
 * An IP address needs no name server.  With AI_NUMERICHOST getaddrinfo() only
 * parses, so it cannot block; unlike inet_pton() it knows the scope of a
 * link-local address (fe80::1%eth0).
 */
static bool
parse_numeric_host(OutboxResolver *resolver)
{
	struct addrinfo hints = {0};
	struct addrinfo *result = NULL;

	hints.ai_flags = AI_NUMERICHOST;
	hints.ai_family = AF_UNSPEC;
	hints.ai_socktype = SOCK_STREAM;
	if (getaddrinfo(resolver->host, NULL, &hints, &result) != 0)
		return false;

	add_address(resolver, result->ai_addr, result->ai_addrlen);
	freeaddrinfo(result);
	resolver->numeric = resolver->naddresses > 0;
	return resolver->numeric;
}

static void
ask(OutboxResolver *resolver)
{
	static bool library_ready = false;
	struct ares_options options = {0};
	struct ares_addrinfo_hints hints = {0};
	int			status = ARES_SUCCESS;

	if (!library_ready)
		status = ares_library_init(ARES_LIB_INIT_ALL);
	if (status == ARES_SUCCESS)
	{
		library_ready = true;
		options.sock_state_cb = lookup_socket_changed;
		options.sock_state_cb_data = resolver;
		status = ares_init_options(&resolver->channel, &options,
								   ARES_OPT_SOCK_STATE_CB);
	}
	if (status != ARES_SUCCESS)
	{
		resolver->channel = NULL;
		resolver->answered = true;
		resolver->answer_status = status;
		return;
	}

	hints.ai_family = AF_UNSPEC;
	hints.ai_socktype = SOCK_STREAM;
	ares_getaddrinfo(resolver->channel, resolver->host, NULL, &hints,
					 lookup_answered, resolver);
}

OutboxResolver *
outbox_resolver_start(const char *host, int port)
{
	OutboxResolver *resolver = palloc0(sizeof(OutboxResolver));

	resolver->context = CurrentMemoryContext;
	resolver->host = pstrdup(host);
	resolver->port = port;
	resolver->generation = outbox_next_generation();
	resolver->addresses = palloc0(sizeof(OutboxAddress));
	if (!parse_numeric_host(resolver))
		ask(resolver);
	return resolver;
}

void
outbox_resolver_stop(OutboxResolver *resolver)
{
	if (resolver->channel)
		ares_destroy(resolver->channel);
	resolver->channel = NULL;
	if (resolver->answer)
		ares_freeaddrinfo(resolver->answer);
	resolver->answer = NULL;
	resolver->nlookups = 0;
}


/* --------
 * The answer
 * --------
 */

static OutboxResolverState
fail_resolving(OutboxResolver *resolver, int status)
{
	outbox_failure_set(&resolver->failure,
					   ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION,
					   ares_strerror(status),
					   "could not resolve host name \"%s\"", resolver->host);
	return OUTBOX_RESOLVER_FAILED;
}

/* Copy the answer out of c-ares. */
static OutboxResolverState
take_answer(OutboxResolver *resolver)
{
	struct ares_addrinfo_node *node;
	int			n = 0;

	if (resolver->answer_status == ARES_SUCCESS)
	{
		for (node = resolver->answer->nodes; node; node = node->ai_next)
			n++;
		resolver->addresses = MemoryContextAllocZero(resolver->context,
													 Max(n, 1) *
													 sizeof(OutboxAddress));
		for (node = resolver->answer->nodes; node; node = node->ai_next)
			add_address(resolver, node->ai_addr, node->ai_addrlen);
	}
	outbox_resolver_stop(resolver);

	if (resolver->naddresses > 0)
		return OUTBOX_RESOLVER_DONE;
	return fail_resolving(resolver,
						  resolver->answer_status == ARES_SUCCESS ?
						  ARES_ENODATA : resolver->answer_status);
}

OutboxResolverState
outbox_resolver_advance(OutboxResolver *resolver)
{
	OutboxSocket lookups[OUTBOX_STREAM_MAX_SOCKETS];
	int			n = resolver->nlookups;

	if (resolver->naddresses > 0)
		return OUTBOX_RESOLVER_DONE;

	/*
	 * The sockets do not block, so it does no harm to offer those that are
	 * not ready.  The list changes under our hands: work on a copy, and leave
	 * out what is gone by then.
	 */
	memcpy(lookups, resolver->lookups, n * sizeof(OutboxSocket));
	for (int i = 0; i < n && !resolver->answered; i++)
	{
		bool		still_there = false;

		for (int j = 0; j < resolver->nlookups; j++)
			still_there |= resolver->lookups[j].fd == lookups[i].fd;
		if (still_there)
			ares_process_fd(resolver->channel, lookups[i].fd,
							(lookups[i].events & WL_SOCKET_WRITEABLE) ?
							lookups[i].fd : ARES_SOCKET_BAD);
	}
	/* timeouts */
	if (!resolver->answered)
		ares_process_fd(resolver->channel, ARES_SOCKET_BAD, ARES_SOCKET_BAD);
	return resolver->answered ? take_answer(resolver) : OUTBOX_RESOLVER_ASKING;
}

int
outbox_resolver_addresses(const OutboxResolver *resolver,
						  const OutboxAddress **addresses)
{
	*addresses = resolver->addresses;
	return resolver->naddresses;
}

bool
outbox_resolver_is_numeric(const OutboxResolver *resolver)
{
	return resolver->numeric;
}

const OutboxFailure *
outbox_resolver_failure(const OutboxResolver *resolver)
{
	return &resolver->failure;
}


/* --------
 * Waiting
 * --------
 */

int
outbox_resolver_sockets(const OutboxResolver *resolver, OutboxSocket *sockets)
{
	memcpy(sockets, resolver->lookups,
		   resolver->nlookups * sizeof(OutboxSocket));
	return resolver->nlookups;
}

uint64
outbox_resolver_generation(const OutboxResolver *resolver)
{
	return resolver->generation;
}

long
outbox_resolver_timeout(const OutboxResolver *resolver)
{
	struct timeval buf;
	struct timeval *tv;

	if (resolver->answered || resolver->naddresses > 0)
		return 0;
	tv = ares_timeout(resolver->channel, NULL, &buf);
	/* rounded up, for the timeout must be over by then */
	return tv ? tv->tv_sec * 1000L + (tv->tv_usec + 999) / 1000 : -1;
}

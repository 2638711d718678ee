/*-------------------------------------------------------------------------
 *
 * stream.c
 *	  A byte stream to one host: name resolution, TCP and TLS, without
 *	  blocking.
 *
 * A stream passes through the states of OutboxStreamState in their order and
 * never back: RESOLVING (resolve.c), CONNECTING (TCP, each address in turn),
 * HANDSHAKING (only with TLS: tls.c), OPEN, FAILED.  Nobody waits here; the
 * owner waits for what outbox_stream_sockets() and outbox_stream_timeout() name
 * and calls outbox_stream_advance().
 *
 * A stream lives in the worker of its server, in a memory context of its own.
 * What does not come from palloc (the socket, the objects of OpenSSL and of
 * c-ares) is released by reset callbacks of that context, so it goes with the
 * context whoever deletes that, error recovery included.  They are called last
 * made, first called: TLS says good-bye before the socket is closed.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include "portability/instr_time.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/memutils.h"

#include "stream.h"

/*
 * How long one address may take while another one is left to try.  The last
 * one has all the time that the owner of the stream allows.
 */
#define ADDRESS_TIMEOUT_MS	3000

/*
 * Without heartbeats a peer that vanished is noticed by TCP alone; the
 * system's default is to ask for the first time after two hours.
 */
#define KEEPALIVE_IDLE_S		60
#define KEEPALIVE_INTERVAL_S	15
#define KEEPALIVE_COUNT			4

struct OutboxStream
{
	MemoryContext context;		/* holds this and all that it points to */
	MemoryContextCallback release;

	OutboxStreamState state;
	OutboxStreamState failed_in;	/* with FAILED: the state before */
	OutboxFailure failure;		/* valid once something failed */
	uint64		generation;

	char	   *host;
	int			port;
	OutboxTls  *tls;			/* NULL: without */
	OutboxResolver *resolver;	/* NULL: it failed before there was one */

	/* CONNECTING */
	const OutboxAddress *addresses;
	int			naddresses;
	int			address_no;		/* the one being tried */
	int64		address_deadline;

	/* CONNECTING and later */
	pgsocket	fd;

	bool		write_failed;	/* reading goes on until it fails as well */
};


/* --------
 * Time
 * --------
 */

int64
outbox_clock_ms(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return (int64) INSTR_TIME_GET_MILLISEC(now);
}


/* --------
 * Failing and releasing
 * --------
 */

static void
close_socket(OutboxStream *stream)
{
	if (stream->fd == PGINVALID_SOCKET)
		return;
	close(stream->fd);
	ReleaseExternalFD();
	stream->fd = PGINVALID_SOCKET;
	stream->generation = outbox_next_generation();
}

/* The reset callback of the stream's memory context. */
static void
release_stream(void *arg)
{
	OutboxStream *stream = (OutboxStream *) arg;

	if (stream->resolver)
		outbox_resolver_stop(stream->resolver);
	close_socket(stream);
}

/* The first failure is the cause; whatever follows is its consequence. */
static void
fail_stream(OutboxStream *stream)
{
	Assert(stream->state != OUTBOX_STREAM_FAILED);
	stream->failed_in = stream->state;
	stream->state = OUTBOX_STREAM_FAILED;
}


/* --------
 * Connecting
 * --------
 */

static void
set_socket_options(pgsocket fd)
{
	int			on = 1;
	int			idle = KEEPALIVE_IDLE_S;
	int			interval = KEEPALIVE_INTERVAL_S;
	int			count = KEEPALIVE_COUNT;

	/* a socket without them works as well, so nobody looks at the results */
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
#ifdef TCP_KEEPIDLE
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
#endif
#ifdef TCP_KEEPINTVL
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof(interval));
#endif
#ifdef TCP_KEEPCNT
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count));
#endif
}

/* An address could not be connected; the failure counts if it was the last. */
static void
note_connect_error(OutboxStream *stream, int error)
{
	char		name[OUTBOX_ADDRESS_LEN];
	char		detail[OUTBOX_FAILURE_DETAIL_LEN];

	outbox_address_print(&stream->addresses[stream->address_no], name,
						 sizeof(name));
	snprintf(detail, sizeof(detail), "%s: %s", name, strerror(error));
	outbox_failure_set(&stream->failure,
					   ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION,
					   detail,
					   "could not connect to host \"%s\", port %d",
					   stream->host, stream->port);
}

/* Begin to connect to addresses[address_no]; false if that failed already. */
static bool
connect_address(OutboxStream *stream)
{
	const OutboxAddress *address = &stream->addresses[stream->address_no];

	stream->fd = socket(address->addr.ss_family,
						SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (stream->fd < 0)
	{
		stream->fd = PGINVALID_SOCKET;
		note_connect_error(stream, errno);
		return false;
	}
	ReserveExternalFD();
	stream->generation = outbox_next_generation();
	set_socket_options(stream->fd);
	stream->address_deadline = outbox_clock_ms() + ADDRESS_TIMEOUT_MS;

	/* a signal does not stop a connection from being made */
	if (connect(stream->fd, (const struct sockaddr *) &address->addr,
				address->len) == 0 ||
		errno == EINPROGRESS || errno == EINTR)
		return true;

	note_connect_error(stream, errno);
	close_socket(stream);
	return false;
}

/* Try the addresses from address_no on. */
static void
connect_from(OutboxStream *stream, int address_no)
{
	for (stream->address_no = address_no;
		 stream->address_no < stream->naddresses;
		 stream->address_no++)
	{
		if (connect_address(stream))
			return;
	}
	fail_stream(stream);
}

static void
start_connecting(OutboxStream *stream)
{
	stream->state = OUTBOX_STREAM_CONNECTING;
	stream->naddresses = outbox_resolver_addresses(stream->resolver,
												   &stream->addresses);
	connect_from(stream, 0);
}

/* 0: connected; EINPROGRESS: not yet; else the reason why not. */
static int
connect_progress(pgsocket fd)
{
	int			error = 0;
	socklen_t	len = sizeof(error);
	struct sockaddr_storage peer;
	socklen_t	peer_len = sizeof(peer);

	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len) < 0)
		return errno;
	if (error != 0)
		return error;
	/* no error means connected or not yet; who has a peer is connected */
	if (getpeername(fd, (struct sockaddr *) &peer, &peer_len) == 0)
		return 0;
	return errno == ENOTCONN ? EINPROGRESS : errno;
}


/* --------
 * Reading and writing
 * --------
 */

/* The stream was open and is not any more; 0 stands for an end of file. */
static void
set_loss(OutboxStream *stream, const char *detail)
{
	/* a write that failed before is the cause */
	if (stream->write_failed)
		return;
	outbox_failure_set(&stream->failure, ERRCODE_CONNECTION_FAILURE, detail,
					   detail ? "connection to the broker lost" :
					   "connection closed by the broker");
}

static ssize_t
tcp_read(OutboxStream *stream, char *buf, Size len, const char **detail)
{
	ssize_t		n;

	do
		n = recv(stream->fd, buf, len, 0);
	while (n < 0 && errno == EINTR);

	if (n > 0)
		return n;
	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
		return 0;
	*detail = n == 0 ? NULL : strerror(errno);
	return -1;
}

static ssize_t
tcp_write(OutboxStream *stream, const char *buf, Size len,
		  const char **detail)
{
	ssize_t		n;

	do
		n = send(stream->fd, buf, len, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);

	if (n >= 0)
		return n;
	if (errno == EAGAIN || errno == EWOULDBLOCK)
		return 0;
	*detail = strerror(errno);
	return -1;
}

ssize_t
outbox_stream_read(OutboxStream *stream, char *buf, Size len)
{
	const char *detail;
	ssize_t		n;

	Assert(stream->state == OUTBOX_STREAM_OPEN);
	Assert(len > 0);

	if (stream->tls)
		n = outbox_tls_read(stream->tls, buf, len, &detail);
	else
		n = tcp_read(stream, buf, len, &detail);
	if (n < 0)
	{
		set_loss(stream, detail);
		fail_stream(stream);
	}
	return n;
}

ssize_t
outbox_stream_write(OutboxStream *stream, const char *buf, Size len)
{
	const char *detail;
	ssize_t		n;

	Assert(stream->state == OUTBOX_STREAM_OPEN);
	Assert(len > 0);

	if (stream->write_failed)
		return -1;
	if (stream->tls)
		n = outbox_tls_write(stream->tls, buf, len, &detail);
	else
		n = tcp_write(stream, buf, len, &detail);
	if (n < 0)
	{
		set_loss(stream, detail);
		stream->write_failed = true;
	}
	return n;
}


/* --------
 * The life of a stream
 * --------
 */

OutboxStream *
outbox_stream_open(const char *host, int port, const OutboxTlsOptions *tls,
				   const char *key_password)
{
	MemoryContext context;
	MemoryContext old_context;
	OutboxStream *stream;

	context = AllocSetContextCreate(CurrentMemoryContext,
									"amqp_outbox stream",
									ALLOCSET_SMALL_SIZES);
	stream = MemoryContextAllocZero(context, sizeof(OutboxStream));
	stream->context = context;
	stream->fd = PGINVALID_SOCKET;
	stream->state = OUTBOX_STREAM_RESOLVING;
	stream->host = MemoryContextStrdup(context, host);
	stream->port = port;
	stream->generation = outbox_next_generation();

	stream->release.func = release_stream;
	stream->release.arg = stream;
	MemoryContextRegisterResetCallback(context, &stream->release);

	/*
	 * TLS is made ready before anything else: a file that cannot be read is a
	 * mistake of ours, to be told whether or not the broker answers.
	 */
	old_context = MemoryContextSwitchTo(context);
	if (tls)
		stream->tls = outbox_tls_create(tls, key_password, host, port,
										&stream->failure);
	if (tls && stream->tls == NULL)
		fail_stream(stream);
	else
		stream->resolver = outbox_resolver_start(host, port);
	MemoryContextSwitchTo(old_context);

	/* so that whoever gave an address never sees RESOLVING */
	if (stream->resolver && outbox_resolver_is_numeric(stream->resolver))
		start_connecting(stream);
	return stream;
}

static void
advance_resolving(OutboxStream *stream)
{
	switch (outbox_resolver_advance(stream->resolver))
	{
		case OUTBOX_RESOLVER_ASKING:
			break;
		case OUTBOX_RESOLVER_DONE:
			start_connecting(stream);
			break;
		case OUTBOX_RESOLVER_FAILED:
			stream->failure = *outbox_resolver_failure(stream->resolver);
			fail_stream(stream);
			break;
	}
}

static void
start_handshake(OutboxStream *stream)
{
	bool		numeric = outbox_resolver_is_numeric(stream->resolver);

	stream->state = OUTBOX_STREAM_HANDSHAKING;
	if (!outbox_tls_start(stream->tls, stream->fd,
						  numeric ? stream->addresses : NULL,
						  &stream->failure))
		fail_stream(stream);
}

static void
advance_handshake(OutboxStream *stream)
{
	switch (outbox_tls_handshake(stream->tls, &stream->failure))
	{
		case OUTBOX_TLS_WAITS:
			break;
		case OUTBOX_TLS_OPEN:
			stream->state = OUTBOX_STREAM_OPEN;
			break;
		case OUTBOX_TLS_FAILED:
			fail_stream(stream);
			break;
	}
}

static void
advance_connecting(OutboxStream *stream)
{
	int			error = connect_progress(stream->fd);

	if (error == 0)
	{
		if (stream->tls)
			start_handshake(stream);
		else
			stream->state = OUTBOX_STREAM_OPEN;
		return;
	}
	if (error == EINPROGRESS)
	{
		if (stream->address_no + 1 == stream->naddresses ||
			outbox_clock_ms() < stream->address_deadline)
			return;
		error = ETIMEDOUT;
	}
	note_connect_error(stream, error);
	close_socket(stream);
	connect_from(stream, stream->address_no + 1);
}

OutboxStreamState
outbox_stream_advance(OutboxStream *stream)
{
	OutboxStreamState before;

	do
	{
		before = stream->state;
		switch (stream->state)
		{
			case OUTBOX_STREAM_RESOLVING:
				advance_resolving(stream);
				break;
			case OUTBOX_STREAM_CONNECTING:
				advance_connecting(stream);
				break;
			case OUTBOX_STREAM_HANDSHAKING:
				advance_handshake(stream);
				break;
			case OUTBOX_STREAM_OPEN:
			case OUTBOX_STREAM_FAILED:
				break;
		}
	} while (stream->state != before);
	return stream->state;
}

/* What the one socket of a connected or connecting stream is waiting for. */
static uint32
wanted_events(const OutboxStream *stream, bool want_write)
{
	if (stream->state == OUTBOX_STREAM_CONNECTING)
		return WL_SOCKET_WRITEABLE;
	if (stream->tls)
		return outbox_tls_events(stream->tls, want_write);
	return WL_SOCKET_READABLE | (want_write ? WL_SOCKET_WRITEABLE : 0);
}

int
outbox_stream_sockets(OutboxStream *stream, bool want_write,
					  OutboxSocket *sockets)
{
	switch (stream->state)
	{
		case OUTBOX_STREAM_RESOLVING:
			return outbox_resolver_sockets(stream->resolver, sockets);
		case OUTBOX_STREAM_CONNECTING:
		case OUTBOX_STREAM_HANDSHAKING:
		case OUTBOX_STREAM_OPEN:
			sockets[0].fd = stream->fd;
			sockets[0].events = wanted_events(stream, want_write);
			return 1;
		case OUTBOX_STREAM_FAILED:
			break;
	}
	return 0;
}

uint64
outbox_stream_generation(const OutboxStream *stream)
{
	return stream->state == OUTBOX_STREAM_RESOLVING ?
		outbox_resolver_generation(stream->resolver) : stream->generation;
}

long
outbox_stream_timeout(OutboxStream *stream)
{
	if (stream->state == OUTBOX_STREAM_RESOLVING)
		return outbox_resolver_timeout(stream->resolver);
	if (stream->state == OUTBOX_STREAM_CONNECTING &&
		stream->address_no + 1 < stream->naddresses)
		return (long) Max(stream->address_deadline - outbox_clock_ms(), 0);
	return -1;
}

const OutboxFailure *
outbox_stream_failure(const OutboxStream *stream)
{
	return &stream->failure;
}

/* --------
 * What is known of a stream
 * --------
 */

static void
report_address(const OutboxStream *stream, OutboxStreamReport *report)
{
	int			address_no = Min(stream->address_no, stream->naddresses - 1);
	const OutboxAddress *address = &stream->addresses[address_no];

	outbox_address_print(address, report->address, sizeof(report->address));
	report->loopback = outbox_address_is_loopback(address);
}

void
outbox_stream_report(const OutboxStream *stream, OutboxStreamReport *report)
{
	memset(report, 0, sizeof(*report));
	report->reached = stream->state == OUTBOX_STREAM_FAILED ?
		stream->failed_in : stream->state;
	report->naddresses = stream->naddresses;
	if (stream->naddresses > 0)
		report_address(stream, report);
	if (stream->tls)
		outbox_tls_report(stream->tls, &report->tls);
}

void
outbox_stream_close(OutboxStream *stream)
{
	if (stream)
		MemoryContextDelete(stream->context);
}

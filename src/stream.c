/*-------------------------------------------------------------------------
 *
 * stream.c
 *	  A byte stream to one host: name resolution, TCP and TLS, without
 *	  blocking.
 *
 * A stream passes through the states of OutboxStreamState in their order and
 * never back: RESOLVING (c-ares asks the name servers), CONNECTING (TCP, each
 * address in turn), HANDSHAKING (only with TLS), OPEN, FAILED.  Nobody waits
 * here; the owner waits for what outbox_stream_sockets() and
 * outbox_stream_timeout() name and calls outbox_stream_advance().
 *
 * A stream lives in the worker of its server, in a memory context of its own.
 * What does not come from palloc (the socket, the objects of OpenSSL and of
 * c-ares) is released by a reset callback of that context, so it goes with
 * the context whoever deletes that, error recovery included.
 *
 * Code that c-ares or OpenSSL calls back must not allocate or raise errors: a
 * longjmp through a foreign library leaves it in pieces.
 *
 * SIGPIPE is ignored in every backend; OpenSSL's writes rely on that.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ares.h>
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <sys/socket.h>
#include <unistd.h>

#include "mb/pg_wchar.h"
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

/* SSL_write takes an int; this is plenty and far from its limit */
#define TLS_WRITE_MAX	(1024 * 1024)

typedef struct OutboxAddress
{
	struct sockaddr_storage addr;
	socklen_t	len;
} OutboxAddress;

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
	bool		tls;

	/* RESOLVING */
	ares_channel resolver;		/* or NULL */
	bool		answered;		/* set by the callback, with the next two */
	int			answer_status;
	struct ares_addrinfo *answer;
	OutboxSocket lookups[OUTBOX_STREAM_MAX_SOCKETS];
	int			nlookups;

	/* CONNECTING */
	OutboxAddress *addresses;
	int			naddresses;
	int			address_no;		/* the one being tried */
	int64		address_deadline;
	bool		numeric;		/* host is an IP address, not a name */

	/* CONNECTING and later */
	pgsocket	fd;

	/* TLS */
	SSL_CTX    *ssl_ctx;
	SSL		   *ssl;
	bool		read_wants_write;	/* what OpenSSL waits for, if that is */
	bool		write_wants_read;	/* the opposite of what was asked */
	char		subject[256];	/* of a certificate that was not accepted */
	int			days_left;		/* of it */

	bool		write_failed;	/* reading goes on until it fails as well */
};

static void start_connecting(OutboxStream *stream);


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

/*
 * The number is unique in the process, so that a new stream is never taken
 * for an old one.
 */
static void
touch_generation(OutboxStream *stream)
{
	static uint64 last_generation = 0;

	stream->generation = ++last_generation;
}

static void
close_socket(OutboxStream *stream)
{
	if (stream->fd == PGINVALID_SOCKET)
		return;
	close(stream->fd);
	ReleaseExternalFD();
	stream->fd = PGINVALID_SOCKET;
	touch_generation(stream);
}

static void
stop_resolving(OutboxStream *stream)
{
	if (stream->resolver)
		ares_destroy(stream->resolver);
	stream->resolver = NULL;
	if (stream->answer)
		ares_freeaddrinfo(stream->answer);
	stream->answer = NULL;
	stream->nlookups = 0;
}

/* The reset callback of the stream's memory context. */
static void
release_stream(void *arg)
{
	OutboxStream *stream = (OutboxStream *) arg;

	stop_resolving(stream);
	if (stream->ssl)
	{
		/* a polite close_notify, if the socket takes it at once */
		if (stream->state == OUTBOX_STREAM_OPEN && !stream->write_failed)
			(void) SSL_shutdown(stream->ssl);
		SSL_free(stream->ssl);
	}
	if (stream->ssl_ctx)
		SSL_CTX_free(stream->ssl_ctx);
	if (stream->tls)
		ERR_clear_error();
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
 * Resolving
 * --------
 */

/*
 * c-ares opened or closed a socket, or waits for something else of it.
 * Neither direction is how it announces that the socket is about to close.
 */
static void
lookup_socket_changed(void *arg, ares_socket_t fd, int readable, int writable)
{
	OutboxStream *stream = (OutboxStream *) arg;
	uint32		events = 0;
	int			i;

	if (readable)
		events |= WL_SOCKET_READABLE;
	if (writable)
		events |= WL_SOCKET_WRITEABLE;

	for (i = 0; i < stream->nlookups; i++)
	{
		if (stream->lookups[i].fd == fd)
			break;
	}

	if (events == 0)
	{
		if (i < stream->nlookups)
			stream->lookups[i] = stream->lookups[--stream->nlookups];
		touch_generation(stream);
		return;
	}
	if (i == stream->nlookups)
	{
		/* one too many is only slow: c-ares asks again after its timeout */
		if (i == OUTBOX_STREAM_MAX_SOCKETS)
			return;
		stream->nlookups++;
		touch_generation(stream);
	}
	stream->lookups[i].fd = fd;
	stream->lookups[i].events = events;
}

/*
 * c-ares has the answer.  It may say so from within ares_getaddrinfo() (a
 * name found in /etc/hosts) or ares_destroy() (there is none).
 */
static void
lookup_answered(void *arg, int status, int timeouts,
				struct ares_addrinfo *answer)
{
	OutboxStream *stream = (OutboxStream *) arg;

	stream->answered = true;
	stream->answer_status = status;
	stream->answer = answer;
}

static void
fail_resolving(OutboxStream *stream, int status)
{
	outbox_failure_set(&stream->failure,
					   ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION,
					   ares_strerror(status),
					   "could not resolve host name \"%s\"", stream->host);
	fail_stream(stream);
}

static void
add_address(OutboxStream *stream, const struct sockaddr *addr, socklen_t len)
{
	OutboxAddress *address = &stream->addresses[stream->naddresses];

	if (len > sizeof(address->addr))
		return;
	memcpy(&address->addr, addr, len);
	address->len = len;
	if (addr->sa_family == AF_INET)
		((struct sockaddr_in *) &address->addr)->sin_port =
			htons((uint16) stream->port);
	else if (addr->sa_family == AF_INET6)
		((struct sockaddr_in6 *) &address->addr)->sin6_port =
			htons((uint16) stream->port);
	else
		return;
	stream->naddresses++;
}

/*
 * An IP address needs no name server.  With AI_NUMERICHOST getaddrinfo() only
 * parses, so it cannot block; unlike inet_pton() it knows the scope of a
 * link-local address (fe80::1%eth0).
 */
static bool
parse_numeric_host(OutboxStream *stream)
{
	struct addrinfo hints = {0};
	struct addrinfo *result = NULL;

	hints.ai_flags = AI_NUMERICHOST;
	hints.ai_family = AF_UNSPEC;
	hints.ai_socktype = SOCK_STREAM;
	if (getaddrinfo(stream->host, NULL, &hints, &result) != 0)
		return false;

	add_address(stream, result->ai_addr, result->ai_addrlen);
	freeaddrinfo(result);
	stream->numeric = stream->naddresses > 0;
	return stream->numeric;
}

static void
start_resolving(OutboxStream *stream)
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
		options.sock_state_cb_data = stream;
		status = ares_init_options(&stream->resolver, &options,
								   ARES_OPT_SOCK_STATE_CB);
	}
	if (status != ARES_SUCCESS)
	{
		stream->resolver = NULL;
		fail_resolving(stream, status);
		return;
	}

	hints.ai_family = AF_UNSPEC;
	hints.ai_socktype = SOCK_STREAM;
	ares_getaddrinfo(stream->resolver, stream->host, NULL, &hints,
					 lookup_answered, stream);
}

/* Copy the answer out of c-ares, and go on with TCP. */
static void
take_answer(OutboxStream *stream)
{
	struct ares_addrinfo_node *node;
	int			n = 0;

	if (stream->answer_status == ARES_SUCCESS)
	{
		for (node = stream->answer->nodes; node; node = node->ai_next)
			n++;
		stream->addresses = MemoryContextAllocZero(stream->context,
												   Max(n, 1) *
												   sizeof(OutboxAddress));
		for (node = stream->answer->nodes; node; node = node->ai_next)
			add_address(stream, node->ai_addr, node->ai_addrlen);
	}
	stop_resolving(stream);

	if (stream->naddresses > 0)
		start_connecting(stream);
	else
		fail_resolving(stream, stream->answer_status == ARES_SUCCESS ?
					   ARES_ENODATA : stream->answer_status);
}

static void
advance_resolving(OutboxStream *stream)
{
	OutboxSocket lookups[OUTBOX_STREAM_MAX_SOCKETS];
	int			n = stream->nlookups;

	/*
	 * The sockets do not block, so it does no harm to offer those that are
	 * not ready.  The list changes under our hands: work on a copy, and leave
	 * out what is gone by then.
	 */
	memcpy(lookups, stream->lookups, n * sizeof(OutboxSocket));
	for (int i = 0; i < n && !stream->answered; i++)
	{
		bool		still_there = false;

		for (int j = 0; j < stream->nlookups; j++)
			still_there |= stream->lookups[j].fd == lookups[i].fd;
		if (still_there)
			ares_process_fd(stream->resolver, lookups[i].fd,
							(lookups[i].events & WL_SOCKET_WRITEABLE) ?
							lookups[i].fd : ARES_SOCKET_BAD);
	}
	/* timeouts */
	if (!stream->answered)
		ares_process_fd(stream->resolver, ARES_SOCKET_BAD, ARES_SOCKET_BAD);
	if (stream->answered)
		take_answer(stream);
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
	OutboxAddress *address = &stream->addresses[stream->address_no];
	char		name[NI_MAXHOST] = "";
	char		detail[OUTBOX_FAILURE_DETAIL_LEN];

	/* with NI_NUMERICHOST this only prints; it cannot block */
	if (getnameinfo((struct sockaddr *) &address->addr, address->len,
					name, sizeof(name), NULL, 0, NI_NUMERICHOST) != 0)
		strlcpy(name, stream->host, sizeof(name));
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
	OutboxAddress *address = &stream->addresses[stream->address_no];

	stream->fd = socket(address->addr.ss_family,
						SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (stream->fd < 0)
	{
		stream->fd = PGINVALID_SOCKET;
		note_connect_error(stream, errno);
		return false;
	}
	ReserveExternalFD();
	touch_generation(stream);
	set_socket_options(stream->fd);
	stream->address_deadline = outbox_clock_ms() + ADDRESS_TIMEOUT_MS;

	/* a signal does not stop a connection from being made */
	if (connect(stream->fd, (struct sockaddr *) &address->addr,
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
 * TLS
 * --------
 */

/* OpenSSL must never ask anybody at a terminal for a passphrase. */
static int
no_passphrase(char *buf, int size, int rwflag, void *arg)
{
	return 0;
}

/*
 * What OpenSSL complained of first, which is nearest to the cause.  Its error
 * queue is left empty.
 */
static const char *
take_tls_error(void)
{
	unsigned long code = ERR_peek_error();
	const char *reason;

	ERR_clear_error();
#ifdef ERR_SYSTEM_ERROR
	/* OpenSSL 3 has no words for these */
	if (ERR_SYSTEM_ERROR(code))
		return strerror(ERR_GET_REASON(code));
#endif
	reason = ERR_reason_error_string(code);
	return reason ? reason : "unknown TLS error";
}

static void
fail_tls(OutboxStream *stream, const char *detail)
{
	outbox_failure_set(&stream->failure,
					   ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION,
					   detail,
					   "could not establish TLS with host \"%s\", port %d",
					   stream->host, stream->port);
	fail_stream(stream);
}

/* Whose certificate it is, and how long it is still good. */
static void
describe_certificate(X509 *cert, char *subject, Size size, int *days_left)
{
	int			seconds;

	(void) X509_NAME_oneline(X509_get_subject_name(cert), subject, (int) size);
	if (ASN1_TIME_diff(days_left, &seconds, NULL,
					   X509_get0_notAfter(cert)) != 1)
		*days_left = 0;
	else if (*days_left == 0 && seconds < 0)
		*days_left = -1;
}

/*
 * Called by OpenSSL for each certificate of the chain.  It decides nothing; it
 * notes which one is not accepted, for the peer's is not kept then.
 */
static int
note_verification(int ok, X509_STORE_CTX *store)
{
	SSL		   *ssl = X509_STORE_CTX_get_ex_data(store,
												 SSL_get_ex_data_X509_STORE_CTX_idx());
	OutboxStream *stream = SSL_get_app_data(ssl);
	X509	   *cert = X509_STORE_CTX_get_current_cert(store);

	if (!ok && cert != NULL)
		describe_certificate(cert, stream->subject, sizeof(stream->subject),
							 &stream->days_left);
	return ok;
}

/*
 * The SSL_CTX is made before anything else: a CA file that cannot be read is
 * a mistake of ours, to be told whether or not the broker answers.
 */
static bool
create_tls_context(OutboxStream *stream, const char *cacertfile)
{
	SSL_CTX    *ctx;
	int			ok;

	ERR_clear_error();
	ctx = SSL_CTX_new(TLS_client_method());
	if (ctx == NULL)
	{
		fail_tls(stream, take_tls_error());
		return false;
	}
	stream->ssl_ctx = ctx;
	SSL_CTX_set_default_passwd_cb(ctx, no_passphrase);
	SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION);
	SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER, note_verification);

	/* output waits in a buffer that grows, and so moves, between two tries */
	SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE |
					 SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);

	if (cacertfile)
		ok = SSL_CTX_load_verify_locations(ctx, cacertfile, NULL);
	else
		ok = SSL_CTX_set_default_verify_paths(ctx);
	if (ok != 1)
	{
		outbox_failure_set(&stream->failure, ERRCODE_CONFIG_FILE_ERROR,
						   take_tls_error(),
						   "could not load CA certificates from \"%s\"",
						   cacertfile ? cacertfile : "the system's store");
		fail_stream(stream);
		return false;
	}
	return true;
}

/* The certificate must be for the IP address that the host option names. */
static bool
expect_address(OutboxStream *stream)
{
	X509_VERIFY_PARAM *param = SSL_get0_param(stream->ssl);
	struct sockaddr_storage *addr = &stream->addresses[0].addr;
	const void *ip;
	size_t		len;

	if (addr->ss_family == AF_INET)
	{
		ip = &((struct sockaddr_in *) addr)->sin_addr;
		len = 4;
	}
	else
	{
		ip = &((struct sockaddr_in6 *) addr)->sin6_addr;
		len = 16;
	}
	return X509_VERIFY_PARAM_set1_ip(param, ip, len) == 1;
}

/* The certificate must be for the host name, which the broker is told (SNI). */
static bool
expect_name(OutboxStream *stream)
{
	SSL_set_hostflags(stream->ssl, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
	return SSL_set1_host(stream->ssl, stream->host) == 1 &&
		SSL_set_tlsext_host_name(stream->ssl, stream->host) == 1;
}

static void
start_handshake(OutboxStream *stream)
{
	stream->state = OUTBOX_STREAM_HANDSHAKING;
	ERR_clear_error();
	stream->ssl = SSL_new(stream->ssl_ctx);
	if (stream->ssl == NULL ||
		SSL_set_app_data(stream->ssl, stream) != 1 ||
		SSL_set_fd(stream->ssl, stream->fd) != 1 ||
		!(stream->numeric ? expect_address(stream) : expect_name(stream)))
		fail_tls(stream, take_tls_error());
}

/* Did the peer just go away, as far as the last call of OpenSSL tells? */
static bool
tls_saw_eof(int error, int save_errno)
{
	if (error == SSL_ERROR_ZERO_RETURN)
		return true;
	if (error == SSL_ERROR_SYSCALL)
		return save_errno == 0;
#ifdef SSL_R_UNEXPECTED_EOF_WHILE_READING
	if (error == SSL_ERROR_SSL)
		return ERR_GET_REASON(ERR_peek_error()) ==
			SSL_R_UNEXPECTED_EOF_WHILE_READING;
#endif
	return false;
}

static void
advance_handshake(OutboxStream *stream)
{
	int			error;
	int			save_errno;
	long		verified;

	ERR_clear_error();
	errno = 0;
	error = SSL_get_error(stream->ssl, SSL_connect(stream->ssl));
	save_errno = errno;
	stream->read_wants_write = error == SSL_ERROR_WANT_WRITE;
	if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE)
		return;
	if (error == SSL_ERROR_NONE)
	{
		stream->state = OUTBOX_STREAM_OPEN;
		return;
	}

	verified = SSL_get_verify_result(stream->ssl);
	if (verified != X509_V_OK)
	{
		outbox_failure_set(&stream->failure,
						   ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION,
						   X509_verify_cert_error_string(verified),
						   "could not verify the certificate of host \"%s\", port %d",
						   stream->host, stream->port);
		fail_stream(stream);
	}
	else if (tls_saw_eof(error, save_errno))
		fail_tls(stream, "connection closed by the broker");
	else if (error == SSL_ERROR_SYSCALL)
		fail_tls(stream, strerror(save_errno));
	else
		fail_tls(stream, take_tls_error());
	ERR_clear_error();
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

/*
 * What a call of SSL_read or SSL_write that moved nothing comes to: 0 would
 * block, -1 with the failure set.  *opposite tells if the call waits for the
 * other direction.
 */
static int
tls_stalled(OutboxStream *stream, int result, int opposite_error,
			bool *opposite)
{
	int			save_errno = errno;
	int			error = SSL_get_error(stream->ssl, result);
	const char *detail;

	*opposite = error == opposite_error;
	if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE)
		return 0;

	if (tls_saw_eof(error, save_errno))
		detail = NULL;
	else if (error == SSL_ERROR_SYSCALL)
		detail = strerror(save_errno);
	else
		detail = take_tls_error();
	set_loss(stream, detail);
	ERR_clear_error();
	return -1;
}

static ssize_t
tls_read(OutboxStream *stream, char *buf, Size len)
{
	int			n;

	ERR_clear_error();
	errno = 0;
	n = SSL_read(stream->ssl, buf, (int) Min(len, (Size) INT_MAX));
	if (n > 0)
	{
		stream->read_wants_write = false;

		/* whatever a write waited for may have been in there */
		stream->write_wants_read = false;
		return n;
	}
	return tls_stalled(stream, n, SSL_ERROR_WANT_WRITE,
					   &stream->read_wants_write);
}

static ssize_t
tls_write(OutboxStream *stream, const char *buf, Size len)
{
	int			n;

	ERR_clear_error();
	errno = 0;
	n = SSL_write(stream->ssl, buf, (int) Min(len, (Size) TLS_WRITE_MAX));
	if (n > 0)
	{
		stream->write_wants_read = false;
		return n;
	}
	return tls_stalled(stream, n, SSL_ERROR_WANT_READ,
					   &stream->write_wants_read);
}

static ssize_t
tcp_read(OutboxStream *stream, char *buf, Size len)
{
	ssize_t		n;

	do
		n = recv(stream->fd, buf, len, 0);
	while (n < 0 && errno == EINTR);

	if (n > 0)
		return n;
	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
		return 0;
	set_loss(stream, n == 0 ? NULL : strerror(errno));
	return -1;
}

static ssize_t
tcp_write(OutboxStream *stream, const char *buf, Size len)
{
	ssize_t		n;

	do
		n = send(stream->fd, buf, len, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);

	if (n >= 0)
		return n;
	if (errno == EAGAIN || errno == EWOULDBLOCK)
		return 0;
	set_loss(stream, strerror(errno));
	return -1;
}

ssize_t
outbox_stream_read(OutboxStream *stream, char *buf, Size len)
{
	ssize_t		n;

	Assert(stream->state == OUTBOX_STREAM_OPEN);
	Assert(len > 0);

	if (stream->ssl)
		n = tls_read(stream, buf, len);
	else
		n = tcp_read(stream, buf, len);
	if (n < 0)
		fail_stream(stream);
	return n;
}

ssize_t
outbox_stream_write(OutboxStream *stream, const char *buf, Size len)
{
	ssize_t		n;

	Assert(stream->state == OUTBOX_STREAM_OPEN);
	Assert(len > 0);

	if (stream->write_failed)
		return -1;
	if (stream->ssl)
		n = tls_write(stream, buf, len);
	else
		n = tcp_write(stream, buf, len);
	if (n < 0)
		stream->write_failed = true;
	return n;
}


/* --------
 * The life of a stream
 * --------
 */

OutboxStream *
outbox_stream_open(const char *host, int port, bool tls,
				   const char *cacertfile)
{
	MemoryContext context;
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
	stream->tls = tls;
	stream->addresses = MemoryContextAllocZero(context,
											   sizeof(OutboxAddress));
	touch_generation(stream);

	stream->release.func = release_stream;
	stream->release.arg = stream;
	MemoryContextRegisterResetCallback(context, &stream->release);

	if (tls && !create_tls_context(stream, cacertfile))
		return stream;
	if (parse_numeric_host(stream))
		start_connecting(stream);
	else
		start_resolving(stream);
	return stream;
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
	switch (stream->state)
	{
		case OUTBOX_STREAM_CONNECTING:
			return WL_SOCKET_WRITEABLE;
		case OUTBOX_STREAM_HANDSHAKING:
			return stream->read_wants_write ?
				WL_SOCKET_WRITEABLE : WL_SOCKET_READABLE;
		default:
			break;
	}

	/* a write that needs input first would spin on a writeable socket */
	if ((want_write && !stream->write_wants_read) || stream->read_wants_write)
		return WL_SOCKET_READABLE | WL_SOCKET_WRITEABLE;
	return WL_SOCKET_READABLE;
}

int
outbox_stream_sockets(OutboxStream *stream, bool want_write,
					  OutboxSocket *sockets)
{
	switch (stream->state)
	{
		case OUTBOX_STREAM_RESOLVING:
			memcpy(sockets, stream->lookups,
				   stream->nlookups * sizeof(OutboxSocket));
			return stream->nlookups;
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
	return stream->generation;
}

long
outbox_stream_timeout(OutboxStream *stream)
{
	if (stream->state == OUTBOX_STREAM_RESOLVING)
	{
		struct timeval buf;
		struct timeval *tv;

		if (stream->answered)
			return 0;
		tv = ares_timeout(stream->resolver, NULL, &buf);
		/* rounded up, for the timeout must be over by then */
		return tv ? tv->tv_sec * 1000L + (tv->tv_usec + 999) / 1000 : -1;
	}
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

static bool
is_loopback(const struct sockaddr_storage *addr)
{
	if (addr->ss_family == AF_INET)
		return ntohl(((const struct sockaddr_in *) addr)->sin_addr.s_addr) >>
			24 == IN_LOOPBACKNET;
	return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *) addr)->sin6_addr);
}

static void
report_address(const OutboxStream *stream, OutboxStreamReport *report)
{
	int			address_no = Min(stream->address_no, stream->naddresses - 1);
	const OutboxAddress *address = &stream->addresses[address_no];

	/* with NI_NUMERICHOST this only prints; it cannot block */
	if (getnameinfo((const struct sockaddr *) &address->addr, address->len,
					report->address, sizeof(report->address), NULL, 0,
					NI_NUMERICHOST) != 0)
		report->address[0] = '\0';
	report->loopback = is_loopback(&address->addr);
}

static OutboxTrust
trust_of(long verified)
{
	switch (verified)
	{
		case X509_V_OK:
			return OUTBOX_TRUST_OK;
		case X509_V_ERR_CERT_HAS_EXPIRED:
			return OUTBOX_TRUST_EXPIRED;
		case X509_V_ERR_CERT_NOT_YET_VALID:
			return OUTBOX_TRUST_NOT_YET;
		case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
		case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
		case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
		case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
		case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
			return OUTBOX_TRUST_NO_CA;
		case X509_V_ERR_HOSTNAME_MISMATCH:
		case X509_V_ERR_IP_ADDRESS_MISMATCH:
			return OUTBOX_TRUST_NAME;
		default:
			return OUTBOX_TRUST_OTHER;
	}
}

/* Of the chain that was accepted, the certificate that ends first. */
static void
report_chain(const OutboxStream *stream, OutboxStreamReport *report)
{
	STACK_OF(X509) *chain = SSL_get0_verified_chain(stream->ssl);
	char		subject[sizeof(report->subject)];
	int			days_left;

	for (int i = 0; chain != NULL && i < sk_X509_num(chain); i++)
	{
		describe_certificate(sk_X509_value(chain, i), subject,
							 sizeof(subject), &days_left);
		if (i > 0 && days_left >= report->days_left)
			continue;
		strlcpy(report->subject, subject, sizeof(report->subject));
		report->days_left = days_left;
	}
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
	if (stream->ssl == NULL)
		return;
	report->trust = trust_of(SSL_get_verify_result(stream->ssl));
	if (report->trust != OUTBOX_TRUST_OK)
	{
		strlcpy(report->subject, stream->subject, sizeof(report->subject));
		report->days_left = stream->days_left;
	}
	else if (report->reached == OUTBOX_STREAM_OPEN)
	{
		strlcpy(report->tls_version, SSL_get_version(stream->ssl),
				sizeof(report->tls_version));
		report_chain(stream, report);
	}
}

void
outbox_stream_close(OutboxStream *stream)
{
	if (stream)
		MemoryContextDelete(stream->context);
}

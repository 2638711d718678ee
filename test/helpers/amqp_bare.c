/*
 * amqp_bare.c
 *	  The bare publisher that the benchmark compares the extension with: a
 *	  pipelined, confirmed publisher with nothing behind it but memory.
 *
 * It does what is needed to publish reliably and not one thing more:
 * librabbitmq is its codec only, the socket is its own and non-blocking, many
 * messages share one send, and at most a window of them is unconfirmed.
 * Messages look like the extension's: persistent, mandatory, with a message id
 * of 36 characters and a content type.
 *
 *	cc -O2 -o amqp_bare amqp_bare.c -lrabbitmq -lssl -lcrypto -lm
 *	amqp_bare --key KEY [--exchange NAME] [--url URL] [--count N] [--size B]
 *	          [--window W] [--rate R] [--cacertfile FILE]
 *
 * --url as for amqp_tool; with amqps:// the broker's certificate is verified,
 * by the authorities in --cacertfile.  With --rate about R messages a second leave, at
 * random moments as pgbench --rate chooses them, and each body begins with the
 * time of its sending in microseconds since the epoch and a blank; else as fast
 * as they go.  At the end, when all are confirmed, it prints one line:
 *
 *	{"count":N, "confirmed":N, "rejected":N, "returned":N, "seconds":S,
 *	 "cpu_seconds":S}
 *
 * with the seconds from the first message to the last confirm, and the CPU that
 * it used in them.  Exit code 0 if
 * all were confirmed, 2 for trouble with the broker.
 */
#define _GNU_SOURCE
#if __has_include(<rabbitmq-c/amqp.h>)
#include <rabbitmq-c/amqp.h>
#include <rabbitmq-c/framing.h>
#else
#include <amqp.h>
#include <amqp_framing.h>
#endif
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CHANNEL 1
#define OUTPUT_ENOUGH 65536		/* bytes waiting: send before encoding more */
#define METHOD_ROOM 16384
#define LOGIN_TIMEOUT 20000		/* milliseconds */

static const char *opt_url;
static const char *opt_exchange = "";
static const char *opt_key;
static uint64_t opt_count = 100000;
static size_t opt_size = 256;
static int	opt_window = 1024;
static double opt_rate;
static const char *opt_cacertfile;

/* the connection */
static int	sock = -1;
static SSL *tls;				/* NULL: without */
static bool tls_wants_write;	/* even to read */
static amqp_connection_state_t codec;
static size_t frame_max;

/* bytes to send are out[out_begin .. out_end) */
static char *out;
static size_t out_begin;
static size_t out_end;
static size_t out_size;

/* delivery tags: low is the oldest unconfirmed, next the next to publish */
static bool *settled;			/* by tag modulo ring_size */
static uint64_t ring_size;
static uint64_t low = 1;
static uint64_t next = 1;
static int	in_flight;
static uint64_t confirmed;
static uint64_t rejected;
static uint64_t returned;
static double due;				/* when to publish next, with --rate */

static void __attribute__((noreturn, format(printf, 1, 2)))
fail(const char *fmt,...)
{
	va_list		args;

	fputs("amqp_bare: ", stderr);
	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	fputc('\n', stderr);
	exit(2);
}

static int64_t
clock_us(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (int64_t) t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* ---- output: frames as in AMQP 0-9-1, section 2.3 ---- */

static char *
out_room(size_t more)
{
	if (out_begin == out_end)
		out_begin = out_end = 0;
	if (out_end + more > out_size)
	{
		out_size = (out_end + more) * 2;
		out = realloc(out, out_size);
		if (out == NULL)
			fail("out of memory");
	}
	return out + out_end;
}

static void
store16(char *p, uint16_t v)
{
	p[0] = v >> 8;
	p[1] = v;
}

static void
store32(char *p, uint32_t v)
{
	store16(p, v >> 16);
	store16(p + 2, v);
}

/* Complete the frame at the end of the output; its payload is in place. */
static void
end_frame(int type, int channel, size_t payload)
{
	char	   *f = out + out_end;

	f[0] = type;
	store16(f + 1, channel);
	store32(f + 3, payload);
	f[7 + payload] = (char) AMQP_FRAME_END;
	out_end += payload + 8;
}

static void
put_method(int channel, amqp_method_number_t id, void *method)
{
	char	   *f = out_room(METHOD_ROOM);
	amqp_bytes_t room = {METHOD_ROOM - 12, f + 11};
	int			len = amqp_encode_method(id, method, room);

	if (len < 0)
		fail("cannot encode %s", amqp_method_name(id));
	store32(f + 7, id);
	end_frame(AMQP_FRAME_METHOD, channel, 4 + len);
}

static void
put_content(amqp_basic_properties_t *properties, const char *body, size_t size)
{
	char	   *f = out_room(frame_max);
	amqp_bytes_t room = {frame_max - 20, f + 19};
	int			len = amqp_encode_properties(AMQP_BASIC_CLASS, properties,
											 room);

	if (len < 0)
		fail("cannot encode the properties");
	store16(f + 7, AMQP_BASIC_CLASS);
	store16(f + 9, 0);
	store32(f + 11, 0);
	store32(f + 15, size);
	end_frame(AMQP_FRAME_HEADER, CHANNEL, 12 + len);
	while (size > 0)
	{
		size_t		part = size < frame_max - 8 ? size : frame_max - 8;

		memcpy(out_room(part + 8) + 7, body, part);
		end_frame(AMQP_FRAME_BODY, CHANNEL, part);
		body += part;
		size -= part;
	}
}

/* What a call of OpenSSL returned, as send() and recv() would have. */
static ssize_t
tls_result(int n)
{
	if (n > 0)
		return n;
	switch (SSL_get_error(tls, n))
	{
		case SSL_ERROR_WANT_WRITE:
			tls_wants_write = true;
			/* FALLTHROUGH */
		case SSL_ERROR_WANT_READ:
			errno = EAGAIN;
			return -1;
		case SSL_ERROR_ZERO_RETURN:
			return 0;
	}
	fail("TLS: %s", ERR_error_string(ERR_get_error(), NULL));
}

static ssize_t
socket_send(const char *data, size_t size)
{
	if (tls == NULL)
		return send(sock, data, size, MSG_NOSIGNAL);
	ERR_clear_error();
	return tls_result(SSL_write(tls, data, size));
}

static ssize_t
socket_receive(char *buffer, size_t size)
{
	if (tls == NULL)
		return recv(sock, buffer, size, 0);
	ERR_clear_error();
	return tls_result(SSL_read(tls, buffer, size));
}

/* Send what the socket takes. */
static void
flush(void)
{
	while (out_begin < out_end)
	{
		ssize_t		n = socket_send(out + out_begin, out_end - out_begin);

		if (n > 0)
			out_begin += n;
		else if (errno == EAGAIN)
			return;
		else if (errno != EINTR)
			fail("send: %s", strerror(errno));
	}
}

/* ---- input ---- */

/* The next frame; false if there is none now. */
static bool
next_frame(amqp_frame_t *frame)
{
	static char buffer[131072];
	static size_t begin,
				end;

	for (;;)
	{
		ssize_t		n;

		while (begin < end)
		{
			amqp_bytes_t rest = {end - begin, buffer + begin};
			int			used = amqp_handle_input(codec, rest, frame);

			if (used < 0)
				fail("input: %s", amqp_error_string2(used));
			begin += used;
			if (frame->frame_type == AMQP_FRAME_METHOD ||
				frame->frame_type == AMQP_FRAME_HEADER ||
				frame->frame_type == AMQP_FRAME_BODY)
				return true;
		}
		n = socket_receive(buffer, sizeof buffer);
		if (n == 0)
			fail("the broker closed the connection");
		if (n < 0 && errno == EAGAIN)
			return false;
		if (n < 0 && errno != EINTR)
			fail("recv: %s", strerror(errno));
		begin = 0;
		end = n > 0 ? n : 0;
	}
}

/* Wait for input, for room to send, or for the timeout (in microseconds). */
static void
wait_for_socket(int64_t timeout_us)
{
	struct pollfd p = {sock, POLLIN |
	(out_begin < out_end || tls_wants_write ? POLLOUT : 0), 0};
	struct timespec t = {timeout_us / 1000000, timeout_us % 1000000 * 1000};

	if (ppoll(&p, 1, timeout_us < 0 ? NULL : &t, NULL) < 0 && errno != EINTR)
		fail("poll: %s", strerror(errno));
	tls_wants_write = false;
}

static void *
expect(amqp_method_number_t id)
{
	amqp_frame_t frame;
	int64_t		deadline = clock_us(CLOCK_MONOTONIC) + LOGIN_TIMEOUT * 1000;

	flush();
	while (!next_frame(&frame))
	{
		wait_for_socket(100000);
		flush();
		if (clock_us(CLOCK_MONOTONIC) > deadline)
			fail("no %s from the broker", amqp_method_name(id));
	}
	if (frame.frame_type != AMQP_FRAME_METHOD ||
		frame.payload.method.id != id)
		fail("%s instead of %s", amqp_method_name(frame.payload.method.id),
			 amqp_method_name(id));
	return frame.payload.method.decoded;
}

/* ---- the connection ---- */

static void
open_socket(const char *host, int port)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
	struct addrinfo *addresses;
	char		service[16];
	int			one = 1;

	snprintf(service, sizeof service, "%d", port);
	if (getaddrinfo(host, service, &hints, &addresses) != 0)
		fail("cannot resolve \"%s\"", host);
	sock = socket(addresses->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (sock < 0 || connect(sock, addresses->ai_addr,
							addresses->ai_addrlen) < 0)
		fail("connect: %s", strerror(errno));
	setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	one = 1;
	if (ioctl(sock, FIONBIO, &one) < 0)
		fail("ioctl: %s", strerror(errno));
	freeaddrinfo(addresses);
}

/* The broker must be who the URL says, an address as in the extension. */
static void
start_tls(const char *host)
{
	SSL_CTX    *context = SSL_CTX_new(TLS_client_method());
	int64_t		deadline = clock_us(CLOCK_MONOTONIC) + LOGIN_TIMEOUT * 1000;
	X509_VERIFY_PARAM *param;
	int			n;

	if (context == NULL ||
		(opt_cacertfile != NULL
		 ? !SSL_CTX_load_verify_locations(context, opt_cacertfile, NULL)
		 : !SSL_CTX_set_default_verify_paths(context)))
		fail("TLS: %s", ERR_error_string(ERR_get_error(), NULL));
	SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
	SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
	SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE |
					 SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
	tls = SSL_new(context);
	if (tls == NULL || !SSL_set_fd(tls, sock))
		fail("TLS: %s", ERR_error_string(ERR_get_error(), NULL));
	param = SSL_get0_param(tls);
	if (!X509_VERIFY_PARAM_set1_ip_asc(param, host) &&
		!X509_VERIFY_PARAM_set1_host(param, host, 0))
		fail("TLS: wrong host \"%s\"", host);
	for (;;)
	{
		ERR_clear_error();
		n = SSL_connect(tls);
		if (n > 0)
			break;
		if (tls_result(n) == 0)
			fail("the broker closed the connection");
		wait_for_socket(100000);
		if (clock_us(CLOCK_MONOTONIC) > deadline)
			fail("no TLS with the broker");
	}
	SSL_CTX_free(context);
}

static void
log_in(const struct amqp_connection_info *info)
{
	amqp_connection_start_ok_t start_ok = {0};
	amqp_connection_tune_ok_t tune_ok = {0};
	amqp_connection_open_t open = {0};
	amqp_channel_open_t channel_open = {0};
	amqp_confirm_select_t confirm_select = {0};
	amqp_connection_tune_t *tune;
	char		response[512];

	memcpy(out_room(8), "AMQP\0\0\t\1", 8);
	out_end += 8;
	expect(AMQP_CONNECTION_START_METHOD);

	start_ok.mechanism = amqp_cstring_bytes("PLAIN");
	start_ok.locale = amqp_cstring_bytes("en_US");
	start_ok.response.bytes = response;
	start_ok.response.len = snprintf(response, sizeof response, "%c%s%c%s",
									 0, info->user, 0, info->password);
	put_method(0, AMQP_CONNECTION_START_OK_METHOD, &start_ok);
	tune = expect(AMQP_CONNECTION_TUNE_METHOD);

	frame_max = tune->frame_max;
	tune_ok.channel_max = tune->channel_max;
	tune_ok.frame_max = tune->frame_max;
	tune_ok.heartbeat = 0;
	amqp_tune_connection(codec, tune_ok.channel_max, tune_ok.frame_max, 0);
	put_method(0, AMQP_CONNECTION_TUNE_OK_METHOD, &tune_ok);
	open.virtual_host = amqp_cstring_bytes(info->vhost);
	put_method(0, AMQP_CONNECTION_OPEN_METHOD, &open);
	expect(AMQP_CONNECTION_OPEN_OK_METHOD);

	put_method(CHANNEL, AMQP_CHANNEL_OPEN_METHOD, &channel_open);
	put_method(CHANNEL, AMQP_CONFIRM_SELECT_METHOD, &confirm_select);
	expect(AMQP_CHANNEL_OPEN_OK_METHOD);
	expect(AMQP_CONFIRM_SELECT_OK_METHOD);
	amqp_maybe_release_buffers(codec);
}

static void
connect_to_broker(void)
{
	struct amqp_connection_info info;
	const char *url = opt_url != NULL ? opt_url : getenv("AMQP_URL");
	char	   *copy = strdup(url != NULL ? url : "amqp://127.0.0.1:5672");

	amqp_default_connection_info(&info);
	if (amqp_parse_url(copy, &info) != AMQP_STATUS_OK)
		fail("wrong URL \"%s\"", url);
	codec = amqp_new_connection();
	if (codec == NULL)
		fail("out of memory");
	open_socket(info.host, info.port);
	if (info.ssl)
		start_tls(info.host);
	log_in(&info);
	free(copy);
}

/* ---- publishing ---- */

static void
publish_next(char *body)
{
	static amqp_basic_publish_t publish;
	static amqp_basic_properties_t properties;
	char		message_id[48];

	publish.exchange = amqp_cstring_bytes(opt_exchange);
	publish.routing_key = amqp_cstring_bytes(opt_key);
	publish.mandatory = 1;
	properties._flags = AMQP_BASIC_CONTENT_TYPE_FLAG |
		AMQP_BASIC_DELIVERY_MODE_FLAG | AMQP_BASIC_MESSAGE_ID_FLAG;
	properties.content_type = amqp_cstring_bytes("application/octet-stream");
	properties.delivery_mode = 2;
	snprintf(message_id, sizeof message_id,
			 "00000000-0000-7000-8000-%012" PRIx64, next);
	properties.message_id = amqp_cstring_bytes(message_id);
	if (opt_rate > 0)
	{
		char		stamp[32];
		int			len = snprintf(stamp, sizeof stamp, "%" PRId64 " ",
								   clock_us(CLOCK_REALTIME));

		memcpy(body, stamp, (size_t) len < opt_size ? (size_t) len : opt_size);
	}
	put_method(CHANNEL, AMQP_BASIC_PUBLISH_METHOD, &publish);
	put_content(&properties, body, opt_size);
	due += -log(1 - drand48()) * 1e6 / (opt_rate > 0 ? opt_rate : 1);
	settled[next % ring_size] = false;
	next++;
	in_flight++;
}

static void
settle(uint64_t tag, bool multiple, uint64_t *counter)
{
	for (uint64_t t = multiple ? low : tag; t <= tag; t++)
	{
		if (!settled[t % ring_size])
		{
			settled[t % ring_size] = true;
			in_flight--;
			(*counter)++;
		}
	}
	while (low < next && settled[low % ring_size])
		low++;
}

static void
handle_frame(const amqp_frame_t *frame)
{
	const amqp_method_t *method = &frame->payload.method;

	if (frame->frame_type != AMQP_FRAME_METHOD)
		return;
	if (method->id == AMQP_BASIC_ACK_METHOD)
	{
		amqp_basic_ack_t *m = method->decoded;

		settle(m->delivery_tag, m->multiple, &confirmed);
	}
	else if (method->id == AMQP_BASIC_NACK_METHOD)
	{
		amqp_basic_nack_t *m = method->decoded;

		settle(m->delivery_tag, m->multiple, &rejected);
	}
	else if (method->id == AMQP_BASIC_RETURN_METHOD)
		returned++;
	else
		fail("unexpected %s", amqp_method_name(method->id));
}

/* Microseconds until the next message is due: 0 now, -1 when one settles. */
static int64_t
until_due(void)
{
	int64_t		left;

	if (next > opt_count || in_flight >= opt_window ||
		next - low >= ring_size)
		return -1;
	if (opt_rate <= 0)
		return 0;
	left = (int64_t) due - clock_us(CLOCK_MONOTONIC);
	return left > 0 ? left : 0;
}

static void
publish_all(void)
{
	char	   *body = malloc(opt_size + 1);
	int64_t		start = clock_us(CLOCK_MONOTONIC);
	int64_t		cpu = clock_us(CLOCK_PROCESS_CPUTIME_ID);
	amqp_frame_t frame;

	memset(body, 'x', opt_size);
	due = start;
	while (low <= opt_count)
	{
		bool		progress = false;
		int64_t		wait_us;

		while (until_due() == 0 && out_end - out_begin < OUTPUT_ENOUGH)
		{
			publish_next(body);
			progress = true;
		}
		flush();
		while (next_frame(&frame))
		{
			handle_frame(&frame);
			progress = true;
		}
		amqp_maybe_release_buffers(codec);
		wait_us = until_due();
		if (out_begin < out_end)
			wait_for_socket(wait_us > 0 ? wait_us : -1);
		else if (!progress && wait_us != 0)
			wait_for_socket(wait_us);
	}
	printf("{\"count\":%" PRIu64 ",\"confirmed\":%" PRIu64 ","
		   "\"rejected\":%" PRIu64 ",\"returned\":%" PRIu64 ","
		   "\"seconds\":%.6f,\"cpu_seconds\":%.6f}\n",
		   opt_count, confirmed, rejected, returned,
		   (clock_us(CLOCK_MONOTONIC) - start) / 1e6,
		   (clock_us(CLOCK_PROCESS_CPUTIME_ID) - cpu) / 1e6);
	free(body);
}

static void
parse_options(int argc, char **argv)
{
	static const struct option options[] = {
		{"url", required_argument, NULL, 'u'},
		{"exchange", required_argument, NULL, 'e'},
		{"key", required_argument, NULL, 'k'},
		{"count", required_argument, NULL, 'c'},
		{"size", required_argument, NULL, 's'},
		{"window", required_argument, NULL, 'w'},
		{"rate", required_argument, NULL, 'r'},
		{"cacertfile", required_argument, NULL, 'a'},
		{NULL, 0, NULL, 0}
	};
	int			c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1)
	{
		switch (c)
		{
			case 'u':
				opt_url = optarg;
				break;
			case 'e':
				opt_exchange = optarg;
				break;
			case 'k':
				opt_key = optarg;
				break;
			case 'c':
				opt_count = strtoull(optarg, NULL, 10);
				break;
			case 's':
				opt_size = strtoul(optarg, NULL, 10);
				break;
			case 'w':
				opt_window = atoi(optarg);
				break;
			case 'r':
				opt_rate = atof(optarg);
				break;
			case 'a':
				opt_cacertfile = optarg;
				break;
			default:
				exit(1);
		}
	}
	if (opt_key == NULL || opt_window < 1)
	{
		fputs("amqp_bare: --key is needed, and a window of at least 1\n",
			  stderr);
		exit(1);
	}
}

int
main(int argc, char **argv)
{
	parse_options(argc, argv);
	ring_size = 4 * (uint64_t) opt_window;
	settled = calloc(ring_size, sizeof(bool));
	if (settled == NULL)
		fail("out of memory");
	connect_to_broker();
	publish_all();
	SSL_free(tls);
	close(sock);
	amqp_destroy_connection(codec);
	return confirmed == opt_count ? 0 : 2;
}

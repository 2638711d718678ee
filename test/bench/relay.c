/*
 * relay.c
 *	  What one would write without an extension, in an afternoon, in C: rows of
 *	  a table are taken FOR UPDATE SKIP LOCKED, published with confirms, and
 *	  deleted when the broker has confirmed them all.
 *
 * For comparison only.  It publishes as the extension does (persistent,
 * mandatory, with message id and content type), but knows nothing of returned
 * messages, of rejected ones but to end, and of connections that break.
 *
 *	cc -O2 -o relay relay.c -lpq -lrabbitmq
 *	relay [--batch N] [--poll MS] [--until-empty]
 *
 * The database is that of libpq's environment, the broker that of AMQP_URL; the
 * table is "plain".  When there is nothing it looks again after --poll
 * milliseconds, or ends.  At the end, also after SIGTERM, it prints
 *
 *	{"count":N,"seconds":S}
 *
 * with the seconds from its first look to its last commit.
 */
#if __has_include(<rabbitmq-c/amqp.h>)
#include <rabbitmq-c/amqp.h>
#include <rabbitmq-c/framing.h>
#include <rabbitmq-c/tcp_socket.h>
#else
#include <amqp.h>
#include <amqp_framing.h>
#include <amqp_tcp_socket.h>
#endif
#include <getopt.h>
#include <inttypes.h>
#include <libpq-fe.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define CHANNEL 1

static int	opt_batch = 1000;
static int	opt_poll = 10;
static bool opt_until_empty;

static PGconn *db;
static amqp_connection_state_t broker;
static uint64_t last_tag;
static volatile sig_atomic_t stopping;

static void __attribute__((noreturn, format(printf, 1, 2)))
fail(const char *fmt,...)
{
	va_list		args;

	fputs("relay: ", stderr);
	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	fputc('\n', stderr);
	exit(2);
}

static double
seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void
stop(int signo)
{
	(void) signo;
	stopping = 1;
}

/* ---- the broker ---- */

static void
check_reply(amqp_rpc_reply_t reply, const char *what)
{
	if (reply.reply_type != AMQP_RESPONSE_NORMAL)
		fail("%s failed", what);
}

static void
open_broker(void)
{
	const char *url = getenv("AMQP_URL");
	char	   *copy = strdup(url != NULL ? url : "amqp://127.0.0.1");
	struct amqp_connection_info info;
	amqp_socket_t *sock;

	amqp_default_connection_info(&info);
	if (amqp_parse_url(copy, &info) != AMQP_STATUS_OK)
		fail("wrong URL");
	broker = amqp_new_connection();
	sock = amqp_tcp_socket_new(broker);
	if (amqp_socket_open(sock, info.host, info.port) != AMQP_STATUS_OK)
		fail("cannot connect to the broker");
	check_reply(amqp_login(broker, info.vhost, 0, 131072, 0,
						   AMQP_SASL_METHOD_PLAIN, info.user, info.password),
				"login");
	amqp_channel_open(broker, CHANNEL);
	check_reply(amqp_get_rpc_reply(broker), "channel.open");
	amqp_confirm_select(broker, CHANNEL);
	check_reply(amqp_get_rpc_reply(broker), "confirm.select");
	free(copy);
}

static void
publish(PGresult *rows, int row)
{
	amqp_basic_properties_t properties = {0};
	amqp_bytes_t body = {PQgetlength(rows, row, 3), PQgetvalue(rows, row, 3)};

	properties._flags = AMQP_BASIC_CONTENT_TYPE_FLAG |
		AMQP_BASIC_DELIVERY_MODE_FLAG | AMQP_BASIC_MESSAGE_ID_FLAG;
	properties.content_type = amqp_cstring_bytes(PQgetvalue(rows, row, 5));
	properties.delivery_mode = 2;
	properties.message_id = amqp_cstring_bytes(PQgetvalue(rows, row, 4));
	if (amqp_basic_publish(broker, CHANNEL,
						   amqp_cstring_bytes(PQgetvalue(rows, row, 1)),
						   amqp_cstring_bytes(PQgetvalue(rows, row, 2)),
						   1, 0, &properties, body) != AMQP_STATUS_OK)
		fail("basic.publish failed");
	last_tag++;
}

/* Until all that was published is confirmed. */
static void
await_confirms(uint64_t through, int n)
{
	uint64_t	first = through - n + 1;
	uint64_t	below = first;	/* all below are confirmed */
	bool	   *done = calloc(n, sizeof(bool));

	while (below <= through)
	{
		amqp_frame_t frame;
		amqp_basic_ack_t *ack;

		amqp_maybe_release_buffers(broker);
		if (amqp_simple_wait_frame(broker, &frame) != AMQP_STATUS_OK)
			fail("connection lost");
		if (frame.frame_type != AMQP_FRAME_METHOD)
			continue;
		if (frame.payload.method.id != AMQP_BASIC_ACK_METHOD)
			fail("unexpected %s", amqp_method_name(frame.payload.method.id));
		ack = frame.payload.method.decoded;
		for (uint64_t tag = ack->multiple ? below : ack->delivery_tag;
			 tag <= ack->delivery_tag; tag++)
			done[tag - first] = true;
		while (below <= through && done[below - first])
			below++;
	}
	free(done);
}

/* ---- the database ---- */

static PGresult *
check_result(PGresult *result)
{
	ExecStatusType status = PQresultStatus(result);

	if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK)
		fail("%s", PQerrorMessage(db));
	return result;
}

static void
execute(const char *sql)
{
	PQclear(check_result(PQexec(db, sql)));
}

static void
open_database(void)
{
	db = PQconnectdb("");
	if (PQstatus(db) != CONNECTION_OK)
		fail("%s", PQerrorMessage(db));
	PQclear(check_result(PQprepare(db, "take", "SELECT int8send(id), exchange,"
								   " routing_key, body, message_id,"
								   " content_type FROM plain ORDER BY"
								   " server_key, id LIMIT $1::int4 FOR UPDATE"
								   " SKIP LOCKED", 0, NULL)));
	PQclear(check_result(PQprepare(db, "delete", "DELETE FROM plain WHERE"
								   " server_key = 1 AND id = ANY ($1::int8[])",
								   0, NULL)));
}

/* An array as PostgreSQL's binary format has it; the ids come as such. */
static void
delete_rows(PGresult *rows, int n)
{
	int			size = 20 + 12 * n;
	char	   *array = calloc(1, size);
	const char *values[] = {array};
	int			formats[] = {1};
	uint32_t	header[] = {__builtin_bswap32(1), 0, __builtin_bswap32(20),
	__builtin_bswap32(n), __builtin_bswap32(1)};
	uint32_t	length = __builtin_bswap32(8);

	memcpy(array, header, 20);
	for (int i = 0; i < n; i++)
	{
		memcpy(array + 20 + 12 * i, &length, 4);
		memcpy(array + 24 + 12 * i, PQgetvalue(rows, i, 0), 8);
	}
	PQclear(check_result(PQexecPrepared(db, "delete", 1, values, &size,
										formats, 0)));
	free(array);
}

/* One transaction; returns how many messages it delivered. */
static int
relay(void)
{
	char		batch[16];
	const char *values[] = {batch};
	PGresult   *rows;
	int			n;

	snprintf(batch, sizeof batch, "%d", opt_batch);
	execute("BEGIN");
	rows = check_result(PQexecPrepared(db, "take", 1, values, NULL, NULL, 1));
	n = PQntuples(rows);
	for (int i = 0; i < n; i++)
		publish(rows, i);
	if (n > 0)
	{
		await_confirms(last_tag, n);
		delete_rows(rows, n);
	}
	PQclear(rows);
	execute("COMMIT");
	return n;
}

int
main(int argc, char **argv)
{
	static const struct option options[] = {
		{"batch", required_argument, NULL, 'b'},
		{"poll", required_argument, NULL, 'p'},
		{"until-empty", no_argument, NULL, 'e'},
		{NULL, 0, NULL, 0}
	};
	uint64_t	count = 0;
	double		begin;
	double		end;
	int			c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1)
	{
		if (c == 'b')
			opt_batch = atoi(optarg);
		else if (c == 'p')
			opt_poll = atoi(optarg);
		else if (c == 'e')
			opt_until_empty = true;
		else
			return 1;
	}
	signal(SIGTERM, stop);
	open_database();
	open_broker();
	begin = end = seconds();
	while (!stopping)
	{
		int			n = relay();

		count += n;
		if (n > 0)
			end = seconds();
		else if (opt_until_empty)
			break;
		else
			usleep(opt_poll * 1000);
	}
	printf("{\"count\":%" PRIu64 ",\"seconds\":%.6f}\n", count, end - begin);
	return 0;
}

/*
 * consumer.c
 *	  A consumer whose effect is exactly once: each message's work and the note
 *	  that it was done are one transaction, which is committed before the message
 *	  is acknowledged.  See docs/consumers.md; consumer.py is the same in Python.
 *
 *	cc -O2 -Wall -I"$(pg_config --includedir)" -o consumer consumer.c -lrabbitmq -lpq
 *	consumer QUEUE CONSUMER
 *
 * QUEUE exists, with a dead-letter exchange.  CONSUMER names what consumes: all
 * processes that share this work use the same name, for ever.
 *
 * Environment: AMQP_URL, amqp://user:password@host:port/vhost, or amqps://... with
 * the CAs of SSL_CERT_FILE; the database is that of libpq's variables, PGHOST,
 * PGDATABASE, PGUSER ...  There amqp_outbox is installed, and the user may EXECUTE
 * amqp_inbox_accept.
 *
 * SIGTERM and SIGINT end it cleanly, with exit code 0; 2 is wrong usage.
 */
#define _GNU_SOURCE
#if __has_include(<rabbitmq-c/amqp.h>)
#include <rabbitmq-c/amqp.h>
#include <rabbitmq-c/ssl_socket.h>
#include <rabbitmq-c/tcp_socket.h>
#else
#include <amqp.h>
#include <amqp_ssl_socket.h>
#include <amqp_tcp_socket.h>
#endif
#include <libpq-fe.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define PREFETCH	50		/* messages sent ahead of the acknowledgements */
#define HEARTBEAT	60		/* seconds; a message's work must be done within one */
#define ATTEMPTS	10		/* of a transaction that is a victim of others */
#define BACKOFF_MIN	0.1		/* seconds */
#define BACKOFF_MAX	30.0
#define CHANNEL		1

/*
 * A statement that hangs, or a database that is gone without a word, is noticed
 * before the broker misses a heartbeat.
 */
#define DATABASE "client_encoding=UTF8 connect_timeout=10 " \
	"tcp_user_timeout=30000 keepalives_idle=15 keepalives_interval=5 " \
	"keepalives_count=3 options='-c statement_timeout=20s'"

/* What has become of a message. */
typedef enum
{
	DONE,						/* committed */
	DUPLICATE,					/* it was done before */
	POISON,						/* it cannot succeed, however often it is tried */
	VICTIM,						/* of concurrent transactions: try it again */
	TROUBLE						/* not the message's fault */
} Outcome;

static const char *queue;
static const char *consumer;
static PGconn *database;
static amqp_connection_state_t broker;
static sigset_t stop_signals;
static bool stopping = false;
static double backoff = BACKOFF_MIN;

static void
say(const char *format,...)
{
	char		now[32];
	time_t		t = time(NULL);
	va_list		args;

	strftime(now, sizeof(now), "%F %T", localtime(&t));
	fprintf(stderr, "%s %s: ", now, consumer);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
}

/* Wait so long, unless a signal asks for the end; true if one did. */
static bool
wait_for_stop(double seconds)
{
	struct timespec timeout;

	timeout.tv_sec = (time_t) seconds;
	timeout.tv_nsec = (long) ((seconds - timeout.tv_sec) * 1e9);
	if (!stopping)
		stopping = sigtimedwait(&stop_signals, NULL, &timeout) > 0;
	return stopping;
}

/*
 * The database
 */

/* Which outcome an error is; of one without SQLSTATE the connection is lost. */
static Outcome
classify(const PGresult *result)
{
	const char *state = PQresultErrorField(result, PG_DIAG_SQLSTATE);

	if (state == NULL)
		return TROUBLE;
	if (strncmp(state, "40", 2) == 0)	/* serialization failure, deadlock */
		return VICTIM;
	if (strncmp(state, "22", 2) == 0 || strncmp(state, "23", 2) == 0)
		return POISON;			/* of its data; by a constraint */
	return TROUBLE;
}

/* Parameters are bytes with a length, because AMQP's have no end mark. */
static Outcome
run(const char *sql, int n, const amqp_bytes_t *params, bool *value)
{
	const char *values[2];
	int			lengths[2];
	static const int binary[] = {1, 1};
	Outcome		outcome = DONE;
	PGresult   *result;

	for (int i = 0; i < n; i++)
	{
		values[i] = params[i].len > 0 ? params[i].bytes : "";
		lengths[i] = (int) params[i].len;
	}
	result = PQexecParams(database, sql, n, NULL, values, lengths, binary, 0);
	if (PQresultStatus(result) != PGRES_COMMAND_OK &&
		PQresultStatus(result) != PGRES_TUPLES_OK)
	{
		outcome = classify(result);
		say("database: %s", PQerrorMessage(database));
	}
	else if (value != NULL)
		*value = *PQgetvalue(result, 0, 0) == 't';
	PQclear(result);
	return outcome;
}

/*
 * What a message is for: the only part that is this consumer's own.  The
 * database takes the body apart, so what is wrong with it is a data error.
 */
static Outcome
work(amqp_bytes_t body)
{
	return run("INSERT INTO booking (order_id, quantity)"
			   " SELECT order_id, quantity"
			   " FROM jsonb_to_record(convert_from($1::bytea, 'UTF8')::jsonb)"
			   " AS (order_id bigint, quantity numeric)", 1, &body, NULL);
}

/* One transaction. */
static Outcome
process(amqp_bytes_t message_id, amqp_bytes_t body)
{
	amqp_bytes_t params[] = {amqp_cstring_bytes(consumer), message_id};
	bool		accepted = false;
	Outcome		outcome;

	outcome = run("BEGIN", 0, NULL, NULL);
	if (outcome == DONE)
		outcome = run("SELECT amqp_inbox_accept($1::text, $2::text)", 2, params,
					  &accepted);
	if (outcome == DONE && accepted)
		outcome = work(body);
	if (outcome == DONE)
		outcome = run("COMMIT", 0, NULL, NULL);

	/* a COMMIT that failed has rolled back, and left no transaction */
	if (outcome != DONE && PQtransactionStatus(database) != PQTRANS_IDLE &&
		run("ROLLBACK", 0, NULL, NULL) != DONE)
		return TROUBLE;
	return outcome == DONE && !accepted ? DUPLICATE : outcome;
}

/*
 * All messages go through the inbox.  The header x-possible-duplicate and the
 * flag "redelivered" mark those that may be repetitions; but the first copy,
 * which has no mark, must be noted as well, and amqp_inbox_accept() looks and
 * notes at once.  The marks help only where the look is a costly one of its own:
 * then it can be left out for messages that have neither.
 */
static Outcome
process_safely(const amqp_basic_properties_t *properties, amqp_bytes_t body)
{
	if (!(properties->_flags & AMQP_BASIC_MESSAGE_ID_FLAG) ||
		properties->message_id.len == 0)
	{
		say("there is no message_id, so a repetition could not be told");
		return POISON;
	}
	for (int attempt = 1; attempt <= ATTEMPTS; attempt++)
	{
		Outcome		outcome = process(properties->message_id, body);

		if (outcome != VICTIM)
			return outcome;
		say("message %.*s is tried again", (int) properties->message_id.len,
			(char *) properties->message_id.bytes);
		wait_for_stop(0.01 * (1 << attempt) * drand48());
	}
	return TROUBLE;
}

/*
 * The broker
 */

/* Returns whether a call succeeded, and says what if it did not. */
static bool
succeeded(const char *what, amqp_rpc_reply_t reply)
{
	if (reply.reply_type == AMQP_RESPONSE_NORMAL)
		return true;
	if (reply.reply_type == AMQP_RESPONSE_LIBRARY_EXCEPTION)
		say("%s: %s", what, amqp_error_string2(reply.library_error));
	else if (reply.reply.id == AMQP_CHANNEL_CLOSE_METHOD ||
			 reply.reply.id == AMQP_CONNECTION_CLOSE_METHOD)
	{
		/* both have the code and the text at the same place */
		amqp_channel_close_t *close = reply.reply.decoded;

		say("%s: %d %.*s", what, close->reply_code,
			(int) close->reply_text.len, (char *) close->reply_text.bytes);
	}
	else
		say("%s: the broker says %s", what, amqp_method_name(reply.reply.id));
	return false;
}

static bool
connect_broker(struct amqp_connection_info *info)
{
	struct timeval timeout = {10, 0};
	const char *ca = getenv("SSL_CERT_FILE");
	amqp_socket_t *socket;
	int			status;

	if (ca == NULL)
		ca = "/etc/ssl/certs/ca-certificates.crt";
	socket = info->ssl ? amqp_ssl_socket_new(broker) : amqp_tcp_socket_new(broker);
	if (socket == NULL ||
		(info->ssl && amqp_ssl_socket_set_cacert(socket, ca) != AMQP_STATUS_OK))
	{
		say("cannot make a socket, or cannot read the CAs in \"%s\"", ca);
		return false;
	}
	status = amqp_socket_open_noblock(socket, info->host, info->port, &timeout);
	if (status != AMQP_STATUS_OK)
	{
		say("connecting to the broker: %s", amqp_error_string2(status));
		return false;
	}
	amqp_set_handshake_timeout(broker, &timeout);
	amqp_set_rpc_timeout(broker, &timeout);
	if (!succeeded("login", amqp_login(broker, info->vhost, 0, 131072, HEARTBEAT,
									   AMQP_SASL_METHOD_PLAIN, info->user,
									   info->password)))
		return false;
	amqp_channel_open(broker, CHANNEL);
	if (!succeeded("opening a channel", amqp_get_rpc_reply(broker)))
		return false;
	amqp_basic_qos(broker, CHANNEL, 0, PREFETCH, false);
	if (!succeeded("setting the prefetch", amqp_get_rpc_reply(broker)))
		return false;
	amqp_basic_consume(broker, CHANNEL, amqp_cstring_bytes(queue),
					   amqp_empty_bytes, false, false, false, amqp_empty_table);
	return succeeded("consuming", amqp_get_rpc_reply(broker));
}

/*
 * One message, to its acknowledgement or rejection; false if the connections
 * are to be made anew.
 */
static bool
handle(const amqp_envelope_t *envelope)
{
	const amqp_basic_properties_t *properties = &envelope->message.properties;
	amqp_bytes_t id = properties->_flags & AMQP_BASIC_MESSAGE_ID_FLAG ?
		properties->message_id : amqp_empty_bytes;
	Outcome		outcome = process_safely(properties, envelope->message.body);
	int			status;

	switch (outcome)
	{
		case POISON:
			say("message %.*s goes to the dead letters", (int) id.len,
				(char *) id.bytes);
			status = amqp_basic_reject(broker, CHANNEL, envelope->delivery_tag,
									   false);
			break;
		case DONE:
		case DUPLICATE:
			if (outcome == DUPLICATE)
				say("message %.*s is a duplicate", (int) id.len,
					(char *) id.bytes);

			/*
			 * The transaction is committed.  If this gets lost the message
			 * comes again, and is not accepted then.
			 */
			status = amqp_basic_ack(broker, CHANNEL, envelope->delivery_tag,
									false);
			break;
		default:
			return false;
	}
	if (status != AMQP_STATUS_OK)
		say("acknowledging: %s", amqp_error_string2(status));
	return status == AMQP_STATUS_OK;
}

/* Why no message came: the connection is lost, or what came is no message. */
static void
say_why(amqp_rpc_reply_t reply)
{
	struct timeval timeout = {0, 0};
	amqp_frame_t frame;

	if (reply.reply_type == AMQP_RESPONSE_LIBRARY_EXCEPTION &&
		reply.library_error == AMQP_STATUS_UNEXPECTED_STATE &&
		amqp_simple_wait_frame_noblock(broker, &frame, &timeout) == AMQP_STATUS_OK &&
		frame.frame_type == AMQP_FRAME_METHOD)
	{
		reply.reply_type = AMQP_RESPONSE_SERVER_EXCEPTION;
		reply.reply = frame.payload.method;
	}
	succeeded("waiting for a message", reply);
}

/* Handle messages until it is time to stop, or something fails. */
static void
consume(void)
{
	while (!wait_for_stop(0))
	{
		struct timeval timeout = {1, 0};
		amqp_envelope_t envelope;
		amqp_rpc_reply_t reply;
		bool		handled;

		amqp_maybe_release_buffers(broker);
		reply = amqp_consume_message(broker, &envelope, &timeout, 0);
		if (reply.reply_type == AMQP_RESPONSE_NORMAL)
		{
			handled = handle(&envelope);
			amqp_destroy_envelope(&envelope);
			if (!handled)
				return;
		}
		else if (reply.reply_type != AMQP_RESPONSE_LIBRARY_EXCEPTION ||
				 reply.library_error != AMQP_STATUS_TIMEOUT)
		{
			say_why(reply);
			return;
		}
		backoff = BACKOFF_MIN;
	}
}

/*
 * Whatever fails, both connections are made anew: when that of the broker is
 * closed, it gives what is not acknowledged to the next one.  The database comes
 * first, because without it no message is worth taking.
 */
static void
connect_and_consume(struct amqp_connection_info *info)
{
	database = PQconnectdb(DATABASE);
	if (PQstatus(database) != CONNECTION_OK)
		say("connecting to the database: %s", PQerrorMessage(database));
	else
	{
		broker = amqp_new_connection();
		if (connect_broker(info))
		{
			consume();
			amqp_connection_close(broker, AMQP_REPLY_SUCCESS);
		}
		amqp_destroy_connection(broker);
	}
	PQfinish(database);
}

int
main(int argc, char **argv)
{
	struct amqp_connection_info info;
	char	   *url = getenv("AMQP_URL");

	if (argc != 3 || url == NULL || amqp_parse_url(url, &info) != AMQP_STATUS_OK)
	{
		fprintf(stderr, "usage: AMQP_URL=amqp://... %s QUEUE CONSUMER\n", argv[0]);
		return 2;
	}
	queue = argv[1];
	consumer = argv[2];
	setenv("PGAPPNAME", consumer, 1);
	srand48(getpid());

	/* they stay pending until wait_for_stop() looks, so none comes amid a message */
	sigemptyset(&stop_signals);
	sigaddset(&stop_signals, SIGTERM);
	sigaddset(&stop_signals, SIGINT);
	sigprocmask(SIG_BLOCK, &stop_signals, NULL);
	signal(SIGPIPE, SIG_IGN);

	while (!stopping)
	{
		connect_and_consume(&info);
		if (!wait_for_stop(0))
			say("starting over in at most %.1f s", backoff);
		wait_for_stop(backoff * (1 + drand48()) / 2);
		backoff = backoff * 2 < BACKOFF_MAX ? backoff * 2 : BACKOFF_MAX;
	}
	return 0;
}

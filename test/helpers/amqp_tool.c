/*
 * amqp_tool.c
 *	  A small AMQP client for tests, demo and benchmark: it makes queues and
 *	  shows every detail of what arrives in them.
 *
 * It is a consumer of its own, over the library's own blocking connection, and
 * shares no line with the extension.
 *
 *	cc -O2 -o amqp_tool amqp_tool.c -lrabbitmq
 *
 *	amqp_tool [OPTIONS] COMMAND
 *	  declare-exchange NAME TYPE
 *	  declare-queue NAME         durable; --type quorum|stream, --arg ...
 *	  bind QUEUE EXCHANGE KEY
 *	  unbind QUEUE EXCHANGE KEY
 *	  delete-queue NAME
 *	  delete-exchange NAME
 *	  purge QUEUE
 *	  count QUEUE                prints how many messages are ready
 *	  get QUEUE [N]              takes what is there (at most N) and ends
 *	  consume QUEUE              takes what comes until --count, --idle,
 *	                             --until-input, SIGTERM or SIGINT
 *
 *	  --url URL          amqp://user:password@host:port/vhost; default is the
 *	                     environment's AMQP_URL, then the standard port here
 *	  --arg NAME=VALUE   argument of a queue, an exchange or a consumer; numbers
 *	                     and true/false go as such; may be repeated
 *	  --type TYPE        the same as --arg x-queue-type=TYPE
 *	  --transient        a queue or exchange that is not durable
 *	  --count N          end after N messages; fewer is exit code 3
 *	  --idle MS          end when nothing came for so long
 *	  --until-input      end at a byte, or at the end, of standard input
 *	  --prefetch N       default 2000
 *	  --ready-file FILE  make FILE when the consumer is registered
 *	  --fields A,B,...   print these, separated by tabs, instead of JSON; of
 *	                     message_id, exchange, routing_key, redelivered,
 *	                     arrived_us, size, body
 *
 * get and consume acknowledge each message after they wrote it.  As JSON it is
 * one line:
 *
 *	{"exchange":"...", "routing_key":"...", "redelivered":false,
 *	 "arrived_us":1700000000000000,
 *	 "properties":{"message_id":"...", "delivery_mode":2, ...,
 *	               "headers":{"name":{"type":"int64","value":1}, ...}},
 *	 "body_base64":"...", "body_text":"..."}
 *
 * properties holds only those that are present.  Types of header values are
 * boolean int8 uint8 int16 uint16 int32 uint32 int64 uint64 float double
 * decimal string bytes timestamp void array table; of an array the value is a
 * JSON array and of a table an object of such values.  Text that is not valid
 * UTF-8 is printed as {"base64":"..."}; then body_text is null.
 *
 * Exit code: 0; 1 for wrong usage; 2 for trouble with the broker; 3 above.
 */
#define _GNU_SOURCE
#if __has_include(<rabbitmq-c/amqp.h>)
#include <rabbitmq-c/amqp.h>
#include <rabbitmq-c/framing.h>
#include <rabbitmq-c/tcp_socket.h>
#else
#include <amqp.h>
#include <amqp_framing.h>
#include <amqp_tcp_socket.h>
#endif
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define CHANNEL 1
#define MAX_ARGUMENTS 32
#define MAX_FIELDS 16
#define ACK_EVERY 256
#define LOGIN_TIMEOUT 20		/* seconds */

static const char *opt_url;
static amqp_table_entry_t arguments[MAX_ARGUMENTS];
static int	narguments;
static bool opt_transient;
static long opt_count = -1;
static int	opt_idle = -1;		/* milliseconds */
static bool opt_until_input;
static int	opt_prefetch = 2000;
static const char *opt_ready_file;
static char *fields[MAX_FIELDS];
static int	nfields;

static amqp_connection_state_t conn;

/* ---- failing ---- */

static void __attribute__((noreturn, format(printf, 2, 3)))
fail(int code, const char *fmt,...)
{
	va_list		args;

	fflush(stdout);
	fputs("amqp_tool: ", stderr);
	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	fputc('\n', stderr);
	exit(code);
}

/* The broker's words, if it closed the channel or the connection. */
static void
fail_on_method(const char *what, const amqp_method_t *method)
{
	if (method->id == AMQP_CHANNEL_CLOSE_METHOD)
	{
		amqp_channel_close_t *m = method->decoded;

		fail(2, "%s: %d %.*s", what, m->reply_code, (int) m->reply_text.len,
			 (char *) m->reply_text.bytes);
	}
	if (method->id == AMQP_CONNECTION_CLOSE_METHOD)
	{
		amqp_connection_close_t *m = method->decoded;

		fail(2, "%s: %d %.*s", what, m->reply_code, (int) m->reply_text.len,
			 (char *) m->reply_text.bytes);
	}
	if (method->id == AMQP_BASIC_CANCEL_METHOD)
		fail(2, "%s: the broker ended the consumer", what);
	fail(2, "%s: unexpected %s", what, amqp_method_name(method->id));
}

static void
check_reply(const char *what, amqp_rpc_reply_t reply)
{
	if (reply.reply_type == AMQP_RESPONSE_NORMAL)
		return;
	if (reply.reply_type == AMQP_RESPONSE_SERVER_EXCEPTION)
		fail_on_method(what, &reply.reply);
	fail(2, "%s: %s", what, amqp_error_string2(reply.library_error));
}

static void
check_status(const char *what, int status)
{
	if (status < 0)
		fail(2, "%s: %s", what, amqp_error_string2(status));
}

static int64_t
now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	return (int64_t) t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* ---- output: one line at a time ---- */

static char *line;
static size_t line_len;
static size_t line_size;

static char *
line_room(size_t more)
{
	if (line_len + more > line_size)
	{
		line_size = (line_len + more) * 2;
		line = realloc(line, line_size);
		if (line == NULL)
			fail(2, "out of memory");
	}
	return line + line_len;
}

static void
put_bytes(const char *bytes, size_t len)
{
	if (len > 0)
		memcpy(line_room(len), bytes, len);
	line_len += len;
}

static void
put(const char *string)
{
	put_bytes(string, strlen(string));
}

static void __attribute__((format(printf, 1, 2)))
putf(const char *fmt,...)
{
	va_list		args;

	line_room(64);
	va_start(args, fmt);
	line_len += vsnprintf(line + line_len, 64, fmt, args);
	va_end(args);
}

static void
put_line(void)
{
	put("\n");
	fwrite(line, 1, line_len, stdout);
	line_len = 0;
}

/* Length of the UTF-8 sequence at s, 0 if it is none (Unicode, table 3-7). */
static size_t
utf8_length(const unsigned char *s, size_t left)
{
	size_t		n = s[0] < 0x80 ? 1 : s[0] < 0xC2 ? 0 : s[0] < 0xE0 ? 2 :
		s[0] < 0xF0 ? 3 : s[0] < 0xF5 ? 4 : 0;

	if (n == 0 || n > left)
		return 0;
	for (size_t i = 1; i < n; i++)
		if ((s[i] & 0xC0) != 0x80)
			return 0;
	if ((s[0] == 0xE0 && s[1] < 0xA0) || (s[0] == 0xED && s[1] > 0x9F) ||
		(s[0] == 0xF0 && s[1] < 0x90) || (s[0] == 0xF4 && s[1] > 0x8F))
		return 0;
	return n;
}

static bool
is_utf8(amqp_bytes_t b)
{
	const unsigned char *s = b.bytes;
	size_t		n;

	for (size_t i = 0; i < b.len; i += n)
	{
		n = utf8_length(s + i, b.len - i);
		if (n == 0)
			return false;
	}
	return true;
}

static void
put_base64(amqp_bytes_t b)
{
	static const char digits[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	const unsigned char *s = b.bytes;
	char	   *out = line_room(b.len / 3 * 4 + 8);

	*out++ = '"';
	for (size_t i = 0; i < b.len; i += 3)
	{
		size_t		left = b.len - i;
		uint32_t	v = (uint32_t) s[i] << 16;

		if (left > 1)
			v |= (uint32_t) s[i + 1] << 8;
		if (left > 2)
			v |= s[i + 2];
		*out++ = digits[v >> 18];
		*out++ = digits[v >> 12 & 63];
		*out++ = left > 1 ? digits[v >> 6 & 63] : '=';
		*out++ = left > 2 ? digits[v & 63] : '=';
	}
	*out++ = '"';
	line_len = out - line;
}

static void
put_json_string(amqp_bytes_t b)
{
	const unsigned char *s = b.bytes;

	if (!is_utf8(b))
	{
		put("{\"base64\":");
		put_base64(b);
		put("}");
		return;
	}
	put("\"");
	for (size_t i = 0; i < b.len; i++)
	{
		if (s[i] == '"' || s[i] == '\\')
			putf("\\%c", s[i]);
		else if (s[i] < 0x20 || s[i] == 0x7F)
			putf("\\u%04x", s[i]);
		else
			put_bytes((const char *) s + i, 1);
	}
	put("\"");
}

/* A field between tabs: backslash, tab, newline and return are escaped. */
static void
put_field(amqp_bytes_t b)
{
	static const char special[] = {'\\', '\t', '\n', '\r'};
	static const char letter[] = {'\\', 't', 'n', 'r'};
	const char *s = b.bytes;

	for (size_t i = 0; i < b.len; i++)
	{
		const char *found = memchr(special, s[i], sizeof special);

		if (found != NULL)
			putf("\\%c", letter[found - special]);
		else
			put_bytes(s + i, 1);
	}
}

/* ---- a message as JSON ---- */

static void put_table(const amqp_table_t *table);

static void
put_double(double d)
{
	if (isfinite(d))
		putf("%.17g", d);
	else
		putf("\"%s\"", isnan(d) ? "NaN" : d > 0 ? "Infinity" : "-Infinity");
}

static void
put_typed(const char *type, int64_t value)
{
	putf("{\"type\":\"%s\",", type);
	putf("\"value\":%" PRId64 "}", value);
}

static void
put_value(const amqp_field_value_t *v)
{
	switch (v->kind)
	{
		case AMQP_FIELD_KIND_BOOLEAN:
			putf("{\"type\":\"boolean\",\"value\":%s}",
				 v->value.boolean ? "true" : "false");
			return;
		case AMQP_FIELD_KIND_I8:
			put_typed("int8", v->value.i8);
			return;
		case AMQP_FIELD_KIND_U8:
			put_typed("uint8", v->value.u8);
			return;
		case AMQP_FIELD_KIND_I16:
			put_typed("int16", v->value.i16);
			return;
		case AMQP_FIELD_KIND_U16:
			put_typed("uint16", v->value.u16);
			return;
		case AMQP_FIELD_KIND_I32:
			put_typed("int32", v->value.i32);
			return;
		case AMQP_FIELD_KIND_U32:
			put_typed("uint32", v->value.u32);
			return;
		case AMQP_FIELD_KIND_I64:
			put_typed("int64", v->value.i64);
			return;
		case AMQP_FIELD_KIND_U64:
			putf("{\"type\":\"uint64\",\"value\":%" PRIu64 "}", v->value.u64);
			return;
		case AMQP_FIELD_KIND_TIMESTAMP:
			putf("{\"type\":\"timestamp\",\"value\":%" PRIu64 "}",
				 v->value.u64);
			return;
		case AMQP_FIELD_KIND_F32:
			put("{\"type\":\"float\",\"value\":");
			put_double(v->value.f32);
			break;
		case AMQP_FIELD_KIND_F64:
			put("{\"type\":\"double\",\"value\":");
			put_double(v->value.f64);
			break;
		case AMQP_FIELD_KIND_DECIMAL:
			putf("{\"type\":\"decimal\",\"value\":{\"decimals\":%u,",
				 v->value.decimal.decimals);
			putf("\"value\":%u}", v->value.decimal.value);
			break;
		case AMQP_FIELD_KIND_UTF8:
			put("{\"type\":\"string\",\"value\":");
			put_json_string(v->value.bytes);
			break;
		case AMQP_FIELD_KIND_BYTES:
			put("{\"type\":\"bytes\",\"value\":{\"base64\":");
			put_base64(v->value.bytes);
			put("}");
			break;
		case AMQP_FIELD_KIND_VOID:
			put("{\"type\":\"void\",\"value\":null");
			break;
		case AMQP_FIELD_KIND_TABLE:
			put("{\"type\":\"table\",\"value\":");
			put_table(&v->value.table);
			break;
		case AMQP_FIELD_KIND_ARRAY:
			put("{\"type\":\"array\",\"value\":[");
			for (int i = 0; i < v->value.array.num_entries; i++)
			{
				put(i > 0 ? "," : "");
				put_value(&v->value.array.entries[i]);
			}
			put("]");
			break;
		default:
			putf("{\"type\":\"kind %d\",\"value\":null", v->kind);
			break;
	}
	put("}");
}

static void
put_table(const amqp_table_t *table)
{
	put("{");
	for (int i = 0; i < table->num_entries; i++)
	{
		put(i > 0 ? "," : "");
		put_json_string(table->entries[i].key);
		put(":");
		put_value(&table->entries[i].value);
	}
	put("}");
}

static void
put_properties(const amqp_basic_properties_t *p)
{
	const char *separator = "";

#define PUT_NAME(name) \
	(putf("%s\"%s\":", separator, name), separator = ",")
#define PUT_STRING(flag, name, member) \
	if (p->_flags & AMQP_BASIC_##flag##_FLAG) \
	{ \
		PUT_NAME(name); \
		put_json_string(p->member); \
	}
#define PUT_NUMBER(flag, name, member) \
	if (p->_flags & AMQP_BASIC_##flag##_FLAG) \
	{ \
		PUT_NAME(name); \
		putf("%" PRIu64, (uint64_t) p->member); \
	}

	put("{");
	PUT_STRING(CONTENT_TYPE, "content_type", content_type);
	PUT_STRING(CONTENT_ENCODING, "content_encoding", content_encoding);
	if (p->_flags & AMQP_BASIC_HEADERS_FLAG)
	{
		PUT_NAME("headers");
		put_table(&p->headers);
	}
	PUT_NUMBER(DELIVERY_MODE, "delivery_mode", delivery_mode);
	PUT_NUMBER(PRIORITY, "priority", priority);
	PUT_STRING(CORRELATION_ID, "correlation_id", correlation_id);
	PUT_STRING(REPLY_TO, "reply_to", reply_to);
	PUT_STRING(EXPIRATION, "expiration", expiration);
	PUT_STRING(MESSAGE_ID, "message_id", message_id);
	PUT_NUMBER(TIMESTAMP, "timestamp", timestamp);
	PUT_STRING(TYPE, "type", type);
	PUT_STRING(USER_ID, "user_id", user_id);
	PUT_STRING(APP_ID, "app_id", app_id);
	PUT_STRING(CLUSTER_ID, "cluster_id", cluster_id);
	put("}");
}

static void
print_json(const amqp_envelope_t *e, int64_t arrived_us)
{
	put("{\"exchange\":");
	put_json_string(e->exchange);
	put(",\"routing_key\":");
	put_json_string(e->routing_key);
	putf(",\"redelivered\":%s", e->redelivered ? "true" : "false");
	putf(",\"arrived_us\":%" PRId64 ",\"properties\":", arrived_us);
	put_properties(&e->message.properties);
	put(",\"body_base64\":");
	put_base64(e->message.body);
	put(",\"body_text\":");
	if (is_utf8(e->message.body))
		put_json_string(e->message.body);
	else
		put("null");
	put("}");
	put_line();
}

static void
print_fields(const amqp_envelope_t *e, int64_t arrived_us)
{
	const amqp_basic_properties_t *p = &e->message.properties;

	for (int i = 0; i < nfields; i++)
	{
		put(i > 0 ? "\t" : "");
		if (strcmp(fields[i], "message_id") == 0)
			put_field(p->_flags & AMQP_BASIC_MESSAGE_ID_FLAG ?
					  p->message_id : amqp_empty_bytes);
		else if (strcmp(fields[i], "exchange") == 0)
			put_field(e->exchange);
		else if (strcmp(fields[i], "routing_key") == 0)
			put_field(e->routing_key);
		else if (strcmp(fields[i], "redelivered") == 0)
			put(e->redelivered ? "t" : "f");
		else if (strcmp(fields[i], "arrived_us") == 0)
			putf("%" PRId64, arrived_us);
		else if (strcmp(fields[i], "size") == 0)
			putf("%zu", e->message.body.len);
		else if (strcmp(fields[i], "body") == 0)
			put_field(e->message.body);
		else
			fail(1, "there is no field \"%s\"", fields[i]);
	}
	put_line();
}

static void
print_message(const amqp_envelope_t *e)
{
	int64_t		arrived_us = now_us();

	if (nfields > 0)
		print_fields(e, arrived_us);
	else
		print_json(e, arrived_us);
}

/* ---- the connection ---- */

static void
connect_to_broker(void)
{
	/* a consumer wants to hear that its queue was deleted */
	amqp_table_entry_t cancel = {
		amqp_cstring_bytes("consumer_cancel_notify"),
		{AMQP_FIELD_KIND_BOOLEAN, {.boolean = 1}}
	};
	amqp_table_entry_t capabilities = {
		amqp_cstring_bytes("capabilities"),
		{AMQP_FIELD_KIND_TABLE, {.table = {1, &cancel}}}
	};
	amqp_table_t properties = {1, &capabilities};
	struct amqp_connection_info info;
	struct timeval timeout = {LOGIN_TIMEOUT, 0};
	const char *url = opt_url != NULL ? opt_url : getenv("AMQP_URL");
	char	   *copy = strdup(url != NULL ? url : "amqp://127.0.0.1:5672");
	amqp_socket_t *socket;

	amqp_default_connection_info(&info);
	if (amqp_parse_url(copy, &info) != AMQP_STATUS_OK || info.ssl)
		fail(1, "wrong URL \"%s\"", url);
	conn = amqp_new_connection();
	socket = amqp_tcp_socket_new(conn);
	if (socket == NULL)
		fail(2, "out of memory");
	check_status(info.host, amqp_socket_open_noblock(socket, info.host,
													 info.port, &timeout));
	check_reply("login",
				amqp_login_with_properties(conn, info.vhost,
										   AMQP_DEFAULT_MAX_CHANNELS,
										   AMQP_DEFAULT_FRAME_SIZE, 0,
										   &properties, AMQP_SASL_METHOD_PLAIN,
										   info.user, info.password));
	amqp_channel_open(conn, CHANNEL);
	check_reply("channel", amqp_get_rpc_reply(conn));
	free(copy);
}

static void
disconnect(void)
{
	amqp_connection_close(conn, AMQP_REPLY_SUCCESS);
	amqp_destroy_connection(conn);
}

static amqp_table_t
argument_table(void)
{
	amqp_table_t table = {narguments, arguments};

	return table;
}

/* ---- commands ---- */

static void
declare_exchange(char **args)
{
	amqp_exchange_declare(conn, CHANNEL, amqp_cstring_bytes(args[0]),
						  amqp_cstring_bytes(args[1]), 0, !opt_transient, 0, 0,
						  argument_table());
	check_reply(args[0], amqp_get_rpc_reply(conn));
}

static void
declare_queue(char **args)
{
	amqp_queue_declare(conn, CHANNEL, amqp_cstring_bytes(args[0]), 0,
					   !opt_transient, 0, 0, argument_table());
	check_reply(args[0], amqp_get_rpc_reply(conn));
}

static void
bind_queue(char **args)
{
	amqp_queue_bind(conn, CHANNEL, amqp_cstring_bytes(args[0]),
					amqp_cstring_bytes(args[1]), amqp_cstring_bytes(args[2]),
					argument_table());
	check_reply(args[0], amqp_get_rpc_reply(conn));
}

static void
unbind_queue(char **args)
{
	amqp_queue_unbind(conn, CHANNEL, amqp_cstring_bytes(args[0]),
					  amqp_cstring_bytes(args[1]), amqp_cstring_bytes(args[2]),
					  argument_table());
	check_reply(args[0], amqp_get_rpc_reply(conn));
}

static void
delete_queue(char **args)
{
	amqp_queue_delete(conn, CHANNEL, amqp_cstring_bytes(args[0]), 0, 0);
	check_reply(args[0], amqp_get_rpc_reply(conn));
}

static void
delete_exchange(char **args)
{
	amqp_exchange_delete(conn, CHANNEL, amqp_cstring_bytes(args[0]), 0);
	check_reply(args[0], amqp_get_rpc_reply(conn));
}

static void
purge_queue(char **args)
{
	amqp_queue_purge(conn, CHANNEL, amqp_cstring_bytes(args[0]));
	check_reply(args[0], amqp_get_rpc_reply(conn));
}

static void
count_messages(char **args)
{
	amqp_queue_declare_ok_t *ok;

	ok = amqp_queue_declare(conn, CHANNEL, amqp_cstring_bytes(args[0]), 1, 0,
							0, 0, amqp_empty_table);
	check_reply(args[0], amqp_get_rpc_reply(conn));
	printf("%u\n", ok->message_count);
}

/* One basic.get; false if the queue is empty. */
static bool
get_one(const char *queue)
{
	amqp_rpc_reply_t reply;
	amqp_envelope_t e;
	amqp_basic_get_ok_t *ok;

	reply = amqp_basic_get(conn, CHANNEL, amqp_cstring_bytes(queue), 0);
	check_reply(queue, reply);
	if (reply.reply.id == AMQP_BASIC_GET_EMPTY_METHOD)
		return false;
	ok = reply.reply.decoded;
	memset(&e, 0, sizeof e);
	e.delivery_tag = ok->delivery_tag;
	e.redelivered = ok->redelivered;
	e.exchange = amqp_bytes_malloc_dup(ok->exchange);
	e.routing_key = amqp_bytes_malloc_dup(ok->routing_key);
	check_reply(queue, amqp_read_message(conn, CHANNEL, &e.message, 0));
	print_message(&e);
	fflush(stdout);
	check_status("ack", amqp_basic_ack(conn, CHANNEL, e.delivery_tag, 0));
	amqp_bytes_free(e.exchange);
	amqp_bytes_free(e.routing_key);
	amqp_destroy_message(&e.message);
	amqp_maybe_release_buffers(conn);
	return true;
}

static void
get_messages(char **args)
{
	long		limit = args[1] != NULL ? atol(args[1]) : -1;

	for (long n = 0; n != limit && get_one(args[0]); n++)
		;
}

/*
 * Wait for input from the broker: false if it is time to end, because of a
 * signal, of standard input, or because nothing came for opt_idle.
 */
static bool
wait_for_broker(int signal_fd)
{
	struct pollfd p[3] = {
		{amqp_get_sockfd(conn), POLLIN, 0},
		{signal_fd, POLLIN, 0},
		{opt_until_input ? STDIN_FILENO : -1, POLLIN, 0}
	};
	int			n;

	do
		n = poll(p, 3, opt_idle);
	while (n < 0 && errno == EINTR);
	return n > 0 && p[1].revents == 0 && p[2].revents == 0;
}

/* The frame that amqp_consume_message() did not expect. */
static void
handle_other_frame(const char *queue)
{
	amqp_frame_t frame;

	check_status(queue, amqp_simple_wait_frame(conn, &frame));
	if (frame.frame_type == AMQP_FRAME_METHOD)
		fail_on_method(queue, &frame.payload.method);
}

/* Take one delivery; its tag, or 0 if none was complete yet. */
static uint64_t
consume_one(const char *queue)
{
	struct timeval timeout = {1, 0};
	amqp_rpc_reply_t reply;
	amqp_envelope_t e;
	uint64_t	tag;

	amqp_maybe_release_buffers(conn);
	reply = amqp_consume_message(conn, &e, &timeout, 0);
	if (reply.reply_type == AMQP_RESPONSE_LIBRARY_EXCEPTION)
	{
		if (reply.library_error == AMQP_STATUS_TIMEOUT)
			return 0;
		if (reply.library_error == AMQP_STATUS_UNEXPECTED_STATE)
		{
			handle_other_frame(queue);
			return 0;
		}
	}
	check_reply(queue, reply);
	print_message(&e);
	tag = e.delivery_tag;
	amqp_destroy_envelope(&e);
	return tag;
}

static int
block_end_signals(void)
{
	sigset_t	signals;

	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	return signalfd(-1, &signals, SFD_CLOEXEC);
}

static void
start_consumer(const char *queue)
{
	amqp_basic_qos(conn, CHANNEL, 0, opt_prefetch, 0);
	check_reply("qos", amqp_get_rpc_reply(conn));
	amqp_basic_consume(conn, CHANNEL, amqp_cstring_bytes(queue),
					   amqp_empty_bytes, 0, 0, 0, argument_table());
	check_reply(queue, amqp_get_rpc_reply(conn));
	if (opt_ready_file != NULL)
	{
		FILE	   *f = fopen(opt_ready_file, "w");

		if (f == NULL || fclose(f) != 0)
			fail(1, "cannot write \"%s\"", opt_ready_file);
	}
}

static void
consume_messages(char **args)
{
	int			signal_fd = block_end_signals();
	long		received = 0;
	uint64_t	last_tag = 0;
	uint64_t	acked_tag = 0;

	start_consumer(args[0]);
	while (received != opt_count)
	{
		bool		waiting = !amqp_frames_enqueued(conn) &&
			!amqp_data_in_buffer(conn);
		uint64_t	tag;

		if (last_tag - acked_tag >= ACK_EVERY ||
			(waiting && last_tag > acked_tag))
		{
			fflush(stdout);
			check_status("ack", amqp_basic_ack(conn, CHANNEL, last_tag, 1));
			acked_tag = last_tag;
		}
		if (waiting && !wait_for_broker(signal_fd))
			break;
		tag = consume_one(args[0]);
		if (tag > 0)
		{
			last_tag = tag;
			received++;
		}
	}
	fflush(stdout);
	if (last_tag > acked_tag)
		check_status("ack", amqp_basic_ack(conn, CHANNEL, last_tag, 1));
	if (opt_count >= 0 && received < opt_count)
	{
		disconnect();
		fail(3, "%ld messages instead of %ld", received, opt_count);
	}
}

/* ---- the command line ---- */

static const struct
{
	const char *name;
	int			min_args;
	int			max_args;
	void		(*run) (char **args);
}			commands[] =

{
	{"declare-exchange", 2, 2, declare_exchange},
	{"declare-queue", 1, 1, declare_queue},
	{"bind", 3, 3, bind_queue},
	{"unbind", 3, 3, unbind_queue},
	{"delete-queue", 1, 1, delete_queue},
	{"delete-exchange", 1, 1, delete_exchange},
	{"purge", 1, 1, purge_queue},
	{"count", 1, 1, count_messages},
	{"get", 1, 2, get_messages},
	{"consume", 1, 1, consume_messages},
	{NULL, 0, 0, NULL}
};

/* Note an argument; text is NAME=VALUE. */
static void
add_argument(char *text)
{
	char	   *value = strchr(text, '=');
	amqp_field_value_t *v;
	char	   *end;

	if (value == NULL || narguments == MAX_ARGUMENTS)
		fail(1, "wrong argument \"%s\"", text);
	*value++ = '\0';
	arguments[narguments].key = amqp_cstring_bytes(text);
	v = &arguments[narguments++].value;
	v->value.i64 = strtoll(value, &end, 10);
	v->kind = AMQP_FIELD_KIND_I64;
	if (*value != '\0' && *end == '\0')
		return;
	if (strcmp(value, "true") == 0 || strcmp(value, "false") == 0)
	{
		v->kind = AMQP_FIELD_KIND_BOOLEAN;
		v->value.boolean = value[0] == 't';
		return;
	}
	v->kind = AMQP_FIELD_KIND_UTF8;
	v->value.bytes = amqp_cstring_bytes(value);
}

static void
add_type(const char *type)
{
	char	   *text;

	if (asprintf(&text, "x-queue-type=%s", type) < 0)
		fail(2, "out of memory");
	add_argument(text);
}

static void
set_fields(char *list)
{
	for (char *name = strtok(list, ","); name != NULL; name = strtok(NULL, ","))
	{
		if (nfields == MAX_FIELDS)
			fail(1, "too many fields");
		fields[nfields++] = name;
	}
}

static int
parse_options(int argc, char **argv)
{
	static const struct option options[] = {
		{"url", required_argument, NULL, 'u'},
		{"arg", required_argument, NULL, 'a'},
		{"type", required_argument, NULL, 't'},
		{"transient", no_argument, NULL, 'T'},
		{"count", required_argument, NULL, 'c'},
		{"idle", required_argument, NULL, 'i'},
		{"until-input", no_argument, NULL, 'I'},
		{"prefetch", required_argument, NULL, 'p'},
		{"ready-file", required_argument, NULL, 'r'},
		{"fields", required_argument, NULL, 'f'},
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
			case 'a':
				add_argument(optarg);
				break;
			case 't':
				add_type(optarg);
				break;
			case 'T':
				opt_transient = true;
				break;
			case 'c':
				opt_count = atol(optarg);
				break;
			case 'i':
				opt_idle = atoi(optarg);
				break;
			case 'I':
				opt_until_input = true;
				break;
			case 'p':
				opt_prefetch = atoi(optarg);
				break;
			case 'r':
				opt_ready_file = optarg;
				break;
			case 'f':
				set_fields(optarg);
				break;
			default:
				exit(1);
		}
	}
	return optind;
}

int
main(int argc, char **argv)
{
	int			first = parse_options(argc, argv);
	const char *name = first < argc ? argv[first] : "";
	int			nargs = argc - first - 1;

	setvbuf(stdout, NULL, _IOFBF, 1 << 16);
	for (int i = 0; commands[i].name != NULL; i++)
	{
		if (strcmp(name, commands[i].name) != 0)
			continue;
		if (nargs < commands[i].min_args || nargs > commands[i].max_args)
			fail(1, "wrong number of arguments for %s", name);
		connect_to_broker();
		commands[i].run(argv + first + 1);
		disconnect();
		if (fflush(stdout) != 0)
			fail(2, "cannot write: %s", strerror(errno));
		return 0;
	}
	fail(1, "unknown command \"%s\"; the head of the source has the list",
		 name);
}

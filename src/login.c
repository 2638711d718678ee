/*-------------------------------------------------------------------------
 *
 * login.c
 *	  Who we are and what we ask for: from the broker's greeting to an open
 *	  virtual host.
 *
 * The states of a login, the method that ends each, and the answer:
 *
 *	AWAIT_START --connection.start / start-ok-->
 *	AWAIT_TUNE --connection.tune / tune-ok, open-->
 *	AWAIT_OPEN --connection.open-ok--> DONE
 *
 * The mechanism is PLAIN, which every broker knows, with a password or with a
 * token (RabbitMQ's OAuth 2 takes it in that place); or EXTERNAL, where the TLS
 * certificate says who we are.  The password is kept until start-ok is queued,
 * and the copies made here are wiped; that in the wire's output buffer when the
 * broker has accepted it.
 *
 *-------------------------------------------------------------------------
 */
#define OUTBOX_WITH_LIBRABBITMQ

#include "postgres.h"

#include "utils/memutils.h"

#include "compat.h"
#include "login.h"

struct OutboxLogin
{
	MemoryContextCallback release;
	OutboxLoginState state;

	OutboxMechanism mechanism;
	bool		tls;
	bool		allow_plaintext;
	bool		forbidden;		/* outbox_login_permit() said no */
	char	   *user;			/* empty: the broker knows without */
	char	   *password;		/* NULL once it is sent */
	char	   *vhost;
	char	   *connection_name;
	uint32		frame_max;		/* bytes, what we want */
	uint16		channel_max;	/* as agreed */
	int			heartbeat;		/* seconds, 0 for none; ours, then agreed */
	OutboxGreeting greeting;
};


/* --------
 * The credentials
 * --------
 */

/* The password is not needed twice. */
static void
forget_password(OutboxLogin *login)
{
	if (login->password)
		explicit_bzero(login->password, strlen(login->password));
	login->password = NULL;
}

/* The reset callback of the login's memory context. */
static void
release_login(void *arg)
{
	forget_password((OutboxLogin *) arg);
}

OutboxLogin *
outbox_login_create(const OutboxServer *server,
					const OutboxCredentials *credentials,
					const char *connection_name)
{
	OutboxLogin *login = palloc0(sizeof(OutboxLogin));

	Assert(server->frame_max >= OUTBOX_FRAME_MIN_SIZE);

	login->release.func = release_login;
	login->release.arg = login;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &login->release);

	login->state = OUTBOX_LOGIN_AWAIT_START;
	login->mechanism = server->mechanism;
	login->tls = server->tls;
	login->allow_plaintext = server->allow_plaintext;
	login->user = pstrdup(server->user ? server->user : "");
	login->password = pstrdup(credentials->password);
	login->vhost = pstrdup(server->vhost);
	login->connection_name = pstrdup(connection_name);
	login->frame_max = server->frame_max;
	login->heartbeat = Min(server->heartbeat, PG_UINT16_MAX);
	return login;
}


bool
outbox_login_permit(OutboxLogin *login, const OutboxStreamReport *stream,
					OutboxFailure *failure)
{
	char		detail[OUTBOX_FAILURE_DETAIL_LEN];

	Assert(login->state == OUTBOX_LOGIN_AWAIT_START);

	if (login->tls)
		return true;
	if (login->mechanism == OUTBOX_MECHANISM_EXTERNAL)
	{
		outbox_failure_set(failure, ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
						   "Connect with TLS (amqps), or give the user mapping a password and auth_mechanism 'plain'.",
						   "authentication by a certificate needs TLS");
		login->forbidden = true;
	}
	else if (!stream->loopback && !login->allow_plaintext)
	{
		snprintf(detail, sizeof(detail),
				 "The address %s is not a loopback address. Connect with TLS (amqps), or, if everybody on the way may read it, set the server's option allow_plaintext.",
				 stream->address);
		outbox_failure_set(failure, ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
						   detail,
						   "no password is sent over a network without TLS");
		login->forbidden = true;
	}
	return !login->forbidden;
}

bool
outbox_login_is_forbidden(const OutboxLogin *login)
{
	return login->forbidden;
}


/* --------
 * connection.start
 * --------
 */

static const char *
mechanism_name(const OutboxLogin *login)
{
	return login->mechanism == OUTBOX_MECHANISM_EXTERNAL ?
		"EXTERNAL" : "PLAIN";
}

static bool
offers_mechanism(amqp_bytes_t mechanisms, const char *name)
{
	const char *p = mechanisms.bytes;
	const char *end = p + mechanisms.len;

	while (p < end)
	{
		const char *space = memchr(p, ' ', end - p);
		Size		len = (space ? space : end) - p;

		if (len == strlen(name) && memcmp(p, name, len) == 0)
			return true;
		p += len + 1;
	}
	return false;
}

static amqp_table_entry_t
string_entry(const char *key, const char *value)
{
	amqp_table_entry_t entry;

	entry.key = amqp_cstring_bytes(key);
	entry.value.kind = AMQP_FIELD_KIND_UTF8;
	entry.value.value.bytes = amqp_cstring_bytes(value);
	return entry;
}

static amqp_table_entry_t
true_entry(const char *key)
{
	amqp_table_entry_t entry;

	entry.key = amqp_cstring_bytes(key);
	entry.value.kind = AMQP_FIELD_KIND_BOOLEAN;
	entry.value.value.boolean = 1;
	return entry;
}

static amqp_table_entry_t
table_entry(const char *key, amqp_table_entry_t *entries, int num_entries)
{
	amqp_table_entry_t entry;

	entry.key = amqp_cstring_bytes(key);
	entry.value.kind = AMQP_FIELD_KIND_TABLE;
	entry.value.value.table.num_entries = num_entries;
	entry.value.value.table.entries = entries;
	return entry;
}

/*
 * RFC 4616: NUL, user, NUL, password.  RFC 4422, appendix A: for EXTERNAL who
 * we want to be, which may be left to the certificate.  The caller wipes and
 * frees it.
 */
static amqp_bytes_t
sasl_response(const OutboxLogin *login)
{
	Size		user_len = strlen(login->user);
	Size		password_len = strlen(login->password);
	amqp_bytes_t response;
	char	   *p;

	if (login->mechanism == OUTBOX_MECHANISM_EXTERNAL)
	{
		response.len = user_len;
		response.bytes = pstrdup(login->user);
		return response;
	}
	response.len = user_len + password_len + 2;
	response.bytes = p = palloc(response.len);
	p[0] = '\0';
	memcpy(p + 1, login->user, user_len + 1);
	memcpy(p + user_len + 2, login->password, password_len);
	return response;
}

/*
 * connection.blocked makes the broker tell of an alarm, and
 * authentication_failure_close makes it refuse a login in words; see
 * https://www.rabbitmq.com/docs/connections#capabilities.
 */
static bool
queue_start_ok(OutboxLogin *login, OutboxWire *wire, OutboxFailure *failure)
{
	amqp_connection_start_ok_t start_ok = {0};
	amqp_table_entry_t capabilities[4];
	amqp_table_entry_t properties[5];
	bool		queued;

	capabilities[0] = true_entry("authentication_failure_close");
	capabilities[1] = true_entry("basic.nack");
	capabilities[2] = true_entry("connection.blocked");
	capabilities[3] = true_entry("publisher_confirms");
	properties[0] = string_entry("product", "amqp_outbox");
	properties[1] = string_entry("version", OUTBOX_VERSION);
	properties[2] = string_entry("platform", "PostgreSQL " PG_VERSION);
	properties[3] = string_entry("connection_name", login->connection_name);
	properties[4] = table_entry("capabilities", capabilities,
								lengthof(capabilities));

	start_ok.client_properties.num_entries = lengthof(properties);
	start_ok.client_properties.entries = properties;
	start_ok.mechanism = amqp_cstring_bytes(mechanism_name(login));
	start_ok.response = sasl_response(login);
	start_ok.locale = amqp_cstring_bytes("en_US");
	queued = outbox_wire_queue_method(wire, 0, AMQP_CONNECTION_START_OK_METHOD,
									  &start_ok,
									  strlen(login->connection_name) +
									  start_ok.response.len,
									  failure);

	explicit_bzero(start_ok.response.bytes, start_ok.response.len);
	pfree(start_ok.response.bytes);
	forget_password(login);
	return queued;
}

/* A property of the broker, if it is text. */
static void
copy_property(const amqp_table_t *properties, const char *key, char *dst,
			  Size size)
{
	for (int i = 0; i < properties->num_entries; i++)
	{
		const amqp_table_entry_t *entry = &properties->entries[i];

		if (entry->key.len == strlen(key) &&
			memcmp(entry->key.bytes, key, entry->key.len) == 0 &&
			entry->value.kind == AMQP_FIELD_KIND_UTF8)
			outbox_utf8_copy(dst, size, entry->value.value.bytes.bytes,
							 entry->value.value.bytes.len, true);
	}
}

static void
note_greeting(OutboxGreeting *greeting, const amqp_connection_start_t *start)
{
	copy_property(&start->server_properties, "product", greeting->product,
				  sizeof(greeting->product));
	copy_property(&start->server_properties, "version", greeting->version,
				  sizeof(greeting->version));
	outbox_utf8_copy(greeting->mechanisms, sizeof(greeting->mechanisms),
					 start->mechanisms.bytes, start->mechanisms.len, true);
}

static bool
answer_start(OutboxLogin *login, OutboxWire *wire,
			 const amqp_connection_start_t *start, OutboxFailure *failure)
{
	Assert(login->state == OUTBOX_LOGIN_AWAIT_START);

	note_greeting(&login->greeting, start);
	if (!offers_mechanism(start->mechanisms, mechanism_name(login)))
	{
		char		detail[OUTBOX_FAILURE_DETAIL_LEN];

		snprintf(detail, sizeof(detail), "It offers: %s.",
				 login->greeting.mechanisms);
		outbox_failure_set(failure,
						   ERRCODE_SQLSERVER_REJECTED_ESTABLISHMENT_OF_SQLCONNECTION,
						   detail,
						   "the broker does not offer the authentication mechanism %s",
						   mechanism_name(login));
		return false;
	}
	login->state = OUTBOX_LOGIN_AWAIT_TUNE;
	return queue_start_ok(login, wire, failure);
}

void
outbox_login_describe_greeting(const char *bytes, char *detail, Size size)
{
	if (memcmp(bytes, "AMQP", 4) == 0)
		snprintf(detail, size,
				 "It proposes protocol %u, version %u-%u-%u.",
				 (uint8) bytes[4], (uint8) bytes[5],
				 (uint8) bytes[6], (uint8) bytes[7]);
	else if (bytes[0] == 21 && bytes[1] == 3)	/* an alert */
		strlcpy(detail, "It expects TLS.", size);
	else
		strlcpy(detail, "Its first bytes are not those of an AMQP broker.",
				size);
}


/* --------
 * connection.tune and connection.open-ok
 * --------
 */

/* The smaller of two limits, of which 0 is none. */
static uint32
tighter_limit(uint32 a, uint32 b)
{
	if (a == 0 || b == 0)
		return Max(a, b);
	return Min(a, b);
}

static bool
answer_tune(OutboxLogin *login, OutboxWire *wire,
			const amqp_connection_tune_t *tune, OutboxFailure *failure)
{
	amqp_connection_tune_ok_t tune_ok = {0};
	amqp_connection_open_t open = {0};

	Assert(login->state == OUTBOX_LOGIN_AWAIT_TUNE);

	if (tune->frame_max != 0 && tune->frame_max < OUTBOX_FRAME_MIN_SIZE)
	{
		outbox_wire_violation(failure,
							  "the broker proposes frames of less than 4096 bytes");
		return false;
	}
	login->frame_max = tighter_limit(login->frame_max, tune->frame_max);
	if (login->heartbeat > 0)
		login->heartbeat = tighter_limit(login->heartbeat, tune->heartbeat);
	login->channel_max = tighter_limit(OUTBOX_CHANNEL_MAX, tune->channel_max);
	login->state = OUTBOX_LOGIN_AWAIT_OPEN;
	outbox_wire_wipe_sent(wire);
	outbox_wire_set_frame_max(wire, login->frame_max);

	tune_ok.channel_max = login->channel_max;
	tune_ok.frame_max = login->frame_max;
	tune_ok.heartbeat = (uint16) login->heartbeat;
	open.virtual_host = amqp_cstring_bytes(login->vhost);
	return outbox_wire_queue_method(wire, 0, AMQP_CONNECTION_TUNE_OK_METHOD,
									&tune_ok, 0, failure) &&
		outbox_wire_queue_method(wire, 0, AMQP_CONNECTION_OPEN_METHOD,
								 &open, 0, failure);
}

static void
become_done(OutboxLogin *login)
{
	Assert(login->state == OUTBOX_LOGIN_AWAIT_OPEN);
	login->state = OUTBOX_LOGIN_DONE;
}


/* --------
 * For the transport
 * --------
 */

OutboxLoginState
outbox_login_state(const OutboxLogin *login)
{
	return login->state;
}

bool
outbox_login_expects(const OutboxLogin *login, uint32 id)
{
	switch (login->state)
	{
		case OUTBOX_LOGIN_AWAIT_START:
			return id == AMQP_CONNECTION_START_METHOD;
		case OUTBOX_LOGIN_AWAIT_TUNE:
			return id == AMQP_CONNECTION_TUNE_METHOD;
		case OUTBOX_LOGIN_AWAIT_OPEN:
			return id == AMQP_CONNECTION_OPEN_OK_METHOD;
		case OUTBOX_LOGIN_DONE:
			break;
	}
	return false;
}

bool
outbox_login_answer(OutboxLogin *login, OutboxWire *wire, uint32 id,
					void *method, OutboxFailure *failure)
{
	Assert(outbox_login_expects(login, id));

	switch (id)
	{
		case AMQP_CONNECTION_START_METHOD:
			return answer_start(login, wire, method, failure);
		case AMQP_CONNECTION_TUNE_METHOD:
			return answer_tune(login, wire, method, failure);
		default:
			become_done(login);
			return true;
	}
}

int
outbox_login_channel_max(const OutboxLogin *login)
{
	return login->channel_max;
}

uint32
outbox_login_frame_max(const OutboxLogin *login)
{
	return login->frame_max;
}

const OutboxGreeting *
outbox_login_greeting(const OutboxLogin *login)
{
	return &login->greeting;
}

int
outbox_login_heartbeat(const OutboxLogin *login)
{
	return login->state > OUTBOX_LOGIN_AWAIT_TUNE ? login->heartbeat : 0;
}

int
outbox_login_sqlerrcode(const OutboxLogin *login, int reply_code)
{
	switch (reply_code)
	{
		case AMQP_ACCESS_REFUSED:
			return login->state == OUTBOX_LOGIN_AWAIT_TUNE ?
				ERRCODE_INVALID_PASSWORD :
				ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION;
		case AMQP_INVALID_PATH:
		case AMQP_NOT_ALLOWED:
		case AMQP_RESOURCE_ERROR:
			return ERRCODE_SQLSERVER_REJECTED_ESTABLISHMENT_OF_SQLCONNECTION;
		case AMQP_FRAME_ERROR:
		case AMQP_SYNTAX_ERROR:
		case AMQP_COMMAND_INVALID:
		case AMQP_CHANNEL_ERROR:
		case AMQP_UNEXPECTED_FRAME:
		case AMQP_NOT_IMPLEMENTED:
			return ERRCODE_PROTOCOL_VIOLATION;
		default:
			return ERRCODE_CONNECTION_FAILURE;
	}
}

/*
 * Several brokers answer what they do not like by hanging up, RabbitMQ after
 * three seconds.
 */
const char *
outbox_login_hangup_hint(const OutboxLogin *login)
{
	switch (login->state)
	{
		case OUTBOX_LOGIN_AWAIT_START:
			return login->tls ?
				"It did not greet: perhaps it does not accept the client certificate or demands one, or takes no more connections." :
				"It did not greet: perhaps it expects TLS, or takes no more connections.";
		case OUTBOX_LOGIN_AWAIT_TUNE:
			return "It hung up after the login: perhaps it does not accept user or password.";
		case OUTBOX_LOGIN_AWAIT_OPEN:
			return "It hung up when the virtual host was opened: perhaps that does not exist, or the limits asked for are refused.";
		case OUTBOX_LOGIN_DONE:
			break;
	}
	return NULL;
}

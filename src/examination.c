/*-------------------------------------------------------------------------
 *
 * examination.c
 *	  What the doctor asks a broker, and what the answers mean.
 *
 * The steps of connecting are judged by how far the connection came: what was
 * passed is well, where it ended is what is wrong, and of what would have come
 * then nothing is known.
 *
 * Whether the user may write to an exchange, and whether the broker takes
 * messages at all, only a message tells.  RabbitMQ checks the right to write
 * and the exchange before it looks at a message's properties, and closes the
 * channel (406) for an expiration that it cannot take.  So a message with such
 * an expiration asks both and can never get into a queue; other brokers may not
 * look at it, and are not asked.  See basic.publish in RabbitMQ's
 * rabbit_channel.erl; the order is the same in 3.x and 4.x.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "examination.h"
#include "properties.h"

/* A certificate that ends sooner than that is a warning. */
#define OUTBOX_CERTIFICATE_DAYS		30

/* A probe: it does not stay in a queue that nobody looks after. */
#define OUTBOX_PROBE_KEY			"amqp_outbox.doctor"
#define OUTBOX_PROBE_BODY			"probe of amqp_outbox.doctor()"
#define OUTBOX_PROBE_EXPIRATION_MS	60000

/* What RabbitMQ refuses: more than OUTBOX_EXPIRATION_MAX_MS. */
#define OUTBOX_IMPOSSIBLE_EXPIRATION_MS	PG_INT64_MAX

static void outbox_examination_tell(OutboxExamination *examination,
									OutboxCheck check,
									OutboxCheckResult result, int host_no,
									const char *what_to_do,
									const char *fmt,...)
			pg_attribute_printf(6, 7);

/*
 * Writing down
 */

static void
outbox_examination_tell(OutboxExamination *examination, OutboxCheck check,
						OutboxCheckResult result, int host_no,
						const char *what_to_do, const char *fmt,...)
{
	OutboxFinding finding;
	char		text[sizeof(finding.finding)];
	va_list		args;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	outbox_finding_set(&finding, check, result, host_no, what_to_do, "%s",
					   text);
	outbox_chart_add(examination->chart, &finding);
}

static void
outbox_examination_failed(OutboxExamination *examination, OutboxCheck check,
						  int host_no, const OutboxFailure *failure,
						  const char *what_to_do)
{
	outbox_examination_tell(examination, check, OUTBOX_CHECK_ERROR, host_no,
							what_to_do, "%s%s%s", failure->message,
							failure->detail[0] ? ": " : "", failure->detail);
}

/* The same for a step of connecting to the present host. */
static void
outbox_examination_ok(OutboxExamination *examination, OutboxCheck check,
					  const char *finding)
{
	outbox_examination_tell(examination, check, OUTBOX_CHECK_OK,
							examination->host_no, NULL, "%s", finding);
}

/*
 * Steps of connecting that went well
 */

static void
outbox_examination_without_tls(OutboxExamination *examination)
{
	if (examination->report.stream.loopback)
		outbox_examination_ok(examination, OUTBOX_CHECK_TLS,
							  "no TLS, and nothing leaves this machine");
	else
		outbox_examination_tell(examination, OUTBOX_CHECK_TLS,
								OUTBOX_CHECK_WARNING, examination->host_no,
								"Have the broker listen with TLS, and give the server an amqps URI or the option tls.",
								"no TLS: password and messages can be read on the way");
}

static void
outbox_examination_encrypted(OutboxExamination *examination)
{
	const OutboxStreamReport *stream = &examination->report.stream;
	bool		soon = stream->tls.days_left < OUTBOX_CERTIFICATE_DAYS;

	if (!examination->order->server.tls)
	{
		outbox_examination_without_tls(examination);
		return;
	}
	if (stream->tls.unverified)
	{
		outbox_examination_tell(examination, OUTBOX_CHECK_TLS,
								OUTBOX_CHECK_WARNING, examination->host_no,
								"Set the server's option cacertfile to the certificate of the broker's authority, and drop the option verify.",
								"%s; the broker's certificate is not verified: whoever is on the way can read and change everything",
								stream->tls.version);
		return;
	}
	outbox_examination_tell(examination, OUTBOX_CHECK_TLS,
							soon ? OUTBOX_CHECK_WARNING : OUTBOX_CHECK_OK,
							examination->host_no,
							soon ? "Renew the certificate before it ends." : NULL,
							"%s; chain and name are verified; certificate \"%s\" is valid for %d more days",
							stream->tls.version, stream->tls.subject,
							stream->tls.days_left);
}

static void
outbox_examination_greeted(OutboxExamination *examination)
{
	const OutboxTransportReport *report = &examination->report;

	outbox_examination_ok(examination, OUTBOX_CHECK_BROKER,
						  psprintf("%s %s; authentication: %s",
								   report->product[0] ? report->product :
								   "a broker that does not say which",
								   report->version, report->mechanisms));
}

static void
outbox_examination_agreed(OutboxExamination *examination)
{
	const OutboxTransportReport *report = &examination->report;
	bool		one_channel = report->channel_max < 2;

	outbox_examination_tell(examination, OUTBOX_CHECK_LIMITS,
							one_channel ? OUTBOX_CHECK_WARNING : OUTBOX_CHECK_OK,
							examination->host_no,
							one_channel ? "Allow two channels for each connection (RabbitMQ: channel_max), or topology cannot be declared." : NULL,
							"heartbeat %d s, frame_max %u bytes, channel_max %d",
							report->heartbeat, report->frame_max,
							report->channel_max);
}

/*
 * The step that failed
 */

static const char *
outbox_examination_tls_remedy(const OutboxExamination *examination,
							  const OutboxFailure *failure)
{
	if (failure->sqlerrcode == ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION)
		return "Have the broker listen with TLS, and give the server an amqps URI or the option tls.";
	switch (examination->report.stream.tls.trust)
	{
		case OUTBOX_TRUST_EXPIRED:
			return "Renew the certificate.";
		case OUTBOX_TRUST_NOT_YET:
			return "Compare the clocks of the database's machine and of the one that made the certificate.";
		case OUTBOX_TRUST_NO_CA:
			return "Set the server's option cacertfile to the certificate of the authority that signed the broker's, and have the broker send what is between the two.";
		case OUTBOX_TRUST_NAME:
			return "Connect to a host name that the certificate is for, or make a certificate for this one (subjectAltName).";
		case OUTBOX_TRUST_NO_VERSION:
			return "Have the broker offer a newer version of TLS, or lower the server's option tls_min_version.";
		case OUTBOX_TRUST_NOT_US:
			return "Set the options certfile and keyfile of the user mapping to a certificate that the broker accepts; see the broker's log.";
		default:
			return "See whether the broker expects TLS at this port, and its log.";
	}
}

static void
outbox_examination_failed_tls(OutboxExamination *examination,
							  const OutboxFailure *failure)
{
	const OutboxStreamReport *stream = &examination->report.stream;
	const char *what_to_do = outbox_examination_tls_remedy(examination,
															   failure);

	if (stream->tls.subject[0] == '\0')
		outbox_examination_failed(examination, OUTBOX_CHECK_TLS,
								  examination->host_no, failure, what_to_do);
	else
		outbox_examination_tell(examination, OUTBOX_CHECK_TLS,
								OUTBOX_CHECK_ERROR, examination->host_no,
								what_to_do,
								"%s: %s; certificate \"%s\", days left: %d",
								failure->message, failure->detail,
								stream->tls.subject, stream->tls.days_left);
}

static const char *
outbox_examination_login_remedy(const OutboxServer *server)
{
	if (server->mechanism == OUTBOX_MECHANISM_EXTERNAL)
		return "Have the broker offer EXTERNAL (RabbitMQ: the plugin rabbitmq_auth_mechanism_ssl, and auth_mechanisms) and know a user of the name that it takes from the certificate (ssl_cert_login_from).";
	if (server->user == NULL)
		return "See the broker's log for what it finds wrong with the token: who made it, for whom, its scopes, or its end.";
	return "Correct user and password in the user mapping of the server's owner or of PUBLIC, or at the broker (rabbitmqctl authenticate_user).";
}

static void
outbox_examination_failed_step(OutboxExamination *examination,
							   const OutboxFailure *failure)
{
	OutboxCheck check = OUTBOX_CHECK_LIMITS;
	const char *what_to_do = "See the broker's log.";

	switch (examination->report.phase)
	{
		case OUTBOX_PHASE_RESOLVING:
			check = OUTBOX_CHECK_NAME_RESOLUTION;
			what_to_do = "Correct the name, or the name servers of the database's machine (/etc/resolv.conf, /etc/hosts).";
			break;
		case OUTBOX_PHASE_CONNECTING:
			check = OUTBOX_CHECK_TCP;
			what_to_do = "See whether the broker runs and listens at this address and port, and whether a firewall is between.";
			break;
		case OUTBOX_PHASE_HANDSHAKING:
			outbox_examination_failed_tls(examination, failure);
			return;
		case OUTBOX_PHASE_GREETING:
			check = OUTBOX_CHECK_BROKER;
			if (examination->report.stream.tls.trust == OUTBOX_TRUST_NOT_US)
			{
				outbox_examination_failed_tls(examination, failure);
				return;
			}
			what_to_do = examination->order->server.tls ?
				"See whether this is the port of an AMQP broker, whether it accepts the client certificate or demands one (options certfile and keyfile of the user mapping), and its log." :
				"See whether this is the port of an AMQP broker, whether it expects TLS, and its log.";
			break;
		case OUTBOX_PHASE_LOGIN:
			check = OUTBOX_CHECK_LOGIN;
			what_to_do = outbox_examination_login_remedy(&examination->order->server);
			break;
		case OUTBOX_PHASE_OPENING:
			check = OUTBOX_CHECK_VHOST;
			what_to_do = "Correct the server's option vhost, or make the virtual host and give the user a right there (rabbitmqctl add_vhost, set_permissions).";
			break;
		default:
			break;
	}
	outbox_examination_failed(examination, check, examination->host_no,
							  failure, what_to_do);
}

static const char *
outbox_examination_who(const OutboxServer *server)
{
	const char *mechanism =
		server->mechanism == OUTBOX_MECHANISM_EXTERNAL ? "EXTERNAL" : "PLAIN";

	if (server->user)
		return psprintf("user \"%s\", by mechanism %s", server->user,
						mechanism);
	return psprintf("by mechanism %s, %s", mechanism,
					server->mechanism == OUTBOX_MECHANISM_EXTERNAL ?
					"as the certificate says" : "as the token says");
}

void
outbox_examine_connection(OutboxExamination *examination,
						  const OutboxEvent *event)
{
	OutboxPhase phase = examination->report.phase;
	const OutboxStreamReport *stream = &examination->report.stream;
	const OutboxServer *server = &examination->order->server;
	OutboxFailure late;

	if (phase > OUTBOX_PHASE_RESOLVING)
		outbox_examination_ok(examination, OUTBOX_CHECK_NAME_RESOLUTION,
							  psprintf("addresses: %d", stream->naddresses));
	if (phase > OUTBOX_PHASE_CONNECTING)
		outbox_examination_ok(examination, OUTBOX_CHECK_TCP,
							  psprintf("connected to %s", stream->address));
	if (phase > OUTBOX_PHASE_HANDSHAKING &&
		stream->tls.trust == OUTBOX_TRUST_OK)
		outbox_examination_encrypted(examination);
	if (phase > OUTBOX_PHASE_GREETING)
		outbox_examination_greeted(examination);
	if (phase > OUTBOX_PHASE_LOGIN)
		outbox_examination_ok(examination, OUTBOX_CHECK_LOGIN,
							  outbox_examination_who(server));
	if (phase > OUTBOX_PHASE_OPENING)
		outbox_examination_ok(examination, OUTBOX_CHECK_VHOST,
							  psprintf("virtual host \"%s\"", server->vhost));
	if (event->type == OUTBOX_EVENT_READY)
		outbox_examination_agreed(examination);
	else if (event->type == OUTBOX_EVENT_LOST &&
			 event->failure.sqlerrcode == ERRCODE_CONFIG_FILE_ERROR)
		outbox_examination_failed(examination, OUTBOX_CHECK_TLS,
								  examination->host_no, &event->failure,
								  "Correct the server's option cacertfile or cacertdir, or certfile and keyfile of the user mapping, or the files; the server process must be able to read them.");
	else if (event->type == OUTBOX_EVENT_LOST)
		outbox_examination_failed_step(examination, &event->failure);
	else
	{
		/* before READY it says nothing else but that it is blocked */
		outbox_failure_set(&late, ERRCODE_CONNECTION_FAILURE, NULL,
						   "the broker did not open a channel in time");
		outbox_examination_failed_step(examination, &late);
	}
}

/*
 * Exchanges and queues that are declared
 */

/* The connection is gone, or nothing comes any more: this is the last word. */
static bool
outbox_examination_is_over(OutboxExamination *examination, OutboxCheck check,
						   const OutboxEvent *event)
{
	if (event->type == OUTBOX_EVENT_LOST)
		outbox_examination_failed(examination, check, OUTBOX_NO_HOST,
								  &event->failure, "See the broker's log.");
	else if (event->type == OUTBOX_EVENT_NONE)
		outbox_examination_tell(examination, check, OUTBOX_CHECK_ERROR,
								OUTBOX_NO_HOST,
								"See how the broker is, and its log.",
								"the broker does not answer");
	else if (event->type == OUTBOX_EVENT_BLOCKED)
		outbox_examination_failed(examination, OUTBOX_CHECK_BLOCKED,
								  OUTBOX_NO_HOST, &event->failure,
								  "Give the broker memory or disk space, or have its queues consumed; see rabbitmq-diagnostics alarms.");
	else
		return false;
	return true;
}

/* False: over. */
static bool
outbox_examination_ask(OutboxExamination *examination,
					   OutboxDeclared *declared, int *missing)
{
	OutboxItem	item = {0};
	OutboxAnswer answer;
	OutboxEvent event;

	item.kind = declared->kind == 'q' ? OUTBOX_ITEM_QUEUE :
		OUTBOX_ITEM_EXCHANGE;
	item.name = declared->name;
	item.wanted = item.passive = true;
	if (!outbox_transport_assert(examination->transport, &item, &answer))
	{
		outbox_examination_tell(examination, OUTBOX_CHECK_TOPOLOGY,
								OUTBOX_CHECK_WARNING, OUTBOX_NO_HOST, NULL,
								"%s", answer.words);
		return false;
	}
	do
	{
		(void) examination->await(examination, &event);
		if (outbox_examination_is_over(examination, OUTBOX_CHECK_TOPOLOGY,
									   &event))
			return false;
	} while (event.type != OUTBOX_EVENT_ASSERTED);
	if (event.answer.done)
		return true;
	(*missing)++;
	outbox_examination_tell(examination, OUTBOX_CHECK_TOPOLOGY,
							OUTBOX_CHECK_ERROR, OUTBOX_NO_HOST,
							"amqp_outbox.pause(), and then resume(), have the worker declare it again; so has amqp_outbox.wake(), for the extension's owner.",
							"declared %s \"%s\": %s",
							declared->kind == 'q' ? "queue" : "exchange",
							declared->name, event.answer.words);
	return true;
}

static bool
outbox_examination_ask_all(OutboxExamination *examination)
{
	const OutboxOrder *order = examination->order;
	int			missing = 0;

	for (int i = 0; i < order->ndeclared; i++)
	{
		if (!outbox_examination_ask(examination, &order->declared[i],
									&missing))
			return false;
	}
	if (missing == 0)
		outbox_examination_tell(examination, OUTBOX_CHECK_TOPOLOGY,
								OUTBOX_CHECK_OK, OUTBOX_NO_HOST, NULL,
								"exchanges and queues that are declared and at the broker: %d",
								order->ndeclared);
	return true;
}

/*
 * Messages
 */

static OutboxMessage
outbox_examination_message(const char *exchange, int64 expiration_ms)
{
	OutboxMessage msg = {0};

	msg.message_id = OUTBOX_PROBE_KEY;
	msg.exchange = exchange;
	msg.routing_key = OUTBOX_PROBE_KEY;
	msg.body = OUTBOX_PROBE_BODY;
	msg.body_len = strlen(OUTBOX_PROBE_BODY);
	msg.content_type = "text/plain";
	msg.type = OUTBOX_PROBE_KEY;
	msg.app_id = "amqp_outbox";
	msg.expiration_ms = expiration_ms;
	msg.timestamp_s = msg.priority = -1;
	msg.mandatory = true;
	outbox_properties_build(&msg);
	return msg;
}

/*
 * Wait until the channel, which the broker closed, is open again; before that
 * there is nothing to publish on.  False: over.
 */
static bool
outbox_examination_reopened(OutboxExamination *examination, OutboxCheck check)
{
	OutboxEvent event;

	do
	{
		(void) examination->await(examination, &event);
		if (outbox_examination_is_over(examination, check, &event))
			return false;
	} while (event.type != OUTBOX_EVENT_READY);
	return true;
}

/* False: over. */
static bool
outbox_examination_publish(OutboxExamination *examination, OutboxCheck check,
						   const OutboxMessage *msg)
{
	OutboxFailure failure;

	if (outbox_transport_publish(examination->transport, msg, &failure) != 0)
		return true;
	outbox_examination_failed(examination, check, OUTBOX_NO_HOST, &failure,
							  NULL);
	return false;
}

/*
 * Publish what cannot get into a queue; *refusal is what the broker has against
 * it, or all zero if that is just what was to be expected.  False: over.
 */
static bool
outbox_examination_try(OutboxExamination *examination, const char *exchange,
					   OutboxEvent *refusal)
{
	OutboxMessage msg = outbox_examination_message(exchange,
												   OUTBOX_IMPOSSIBLE_EXPIRATION_MS);
	OutboxEvent event;

	memset(refusal, 0, sizeof(*refusal));
	if (!outbox_examination_publish(examination,
									OUTBOX_CHECK_WRITE_PERMISSION, &msg))
		return false;
	for (;;)
	{
		switch (examination->await(examination, &event))
		{
			case OUTBOX_EVENT_CHANNEL_CLOSED:
				if (event.reply_code != 406)
					*refusal = event;
				return outbox_examination_reopened(examination,
												   OUTBOX_CHECK_WRITE_PERMISSION);
			case OUTBOX_EVENT_CONFIRM:
				return true;
			default:
				if (outbox_examination_is_over(examination,
											   OUTBOX_CHECK_WRITE_PERMISSION,
											   &event))
					return false;
		}
	}
}

static bool
outbox_examination_try_exchange(OutboxExamination *examination,
								const char *exchange, int *refused)
{
	OutboxEvent refusal;

	if (!outbox_examination_try(examination, exchange, &refusal))
		return false;

	/* a missing exchange was told of already */
	if (refusal.type == OUTBOX_EVENT_NONE || refusal.reply_code == 404)
		return true;
	(*refused)++;
	outbox_examination_failed(examination, OUTBOX_CHECK_WRITE_PERMISSION,
							  OUTBOX_NO_HOST, &refusal.failure,
							  "Give the user the right to write there (rabbitmqctl set_permissions).");
	return true;
}

/* With nothing declared, any message tells at least whether one is taken. */
static bool
outbox_examination_try_default(OutboxExamination *examination)
{
	OutboxEvent refusal;

	if (!outbox_examination_try(examination, "", &refusal))
		return false;
	if (refusal.type == OUTBOX_EVENT_NONE)
		outbox_examination_tell(examination, OUTBOX_CHECK_WRITE_PERMISSION,
								OUTBOX_CHECK_OK, OUTBOX_NO_HOST, NULL,
								"the user may write to the default exchange; no other one is declared");
	else
		outbox_examination_tell(examination, OUTBOX_CHECK_WRITE_PERMISSION,
								OUTBOX_CHECK_WARNING, OUTBOX_NO_HOST,
								"Nothing, if no message goes there; else give the user the right to write to amq.default.",
								"default exchange: %s",
								refusal.failure.detail);
	return true;
}

static bool
outbox_examination_try_all(OutboxExamination *examination)
{
	const OutboxOrder *order = examination->order;
	int			tried = 0;
	int			refused = 0;

	for (int i = 0; i < order->ndeclared; i++)
	{
		/* nobody may write to an internal exchange */
		if (order->declared[i].kind != 'e')
			continue;
		tried++;
		if (!outbox_examination_try_exchange(examination,
											 order->declared[i].name,
											 &refused))
			return false;
	}
	if (tried == 0)
		return outbox_examination_try_default(examination);
	if (refused == 0)
		outbox_examination_tell(examination, OUTBOX_CHECK_WRITE_PERMISSION,
								OUTBOX_CHECK_OK, OUTBOX_NO_HOST, NULL,
								"exchanges that are declared and may be written to: %d",
								tried);
	return true;
}

/*
 * The probe
 */

static void
outbox_examination_probed(OutboxExamination *examination, bool returned,
						  bool ack)
{
	const char *exchange = examination->order->probe_exchange;

	if (!ack)
		outbox_examination_tell(examination, OUTBOX_CHECK_PROBE,
								OUTBOX_CHECK_ERROR, OUTBOX_NO_HOST,
								"See the queues behind the exchange (length limits, unavailable replicas), and the broker's log.",
								"exchange \"%s\": the broker did not accept the message (nack)",
								exchange);
	else if (returned)
		outbox_examination_tell(examination, OUTBOX_CHECK_PROBE,
								OUTBOX_CHECK_WARNING, OUTBOX_NO_HOST,
								"Nothing, unless a queue is meant to be bound for this routing key.",
								"exchange \"%s\" took the message, and no queue gets routing key \"%s\"",
								exchange, OUTBOX_PROBE_KEY);
	else
		outbox_examination_tell(examination, OUTBOX_CHECK_PROBE,
								OUTBOX_CHECK_OK, OUTBOX_NO_HOST, NULL,
								"exchange \"%s\": a message with routing key \"%s\" was routed and confirmed",
								exchange, OUTBOX_PROBE_KEY);
}

static bool
outbox_examination_probe(OutboxExamination *examination)
{
	OutboxMessage msg =
		outbox_examination_message(examination->order->probe_exchange,
								   OUTBOX_PROBE_EXPIRATION_MS);
	OutboxEvent event;
	bool		returned = false;

	if (!outbox_examination_publish(examination, OUTBOX_CHECK_PROBE, &msg))
		return false;
	for (;;)
	{
		switch (examination->await(examination, &event))
		{
			case OUTBOX_EVENT_RETURN:
				returned = true;
				break;
			case OUTBOX_EVENT_CONFIRM:
				outbox_examination_probed(examination, returned, event.ack);
				return true;
			case OUTBOX_EVENT_CHANNEL_CLOSED:
				outbox_examination_failed(examination, OUTBOX_CHECK_PROBE,
										  OUTBOX_NO_HOST, &event.failure,
										  "Make the exchange, or give the user the right to write there.");
				return true;
			default:
				if (outbox_examination_is_over(examination, OUTBOX_CHECK_PROBE,
											   &event))
					return false;
		}
	}
}

void
outbox_examine_broker(OutboxExamination *examination)
{
	bool		is_rabbitmq = strcmp(examination->report.product,
									 "RabbitMQ") == 0;

	if (!outbox_examination_ask_all(examination))
		return;
	if (is_rabbitmq && !outbox_examination_try_all(examination))
		return;
	if (examination->order->probe_exchange &&
		!outbox_examination_probe(examination))
		return;
	if (is_rabbitmq || examination->order->probe_exchange)
		outbox_examination_tell(examination, OUTBOX_CHECK_BLOCKED,
								OUTBOX_CHECK_OK, OUTBOX_NO_HOST, NULL,
								"the broker takes messages");
}

/*-------------------------------------------------------------------------
 *
 * chart.c
 *	  What a session asks of the doctor, and what that one finds.
 *
 * A chart is a segment of dynamic shared memory with the order (the server's
 * options, as the session's transaction sees them) and room for findings.  It
 * goes with the session's resource owner, whatever ends that, and with the
 * doctor's process: nothing is left of it in shared memory of the server's
 * life.
 *
 * Locking: the order is written before the doctor is started.  Findings are
 * written by the doctor only; how many are valid, and whether the chart is
 * closed, is under the spinlock.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "storage/condition_variable.h"
#include "storage/spin.h"

#include "chart.h"
#include "compat.h"

/* Findings for each host, and for all that is not of one host. */
#define OUTBOX_FINDINGS_HOST	8
#define OUTBOX_FINDINGS_MORE	64

struct OutboxChart
{
	slock_t		mutex;
	ConditionVariable closed_cv;
	bool		closed;
	bool		complete;
	int			nfindings;

	int			max_findings;
	OutboxServer server;		/* without what its pointers point to */
	bool		probes;
	bool		has_key_password;
	int			ndeclared;
	Size		strings_size;
	Size		secrets_size;	/* at their end, with their NULs */
	Size		strings_offset; /* of the chart; findings stand before */
	OutboxFinding findings[FLEXIBLE_ARRAY_MEMBER];
};

/*
 * Names
 */

const char *
outbox_check_name(OutboxCheck check)
{
	static const char *const names[] = {
		[OUTBOX_CHECK_PRELOAD] = "preload",
		[OUTBOX_CHECK_WORKER_SLOTS] = "worker_slots",
		[OUTBOX_CHECK_WORKER] = "worker",
		[OUTBOX_CHECK_IDENTITY] = "identity",
		[OUTBOX_CHECK_NAME_RESOLUTION] = "name_resolution",
		[OUTBOX_CHECK_TCP] = "tcp",
		[OUTBOX_CHECK_TLS] = "tls",
		[OUTBOX_CHECK_BROKER] = "broker",
		[OUTBOX_CHECK_LOGIN] = "login",
		[OUTBOX_CHECK_VHOST] = "vhost",
		[OUTBOX_CHECK_LIMITS] = "limits",
		[OUTBOX_CHECK_TOPOLOGY] = "topology",
		[OUTBOX_CHECK_WRITE_PERMISSION] = "write_permission",
		[OUTBOX_CHECK_BLOCKED] = "blocked",
		[OUTBOX_CHECK_PROBE] = "probe"
	};

	return names[check];
}

const char *
outbox_check_result_name(OutboxCheckResult result)
{
	static const char *const names[] = {
		[OUTBOX_CHECK_OK] = "ok",
		[OUTBOX_CHECK_WARNING] = "warning",
		[OUTBOX_CHECK_ERROR] = "error"
	};

	return names[result];
}

void
outbox_finding_set(OutboxFinding *finding, OutboxCheck check,
				   OutboxCheckResult result, int host_no,
				   const char *what_to_do, const char *fmt,...)
{
	char		text[sizeof(finding->finding)];
	va_list		args;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);

	memset(finding, 0, sizeof(*finding));
	finding->check = check;
	finding->result = result;
	finding->host_no = host_no;

	/* what was cut is cut between characters */
	outbox_utf8_copy(finding->finding, sizeof(finding->finding), text,
					 strlen(text), true);
	if (what_to_do)
		outbox_utf8_copy(finding->what_to_do, sizeof(finding->what_to_do),
						 what_to_do, strlen(what_to_do), true);
}

/*
 * The order
 *
 * Strings stand one after the other, each with its NUL, in the order of
 * outbox_chart_take_order().  Those of the credentials are the last ones: they
 * may be wiped at any time, and then are empty.
 */

static void
outbox_chart_put(StringInfo strings, const char *str)
{
	appendBinaryStringInfo(strings, str ? str : "",
						   (str ? strlen(str) : 0) + 1);
}

static const char *
outbox_chart_next(char **strings)
{
	const char *str = *strings;

	*strings += strlen(str) + 1;
	return str;
}

/* The next string, in the place of a pointer that was not NULL. */
static void
outbox_chart_take_text(char **text, char **strings)
{
	const char *str = outbox_chart_next(strings);

	if (*text)
		*text = (char *) str;
}

static void
outbox_chart_put_strings(StringInfo strings, const OutboxOrder *order)
{
	const OutboxServer *server = &order->server;

	outbox_chart_put(strings, order->connection_name);
	outbox_chart_put(strings, order->probe_exchange);
	outbox_chart_put(strings, server->name);
	outbox_chart_put(strings, server->vhost);
	outbox_chart_put(strings, server->user);
	outbox_chart_put(strings, server->tls_options.cacertfile);
	outbox_chart_put(strings, server->tls_options.cacertdir);
	outbox_chart_put(strings, server->tls_options.server_name);
	outbox_chart_put(strings, server->tls_options.certfile);
	outbox_chart_put(strings, server->tls_options.keyfile);
	for (int i = 0; i < server->nhosts; i++)
	{
		outbox_chart_put(strings, server->hosts[i].name);
		appendBinaryStringInfo(strings, (const char *) &server->hosts[i].port,
							   sizeof(int));
	}
	for (int i = 0; i < order->ndeclared; i++)
	{
		appendStringInfoChar(strings, order->declared[i].kind);
		outbox_chart_put(strings, order->declared[i].name);
	}
	outbox_chart_put(strings, order->credentials.password);
	outbox_chart_put(strings, order->credentials.key_password);
}

dsm_segment *
outbox_chart_create(const OutboxOrder *order)
{
	int			max_findings = OUTBOX_FINDINGS_MORE +
		OUTBOX_FINDINGS_HOST * order->server.nhosts;
	Size		strings_offset = offsetof(OutboxChart, findings) +
		max_findings * sizeof(OutboxFinding);
	StringInfoData strings;
	dsm_segment *segment;
	OutboxChart *chart;

	initStringInfo(&strings);
	outbox_chart_put_strings(&strings, order);
	segment = dsm_create(strings_offset + strings.len, 0);
	chart = dsm_segment_address(segment);
	memset(chart, 0, offsetof(OutboxChart, findings));
	SpinLockInit(&chart->mutex);
	ConditionVariableInit(&chart->closed_cv);
	chart->max_findings = max_findings;
	chart->server = order->server;
	chart->probes = order->probe_exchange != NULL;
	chart->ndeclared = order->ndeclared;
	chart->strings_offset = strings_offset;
	chart->strings_size = strings.len;
	chart->has_key_password = order->credentials.key_password != NULL;
	chart->secrets_size = strlen(order->credentials.password) + 2 +
		(chart->has_key_password ?
		 strlen(order->credentials.key_password) : 0);
	memcpy((char *) chart + strings_offset, strings.data, strings.len);
	explicit_bzero(strings.data, strings.len);
	pfree(strings.data);
	return segment;
}

void
outbox_chart_wipe(OutboxChart *chart)
{
	explicit_bzero((char *) chart + chart->strings_offset +
				   chart->strings_size - chart->secrets_size,
				   chart->secrets_size);
}

OutboxOrder *
outbox_chart_take_order(OutboxChart *chart)
{
	OutboxOrder *order = palloc0(sizeof(OutboxOrder));
	OutboxServer *server = &order->server;
	char	   *strings = palloc(chart->strings_size);
	const char *str;

	memcpy(strings, (char *) chart + chart->strings_offset,
		   chart->strings_size);
	outbox_chart_wipe(chart);
	*server = chart->server;
	order->connection_name = outbox_chart_next(&strings);
	str = outbox_chart_next(&strings);
	order->probe_exchange = chart->probes ? str : NULL;
	server->name = (char *) outbox_chart_next(&strings);
	server->vhost = (char *) outbox_chart_next(&strings);
	outbox_chart_take_text(&server->user, &strings);
	outbox_chart_take_text(&server->tls_options.cacertfile, &strings);
	outbox_chart_take_text(&server->tls_options.cacertdir, &strings);
	outbox_chart_take_text(&server->tls_options.server_name, &strings);
	outbox_chart_take_text(&server->tls_options.certfile, &strings);
	outbox_chart_take_text(&server->tls_options.keyfile, &strings);
	server->password = server->password_file = server->token_file = NULL;
	server->keyfile_password = server->keyfile_password_file = NULL;
	server->refusal = server->refusal_detail = NULL;
	server->hosts = palloc(server->nhosts * sizeof(OutboxHost));
	for (int i = 0; i < server->nhosts; i++)
	{
		server->hosts[i].name = (char *) outbox_chart_next(&strings);
		memcpy(&server->hosts[i].port, strings, sizeof(int));
		strings += sizeof(int);
	}
	order->ndeclared = chart->ndeclared;
	order->declared = palloc((order->ndeclared + 1) * sizeof(OutboxDeclared));
	for (int i = 0; i < order->ndeclared; i++)
	{
		order->declared[i].kind = *strings++;
		order->declared[i].name = outbox_chart_next(&strings);
	}
	order->credentials.password = (char *) outbox_chart_next(&strings);
	order->credentials.key_password = chart->has_key_password ? strings : NULL;
	return order;
}

/*
 * Findings
 */

void
outbox_chart_add(OutboxChart *chart, const OutboxFinding *finding)
{
	OutboxFinding *last = &chart->findings[chart->max_findings - 1];

	if (chart->nfindings == chart->max_findings)
	{
		strlcpy(last->finding, "there are more findings than are shown",
				sizeof(last->finding));
		return;
	}
	chart->findings[chart->nfindings] = *finding;
	SpinLockAcquire(&chart->mutex);
	chart->nfindings++;
	SpinLockRelease(&chart->mutex);
}

void
outbox_chart_close(OutboxChart *chart, bool complete)
{
	SpinLockAcquire(&chart->mutex);
	chart->complete |= complete;
	chart->closed = true;
	SpinLockRelease(&chart->mutex);
	ConditionVariableBroadcast(&chart->closed_cv);
}

static bool
outbox_chart_is_closed(OutboxChart *chart)
{
	bool		closed;

	SpinLockAcquire(&chart->mutex);
	closed = chart->closed;
	SpinLockRelease(&chart->mutex);
	return closed;
}

bool
outbox_chart_wait(OutboxChart *chart, long ms)
{
	static uint32 wait_event = 0;

	if (wait_event == 0)
		wait_event = outbox_wait_event("AmqpOutboxDoctor");
	ConditionVariablePrepareToSleep(&chart->closed_cv);
	while (!outbox_chart_is_closed(chart) &&
		   !ConditionVariableTimedSleep(&chart->closed_cv, ms, wait_event))
		;
	ConditionVariableCancelSleep();
	return outbox_chart_is_closed(chart);
}

bool
outbox_chart_is_complete(OutboxChart *chart)
{
	bool		complete;

	SpinLockAcquire(&chart->mutex);
	complete = chart->complete;
	SpinLockRelease(&chart->mutex);
	return complete;
}

int
outbox_chart_findings(OutboxChart *chart, const OutboxFinding **findings)
{
	int			n;

	SpinLockAcquire(&chart->mutex);
	n = chart->nfindings;
	SpinLockRelease(&chart->mutex);
	*findings = chart->findings;
	return n;
}

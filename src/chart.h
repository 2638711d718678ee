/*-------------------------------------------------------------------------
 *
 * chart.h
 *	  What a session asks of the doctor, and what that one finds.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_CHART_H
#define OUTBOX_CHART_H

#include "credential.h"
#include "storage/dsm.h"

/* The names are those of amqp_outbox.doctor(), in chart.c. */
typedef enum OutboxCheck
{
	OUTBOX_CHECK_PRELOAD,
	OUTBOX_CHECK_WORKER_SLOTS,
	OUTBOX_CHECK_WORKER,
	OUTBOX_CHECK_IDENTITY,
	OUTBOX_CHECK_NAME_RESOLUTION,
	OUTBOX_CHECK_TCP,
	OUTBOX_CHECK_TLS,
	OUTBOX_CHECK_BROKER,
	OUTBOX_CHECK_LOGIN,
	OUTBOX_CHECK_VHOST,
	OUTBOX_CHECK_LIMITS,
	OUTBOX_CHECK_TOPOLOGY,
	OUTBOX_CHECK_WRITE_PERMISSION,
	OUTBOX_CHECK_BLOCKED,
	OUTBOX_CHECK_PROBE
} OutboxCheck;

/* The names are those of amqp_outbox.check_result, in chart.c. */
typedef enum OutboxCheckResult
{
	OUTBOX_CHECK_OK,
	OUTBOX_CHECK_WARNING,
	OUTBOX_CHECK_ERROR
} OutboxCheckResult;

extern const char *outbox_check_name(OutboxCheck check);
extern const char *outbox_check_result_name(OutboxCheckResult result);

/* A row of amqp_outbox.doctor(); text in UTF-8. */
typedef struct OutboxFinding
{
	OutboxCheck check;
	OutboxCheckResult result;
	int			host_no;		/* -1: not of one host */
	char		finding[1024];
	char		what_to_do[512];	/* empty: nothing */
} OutboxFinding;

#define OUTBOX_NO_HOST	(-1)

/* Fill in a finding; what_to_do may be NULL. */
extern void outbox_finding_set(OutboxFinding *finding, OutboxCheck check,
							   OutboxCheckResult result, int host_no,
							   const char *what_to_do, const char *fmt,...)
			pg_attribute_printf(6, 7);

/* An exchange or a queue that is declared for the server's broker. */
typedef struct OutboxDeclared
{
	char		kind;			/* 'e'; 'i': an internal exchange; 'q' */
	const char *name;			/* UTF-8 */
} OutboxDeclared;

/* What is to be examined; all that it points to is in one piece. */
typedef struct OutboxOrder
{
	OutboxServer server;		/* secrets, and files with some, are not */
	OutboxCredentials credentials;
	const char *connection_name;
	const char *probe_exchange; /* UTF-8; NULL: no probe */
	int			ndeclared;
	OutboxDeclared *declared;
} OutboxOrder;

/*
 * A segment of shared memory for one examination: the order is written by the
 * session that makes it and read once by the doctor, who writes the findings.
 * The segment belongs to the session's resource owner.
 */
typedef struct OutboxChart OutboxChart;

extern dsm_segment *outbox_chart_create(const OutboxOrder *order);

/* In CurrentMemoryContext.  The credentials are wiped out of the chart. */
extern OutboxOrder *outbox_chart_take_order(OutboxChart *chart);

/* The same without taking it. */
extern void outbox_chart_wipe(OutboxChart *chart);

/* If the chart is full, that is all that is told of the rest. */
extern void outbox_chart_add(OutboxChart *chart, const OutboxFinding *finding);

/* The doctor adds nothing more: all is examined, or it is leaving. */
extern void outbox_chart_close(OutboxChart *chart, bool complete);

/*
 * Session: wait until the chart is closed, ms at the most; whether it is.
 */
extern bool outbox_chart_wait(OutboxChart *chart, long ms);

/* Whether all was examined; the findings are there in any case. */
extern bool outbox_chart_is_complete(OutboxChart *chart);
extern int	outbox_chart_findings(OutboxChart *chart,
								  const OutboxFinding **findings);

#endif							/* OUTBOX_CHART_H */

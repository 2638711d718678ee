/*-------------------------------------------------------------------------
 *
 * row_option.h
 *	  The options of amqp_publish_row(), as its trigger names them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_ROW_OPTION_H
#define OUTBOX_ROW_OPTION_H

#include "postgres.h"

#include "nodes/pg_list.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "row_json.h"

typedef enum OutboxRowBody
{
	OUTBOX_BODY_ROW,			/* the row as an object; the default */
	OUTBOX_BODY_ENVELOPE,		/* what happened, with old and new row */
	OUTBOX_BODY_NONE			/* no content */
} OutboxRowBody;

typedef enum OutboxCloudEvents
{
	OUTBOX_CLOUDEVENTS_NONE,	/* the default */
	OUTBOX_CLOUDEVENTS_BINARY,	/* attributes as headers */
	OUTBOX_CLOUDEVENTS_STRUCTURED	/* attributes and data as one JSON object */
} OutboxCloudEvents;

/* What was not given is NULL, NIL, 0 or, where it says so, -1. */
typedef struct OutboxRowOptions
{
	/* the message; server, content_type and app_id as for amqp_publish() */
	char	   *server;
	char	   *content_type;
	char	   *app_id;
	char	   *type;			/* a template, as are source and subject */
	int			persistent;		/* 0, 1, or -1 */
	int			mandatory;		/* 0, 1, or -1 */
	int			priority;		/* 0 to 255, or -1 */
	Interval   *expiration;
	Jsonb	   *headers;

	/* its body */
	int			body;			/* OutboxRowBody */
	List	   *columns;		/* names; at most one of these two */
	List	   *except;
	OutboxJsonStyle style;

	/* keys */
	List	   *key;			/* names of columns */
	char	   *null_word;		/* never NULL */
	char	   *empty_word;		/* never NULL */
	int			keep_dots;		/* 0 or 1 */

	/* which changes, and of which table */
	int			skip_unchanged; /* 0 or 1 */
	int			publish_via_partition_root; /* 0 or 1 */

	int			cloudevents;	/* OutboxCloudEvents */
	char	   *source;
	char	   *subject;
} OutboxRowOptions;

/*
 * Read the options, 'name=value' each; *current is the one being read, for
 * the context of errors.  Errors: 22023 for an unknown or ill-formed one, or
 * for two that contradict each other, with the valid ones in detail or hint;
 * those of the types interval and jsonb for their values.
 *
 * Allocated in the current memory context.
 */
extern OutboxRowOptions *outbox_row_options(int n, char **args,
											const char **current);

#endif							/* OUTBOX_ROW_OPTION_H */

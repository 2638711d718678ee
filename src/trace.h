/*-------------------------------------------------------------------------
 *
 * trace.h
 *	  W3C trace context: where a message comes from.
 *
 * https://www.w3.org/TR/trace-context/ : traceparent names the trace and the
 * span that a message belongs to, tracestate what vendors add to it.  They
 * travel as headers of these names.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_TRACE_H
#define OUTBOX_TRACE_H

#include "postgres.h"

#include "utils/jsonb.h"

#define OUTBOX_TRACEPARENT	"traceparent"
#define OUTBOX_TRACESTATE	"tracestate"

/* the form that an error's hint shows */
#define OUTBOX_TRACEPARENT_FORM \
	"version-trace_id-parent_id-flags, as 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
#define OUTBOX_TRACESTATE_FORM \
	"at most 512 printable ASCII characters, as vendor=value"

/* Whether a string has the form of the header (sections 3.2 and 3.3). */
extern bool outbox_trace_is_parent(const char *s);
extern bool outbox_trace_is_state(const char *s);

/*
 * Headers with the trace context (state may be NULL), unless they have one of
 * their own; headers may be NULL.  palloc'd.
 */
extern Jsonb *outbox_trace_add(Jsonb *headers, const char *parent,
							   const char *state);

#endif							/* OUTBOX_TRACE_H */

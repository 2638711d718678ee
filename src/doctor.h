/*-------------------------------------------------------------------------
 *
 * doctor.h
 *	  The process that examines the way to a broker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_DOCTOR_H
#define OUTBOX_DOCTOR_H

#include "chart.h"
#include "postmaster/bgworker.h"

/*
 * Start a doctor for a chart.  NULL if there is no slot for a process.  The
 * handle is in CurrentMemoryContext, and this backend is told of its end.
 */
extern BackgroundWorkerHandle *outbox_doctor_start(dsm_segment *segment);

/* Milliseconds within which the chart is closed. */
extern long outbox_doctor_limit_ms(const OutboxServer *server);

extern PGDLLEXPORT void outbox_doctor_main(Datum arg);

#endif							/* OUTBOX_DOCTOR_H */

/*-------------------------------------------------------------------------
 *
 * examination.h
 *	  What the doctor asks a broker, and what the answers mean.
 *
 * For the doctor's process only.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_EXAMINATION_H
#define OUTBOX_EXAMINATION_H

#include "chart.h"
#include "transport.h"

/* What the examination of a host, or of the broker, works with. */
typedef struct OutboxExamination
{
	const OutboxOrder *order;
	OutboxChart *chart;
	int			host_no;
	OutboxTransport *transport;
	OutboxTransportReport report;	/* once READY or LOST */
	int64		deadline;		/* of all questions, on outbox_clock_ms() */

	/*
	 * The next event, awaited until the deadline; NONE if there was none.  Does
	 * not return if the process is to end.
	 */
	OutboxEventType (*await) (struct OutboxExamination *examination,
							  OutboxEvent *event);
} OutboxExamination;

/* Say of each step of connecting how it went; event is READY or LOST. */
extern void outbox_examine_connection(OutboxExamination *examination,
									  const OutboxEvent *event);

/* Ask a broker that is READY all that is to be asked but once. */
extern void outbox_examine_broker(OutboxExamination *examination);

#endif							/* OUTBOX_EXAMINATION_H */

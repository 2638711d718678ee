/*-------------------------------------------------------------------------
 *
 * doctor.c
 *	  The process that examines the way to a broker.
 *
 * A session that calls amqp_outbox.doctor() writes an order (chart.c), starts
 * this process and sleeps on a condition variable.  The process connects to
 * each host of the server in turn, with a connection of its own that disturbs
 * no worker's, writes down what it finds, and ends.
 *
 * It is connected to no database, has no transaction and takes no lock: so it
 * is in nobody's way, DROP DATABASE and a stop of the server included, and
 * what it examines are the options as the session's transaction sees them.
 * The shape of the waiting is the worker's: the latch and the sockets, in one
 * place.  SIGTERM, sent by a stop or on behalf of a session that went away,
 * ends it there.
 *
 * The steps of connecting are judged by examination.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/memutils.h"

#include "compat.h"
#include "doctor.h"
#include "examination.h"

/* What the postmaster may take to start a process, and that to come up. */
#define OUTBOX_DOCTOR_START_MS	10000

/* Questions to the broker may take so many times connect_timeout in all. */
#define OUTBOX_DOCTOR_QUESTIONS	2

/*
 * For the session
 */

BackgroundWorkerHandle *
outbox_doctor_start(dsm_segment *segment)
{
	BackgroundWorker bgw;
	BackgroundWorkerHandle *handle;

	memset(&bgw, 0, sizeof(bgw));
	bgw.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	bgw.bgw_start_time = BgWorkerStart_ConsistentState;
	bgw.bgw_restart_time = BGW_NEVER_RESTART;
	bgw.bgw_notify_pid = MyProcPid;
	snprintf(bgw.bgw_library_name, BGW_MAXLEN, "amqp_outbox");
	snprintf(bgw.bgw_function_name, BGW_MAXLEN, "outbox_doctor_main");
	snprintf(bgw.bgw_name, BGW_MAXLEN, "amqp_outbox doctor");
	strlcpy(bgw.bgw_type, bgw.bgw_name, BGW_MAXLEN);
	bgw.bgw_main_arg = UInt32GetDatum(dsm_segment_handle(segment));
	return RegisterDynamicBackgroundWorker(&bgw, &handle) ? handle : NULL;
}

long
outbox_doctor_limit_ms(const OutboxServer *server)
{
	return OUTBOX_DOCTOR_START_MS +
		(server->nhosts + OUTBOX_DOCTOR_QUESTIONS) *
		server->connect_timeout * 1000L;
}

/*
 * Waiting
 */

/*
 * The process ends in the middle.  What it has found so far stands in the
 * chart, which is closed at its exit.
 */
static void
outbox_doctor_leave(OutboxExamination *examination)
{
	outbox_transport_close(examination->transport);
	proc_exit(0);
}

static void
outbox_doctor_wait(OutboxExamination *examination, long timeout)
{
	static uint32 wait_event = 0;
	OutboxSocket sockets[OUTBOX_STREAM_MAX_SOCKETS];
	int			n = outbox_transport_sockets(examination->transport, sockets);
	WaitEvent	events[OUTBOX_STREAM_MAX_SOCKETS + 2];
	WaitEventSet *set = outbox_create_wait_event_set(CurrentMemoryContext,
													 n + 2);

	if (wait_event == 0)
		wait_event = outbox_wait_event("AmqpOutboxDoctor");
	AddWaitEventToSet(set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	for (int i = 0; i < n; i++)
		AddWaitEventToSet(set, sockets[i].events, sockets[i].fd, NULL, NULL);
	WaitEventSetWait(set, timeout, events, lengthof(events), wait_event);
	ResetLatch(MyLatch);
	FreeWaitEventSet(set);
}

/* As OutboxExamination has it. */
static OutboxEventType
outbox_doctor_await(OutboxExamination *examination, OutboxEvent *event)
{
	OutboxTransport *transport = examination->transport;

	for (;;)
	{
		int64		left;
		long		timeout;

		CHECK_FOR_INTERRUPTS();
		if (ShutdownRequestPending)
			outbox_doctor_leave(examination);
		outbox_transport_flush(transport);
		if (outbox_transport_next_event(transport,
										event) != OUTBOX_EVENT_NONE)
			return event->type;

		left = examination->deadline - outbox_clock_ms();
		if (left <= 0)
			return OUTBOX_EVENT_NONE;
		timeout = outbox_transport_timeout(transport);
		outbox_doctor_wait(examination,
						   timeout < 0 ? left : Min(timeout, (long) left));
	}
}

/*
 * The way through the hosts
 */

static int64
outbox_doctor_deadline(const OutboxServer *server, int times)
{
	return outbox_clock_ms() + server->connect_timeout * INT64CONST(1000) *
		times;
}

/*
 * All hosts are of one broker: what is to be asked of it is asked at the first
 * one that lets us in.  Returns whether that was this one.
 */
static bool
outbox_doctor_visit(OutboxExamination *examination, bool examined)
{
	const OutboxOrder *order = examination->order;
	OutboxEvent event;
	bool		ready;

	examination->transport =
		outbox_transport_start(&order->server, examination->host_no,
							   &order->credentials,
							   order->connection_name);
	/* the transport has a clock of its own, which says more when it ends */
	examination->deadline = outbox_doctor_deadline(&order->server, 2);
	do
	{
		(void) examination->await(examination, &event);
	} while (event.type == OUTBOX_EVENT_BLOCKED ||
			 event.type == OUTBOX_EVENT_UNBLOCKED);
	outbox_transport_report(examination->transport, &examination->report);
	outbox_examine_connection(examination, &event);
	ready = event.type == OUTBOX_EVENT_READY;
	if (ready && !examined)
	{
		examination->deadline =
			outbox_doctor_deadline(&order->server, OUTBOX_DOCTOR_QUESTIONS);
		outbox_examine_broker(examination);
	}
	outbox_transport_close(examination->transport);
	examination->transport = NULL;
	return ready;
}

/* Whatever ends the process, the session need not wait any longer. */
static void
outbox_doctor_detach(dsm_segment *segment, Datum arg)
{
	outbox_chart_close(dsm_segment_address(segment), false);
}

void
outbox_doctor_main(Datum arg)
{
	OutboxExamination examination = {0};
	OutboxOrder *order;
	dsm_segment *segment;
	bool		examined = false;

	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	pgstat_report_appname("amqp_outbox doctor");

	MemoryContextSwitchTo(AllocSetContextCreate(TopMemoryContext,
												"amqp_outbox doctor",
												ALLOCSET_DEFAULT_SIZES));
	segment = dsm_attach(DatumGetUInt32(arg));
	if (segment == NULL)		/* the session is gone */
		proc_exit(0);
	on_dsm_detach(segment, outbox_doctor_detach, (Datum) 0);

	examination.chart = dsm_segment_address(segment);
	examination.order = order = outbox_chart_take_order(examination.chart);
	examination.await = outbox_doctor_await;
	for (int i = 0; i < order->server.nhosts; i++)
	{
		examination.host_no = i;
		examined |= outbox_doctor_visit(&examination, examined);
	}
	explicit_bzero(order->credentials.password,
				   strlen(order->credentials.password));
	if (order->credentials.key_password)
		explicit_bzero(order->credentials.key_password,
					   strlen(order->credentials.key_password));
	outbox_chart_close(examination.chart, true);
	proc_exit(0);
}

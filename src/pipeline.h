/*-------------------------------------------------------------------------
 *
 * pipeline.h
 *	  From the outbox to the broker and back: read, publish, settle.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_PIPELINE_H
#define OUTBOX_PIPELINE_H

#include "reader.h"
#include "transport.h"

typedef struct OutboxPipeline OutboxPipeline;

/*
 * An empty pipeline that goes on behind the newest receipt; lives in a child
 * of CurrentMemoryContext.
 */
extern OutboxPipeline *outbox_pipeline_create(const char *server_name);

/*
 * If the server's backlog is limited: count it, if that is due.  Runs a
 * transaction if need be.  And when that is due next; 0: it is not.
 */
extern void outbox_pipeline_count(OutboxPipeline *pipeline,
								  const OutboxServer *server);
extern TimestampTz outbox_pipeline_next_count(const OutboxPipeline *pipeline);

/* Whether there is room for more. */
extern bool outbox_pipeline_has_room(const OutboxPipeline *pipeline);

/* Read what the pipeline has room for.  Runs a transaction if need be. */
extern OutboxReadResult outbox_pipeline_read(OutboxPipeline *pipeline,
											 const OutboxServer *server);

/* When something is read again, where commits do not wake us; 0: they do. */
extern TimestampTz outbox_pipeline_next_read(const OutboxPipeline *pipeline);

/*
 * After an error that ended a transaction: if it was reading that failed, and
 * for a row that is damaged, go nearer to that row, and in the end past it; it
 * becomes a dead letter.  True if that is to go on at once.
 */
extern bool outbox_pipeline_recover(OutboxPipeline *pipeline, int sqlerrcode,
									const char *message);

/*
 * Hand over to the transport what may be sent: what is durable, up to the
 * server's window and rate limits.  Runs a transaction before the first message,
 * and for each large one that is sent again.  True if only the transport held as
 * much as it may.
 */
extern bool outbox_pipeline_publish(OutboxPipeline *pipeline,
									const OutboxServer *server,
									OutboxTransport *transport);

/*
 * What the broker said about messages: CONFIRM, RETURN, CHANNEL_CLOSED.  False
 * if it cannot be true.
 */
extern bool outbox_pipeline_event(OutboxPipeline *pipeline,
								  const OutboxServer *server,
								  const OutboxEvent *event);

/* The connection is gone: what is not settled will be sent again. */
extern void outbox_pipeline_disconnected(OutboxPipeline *pipeline);

/*
 * Write a receipt for what has an outcome, if one is due or if it must be now.
 * Runs a transaction if need be.
 */
extern void outbox_pipeline_settle(OutboxPipeline *pipeline,
								   const OutboxServer *server, bool now);

/*
 * The worker is about to end: write down whether everything that was sent has
 * an outcome, so that the next one knows what may be sent twice.
 */
extern void outbox_pipeline_finish(OutboxPipeline *pipeline,
								   const OutboxServer *server);

/*
 * Somebody else has put messages into amqp_outbox.deferred, due at this time
 * or later (DT_NOBEGIN: not known).
 */
extern void outbox_pipeline_look_for_due(OutboxPipeline *pipeline,
										 TimestampTz from);

/*
 * The same, and somebody may have repaired what kept messages from being sent,
 * or deleted what others wait behind.
 */
extern void outbox_pipeline_look_again(OutboxPipeline *pipeline);

/* The number of the newest receipt; 0: there is none. */
extern int64 outbox_pipeline_receipt_no(const OutboxPipeline *pipeline);

extern int	outbox_pipeline_in_flight(const OutboxPipeline *pipeline);

/* When the oldest message in flight was sent; 0 if none is in flight. */
extern TimestampTz outbox_pipeline_oldest_sent(const OutboxPipeline *pipeline);

/*
 * Milliseconds until something in the pipeline is due, as far as it can be
 * done: while nothing may be published, only receipts can.  -1: nothing is.
 */
extern long outbox_pipeline_timeout(const OutboxPipeline *pipeline,
									const OutboxServer *server,
									bool publishing);

#endif							/* OUTBOX_PIPELINE_H */

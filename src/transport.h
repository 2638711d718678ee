/*-------------------------------------------------------------------------
 *
 * transport.h
 *	  One connection to one broker, whatever protocol it speaks.
 *
 * The life of a transport:
 *
 *	start --> (wait, next_event)* --> READY --> publish, flush, next_event ...
 *		  --> LOST or close
 *
 * next_event() does all the work that is due: connects, logs in, reads,
 * answers, sends heartbeats, notices a dead peer.  Call it until it says NONE,
 * then wait for the sockets or the timeout that the transport names.  Nothing
 * here blocks, and trouble with the network or the broker is an event, never
 * an ereport.  No transaction may be open in any call but start().
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_TRANSPORT_H
#define OUTBOX_TRANSPORT_H

#include "message.h"
#include "credential.h"
#include "stream.h"
#include "topology.h"

typedef struct OutboxTransport OutboxTransport;

typedef enum OutboxEventType
{
	OUTBOX_EVENT_NONE,			/* nothing more to report now */
	OUTBOX_EVENT_READY,			/* may publish; tags (re)start at 1 */
	OUTBOX_EVENT_CONFIRM,		/* tag, multiple, ack */
	OUTBOX_EVENT_RETURN,		/* message_id, exchange, routing_key, failure;
								 * the confirm of the message follows */
	OUTBOX_EVENT_CHANNEL_CLOSED,	/* reply_code, failure: every unconfirmed
									 * message is in doubt; READY follows */
	OUTBOX_EVENT_ASSERTED,		/* answer: to what was asserted last */
	OUTBOX_EVENT_BLOCKED,		/* failure.detail says why: do not publish */
	OUTBOX_EVENT_UNBLOCKED,
	OUTBOX_EVENT_LOST			/* failure: the connection is gone, close it;
								 * answer, if it closes the connection, says
								 * that it is because of what was asserted */
} OutboxEventType;

/* Pointers in an event are valid until the next call of next_event(). */
typedef struct OutboxEvent
{
	OutboxEventType type;
	uint64		tag;
	bool		multiple;		/* all open tags up to this one */
	bool		ack;			/* or nack */
	int			reply_code;		/* the broker's, as in AMQP 0-9-1 section 1.2 */
	const char *message_id;
	const char *exchange;
	const char *routing_key;
	OutboxFailure failure;
	OutboxAnswer answer;
} OutboxEvent;

/* How far a connection has come. */
typedef enum OutboxPhase
{
	OUTBOX_PHASE_RESOLVING,		/* the host's name */
	OUTBOX_PHASE_CONNECTING,	/* TCP */
	OUTBOX_PHASE_HANDSHAKING,	/* TLS */
	OUTBOX_PHASE_GREETING,		/* the broker is to say what it is */
	OUTBOX_PHASE_LOGIN,			/* and whether it accepts the user */
	OUTBOX_PHASE_OPENING,		/* the virtual host */
	OUTBOX_PHASE_CHANNEL,		/* a channel that confirms */
	OUTBOX_PHASE_READY			/* it was READY at least once */
} OutboxPhase;

/* What is known of a connection, for whoever examines a broker. */
typedef struct OutboxTransportReport
{
	OutboxPhase phase;			/* where it is, or was when it was lost */
	OutboxStreamReport stream;
	char		product[64];	/* the broker's; empty: not known */
	char		version[64];
	char		mechanisms[256];	/* of authentication, that it offers */
	int			heartbeat;		/* seconds as agreed, 0: none */
	uint32		frame_max;		/* bytes, as agreed */
	int			channel_max;	/* as agreed */
} OutboxTransportReport;

/*
 * Begin to connect to hosts[host_no].  The options are copied as needed.  May
 * raise an error for lack of memory only.
 */
extern OutboxTransport *outbox_transport_start(const OutboxServer *server,
											   int host_no,
											   const OutboxCredentials *credentials,
											   const char *connection_name);

/*
 * Queue a message for sending, between READY and CHANNEL_CLOSED or LOST.
 * Returns its delivery tag, or 0 if it cannot be encoded (too large for the
 * negotiated frame), with the reason in *failure; then nothing is queued and
 * no tag is used.  Its body must stay until next_event() has reported what
 * became of it, or the transport is closed.
 */
extern uint64 outbox_transport_publish(OutboxTransport *transport,
									   const OutboxMessage *msg,
									   OutboxFailure *failure);

/*
 * Tell the broker of an item, between READY and LOST, also while the channel of
 * the messages is closed.  An answer to a former one must not be awaited.
 * False, with *answer filled in, if that cannot be done on this connection.
 */
extern bool outbox_transport_assert(OutboxTransport *transport,
									const OutboxItem *item,
									OutboxAnswer *answer);

/* Send what is queued, as far as the socket takes it. */
extern void outbox_transport_flush(OutboxTransport *transport);

/* Bytes queued and not sent yet. */
extern Size outbox_transport_pending(const OutboxTransport *transport);

extern OutboxEventType outbox_transport_next_event(OutboxTransport *transport,
												   OutboxEvent *event);

/* As outbox_stream_sockets() and outbox_stream_generation(). */
extern int	outbox_transport_sockets(OutboxTransport *transport,
									 OutboxSocket *sockets);
extern uint64 outbox_transport_generation(const OutboxTransport *transport);

/* Milliseconds until next_event() must be called; -1 for never. */
extern long outbox_transport_timeout(OutboxTransport *transport);

/* Also of one that is lost. */
extern void outbox_transport_report(const OutboxTransport *transport,
									OutboxTransportReport *report);

/*
 * Free everything.  An open connection is told good-bye if the socket takes
 * that at once.  Never blocks; NULL is allowed.
 */
extern void outbox_transport_close(OutboxTransport *transport);

#endif							/* OUTBOX_TRANSPORT_H */

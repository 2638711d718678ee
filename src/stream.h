/*-------------------------------------------------------------------------
 *
 * stream.h
 *	  A byte stream to one host: name resolution, TCP and TLS, without
 *	  blocking.
 *
 * Nothing here waits and nothing here raises an error because of the network:
 * the caller asks what to wait for, waits, and calls outbox_stream_advance().
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_STREAM_H
#define OUTBOX_STREAM_H

#include "tls.h"

typedef struct OutboxStream OutboxStream;

typedef enum OutboxStreamState
{
	OUTBOX_STREAM_RESOLVING,
	OUTBOX_STREAM_CONNECTING,	/* TCP; each address in turn */
	OUTBOX_STREAM_HANDSHAKING,	/* TLS */
	OUTBOX_STREAM_OPEN,
	OUTBOX_STREAM_FAILED		/* also closed by the peer */
} OutboxStreamState;

/* What is known of a stream, for whoever examines a broker. */
typedef struct OutboxStreamReport
{
	OutboxStreamState reached;	/* where it is, or was when it failed */
	int			naddresses;		/* of the host */
	char		address[OUTBOX_ADDRESS_LEN];	/* the one tried last; empty:
												 * none */
	bool		loopback;		/* which is of this machine */
	OutboxTlsReport tls;
} OutboxStreamReport;

/*
 * Begin to connect, with TLS unless tls is NULL; for the key's password see
 * outbox_tls_create().  What is needed later is copied.
 */
extern OutboxStream *outbox_stream_open(const char *host, int port,
										const OutboxTlsOptions *tls,
										const char *key_password);

/* Go on as far as possible without waiting; the state reached. */
extern OutboxStreamState outbox_stream_advance(OutboxStream *stream);

/*
 * Bytes moved; 0 if that would block; -1 if the stream failed or the peer
 * closed it (see outbox_stream_failure).  Only while OPEN.  A write that would
 * block is to be tried again with the same bytes, more may follow them.  A
 * failed write leaves the stream OPEN for reading: the peer's last words may
 * still be there.
 */
extern ssize_t outbox_stream_read(OutboxStream *stream, char *buf, Size len);
extern ssize_t outbox_stream_write(OutboxStream *stream, const char *buf,
								   Size len);

/*
 * What to wait for: fills sockets[OUTBOX_STREAM_MAX_SOCKETS], returns how
 * many.  want_write: the caller has bytes that a write refused.
 */
extern int	outbox_stream_sockets(OutboxStream *stream, bool want_write,
								  OutboxSocket *sockets);

/* Changes whenever a file descriptor was opened or closed. */
extern uint64 outbox_stream_generation(const OutboxStream *stream);

/* Milliseconds until advance() must be called even without input; -1 never. */
extern long outbox_stream_timeout(OutboxStream *stream);

extern const OutboxFailure *outbox_stream_failure(const OutboxStream *stream);

extern void outbox_stream_report(const OutboxStream *stream,
								 OutboxStreamReport *report);

/* Close and free; never blocks.  NULL is allowed. */
extern void outbox_stream_close(OutboxStream *stream);

/* Milliseconds on a clock that nobody sets; only differences have a meaning. */
extern int64 outbox_clock_ms(void);

#endif							/* OUTBOX_STREAM_H */

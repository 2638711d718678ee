/*-------------------------------------------------------------------------
 *
 * tls.h
 *	  TLS over a connected socket, as its client, without blocking.
 *
 * For the stream; the report is for whoever examines a broker.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_TLS_H
#define OUTBOX_TLS_H

#include "resolve.h"

typedef struct OutboxTls OutboxTls;

/* Why a certificate was not accepted, as far as there is a remedy of its own. */
typedef enum OutboxTrust
{
	OUTBOX_TRUST_OK,			/* or nothing was verified */
	OUTBOX_TRUST_EXPIRED,
	OUTBOX_TRUST_NOT_YET,		/* it is not valid yet */
	OUTBOX_TRUST_NO_CA,			/* nobody that we trust has signed it */
	OUTBOX_TRUST_NAME,			/* it is for another host */
	OUTBOX_TRUST_OTHER
} OutboxTrust;

typedef struct OutboxTlsReport
{
	OutboxTrust trust;
	char		version[16];	/* of the protocol; empty: not agreed on */
	char		subject[256];	/* of the certificate that ends first, or that
								 * was not accepted; empty: not known */
	int			days_left;		/* of it, negative when it is over */
} OutboxTlsReport;

/*
 * Make ready for host, in CurrentMemoryContext: read what files there are.
 * The strings are copied.  NULL, with *failure, if that cannot be done.
 * Whoever owns the context calls outbox_tls_release() before it goes.
 */
extern OutboxTls *outbox_tls_create(const char *cacertfile, const char *host,
									int port, OutboxFailure *failure);

/* A connection that is open is told good-bye if the socket takes that at once. */
extern void outbox_tls_release(OutboxTls *tls, bool open);

/*
 * Begin on a socket that is connected.  The certificate must be for the
 * address, or, if that is NULL, for the host's name.
 */
extern bool outbox_tls_start(OutboxTls *tls, pgsocket fd,
							 const OutboxAddress *address,
							 OutboxFailure *failure);

typedef enum OutboxTlsProgress
{
	OUTBOX_TLS_WAITS,
	OUTBOX_TLS_OPEN,
	OUTBOX_TLS_FAILED
} OutboxTlsProgress;

extern OutboxTlsProgress outbox_tls_handshake(OutboxTls *tls,
											  OutboxFailure *failure);

/*
 * Bytes moved; 0 if that would block; -1 if the connection is lost, and then
 * *detail says why, NULL standing for an end of file.  As with the stream, a
 * write that would block is to be tried again with the same bytes.
 */
extern ssize_t outbox_tls_read(OutboxTls *tls, char *buf, Size len,
							   const char **detail);
extern ssize_t outbox_tls_write(OutboxTls *tls, const char *buf, Size len,
								const char **detail);

/* Which events of the socket to wait for, whether or not it is open yet. */
extern uint32 outbox_tls_events(const OutboxTls *tls, bool want_write);

extern void outbox_tls_report(const OutboxTls *tls, OutboxTlsReport *report);

#endif							/* OUTBOX_TLS_H */

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

/* Of enums that are options, 0 is the default. */
typedef enum OutboxVerify
{
	OUTBOX_VERIFY_PEER,			/* the broker's certificate: chain and name */
	OUTBOX_VERIFY_NONE
} OutboxVerify;

typedef enum OutboxTlsVersion
{
	OUTBOX_TLS_1_2,
	OUTBOX_TLS_1_3
} OutboxTlsVersion;

/* How a connection is protected; NULL where nothing is said. */
typedef struct OutboxTlsOptions
{
	OutboxVerify verify;
	OutboxTlsVersion min_version;
	char	   *cacertfile;		/* PEM; if neither is given, the system's */
	char	   *cacertdir;		/* hashed, as "openssl rehash" makes it */
	char	   *server_name;	/* instead of the host's, told and verified */
	char	   *certfile;		/* PEM, ours, and those up to the CA */
	char	   *keyfile;		/* PEM, of that; perhaps encrypted */
} OutboxTlsOptions;

/* Why there is no trust, as far as there is a remedy of its own. */
typedef enum OutboxTrust
{
	OUTBOX_TRUST_OK,			/* or nothing was verified */
	OUTBOX_TRUST_EXPIRED,
	OUTBOX_TRUST_NOT_YET,		/* it is not valid yet */
	OUTBOX_TRUST_NO_CA,			/* nobody that we trust has signed it */
	OUTBOX_TRUST_NAME,			/* it is for another host */
	OUTBOX_TRUST_OTHER,
	OUTBOX_TRUST_NO_VERSION,	/* that both sides allow */
	OUTBOX_TRUST_NOT_US			/* the broker does not accept our certificate,
								 * or demands one */
} OutboxTrust;

typedef struct OutboxTlsReport
{
	OutboxTrust trust;
	bool		unverified;		/* by the options */
	char		version[16];	/* of the protocol; empty: not agreed on */
	char		subject[256];	/* of the certificate that ends first, or that
								 * was not accepted; empty: not known */
	int			days_left;		/* of it, negative when it is over */
} OutboxTlsReport;

/*
 * Make ready for host: read what files there are.  It goes with
 * CurrentMemoryContext, and a connection that is open then is told good-bye if
 * the socket, which must still be there, takes that at once.  key_password is
 * for the keyfile, NULL if that needs none.  What is needed later is copied.
 * NULL, with *failure, if there can be no TLS.
 */
extern OutboxTls *outbox_tls_create(const OutboxTlsOptions *options,
									const char *key_password,
									const char *host, int port,
									OutboxFailure *failure);

/*
 * Begin on a socket that is connected.  The certificate must be for the name
 * that the options give; without one for the address, or, if that is NULL, for
 * the host's name.
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

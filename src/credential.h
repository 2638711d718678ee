/*-------------------------------------------------------------------------
 *
 * credential.h
 *	  What a connection is authenticated with, read when it is made.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_CREDENTIAL_H
#define OUTBOX_CREDENTIAL_H

#include "option.h"

typedef struct OutboxCredentials
{
	char	   *password;		/* or token; empty if there is none */
	char	   *key_password;	/* of the TLS key; NULL if there is none */
	TimestampTz expires_at;		/* of the token; 0: not known, or none */
} OutboxCredentials;

/*
 * The options' own, or out of the files that they name; palloc'd.  False, with
 * *failure, if there is no user mapping that says who we are (42704), it is not the
 * server owner's own (42501), a file cannot be used (F0000), or the token is out
 * of date (28P01).
 */
extern bool outbox_credentials_read(const OutboxServer *server,
									OutboxCredentials *credentials,
									OutboxFailure *failure);

/* Wipe and free them. */
extern void outbox_credentials_forget(OutboxCredentials *credentials);

#endif							/* OUTBOX_CREDENTIAL_H */

/*-------------------------------------------------------------------------
 *
 * token.h
 *	  When a token ends.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_TOKEN_H
#define OUTBOX_TOKEN_H

#include "postgres.h"

/*
 * The time in a JSON Web Token (RFC 7519, "exp"), in seconds since 1970-01-01
 * UTC; false if it says none, or is another kind of token.
 */
extern bool outbox_token_expiry(const char *token, int64 *expiry);

#endif							/* OUTBOX_TOKEN_H */

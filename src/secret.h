/*-------------------------------------------------------------------------
 *
 * secret.h
 *	  Files that a connection is made with: passwords, keys, certificates.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_SECRET_H
#define OUTBOX_SECRET_H

#include "message.h"

/*
 * The contents of a file with a secret, palloc'd, with a NUL after them; NULL
 * with *failure if it cannot be read, holds more than max bytes or can be read
 * by others than it should.  The rule is PostgreSQL's for ssl_key_file: owned
 * by the server's user and nobody else's to read, or by root and at most its
 * group's.  A path such as /dev/fd/3 is that descriptor.  what names the file in
 * messages, such as "password file".
 */
extern char *outbox_secret_read(const char *path, const char *what, Size max,
								OutboxFailure *failure);

/* Wipe and free; NULL is allowed. */
extern void outbox_secret_forget(char *secret);

/*
 * Whether it is a file that a library may read: nothing that could block, as
 * reading from a pipe does.
 */
extern bool outbox_file_check(const char *path, const char *what,
							  OutboxFailure *failure);

/*
 * Whether it is a directory of certificates in the form that OpenSSL looks
 * them up in: by names such as "9d66eef0.0", which "openssl rehash" makes.
 */
extern bool outbox_file_check_hashed(const char *path, const char *what,
									 OutboxFailure *failure);

#endif							/* OUTBOX_SECRET_H */

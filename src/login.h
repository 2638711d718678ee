/*-------------------------------------------------------------------------
 *
 * login.h
 *	  Who we are and what we ask for: from the broker's greeting to an open
 *	  virtual host.
 *
 * For the transport only.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_LOGIN_H
#define OUTBOX_LOGIN_H

#include "credential.h"
#include "wire.h"

typedef struct OutboxLogin OutboxLogin;

typedef enum OutboxLoginState
{
	OUTBOX_LOGIN_AWAIT_START,	/* the greeting */
	OUTBOX_LOGIN_AWAIT_TUNE,	/* follows when the password is right */
	OUTBOX_LOGIN_AWAIT_OPEN,	/* the virtual host */
	OUTBOX_LOGIN_DONE
} OutboxLoginState;

/*
 * A login goes with CurrentMemoryContext; its copy of the password is wiped
 * once it is sent, or then.
 */
extern OutboxLogin *outbox_login_create(const OutboxServer *server,
										const OutboxCredentials *credentials,
										const char *connection_name);

/*
 * Whether the login may be made over this stream, which is open: a password
 * does not leave this machine without TLS unless the options allow it.  False,
 * with *failure; then nothing has been said to the broker yet.
 */
extern bool outbox_login_permit(OutboxLogin *login,
								const OutboxStreamReport *stream,
								OutboxFailure *failure);

/* The answer was no. */
extern bool outbox_login_is_forbidden(const OutboxLogin *login);

extern OutboxLoginState outbox_login_state(const OutboxLogin *login);

/* Is that method, on channel 0, the next step? */
extern bool outbox_login_expects(const OutboxLogin *login, uint32 id);

/*
 * Take the decoded method that is expected, queue what it asks for, and set
 * the wire's frame_max.  False, with *failure, if there can be no login.
 */
extern bool outbox_login_answer(OutboxLogin *login, OutboxWire *wire,
								uint32 id, void *method,
								OutboxFailure *failure);

/* Channels as agreed with the broker: 0 before, then at least 1. */
extern int	outbox_login_channel_max(const OutboxLogin *login);

/* Bytes of a frame as agreed with the broker; before, what we want. */
extern uint32 outbox_login_frame_max(const OutboxLogin *login);

/*
 * What the broker says of itself in its greeting; printable, empty before that
 * or if it does not say.
 */
typedef struct OutboxGreeting
{
	char		product[64];
	char		version[64];
	char		mechanisms[OUTBOX_SHORTSTR_MAX + 1];	/* of authentication */
} OutboxGreeting;

extern const OutboxGreeting *outbox_login_greeting(const OutboxLogin *login);

/* Seconds as agreed with the broker, 0 for none or not agreed yet. */
extern int	outbox_login_heartbeat(const OutboxLogin *login);

/*
 * SQLSTATE for the reply code (AMQP 0-9-1, section 1.2) with which the broker
 * closes the connection now; also after the login.
 */
extern int	outbox_login_sqlerrcode(const OutboxLogin *login, int reply_code);

/* What may be the matter if the broker hangs up now, or NULL. */
extern const char *outbox_login_hangup_hint(const OutboxLogin *login);

/*
 * The peer's first bytes, 8 or more, are no frame of AMQP 0-9-1: what they
 * are, into detail[size].
 */
extern void outbox_login_describe_greeting(const char *bytes, char *detail,
										   Size size);

#endif							/* OUTBOX_LOGIN_H */

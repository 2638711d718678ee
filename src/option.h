/*-------------------------------------------------------------------------
 *
 * option.h
 *	  Options of servers and user mappings, and what they amount to.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_OPTION_H
#define OUTBOX_OPTION_H

#include "nodes/pg_list.h"

#include "backlog.h"
#include "message.h"
#include "target.h"
#include "tls.h"

#define OUTBOX_DEFAULT_FRAME_MAX	131072
#define OUTBOX_DEFAULT_IDEMPOTENCY_RETENTION	(7 * 24 * 60 * 60)

/* A password longer than this cannot travel in a frame before tuning. */
#define OUTBOX_PASSWORD_MAX		8000

/* What is done with a message that the broker cannot route. */
typedef enum OutboxUnroutable
{
	OUTBOX_UNROUTABLE_RETRY,	/* later, and in the end a dead letter */
	OUTBOX_UNROUTABLE_DEAD_LETTER,	/* at once */
	OUTBOX_UNROUTABLE_ACCEPT	/* it counts as delivered */
} OutboxUnroutable;

/* What every message is looked at for, when it is published. */
typedef struct OutboxAdmission
{
	OutboxBacklogLimits backlog;
	bool		allow_list;		/* see permission.h */
} OutboxAdmission;

/* How the broker is told who we are (SASL). */
typedef enum OutboxMechanism
{
	OUTBOX_MECHANISM_PLAIN,		/* user and password, or a token */
	OUTBOX_MECHANISM_EXTERNAL	/* the TLS certificate */
} OutboxMechanism;

/*
 * How to reach the broker of one server, complete with defaults.  One
 * palloc'd piece with everything it points to in the context of the caller of
 * outbox_option_load().
 */
typedef struct OutboxServer
{
	Oid			serverid;
	char	   *name;			/* of the foreign server */
	int			nhosts;			/* at least 1; the failover list */
	OutboxHost *hosts;
	char	   *vhost;
	bool		tls;
	OutboxTlsOptions tls_options;	/* if so */
	bool		allow_plaintext;	/* a password may go over a network */
	OutboxMechanism mechanism;
	char	   *user;			/* NULL if no user mapping gives one */
	char	   *password;		/* of the next three at most one is given */
	char	   *password_file;
	char	   *token_file;
	char	   *keyfile_password;	/* at most one of these two */
	char	   *keyfile_password_file;
	const char *refusal;		/* why nobody logs in with these; NULL: go on */
	const char *refusal_detail;
	int			heartbeat;		/* seconds, 0 for none */
	int			connect_timeout;	/* seconds, until login is complete */
	int			confirm_timeout;	/* seconds */
	int			frame_max;		/* bytes, >= 8192 */
	int			window;			/* messages in flight */
	int			key_window;		/* of one ordering key; 0: no limit */
	int			max_attempts;	/* then a message is a dead letter */
	int			max_age;		/* seconds since the first; 0: no limit */
	OutboxUnroutable unroutable;
	bool		dead_letter_holds_key;	/* others of its ordering key wait */
	int			idempotency_retention;	/* seconds; 0: for ever */
	int			rate_limit;		/* messages per second; 0: no limit */
	int			rate_limit_bytes;	/* of bodies per second; 0: no limit */
	OutboxAdmission admission;
	bool		paused;			/* nothing is sent */
	bool		persistent;		/* default for messages that do not say */
	bool		mandatory;		/* the same */
} OutboxServer;

/*
 * Options of a foreign server that uses our wrapper, or NULL if there is no
 * such server (any more).  Needs a transaction.
 *
 * Credentials are those of the server owner's user mapping, else of PUBLIC's,
 * and no other's.  An owner who is not a superuser says which host they are
 * sent to, so they must be his own: those of his own mapping, with a password,
 * or out of files if he has the rights of pg_read_server_files.  If not, refusal
 * says so.
 *
 * The password is wiped when the context goes.
 */
extern OutboxServer *outbox_option_load(Oid serverid);

/* Whether a connection made with the one serves for the other. */
extern bool outbox_option_same_connection(const OutboxServer *a,
										  const OutboxServer *b);

/*
 * What messages that do not say are, as of the invalidations accepted so far.
 * Needs a transaction.
 */
extern void outbox_option_message_defaults(Oid serverid, bool *persistent,
										   bool *mandatory);

/* Single options of a server, for checks at enqueue.  Need a transaction. */
extern int	outbox_option_frame_max(Oid serverid);
extern int	outbox_option_idempotency_retention(Oid serverid);

/* What messages to a server are looked at for.  Needs a transaction. */
extern void outbox_option_load_admission(Oid serverid,
										 OutboxAdmission *admission);

/*
 * For the statements that can alter what the validator checks: the options
 * that the object has before (NIL for a new one).  What needs a right that not
 * everybody has, such as naming a file of the server, needs it only if the
 * statement brings it.  Returns what was set before; without any, everything
 * counts as new.
 */
extern List *outbox_option_set_former(List *options);

/* Those options, for a server and for a user mapping (PUBLIC: InvalidOid). */
extern List *outbox_option_of_server(const char *server);
extern List *outbox_option_of_mapping(const char *server, Oid userid);

#endif							/* OUTBOX_OPTION_H */

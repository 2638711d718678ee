/*-------------------------------------------------------------------------
 *
 * option.c
 *	  Options of servers and user mappings, and what they amount to.
 *
 * A broker is described by a URI (the RabbitMQ URI specification's amqp: and
 * amqps:), by single options, or by both as long as they do not contradict
 * each other.  The validator runs the same code that the worker runs to
 * connect, so that what CREATE SERVER takes can be used.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>
#include <math.h>

#include "access/htup_details.h"
#include "access/reloptions.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "foreign/foreign.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/syscache.h"

#include "catalog.h"
#include "option.h"

#define OUTBOX_PORT		5672	/* IANA: amqp */
#define OUTBOX_TLS_PORT 5671	/* IANA: amqps */

/* AMQP 0-9-1 allows 4096; RabbitMQ refuses less than 8192 since 4.1. */
#define OUTBOX_FRAME_MAX_MIN	8192
#define OUTBOX_FRAME_MAX_MAX	(1024 * 1024)

/* So many bytes wait nowhere, and a double is exact up to it. */
#define OUTBOX_BYTES_MAX		(INT64CONST(1) << 50)

typedef enum OutboxOptionKind
{
	OUTBOX_OPTION_TEXT,
	OUTBOX_OPTION_BOOL,
	OUTBOX_OPTION_INT,
	OUTBOX_OPTION_SECONDS,
	OUTBOX_OPTION_BYTES,		/* 64 bits, with units */

	/* words, for enums */
	OUTBOX_OPTION_BACKLOG_ACTION,
	OUTBOX_OPTION_MECHANISM,
	OUTBOX_OPTION_TLS_VERSION,
	OUTBOX_OPTION_UNROUTABLE,
	OUTBOX_OPTION_VERIFY
} OutboxOptionKind;

typedef struct OutboxOption
{
	const char *name;
	Oid			catalog;		/* where it may stand */
	OutboxOptionKind kind;
	int			min;
	int			max;
	bool		server_file;	/* names a file of the server */
	Size		offset;			/* in OutboxServer; 0: parsed apart */
} OutboxOption;

#define SERVER_OPTION(field)	offsetof(OutboxServer, field)
#define TLS_OPTION(field)		offsetof(OutboxServer, tls_options.field)

/* The words of an enum, in its order. */
static const char *const outbox_option_words[][4] = {
	[OUTBOX_OPTION_BACKLOG_ACTION] = {"refuse", "warn"},
	[OUTBOX_OPTION_MECHANISM] = {"plain", "external"},
	[OUTBOX_OPTION_TLS_VERSION] = {"1.2", "1.3"},
	[OUTBOX_OPTION_UNROUTABLE] = {"retry", "dead_letter", "accept"},
	[OUTBOX_OPTION_VERIFY] = {"peer", "none"}
};

/* Sorted by catalog and name: an error lists them in this order. */
static const OutboxOption outbox_options[] = {
	{"allow_list", ForeignServerRelationId, OUTBOX_OPTION_BOOL, 0, 0, false,
		SERVER_OPTION(admission.allow_list)},
	{"allow_plaintext", ForeignServerRelationId, OUTBOX_OPTION_BOOL, 0, 0,
		false, SERVER_OPTION(allow_plaintext)},
	{"backlog_action", ForeignServerRelationId, OUTBOX_OPTION_BACKLOG_ACTION,
		0, 0, false, SERVER_OPTION(admission.backlog.action)},
	{"backlog_limit", ForeignServerRelationId, OUTBOX_OPTION_INT, 0, INT_MAX,
		false, SERVER_OPTION(admission.backlog.messages)},
	{"backlog_limit_bytes", ForeignServerRelationId, OUTBOX_OPTION_BYTES, 0, 0,
		false, SERVER_OPTION(admission.backlog.bytes)},
	{"cacertdir", ForeignServerRelationId, OUTBOX_OPTION_TEXT, 0, 0, true,
		TLS_OPTION(cacertdir)},
	{"cacertfile", ForeignServerRelationId, OUTBOX_OPTION_TEXT, 0, 0, true,
		TLS_OPTION(cacertfile)},
	{"confirm_timeout", ForeignServerRelationId, OUTBOX_OPTION_SECONDS, 1, 86400,
		false, SERVER_OPTION(confirm_timeout)},
	{"connect_timeout", ForeignServerRelationId, OUTBOX_OPTION_SECONDS, 1, 3600,
		false, SERVER_OPTION(connect_timeout)},
	{"dead_letter_holds_key", ForeignServerRelationId, OUTBOX_OPTION_BOOL, 0, 0,
		false, SERVER_OPTION(dead_letter_holds_key)},
	{"frame_max", ForeignServerRelationId, OUTBOX_OPTION_INT,
		OUTBOX_FRAME_MAX_MIN, OUTBOX_FRAME_MAX_MAX, false,
		SERVER_OPTION(frame_max)},
	{"heartbeat", ForeignServerRelationId, OUTBOX_OPTION_SECONDS, 0, 65535,
		false, SERVER_OPTION(heartbeat)},
	{"host", ForeignServerRelationId, OUTBOX_OPTION_TEXT, 0, 0, false, 0},
	{"idempotency_retention", ForeignServerRelationId, OUTBOX_OPTION_SECONDS, 0,
		INT_MAX, false, SERVER_OPTION(idempotency_retention)},
	{"key_window", ForeignServerRelationId, OUTBOX_OPTION_INT, 0, 65535, false,
		SERVER_OPTION(key_window)},
	{"mandatory", ForeignServerRelationId, OUTBOX_OPTION_BOOL, 0, 0, false,
		SERVER_OPTION(mandatory)},
	{"max_age", ForeignServerRelationId, OUTBOX_OPTION_SECONDS, 0, INT_MAX,
		false, SERVER_OPTION(max_age)},
	{"max_attempts", ForeignServerRelationId, OUTBOX_OPTION_INT, 1, INT_MAX,
		false, SERVER_OPTION(max_attempts)},
	{"paused", ForeignServerRelationId, OUTBOX_OPTION_BOOL, 0, 0, false,
		SERVER_OPTION(paused)},
	{"persistent", ForeignServerRelationId, OUTBOX_OPTION_BOOL, 0, 0, false,
		SERVER_OPTION(persistent)},
	{"port", ForeignServerRelationId, OUTBOX_OPTION_INT, 1, 65535, false, 0},
	{"rate_limit", ForeignServerRelationId, OUTBOX_OPTION_INT, 0, INT_MAX,
		false, SERVER_OPTION(rate_limit)},
	{"rate_limit_bytes", ForeignServerRelationId, OUTBOX_OPTION_INT, 0, INT_MAX,
		false, SERVER_OPTION(rate_limit_bytes)},
	{"role_backlog_limit", ForeignServerRelationId, OUTBOX_OPTION_INT, 0,
		INT_MAX, false, SERVER_OPTION(admission.backlog.role_messages)},
	{"role_backlog_limit_bytes", ForeignServerRelationId, OUTBOX_OPTION_BYTES,
		0, 0, false, SERVER_OPTION(admission.backlog.role_bytes)},
	{"server_name_indication", ForeignServerRelationId, OUTBOX_OPTION_TEXT, 0,
		0, false, TLS_OPTION(server_name)},
	{"tls", ForeignServerRelationId, OUTBOX_OPTION_BOOL, 0, 0, false, 0},
	{"tls_min_version", ForeignServerRelationId, OUTBOX_OPTION_TLS_VERSION, 0,
		0, false, TLS_OPTION(min_version)},
	{"unroutable", ForeignServerRelationId, OUTBOX_OPTION_UNROUTABLE, 0, 0,
		false, SERVER_OPTION(unroutable)},
	{"uri", ForeignServerRelationId, OUTBOX_OPTION_TEXT, 0, 0, false, 0},
	{"verify", ForeignServerRelationId, OUTBOX_OPTION_VERIFY, 0, 0, false,
		TLS_OPTION(verify)},
	{"vhost", ForeignServerRelationId, OUTBOX_OPTION_TEXT, 0, 0, false, 0},
	{"window", ForeignServerRelationId, OUTBOX_OPTION_INT, 1, 65535, false,
		SERVER_OPTION(window)},
	{"auth_mechanism", UserMappingRelationId, OUTBOX_OPTION_MECHANISM, 0, 0,
		false, SERVER_OPTION(mechanism)},
	{"certfile", UserMappingRelationId, OUTBOX_OPTION_TEXT, 0, 0, true,
		TLS_OPTION(certfile)},
	{"keyfile", UserMappingRelationId, OUTBOX_OPTION_TEXT, 0, 0, true,
		TLS_OPTION(keyfile)},
	{"keyfile_password", UserMappingRelationId, OUTBOX_OPTION_TEXT, 0, 0,
		false, SERVER_OPTION(keyfile_password)},
	{"keyfile_password_file", UserMappingRelationId, OUTBOX_OPTION_TEXT, 0, 0,
		true, SERVER_OPTION(keyfile_password_file)},
	{"password", UserMappingRelationId, OUTBOX_OPTION_TEXT, 0, 0, false,
		SERVER_OPTION(password)},
	{"password_file", UserMappingRelationId, OUTBOX_OPTION_TEXT, 0, 0, true,
		SERVER_OPTION(password_file)},
	{"token_file", UserMappingRelationId, OUTBOX_OPTION_TEXT, 0, 0, true,
		SERVER_OPTION(token_file)},
	{"user", UserMappingRelationId, OUTBOX_OPTION_TEXT, 0, 0, false,
		SERVER_OPTION(user)},
};

StaticAssertDecl(sizeof(OutboxBacklogAction) == sizeof(int) &&
				 sizeof(OutboxMechanism) == sizeof(int) &&
				 sizeof(OutboxTlsVersion) == sizeof(int) &&
				 sizeof(OutboxUnroutable) == sizeof(int) &&
				 sizeof(OutboxVerify) == sizeof(int),
				 "options that are enums are set as int");

PG_FUNCTION_INFO_V1(outbox_sql_validator);

/*
 * Single options
 */

static const OutboxOption *
outbox_option_find(const char *name, Oid catalog)
{
	for (int i = 0; i < (int) lengthof(outbox_options); i++)
	{
		if (outbox_options[i].catalog == catalog &&
			strcmp(outbox_options[i].name, name) == 0)
			return &outbox_options[i];
	}
	return NULL;
}

static void
outbox_option_unknown(const char *name, Oid catalog)
{
	StringInfoData valid;

	initStringInfo(&valid);
	for (int i = 0; i < (int) lengthof(outbox_options); i++)
	{
		if (outbox_options[i].catalog == catalog)
			appendStringInfo(&valid, "%s%s", valid.len > 0 ? ", " : "",
							 outbox_options[i].name);
	}
	ereport(ERROR,
			(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
			 errmsg("invalid option \"%s\"", name),
			 valid.len > 0
			 ? errhint("Valid options in this context are: %s.", valid.data)
			 : errhint("There are no valid options in this context.")));
}

static int
outbox_option_int(const OutboxOption *option, const char *value)
{
	bool		seconds = option->kind == OUTBOX_OPTION_SECONDS;
	int			result;

	if (!parse_int(value, &result, seconds ? GUC_UNIT_S : 0, NULL) ||
		result < option->min || result > option->max)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
				 errmsg("invalid value for option \"%s\": \"%s\"",
						option->name, value),
				 seconds
				 ? errhint("Give a time from %d to %d seconds, such as \"30\" or \"1min\".",
						   option->min, option->max)
				 : errhint("Give a number from %d to %d.",
						   option->min, option->max)));
	return result;
}

static bool
outbox_option_bool(const OutboxOption *option, const char *value)
{
	bool		result;

	if (!parse_bool(value, &result))
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
				 errmsg("invalid value for option \"%s\": \"%s\"",
						option->name, value),
				 errhint("Give \"true\" or \"false\".")));
	return result;
}

static char *
outbox_option_text(const OutboxOption *option, char *value)
{
	if (value[0] == '\0' && strcmp(option->name, "password") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
				 errmsg("option \"%s\" must not be empty", option->name),
				 errhint("Leave the option out for its default.")));
	if (option->server_file && !is_absolute_path(value))
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
				 /* it could be the secret itself, given to the wrong option */
				 errmsg("option \"%s\" must be an absolute path", option->name),
				 errhint("Give the path on the server, beginning with a slash.")));
	return value;
}

/* The words of an enum, as a hint names them. */
static const char *
outbox_option_list_words(const char *const *words)
{
	StringInfoData list;

	initStringInfo(&list);
	for (int i = 0; words[i]; i++)
		appendStringInfo(&list, "%s\"%s\"", i == 0 ? "" :
						 words[i + 1] ? ", " : " or ", words[i]);
	return list.data;
}

static int
outbox_option_word(const OutboxOption *option, const char *value)
{
	const char *const *words = outbox_option_words[option->kind];

	for (int i = 0; words[i]; i++)
	{
		if (pg_strcasecmp(value, words[i]) == 0)
			return i;
	}
	ereport(ERROR,
			(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
			 errmsg("invalid value for option \"%s\": \"%s\"",
					option->name, value),
			 errhint("Give %s.", outbox_option_list_words(words))));
	return 0;					/* not reached */
}

static int64
outbox_option_bytes(const OutboxOption *option, const char *value)
{
	double		bytes;

	if (!parse_real(value, &bytes, GUC_UNIT_BYTE, NULL) ||
		!(bytes >= 0 && bytes <= OUTBOX_BYTES_MAX))
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
				 errmsg("invalid value for option \"%s\": \"%s\"",
						option->name, value),
				 errhint("Give a number of bytes from 0 to " INT64_FORMAT ", such as \"1000000\" or \"10GB\".",
						 OUTBOX_BYTES_MAX)));
	return (int64) rint(bytes);
}

/* Check one value and, with an offset in the table, put it into the server. */
static void
outbox_option_apply(OutboxServer *server, const OutboxOption *option,
					char *value)
{
	char	   *field = (char *) server + option->offset;

	switch (option->kind)
	{
		case OUTBOX_OPTION_TEXT:
			value = outbox_option_text(option, value);
			if (option->offset)
				*(char **) field = value;
			break;
		case OUTBOX_OPTION_BOOL:
			{
				bool		on = outbox_option_bool(option, value);

				if (option->offset)
					*(bool *) field = on;
				break;
			}
		case OUTBOX_OPTION_BACKLOG_ACTION:
		case OUTBOX_OPTION_MECHANISM:
		case OUTBOX_OPTION_TLS_VERSION:
		case OUTBOX_OPTION_UNROUTABLE:
		case OUTBOX_OPTION_VERIFY:
			/* enums are as large as an int: see the assertion above */
			*(int *) field = outbox_option_word(option, value);
			break;
		case OUTBOX_OPTION_BYTES:
			*(int64 *) field = outbox_option_bytes(option, value);
			break;
		case OUTBOX_OPTION_INT:
		case OUTBOX_OPTION_SECONDS:
			{
				int			number = outbox_option_int(option, value);

				if (option->offset)
					*(int *) field = number;
				break;
			}
	}
}

/*
 * All together
 */

static void
outbox_option_contradiction(const char *name, bool differs)
{
	if (differs)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
				 errmsg("option \"%s\" contradicts option \"uri\"", name),
				 errhint("Give it in one of the two places.")));
}

/* Merge what the URI and what single options say; refuse contradictions. */
static void
outbox_option_address(OutboxServer *server, const OutboxTarget *uri,
					  const OutboxTarget *single)
{
	const char *hosts = single->hosts;
	int			port;

	if (uri->hosts && uri->hosts[0] != '\0')
	{
		outbox_option_contradiction("host", hosts &&
									strcmp(hosts, uri->hosts) != 0);
		hosts = uri->hosts;
	}
	outbox_option_contradiction("vhost", uri->vhost && single->vhost &&
								strcmp(uri->vhost, single->vhost) != 0);
	outbox_option_contradiction("tls", uri->tls >= 0 && single->tls >= 0 &&
								uri->tls != single->tls);

	server->tls = uri->tls > 0 || single->tls > 0;
	if (uri->vhost || single->vhost)
		server->vhost = uri->vhost ? uri->vhost : single->vhost;
	port = single->port ? single->port :
		server->tls ? OUTBOX_TLS_PORT : OUTBOX_PORT;
	server->hosts = outbox_target_parse_hosts(hosts ? hosts : "localhost", port,
											  &server->nhosts);

	for (int i = 0; i < server->nhosts && single->port; i++)
		outbox_option_contradiction("port", uri->hosts &&
									server->hosts[i].port != single->port);
}

static void
outbox_option_set_defaults(OutboxServer *server)
{
	memset(server, 0, sizeof(*server));
	server->vhost = pstrdup("/");
	server->heartbeat = 30;
	server->connect_timeout = 5;
	server->confirm_timeout = 30;
	server->frame_max = OUTBOX_DEFAULT_FRAME_MAX;
	server->window = 1024;
	server->max_attempts = 20;
	server->idempotency_retention = OUTBOX_DEFAULT_IDEMPOTENCY_RETENTION;
	server->persistent = true;
	server->mandatory = true;
}

/* What is about TLS has no effect without. */
static void
outbox_option_check_tls(const OutboxServer *server, List *options)
{
	ListCell   *lc;

	if (server->tls)
		return;
	foreach(lc, options)
	{
		const char *name = lfirst_node(DefElem, lc)->defname;

		if (strcmp(name, "cacertdir") == 0 ||
			strcmp(name, "cacertfile") == 0 ||
			strcmp(name, "server_name_indication") == 0 ||
			strcmp(name, "tls_min_version") == 0 ||
			strcmp(name, "verify") == 0)
			ereport(ERROR,
					(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
					 errmsg("option \"%s\" needs TLS", name),
					 errhint("Write the URI with amqps://, or give the option tls 'true'.")));
	}
}

/* A server's own options, checked, with defaults for the rest. */
static void
outbox_option_parse_server(OutboxServer *server, List *options)
{
	OutboxTarget uri = {.tls = -1};
	OutboxTarget single = {.tls = -1};
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);
		const OutboxOption *option = outbox_option_find(def->defname,
														ForeignServerRelationId);
		char	   *value = defGetString(def);

		if (option == NULL)
		{
			outbox_option_unknown(def->defname, ForeignServerRelationId);
			continue;			/* not reached */
		}
		outbox_option_apply(server, option, value);
		if (strcmp(def->defname, "uri") == 0)
			outbox_target_parse_uri(value, &uri);
		else if (strcmp(def->defname, "host") == 0)
			single.hosts = value;
		else if (strcmp(def->defname, "port") == 0)
			single.port = outbox_option_int(option, value);
		else if (strcmp(def->defname, "vhost") == 0)
			single.vhost = value;
		else if (strcmp(def->defname, "tls") == 0)
			single.tls = outbox_option_bool(option, value);
	}
	outbox_option_address(server, &uri, &single);
	if (strlen(server->vhost) > OUTBOX_SHORTSTR_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
				 errmsg("name of virtual host is too long"),
				 errdetail("AMQP allows %d bytes.", OUTBOX_SHORTSTR_MAX)));
	outbox_option_check_tls(server, options);
}

static void
outbox_option_exclude(const char *a, bool has_a, const char *b, bool has_b)
{
	if (has_a && has_b)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
				 errmsg("options \"%s\" and \"%s\" exclude each other", a, b),
				 errhint("Drop one of them; a secret is better kept in a file.")));
}

static void
outbox_option_demand(const char *a, bool has_a, const char *b, bool has_b)
{
	if (has_a && !has_b)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
				 errmsg("option \"%s\" needs option \"%s\"", a, b),
				 errhint("Give both, or none.")));
}

/* Which options of a user mapping go together. */
static void
outbox_option_check_mapping(const OutboxServer *server)
{
	const OutboxTlsOptions *tls = &server->tls_options;
	bool		external = server->mechanism == OUTBOX_MECHANISM_EXTERNAL;

	outbox_option_exclude("password", server->password != NULL,
						  "password_file", server->password_file != NULL);
	outbox_option_exclude("password", server->password != NULL,
						  "token_file", server->token_file != NULL);
	outbox_option_exclude("password_file", server->password_file != NULL,
						  "token_file", server->token_file != NULL);
	outbox_option_exclude("keyfile_password", server->keyfile_password != NULL,
						  "keyfile_password_file",
						  server->keyfile_password_file != NULL);
	outbox_option_demand("certfile", tls->certfile != NULL,
						 "keyfile", tls->keyfile != NULL);
	outbox_option_demand("keyfile", tls->keyfile != NULL,
						 "certfile", tls->certfile != NULL);
	outbox_option_demand("keyfile_password", server->keyfile_password != NULL,
						 "keyfile", tls->keyfile != NULL);
	outbox_option_demand("keyfile_password_file",
						 server->keyfile_password_file != NULL,
						 "keyfile", tls->keyfile != NULL);
	if (external && tls->certfile == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
				 errmsg("authentication by a certificate needs one"),
				 errhint("Give the options certfile and keyfile, or auth_mechanism 'plain'.")));
	if (external && (server->password || server->password_file ||
					 server->token_file))
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
				 errmsg("authentication by a certificate has no use for a password or a token"),
				 errhint("Drop it, or give auth_mechanism 'plain'.")));
}

static void
outbox_option_parse_mapping(OutboxServer *server, List *options)
{
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);
		const OutboxOption *option = outbox_option_find(def->defname,
														UserMappingRelationId);

		if (option == NULL)
		{
			outbox_option_unknown(def->defname, UserMappingRelationId);
			continue;			/* not reached */
		}
		outbox_option_apply(server, option, defGetString(def));
	}
	outbox_option_check_mapping(server);
	if (server->password && strlen(server->password) > OUTBOX_PASSWORD_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
				 errmsg("password is too long"),
				 errdetail("It may have %d bytes.", OUTBOX_PASSWORD_MAX)));
}

/*
 * Rights
 */

/* See outbox_option_set_former(). */
static List *former_options = NIL;

List *
outbox_option_set_former(List *options)
{
	List	   *before = former_options;

	former_options = options;
	return before;
}

/* Does the statement that is being executed bring this option, or its value? */
static bool
outbox_option_is_new(const DefElem *def)
{
	ListCell   *lc;

	foreach(lc, former_options)
	{
		DefElem    *former = lfirst_node(DefElem, lc);

		if (strcmp(former->defname, def->defname) == 0)
			return strcmp(defGetString(former),
						  defGetString((DefElem *) def)) != 0;
	}
	return true;
}

static void
outbox_option_check_right(const OutboxOption *option, const char *value)
{
	/* naming a file that the server reads needs the right to read such files */
	if (option->server_file &&
		!has_privs_of_role(GetUserId(), ROLE_PG_READ_SERVER_FILES))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to set option \"%s\"",
						option->name),
				 errdetail("Only roles with privileges of the \"%s\" role may name a file of the server.",
						   "pg_read_server_files"),
				 errhint("Have such a role set the option.")));
	if (option->kind == OUTBOX_OPTION_VERIFY && !superuser() &&
		outbox_option_word(option, value) == OUTBOX_VERIFY_NONE)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be superuser to set option \"%s\" to \"%s\"",
						option->name, value),
				 errdetail("Anybody between this server and the broker could read and change messages, and take the password."),
				 errhint("Name the certificate of the broker's authority with the option cacertfile.")));
}

/* Options that need a right, as far as the statement brings them. */
static void
outbox_option_check_rights(List *options, Oid catalog)
{
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);
		const OutboxOption *option = outbox_option_find(def->defname, catalog);

		if (option && outbox_option_is_new(def))
			outbox_option_check_right(option, defGetString(def));
	}
}

/*
 * The validator of the foreign-data wrapper: errors HV00D for an unknown
 * option, HV024 for a wrong value, 42501 for what one has no right to: naming
 * a file, and for anybody but a superuser to do without verification.
 */
Datum
outbox_sql_validator(PG_FUNCTION_ARGS)
{
	List	   *options = untransformRelOptions(PG_GETARG_DATUM(0));
	Oid			catalog = PG_GETARG_OID(1);
	OutboxServer server;

	outbox_option_set_defaults(&server);
	if (catalog == ForeignServerRelationId)
		outbox_option_parse_server(&server, options);
	else if (catalog == UserMappingRelationId)
		outbox_option_parse_mapping(&server, options);
	else if (options != NIL)
		outbox_option_unknown(linitial_node(DefElem, options)->defname,
							  catalog);
	outbox_option_check_rights(options, catalog);
	PG_RETURN_VOID();
}

/*
 * What the worker uses
 */

/* Options of the mapping for one user, PUBLIC being InvalidOid. */
static bool
outbox_option_find_mapping(Oid userid, Oid serverid, List **options)
{
	HeapTuple	tuple = SearchSysCache2(USERMAPPINGUSERSERVER,
										ObjectIdGetDatum(userid),
										ObjectIdGetDatum(serverid));
	Datum		datum;
	bool		isnull;

	*options = NIL;
	if (!HeapTupleIsValid(tuple))
		return false;
	datum = SysCacheGetAttr(USERMAPPINGUSERSERVER, tuple,
							Anum_pg_user_mapping_umoptions, &isnull);
	if (!isnull)
	{
		ArrayType  *copy = DatumGetArrayTypePCopy(datum);

		*options = untransformRelOptions(PointerGetDatum(copy));
		explicit_bzero(copy, VARSIZE(copy));
		pfree(copy);
	}
	ReleaseSysCache(tuple);
	return true;
}

List *
outbox_option_of_server(const char *server)
{
	ForeignServer *foreign = GetForeignServerByName(server, true);

	return foreign ? foreign->options : NIL;
}

List *
outbox_option_of_mapping(const char *server, Oid userid)
{
	ForeignServer *foreign = GetForeignServerByName(server, true);
	List	   *options = NIL;

	if (foreign)
		(void) outbox_option_find_mapping(userid, foreign->serverid, &options);
	return options;
}

/* The option of a mapping that names a file of the server, NULL if none does. */
static const char *
outbox_option_names_file(List *mapping)
{
	ListCell   *lc;

	foreach(lc, mapping)
	{
		DefElem    *def = lfirst_node(DefElem, lc);
		const OutboxOption *option = outbox_option_find(def->defname,
														UserMappingRelationId);

		if (option && option->server_file)
			return option->name;
	}
	return NULL;
}

/*
 * Whose credentials are they?  The owner of a server can have them sent to a
 * host of his.
 */
static void
outbox_option_check_owner(OutboxServer *server, Oid owner, bool own_mapping,
						  List *mapping)
{
	const char *file = outbox_option_names_file(mapping);

	if (superuser_arg(owner))
		return;
	if (!own_mapping)
	{
		server->refusal = "the server's owner has no user mapping";
		server->refusal_detail = "The owner is not a superuser: a mapping for PUBLIC is not used.";
	}
	else if (file && !has_privs_of_role(owner, ROLE_PG_READ_SERVER_FILES))
	{
		server->refusal = psprintf("option \"%s\" cannot be used for the server's owner",
								   file);
		server->refusal_detail = "The owner could have the contents of the file sent to any host, and has not the rights of pg_read_server_files.";
	}
	else if (file == NULL &&
			 (server->password == NULL || server->password[0] == '\0'))
	{
		server->refusal = "the user mapping of the server's owner has no password";
		server->refusal_detail = "The owner is not a superuser, and must bring one.";
	}
}

/* AMQP text is UTF-8. */
static char *
outbox_option_utf8(char *value)
{
	return value ? pg_server_to_any(value, strlen(value), PG_UTF8) : NULL;
}

/* A secret as UTF-8; the former copy is wiped. */
static char *
outbox_option_secret_utf8(char *value)
{
	char	   *utf8 = outbox_option_utf8(value);

	if (utf8 != value)
		explicit_bzero(value, strlen(value));
	return utf8;
}

static void
outbox_option_forget(void *arg)
{
	OutboxServer *server = arg;

	if (server->password)
		explicit_bzero(server->password, strlen(server->password));
	if (server->keyfile_password)
		explicit_bzero(server->keyfile_password,
					   strlen(server->keyfile_password));
}

static void
outbox_option_load_mapping(OutboxServer *server, Oid owner)
{
	MemoryContextCallback *forget = palloc0(sizeof(MemoryContextCallback));
	List	   *mapping;
	bool		own = outbox_option_find_mapping(owner, server->serverid,
												 &mapping);

	forget->func = outbox_option_forget;
	forget->arg = server;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, forget);
	if (!own && superuser_arg(owner))
		(void) outbox_option_find_mapping(InvalidOid, server->serverid,
										  &mapping);
	outbox_option_parse_mapping(server, mapping);
	outbox_option_check_owner(server, owner, own, mapping);
	server->user = outbox_option_utf8(server->user);
	server->password = outbox_option_secret_utf8(server->password);
	server->keyfile_password = outbox_option_secret_utf8(server->keyfile_password);
}

OutboxServer *
outbox_option_load(Oid serverid)
{
	ForeignServer *foreign = GetForeignServerExtended(serverid,
													  FSV_MISSING_OK);
	OutboxServer *server;

	if (foreign == NULL)
		return NULL;

	server = palloc(sizeof(OutboxServer));
	outbox_option_set_defaults(server);
	server->serverid = serverid;
	server->name = foreign->servername;
	outbox_option_parse_server(server, foreign->options);
	server->vhost = outbox_option_utf8(server->vhost);
	outbox_option_load_mapping(server, foreign->owner);
	return server;
}

static bool
outbox_text_equal(const char *a, const char *b)
{
	return (a == NULL || b == NULL) ? a == b : strcmp(a, b) == 0;
}

static bool
outbox_option_same_tls(const OutboxTlsOptions *a, const OutboxTlsOptions *b)
{
	return a->verify == b->verify &&
		a->min_version == b->min_version &&
		outbox_text_equal(a->cacertfile, b->cacertfile) &&
		outbox_text_equal(a->cacertdir, b->cacertdir) &&
		outbox_text_equal(a->server_name, b->server_name) &&
		outbox_text_equal(a->certfile, b->certfile) &&
		outbox_text_equal(a->keyfile, b->keyfile);
}

static bool
outbox_option_same_credentials(const OutboxServer *a, const OutboxServer *b)
{
	return a->mechanism == b->mechanism &&
		outbox_text_equal(a->user, b->user) &&
		outbox_text_equal(a->password, b->password) &&
		outbox_text_equal(a->password_file, b->password_file) &&
		outbox_text_equal(a->token_file, b->token_file) &&
		outbox_text_equal(a->keyfile_password, b->keyfile_password) &&
		outbox_text_equal(a->keyfile_password_file, b->keyfile_password_file);
}

bool
outbox_option_same_connection(const OutboxServer *a, const OutboxServer *b)
{
	if (a->nhosts != b->nhosts)
		return false;
	for (int i = 0; i < a->nhosts; i++)
	{
		if (strcmp(a->hosts[i].name, b->hosts[i].name) != 0 ||
			a->hosts[i].port != b->hosts[i].port)
			return false;
	}
	return strcmp(a->vhost, b->vhost) == 0 &&
		a->tls == b->tls &&
		a->paused == b->paused &&
		a->heartbeat == b->heartbeat &&
		a->frame_max == b->frame_max &&
		a->allow_plaintext == b->allow_plaintext &&
		outbox_option_same_tls(&a->tls_options, &b->tls_options) &&
		outbox_option_same_credentials(a, b) &&
		outbox_text_equal(a->refusal, b->refusal);
}

/* One option of a server as it stands, NULL if it is not given. */
static char *
outbox_option_value(Oid serverid, const char *name)
{
	ForeignServer *foreign = GetForeignServerExtended(serverid,
													  FSV_MISSING_OK);
	ListCell   *lc;

	if (foreign == NULL)
		return NULL;
	foreach(lc, foreign->options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);

		if (strcmp(def->defname, name) == 0)
			return defGetString(def);
	}
	return NULL;
}

void
outbox_option_message_defaults(Oid serverid, bool *persistent,
							   bool *mandatory)
{
	char	   *value;

	value = outbox_option_value(serverid, "persistent");
	*persistent = value == NULL || !parse_bool(value, persistent) ||
		*persistent;
	value = outbox_option_value(serverid, "mandatory");
	*mandatory = value == NULL || !parse_bool(value, mandatory) || *mandatory;
}

/* One option that is a number. */
static int
outbox_option_number(Oid serverid, const char *name, int default_value)
{
	char	   *value = outbox_option_value(serverid, name);

	return value == NULL ? default_value :
		outbox_option_int(outbox_option_find(name, ForeignServerRelationId),
						  value);
}

int
outbox_option_frame_max(Oid serverid)
{
	return outbox_option_number(serverid, "frame_max",
								OUTBOX_DEFAULT_FRAME_MAX);
}

int
outbox_option_idempotency_retention(Oid serverid)
{
	return outbox_option_number(serverid, "idempotency_retention",
								OUTBOX_DEFAULT_IDEMPOTENCY_RETENTION);
}

void
outbox_option_load_admission(Oid serverid, OutboxAdmission *admission)
{
	ForeignServer *foreign = GetForeignServerExtended(serverid,
													  FSV_MISSING_OK);
	OutboxServer server = {.serverid = serverid};
	ListCell   *lc;

	if (foreign == NULL)
		return;
	foreach(lc, foreign->options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);
		const OutboxOption *option = outbox_option_find(def->defname,
														ForeignServerRelationId);

		if (option && option->offset >= SERVER_OPTION(admission) &&
			option->offset < SERVER_OPTION(admission) + sizeof(server.admission))
			outbox_option_apply(&server, option, defGetString(def));
	}
	*admission = server.admission;
}
